"""From the bytes of an open file to its voxels."""
import io
import math
import zlib
from typing import Any

import numpy as np

from jaxkd.data.formats import checks

_CHUNK = 2**16


def open_gzip(f: io.BufferedIOBase, max_bytes: float = math.inf) -> io.BufferedReader:
    """What the gzip file f holds, as a stream with a buffer; EOFError where that is more than `most` bytes."""
    return io.BufferedReader(_Inflated(f, max_bytes), _CHUNK)


def read_voxels(f: io.BufferedIOBase, count: int, dtype: np.dtype, path: str) -> np.ndarray:
    """The last `count` numbers of the stream f, in the machine's byte order."""
    voxels = np.empty(count, dtype)
    buffer, filled = voxels.view(np.uint8).data, 0
    while n := f.readinto(buffer[filled:]):
        filled += n
    if filled < len(buffer):
        raise checks.bad(path, f'its header claims {len(buffer):,} bytes of voxels, it holds {filled:,}',
                         'Copy it again from where it came')
    if f.read(1):
        raise checks.bad(path, f'data follow the {len(buffer):,} bytes of voxels', 'Copy it again from where it came')
    return voxels.astype(dtype.newbyteorder('='), copy=False)


def scale(voxels: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """Voxels as they are where that is the identity, else float32."""
    if (slope, inter) == (1, 0):
        return voxels
    scaled = voxels.astype(np.float32)
    scaled *= slope
    scaled += inter
    return scaled


class _Inflated(io.RawIOBase):
    """What a gzip file holds. Its end comes only after the checksum and the length of every member were right."""

    def __init__(self, f: io.BufferedIOBase, max_bytes: float) -> None:
        self._f, self._left, self._data = f, max_bytes, b''
        self._member: Any = None  # zlib.decompressobj of the member that is read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._member is None or self._member.eof:
                self._data = self._member and self._member.unused_data or self._f.read(_CHUNK)
                if not self._data:
                    return 0
                self._member = zlib.decompressobj(31)
            self._data = self._data or self._f.read(_CHUNK)
            piece = self._member.decompress(self._data, len(buffer))
            if not (piece or self._data or self._member.eof):
                raise EOFError('it ends too early')
            self._data = self._member.unconsumed_tail
            self._left -= len(piece)
            if self._left < 0:
                raise EOFError('it unpacks to far more than its size lets expect')
            if piece:
                buffer[:len(piece)] = piece
                return len(piece)
