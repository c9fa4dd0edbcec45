"""Calibration and operating points: worked thresholds, known generating laws, limits, and what must not be fitted."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax
from sklearn.linear_model import LogisticRegression

from jaxkd import errors
from jaxkd.metrics import multiclass, operating_points


def test_worked_points():
    """Positives 1, 2, 3, negatives -2, 0, 1.5: Youden between 1.5 and 2; all positives above 0; all negatives below 2.
    """
    found = operating_points.points(np.array([1, 2, 3, -2, 0, 1.5]), np.array([1, 1, 1, 0, 0, 0]))
    assert found['youden'] == pytest.approx(dict(threshold=0.5, sensitivity=1, specificity=2 / 3))  # the wider of two
    assert found['sensitivity_95'] == pytest.approx(dict(threshold=0.5, sensitivity=1, specificity=2 / 3))
    assert found['specificity_95'] == pytest.approx(dict(threshold=1.75, sensitivity=2 / 3, specificity=1))


def test_one_of_twenty_may_be_missed():
    scores, label = np.arange(40.0), np.r_[np.zeros(20), np.ones(20)]
    scores[20] = -5  # a positive below all negatives is the one that may be missed
    found = operating_points.points(scores, label)
    assert found['sensitivity_95'] == dict(threshold=20.0, sensitivity=0.95, specificity=1.0)
    assert operating_points.points(scores[1:], label[1:])['sensitivity_95'] == found['sensitivity_95']
    one_less = np.delete(np.arange(40), 30)  # 19 positives: none may be missed, so all are called positive
    assert operating_points.points(scores[one_less], label[one_less])['sensitivity_95'] == dict(
        threshold=-6.0, sensitivity=1.0, specificity=0.0)


def test_a_score_that_is_worse_than_chance():
    found = operating_points.points(np.array([-1.0, -2, 1, 2]), np.array([1, 1, 0, 0]))
    assert found['youden'] == dict(threshold=0.0, sensitivity=0.0, specificity=0.0)
    assert found['specificity_95'] == dict(threshold=3.0, sensitivity=0.0, specificity=1.0)
    slope, intercept = operating_points.platt(np.array([-1.0, -2, 1, 2]), np.array([1, 1, 0, 0]))
    assert (slope, intercept) == pytest.approx((0, 0), abs=1e-6)  # the prevalence, one half


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(2, 60))
def test_points_are_the_best_that_hold_their_target(seed, n):
    rng = np.random.default_rng(seed)
    label = np.r_[0, 1, rng.integers(0, 2, n - 2)]
    scores = rng.integers(-4, 5, n) + label
    found = operating_points.points(scores, label)
    edges = np.r_[scores - 0.25, scores.max() + 1]
    rates = [((scores[label == 1] >= t).mean(), (scores[label == 0] < t).mean()) for t in edges]
    assert found['sensitivity_95']['sensitivity'] >= 0.95 and found['specificity_95']['specificity'] >= 0.95
    assert found['sensitivity_95']['specificity'] == max(b for a, b in rates if a >= 0.95)
    assert found['specificity_95']['sensitivity'] == max(a for a, b in rates if b >= 0.95)
    best = max(a + b for a, b in rates)
    if best > 1:
        assert found['youden']['sensitivity'] + found['youden']['specificity'] == pytest.approx(best)


def test_platt_finds_the_law_of_many_cases():
    rng = np.random.default_rng(0)
    z = rng.normal(1, 3, 40_000)
    label = rng.random(len(z)) < expit(0.5 * z - 1)
    slope, intercept = operating_points.platt(z, label)
    assert (slope, intercept) == pytest.approx((0.5, -1), abs=0.04)
    free = LogisticRegression(C=np.inf, tol=1e-8).fit(z[:, None], label)  # Platt's targets hardly matter here
    assert (slope, intercept) == pytest.approx((free.coef_[0, 0], free.intercept_[0]), abs=2e-3)


def test_platt_of_separated_classes_is_finite_and_moves_with_the_unit():
    z, label = np.array([-2.0, -1, 1, 2]), np.array([0, 0, 1, 1])
    slope, intercept = operating_points.platt(z, label)
    p = expit(slope * z + intercept)
    assert 0 < slope < 20 and intercept == pytest.approx(0, abs=1e-6)
    assert p.mean() == pytest.approx(0.5) and (p * z).sum() == pytest.approx(3 * 0.75 - 3 * 0.25, abs=1e-5)
    other, shift = operating_points.platt(1000 * z + 7000, label)
    assert (1000 * other, shift) == pytest.approx((slope, -7 * slope), abs=1e-4)


def test_temperature_finds_the_law_of_many_cases():
    rng = np.random.default_rng(1)
    true = rng.normal(0, 2, (30_000, 3))
    label = (np.log(rng.random(true.shape)) * -np.exp(-true)).argmin(1)  # exponential clocks: p is softmax(true)
    assert operating_points.temperature(true * 2.5, label) == pytest.approx(2.5, abs=0.06)
    assert operating_points.temperature(true, label) == pytest.approx(1, abs=0.03)
    p = operating_points.calibrated_classes(true * 2.5, 2.5)
    assert np.abs(p - np.exp(log_softmax(true, axis=1))).max() < 1e-12


def test_odds_of_classes_give_their_probabilities_back():
    logits = np.random.default_rng(2).normal(0, 4, (50, 4))
    back = operating_points.log_probabilities(multiclass.log_odds(logits))
    assert np.abs(back - log_softmax(logits, axis=1)).max() < 1e-6


def test_labels_by_themselves():
    """Weight 0 does not count; a label with one class alone is left as it is and not decided."""
    logit = np.array([[-1.0, 0, 2], [1, 5, 1], [3, 1, 0]])
    label, weight = np.array([[0, 1, 1], [1, 1, 0], [1, 1, 0]]), np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1]])
    fitted = operating_points.fit_labels(logit, label, weight, ('a', 'b', 'c'))
    assert [(e['cases'], e['positives']) for e in fitted.values()] == [(2, 1), (3, 3), (3, 1)]
    assert fitted['b'] == dict(cases=3, positives=3, slope=1.0, intercept=0.0, points={})
    assert fitted['a']['points']['youden']['threshold'] == 0.0 and set(fitted['c']['points']) == {
        *operating_points.POINTS}
    assert operating_points.calibrated_labels(logit, fitted)[:, 1] == pytest.approx(expit(logit[:, 1]))
    assert (logit[:, 0] >= fitted['a']['points']['youden']['threshold']).tolist() == [False, True, True]


def test_bad_scores():
    with pytest.raises(errors.BadData, match='finite logits'):
        operating_points.temperature(np.array([[np.nan, 0.0]]), np.array([0]))
    with pytest.raises(errors.BadData, match='with and without the label'):
        operating_points.points(np.array([1.0, 2]), np.array([1, 1]))
