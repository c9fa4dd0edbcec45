"""Sigmoid, its inverse and softmax in numpy alone: the import of scipy.special takes longer than many a prediction."""
import numpy as np


def expit(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), of any shape, without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(np.signbit(x), e, 1) / (1 + e)


def logit(p: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) of 0 < p < 1."""
    return np.log(p) - np.log1p(-p)


def softmax(x: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
