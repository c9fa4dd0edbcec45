"""Strong augmentation of images and volumes, the baseline that shortcut methods are compared with [our choice of
members].

Each with probability `prob`: a flip of the last axis and of the one before it; a crop of 80 to 100 % of each side,
scaled back; contrast and brightness; one rectangle of `cutout` of each side set to the mean; Gaussian noise of at most
`noise`. Put it behind `shortcut`: the artefact is part of the file that it augments.
"""
import functools

import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from jaxkd import errors
from jaxkd.contracts import Record, Transform
from jaxkd.data.volume import FIXED

DEFAULTS = dict(
    keys=('image',),  # keys of images that change, all by one draw
    prob=0.5,  # probability of each change, 0 to 1
    flips=True,  # mirror the last two axes, too
    crop=0.8,  # smallest share of a side that a crop keeps, above 0 to 1
    contrast=0.3,  # factor of what differs from the mean: 1 - contrast to 1 + contrast, 0 to below 1
    brightness=0.1,  # most that is added to all values, either way, in the units of the image
    cutout=32 / 224,  # sides of the rectangle that becomes the mean, as a share of those of the image; 0: none
    noise=0.1,  # largest standard deviation of the noise, in the units of the image
    limits=(0.0, 1.0),  # least and greatest value of the result
)


def build(hp: ConfigDict) -> Transform:
    if not (0 <= hp.prob <= 1 and 0 < hp.crop <= 1 and 0 <= hp.contrast < 1 and 0 <= hp.cutout < 1
            and min(hp.noise, hp.brightness) >= 0):
        raise errors.ConfigError('strong: prob must lie in [0,1], crop in (0,1], contrast and cutout in [0,1), noise '
                                 'and brightness must not be negative.')
    keys = tuple(hp['keys'])  # hp.keys is the method
    return Transform(functools.partial(apply, hp=hp.copy_and_resolve_references()), random=True, reads=keys,
                     writes=keys)


def apply(record: Record, rng: np.random.Generator, hp: ConfigDict) -> Record:
    """Arrays [*places,C] under `keys`, float or fixed point, all by the same draws -> the same shapes within the
    limits.
    """
    shape = record[hp['keys'][0]].shape[:-1]
    if any(record[key].shape[:-1] != shape for key in hp['keys']):
        raise errors.ConfigError('strong: its keys must name images of one size.')
    on = rng.random(6) < hp.prob
    fraction, place = rng.uniform(hp.crop, 1, len(shape)), rng.random((2, len(shape)))
    contrast, brightness = 1 + rng.uniform(-1, 1) * hp.contrast, rng.uniform(-1, 1) * hp.brightness
    sigma = rng.uniform(0, hp.noise)
    noise = rng.standard_normal(shape, np.float32)[..., None] if on[5] else 0
    out = {**record}
    for key in hp['keys']:
        fixed = np.issubdtype(record[key].dtype, np.integer)
        x = record[key].astype(np.float32) / FIXED if fixed else record[key]
        for axis in (-2, -3):
            if hp.flips and on[2 + axis]:
                x = np.flip(x, axis)
        if on[2]:
            x = _crop(x, fraction, place[0])
        if on[3]:
            mean = x.mean(dtype=np.float32)
            x = mean + contrast * (x - mean) + brightness
        if on[4] and hp.cutout:
            side = np.maximum(1, np.round(hp.cutout * np.array(shape))).astype(int)
            start = np.floor(place[1] * (np.array(shape) - side + 1)).astype(int)
            x = x.copy()
            x[tuple(slice(a, a + n) for a, n in zip(start, side))] = x.mean(dtype=np.float32)
        x = x + np.float32(sigma) * noise
        x = np.clip(x, *hp.limits)
        out[key] = (np.round(x * FIXED) if fixed else x).astype(record[key].dtype)
    return out


def _crop(x, fraction, place):
    """The part of `share` of each side at `place` of what is left, linearly scaled to the whole."""
    sides = np.array(x.shape[:-1])
    offset = place * (1 - fraction) * sides + 0.5 * fraction - 0.5  # pixel centres
    return np.stack([ndimage.affine_transform(x[..., c], fraction, offset, order=1, mode='nearest')
                     for c in range(x.shape[-1])], -1)
