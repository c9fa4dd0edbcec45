"""Sigmoid, logit and softmax are those of scipy."""
import numpy as np
import pytest
from scipy import special

from jaxkd.metrics import logistic


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_they_are_those_of_scipy_at_any_size(dtype):
    x = np.array([-np.inf, -1e4, -700, -88, -3.5, -1e-9, -0.0, 0.0, 1e-9, 2.25, 40, 710, 1e30, np.inf], dtype)
    rounding = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(logistic.expit(x), special.expit(x), rtol=rounding, atol=np.finfo(dtype).tiny)
    rows = np.random.default_rng(0).normal(0, 50, (7, 5)).astype(dtype)
    np.testing.assert_allclose(logistic.softmax(rows), special.softmax(rows, axis=-1), rtol=rounding)
    assert logistic.softmax(rows).dtype == logistic.expit(x).dtype == dtype and np.isnan(logistic.expit(np.nan))
    p = np.array([1e-6, 0.25, 0.5, 0.9, 1 - 1e-6])
    np.testing.assert_allclose(logistic.logit(p), special.logit(p), rtol=1e-14, atol=1e-15)
