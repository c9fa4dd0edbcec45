"""Random contrast about the image's mean, for training [our choice: +-10 %]."""
import functools

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform

# amount: contrast 1 - amount to 1 + amount, 0 to below 1; keys: keys of images that change
DEFAULTS = dict(amount=0.1, keys=('image',))


def build(hp: ConfigDict) -> Transform:
    if not 0 <= hp.amount < 1:
        raise errors.ConfigError(f'contrast.amount = {hp.amount} must be in [0,1).')
    keys = tuple(hp['keys'])  # hp.keys is the method
    return Transform(functools.partial(apply, **{k: hp[k] for k in DEFAULTS}), random=True, reads=keys, writes=keys)


def apply(record: Record, rng: np.random.Generator, amount: float, keys: tuple[str, ...]) -> Record:
    """Images float32 in [0,1] -> mean + f (image - mean), clipped; one f in 1 +- amount for all keys."""
    factor = np.float32(1 + rng.uniform(-amount, amount))
    return {**record, **{key: _about_mean(record[key], factor) for key in keys}}


def _about_mean(image: np.ndarray, factor: np.float32) -> np.ndarray:
    mean = image.mean(dtype=np.float32)
    out = image - mean
    out *= factor
    out += mean
    return np.clip(out, 0, 1, out=out)
