"""Random brightness and contrast, optionally blur, gamma and noise, for training; every modality draws its own.

    value -> b (m + c (value - m)) + noise,  m the mean of the volume (of a grid of its voxels, where it is large)

with b in 1 +- `brightness` (0.8 to 1.2 in CPKD's training script) and c in 1 +- `contrast` [our choice]. Before it
comes a blur in plane, of sigma up to `blur` voxels; after it a power that keeps the least and the greatest value where
they are, from 1 / (1 + `gamma`) to 1 + `gamma`, even in its logarithm; noise comes last. Fixed point stays
fixed point: for 224 x 224 x 32 voxels int16 takes 1.5 ms where float32 takes 0.9 ms, but four of them stacked to a
batch take no longer (8 to 16 ms, float32 14 to 15), are half as much to hand to the device, and have the type that
evaluation has.
"""
import functools

import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from jaxkd import errors
from jaxkd.contracts import Record, Transform
from jaxkd.data.transforms import volume
from jaxkd.data.volume import FIXED

DEFAULTS = dict(
    keys=('ct', 't1', 't2'),  # keys of volumes that change
    brightness=0.2,  # factor of all values: 1 - brightness to 1 + brightness, 0 to below 1
    contrast=0.1,  # factor of what differs from the mean: 1 - contrast to 1 + contrast, 0 to below 1
    noise=0.0,  # standard deviation, in the units of the network's input; 0: none
    joint=False,  # one draw of brightness, contrast, blur and gamma for all keys; False: each its own
    gamma=0.0,  # exponent of values: 1 / (1 + gamma) to 1 + gamma; 0: none
    blur=0.0,  # largest standard deviation of a blur in plane, in voxels; 0: none
    prob=1.0,  # probability that a modality is changed at all
)

_INT16 = np.iinfo(np.int16)


def build(hp: ConfigDict) -> Transform:
    if not (0 <= hp.brightness < 1 and 0 <= hp.contrast < 1 and hp.noise >= 0):
        raise errors.ConfigError('intensity: brightness and contrast must be in [0,1), noise at least 0.')
    if not (0 <= hp.gamma < np.inf and 0 <= hp.blur < np.inf and 0 <= hp.prob <= 1):
        raise errors.ConfigError('intensity: gamma and blur must be at least 0, prob a probability.')
    keys = tuple(hp['keys'])  # hp.keys is the method
    return Transform(functools.partial(apply, **{k: hp[k] for k in DEFAULTS}), random=True,
                     reads=(*keys, 'present'), writes=keys)


def apply(record: Record, rng: np.random.Generator, keys: tuple[str, ...], brightness: float, contrast: float,
          noise: float, joint: bool, gamma: float = 0.0, blur: float = 0.0, prob: float = 1.0) -> Record:
    """Arrays [D,H,W,c] under `keys`, int16 fixed point or float32 -> the same type. An absent modality stays 0."""
    out, drawn = dict(record), None
    for key in keys:
        voxels = volume.array(record, key, 'intensity')
        if drawn is None or not joint:
            drawn = _draw(rng, brightness, contrast, gamma, blur, prob)
        if drawn and record.get('present', {}).get(key, 1):
            b, c, power, sigma = drawn
            out[key] = change(voxels, b, c, noise, rng, power, sigma)
    return out


def change(voxels: np.ndarray, b: float, c: float, noise: float, rng: np.random.Generator, power: float = 1.0,
           sigma: float = 0.0) -> np.ndarray:
    """b (m + c (voxels - m)) of the blurred voxels, to a power, + noise; int16 is rounded and limited to its range."""
    fixed = voxels.dtype == np.int16
    if not fixed and voxels.dtype != np.float32:
        raise errors.ConfigError(f'intensity takes int16 fixed point or float32, not {voxels.dtype}.')
    steps = [max(1, n // limit) for n, limit in zip(voxels.shape, (16, 56, 56))]  # a sample of 50,000 voxels is enough
    mean = voxels[tuple(slice(None, None, step) for step in steps)].mean(dtype=np.float32)
    factor, shift = np.float32(b * c), np.float32(b * (1 - c)) * mean
    low, high = (factor * np.float32(end) + shift for end in (voxels.min(), voxels.max())) if power != 1 else (0, 0)
    deviation = np.float32(noise * (FIXED if fixed else 1))
    out = np.empty(voxels.shape, voxels.dtype)
    values = np.empty(voxels.shape[1:], np.float32)  # one slice: memory that stays in the cache is half of the speed
    for plane, target in zip(voxels, out):
        if sigma:
            plane = ndimage.gaussian_filter(plane.astype(np.float32), (sigma, sigma, 0), mode='nearest')
        np.multiply(plane, factor, out=values)
        values += shift
        if high > low:
            np.clip((values - low) / (high - low), 0, 1, out=values)  # rounding may leave it by a hair
            values[...] = low + (high - low) * values**np.float32(power)
        if noise:
            values += deviation * rng.standard_normal(values.shape, np.float32)
        if fixed:
            np.clip(np.rint(values, out=values), _INT16.min, _INT16.max, out=values)
        target[...] = values
    return out


def _draw(rng: np.random.Generator, brightness: float, contrast: float, gamma: float, blur: float, prob: float
          ) -> tuple[float, ...]:
    """(b, c, power, sigma), or () for no change. Options that are off draw nothing, so that a new option does not
    change the runs without it.
    """
    if prob < 1 and rng.random() >= prob:
        return ()
    b, c = 1 + rng.uniform(-1, 1, 2) * (brightness, contrast)
    power = (1 + gamma)**rng.uniform(-1, 1) if gamma else 1.0
    return b, c, power, rng.uniform(0, blur) if blur else 0.0
