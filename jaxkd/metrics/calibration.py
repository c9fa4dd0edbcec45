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
    return statistics(prob, label)(np.ones((1, len(prob))) if weights is None else weights)['brier']


def ece(prob: Float[np.ndarray, ' n'], label: Real[np.ndarray, ' n'], weights: Float[np.ndarray, 'r n'] | None = None,
        bins: int = 15, equal_mass: bool = False) -> Float[np.ndarray, ' r']:
    """Expected calibration error. prob, label [n]; weights [R, n] (default ones) -> [R] in [0, 1].

    nan without any case; one class is enough. Equal-mass edges are the whole sample's in every resample.
    """
    values = statistics(prob, label, bins)(np.ones((1, len(prob))) if weights is None else weights)
    return values['ece_mass' if equal_mass else 'ece']


def statistics(prob: Float[np.ndarray, ' n'], label: Real[np.ndarray, ' n'], bins: int = 15) -> bootstrap.Statistics:
    """A function of weights [R, n] -> {'brier', 'ece', 'ece_mass': [R]}, for `bootstrap.intervals`."""
    error = prob - label
    groups = [np.zeros(len(prob), int), np.ones(len(prob), int), bins_of(prob, bins) + 2,
              bins_of(prob, bins, equal_mass=True) + 2 + bins]
    sums = bootstrap.sums(np.stack([np.ones(len(prob)), np.square(error), error, error]), np.stack(groups),
                          2 + 2 * bins)

    def values(weights: bootstrap.Weights) -> dict[str, bootstrap.Values]:
        total, squares, *gaps = sums(weights)
        return {'brier': bootstrap.ratio(squares, total),
                'ece': bootstrap.ratio(np.abs(gaps[:bins]).sum(0), total),
                'ece_mass': bootstrap.ratio(np.abs(gaps[bins:]).sum(0), total)}
    return values


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
