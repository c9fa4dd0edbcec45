"""Calibration of one label: Brier score and expected calibration error, for many bootstrap resamples at once.

ECE = sum over bins of |sum of w (p - y) in the bin| / sum of w, for the probability p of the positive class
(after Naeini et al., 2015) [published]. It is biased upward, more so with few cases, and each resample adds
to that bias: the percentile interval is too high and may even exclude the value. Compare models on the same
cases and bins, not with 0.
"""
import numpy as np
from jaxtyping import Float, Int, Real

from jaxkd import errors
from jaxkd.metrics import bootstrap


def brier(prob: Float[np.ndarray, ' n'], label: Real[np.ndarray, ' n'],
          weights: Float[np.ndarray, 'r n'] | None = None) -> Float[np.ndarray, ' r']:
    """Mean squared error of probabilities [n] for labels [n]. weights [R, n] (default ones) -> [R] in [0, 1].

    nan without any case. A label with one class only has a Brier score all the same.
    """
    weights = np.ones((1, len(prob))) if weights is None else weights
    return bootstrap.ratio(weights @ np.square(prob - label), weights.sum(1))


def ece(prob: Float[np.ndarray, ' n'], label: Real[np.ndarray, ' n'], weights: Float[np.ndarray, 'r n'] | None = None,
        bins: int = 15, equal_mass: bool = False) -> Float[np.ndarray, ' r']:
    """Expected calibration error. prob, label [n]; weights [R, n] (default ones) -> [R] in [0, 1].

    nan without any case; one class is enough. Equal-mass edges are the whole sample's in every resample.
    """
    weights = np.ones((1, len(prob))) if weights is None else weights
    gap = np.zeros((len(prob), bins))
    gap[np.arange(len(prob)), bins_of(prob, bins, equal_mass)] = prob - label
    return bootstrap.ratio(np.abs(weights @ gap).sum(1), weights.sum(1))


def bins_of(prob: Float[np.ndarray, ' n'], bins: int = 15, equal_mass: bool = False) -> Int[np.ndarray, ' n']:
    """The bin, 0..bins-1, of each probability [n], edges as in sklearn.calibration.calibration_curve.

    Bins of equal width in [0, 1], or of equal numbers of cases (equal probabilities share a bin).
    """
    if bins < 1:
        raise errors.ConfigError(f'eval bins={bins}: a calibration error needs at least 1 bin, 15 is usual.')
    edges = np.linspace(0, 1, bins + 1)
    if equal_mass and len(prob):
        edges = np.percentile(prob, 100 * edges)
    return np.searchsorted(edges[1:-1], prob)
