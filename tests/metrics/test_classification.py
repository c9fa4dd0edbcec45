"""Weighted ranks against sklearn, absent classes, excluded entries, calibration, time of a whole table."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from jaxkd import errors
from jaxkd.metrics import bootstrap, calibration, classification

QUICK = 100


def study(n=200, labels=3, seed=0):
    """logits, label, weight, patients (two images each), names."""
    rng = np.random.default_rng(seed)
    label = (rng.random((n, labels)) < 0.3).astype(np.float32)
    logits = (rng.normal(size=(n, labels)) + label).astype(np.float32)
    weight = (rng.random((n, labels)) < 0.8).astype(np.float32)
    return logits, label, weight, [f'p{i // 2}' for i in range(n)], tuple('abc'[:labels])


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, dtype=float)))


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 40), st.integers(1, 30), st.integers(0, 10**6))
def test_weighted_ranks_agree_with_sklearn(n, levels, seed):
    rng = np.random.default_rng(seed)
    score, label = rng.integers(levels, size=n) / 7, rng.random(n) < 0.5
    label[:2] = False, True
    weights = rng.integers(0, 4, size=(5, n)).astype(float)
    weights[:, :2] += 1
    for ours, theirs in ((classification.auroc, roc_auc_score), (classification.auprc, average_precision_score)):
        expected = [theirs(label, score, sample_weight=w) for w in weights]
        np.testing.assert_allclose(ours(score, label, weights), expected, rtol=1e-9)
        np.testing.assert_allclose(ours(score, label), [theirs(label, score)], rtol=1e-9)


def plain_metrics(logit, label, times, bins):
    """The definitions for one label, with loops; `times`: how often each case counts."""
    total, positive, negative = times.sum(), (times * label).sum(), (times * (1 - label)).sum()
    prob = sigmoid(logit)
    metrics = dict.fromkeys(('auroc', 'auprc', 'brier', 'ece', 'ece_mass'), np.nan)
    if positive and negative:
        pairs = [times[i] * times[j] * (1 if logit[i] > logit[j] else 0.5) for i in np.flatnonzero(label)
                 for j in np.flatnonzero(1 - label) if logit[i] >= logit[j]]
        at_least = [(i, times * (logit >= logit[i])) for i in np.flatnonzero(times * label)]
        metrics['auroc'] = sum(pairs) / (positive * negative)
        metrics['auprc'] = sum(times[i] * (w * label).sum() / w.sum() for i, w in at_least) / positive
    if total:
        metrics['brier'] = (times * (prob - label)**2).sum() / total
        for name, equal_mass in (('ece', False), ('ece_mass', True)):
            bin_of = calibration.bins_of(prob, bins, equal_mass)
            metrics[name] = sum(abs((times * (prob - label))[bin_of == b].sum()) for b in range(bins)) / total
    return metrics


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from([1, 3, 1000]), st.sampled_from([0.1, 0.5]))
def test_table_agrees_with_the_definitions_in_every_resample(seed, n, levels, prevalence):
    rng = np.random.default_rng(seed)
    logits = rng.integers(-levels, levels + 1, size=(n, 2)) * 3.0 / levels
    label, weight = (rng.random((n, 2)) < prevalence).astype(float), rng.choice([0, 0.5, 1], size=(n, 2))
    patients, bins = rng.integers(1 + rng.integers(n), size=n), 4
    resamples = [] if len(set(patients)) == 1 else np.concatenate(list(bootstrap.resamples(patients, 5)))
    draws = {}
    for times in (np.ones(n), *resamples):
        used = [np.flatnonzero(w) for w in weight.T]
        by_label = [plain_metrics(logits[u, c], label[u, c], times[u], bins) for c, u in enumerate(used)]
        for metric in ('auroc', 'auprc', 'brier', 'ece', 'ece_mass'):
            a, b = (values[metric] for values in by_label)
            for key, value in ((metric, bootstrap.macro([a, b])), (f'{metric}/a', a), (f'{metric}/b', b)):
                draws.setdefault(key, []).append(value)
    found = classification.table(logits, label, weight, patients, 'ab', 5, bins=bins)
    assert set(found) == set(draws)
    for key, (value, *resampled) in draws.items():
        expected = bootstrap.summary(value, np.array(resampled))
        assert {k: found[key][k] for k in expected} == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True), key


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_auroc_of_a_monotone_map_and_of_the_opposite(seed):
    rng = np.random.default_rng(seed)
    score, label = np.round(rng.normal(size=30), 1), np.arange(30) % 3 == 0
    value = classification.auroc(score, label)[0]
    assert classification.auroc(np.exp(score) * 5 - 2, label)[0] == value
    assert classification.auroc(-score, label)[0] == pytest.approx(1 - value)
    assert classification.auroc(score, ~label)[0] == pytest.approx(1 - value)


def test_absent_class_is_nan():
    for metric in (classification.auroc, classification.auprc):
        assert np.isnan(metric([0.1, 0.2], [0, 0])).all() and np.isnan(metric([0.1, 0.2], [1, 1])).all()
        assert np.isnan(metric([], [])).all()
        values = metric([0.1, 0.2, 0.3], [0, 1, 1], np.array([[1., 1, 0], [0, 1, 1], [0, 0, 0]]))
        np.testing.assert_array_equal(np.isnan(values), [False, True, True])


def test_scores_exclude_weight_zero():
    logits, label, weight, _, names = study()
    garbage = np.where(weight > 0, label, np.nan)
    found = classification.scores(np.where(weight > 0, logits, 99), garbage, weight, names)
    aurocs = [roc_auc_score(label[w, c], logits[w, c]) for c, w in enumerate((weight > 0).T)]
    auprcs = [average_precision_score(label[w, c], logits[w, c]) for c, w in enumerate((weight > 0).T)]
    assert found['auroc'] == pytest.approx(np.mean(aurocs))
    assert found['auprc'] == pytest.approx(np.mean(auprcs))
    assert [found[f'auroc/{n}'] for n in names] == pytest.approx(aurocs)
    used = weight > 0
    assert found['loss'] == pytest.approx(log_loss(label[used], sigmoid(logits[used])), rel=1e-6)
    assert all(type(v) is float for v in found.values())


def test_weighted_loss_worked_number():
    found = classification.scores([[1.2, -0.4, 0.3]], [[1, 0, 0]], [[1, 1, 0]], 'abc')
    assert found['loss'] == pytest.approx(0.388149, abs=1e-6)
    assert np.isnan([found['auroc'], found['auprc'], found['auroc/a']]).all()
    assert np.isnan(classification.scores([[1.2]], [[1]], [[0]], 'a')['loss'])
    assert classification.scores([[800.0], [-800]], [[1], [0]], [[1], [3]], 'a')['loss'] == 0
    assert classification.scores([[800.0], [-4.0]], [[0], [1]], [[1], [0]], 'a')['loss'] == 800


def test_macro_leaves_out_labels_without_both_classes():
    logits, label, weight, patients, names = study()
    label[:, 1] = 0
    found = classification.scores(logits, label, weight, names)
    assert np.isnan(found['auroc/b'])
    assert found['auroc'] == pytest.approx((found['auroc/a'] + found['auroc/c']) / 2)
    rows = classification.table(logits, label, weight, patients, names, QUICK)
    assert rows['auroc']['value'] == pytest.approx(found['auroc']) and rows['auroc']['n_labels'] == 2
    assert np.isnan([rows['auroc/b'][k] for k in ('value', 'low', 'high')]).all()
    assert rows['brier']['n_labels'] == 3 and np.isfinite(rows['brier/b']['high'])
    assert rows['auroc/b']['n_positive'] == 0


def test_rare_label_reports_its_defined_replicates():
    logits, label, weight, patients, names = study()
    label[:, 0], weight[:, 0] = 0, 1
    label[7, 0] = 1
    rows = classification.table(logits, label, weight, patients, names)
    assert 0.55 < rows['auroc/a']['replicates'] / 1000 < 0.71  # 1 - 1/e of the resamples draw that patient
    assert rows['auroc']['replicates'] == rows['auroc/b']['replicates'] == 1000


def test_table_values_and_counts():
    logits, label, weight, patients, names = study()
    rows = classification.table(logits, label, weight, patients, names, QUICK)
    metrics = ('auroc', 'auprc', 'brier', 'ece', 'ece_mass')
    assert set(rows) == {metric + label for metric in metrics for label in ('', '/a', '/b', '/c')}
    use = weight[:, 1] > 0
    entry = rows['brier/b']
    assert entry['value'] == pytest.approx(brier_score_loss(label[use, 1], sigmoid(logits[use, 1])))
    assert entry['n_positive'] == label[use, 1].sum()
    assert entry['n_positive'] + entry['n_negative'] == use.sum()
    assert entry['n_patients'] == len({p for p, u in zip(patients, use) if u})
    assert rows['brier']['n_patients'] == 100
    for name, entry in rows.items():
        assert entry['low'] < entry['high']
        if 'ece' not in name:  # its intervals sit high
            assert entry['low'] < entry['value'] < entry['high']


def test_interval_of_auroc_is_that_of_duplicated_rows():
    logits, label, weight, patients, names = study(60, 1)
    entry = classification.table(logits, label, np.ones_like(weight), patients, names, QUICK)['auroc/a']
    index, _ = bootstrap.groups(patients)
    draws = [roc_auc_score(label[:, 0].repeat(w), logits[:, 0].repeat(w))
             for block in bootstrap.resamples(patients, 100) for w in block.astype(int)]
    np.testing.assert_allclose([entry['low'], entry['high']], np.quantile(draws, [0.025, 0.975]))


def test_single_label_is_its_own_macro():
    logits, label, weight, patients, names = study(60, 1)
    rows = classification.table(logits, label, weight, patients, names, QUICK)
    for metric in ('auroc', 'auprc', 'brier', 'ece', 'ece_mass'):
        assert [rows[metric][k] for k in ('value', 'low', 'high')] == pytest.approx(
            [rows[f'{metric}/a'][k] for k in ('value', 'low', 'high')])


def test_paired_table():
    logits, label, weight, patients, names = study()
    better = logits + 2 * label
    rows = classification.paired_table(better, logits, label, weight, patients, names, QUICK)
    assert rows['auroc']['low'] > 0 and rows['brier']['high'] < 0
    gain = [classification.scores(z, label, weight, names)['auroc/b'] for z in (better, logits)]
    assert rows['auroc/b']['value'] == pytest.approx(gain[0] - gain[1])
    same = classification.paired_table(logits, logits, label, weight, patients, names, QUICK)
    assert all(entry[k] == 0 for entry in same.values() for k in ('value', 'low', 'high'))


@pytest.mark.parametrize('strategy', ['uniform', 'quantile'])
def test_ece_agrees_with_sklearn_bins(strategy):
    rng = np.random.default_rng(5)
    prob = rng.random(400)
    label = (rng.random(400) < prob**2).astype(float)
    observed, predicted = calibration_curve(label, prob, n_bins=15, strategy=strategy)
    count = np.bincount(calibration.bins_of(prob, 15, strategy == 'quantile'), minlength=15)
    expected = np.sum(count[count > 0] * np.abs(observed - predicted)) / 400
    assert calibration.ece(prob, label, equal_mass=strategy == 'quantile')[0] == pytest.approx(expected)
    assert expected > 0.1
    if strategy == 'quantile':
        assert count.min() >= 26 and count.max() <= 27


def test_ece_worked_number_and_edges():
    prob, label = np.array([0.9, 0.9, 0.1, 0.1]), np.array([1, 0, 0, 0])
    assert calibration.ece(prob, label, bins=2)[0] == pytest.approx((abs(1.8 - 1) + 0.2) / 4)
    one_case_each = np.eye(4)[:2]
    assert calibration.ece(prob, label, one_case_each, bins=2) == pytest.approx([0.1, 0.9])
    assert calibration.ece(np.ones(3), np.ones(3), equal_mass=True)[0] == 0
    assert np.isnan(calibration.ece(np.empty(0), np.empty(0), equal_mass=True)[0])
    assert np.isnan(calibration.brier(np.empty(0), np.empty(0))[0])
    with pytest.raises(errors.ConfigError, match='bins=0'):
        calibration.ece(prob, label, bins=0)


def test_curves():
    logits, label, weight, _, names = study()
    label[:, 1], weight[:, 2] = 0, 0
    drawn = classification.curves(logits, label, weight, names, bins=10)
    a = drawn['a']
    expected = classification.scores(logits, label, weight, names)['auroc/a']
    assert np.trapezoid(a['tpr'], a['fpr']) == pytest.approx(expected)
    assert len(a['predicted']) == len(a['observed']) > 3 and np.all(np.diff(a['predicted']) > 0)
    assert len(drawn['b']['fpr']) == 0 and (drawn['b']['observed'] == 0).all() and len(drawn['b']['observed'])
    assert all(len(v) == 0 for v in drawn['c'].values())


def test_bad_input():
    logits, label, weight, patients, names = study()
    weight[:] = 1
    with pytest.raises(errors.BadData, match='must all be'):
        classification.scores(logits, label[:, :2], weight, names)
    with pytest.raises(errors.BadData, match='patient ids for 200 cases'):
        classification.table(logits, label, weight, patients[:9], names, QUICK)
    with pytest.raises(errors.NonFinite, match='"b": 1 of 200'):
        classification.scores(np.where(np.arange(600).reshape(200, 3) == 1, np.nan, logits), label, weight, names)
    label[4, 2] = -1
    with pytest.raises(errors.BadData, match='"c" holds values other'):
        classification.scores(logits, label, weight, names)
