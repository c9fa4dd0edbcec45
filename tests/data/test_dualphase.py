import csv
import pickle

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import splits, volume
from jaxkd.data.sources import dualphase
from jaxkd.data.transforms import scan
from jaxkd.data.volume import Volume

HEADER = ['case_id', 'patient_id', 'pe', 'split', 'sex', 'residual_mm']
ROWS = [
    ['c1', 'p1', '1', '', 'f', '0.8'],
    ['c2', 'p1', '', '', 'f', ''],  # asks the mask, which is empty
    ['c3', 'p2', '', 'test', 'm', '3.5'],  # asks the mask, which is not; its pair is too far off
    ['c4', 'p3', '', 'train', 'm', '3.0'],  # no mask
    ['c5', 'p4', '-1', '', 'm', '']]
NCT, CTPA = np.diag([1.0, 1.0, 2.0, 1.0]), np.diag([0.75, 0.75, 1.5, 1.0])
SHAPES = {'nct': (12, 10, 8), 'ctpa': (16, 14, 12), 'label': (16, 14, 12)}
MASKS = {'c1': 1, 'c2': 0, 'c3': 1, 'c5': 255}


def save(path, voxels, affine=NCT):
    path.parent.mkdir(parents=True, exist_ok=True)
    volume.save(path, voxels, Volume(voxels, affine))


def noise(key, seed=0):
    return np.random.default_rng([seed, len(key)]).integers(-1000, 1000, SHAPES[key]).astype(np.int16)


@pytest.fixture
def tree(tmp_path):
    for case in ('c1', 'c2', 'c3', 'c4', 'c5'):
        save(tmp_path / case / 'nct.nii.gz', noise('nct'))
        if case != 'c2':
            save(tmp_path / case / 'ctpa.nii', noise('ctpa'), CTPA)
        if case in MASKS:
            mask = np.zeros(SHAPES['label'], np.uint8)
            mask[4:8, 5:9, 3:7] = MASKS[case]
            save(tmp_path / case / 'label.nii.gz', mask, CTPA)
    return tmp_path


@pytest.fixture
def make(tree):
    def make(rows=ROWS, header=HEADER, **given):
        with open(tree / 'cases.csv', 'w', newline='') as f:
            csv.writer(f).writerows([header, *rows])
        return dualphase.build(ConfigDict({**dualphase.DEFAULTS, 'root': str(tree), **given}))
    return make


def changed(row, column, value):
    rows = [list(r) for r in ROWS]
    rows[row][HEADER.index(column)] = value
    return rows


def test_a_good_tree(make):
    source = make(groups=('sex',))
    assert source.name == 'dualphase' and len(source) == 5 and source.skipped == ()
    assert source.labels == ('background', 'embolus') and source.tasks == {'pe': ('absent', 'present')}
    assert source.targets['pe'].tolist() == [1, 0, 1, -1, -1] and source.targets['pe'].dtype == np.int32
    assert [c.groups for c in source.cases] == [
        {'pe': 'present', 'sex': 'f'}, {'pe': 'absent', 'sex': 'f'}, {'pe': 'present', 'sex': 'm'},
        {'pe': 'unknown', 'sex': 'm'}, {'pe': 'unknown', 'sex': 'm'}]
    assert splits.archive(source.cases) == {'p2': 'test', 'p3': 'train'}
    first = source[0]
    assert first.keys() == {'nct', 'ctpa', 'label', 'pe', 'case'} and first['case'] == 'c1' and first['pe'] == 1
    np.testing.assert_array_equal(first['nct'].voxels, noise('nct'))
    np.testing.assert_array_equal(first['ctpa'].affine, CTPA)
    assert first['label'].voxels.dtype == np.uint8 and first['label'].voxels.sum() == 64
    assert [{'ctpa', 'label'} & source[i].keys() for i in range(1, 5)] == [{'label'}, {'label'}, {'ctpa'},
                                                                           {'ctpa', 'label'}]
    assert 'ctpa' in make(max_residual=4.0)[2]


def test_it_pickles_and_names_its_files(make, tree):
    source = make()
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[0]['label'].voxels, source[0]['label'].voxels)
    assert set(source.paths(0)) == {str(tree / 'c1' / n) for n in ('nct.nii.gz', 'ctpa.nii', 'label.nii.gz')}
    assert not any('ctpa' in path for path in source.paths(2))


def test_the_matrix_moves_ctpa_and_its_label_without_interpolation(make, tree):
    matrix = np.array([[0, -1, 0, 30], [1, 0, 0, -4], [0, 0, 1, 2.5], [0, 0, 0, 1]])
    np.savetxt(tree / 'c1' / 'ctpa_to_nct.txt', matrix)
    plain = make(header=HEADER[:4], rows=[r[:4] for r in ROWS])[1]
    record = make()[0]
    for key in ('ctpa', 'label'):
        np.testing.assert_allclose(record[key].affine, matrix @ CTPA)
    np.testing.assert_array_equal(record['ctpa'].voxels, noise('ctpa'))
    np.testing.assert_array_equal(record['nct'].affine, NCT)
    np.testing.assert_array_equal(plain['label'].affine, CTPA)
    on_nct = make(label_on='nct')[0]
    np.testing.assert_array_equal(on_nct['label'].affine, CTPA)
    np.testing.assert_allclose(on_nct['ctpa'].affine, matrix @ CTPA)


def test_after_registration_one_place_is_one_anatomy(make, tree):
    """CTPA and mask are taken elsewhere in the world; the matrix brings the marker back to where the NCT has it."""
    nct, ctpa = np.full(SHAPES['nct'], -100, np.int16), np.full(SHAPES['nct'], -200, np.int16)
    nct[6, 5, 4], ctpa[6, 5, 4] = 200, 700
    mask = (ctpa == 700).astype(np.uint8)
    shift = np.eye(4)
    shift[:3, 3] = (-7, 4, 12)
    save(tree / 'c1' / 'nct.nii.gz', nct)
    save(tree / 'c1' / 'ctpa.nii', ctpa, np.linalg.inv(shift) @ NCT)
    save(tree / 'c1' / 'label.nii.gz', mask, np.linalg.inv(shift) @ NCT)
    np.savetxt(tree / 'c1' / 'ctpa_to_nct.txt', shift)
    out = scan.build(ConfigDict({**scan.DEFAULTS, 'spacing': (0.0, 0.0, 0.0)})).apply(make()[0])
    for key in ('nct', 'ctpa', 'label'):
        assert np.argwhere(out[key].reshape(8, 10, 12) == out[key].max()).tolist() == [[4, 5, 6]]
    (tree / 'c1' / 'ctpa_to_nct.txt').unlink()
    assert (scan.build(ConfigDict(scan.DEFAULTS)).apply(make()[0])['label'] == 255).any()


def test_a_deformation(make, tree):
    """ctpa(p + warp(p)): of a field of one value it is a shift, of one that grows a stretch."""
    for axis, mm in (('x', 0.75), ('y', 0.0), ('z', -3.0)):
        save(tree / 'c1' / f'warp_{axis}.nii.gz', np.full(SHAPES['nct'], mm, np.float32))
    source = make()
    got = source[0]
    np.testing.assert_array_equal(got['ctpa'].affine, NCT)
    assert got['ctpa'].voxels.dtype == np.int16 and got['label'].voxels.dtype == np.int16
    sides = NCT[:3, :3].diagonal() / CTPA[:3, :3].diagonal()
    slope = np.add.outer(np.add.outer(3 * np.arange(16), 2 * np.arange(14)), 5 * np.arange(12)).astype(np.int16)
    save(tree / 'c1' / 'ctpa.nii', slope, CTPA)
    got, at = make()[0]['ctpa'].voxels, np.indices(SHAPES['nct'])
    x, y, z = (at.T * sides + (1, 0, -2)).T
    inside = (x <= 15) & (y <= 13) & (z >= 0) & (z <= 11)
    np.testing.assert_allclose(got[inside], (3 * x + 2 * y + 5 * z)[inside], atol=0.51)
    assert inside.sum() > 300 and (got[z <= -1] == -1024).all()
    label = source[0]['label'].voxels
    x, y, z = (np.rint(a).astype(int) for a in (x, y, z))
    truth = np.zeros(SHAPES['nct'])
    truth[(x >= 4) & (x < 8) & (y >= 5) & (y < 9) & (z >= 3) & (z < 7)] = 1
    assert ((label == 1) != (truth == 1)).sum() <= 12 and (label == 1).sum() > 20  # but for ties
    assert (label[z < 0] == 255).all()
    assert len(source.paths(0)) == 6
    (tree / 'c1' / 'warp_y.nii.gz').unlink()
    with pytest.raises(errors.MissingInput, match='c1.*warp_x, warp_y, warp_z, but not all'):
        make()
    save(tree / 'c1' / 'warp_y.nii.gz', np.zeros((3, 3, 3), np.float32))
    with pytest.raises(errors.BadData, match='c1.*different grids'):
        make()[0]


@pytest.mark.parametrize('text', ['', 'not a matrix', '1 0 0 0\n0 1 0 0\n0 0 1 0', '1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 1 1',
                                  'nan 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1', '0 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1',
                                  '-1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1', 'inf 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1',
                                  '\0\xff'])
def test_a_bad_matrix(make, tree, text):
    (tree / 'c1' / 'ctpa_to_nct.txt').write_bytes(text.encode('latin-1'))
    with pytest.raises(errors.BadData, match='c1/ctpa_to_nct.txt is no'):
        make()[0]
    source = make(on_error='skip')
    assert [c.id for c in source.cases] == ['c2', 'c3', 'c4', 'c5'] and source.skipped[0][0] == 'c1'


@pytest.mark.parametrize('rows, words', [
    (changed(0, 'case_id', ''), '"case_id" is empty'),
    (changed(0, 'patient_id', ''), '"patient_id" is empty'),
    (changed(1, 'case_id', 'c1'), 'row 3.*second time'),
    (changed(1, 'case_id', './c1'), 'row 3.*second time'),
    (changed(0, 'case_id', '.'), 'the root'),
    (changed(0, 'case_id', '../x'), 'leaves the root'),
    (changed(0, 'pe', 'perhaps'), '"pe" of case c1 is none of 0, 1, -1'),
    (changed(0, 'split', 'tset'), 'Did you mean "test"'),
    (changed(0, 'residual_mm', 'far'), '"residual_mm" of case c1'),
    (changed(0, 'residual_mm', 'nan'), '"residual_mm" of case c1'),
    (changed(0, 'residual_mm', '-1'), '"residual_mm" of case c1')])
def test_a_bad_row(make, rows, words):
    with pytest.raises(errors.BadData, match=words):
        make(rows)


def test_a_patient_in_two_parts(make):
    rows = changed(0, 'split', 'test')
    rows[1][3] = 'train'
    with pytest.raises(errors.BadData, match='belong to one patient'):
        make(rows)


def test_files_that_lack_or_contradict(make, tree):
    with pytest.raises(errors.MissingInput, match='Case c9: .*not a folder'):
        make([*ROWS, ['c9', 'p9', '', '', '', '']])
    skipped = make([*ROWS, ['c9', 'p9', '', '', '', '']], on_error='skip').skipped
    assert [name for name, _ in skipped] == ['c9']
    with pytest.raises(errors.BadData, match='Case c1: the table says that pe is absent'):
        make(changed(0, 'pe', '0'))[0]
    save(tree / 'c1' / 'label.nii.gz', np.full(SHAPES['label'], 2, np.uint8), CTPA)
    with pytest.raises(errors.BadData, match='c1/label.nii.gz cannot be used.*2 in 2,688'):
        make()[0]
    save(tree / 'c1' / 'label.nii.gz', np.full(SHAPES['label'], -1, np.int16), CTPA)
    save(tree / 'c2' / 'label.nii.gz', np.full(SHAPES['label'], -1, np.int16), CTPA)
    with pytest.raises(errors.BadData, match='c1/label.nii.gz cannot be used.*-1 in 2,688'):
        make()  # asked for pe
    assert [name for name, _ in make(on_error='skip').skipped] == ['c1', 'c2']
    (tree / 'c3' / 'nct.nii.gz').unlink()
    with pytest.raises(errors.MissingInput, match='Case c3: .* has no nct.nii.gz'):
        make()
    save(tree / 'c3' / 'nct.nii', noise('nct'))
    save(tree / 'c3' / 'nct.nii.gz', noise('nct'))
    with pytest.raises(errors.BadData, match='has both nct.nii.gz and nct.nii'):
        make()


@pytest.mark.parametrize('given, words', [
    (dict(label_on='ct'), 'label_on'), (dict(groups=('pe',)), 'groups'), (dict(on_error='ignore'), 'on_error')])
def test_options_that_cannot_be(make, given, words):
    with pytest.raises(errors.ConfigError, match=words):
        make(**given)


def test_a_missing_root_or_column(make, tree):
    with pytest.raises(errors.MissingInput, match='root'):
        make(root=str(tree / 'none'))
    with pytest.raises(errors.BadData, match='no column "pe"'):
        make(header=['case_id', 'patient_id', 'emboli', 'split', 'sex', 'residual_mm'])
    with pytest.raises(errors.BadData, match='no usable case'):
        make(rows=[])


def test_stored_and_turned_are_inverse():
    voxels = np.arange(60).reshape(3, 4, 5)
    for affine in (np.diag([-1.0, -2.0, 3.0, 1.0]), np.array([[0, 2.0, 0, 1], [0, 0, -3.0, 2], [1.0, 0, 0, 3],
                                                              [0, 0, 0, 1]])):
        there = volume.turned(voxels, affine, 'a.nii')
        np.testing.assert_array_equal(volume.stored(there.voxels, there.file_affine), voxels)
        assert (there.affine[:3, :3].diagonal() > 0).all()
        at = np.array([2, 0, 4])
        found = np.round(volume.index(there.affine, volume.world(affine, at))).astype(int)
        assert there.voxels[tuple(found)] == voxels[tuple(at)]
