"""Whether a store serves a config and a source: the settings that made it, and the sizes of the files of its cases.

The paths of the source do not count: data and store may move. Of a source that offers `paths(i)`, the files of case i,
their sizes count, so that a scan that was replaced is noticed wherever it lies; times do not, since copies change them.
A correction that keeps the size of a file, or in a source without `paths`, in a .zip of reports or in files of masks
cannot be noticed: prepare a new folder after it.
"""
import concurrent.futures
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import transform
from jaxkd.data.source import Source, without_paths
from jaxkd.runtime import log, thread_pool

FORMAT = 4  # 3: masks of regions were left out


def settings(hp: ConfigDict, source: Source) -> dict[str, Any]:
    """What a store must have been made with to serve a resolved data config and its source. Opens no file of a case.

    Versions of packages are written into the store too, but do not count: results agree to rounding, and a store may
    move.
    """
    names = hp.transforms[:transform.shared_prefix(hp)]
    return json.loads(json.dumps(dict(
        format=FORMAT, source=hp.source.to_dict(), order=names,
        transforms={transform.short_name(name): _transform_options(name, hp[transform.short_name(name)])
                    for name in names},
        cases_and_labels=_cases_digest(source))))


def check_identity(path: pathlib.Path, stored: Mapping[str, Any], required: Mapping[str, Any]) -> None:
    """ConfigError that names the first difference between the settings of the store at `path` and those wanted."""
    options, cases = (list(_differences(a, b)) for a, b in zip(_parts(stored), _parts(required)))
    if differences := options or cases:  # in this order: what comes first explains the others
        key, a, b = differences[0]
        _refuse(path, f'{key} was {a!r}, and is {b!r} now' if options else
                'the ids or labels of its cases were others, or the reports or boxes in their tables')


def sizes(source: Source) -> np.ndarray | None:
    """int64 [n, files]: the size in bytes of each file of a case, -1 where a case has fewer.

    The size of a folder (a DICOM series) is that of its files together. None for a source without `paths`. MissingInput
    for a file that is not there.
    """
    if not len(source.cases) or (first := _file_sizes(source, 0)) is None:
        return None
    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # a network answers many at once
        others = thread_pool.map_ahead(pool, lambda i: _file_sizes(source, i), range(1, len(source.cases)), 256)
        rows = [first, *(row or [] for row in log.progress(others, 'sizes of files', len(source.cases) - 1))]
    out = np.full((len(rows), max(map(len, rows))), -1, np.int64)
    for i, row in enumerate(rows):
        out[i, :len(row)] = row
    return out


def check_sizes(path: pathlib.Path, stored: np.ndarray | None, source: Source) -> None:
    """ConfigError that names the first case whose files have other sizes than those stored, int64 [n, files]."""
    if stored is None or (present := sizes(source)) is None:
        return
    files = max(present.shape[1], stored.shape[1])
    before, now = (np.pad(a, ((0, 0), (0, files - a.shape[1])), constant_values=-1) for a in (stored, present))
    if len(changed := np.flatnonzero((before != now).any(1))):
        a, b = (rows[changed[0]][rows[changed[0]] >= 0].tolist() for rows in (before, now))
        _refuse(path, f'case {source.cases[changed[0]].id} had files of {a} bytes, and has {b} now')


def _transform_options(name: str, options: ConfigDict) -> dict[str, Any]:
    """The options of a transform that change a record, with the digest of the file that it reads, if there is one."""
    plugin = transform.plugin(name)
    changing = {key: value for key, value in options.items() if key not in plugin.split_options}
    return changing | ({'reads': plugin.file_digest(options)} if plugin.file_digest else {})


def _cases_digest(source: Source) -> str:
    """sha256 of what a source gives of its cases without opening files: ids, labels, tables of reports and boxes."""
    digest = hashlib.sha256()
    for case in source.cases:
        digest.update(f'{case.id}\0'.encode())
    identity = source.identity()
    texts = identity.pop('texts', ())
    for name, values in sorted(identity.items()):
        values = values if isinstance(values, Mapping) else {'': values}
        for key in sorted(values):
            a = np.asarray(values[key])
            digest.update(f'{name} {key} {a.dtype} {a.shape}\0'.encode() + a.tobytes())
    for text in texts:
        digest.update(f'{text}\0'.encode())
    return digest.hexdigest()


def _file_sizes(source: Source, i: int) -> list[int] | None:
    paths = source.paths(i)
    try:
        return None if paths is None else [
            sum(f.stat().st_size for f in (path.glob('[!.]*') if path.is_dir() else [path]) if not f.is_dir())
            for path in map(pathlib.Path, paths)]
    except OSError as e:
        raise errors.MissingInput(f'Case {source.cases[i].id}: {e.filename} cannot be read ({e.strerror}). Put it '
                                  'back.') from e


def _refuse(path: pathlib.Path, difference: str) -> NoReturn:
    raise errors.ConfigError(f'{path} was prepared with other settings: {difference}. Restore that, or prepare another '
                             'folder (python -m jaxkd.data.prepare --out DIR).')


def _parts(settings: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """(options, cases) of settings, without folders of data and files of transforms whose digest is there."""
    options = {k: v for k, v in settings.items() if k != 'cases_and_labels'}
    options['source'] = without_paths(settings['source']) if 'source' in settings else {}
    options['transforms'] = {name: {k: v for k, v in values.items() if k != 'file' or 'reads' not in values}
                             for name, values in settings.get('transforms', {}).items()}
    return options, settings.get('cases_and_labels')


def _differences(a: Any, b: Any, key: str = '') -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value in a, value in b) of all differences of two trees."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in sorted(a.keys() | b.keys()):
            yield from _differences(a.get(name), b.get(name), f'{key}.{name}' if key else name)
    elif a != b:
        yield key, a, b
