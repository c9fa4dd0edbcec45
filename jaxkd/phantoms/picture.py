"""Pixels to the bytes of a picture file."""
import io


def encode(pixels, kind, **options):
    """The bytes of a file of a kind that Pillow writes ('jpeg', 'png'); pixels uint8 or uint16 [H,W], or uint8 [H,W,3]."""
    from PIL import Image
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
