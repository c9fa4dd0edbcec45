"""What is predicted: the cases that a command line names, each with the files of its inputs.

    FILE ...        a case each, of a network with one input; called by their names
    FOLDER          every file in it and below that the input is read from, and for volumes every folder with a DICOM
                    series; called by their paths below it
    cases.csv       a row for each case: a column for each input, with paths relative to the table (a network of reports
                    has the text itself in the cell); optional `case`, its name, and for volumes centre_x, centre_y and
                    centre_z, the mm (RAS) that a crop is centred on. An empty cell is an input that the case lacks.
                    Of a network that reads a table of findings all further columns are that table; rows with the same
                    `case` are the findings of one case
    KEY=PATH ...    a file for each input, or a folder for each, in which the files of a case have the same names
"""
import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxkd import errors
from jaxkd.data.formats import csv_table, dicom, picture
from jaxkd.inference.journal import SETTINGS
from jaxkd.runtime import log

VOLUMES, SLICES, TEXTS = ('.nii', '.nii.gz', '.nrrd'), ('.nii', '.nii.gz'), ('.txt',)
ENDINGS = {'picture': (*picture.ENDINGS, *SLICES), 'volume': VOLUMES, 'text': TEXTS}
CENTRE = ('centre_x', 'centre_y', 'centre_z')


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a network reads: {key: 'picture', 'volume', 'text' or 'table'}, and names that it must not get."""

    kinds: Mapping[str, str]
    privileged: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()  # of the table of findings

    @property
    def files(self) -> tuple[str, ...]:
        """The keys that are files."""
        return tuple(key for key, kind in self.kinds.items() if kind != 'table')


@dataclasses.dataclass(frozen=True)
class CaseFiles:
    """One case: `values` {key: path; the text itself, if `texts`; list of {column: cell}}."""

    name: str
    values: Mapping[str, Any]
    centre: tuple[float, ...] = ()  # (x, y, z) mm
    texts: bool = False  # whether texts stand in `values` themselves

    def paths(self, inputs: Inputs) -> list[str]:
        """Its files and folders."""
        return [self.values[key] for key in inputs.files if key in self.values
                and not (self.texts and inputs.kinds[key] == 'text')]

    def fingerprint(self, inputs: Inputs) -> str:
        """Changes with the sizes and times of its files and with its texts: then it has to be predicted again."""
        paths = self.paths(inputs)
        facts = [f'{path}:{s.st_size}:{s.st_mtime_ns}' for top in paths for path in _below(top)
                 if (s := _stat(path))]
        rest = {key: value for key, value in self.values.items() if value not in paths}
        text = '\n'.join([*(f.rpartition('/')[2] for f in facts), repr(rest), repr(self.centre)])
        return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]


def find(inputs: Inputs, arguments: Sequence[str]) -> list[CaseFiles]:
    """The cases of the arguments of --input. ConfigError, BadData for a table, MissingInput."""
    pairs = [(key, path) for key, path in map(_pair, arguments)]
    cases = _by_key(inputs, dict(_once(inputs, pairs))) if any(key for key, _ in pairs) else [
        case for _, path in pairs for case in _of_path(inputs, path)]
    names = [case.name for case in cases]
    if len({*names}) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise errors.ConfigError(f'--input names two cases "{twice}". Give the folder above them, or a table with a '
                                 'column "case".')
    if not cases:
        raise errors.MissingInput(f'--input {" ".join(arguments)}: there is nothing to predict in it. This network '
                                  f'reads {_wanted(inputs)}.')
    return cases


def _pair(argument: str) -> tuple[str, str]:
    """(key, path), the key '' where a path stands alone."""
    key, equals, path = argument.partition('=')
    return (key, path) if equals and re.fullmatch(r'[\w.-]+', key) and not os.path.exists(argument) else ('', argument)


def _once(inputs: Inputs, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The pairs, checked."""
    seen = set()
    for key, path in pairs:
        if not key:
            raise errors.ConfigError(f'--input {path}: the others say KEY=PATH. Write this one so, too, such as '
                                     f'{next(iter(inputs.kinds))}={path}.')
        check_key(inputs, key, f'--input {key}')
        if key in seen:
            raise errors.ConfigError(f'--input {key} is given twice. Keep one of them, or give a folder.')
        seen.add(key)
        yield key, path


def check_key(inputs: Inputs, key: str, location: str) -> None:
    """ConfigError for what the network does not read."""
    if key not in inputs.kinds:
        reason = ('Whatever else was there in training is privileged and not used at deployment'
                  if key in inputs.privileged else 'It knows no such input')
        raise errors.ConfigError(f'{location}: the network reads {", ".join(inputs.kinds)} alone. {reason}. Leave it '
                                 'out.')


def _by_key(inputs: Inputs, paths: Mapping[str, str]) -> list[CaseFiles]:
    """The case of a file for each key, or those of a folder for each."""
    if missing := [key for key in inputs.kinds if key not in paths]:
        raise errors.ConfigError(f'--input {missing[0]}=PATH is missing: the network reads {", ".join(inputs.kinds)}.')
    listed = {key: dict(_files(inputs.kinds[key], path)) for key, path in paths.items()}
    if all(len(files) == 1 for files in listed.values()):
        name = next(iter(listed[next(iter(inputs.kinds))]))
        return [CaseFiles(name, {key: next(iter(files.values())) for key, files in listed.items()})]
    by_name = {key: {stem(name): path for name, path in files.items()} for key, files in listed.items()}
    first = by_name[next(iter(inputs.kinds))]
    for key, files in by_name.items():
        if odd := sorted(first.keys() ^ files.keys()):
            raise errors.MissingInput(f'--input {key}={paths[key]}: {odd[0]} is not in all folders. Give the files '
                                      'of a case the same name, or a table of cases.')
    return [CaseFiles(name, {key: files[name] for key, files in by_name.items()}) for name in first]


def _of_path(inputs: Inputs, path: str) -> list[CaseFiles]:
    if not os.path.exists(path):
        raise errors.MissingInput(f'--input {path} does not exist. It reads {_wanted(inputs)}.')
    if path.lower().endswith(('.csv', '.csv.gz')):
        return _of_table(inputs, path)
    if len(inputs.kinds) > 1 or 'table' in inputs.kinds.values():
        raise errors.ConfigError(f'--input {path}: the network reads {", ".join(inputs.kinds)}. Give a table cases.csv '
                                 f'with these columns, or --input KEY=PATH for each.')
    (key, kind), = inputs.kinds.items()
    return [CaseFiles(name, {key: file}) for name, file in _files(kind, path)]


def _files(kind: str, path: str) -> Iterator[tuple[str, str]]:
    """(name, path) of the files of a kind that a path is, or that lie below it, in order."""
    if kind == 'table':
        raise errors.ConfigError(f'--input {path}: findings come in a table of cases, cases.csv.')
    if not os.path.exists(path):
        raise errors.MissingInput(f'--input {path} does not exist.')
    if os.path.isfile(path):
        yield os.path.basename(path), path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(n for n in folders if not n.startswith('.')
                            and not os.path.exists(os.path.join(folder, n, SETTINGS)))  # predictions of before
        names = sorted(n for n in names if not n.startswith('.') and n != 'DICOMDIR')
        below = pathlib.PurePath(os.path.relpath(folder, path))
        if kind == 'volume' and any(_is_dicom(os.path.join(folder, n)) for n in names[:3]):
            yield below.as_posix() if below.parts else os.path.basename(os.path.abspath(path)), folder
            names = [n for n in names if n.lower().endswith(VOLUMES)]
        for name in names:
            file = os.path.join(folder, name)
            if name.lower().endswith(ENDINGS[kind]) or kind == 'picture' and '.' not in name and _is_dicom(file):
                yield (below / name).as_posix(), file


def _of_table(inputs: Inputs, path: str) -> list[CaseFiles]:
    """The cases of a table, see the head of the file."""
    columns, rows = csv_table.read(path, inputs.files[:1])
    for column in columns:
        if column in inputs.privileged and column not in inputs.kinds:
            check_key(inputs, column, f'{path}, column "{column}"')
    table = next((key for key, kind in inputs.kinds.items() if kind == 'table'), '')
    own = ('case', *inputs.files, *CENTRE)
    _log_columns(path, inputs, columns, own, table)
    at = {name: columns.index(name) for name in own if name in columns}
    by_name: dict[str, dict[str, Any]] = {}
    for number, cells in rows:
        row = {name: cells[j] for name, j in at.items()}
        name = row.get('case', '') or next((row[k] for k in inputs.files[:1] if inputs.kinds[k] != 'text'), '') or (
            f'row {number}')
        if name in by_name and not table:
            raise errors.BadData(f'{path}, row {number}: a case "{name}" stands there twice. Give each its own name in '
                                 'a column "case".')
        values = {key: _cell(path, inputs.kinds[key], row[key]) for key in inputs.files if row.get(key)}
        case = by_name.setdefault(name, dict(values=values, centre=_centre(path, number, row)))
        if table:
            case['values'].setdefault(table, []).append({c: v for c, v in zip(columns, cells) if c not in own})
    return [CaseFiles(name, case['values'], case['centre'], texts=True) for name, case in by_name.items()]


def _cell(path: str, kind: str, cell: str) -> str:
    """A text, or the path of a file."""
    return cell if kind == 'text' else csv_table.resolve(os.path.dirname(path) or '.', cell)


def _centre(path: str, number: int, row: Mapping[str, str]) -> tuple[float, ...]:
    if not any(row.get(column) for column in CENTRE):
        return ()
    try:
        centre = tuple(float(row[column]) for column in CENTRE)
        if all(abs(mm) < 1e5 for mm in centre):
            return centre
    except (KeyError, ValueError):
        pass
    raise errors.BadData(f'{path}, row {number}: {", ".join(CENTRE)} must be three numbers, in mm. Fill them in, or '
                         'leave all three empty.')


def _log_columns(path: str, inputs: Inputs, columns: Sequence[str], own: Sequence[str], table: str) -> None:
    """Say which columns are not used, and of a table of findings which are missing; BadData where none is there."""
    used = {*own, *inputs.columns} if table else {*own}
    if unused := [c for c in columns if c and c not in used]:
        log.info(f'{path}: columns that are not used: {", ".join(unused[:10])}{", ..." if len(unused) > 10 else ""}')
    missing = [c for c in inputs.columns if c not in columns] if table else []
    if missing and len(missing) == len(inputs.columns):
        raise errors.BadData(f'{path} has none of the columns that the network reads: {", ".join(missing)}.'
                             f'{errors.nearest(missing[0], columns)}')
    if missing:
        log.info(f'{path}: columns that the network would read and that are missing: {", ".join(missing)}')


def _wanted(inputs: Inputs) -> str:
    """image (.png, .jpg, ...), ..."""
    return ', '.join(f'{key} ({"columns of a table" if kind == "table" else " ".join(ENDINGS[kind])}'
                     f'{", DICOM series" if kind == "volume" else ""})' for key, kind in inputs.kinds.items())


def stem(name: str) -> str:
    """The name of a case without the ending of its file."""
    endings = sorted({e for group in ENDINGS.values() for e in group}, key=len, reverse=True)
    return next((name[:-len(e)] for e in endings if name.lower().endswith(e)), name)


def _is_dicom(path: str) -> bool:
    try:
        with open(path, 'rb') as f:
            return dicom.is_dicom(f.read(132))
    except OSError:
        return False


def _below(path: str) -> list[str]:
    return [os.path.join(path, name) for name in sorted(os.listdir(path))] if os.path.isdir(path) else [path]


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None
