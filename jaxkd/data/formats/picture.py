"""A picture of any format that a network may get: PNG, JPEG, BMP, TIFF or DICOM, as its first bytes say.

Grey of 16 bits often holds 10, 12 or 14. Where the file declares it (sBIT of a PNG; BitsPerSample, MaxSampleValue or
OME's SignificantBits of a TIFF; BitsStored of a DICOM file), the values are divided by the largest that so many bits
can hold. Otherwise they stay as they are, and the transform `image` decides. Masks are read by the format's own `read`,
which never scales.
"""
import numpy as np

from jaxkd import errors
from jaxkd.data.formats import bitmap, checks, dicom, film, image
from jaxkd.runtime import log

_reported: set[int] = set()  # numbers of bits that a line of this process was about
ENDINGS = ('.png', '.jpg', '.jpeg', *bitmap.ENDINGS, '.dcm')


def read(path: str, max_pixels: int = image.MAX_PIXELS) -> np.ndarray:
    """uint8 [H,W] or [H,W,3]; grey of more bits: float32 [H,W] in [0,1] if the file declares how many, else uint16."""
    data = image.read_bytes(path, image.max_bytes(max_pixels))
    if image.is_image(data):
        pixels, bits = image.decode(data, path, max_pixels), image.significant_bits(data)
        if 8 <= bits < 16 and pixels.dtype == np.uint16 and _fills_16_bits(pixels, bits):
            return pixels.astype(np.float32) / 65535
    elif data.startswith((b'BM', b'II*\0', b'MM\0*')):
        pixels, bits = bitmap.decode(data, path, max_pixels)
    elif dicom.is_dicom(data):
        pixels, bits = film.decode(data, path, max_pixels)
    else:
        raise checks.bad(path, 'it is empty' if not data else 'it is none of PNG, JPEG, BMP, TIFF and DICOM',
                         'Save it as one of them or remove its row')
    if not (8 <= bits < 16 and pixels.dtype == np.uint16):
        return pixels
    if bits not in _reported:
        _reported.add(bits)
        log.info(f'{path}: it declares {bits} bits, by which its grey is scaled. Other pictures of {bits} get no line.')
    return scaled(pixels, bits, path)


def scaled(pixels: np.ndarray, bits: int, location: str, remedy: str = 'Correct what the file declares') -> np.ndarray:
    """float32 in [0,1] of uint16 pixels of `bits` bits. BadData, with `location` and `remedy`, for a larger value."""
    white = 2**bits - 1
    if bits < 16 and (largest := int(pixels.max())) > white:
        raise errors.BadData(f'{location} has grey values up to {largest}, more than {bits} bits can hold ({white}). '
                             f'{remedy}.')
    return pixels.astype(np.float32) / white


def _fills_16_bits(pixels: np.ndarray, bits: int) -> bool:
    """Whether values of so many bits were shifted to the upper end of 16, as the PNG standard wants it."""
    low = pixels & (2**(16 - bits) - 1)
    return int(pixels.max()) >= 2**bits or not (low != pixels >> bits).any() or not low.any()
