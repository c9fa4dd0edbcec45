"""From the windows of a scan to a decision on the patient, its thresholds, and exact intervals of proportions.

With window probabilities q and the predicted volume V in ml [our choice]: the score is the mean of the 3 largest q, and
the patient is positive iff score >= t_cls or V >= v_min, thresholds that make Youden's index largest on validation
patients,

    J = sensitivity + specificity - 1   (Youden, 1950) [published]

Other ways to combine windows are for comparison: the largest q, their mean, and noisy-or 1 - prod(1 - q), the
probability of at least one positive window if windows were independent, which grows with the number of windows.
"""
import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Real

from jaxkd import errors

UNTUNED = 0.5, float('inf')
RULES = 'top', 'max', 'mean', 'noisy_or'  # of `combine`


def score(q: Float[np.ndarray, ' windows'], topk: int = 3) -> float:
    """Mean of the topk largest of the window probabilities q [W], of all where there are fewer."""
    q = _probabilities(q)
    if topk < 1:
        raise errors.ConfigError(f'A score needs a window at least; topk is {topk}.')
    return float(np.sort(q)[-topk:].mean())


def combine(q: Float[np.ndarray, ' windows'], rule: str = 'top', topk: int = 3) -> float:
    """One probability from those of windows, q [W]: rule is 'top' (as `score`), 'max', 'mean' or 'noisy_or'."""
    rules: dict[str, Callable[[np.ndarray], float]] = {
        'top': lambda q: score(q, topk), 'max': np.max, 'mean': np.mean, 'noisy_or': lambda q: 1 - np.prod(1 - q)}
    if rule not in RULES:
        raise errors.ConfigError(f'Windows are not combined by "{rule}".{errors.nearest(rule, RULES)}')
    return float(rules[rule](_probabilities(q)))


def positive(score: Real[np.ndarray, '*n'] | float, volume_ml: Real[np.ndarray, '*n'] | float, t_cls: float,
             v_min: float) -> Bool[np.ndarray, '*n'] | np.bool_:
    """The rule, bool: score >= t_cls or volume_ml >= v_min; numbers or arrays. A volume that is nan decides nothing."""
    return (np.asarray(score) >= t_cls) | (np.asarray(volume_ml) >= v_min)


def operating_point(scores: Float[np.ndarray, ' n'], volumes: Float[np.ndarray, ' n'],
                    truth: Real[np.ndarray, ' n']) -> tuple[float, float, float]:
    """(t_cls, v_min, Youden's index) with the largest index of all pairs of thresholds on these patients.

    scores, volumes [n], a volume of nan counting as 0; truth [n]: 1, 0, or -1 where unknown and left out. A threshold
    lies midway between two neighbouring values, or is inf where that criterion adds nothing. Ties [our choice]: the
    largest v_min, so that the volume decides no more than it has to; then the middle of the widest interval of t_cls,
    the lowest among equals. Without both classes the index is nan, and as where no pair is better than chance, the
    thresholds are 0.5 and inf.
    """
    scores, volumes, truth = _patients(scores, volumes, truth)
    positives, negatives = int(np.sum(truth == 1)), int(np.sum(truth == 0))
    if not positives or not negatives:
        return *UNTUNED, float('nan')
    (s, rank_s), (v, rank_v) = (np.unique(x, return_inverse=True) for x in (scores, volumes))
    # index[i, j]: J * positives * negatives, integers so that ties are exact, of the rule for which s[i] and v[j] are
    # the largest negative values
    index = np.zeros((len(s), len(v)), np.int64)
    np.add.at(index, (rank_s, rank_v), np.where(truth == 1, -negatives, positives))
    index = index.cumsum(0).cumsum(1)
    best = index.max()
    if best <= 0:
        decisions = np.asarray(positive(scores, volumes, *UNTUNED))
        return *UNTUNED, float(decisions[truth == 1].mean() - decisions[truth == 0].mean())
    j = np.flatnonzero((index == best).any(0))[-1]
    low, high = _widest(index[:, j] == best, np.append(s, np.inf))
    return midway(low, high), midway(*np.append(v, np.inf)[j:j + 2]), float(best / (positives * negatives))


def clopper_pearson(k: int | float, n: int | float, level: float = 0.95) -> tuple[float, float]:
    """(low, high): the exact interval of a proportion k / n (Clopper & Pearson, 1934) [published]; nan when n is 0."""
    if k != int(k) or n != int(n) or not 0 <= k <= n:
        raise errors.BadData(f'{k} of {n} is no proportion: give whole numbers, 0 <= k <= n.')
    if not 0 < level < 1:
        raise errors.ConfigError(f'The level of an interval lies between 0 and 1, as in 0.95; it is {level}.')
    if n == 0:
        return float('nan'), float('nan')
    from scipy import stats  # half a second, which prediction does not need
    interval = stats.binomtest(int(k), int(n)).proportion_ci(level, method='exact')
    return float(interval.low), float(interval.high)


def _widest(best: Bool[np.ndarray, ' n'], edges: Float[np.ndarray, ' n+1']) -> tuple[float, float]:
    """(low, high) of the widest run of chosen values; value i is the interval from edges[i] to edges[i + 1]."""
    runs = [list(run) for value, run in itertools.groupby(range(len(best)), lambda i: bool(best[i])) if value]
    return max(((edges[run[0]], edges[run[-1] + 1]) for run in runs), key=lambda ends: ends[1] - ends[0])


def midway(low: float, high: float) -> float:
    """A threshold between two values: their middle, or the higher one where rounding makes it the lower one."""
    middle = float(low) / 2 + float(high) / 2
    return middle if middle > low else float(high)


def _probabilities(q: Float[np.ndarray, ' windows']) -> Float[np.ndarray, ' windows']:
    q = np.asarray(q, dtype=np.float64)
    if q.ndim != 1 or not len(q) or not ((0 <= q) & (q <= 1)).all():
        raise errors.BadData(f'Window probabilities of shape {q.shape} must be [windows], at least one, and within '
                             '0 to 1.')
    return q


def _patients(scores: Float[np.ndarray, ' n'], volumes: Float[np.ndarray, ' n'],
              truth: Real[np.ndarray, ' n']) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64, float64 and int [m] of the patients with a known truth."""
    scores, volumes, truth = np.asarray(scores, float), np.nan_to_num(np.asarray(volumes, float)), np.asarray(truth)
    if not scores.shape == volumes.shape == truth.shape or scores.ndim != 1:
        raise errors.BadData(f'Scores {scores.shape}, volumes {volumes.shape} and truth {truth.shape} must be '
                             '[patients].')
    if (invalid := truth[~np.isin(truth, (-1, 0, 1))]).size:
        raise errors.BadData(f'The truth of a patient is 1, 0, or -1 where unknown; it holds {invalid[0]}.')
    labelled = truth >= 0
    if not np.isfinite(scores[labelled]).all() or (volumes < 0).any():
        raise errors.BadData('The scores of patients must be finite and their volumes 0 or more. Has the network '
                             'diverged?')
    return scores[labelled], volumes[labelled], truth[labelled].astype(int)
