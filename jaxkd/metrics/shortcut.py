"""How much a classifier depends on a shortcut, and at which depth of the network.

b in {0, 1} marks cases with the shortcut, y those with the disease (class 1 of two), yhat = argmax is the prediction.

delta_tpr    TPR(b=1) - TPR(b=0), delta_fpr likewise: signed; abs_... without the sign. Defined where both classes have
             both groups, such as test images of which half has the shortcut in each class ("neutral"). A network that
             reads the shortcut alone has 1 and 1. Report both, and both minus those of a network trained without the
             shortcut: the shortcut's noise hides the signal too, and moves them without a learned shortcut
worst_group  the lowest accuracy among the four cells (y, b) [published: Sagawa et al., ICLR 2020]
recovery     (AUROC_m - AUROC_ERM) / (AUROC_oracle - AUROC_ERM), undefined where the denominator is below 0.02 [our
             choice]
floor        see `floor` [our choice]
prediction depth   see `depths` (Baldock et al., NeurIPS 2021 [published]); the comparison of its histograms by parts of
             a KL is ours [our choice]: that Boland et al. (MIDL 2024) use prediction depth and KL is published, their
             formula was not accessible
"""
from typing import TypeGuard

import numpy as np
from jaxtyping import Float, Int, Real, Shaped
from scipy.special import log_softmax

from jaxkd import errors
from jaxkd.metrics import bootstrap

NAMES = ('delta_tpr', 'delta_fpr', 'abs_delta_tpr', 'abs_delta_fpr', 'worst_group')
SMALLEST = 0.02  # gap between the oracle and ERM below which the recovery is undefined


def statistics(predicted: Real[np.ndarray, ' n'], label: Real[np.ndarray, ' n'],
               marked: Shaped[np.ndarray, ' n']) -> bootstrap.Statistics:
    """A function of weights [R, n] -> {metric: [R]}. predicted, label, marked: [n] of 0 and 1."""
    predicted, label, marked = (np.asarray(a).astype(int) for a in (predicted, label, marked))
    cells = {(y, b): ((label == y) & (marked == b)).astype(float) for y in (0, 1) for b in (0, 1)}

    def rates(weights: bootstrap.Weights) -> dict[str, bootstrap.Values]:
        positive = {cell: bootstrap.ratio(weights @ (rows * (predicted == 1)), weights @ rows)
                    for cell, rows in cells.items()}
        values = {f'delta_{rate}': positive[y, 1] - positive[y, 0] for rate, y in (('tpr', 1), ('fpr', 0))}
        values |= {f'abs_{k}': np.abs(v) for k, v in values.items()}
        accuracy = [positive[y, b] if y else 1 - positive[y, b] for y, b in cells if cells[y, b].any()]
        return values | {'worst_group': np.min(accuracy, axis=0)}
    return rates


def both_groups(marked: np.ndarray | None) -> TypeGuard[np.ndarray]:
    """Whether there are cases with the shortcut and cases without it."""
    return marked is not None and bool(0 < np.sum(np.asarray(marked) > 0) < len(marked))


def recovery(value: float, erm: float, oracle: float) -> float:
    """Fraction of the loss of ERM to the shortcut that a method recovers; nan where ERM lost less than 0.02."""
    return (value - erm) / (oracle - erm) if oracle - erm >= SMALLEST else float('nan')


def floor(logits: Real[np.ndarray, 'n k'], marked: Shaped[np.ndarray, ' n'], temperature: float = 1.0) -> float:
    """Least mean KL(p_T || q) in nats of a student q that depends on the shortcut state alone.

    floor = sum_b P(b) [H(mean of p over the cases with b) - mean of H(p)], p = softmax(logits [n,K] / T), b = marked
    [n]. It is the teacher's disagreement within a state: where it is near 0 the outputs hold no more information than
    the shortcut.
    """
    logp = log_softmax(np.asarray(logits, np.float64) / temperature, -1)
    p, marked, total = np.exp(logp), np.asarray(marked).astype(bool), 0.0
    for b in (False, True):
        rows = marked == b
        if rows.any():
            mean = p[rows].mean(0)
            total += rows.mean() * (-np.sum(mean * np.log(np.maximum(mean, 1e-300)))
                                    + np.sum(p[rows] * logp[rows], -1).mean())
    return max(float(total), 0.0)


def votes(train: Real[np.ndarray, 'm d'], label: Real[np.ndarray, ' m'], features: Real[np.ndarray, 'n d'],
          k: int = 30) -> Real[np.ndarray, ' n']:
    """Majority class among the k nearest training features (Euclidean): [m,d], [m], [n,d] -> [n]."""
    from sklearn.neighbors import KNeighborsClassifier
    if len(train) < k:
        raise errors.BadData(f'Prediction depth asks for {k} neighbours; there are {len(train)} training cases. Lower '
                             'k.')
    return KNeighborsClassifier(k).fit(train, label).predict(features)


def depths(votes: Real[np.ndarray, 'n taps'], final: Real[np.ndarray, ' n']) -> Int[np.ndarray, ' n']:
    """PD = min{l : the votes of all taps j >= l agree with the network}, else L + 1. [n, L], [n] -> [n]."""
    agree = np.asarray(votes) == np.asarray(final)[:, None]
    tail = np.cumprod(agree[:, ::-1], 1)  # 1 as long as all from the end agree
    return agree.shape[1] + 1 - tail.sum(1)


def histogram(depth: Int[np.ndarray, ' n'], taps: int) -> Float[np.ndarray, ' {taps}+1']:
    """Fractions of the depths 1 ... L + 1, smoothed by 1e-3."""
    counts = np.bincount(np.asarray(depth) - 1, minlength=taps + 1) + 0.0
    smoothed = counts / counts.sum() + 1e-3
    return smoothed / smoothed.sum()


def located(with_it: Float[np.ndarray, ' depths'],
            without: Float[np.ndarray, ' depths']) -> tuple[float, Float[np.ndarray, ' depths'], int]:
    """(KL, its terms h_b ln(h_b / h_c), the depth of the largest term) of two histograms over depths 1 ... L + 1."""
    with_it, without = np.asarray(with_it, float), np.asarray(without, float)
    terms = with_it * np.log(with_it / without)
    return float(terms.sum()), terms, int(np.argmax(terms)) + 1
