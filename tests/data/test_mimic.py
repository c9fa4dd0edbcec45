"""MIMIC-CXR-JPG, MIMIC-CXR and MS-CXR, written by the thorax phantom, read back, and spoilt."""
import csv
import dataclasses
import gzip
import os
import pickle
import random
import re
import shutil
import zipfile

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import errors
from jaxkd.data import splits
from jaxkd.data.sources import mimic_cxr
from jaxkd.data.sources.shared import ms_cxr
from jaxkd.data.transforms import labels, text
from jaxkd.phantoms import __main__ as command
from jaxkd.phantoms import thorax
from jaxkd.phantoms.layouts import mimic_cxr as layout
from jaxkd.phantoms.thorax import labeller

PATIENTS, SIZE, SEED = 30, 32, 5  # MS-CXR has patients of all parts, and one with an image that has no box


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('mimic')
    assert command.main(['write', '--layout', 'mimic_cxr', '--out', str(folder), f'--patients={PATIENTS}',
                         f'--size={SIZE}', f'--seed={SEED}']) == 0
    return folder


@pytest.fixture
def tree(written, tmp_path):
    shutil.copytree(written, tmp_path / 'tree')
    return tmp_path / 'tree'


@pytest.fixture(scope='module')
def phantom():
    return thorax.build(ConfigDict({**thorax.DEFAULTS, 'patients': PATIENTS, 'size': SIZE, 'seed': SEED}))


def made(folder, **given):
    return mimic_cxr.build(ConfigDict({
        **mimic_cxr.DEFAULTS, 'root': str(folder / layout.JPG), 'reports': str(folder / layout.TEXT),
        'ms_cxr': str(folder / layout.MS_CXR), **given}))


def path_of(folder, name):
    """The path of 'metadata', 'split', ...; 'radiologists' or 'ms_cxr'."""
    return {'radiologists': folder / layout.JPG / mimic_cxr.DEFAULTS['radiologists'], 'ms_cxr': folder / layout.MS_CXR
            / ms_cxr.TABLES[0]}.get(name, folder / layout.JPG / f'mimic-cxr-2.0.0-{name}.csv.gz')


def rows_of(folder, name):
    data = path_of(folder, name).read_bytes()
    return list(csv.reader((gzip.decompress(data) if data[:2] == b'\x1f\x8b' else data).decode().splitlines()))


def rewrite(folder, name, rows, encoding='utf-8', end='\n'):
    path = path_of(folder, name)
    data = (end.join(map(','.join, rows)) + end).encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)


def change(folder, name, row, column, cell):
    rows = rows_of(folder, name)
    rows[row][rows[0].index(column)] = cell
    rewrite(folder, name, rows)


def ids(source):
    return [case.id for case in source.cases]


def same(a, b):
    np.testing.assert_array_equal(a.values, b.values)
    return a.cases == b.cases and a.sizes == b.sizes and [*a.boxes] == [*b.boxes]


# The written tree and the phantom.

def test_the_tree_is_the_phantom(written, phantom):
    source = pickle.loads(pickle.dumps(made(written, ms_cxr_patients='stay')))
    known = {layout.dicom_id(case.id): i for i, case in enumerate(phantom.cases)}
    assert len(source) == len(phantom) and source.labels == phantom.labels == ms_cxr.FINDINGS and source.skipped == ()
    studies, looked, boxes = {}, set(), 0
    for k, case in enumerate(source.cases):
        i = known[os.path.basename(case.id)[:-4]]
        want, of = phantom[i], phantom.cases[i]
        number, record = int(of.patient.rpartition('p')[2]), source[k]
        assert case.id.startswith(f'files/p{case.patient[:2]}/p{case.patient}/s{case.study}/')
        assert case.patient == layout.subject_id(number, SEED) and studies.setdefault(case.study, of.study) == of.study
        assert case.split == mimic_cxr.PARTS[layout.PARTS[number % 5]] == mimic_cxr.PARTS[case.groups['official']]
        assert case.groups['view'] == of.groups['view']
        looked |= {case.study} if case.groups['by'] == 'radiologist' else set()
        np.testing.assert_array_equal(record['label'], want['truth'] if case.study in looked else want['label'])
        np.testing.assert_array_equal(source.values[k], record['label'])
        assert record['image'].dtype == np.uint8 and record['image'].shape == (SIZE, SIZE)
        assert np.abs(record['image'].astype(int) - want['image']).mean() < 4  # JPEG
        for section in ('findings', 'impression', 'both'):
            assert text.words(record['text'], section) == text.words(want['text'], section)
        np.testing.assert_array_equal(labeller.labels(record['text']), want['label'])
        marked = layout.in_ms_cxr(number)
        np.testing.assert_array_equal(record['boxes'], want['boxes'] if marked else np.zeros((0, 5)))
        assert bool(case.groups['ms_cxr']) == bool(len(record['boxes']))
        boxes += len(record['boxes'])
    assert len({*studies.values()}) == len(studies) == len({c.study for c in phantom.cases}) and looked and boxes > 5
    assert {-1.0, 0.0, 1.0} == {*source.values[~np.isnan(source.values)]}
    splits.archive(source.cases)


def test_the_command_refuses_what_it_cannot_write(tmp_path, capsys):
    for given, what in ((['--layout', 'mimic'], 'Did you mean "mimic_cxr"'),
                        (['--layout', 'mimic_cxr', '--size=9'], 'size=9')):
        assert command.main(['write', *given, '--out', str(tmp_path / 'x'), '--patients', '1']) == 2
        assert what in capsys.readouterr().err
    (tmp_path / 'file').write_text('')
    assert command.main(['write', '--layout', 'mimic_cxr', '--out', str(tmp_path / 'file'), '--patients', '1']) == 73
    with pytest.raises(SystemExit):
        command.main(['write', '--out', str(tmp_path)])
    assert 'Layouts: ' in capsys.readouterr().err


def test_raw_labels_reach_the_policy(written):
    source, ignore, ones = made(written), labels.build(ConfigDict(labels.DEFAULTS)).apply, labels.build(ConfigDict({
        **labels.DEFAULTS, 'uncertain': 'ones'})).apply
    zeros = labels.build(ConfigDict({**labels.DEFAULTS, 'uncertain': 'zeros'})).apply
    for raw, i in ((raw, i) for i, raw in enumerate(source.values) if (raw == -1).any() and np.isnan(raw).any()):
        record = ignore(source[i])
        np.testing.assert_array_equal(record['label'], raw == 1)
        np.testing.assert_array_equal(record['label_weight'], raw != -1)
        np.testing.assert_array_equal(ones(source[i])['label'], np.abs(raw) == 1)
        np.testing.assert_array_equal(zeros(source[i])['label'], raw == 1)
        assert zeros(source[i])['label_weight'].all()
        return
    raise AssertionError('no uncertain and unmentioned label')


# What is read, and into which part.

def test_views_and_labels_are_chosen(written):
    frontal, everything = made(written, ms_cxr_patients='stay'), made(written, ms_cxr_patients='stay', views=())
    shown = [c.groups['view'] for c in everything.cases]
    assert set(shown) == {'AP', 'PA', 'LATERAL'} and len(frontal) == len(shown) - shown.count('LATERAL')
    lateral = everything.cases[shown.index('LATERAL')]
    np.testing.assert_array_equal(everything[shown.index('LATERAL')]['image'], 128)
    mates = {everything.text(i) for i, c in enumerate(everything.cases) if c.study == lateral.study}
    assert len(mates) == 1 and mates != {''}  # images of a study share the report
    assert {c.groups['view'] for c in made(written, views=('PA',)).cases} == {'PA'}
    few = made(written, labels=('Pneumothorax', 'No Finding'), ms_cxr_patients='stay')
    np.testing.assert_array_equal(few.values[:, 0], frontal.values[:, -1])
    assert {1.0} <= {*few.values[:, 1]} and {b for one in few.boxes.values() for b in one[:, 0]} <= {0.0}
    assert ids(few) == ids(frontal) and few.boxes.keys() == frontal.boxes.keys()


def test_no_patient_of_ms_cxr_is_trained_on_or_validated_with(written):
    stay, out, tested = (made(written, ms_cxr_patients=policy) for policy in ('stay', 'out', 'test'))
    held = {c.patient for c in stay.cases if c.groups['ms_cxr']}
    first = {c.id: c for c in stay.cases}
    assert {c.split for c in stay.cases if c.patient in held} == {'train', 'val', 'test'}
    for source in (out, tested):
        assert not held & {c.patient for c in source.cases if c.split != 'test'}
        splits.archive(source.cases)
        split = splits.make(source.cases)
        assert all((split[c.id] == 'test') == (c.split == 'test') for c in source.cases)
    assert all(c.groups['official'] == 'test' for c in out.cases if c.patient in held)
    assert tested.boxes.keys() == stay.boxes.keys() > out.boxes.keys()
    for case in tested.cases:  # what moves are images of MS-CXR alone, and all of them
        moved = case != first[case.id]
        assert moved == (case.groups['ms_cxr'] != '' and case.groups['official'] != 'test')
        assert not moved or case == dataclasses.replace(first[case.id], split='test')
    gone = first.keys() - {*ids(tested)}
    assert {first[case].patient for case in gone} <= held and not any(first[case].groups['ms_cxr'] for case in gone)
    assert f'{len(gone)} images of MS-CXR patients are left out' in tested.note and 'left out' not in stay.note
    # The check itself: a planted image of one of them in another part is found.
    moved = next(c for c in tested.cases if c.groups['official'] == 'train' and c.split == 'test')
    planted = dataclasses.replace(moved, id='planted', split='train')
    with pytest.raises(errors.BadData, match='planted'):
        splits.archive((*tested.cases, planted))
    none = made(written, ms_cxr='')
    assert none.boxes == {} and ids(none) == ids(stay) and {c.groups['ms_cxr'] for c in none.cases} == {''}


def test_ms_cxr_1_0_has_no_split(tree):
    want = made(tree)
    assert {c.groups['ms_cxr'] for c in want.cases} == {'', 'val', 'test'}
    rows = rows_of(tree, 'ms_cxr')
    rewrite(tree, 'ms_cxr', [row[:-1] for row in rows])
    os.rename(path_of(tree, 'ms_cxr'), tree / layout.MS_CXR / ms_cxr.TABLES[1])
    found = made(tree)
    assert {c.groups['ms_cxr'] for c in found.cases} == {'', 'all'} and ids(found) == ids(want)
    for name, boxes in want.boxes.items():
        np.testing.assert_array_equal(boxes, found.boxes[name])


def test_radiologists_count_in_the_test_part_alone(tree, phantom):
    with_them, without = made(tree), made(tree, radiologists='')
    theirs = np.array([c.groups['by'] == 'radiologist' for c in with_them.cases])
    assert ({c.groups['official'] for c in np.array(with_them.cases, object)[theirs]} == {'test'}
            and 0 < theirs.mean() < 1)
    np.testing.assert_array_equal(with_them.values[~theirs], without.values[~theirs])
    assert not np.array_equal(with_them.values[theirs], without.values[theirs], equal_nan=True)
    assert 'radiologists' in with_them.note and 'radiologists' not in without.note
    rows = rows_of(tree, 'radiologists')  # one that is not tested is not theirs; one that the program missed is
    train = next(c.study for c in with_them.cases if c.split == 'train')
    rewrite(tree, 'radiologists', [*rows, [train, *rows[1][1:]]])
    assert same(made(tree), with_them)
    rewrite(tree, 'chexpert', [row for row in rows_of(tree, 'chexpert') if row[1] != rows[1][0]])
    assert same(made(tree), with_them)
    os.remove(path_of(tree, 'radiologists'))
    rewrite(tree, 'chexpert', rows_of(tree, 'negbio'))
    assert same(made(tree), without)
    with pytest.raises(errors.MissingInput, match='other.csv'):
        made(tree, radiologists='other.csv')


def test_folders_above_versions_and_the_zip_of_reports(tree):
    want = made(tree)
    above = made(tree, root=str(tree / 'mimic-cxr-jpg'), reports=str(tree / 'mimic-cxr'), ms_cxr=str(tree / 'ms-cxr'))
    assert same(above, want)
    packed = str(tree / layout.TEXT / mimic_cxr.REPORTS)
    zipped = pickle.loads(pickle.dumps(made(tree, reports=packed)))
    assert [zipped.text(i) for i in range(len(zipped))] == [want.text(i) for i in range(len(want))]
    shutil.rmtree(tree / layout.TEXT / 'files')
    assert made(tree).text(0) == zipped.text(0)
    silent = made(tree, reports='')
    assert silent.text(0) == silent[0]['text'] == '' and same(silent, want)
    os.rename(tree / layout.JPG, tree / 'mimic-cxr-jpg' / '2.0.0')
    assert same(made(tree, root=str(tree / 'mimic-cxr-jpg')), want)
    shutil.copytree(tree / 'mimic-cxr-jpg' / '2.0.0', tree / 'mimic-cxr-jpg' / '2.1.0',
                    ignore=shutil.ignore_patterns('files'))
    with pytest.raises(errors.ConfigError, match='2 times'):
        made(tree, root=str(tree / 'mimic-cxr-jpg'))


def test_boxes_follow_images_that_were_made_smaller_if_told(tree):
    want = made(tree)
    case = next(c for c in want.cases if len(want.boxes.get(c.id, ())))
    path = tree / layout.JPG / case.id
    Image.open(path).resize((SIZE // 2, SIZE // 2)).save(path)
    i = want.cases.index(case)
    with pytest.raises(errors.BadData, match=f'its boxes are for an image of {SIZE} x {SIZE}'):
        made(tree)[i]
    np.testing.assert_array_equal(made(tree, resized=True)[i]['boxes'] * [1, 2, 2, 2, 2], want.boxes[case.id])


# Other forms of the same tables.

@pytest.mark.parametrize('form', [dict(encoding='utf-8-sig'), dict(end='\r\n'),
                                  dict(shuffle=True, encoding='utf-8-sig', end='\r\n')])
def test_tables_of_another_form_are_the_same(tree, form):
    want, rng = made(tree), random.Random(0)
    shuffle = form.pop('shuffle', False)
    for name in ('metadata', 'split', 'chexpert', 'radiologists', 'ms_cxr'):
        rows = rows_of(tree, name)
        order = rng.sample(range(len(rows[0])), len(rows[0])) if shuffle else range(len(rows[0]))
        rewrite(tree, name, [[row[j] for j in order] for row in rows], **form)
    assert same(made(tree), want)


def test_tables_may_be_unpacked(tree):
    want = made(tree)
    for name in ('metadata', 'split', 'chexpert'):
        path = path_of(tree, name)
        path.with_suffix('').write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert same(made(tree), want)


def test_nothing_is_looked_for_before_it_is_read(tree):
    want = made(tree)
    shutil.rmtree(tree / layout.JPG / 'files')
    for part in (tree / layout.TEXT / 'files').iterdir():
        shutil.rmtree(part)
    source = made(tree)
    assert same(source, want)
    for read in (lambda: source.pixels(0), lambda: source.text(0)):
        with pytest.raises(errors.MissingInput, match=f'p{source.cases[0].patient}/s{source.cases[0].study}'):
            read()


# Damage.

def doubled(folder, name, row=2):
    rows = rows_of(folder, name)
    rewrite(folder, name, [*rows, rows[row]])


def dropped(folder, name, row=2):
    rows = rows_of(folder, name)
    rewrite(folder, name, rows[:row] + rows[row + 1:])


@pytest.mark.parametrize('spoil, what', [
    (lambda t: doubled(t, 'metadata'), r'metadata.csv.gz, row \d+: image [0-9a-f-]+ stands there a second time'),
    (lambda t: doubled(t, 'split'), r'split.csv.gz, row \d+: image [0-9a-f-]+ stands there a second time'),
    (lambda t: doubled(t, 'chexpert'), r'chexpert.csv.gz, row \d+: study \d+ stands there a second time'),
    (lambda t: doubled(t, 'radiologists'), r'labeled.csv, row \d+: study \d+ stands there a second time'),
    (lambda t: dropped(t, 'split'), r'metadata.csv.gz, row 3: image [0-9a-f-]+ is not in the table of the split'),
    (lambda t: change(t, 'split', 2, 'split', 'training'), 'row 3: column "split" is none of train, validate, test'),
    (lambda t: change(t, 'chexpert', 2, 'Edema', '2.0'),
     r'row 3: column "Edema" of study \d+ is not 1.0, 0.0, -1.0 or empty'),
    (lambda t: change(t, 'radiologists', 1, 'Airspace Opacity', 'x'), 'column "Airspace Opacity" of study'),
    (lambda t: change(t, 'chexpert', 2, 'subject_id', '10000001'), 'is of another subject in the table of labels'),
    (lambda t: change(t, 'metadata', 2, 'subject_id', '../../etc'),
     'row 3: dicom_id, subject_id or study_id is not like'),
    (lambda t: change(t, 'metadata', 2, 'dicom_id', ''), 'row 3: dicom_id, subject_id or study_id is not like'),
    (lambda t: change(t, 'ms_cxr', 1, 'w', '0'), 'v1.1.0.csv, row 2: needs numbers'),
    (lambda t: change(t, 'ms_cxr', 1, 'x', 'nan'), 'row 2: needs numbers'),
    (lambda t: change(t, 'ms_cxr', 1, 'category_name', 'Effusion'), 'row 2: column "category_name" is none of'),
    (lambda t: change(t, 'ms_cxr', 1, 'dicom_id', '0-0'), 'image 0-0 of MS-CXR is not in the metadata'),
])
def test_bad_rows_are_errors_or_counted(tree, spoil, what):
    spoil(tree)
    with pytest.raises(errors.BadData, match=what) as found:
        made(tree)
    assert 'etc' not in str(found.value)
    kept = made(tree, on_error='skip')
    assert len(kept.skipped) >= 1 and len(kept) == len(kept.values) == len(kept.files) == len(kept.texts)
    assert any(re.search(what, reason) for _, reason in kept.skipped)


def test_a_patient_whose_only_box_is_bad_is_held_out_all_the_same(tree):
    whole = made(tree, ms_cxr_patients='stay')
    case = next(c for c in whole.cases if c.groups['ms_cxr'] and c.split == 'train')
    header, *rows = rows_of(tree, 'ms_cxr')
    row = next(row for row in rows if row[0] in case.id)
    rewrite(tree, 'ms_cxr', [header, [cell if name != 'w' else 'wide' for name, cell in zip(header, row)]])
    found = made(tree, on_error='skip')
    assert [name for name, _ in found.skipped] == [row[0]]
    assert ids(found) == [c.id for c in whole.cases if c.patient != case.patient]


def test_studies_without_labels_are_counted_skips(tree):
    want = made(tree, radiologists='')
    study = rows_of(tree, 'chexpert')[2][1]
    dropped(tree, 'chexpert')
    found = made(tree, radiologists='')
    gone = [c.id for c in want.cases if c.study == study]
    assert [case for case, _ in found.skipped] == gone != [] and all('no labels' in why for _, why in found.skipped)
    assert ids(found) == [c.id for c in want.cases if c.study != study]


def test_a_patient_in_two_parts_is_never_skipped(tree):
    rows = rows_of(tree, 'metadata')
    subjects = [row[1] for row in rows]
    twice = next(row for row in rows[1:] if subjects.count(row[1]) > 1)
    where = [row[0] for row in rows_of(tree, 'split')].index(twice[0])
    part = rows_of(tree, 'split')[where][3]
    change(tree, 'split', where, 'split', 'test' if part != 'test' else 'train')
    for on_error in ('fail', 'skip'):
        with pytest.raises(errors.BadData, match='another image of its patient in'):
            made(tree, on_error=on_error)


@pytest.mark.parametrize('name, column', [('metadata', 'ViewPosition'), ('split', 'split'), ('chexpert', 'Edema'),
                                          ('ms_cxr', 'image_width'), ('radiologists', 'Airspace Opacity')])
def test_a_column_that_is_missing_is_named(tree, name, column):
    change(tree, name, 0, column, 'other')
    with pytest.raises(errors.BadData, match=f'has no column "{column}"'):
        made(tree)


def test_damaged_files_are_found_when_they_are_read(tree):
    whole = made(tree)
    names = ids(whole)
    studies = [c.study for c in whole.cases]
    alone = [i for i, study in enumerate(studies) if studies.count(study) == 1][:5]
    jpeg = [tree / layout.JPG / names[i] for i in alone]
    report = [tree / layout.TEXT / f'{os.path.dirname(names[i])}.txt' for i in alone]
    jpeg[0].write_bytes(jpeg[0].read_bytes()[:300])
    jpeg[1].unlink()
    jpeg[2].write_bytes(b'')
    report[3].unlink()
    report[4].write_bytes('Größe'.encode('latin-1'))
    for i, error in zip(alone, (errors.BadData, errors.MissingInput, errors.BadData, errors.MissingInput,
                                errors.BadData)):
        with pytest.raises(error, match=os.path.dirname(names[i])):
            whole[i]
    kept = made(tree, on_error='skip')
    assert [case for case, _ in kept.skipped] == [names[i] for i in alone]
    assert ids(kept) == [name for i, name in enumerate(names) if i not in alone] and len(kept.texts) == len(kept)


def test_a_damaged_table_is_named(tree):
    path = path_of(tree, 'chexpert')
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(errors.BadData, match='chexpert.csv.gz is a damaged gzip file'):
        made(tree)
    path.unlink()
    with pytest.raises(errors.MissingInput, match='chexpert.csv does not exist'):
        made(tree)


def test_a_damaged_zip_of_reports_is_named(tree):
    member = f'{os.path.dirname(made(tree).cases[0].id)}.txt'
    for k, (members, error, what) in enumerate((
            ({'a': b''}, errors.MissingInput, 'holds no files/p'),
            ({member: b'x' * 2**21}, errors.BadData, 'no report'),
            ({member: b'\xff'}, errors.BadData, 'not UTF-8'), ({}, errors.BadData, 'cannot be read'))):
        path = tree / f'{k}.zip'
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as f:
            for name, data in members.items():
                f.writestr(name, data)
        if not members:
            path.write_bytes(b'PK')
        with pytest.raises(error, match=what):
            made(tree, reports=str(path)).text(0)


@pytest.mark.parametrize('given, error', [
    *((wrong, errors.ConfigError) for wrong in (
        dict(labels=('Effusion',)), dict(labels=()), dict(labels=('Edema',) * 2), dict(on_error='x'),
        dict(labeller='chexbert'),
        dict(ms_cxr_patients='train'))),
    *((wrong, errors.MissingInput) for wrong in (
        dict(root=''), dict(root='absent'), dict(reports='absent'), dict(ms_cxr='absent.csv'))),
    (dict(views=('XX',)), errors.BadData),
])
def test_options_that_cannot_be_are_named(written, given, error):
    with pytest.raises(error, match=next(iter(given))):
        made(written, **given)
