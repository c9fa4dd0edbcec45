"""The patient-level bootstrap: agreement with scipy, coverage, width with correlated images, pairing."""
import numpy as np
import pytest
import scipy.stats

from jaxkd import errors
from jaxkd.metrics import bootstrap


def width(entry):
    return entry['high'] - entry['low']


def test_resamples_draw_whole_patients():
    patients = ['a', 'b', 'b', 'c', 'a', 'd', 'b']
    weights = np.concatenate(list(bootstrap.resamples(patients, n=50, seed=3)))
    index, count = bootstrap.groups(patients)
    assert count == 4 and weights.shape == (50, 7)
    for p in range(4):
        own = weights[:, index == p]
        np.testing.assert_array_equal(own, own[:, :1].repeat(own.shape[1], axis=1))
    first = [np.flatnonzero(index == p)[0] for p in range(4)]
    np.testing.assert_array_equal(weights[:, first].sum(1), 4)  # as many draws as patients
    assert len(np.unique(weights, axis=0)) > 10


def test_same_seed_same_interval_and_blocks_add_up(monkeypatch):
    values, patients = np.random.default_rng(0).normal(size=40), np.arange(40) // 2
    one = bootstrap.interval(bootstrap.mean(values), patients, n=97, seed=5)
    assert one == bootstrap.interval(bootstrap.mean(values), patients, n=97, seed=5)
    assert one != bootstrap.interval(bootstrap.mean(values), patients, n=97, seed=6)
    monkeypatch.setattr(bootstrap, 'BLOCK', 40 * 10)
    assert [len(w) for w in bootstrap.resamples(patients, n=97)] == [10] * 9 + [7]
    assert bootstrap.interval(bootstrap.mean(values), patients, n=97)['replicates'] == 97


def test_agrees_with_scipy_on_one_row_per_patient():
    values = np.random.default_rng(1).gamma(2, size=80)
    ours = bootstrap.interval(bootstrap.mean(values), np.arange(80), n=9999)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=9999, method='percentile', rng=2)
    assert ours['value'] == pytest.approx(values.mean())
    assert ours['low'] == pytest.approx(theirs.confidence_interval.low, abs=0.02)
    assert ours['high'] == pytest.approx(theirs.confidence_interval.high, abs=0.02)


def correlated(rng, patients=60, images=5):
    """Images of a patient share most of their value."""
    values = rng.normal(size=patients).repeat(images) + 0.3 * rng.normal(size=patients * images)
    return values, np.arange(patients).repeat(images)


def test_image_level_interval_is_too_narrow():
    values, patients = correlated(np.random.default_rng(2))
    honest = bootstrap.interval(bootstrap.mean(values), patients)
    naive = bootstrap.interval(bootstrap.mean(values), np.arange(len(values)))
    assert width(honest) > 1.7 * width(naive)
    assert (honest['n_patients'], naive['n_patients']) == (60, 300)


def test_coverage_of_a_normal_mean():
    rng = np.random.default_rng(3)
    honest = naive = 0
    for trial in range(300):
        values, patients = correlated(rng)
        for kind, ids in (('honest', patients), ('naive', np.arange(len(values)))):
            found = bootstrap.interval(bootstrap.mean(values), ids, n=300, seed=trial)
            covered = found['low'] <= 0 <= found['high']
            honest, naive = (honest + covered, naive) if kind == 'honest' else (honest, naive + covered)
    assert 0.90 <= honest / 300 <= 0.98  # nominal 0.95, standard error 0.013
    assert naive / 300 < 0.80


def test_paired_interval_is_narrower_and_centred_on_the_difference():
    rng = np.random.default_rng(4)
    values, patients = correlated(rng)
    better = values + 0.1 + 0.05 * rng.normal(size=len(values))

    def named(v):
        statistic = bootstrap.mean(v)
        return lambda w: {'mean': statistic(w)}

    paired = bootstrap.paired(named(better), named(values), patients)['mean']
    assert paired['value'] == pytest.approx(better.mean() - values.mean())
    assert 0 < paired['low'] < paired['value'] < paired['high']
    assert width(paired) < 0.2 * width(bootstrap.interval(bootstrap.mean(values), patients))
    same = bootstrap.paired(named(values), named(values), patients)['mean']
    assert (same['value'], same['low'], same['high']) == (0, 0, 0)


def test_undefined_replicates_are_left_out_and_counted():
    values = np.array([2.0, np.nan, np.nan, np.nan])  # defined whenever case 0 is drawn: 1 - (3/4)^4 = 68 %
    found = bootstrap.interval(bootstrap.mean(values), range(4), n=2000)
    assert (found['value'], found['low'], found['high']) == (2, 2, 2)
    assert found['replicates'] / 2000 == pytest.approx(0.684, abs=0.04)
    nothing = bootstrap.interval(bootstrap.mean(np.full(4, np.nan)), range(4))
    assert np.isnan([nothing['value'], nothing['low'], nothing['high']]).all() and nothing['replicates'] == 0


@pytest.mark.parametrize('patients, n', [(['a', 'a', 'a'], 100), (['a', 'b', 'c'], 0)])
def test_no_interval_without_resamples(patients, n):
    found = bootstrap.interval(bootstrap.mean(np.array([1.0, 2, 3])), patients, n=n)
    assert found['value'] == 2 and np.isnan([found['low'], found['high']]).all() and found['replicates'] == 0


@pytest.mark.parametrize('patients', [[], ['a', '', 'b'], ['a', None, 'b'], [1.0, np.nan, 2.0]])
def test_bad_patients(patients):
    with pytest.raises(errors.BadData, match='patient id'):
        bootstrap.interval(bootstrap.mean(np.ones(len(patients))), patients)


def test_bad_level_and_count():
    with pytest.raises(errors.ConfigError, match='between 0 and 1'):
        bootstrap.interval(bootstrap.mean(np.ones(2)), ['a', 'b'], level=95)
    with pytest.raises(errors.BadData, match='2 patient ids for 3 cases'):
        bootstrap.groups(['a', 'b'], 3)
