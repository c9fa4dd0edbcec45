"""Signed distance to the boundary of each foreground class, for the boundary loss and for networks that regress it.

    phi_k(u) = distance from the middle of pixel u to the boundary of class k, negative inside, over the diagonal of the
    array

so that it lies within (-1, 1) whatever is drawn. The boundary runs half-way between the pixels on either side of it,
half of the shortest edge where `sampling` differs [our choice; others let it run through the outermost pixels of the
class]. A class that is absent, or fills everything, has no boundary: 0 everywhere [our choice], so that nothing is
asked of it. Pixels to be ignored (255) are taken to be outside of every class; the loss leaves them out.

It belongs into data.augment, after all that moves the label: the distances are those of the label as it is learned
from. Nothing in it is random; evaluation, which has no augmentation, gets the same by its eval_mode. A label of 256 x
256 with three classes takes about 10 ms, a whole scan many seconds: in 3D cut patches first.
"""
import functools
import math

import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from jaxkd import errors
from jaxkd.contracts import Record, Transform

DEFAULTS = dict(
    classes=4,  # number of classes, background included
    key='label',  # key of the label in a record
    out='distance',  # key of the distances in a batch
    sampling=(),  # lengths of a pixel's edges along the axes of the label, in any one unit; (): all 1
)


def build(hp: ConfigDict) -> Transform:
    """Of the random ones, since it comes behind them; evaluation gets the same."""
    if hp.classes < 2:
        raise errors.ConfigError(f'distance.classes = {hp.classes} must be the number of classes, background included.')
    if len(hp.sampling) not in (0, 2, 3) or any(not s > 0 for s in hp.sampling):
        raise errors.ConfigError(f'distance.sampling = {tuple(hp.sampling)} must be empty, or a positive number for '
                                 'each axis.')
    distances = functools.partial(add, classes=hp.classes, key=hp.key, out=hp.out, sampling=tuple(hp.sampling))
    return Transform(distances, random=True, eval_mode=distances, reads=(hp.key,), writes=(hp.out,))


def add(record: Record, rng: np.random.Generator | None = None, *, classes: int, key: str, out: str,
        sampling: tuple[float, ...]) -> Record:
    """Adds float32 [*spatial, K-1] of the label uint8 [H,W] or [D,H,W] under `key`."""
    label = record.get(key)
    if not isinstance(label, np.ndarray) or label.ndim not in (2, 3) or label.dtype.kind not in 'iu':
        raise errors.ConfigError(f'distance: "{key}" is no label of each pixel, [H,W] or [D,H,W]. Choose a source of '
                                 'segmentations.')
    if sampling and len(sampling) != label.ndim:
        raise errors.ConfigError(f'distance.sampling = {sampling} has {len(sampling)} numbers, "{key}" {label.ndim} '
                                 'axes.')
    return {**record, out: np.stack([signed(label == k, sampling) for k in range(1, classes)], axis=-1)}


def signed(inside: np.ndarray, sampling: tuple[float, ...] = ()) -> np.ndarray:
    """float32: the signed distance of one class, a bool array, over its diagonal."""
    sides = np.array(sampling or (1.0,) * inside.ndim)
    if not inside.any() or inside.all():
        return np.zeros(inside.shape, np.float32)
    outer = ndimage.distance_transform_edt(~inside, sampling=sides)  # to the middle of the nearest pixel of the class
    # From within, the nearest pixel outside is never further than next to the box around the class.
    box = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in ndimage.find_objects(inside.astype(np.uint8))[0])
    outer[box] -= ndimage.distance_transform_edt(inside[box], sampling=sides)
    outer -= np.where(inside, -0.5, 0.5) * sides.min()
    return (outer / math.hypot(*(sides * inside.shape))).astype(np.float32)
