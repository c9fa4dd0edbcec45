"""Images of one frame in BMP and TIFF. Neither has checksums."""
import io
import re
from typing import Any

import numpy as np

from jaxkd import errors
from jaxkd.data.formats import checks, image

ENDINGS = ('.bmp', '.tif', '.tiff')
_BITS, _COMPRESSION, _PHOTOMETRIC, _DESCRIPTION, _MAX_VALUE = 258, 259, 262, 270, 281  # tags of TIFF


def read(path: str, max_pixels: int) -> np.ndarray:
    """uint8 or uint16 [H,W], or uint8 [H,W,3]; a palette becomes its colours."""
    return decode(image.read_bytes(path, image.max_bytes(max_pixels)), path, max_pixels)[0]


def decode(data: bytes, path: str, max_pixels: int) -> tuple[np.ndarray, int]:
    """(pixels as of `read`, bits of a grey value where the file declares fewer than 16, else 0), of a file's bytes."""
    with checks.reading(path):
        picture = _open(data, path, max_pixels)
        if picture.mode in ('I;16', 'I;16B'):
            if picture.tag_v2.get(_PHOTOMETRIC) == 0:
                raise checks.bad(path, 'its 16-bit grey is 0 for white', 'Save it with 0 for black')
            return np.array(picture).astype(np.uint16), _bits(picture.tag_v2)
        if picture.mode not in ('1', 'L', 'P', 'RGB'):
            raise checks.bad(path, f'its pixels are of mode {picture.mode}', 'Save it as 8- or 16-bit grey or RGB')
        return np.array(picture.convert('L' if picture.mode in ('1', 'L') else 'RGB')), 0


def _bits(tags: Any) -> int:
    """Bits of a grey value of a 16-bit TIFF that BitsPerSample, MaxSampleValue or OME's SignificantBits declare."""
    stored = tags.get(_BITS, (16,))[0]
    significant = re.search(r'SignificantBits="(\d+)"', str(tags.get(_DESCRIPTION, '')))
    highest = np.ravel(tags.get(_MAX_VALUE, 0))[0] + 1  # a power of two: a depth, not the largest value of this image
    bits = int(significant[1]) if significant else int(highest).bit_length() - 1 if highest & highest - 1 == 0 else 0
    return min(stored, bits or 16) % 16


def _unread(data: bytes, path: str) -> errors.BadData:
    """The error for pixels of a TIFF that Pillow does not read, such as 10 or 14 bits in a row without gaps."""
    from PIL import TiffImagePlugin
    f = io.BytesIO(data)
    tags = TiffImagePlugin.ImageFileDirectory_v2(f.read(8))
    f.seek(tags.next)
    tags.load(f)
    bits = ' + '.join(map(str, tags.get(_BITS, (1,))))
    return checks.bad(path, f'its pixels of {bits} bits (PhotometricInterpretation {tags.get(_PHOTOMETRIC)}, '
                            f'Compression {tags.get(_COMPRESSION, 1)}) are not read',
                      'Save it as 8- or 16-bit grey or 8-bit RGB')


def stored_numbers(path: str, max_pixels: int) -> np.ndarray | None:
    """As `image.stored_numbers`, of BMP and TIFF."""
    with checks.reading(path):
        picture = _open(image.read_bytes(path, image.max_bytes(max_pixels)), path, max_pixels)
        bits = picture.tag_v2.get(_BITS, (8,))[0] if picture.format == 'TIFF' else 8
        return image.numbers_of(picture, 1 if picture.mode == '1' else bits)


def _open(data: bytes, path: str, max_pixels: int) -> Any:
    from PIL import BmpImagePlugin, TiffImagePlugin
    # The two plugins by name, as in jaxkd/data/formats/image.py.
    kind: Any = BmpImagePlugin.BmpImageFile if data.startswith(b'BM') else TiffImagePlugin.TiffImageFile
    try:
        picture = kind(io.BytesIO(data))
    except SyntaxError as e:
        raise (checks.damaged(path, e) if data.startswith(b'BM') else _unread(data, path)) from e
    bits = data[28]  # of a BMP
    if kind is BmpImagePlugin.BmpImageFile and {'1': 1, 'L': 8}.get(picture.mode, bits) != bits:
        raise checks.bad(path, f'it has {bits} bits for two or few greys, which Pillow reads wrongly', 'Save it as PNG')
    checks.check_pixels(picture.size, max_pixels, path)
    if getattr(picture, 'n_frames', 1) > 1:
        raise checks.bad(path, f'it holds {picture.n_frames} frames', 'Save the one that is meant')
    return picture
