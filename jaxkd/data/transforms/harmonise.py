"""Images of several scanners brought to the grey values of the training cases, each by itself and with no network.

    zscore     x -> M + S (x - m) / s      m, s: mean and deviation of the image, M, S: their means over training cases
    histogram  x -> r(x), piecewise linear, where the quantiles of the image meet the reference: the mean over training
               cases of each quantile (Nyul and Udupa, 2000 [published]; here of evenly spaced quantiles [our choice])

Both undo any brightness and contrast of a scanner, a x + b with a > 0; `histogram` any monotone change. They also undo
what a disease does to these numbers. z-scores are brought back to the grey values of training [our choice], so that
later steps may expect these. Values up to `background` are no part of a body: they are neither counted nor changed. An
image of one value stays as it is.

The reference is learned from training patients alone, behind the transforms before it, kept with the checkpoint, and
used in training, evaluation, prediction and bundles; external data meet that of the run. It stands in data.transforms
after `image` or `volume`: arrays float32, or int16 fixed point. An absent modality stays 0.
"""
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Num
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform, TransformPlugin
from jaxkd.data.volume import FIXED

DEFAULTS = dict(
    keys=('image',),  # arrays that are changed, each by a reference of its own
    kind='histogram',  # histogram or zscore
    quantiles=65,  # of the image and of the reference, from the least value to the greatest: 2 to 1025
    background=0.0,  # values up to it are left as they are; a number below all values counts every place
    limits=(),  # two values that the result is clipped to, (0.0, 1.0); (): it is not clipped
    cases=256,  # most training cases that the reference is made of, evenly spaced
)
KINDS = ('histogram', 'zscore')
_INT16 = np.iinfo(np.int16)


def build(hp: ConfigDict, fitted: dict[str, Any] | None = None) -> Transform:
    """fitted: what `fit` returned; without it, in checks before training, nothing changes."""
    errors.check_choice('harmonise.kind', hp.kind, KINDS)
    errors.check_range('harmonise.quantiles', hp.quantiles, '[2, 1025]')
    errors.check_range('harmonise.cases', hp.cases, '[1, inf)')
    if len(hp.limits) not in (0, 2) or hp.limits and not hp.limits[0] < hp.limits[1]:
        raise errors.ConfigError(f'harmonise.limits = {tuple(hp.limits)} must be a lower and an upper value, or ().')
    keys = tuple(hp['keys'])  # hp.keys is the method
    return Transform(functools.partial(apply, fitted=fitted, keys=keys, kind=hp.kind, background=hp.background,
                                       limits=tuple(hp.limits)), reads=(*keys, 'present', 'case'), writes=keys)


def fit(hp: ConfigDict, source: Any, indices: Sequence[int], progress: Callable[[Iterable], Iterable]) -> dict:
    """{key: {'mean', 'deviation', 'quantiles'}} of the training cases, plain JSON."""
    chosen = [indices[k] for k in np.unique(np.linspace(0, len(indices) - 1, min(hp.cases, len(indices))).astype(int))]
    found: dict[str, list] = {key: [] for key in hp['keys']}
    for i in progress(chosen):
        record = source[i]
        for key in found:
            if record.get('present', {}).get(key, 1):
                values = _values(record, key)
                inside = values[values > hp.background]
                if inside.size and inside.min() < inside.max():
                    found[key].append((inside.mean(dtype=np.float64), inside.std(dtype=np.float64),
                                       quantiles_of(inside, hp.quantiles)))
    if empty := [key for key, rows in found.items() if not rows]:
        raise errors.BadData(f'harmonise: no training case has values of "{empty[0]}" above background = '
                             f'{hp.background:g}. Set data.harmonise.background below its values, or keys.')
    means = {key: [np.mean(column, axis=0).tolist() for column in zip(*rows)] for key, rows in found.items()}
    return {key: dict(mean=mean, deviation=deviation, quantiles=reference)
            for key, (mean, deviation, reference) in means.items()}


def apply(record: Record, fitted: dict[str, Any] | None, keys: tuple[str, ...], kind: str, background: float,
          limits: tuple[float, ...]) -> Record:
    """Arrays [*places,c] under `keys` -> the same type."""
    out = dict(record)
    for key in keys if fitted else ():
        assert fitted is not None
        if record.get('present', {}).get(key, 1):
            values = _values(record, key)
            new = harmonised(values, fitted[key], kind, background)
            new = np.clip(new, limits[0], limits[1]) if limits else new
            out[key] = new.astype(np.float32) if record[key].dtype == np.float32 else np.clip(
                np.rint(new * FIXED), _INT16.min, _INT16.max).astype(np.int16)
    return out


def harmonised(values: Float[np.ndarray, '*places'], reference: dict[str, Any], kind: str,
               background: float) -> Float[np.ndarray, '*places']:
    """Values in the grey values of the reference, float64 where they change."""
    foreground = values > background
    inside = values[foreground].astype(np.float64)
    if not inside.size or inside.min() == inside.max():
        return values
    if kind == 'zscore':
        new = reference['mean'] + reference['deviation'] * (inside - inside.mean()) / inside.std()
    else:
        target = np.array(reference['quantiles'])
        own, place = np.unique(quantiles_of(inside, len(target)), return_inverse=True)
        # values of several quantiles go to the mean of theirs
        new = np.interp(inside, own, np.bincount(place, target) / np.bincount(place))
    out = values.astype(np.float64)
    out[foreground] = new
    return out


def quantiles_of(values: Num[np.ndarray, ' n'], count: int) -> Float[np.ndarray, ' count']:
    """`count` quantiles, from the least value to the greatest, evenly spaced."""
    return np.quantile(values.astype(np.float64), np.linspace(0, 1, count))


def _values(record: Record, key: str) -> np.ndarray:
    array = record.get(key)
    if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.int16) or array.ndim < 3:
        kind = f'{array.dtype} {list(array.shape)}' if isinstance(array, np.ndarray) else 'no array'
        raise errors.ConfigError(f'harmonise.keys: "{key}" of case {record.get("case", "")} is {kind}; it must be '
                                 'float32 or int16 [*places,c]. List harmonise behind "image" or "volume" in '
                                 'data.transforms.')
    return array.astype(np.float32) / FIXED if array.dtype == np.int16 else array


def restrict(hp: ConfigDict, inputs: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The options for records of these inputs alone."""
    return dict(keys=tuple(key for key in hp['keys'] if key in inputs))


PLUGIN = TransformPlugin(fit=fit, fit_prepared=True, restrict=restrict)
