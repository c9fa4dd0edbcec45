"""Statistics of a comparison of arms, on draws that can be counted by hand."""
import math

import numpy as np
import pytest
from scipy import stats

from jaxkd.metrics import bootstrap, gain, pooled

RNG = np.random.default_rng(0)


def draws(value, *resamples):
    return np.array([value, *resamples], float)


def test_a_p_value_counts_the_resamples_on_the_other_side_of_zero():
    ten = [0.1] * 7 + [-0.1] * 2 + [0.0]  # 0 counts for both sides
    assert gain.p_value(draws(0.05, *ten)) == pytest.approx(2 * (1 + 3) / 11)
    assert gain.p_value(draws(-0.05, *(-np.array(ten)))) == pytest.approx(2 * (1 + 3) / 11)
    assert gain.p_value(draws(0.1, *[0.1] * 999)) == 2 / 1000 and gain.p_value(draws(0.0, *[0.0] * 9)) == 1
    assert gain.p_value(draws(0.1, *[0.1] * 3, math.nan)) == 2 / 4
    assert math.isnan(gain.p_value(draws(0.1))) and math.isnan(gain.p_value(draws(math.nan, 1.0)))


@pytest.mark.parametrize('shift', [0.0, 0.2, 0.35, 0.5])
def test_a_p_value_agrees_with_the_interval_and_with_the_normal_distribution(shift):
    sample = RNG.normal(shift, 1, 80)
    weights = np.concatenate([np.ones((1, 80)), *bootstrap.resamples(range(80), 4000)])
    found = weights @ sample / weights.sum(1)
    entry, p = bootstrap.summary(found[0], found[1:]), gain.p_value(found)
    assert (p <= 0.05) == (entry['low'] > 0 or entry['high'] < 0) or abs(p - 0.05) < 0.002
    assert p == pytest.approx(2 * stats.norm.sf(abs(sample.mean()) / (sample.std() / 80 ** 0.5)), abs=0.04)


def test_holm_is_the_step_down_correction():
    corrected = gain.holm(dict(a=0.01, b=0.04, c=0.03, d=math.nan, e=0.005))
    assert [corrected[k] for k in 'eacb'] == pytest.approx([0.02, 0.03, 0.06, 0.06]) and math.isnan(corrected['d'])
    assert gain.holm(dict(a=0.9, b=0.8)) == dict(b=1.0, a=1.0) and gain.holm(dict(a=0.02)) == dict(a=0.02)


def test_ranks_have_the_spread_of_the_resamples():
    arms = dict(low=draws(0.5, 0.5, 0.5, 0.5, 0.7), high=draws(0.9, 0.8, 0.9, 0.4, 0.9),
                tie=draws(0.5, 0.6, 0.5, 0.3, 0.1))
    found = gain.ranks(arms, level=0.5)
    assert {arm: e['value'] for arm, e in found.items()} == dict(low=2.5, high=1.0, tie=2.5)
    assert {arm: e['first'] for arm, e in found.items()} == dict(low=0.25, high=0.75, tie=0.0)
    assert (found['low']['low'], found['low']['high']) == (1.0, 3.0), 'of the ranks 3, 2.5, 1, 2'
    undefined = gain.ranks(dict(a=draws(math.nan, 1.0), b=draws(1.0, 1.0)))
    assert all(math.isnan(v) for e in undefined.values() for v in e.values())
    assert gain.ranks(dict(a=draws(1.0, 1.0, math.nan), b=draws(0.0, 0.0, 5.0)))['a']['first'] == 1.0


def test_the_best_control_is_that_of_each_resample():
    student = draws(0.8, 0.8, 0.8)
    controls = dict(a=draws(0.7, 0.9, 0.5), b=draws(0.6, 0.5, 0.6), c=draws(math.nan, 9, 9))
    name, difference = gain.against_best(student, controls)
    np.testing.assert_allclose(difference, [0.1, -0.1, 0.2])
    assert name == 'a' and gain.against_best(student, dict(c=controls['c']))[0] == ''


def test_the_gap_closed_is_a_share_and_none_without_a_gap():
    noise = RNG.normal(0, 0.01, (3, 2000))
    student, baseline, ceiling = (np.concatenate([[v], v + e]) for v, e in zip((0.7, 0.6, 0.8), noise))
    entry = gain.gap_closed(student, baseline, ceiling)
    assert entry['value'] == pytest.approx(0.5) and 0.3 < entry['low'] < 0.5 < entry['high'] < 0.7
    assert math.isnan(gain.gap_closed(student, baseline, baseline + 0.005 * RNG.normal(size=2001))['value'])
    assert gain.gap_closed(ceiling, baseline, ceiling)['low'] == 1.0


LABELS = (10, 100, 1000)


def curve(*points, n=3):
    return np.array([[p] * (1 + n) for p in points])


@pytest.mark.parametrize('points, student, expected', [
    ((0.5, 0.7, 0.9), 0.6, 10 ** 1.5), ((0.5, 0.7, 0.9), 0.7, 100), ((0.5, 0.7, 0.9), 0.9, 1000),
    ((0.5, 0.7, 0.9), 0.91, math.inf), ((0.5, 0.7, 0.9), 0.49, 0), ((0.5, 0.7, 0.9), 0.5, 10),
    ((0.5, 0.8, 0.7), 0.75, 100),  # falls: the two are taken together, at 0.75
    ((0.5, 0.8, 0.7), 0.76, math.inf), ((0.6, 0.6, 0.8), 0.6, 10), ((0.6, 0.6, 0.8), 0.7, 10 ** 2.5)])
def test_labels_are_read_from_a_monotone_curve_in_their_logarithm(points, student, expected):
    entry = gain.equivalent_labels(draws(student, *[student] * 3), curve(*points), LABELS)
    assert entry['value'] == pytest.approx(expected) and entry['low'] == entry['high'] == entry['value']


def test_the_interval_of_equivalent_labels_may_end_outside_of_the_curve():
    student = draws(0.7, *np.linspace(0.4, 1.0, 100))
    entry = gain.equivalent_labels(student, curve(0.5, 0.7, 0.9, n=100), LABELS)
    assert (entry['low'], entry['value'], entry['high'], entry['replicates']) == (0, pytest.approx(100), math.inf, 100)
    both = RNG.normal(0, 0.2, 200)  # what makes all networks better in a resample cancels
    paired = gain.equivalent_labels(0.7 + np.r_[0, both], np.array([0.5, 0.7, 0.9])[:, None] + np.r_[0, both], LABELS)
    assert paired['low'] == pytest.approx(100) and paired['high'] == pytest.approx(100)
    for points, labels in ((curve(0.5), (10,)), (curve(0.5, math.nan), (10, 100))):
        assert math.isnan(gain.equivalent_labels(draws(0.5, 0.5, 0.5, 0.5), points, labels)['value'])


def test_the_planted_number_of_labels_is_found():
    """Networks whose accuracy rises by 0.1 with ten times the labels; the student is that of 316 labels."""
    n, labels = 4000, (10, 100, 1000, 10000)
    hard = RNG.random(n)
    weights = np.concatenate([np.ones((1, n)), *bootstrap.resamples(range(n), 300)])

    def accuracy(k):
        return weights @ (hard < 0.5 + 0.1 * math.log10(k)).astype(float) / n
    entry = gain.equivalent_labels(accuracy(316), np.array([accuracy(k) for k in labels]), labels)
    assert 250 < entry['low'] <= entry['value'] <= entry['high'] < 400


def test_draws_over_rounds_of_two_arms_are_paired():
    a = RNG.normal(0, 1, (4, 201))
    paired = pooled.over_rounds(a + 1) - pooled.over_rounds(a)
    np.testing.assert_allclose(paired, 1)
    entry = pooled.difference(a)
    found = pooled.over_rounds(a)
    assert (entry['value'], entry['low']) == (found[0], np.quantile(found[1:], 0.025))
