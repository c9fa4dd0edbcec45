"""Softmax classes, exactly one a case: accuracies, sensitivity and its relatives, AUROC, calibration, with intervals.

Class c against the rest, with TP, FP, FN, TN over N cases (standard definitions [published]):

accuracy            trace of the confusion matrix / N: the fraction of correctly classified cases
accuracy/c          (TP + TN) / N, one-vs-rest; mean_ovr_accuracy is its mean. It counts the many TN of the other
                    classes, so it is higher than `accuracy` and cannot be compared with it:
                    1 - 2 (1 - accuracy) / K for K classes
sensitivity/c       TP / (TP + FN); balanced_accuracy is its mean
specificity/c       TN / (TN + FP)
precision/c         TP / (TP + FP)
f1/c                2 TP / (2 TP + FP + FN)
auroc/c, auprc/c    of the probability of c, one-vs-rest
brier               mean over cases of sum_c (p_c - y_c)^2, in [0, 2]
loss                mean of -log p_y
ece                 of the largest probability of a case against the correctness of that class (Guo et al., 2017)

The predicted class has the largest probability, the first among equals. A name without a class is the plain mean over
classes, except for accuracy, brier, loss and ece. Absent classes [our choice]: a ratio with denominator 0 is nan
(sensitivity, auroc, auprc and, of a class that is never predicted, precision; f1 only of a class that is neither
present nor predicted), and a mean is over the classes for which the metric is defined, in a bootstrap resample over
those defined in that resample.
"""
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, Real, Shaped
from scipy.special import log_softmax, logsumexp

from jaxkd import errors
from jaxkd.metrics import bootstrap, calibration, classification

HEADLINE = ('accuracy', 'balanced_accuracy', 'mean_ovr_accuracy', 'auroc')
BY_CLASS = ('accuracy', 'sensitivity', 'specificity', 'precision', 'f1', 'auroc', 'auprc')

Logits = Real[np.ndarray, 'cases classes']
Labels = Real[np.ndarray, ' cases']  # index of the class


def confusion(predicted: Real[np.ndarray, ' n'], label: Real[np.ndarray, ' n'], classes: int,
              weights: Float[np.ndarray, 'r n'] | None = None) -> Float[np.ndarray, 'r {classes} {classes}']:
    """Counts [R, true class, predicted class] of predicted, label int [n]; weights [R, n] (default ones)."""
    weights = np.ones((1, len(label))) if weights is None else weights
    pair = np.asarray(label, int) * classes + np.asarray(predicted, int)
    return (weights @ np.eye(classes**2)[pair]).reshape(-1, classes, classes)


def rates(counts: Real[np.ndarray, 'r k k']) -> dict[str, Float[np.ndarray, 'r ...']]:
    """Confusion matrices [R, K, K] (rows true, columns predicted) -> {metric: [R], or [R, K] for those of a class}."""
    n, tp, true, predicted = counts.sum((1, 2)), np.einsum('rkk->rk', counts), counts.sum(2), counts.sum(1)
    total = n[:, None]
    return {'accuracy': bootstrap.ratio(tp.sum(1), n),
            'ovr_accuracy': bootstrap.ratio(total - true - predicted + 2 * tp, np.broadcast_to(total, tp.shape)),
            'sensitivity': bootstrap.ratio(tp, true),
            'specificity': bootstrap.ratio(total - true - predicted + tp, total - true),
            'precision': bootstrap.ratio(tp, predicted), 'f1': bootstrap.ratio(2 * tp, true + predicted)}


def log_odds(logits: Real[np.ndarray, 'n k']) -> Float[np.ndarray, 'n k']:
    """One-vs-rest log-odds log(p_c / (1 - p_c)) of the softmax: [n, K] -> [n, K], finite where p_c rounds to 0 or 1."""
    logits = np.asarray(logits, dtype=np.float64)
    return logits - np.stack([logsumexp(np.delete(logits, c, axis=1), axis=1) for c in range(logits.shape[1])], 1)


def scores(logits: Logits, label: Labels, names: Sequence[str]) -> dict[str, float]:
    """Quick point values for validation: {'accuracy', 'balanced_accuracy', 'mean_ovr_accuracy', 'auroc', 'loss'}.

    logits [n, K] or log-probabilities; label int [n]; names: K class names. 'auroc' is nan when no class has both a
    case and a case of another class. Raises NonFinite for a logit that is nan, BadData for a label that is no class.
    """
    logp, label = _checked(logits, label, names)
    values = _statistics(logp, label, names, 15, (*HEADLINE, 'loss'))(np.ones((1, len(label))))
    return {name: float(value[0]) for name, value in values.items()}


def table(logits: Logits, label: Labels, patients: Collection, names: Sequence[str], n: int = 1000, level: float = 0.95,
          bins: int = 15, seed: int = 0) -> bootstrap.Table:
    """All metrics with intervals: {name: {'value', 'low', 'high', 'n_patients', 'replicates', ...}}.

    logits [n, K] or log-probabilities; label int [n]; patients [n]; n resamples. Entries of a class add 'n_positive'
    and 'n_negative' (cases), means over classes 'n_labels', how many were averaged. Raises as `scores`.
    """
    logp, label = _checked(logits, label, names)
    bootstrap.groups(patients, len(logp))
    return _counted(bootstrap.intervals(_statistics(logp, label, names, bins), patients, n, level, seed), label, names)


def paired_table(logits_a: Logits, logits_b: Logits, label: Labels, patients: Collection, names: Sequence[str],
                 n: int = 1000, level: float = 0.95, bins: int = 15, seed: int = 0) -> bootstrap.Table:
    """As `table`, for the differences model a minus model b on the same cases and the same resamples."""
    (a, label), (b, _) = (_checked(logits, label, names) for logits in (logits_a, logits_b))
    bootstrap.groups(patients, len(a))
    differences = bootstrap.paired(_statistics(a, label, names, bins), _statistics(b, label, names, bins), patients, n,
                                   level, seed)
    return _counted(differences, label, names)


def subgroups(logits: Logits, label: Labels, patients: Collection, names: Sequence[str],
              groups: Mapping[str, Shaped[np.ndarray, ' cases']], n: int = 1000, level: float = 0.95,
              seed: int = 0) -> bootstrap.Table:
    """The metrics of HEADLINE in every group of cases: {'accuracy@subgroup=challenging': entry, ...}.

    Arguments as for `table`; groups {column: [n] str, '' where unknown}; a column "class" is the label itself and is
    left out. Patients are resampled within the group. Entries add 'n_cases'.
    """
    logp, label = _checked(logits, label, names)
    patients = np.array([str(p) for p in patients])
    table: bootstrap.Table = {}
    for column, values in groups.items():
        values = np.asarray(values, dtype=str)
        for value in [] if column == 'class' else np.unique(values[values != '']):
            rows = np.flatnonzero(values == value)
            statistics = _statistics(logp[rows], label[rows], names, 15, HEADLINE)
            entries = bootstrap.intervals(statistics, patients[rows], n, level, seed)
            table |= {f'{name}@{column}={value}': {**entries[name], 'n_cases': len(rows)} for name in HEADLINE}
    return table


def implausible(prior: Real[np.ndarray, '...'], signs: Sequence[np.ndarray] | Int[np.ndarray, 'signs n'],
                predicted: Int[np.ndarray, ' n'], delta: float = 0.1) -> Float[np.ndarray, ' n']:
    """Does a prediction contradict the true signs, prior[sign, ..., class] < delta? -> float [n], 1 yes, 0 no.

    prior: table of P(class | signs), one axis for each of `signs` (int [n], e.g. texture and duct) and one for the
    class. nan where a sign is unknown (-1). Raises BadData for a table of another shape.
    """
    prior, signs, predicted = np.asarray(prior, float), np.asarray(signs, int), np.asarray(predicted, int)
    index = (*signs, predicted)
    valid = (signs >= 0).all(0)
    if prior.ndim != len(index) or any((i[valid] >= size).any() for i, size in zip(index, prior.shape)):
        raise errors.BadData(f'The prior table has the shape {prior.shape}; it must hold one axis for each of the '
                             f'{len(signs)} signs and one for the class, with a place for every value.')
    return np.where(valid, prior[tuple(np.where(valid, i, 0) for i in index)] < delta, np.nan)


def _statistics(logp: Logits, label: Labels, names: Sequence[str], bins: int,
                wanted: Sequence[str] | None = None) -> bootstrap.Statistics:
    """A function of weights [R, n] -> {metric: [R], 'metric/class': [R]}, for `bootstrap.intervals`."""
    truth, predicted = np.eye(len(names))[label], logp.argmax(1)
    odds = np.round(log_odds(logp), 9)  # round-off must not break ties, which count one half
    prob = np.exp(logp)
    per_case = {'brier': np.square(prob - truth).sum(1), 'loss': -np.take_along_axis(logp, label[:, None], 1)[:, 0]}

    def statistics(weights: bootstrap.Weights) -> dict[str, bootstrap.Values]:
        by_class = rates(confusion(predicted, label, len(names), weights))
        values = {'accuracy': by_class.pop('accuracy')}
        by_class['accuracy'] = by_class.pop('ovr_accuracy')
        for metric, area in (('auroc', classification.auroc), ('auprc', classification.auprc)):
            if wanted is None or metric in wanted:
                by_class[metric] = np.stack([area(odds[:, c], truth[:, c], weights) for c in range(len(names))], 1)
        means = {metric: bootstrap.macro(v, axis=1) for metric, v in by_class.items()}
        values |= {'balanced_accuracy': means['sensitivity'], 'mean_ovr_accuracy': means.pop('accuracy'), **means}
        values |= {metric: bootstrap.ratio(weights @ v, weights.sum(1)) for metric, v in per_case.items()}
        values['ece'] = calibration.ece(prob.max(1), (predicted == label).astype(float), weights, bins)
        if wanted is not None:
            return {metric: values[metric] for metric in wanted}
        return values | {f'{metric}/{name}': v[:, c] for metric, v in by_class.items() for c, name in enumerate(names)}
    return statistics


def _counted(table: bootstrap.Table, label: Labels, names: Sequence[str]) -> bootstrap.Table:
    """The intervals with the numbers of positives, negatives and classes behind them."""
    averaged = {'balanced_accuracy': 'sensitivity', 'mean_ovr_accuracy': 'accuracy', 'accuracy': ''}
    for key, entry in table.items():
        metric, _, name = key.partition('/')
        if name:
            positive = int(np.sum(label == names.index(name)))
            entry |= dict(n_positive=positive, n_negative=len(label) - positive)
        elif f'{(of_class := averaged.get(metric, metric))}/{names[0]}' in table:
            entry['n_labels'] = sum(not np.isnan(table[f'{of_class}/{c}']['value']) for c in names)
    return table


def _checked(logits: Logits, label: Labels, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(log-probabilities float64 [n, K], label int [n])."""
    logits, label = np.asarray(logits, dtype=np.float64), np.asarray(label)
    if logits.ndim != 2 or logits.shape != (len(label), len(names)) or label.ndim != 1 or len(names) < 2:
        raise errors.BadData(f'logits {logits.shape} and labels {label.shape} must be [cases, classes] and [cases], '
                             f'with the {len(names)} classes {", ".join(map(str, names))} (at least two).')
    with np.errstate(invalid='ignore'):
        logp = log_softmax(logits, axis=1) if len(logits) else logits
    if np.isnan(logp).any():
        raise errors.NonFinite(f'{np.isnan(logp).any(1).sum()} of {len(logp)} cases have logits that are nan or '
                               'infinite. The network diverged, or its weights are damaged.')
    invalid = np.flatnonzero(~np.isin(label, np.arange(len(names))))
    if len(invalid):
        raise errors.BadData(f'Case {invalid[0]} (counted from 0) has the label {label[invalid[0]]}; a '
                             f'class is one of 0 to {len(names) - 1}.')
    return logp, label.astype(int)
