"""The same cases as another scanner would have shown them, for tests: darkened, unevenly lit, blurred and noisy.

    x -> clip( (b . blur(x)) ** 2^g + noise )

b = 2^(bias f) with a smooth field f of [-1,1] (a plane and a saddle, drawn), blur a Gaussian of `blur` pixels. Each
case draws how far it is shifted: every strength is multiplied by a number of [0.5, 1], so that a shifted domain is one,
and not the old one with more spread. All of it is [our choice]. Nothing changes where things are, so labels stay right.

What is drawn depends on the seed and on record['case'] alone: the same in every run, on every host, in any order.
Slices of one volume (ids that differ after `slices`) share all but the noise.

It stands in data.transforms after `image`, on float32 [H,W,c] within [0,1]: so strengths mean the same whatever the
size and type of the files. The channels of a pixel get the same noise. It is no augmentation: put it into data that
evaluators test on.
"""
import functools
import hashlib

import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from jaxkd import errors
from jaxkd.contracts import Record, Transform

DEFAULTS = dict(
    gamma=0.6,  # octaves of the exponent, -4 to 4; negative brightens
    bias=0.4,  # octaves of the uneven light, either way, 0 to 4
    blur=1.0,  # standard deviation of the blur in pixels, 0 to 100
    noise=0.05,  # standard deviation of the noise, 0 to 1, in the units of the image
    seed=0,  # another one draws other shifts
    slices='_slice_',  # what stands between the id of a volume and the number of a slice; '': draw for each case
    key='image',  # key of the image in a record
)


def build(hp: ConfigDict) -> Transform:
    if not (abs(hp.gamma) <= 4 and 0 <= hp.bias <= 4 and 0 <= hp.blur <= 100 and 0 <= hp.noise <= 1):
        raise errors.ConfigError(f'domain_shift: gamma = {hp.gamma:g} must be in [-4,4], bias = {hp.bias:g} in [0,4], '
                                 f'blur = {hp.blur:g} in [0,100], noise = {hp.noise:g} in [0,1].')
    return Transform(functools.partial(apply, **{k: hp[k] for k in DEFAULTS}), reads=(hp.key, 'case'), writes=(hp.key,))


def apply(record: Record, gamma: float, bias: float, blur: float, noise: float, seed: int, slices: str,
          key: str) -> Record:
    """float32 [H,W,c] within [0,1] -> the same."""
    pixels, case = record.get(key), record.get('case')
    if not isinstance(case, str):
        raise errors.ConfigError('domain_shift needs the id of the case, record["case"], which this source or a '
                                 'transform before it does not give.')
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 3 or pixels.dtype != np.float32:
        raise errors.ConfigError(f'domain_shift: "{key}" of case {case} is no float32 [H,W,c]. List it after "image" '
                                 'in data.transforms.')
    rng = _rng(seed, case.rpartition(slices)[0] or case if slices else case)
    strength = rng.uniform(0.5, 1, 4).astype(np.float32)
    field = _field(rng, pixels.shape[:2])
    if blur:
        pixels = ndimage.gaussian_filter(pixels, (blur * strength[0], blur * strength[0], 0), mode='nearest')
    if bias:
        pixels = pixels * np.exp2(np.float32(bias) * strength[1] * field)
    if gamma:
        pixels = np.maximum(pixels, 0) ** np.exp2(np.float32(gamma) * strength[2])
    if noise:
        values = _rng(seed, f'noise of {case}').standard_normal((*pixels.shape[:2], 1), np.float32)
        pixels = pixels + np.float32(noise) * strength[3] * values
    return {**record, key: np.clip(pixels, 0, 1).astype(np.float32, copy=False)}


def _rng(seed, name):
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f'{seed}:{name}'.encode()).digest()[:16], 'big'))


def _field(rng, shape):
    """float32 [H,W,1] of [-1,1]: smooth, and its extremes are -1 or 1."""
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    a, b, c, d = rng.uniform(-1, 1, 4).astype(np.float32)
    field = a * y[:, None] + b * x + c * y[:, None] * x + d * (y[:, None]**2 - x**2)
    return (field / max(np.abs(field).max(), 1e-6))[..., None]
