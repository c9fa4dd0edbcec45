"""Tables of cases: CSV with a header, plain or gzip, and the file names in its cells.

Errors name the file, the row as a spreadsheet counts it (the header is row 1), the column and the remedy.
They quote no cell of a person, only paths.
"""
import csv
import functools
import io
import itertools
import os
import posixpath
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence

from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import splits
from jaxkd.data.formats import inflate
from jaxkd.data.source import MISSING, NOBODY

csv.field_size_limit(2**24)  # long reports; the default is 128 KiB

_NO_TEXT = MISSING | {'none'}
_WORDS = {'true': 1.0, 'yes': 1.0, 'false': 0.0, 'no': 0.0}
_LONGEST = 2**25  # characters of a line that are looked at in one piece
_UNPACKED = 2**26, 200  # [our choice] most bytes of an unpacked table: so many, and so many for each of its packed ones


def read(path: str, required: Sequence[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """(columns, rows): a list of names and a list of (row number, cells); cells are stripped, empty rows left
    out. Columns without a name may be several, and where they end the header, rows may end before them.

    UTF-8 with or without byte-order mark, any line ends; gzip if it begins as gzip does, whatever its name. Raises
    MissingInput, or BadData for a table without a `required` column, with a repeated column, a row of another length,
    or an open quote.
    """
    (_, columns), *rows = _rows(path, required)
    return columns, [(number, list(map(str.strip, cells))) for number, cells in rows]


def iterate(path: str, names: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Iterator of (row number, the cells of these columns): as `read`, but a table of any length takes no memory."""
    rows = _rows(path, names)
    _, columns = next(rows)
    indices = [columns.index(name) for name in names]
    return ((number, [cells[j].strip() for j in indices]) for number, cells in rows)


def count(hp: ConfigDict, most: int) -> int:
    """Number of rows of the table hp.table below hp.root, counted up to `most`."""
    return sum(1 for _ in itertools.islice(iterate(find_file(hp.root, hp.table), ()), most))


def find_file(folder: str, name: str) -> str:
    """The path of `name` in a folder, in any letter case, or that of name.gz where only that is there."""
    paths = [in_any_case(folder, name), in_any_case(folder, f'{name}.gz')]
    return next((path for path in paths if os.path.lexists(path)), os.path.join(folder, name))


def in_any_case(folder: str, name: str) -> str:
    """The path of `name` below a folder; where it is not there, in the letter case in which one alone is, if so."""
    path, at = os.path.join(folder, name), folder
    if os.path.lexists(path):
        return path
    for part in name.split('/'):
        matches = _spellings(at, part)
        if len(matches) != 1 and part not in matches:
            return path
        at = os.path.join(at, part if part in matches else matches[0])
    return at


def _spellings(folder: str, name: str) -> list[str]:
    """The names in a folder that are `name` but for letter case."""
    if not os.path.isdir(folder):
        return []
    names, lower = _large_folder(folder, os.stat(folder).st_mtime_ns), name.lower()
    return [n for n in os.listdir(folder) if n.lower() == lower] if names is None else names.get(lower, [])


@functools.lru_cache(16)
def _large_folder(folder: str, changed: int) -> dict[str, list[str]] | None:
    """{name in lower case: names} of a folder of a thousand files or more, which many missing files would list anew."""
    out: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        out.setdefault(name.lower(), []).append(name)
    return out if len(out) >= 1000 else None


def column(path: str, columns: list[str], name: str) -> int:
    """Index of a column, or BadData with the nearest name."""
    if name not in columns:
        raise errors.BadData(f'{path} has no column "{name}".{errors.nearest(name, columns)}')
    return columns.index(name)


def text(cell: str) -> str:
    """The text of a cell, '' where it says that there is none: empty, or as tables are saved by programs, such as nan.
    """
    return '' if len(cell) < 5 and cell.lower() in _NO_TEXT else cell


@functools.lru_cache(4096)
def label(cell: str) -> float | None:
    """The label that a cell says: 1 (1.00, True, yes), 0 (False, no), -1, or nan where it is empty or NaN, NA, NULL.

    None for any other cell.
    """
    word = cell.strip().lower() if len(cell) < 32 else cell
    if word in MISSING:
        return float('nan')
    try:
        value = _WORDS[word] if word in _WORDS else float(word)
    except ValueError:
        return None
    return value if value in (1, 0, -1) else None


def class_index(cell: str, names: Sequence[str]) -> int | None:
    """The index of the class that a cell says: its name, in any case where that is one, or its number, such as 1 or
    1.00; of two classes also yes or True (1), no or False (0). None for any other cell.
    """
    word = cell.strip().lower()
    matches = [i for i, name in enumerate(names) if name == cell] or [
        i for i, name in enumerate(names) if name.lower() == word]
    if len(matches) == 1:
        return matches[0]
    try:
        number = _WORDS[word] if word in _WORDS and len(names) == 2 else float(word)
    except ValueError:
        return None
    return int(number) if number in range(len(names)) else None


def check_patients(path: str, column: str, cells: Iterable[tuple[int, str]], allowed: Collection[str] = ()) -> None:
    """BadData with the rows whose patient id is empty or means that there is none, as nan, None or n/a.

    cells: (row number, id). allowed: ids that look so and are ids.
    """
    bad = {number: cell for number, cell in cells if cell.lower() in NOBODY and cell not in allowed}
    if not bad:
        return
    rows = ', '.join(map(str, list(bad)[:10])) + (', ...' if len(bad) > 10 else '')
    cell = next(iter(bad.values()))
    raise errors.BadData(
        f'{path}, row{"s" * (len(bad) > 1)} {rows}: column "{column}" ' + ('is empty. Fill it in' if not cell else
        f'says "{cell}", which means no patient, and all such rows would be one. Give each its patient, or list '
        f'"{cell}" in allow_ids of the source if it is an id') + (f' ({len(bad)} rows).' if len(bad) > 1 else '.'))


def resolve(root: str, name: str) -> str:
    """The path of a file named in a table, in any letter case. BadData when it leaves the root, also by a link."""
    check_inside(root, name)
    path, top = os.path.realpath(in_any_case(root, name)), os.path.realpath(root)
    if os.path.commonpath((path, top)) != top:
        raise errors.BadData(f'{name} is a link that leaves the root {root}. Put the file there or move the root up.')
    return path


def check_inside(root: str, name: str) -> None:
    """As `resolve`, by the letters of the name alone: nothing is looked up, so whole tables are cheap."""
    parts = name.replace('\\', '/').split('/')
    if not parts[0] or parts[0][1:2] == ':' or '..' in parts or '\0' in name:
        raise errors.BadData(f'{name!r} leaves the root {root}. Write it relative to the root, without "..".')


def check_case(path: str, number: int, root: str, row: dict[str, str], folders: set[str],
               allowed: Collection[str] = ()) -> None:
    """BadData unless case_id, patient_id and split (which may be absent) of a row can be used.

    folders: those of earlier rows, to which the folder of this case is added. allowed: see `check_patients`.
    """
    location = f'{path}, row {number}'

    def bad(column: str, problem: str) -> errors.BadData:
        return errors.BadData(f'{location}: column "{column}" {problem}.')
    case, split = row['case_id'], row.get('split', '')
    if not case:
        raise bad('case_id', 'is empty. Fill it in')
    check_patients(path, 'patient_id', [(number, row['patient_id'])], allowed)
    try:
        check_inside(root, case)
    except errors.BadData as e:
        raise bad('case_id', f'must not leave the root: {e}') from e
    if (plain := posixpath.normpath(case)) in folders or plain == '.':
        raise bad('case_id', f'names {case} a second time. Keep one of the rows' if plain in folders else
                  'names the root itself. Give each case a folder')
    folders.add(plain)
    if split and split not in splits.NAMES:
        raise bad('split', f'of case {case} is none of {", ".join(splits.NAMES)} or '
                           f'empty.{errors.nearest(split, splits.NAMES)} Rename it')


def _rows(path: str, required: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """The header and the rows of a table, one by one: (row number, cells)."""
    last = 1
    try:
        with open(path, 'rb') as f:
            reader = csv.reader(_lines(f), strict=True)
            columns = [name.strip() for name in next(reader, [])]
            _check_header(path, columns, required)
            yield 1, columns
            width = len(columns)
            named = max((j for j, name in enumerate(columns, 1) if name), default=0)
            for number, cells in enumerate(reader, 2):
                if not any(cells):  # spreadsheets end a table with rows of commas
                    continue
                if named <= len(cells) < width:
                    cells += [''] * (width - len(cells))
                if len(cells) != width:
                    raise errors.BadData(f'{path}, row {number}: {len(cells)} cells under {width} columns. A '
                                         'comma inside a text needs quotes around the text.')
                last = number
                yield number, cells
    except (FileNotFoundError, NotADirectoryError) as e:
        raise errors.MissingInput(f'{path} does not exist. Set root to the folder that holds it.') from e
    except UnicodeDecodeError as e:
        raise errors.BadData(f'{path} is not UTF-8 (byte {e.start}). Save it as "CSV UTF-8".') from e
    except csv.Error as e:
        raise errors.BadData(f'{path}, row {last + 1} or after: {e}. Close the quote or save the table anew.') from e
    except (EOFError, zlib.error) as e:
        raise errors.BadData(f'{path} is a damaged gzip file ({e}). Copy it again from where it came.') from e
    except OSError as e:
        raise errors.BadData(f'{path} cannot be read: {e.strerror}. It must be a file that this user may read.') from e


def _lines(f: io.BufferedReader) -> Iterator[str]:
    """The lines of an open file, unpacked if need be."""
    content = inflate.open_any(f, _UNPACKED[0] + _UNPACKED[1] * os.fstat(f.fileno()).st_size)
    text = io.TextIOWrapper(content, 'utf-8-sig', newline='')
    return iter(lambda: text.readline(_LONGEST), '')


def _check_header(path: str, columns: list[str], required: Sequence[str]) -> None:
    if len(columns) == 1 and any(mark in columns[0] for mark in ';\t'):
        raise errors.BadData(f'{path} is separated by semicolons or tabs. Save it with commas.')
    for name in required:
        column(path, columns, name)
    if repeated := {name for name in columns if name and columns.count(name) > 1}:
        raise errors.BadData(f'{path} has two columns called "{min(repeated)}". Rename one.')
