"""Cells of tables: labels in every spelling, classes, and patient ids that mean that there is no patient."""
import csv
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import config, errors
from jaxkd.data import pool, volume
from jaxkd.data import source as sources
from jaxkd.data.formats import csv_table
from jaxkd.data.sources import dualphase, folder, masks, paired
from jaxkd.metrics import bootstrap

SPELLINGS = {1: ('1', '1.0', '1.00', '+1', '1e0', 'True', 'yes'), 0: ('0', '0.0', '0.000', '-0', 'False', 'no'),
             -1: ('-1', '-1.0', '-1.00'), None: ('', 'nan', 'NaN', 'NA', 'n/a', 'NULL', '<NA>')}
NOBODY = ('nan', 'None', 'NaT', 'NULL', 'n/a', 'NA', '<NA>', 'unknown', '?')
CASED = st.sampled_from((str, str.upper, str.lower, str.title))


@given(st.sampled_from([*SPELLINGS]).flatmap(lambda v: st.tuples(st.just(v), st.sampled_from(SPELLINGS[v]))), CASED,
       st.sampled_from(('', ' ', '\t', '\u00a0')))
@settings(deadline=None, max_examples=200)
def test_labels_mean_what_they_say(pair, cased, pad):
    value, cell = pair
    found = csv_table.label(pad + cased(cell) + pad)
    assert math.isnan(found) if value is None else found == value


@given(st.text(max_size=12))
@settings(deadline=None, max_examples=200)
def test_any_cell_is_a_label_or_is_refused(cell):
    value = csv_table.label(cell)
    assert value is None or value in (1, 0, -1) or math.isnan(value)
    assert all(csv_table.label(other) is None for other in ('2', 'maybe', 'inf', 'none', '0.5', 'yess', '1 0'))


@given(st.lists(st.text('abcXYZ 19', min_size=1, max_size=4), min_size=2, max_size=5, unique_by=str.lower),
       st.integers(0, 4), CASED, st.booleans())
@settings(deadline=None, max_examples=200)
def test_classes_by_name_or_number(names, i, cased, by_name):
    i %= len(names)
    if by_name:
        assert csv_table.class_index(names[i], names) == i
    elif not any(name.strip().lower().replace('.', '').isdigit() for name in names):
        assert {csv_table.class_index(cell, names) for cell in (str(i), f' {i}.0', f'{i}.00')} == {i}
        assert csv_table.class_index(str(len(names)), names) is csv_table.class_index('-1', names) is None


def test_two_classes_may_be_true_and_false():
    assert [csv_table.class_index(cell, ('a', 'b')) for cell in ('True', 'no', 'B ', 'maybe')] == [1, 0, 1, None]
    assert csv_table.class_index('yes', ('yes', 'no')) == 0 and csv_table.class_index('True', ('a', 'b', 'c')) is None


def written(tmp_path, header, rows, **given):
    for row in rows:
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / row[1])
    with open(tmp_path / 'cases.csv', 'w', newline='') as f:
        csv.writer(f).writerows([header, *rows])
    return sources.build(ConfigDict(dict(folder.DEFAULTS, name='folder', root=str(tmp_path), empty_text='ok', **given)))


def test_a_folder_of_booleans(tmp_path, capsys):
    header = ['patient_id', 'image', 'Edema', 'Mass', 'Effusion', 'age', 'comment', 'empty']
    rows = [['p1', '1.png', 'True', ' 1 ', 'yes', '40', 'no', ''],
            ['p2', '2.png', 'False', '1.00', 'NO', '50', 'x', ''],
            ['p3', '3.png', '', '-1', 'nan', '', 'y', '']]
    source = written(tmp_path, header, rows)
    assert source.labels == ('Edema', 'Mass', 'Effusion')
    np.testing.assert_array_equal(source.values, np.float32([[1, 1, 1], [0, 1, 0], [np.nan, -1, np.nan]]))
    assert 'labels are Edema, Mass, Effusion; 3 columns are not used: age, comment, empty\n' in capsys.readouterr().out
    rows[1][2] = 'Flase'
    with pytest.raises(errors.BadData, match='row 3: column "Edema" of case 2.png is not 1, 0, -1'):
        written(tmp_path, header, rows, labels=('Edema', 'Mass'))
    rows[2][2] = 'False'
    with pytest.raises(errors.BadData, match='row 3: column "Edema"'):
        written(tmp_path, header, rows)


def volumes(tmp_path, ids, classes=('0', '1'), name='cls'):
    scan = np.zeros((4, 4, 4), np.int16)
    with open(tmp_path / 'cases.csv', 'w', newline='') as f:
        rows = [[f'c{i}', patient, classes[i % len(classes)], ''] for i, patient in enumerate(ids)]
        csv.writer(f).writerows([['case_id', 'patient_id', name, 'split'], *rows])
    for i in range(len(ids)):
        for key in ('ct', 'nct'):
            volume.save(tmp_path / f'c{i}' / f'{key}.nii.gz', scan, volume.Volume(scan, np.eye(4)))
    return dict(root=str(tmp_path))


def table_of(kind, tmp_path, ids, **given):
    """The source `kind` of a table with these patient ids."""
    if kind == 'folder':
        return written(tmp_path, ['patient_id', 'image', 'y'], [[p, f'{i}.png', i % 2] for i, p in enumerate(ids)],
                       **given)
    if kind == 'masks':
        for place in ('images', 'masks'):
            (tmp_path / place).mkdir(exist_ok=True)
            for i in range(len(ids)):
                grey = i + 1 if place == 'images' else 255 * (i % 2)
                Image.fromarray(np.full((8, 8), grey, np.uint8)).save(tmp_path / place / f'{i}.png')
        (tmp_path / 'cases.csv').write_text('image,patient_id\n' + ''.join(f'{i},{p}\n' for i, p in enumerate(ids)))
        options = dict(masks.DEFAULTS, root=str(tmp_path))
    elif kind == 'paired':
        options = dict(paired.DEFAULTS, **volumes(tmp_path, ids), tasks=(), classes=(), modalities=('ct',))
    else:
        options = dict(dualphase.DEFAULTS, **volumes(tmp_path, ids, name='pe'))
    return sources.build(ConfigDict(options | dict(name=kind) | given))


@pytest.mark.parametrize('kind', ['folder', 'paired', 'dualphase', 'masks'])
def test_patients_that_are_nobody_are_refused_with_their_rows(kind, tmp_path):
    for nobody in NOBODY:
        with pytest.raises(errors.BadData, match=rf'cases.csv, rows 3, 5: column "patient_id" says "{nobody}", which '
                           r'means no patient.*\(2 rows\)'.replace('?', r'\?')):
            table_of(kind, tmp_path, ['p0', nobody, 'p2', nobody, 'p4'])
    source = table_of(kind, tmp_path, ['p0', 'NA', 'NA', 'p3', 'p4'], allow_ids=('NA',))
    assert [case.patient for case in source.cases] == ['p0', 'NA', 'NA', 'p3', 'p4']
    with pytest.raises(errors.BadData, match='row 2: column "patient_id" says "nan"'):
        table_of(kind, tmp_path, ['nan', 'NA', 'p2', 'p3', 'p4'], allow_ids=('NA',))
    if kind != 'masks':
        source = table_of(kind, tmp_path, ['p0', 'nan', 'p2'], on_error='skip')
        assert len(source) == 2 and 'row 3' in source.skipped[0][1]


@given(st.sampled_from(NOBODY), CASED)
@settings(deadline=None, max_examples=200)
def test_nobody_in_any_case(cell, cased):
    with pytest.raises(errors.BadData, match='row 7'):
        csv_table.check_patients('t.csv', 'patient_id', [(7, cased(cell)), (8, 'p')])
    csv_table.check_patients('t.csv', 'patient_id', [(7, cased(cell))], (cased(cell),))


def test_other_sources_have_patients_too(monkeypatch):
    class Own(sources.Source):
        name, labels, cases = 'own', ('a',), (sources.Case('c0', 'p'), sources.Case('c1', 'nan'))
    monkeypatch.setattr(sources.plugins, 'load', lambda folder, name: type('m', (), dict(build=lambda hp: Own())))
    with pytest.raises(errors.BadData, match='own: 1 cases have no patient, the first is c1'):
        sources.build(ConfigDict(dict(name='own')))
    assert bootstrap.groups(['NA', 'None', 'NA'])[1] == 2  # ids that were declared


def test_classes_are_those_of_the_table(tmp_path, capsys):
    def labels(*classes, **given):
        options = dict(paired.DEFAULTS, name='paired', **volumes(tmp_path, [f'p{i}' for i in range(6)], classes),
                       tasks=(), classes=(), modalities=('ct',))
        source = paired.build(ConfigDict(options | given))
        return source.labels, source.targets['label'].tolist()
    assert labels('tumour', 'cyst') == (('cyst', 'tumour'), [1, 0, 1, 0, 1, 0])
    assert 'classes are cyst, tumour, in the table cyst (3), tumour (3)' in capsys.readouterr().out
    assert labels('1', '0', '2.0') == (('class 0', 'class 1', 'class 2'), [1, 0, 2, 1, 0, 2])
    assert labels('True', 'False') == (('False', 'True'), [1, 0, 1, 0, 1, 0])
    assert labels('1', '0', labels=('low', 'high')) == (('low', 'high'), [1, 0, 1, 0, 1, 0])
    for classes, problem in ((('1', '2'), 'does not count 0, 1, 2'), 
                             (('cyst', 'Cyst', 'tumour'), 'spells a class in several ways'),
                             (('1', 'cyst'), 'mixes'), (('cyst',), 'has fewer than two')):
        with pytest.raises(errors.BadData, match=f'column "cls" {problem}'):
            labels(*classes)


def test_a_label_of_which_no_training_case_says_anything_is_named(tmp_path, capsys):
    rows = [['p1', '1.png', 'train', '1', '-1', ''], ['p2', '2.png', 'val', '1', '1', '0'],
            ['p3', '3.png', 'test', '0', '1', '1'], ['p4', '4.png', 'train', '0', '', '']]
    written(tmp_path, ['patient_id', 'image', 'split', 'a', 'b', 'c'], rows)
    conf = config.resolve(ConfigDict(dict(data=dict(
        source=dict(name='folder', root=str(tmp_path), empty_text='ok'), transforms=('image', 'labels'),
        image=dict(size=8))))).data
    capsys.readouterr()
    pool.build(conf)
    assert 'folder: of b, c no training case says 1 or 0' in capsys.readouterr().out


def test_skipped_cases_are_counted_by_reason(tmp_path):
    rows = [[p, f'{i}.png', y] for i, (p, y) in enumerate((('a', '1'), ('nan', '0'), ('None', '1'), ('b', '0'),
                                                           ('c', 'maybe'), ('d', '1')))]
    source = written(tmp_path, ['patient_id', 'image', 'y'], rows, on_error='skip', labels=('y',))
    counts = sources.cohort(source)
    assert counts['found'] == 6 and counts['used'] == 3 and sum(counts['skipped'].values()) == 3
    (tmp_path / '0.png').write_bytes(b'')
    (tmp_path / '3.png').unlink()
    source = folder.build(ConfigDict(dict(folder.DEFAULTS, root=str(tmp_path), empty_text='ok', on_error='skip',
                                          labels=('y',))))
    counts = sources.cohort(source)
    assert counts['found'] == 6 and counts['used'] == 1 == len(source) and sum(counts['skipped'].values()) == 5


def test_cells_of_programs_that_say_nothing(tmp_path, capsys):
    """nan, as pandas writes what is missing, is no report, no study, no group and no label of a box."""
    for i in range(4):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f'{i}.png')
    (tmp_path / 'cases.csv').write_text('patient_id,image,text,study_id,split,view,a\n' + ''.join(
        f'p{i},{i}.png,{text},nan,NaN,{("AP", "nan")[i % 2]},{i % 2}\n'
        for i, text in enumerate(('Clear.', 'nan', 'None', 'NA'))))
    (tmp_path / 'boxes.csv').write_text('image,label,x,y,w,h\n0.png,nan,1,1,2,2\n')
    hp = ConfigDict({**folder.DEFAULTS, 'root': str(tmp_path), 'groups': ('view',)})
    with pytest.raises(errors.BadData, match='row 3: column "text" of case 1.png is empty'):
        folder.build(hp)
    built = folder.build(ConfigDict({**hp.to_dict(), 'empty_text': 'ok'}))
    assert [built.text(i) for i in range(4)] == ['Clear.', '', '', '']
    assert [(c.study, c.split, c.groups['view']) for c in built.cases] == [('', '', 'AP'), ('', '', '')] * 2
    assert built[0]['boxes'].tolist() == [[-1, 1, 1, 2, 2]]


def test_patients_in_several_spellings_are_said(tmp_path, capsys):
    for i in range(4):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f'{i}.png')

    def built(*patients):
        (tmp_path / 'cases.csv').write_text('patient_id,image,a\n' + ''.join(
            f'{patient},{i}.png,{i % 2}\n' for i, patient in enumerate(patients)))
        sources.build(ConfigDict({**folder.DEFAULTS, 'name': 'folder', 'root': str(tmp_path), 'empty_text': 'ok'}))
        return capsys.readouterr().out
    assert 'several spellings' not in built('P1', 'P1', '1', '10')
    assert '2 patient ids stand there in several spellings' in (said := built('P1', 'p1', '7', '7.0'))
    assert 'of cases 0.png and 1.png' in said or 'of cases 2.png and 3.png' in said
