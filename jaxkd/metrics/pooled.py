"""Metrics of repeated trainings: over seeds that share their test patients, over folds that share none.

A round is one set of test predictions in which each patient is tested once: of one seed, or of all folds together.
All rounds are resampled with the same patients, so that what differs between them is the training alone.
Predictions are those of `jaxkd.report.run_folder`, one row per case.
"""
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Real
from scipy.special import expit

from jaxkd import errors
from jaxkd.metrics import bootstrap, calibration, classification, multiclass, segmentation, shortcut

Predictions = Any  # jaxkd.evaluators.predictions.schema.Predictions, which lies above this folder


def statistics(p: Predictions) -> bootstrap.Statistics:
    """A function of weights [R, n] -> {metric: [R]}, for `bootstrap.intervals`.

    Classes: accuracy, balanced_accuracy, mean_ovr_accuracy, auroc (macro, one-vs-rest), brier, ece (15 bins), and
    sensitivity/<class>, specificity/<class>, auroc/<class>, defined in `metrics.multiclass`; where predictions were
    compared with a prior, implausible, the share of contradicted cases among those whose signs are known; where it is
    known who has a shortcut, those of `metrics.shortcut`.
    Several labels a case: auroc and auprc (macro), auroc/<label>, over the entries of weight > 0.
    Every column `measure/<metric>`, whatever the evaluator that wrote it: the means of `metrics.segmentation`.
    """
    if not len(p.cases) or np.isnan(p.logit).any():
        raise errors.BadData('There are no predictions to pool, or some are nan. Evaluate the members again.')
    labelled = _classes if p.exclusive else _labels
    found = [f for f in (p.measures and segmentation.statistics(p.measures), p.labels and labelled(p)) if f]
    return lambda weights: {metric: v for f in found for metric, v in f(weights).items()}


def draws(rounds: Sequence[Predictions], n: int = 1000, seed: int = 0) -> dict[str, Float[np.ndarray, 'rounds draws']]:
    """Every metric of all rounds in every round and resample: {metric: [rounds, 1 + n]}, the value itself in column 0.

    rounds: predictions of the same cases in the same order. With a single patient there is nothing to resample.
    """
    patients = rounds[0].patients
    found = [statistics(p) for p in rounds]
    several = bootstrap.groups(patients)[1] > 1
    blocks = [[f(w) for f in found] for w in (np.ones((1, len(patients))),
                                              *(bootstrap.resamples(patients, n, seed) if several else ()))]
    return {metric: np.array([np.concatenate([b[i][metric] for b in blocks]) for i in range(len(rounds))])
            for metric in blocks[0][0] if all(metric in of for of in blocks[0])}


def mean(found: Float[np.ndarray, 'rounds draws'], level: float = 0.95) -> bootstrap.Entry:
    """Mean over rounds with its interval over patients, rounds as they are: {'value', 'low', 'high', 'sd',
    'rounds'...}.

    found [rounds, 1 + n] from `draws`. sd is the sample standard deviation over rounds, nan for a single one.
    """
    of_rounds = found.mean(0)
    return {**bootstrap.summary(of_rounds[0], of_rounds[1:], level), **spread(found[:, 0])}


def difference(found: Float[np.ndarray, 'rounds draws'], level: float = 0.95, seed: int = 0) -> bootstrap.Entry:
    """Mean over rounds of a paired difference: found = draws of a - draws of b, [rounds, 1 + n].

    Each resample draws patients and, with replacement, as many rounds as there are: the interval speaks of other
    patients and other seeds [our choice]. What a single training makes of a single case counts twice, with patients and
    with rounds: where it dominates, the interval is wide. Where the seed decides and rounds are few it is narrow, since
    drawing from R of them shows only (R - 1) / R of their variance. Simulated with five seeds of equal arms, 95 %
    intervals excluded 0 in 0.1 % (seeds of equal skill) to 15 % (as different as cases are) of the pairs. 'positive'
    counts the rounds above 0; 'above' and 'below' those whose own interval, over patients, lies on one side of 0.
    """
    found = _exact(found)
    count, resampled = len(found), found[:, 1:]
    if count > 1:
        chosen = np.random.default_rng(seed).integers(count, size=(resampled.shape[1], count))
        resampled = np.take_along_axis(resampled.T, chosen, axis=1).T
    own = [bootstrap.summary(row[0], row[1:], level) for row in found]
    return {**bootstrap.summary(_exact(found[:, 0].mean()), _exact(resampled.mean(0)), level), **spread(found[:, 0]),
            'positive': int((found[:, 0] > 0).sum()), 'above': sum(o['low'] > 0 for o in own),
            'below': sum(o['high'] < 0 for o in own)}


def spread(values: Sequence[float] | Real[np.ndarray, ' n'], name: str = 'rounds') -> bootstrap.Entry:
    """{'sd': sample standard deviation of the values that are defined, name: all values}."""
    values = np.asarray(values, dtype=float)
    defined = values[~np.isnan(values)]
    return {'sd': float(defined.std(ddof=1)) if len(defined) > 1 else float('nan'), name: values.tolist()}


def _exact(differences):
    """Without what rounding leaves of equal numbers: 1e-17 is not above 0. Accuracies often tie."""
    return np.round(differences, 12) + 0.0


def _classes(p):
    label, chosen, classes = p.label.argmax(1), p.logit.argmax(1), len(p.labels)
    prob = expit(p.logit)
    squares, right = np.square(prob - p.label).sum(1), (chosen == label).astype(float)
    unlikely = None if p.implausible is None else bootstrap.mean(p.implausible)
    compared = shortcut.statistics(chosen, label, p.marked) if shortcut.both_groups(p.marked) else lambda weights: {}

    def of(weights: bootstrap.Weights) -> dict[str, bootstrap.Values]:
        rates = multiclass.rates(multiclass.confusion(chosen, label, classes, weights))
        areas = [classification.auroc(z, y, weights) for z, y in zip(p.logit.T, p.label.T)]
        return {'accuracy': rates['accuracy'], 'balanced_accuracy': _macro(rates['sensitivity'].T),
                'mean_ovr_accuracy': _macro(rates['ovr_accuracy'].T), 'auroc': _macro(areas),
                'brier': bootstrap.ratio(weights @ squares, weights.sum(1)),
                'ece': calibration.ece(prob.max(1), right, weights),
                **({} if unlikely is None else {'implausible': unlikely(weights)}), **compared(weights),
                **{f'{rate}/{name}': rates[rate][:, c] for rate in ('sensitivity', 'specificity')
                   for c, name in enumerate(p.labels)},
                **{f'auroc/{name}': area for name, area in zip(p.labels, areas)}}
    return of


def _labels(p):
    rows = [np.flatnonzero(w > 0) for w in p.weight.T]

    def each(area: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
             weights: bootstrap.Weights) -> list[np.ndarray]:
        return [area(p.logit[r, c], p.label[r, c], weights[:, r]) for c, r in enumerate(rows)]

    def of(weights: bootstrap.Weights) -> dict[str, bootstrap.Values]:
        roc = each(classification.auroc, weights)
        return {'auroc': _macro(roc), 'auprc': _macro(each(classification.auprc, weights)),
                **{f'auroc/{name}': v for name, v in zip(p.labels, roc)}}
    return of


def _macro(values):
    """Mean over the first axis, the labels, of what is defined; nan where nothing is."""
    return bootstrap.ratio(np.nansum(values, axis=0), np.sum(~np.isnan(values), axis=0))
