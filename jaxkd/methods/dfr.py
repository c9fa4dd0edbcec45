"""Deep feature reweighting (Kirichenko et al., ICLR 2023 [published]): the last layer of a trained network is refitted
by l1 logistic regression on held-out data, balanced over groups; the features stay as they are.

    z = V (h - m) / s + c     h pooled features, m and s their mean and standard deviation on the held-out data; folded
                              into the head as kernel V / s and bias c - V m / s

The stage's training part is the held-out data and its `init` the network. Groups are the classes, or (y, b) if the
batch holds b (transform `shortcut` with reveal=True) and the part has both. In each of `draws` draws every group has as
many cases as the smallest. C is chosen in the first half of a draw by the accuracy of the worst group in the second
half; then coefficients are averaged over the draws [published]. Training takes one step, which changes no parameter.
Two classes.
"""
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors, steps
from jaxkd.contracts import Method
from jaxkd.data.dataset import Dataset
from jaxkd.runtime import log
from jaxkd.state import Context, Mean, Progress, TrainState

DEFAULTS = dict(
    c=(1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01),  # C of the logistic regression to choose from; smaller: fewer features
    draws=20,  # balanced draws whose coefficients are averaged, 1 or more
    head='head/linear',  # path of the last layer in the network's parameters
)


def terms(student: dict, teachers: dict, heads: dict, batch: dict, hp: ConfigDict) -> dict:
    return {'features': student['pooled'].mean(-1)}


def weights(hp: ConfigDict, progress: Progress) -> dict:
    """Weight 0: the head is fitted before the first step."""
    return {'features': 0.0}


def solve(state: TrainState, dataset: Dataset, predict: Callable[..., Any], hp: ConfigDict, seed: int) -> TrainState:
    """The state with the head fitted to the cases that the dataset trains on. predict: the Predictor of the student."""
    params = state.params['student']
    path = next((p for p in (hp.head.split('/'), ['of', *hp.head.split('/')]) if _at(params, p) is not None), None)
    if path is None:
        raise errors.ConfigError(f'dfr.head: the network has no parameters "{hp.head}". Known: {", ".join(params)}.')
    cases = predict('train', ('pooled',), keep=dataset.partition.labelled(dataset.partition.train_indices()))
    plan, label = dataset.transforms.assignments.get('shortcut'), cases.label.astype(int)
    bias = plan.marked[cases.index] if plan is not None and dataset.config.shortcut.reveal else np.zeros(len(label))
    group = 2 * label + bias.astype(int)
    kernel, offset = refit(cases.outputs['pooled'].astype(np.float64), label, group, hp.c, hp.draws, seed)
    head = _at(params, path)
    # softmax of two is a sigmoid
    new = {'kernel': np.stack([-kernel / 2, kernel / 2], 1), 'bias': np.array([-offset / 2, offset / 2])}
    if head['kernel'].shape != new['kernel'].shape:
        raise errors.ConfigError(f'dfr refits a head of two classes; this one is {head["kernel"].shape}.')
    new = jax.tree.map(lambda a, old: jax.numpy.asarray(a, old.dtype), new, head)
    return dataclasses.replace(state, params={**state.params, 'student': _put(params, path, new)})


def refit(h: np.ndarray, label: np.ndarray, group: np.ndarray, strengths: Sequence[float], draws: int,
          seed: int) -> tuple[np.ndarray, float]:
    """h [n,d], label in {0,1} [n], group int [n] -> kernel [d] and offset of the log-odds of class 1."""
    from sklearn.linear_model import LogisticRegression
    mean, spread = h.mean(0), h.std(0)
    scale = np.where(spread > 1e-12, spread, 1)
    x = (h - mean) / scale
    rng = np.random.default_rng(seed)
    names, counts = np.unique(group, return_counts=True)
    if len(np.unique(label)) < 2 or counts.min() < 4:
        raise errors.BadData(f'dfr needs both classes and at least 4 cases of each group; groups 2 y + b have '
                             f'{dict(zip(names, counts))}.')

    def balanced():
        return rng.permutation(np.concatenate([rng.permutation(np.flatnonzero(group == g))[:counts.min()]
                                               for g in names]))

    def fit(rows, c):
        return LogisticRegression(l1_ratio=1.0, C=c, solver='liblinear', random_state=seed).fit(x[rows], label[rows])

    def worst(model, rows):
        right = model.predict(x[rows]) == label[rows]
        return min(right[group[rows] == g].mean() for g in names if (group[rows] == g).any())
    first = balanced()
    fitted, tested = first[:len(first) // 2], first[len(first) // 2:]
    c = (max(strengths, key=lambda c: worst(fit(fitted, c), tested)) if len(np.unique(label[fitted])) == 2
         else strengths[0])
    models = [fit(balanced(), c) for _ in range(draws)]
    kernel = np.mean([m.coef_[0] for m in models], 0) / scale
    log.info(f'dfr: C = {c:g}, {counts.min()} cases of each of {len(names)} groups, {np.count_nonzero(kernel)} of '
             f'{len(kernel)} features')
    return kernel, np.mean([m.intercept_[0] for m in models]) - kernel @ mean


def build(hp: ConfigDict, context: Context) -> Method:
    if hp.draws < 1 or not hp.c or min(hp.c) <= 0:
        raise errors.ConfigError(f'dfr: draws = {hp.draws} and all of c = {tuple(hp.c)} must be positive.')
    unfitted = steps.make_method(terms, weights, hp, context)

    def train_step(state, frozen, batch):
        return state.replace(step=state.step + 1), {'loss': Mean.of(0 * batch['mask'], batch['mask'])}
    return Method(unfitted.init, train_step, solve=functools.partial(solve, hp=hp, seed=context.seed),
                  loss_weights=unfitted.loss_weights, teacher_terms=tuple)


def _at(tree, path):
    for key in path:
        if not isinstance(tree, dict) or key not in tree:
            return None
        tree = tree[key]
    return tree


def _put(tree, path, value):
    return {**tree, path[0]: _put(tree[path[0]], path[1:], value)} if path else value
