"""The files of a store of prepared cases: arrays of one shape in all cases, and a ragged record of each case.

    <key>.npy                          one standard NumPy file for each array that has one shape in all cases, [n, ...],
                                       read as a memory map. A key inside of a dict is 'present/t1', its file
                                       present.t1.npy
    rest-00000-of-00007.array_record   ArrayRecord files of equally many cases, one record for a case: its texts and
                                       lists, and the arrays whose length differs, as msgpack in flax's encoding; empty
                                       where it has none

An image whose float32 are k/255 is kept as uint8 k, a quarter of the bytes, and comes back bit for bit. Where that is
so in the first case and not in another, the other's floats are in its ragged record. No pickle is written or read.

[our choice] two formats: a crop is cut from a map without reading the volume, and a whole image comes from a map in a
quarter of the time that an ArrayRecord takes; texts and boxes have no shape to map.
"""
import os
import pathlib
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd import errors
from jaxkd.contracts import Record

RAGGED = ('boxes',)  # keys of arrays [n, ...] whose n differs between cases
# most cases in one ragged file, and most bytes of their arrays: what a killed process does anew
SHARD = 1024, 2**26
MAX_SHARDS = 128  # ragged files: all of them are open at once
MIN_PACKED = 4096  # bytes; a smaller array is not packed as uint8
_AGAIN = 'Delete the folder and prepare again.'

Spec = list  # [shape, dtype], as JSON


def flatten(record: Record, drop: Collection[str] = ()) -> Record:
    """{'present/t1': array}, the arrays, numbers, texts and lists of a nested record, less the keys in `drop`."""
    out: Record = {}
    for key, value in record.items():
        if key in drop:
            continue
        if isinstance(value, dict):
            out.update({f'{key}/{name}': inner for name, inner in flatten(value).items()})
        elif isinstance(value, (str, list)):
            out[key] = str(value) if isinstance(value, str) else value
        elif isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
            out[key] = np.asarray(value)
        else:
            raise errors.ConfigError(f'"{key}" of a prepared case is of type {type(value).__name__}, not an '
                                     'array. List a transform that makes one of it, such as volume, with this key in '
                                     'its keys.')
    return out


def plan(flat: Record, count: int) -> dict[str, Any]:
    """How `count` cases like this flat one are stored, as JSON.

    {'arrays': {key: [shape, dtype]}, 'packed': keys of those that are stored as uint8, 'ragged': {key: [shape of a row,
    dtype]}, 'words': keys of texts and lists, 'shard': cases in a ragged file}.
    """
    forms = {key: _form(key, value) for key, value in flat.items()}
    images = [key for key, value in flat.items()
              if forms[key][0] == 'arrays' and value.ndim == 3 and value.dtype == np.float32]
    max_cases, max_bytes = SHARD
    case_bytes = sum(a.nbytes for a in flat.values() if isinstance(a, np.ndarray))
    return dict(arrays={key: spec for key, (kind, spec) in forms.items() if kind == 'arrays'},
                shard=max(1, -(-count // MAX_SHARDS), min(max_cases, max_bytes // max(1, case_bytes))),
                packed=[key for key in images if flat[key].nbytes >= MIN_PACKED and _pack(flat[key]) is not None],
                ragged={key: spec for key, (kind, spec) in forms.items() if kind == 'ragged'},
                words=[key for key, (kind, _) in forms.items() if kind == 'words'])


def stored(columns: Mapping[str, Any]) -> dict[str, Spec]:
    """{key: [shape, dtype]} of the arrays as they are on disk."""
    return {key: [shape, '|u1' if key in columns['packed'] else dtype]
            for key, (shape, dtype) in columns['arrays'].items()}


def split(flat: Record, columns: Mapping[str, Any], case: str) -> tuple[dict[str, np.ndarray], bytes, int]:
    """One flat case -> ({key: array as it is on disk}, its encoded ragged record, kind of that record).

    kind: 0 nothing, 1 texts and lists alone, 2 arrays. BadData when the case is not like the first one.
    """
    forms = {key: _form(key, value) for key, value in flat.items()}
    first = {key: (kind, spec) for kind in ('arrays', 'ragged') for key, spec in columns[kind].items()}
    first |= {key: ('words', 'text') for key in columns['words']}
    for key in sorted(first.keys() | forms.keys()):
        if first.get(key) != forms.get(key):
            present, expected = map(_describe, (forms.get(key), first.get(key)))
            raise errors.BadData(f'Case {case}: "{key}" is {present}, but {expected} in the first case. All cases of '
                                 'a store are alike: resample or pad them to one shape.')
    arrays = {key: flat[key] for key in columns['arrays']}
    ragged = {key: flat[key] for key in columns['ragged'] if len(flat[key])}
    for key in columns['packed']:
        if (small := _pack(flat[key])) is None:
            ragged[key], small = flat[key], np.zeros(flat[key].shape, np.uint8)
        arrays[key] = small
    has_arrays = bool(ragged)
    ragged |= {key: flat[key] for key in columns['words'] if flat[key] != ''}
    return arrays, _encode(ragged, case) if ragged else b'', 2 if has_arrays else int(bool(ragged))


def unpack(small: np.ndarray) -> np.ndarray:
    """uint8 k -> float32 k/255, as the transform `image` divides."""
    return np.divide(small, np.float32(255))


def unpacked(values: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    """The images of these indices in one fresh array, eight at a time: their bytes stay in the cache until they are
    divided, and threads do not wait for each other at every image.
    """
    rows, out = np.asarray(indices), np.empty((len(indices), *values.shape[1:]), np.float32)
    for start in range(0, len(rows), 8):
        np.divide(values[rows[start:start + 8]], np.float32(255), out=out[start:start + 8])
    return out


def decode(data: bytes) -> Record:
    """{key: text, list or array} of a ragged record."""
    from flax import serialization
    return serialization.msgpack_restore(data) if data else {}


def empty(columns: Mapping[str, Any]) -> Record:
    """The values of keys that a ragged record leaves out."""
    return {**dict.fromkeys(columns['words'], ''),
            **{key: np.zeros((0, *shape), dtype) for key, (shape, dtype) in columns['ragged'].items()}}


def create_map(path: pathlib.Path, spec: Spec, count: int) -> None:
    """A file [count, ...] of zeros."""
    np.lib.format.open_memmap(path, 'w+', np.dtype(spec[1]), (count, *spec[0])).flush()
    if hasattr(os, 'posix_fallocate'):  # else a full disk ends this process by SIGBUS, without a word
        with path.open('r+b') as f:
            os.posix_fallocate(f.fileno(), 0, max(1, os.fstat(f.fileno()).st_size))


def open_map(path: pathlib.Path, spec: Spec, count: int, mode: Any = 'r') -> np.ndarray:
    """The memory map [count, ...]. Damaged when it is not what was written."""
    shape, dtype = (count, *spec[0]), np.dtype(spec[1])
    try:
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
        valid = array.shape == shape and array.dtype == dtype and array.flags.c_contiguous
        valid = valid and os.path.getsize(path) == array.offset + array.nbytes
    except (OSError, ValueError, EOFError) as e:
        raise errors.Damaged(f'{path} cannot be read ({e}). {_AGAIN}') from e
    if not valid:
        raise errors.Damaged(f'{path} is not the {dtype} {list(shape)} that was written. {_AGAIN}')
    return array


def map_file(path: pathlib.Path, key: str) -> pathlib.Path:
    """The memory map of a key in the folder of a store."""
    return path / f'{key.replace("/", ".")}.npy'


def shard_files(path: pathlib.Path, columns: Mapping[str, Any], count: int) -> list[pathlib.Path]:
    """The files of the ragged records of `count` cases."""
    shards = -(-count // columns['shard']) if columns['packed'] or columns['ragged'] or columns['words'] else 0
    return [path / f'rest-{k:05}-of-{shards:05}.array_record' for k in range(shards)]


def write_shard(path: pathlib.Path, records: Iterable[bytes]) -> None:
    """An ArrayRecord file of these bytes, whole or not at all."""
    from array_record.python import array_record_module
    temporary = path.with_name(f'.{path.name}')
    writer = array_record_module.ArrayRecordWriter(str(temporary), 'group_size:1')
    for data in records:
        writer.write(data)
    writer.close()
    with temporary.open('rb') as f:
        os.fsync(f.fileno())
    os.replace(temporary, path)


def open_shard(path: pathlib.Path) -> Any:
    """An ArrayRecord file, for `read`."""
    import grain
    try:
        return grain.sources.ArrayRecordDataSource([str(path)])
    except Exception as e:  # of C++: its type says nothing
        raise errors.Damaged(f'{path} cannot be read ({e}). {_AGAIN}') from e


def read(shard: Any, i: int, path: pathlib.Path) -> bytes:
    """The bytes of record i."""
    try:
        return shard[i]
    except Exception as e:
        raise errors.Damaged(f'{path}: record {i} cannot be read ({e}). {_AGAIN}') from e


def checksum(data: np.ndarray | bytes) -> int:
    """CRC-32 of an array or of bytes."""
    buffer: Any = data if isinstance(data, bytes) else np.ascontiguousarray(data)
    return zlib.crc32(buffer)


def _form(key: str, value: Any) -> tuple[str, Any]:
    """('arrays', 'ragged' or 'words': the key of `plan` that it comes under; [shape, dtype])."""
    if not isinstance(value, np.ndarray):
        return 'words', 'text'
    if key in RAGGED and value.ndim:
        return 'ragged', [list(value.shape[1:]), value.dtype.str]
    return 'arrays', [list(value.shape), value.dtype.str]


def _describe(form: tuple | None) -> str:
    if form is None or form[0] == 'words':
        return 'absent' if form is None else 'a text'
    shape, dtype = form[1]
    return f'{np.dtype(dtype)} {["n", *shape] if form[0] == "ragged" else shape}'


def _pack(a: np.ndarray) -> np.ndarray | None:
    """uint8 k where an array is exactly k/255, else None."""
    with np.errstate(invalid='ignore'):
        small = np.rint(a * np.float32(255)).astype(np.uint8)
    return small if unpack(small).tobytes() == a.tobytes() else None


def _encode(ragged: Record, case: str) -> bytes:
    from flax import serialization
    try:
        return serialization.msgpack_serialize(ragged)
    except (TypeError, ValueError) as e:
        raise errors.ConfigError(f'Case {case}: {", ".join(sorted(ragged))} cannot be stored ({e}). A prepared case '
                                 'holds arrays, numbers, texts, and lists of texts.') from e
