"""The one place that reads PNG and JPEG files.

Every way in which a file can be wrong ends as BadData (MissingInput when there is no file), never as an error
of the decoder. Pixels come as stored: grey stays grey, 16 bits stay 16 bits, a palette becomes the colours it
stands for, and what cannot be read without loss or doubt (transparency, CMYK, 16-bit colour, an EXIF
rotation) is refused.
PNG carries checksums, so a damaged PNG is always found. JPEG has none: a flipped bit may decode to other
pixels.
"""
import errno
import io
import os
import stat
from typing import Any

import numpy as np
from PIL import JpegImagePlugin, PngImagePlugin

from jaxkd import errors

MAX_PIXELS = 100_000_000
_ORIENTATION = 0x0112  # EXIF tag


def read(path: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """uint8 or uint16 [H,W], or uint8 [H,W,3]. Refuses more than `max_pixels` before it decodes any."""
    data = _bytes(path, max_pixels)
    try:
        _decoder(data)(io.BytesIO(data)).verify()  # checksums of a PNG, which decoding alone does not look at
        image = _open(data, path, max_pixels)
        if image.mode in ('1', 'L'):
            return np.array(image.convert('L'))
        if image.mode == 'I;16':
            return np.array(image)
        if image.mode in ('LA', 'RGBA'):
            *_, alpha = image.split()
            if alpha.getextrema()[0] < 255:
                raise _bad(path, 'it is partly transparent', 'Flatten it to grey or RGB')
            return np.array(image.convert(image.mode[:-1]))
        if image.mode == 'P' and 'transparency' in image.info:
            raise _bad(path, 'its palette has transparent colours', 'Flatten it to grey or RGB')
        if image.mode in ('P', 'RGB'):
            return np.array(image.convert('RGB'))
        raise _bad(path, f'its pixels are of mode {image.mode}', 'Save it as 8- or 16-bit grey or 8-bit RGB')
    except errors.JaxkdError:
        raise
    except Exception as e:  # decoders raise a dozen types, all of which mean that the file is damaged
        raise _damaged(path, e) from e


def read_bytes(path: str, max_bytes: int) -> bytes:
    """The bytes of a regular file, at most `most`. Anything else, such as a pipe is refused."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise _bad(path, 'it is not a regular file', 'Point the table at the file itself')
        if status.st_size > max_bytes:
            raise _bad(path, f'it has {status.st_size:,} bytes, the most are {max_bytes:,}', 'Replace it')
        with open(path, 'rb') as f:
            return f.read()
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        if getattr(e, 'errno', None) in (errno.ENOENT, errno.ENOTDIR):
            raise errors.MissingInput(f'{path} does not exist. Correct the path in the table or the root.') from e
        raise _bad(path, getattr(e, 'strerror', None) or str(e), 'Make it readable for this user') from e


def _bytes(path: str, max_pixels: int) -> bytes:
    data = read_bytes(path, 8 * max_pixels + 2**24)  # 8: four 16-bit channels, stored without compression
    if not data:
        raise _bad(path, 'it is empty', 'Copy it again from where it came')
    return data


def _decoder(data: bytes) -> Any:
    # The two plugins by name: Image.open guesses among forty formats, and its size limit is process-global.
    if data.startswith(b'\x89PNG\r\n\x1a\n'):
        return PngImagePlugin.PngImageFile
    if data.startswith(b'\xff\xd8'):
        return JpegImagePlugin.JpegImageFile
    raise ValueError('neither a PNG nor a JPEG')


def _open(data: bytes, path: str, max_pixels: int) -> Any:
    image = _decoder(data)(io.BytesIO(data))
    width, height = image.size
    if width * height > max_pixels:
        raise _bad(path, f'its header claims {width} x {height} pixels, more than max_pixels = {max_pixels:,}',
                   'Raise max_pixels of the source if that is right')
    if getattr(image, 'n_frames', 1) > 1:
        raise _bad(path, f'it holds {image.n_frames} frames', 'Save the one that is meant')
    if image.mode != 'I;16' and '16' in str(image.tile[0].args):
        raise _bad(path, 'it has colours or transparency of 16 bits', 'Save it as 8- or 16-bit grey or 8-bit RGB')
    if 'exif' in image.info and image.getexif().get(_ORIENTATION, 1) != 1:
        raise _bad(path, 'its EXIF tag asks for a rotation, so boxes could mean two things', 'Save it upright')
    return image


def _bad(path: str, reason: str, remedy: str) -> errors.BadData:
    return errors.BadData(f'{path} cannot be used: {reason}. {remedy}.')


def _damaged(path: str, e: Exception) -> errors.BadData:
    return errors.BadData(f'{path} is not a readable PNG or JPEG ({type(e).__name__}: {e}). '
                          'Copy it again from where it came or remove its row.')
