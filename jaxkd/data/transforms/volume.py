"""Volumes to network input: every modality on one small grid of its own, in fixed point.

The grid is axis-aligned (RAS), of `size` + `margin` voxels of `spacing` mm, centred on the lesion in that modality,
record['centre'][modality]. Without one of its own
    a modality in `hu` (CT) is centred on its own middle: where a lesion was drawn in MRI says nothing about the crop
    of CT, which a student must find with CT alone;
    any other is centred where the first modality of `hu` is, and where a case has neither, on its own middle.
The margin is what `crop` draws from in training. Tensors are [D,H,W,1] = [z,y,x,1], int16, and stand for value / FIXED
(jaxkd/data/volume.py): half the memory of float32, and the networks divide on the device. Where `spacing` is that of
the scan (0 says so), its axes are those of the world and `size` is its shape, voxels are taken as they are: nothing is
interpolated.

Values [our choice, as the specification of CPKD proposes]
    modalities in `hu`  clipped to `window`, then [0,1]; outside of the scan 0
    those in `minmax`   from the least voxel of the crop, -0.5, to the greatest, 0.5; outside of the scan is as voxels
                        of 0 are
    others              clipped to `percentiles` of the crop's non-zero voxels, less their mean, by their standard
                        deviation, limited to +-7.9; voxels of 0 and outside of the scan stay 0, which is the mean of
                        what is there. The crop, not the whole scan, so that how much was scanned changes nothing.
"""
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform, TransformPlugin
from jaxkd.data import fields_of_view, volume

DEFAULTS = dict(
    keys=('ct', 't1', 't2'),  # keys of modalities
    hu=('ct',),  # keys in Hounsfield units; the first gives the centre to others that have none
    minmax=(),  # keys of the others that are brought to -0.5 .. 0.5; the rest is standardised
    spacing=(0.8, 0.8, 3.0),  # mm of a voxel, x y z; 0.0: that of the scan
    size=(224, 224, 32),  # voxels of the grid without its margin, x y z
    margin=(0, 0, 0),  # voxels more, x y z, for `crop` to draw from
    window=(-160.0, 240.0),  # HU (low, high) that become 0 and 1, of the keys in `hu`
    percentiles=(0.5, 99.5),  # standardised keys: of non-zero voxels of the crop, those that values are clipped to
)

_LIMIT = 7.9  # standard deviations; 8 would not fit in 16 bits

Sides = tuple[float, float, float]  # mm of a voxel, x, y, z
Size = tuple[int, int, int]  # voxels x, y, z


def build(hp: ConfigDict) -> Transform:
    keys, sides = tuple(hp['keys']), (hp.spacing, hp.size, hp.margin)  # hp.keys is the method
    if not keys or len({*keys}) < len(keys):
        raise errors.ConfigError(f'volume.keys = {keys} must name each modality once.')
    if strange := {*hp.hu} - {*keys}:
        raise errors.ConfigError(f'volume.hu: "{min(strange)}" is not among keys.{errors.nearest(min(strange), keys)}')
    if strange := {*hp.minmax} - ({*keys} - {*hp.hu}):
        raise errors.ConfigError(f'volume.minmax: "{min(strange)}" must be among keys and not in hu.')
    if any(len(s) != 3 for s in sides) or min(hp.spacing) < 0 or min(hp.size) < 1 or min(hp.margin) < 0 or any(
            type(n) is not int for n in (*hp.size, *hp.margin)):
        raise errors.ConfigError(f'volume: spacing = {hp.spacing} must be three numbers of mm, none below 0, size = '
                                 f'{hp.size} and margin = {hp.margin} three whole numbers of voxels, in the order '
                                 'x, y, z.')
    for name, (low, high) in (('window', hp.window), ('percentiles', hp.percentiles)):
        if not low < high or name == 'percentiles' and not 0 <= low < high <= 100:
            raise errors.ConfigError(f'volume.{name} = ({low:g}, {high:g}) must rise'
                                     f'{" within 0 to 100" if name == "percentiles" else ""}.')
    shape = tuple(a + b for a, b in zip(hp.size, hp.margin))
    grid: dict[str, Any] = dict(keys=keys, hu=tuple(hp.hu), spacing=tuple(hp.spacing), shape=shape)
    resample = functools.partial(apply, **grid, window=tuple(hp.window), percentiles=tuple(hp.percentiles),
                                 minmax=tuple(hp.minmax))
    return Transform(resample, inverse=functools.partial(inverse, **grid), reads=(*keys, 'case', 'centre', 'field'),
                     writes=(*keys, 'present'), takes='volume')


def apply(record: Record, keys: tuple[str, ...], hu: tuple[str, ...], spacing: Sides, shape: tuple[int, int, int],
          window: tuple[float, float], percentiles: tuple[float, float], minmax: tuple[str, ...] = ()) -> Record:
    """Volumes under `keys` -> int16 [Z,Y,X,1]; adds present[key], float32 1 or 0. An absent modality is all 0.

    Takes 'case', 'centre' and 'field' off the record. BadData for a voxel that is not finite, ConfigError for a grid
    that is larger than 'field', (x, y, z) mm: as far as the outermost voxels of a crop may lie apart, where a source
    says so because a larger crop would tell how far each patient was scanned.
    """
    case = record.get('case', '')
    out = {k: v for k, v in record.items() if k not in ('case', 'centre', 'field')}
    present = dict(out.get('present', {}))
    for key in keys:
        scan = record.get(key)
        present[key] = np.float32(scan is not None)
        if scan is None:
            out[key] = np.zeros((*shape[::-1], 1), np.int16)
            continue
        sides = _sides(scan, spacing)
        _check_field(case, record.get('field', ()), sides, shape)
        grid = volume.grid(centre(key, record, hu), sides, shape)
        crop = volume.Volume(np.broadcast_to(np.uint8(0), shape), grid)
        fields_of_view.check(crop, f'Case {case}: the crop of {key} around its mask, or that of '
                             f'{hu[0] if hu else key},', scan, 'the scan')
        voxels = volume.resample(scan, grid, shape, order=1, fill=window[0] if key in hu else 0.0)
        if not np.isfinite(voxels).all():
            raise errors.BadData(f'Case {case}: {key} has voxels that are not finite. Save it again without NaN.')
        values = (unit(voxels, *window) if key in hu else extremes(voxels) if key in minmax else
                  standard(voxels, *percentiles))
        out[key] = np.ascontiguousarray(np.rint(values * volume.FIXED).astype(np.int16).T)[..., None]
    return {**out, 'present': present}


def inverse(before: Record, after: Record, keys: tuple[str, ...], hu: tuple[str, ...], spacing: Sides,
            shape: tuple[int, int, int]) -> Callable[[np.ndarray], np.ndarray]:
    """The function that brings values [Z,Y,X] back to the grid [X,Y,Z] of the first of `keys` that the case has."""
    key = next(key for key in keys if before.get(key) is not None)
    affine = volume.grid(centre(key, before, hu), _sides(before[key], spacing), shape)
    return functools.partial(volume.to_grid, affine=affine, like=volume.without_voxels(before[key]))


def restrict(hp: ConfigDict, inputs: tuple[str, ...]) -> ConfigDict:
    """The options for volumes of these inputs alone."""
    kept = {key: tuple(k for k in hp[key] if k in inputs) for key in ('keys', 'hu', 'minmax')}
    return ConfigDict(hp.to_dict() | (kept if kept['keys'] else {}))


def describe(hp: ConfigDict, source: Any, indices: Sequence[int]) -> str:
    """A warning where the values of modalities in `hu` are no Hounsfield units; '' otherwise."""
    return no_hounsfield_units({key: tuple(hp.window) for key in hp.hu}, source, indices)


PLUGIN = TransformPlugin(restrict=restrict, describe=describe)


def no_hounsfield_units(windows: Mapping[str, Sequence[float]], source: Any, indices: Sequence[int]) -> str:
    """A warning where CT, {key: (low, high) HU}, has no value below 0 in the first and the last case; '' otherwise.

    Fat is -100 and air -1000 [our choice: of a whole patient, and of most crops, some of it is there]. CT that was
    stored without its offset, or scaled to [0, 1], would be clipped to one value by its window.
    """
    records = [source[i] for i in dict.fromkeys([*indices[:1], *indices[-1:]])] if windows else []
    warnings = []
    for key, (low, high) in windows.items():
        scans = [record[key].voxels for record in records if record.get(key) is not None]
        if scans and (least := min(float(voxels.min()) for voxels in scans)) >= 0:
            most = max(float(voxels.max()) for voxels in scans)
            warnings.append(f'{key} has values from {least:g} to {most:g} in {len(scans)} cases that were looked at, '
                            f'none below 0, and its window is {low:g} to {high:g} HU: fat is -100 HU, air -1000. If an '
                            'offset or a scale was lost, correct the files, or the window')
    return '; '.join(warnings)


def _sides(scan: volume.Volume, spacing: Sides) -> Sides:
    """(x, y, z) mm of a voxel; a spacing of 0 is that of the scan."""
    x, y, z = (side or scan_side for side, scan_side in zip(spacing, volume.spacing(scan.affine).tolist()))
    return x, y, z


def centre(key: str, record: Record, hu: tuple[str, ...]) -> np.ndarray:
    """(x, y, z) mm that the crop of a modality is centred on (see above): that of CT never depends on another scan."""
    centres = record.get('centre', {})
    if key not in centres and key not in hu and any(k in centres or record.get(k) is not None for k in hu[:1]):
        key = hu[0]
    return centres[key] if key in centres else volume.middle(record[key])


def checked_size(name: str, size: Sequence[int]) -> Size:
    """The option `size` of a transform, voxels x, y, z. ConfigError unless it is three positive integers."""
    if len(size) != 3 or any(type(n) is not int or n < 1 for n in size):
        raise errors.ConfigError(f'{name}.size = {size} must be three positive numbers of voxels, x, y, z.')
    return size[0], size[1], size[2]


def unit(voxels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Clipped to [low, high], then [0,1]."""
    return (np.clip(voxels, low, high) - np.float32(low)) / np.float32(high - low)


def extremes(voxels: np.ndarray) -> np.ndarray:
    """From the least, -0.5, to the greatest, 0.5; 0 where all are alike."""
    low, high = voxels.min(), voxels.max()
    return (voxels - low) / (high - low) - np.float32(0.5) if high > low else np.zeros(voxels.shape, np.float32)


def standard(voxels: np.ndarray, low: float, high: float) -> np.ndarray:
    """The non-zero voxels clipped to their percentiles, then of mean 0 and deviation 1; zeros stay zero."""
    inside = voxels != 0
    if not inside.any():
        return np.zeros(voxels.shape, np.float32)
    values = voxels[inside].astype(np.float32)
    values = np.clip(values, *np.percentile(values, (low, high)).astype(np.float32))
    mean, deviation = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    out = np.zeros(voxels.shape, np.float32)
    if deviation > 1e-6 * abs(mean):  # else flat: nothing to see
        out[inside] = np.clip((values - mean) / deviation, -_LIMIT, _LIMIT)
    return out


def array(record: Record, key: str, name: str) -> np.ndarray:
    """record[key] when it is a [D,H,W,c] array; else a ConfigError that names the transform."""
    voxels = record.get(key)
    if not isinstance(voxels, np.ndarray) or voxels.ndim != 4:
        raise errors.ConfigError(f'{name}.keys: "{key}" is no array [D,H,W,1] of a case. List "volume" in '
                                 f'data.transforms and "{key}" in its keys.')
    return voxels


def _check_field(case: str, field: Sequence[float], spacing: Sides, shape: Size) -> None:
    reach = [s * (n - 1) for s, n in zip(spacing, shape)]
    if any(r > f + 1e-6 for r, f in zip(reach, field)):
        limit = tuple(int(f / s + 1e-6) + 1 for f, s in zip(field, spacing))
        raise errors.ConfigError(f'Case {case}: a crop of {tuple(shape)} voxels of {tuple(spacing)} mm reaches outside '
                                 'of what was scanned of some patient, and the padding would tell the size of the '
                                 f'lesion. The most are volume.size + volume.margin = {limit} at this spacing; or let '
                                 'the source allow it.')
