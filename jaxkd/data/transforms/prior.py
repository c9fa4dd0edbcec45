"""What the clinic knows: P(class | texture, duct), counted on training cases or read from a clinician's table.

Counted: cases of the training part whose labels are all known, with Laplace smoothing, (n + alpha) / (N + alpha C)
[proposed by the specification of CPKD]. Read: `file`, CSV with the columns texture, duct (the names of `tasks`; class
names or indices), p_class0, p_class1, ...; one row for each pair.
"""
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform, TransformPlugin
from jaxkd.data.formats import csv_table

DEFAULTS = dict(
    tasks=('texture', 'duct'),  # the two labels that index the prior, in this order
    classes=(3, 3, 3),  # numbers of classes of the two tasks and of the label: known before anything is counted
    alpha=1.0,  # counts that are added to every class (Laplace smoothing), above 0
    file='',  # table prior.csv of a clinician; '': counted on training cases
)

_SUM = 1e-3  # how far a row of a table, rounded by hand, may be from 1


def fit(hp: ConfigDict, source: Any, indices: Sequence[int], progress: Callable) -> dict:
    """{'prior': [T][D][C] nested lists}. No volume is read."""
    for task in hp.tasks:
        if task not in source.tasks:
            raise errors.ConfigError(f'prior.tasks: {source.name} has no label "{task}".'
                                     f'{errors.nearest(task, source.tasks) if source.tasks else ""}')
    names = [source.tasks[task] for task in hp.tasks]
    if (shape := (*map(len, names), len(source.labels))) != tuple(hp.classes):
        raise errors.ConfigError(f'prior.classes = {tuple(hp.classes)}, but {source.name} has {shape} classes '
                                 f'({", ".join(hp.tasks)}, label).')
    if hp.file:
        return {'prior': read(hp.file, hp.tasks, names, len(source.labels)).tolist()}
    texture, duct, label = (np.asarray(source.targets[name])[list(indices)] for name in (*hp.tasks, 'label'))
    return {'prior': count(texture, duct, label, shape, hp.alpha).tolist()}


def build(hp: ConfigDict, fitted: dict | None = None) -> Transform:
    """fitted: what `fit` returned. Without one all classes are equally likely, which is enough to know shapes."""
    if len(hp.tasks) != 2 or len(hp.classes) != 3 or min(hp.classes) < 1 or not hp.alpha > 0:
        raise errors.ConfigError('prior: tasks must be two names, classes three positive numbers, alpha above 0.')
    prior = np.full(hp.classes, 1 / hp.classes[-1]) if fitted is None else np.array(fitted['prior'])
    if prior.shape != tuple(hp.classes):
        raise errors.ConfigError(f'prior.classes = {tuple(hp.classes)}, but the stored prior has shape {prior.shape}.')
    return Transform(functools.partial(apply, prior=prior.astype(np.float32)), reads=(), writes=('prior',))


def apply(record: Record, prior: np.ndarray) -> Record:
    """Adds 'prior', float32 [T,D,C]."""
    return {**record, 'prior': prior}


def count(texture: np.ndarray, duct: np.ndarray, label: np.ndarray, shape: tuple[int, ...],
          alpha: float = 1.0) -> np.ndarray:
    """float64 [T,D,C] of smoothed shares; a label below 0 is unknown and its case left out."""
    counts = np.zeros(shape)
    labelled = (texture >= 0) & (duct >= 0) & (label >= 0)
    np.add.at(counts, (texture[labelled], duct[labelled], label[labelled]), 1)
    return (counts + alpha) / (counts.sum(-1, keepdims=True) + alpha * shape[-1])


def read(path: str, tasks: Sequence[str], names: Sequence[Sequence[str]], classes: int) -> np.ndarray:
    """float64 [T,D,C] from a table; rows are divided by their sums."""
    p_columns = [f'p_class{c}' for c in range(classes)]
    columns, rows = csv_table.read(path, (*tasks, *p_columns))
    if spare := [c for c in columns if c.startswith('p_class') and c not in p_columns]:
        raise errors.BadData(f'{path} has a column "{spare[0]}", but there are {classes} classes.')
    prior = np.full((*map(len, names), classes), np.nan)
    for number, cells in rows:
        pair = tuple(_index(path, number, task, cells[columns.index(task)], known) for task, known in zip(tasks, names))
        try:
            row = np.array([float(cells[columns.index(c)]) for c in p_columns])
        except ValueError:
            row = np.array([np.nan])
        if not (row >= 0).all() or abs(row.sum() - 1) > _SUM:  # False for nan
            raise errors.BadData(f'{path}, row {number}: p_class0 to {p_columns[-1]} must be numbers from 0 to 1 that '
                                 'sum to 1.')
        if not np.isnan(prior[pair]).any():
            raise errors.BadData(f'{path}, row {number}: this {tasks[0]} and {tasks[1]} came before. Keep one of the '
                                 'rows.')
        prior[pair] = row / row.sum()
    if np.isnan(prior).any():
        t, d, _ = np.argwhere(np.isnan(prior))[0]
        raise errors.BadData(f'{path} has no row for {tasks[0]} {names[0][t]} with {tasks[1]} {names[1][d]}. Every '
                             'pair needs one.')
    return prior


def _index(path, number, task, cell, names):
    indices = {**{str(i): i for i in range(len(names))}, **{name: i for i, name in enumerate(names)}}
    if cell not in indices:
        raise errors.BadData(f'{path}, row {number}: column "{task}" must be one of {", ".join(names)}, or 0 to '
                             f'{len(names) - 1}.')
    return indices[cell]


PLUGIN = TransformPlugin(fit=fit)
