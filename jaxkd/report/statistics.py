"""What is measured of test predictions: of segmented scans, or of labels, several at once or one class of several.

The measure that decides comes first: Dice of a segmentation, accuracy where a case has one class, else AUROC. A metric
of several classes or labels alone is the mean over them; 'dice/RV' is of one.
"""
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import log_expit

from jaxkd.evaluators.predictions.schema import BY_LABEL, Predictions
from jaxkd.metrics import bootstrap, classification, multiclass, segmentation, shortcut

SCANS = {'dice': 'Dice', 'iou': 'IoU', 'hd95_mm': 'HD95 in mm', 'hd95_voxel': 'HD95 in voxels', 'assd_mm': 'ASSD in mm',
         'assd_voxel': 'ASSD in voxels', 'nsd': 'NSD', 'volume_error_ml': 'volume bias in ml',
         'abs_volume_error_ml': 'volume error in ml', 'volume_error': 'relative volume bias',
         'abs_volume_error': 'relative volume error', 'lesion_recall': 'lesion recall',
         'lesion_false': 'false lesions a scan',
         'sensitivity': 'sensitivity', 'specificity': 'specificity'}  # the last two of patients
LABELS = {'accuracy': 'accuracy', 'balanced_accuracy': 'balanced accuracy',
          'mean_ovr_accuracy': 'mean one-vs-rest accuracy',
          'auroc': 'AUROC', 'auprc': 'AUPRC', 'loss': 'log loss', 'brier': 'Brier score', 'ece': 'ECE',
          'implausible': 'implausible share', 'delta_tpr': 'ΔTPR', 'delta_fpr': 'ΔFPR', 'abs_delta_tpr': '|ΔTPR|',
          'abs_delta_fpr': '|ΔFPR|', 'worst_group': 'worst-group accuracy'}  # of images with a shortcut and without
NAMES = SCANS | LABELS
MAIN = {'dice': ('dice', 'hd95_mm', 'hd95_voxel', 'nsd', 'sensitivity', 'specificity', 'auroc'),
        'accuracy': ('accuracy', 'balanced_accuracy', 'auroc'), 'auroc': ('auroc',)}  # by the one that decides
LOWER_IS_BETTER = ('loss', 'brier', 'ece', 'implausible', 'hd95_mm', 'hd95_voxel', 'assd_mm', 'assd_voxel',
                   'abs_volume_error_ml',
           'abs_volume_error', 'lesion_false', 'abs_delta_tpr', 'abs_delta_fpr')  # is better
# Of two arms they say nothing more: 1 - 2 (1 - accuracy) / classes, and a bias, of which neither more nor less is
# better.
ASIDE = ('mean_ovr_accuracy', 'volume_error_ml', 'volume_error', 'delta_tpr', 'delta_fpr')
FEWEST = 10  # patients of a group that is looked at by itself


def primary_metric(table: Collection[str]) -> str:
    """'dice', 'accuracy' or 'auroc', whichever a table of measures is to be judged by."""
    return next((m for m in ('dice', 'accuracy') if m in table), 'auroc')


def shown(table: Mapping[str, Any]) -> list[str]:
    """Metrics of {metric: entry} that have a name here, in order; of distances those in mm, or in voxels without a
    spacing.

    Of classes, sensitivity is the balanced accuracy.
    """
    if 'dice' not in table:
        return [m for m in LABELS if m in table]
    known = [m for m in NAMES if m in table and not _unknown(table[m])]
    return [m for m in known if m.replace('_voxel', '_mm') == m or m.replace('_voxel', '_mm') not in known]


def compared(table: Mapping[str, Any]) -> list[str]:
    """Those of them that say which of two arms is better."""
    return [m for m in shown(table) if m not in ASIDE]


def main(table: Mapping[str, Any]) -> list[str]:
    """The few that stand first."""
    known = shown(table)
    return [m for m in MAIN[primary_metric(table)] if m in known]


def _unknown(entry):
    value = entry.get('value', 0) if isinstance(entry, dict) else 0
    return value is None or np.isnan(value)


def display_name(metric: str) -> str:
    """'Dice of RV' of 'dice/RV'."""
    metric, _, one = metric.partition('/')
    return NAMES.get(metric, metric) + (f' of {one}' if one else '')


def classes(table: Collection[str], *metrics: str) -> list[str]:
    """What the metrics of a table, or some of them, are told of: names of classes or labels."""
    parts = [k.partition('/') for k in table if '/' in k]
    return list(dict.fromkeys(one for metric, _, one in parts if not metrics or metric in metrics))


def several(table: Collection[str], metric: str) -> list[str]:
    """'dice/RV', 'dice/LV'; nothing where one class is all there is, whose value the metric itself has."""
    found = [f'{metric}/{c}' for c in classes(table, metric)]
    return found if len(found) > 1 else []


def lower_is_better(shown: Sequence[str], how: str) -> str:
    """'Brier score and ECE: lower is better.', of those of the measures `shown` for which it is so."""
    *most, last = [NAMES[m] for m in shown if m in LOWER_IS_BETTER] or ['']
    told = f'{", ".join(most)} and {last}' if most else last
    return f'{told[0].upper()}{told[1:]}: {how}.' if told else ''


def log_probability(p: Predictions) -> np.ndarray:
    """log-probabilities [n,C] of exclusive classes, from the one-vs-rest log-odds that predictions hold."""
    return log_expit(p.logit)


def predicted(p: Predictions) -> np.ndarray:
    """Class index [n]."""
    return p.logit.argmax(1)


def table(p: Predictions, **how: Any) -> bootstrap.Table:
    """{metric: entry} of all measures with intervals; how: n, level, seed."""
    if p.exclusive:
        found = multiclass.table(log_probability(p), p.label.argmax(1), p.patients, p.labels, **how)
        if shortcut.both_groups(p.marked):
            found |= bootstrap.intervals(_shortcut_rates(p), p.patients, **how)
        return found
    found = segmentation.table(p.measures, p.patients, **how) if p.measures else {}
    return found | (classification.table(p.logit, p.label, p.weight, p.patients, p.labels, **how) if p.labels else {})


def _shortcut_rates(p: Predictions) -> bootstrap.Statistics:
    return shortcut.statistics(predicted(p), p.label.argmax(1), np.asarray(p.marked))


def paired(a: Predictions, b: Predictions, **how: Any) -> bootstrap.Table:
    """The same of the differences a minus b; both hold the same cases in the same order."""
    if a.exclusive:
        logps = log_probability(a), log_probability(b)
        found = multiclass.paired_table(*logps, a.label.argmax(1), a.patients, a.labels, **how)
        if a.implausible is not None and b.implausible is not None:
            share_a, share_b = bootstrap.mean(a.implausible), bootstrap.mean(b.implausible)
            found |= bootstrap.paired(lambda w: {'implausible': share_a(w)}, lambda w: {'implausible': share_b(w)},
                                      a.patients, **how)
        if shortcut.both_groups(a.marked):
            rates_a, rates_b = (_shortcut_rates(p) for p in (a, b))
            found |= bootstrap.paired(rates_a, rates_b, a.patients, **how)
        return found
    found = segmentation.paired_table(a.measures, b.measures, a.patients, **how) if a.measures else {}
    return found | (classification.paired_table(a.logit, b.logit, a.label, a.weight, a.patients, a.labels, **how)
                    if a.labels else {})


def alike(parts: Sequence[Predictions]) -> list[Predictions]:
    """Predictions of the same scans in the same order -> copies whose means are of the same scans.

    They keep the measures that all have, where all have a value, and their labels where all have the same. Predictions
    of labels alone stay as they are.
    """
    if not all(p.measures for p in parts):
        return list(parts)
    shared = [m for m in parts[0].measures if all(m in p.measures for p in parts)]
    known = {m: ~np.isnan([p.measures[m] for p in parts]).any(0) for m in shared}
    parts = [dataclasses.replace(p, measures={m: np.where(k, p.measures[m], np.nan) for m, k in known.items()})
             for p in parts]
    if all(p.labels == parts[0].labels for p in parts):
        return parts
    none = [{k: getattr(p, k)[:, :0] for k in BY_LABEL.values()} for p in parts]
    return [dataclasses.replace(p, labels=(), **fields) for p, fields in zip(parts, none)]


def counted(p: Predictions, metric: str) -> np.ndarray:
    """[n]: the cases that a metric is of. Implausible are cases whose signs are known; scans count where there is a
    value.
    """
    if metric == 'implausible':
        return ~np.isnan(np.asarray(p.implausible))
    own = [v for m, v in p.measures.items() if m == metric or m.startswith(f'{metric}/')]
    if own:
        return np.asarray(~np.isnan(own).all(0))
    return np.asarray((p.weight > 0).any(1)) if p.measures else np.ones(len(p.cases), bool)


def point(p: Predictions, weights: np.ndarray) -> np.ndarray:
    """The measure that decides, in resamples: weights [R,n] -> [R]."""
    if p.exclusive:
        return bootstrap.ratio(weights @ (predicted(p) == p.label.argmax(1)).astype(float), weights.sum(1))
    if p.measures:
        return segmentation.statistics(p.measures)(weights)['dice']
    values = []
    for z, y, w in zip(p.logit.T, p.label.T, p.weight.T):
        rows = w > 0
        values.append(classification.auroc(z[rows], y[rows], weights[:, rows]))
    return bootstrap.ratio(np.nansum(values, axis=0), np.sum(~np.isnan(values), axis=0))


def groups(p: Predictions) -> dict[tuple[str, str], np.ndarray]:
    """{(column, value): row numbers} of the groups with enough patients. The class of a case is its label, no group."""
    found = {}
    for column, values in p.groups.items():
        for value in np.unique(values):
            rows = np.flatnonzero(values == value)
            if value and len(np.unique(p.patients[rows])) >= FEWEST and not (p.exclusive and column == 'class'):
                found[column, str(value)] = rows
    return found
