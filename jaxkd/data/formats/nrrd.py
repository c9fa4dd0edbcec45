"""NRRD in one piece, raw or gzip: .nrrd. Label maps are also written."""
import io
import os
from typing import Any

import numpy as np

from jaxkd.data.formats import checks, inflate
from jaxkd.runtime import files

_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS to RAS
_SPACES = {'right-anterior-superior': np.eye(4), 'ras': np.eye(4), 'left-posterior-superior': _FLIP, 'lps': _FLIP}
_ORDERS: dict[str, Any] = {'little': '<', 'big': '>'}
_TYPES = {name: np.dtype(code) for code, names in {
    'i1': 'signed char, int8, int8_t',
    'u1': 'uchar, unsigned char, uint8, uint8_t',
    'i2': 'short, short int, signed short, signed short int, int16, int16_t',
    'u2': 'ushort, unsigned short, unsigned short int, uint16, uint16_t',
    'i4': 'int, signed int, int32, int32_t',
    'u4': 'uint, unsigned int, uint32, uint32_t',
    'i8': 'longlong, long long, long long int, signed long long, signed long long int, int64, int64_t',
    'u8': 'ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t',
    'f4': 'float',
    'f8': 'double'}.items() for name in names.split(', ')}


def write(path: str, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Write voxels [X,Y,Z] whole or not at all, gzipped. The header says nothing but their grid."""
    with checks.needs('pynrrd', path):
        import nrrd
    checks.check_affine(affine, voxels.shape, path)
    out = io.BytesIO()
    nrrd.write(out, np.asfortranarray(voxels), {
        'space': 'left-posterior-superior', 'kinds': ['domain'] * 3, 'encoding': 'gzip', 'endian': 'little',
        'space directions': (_FLIP @ affine)[:3, :3].T, 'space origin': (_FLIP @ affine)[:3, 3]})
    files.write(path, out.getvalue())


def read(f: io.BufferedIOBase, path: str, max_voxels: int) -> tuple[np.ndarray, np.ndarray]:
    """Voxels [X,Y,Z] as the open file has them, and their affine to RAS+."""
    header, start, shape, affine = _header(f, path)
    encoding = header['encoding'].lower()
    if encoding not in ('raw', 'gzip', 'gz'):
        raise checks.bad(path, 'it is neither raw nor gzip', 'Save it with encoding gzip')
    dtype = _TYPES.get(header['type'])
    if dtype is None:
        raise checks.bad(path, 'its voxels are neither integer nor real', 'Save it as short or float')
    if dtype.itemsize > 1:
        dtype = dtype.newbyteorder(_ORDERS[header['endian']])
    count = checks.count(shape, max_voxels, path)
    f.seek(start)
    checks.check_size(os.fstat(f.fileno()).st_size - start, count * dtype.itemsize, encoding != 'raw', path)
    content = f if encoding == 'raw' else inflate.open_gzip(f)
    return inflate.read_voxels(content, count, dtype, path).reshape(shape, order='F'), affine


def read_grid(f: io.BufferedIOBase, path: str) -> tuple[tuple[int, ...], np.ndarray]:
    """(shape, affine) that `read` returns, by the header alone."""
    _, _, shape, affine = _header(f, path)
    return tuple(shape), affine


def _header(f: io.BufferedIOBase, path: str) -> tuple[dict[str, Any], int, list[int], np.ndarray]:
    """(header, its length in bytes, shape, affine to RAS+) of one volume."""
    with checks.needs('pynrrd', path):
        import nrrd
    head = io.BytesIO(f.read(2**20))
    header = nrrd.read_header(head)
    start = head.tell()
    if not head.getvalue()[:start].endswith((b'\n\n', b'\r\n\r\n')):
        raise checks.bad(path, 'no empty line ends its header')
    if {'data file', 'datafile'} & set(header):
        raise checks.bad(path, 'its data are in another file', 'Save it as one .nrrd file')
    if any(int(header.get(key, 0)) for key in ('byte skip', 'byteskip', 'line skip', 'lineskip')):
        raise checks.bad(path, 'it skips bytes or lines', 'Save it again without')
    shape = [int(n) for n in header['sizes']]
    if header['dimension'] != 3 or len(shape) != 3 or min(shape) < 1:
        raise checks.bad(path, f'it is not one volume, its shape is {tuple(shape)}', 'Save the volume that is meant')
    frame = _SPACES.get(str(header.get('space')).lower())
    if frame is None or 'space directions' not in header or 'space origin' not in header:
        raise checks.bad(path, f'its space is {str(header.get("space"))[:40]}, or its directions or origin are missing',
                         'Save it with space left-posterior-superior or right-anterior-superior')
    if not set(header.get('space units', ())) <= {'mm', ''}:
        raise checks.bad(path, 'its unit of length is not mm', 'Save it in mm')
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(header['space directions'], (3, 3)).T
    affine[:3, 3] = header['space origin']
    affine = frame @ affine
    checks.check_affine(affine, shape, path)
    return header, start, shape, affine
