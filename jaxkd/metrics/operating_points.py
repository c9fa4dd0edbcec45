"""What turns the logits of a trained network into calibrated probabilities and decisions, fitted on validation cases.

Labels that do not exclude each other, each by itself, with the logit z (log-odds):

    p = 1 / (1 + exp(-(slope z + intercept)))     Platt scaling (Platt, 1999) [published], fitted to his targets
                                                  (N1 + 1) / (N1 + 2) and 1 / (N0 + 2), which keep the slope finite
                                                  where the classes are separated; slope >= 0 [our choice], so that
                                                  the order of cases never turns round: a label that the network does
                                                  not know gets its prevalence
    positive iff z >= threshold                   at three operating points: the largest Youden's index (as
                                                  metrics/decision.py), a sensitivity of at least 0.95 with the best
                                                  specificity, a specificity of at least 0.95 with the best sensitivity

Classes that exclude each other: softmax(z / T) with one temperature (Guo et al., 2017) [published], and the class of
the largest logit, which no temperature changes.

Thresholds are log-odds of the network as it is, before calibration, midway between neighbouring validation cases; one
beyond all of them is 1 from the outermost [our choice]. The rates that stand beside a threshold are those of the
validation cases that it was chosen on: optimistic, and more so where these selected the best step, too.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Real

from jaxkd import errors
from jaxkd.metrics import decision, logistic

POINTS = ('youden', 'sensitivity_95', 'specificity_95')
TARGET = 0.95  # of the last two
TEMPERATURES = 0.05, 20.0  # the ends of the search

Scores = Real[np.ndarray, ' n']


def fit_labels(logit: Real[np.ndarray, 'n c'], label: Real[np.ndarray, 'n c'], weight: Real[np.ndarray, 'n c'],
               names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{name: {cases, positives, slope, intercept, points: {point: {threshold, sensitivity, specificity}}}}.

    logit, label (1 or 0), weight (0: the label of this case does not count) [n, C] of the validation part. Without
    cases of both classes nothing can be fitted: slope 1, intercept 0, and no points.
    """
    fitted: dict[str, dict[str, Any]] = {}
    for c, name in enumerate(names):
        counts = np.asarray(weight)[:, c] > 0
        scores, truth = np.asarray(logit, float)[counts, c], np.asarray(label)[counts, c]
        known = 0 < (truth == 1).sum() < len(truth)
        slope, intercept = platt(scores, truth) if known else (1.0, 0.0)
        fitted[name] = dict(cases=len(truth), positives=int((truth == 1).sum()), slope=slope, intercept=intercept,
                            points=points(scores, truth) if known else {})
    return fitted


def platt(logit: Scores, label: Scores) -> tuple[float, float]:
    """(slope, intercept) of the calibrated log-odds; label 1 or 0, both present."""
    from scipy import optimize, special  # prediction does not need it
    logit, positive = _finite(logit), np.asarray(label) == 1
    n1, n0 = int(positive.sum()), int((~positive).sum())
    target, scale = np.where(positive, (n1 + 1) / (n1 + 2), 1 / (n0 + 2)), max(float(logit.std()), 1e-12)
    middle = float(logit.mean())
    x = (logit - middle) / scale  # the search is as easy for any network

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        z = parameters[0] * x + parameters[1]
        error = special.expit(z) - target
        return float(np.mean(np.logaddexp(0, z) - target * z)), np.array([np.mean(error * x), np.mean(error)])
    found = optimize.minimize(loss, (1.0, 0.0), jac=True, method='L-BFGS-B', bounds=((0, None), (None, None)),
                              options=dict(ftol=1e-15, gtol=1e-9))
    slope, intercept = found.x
    return float(slope / scale), float(intercept - slope * middle / scale)


def temperature(logit: Real[np.ndarray, 'n k'], label: Real[np.ndarray, ' n']) -> float:
    """The temperature with the smallest mean of -log p_y, within TEMPERATURES. label: index of the class.

    logit: up to a constant for each case, such as log-probabilities.
    """
    from scipy import optimize, special
    logit, rows = _finite(logit), np.arange(len(logit))

    def loss(log_t: float) -> float:
        z = logit * np.exp(-log_t)
        return float(np.mean(special.logsumexp(z, axis=1) - z[rows, np.asarray(label, int)]))
    found = optimize.minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method='bounded',
                                     options=dict(xatol=1e-6))
    return float(np.exp(found.x))


def points(score: Scores, label: Scores) -> dict[str, dict[str, float]]:
    """{point: {threshold, and the sensitivity and specificity there}}; label 1 or 0, both present."""
    score, positive = _finite(score), np.asarray(label) == 1
    if not 0 < positive.sum() < len(positive):
        raise errors.BadData('Operating points need cases with and without the label.')
    threshold, _, index = decision.operating_point(score, np.zeros(len(score)), positive.astype(int))
    lowest = np.sort(score[positive])[_allowed(int(positive.sum()))]  # of the positives that must be found
    highest = np.sort(score[~positive])[::-1][_allowed(int((~positive).sum()))]  # of the negatives that must not
    below, above = score[score < lowest], score[score > highest]
    thresholds = (threshold if index > 0 else 0.0, decision.midway(below.max(), lowest) if len(below) else lowest - 1,
                  decision.midway(highest, above.min()) if len(above) else highest + 1)
    return {point: dict(threshold=float(t), sensitivity=float((score[positive] >= t).mean()),
                        specificity=float((score[~positive] < t).mean())) for point, t in zip(POINTS, thresholds)}


def calibrated_labels(logit: Real[np.ndarray, 'n c'], fitted: Mapping[str, Mapping[str, Any]]
                      ) -> Float[np.ndarray, 'n c']:
    """Probabilities by what `fit_labels` returned, in its order of names."""
    slope, intercept = (np.array([entry[key] for entry in fitted.values()]) for key in ('slope', 'intercept'))
    return logistic.expit(slope * np.asarray(logit, float) + intercept)


def calibrated_classes(logit: Real[np.ndarray, 'n k'], fitted_temperature: float) -> Float[np.ndarray, 'n k']:
    """Probabilities of classes that exclude each other."""
    return logistic.softmax(np.asarray(logit, float) / fitted_temperature)


def log_probabilities(odds: Float[np.ndarray, 'n k']) -> Float[np.ndarray, 'n k']:
    """log p of log(p / (1 - p)), each class against the others: the form in which predictions hold classes."""
    from scipy import special
    return special.log_softmax(-np.logaddexp(0, -np.asarray(odds, float)), axis=1)


def _allowed(n: int) -> int:
    """How many of n cases may be on the wrong side."""
    return int(np.floor(n * (1 - TARGET) + 1e-9))


def _finite(values: Real[np.ndarray, '*n']) -> Float[np.ndarray, '*n']:
    values = np.asarray(values, float)
    if not len(values) or not np.isfinite(values).all():
        raise errors.BadData('Calibration needs at least one case and finite logits. Has the network diverged?')
    return values
