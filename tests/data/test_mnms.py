import csv
import pickle

import nibabel
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data.sources import acdc, mnms
from jaxkd.data.sources.shared import slice_stacks

SHAPE = 16, 18, 4
HEAD = ['', 'External code', 'VendorName', 'Vendor', 'Centre', 'ED', 'ES', 'Age', 'Pathology']
SUBJECTS = {'A0S9V9': ('Training/Labeled', 'A', '1', 0, 9), 'B1T2X4': ('Validation', 'B', '2', 2, 7),
            'C5Q2Y5': ('Testing', 'C', '4', 3, 1), 'D9L1Z3': ('Testing', 'D', '5', 0, 4)}


def save(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    made = nibabel.Nifti1Image(voxels, np.diag([1.5, 1.25, 10.0, 1.0]))
    made.header.set_xyzt_units('mm', 'sec')
    made.to_filename(path)


def cine(seed, frames, named):
    """(image, label) [X,Y,Z,T]: labels as the files have them, 1 is the left ventricle, 3 the right, in two frames
    alone.
    """
    rng = np.random.default_rng(seed)
    label = np.zeros((*SHAPE, frames), np.uint8)
    for t in named:
        label[3:8, 4:9, 1:, t] = 3
        label[8:13, 4:12, 1:, t] = 2
        label[9:12, 6:10, 1:-1, t] = 1
    return rng.integers(0, 500, label.shape).astype(np.int16) + 100 * np.arange(frames).astype(np.int16), label


def write(top, name, folder, ed, es, ending='.nii.gz'):
    pixels, label = cine(len(name) + ed, 10, (ed, es))
    save(top / folder / name / f'{name}_sa{ending}', pixels)
    save(top / folder / name / f'{name}_sa_gt{ending}', label)


def table(top, subjects=SUBJECTS, head=HEAD, encoding='utf-8', ends='\r\n'):
    with open(top / 'info_opendataset.csv', 'w', newline='', encoding=encoding) as f:
        rows = [[i, name, 'Maker', vendor, centre, ed, es, '50', 'NOR'] for i, (name, (_, vendor, centre, ed, es))
                in enumerate(subjects.items())]
        csv.writer(f, lineterminator=ends).writerows([head, *rows,
                                                      ['9', 'U4U4U4', 'Maker', 'C', '4', '', '', '50', 'NOR']])


def build(root, **given):
    return mnms.build(ConfigDict({**mnms.DEFAULTS, 'root': str(root), **given}))


@pytest.fixture
def tree(tmp_path):
    for name, (folder, _, _, ed, es) in SUBJECTS.items():
        write(tmp_path / 'OpenDataset', name, folder, ed, es)
    save(tmp_path / 'OpenDataset' / 'Training' / 'Unlabeled' / 'U4U4U4' / 'U4U4U4_sa.nii.gz',
         np.zeros((*SHAPE, 10), np.int16))
    table(tmp_path / 'OpenDataset')
    return tmp_path


def test_slices_of_the_layout(tree):
    source = build(tree)
    assert source.name == 'mnms' and source.labels == acdc.LABELS and len(source) == 4 * 2 * 4
    assert {c.patient for c in source.cases} == set(SUBJECTS)  # the unlabelled subject is left out
    case = source.cases[5]
    assert (case.id, case.study, case.patient, case.split) == ('A0S9V9_frame09_slice_1', 'A0S9V9_frame09', 'A0S9V9', '')
    assert case.groups == {'vendor': 'A', 'centre': '1', 'phase': 'ES', 'foreground': 'yes'}
    pixels, label = cine(6, 10, (0, 9))
    record = source[5]
    np.testing.assert_array_equal(record['image'], slice_stacks.scale(pixels[..., 9])[:, :, 1].T)  # of this frame alone
    np.testing.assert_allclose(record['spacing'], (10.0, 1.25, 1.5))
    es_first = [c for c in source.cases if c.patient == 'C5Q2Y5']
    assert [(c.study, c.groups['phase']) for c in es_first[::4]] == [('C5Q2Y5_frame03', 'ED'), ('C5Q2Y5_frame01', 'ES')]
    assert len(build(tree, foreground=True)) == 4 * 2 * 3 and len(build(tree / 'OpenDataset')) == 32
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[5]['image'], record['image'])


def test_left_and_right_change_places(tree):
    """As ACDC: 1 is the right ventricle, 3 the left, on a whole volume."""
    record = build(tree, dims=3)[1]
    stored = np.asarray(nibabel.load(tree / 'OpenDataset/Training/Labeled/A0S9V9/A0S9V9_sa_gt.nii.gz').dataobj[..., 9])
    assert (stored == 1).any() and (stored == 3).any() and (stored == 1).sum() != (stored == 3).sum()
    for here, there in ((0, 0), (1, 3), (2, 2), (3, 1)):
        np.testing.assert_array_equal(record['label'].voxels == here, stored == there)
    assert record['case'] == 'A0S9V9_frame09' and record['image'].voxels.shape == SHAPE
    np.testing.assert_allclose(record['image'].affine, np.diag([1.5, 1.25, 10.0, 1.0]))


def test_parts(tree):
    assert {c.patient: c.split for c in build(tree, official=True).cases} == {
        'A0S9V9': 'train', 'B1T2X4': 'val', 'C5Q2Y5': 'test', 'D9L1Z3': 'test'}


@pytest.mark.parametrize('encoding, ends', [('utf-8-sig', '\r\n'), ('utf-8', '\n'), ('utf-8-sig', '\r')])
def test_tables_of_spreadsheets(tree, encoding, ends):
    head = ['', 'External code', 'Vendor Name', 'vendor', 'Center', 'ED', 'ES', 'Age', 'Pathology']
    subjects = {k: (*v[:3], f'{v[3]}.0', f'{v[4]}.0') for k, v in SUBJECTS.items()}
    table(tree / 'OpenDataset', subjects, head, encoding, ends)
    assert [c.study for c in build(tree).cases[::4]][:2] == ['A0S9V9_frame00', 'A0S9V9_frame09']


def test_tables_that_are_wrong(tree):
    top = tree / 'OpenDataset'
    for head, why in ((['', 'Code', *HEAD[2:]], '0 columns for "id"'),
                      ([*HEAD[:7], 'ED ', 'x'], 'two columns called "ED"'),
                      ([*HEAD[:7], 'ed', 'x'], '2 columns for "ED"')):
        table(top, head=head)
        with pytest.raises(errors.BadData, match=why):
            build(tree)
    for given, why in ((('Testing', 'D', '5', 'first', 4), 'column "ED" is not the number'),
                       (('Testing', 'D', '5', 0, ''), 'column "ES" is not the number'),
                       (('Testing', 'D', '5', 4, 4), 'ED and ES of D9L1Z3 are one frame'),
                       (('Testing', 'D', '5', 0, 12), 'no frame 12'),
                       (('Testing', 'D', '5', 1, 5), 'no label in frame 1 .*calls ED')):  # as if it counted from 1
        table(top, {**SUBJECTS, 'D9L1Z3': given})
        with pytest.raises(errors.BadData, match=why):
            build(tree)
        source = build(tree, on_error='skip')
        assert {c.patient for c in source.cases} - {'D9L1Z3'} == set(SUBJECTS) - {'D9L1Z3'}
        assert source.skipped[0][0].startswith('D9L1Z3')
    table(top)
    text = (top / 'info_opendataset.csv').read_text()
    (top / 'info_opendataset.csv').write_text(text + text.splitlines()[1] + '\n')
    with pytest.raises(errors.BadData, match='names A0S9V9 a second time'):
        build(tree)
    table(top)
    (top / 'other.csv').write_text('a,b\n')
    with pytest.raises(errors.ConfigError, match='Set table to the name'):
        build(tree)
    assert len(build(tree, table='info_opendataset.csv')) == 32
    (top / 'other.csv').rename(top / 'other.txt')
    (top / 'info_opendataset.csv').unlink()
    with pytest.raises(errors.MissingInput, match=r'no table \(.csv\)'):
        build(tree)


def test_damaged_trees(tree):
    top = tree / 'OpenDataset'
    write(top, 'A0S9V9', 'Testing', 0, 9)  # a subject in two folders
    with pytest.raises(errors.BadData, match='both hold a subject A0S9V9'):
        build(tree)
    for path in (top / 'Testing' / 'A0S9V9').iterdir():
        path.unlink()
    (top / 'Testing' / 'A0S9V9').rmdir()
    write(top, 'E0E0E0', 'Testing', 0, 9)
    with pytest.raises(errors.BadData, match='no row for E0E0E0'):
        build(tree)
    assert len(build(tree, on_error='skip')) == 32
    (top / 'Testing' / 'E0E0E0').rename(top / 'Training' / 'Unlabeled' / 'E0E0E0')
    gt = top / 'Testing' / 'D9L1Z3' / 'D9L1Z3_sa_gt.nii.gz'
    content, label = gt.read_bytes(), np.asarray(nibabel.load(gt).dataobj).copy()
    for change, why in ((lambda: gt.write_bytes(content[:-5]), 'damaged'),
                        (lambda: save(gt, label[:, :-1]), '16 x 17 x 4'),
                        (lambda: save(gt, label + 3), '4 in 24, 5 in 96, 6 in 75'), (gt.unlink, 'no D9L1Z3_sa_gt')):
        change()
        with pytest.raises((errors.BadData, errors.MissingInput), match=why):
            build(tree)
        source = build(tree, on_error='skip')
        assert len(source) == 24 and why in str(source.skipped)
    gt.write_bytes(content)
    image = gt.with_name('D9L1Z3_sa.nii.gz')
    image.write_bytes(image.read_bytes()[:-5])  # behind the frames that are asked for, and yet no whole file
    source = build(tree)
    with pytest.raises(errors.BadData, match='damaged'):
        source[len(source) - 1]
    source = build(tree, on_error='skip')
    assert len(source) == 24 and [name for name, _ in source.skipped] == ['D9L1Z3_frame00', 'D9L1Z3_frame04']


def test_roots_that_hold_nothing(tmp_path):
    table(tmp_path)
    with pytest.raises(errors.MissingInput, match='no subject'):
        build(tmp_path)
    with pytest.raises(errors.ConfigError, match='dims'):
        build(tmp_path, dims=1)
