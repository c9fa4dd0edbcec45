"""Prepared cases on disk: decoded, resampled, ready to be cropped from, read without a copy.

A folder holds, for all cases of a source in order (folds and stages share it),
    <key>.npy     one standard NumPy file for each array of a record that is not small, [n, ...], read as a memory map
    fields.npz    the small fields, [n, ...]
    store.json    written last: the settings that made it, case ids, shapes, a CRC-32 of each case and key
and while it is written plan.json and journal.jsonl, from which an interrupted `write` goes on. A key inside of a dict
is 'present/t1', its file present.t1.npy. No pickle is written or read.

A store serves a config and a source whose settings are those that made it. The source's root does not count: data and
store may move. Of a source that offers `paths(i)`, the files of case i, their sizes count, so that a scan that was
replaced is noticed wherever it lies; times do not, since copies change them. A correction that keeps the size of a
file, or in a source without `paths`, cannot be noticed: prepare a new folder after it.
"""
import concurrent.futures
import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import threading
import zlib

import numpy as np

from jaxkd import errors, files, find, log

FORMAT = 2  # 1: CT without a centre of its own could be cropped around that of an MRI
SMALL = 4096  # bytes; arrays below go to fields.npz


def prefix(hp):
    """How many of hp.transforms come before the first that learns from training cases, which folds do not share."""
    learns = [hasattr(find.module('data/transforms', name), 'fit') for name in hp.transforms]
    return learns.index(True) if True in learns else len(learns)


def settings(hp, source):
    """What a store must have been made with to serve a resolved data config and its source.

    Versions of packages are kept in the store too, but do not count: results agree to rounding, and a store may move.
    """
    targets = {k: np.asarray(v).tolist() for k, v in getattr(source, 'targets', {}).items()}
    facts = [[case.id for case in source.cases], targets]
    names = hp.transforms[:prefix(hp)]
    return json.loads(json.dumps(dict(
        format=FORMAT, source=hp.source.to_dict(), order=names,
        transforms={name.rpartition('.')[2]: hp[name.rpartition('.')[2]].to_dict() for name in names},
        cases_and_labels=hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
        bytes={case.id: _bytes(case, source.paths(i)) for i, case in enumerate(source.cases)}
        if hasattr(source, 'paths') else {})))


def write(source, transforms, path, settings, threads=2):
    """Put transform(...(source[i])) of every case on disk, in threads, and return the Store.

    Interrupted, even by kill -9, the same call goes on where it stood. A complete store of these settings is left as
    it is; another one is refused. BadData names a case whose arrays have other shapes than the first one's.
    """
    path = pathlib.Path(path)
    if (path / 'store.json').exists():
        return open(path, settings)
    with files.writing(path):
        path.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        for name in ('plan.json', 'journal.jsonl', 'fields.npz', 'store.json'):
            for torn in path.glob(f'.{name}.*'):  # what a killed `files.write` left
                torn.unlink(missing_ok=True)
        plan, first = _plan(source, transforms, path, settings)
        maps = {key: _open_map(path, key, about, len(plan['ids']), 'r+') for key, about in plan['arrays'].items()}
        done = _done(path, plan, maps)
        todo = [i for i in range(len(plan['ids'])) if i not in done]
        lock = threading.Lock()

        def put(i):
            record = first.pop(i, None)
            line = _put(flatten(_record(source, transforms, i) if record is None else record), i, plan, maps)
            with lock, files.writing(path), (path / 'journal.jsonl').open('a') as journal:
                journal.write(json.dumps(line) + '\n')
                done[i] = line
        with concurrent.futures.ThreadPoolExecutor(max(1, threads)) as pool:
            futures = [pool.submit(put, i) for i in todo]
            try:
                running = concurrent.futures.as_completed(futures)
                for future in log.progress(running, f'preparing {source.name}', len(todo)):
                    future.result()
            finally:
                for future in futures:
                    future.cancel()
        _finish(path, plan, done, maps)
    return open(path, settings)


def open(path, settings=None):
    """The Store in a folder. MissingInput when there is none, ConfigError when no folder is named or it was made with
    other settings (None: whatever they are), Damaged when a file is missing or of another size."""
    if not os.fspath(path):
        raise errors.ConfigError('data.folder is empty, and data.cache = disk reads prepared cases from there. Set '
                                 '--config.data.folder=DIR to the folder that python -m jaxkd.data.prepare wrote.')
    path = pathlib.Path(path)
    if not (path / 'store.json').exists():
        state = 'holds an unfinished store' if (path / 'plan.json').exists() else 'holds no prepared cases'
        raise errors.MissingInput(f'data.folder: {path} {state}. Run python -m jaxkd.data.prepare with this config.')
    about = files.read_json(path / 'store.json', 'Store')
    try:
        if settings is not None:
            _same(path, about['settings'], settings)
        return Store(path, about, settings)
    except (KeyError, TypeError, AttributeError) as e:
        raise errors.Damaged(f'{path}/store.json is not what jaxkd wrote ({e!r}). Delete the folder and prepare '
                             'again.') from e


class Store:
    """len, `[i] -> record`: small fields are arrays, the others read-only views of the memory map, read when used.

    ids: case ids in order; settings, versions: what made it. Pickles by its path.
    """

    def __init__(self, path, about, settings=None):
        self.path, self.about, self.given = path, about, settings
        self.ids, self.settings, self.versions = tuple(about['ids']), about['settings'], about['versions']
        self.arrays = {key: np.asarray(_open_map(path, key, spec, len(self.ids), 'r'))
                       for key, spec in about['arrays'].items()}
        self.fields = _open_fields(path, about['fields'], len(self.ids))
        # What [i] looks up: the names split once, plain arrays rather than memmap objects, which are slow to slice.
        self._all = [(key.split('/'), values) for key, values in (self.fields | self.arrays).items()]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        record = {}
        for (*outer, name), values in self._all:
            inside = record
            for part in outer:
                inside = inside.setdefault(part, {})
            inside[name] = values[i]
        return record

    def __reduce__(self):
        return open, (self.path, self.given)

    @property
    def nbytes(self):
        return sum(a.nbytes for a in (self.fields | self.arrays).values())

    def verify(self, threads=2):
        """Read everything and compare checksums. Damaged names the cases and keys that differ."""
        sums, stored = self.about['sums'], (self.fields | self.arrays).items()

        def wrong(i):
            return [key for key, values in stored if _sum(values[i]) != sums[key][i]]
        with concurrent.futures.ThreadPoolExecutor(max(1, threads)) as pool:
            found = list(log.progress(pool.map(wrong, range(len(self))), f'checking {self.path}', len(self)))
        if bad := [f'{case} ({", ".join(keys)})' for case, keys in zip(self.ids, found) if keys]:
            more = f' and {len(bad) - 5} more' if len(bad) > 5 else ''
            raise errors.Damaged(f'{self.path}: what is stored of {", ".join(bad[:5])}{more} has changed since it was '
                                 'written. Delete the folder and prepare again.')


def flatten(record):
    """{'present/t1': array}, the arrays and numbers of a nested record; strings are left out."""
    out = {}
    for key, value in record.items():
        if isinstance(value, dict):
            out.update({f'{key}/{name}': inner for name, inner in flatten(value).items()})
        elif isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
            out[key] = np.asarray(value)
        elif not isinstance(value, str):
            raise errors.ConfigError(f'"{key}" of a prepared case is of type {type(value).__name__}, not an '
                                     'array. List a transform that makes one of it, such as volume, with this key in '
                                     'its keys.')
    return out


def _record(source, transforms, i):
    record = source[i]
    for transform in transforms:
        record = transform(record)
    return record


def _plan(source, transforms, path, settings):
    """(the plan, {0: first record} if it was made here). Files of full size exist once plan.json does."""
    ids = [case.id for case in source.cases]
    if (path / 'plan.json').exists():
        plan = files.read_json(path / 'plan.json', 'Plan of a store')
        _same(path, plan['settings'], settings)
        return plan, {}
    record = _record(source, transforms, 0)
    specs = {key: [list(a.shape), a.dtype.str] for key, a in flatten(record).items()}
    arrays = {key: [s, t] for key, (s, t) in specs.items() if np.prod(s, dtype=int) * np.dtype(t).itemsize >= SMALL}
    fields = {key: spec for key, spec in specs.items() if key not in arrays}
    plan = dict(settings=settings, ids=ids, arrays=arrays, fields=fields,
                versions={name: importlib.metadata.version(name) for name in ('numpy', 'scipy')})
    need = len(ids) * sum(int(np.prod(s)) * np.dtype(t).itemsize for s, t in arrays.values())
    if need > (free := shutil.disk_usage(path).free):
        raise errors.CannotWrite(f'{path}: {len(ids)} cases take {need / 2**30:.1f} GiB, free are '
                                 f'{free / 2**30:.1f} GiB. Make room or name another folder.')
    with files.writing(path):
        (path / 'journal.jsonl').unlink(missing_ok=True)
        for key, (shape, dtype) in arrays.items():
            np.lib.format.open_memmap(_file(path, key), 'w+', dtype, (len(ids), *shape)).flush()
            if hasattr(os, 'posix_fallocate'):  # else a full disk ends this process by SIGBUS, without a word
                with _file(path, key).open('r+b') as f:
                    os.posix_fallocate(f.fileno(), 0, os.fstat(f.fileno()).st_size)
    files.write_json(path / 'plan.json', plan)
    return plan, {0: record}


def _put(record, i, plan, maps):
    """Write a flat record to its place; -> its line of the journal."""
    specs = plan['arrays'] | plan['fields']
    here = {key: [list(a.shape), a.dtype.str] for key, a in record.items()}
    for key in sorted(specs.keys() | here.keys()):
        if specs.get(key) != here.get(key):
            is_, was = (f'{np.dtype(s[1])} {s[0]}' if s else 'absent' for s in (here.get(key), specs.get(key)))
            raise errors.BadData(f'Case {plan["ids"][i]}: "{key}" is {is_}, but {was} in the first case. All cases of '
                                 'a store are alike: resample or pad them to one shape.')
    for key, array in maps.items():
        array[i] = record[key]
    sums = {key: _sum(array) for key, array in record.items()}
    return dict(i=i, sums=sums, fields={key: record[key].tolist() for key in plan['fields']})


def _done(path, plan, maps):
    """{index: line} of the cases that the journal names and that are on disk as it says; drops its other lines."""
    done = {}
    with contextlib.suppress(FileNotFoundError):
        for text in (path / 'journal.jsonl').read_text().splitlines():
            with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):  # a line cut short
                line = json.loads(text)
                if all(_sum(array[line['i']]) == line['sums'][key] for key, array in maps.items()):
                    done[line['i']] = line
    files.write(path / 'journal.jsonl', ''.join(json.dumps(line) + '\n' for line in done.values()))
    return done


def _finish(path, plan, done, maps):
    """What makes a store of it, once every array is on the disk itself."""
    with files.writing(path):
        for array in maps.values():
            array.flush()
    lines = [done[i] for i in range(len(plan['ids']))]
    fields = {key: np.array([line['fields'][key] for line in lines], dtype).reshape(len(lines), *shape)
              for key, (shape, dtype) in plan['fields'].items()}
    files.write_npz(path / 'fields.npz', fields)
    sums = {key: [line['sums'][key] for line in lines] for key in (*plan['fields'], *plan['arrays'])}
    files.write_json(path / 'store.json', {**plan, 'sums': sums})
    for name in ('plan.json', 'journal.jsonl'):
        (path / name).unlink()


def _open_map(path, key, spec, count, mode):
    shape, dtype = (count, *spec[0]), np.dtype(spec[1])
    try:
        array = np.load(_file(path, key), mmap_mode=mode, allow_pickle=False)
        right = array.shape == shape and array.dtype == dtype and array.flags.c_contiguous
        right = right and os.path.getsize(_file(path, key)) == array.offset + array.nbytes
    except (OSError, ValueError, EOFError) as e:
        raise errors.Damaged(f'{_file(path, key)} cannot be read ({e}). Delete the folder and prepare again.') from e
    if not right:
        raise errors.Damaged(f'{_file(path, key)} is not the {dtype} {list(shape)} that was written. Delete the folder '
                             'and prepare again.')
    return array


def _open_fields(path, specs, count):
    try:
        with np.load(path / 'fields.npz', allow_pickle=False) as found:
            fields = {key: found[key] for key in specs}
        if any(fields[k].shape != (count, *s) or fields[k].dtype != np.dtype(t) for k, (s, t) in specs.items()):
            raise ValueError('another shape than was written')
    except Exception as e:  # zipfile and zlib raise a dozen types
        raise errors.Damaged(f'{path}/fields.npz cannot be read ({e}). Delete the folder and prepare again.') from e
    return fields


def _same(path, made, wanted):
    """ConfigError that names the first difference."""
    options, cases, sizes = (list(_differences(a, b)) for a, b in zip(_parts(made), _parts(wanted)))
    if found := options or cases or sizes:  # in this order: what comes first explains the others
        where, a, b = found[0]
        what = (f'{where} was {a!r}, and is {b!r} now' if options else 'the ids or labels of its cases were others'
                if cases else f'case {where} had files of {a} bytes, and has {b} now')
        raise errors.ConfigError(f'{path} was prepared with other settings: {what}. Restore that, or prepare another '
                                 'folder (python -m jaxkd.data.prepare --out DIR).')


def _parts(settings):
    """(options, cases, sizes of files) of settings; the root is left out."""
    options = {k: v for k, v in settings.items() if k not in ('cases_and_labels', 'bytes')}
    options['source'] = {k: v for k, v in settings.get('source', {}).items() if k != 'root'}
    return options, settings.get('cases_and_labels'), settings.get('bytes', {})


def _bytes(case, paths):
    """The size of each file; of a folder (a DICOM series), that of its files together."""
    try:
        return [sum(f.stat().st_size for f in (path.glob('[!.]*') if path.is_dir() else [path]) if not f.is_dir())
                for path in map(pathlib.Path, paths)]
    except OSError as e:
        raise errors.MissingInput(f'Case {case.id}: {e.filename} cannot be read ({e.strerror}). Put it back.') from e


def _differences(a, b, where=''):
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from _differences(a.get(key), b.get(key), f'{where}.{key}' if where else key)
    elif a != b:
        yield where, a, b


def _file(path, key):
    return path / f'{key.replace("/", ".")}.npy'


def _sum(array):
    return zlib.crc32(np.ascontiguousarray(array))


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
