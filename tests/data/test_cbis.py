"""CBIS-DDSM: the phantom written with the traps of the archive comes back as it was; what is wrong is named."""
import csv
import os
import pathlib
import pickle
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import splits
from jaxkd.data.formats import film
from jaxkd.data.sources import cbis_ddsm
from jaxkd.phantoms import breast
from jaxkd.phantoms.layouts import cbis_ddsm as layout

REAL = pathlib.Path(os.environ.get('JAXKD_REAL_DATA')
                    or pathlib.Path(__file__).parents[2] / '../shared/data') / 'cbis_ddsm_csv'
PATIENTS = 46  # the first with a patient in two parts


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp('cbis')
    layout.write(root, PATIENTS, size=64)
    return root


def _build(root, **changes):
    return cbis_ddsm.build(ConfigDict({**cbis_ddsm.DEFAULTS, 'root': str(root), **changes}))


def _copy(tree, tmp_path):
    return shutil.copytree(tree, tmp_path / 'copy')


def _edit(root, name, change):
    """Rewrite a table with change(rows) of its dicts."""
    path = root / f'{name}_set.csv'
    with open(path, newline='') as f:
        rows = list(csv.DictReader(f))
    change(rows)
    with open(path, 'w', newline='') as f:
        writer = csv.DictWriter(f, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def test_the_written_tree_holds_the_cases_of_the_phantom(tree, capsys):
    found = _build(tree)
    said = capsys.readouterr().out
    assert 'patients are in a training and in a test table' in said
    phantom = breast.build(ConfigDict(dict(breast.DEFAULTS, patients=PATIENTS, size=64)))
    at = {case.id: i for i, case in enumerate(phantom.cases)}
    every, kept = cbis_ddsm.lesions(tree, leaking=True), cbis_ddsm.lesions(tree)
    leaking = {x.row['patient_id'] for x in every if x not in kept}
    assert leaking and {c.id for c in found.cases if c.patient not in leaking} == {i for i in at
                                                                                   if i[:7] not in leaking}
    scaled = 0
    for i, case in enumerate(found.cases):
        if case.patient in leaking:
            assert case.split == 'test'
            continue
        ours, theirs = found[i], phantom[at[case.id]]
        np.testing.assert_array_equal(ours['image'], theirs['image'])
        assert ours['table'] == theirs['table'] == found.table(i) and ours['label'] == theirs['label']
        assert case.groups == phantom.cases[at[case.id]].groups
        if (ours['masks'] == theirs['masks']).all():
            np.testing.assert_array_equal(ours['boxes'], theirs['boxes'])
        else:  # a mask that was stored larger
            scaled += 1
            np.testing.assert_allclose(ours['boxes'], theirs['boxes'], atol=2)
    assert 0 < scaled < len(found) / 3
    assert pickle.loads(pickle.dumps(found))[0]['label'] == found[0]['label']


def test_the_official_test_part_stays_and_patients_do_not_part(tree):
    found = _build(tree)
    split = splits.make(found.cases, {'train': 0.9, 'val': 0.1, 'test': 0.0})
    assert {c.id for c in found.cases if c.split == 'test'} == {i for i, part in split.items() if part == 'test'}
    splits.check(found.cases, split)
    for kind, word in (('mass', 'mass'), ('calc', 'calcification')):
        one = _build(tree, kind=kind)
        assert {row['abnormality type'] for i in range(len(one)) for row in one.table(i)} == {word}


def test_a_planted_leak_is_dropped_from_training(tree, tmp_path):
    root = _copy(tree, tmp_path)
    train = next(c for c in _build(root).cases if c.split == '' and c.groups['abnormality'] == 'mass')
    before = sum(c.patient == train.patient for c in _build(root).cases)

    def plant(rows):
        rows[0]['patient_id'] = train.patient
    _edit(root, 'calc_case_description_test', plant)
    after = [c for c in _build(root).cases if c.patient == train.patient]
    assert before and len(after) == 1 and after[0].split == 'test'


def test_files_in_folders_of_any_name_are_found_by_what_they_say(tree, tmp_path):
    """Every file in one flat folder, under a number."""
    root = tmp_path / 'flat'
    (root / 'dicom').mkdir(parents=True)
    for path in tree.glob('*.csv'):
        shutil.copy(path, root)
    for n, path in enumerate(sorted(tree.rglob('*.dcm'))):
        shutil.copy(path, root / 'dicom' / f'{n}.dcm')
    (root / 'dicom' / 'other.dcm').write_bytes(b'nothing')
    ours, theirs = _build(root), _build(tree)
    assert ours.cases == theirs.cases
    for i in range(0, len(ours), 7):
        for key in ('image', 'masks', 'boxes'):
            np.testing.assert_array_equal(ours[i][key], theirs[i][key])


def test_nothing_is_decoded_at_the_start(tree, monkeypatch):
    def refuse(*_):
        raise AssertionError('a file was opened')
    monkeypatch.setattr(film, 'read', refuse)
    monkeypatch.setattr(film, 'head', refuse)
    assert len(_build(tree)) > 50


def test_tables_alone_suffice_for_lesions_but_not_for_a_source(tree, tmp_path):
    for path in tree.glob('*.csv'):
        shutil.copy(path, tmp_path)
    assert [x.row for x in cbis_ddsm.lesions(tmp_path)] == [x.row for x in cbis_ddsm.lesions(tree)]
    with pytest.raises(errors.MissingInput, match='no DICOM file of .* lies below'):
        _build(tmp_path)
    with pytest.raises(errors.BadData, match='no usable case'):
        _build(tmp_path, on_error='skip')
    os.remove(tmp_path / 'calc_case_description_test_set.csv')
    with pytest.raises(errors.MissingInput, match='calc_case_description_test_set.csv does not exist'):
        cbis_ddsm.lesions(tmp_path)


def _one(root):
    """(number, paths of the image, paths of crop and mask) of a case with one lesion whose mask fits."""
    found = _build(root)
    for i in range(len(found)):
        lesions = found.findings[i]
        shapes = [film.head(p).shape for p in found.files[lesions[0].roi]]
        if len(lesions) == 1 and film.head(found.files[lesions[0].image][0]).shape in shapes:
            return i, found.files[lesions[0].image], found.files[lesions[0].roi]
    raise AssertionError


def test_damaged_files_are_named_and_skipped(tree, tmp_path):
    root = _copy(tree, tmp_path)
    i, (full,), roi = _one(root)
    data = pathlib.Path(full).read_bytes()
    for broken in (data[:200], data[:-50], b''):
        pathlib.Path(full).write_bytes(broken)
        with pytest.raises(errors.BadData, match='1-1.dcm') as e:
            _build(root)[i]
        assert str(full) in str(e.value)
    case = _build(root).cases[i].id
    skipping = _build(root, on_error='skip')
    assert [s[0] for s in skipping.skipped] == [case] and len(skipping) == len(_build(root)) - 1
    pathlib.Path(full).write_bytes(data)
    for path in roi:
        os.remove(path)
    with pytest.raises(errors.MissingInput, match='no DICOM file of'):
        _build(root)[i]


def test_masks_of_another_size(tree, tmp_path):
    """Of nearly the same shape: scaled, or refused; of another: no region; a picture is no mask."""
    root = _copy(tree, tmp_path)
    i, _, roi = _one(root)
    whole = _build(root)[i]
    mask = next(p for p in roi if film.head(p).shape == whole['image'].shape)
    head = film.head(mask)
    for path in roi:
        if path != mask:
            os.remove(path)
    drawn = whole['masks'][0]

    def store(pixels):
        layout.write_dicom(mask, pixels, head.name, head.series, 'ROI mask images')
    store(np.repeat(np.repeat(drawn, 2, 0), 2, 1) * np.uint8(255))
    np.testing.assert_array_equal(_build(root)[i]['masks'][0], drawn)
    with pytest.raises(errors.BadData, match='does not fit its image'):
        _build(root, misfit='error')[i]
    store(drawn[:, ::2] * np.uint8(255))
    found = _build(root)[i]
    assert (found['masks'].shape == (0, *drawn.shape) and found['boxes'].shape == (0, 5)
            and found['label'] == whole['label'])
    for pixels in (np.zeros_like(drawn), np.arange(drawn.size).reshape(drawn.shape).astype(np.uint8)):
        store(pixels)
        with pytest.raises(errors.BadData, match='it is no mask'):
            _build(root)[i]


@pytest.mark.parametrize('column, value, match', [
    ('pathology', 'UNKNOWN', 'row 2: column "pathology" is none of MALIGNANT'),
    ('image view', 'LM', 'column "image view"'),
    ('left or right breast', '', 'column "left or right breast"'), ('patient_id', '17', 'not of the form P_00001'),
    ('image file path', 'x/y.dcm', 'does not begin with a name')])
def test_bad_cells_are_named_not_quoted(tree, tmp_path, column, value, match):
    root = _copy(tree, tmp_path)
    _edit(root, 'mass_case_description_train', lambda rows: rows[0].update({column: value}))
    with pytest.raises(errors.BadData, match=match):
        _build(root)


@pytest.mark.parametrize('key', ['kind', 'on_error', 'misfit'])
def test_impossible_options_are_refused(tree, key):
    with pytest.raises(errors.ConfigError, match=f'cbis_ddsm: {key} = "x" is none of'):
        _build(tree, **{key: 'x'})
    with pytest.raises(errors.MissingInput, match='is not a folder'):
        _build('nowhere')


def test_film_is_read_as_stored(tmp_path):
    """Both depths, odd lengths, and a negative that comes out positive."""
    import pydicom
    for pixels in (np.arange(15, dtype=np.uint8).reshape(3, 5), np.arange(15, dtype=np.uint16).reshape(5, 3) * 4000):
        path = str(tmp_path / 'a.dcm')
        layout.write_dicom(path, pixels, 'name', '1.2.3', 'full mammogram images')
        found, head = film.read(path), film.head(path)
        np.testing.assert_array_equal(found, pixels)
        assert found.dtype == pixels.dtype and (head.name, head.series, head.description,
                                                head.shape) == ('name', '1.2.3', 'full mammogram images',
                                                                                                pixels.shape)
        d = pydicom.dcmread(path)
        d.PhotometricInterpretation = 'MONOCHROME1'
        d.save_as(path)
        np.testing.assert_array_equal(film.read(path), np.iinfo(pixels.dtype).max - pixels)
        with pytest.raises(errors.BadData, match='more than max_pixels = 4'):
            film.read(path, 4)
    with pytest.raises(errors.MissingInput):
        film.head(str(tmp_path / 'none.dcm'))
    with pytest.raises(errors.BadData):
        film.head(str(tmp_path))


real = pytest.mark.skipif(not REAL.is_dir(), reason='the real tables of CBIS-DDSM are not here')


@real
def test_the_real_tables_count_as_published():
    every, kept = cbis_ddsm.lesions(REAL, leaking=True), cbis_ddsm.lesions(REAL)
    of = {(kind, part): [x for x in every if (x.row['abnormality type'], x.split) == (kind, part)]
          for kind in ('mass', 'calcification') for part in ('train', 'test')}
    patients = {key: {x.row['patient_id'] for x in found} for key, found in of.items()}
    counts = {key: (len(found), len(patients[key]), len({x.id for x in found}),
                    *(sum(x.row['pathology'] == p for x in found) for p in cbis_ddsm.PATHOLOGY))
                    for key, found in of.items()}
    assert counts == {('mass', 'train'): (1318, 691, 1231, 637, 577, 104),
                      ('mass', 'test'): (378, 201, 361, 147, 194, 37),
                      ('calcification', 'train'): (1546, 602, 1227, 544, 528, 474),
                      ('calcification', 'test'): (326, 151, 284, 129, 130, 67)}
    assert (len(every), len({x.id for x in every})) == (3568, 3032)
    both = {}
    for x in every:
        both.setdefault(x.id, set()).add(x.row['pathology'] == 'MALIGNANT')
    assert sum(len(v) == 2 for v in both.values()) == 33
    leaks = (patients['mass', 'train'] & patients['calcification', 'test'], patients['calcification', 'train']
             & patients['mass', 'test'])
    assert [len(x) for x in leaks] == [13, 18]
    there = {(x.roi, x.split) for x in kept}
    trained = {x.row['patient_id'] for x in kept if x.split == 'train'}
    assert not trained & {x.row['patient_id'] for x in kept if x.split == 'test'}
    assert {x.row['patient_id'] for x in every if (x.roi, x.split) not in there} == leaks[0] | leaks[1]
    assert all(cell == cell.strip() and '.dcm' not in cell for x in every for cell in x.row.values())
