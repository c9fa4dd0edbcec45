"""Files of predictions: what is written is read, whatever the names, and what is damaged is refused with its place."""
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jaxkd import errors
from jaxkd.evaluators.predictions import schema

NAMES = st.text(st.characters(exclude_categories=('Cs',), exclude_characters='\0'), max_size=8) | st.sampled_from(
    ['a,b', '"', 'x\ny', '\r', '\r\n', ' ', '<script>alert("1")</script>', 'ä', "'", 'logit/', '=1+1'])
GROUPS = NAMES.filter(lambda g: g not in (*schema.NAMES, schema.VOLUME) and not g.startswith(schema.RESERVED))
WRITTEN = st.floats(width=32).map(lambda x: float(f'{x:.7g}'))  # with no more digits than the file holds
FULL = st.floats()


def matrix(n, columns, values):
    return arrays.arrays(float, (n, columns), elements=values)


def words(n):
    return st.lists(NAMES, min_size=n, max_size=n).map(lambda names: np.array(names, str))


@st.composite
def predictions(draw, floats=WRITTEN):
    n = draw(st.integers(1, 5))
    labels = tuple(draw(st.lists(NAMES, max_size=3, unique=True)))
    numbers, flags = arrays.arrays(float, n, elements=floats), arrays.arrays(float, n,
                                                                             elements=st.sampled_from([0.0, 1.0]))
    whole = matrix(n, len(labels), st.sampled_from([0.0, 1.0]))
    measures = draw(st.lists(NAMES, max_size=3, unique=True))
    return schema.Predictions(draw(words(n)), draw(words(n)),
                              {g: draw(words(n)) for g in draw(st.lists(GROUPS, max_size=3, unique=True))}, labels,
                              draw(whole), draw(whole), draw(matrix(n, len(labels), floats)),
                              draw(matrix(n, len(labels), floats)), {m: draw(numbers) for m in measures},
                              draw(st.none() | words(n)), draw(st.none() | flags), draw(st.none() | numbers),
                              draw(st.none() | numbers), draw(st.booleans()))


@st.composite
def regions(draw):
    n, metrics = draw(st.integers(1, 5)), draw(st.lists(NAMES.filter(lambda m: m not in schema.REGION), max_size=3,
                                                        unique=True))
    return schema.RegionScores(*(draw(words(n)) for _ in schema.REGION),
                               {m: draw(arrays.arrays(float, n, elements=WRITTEN)) for m in metrics})


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    return tmp_path_factory.mktemp('predictions') / 'a.csv'


@settings(deadline=None)
@given(predictions())
def test_what_is_read_is_what_was_written(path, p):
    schema.write_csv(path, p)
    assert schema.read_csv(path, p.exclusive) == p


@settings(deadline=None)
@given(predictions(FULL))
def test_more_digits_are_rounded_to_seven_once(path, p):
    schema.write_csv(path, p)
    text, once = path.read_bytes(), schema.read_csv(path, p.exclusive)
    for field in ('logit', 'probability', 'implausible', 'volume_ml'):
        if getattr(p, field) is not None:
            np.testing.assert_allclose(getattr(once, field), getattr(p, field), rtol=5.1e-7, atol=1e-315)
    schema.write_csv(path, once)
    assert path.read_bytes() == text and schema.read_csv(path, p.exclusive) == once


@settings(deadline=None)
@given(regions())
def test_scores_of_regions_are_read_as_they_were_written(path, scores):
    schema.write_csv(path, scores)
    found = schema.read_regions(path)
    assert found == scores
    assert sum(len(of_map.maps) for of_map in found.by_map().values()) == len(scores.maps) == len(found.rows())


def small(**changes):
    one = np.ones((2, 1))
    return dataclasses.replace(schema.Predictions(np.array(['a', 'b']), np.array(['p', 'q']),
                                                  {'view': np.array(['AP', ''])},
                                                  ('x',), one, one, one, one), **changes)


def test_columns_and_their_order(path):
    p = small(measures={'dice/RV': np.array([0.5, np.nan])}, marked=np.array([1.0, 0]), studies=np.array(['s', 't']),
              implausible=np.array([np.nan, 1]), volume_ml=np.array([0.1, 1 / 3]))
    schema.write_csv(path, p)
    assert path.read_text() == ('case,patient,study,view,measure/dice/RV,label/x,weight/x,logit/x,probability/x,'
                                'shortcut/marked,prior/implausible,volume_ml\n'
                                'a,p,s,AP,0.5,1,1,1,1,1,nan,0.1\nb,q,t,,nan,1,1,1,1,0,1,0.3333333\n')


def test_rows_are_chosen_in_every_field():
    p = small(measures={'dice': np.array([0.5, 0.7])}).take(np.array([1]))
    assert list(p.cases) == ['b'] and p.logit.shape == (1, 1)
    assert list(p.measures['dice']) == [0.7] and list(p.groups['view']) == ['']
    assert p == small(measures={'dice': np.array([0.5, 0.7])}).take(np.array([False, True])) != small()


@pytest.mark.parametrize('changes, says', [
    ({'groups': {'patient': np.array(['a', 'b'])}}, "called 'patient', a name that predictions need"),
    ({'groups': {'logit/x': np.array(['a', 'b'])}}, "called 'logit/x', a name that predictions need"),
    ({'labels': ('x', 'x'), **{k: np.ones((2, 2)) for k in schema.BY_LABEL}}, "two columns called 'label/x'")])
def test_names_that_a_file_cannot_hold_are_refused(path, changes, says):
    with pytest.raises(errors.BadData, match=says):
        schema.write_csv(path, small(**changes))


@pytest.mark.parametrize('content, where', [
    ('case,patient,label/x,weight/x,logit/x,probability/x\nc,p,1,1,0,0\nd,q,1,1,abc,0\n',
     "line 3, column 'logit/x': 'abc' is no number"),
    ('case,patient,measure/dice\nc,p\n', 'line 2: 2 cells instead of 3'),
    ('case,patient,measure/dice\n"c\nd",p,1\ne,q,x\n', "line 4, column 'measure/dice': 'x' is no number"),
    ('case,patient,logit/x\nc,p,1\n', "column 'label/x': the column is missing"),
    ('case,patient,patient\nc,p,1\n', "column 'patient': the column stands there twice"),
    ('case,measure/dice\nc,1\n', "column 'patient': the column is missing"),
    ('case,patient,measure/dice\nc,"p" q,1\n', 'line 2: '), ('', "column 'case': the column is missing"),
    (b'case,patient,measure/dice\nc,\xff,1\n', "can't decode byte")])
def test_a_damaged_file_is_refused_with_its_place(path, content, where):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(errors.Damaged) as e:
        schema.read_csv(path)
    assert where in str(e.value) and str(path) in str(e.value) and 'Restore it' in str(e.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(errors.MissingInput, match='no predictions'):
        schema.read_csv(tmp_path / 'a.csv')


def test_names_of_files():
    def name(*args, **options):
        return schema.file_path('w', 'arm', *args, **options).as_posix()
    assert name() == 'w/predictions/arm_test.csv' and name('val') == 'w/predictions/arm_val.csv'
    assert name(evaluator='shifted') == 'w/predictions/arm_shifted.csv'
    assert name('test_rois', 'shifted') == 'w/predictions/arm_shifted_test_rois.csv'
    assert name('segments', suffix='.npz') == 'w/predictions/arm_segments.npz'
    assert name('segments', 'shifted', '.npz') == 'w/predictions/arm_shifted_segments.npz'
