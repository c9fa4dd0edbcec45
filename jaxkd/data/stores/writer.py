"""Write prepared cases to disk for jaxkd/data/stores/reader.py, in steps, so that a killed process loses little."""
import concurrent.futures
import contextlib
import importlib.metadata
import io
import itertools
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd import errors
from jaxkd.contracts import Record
from jaxkd.data.formats import rle
from jaxkd.data.source import Source
from jaxkd.data.stores import columns, identity, reader
from jaxkd.runtime import files, log, preemption, thread_pool

Transforms = Sequence[Callable[[Record], Record]]


def write(source: Source, transforms: Transforms, path: str | pathlib.Path, settings: Mapping[str, Any],
          threads: int = 2) -> reader.Store:
    """Write every case of a source, transformed by these functions (record) -> record, in threads; return the Store.

    Interrupted, even by kill -9, the same call goes on where it stood; a signal that `preemption.catch_signals` caught
    raises Interrupted after the case at hand. A complete store of these settings is left as it is; another one is
    refused. BadData names a case whose arrays have other shapes than the first one's.
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
        metadata, first = _plan(source, transforms, path, settings)
        draft = reader.Store(path, metadata, mode='r+')
        units = _missing(draft, threads)
        todo = [i for unit in units for i in unit]

        def put(i):
            record = first.pop(i, None) or _record(source, transforms, i)
            arrays, ragged, kind = columns.split(record, metadata, source.cases[i].id)
            for key, array in draft.arrays.items():
                array[i] = arrays[key]
            draft.ragged_kinds[i] = kind
            draft.checksums[i] = [*(columns.checksum(arrays[key]) for key in draft.arrays),
                                  columns.checksum(ragged + bytes([kind]))]
            return ragged
        with concurrent.futures.ThreadPoolExecutor(max(1, threads)) as pool:
            written = thread_pool.map_ahead(pool, put, todo, 4 * threads)
            written = _until_preempted(log.progress(written, f'preparing {source.name}', len(todo)), path)
            for unit in units:
                records = list(itertools.islice(written, len(unit)))
                if draft.shards:
                    with files.writing(path):
                        columns.write_shard(draft.shards[unit[0] // metadata['shard']], records)
        with files.writing(path):
            for array in (*draft.arrays.values(), draft.ragged_kinds, draft.checksums):
                array.base.flush()
        files.write_json(path / 'store.json', {**metadata, 'rest': [shard.stat().st_size for shard in draft.shards]})
        (path / 'plan.json').unlink()
    return reader.open(path, settings)


def _until_preempted(items: Iterable[bytes], path: pathlib.Path) -> Iterator[bytes]:
    """The items until a signal asks this process to end: then Interrupted, and what was begun is made anew."""
    for item in items:
        preemption.raise_on_one_host(str(path))
        yield item


def _record(source: Source, transforms: Transforms, i: int) -> Record:
    """The transformed record of case i, flat."""
    record = source[i]
    for transform in transforms:
        record = transform(record)
    if 'masks' in record:  # as text: how many there are differs, and training needs none
        record = {**record, 'masks': rle.encode_masks(record['masks'])}
    return columns.flatten(record, ('truth',))


def _plan(source: Source, transforms: Transforms, path: pathlib.Path,
          settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[int, Record]]:
    """(content of plan.json, {0: first record} if it was made now). Files of full size exist once plan.json does."""
    if (path / 'plan.json').exists():
        metadata = files.read_json(path / 'plan.json', 'Plan of a store')
        identity.check_identity(path, metadata['settings'], settings)
        identity.check_sizes(path, reader.Store(path, metadata).file_sizes, source)
        return metadata, {}
    first, file_sizes = _record(source, transforms, 0), identity.sizes(source)
    ids = np.array([case.id.encode() for case in source.cases])
    metadata = dict(settings=settings, count=len(ids), ids=ids.dtype.str,
                    files=0 if file_sizes is None else file_sizes.shape[1],
                    versions={name: importlib.metadata.version(name) for name in ('numpy', 'scipy', 'pillow')},
                    **columns.plan(first, len(ids)))
    arrays = columns.stored(metadata)
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
    for name, array in (('ids', ids), ('bytes', file_sizes)):
        if array is not None:
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            files.write(path / f'{name}.npy', buffer.getvalue())
    files.write_json(path / 'plan.json', metadata)
    return metadata, {0: first}


def _missing(draft: reader.Store, threads: int) -> list[range]:
    """Ranges of the cases that are not on disk as their checksums say: single ones, or all of a ragged file."""
    count, unit = len(draft), draft.metadata['shard'] if draft.shards else 1
    units = [range(start, min(start + unit, count)) for start in range(0, count, unit)]
    begun = [cases for cases in units if draft.checksums[cases.start:cases.stop].any()]
    with concurrent.futures.ThreadPoolExecutor(max(1, threads)) as pool:
        checked = thread_pool.map_ahead(pool, lambda cases: not any(map(draft.damaged_keys, cases)), begun, 64)
        intact = log.progress(checked, 'checking what is there', len(begun))
        complete = {cases for cases, valid in zip(begun, intact) if valid}
    return [cases for cases in units if cases not in complete]


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[None]:
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
