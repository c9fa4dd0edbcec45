"""Rates of a shortcut, its floor, prediction depth: worked numbers and limiting cases."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import softmax

from jaxkd import errors
from jaxkd.evaluators.predictions.schema import Predictions
from jaxkd.metrics import classification, pooled, shortcut


def rates(chosen, label, marked, weights=None):
    n = len(label)
    found = shortcut.statistics(chosen, label, marked)(np.ones((1, n)) if weights is None else weights)
    return {k: v[0] for k, v in found.items()}


def test_delta_tpr_of_the_worked_example():
    """TPR 0.95 with and 0.60 without the shortcut: +0.35."""
    label, marked = np.ones(200, int), np.repeat([1, 0], 100)
    chosen = np.concatenate([np.arange(100) < 95, np.arange(100) < 60]).astype(int)
    label, marked, chosen = (np.concatenate([a, b]) for a, b in ((label, [0, 0]), (marked, [1, 0]), (chosen, [1, 0])))
    found = rates(chosen, label, marked)
    assert (found['delta_tpr'] == pytest.approx(0.35) and found['delta_fpr'] == 1
            and found['abs_delta_tpr'] == pytest.approx(0.35))
    assert found['worst_group'] == 0  # the one negative with the shortcut is wrong


@pytest.mark.parametrize('p1, p0', [(1.0, 0.0), (0.95, 0.05), (0.9, 0.1), (0.75, 0.25)])
def test_a_reader_of_the_shortcut_alone(p1, p0):
    """id (1 + p1 - p0) / 2, neutral 0.5, flip (1 - p1 + p0) / 2, both deltas 1 on neutral: the reference row of every
    table.
    """
    n = 1000
    label = np.repeat([1, 0], n)

    def marked(p1, p0):
        return np.concatenate([np.arange(n) < round(p * n) for p in (p1, p0)]).astype(float)

    def auroc(b):
        return classification.auroc(b, label, np.ones((1, 2 * n)))[0]
    assert auroc(marked(p1, p0)) == pytest.approx((1 + p1 - p0) / 2)
    assert auroc(marked(0.5, 0.5)) == pytest.approx(0.5)
    assert auroc(marked(p0, p1)) == pytest.approx((1 - p1 + p0) / 2)
    found = rates(marked(0.5, 0.5).astype(int), label, marked(0.5, 0.5))
    assert found['delta_tpr'] == found['delta_fpr'] == 1 and found['worst_group'] == 0


def test_rates_are_nan_where_a_group_is_missing():
    found = rates([1, 0, 1], [1, 0, 1], [1, 0, 1])
    assert np.isnan(found['delta_tpr']) and np.isnan(found['delta_fpr']) and found['worst_group'] == 1


@given(st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_swapping_the_groups_turns_the_sign(seed):
    rng = np.random.default_rng(seed)
    chosen, label, marked = rng.integers(0, 2, (3, 40))
    weights = rng.random((2, 40))
    a, b = (shortcut.statistics(chosen, label, m)(weights) for m in (marked, 1 - marked))
    for key in ('delta_tpr', 'delta_fpr'):
        np.testing.assert_allclose(a[key], -b[key])
        np.testing.assert_allclose(a[f'abs_{key}'], np.abs(b[key]))
    np.testing.assert_allclose(a['worst_group'], b['worst_group'])


def test_recovery():
    assert shortcut.recovery(0.8, 0.6, 0.9) == pytest.approx(2 / 3)
    assert np.isnan(shortcut.recovery(0.8, 0.89, 0.9))  # ERM lost nothing that could be won back


def logits_of(p):
    return np.log(np.stack([1 - np.array(p), p], 1))


def test_floor_of_the_specification():
    """{0.9, 0.5} in one state: 0.101749; {0.99, 0.97}: 0.002667; {0.999, 0.998}: 0.000085."""
    for p, expected in (((0.9, 0.5), 0.101749), ((0.99, 0.97), 0.002667), ((0.999, 0.998), 0.000085)):
        assert shortcut.floor(logits_of(p), [1, 1]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_the_floor_is_the_best_that_a_reader_of_the_shortcut_can_do(temperature):
    """One free distribution for each state, fitted numerically, comes to the same KL within 1e-6."""
    rng = np.random.default_rng(0)
    logits, b = rng.normal(0, 2, (60, 3)), rng.integers(0, 2, 60)
    p = softmax(logits / temperature, -1)

    def kl(free):
        q = softmax(free.reshape(2, 3), -1)[b]
        return np.mean(np.sum(p * (np.log(p) - np.log(q)), -1))
    found = minimize(kl, np.zeros(6), method='BFGS', options=dict(gtol=1e-9))
    assert shortcut.floor(logits, b, temperature) == pytest.approx(found.fun, abs=1e-6)


def test_prediction_depth():
    votes = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0]])
    np.testing.assert_array_equal(shortcut.depths(votes, [1, 1, 1, 1]), [1, 2, 3, 4])


def test_the_layer_of_the_specification():
    """h_b = (.5, .2, .1, .2), h_c = (.1, .2, .3, .4): terms 0.8047, 0, -0.1099, -0.1386, KL 0.5562, layer 1."""
    kl, terms, layer = shortcut.located([.5, .2, .1, .2], [.1, .2, .3, .4])
    np.testing.assert_allclose(terms, [0.8047, 0, -0.1099, -0.1386], atol=1e-4)
    assert kl == pytest.approx(0.5562, abs=1e-4) and layer == 1


def test_histogram_is_smoothed_and_sums_to_one():
    h = shortcut.histogram([1, 1, 4], 3)
    assert h.sum() == pytest.approx(1) and (h > 0).all() and h[0] == pytest.approx((2 / 3 + 1e-3) / 1.004)


def test_votes_of_neighbours():
    train = np.concatenate([np.zeros((30, 2)), np.ones((30, 2))])
    label = np.repeat([0, 1], 30)
    np.testing.assert_array_equal(shortcut.votes(train, label, np.array([[0.1, 0], [0.9, 1]])), [0, 1])
    with pytest.raises(errors.BadData, match='30 neighbours'):
        shortcut.votes(train[:10], label[:10], train)


def test_pooled_metrics_carry_the_rates():
    n = 40
    label = np.tile([[1, 0], [0, 1]], (n // 2, 1))
    p = Predictions(np.arange(n).astype(str), np.arange(n).astype(str), {}, ('absent', 'present'), label,
                    np.ones((n, 2)), np.where(label, 2.0, -2.0), np.where(label, 0.88, 0.12), exclusive=True,
                    marked=(np.arange(n) // 2 % 2).astype(float))
    found = pooled.draws([p], n=20)
    assert found['delta_tpr'][0, 0] == 0 and found['worst_group'][0, 0] == 1
    alone = pooled.draws([Predictions(**{**vars(p), 'marked': None})], n=20)
    assert 'delta_tpr' not in alone
