"""What the values of a mask mean: those that a file holds are compared with the classes that are declared.

A mask holds the index of a class in each place. One of two classes may hold 0 and 255 instead, as programs that draw on
8-bit pictures save it. Real numbers count as the whole one that they miss by at most ROUNDING, as scaled files have
them; not where every value rounds to 0 and some are not 0: such a mask was saved as shares of 255, say, and is none of
background. Every other value is refused, with its count.
"""
from collections.abc import Iterable, Sequence

import numpy as np

from jaxkd import errors
from jaxkd.data.formats import checks
from jaxkd.runtime import log

ROUNDING = 0.05
_ZERO = 1e-4  # what is left of 0 after arithmetic [our choice]
WHITE = 255


def distinct(voxels: np.ndarray) -> dict[float, int]:
    """{value: number of voxels}, ascending, of an array of whole or real numbers."""
    counts: dict[float, int] = {}
    for part in voxels.T if voxels.ndim > 2 else (voxels,):
        if part.dtype == np.uint8:
            n = np.bincount(part.ravel(), minlength=256)
            values = np.flatnonzero(n)
            n = n[values]
        else:
            values, n = np.unique(_rounded(part), return_counts=True)
        for value, count in zip(values.tolist(), n.tolist()):
            counts[value] = counts.get(value, 0) + count
    if {*counts} == {0} and voxels.dtype.kind == 'f' and np.abs(voxels).max() > _ZERO:
        counts = dict(zip(*(a.tolist() for a in np.unique(voxels, return_counts=True))))
    return dict(sorted(counts.items()))


def only_white(values: Iterable[float]) -> bool:
    """Whether a mask holds 255, and nothing else but 0."""
    return {*values} in ({WHITE}, {0, WHITE})


def indices(voxels: np.ndarray, classes: Sequence[str], path: str, ignored: bool = False) -> np.ndarray:
    """uint8, the index of a class in each place of a mask; in one of two classes that is `only_white`, 255 is 1.

    ignored: 255 means "not known" and stays. BadData for any other value than the indices of `classes`.
    """
    counts = distinct(voxels)
    if len(classes) == 2 and not ignored and only_white(counts):
        return (voxels > 0).astype(np.uint8)
    check(counts, {**dict(enumerate(classes)), **({WHITE: 'not known'} if ignored else {})}, path)
    return (np.rint(voxels) if voxels.dtype.kind == 'f' else voxels).astype(np.uint8, copy=False)


def binary(voxels: np.ndarray, path: str) -> np.ndarray:
    """bool: where the mask of one structure is. BadData unless it holds 0 and 1, or 0 and 255."""
    return indices(voxels, ('background', 'inside'), path) > 0


def numbered(voxels: np.ndarray, path: str) -> np.ndarray:
    """bool: where a mask that numbers its structures from 1 has one. BadData unless it holds whole numbers from 0."""
    counts = distinct(voxels)
    if wrong := [value for value in counts if value < 0 or value != int(value)]:
        raise _unlisted(counts, wrong, 'whole numbers from 0', path)
    return _rounded(voxels) > 0


def check(counts: dict[float, int], declared: dict[int, str], path: str) -> None:
    """BadData for values of a mask, {value: number of voxels}, that are not declared, {value: its class}."""
    if wrong := [value for value in counts if value not in declared]:
        shown = ', '.join(f'{value} ({name})' for value, name in [*declared.items()][:8])
        raise _unlisted(counts, wrong, shown + (', ...' if len(declared) > 8 else ''), path)


def report_absent(source_name: str, labels: Sequence[str], present: set[int]) -> None:
    """Names, in the log, the classes that no mask of a source holds. present: indices of those that some mask holds."""
    if absent := [label for k, label in enumerate(labels) if k not in present]:
        log.info(f'{source_name}: no mask holds {", ".join(absent)}')


def _unlisted(counts: dict[float, int], wrong: Sequence[float], declared: str, path: str) -> errors.BadData:
    shown = ', '.join(f'{value:g} in {counts[value]:,}' for value in wrong[:4])
    more = f' and {len(wrong) - 4} values more' if len(wrong) > 4 else ''
    return checks.bad(path, f'of its {sum(counts.values()):,} voxels some hold values that no class has ({shown}'
                            f'{more}); declared are {declared}',
                      'Declare the class in the options of the source, or save the mask without these values')


def _rounded(voxels: np.ndarray) -> np.ndarray:
    if voxels.dtype.kind != 'f':
        return voxels
    whole = np.rint(voxels)
    return np.where(np.abs(voxels - whole) <= ROUNDING, whole, voxels)
