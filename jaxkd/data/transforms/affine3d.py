"""Random rotation, scale and shift in the slice plane, for training.

Up to 15 degrees as in CPKD's script; the rest is our choice. All slices move alike. Across slices nothing is
interpolated: they are thick, and `crop` shifts by whole ones. Linear; outside is 0, as `volume` pads. Each modality
draws its own; joint=True draws once for all, and for the label maps under `labels`, of which each voxel takes the
nearest one and outside is background. About 8 ms for 224 x 224 x 32 voxels, a tenth of the general 3-D routine,
because one table of four neighbours and weights serves every slice.

Voxels are taken to be square in plane, x and y of volume.spacing equal: arrays carry no millimetres. With others a
rotation would shear the anatomy, and nothing here can notice. 'affine' of a record stays that of the unturned grid.
"""
import functools
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform
from jaxkd.data.transforms import volume

DEFAULTS = dict(
    keys=('ct', 't1', 't2'),  # keys of volumes that move
    degrees=15.0,  # most degrees of rotation, either way, 0 to 180
    scale=0.1,  # size 1 - scale to 1 + scale, 0 to below 1
    shift=0.05,  # most shift along each axis, either way, as a share of the side, 0 to below 1
    joint=False,  # one draw for all keys; False: each its own
    labels=(),  # keys of label maps [D,H,W] that move with them, which need joint=True; (): none
    prob=1.0,  # probability that a case is changed at all
)


def build(hp: ConfigDict) -> Transform:
    if not (0 <= hp.degrees <= 180 and 0 <= hp.scale < 1 and 0 <= hp.shift < 1):
        raise errors.ConfigError('affine3d: degrees must be in [0,180], scale and shift in [0,1).')
    if not 0 <= hp.prob <= 1 or hp.labels and not hp.joint:
        raise errors.ConfigError('affine3d: prob must be a probability, and labels need joint=True: a label map can '
                                 'move with one draw only.')
    keys, labels = tuple(hp['keys']), tuple(hp.labels)  # hp.keys is the method
    return Transform(functools.partial(apply, **{k: hp[k] for k in DEFAULTS}), random=True,
                     reads=(*keys, *labels, 'present'), writes=(*keys, *labels))


def apply(record: Record, rng: np.random.Generator, keys: tuple[str, ...], degrees: float, scale: float, shift: float,
          joint: bool, labels: tuple[str, ...] = (), prob: float = 1.0) -> Record:
    """Arrays [D,H,W,1] under `keys`, [D,H,W] under `labels` -> the same shapes and types."""
    out: Record = dict(record)
    drawn: Any = None  # angle, size and shifts
    if prob < 1 and rng.random() >= prob:
        return out
    for key in keys:
        voxels = volume.array(record, key, 'affine3d')
        if drawn is None or not joint:
            drawn = rng.uniform(-1, 1, 4) * (np.deg2rad(degrees), scale, shift, shift) + (0, 1, 0, 0)
        if record.get('present', {}).get(key, 1):  # else it is 0 and stays 0
            out[key] = warp(voxels, *drawn)
    for key in labels:
        out[key] = warp_labels(record[key], *drawn)
    return out


def warp(voxels: np.ndarray, angle: float, size: float, right: float, down: float) -> np.ndarray:
    """[D,H,W,1] turned by `angle` (radians, x to y), enlarged by `size` about the middle, then shifted (in sides)."""
    depth, height, width, _ = voxels.shape
    index, weights = table(height, width, angle, size, right * width, down * height)
    # A border of one voxel of 0: a neighbour outside is read there.
    framed = np.zeros((height + 2, width + 2), voxels.dtype)
    neighbours = [framed.reshape(-1)[offset:] for offset in (0, 1, width + 2, width + 3)]
    out = np.empty(voxels.shape, voxels.dtype)
    values, term = np.empty((2, height, width), np.float32)  # small enough to stay in the cache
    for plane, target in zip(voxels[..., 0], out[..., 0]):
        framed[1:-1, 1:-1] = plane
        np.multiply(neighbours[0].take(index), weights[0], out=values)
        for neighbour, weight in zip(neighbours[1:], weights[1:]):
            values += np.multiply(neighbour.take(index), weight, out=term)
        target[...] = np.rint(values, out=values) if voxels.dtype.kind == 'i' else values
    return out


def warp_labels(labels: np.ndarray, angle: float, size: float, right: float, down: float) -> np.ndarray:
    """As `warp`, for a label map [D,H,W]: the nearest label, 0 outside."""
    _, height, width = labels.shape
    index, weights = table(height, width, angle, size, right * width, down * height)
    index = index + np.array((0, 1, width + 2, width + 3))[weights.argmax(axis=0)]  # the largest weight is the nearest
    framed = np.zeros((height + 2, width + 2), labels.dtype)
    out = np.empty(labels.shape, labels.dtype)
    for plane, target in zip(labels, out):
        framed[1:-1, 1:-1] = plane
        framed.reshape(-1).take(index, out=target)
    return out


def table(height: int, width: int, angle: float, size: float, right: float,
          down: float) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours (y,x), (y,x+1), (y+1,x), (y+1,x+1): index [H,W] into the framed plane, weights float32 [4,H,W]."""
    c, s = np.cos(angle) / size, np.sin(angle) / size
    y = np.arange(height)[:, None] - (height - 1) / 2 - down
    x = np.arange(width)[None] - (width - 1) / 2 - right
    # What comes to (x, y) was at the inverse rotation of it. + 1: the frame.
    from_x = np.clip(c * x + s * y + (width - 1) / 2 + 1, 0, width + 1)
    from_y = np.clip(c * y - s * x + (height - 1) / 2 + 1, 0, height + 1)
    left, top = np.minimum(from_x.astype(np.int64), width), np.minimum(from_y.astype(np.int64), height)
    u, v = (from_x - left).astype(np.float32), (from_y - top).astype(np.float32)
    return top * (width + 2) + left, np.stack([(1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u])
