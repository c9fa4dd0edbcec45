"""Write prepared cases to disk for jaxkd/data/stores/reader.py, in steps, so that a killed process loses little."""
import concurrent.futures
import contextlib
import importlib.metadata
import io
import itertools
import pathlib
import shutil

import numpy as np

from jaxkd import errors
from jaxkd.data.formats import rle
from jaxkd.data.stores import columns, reader
from jaxkd.runtime import files, log, thread_pool


def write(source, transforms, path, settings, threads=2):
    """Write every case of a source, transformed by these functions (record) -> record, in threads; return the Store.

    Interrupted, even by kill -9, the same call goes on where it stood. A complete store of these settings is left as
    it is; another one is refused. BadData names a case whose arrays have other shapes than the first one's.
    """
    path = pathlib.Path(path)
    if (path / 'store.json').exists():
        return reader.open(path, settings, source, every=True)
    with files.writing(path):
        path.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        for name in ('plan.json', 'store.json', 'ids.npy', 'bytes.npy', 'rest-'):
            for torn in path.glob(f'.{name}*'):  # what a killed write left
                torn.unlink(missing_ok=True)
        about, first = _plan(source, transforms, path, settings)
        draft = reader.Store(path, about, mode='r+')
        units = _missing(draft, threads)
        todo = [i for unit in units for i in unit]

        def put(i):
            arrays, rest, kind = columns.split(first.pop(i, None) or _record(source, transforms, i), about,
                                               source.cases[i].id)
            for key, array in draft.arrays.items():
                array[i] = arrays[key]
            draft.kinds[i] = kind
            draft.sums[i] = [columns.checksum(a)
                             for a in (*(arrays[key] for key in draft.arrays), rest + bytes([kind]))]
            return rest
        with concurrent.futures.ThreadPoolExecutor(max(1, threads)) as pool:
            rest = iter(log.progress(thread_pool.map_ahead(pool, put, todo, 4 * threads), f'preparing {source.name}',
                                     len(todo)))
            for unit in units:
                records = list(itertools.islice(rest, len(unit)))
                if draft.shards:
                    with files.writing(path):
                        columns.write_shard(draft.shards[unit[0] // about['shard']], records)
        with files.writing(path):
            for array in (*draft.arrays.values(), draft.kinds, draft.sums):
                array.base.flush()
        files.write_json(path / 'store.json', {**about, 'rest': [shard.stat().st_size for shard in draft.shards]})
        (path / 'plan.json').unlink()
    return reader.open(path, settings)


def _record(source, transforms, i):
    record = source[i]
    for transform in transforms:
        record = transform(record)
    if 'masks' in record:  # as text: how many there are differs, and training needs none
        record = {**record, 'masks': rle.encode_masks(record['masks'])}
    return columns.flatten(record, ('truth',))


def _plan(source, transforms, path, settings):
    """(the plan, {0: first record} if it was made here). Files of full size exist once plan.json does."""
    if (path / 'plan.json').exists():
        about = files.read_json(path / 'plan.json', 'Plan of a store')
        reader.check_identity(path, about['settings'], settings)
        reader.check_sizes(reader.Store(path, about), source)
        return about, {}
    first, found = _record(source, transforms, 0), reader.sizes(source)
    ids = np.array([case.id.encode() for case in source.cases])
    about = dict(settings=settings, count=len(ids), ids=ids.dtype.str, files=0 if found is None else found.shape[1],
                 versions={name: importlib.metadata.version(name) for name in ('numpy', 'scipy', 'pillow')},
                 **columns.plan(first, len(ids)))
    arrays = columns.stored(about)
    need = len(ids) * sum(int(np.prod(s)) * np.dtype(t).itemsize for s, t in arrays.values())
    if need > (free := shutil.disk_usage(path).free):
        raise errors.CannotWrite(f'{path}: {len(ids)} cases take {need / 2**30:.1f} GiB, free are '
                                 f'{free / 2**30:.1f} GiB. Make room or name another folder.')
    if taken := {'ids', 'sums', 'kinds', 'bytes'} & arrays.keys():
        raise errors.ConfigError(f'A prepared case may not have "{min(taken)}", a name that the store uses itself. '
                                 'Rename that key.')
    with files.writing(path):
        for old in path.glob('rest-*.array_record'):
            old.unlink()
        for key, spec in {**arrays, 'sums': [[len(arrays) + 1], '<u4'], 'kinds': [[], '|u1']}.items():
            columns.create_map(columns.map_file(path, key), spec, len(ids))
    for name, array in (('ids', ids), ('bytes', found)):
        if array is not None:
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            files.write(path / f'{name}.npy', buffer.getvalue())
    files.write_json(path / 'plan.json', about)
    return about, {0: first}


def _missing(draft, threads):
    """Ranges of the cases that are not on disk as their checksums say: single ones, or whole files of the rest."""
    count, unit = len(draft), draft.about['shard'] if draft.shards else 1
    parts = [range(at, min(at + unit, count)) for at in range(0, count, unit)]
    begun = [part for part in parts if draft.sums[part.start:part.stop].any()]
    with concurrent.futures.ThreadPoolExecutor(max(1, threads)) as pool:
        found = thread_pool.map_ahead(pool, lambda part: not any(map(draft.wrong, part)), begun, 64)
        fine = {part for part, right in zip(begun, log.progress(found, 'checking what is there', len(begun))) if right}
    return [part for part in parts if part not in fine]


@contextlib.contextmanager
def _alone(path):
    """Refuse to write where another process does. The lock goes with the process, however it ends."""
    with files.writing(path):
        f = (path / '.lock').open('w')
    with f:
        try:
            import fcntl
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # not on Windows
            pass
        except OSError as e:
            raise errors.CannotWrite(f'{path}: another process is preparing this folder. Wait for it.') from e
        yield
