"""Random contrast about the image's mean, for training [our choice: +-10 %]."""
import functools

import numpy as np

from jaxkd import errors

RANDOM = True
DEFAULTS = dict(amount=0.1, keys=('image',))


def build(hp):
    if not 0 <= hp.amount < 1:
        raise errors.ConfigError(f'contrast.amount = {hp.amount} must be in [0,1).')
    return functools.partial(apply, amount=hp.amount, keys=tuple(hp['keys']))  # hp.keys is the method


def apply(record, rng, amount, keys):
    """Images float32 in [0,1] -> mean + f (image - mean), clipped; one f in 1 +- amount for all keys."""
    factor = np.float32(1 + rng.uniform(-amount, amount))
    return {**record, **{key: _stretch(record[key], factor) for key in keys}}


def _stretch(image, factor):
    mean = image.mean(dtype=np.float32)
    return np.clip(mean + factor * (image - mean), 0, 1)
