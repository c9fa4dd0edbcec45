"""Random rotation, scale and shift, for training [our choice: +-10 degrees, 0.9 to 1.1, +-5 %; never a flip].

One draw for all `keys`, so that aligned images stay aligned. Bilinear. Outside is black, as beyond a
collimator: a reflected border would show false anatomy. Boxes do not change: only evaluation reads
them, where nothing is random.

`labels` move by the same draw, by the nearest pixel, and outside is 0, background. `prob` is the probability of the
rotation, of the scale and of the shift, drawn independently. SIKD [published]: degrees=180.0, scale=0.0, shift=0.125,
prob=0.5, labels=('label',).
"""
import functools
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import errors
from jaxkd.contracts import Record, Transform

DEFAULTS = dict(
    degrees=10.0,  # most degrees of rotation, either way, 0 to 180
    scale=0.1,  # size 1 - scale to 1 + scale, 0 to below 1
    shift=0.05,  # most shift along each axis, either way, as a share of the side, 0 to below 1
    keys=('image',),  # keys of images that move, all by one draw
    labels=(),  # keys of label maps [H,W], uint8, that move with them; (): none
    prob=1.0,  # probability of the rotation, of the scale and of the shift, each by itself
)


def build(hp: ConfigDict) -> Transform:
    if not (0 <= hp.degrees <= 180 and 0 <= hp.scale < 1 and 0 <= hp.shift < 1):
        raise errors.ConfigError('affine: degrees must be in [0,180], scale and shift in [0,1).')
    if not 0 <= hp.prob <= 1:
        raise errors.ConfigError(f'affine.prob = {hp.prob:g} must be in [0,1].')
    keys = (*hp['keys'], *hp.labels)  # hp.keys is the method
    return Transform(functools.partial(apply, **{k: hp[k] for k in DEFAULTS}), random=True, reads=keys, writes=keys)


def apply(record: Record, rng: np.random.Generator, degrees: float, scale: float, shift: float, keys: tuple[str, ...],
          labels: tuple[str, ...] = (), prob: float = 1.0) -> Record:
    """Images float32 [H,W,c] under `keys` and label maps uint8 [H,W] under `labels` -> the same shapes."""
    drawn = rng.uniform(-1, 1, 4)
    if prob < 1:
        drawn *= (rng.random(3) < prob)[[0, 1, 2, 2]]
    angle, size, *shifts = drawn * (np.deg2rad(degrees), scale, shift, shift) + (0, 1, 0, 0)
    c, s = np.cos(angle) / size, np.sin(angle) / size
    matrix = np.array([[c, s], [-s, c]])
    moved = {key: warp(record[key], matrix, shifts) for key in keys}
    moved |= {key: warp(_map(record, key), matrix, shifts, Image.Resampling.NEAREST)[..., 0] for key in labels}
    return {**record, **moved}


def _map(record: Record, key: str) -> np.ndarray:
    labels = record.get(key)
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.dtype != np.uint8:
        raise errors.ConfigError(f'affine.labels: "{key}" is no label of each pixel, uint8 [H,W]. Take it out, or '
                                 'choose a source of segmentations.')
    return labels[..., None]


def warp(image: np.ndarray, matrix: np.ndarray, shifts: Sequence[float],
         resampling: Image.Resampling = Image.Resampling.BILINEAR) -> np.ndarray:
    """Output point p = (x, y) shows the input at matrix (p - centre - shift) + centre; shifts in sides."""
    height, width = image.shape[:2]
    centre = np.array([width, height]) / 2
    offset = centre - matrix @ (centre + np.multiply(shifts, (width, height)))
    # Pillow takes the map from output to input, row by row; the centre of the first pixel is at 0.5.
    numbers = (*matrix[0], offset[0], *matrix[1], offset[1])
    planes = [Image.fromarray(np.ascontiguousarray(image[..., i])) for i in range(image.shape[2])]
    moved = [np.array(plane.transform((width, height), Image.Transform.AFFINE, numbers, resampling))
             for plane in planes]
    return moved[0][..., None] if len(moved) == 1 else np.stack(moved, axis=-1)
