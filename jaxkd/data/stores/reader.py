"""Prepared cases on disk: decoded, resampled, ready to be batched or cropped from, read without a copy.

A folder holds, for all cases of a source in order (folds and stages share it),
    <key>.npy, rest-*.array_record    the cases (see jaxkd/data/stores/columns.py)
    ids.npy       [n] case ids, UTF-8
    sums.npy      uint32 [n, keys + 1]: a CRC-32 of each array, then of the ragged record; zeros until a case is written
    kinds.npy     uint8 [n]: whether the ragged record holds 0 nothing, 1 texts alone, or 2 arrays
    bytes.npy     int64 [n, files], -1 where a case has fewer: the sizes of the files of a source that offers `paths`
    store.json    written last: the settings that made it, shapes, versions
and while it is written plan.json, from which an interrupted `write` goes on. No file is ever loaded as one: a store of
400,000 cases takes no more memory than one of four.

A store serves a config and a source whose settings are those that made it (jaxkd/data/stores/identity.py). `write`
compares the sizes of all files; `open` of none if there are more than MAX_STAT_CASES cases, since that takes minutes
on a network.
"""
import concurrent.futures
import copy
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd import errors
from jaxkd.contracts import Record
from jaxkd.data.source import DerivedSource, Source
from jaxkd.data.stores import columns, identity
from jaxkd.runtime import files, log, thread_pool

MAX_STAT_CASES = 4096  # cases


def open(path: str | pathlib.Path, settings: Mapping[str, Any] | None = None, source: Source | None = None,
         every: bool = False) -> 'Store':
    """The Store in a folder.

    settings: that it must have been made with; None: whatever they are. source: its files must have the sizes that they
    had, `every` one, or those of no more than MAX_STAT_CASES cases. MissingInput when there is no store, ConfigError
    when no folder is named or it was made with other settings, Damaged when a file is missing or of another size.
    """
    if not os.fspath(path):
        raise errors.ConfigError('data.folder is empty, and data.cache = disk reads prepared cases from there. Set '
                                 '--config.data.folder=DIR to the folder that python -m jaxkd.data.prepare wrote.')
    path = pathlib.Path(path)
    if not (path / 'store.json').exists():
        state = 'holds an unfinished store' if (path / 'plan.json').exists() else 'holds no prepared cases'
        raise errors.MissingInput(f'data.folder: {path} {state}. Run python -m jaxkd.data.prepare with this config.')
    metadata = files.read_json(path / 'store.json', 'Store')
    try:
        if settings is not None:
            identity.check_identity(path, metadata['settings'], settings)
        store = Store(path, metadata)
    except (KeyError, TypeError, AttributeError) as e:
        raise errors.Damaged(f'{path}/store.json is not what jaxkd wrote ({e!r}). Delete the folder and prepare '
                             'again.') from e
    if source is not None and (every or len(store) <= MAX_STAT_CASES):
        identity.check_sizes(path, store.file_sizes, source)
    return store


class Store:
    """len, `[i] -> record`: arrays are read-only views of the memory maps, read when used. Pickles by its path.

    settings, versions: what made it; arrays: {key: [n, ...] as they are on disk}; ids: bytes [n]; checksums: uint32
    [n, keys + 1]; ragged_kinds: uint8 [n]; file_sizes: int64 [n, files] or None; shards: files of the ragged records.
    """

    def __init__(self, path: pathlib.Path, metadata: dict[str, Any], mode: str = 'r') -> None:
        """metadata: the content of store.json; mode 'r+' maps the arrays for writing."""
        self.path, self.metadata = path, metadata
        self.settings, self.versions, count = metadata['settings'], metadata['versions'], metadata['count']

        def opened(key, spec):
            return np.asarray(columns.open_map(columns.map_file(path, key), spec, count, mode))
        specs = columns.stored(metadata)
        self.arrays = {key: opened(key, spec) for key, spec in specs.items()}
        self.ids = opened('ids', [[], metadata['ids']])
        self.checksums, self.ragged_kinds = opened('sums', [[len(specs) + 1], '<u4']), opened('kinds', [[], '|u1'])
        self.file_sizes = opened('bytes', [[metadata['files']], '<i8']) if metadata['files'] else None
        self.shards = columns.shard_files(path, metadata, count)
        for shard, size in zip(self.shards, metadata.get('rest', ())):
            if not shard.exists() or shard.stat().st_size != size:
                raise errors.Damaged(f'{shard} is missing or not the {size} bytes that were written. Delete the folder '
                                     'and prepare again.')
        self.keys: frozenset[str] | None = None  # that are read; None: all
        self._empty = columns.empty(metadata)
        self._readers: dict[int, Any] = {}
        # What [i] looks up: the names split once, plain arrays rather than memmap objects, which are slow to slice.
        self._fields = [(key.split('/'), values, key in metadata['packed']) for key, values in self.arrays.items()]

    def __len__(self) -> int:
        return len(self.ragged_kinds)

    def __getitem__(self, i: int) -> Record:
        record: Record = {}
        for names, values, packed in self._fields:
            _set(record, names, columns.unpack(values[i]) if packed else values[i])
        for key, value in self.ragged(i).items():
            _set(record, key.split('/'), value)
        return record

    def __reduce__(self) -> tuple:
        return _reopen, (self.path, self.keys)

    def select_keys(self, keys: Collection[str]) -> 'Store':
        """The same store, of whose records nothing but `keys` is read."""
        out = copy.copy(self)
        out.keys = frozenset(keys)
        out.arrays = {key: a for key, a in self.arrays.items() if key.partition('/')[0] in keys}
        out._fields = [field for field in self._fields if field[0][0] in keys]
        out._empty = {key: value for key, value in self._empty.items() if key in keys}
        return out

    def id(self, i: int) -> str:
        """The id of case i."""
        return self.ids[i].decode()

    def batch(self, indices: Sequence[int], texts: bool = True) -> tuple[Record, list[Record]]:
        """(record whose arrays [B, ...] are those of B cases, list of the ragged record of each, texts if `texts`)."""
        record: Record = {}
        for names, values, packed in self._fields:
            _set(record, names, columns.unpacked(values, indices) if packed else values[indices])
        ragged = [self.ragged(i, texts) for i in indices]
        for row, values in enumerate(ragged):
            for key in values.keys() & self.arrays.keys():  # an image that did not fit among the others
                record[key][row] = values.pop(key)
        return record, ragged

    def ragged(self, i: int, texts: bool = True) -> Record:
        """{key: text, list or array} of what case i has beside the arrays of one shape."""
        kind = self.ragged_kinds[i] if self.shards else 0
        values = {**self._empty, **columns.decode(self._encoded(i))} if kind > (not texts) else dict(self._empty)
        return values if self.keys is None else {k: v for k, v in values.items() if k in self.keys}

    def text(self, i: int) -> str:
        """The text of a case, without its image."""
        return self.ragged(i)['text']

    def _encoded(self, i: int) -> bytes:
        """The ragged record of case i."""
        shard, within = divmod(int(i), self.metadata['shard'])
        if shard not in self._readers:
            self._readers[shard] = columns.open_shard(self.shards[shard])
        return columns.read(self._readers[shard], within, self.shards[shard])

    @property
    def nbytes(self) -> int:
        """Bytes of arrays and ragged records together."""
        return sum(a.nbytes for a in self.arrays.values()) + sum(self.metadata['rest'])

    def damaged_keys(self, i: int) -> list[str]:
        """Keys of case i whose checksum is not that of what was written; 'rest' is the ragged record."""
        try:
            ragged = (self._encoded(i) if self.shards else b'') + bytes([self.ragged_kinds[i]])
        except errors.Damaged:
            ragged = None
        stored = [*((key, values[i]) for key, values in self.arrays.items()), ('rest', ragged)]
        return [key for (key, data), checksum in zip(stored, self.checksums[i])
                if data is None or columns.checksum(data) != checksum]

    def verify(self, threads: int = 2) -> None:
        """Read everything and compare checksums. Damaged names the cases and keys that differ."""
        with concurrent.futures.ThreadPoolExecutor(max(1, threads)) as pool:
            checked = thread_pool.map_ahead(pool, self.damaged_keys, range(len(self)), 64)
            damaged = [f'{self.id(i)} ({", ".join(keys)})'
                       for i, keys in enumerate(log.progress(checked, f'checking {self.path}', len(self))) if keys]
        if damaged:
            remainder = f' and {len(damaged) - 5} more' if len(damaged) > 5 else ''
            raise errors.Damaged(f'{self.path}: {", ".join(damaged[:5])}{remainder} has changed since '
                                 'it was written. Delete the folder and prepare again.')


def _reopen(path: pathlib.Path, keys: frozenset[str] | None) -> Store:
    return open(path) if keys is None else open(path).select_keys(keys)


class CachedSource(DerivedSource):
    """A source whose records are read from a store, for transforms that fit: no file of the source is opened."""

    def __init__(self, source: Source, store: Store) -> None:
        super().__init__(source)
        self.store = store

    def __getitem__(self, i: int) -> Record:
        return self.store[i]

    def text(self, i: int) -> str:
        """The text of case i."""
        return self.store.text(i)


def _set(record: Record, names: Sequence[str], value: Any) -> None:
    """record[a][b] = value, for the names (a, b)."""
    *outer, name = names
    for part in outer:
        record = record.setdefault(part, {})
    record[name] = value
