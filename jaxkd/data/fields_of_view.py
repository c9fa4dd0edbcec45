"""Whether a mask or a further scan lies where the scan is that it belongs to: the boxes of both grids, in the world.

A file that was saved in another frame of reference (a corner at 0, a CT of another visit, RAS for LPS) would be
resampled to nothing but background. Boxes without a common place are refused; where a mask reaches out of its scan, the
log says how much of what is labelled the scan does not show.
"""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxkd import errors
from jaxkd.data.formats import checks
from jaxkd.data.volume import Volume, world

_EDGE = 1e-6  # voxels of rounding


class Outside(NamedTuple):
    """What of a mask lies outside of its scan."""

    path: str  # of the mask
    outside: int  # labelled voxels there
    labelled: int  # in all


def check(part: Volume, part_name: str, scan: Volume, scan_name: str) -> None:
    """BadData where no place of the world is in the boxes of both: names are of files, or of a case and its keys."""
    if _apart(part, scan) or _apart(scan, part):
        raise errors.BadData(
            f'{part_name} lies wholly outside of {scan_name}: it reaches over {_extent(part)}, the other over '
            f'{_extent(scan)} (mm, RAS). One of them is in another frame of reference: save the mask on the grid of '
            'its scan or correct the affine of its header (or of its registration), or leave the file out.')


def outside(mask: Volume, path: str, scan: Volume) -> Outside:
    """Counts the labelled voxels, those that are not 0, whose middles lie outside of the box of the scan."""
    across = np.linalg.inv(scan.affine) @ mask.affine
    limit = np.array(scan.voxels.shape) - 0.5 + _EDGE
    low, high = _box(across, mask.voxels.shape)
    if (low >= -0.5 - _EDGE).all() and (high <= limit).all():
        return Outside(path, 0, int(np.count_nonzero(mask.voxels)))
    count = labelled = 0
    for x, plane in enumerate(mask.voxels):
        places = world(across, np.insert(np.argwhere(plane), 0, x, axis=1))
        count += int(((places < -0.5 - _EDGE) | (places > limit)).any(axis=1).sum())
        labelled += len(places)
    return Outside(path, count, labelled)


def describe(counts: Sequence[Outside]) -> str:
    """A line for the log about masks that reach out of their scans; '' where none does."""
    cut = [count for count in counts if count.outside]
    if not cut:
        return ''
    lost, labelled, worst = (sum(c.outside for c in cut), sum(c.labelled for c in cut),
                             max(cut, key=lambda c: c.outside / c.labelled))
    return (f'{len(cut)} of {len(counts)} masks reach out of their scans: {lost:,} of their {labelled:,} labelled '
            f'voxels ({100 * lost / labelled:.1f} %) are where the scan shows nothing, most of {worst.path} '
            f'({100 * worst.outside / worst.labelled:.1f} %)')


def _apart(a: Volume, b: Volume) -> bool:
    """Whether a face of the box of b separates it from that of a; boxes reach to the outer faces of their voxels."""
    low, high = _box(np.linalg.inv(b.affine) @ a.affine, a.voxels.shape)
    return bool(((high <= -0.5 + _EDGE) | (low >= np.array(b.voxels.shape) - 0.5 - _EDGE)).any())


def _box(affine: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) [3] of the outer faces of a grid in the coordinates that `affine` leads to."""
    middles, half = checks.corners(affine, shape), np.abs(affine[:3, :3]).sum(axis=1) / 2
    return middles.min(axis=0) - half, middles.max(axis=0) + half


def _extent(grid: Volume) -> str:
    low, high = _box(grid.affine, grid.voxels.shape)
    return ', '.join(f'{axis} {round(a)} to {round(b)}' for axis, a, b in zip('xyz', low.tolist(), high.tolist()))
