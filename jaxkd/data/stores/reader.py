"""Prepared cases on disk: decoded, resampled, ready to be batched or cropped from, read without a copy.

A folder holds, for all cases of a source in order (folds and stages share it),
    <key>.npy, rest-*.array_record    the cases (see jaxkd/data/stores/columns.py)
    ids.npy       [n] case ids, UTF-8
    sums.npy      uint32 [n, keys]: a CRC-32 of each array, then of the record of the rest; zeros until a case is
                  written
    kinds.npy     uint8 [n]: whether the record of the rest holds nothing, words alone, or arrays
    bytes.npy     int64 [n, files], -1 where a case has fewer: the sizes of the files of a source that offers `paths`
    store.json    written last: the settings that made it, shapes, versions
and while it is written plan.json, from which an interrupted `write` goes on. Nothing of it is read as a whole: a store
of 400,000 cases takes no more memory than one of four.

A store serves a config and a source whose settings are those that made it. The source's root does not count: data and
store may move. Of a source that offers `paths(i)`, the files of case i, their sizes count, so that a scan that was
replaced is noticed wherever it lies; times do not, since copies change them. `write` looks at all files; `open` at none
if there are more than LOOK cases, since that takes minutes on a network. A correction that keeps the size of a
file, or in a source without `paths`, in a .zip of reports or in files of masks cannot be noticed: prepare a new folder
after it.
"""
import concurrent.futures
import copy
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from jaxkd import errors
from jaxkd.data import transform
from jaxkd.data.source import Source
from jaxkd.data.stores import columns
from jaxkd.runtime import files, log, thread_pool

FORMAT = 4  # 3: masks of regions were left out
MAX_STAT_CASES = 4096  # cases
PLACES = ('root', 'reports', 'ms_cxr', 'localize')  # options of sources that name folders: data may move


def settings(hp, source):
    """What a store must have been made with to serve a resolved data config and its source. Looks at no file.

    Versions of packages are kept in the store too, but do not count: results agree to rounding, and a store may move.
    """
    names = hp.transforms[:transform.shared_prefix(hp)]
    return json.loads(json.dumps(dict(
        format=FORMAT, source=hp.source.to_dict(), order=names,
        transforms={name.rpartition('.')[2]: _options(name, hp[name.rpartition('.')[2]]) for name in names},
        cases_and_labels=_facts(source))))


def sizes(source):
    """int64 [n, files]: the size in bytes of each file of a case, -1 where a case has fewer.

    The size of a folder (a DICOM series) is that of its files together. None for a source without `paths`. MissingInput
    for a file that is not there.
    """
    if not len(source.cases) or (first := _bytes(source, 0)) is None:
        return None
    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # a network answers many at once
        rest = thread_pool.map_ahead(pool, lambda i: _bytes(source, i), range(1, len(source.cases)), 256)
        found = [first, *log.progress(rest, 'sizes of files', len(source.cases) - 1)]
    out = np.full((len(found), max(map(len, found))), -1, np.int64)
    for i, of in enumerate(found):
        out[i, :len(of)] = of
    return out


def _options(name, options):
    """Those of a transform, with a digest of the file that it reads, where it says that it does."""
    digest = transform.plugin(name).file_digest
    return options.to_dict() | ({'reads': digest(options)} if digest else {})


def open(path, settings=None, source=None, every=False):
    """The Store in a folder. MissingInput when there is none, ConfigError when no folder is named or it was made with
    other settings (None: whatever they are), Damaged when a file is missing or of another size.

    source: its files must have the sizes that they had, `every` one, or of no more than LOOK cases.
    """
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
            check_identity(path, about['settings'], settings)
        store = Store(path, about)
    except (KeyError, TypeError, AttributeError) as e:
        raise errors.Damaged(f'{path}/store.json is not what jaxkd wrote ({e!r}). Delete the folder and prepare '
                             'again.') from e
    if source is not None and (every or len(store) <= MAX_STAT_CASES):
        check_sizes(store, source)
    return store


class Store:
    """len, `[i] -> record`: arrays are read-only views of the memory maps, read when used.

    id(i) of a case; settings, versions: what made it; arrays {key: [n, ...] as they lie on disk}. Pickles by its path.
    """

    def __init__(self, path, about, mode='r'):
        self.path, self.about = path, about
        self.settings, self.versions, count = about['settings'], about['versions'], about['count']

        def opened(key, spec):
            return np.asarray(columns.open_map(columns.map_file(path, key), spec, count, mode))
        stored = columns.stored(about)
        self.arrays = {key: opened(key, spec) for key, spec in stored.items()}
        self.ids = opened('ids', [[], about['ids']])
        self.sums, self.kinds = opened('sums', [[len(stored) + 1], '<u4']), opened('kinds', [[], '|u1'])
        self.bytes = opened('bytes', [[about['files']], '<i8']) if about['files'] else None
        self.shards = columns.shard_files(path, about, count)
        for shard, size in zip(self.shards, about.get('rest', ())):
            if not shard.exists() or shard.stat().st_size != size:
                raise errors.Damaged(f'{shard} is missing or not the {size} bytes that were written. Delete the folder '
                                     'and prepare again.')
        self._empty, self._readers, self.keys = columns.empty(about), {}, None
        # What [i] looks up: the names split once, plain arrays rather than memmap objects, which are slow to slice.
        self._all = [(key.split('/'), values, key in about['packed']) for key, values in self.arrays.items()]

    def __len__(self):
        return len(self.kinds)

    def __getitem__(self, i):
        record = {}
        for names, values, packed in self._all:
            _set(record, names, columns.unpack(values[i]) if packed else values[i])
        for key, value in self.rest(i).items():
            _set(record, key.split('/'), value)
        return record

    def __reduce__(self):
        return _opened, (self.path, self.keys)

    def select_keys(self, keys):
        """The same store, of whose records nothing but `keys` is read."""
        out = copy.copy(self)
        out.keys, out.arrays = frozenset(keys), {key: a for key, a in self.arrays.items()
                                                 if key.partition('/')[0] in keys}
        out._all = [entry for entry in self._all if entry[0][0] in keys]
        out._empty = {key: value for key, value in self._empty.items() if key in keys}
        return out

    def id(self, i):
        return self.ids[i].decode()

    def batch(self, indices, words=True):
        """(record whose arrays [B, ...] are those of B cases, list of the rest of each, texts only with `words`)."""
        record = {}
        for names, values, packed in self._all:
            _set(record, names, columns.unpacked(values, indices) if packed else values[indices])
        rest = [self.rest(i, words) for i in indices]
        for row, more in enumerate(rest):
            for key in more.keys() & self.arrays.keys():  # an image that did not fit among the others
                record[key][row] = more.pop(key)
        return record, rest

    def rest(self, i, words=True):
        """{key: text, list or array} of what case i has beside the arrays of one shape."""
        kind = self.kinds[i] if self.shards else 0
        found = {**self._empty, **columns.decode(self._record(i))} if kind > (not words) else dict(self._empty)
        return found if self.keys is None else {k: v for k, v in found.items() if k in self.keys}

    def text(self, i):
        """The text of a case, without its image."""
        return self.rest(i)['text']

    def _record(self, i):
        k, within = divmod(int(i), self.about['shard'])
        if k not in self._readers:
            self._readers[k] = columns.open_shard(self.shards[k])
        return columns.read(self._readers[k], within, self.shards[k])

    @property
    def nbytes(self):
        return sum(a.nbytes for a in self.arrays.values()) + sum(self.about['rest'])

    def wrong(self, i):
        """Keys of what is not as it was written."""
        try:
            rest = (self._record(i) if self.shards else b'') + bytes([self.kinds[i]])
        except errors.Damaged:
            rest = None
        found = [*((key, values[i]) for key, values in self.arrays.items()), ('rest', rest)]
        return [key for (key, data), kept in zip(found, self.sums[i]) if data is None or columns.checksum(data) != kept]

    def verify(self, threads=2):
        """Read everything and compare checksums. Damaged names the cases and keys that differ."""
        with concurrent.futures.ThreadPoolExecutor(max(1, threads)) as pool:
            found = log.progress(thread_pool.map_ahead(pool, self.wrong, range(len(self)), 64), f'checking {self.path}',
                                 len(self))
            bad = [f'{self.id(i)} ({", ".join(keys)})' for i, keys in enumerate(found) if keys]
        if bad:
            more = f' and {len(bad) - 5} more' if len(bad) > 5 else ''
            raise errors.Damaged(f'{self.path}: what is stored of {", ".join(bad[:5])}{more} has changed since it was '
                                 'written. Delete the folder and prepare again.')


def _opened(path, keys):
    return open(path) if keys is None else open(path).select_keys(keys)


class CachedSource(Source):
    """A source whose records are read from a store, for what learns from them: no file of the source is opened."""

    text_without_image = True

    def __init__(self, source: Source, store: Store):
        self.source, self.store = source, store
        self.name, self.note, self.labels, self.cases = source.name, source.note, source.labels, source.cases
        self.skipped, self.tasks, self.targets = source.skipped, source.tasks, source.targets

    @functools.cached_property
    def values(self) -> np.ndarray | None:
        """Those of the source, made when they are asked for."""
        return self.source.values

    def __getitem__(self, i):
        return self.store[i]

    def text(self, i):
        return self.store.text(i)


def _set(record, names, value):
    *outer, name = names
    for part in outer:
        record = record.setdefault(part, {})
    record[name] = value


def _facts(source):
    """sha256 of what a source gives of its cases without opening files: ids, labels, tables of reports and boxes."""
    seen = hashlib.sha256()
    for case in source.cases:
        seen.update(f'{case.id}\0'.encode())
    facts = source.identity()
    texts = facts.pop('texts', ())
    for name, values in sorted(facts.items()):
        values = values if isinstance(values, Mapping) else {'': values}
        for key in sorted(values):
            a = np.asarray(values[key])
            seen.update(f'{name} {key} {a.dtype} {a.shape}\0'.encode() + a.tobytes())
    for text in texts:
        seen.update(f'{text}\0'.encode())
    return seen.hexdigest()


def _bytes(source, i):
    paths = source.paths(i)
    try:
        return paths if paths is None else [
            sum(f.stat().st_size for f in (path.glob('[!.]*') if path.is_dir() else [path]) if not f.is_dir())
            for path in map(pathlib.Path, paths)]
    except OSError as e:
        raise errors.MissingInput(f'Case {source.cases[i].id}: {e.filename} cannot be read ({e.strerror}). Put it '
                                  'back.') from e


def check_identity(path, made, wanted):
    """ConfigError that names the first difference."""
    options, cases = (list(_differences(a, b)) for a, b in zip(_parts(made), _parts(wanted)))
    if found := options or cases:  # in this order: what comes first explains the others
        where, a, b = found[0]
        _refuse(path, f'{where} was {a!r}, and is {b!r} now' if options else
                'the ids or labels of its cases were others, or the reports or boxes in their tables')


def check_sizes(store, source):
    """ConfigError that names the first case whose files have other sizes than they had."""
    if store.bytes is None or (now := sizes(source)) is None:
        return
    most = max(now.shape[1], store.bytes.shape[1])
    then, now = (np.pad(a, ((0, 0), (0, most - a.shape[1])), constant_values=-1) for a in (store.bytes, now))
    if len(differ := np.flatnonzero((then != now).any(1))):
        a, b = (of[differ[0]][of[differ[0]] >= 0].tolist() for of in (then, now))
        _refuse(store.path, f'case {store.id(differ[0])} had files of {a} bytes, and has {b} now')


def _refuse(path, what):
    raise errors.ConfigError(f'{path} was prepared with other settings: {what}. Restore that, or prepare another '
                             'folder (python -m jaxkd.data.prepare --out DIR).')


def _parts(settings):
    """(options, cases) of settings, without folders of data and files of transforms whose digest is there."""
    options = {k: v for k, v in settings.items() if k != 'cases_and_labels'}
    options['source'] = {k: v for k, v in settings.get('source', {}).items() if k not in PLACES}
    options['transforms'] = {name: {k: v for k, v in given.items() if k != 'file' or 'reads' not in given}
                             for name, given in settings.get('transforms', {}).items()}
    return options, settings.get('cases_and_labels')


def _differences(a, b, where=''):
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from _differences(a.get(key), b.get(key), f'{where}.{key}' if where else key)
    elif a != b:
        yield where, a, b
