"""Multi-label classification: AUROC, AUPRC, Brier score, ECE, with patient-level intervals.

Each label is a binary task over the cases with label weight > 0 (the others are uncertain or not mentioned);
the size of a weight matters for the loss alone. A macro value is the plain mean over the labels for which the
metric is defined; in a bootstrap resample, over the labels defined in that resample.
"""
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real, Shaped
from scipy.special import expit

from jaxkd import errors
from jaxkd.metrics import bootstrap, calibration

Logits = Real[np.ndarray, 'cases labels']
Labels = Real[np.ndarray, 'cases labels']  # and their weights
Task = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # row numbers; logits, labels, weights of these rows
Tasks = dict[str, Task]  # {label: Task}


class Ranked(NamedTuple):
    """Weights at the distinct scores of positives, descending, then at -infinity: [thresholds, resamples] each."""

    positive: np.ndarray  # of exactly this score
    tied: np.ndarray  # negatives of exactly this score
    tp: np.ndarray  # positives of this score or above
    fp: np.ndarray  # negatives of this score or above


def auroc(score: Real[np.ndarray, ' n'], label: Shaped[np.ndarray, ' n'],
          weights: Float[np.ndarray, 'r n'] | None = None) -> Float[np.ndarray, ' r']:
    """Area under the ROC curve, ties count one half. score, label [n]; weights [R, n] (default ones) -> [R].

    nan where a class is absent. Otherwise sklearn's roc_auc_score(label, score, sample_weight=weights[r]).
    """
    return _auroc(_ranked(score, label)(_ones(score) if weights is None else weights))


def auprc(score: Real[np.ndarray, ' n'], label: Shaped[np.ndarray, ' n'],
          weights: Float[np.ndarray, 'r n'] | None = None) -> Float[np.ndarray, ' r']:
    """Average precision, one threshold per distinct score. Arguments and result as for `auroc`.

    nan where a class is absent, so that macro AUROC and macro AUPRC average the same labels. Otherwise
    sklearn's average_precision_score(label, score, sample_weight=weights[r]).
    """
    return _auprc(_ranked(score, label)(_ones(score) if weights is None else weights))


def scores(logits: Logits, label: Labels, weight: Labels, names: Sequence[str]) -> dict[str, float]:
    """Quick point values for validation: {'auroc', 'auprc', 'loss', 'auroc/<label>'...}.

    logits, label, weight [n, C]; names: C label names. 'auroc' and 'auprc' are macro over the labels with a
    positive and a negative, nan when there is none; a single label is its own macro. 'loss' is
    sum(weight * BCE) / sum(weight), nan when no entry counts. Labels of weight 0 may hold anything, also nan.
    Raises NonFinite for a logit that is nan, BadData for a label outside {0, 1}.
    """
    tasks = _tasks(logits, label, weight, names)
    ranked = [_ranked(z, y)(_ones(z)) for _, z, y, _ in tasks.values()]
    roc = np.concatenate([_auroc(r) for r in ranked])
    prc = np.concatenate([_auprc(r) for r in ranked])
    loss = sum(np.sum(w * np.logaddexp(0, np.where(y == 1, -z, z))) for _, z, y, w in tasks.values())
    total = sum(w.sum() for _, _, _, w in tasks.values())
    values = {'auroc': bootstrap.macro(roc), 'auprc': bootstrap.macro(prc), 'loss': bootstrap.ratio(loss, total),
              **{f'auroc/{name}': v for name, v in zip(tasks, roc)}}
    return {name: float(v) for name, v in values.items()}


def table(logits: Logits, label: Labels, weight: Labels, patients: Collection, names: Sequence[str], n: int = 1000,
          level: float = 0.95, bins: int = 15, seed: int = 0) -> bootstrap.Table:
    """All metrics with intervals: {name: {'value', 'low', 'high', 'n_patients', 'replicates', ...}}.

    logits, label, weight [n, C]; patients [n]; n resamples. Metrics: auroc, auprc, brier, ece (bins of
    equal width) and ece_mass (bins of equal mass), macro under their own name, per label as 'auroc/<label>'.
    Entries of a label add 'n_positive' and 'n_negative', and count the patients of that label; macro entries
    add 'n_labels', how many were averaged. auroc and auprc are nan for a label without both classes, brier
    and ece for a label without cases. A single label is its own macro. Raises as `scores`.
    """
    tasks = _tasks(logits, label, weight, names)
    bootstrap.groups(patients, len(logits))
    return _counted(bootstrap.intervals(_statistics(tasks, bins), patients, n, level, seed), tasks, patients)


def paired_table(logits_a: Logits, logits_b: Logits, label: Labels, weight: Labels, patients: Collection,
                 names: Sequence[str], n: int = 1000, level: float = 0.95, bins: int = 15,
                 seed: int = 0) -> bootstrap.Table:
    """As `table`, for the differences model a minus model b on the same cases and the same resamples."""
    tasks_a, tasks_b = (_tasks(logits, label, weight, names) for logits in (logits_a, logits_b))
    bootstrap.groups(patients, len(logits_a))
    differences = bootstrap.paired(_statistics(tasks_a, bins), _statistics(tasks_b, bins), patients, n, level, seed)
    return _counted(differences, tasks_a, patients)


def curves(logits: Logits, label: Labels, weight: Labels, names: Sequence[str],
           bins: int = 15) -> dict[str, dict[str, np.ndarray]]:
    """Points to draw, {label: {'fpr', 'tpr' (ROC), 'recall', 'precision', 'predicted', 'observed' (reliability)}}.

    Recall rises. ROC and precision are empty for a label without both classes, reliability points for one without
    cases.
    """
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import precision_recall_curve, roc_curve
    points = {}
    for name, (_, z, y, _) in _tasks(logits, label, weight, names).items():
        both = 0 < y.sum() < len(y)
        fpr, tpr = roc_curve(y, z)[:2] if both else (np.empty(0), np.empty(0))
        precision, recall = precision_recall_curve(y, z)[:2] if both else (np.empty(0), np.empty(0))
        observed, predicted = (calibration_curve(y, expit(z), n_bins=bins, pos_label=1) if len(y)
                               else (np.empty(0), np.empty(0)))
        points[name] = dict(fpr=fpr, tpr=tpr, recall=recall[::-1], precision=precision[::-1], predicted=predicted,
                            observed=observed)
    return points


def _ones(score: Collection) -> bootstrap.Weights:
    return np.ones((1, len(score)))


def _ranked(score: Real[np.ndarray, ' n'], label: Shaped[np.ndarray, ' n']) -> Callable[[np.ndarray], Ranked]:
    """The sums from which the areas follow, as a function of weights [R, n]; sorted once for all resamples."""
    score, positive = np.asarray(score), np.asarray(label).astype(bool)
    threshold = np.unique(score[positive])
    reached = np.searchsorted(threshold, score, side='right')  # so many thresholds does a score reach
    tied = ~positive & (np.append(threshold, np.nan)[reached - 1] == score)
    group, groups = len(threshold) - reached, len(threshold) + 1
    sums = [bootstrap.sums(mask, group, groups) for mask in (positive, tied, ~positive)]

    def counts(weights: bootstrap.Weights) -> Ranked:
        equal, ties, negative = (f(weights) for f in sums)
        return Ranked(equal, ties, np.cumsum(equal, axis=0), np.cumsum(negative, axis=0))
    return counts


def _auroc(r: Ranked) -> bootstrap.Values:
    total = r.tp[-1] * r.fp[-1]
    above = np.einsum('tr,tr->r', r.positive, r.fp) - np.einsum('tr,tr->r', r.positive, r.tied) / 2
    return bootstrap.ratio(total - above, total)


def _auprc(r: Ranked) -> bootstrap.Values:
    precision = r.tp / np.maximum(r.tp + r.fp, np.finfo(float).tiny)
    return bootstrap.ratio(np.einsum('tr,tr->r', r.positive, precision), r.tp[-1] * (r.fp[-1] > 0))


def _statistics(tasks: Tasks, bins: int) -> bootstrap.Statistics:
    """A function of weights [R, n] -> {metric: [R] macro, 'metric/label': [R]}, for `bootstrap.intervals`."""
    def of_label(rows: np.ndarray, z: np.ndarray, y: np.ndarray, _: np.ndarray) -> bootstrap.Statistics:
        ranked, calibrated = _ranked(z, y), calibration.statistics(expit(z), y, bins)

        def metrics(weights: bootstrap.Weights) -> dict[str, bootstrap.Values]:
            if len(rows) < weights.shape[1]:
                weights = weights.T[rows].T
            counts = ranked(weights)
            return {'auroc': _auroc(counts), 'auprc': _auprc(counts), **calibrated(weights)}
        return metrics

    by_task = {name: of_label(*task) for name, task in tasks.items()}

    def statistics(weights: bootstrap.Weights) -> dict[str, bootstrap.Values]:
        by_label = {name: metrics(weights) for name, metrics in by_task.items()}
        values = {}
        for metric in ('auroc', 'auprc', 'brier', 'ece', 'ece_mass'):
            values[metric] = bootstrap.macro([metrics[metric] for metrics in by_label.values()])
            values |= {f'{metric}/{name}': metrics[metric] for name, metrics in by_label.items()}
        return values

    return statistics


def _counted(table: bootstrap.Table, tasks: Tasks, patients: Collection) -> bootstrap.Table:
    """The intervals with the numbers of patients, positives, negatives and labels behind them."""
    index, _ = bootstrap.groups(patients)
    counts = {label: dict(n_patients=len(np.unique(index[rows])), n_positive=int(y.sum()),
                          n_negative=int((y == 0).sum())) for label, (rows, _, y, _) in tasks.items()}
    for name, entry in table.items():
        metric, _, label = name.partition('/')
        if label:
            entry |= counts[label]
        else:
            entry['n_labels'] = sum(not np.isnan(table[f'{metric}/{label}']['value']) for label in tasks)
    return table


def _tasks(logits: Logits, label: Labels, weight: Labels, names: Sequence[str]) -> Tasks:
    """The entries of weight > 0, float64."""
    logits, label, weight = (np.asarray(a, dtype=np.float64) for a in (logits, label, weight))
    if not logits.shape == label.shape == weight.shape == (len(logits), len(names)):
        raise errors.BadData(f'logits {logits.shape}, labels {label.shape} and label weights {weight.shape} '
                             f'must all be [cases, {len(names)} labels].')
    tasks = {}
    for name, z, y, w in zip(names, logits.T, label.T, weight.T):
        rows = np.flatnonzero(w > 0)
        z, y, w = z[rows], y[rows], w[rows]
        if np.isnan(z).any():
            raise errors.NonFinite(f'Label "{name}": {np.isnan(z).sum()} of {len(z)} logits are nan. '
                                   'The network diverged, or its weights are damaged.')
        if not np.isin(y, (0, 1)).all():
            raise errors.BadData(f'Label "{name}" holds values other than 0 and 1 where its weight is not 0. '
                                 'Give uncertain and missing labels the weight 0.')
        tasks[name] = rows, z, y, w
    return tasks
