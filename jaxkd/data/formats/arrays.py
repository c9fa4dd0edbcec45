"""Named arrays of HDF5 and NPZ files, as numbers alone: no objects, no references, no links, no pickles.

The sizes in a header are compared with a limit before memory is allocated. Every fault of a file is a BadData
(MissingInput when there is no file). Checksums are compared where a file has them: every NPZ does, HDF5 seldom.
"""
import contextlib
import io
import math
import os
import zipfile
from collections.abc import Iterator, Sequence

import numpy as np

from jaxkd import errors
from jaxkd.data.formats import checks
from jaxkd.runtime import versions

_KINDS = 'biufU'  # of numpy: numbers and text


def hdf5(path: str, keys: Sequence[str], max_values: int) -> dict[str, np.ndarray]:
    """{key: array} of the datasets `keys`, of at most `max_values` values each."""
    try:
        import h5py
    except ImportError as e:
        raise errors.ConfigError(f'{path} needs the library h5py, which cannot be imported ({e}). Install it: '
                                 f'{versions.install("h5")}.') from e
    with _reading(path, max_values), h5py.File(path, 'r') as f:
        out = {}
        for key in keys:
            if not isinstance(f.get(key, getlink=True), h5py.HardLink) or not isinstance(f[key], h5py.Dataset):
                raise checks.bad(path, f'it has no dataset "{key}"', f'It needs {", ".join(keys)}')
            dataset = f[key]
            if dataset.is_virtual or dataset.external:
                raise checks.bad(path, f'"{key}" is stored in another file', 'Save it again in one file')
            _check(path, key, dataset.dtype, dataset.shape, max_values)
            out[key] = dataset[()]
        return out


def npz(path: str, keys: Sequence[str], max_values: int, optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """{key: array} of the arrays `keys`, and of those of `optional` that exist, of at most `max_values` values each."""
    with _reading(path, max_values), zipfile.ZipFile(path) as f:
        names = {*f.namelist()}
        if missing := [key for key in keys if f'{key}.npy' not in names]:
            raise checks.bad(path, f'it has no array "{missing[0]}"', f'It needs {", ".join(keys)}')
        return {key: _npy(f, path, key, max_values) for key in (*keys, *optional) if f'{key}.npy' in names}


def _npy(archive: zipfile.ZipFile, path: str, key: str, max_values: int) -> np.ndarray:
    with archive.open(f'{key}.npy') as f:
        start = io.BytesIO(f.read(2**16))
        version = np.lib.format.read_magic(start)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f'"{key}" is of version {version}')
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(start)
        _check(path, key, dtype, shape, max_values)
        size = math.prod(shape) * dtype.itemsize
        content = bytearray(start.read())
        content += f.read(size + 1 - len(content)) if len(content) <= size else b''
        if len(content) != size:
            raise ValueError(f'"{key}" claims {size:,} bytes and has '
                             f'{"more" if len(content) > size else f"{len(content):,}"}')
    return np.frombuffer(content, dtype).reshape(shape, order='F' if fortran else 'C')


def _check(path: str, key: str, dtype: np.dtype, shape: tuple[int, ...] | None, max_values: int) -> None:
    if dtype.kind not in _KINDS or dtype.hasobject:
        raise checks.bad(path, f'"{key}" is of type {dtype}, neither numbers nor text', 'Save it as plain numbers')
    if shape is None or math.prod(shape) > max_values or dtype.itemsize > 1024:
        raise checks.bad(path, f'"{key}" claims {shape} values of {dtype}, more than max_voxels = {max_values:,}',
                         'Raise max_voxels of the source if that is right')


@contextlib.contextmanager
def _reading(path: str, max_values: int) -> Iterator[None]:
    """As `checks.reading`; BadData for files too large for `max_values` values."""
    with checks.reading(path):
        size = os.stat(path).st_size
        if not os.path.isfile(path) or size > 16 * max_values + 2**24:
            raise checks.bad(path, f'it is no file, or too large for max_voxels = {max_values:,}', 'Replace it')
        yield
