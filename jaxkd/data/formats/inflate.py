"""The bytes of an open file, gzipped or not, to its voxels."""
import io
import math
import zlib
from typing import Any

import numpy as np

from jaxkd.data.formats import checks

_CHUNK = 2**16


def open_gzip(f: io.BufferedIOBase, max_bytes: float = math.inf) -> io.BufferedReader:
    """The content of the gzip file f, as a buffered stream; EOFError where it has more than `max_bytes` bytes."""
    return io.BufferedReader(_Inflated(f, max_bytes), _CHUNK)


def open_any(f: io.BufferedReader, max_bytes: float = math.inf) -> io.BufferedReader:
    """The content of the file f, unpacked if it begins as gzip does, whatever its name."""
    return open_gzip(f, max_bytes) if f.peek(2)[:2] == b'\x1f\x8b' else f


def read_voxels(f: io.BufferedIOBase, count: int, dtype: np.dtype, path: str, before: int = 0,
                after: int = 0) -> np.ndarray:
    """`count` numbers of the stream f, in the machine's byte order. The stream ends `after` numbers behind them.

    before, after: numbers that are read and dropped: only the end of a .gz file holds its checksum.
    """
    voxels = np.empty(count, dtype)
    buffer = voxels.view(np.uint8).data
    filled = _skip(f, before * dtype.itemsize)
    start = filled
    while n := f.readinto(buffer[filled - start:]):
        filled += n
    filled += _skip(f, after * dtype.itemsize)
    expected = (before + count + after) * dtype.itemsize
    if filled < expected:
        raise checks.bad(path, f'its header claims {expected:,} bytes of voxels, it holds {filled:,}')
    if f.read(1):
        raise checks.bad(path, f'data follow the {expected:,} bytes of voxels')
    return voxels.astype(dtype.newbyteorder('='), copy=False)


def _skip(f: io.BufferedIOBase, size: int) -> int:
    """Read up to `size` bytes in pieces and drop them; returns their number."""
    n_read = 0
    while n_read < size and (piece := f.read(min(size - n_read, 2**20))):
        n_read += len(piece)
    return n_read


def scale(voxels: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """float32 voxels * slope + inter; the voxels themselves where that is the identity."""
    if (slope, inter) == (1, 0):
        return voxels
    scaled = voxels.astype(np.float32)
    scaled *= slope
    scaled += inter
    return scaled


class _Inflated(io.RawIOBase):
    """The content of a gzip file. The end is reported only after checksum and length of every member have matched."""

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
