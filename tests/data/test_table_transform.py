"""Tables of findings to rows of numbers, and what the real tables of CBIS-DDSM can tell."""
import collections
import json
import os
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from jaxkd import config, errors
from jaxkd.data import pool, source
from jaxkd.data.sources import cbis_ddsm
from jaxkd.data.transforms import table
from jaxkd.phantoms import breast
from jaxkd.phantoms.breast import findings

REAL = pathlib.Path(os.environ.get('JAXKD_REAL_DATA')
                    or pathlib.Path(__file__).parents[2] / '../shared/data') / 'cbis_ddsm_csv'
A = {'breast density': '2', 'left or right breast': 'LEFT', 'image view': 'CC', 'abnormality type': 'mass',
     'mass shape': 'OVAL',
     'mass margins': 'CIRCUMSCRIBED', 'assessment': '3', 'subtlety': '4', 'pathology': 'BENIGN', 'patient_id': 'P_1'}
B = dict(A, **{'mass shape': 'IRREGULAR-ARCHITECTURAL_DISTORTION', 'mass margins': 'NA', 'assessment': '0',
               'pathology': 'MALIGNANT',
               'breast density': '3'})
C = {**A, 'abnormality type': 'calcification', 'calc type': 'LUCENT_CENTERED-PUNCTATE',
     'calc distribution': 'CLUSTERED'}
del C['mass shape'], C['mass margins']


class Tables(source.Source):
    """A source of tables alone."""
    name, labels, table_without_image = 'tables', ('malignant',), True

    def __init__(self, *tables):
        self.tables = tables
        self.cases = tuple(collections.namedtuple('Case', 'id')(f'case{i}') for i in range(len(tables)))

    def table(self, i):
        return self.tables[i]


def _made(train, *others, **changes):
    """(transform, asset) fitted on the tables `train`."""
    hp = ConfigDict({**table.DEFAULTS, **changes})
    asset = table.fit(hp, Tables(*train, *others), range(len(train)), lambda x: x)
    return table.build(hp, json.loads(json.dumps(asset))).apply, asset


def test_words_are_split_joined_and_named():
    transform, asset = _made([[A], [B], [C]])
    names = table.names(asset)
    assert {'mass shape=IRREGULAR', 'mass shape=ARCHITECTURAL_DISTORTION', 'mass margins=NA', 'calc type=LUCENT_CENTER',
            'calc type=PUNCTATE', 'breast density=2'} <= set(names)
    assert not any('CENTERED' in n or 'BENIGN' in n or 'assessment' in n or 'subtlety' in n or 'P_1' in n
                   for n in names)
    out = transform({'table': [B]})
    assert out['row'].dtype == np.float32 and out['row'].shape == (len(names),) and out['present']['row'] == 1
    assert {n for n, v in zip(names, out['row']) if v} == {
        'breast density=3', 'left or right breast=LEFT', 'image view=CC', 'abnormality type=mass',
        'mass shape=IRREGULAR',
        'mass shape=ARCHITECTURAL_DISTORTION', 'mass margins=NA'}


def test_an_image_is_the_union_of_its_findings_and_their_largest_level():
    transform, asset = _made([[A], [B], [C]], use_assessment=True)
    rows = {k: transform({'table': t})['row'] for k, t in dict(a=[A], b=[B], ab=[A, B]).items()}
    sets = np.array([not n.startswith(('breast density', 'assessment')) for n in table.names(asset)])
    np.testing.assert_array_equal(rows['ab'][sets], np.maximum(rows['a'], rows['b'])[sets])
    on = {n for n, v in zip(table.names(asset), rows['ab']) if v and ('density' in n or 'assess' in n)}
    assert on == {'breast density=3', 'assessment=3'}


def test_numbers_are_scaled_by_training_cases():
    transform, asset = _made([[A], [B], [dict(A, **{'breast density': '4'})]], [dict(A, **{'breast density': '9'})],
                             levels=(), numbers=('breast density',))
    mean, spread = np.mean([2, 3, 4]), np.std([2, 3, 4])
    assert asset['numbers'] == {'breast density': [pytest.approx(mean), pytest.approx(spread)]}
    assert transform({'table': [A, B]})['row'][0] == pytest.approx((3 - mean) / spread)
    assert transform({'table': [dict(A, **{'breast density': 'NA'})]})['row'][0] == 0
    with pytest.raises(errors.BadData, match='must hold numbers'):
        transform({'table': [dict(A, **{'breast density': 'dense'})]})


def test_without_findings_a_row_is_absent():
    transform, _ = _made([[A], []])
    out = transform({'table': []})
    assert not out['row'].any() and out['present']['row'] == 0


def test_columns_are_chosen_in_groups_and_the_answer_is_refused():
    wide = {n.partition('=')[0] for n in table.names(_made([[A], [C]], use_subtlety=True, use_assessment=True)[1])}
    bare = {n.partition('=')[0] for n in table.names(_made([[A], [C]], descriptors=())[1])}
    assert {'subtlety', 'assessment', 'mass shape', 'calc type'} <= wide and len(bare) == 4
    for column in table.REFUSED:
        with pytest.raises(errors.ConfigError, match='it is the answer'):
            _made([[A]], sets=(column,))
    with pytest.raises(errors.ConfigError, match='use_assessment=True'):
        _made([[A]], numbers=('assessment',))
    with pytest.raises(errors.ConfigError, match='no column'):
        _made([[A]], sets=(), levels=(), descriptors=())
    with pytest.raises(errors.BadData, match='have none of the columns'):
        _made([[A]], sets=('tissue',), levels=(), descriptors=())
    with pytest.raises(errors.ConfigError, match='merge'):
        _made([[A]], merge=('A',))


def test_a_word_that_training_lacks_is_counted_and_ignored_or_refused(capsys):
    odd = dict(A, **{'mass shape': 'OVAL-LYMPH_NODE'})
    transform, asset = _made([[A], [B]], [odd], [A])
    assert 'tables: 1 cases hold a word that no training case has, e.g. case2.' in capsys.readouterr().out
    np.testing.assert_array_equal(transform({'table': [odd]})['row'], transform({'table': [A]})['row'])
    strict, _ = _made([[A], [B]], unknown='error')
    strict({'table': [A, B]})
    with pytest.raises(errors.BadData, match='"mass shape" of case x holds a word') as e:
        strict({'table': [odd], 'case': 'x'})
    assert 'LYMPH' not in str(e.value)
    with pytest.raises(errors.BadData, match='"breast density"'):
        strict({'table': [dict(A, **{'breast density': '4'})]})


def test_a_source_without_a_table_is_refused():
    with pytest.raises(errors.ConfigError, match='no "table"'):
        table.build(ConfigDict(table.DEFAULTS)).apply({'image': 0})


def test_a_dry_run_knows_the_shape_and_test_rows_teach_nothing():
    conf = config.load('configs/mmpkd_mammo.py:smoke')
    data = pool.build(conf.data, fit=False)
    asset = data.transforms.fitted['table']
    assert data.batch_spec(1)['row'].shape == (1, len(table.names(asset)),)
    words = {w for i in data.partition.indices('train') for row in data.source.table(i)
             for w in row.get('mass margins', '').split('-')} - {''}
    assert set(asset['sets']['mass margins']) == words


def test_logistic_regression_on_the_phantom_comes_near_the_ceiling():
    source = breast.build(ConfigDict(dict(breast.DEFAULTS, patients=2500, kind='mass')))
    half = len(source) // 2
    transform, _ = _made([source.table(i) for i in range(half)])
    x = np.stack([transform({'table': source.table(i)})['row'] for i in range(len(source))])
    y = np.array([any(r['pathology'] == 'MALIGNANT' for r in source.table(i)) for i in range(len(source))])
    risk = np.array([findings.risk(source.table(i)) for i in range(half, len(source))])
    model = LogisticRegression(max_iter=2000).fit(x[:half], y[:half])
    found, best = roc_auc_score(y[half:], model.decision_function(x[half:])), roc_auc_score(y[half:], risk)
    assert 0.84 < best < 0.91 and best - 0.02 < found < best + 0.01


# What the real tables tell (lesions, the official split, logistic regression with C = 1).

BASE = ('left or right breast', 'image view', 'abnormality type')
real = pytest.mark.skipif(not REAL.is_dir(), reason='the real tables of CBIS-DDSM are not here')


def _auroc(kind, descriptors=True, **more):
    found = cbis_ddsm.lesions(REAL, kind, leaking=True)
    parts = [[x for x in found if x.split == part] for part in ('train', 'test')]
    hp = ConfigDict({**table.DEFAULTS, **({} if descriptors else {'descriptors': ()}), **more})
    asset = table.fit(hp, Tables(*[[x.row] for x in parts[0]]), range(len(parts[0])), lambda x: x)
    transform = table.build(hp, asset).apply
    (x, y), (x_test, y_test) = ((np.stack([transform({'table': [x.row]})['row'] for x in part]),
                                 [x.row['pathology'] == 'MALIGNANT' for x in part]) for part in parts)
    return roc_auc_score(y_test, LogisticRegression(C=1.0, max_iter=5000).fit(x, y).decision_function(x_test))


@real
@pytest.mark.parametrize('kind, bare, words, subtle, graded',
                         [('mass', 0.478, 0.833, 0.835, 0.886), ('calc', 0.546, 0.787, 0.800, 0.878)])
def test_ceilings_of_the_real_tables(kind, bare, words, subtle, graded):
    assert _auroc(kind, descriptors=False) == pytest.approx(bare, abs=0.01) and 0.45 <= bare <= 0.58
    assert _auroc(kind) == pytest.approx(words, abs=0.01)
    assert _auroc(kind, use_subtlety=True) == pytest.approx(subtle, abs=0.01)
    assert _auroc(kind, use_subtlety=True, use_assessment=True) == pytest.approx(graded, abs=0.01)


@real
def test_the_assessment_is_nearly_the_diagnosis():
    alone = dict(sets=(), levels=(), use_assessment=True, descriptors=False)
    assert _auroc('mass', **alone) == pytest.approx(0.836, abs=0.01)
    assert _auroc('calc', **alone) == pytest.approx(0.754, abs=0.01)
    assert _auroc('both', use_subtlety=True, use_assessment=True) == pytest.approx(0.856, abs=0.01)


@real
def test_words_of_the_real_tables():
    """9 shapes, 6 margins, 15 types (14 when one spelling is left), 6 distributions, NA among them."""
    rows = [[x.row] for x in cbis_ddsm.lesions(REAL, leaking=True)]
    columns = table.DEFAULTS['descriptors']
    counts = [[len(table.learn(rows, columns, (), (), merge)['sets'][c]) for c in columns] for merge in (
        {}, {'LUCENT_CENTERED': 'LUCENT_CENTER'})]
    assert counts == [[9, 6, 15, 6], [9, 6, 14, 6]]
    assert all('NA' in table.learn(rows, (c,), (), (), {})['sets'][c] for c in columns)
