"""Random quarter turns and flips in the slice plane, for training.

A rotation by k 90 degrees (k of 0, 1, 2, 3), then a flip along a random one of the two in-plane axes: the augmentation
that CPKD's training script names [inferred from its name], each modality drawn on its own as there. joint=True draws
once for all. A turn and a flip together are always a mirror image, so with probability 1 - `prob` a volume stays as
it is [our choice]: else a network would train on mirrored patients alone and be tested on others.

Voxels are taken to be square in plane, x and y of volume.spacing equal: arrays carry no millimetres. With others a
quarter turn would stretch the anatomy, and nothing here can notice.
"""
import functools

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform
from jaxkd.data.transforms import volume

DEFAULTS = dict(
    keys=('ct', 't1', 't2'),  # keys of volumes that are turned
    joint=False,  # one draw for all keys; False: each its own
    prob=0.5,  # probability to be turned and flipped, 0 to 1
)


def build(hp: ConfigDict) -> Transform:
    if not 0 <= hp.prob <= 1:
        raise errors.ConfigError(f'rotate_flip.prob = {hp.prob:g} must be in [0,1].')
    keys = tuple(hp['keys'])  # hp.keys is the method
    return Transform(functools.partial(apply, **{k: hp[k] for k in DEFAULTS}), random=True, reads=keys, writes=keys)


def apply(record: Record, rng: np.random.Generator, keys: tuple[str, ...], joint: bool, prob: float) -> Record:
    """Arrays [D,H,W,c], H = W, under `keys` -> views of the same shapes."""
    out, drawn = dict(record), None
    for key in keys:
        voxels = volume.array(record, key, 'rotate_flip')
        if voxels.shape[1] != voxels.shape[2]:
            raise errors.ConfigError(f'rotate_flip: {key} is {voxels.shape[2]} x {voxels.shape[1]} voxels in plane. '
                                     'Quarter turns need a square: change crop.size or volume.size.')
        if drawn is None or not joint:
            drawn = rng.random() < prob, int(rng.integers(4)), int(rng.integers(2))
        out[key] = turn(voxels, *drawn[1:]) if drawn[0] else voxels
    return out


def turn(voxels: np.ndarray, k: int, axis: int) -> np.ndarray:
    """k quarter turns in the plane of H and W, then a flip of H (axis 0) or W (axis 1)."""
    return np.flip(np.rot90(voxels, k, (1, 2)), 1 + axis)
