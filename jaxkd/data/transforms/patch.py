"""Equal patches out of whole scans, for training: one place for all modalities and the label.

With probability `foreground` the patch is put around a random voxel of a class (label 1 to 254), which lies anywhere in
its middle half; else, and in a scan without such voxels, anywhere. A patch never reaches outside of a scan that is
large enough; a smaller one is padded, keys with 0 and the label with 255, which is ignored. The shares of foreground
[published: nnU-Net] and of the middle half [our choice] shift what is learned to small lesions.
"""
import functools

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform, TransformPlugin
from jaxkd.data import volume
from jaxkd.data.source import IGNORED
from jaxkd.data.transforms.volume import Size, checked_size

DEFAULTS = dict(
    keys=('nct', 'ctpa'),  # keys of scans that are cut, all at one place
    label='label',  # key of the label that is cut with them
    size=(128, 128, 64),  # voxels of a patch, x y z
    foreground=0.33,  # probability that a patch is put around a voxel of a class, 0 to 1
)


def build(hp: ConfigDict) -> Transform:
    if not 0 <= hp.foreground <= 1:
        raise errors.ConfigError(f'patch.foreground = {hp.foreground:g} must be a probability.')
    keys, size = tuple(hp['keys']), checked_size('patch', hp.size)
    return Transform(functools.partial(apply, keys=keys, label=hp.label, size=size, foreground=hp.foreground),
                     random=True, eval_mode=functools.partial(centre, keys=keys, label=hp.label, size=size),
                     reads=(*keys, hp.label, 'affine'), writes=(*keys, hp.label, 'affine'))


def restrict(hp: ConfigDict, inputs: tuple[str, ...]) -> ConfigDict:
    """The options for scans of these inputs alone."""
    return ConfigDict(hp.to_dict() | {'keys': tuple(key for key in hp['keys'] if key in inputs) or hp['keys']})


PLUGIN = TransformPlugin(restrict=restrict)


def apply(record: Record, rng: np.random.Generator, keys: tuple[str, ...], label: str, size: Size,
          foreground: float) -> Record:
    """Arrays [Z,Y,X,1] under `keys`, label [Z,Y,X] -> [size z, y, x(, 1)]; 'affine' follows."""
    shape = _shape(record, keys, label)
    spare = np.subtract(shape, size)
    draw, place = rng.random(2), rng.random(3)  # always as many: what follows does not depend on the label
    voxel = foreground_voxel(record[label], draw[1]) if draw[0] < foreground else None
    if voxel is None:
        start = np.minimum(spare, 0) + np.floor(place * (np.abs(spare) + 1))
    else:
        start = np.clip(voxel - np.floor((0.25 + 0.5 * place) * size), np.minimum(spare, 0), np.maximum(spare, 0))
    return _cut(record, keys, label, start.astype(int), size)


def centre(record: Record, keys: tuple[str, ...], label: str, size: Size) -> Record:
    """As `apply`, at the middle (where the spare voxels are odd, one more of them lies behind)."""
    return _cut(record, keys, label, np.subtract(_shape(record, keys, label), size) // 2, size)


def foreground_voxel(label: np.ndarray, u: float) -> np.ndarray | None:
    """Index [x,y,z] of the voxel that comes at the share u in [0,1) of all voxels of 1 to 254; None without any."""
    inside = label - np.uint8(1) < np.uint8(IGNORED - 1)  # 0 wraps around to 255
    count = np.count_nonzero(inside, axis=(1, 2)).cumsum()
    if not count[-1]:
        return None
    rank = int(u * count[-1])
    z = int(np.searchsorted(count, rank, 'right'))
    y, x = np.argwhere(inside[z])[rank - (count[z - 1] if z else 0)]
    return np.array([x, y, z])


def _cut(record: Record, keys: tuple[str, ...], label: str, start: np.ndarray, size: Size) -> Record:
    out = {**record, **{key: _part(record[key], start, size, 0) for key in keys},
           label: _part(record[label], start, size, IGNORED)}
    if 'affine' in record:
        out['affine'] = volume.moved(record['affine'].astype(np.float64), start).astype(np.float32)
    return out


def _part(array: np.ndarray, start: np.ndarray, size: Size, fill: int) -> np.ndarray:
    """A view where the patch is inside the array, else a padded copy; start and size in the order x, y, z."""
    first, shape = start[::-1], size[::-1]
    low, high = np.maximum(first, 0), np.minimum(first + shape, array.shape[:3])
    inside = array[tuple(map(slice, low, high))]
    if inside.shape[:3] == shape:
        return inside
    out = np.full((*shape, *array.shape[3:]), fill, array.dtype)
    out[tuple(map(slice, low - first, high - first))] = inside
    return out


def _shape(record: Record, keys: tuple[str, ...], label: str) -> tuple[int, ...]:
    """(x, y, z) that all arrays share; ConfigError otherwise."""
    shapes = {}
    for key in (*keys, label):
        array = record.get(key)
        if not isinstance(array, np.ndarray) or array.ndim != (3 if key == label else 4):
            raise errors.ConfigError(f'patch: "{key}" is no array {"[Z,Y,X]" if key == label else "[Z,Y,X,1]"} of a '
                                     f'case. List "scan" in data.transforms with "{key}" among its keys.')
        shapes[key] = array.shape[2::-1]
    if len({*shapes.values()}) > 1:
        raise errors.ConfigError(f'patch: scans differ in shape ({shapes}). Only those of one grid, as "scan" makes '
                                 'them, can be cut together.')
    return shapes[label]
