"""The evaluator of exclusive classes: what its rows, table and arrays hold, and when it asks the clinical prior."""
import types

import numpy as np
import pytest
from scipy.special import expit, softmax

from jaxkd import errors
from jaxkd.data.source import Case
from jaxkd.evaluators import multiclass
from jaxkd.evaluators.predictions import schema
from jaxkd.inference import predictor
from jaxkd.metrics import bootstrap
from jaxkd.metrics import multiclass as metric

N, NAMES = 90, ('benign', 'low', 'malignant')
HP = types.SimpleNamespace(**multiclass.DEFAULTS)
PRIOR = np.array([[[0.9, 0.08, 0.02]] * 2, [[0.05, 0.25, 0.7]] * 2])  # [texture, duct, class]


def parts(val, test):
    return types.SimpleNamespace(indices=dict(val=val, test=test).get)


class Predict:
    """Logits [N, 3] of made-up cases: the first third validates, the rest tests."""

    def __init__(self, assets=None, **source):
        rng = np.random.default_rng(0)
        self.label = rng.integers(3, size=N)
        self.logits = (rng.normal(size=(N, 3)) * 2 + 2 * np.eye(3)[self.label]).astype(np.float32)
        texture = np.where(np.arange(N) % 7, self.label // 2, -1)
        self.signs = dict(label=self.label, texture=texture, duct=np.arange(N) % 2)
        hard = {'subgroup': 'challenging'}
        cases = [Case(f'v{i}', f'p{i // 2}', groups={'class': NAMES[c], **(hard if i % 3 else {})})
                 for i, c in enumerate(self.label)]
        self.data = types.SimpleNamespace(config={'prior': dict(tasks=('texture', 'duct'))},
                                          transforms=types.SimpleNamespace(fitted=assets or {}, assignments={}),
                                          source=types.SimpleNamespace(**{'labels': NAMES, 'cases': cases,
                                                                          'targets': {}, **source}),
                                          partition=parts(range(30), range(30, N)))

    def __call__(self, role, message='', keep=None):
        index = np.array(self.data.partition.indices(role) if keep is None else keep)
        cases = [self.data.source.cases[i] for i in index]
        ids, patients = tuple(c.id for c in cases), np.array([c.patient for c in cases])
        return predictor.NetworkOutputs(index, ids, patients, self.label[index], np.ones((len(index), 1)),
                              np.zeros((len(index), 0, 5)), {'logits': self.logits[index]})


def cells(predictions):
    """The rows of the file, {column: text} each."""
    columns = predictions.columns()
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def signs():
    predict = Predict()
    return dict(tasks={'texture': ('cystic', 'solid'), 'duct': ('normal', 'cut off')}, targets=predict.signs)


def test_external_data_has_a_test_part_alone(monkeypatch):
    """The cases are those that external_cases gives, predicted by the same network on the external data."""
    predict, other, cached = Predict(), Predict(), []
    other.data.cache_in_memory = lambda: cached.append(True)
    monkeypatch.setattr(predictor.external, 'external_cases', lambda data, name, part, key: (other.data, [31, 40, 55]))
    predict.with_data = lambda data: (lambda role, message='', keep=None: other(role, keep=keep))
    data, outputs = predictor.predict_parts(predict, types.SimpleNamespace(data='shifted', part='test'))
    assert data is other.data and cached and list(outputs) == ['test'] and list(outputs['test'].index) == [31, 40, 55]
    hp = types.SimpleNamespace(**multiclass.DEFAULTS | dict(data='shifted'))
    table, rows, arrays = multiclass.report(predict, hp, 50, 0)
    assert list(rows) == ['test'] and arrays == {} and table['accuracy']['n_patients'] == 3


def test_rows_hold_one_vs_rest_log_odds_and_every_column():
    predict = Predict()
    _, rows, _ = multiclass.report(predict, HP, 50, 0)
    assert [len(rows[r].cases) for r in ('val', 'test')] == [30, 60]
    test = cells(rows['test'])
    p = softmax(predict.logits.astype(float), 1)
    for row, i in zip(test, range(30, N)):
        assert (row['case'], row['patient'], row['class']) == (f'v{i}', f'p{i // 2}', NAMES[predict.label[i]])
        assert row['subgroup'] == ('challenging' if i % 3 else '')
        np.testing.assert_allclose([float(row[f'probability/{c}']) for c in NAMES], p[i], rtol=1e-6)
        np.testing.assert_allclose(rows['test'].probability[i - 30], p[i])
        np.testing.assert_allclose(expit(rows['test'].logit[i - 30]), p[i])
        assert ([float(row[f'label/{c}']) for c in NAMES] == list(np.eye(3)[predict.label[i]])
                and row['weight/low'] == '1')
    text = schema.to_csv(rows['test'].columns()).splitlines()
    assert len(text) == 61 and 'prior/implausible' not in text[0]


def test_a_part_without_cases_is_left_out():
    predict = Predict()
    predict.data.partition = parts([], range(30, N))
    assert list(multiclass.report(predict, HP, 50, 0)[1]) == ['test']
    predict.data.partition = parts(range(30), [])
    table, rows, _ = multiclass.report(predict, HP, 50, 0)
    assert table == {} and list(rows) == ['val']


def test_table_is_that_of_the_test_part_with_subgroups():
    predict = Predict()
    table, _, arrays = multiclass.report(predict, HP, 50, 3)
    z, y, patients = predict.logits[30:], predict.label[30:], [f'p{i // 2}' for i in range(30, N)]
    for name, entry in metric.table(z, y, patients, NAMES, 50, seed=3).items():
        assert table[name] == entry
    hard = np.arange(30, N) % 3 > 0
    assert table['accuracy@subgroup=challenging']['value'] == np.mean(z[hard].argmax(1) == y[hard])
    assert not any('@class' in name or 'implausible' in name or name.endswith('=') for name in table)
    counts = arrays['confusion']
    assert np.trace(counts['test']) == np.sum(z.argmax(1) == y) and counts['val'].sum() == 30
    assert list(counts['labels']) == list(NAMES) and all(a.dtype != object for a in counts.values())


def test_scores_are_those_of_one_part():
    predict = Predict()
    found = multiclass.scores(predict, 'val', HP)
    assert set(found) == {'accuracy', 'balanced_accuracy', 'mean_ovr_accuracy', 'auroc', 'loss'}
    assert found['accuracy'] == np.mean(predict.logits[:30].argmax(1) == predict.label[:30])


def test_implausible_is_asked_of_true_signs_only():
    predict = Predict({'prior': {'prior': PRIOR.tolist()}}, **signs())
    table, rows, _ = multiclass.report(predict, HP, 50, 0)
    texture, chosen = predict.signs['texture'][30:], predict.logits[30:].argmax(1)
    known = texture >= 0
    expected = np.where(texture == 0, chosen >= 1, chosen == 0)  # 0.08 and 0.02, 0.05 lie below 0.10
    assert table['implausible']['value'] == pytest.approx(expected[known].mean()) and 0 < expected[known].mean() < 1
    assert table['implausible']['n_cases'] == known.sum() < 60
    truth = np.where(texture == 0, predict.label[30:] >= 1, predict.label[30:] == 0)
    assert table['implausible_truth']['value'] == pytest.approx(truth[known].mean())
    told = rows['test'].implausible
    assert np.array_equal(told[known], expected[known]) and np.isnan(told[~known]).all()
    again = bootstrap.interval(bootstrap.mean(told), rows['test'].patients, 50)
    assert {k: table['implausible'][k] for k in again} == again
    none = types.SimpleNamespace(**vars(HP) | {'delta': 0.0})
    assert multiclass.report(predict, none, 50, 0)[0]['implausible']['value'] == 0


UNKNOWN = {key: np.full(N, -1) for key in ('texture', 'duct')}


@pytest.mark.parametrize('assets, source', [
    ({}, signs()), ({'prior': {'prior': PRIOR.tolist()}}, {}),
    ({'prior': {'prior': PRIOR.tolist()}}, dict(tasks=signs()['tasks'], targets={'label': np.zeros(N, int)})),
    ({'prior': {'prior': PRIOR.tolist()}}, dict(tasks=signs()['tasks'], targets=UNKNOWN))])
def test_without_prior_or_signs_there_is_no_implausible_share(assets, source):
    assert not any('implausible' in name for name in multiclass.report(Predict(assets, **source), HP, 20, 0)[0])


def test_labels_that_are_no_class_are_refused_before_training():
    good = types.SimpleNamespace(ndim=1, dtype=np.dtype('int32'), shape=(4,))
    network = types.SimpleNamespace(output_shapes=lambda batch: {'logits': types.SimpleNamespace(ndim=2, shape=(4, 3))})
    assert multiclass.check(network, {'label': good}, HP) is None
    for ndim, dtype, shape in ((2, 'float32', (4, 8)), (1, 'float32', (4,)), (2, 'int32', (4, 8))):
        with pytest.raises(errors.ConfigError, match='put "classification" into the evals'):
            multiclass.check(None, {'label': types.SimpleNamespace(ndim=ndim, dtype=np.dtype(dtype), shape=shape)}, HP)
