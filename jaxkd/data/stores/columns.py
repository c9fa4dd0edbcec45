"""The files that a store of prepared cases consists of: what is alike in all cases, and the rest.

    <key>.npy                          one standard NumPy file for each array that has one shape in all cases, [n, ...],
                                       read as a memory map. A key inside of a dict is 'present/t1', its file
                                       present.t1.npy
    rest-00000-of-00007.array_record   ArrayRecord files of equally many cases, one record for a case: its texts and
                                       lists, and the arrays whose length differs, as msgpack in flax's encoding; empty
                                       where it has none

An image whose float32 are k/255 is kept as uint8 k, a quarter of the bytes, and comes back bit for bit. Where that is
so in the first case and not in another, the other's floats are in the rest. No pickle is written or read.

[our choice] two formats: a crop is cut from a map without reading the volume, and a whole image comes from a map in a
quarter of the time that an ArrayRecord takes; texts and boxes have no shape to map.
"""
import os
import zlib

import numpy as np

from jaxkd import errors

RAGGED = ('boxes',)  # keys of arrays [n, ...] whose n differs between cases
# most cases in one file of the rest, and most bytes of their arrays: what a killed process does anew
SHARD = 1024, 2**26
FILES = 128  # most files of the rest: all of them are open at once
SMALL = 4096  # bytes; an array below is kept as it is
_AGAIN = 'Delete the folder and prepare again.'


def flatten(record, drop=()):
    """{'present/t1': array}, the arrays, numbers, texts and lists of a nested record, less the keys in `drop`."""
    out = {}
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


def plan(flat, count):
    """How `count` cases like this one, flat, are kept: {'arrays': {key: [shape, dtype]}, 'packed': keys of those that
    are kept as uint8, 'ragged': {key: [shape of a row, dtype]}, 'words': keys of texts and lists, 'shard': cases in a
    file}, as JSON.
    """
    forms = {key: _form(key, value) for key, value in flat.items()}
    images = [key for key, value in flat.items() if forms[key][0] == 'arrays' and value.ndim == 3 and value.dtype
              == np.float32]
    most, size = SHARD
    return dict(arrays={key: form for key, (where, form) in forms.items() if where == 'arrays'},
                shard=max(1, -(-count // FILES), min(most, size // max(1, sum(a.nbytes for a in flat.values()
                                                                              if isinstance(a, np.ndarray))))),
                packed=[key for key in images if flat[key].nbytes >= SMALL and _pack(flat[key]) is not None],
                ragged={key: form for key, (where, form) in forms.items() if where == 'ragged'},
                words=[key for key, (where, _) in forms.items() if where == 'words'])


def stored(columns):
    """{key: [shape, dtype]} of the arrays as they lie on disk."""
    return {key: [shape, '|u1' if key in columns['packed'] else dtype]
            for key, (shape, dtype) in columns['arrays'].items()}


def split(flat, columns, case):
    """One case -> ({key: array as it lies on disk}, its record of the rest, whether that holds 0 nothing, 1 words, 2
    arrays).

    BadData when it is not like the first case.
    """
    forms = {key: _form(key, value) for key, value in flat.items()}
    first = {key: (where, form) for where in ('arrays', 'ragged') for key, form in columns[where].items()}
    first |= {key: ('words', 'text') for key in columns['words']}
    for key in sorted(first.keys() | forms.keys()):
        if first.get(key) != forms.get(key):
            is_, was = map(_told, (forms.get(key), first.get(key)))
            raise errors.BadData(f'Case {case}: "{key}" is {is_}, but {was} in the first case. All cases of '
                                 'a store are alike: resample or pad them to one shape.')
    arrays = {key: flat[key] for key in columns['arrays']}
    rest = {key: flat[key] for key in columns['ragged'] if len(flat[key])}
    for key in columns['packed']:
        if (small := _pack(flat[key])) is None:
            rest[key], small = flat[key], np.zeros(flat[key].shape, np.uint8)
        arrays[key] = small
    kind = 2 if rest else 0
    rest.update({key: flat[key] for key in columns['words'] if flat[key] != ''})
    return arrays, _encode(rest, case) if rest else b'', kind or int(bool(rest))


def unpack(small):
    """uint8 k -> float32 k/255, as the transform `image` divides."""
    return np.divide(small, np.float32(255))


def unpacked(values, indices):
    """The images of these indices in one fresh array, eight at a time: their bytes stay in the cache until they are
    divided, and threads do not wait for each other at every image.
    """
    indices, out = np.asarray(indices), np.empty((len(indices), *values.shape[1:]), np.float32)
    for at in range(0, len(indices), 8):
        np.divide(values[indices[at:at + 8]], np.float32(255), out=out[at:at + 8])
    return out


def decode(data):
    """{key: text, list or array} of a record of the rest."""
    from flax import serialization
    return serialization.msgpack_restore(data) if data else {}


def empty(columns):
    """What a case has of the rest where its record says nothing."""
    return {**dict.fromkeys(columns['words'], ''),
            **{key: np.zeros((0, *shape), dtype) for key, (shape, dtype) in columns['ragged'].items()}}


def create_map(path, spec, count):
    """A file [count, ...] of zeros."""
    np.lib.format.open_memmap(path, 'w+', np.dtype(spec[1]), (count, *spec[0])).flush()
    if hasattr(os, 'posix_fallocate'):  # else a full disk ends this process by SIGBUS, without a word
        with path.open('r+b') as f:
            os.posix_fallocate(f.fileno(), 0, max(1, os.fstat(f.fileno()).st_size))


def open_map(path, spec, count, mode='r'):
    """The memory map [count, ...]. Damaged when it is not what was written."""
    shape, dtype = (count, *spec[0]), np.dtype(spec[1])
    try:
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
        right = array.shape == shape and array.dtype == dtype and array.flags.c_contiguous
        right = right and os.path.getsize(path) == array.offset + array.nbytes
    except (OSError, ValueError, EOFError) as e:
        raise errors.Damaged(f'{path} cannot be read ({e}). {_AGAIN}') from e
    if not right:
        raise errors.Damaged(f'{path} is not the {dtype} {list(shape)} that was written. {_AGAIN}')
    return array


def map_file(path, key):
    """The memory map of a key in the folder of a store."""
    return path / f'{key.replace("/", ".")}.npy'


def shard_files(path, columns, count):
    """The files of the rest of so many cases."""
    many = -(-count // columns['shard']) if columns['packed'] or columns['ragged'] or columns['words'] else 0
    return [path / f'rest-{k:05}-of-{many:05}.array_record' for k in range(many)]


def write_shard(path, records):
    """An ArrayRecord file of these bytes, whole or not at all; -> its size."""
    from array_record.python import array_record_module
    temporary = path.with_name(f'.{path.name}')
    writer = array_record_module.ArrayRecordWriter(str(temporary), 'group_size:1')
    for data in records:
        writer.write(data)
    writer.close()
    with temporary.open('rb') as f:
        os.fsync(f.fileno())
    os.replace(temporary, path)


def open_shard(path):
    """An ArrayRecord file, for `read`."""
    import grain
    try:
        return grain.sources.ArrayRecordDataSource([str(path)])
    except Exception as e:  # of C++: its type says nothing
        raise errors.Damaged(f'{path} cannot be read ({e}). {_AGAIN}') from e


def read(shard, i, path):
    """The bytes of record i."""
    try:
        return shard[i]
    except Exception as e:
        raise errors.Damaged(f'{path}: record {i} cannot be read ({e}). {_AGAIN}') from e


def checksum(data):
    """CRC-32 of an array or of bytes."""
    return zlib.crc32(np.ascontiguousarray(data) if isinstance(data, (np.ndarray, np.generic)) else data)


def _form(key, value):
    """(where it is kept, [shape, dtype])."""
    if not isinstance(value, np.ndarray):
        return 'words', 'text'
    if key in RAGGED and value.ndim:
        return 'ragged', [list(value.shape[1:]), value.dtype.str]
    return 'arrays', [list(value.shape), value.dtype.str]


def _told(form):
    if form is None or form[0] == 'words':
        return 'absent' if form is None else 'a text'
    shape, dtype = form[1]
    return f'{np.dtype(dtype)} {["n", *shape] if form[0] == "ragged" else shape}'


def _pack(a):
    """uint8 k where an array is exactly k/255, else None."""
    with np.errstate(invalid='ignore'):
        small = np.rint(a * np.float32(255)).astype(np.uint8)
    return small if unpack(small).tobytes() == a.tobytes() else None


def _encode(rest, case):
    from flax import serialization
    try:
        return serialization.msgpack_serialize(rest)
    except (TypeError, ValueError) as e:
        raise errors.ConfigError(f'Case {case}: {", ".join(sorted(rest))} cannot be kept ({e}). A prepared case holds '
                                 'arrays, numbers, texts, and lists of texts.') from e
