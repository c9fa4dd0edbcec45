"""Metrics of repeated trainings: over seeds with the same test patients, over folds with disjoint ones.

A round is a set of test predictions in which each patient is tested once: of one seed, or of all folds together.
All rounds are resampled with the same patients, so that they differ in the training alone.
Predictions are those of `jaxkd.report.run_folder`, one row per case.
"""
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Real
from scipy.special import expit

from jaxkd import errors
from jaxkd.metrics import bootstrap, calibration, classification, multiclass, segmentation, shortcut

Predictions = Any  # jaxkd.evaluators.predictions.schema.Predictions; metrics import no evaluator


def statistics(p: Predictions) -> bootstrap.Statistics:
    """A function of weights [R, n] -> {metric: [R]}, for `bootstrap.intervals`.

    Classes: accuracy, balanced_accuracy, mean_ovr_accuracy, auroc (macro, one-vs-rest), brier, ece (15 bins), and
    sensitivity/<class>, specificity/<class>, auroc/<class>, defined in `metrics.multiclass`; of predictions with a
    prior, implausible, the fraction of contradicted cases among those with known signs; of predictions with known
    shortcuts, those of `metrics.shortcut`.
    Several labels a case: auroc and auprc (macro), auroc/<label>, over the entries of weight > 0.
    Every column `measure/<metric>`, whatever the evaluator that wrote it: the means of `metrics.segmentation`.
    """
    if not len(p.cases) or np.isnan(p.logit).any():
        raise errors.BadData('There are no predictions to pool, or some are nan. Evaluate the members again.')
    labelled = _classes if p.exclusive else _labels
    parts = [f for f in (p.measures and segmentation.statistics(p.measures), p.labels and labelled(p)) if f]
    return lambda weights: {metric: v for f in parts for metric, v in f(weights).items()}


def draws(rounds: Sequence[Predictions], n: int = 1000, seed: int = 0) -> dict[str, Float[np.ndarray, 'rounds draws']]:
    """Every metric of all rounds in every round and resample: {metric: [rounds, 1 + n]}, the value itself in column 0.

    rounds: predictions of the same cases in the same order. With a single patient there is nothing to resample.
    """
    patients = rounds[0].patients
    functions = [statistics(p) for p in rounds]
    resamples = bootstrap.resamples(patients, n, seed) if bootstrap.groups(patients)[1] > 1 else ()
    blocks = [[f(w) for f in functions] for w in (np.ones((1, len(patients))), *resamples)]
    return {metric: np.array([np.concatenate([b[i][metric] for b in blocks]) for i in range(len(rounds))])
            for metric in blocks[0][0] if all(metric in values for values in blocks[0])}


def mean(values: Float[np.ndarray, 'rounds draws'], level: float = 0.95) -> bootstrap.Entry:
    """Mean over these rounds with its interval over patients: {'value', 'low', 'high', 'sd', 'rounds'...}.

    values [rounds, 1 + n] from `draws`. sd is the sample standard deviation over rounds, nan for a single one.
    """
    means = values.mean(0)
    return {**bootstrap.summary(means[0], means[1:], level), **spread(values[:, 0])}


def difference(values: Float[np.ndarray, 'rounds draws'], level: float = 0.95, seed: int = 0) -> bootstrap.Entry:
    """Mean over rounds of a paired difference: values = draws of a - draws of b, [rounds, 1 + n].

    Each resample draws patients and, with replacement, R of the R rounds: the interval covers the choice of patients
    and of seeds [our choice]. The interaction of training and case counts twice, with patients and with rounds: where
    it dominates, the interval is wide. Where the seed dominates and R is small the interval is narrow, since drawing
    from R rounds shows only (R - 1) / R of their variance. Simulated with five seeds of equal arms, 95 % intervals
    excluded 0 in 0.1 % (seeds of equal skill) to 15 % (seeds as different as cases) of the pairs. 'positive' counts the
    rounds above 0; 'above' and 'below' those with an interval over patients that excludes 0.
    """
    values = _exact(values)
    resampled = over_rounds(values, seed)
    rounds = [bootstrap.summary(row[0], row[1:], level) for row in values]
    return {**bootstrap.summary(resampled[0], resampled[1:], level), **spread(values[:, 0]),
            'positive': int((values[:, 0] > 0).sum()), 'above': sum(entry['low'] > 0 for entry in rounds),
            'below': sum(entry['high'] < 0 for entry in rounds)}


def over_rounds(values: Float[np.ndarray, 'rounds draws'], seed: int = 0) -> Float[np.ndarray, ' draws']:
    """Draws of the mean over rounds, [1 + n]: in each resample the mean of R rounds that are drawn, with replacement,
    from the R rounds. Equal R, n and seed draw the same rounds: draws of several arms are paired by round.
    """
    count, resampled = len(values), values[:, 1:]
    if count > 1:
        sampled = np.random.default_rng(seed).integers(count, size=(resampled.shape[1], count))
        resampled = np.take_along_axis(resampled.T, sampled, axis=1).T
    return _exact(np.concatenate([values[:, :1].mean(0), resampled.mean(0)]))


def spread(values: Sequence[float] | Real[np.ndarray, ' n'], name: str = 'rounds') -> bootstrap.Entry:
    """{'sd': sample standard deviation of the values that are defined, name: all values}."""
    values = np.asarray(values, dtype=float)
    defined = values[~np.isnan(values)]
    return {'sd': float(defined.std(ddof=1)) if len(defined) > 1 else float('nan'), name: values.tolist()}


def _exact(differences: Float[np.ndarray, '*shape'] | np.floating) -> Any:
    """Differences without round-off: 1e-17 between two equal accuracies is not above 0."""
    return np.round(differences, 12) + 0.0


def _classes(p: Predictions) -> bootstrap.Statistics:
    label, predicted, prob = p.label.argmax(1), p.logit.argmax(1), expit(p.logit)
    squares, correct = np.square(prob - p.label).sum(1), (predicted == label).astype(float)
    rates_by_shortcut = shortcut.statistics(predicted, label, p.marked) if shortcut.both_groups(p.marked) else None

    def of_classes(weights: bootstrap.Weights) -> dict[str, bootstrap.Values]:
        rates = multiclass.rates(multiclass.confusion(predicted, label, len(p.labels), weights))
        areas = [classification.auroc(z, y, weights) for z, y in zip(p.logit.T, p.label.T)]
        values = {'accuracy': rates['accuracy'], 'balanced_accuracy': bootstrap.macro(rates['sensitivity'].T),
                  'mean_ovr_accuracy': bootstrap.macro(rates['ovr_accuracy'].T), 'auroc': bootstrap.macro(areas),
                  'brier': bootstrap.ratio(weights @ squares, weights.sum(1)),
                  'ece': calibration.ece(prob.max(1), correct, weights)}
        if p.implausible is not None:
            values['implausible'] = bootstrap.mean(p.implausible)(weights)
        if rates_by_shortcut:
            values |= rates_by_shortcut(weights)
        for rate in ('sensitivity', 'specificity'):
            values |= {f'{rate}/{name}': rates[rate][:, c] for c, name in enumerate(p.labels)}
        return values | {f'auroc/{name}': area for name, area in zip(p.labels, areas)}
    return of_classes


def _labels(p: Predictions) -> bootstrap.Statistics:
    rows = [np.flatnonzero(w > 0) for w in p.weight.T]

    def of_labels(weights: bootstrap.Weights) -> dict[str, bootstrap.Values]:
        roc, prc = ([area(p.logit[r, c], p.label[r, c], weights[:, r]) for c, r in enumerate(rows)]
                    for area in (classification.auroc, classification.auprc))
        return {'auroc': bootstrap.macro(roc), 'auprc': bootstrap.macro(prc),
                **{f'auroc/{name}': v for name, v in zip(p.labels, roc)}}
    return of_labels
