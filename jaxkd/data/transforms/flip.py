"""Random mirror images, for training. One draw for all `keys` and `labels`, so that what is aligned stays aligned.

Only where a mirrored picture is one that could have been taken: a mammogram upside down [our choice, for MMPKD], never
a chest, whose heart is at the left.
"""
import functools

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform

DEFAULTS = dict(
    vertical=0.5,  # probability to be turned upside down, 0 to 1
    horizontal=0.0,  # probability that left and right change places, 0 to 1
    keys=('image',),  # keys of images that are mirrored, all by one draw
    labels=(),  # keys of label maps [H,W] that are mirrored with them; (): none
)


def build(hp: ConfigDict) -> Transform:
    for key in ('vertical', 'horizontal'):
        if not 0 <= hp[key] <= 1:
            raise errors.ConfigError(f'flip.{key} = {hp[key]:g} must be in [0,1].')
    keys = (*hp['keys'], *hp.labels)  # hp.keys is the method
    return Transform(functools.partial(apply, vertical=hp.vertical, horizontal=hp.horizontal, keys=keys), random=True,
                     reads=keys, writes=keys)


def apply(record: Record, rng: np.random.Generator, vertical: float, horizontal: float,
          keys: tuple[str, ...]) -> Record:
    """Arrays [H,W,...] under `keys` -> the same shapes."""
    down, across = rng.random(2) < (vertical, horizontal)
    out = dict(record)
    for key in keys:
        a = record[key][::-1] if down else record[key]
        out[key] = np.ascontiguousarray(a[:, ::-1] if across else a)
    return out
