"""Metrics of test predictions: of segmented scans, of multi-label cases, of cases with exactly one class.

The primary metric is the Dice of a segmentation, the accuracy where a case has exactly one class, else the AUROC. A
metric without a class or label is the mean over them; 'dice/RV' is that of RV.
"""
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import log_expit

from jaxkd.evaluators.predictions.schema import BY_LABEL, Predictions
from jaxkd.metrics import bootstrap, classification, multiclass, pooled, segmentation, shortcut

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
        'accuracy': ('accuracy', 'balanced_accuracy', 'auroc'), 'auroc': ('auroc',)}  # by primary metric
LOWER_IS_BETTER = ('loss', 'brier', 'ece', 'implausible', 'hd95_mm', 'hd95_voxel', 'assd_mm', 'assd_voxel',
                   'abs_volume_error_ml', 'abs_volume_error', 'lesion_false', 'abs_delta_tpr', 'abs_delta_fpr')
# No metrics to compare two arms by: 1 - 2 (1 - accuracy) / classes is redundant, and a bias has no better direction.
ASIDE = ('mean_ovr_accuracy', 'volume_error_ml', 'volume_error', 'delta_tpr', 'delta_fpr')
FEWEST = 10  # patients of a group with metrics of its own


def primary_metric(table: Collection[str]) -> str:
    """The primary metric of a table: 'dice', 'accuracy' or 'auroc'."""
    return next((m for m in ('dice', 'accuracy') if m in table), 'auroc')


def shown(table: Mapping[str, Any]) -> list[str]:
    """Metrics of {metric: entry} in the order of NAMES; of distances those in mm, or in voxels without a spacing.

    Of classes, sensitivity is the balanced accuracy.
    """
    if 'dice' not in table:
        return [m for m in LABELS if m in table]
    defined = [m for m in NAMES if m in table and not _undefined(table[m])]
    return [m for m in defined if m.replace('_voxel', '_mm') == m or m.replace('_voxel', '_mm') not in defined]


def compared(table: Mapping[str, Any]) -> list[str]:
    """The shown metrics that rank two arms."""
    return [m for m in shown(table) if m not in ASIDE]


def main(table: Mapping[str, Any]) -> list[str]:
    """The metrics of the first columns."""
    metrics = shown(table)
    return [m for m in MAIN[primary_metric(table)] if m in metrics]


def _undefined(entry: Any) -> bool:
    value = entry.get('value', 0) if isinstance(entry, dict) else 0
    return value is None or np.isnan(value)


def display_name(metric: str) -> str:
    """'Dice of RV' of 'dice/RV'."""
    metric, _, label = metric.partition('/')
    return NAMES.get(metric, metric) + (f' of {label}' if label else '')


def classes(table: Collection[str], *metrics: str) -> list[str]:
    """Names of the classes or labels in a table, or in some of its metrics."""
    parts = [k.partition('/') for k in table if '/' in k]
    return list(dict.fromkeys(label for metric, _, label in parts if not metrics or metric in metrics))


def per_class(table: Collection[str], metric: str) -> list[str]:
    """'dice/RV', 'dice/LV'; [] for a single class, whose value is that of the metric."""
    keys = [f'{metric}/{c}' for c in classes(table, metric)]
    return keys if len(keys) > 1 else []


def lower_is_better(shown: Sequence[str], meaning: str) -> str:
    """'Brier score and ECE: lower is better.', of those of the shown metrics that are in LOWER_IS_BETTER."""
    *first, last = [NAMES[m] for m in shown if m in LOWER_IS_BETTER] or ['']
    names = f'{", ".join(first)} and {last}' if first else last
    return f'{names[0].upper()}{names[1:]}: {meaning}.' if names else ''


def predicted(p: Predictions) -> np.ndarray:
    """Class index [n]."""
    return p.logit.argmax(1)


def table(p: Predictions, **options: Any) -> bootstrap.Table:
    """{metric: entry} of all metrics with intervals; options: n, level, seed."""
    if p.exclusive:  # log_expit: predictions hold one-vs-rest log-odds
        entries = multiclass.table(log_expit(p.logit), p.label.argmax(1), p.patients, p.labels, **options)
        if shortcut.both_groups(p.marked):
            entries |= bootstrap.intervals(_shortcut_rates(p), p.patients, **options)
        return entries
    entries = segmentation.table(p.measures, p.patients, **options) if p.measures else {}
    if p.labels:
        entries |= classification.table(p.logit, p.label, p.weight, p.patients, p.labels, **options)
    return entries


def _shortcut_rates(p: Predictions) -> bootstrap.Statistics:
    return shortcut.statistics(predicted(p), p.label.argmax(1), np.asarray(p.marked))


def paired(a: Predictions, b: Predictions, **options: Any) -> bootstrap.Table:
    """As `table`, for the differences a minus b; both hold the same cases in the same order."""
    if a.exclusive:
        logps = log_expit(a.logit), log_expit(b.logit)
        entries = multiclass.paired_table(*logps, a.label.argmax(1), a.patients, a.labels, **options)
        if a.implausible is not None and b.implausible is not None:
            mean_a, mean_b = bootstrap.mean(a.implausible), bootstrap.mean(b.implausible)
            entries['implausible'] = bootstrap.interval(lambda w: mean_a(w) - mean_b(w), a.patients, **options)
        if shortcut.both_groups(a.marked):
            entries |= bootstrap.paired(_shortcut_rates(a), _shortcut_rates(b), a.patients, **options)
        return entries
    entries = segmentation.paired_table(a.measures, b.measures, a.patients, **options) if a.measures else {}
    if a.labels:
        entries |= classification.paired_table(a.logit, b.logit, a.label, a.weight, a.patients, a.labels, **options)
    return entries


def alike(parts: Sequence[Predictions]) -> list[Predictions]:
    """Predictions of the same scans in the same order -> copies whose means are over the same scans.

    They hold the common measures, where all have a value, and the labels where all have the same. Predictions of labels
    alone are not changed.
    """
    if not all(p.measures for p in parts):
        return list(parts)
    common = [m for m in parts[0].measures if all(m in p.measures for p in parts)]
    defined = {m: ~np.isnan([p.measures[m] for p in parts]).any(0) for m in common}
    parts = [dataclasses.replace(p, measures={m: np.where(d, p.measures[m], np.nan) for m, d in defined.items()})
             for p in parts]
    if all(p.labels == parts[0].labels for p in parts):
        return parts
    return [dataclasses.replace(p, labels=(), **{k: getattr(p, k)[:, :0] for k in BY_LABEL.values()}) for p in parts]


def counted(p: Predictions, metric: str) -> np.ndarray:
    """bool [n]: the cases of a metric. Of `implausible` those with known signs; of a measure those with a value."""
    if metric == 'implausible':
        return ~np.isnan(np.asarray(p.implausible))
    if columns := [v for m, v in p.measures.items() if m == metric or m.startswith(f'{metric}/')]:
        return np.asarray(~np.isnan(columns).all(0))
    return np.asarray((p.weight > 0).any(1)) if p.measures else np.ones(len(p.cases), bool)


def point(p: Predictions, weights: np.ndarray) -> np.ndarray:
    """The primary metric in resamples: weights [R,n] -> [R]."""
    return pooled.statistics(p)(weights)['accuracy' if p.exclusive else 'dice' if p.segmented else 'auroc']


def groups(p: Predictions) -> dict[tuple[str, str], np.ndarray]:
    """{(column, value): row numbers} of the groups with at least FEWEST patients; the class of a case is no group."""
    by_value = {}
    for column, values in p.groups.items():
        for value in np.unique(values):
            rows = np.flatnonzero(values == value)
            if value and len(np.unique(p.patients[rows])) >= FEWEST and not (p.exclusive and column == 'class'):
                by_value[column, str(value)] = rows
    return by_value
