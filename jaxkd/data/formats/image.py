"""The only reader of PNG and JPEG, and of small text files.

Every fault of a file is a BadData (MissingInput when there is no file), never an error of the decoder. Pixels keep
their stored form: grey stays grey, 16 bits stay 16 bits, a palette becomes its colours. Files that cannot be read
without loss or ambiguity (transparency, CMYK, 16-bit colour, an EXIF rotation) are refused.
PNG carries checksums, so a damaged PNG is always detected. JPEG has none: a flipped bit may decode to other pixels.
"""
import io
import os
import stat
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import JpegImagePlugin, PngImagePlugin

from jaxkd import errors
from jaxkd.data.formats import checks

MAX_PIXELS = 100_000_000
_ORIENTATION = 0x0112  # EXIF tag
_PNG = b'\x89PNG\r\n\x1a\n'
_TEXT = (b'tEXt', b'zTXt', b'iTXt', b'iCCP')  # chunks that no pixel depends on, of any size
_PALETTE = 3  # colour type of a PNG


def read(path: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """uint8 or uint16 [H,W], or uint8 [H,W,3]. BadData for more than `max_pixels`, before any is decoded."""
    return decode(read_bytes(path, max_bytes(max_pixels)), path, max_pixels)


def decode(data: bytes, path: str, max_pixels: int) -> np.ndarray:
    """As `read`, of the bytes of the file."""
    if not data:
        raise checks.bad(path, 'it is empty')
    with checks.reading(path):
        data = _without_text(data, path)
        _decoder(data)(io.BytesIO(data)).verify()  # checksums of a PNG, which decoding alone does not compare
        image = _open(data, path, max_pixels)
        if image.mode in ('1', 'L'):
            return np.array(image.convert('L'))
        if image.mode == 'I;16':
            return np.array(image)
        if image.mode in ('LA', 'RGBA'):
            *_, alpha = image.split()
            if alpha.getextrema()[0] < 255:
                raise checks.bad(path, 'it is partly transparent', 'Flatten it to grey or RGB')
            return np.array(image.convert(image.mode[:-1]))
        if image.mode == 'P' and 'transparency' in image.info:
            raise checks.bad(path, 'its palette has transparent colours', 'Flatten it to grey or RGB')
        if image.mode in ('P', 'RGB'):
            return np.array(image.convert('RGB'))
        raise checks.bad(path, f'its pixels are of mode {image.mode}', 'Save it as 8- or 16-bit grey or 8-bit RGB')


def significant_bits(data: bytes) -> int:
    """The bits of a grey value by the chunk sBIT of a PNG; 0 without one."""
    chunk = next((data[start + 8:end - 4] for kind, start, end in _chunks(data) if kind == b'sBIT'), b'')
    return chunk[0] if chunk else 0


def is_image(data: bytes) -> bool:
    """Whether bytes begin as a PNG or a JPEG does."""
    return data.startswith((_PNG, b'\xff\xd8'))


def max_bytes(max_pixels: int) -> int:
    """The most bytes of a file of so many pixels: four 16-bit channels, stored without compression, and 16 MiB."""
    return 8 * max_pixels + 2**24


def stored_numbers(path: str, max_pixels: int = MAX_PIXELS) -> np.ndarray | None:
    """uint8 [H,W], what a PNG of 1, 2 or 4 bits or with a palette holds: numbers that `read` makes greys or colours of.

    None for any other file, and for what `read` refuses anyway.
    """
    data = read_bytes(path, max_bytes(max_pixels))
    if not data.startswith(_PNG) or len(data) < 26 or data[24] >= 8 and data[25] != _PALETTE:
        return None
    with checks.reading(path):
        return numbers_of(_open(_without_text(data, path), path, max_pixels), data[24])


def numbers_of(picture: Any, bits: int) -> np.ndarray | None:
    """uint8 [H,W], the numbers below 2**bits that a Pillow image was decoded from; None where they are its pixels."""
    if picture.mode == 'P':
        return np.array(picture)
    if picture.mode in ('1', 'L') and bits < 8:
        return np.array(picture.convert('L')) // (255 // (2**bits - 1))
    return None


def read_bytes(path: str, max_bytes: int) -> bytes:
    """The bytes of a regular file. BadData for more than `max_bytes`, and for anything else, such as a pipe."""
    with checks.reading(path):
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise checks.bad(path, 'it is not a regular file', 'Point the table at the file itself')
        if status.st_size > max_bytes:
            raise checks.bad(path, f'it has {status.st_size:,} bytes, the most are {max_bytes:,}', 'Replace it')
        with open(path, 'rb') as f:
            return f.read()


def read_lines(path: str, max_bytes: int) -> list[str]:
    """The lines of a UTF-8 file, with or without byte-order mark, any line ends."""
    return decode_lines(path, read_bytes(path, max_bytes))


def decode_lines(location: str, data: bytes) -> list[str]:
    """The lines of UTF-8 bytes. BadData, with `location`, for other encodings."""
    try:
        return data.decode('utf-8-sig').splitlines()
    except UnicodeDecodeError as e:
        raise errors.BadData(f'{location} is not UTF-8 (byte {e.start}). Save it as UTF-8, or copy it again from where '
                             'it came.') from e


def _decoder(data: bytes) -> Any:
    # The two plugins by name: Image.open guesses among forty formats, and its size limit is process-global.
    if data.startswith(_PNG):
        return PngImagePlugin.PngImageFile
    if data.startswith(b'\xff\xd8'):
        return JpegImagePlugin.JpegImageFile
    raise ValueError('neither a PNG nor a JPEG')


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of the chunks of a PNG, as long as they are whole; none of a JPEG."""
    start = len(_PNG)
    while data.startswith(_PNG) and start + 12 <= len(data):
        kind, end = data[start + 4:start + 8], start + 12 + int.from_bytes(data[start:start + 4], 'big')
        if end > len(data):
            return
        yield kind, start, end
        start = end


def _without_text(data: bytes, path: str) -> bytes:
    """A PNG less its texts and profiles, whose size Pillow limits and which are never unpacked."""
    parts, after = [], 0
    for kind, start, end in _chunks(data):
        if kind in _TEXT:
            if zlib.crc32(data[start + 4:end - 4]) != int.from_bytes(data[end - 4:end], 'big'):
                raise checks.bad(path, f'the checksum of its chunk {kind.decode()} does not match')
            parts.append(data[after:start])
            after = end
    return b''.join([*parts, data[after:]]) if parts else data


def _open(data: bytes, path: str, max_pixels: int) -> Any:
    image = _decoder(data)(io.BytesIO(data))
    checks.check_pixels(image.size, max_pixels, path)
    if getattr(image, 'n_frames', 1) > 1:
        raise checks.bad(path, f'it holds {image.n_frames} frames', 'Save the one that is meant')
    if image.mode != 'I;16' and '16' in str(image.tile[0].args):
        raise checks.bad(path, 'it has colours or transparency of 16 bits', 'Save it as 8- or 16-bit grey or 8-bit RGB')
    if 'exif' in image.info and image.getexif().get(_ORIENTATION, 1) != 1:
        raise checks.bad(path, 'its EXIF tag requests a rotation, so boxes are ambiguous', 'Save it upright')
    return image
