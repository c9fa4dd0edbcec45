"""Comparison of arms by draws of a metric: p values, ranks, the gap closed, and how many labels a gain is worth.

Draws are arrays [1 + n]: the value itself, then n resamples of patients (and seeds), as in jaxkd/metrics/pooled.py.
Arms of the same test patients have the same resamples, so that draws of two arms are paired. Larger values are better
here: those of an error come with the opposite sign.
"""
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats
from scipy.optimize import isotonic_regression

from jaxkd.metrics import bootstrap

Draws = Float[np.ndarray, ' draws']  # 1 + n


def p_value(difference: Draws) -> float:
    """Two-sided p value of a difference against 0, by inverting the percentile interval; nan without resamples.

    2 (1 + k) / (1 + n), at most 1, with k of the n resamples on the rarer side of 0, or at 0. It is at most 0.05 where
    the 95 % interval excludes 0, up to one resample. The count with 1 added to both: Davison & Hinkley (1997), ch. 4
    [published]; resamples in which the difference is not defined do not count [our choice].
    """
    draws = difference[1:][~np.isnan(difference[1:])]
    if not len(draws) or np.isnan(difference[0]):
        return math.nan
    fewer = min((draws <= 0).sum(), (draws >= 0).sum())
    return float(min(1.0, 2 * (1 + fewer) / (1 + len(draws))))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p values corrected for their number by the step-down method of Holm (1979) [published]; nan stays and is not
    counted. The chance that any true null hypothesis has a value of 0.05 or less is at most 5 %.
    """
    known = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    corrected, largest = dict.fromkeys(p_values, math.nan), 0.0
    for i, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - i) * p))
        corrected[name] = largest
    return corrected


def ranks(arms: Mapping[str, Draws], level: float = 0.95) -> dict[str, dict[str, float]]:
    """{arm: {'value', 'low', 'high', 'first'}}: its rank (1 is the best, equal values share the mean of their ranks),
    the interval of its rank over the resamples, and the share of the resamples in which no arm is better.

    Resamples in which an arm is not defined are left out; all is nan if the values themselves are not.
    """
    values = np.array(list(arms.values()))
    defined = ~np.isnan(values).any(0)
    if not len(values) or not defined[0]:
        return {arm: dict.fromkeys(('value', 'low', 'high', 'first'), math.nan) for arm in arms}
    ranked = np.asarray(stats.rankdata(-values[:, defined], axis=0))
    best = values[:, defined] >= values[:, defined].max(0)
    found = {}
    for arm, row, first in zip(arms, ranked, best):
        low, high = quantiles(row[1:], level)
        found[arm] = dict(value=float(row[0]), low=low, high=high,
                          first=float(first[1:].mean()) if len(first) > 1 else math.nan)
    return found


def against_best(student: Draws, controls: Mapping[str, Draws]) -> tuple[str, Draws]:
    """(the control with the best value, the difference of the student to the best control in each resample).

    The best of several is favoured by chance, so the difference is rather too small than too large [our choice].
    """
    defined = {name: draws for name, draws in controls.items() if not np.isnan(draws[0])}
    if not defined:
        return '', np.full_like(student, np.nan)
    return (max(defined, key=lambda name: float(defined[name][0])),
            student - np.max(np.array(list(defined.values())), axis=0))


def gap_closed(student: Draws, baseline: Draws, ceiling: Draws, level: float = 0.95) -> bootstrap.Entry:
    """(student - baseline) / (ceiling - baseline) with its interval; nan where the interval of the gap itself is not
    above 0: then there is nothing to close, and the ratio would be noise [our choice].
    """
    gap = ceiling - baseline
    if not bootstrap.summary(gap[0], gap[1:], level)['low'] > 0:
        return bootstrap.summary(math.nan, np.empty(0), level)
    ratio = bootstrap.ratio(student - baseline, gap)
    return bootstrap.summary(ratio[0], ratio[1:], level)


def equivalent_labels(student: Draws, curve: Float[np.ndarray, 'points draws'], labels: Sequence[float],
                      level: float = 0.95) -> bootstrap.Entry:
    """With how many labelled patients the network of a curve is as good as the student: {'value', 'low', 'high',
    'replicates'}; inf is more than the largest of `labels`, 0 fewer than the smallest: nothing is extrapolated.

    curve: draws of the network trained with each of `labels`, ascending, two or more. In each resample the curve is
    made monotone (isotonic regression) and read between its points as linear in the logarithm of the labels; on a level
    stretch the fewest labels count [our choice].
    """
    if len(labels) < 2 or np.isnan(curve[:, 0]).any() or np.isnan(student[0]):
        return bootstrap.summary(math.nan, np.empty(0), level)
    defined = ~(np.isnan(curve).any(0) | np.isnan(student))
    found = np.array([_read(float(s), points, labels) for s, points in zip(student[defined], curve.T[defined])])
    low, high = quantiles(found[1:], level)
    return dict(value=float(found[0]), low=low, high=high, replicates=len(found) - 1)


def _read(value: float, points: np.ndarray, labels: Sequence[float]) -> float:
    """The fewest labels at which the monotone curve reaches the value."""
    rising = isotonic_regression(points).x
    k = int(np.searchsorted(np.round(rising, 12), round(value, 12)))  # the first point that is not below
    if k == len(labels):
        return math.inf
    if k == 0:
        return float(labels[0]) if math.isclose(rising[0], value, abs_tol=1e-12) else 0.0
    share = (value - rising[k - 1]) / (rising[k] - rising[k - 1])
    return float(math.exp(math.log(labels[k - 1]) + share * (math.log(labels[k]) - math.log(labels[k - 1]))))


def quantiles(draws: np.ndarray, level: float) -> tuple[float, float]:
    """The ends of the percentile interval among the draws themselves, which may be infinite; nan without any."""
    if not len(draws):
        return math.nan, math.nan
    ordered, n = np.sort(draws), len(draws)
    low = math.ceil((1 - level) / 2 * n - 1e-9)
    return float(ordered[max(low, 1) - 1]), float(ordered[n - max(low, 1)])
