"""Exclusive classes: the worked confusion matrix, agreement with sklearn, absent classes, groups, the clinical
prior.
"""
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn import metrics as sk

from jaxkd import errors
from jaxkd.metrics import bootstrap, calibration, multiclass

QUICK, NAMES = 100, ('a', 'b', 'c')
WORKED = np.array([[8, 2, 0], [1, 6, 3], [0, 1, 9]])


def study(n=150, classes=3, seed=0):
    """logits, label, patients (two cases each), names."""
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=n)
    logits = rng.normal(size=(n, classes)) * 1.5 + np.eye(classes)[label]
    return logits, label, [f'p{i // 2}' for i in range(n)], tuple('abcdef'[:classes])


def cases_of(counts):
    """Logits and labels whose confusion matrix is `counts`."""
    label, predicted = np.repeat(np.indices(counts.shape).reshape(2, -1), counts.ravel(), axis=1)
    return 2.0 * np.eye(len(counts))[predicted], label


def test_worked_numbers():
    logits, label = cases_of(WORKED)
    assert np.array_equal(multiclass.confusion(logits.argmax(1), label, 3)[0], WORKED)
    found = multiclass.table(logits, label, range(30), NAMES, QUICK)
    value = lambda name: round(found[name]['value'], 4)  # noqa: E731
    each = lambda name: [value(f'{name}/{c}') for c in NAMES]  # noqa: E731
    assert value('accuracy') == 0.7667 and value('mean_ovr_accuracy') == 0.8444
    assert each('accuracy') == [0.9, 0.7667, 0.8667]
    assert each('sensitivity') == [0.8, 0.6, 0.9] and value('balanced_accuracy') == value('sensitivity') == 0.7667
    assert each('specificity') == [0.95, 0.85, 0.85]
    assert each('precision') == [round(8 / 9, 4), round(6 / 9, 4), 0.75]
    assert each('f1') == [round(16 / 19, 4), round(12 / 19, 4), round(18 / 22, 4)]
    p = np.exp(2) / (np.exp(2) + 2)  # of the chosen class, in every case
    assert found['ece']['value'] == pytest.approx(abs(p - 23 / 30))
    right, wrong = (1 - p)**2 + (1 - p)**2 / 2, p**2 + ((1 + p) / 2)**2 + ((1 - p) / 2)**2
    assert found['brier']['value'] == pytest.approx((23 * right + 7 * wrong) / 30)
    assert found['loss']['value'] == pytest.approx(-(23 * np.log(p) + 7 * np.log((1 - p) / 2)) / 30)


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 40), st.integers(2, 5), st.integers(0, 10**6))
def test_agrees_with_sklearn(n, classes, seed):
    logits, label, patients, names = study(max(n, 2 * classes), classes, seed)
    label[:classes] = np.arange(classes)
    logits = np.round(logits, 1)  # ties
    found = {k: v['value'] for k, v in multiclass.table(logits, label, patients, names, 0).items()}
    chosen, prob, truth = logits.argmax(1), softmax(logits, 1), np.eye(classes)[label]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        precision, sensitivity, f1, _ = sk.precision_recall_fscore_support(label, chosen, labels=range(classes),
                                                                           zero_division=np.nan)
    odds = np.round(multiclass.log_odds(logits), 9)
    expected = {'accuracy': sk.accuracy_score(label, chosen),
                'balanced_accuracy': sk.balanced_accuracy_score(label, chosen),
                'loss': sk.log_loss(label, prob, labels=range(classes)), 'brier': np.mean(np.sum((prob - truth)**2, 1)),
                'auroc': np.mean([sk.roc_auc_score(truth[:, c], odds[:, c]) for c in range(classes)]),
                'auprc': np.mean([sk.average_precision_score(truth[:, c], odds[:, c]) for c in range(classes)])}
    for c, name in enumerate(names):
        expected |= {f'precision/{name}': precision[c], f'sensitivity/{name}': sensitivity[c], f'f1/{name}': f1[c],
                     f'accuracy/{name}': np.mean((chosen == c) == (label == c)),
                     f'specificity/{name}': sk.recall_score(label != c, chosen != c)}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-9, err_msg=name)
    assert found['mean_ovr_accuracy'] == pytest.approx(1 - 2 * (1 - found['accuracy']) / classes)
    assert multiclass.scores(logits, label, names) == pytest.approx(
        {k: found[k] for k in ('accuracy', 'balanced_accuracy', 'mean_ovr_accuracy', 'auroc', 'loss')})


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.integers(2, 5), st.floats(0.01, 300), st.integers(0, 10**6))
def test_one_vs_rest_log_odds(n, classes, scale, seed):
    logits = np.random.default_rng(seed).normal(size=(n, classes)) * scale
    odds, p = multiclass.log_odds(logits), softmax(logits, 1)
    assert np.isfinite(odds).all()  # also where p is 0 or 1 in floating point
    np.testing.assert_allclose(expit(odds), p, atol=1e-12)
    assert np.array_equal(odds.argmax(1), logits.argmax(1))
    np.testing.assert_allclose(multiclass.log_odds(logits + 7), odds, atol=1e-9)
    np.testing.assert_allclose(multiclass.log_odds(np.log(np.maximum(p, 1e-300))).argmax(1), p.argmax(1))


def test_two_classes_are_one_binary_task():
    logits, label, patients, names = study(100, 2)
    found = multiclass.table(logits, label, patients, names, QUICK)
    np.testing.assert_allclose(multiclass.log_odds(logits)[:, 1], logits[:, 1] - logits[:, 0])
    assert found['accuracy'] | {'n_positive': 0, 'n_negative': 0} == found['accuracy/a'] | {'n_positive': 0,
                                                                                            'n_negative': 0}
    assert found['auroc/a']['value'] == pytest.approx(found['auroc/b']['value'])
    assert found['sensitivity/a']['value'] == found['specificity/b']['value']


def test_top_label_calibration():
    logits, label, patients, names = study()
    prob = softmax(logits, 1)
    expected = calibration.ece(prob.max(1), (prob.argmax(1) == label).astype(float), bins=7)[0]
    found = multiclass.table(logits, label, patients, names, 0, bins=7)['ece']['value']
    assert found == pytest.approx(expected) and found > 0.02


def test_intervals_are_those_of_duplicated_rows():
    logits, label, patients, names = study(60)
    found = multiclass.table(logits, label, patients, names, QUICK)
    draws = [[], []]
    for block in bootstrap.resamples(patients, QUICK):
        for w in block.astype(int):
            z, y = logits.repeat(w, 0), label.repeat(w)
            draws[0].append(sk.balanced_accuracy_score(y, z.argmax(1)))
            draws[1].append(sk.log_loss(y, softmax(z, 1), labels=range(3)))
    for name, of in zip(('balanced_accuracy', 'loss'), draws):
        np.testing.assert_allclose([found[name]['low'], found[name]['high']], np.quantile(of, [0.025, 0.975]))
    entry = found['accuracy']
    assert entry['n_patients'] == 30 and entry['low'] < entry['value'] < entry['high']
    assert found['auroc/b']['n_positive'] == np.sum(label == 1) and found['auroc/b']['n_negative'] == np.sum(label != 1)


def test_absent_classes():
    """c has no case, and nobody predicts it; d has no case, but is predicted."""
    logits = np.array([[3, 0, -9, 0], [3, 0, -9, 0], [0, 3, -9, 0], [0, 0, -9, 3.0]])
    found = multiclass.table(logits, [0, 1, 1, 0], 'pqrs', 'abcd', QUICK)
    value = lambda name: found[name]['value']  # noqa: E731
    assert np.isnan([value(f'{m}/{c}') for m in ('sensitivity', 'auroc', 'auprc') for c in 'cd']).all()
    assert np.isnan([value('precision/c'), value('f1/c')]).all() and value('precision/d') == value('f1/d') == 0
    assert [value(f'accuracy/{c}') for c in 'abcd'] == [0.5, 0.75, 1, 0.75]
    assert [found[m].get('n_labels') for m in ('sensitivity', 'balanced_accuracy', 'auroc', 'precision', 'f1',
                                               'mean_ovr_accuracy',
                                               'accuracy', 'loss')] == [2, 2, 2, 3, 3, 4, None, None]
    assert value('balanced_accuracy') == 0.5 and value('f1') == pytest.approx((0.5 + 2 / 3 + 0) / 3)
    one = multiclass.table(logits, [0, 0, 0, 0], 'pqrs', 'abcd', QUICK)
    assert np.isnan([one['auroc']['value'], one['specificity/a']['value']]).all() and one['auroc']['n_labels'] == 0
    assert one['accuracy']['value'] == one['balanced_accuracy']['value'] == 0.5


def test_a_rare_class_reports_its_defined_replicates():
    logits, label, patients, names = study()
    label[label == 2], label[7] = 0, 2
    found = multiclass.table(logits, label, patients, names)
    assert 0.55 < found['sensitivity/c']['replicates'] / 1000 < 0.71  # 1 - 1/e of the resamples draw that patient
    assert found['balanced_accuracy']['replicates'] == 1000


def test_paired_differences():
    logits, label, patients, names = study()
    better = logits + np.eye(3)[label]
    found = multiclass.paired_table(better, logits, label, patients, names, QUICK)
    one, other = (multiclass.table(z, label, patients, names, QUICK) for z in (better, logits))
    assert found['accuracy']['low'] > 0 and found['loss']['high'] < 0
    for name, entry in found.items():
        assert entry['value'] == pytest.approx(one[name]['value'] - other[name]['value'], abs=1e-12)
    same = multiclass.paired_table(logits, logits + 5, label, patients, names, QUICK)
    assert all(abs(entry[k]) < 1e-12 for entry in same.values() for k in ('value', 'low', 'high'))


def test_subgroups_are_tables_of_their_rows():
    logits, label, patients, names = study()
    hard = np.arange(150) % 3 == 0
    groups = {'class': np.array(names)[label], 'subgroup': np.where(hard, 'challenging', 'ordinary'),
              'size': [''] * 149 + ['small']}
    found = multiclass.subgroups(logits, label, patients, names, groups, QUICK)
    kinds = ('subgroup=challenging', 'subgroup=ordinary', 'size=small')
    assert set(found) == {f'{m}@{g}' for g in kinds for m in multiclass.HEADLINE}
    alone = multiclass.table(logits[hard], label[hard], np.array(patients)[hard], names, QUICK)
    for name in multiclass.HEADLINE:
        entry = found[f'{name}@subgroup=challenging']
        assert {k: entry[k] for k in ('value', 'low', 'high', 'n_patients')} == {
            k: alone[name][k] for k in ('value', 'low', 'high', 'n_patients')} and entry['n_cases'] == 50
    assert found['accuracy@size=small']['n_patients'] == 1 and np.isnan(found['accuracy@size=small']['low'])
    assert np.isnan(found['auroc@size=small']['value'])


def test_implausible_worked_numbers():
    prior = np.full((3, 3, 3), 1 / 3)
    prior[2, 2] = 0.05, 0.25, 0.70  # solid, cut off
    texture, duct, chosen = [2, 2, 2, -1, 0], [2, 2, 2, 2, 0], [0, 1, 2, 0, 0]
    np.testing.assert_array_equal(multiclass.implausible(prior, (texture, duct), chosen), [1, 0, 0, np.nan, 0])
    np.testing.assert_array_equal(multiclass.implausible(prior, (texture, duct), chosen, 0.3), [1, 1, 0, np.nan, 0])
    np.testing.assert_array_equal(multiclass.implausible(prior, (texture, duct), chosen, 0.0), [0, 0, 0, np.nan, 0])
    for signs in ((texture,), (texture, [3, 0, 0, 0, 0])):
        with pytest.raises(errors.BadData, match='prior table has the shape'):
            multiclass.implausible(prior, signs, chosen)


def test_bad_input():
    logits, label, patients, names = study()
    with pytest.raises(errors.BadData, match='must be'):
        multiclass.scores(logits, np.eye(3)[label], names)
    with pytest.raises(errors.BadData, match='must be'):
        multiclass.scores(logits, label, names[:2])
    with pytest.raises(errors.BadData, match='at least two'):
        multiclass.scores(logits[:, :1], label, names[:1])
    with pytest.raises(errors.BadData, match='patient ids for 150 cases'):
        multiclass.table(logits, label, patients[:9], names, QUICK)
    with pytest.raises(errors.NonFinite, match='1 of 150'):
        multiclass.scores(np.where(np.arange(150)[:, None] == 4, np.nan, logits), label, names)
    with pytest.raises(errors.BadData, match='Case 3 .* has the label -1'):
        multiclass.scores(logits, np.where(np.arange(150) == 3, -1, label), names)
    with pytest.raises(errors.BadData, match='has the label 0.5'):
        multiclass.scores(logits, np.where(np.arange(150) == 3, 0.5, label), names)
