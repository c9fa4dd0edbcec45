"""Random contrast about the image's mean, for training [our choice: +-10 %]."""
import functools

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform

DEFAULTS = dict(amount=0.1, keys=('image',))


def build(hp: ConfigDict) -> Transform:
    if not 0 <= hp.amount < 1:
        raise errors.ConfigError(f'contrast.amount = {hp.amount} must be in [0,1).')
    keys = tuple(hp['keys'])  # hp.keys is the method
    return Transform(functools.partial(apply, **{k: hp[k] for k in DEFAULTS}), random=True, reads=keys, writes=keys)


def apply(record: Record, rng: np.random.Generator, amount: float, keys: tuple[str, ...]) -> Record:
    """Images float32 in [0,1] -> mean + f (image - mean), clipped; one f in 1 +- amount for all keys."""
    factor = np.float32(1 + rng.uniform(-amount, amount))
    means = {key: record[key].mean(dtype=np.float32) for key in keys}
    return {**record, **{key: np.clip(mean + factor * (record[key] - mean), 0, 1) for key, mean in means.items()}}
