"""A smaller box out of the larger one that `volume` made: anywhere in training, the centre in evaluation.

Each modality is cut at a place of its own, as in the published code of CPKD (its volumes are not registered to each
other); joint=True cuts all at one place, which is what aligned modalities need.
"""
import functools
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform, TransformPlugin
from jaxkd.data.transforms import volume
from jaxkd.data.transforms.volume import Size, checked_size

DEFAULTS = dict(
    keys=('ct', 't1', 't2'),  # keys of volumes that are cut
    size=(224, 224, 32),  # voxels of the result, x y z
    joint=False,  # one place for all keys; False: each its own
)


def build(hp: ConfigDict) -> Transform:
    keys, size = tuple(hp['keys']), checked_size('crop', hp.size)  # hp.keys is the method
    return Transform(functools.partial(apply, keys=keys, size=size, joint=hp.joint), random=True,
                     eval_mode=functools.partial(centre, keys=keys, size=size), reads=keys, writes=keys)


def restrict(hp: ConfigDict, inputs: tuple[str, ...]) -> ConfigDict:
    """The options for volumes of these inputs alone."""
    return ConfigDict(hp.to_dict() | {'keys': tuple(key for key in hp['keys'] if key in inputs) or hp['keys']})


PLUGIN = TransformPlugin(restrict=restrict)


def apply(record: Record, rng: np.random.Generator, keys: tuple[str, ...], size: Size, joint: bool) -> Record:
    """Arrays [D,H,W,c] under `keys` -> views [size z, y, x, c] at uniformly drawn places."""
    out, place = dict(record), None
    for key in keys:
        spare = _spare(record, key, size)
        if place is None or not joint:
            place = rng.random(3)
        # floor(u (n + 1)) is uniform over 0..n, and the same place for volumes of one shape
        out[key] = cut(record[key], [int(u * (n + 1)) for u, n in zip(place, spare)], size)
    return out


def centre(record: Record, keys: tuple[str, ...], size: Size) -> Record:
    """As `apply`, at the middle (where the spare voxels are odd, one more of them lies behind)."""
    return {**record, **{key: cut(record[key], [n // 2 for n in _spare(record, key, size)], size) for key in keys}}


def cut(array: np.ndarray, start: Sequence[int], size: Size) -> np.ndarray:
    """A view; start and size in the order x, y, z."""
    (x, y, z), (w, h, d) = start, size
    return array[z:z + d, y:y + h, x:x + w]


def _spare(record: Record, key: str, size: Size) -> list[int]:
    """Number of voxels (x, y, z) in excess of `size`."""
    depth, height, width, _ = volume.array(record, key, 'crop').shape
    spare = np.subtract((width, height, depth), size)
    if spare.min() < 0:
        raise errors.ConfigError(f'crop.size = {size} (x, y, z) is larger than {key}, which is '
                                 f'{(width, height, depth)}. Make it smaller, or volume.size or volume.margin larger.')
    return spare.tolist()
