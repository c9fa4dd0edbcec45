"""Files of cases by their names: looked up in any letter case, and what nobody asks for is said."""
import collections
import os
from collections.abc import Collection, Iterable

from jaxkd import errors
from jaxkd.data.formats import csv_table
from jaxkd.runtime import log

SUFFIXES = ('.nii.gz', '.nii', '.nrrd', '.seg.nrrd', '.dcm', '')  # '': a DICOM folder
_PASSED = '.', 'thumbs.db', 'desktop.ini', 'readme', 'license'
_MOST = 1000  # folders that are looked at [our choice]
_NAMES = 4  # that a line shows


def locate(names: Collection[str], stem: str, folder: str) -> str | None:
    """The name of the file or DICOM folder `stem` among the names of a folder, in any letter case, or None.

    BadData where several fit, unless one alone has the letter case of `stem`.
    """
    matches = [name for suffix in SUFFIXES for name in sorted(names) if name.lower() == stem.lower() + suffix]
    exact = [name for name in matches if name in {stem + suffix for suffix in SUFFIXES}]
    if len(exact or matches) > 1:
        first, second, *_ = exact or matches
        raise errors.BadData(f'{folder} has both {first} and {second}. Keep one of them.')
    return next(iter(exact or matches), None)


def report_unused(source_name: str, root: str, used: Iterable[str], looked_for: str) -> None:
    """Says, in the log, what lies unused in the root and beside the files that a source uses.

    used: paths relative to the root, or absolute ones, in any letter case. looked_for: the names that would have been
    used, for the line.
    """
    names_by_folder = _names_by_folder(root, used)
    unused = []
    for folder in names_by_folder:
        path = csv_table.in_any_case(root, folder) if folder else root
        unused += [os.path.join(folder, name) for name in sorted(os.listdir(path) if os.path.isdir(path) else [])
                   if name.lower() not in names_by_folder[folder] and not name.lower().startswith(_PASSED)]
    if unused:
        counts = collections.Counter(map(os.path.basename, unused))
        shown = ', '.join(f'{name} {n} times' for name, n in counts.most_common(_NAMES) if n > 1)
        log.info(f'{source_name}: {len(unused)} files lie there unused, the first {unused[0]}'
                 f'{f" ({shown})" if shown else ""}. Looked for: {looked_for}')


def _names_by_folder(root: str, used: Iterable[str]) -> dict[str, set[str]]:
    """{folder below the root: names in lower case} of files and of the folders that they are in, of some folders."""
    names: dict[str, list[str]] = {}
    for path in used:
        folder, _, name = path.rpartition('/')
        if folder in names:
            names[folder].append(name)
        else:
            names[folder] = [name]
    below = {folder: _below(root, folder) for folder in names}
    out: collections.defaultdict[str, set[str]] = collections.defaultdict(set, {'': set()})
    for folder in below.values():
        out[folder] |= set()
        while folder and not folder.startswith('..'):
            folder, _, name = folder.rpartition('/')
            out[folder].add(name.lower())
    chosen = {folder: out[folder] for folder in sorted(out)[:_MOST]}
    for folder, place in below.items():
        if place in chosen:
            chosen[place].update(map(str.lower, names[folder]))
    return chosen


def _below(root: str, folder: str) -> str:
    """A folder, relative to the root or absolute, as one below the root; '' for the root."""
    if '.' in folder or '//' in f'{folder}/' or folder.startswith('/'):
        folder = os.path.relpath(folder, root) if os.path.isabs(folder) else os.path.normpath(folder)
    return '' if folder == '.' else folder
