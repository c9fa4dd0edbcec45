"""Whole scans to network input: all modalities and the label on one grid, that of the first key, in fixed point.

The first key is the one that is deployed (the non-contrast CT): its scan alone decides the grid, so that nothing of
privileged scans or of the label can reach where the student looks. The grid is axis-aligned (RAS), of `spacing` mm, as
wide as that scan. Where nothing has to be interpolated voxels are taken exactly; everything else is resampled onto it,
scans linearly, the label to the nearest voxel. Cases may differ in shape; `patch` cuts equal ones for training. Scans
must be registered: what is at one place of the world must be the same anatomy.

    <key>    int16 [Z,Y,X,1], value * FIXED (jaxkd/data/volume.py); an absent one is all 0, and present[key] is 0
    label    uint8 [Z,Y,X], 255 (ignored) outside of its own scan and of the first key's; all 255 without one
    affine   float32 [4,4], index (x,y,z) of this grid -> world mm

Values [our choice]: a key with a window is CT, clipped to it, then [0,1]; outside of the scan 0. A key whose window is
() is standardised as `volume` does (mean 0 and deviation 1 of what is not 0).
Beside the record and the result this takes some slices, a key without a window five times its voxels.

lungs=True crops to the box of the lungs plus `margin` voxels. Lungs [our choice]: voxels of the first key below -500
HU, looked at about every 2 mm; in each slice what is joined to air at the scan's edge is outside of the body; of what
is left, the pieces of at least a tenth of the largest. Less than 2 % of the scan are no lungs (the edge cuts through
them, or it shows something else): then the scan stays whole.
"""
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform, TransformPlugin
from jaxkd.data import fields_of_view, volume
from jaxkd.data.source import IGNORED
from jaxkd.data.transforms.volume import no_hounsfield_units, standard, unit

DEFAULTS = dict(
    keys=('nct', 'ctpa'),  # keys of scans; the first gives the grid, and every case must have it
    label='label',  # key of the label map
    spacing=(0.8, 0.8, 1.5),  # mm of a voxel, x y z; 0.0: that of the first key
    windows=((-100.0, 200.0), (-200.0, 700.0)),  # HU (low, high) of each key, which become 0 and 1; () for one that is
    # no CT
    percentiles=(0.5, 99.5),  # keys without a window: of non-zero voxels, those that values are clipped to
    lungs=False,  # crop to the box of the lungs
    margin=10,  # lungs=True: voxels kept around the lungs, each side
    size=(0, 0, 0),  # voxels x y z, cropped or padded about the middle; 0 leaves an axis. A prepared store needs all
    # three
)

_AIR, _STEP, _PIECE, _LUNGS = -500, 2.0, 0.1, 0.02  # HU, mm, share of the largest piece, share of the scan


def build(hp: ConfigDict) -> Transform:
    keys, windows = tuple(hp['keys']), tuple(map(tuple, hp.windows))  # hp.keys is the method
    if not keys or len({*keys, hp.label}) <= len(keys) or len(windows) != len(keys):
        raise errors.ConfigError(f'scan: keys = {keys} must name each modality once, none of them "{hp.label}", and '
                                 f'windows hold one (low, high) or () for each; there are {len(windows)}.')
    if bad := [w for w in windows if w and not (len(w) == 2 and w[0] < w[1])]:
        raise errors.ConfigError(f'scan.windows: {bad[0]} must rise from low to high, or be ().')
    counts = all(type(n) is int and n >= 0 for n in (*hp.size, hp.margin))
    if len(hp.spacing) != 3 or min(hp.spacing) < 0 or len(hp.size) != 3 or not counts:
        raise errors.ConfigError(f'scan: spacing = {hp.spacing} must be three numbers of mm, size = {hp.size} three '
                                 f'and margin = {hp.margin} one whole number of voxels, none below 0, in the order x, '
                                 'y, z.')
    if not 0 <= hp.percentiles[0] < hp.percentiles[1] <= 100:
        raise errors.ConfigError(f'scan.percentiles = {hp.percentiles} must rise within 0 to 100.')
    return Transform(functools.partial(apply, **{k: hp[k] for k in DEFAULTS}), reads=(*keys, hp.label, 'case'),
                     inverse=functools.partial(inverse, keys=keys, label=hp.label),
                     writes=(*keys, hp.label, 'affine', 'present'), takes='volume')


def apply(record: Record, keys: tuple[str, ...], label: str, spacing: tuple[float, float, float],
          windows: tuple[tuple[float, ...], ...], percentiles: tuple[float, float], lungs: bool, margin: int,
          size: tuple[int, int, int]) -> Record:
    """Volumes under `keys` and `label` -> arrays on one grid, and 'affine' and 'present' (see above).

    Takes 'case' and all other Volumes off the record. BadData names the case that lacks the first key or has voxels
    that are not finite, or labels that are not whole numbers from 0 to 255.
    """
    location = f'Case {record.get("case", "")}: '
    if (first := record.get(keys[0])) is None:
        raise errors.BadData(f'{location}it has no {keys[0]}, whose grid all scans are brought to. Remove the case, or '
                             'put another key first in scan.keys.')
    for key in (*keys[1:], label):
        if (scan := record.get(key)) is not None:
            fields_of_view.check(scan, location + key, first, f'its {keys[0]}')
    affine, full = grid(first, spacing)
    start, shape = _box(first, affine, full, margin) if lungs else ((0, 0, 0), full)
    start = [a + (n - s) // 2 if s else a for a, n, s in zip(start, shape, size)]
    shape = tuple(s or n for n, s in zip(shape, size))
    affine = volume.moved(affine, start)
    out = {k: v for k, v in record.items() if k not in ('case', 'centre', 'field') and not isinstance(v, volume.Volume)}
    present = dict(out.get('present', {}))
    for key, window in zip(keys, windows):
        scan = record.get(key)
        present[key] = np.float32(scan is not None)
        out[key] = (np.zeros((*shape[::-1], 1), np.int16) if scan is None else
                    _values(scan, affine, shape, window, percentiles, location + key))
    out[label] = np.full(shape[::-1], IGNORED, np.uint8)
    if (drawn := record.get(label)) is not None:
        _label(drawn, affine, shape, out[label], location + label)
        for axis, (a, n) in enumerate(zip(start, full)):  # where the first key shows nothing, nothing can be asked
            side = np.moveaxis(out[label], 2 - axis, 0)
            side[:max(0, -a)] = side[max(0, n - a):] = IGNORED
    return {**out, 'affine': affine.astype(np.float32), 'present': present}


def inverse(before: Record, after: Record, keys: tuple[str, ...], label: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function that brings values [Z,Y,X] back to the grid [X,Y,Z] of the label, else of the first key."""
    like = before[keys[0]] if before.get(label) is None else before[label]
    return functools.partial(volume.to_grid, affine=np.asarray(after['affine'], np.float64),
                             like=volume.without_voxels(like))


def restrict(hp: ConfigDict, inputs: tuple[str, ...]) -> ConfigDict:
    """The options for scans of these inputs alone: no room for what only training had."""
    rows = [i for i, key in enumerate(hp['keys']) if key in inputs] or range(len(hp['keys']))
    return ConfigDict(hp.to_dict() | {key: tuple(hp[key][i] for i in rows) for key in ('keys', 'windows')})


def describe(hp: ConfigDict, source: Any, indices: Sequence[int]) -> str:
    """A warning where the values of keys with a window are no Hounsfield units; '' otherwise."""
    return no_hounsfield_units({key: window for key, window in zip(hp['keys'], hp.windows) if window}, source, indices)


PLUGIN = TransformPlugin(restrict=restrict, describe=describe)


def grid(scan: volume.Volume, spacing: tuple[float, float, float]) -> tuple[np.ndarray, tuple[int, int, int]]:
    """(affine, shape) along the world's axes, as wide as a Volume; a spacing of 0 is the Volume's own."""
    affine, shape = volume.upright(scan, np.where(np.array(spacing) > 0, spacing, volume.spacing(scan.affine)))
    if math.prod(shape) > volume.MAX_VOXELS:
        raise errors.ConfigError(f'scan.spacing = {spacing} makes {" x ".join(map(str, shape))} voxels of one scan. '
                                 'Make it larger.')
    return affine, shape


def lungs_of(scan: volume.Volume) -> tuple[np.ndarray, np.ndarray] | None:
    """(low, high) voxel indices [3] of the box of the lungs in a CT, both inside of it; None where there are none."""
    step = np.maximum(1, _STEP / volume.spacing(scan.affine)).astype(int)
    air = scan.voxels[tuple(slice(None, None, s) for s in step)] < _AIR
    from scipy import ndimage  # scans that are not cut to their lungs do not need it
    plane = ndimage.generate_binary_structure(3, 1)
    plane[1, 1, [0, 2]] = False  # nothing is joined across slices
    pieces, _ = ndimage.label(air, plane)
    edge = np.concatenate([side.ravel() for side in (pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1])])
    inside = np.bincount(pieces.ravel()) > 0
    inside[edge], inside[0] = False, False
    pieces, count = ndimage.label(inside[pieces])
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    large = np.flatnonzero(sizes >= _PIECE * sizes.max(initial=0))
    if sizes[large].sum() < max(1, _LUNGS * air.size):
        return None
    boxes = ndimage.find_objects(pieces)
    low = np.min([[s.start for s in boxes[i]] for i in large], axis=0)
    high = np.max([[s.stop for s in boxes[i]] for i in large], axis=0)  # one step further, over the skipped voxels
    return np.maximum((low - 1) * step, 0), np.minimum(high * step, np.array(scan.voxels.shape) - 1)


def _box(scan: volume.Volume, affine: np.ndarray, shape: tuple[int, int, int], margin: int
         ) -> tuple[Sequence[int], tuple[int, ...]]:
    """(start, shape) of the lungs and their margin within a grid; all of it where there are none."""
    if (lungs := lungs_of(scan)) is None:
        return (0, 0, 0), shape
    corners = volume.index(affine, volume.world(scan.affine, np.array(list(itertools.product(*zip(*lungs))))))
    start = np.maximum(np.floor(corners.min(axis=0) + volume.SAME).astype(int) - margin, 0)
    stop = np.minimum(np.ceil(corners.max(axis=0) - volume.SAME).astype(int) + 1 + margin, shape)
    return start.tolist(), tuple((stop - start).tolist())


def _values(scan: volume.Volume, affine: np.ndarray, shape: tuple[int, ...], window: tuple[float, ...],
            percentiles: tuple[float, float], location: str) -> np.ndarray:
    """int16 [Z,Y,X,1]."""
    def finite() -> Iterator[tuple[slice, np.ndarray]]:
        for part, voxels in volume.slabs(scan, affine, shape, 1, window[0] if window else 0.0):
            if not np.isfinite(voxels).all():
                raise errors.BadData(f'{location} has voxels that are not finite. Save it again without NaN.')
            yield part, unit(voxels, *window) if window else voxels
    parts: Iterable[tuple[slice, np.ndarray]] = finite()
    if not window:
        parts = [(slice(None), standard(np.concatenate([v for _, v in parts], axis=2), *percentiles))]
    out = np.empty((*shape[::-1], 1), np.int16)
    for part, values in parts:
        out[part, ..., 0] = np.rint(values * np.float32(volume.FIXED)).T
    return out


def _label(scan: volume.Volume, affine: np.ndarray, shape: tuple[int, ...], out: np.ndarray, location: str) -> None:
    """Fills out [Z,Y,X]."""
    for part, voxels in volume.slabs(scan, affine, shape, 0, float(IGNORED)):
        if not (np.equal(voxels, np.rint(voxels)) & (voxels >= 0) & (voxels <= IGNORED)).all():  # also False for nan
            raise errors.BadData(f'{location} has values that are not whole numbers from 0 to 255. Save the index of a '
                                 'class in each voxel.')
        out[part] = voxels.T
