import concurrent.futures
import csv
import pickle

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import config, errors
from jaxkd.data import splits, volume
from jaxkd.data.sources import paired
from tests.fixtures import dicom_series

HEADER = ['case_id', 'patient_id', 'center', 'cls', 'texture', 'duct']
ROWS = [['c1', 'p1', 'A', '0', 'cystic', '0'], ['c2', 'p1', 'A', 'low_grade', '1', '-1'], ['c3', 'p2', 'B', '2', '',
                                                                                           'cut_off'], ['c4', 'p3', 'B',
                                                                                                        '2', '2', '2'],]
SHAPES = {'ct': (7, 6, 5), 't1': (5, 6, 4), 't2': (4, 4, 4)}

LABELS = ('benign', 'low_grade', 'malignant')


def voxels(case, key):
    return np.random.default_rng([ord(c) for c in case + key]).integers(-1000, 1000, SHAPES[key]).astype(np.int16)


def affine(key):
    return np.diag([1.0, 1.5, 3.0, 1.0]) if key == 'ct' else np.diag([2.0, 2.0, 2.0, 1.0])


def save(path, array, key='ct'):
    path.parent.mkdir(parents=True, exist_ok=True)
    volume.save(path, array, volume.Volume(array, affine(key)))


@pytest.fixture
def tree(tmp_path):
    """c1 has everything, c2 no t2, c3 CT alone, c4 CT as .nii."""
    for case, keys in (('c1', ('ct', 't1', 't2')), ('c2', ('ct', 't1')), ('c3', ('ct',)), ('c4', ('ct', 't1', 't2'))):
        for key in keys:
            ending = '.nii' if (case, key) == ('c4', 'ct') else '.nii.gz'
            save(tmp_path / case / f'{key}{ending}', voxels(case, key), key)
    return tmp_path


@pytest.fixture
def make(tree):
    def make(header=HEADER, rows=ROWS, encoding='utf-8', end='\n', **given):
        if rows is not None:
            with open(tree / 'cases.csv', 'w', newline='', encoding=encoding) as f:
                csv.writer(f, lineterminator=end).writerows([header, *rows])
        return paired.build(ConfigDict({**paired.DEFAULTS, 'root': str(tree), 'labels': LABELS, **given}))
    return make


def test_contours_as_masks(tmp_path):
    """roi_ct.dcm, an RTSTRUCT on the series ct; the middle of what it draws."""
    square = np.array([(-11.0, -21.0), (-4.0, -21.0), (-4.0, -12.0), (-11.0, -12.0)])
    for n in range(4):
        uid = dicom_series.series(tmp_path / f'c{n}' / 'ct', np.full((30, 30, 4), n, np.uint16), number=n)
        regions = {name: [np.column_stack([square + shift, np.full(4, z)]) for z in (103.0, 106.0)]
                   for name, shift in (('GTV', 0.0), ('Heart', 5.0))}
        dicom_series.rtstruct(tmp_path / f'c{n}' / 'ROI_ct.dcm', uid, regions if n < 3 else {'GTV': regions['GTV']})
    (tmp_path / 'cases.csv').write_text('case_id,patient_id,cls\n' + ''.join(f'c{n},p{n},{n % 2}\n' for n in range(4)))
    hp = ConfigDict({**paired.DEFAULTS, 'root': str(tmp_path), 'modalities': ('ct',), 'tasks': (), 'classes': ()})
    with pytest.raises(errors.BadData, match='Case c0: c0/ROI_ct.dcm draws GTV, Heart. Set region'):
        paired.build(hp)
    source = paired.build(ConfigDict({**hp.to_dict(), 'region': 'GTV'}))
    np.testing.assert_allclose(source[0]['centre']['ct'], (7.5, 16.5, 104.5), atol=0.51)
    assert source.crop_regions(1)['ct'].voxels.sum() == 7 * 9 * 2
    assert [path.rpartition('/')[2] for path in source.paths(0)] == ['ct', 'ROI_ct.dcm']
    assert pickle.loads(pickle.dumps(source)).rois == source.rois
    heart = paired.build(ConfigDict({**hp.to_dict(), 'region': 'Heart', 'on_error': 'skip'}))
    assert [case for case, _ in heart.skipped] == ['c3'] and len(heart) == 3


def changed(row, column, value):
    rows = [list(r) for r in ROWS]
    rows[row][HEADER.index(column)] = value
    return rows


def with_column(name, *values):
    return [*HEADER, name], [[*row, value] for row, value in zip(ROWS, values, strict=True)]


def with_masks(tree, cases=('c1', 'c2', 'c3', 'c4'), key='ct'):
    for n, case in enumerate(cases):
        mask = np.zeros(SHAPES[key], np.uint8)
        mask[1:4, 2:4, n % 3] = 1  # centroid (2, 2.5, n % 3)
        save(tree / case / f'roi_{key}.nii.gz', mask, key)


def test_a_good_tree(make):
    source = make()
    assert source.name == 'paired' and source.note == '' and source.skipped == () and len(source) == 4
    assert source.labels == ('benign', 'low_grade', 'malignant')
    assert source.tasks == {'texture': ('cystic', 'mixed', 'solid'), 'duct': ('normal', 'dilated', 'cut_off')}
    assert [c.id for c in source.cases] == ['c1', 'c2', 'c3', 'c4']
    assert [c.patient for c in source.cases][:2] == ['p1', 'p1']
    assert source.cases[1].groups == {'class': 'low_grade', 'center': 'A'}
    assert {k: v.tolist() for k, v in source.targets.items()} == {
        'label': [0, 1, 2, 2], 'texture': [0, 1, -1, 2], 'duct': [0, -1, 2, 2]}
    assert all(v.dtype == np.int32 for v in source.targets.values())
    for i, keys in enumerate(({'ct', 't1', 't2'}, {'ct', 't1'}, {'ct'}, {'ct', 't1', 't2'})):
        record = source[i]
        assert record.keys() == keys | {'label', 'texture', 'duct', 'case'}
        for key in keys:
            np.testing.assert_array_equal(record[key].voxels, voxels(f'c{i + 1}', key))
            np.testing.assert_allclose(record[key].affine, affine(key))
        assert record['case'] == f'c{i + 1}'
        for name in source.targets:
            assert isinstance(record[name], np.int32) and record[name] == source.targets[name][i]


def test_spreadsheet_habits(make):
    plain = make()
    odd = make(rows=[*ROWS, [''] * 6], encoding='utf-8-sig', end='\r\n')
    assert odd.cases == plain.cases and odd.files == plain.files
    np.testing.assert_array_equal(odd.targets['duct'], plain.targets['duct'])


def test_options_resolve_as_a_config_does():
    given = dict(name='paired', tasks=('stage',), classes=(('I', 'II'),), labels=('a', 'b'))
    hp = config.options('data/sources', given, 'x')[1]
    assert hp.classes == (('I', 'II'),) and hp.labels == ('a', 'b')


def test_other_tasks_and_names(make):
    source = make(tasks=('duct',), classes=(('none', 'wide', 'cut_off'),), labels=('no', 'low_grade', 'yes'),
                  modalities=('ct',))
    assert source.tasks == {'duct': ('none', 'wide', 'cut_off')} and source.targets.keys() == {'label', 'duct'}
    assert source[0].keys() == {'ct', 'label', 'duct', 'case'}
    assert make(tasks=(), classes=()).targets.keys() == {'label'}
    header, rows = with_column('size', 'small', 'large', 'small', 'middle')
    sized = make(header, rows, groups=('size',))
    assert sized.cases[1].groups == {'class': 'low_grade', 'center': 'A', 'size': 'large'}
    no_center = make([c for c in HEADER if c != 'center'], [[*r[:2], *r[3:]] for r in ROWS])
    assert no_center.cases[0].groups == {'class': 'benign'}


def test_pickles_and_serves_threads(make, tree):
    with_masks(tree)
    source = make()
    copy = pickle.loads(pickle.dumps(source))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for i, record in zip(list(range(4)) * 10, pool.map(copy.__getitem__, list(range(4)) * 10)):
            np.testing.assert_array_equal(record['ct'].voxels, voxels(f'c{i + 1}', 'ct'))
            np.testing.assert_allclose(record['centre']['ct'], source[i]['centre']['ct'])


def test_paths_are_those_that_a_record_is_read_from(make, tree):
    with_masks(tree)
    source = make()
    assert [sorted(path.removeprefix(f'{tree}/') for path in source.paths(i)) for i in (0, 2, 3)] == [
        ['c1/ct.nii.gz', 'c1/roi_ct.nii.gz', 'c1/t1.nii.gz', 'c1/t2.nii.gz'], ['c3/ct.nii.gz', 'c3/roi_ct.nii.gz'],
        ['c4/ct.nii', 'c4/roi_ct.nii.gz', 'c4/t1.nii.gz', 'c4/t2.nii.gz']]


def test_masks_give_centres(make, tree):
    with_masks(tree)
    with_masks(tree, ('c1',), 't1')
    source = make()
    record = source[0]
    np.testing.assert_allclose(record['centre']['ct'], (2, 2.5 * 1.5, 0))
    np.testing.assert_allclose(record['centre']['t1'], (2 * 2, 2.5 * 2, 0))
    assert source[1]['centre'].keys() == {'ct'}  # its t1 has no mask: the transform takes that of ct
    np.testing.assert_allclose(source[1]['centre']['ct'], (2, 3.75, 3))
    assert 'centre' not in make(roi='')[0]
    save(tree / 'c2' / 'roi_ct.nii.gz', np.zeros(SHAPES['ct'], np.uint8))
    with pytest.raises(errors.BadData, match='roi_ct.nii.gz is an empty mask'):
        make()[1]


def test_a_mask_on_another_grid(make, tree):
    with_masks(tree)
    mask = np.zeros((9, 9, 9), np.uint8)
    mask[4, 5, 6] = 1
    volume.save(tree / 'c1' / 'roi_ct.nii.gz', mask, volume.Volume(mask, np.diag([-0.5, -0.5, 2.0, 1.0])))
    np.testing.assert_allclose(make()[0]['centre']['ct'], (-2, -2.5, 12))


def test_masks_in_some_cases_only(make, tree):
    with_masks(tree, ('c1', 'c2', 'c4'))
    with pytest.raises(errors.MissingInput, match='Case c3 has no mask roi_ct.*roi=""'):
        make()
    source = make(on_error='skip')
    assert [c.id for c in source.cases] == ['c1', 'c2', 'c4'] and source.skipped[0][0] == 'c3'
    assert source.targets['label'].tolist() == [0, 1, 2] and len(source.files) == len(source.rois) == 3
    assert len(make(roi='')) == 4


BAD_ROWS = [
    ('class', changed(1, 'cls', 'lowgrade'),
     'row 3: column "cls" of case c2 is not one of benign, low_grade, malignant'),
    ('class index', changed(1, 'cls', '3'), 'row 3: column "cls" of case c2.*an index 0 to 2. Correct'),
    ('class unknown', changed(1, 'cls', '-1'), 'row 3: column "cls"'),
    ('class empty', changed(1, 'cls', ''), 'row 3: column "cls"'),
    ('task', changed(1, 'texture', 'soft'), 'row 3: column "texture" of case c2.*cystic, mixed, solid.*-1 or empty'),
    ('no patient', changed(1, 'patient_id', ' '), 'row 3: column "patient_id" is empty'),
    ('no id', changed(1, 'case_id', ''), 'row 3: column "case_id" is empty'),
    ('twice', changed(1, 'case_id', 'c1'), 'row 3: column "case_id" names c1 a second time'),
    ('twice, spelled otherwise', changed(1, 'case_id', './c1/'), 'a second time'),
    ('parent', changed(1, 'case_id', '../c2'), 'row 3: column "case_id" must not leave the root'),
    ('absolute', changed(1, 'case_id', '/etc'), 'must not leave the root'),
    ('the root', changed(1, 'case_id', '.'), 'names the root itself'),
]


@pytest.mark.parametrize('rows, why', [case[1:] for case in BAD_ROWS], ids=[case[0] for case in BAD_ROWS])
def test_a_bad_row_fails_or_is_skipped(make, rows, why):
    with pytest.raises(errors.BadData, match=why):
        make(rows=rows)
    source = make(rows=rows, on_error='skip')
    (_, reason), = source.skipped
    assert len(source) == 3 and source.targets['label'].tolist() == [0, 2, 2] and len(source.files) == 3
    assert 'lowgrade' not in reason and 'soft' not in reason  # cells are never quoted, case ids are
    with pytest.raises(errors.BadData, match=why):
        raise errors.BadData(reason)


def test_files_that_are_missing_or_twice(make, tree):
    with pytest.raises(errors.MissingInput, match='Case c9: .*c9 is not a folder.*remove its row'):
        make(rows=changed(1, 'case_id', 'c9'))
    (tree / 'c2' / 'ct.nii.gz').rename(tree / 'c2' / 'scan.nii.gz')
    with pytest.raises(errors.MissingInput, match='Case c2: .*has no ct.nii.gz, .nii, .nrrd or .dcm, and no DICOM'):
        make()
    source = make(on_error='skip')
    assert [c.id for c in source.cases] == ['c1', 'c3', 'c4'] and source.skipped[0][0] == 'c2'
    (tree / 'c2' / 'scan.nii.gz').rename(tree / 'c2' / 'ct.nii.gz')
    (tree / 'c1' / 't1').mkdir()
    with pytest.raises(errors.BadData, match='has both t1.nii.gz and t1. Keep one'):
        make()


def test_damaged_volumes_fail_when_read_or_are_skipped_at_the_start(make, tree):
    cut = tree / 'c3' / 'ct.nii.gz'
    cut.write_bytes(cut.read_bytes()[:-40])
    (tree / 'c4' / 't1.nii.gz').write_bytes(b'')
    outside = tree.parent / f'{tree.name}_outside.nii.gz'
    outside.write_bytes((tree / 'c1' / 'ct.nii.gz').read_bytes())
    (tree / 'c2' / 'ct.nii.gz').unlink()
    (tree / 'c2' / 'ct.nii.gz').symlink_to(outside)
    source = make()
    for i, why in ((1, 'ct.nii.gz is a link that leaves'), (2, 'c3/ct.nii.gz'), (3, 'c4/t1.nii.gz')):
        with pytest.raises(errors.BadData, match=why):
            source[i]
    for _ in range(2):
        source = make(on_error='skip')
        assert [c.id for c in source.cases] == ['c1'] and [name for name, _ in source.skipped] == ['c2', 'c3', 'c4']
    assert all(name in reason for name, reason in source.skipped)
    with pytest.raises(errors.BadData, match='no usable case. The first reason: .*c3/ct.nii.gz'):
        make(rows=[ROWS[2]], on_error='skip')
    with pytest.raises(errors.BadData, match='max_voxels'):
        make(max_voxels=100)[0]


def test_patient_in_two_parts(make):
    header, rows = with_column('split', 'train', 'test', '', '')
    for on_error in ('fail', 'skip'):
        with pytest.raises(errors.BadData, match=r'c1 \(train\) and c2 \(test\) belong to one patient'):
            make(header, rows, on_error=on_error)
    source = make(*with_column('split', 'train', 'train', 'val', 'test'))
    assert splits.archive(source.cases) == {'p1': 'train', 'p2': 'val', 'p3': 'test'}
    with pytest.raises(errors.BadData, match='row 5: column "split".*"test"'):
        make(*with_column('split', '', '', '', 'tset'))


def test_a_table_that_is_no_such_table(make, tree):
    for args, why in [
        ((['id', *HEADER[1:]], ROWS), 'no column "case_id"'),
        (([*HEADER[:-1], 'dukt'], ROWS), 'no column "duct".*"dukt"'),
        ((HEADER, [ROWS[0], ROWS[1][:-1]]), 'row 3: 5 cells under 6 columns'),
        ((HEADER, []), 'no usable case'),
    ]:
        with pytest.raises(errors.BadData, match=why):
            make(*args)
    with pytest.raises(errors.BadData, match='no column "grade"'):
        make(groups=('grade',))
    (tree / 'cases.csv').unlink()
    with pytest.raises(errors.MissingInput, match='cases.csv'):
        make(rows=None)
    with pytest.raises(errors.MissingInput, match='root'):
        make(rows=None, root=str(tree / 'none'))


@pytest.mark.parametrize('given, why', [
    (dict(modalities=()), 'modalities'), (dict(modalities=('ct', 'ct')), 'differ'),
    (dict(modalities=('ct', 'label')), 'differ'),
    (dict(tasks=('texture',)), 'one tuple for each task'), (dict(classes=(('a', 'b'), 'cd')), 'two class names'),
    (dict(labels=('benign',)), 'two class names'), (dict(labels=('a', 'a', 'b')), 'twice'), (dict(roi='mask'), 'roi_'),
    (dict(on_error='maybe'), 'on_error')])
def test_wrong_options(make, given, why):
    with pytest.raises(errors.ConfigError, match=why):
        make(**given)
