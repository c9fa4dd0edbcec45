"""The patient rule: worked probabilities, thresholds against a search of all of them, exact intervals."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from jaxkd import errors
from jaxkd.metrics import decision

Q = (.02, .10, .65, .80, .30)


def youden(scores, volumes, truth, t_cls, v_min):
    called = decision.positive(scores, volumes, t_cls, v_min)
    return called[truth == 1].mean() - called[truth == 0].mean()


def cohort(seed, n, levels=6):
    """Patients with many equal scores and volumes, of both classes."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(2, size=n)
    truth[:2] = 0, 1
    scores = np.clip(rng.integers(levels, size=n) + truth, 0, levels) / levels
    return scores, rng.integers(3, size=n) * (0.5 + truth), truth


def test_worked_windows():
    found = {how: decision.combine(Q, how) for how in ('max', 'top', 'mean', 'noisy_or')}
    assert found == pytest.approx({'max': 0.80, 'top': 0.583333, 'mean': 0.374, 'noisy_or': 0.956782}, abs=5e-7)
    assert decision.score(Q) == decision.combine(Q) == found['top']
    assert decision.positive(found['top'], 0.0, 0.5, np.inf) and not decision.positive(found['mean'], 0.0, 0.5, np.inf)


def test_few_windows():
    assert decision.score([0.2, 0.4]) == pytest.approx(0.3) and decision.score([0.7]) == 0.7
    assert decision.score(Q, topk=1) == 0.8 and decision.score(Q, topk=5) == pytest.approx(0.374)
    assert decision.combine(Q, 'top', topk=2) == pytest.approx(0.725)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms())
def test_combinations_are_ordered_and_forget_the_order(q, random):
    ways = ('mean', 'top', 'max', 'noisy_or')
    mean, top, most, either = (decision.combine(q, how) for how in ways)
    assert mean <= top + 1e-12 and top <= most + 1e-12 and most <= either + 1e-12 and 0 <= mean and either <= 1
    shuffled = list(q)
    random.shuffle(shuffled)
    assert [decision.combine(shuffled, how) for how in ways] == pytest.approx([mean, top, most, either])


def test_rule_is_either_criterion():
    scores, volumes = np.array([0.1, 0.5, 0.1, 0.9, 0.1]), np.array([0.0, 0.0, 2.0, 5.0, np.nan])
    np.testing.assert_array_equal(decision.positive(scores, volumes, 0.5, 2.0), [0, 1, 1, 1, 0])
    np.testing.assert_array_equal(decision.positive(scores, volumes, np.inf, 3.0), [0, 0, 0, 1, 0])


def test_worked_operating_points():
    truth = np.array([0, 0, 0, 1, 1, 1])
    ideal = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
    assert decision.operating_point(ideal, np.zeros(6), truth) == (0.5, np.inf, 1.0)
    # the scores alone do it, so the volume stays out of it, although it would do as well
    assert decision.operating_point(ideal, ideal, truth) == (0.5, np.inf, 1.0)
    assert decision.operating_point(np.full(6, 0.4), [0, 0, 1, 3, 4, 5], truth) == (np.inf, 2.0, 1.0)
    # one positive is told by its volume alone, the others by their scores: 0.3 | 0.7, and 1 | 6 ml
    scores, volumes = np.array([0.1, 0.2, 0.3, 0.1, 0.7, 0.9]), np.array([0, 1, 0, 6, 0, 0])
    assert decision.operating_point(scores, volumes, truth) == (0.5, 3.5, 1.0)
    # t within 0.1 | 0.2 and 0.4 | 0.8 both give 2/3: the wider
    t, v, index = decision.operating_point([0.1, 0.1, 0.4, 0.2, 0.8, 0.9], np.zeros(6), truth)
    assert (t, v) == (pytest.approx(0.6), np.inf) and index == pytest.approx(2 / 3)


def test_a_threshold_passes_patients_that_the_volume_has_already():
    """The positive of score 0.4 is called by volume: t may lie anywhere within 0.1 | 0.7."""
    t, v, index = decision.operating_point([0.1, 0.1, 0.4, 0.7, 0.1], [1, 0, 9, 0, 9], [0, 0, 1, 1, 1])
    assert (t, v, index) == (pytest.approx(0.4), 5.0, 1.0)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(2, 25))
def test_no_pair_of_thresholds_is_better(seed, n):
    scores, volumes, truth = cohort(seed, n)
    t, v, index = decision.operating_point(scores, volumes, truth)
    assert index == pytest.approx(youden(scores, volumes, truth, t, v))
    each = [youden(scores, volumes, truth, a, b) for a in (*np.unique(scores), 2) for b in (*np.unique(volumes), 9)]
    assert index == pytest.approx(max(each)) or (max(each) <= 1e-12 and (t, v) == (0.5, np.inf))
    order = np.random.default_rng(seed).permutation(n)
    assert decision.operating_point(scores[order], volumes[order], truth[order]) == (t, v, index)
    unknown = np.append(scores, 0.99), np.append(volumes, np.nan), np.append(truth, -1)
    assert decision.operating_point(*unknown) == (t, v, index)


@pytest.mark.parametrize('truth', [[0, 0, 0], [1, 1, 1], [-1, -1, 1], [-1, -1, -1]])
def test_one_class_leaves_the_thresholds_untuned(truth):
    t, v, index = decision.operating_point([0.1, 0.6, 0.9], [0, 1, 2], truth)
    assert (t, v) == (0.5, np.inf) and np.isnan(index)


def test_scores_that_are_no_better_than_chance():
    assert decision.operating_point([0.9, 0.1], [3, 0], [0, 1]) == (0.5, np.inf, -1.0)
    assert decision.operating_point([0.4, 0.4], [0, 0], [0, 1]) == (0.5, np.inf, 0.0)


def test_a_threshold_parts_neighbouring_numbers():
    first = 0.3
    second, third = np.nextafter(first, 1), np.nextafter(np.nextafter(first, 1), 1)
    for low, high in ((first, second), (second, third)):  # the middle rounds down for one of them, up for the other
        t, _, index = decision.operating_point([low, high], [0, 0], [0, 1])
        assert low < t <= high and index == 1


def test_an_unknown_volume_is_none():
    assert decision.operating_point([0.4] * 4, [np.nan, 0, np.nan, 3], [0, 0, 0, 1]) == (np.inf, 1.5, 1.0)
    assert decision.operating_point([0.1, 0.7], [np.nan, np.nan], [0, 1]) == (pytest.approx(0.4), np.inf, 1.0)


@pytest.mark.parametrize('k, n, low, high', [(62, 65, 87.1, 99.0), (1101, 1105, 99.1, 99.9), (0, 10, 0, 30.8),
                                             (10, 10, 69.2, 100)])
def test_worked_intervals(k, n, low, high):
    assert [round(100 * x, 1) for x in decision.clopper_pearson(k, n)] == [low, high]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_intervals_are_beta_quantiles(n, share, level):
    k = round(share * n)
    low, high = decision.clopper_pearson(np.int64(k), float(n), level)
    tail = (1 - level) / 2
    assert low == pytest.approx(beta.ppf(tail, k, n - k + 1) if k else 0, abs=1e-9)
    assert high == pytest.approx(beta.ppf(1 - tail, k + 1, n - k) if k < n else 1, abs=1e-9)
    assert low <= k / n <= high


def test_bad_input():
    for q in ([], [[0.1]], [0.1, np.nan], [1.2], [-0.1]):
        with pytest.raises(errors.BadData, match='Window probabilities'):
            decision.combine(q, 'max')
    with pytest.raises(errors.ConfigError, match='Did you mean "mean"'):
        decision.combine(Q, 'means')
    with pytest.raises(errors.ConfigError, match='topk is 0'):
        decision.score(Q, 0)
    with pytest.raises(errors.BadData, match=r'must be \[patients\]'):
        decision.operating_point([0.1, 0.2], [0], [0, 1])
    with pytest.raises(errors.BadData, match='it holds 2'):
        decision.operating_point([0.1, 0.2], [0, 0], [0, 2])
    for scores, volumes in (([0.1, np.nan], [0, 0]), ([0.1, 0.2], [0, -1])):
        with pytest.raises(errors.BadData, match='must be finite'):
            decision.operating_point(scores, volumes, [0, 1])
    for k, n in ((5, 4), (-1, 4), (1.5, 4)):
        with pytest.raises(errors.BadData, match='is no proportion'):
            decision.clopper_pearson(k, n)
    with pytest.raises(errors.ConfigError, match='between 0 and 1'):
        decision.clopper_pearson(1, 2, 95)
    assert np.isnan(decision.clopper_pearson(0, 0)).all()
