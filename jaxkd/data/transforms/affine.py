"""Random rotation, scale and shift, for training [our choice: +-10 degrees, 0.9 to 1.1, +-5 %; never a flip].

One draw for all `keys`, so that aligned images stay aligned. Bilinear. Outside is black, as beyond a collimator: a reflected
border would show anatomy that is not there. Boxes stay as they were; they are read in evaluation alone, where nothing is
random.
"""
import functools

import numpy as np
from PIL import Image

from jaxkd import errors

RANDOM = True
DEFAULTS = dict(
    degrees=10.0,  # rotation, at most, either way
    scale=0.1,  # size 1 - scale to 1 + scale
    shift=0.05,  # of the side, at most, each axis
    keys=('image',),
)


def build(hp):
    if not (0 <= hp.degrees <= 180 and 0 <= hp.scale < 1 and 0 <= hp.shift < 1):
        raise errors.ConfigError('affine: degrees must be in [0,180], scale and shift in [0,1).')
    return functools.partial(apply, degrees=hp.degrees, scale=hp.scale, shift=hp.shift, keys=tuple(hp.keys))


def apply(record, rng, degrees, scale, shift, keys):
    """Images float32 [H,W,c] -> the same shapes."""
    angle, size, *shifts = rng.uniform(-1, 1, 4) * (np.deg2rad(degrees), scale, shift, shift) + (0, 1, 0, 0)
    c, s = np.cos(angle) / size, np.sin(angle) / size
    return {**record, **{key: warp(record[key], np.array([[c, s], [-s, c]]), shifts) for key in keys}}


def warp(image, matrix, shifts):
    """Output point p shows the input at matrix (p - centre - shift) + centre; coordinates x, y; shifts in sides."""
    height, width = image.shape[:2]
    centre = np.array([width, height]) / 2
    offset = centre - matrix @ (centre + np.multiply(shifts, (width, height)))
    # Pillow takes the map from output to input, as rows (a, b, c), (d, e, f); the first pixel's centre is at 0.5.
    numbers = (*matrix[0], offset[0], *matrix[1], offset[1])
    planes = [np.asarray(Image.fromarray(np.ascontiguousarray(image[..., i])).transform(
        (width, height), Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR)) for i in range(image.shape[2])]
    return np.stack(planes, axis=-1)
