"""Files of cases by their names: looked up in any letter case, and what nobody asks for is said."""
import collections
import os
from collections.abc import Collection, Iterable

from jaxkd import errors
from jaxkd.runtime import log

SUFFIXES = ('.nii.gz', '.nii', '.nrrd', '.seg.nrrd', '')  # '': a DICOM folder
_SYSTEM = ('thumbs.db', 'desktop.ini')
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


def find(folder: str, name: str) -> str:
    """The path of a file in a folder, in the letter case that it has there if one alone fits; else as `name` is."""
    path = os.path.join(folder, name)
    if os.path.lexists(path) or not os.path.isdir(os.path.dirname(path)):
        return path
    others = [n for n in os.listdir(os.path.dirname(path)) if n.lower() == os.path.basename(name).lower()]
    return os.path.join(os.path.dirname(path), others[0]) if len(others) == 1 else path


def report_unused(source_name: str, root: str, used: Iterable[str], looked_for: str) -> None:
    """Says, in the log, what lies unused beside the files that cases use: paths relative to the root.

    looked_for: the names that would have been used, for the line.
    """
    names_by_folder: dict[str, set[str]] = {}
    for path in used:
        folder, name = os.path.split(path)
        names_by_folder.setdefault(folder, set()).add(name)
    unused = [(folder, name) for folder, names in names_by_folder.items()
              for name in sorted({*os.listdir(os.path.join(root, folder))} - names)
              if not name.startswith('.') and name.lower() not in _SYSTEM]
    if unused:
        counts = collections.Counter(name for _, name in unused)
        shown = ', '.join(f'{name} {n} times' for name, n in counts.most_common(_NAMES) if n > 1)
        log.info(f'{source_name}: {len(unused)} files lie there unused, the first {os.path.join(*unused[0])}'
                 f'{f" ({shown})" if shown else ""}. Looked for: {looked_for}')
