"""Multi-label classification: AUROC, AUPRC, Brier score, ECE, with patient-level intervals.

Every label is a binary task of its own over the cases with label weight > 0 (the rest is uncertain or not
mentioned); the size of a weight matters for the loss alone. A macro value is the plain mean over the labels
for which the metric is defined; in a bootstrap resample, over the labels defined in that resample.
"""
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float, Int, Real, Shaped
from scipy.special import expit

from jaxkd import errors
from jaxkd.metrics import bootstrap, calibration

Logits = Real[np.ndarray, 'cases labels']
Labels = Real[np.ndarray, 'cases labels']  # and their weights


def auroc(score: Real[np.ndarray, ' n'], label: Shaped[np.ndarray, ' n'],
          weights: Float[np.ndarray, 'r n'] | None = None) -> Float[np.ndarray, ' r']:
    """Area under the ROC curve, ties count one half. score, label [n]; weights [R, n] (default ones) -> [R].

    nan where a class is absent. Otherwise sklearn's roc_auc_score(label, score, sample_weight=weights[r]).
    """
    return _auroc(*_ranked(score, label, weights))


def auprc(score: Real[np.ndarray, ' n'], label: Shaped[np.ndarray, ' n'],
          weights: Float[np.ndarray, 'r n'] | None = None) -> Float[np.ndarray, ' r']:
    """Average precision, one threshold per distinct score. Arguments and result as for `auroc`.

    nan where a class is absent, so that macro AUROC and macro AUPRC average the same labels. Otherwise
    sklearn's average_precision_score(label, score, sample_weight=weights[r]).
    """
    return _auprc(*_ranked(score, label, weights))


def scores(logits: Logits, label: Labels, weight: Labels, names: Sequence[str]) -> dict[str, float]:
    """Quick point values for validation: {'auroc', 'auprc', 'loss', 'auroc/<label>'...}.

    logits, label, weight [n, C]; names: C label names. 'auroc' and 'auprc' are macro over the labels with a
    positive and a negative, nan when there is none; a single label is its own macro. 'loss' is
    sum(weight * BCE) / sum(weight), nan when no entry counts. Labels of weight 0 may hold anything, also nan.
    Raises NonFinite for a logit that is nan, BadData for a label outside {0, 1}.
    """
    tasks = _tasks(logits, label, weight, names)
    ranked = [_ranked(z, y, None) for _, z, y, _ in tasks.values()]
    roc = np.concatenate([_auroc(*r) for r in ranked])
    prc = np.concatenate([_auprc(*r) for r in ranked])
    loss = sum(np.sum(w * np.logaddexp(0, np.where(y == 1, -z, z))) for _, z, y, w in tasks.values())
    total = sum(w.sum() for _, _, _, w in tasks.values())
    values = {'auroc': _macro(roc), 'auprc': _macro(prc), 'loss': bootstrap.ratio(loss, total),
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
    found = bootstrap.intervals(_statistics(tasks, bins), patients, n, level, seed)
    return _counted(found, tasks, patients)


def paired_table(logits_a: Logits, logits_b: Logits, label: Labels, weight: Labels, patients: Collection,
                 names: Sequence[str], n: int = 1000, level: float = 0.95, bins: int = 15,
                 seed: int = 0) -> bootstrap.Table:
    """As `table`, for the differences model a minus model b on the same cases and the same resamples."""
    tasks_a, tasks_b = (_tasks(logits, label, weight, names) for logits in (logits_a, logits_b))
    bootstrap.groups(patients, len(logits_a))
    found = bootstrap.paired(_statistics(tasks_a, bins), _statistics(tasks_b, bins), patients, n, level, seed)
    return _counted(found, tasks_a, patients)


def curves(logits: Logits, label: Labels, weight: Labels, names: Sequence[str],
           bins: int = 15) -> dict[str, dict[str, np.ndarray]]:
    """Points to draw, {label: {'fpr', 'tpr' (ROC), 'predicted', 'observed' (reliability diagram)}}.

    ROC points are empty for a label without both classes, reliability points for a label without cases.
    """
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import roc_curve
    drawn = {}
    for name, (_, z, y, _) in _tasks(logits, label, weight, names).items():
        fpr, tpr = roc_curve(y, z)[:2] if 0 < y.sum() < len(y) else (np.empty(0), np.empty(0))
        observed, predicted = (calibration_curve(y, expit(z), n_bins=bins, pos_label=1) if len(y)
                               else (np.empty(0), np.empty(0)))
        drawn[name] = dict(fpr=fpr, tpr=tpr, predicted=predicted, observed=observed)
    return drawn


def _ranked(score, label, weights):
    """Weight of the positives and of the negatives at each distinct score, ascending: twice [R, distinct]."""
    order = np.argsort(score)
    score = np.asarray(score)[order]
    weights = np.ones((1, len(order))) if weights is None else np.take(weights, order, axis=1)
    positive = weights * np.asarray(label, dtype=float)[order]
    negative = weights - positive
    new = np.concatenate([np.ones(min(1, len(score)), bool), score[1:] != score[:-1]])
    if not new.all():
        positive, negative = (np.add.reduceat(m, np.flatnonzero(new), axis=1) for m in (positive, negative))
    return positive, negative


def _auroc(positive, negative):
    below = np.cumsum(negative, axis=1) - negative / 2
    return bootstrap.ratio(np.einsum('rn,rn->r', positive, below), positive.sum(1) * negative.sum(1))


def _auprc(positive, negative):
    above = np.cumsum(positive[:, ::-1], axis=1)[:, ::-1]
    chosen = np.cumsum((positive + negative)[:, ::-1], axis=1)[:, ::-1]
    area = np.einsum('rn,rn->r', positive, above / np.where(chosen > 0, chosen, 1))
    return bootstrap.ratio(area, positive.sum(1) * (negative.sum(1) > 0))


def _statistics(tasks, bins):
    """A function of weights [R, n] -> {metric: [R] macro, 'metric/label': [R]}, for `bootstrap.intervals`."""
    def one(rows: Int[np.ndarray, ' n'], z: Float[np.ndarray, ' n'], y: Float[np.ndarray, ' n'],
            weights: bootstrap.Weights) -> dict[str, bootstrap.Values]:
        weights, prob, ranked = weights[:, rows], expit(z), _ranked(z, y, weights[:, rows])
        return {'auroc': _auroc(*ranked), 'auprc': _auprc(*ranked),
                'brier': calibration.brier(prob, y, weights), 'ece': calibration.ece(prob, y, weights, bins),
                'ece_mass': calibration.ece(prob, y, weights, bins, equal_mass=True)}

    def statistics(weights: bootstrap.Weights) -> dict[str, bootstrap.Values]:
        by_label = {name: one(rows, z, y, weights) for name, (rows, z, y, _) in tasks.items()}
        values = {}
        for metric in ('auroc', 'auprc', 'brier', 'ece', 'ece_mass'):
            values[metric] = _macro([found[metric] for found in by_label.values()])
            values |= {f'{metric}/{name}': found[metric] for name, found in by_label.items()}
        return values

    return statistics


def _macro(values):
    """Mean over the first axis, the labels, of what is defined; nan where nothing is."""
    return bootstrap.ratio(np.nansum(values, axis=0), np.sum(~np.isnan(values), axis=0))


def _counted(found, tasks, patients):
    """The intervals with what they rest on."""
    patients = np.array([str(p) for p in patients])
    for name, entry in found.items():
        metric, _, label = name.partition('/')
        if label:
            rows, _, y, _ = tasks[label]
            entry.update(n_patients=len(set(patients[rows])), n_positive=int(np.sum(y == 1)),
                         n_negative=int(np.sum(y == 0)))
        else:
            entry['n_labels'] = sum(not np.isnan(found[f'{metric}/{label}']['value']) for label in tasks)
    return found


def _tasks(logits, label, weight, names):
    """The entries that count, float64: {label name: (rows, logits [rows], label [rows], weight [rows])}."""
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
