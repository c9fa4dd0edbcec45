"""The layout of CheXpert and of CheXlocalize, written by the thorax phantom, read back, and spoilt."""
import csv
import json
import os
import pickle
import random
import shutil
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import config, errors
from jaxkd.data import pool, prepare, splits
from jaxkd.data.sources import binary, chexpert
from jaxkd.data.sources.shared import age_groups
from jaxkd.data.sources.shared.boxes import boxes_of_masks
from jaxkd.data.stores import reader
from jaxkd.data.transforms import labels
from jaxkd.evaluators import localisation as localisation_evaluator
from jaxkd.metrics import localisation
from jaxkd.phantoms import thorax
from jaxkd.phantoms.layouts import chexpert as layout
from jaxkd.phantoms.thorax import labeller

EFFUSION = chexpert.LABELS.index('Pleural Effusion')


def made(root, **given):
    return chexpert.build(ConfigDict({**chexpert.DEFAULTS, 'root': str(root), **given}))


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('chexpert')
    layout.write(folder, 25, 48, seed=3)
    return folder / layout.ARCHIVE


@pytest.fixture
def tree(written, tmp_path):
    shutil.copytree(written, tmp_path / written.name)
    return tmp_path / written.name


def table(root, part='train'):
    with open(root / f'{part}.csv', newline='') as f:
        return list(csv.reader(f))


def rewrite(root, rows, name='train.csv', encoding='utf-8', end='\n'):
    (root / name).write_bytes((end.join(','.join(row) for row in rows) + end).encode(encoding))


def changed(rows, row, column, cell):
    rows[row][rows[0].index(column)] = cell
    return rows


def test_header_is_that_of_the_archive():
    assert ','.join(chexpert.HEADER) == (
        'Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung '
        'Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support '
        'Devices')


def test_written_tree_is_the_phantom(written):
    phantom = thorax.build(ConfigDict({**thorax.DEFAULTS, 'patients': 25, 'size': 48, 'seed': 3}))
    source = pickle.loads(pickle.dumps(made(written)))
    assert len(source) == len(phantom) and source.labels == chexpert.LABELS and source.skipped == ()
    shots = {}
    for i, case in enumerate(phantom.cases):
        shots.setdefault((int(case.patient.rpartition('p')[2]) + 1, int(case.study.rpartition('_s')[2]) + 1),
                         []).append(i)
    at = [chexpert.LABELS.index(name) for name in labeller.LABELS]
    for k, case in enumerate(source.cases):
        part, patient, study, view = case.id.split('/')
        assert case.patient == patient and case.study == f'{part}/{patient}/{study}'
        assert case.split == {'train': 'train',
                              'valid': 'val'}[part] and (part == 'valid') == (int(patient[7:]) % 5 == 0)
        i = shots[int(patient[7:]), int(study[5:])][int(view[4]) - 1]
        record, want = source[k], phantom[i]
        np.testing.assert_array_equal(source.values[k, at], want['label'])
        np.testing.assert_array_equal(record['label'], source.values[k])
        assert record['image'].dtype == np.uint8 and record['image'].shape == (48, 48) and record['text'] == ''
        assert np.abs(record['image'].astype(int) - want['image']).mean() < 4  # JPEG
        assert case.groups['view'] == phantom.cases[i].groups['view'] and case.groups['sex'] in ('Male', 'Female')
    assert source.values.dtype == np.float32 and {-1.0, 0.0, 1.0} == {*source.values[~np.isnan(source.values)]}
    splits.archive(source.cases)


def test_raw_values_reach_the_policy_and_binary(written):
    source = made(written)
    record = labels.build(ConfigDict(labels.DEFAULTS)).apply(source[0])
    raw = source.values[0]
    np.testing.assert_array_equal(record['label'], raw == 1)
    np.testing.assert_array_equal(record['label_weight'], raw != -1)
    two = binary.build(ConfigDict({**binary.DEFAULTS, 'of': {**chexpert.DEFAULTS, 'name': 'chexpert',
                                                             'root': str(written)}, 'balance': False, 'one': False}))
    known = np.isin(source.values[:, EFFUSION], (0, 1))
    np.testing.assert_array_equal(two.targets['label'], source.values[known, EFFUSION])


def test_root_may_be_the_folder_above_and_prefixes_are_stripped(tree):
    want = made(tree)
    assert made(tree.parent).cases == want.cases
    for prefix in ('CheXpert-v1.0/', ''):
        rewrite(tree, [[row[0].replace('CheXpert-v1.0-small/', prefix), *row[1:]] for row in table(tree)])
        assert made(tree).cases == want.cases
    os.rename(tree, tree.parent / 'CheXpert-v1.0')
    assert made(tree.parent).cases == want.cases


def test_columns_may_stand_in_any_order(tree):
    want = made(tree)
    rows = table(tree)
    order = random.Random(1).sample(range(len(rows[0])), len(rows[0]))
    rewrite(tree, [[row[j] for j in order] for row in rows], encoding='utf-8-sig', end='\r\n')
    found = made(tree)
    assert found.cases == want.cases
    np.testing.assert_array_equal(found.values, want.values)


def test_laterals_labels_and_groups(tree):
    rows = table(tree)
    path = rows[1][0].replace('view1_frontal', 'view2_lateral').replace('view2_frontal', 'view9_lateral')
    rewrite(tree, [*rows, [path, 'Unknown', '90', 'Lateral', '', *rows[1][5:]]])
    shutil.copy(tree.parent / rows[1][0], tree.parent / path)
    assert len(made(tree)) == len(made(tree, frontal=False)) - 1
    last = [c for c in made(tree, frontal=False).cases if 'lateral' in c.id]
    assert last[0].groups == {'sex': '', 'view': 'lateral', 'age': '80+'}
    few = made(tree, labels=('Edema', 'Pleural Effusion'))
    np.testing.assert_array_equal(few.values, made(tree).values[:, [5, EFFUSION]])
    assert few[0]['label'].shape == (2,)


@given(st.integers(0, 130))
@settings(max_examples=50, deadline=None)
def test_age_groups(years):
    low, _, high = age_groups.group(f'{years}.0').replace('80+', '80-130').partition('-')
    assert int(low) <= years <= int(high)


def test_parts_of_the_split(tree):
    assert {c.split for c in made(tree, valid='test').cases} == {'train', 'test'}
    assert {c.split for c in made(tree, train='', valid='none').cases} == {''}
    assert {c.split for c in made(tree, train='none').cases} == {'val'}
    for wrong in (dict(train='training'), dict(labels=('Effusion',)), dict(labels=()), dict(labels=('Edema',) * 2),
                  dict(on_error='x')):
        with pytest.raises(errors.ConfigError, match=next(iter(wrong))[:5]):
            made(tree, **wrong)
    with pytest.raises(errors.BadData, match='no usable case'):
        made(tree, train='none', valid='none')
    with pytest.raises(errors.MissingInput, match='are empty'):
        made('')


def localized(tree, name='test', patient=64741):
    """A folder CheXpert of CheXlocalize with two patients, the first with a lateral."""
    root = tree.parent / 'CheXpert'
    shots = [f'{name}/patient{patient:05d}/study1/view1_frontal.jpg',
             f'{name}/patient{patient:05d}/study1/view2_lateral.jpg',
             f'{name}/patient{patient + 1:05d}/study1/view1_frontal.jpg']
    for shot in shots:
        (root / shot).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30), 99, np.uint8)).save(root / shot)
    rewrite(root, [['Path', *chexpert.LABELS], *[[shot, *'01000000000100'] for shot in shots]], f'{name}_labels.csv')
    return root


def test_chexlocalize_is_the_test_part(tree):
    root = localized(tree)
    source = made(tree, localize=str(root))
    tests = [i for i, c in enumerate(source.cases) if c.split == 'test']
    assert len(source) == len(made(tree)) + 2 == tests[-1] + 1
    assert source[tests[0]]['image'].shape == (20, 30) and source.cases[tests[0]].groups == {'view': 'frontal'}
    np.testing.assert_array_equal(np.flatnonzero(source.values[tests[1]]), [1, 11])
    assert len(made('', localize=str(root), frontal=False)) == 3
    assert made('', localize=str(tree.parent)).cases[0].patient == 'patient64741'  # or the folder above
    localized(tree, 'val', 5)  # as patients of valid.csv come again
    with pytest.raises(errors.BadData, match='are of one patient'):
        made(tree, localize=str(root), localize_val='val')


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp('chexlocalize')
    layout.write(folder, 5, 48, seed=3, localize=8)
    return folder


def test_masks_of_chexlocalize_are_those_of_the_phantom(drawn):
    phantom = thorax.build(ConfigDict({**thorax.DEFAULTS, 'patients': 13, 'size': 48, 'seed': 3}))
    source = pickle.loads(pickle.dumps(made(drawn, localize=str(drawn))))
    tests = [i for i, c in enumerate(source.cases) if c.split == 'test']
    shots = [i for i, c in enumerate(phantom.cases) if int(c.patient.rpartition('p')[2]) >= 5]
    assert len(tests) == len(shots) > 8
    at, drawings = [chexpert.LABELS.index(name) for name in labeller.LABELS], 0
    for k, i in zip(sorted(tests, key=lambda k: source.cases[k].patient), shots):
        record, want = source[k], phantom[i]
        assert np.abs(record['image'].astype(int) - want['image']).mean() < 4  # JPEG
        np.testing.assert_array_equal(source.values[k, at], want['truth'])
        found = {int(label): mask for (label, *_), mask in zip(record['boxes'], record['masks'], strict=True)}
        assert {*found} == {at[int(label)] for label in want['boxes'][:, 0]}
        for label, mask in found.items():
            np.testing.assert_array_equal(mask, want['masks'][want['boxes'][:, 0] == at.index(label)].any(0))
        np.testing.assert_array_equal(record['boxes'], boxes_of_masks([*found], [*found.values()]))
        drawings += len(found)
    assert drawings > 8 and chexpert.LABELS.index('Lung Opacity') in {int(b[0]) for k in tests
                                                                      for b in source[k]['boxes']}
    assert source[0]['masks'].shape == (0, 48, 48)  # of training images nothing is drawn
    assert 'masks' not in made(drawn, localize=str(drawn), masks=False)[tests[0]]
    few = made('', localize=str(drawn / 'CheXpert'), labels=('Lung Opacity',))
    assert {b[0] for k in range(len(few)) for b in few[k]['boxes']} == {0}


def test_maps_are_scored_against_the_masks(drawn, tmp_path, monkeypatch):
    def data(**more):
        given = dict(source=dict(name='chexpert', root='', localize=str(drawn)), transforms=('image', 'labels'),
                     image=dict(size=24, fit='squash'), split=dict(fractions=(0.0, 0.0, 1.0)))
        return pool.build(config.resolve(ConfigDict(dict(data=given | more))).data)
    own = data()
    rois = localisation_evaluator._regions(own, range(len(own.source.cases)))
    boxed = localisation_evaluator._regions(data(source=dict(name='chexpert', root='', localize=str(drawn),
                                                             masks=False)), range(len(own.source.cases)))
    assert len(rois) > 8 and not boxed
    for roi in rois:
        frame = localisation.roi_mask(roi.box, 24)
        assert roi.mask.dtype == bool and roi.mask.shape == (24, 24) and (roi.mask & frame).sum() > 0.8 * roi.mask.sum()
    # they are not the boxes
    assert np.mean([roi.mask.sum() / localisation.roi_mask(roi.box, 24).sum() for roi in rois]) < 0.95
    prepare.prepare(own.config, tmp_path / 'made')
    (tmp_path / 'data').mkdir()
    shutil.copytree(drawn, tmp_path / 'data', dirs_exist_ok=True)
    for file in (tmp_path / 'data').rglob('*.jpg'):  # prepared data need them no longer
        file.unlink()
    monkeypatch.setattr(reader, 'MAX_STAT_CASES', 0)
    stored = data(source=dict(name='chexpert', root='', localize=str(tmp_path / 'data')), cache='disk',
                  folder=str(tmp_path / 'made'))
    for a, b in zip(rois, localisation_evaluator._regions(stored, range(len(own.source.cases))), strict=True):
        np.testing.assert_array_equal(a.mask, b.mask)


@pytest.mark.parametrize('spoil, what', [
    (lambda told: '{', 'no file of masks|not a file of masks'), (lambda told: [], 'not a file of masks'),
    (lambda told: {'../x': told[min(told)]}, 'is no image'),
    (lambda told: {min(told): {'Gout': told[min(told)]['Edema']}}, 'no finding'),
    (lambda told: {min(told): {'Edema': {'size': [48, 48]}}}, 'counts'),
    (lambda told: {min(told): 3}, 'not a file of masks'),
])
def test_spoilt_files_of_masks(drawn, tmp_path, spoil, what):
    path = shutil.copytree(drawn, tmp_path / 'spoilt') / 'CheXlocalize' / 'gt_segmentations_test.json'
    told = spoil(json.loads(path.read_text()))
    path.write_text(told if isinstance(told, str) else json.dumps(told))
    with pytest.raises(errors.BadData, match=rf'gt_segmentations_test\.json.*({what}).*masks=False'):
        made('', localize=str(tmp_path / 'spoilt'))
    assert made('', localize=str(tmp_path / 'spoilt'), masks=False)[0]['boxes'].shape == (0, 5)


def test_masks_that_do_not_fit_their_image(drawn, tmp_path):
    path = shutil.copytree(drawn, tmp_path / 'spoilt') / 'CheXlocalize' / 'gt_segmentations_test.json'
    told, source = json.loads(path.read_text()), made('', localize=str(drawn))
    case = next(c.id for i, c in enumerate(source.cases) if len(source[i]['masks']))
    name = case[5:-4].replace('/', '_')
    for mask, what in (({'size': [48, 47], 'counts': told[name]['Edema']['counts']}, 'masks have 47 x 48 pixels, the '
                                                                                     'file has 48 x 48'),
                       ({'size': [48, 48], 'counts': '3'}, 'covers 3 pixels'),
                       ({'size': [48, 48], 'counts': ' '}, 'cannot be read')):
        path.write_text(json.dumps(told | {name: {'Edema': mask}}))
        with pytest.raises(errors.BadData, match=f'{case}.*{what}'):
            spoilt = made('', localize=str(tmp_path / 'spoilt'))
            spoilt[[c.id for c in spoilt.cases].index(case)]
        assert [name for name, _ in made('', localize=str(tmp_path / 'spoilt'), on_error='skip').skipped] == [case]


def test_airspace_opacity_is_lung_opacity(drawn, tmp_path):
    root = shutil.copytree(drawn, tmp_path / 'tree') / 'CheXpert'
    (root / 'test_labels.csv').write_text((root / 'test_labels.csv').read_text().replace('Lung Opacity',
                                                                                         'Airspace Opacity', 1))
    np.testing.assert_array_equal(made('', localize=str(root)).values, made('', localize=str(drawn)).values)


@pytest.mark.parametrize('spoil, what', [
    (lambda rows: [row[:-1] for row in rows], 'no column "Support Devices"'),
    (lambda rows: [*rows, rows[2]], 'a second time'),
    (lambda rows: changed(rows, 3, 'Edema', '2.0'), 'column "Edema" of train/patient'),
    (lambda rows: changed(rows, 3, 'Path', '../train/patient00001/study1/view1_frontal.jpg'), 'column "Path" is not'),
    (lambda rows: changed(rows, 3, 'Path', 'train/../../x_frontal.jpg'), 'column "Path" is not'),
    (lambda rows: changed(rows, 3, 'Age', 'old'), 'no number of years'),
    (lambda rows: changed(rows, 3, 'Frontal/Lateral', 'Lateral'), 'is not what its name says'),
    (lambda rows: [*rows[:3], rows[3][:-1], *rows[4:]], 'cells under'),
])
def test_spoilt_tables(tree, spoil, what):
    rewrite(tree, spoil(table(tree)))
    with pytest.raises(errors.BadData, match=what):
        made(tree)
    if 'column "S' not in what and 'cells' not in what:
        kept = made(tree, on_error='skip')
        assert len(kept.skipped) == 1 and what in kept.skipped[0][1]
        assert len(kept) == len(kept.values) == len(kept.files)


def test_errors_quote_no_cell_of_a_person(tree):
    rewrite(tree, changed(changed(table(tree), 3, 'Age', 'ninety-one'), 3, 'Sex', 'somebody'))
    with pytest.raises(errors.BadData) as found:
        made(tree)
    assert 'ninety' not in str(found.value) and 'somebody' not in str(found.value)


def test_damaged_files_are_found_when_they_are_read(tree):
    names = [c.id for c in made(tree).cases]
    (tree / names[0]).write_bytes((tree / names[0]).read_bytes()[:300])
    os.remove(tree / names[1])
    (tree / names[2]).write_bytes(b'')
    source = made(tree)
    for i, error in enumerate((errors.BadData, errors.MissingInput, errors.BadData)):
        with pytest.raises(error, match=names[i].rpartition('/')[0]):
            source[i]
    kept = made(tree, on_error='skip')
    assert [c.id for c in kept.cases] == names[3:] and len(kept.skipped) == 3
    np.testing.assert_array_equal(kept.values, source.values[3:])
    os.remove(tree / 'valid.csv')
    with pytest.raises(errors.MissingInput, match='holds no valid.csv'):
        made(tree)


@pytest.mark.slow
def test_a_table_as_long_as_the_real_one_is_known_in_seconds(tmp_path, monkeypatch):
    """223,414 rows and not one image: nothing looks for files at the start."""
    rng, rows, patient = random.Random(0), [','.join(chexpert.HEADER)], 0
    while len(rows) <= 223_414:
        patient += 1
        for study in range(1, rng.randrange(1, 7)):
            for view, side in enumerate(('frontal', 'lateral')[:1 + (rng.random() < 0.17)], 1):
                path = f'CheXpert-v1.0-small/train/patient{patient:05d}/study{study}/view{view}_{side}.jpg'
                rows.append(f'{path},Female,{rng.randrange(18, 91)},{side.title()},AP,'
                            + ','.join(rng.choices(('1.0', '0.0', '-1.0', ''), k=14)))
    del rows[223_415:]
    (tmp_path / 'train.csv').write_text('\n'.join(rows) + '\n')
    begin = time.process_time()
    source = made(tmp_path, valid='none')
    assert time.process_time() - begin < 30  # 3 to 8 s, by how busy the machine is
    assert len(source) == sum('frontal' in row for row in rows) and source.values.shape == (len(source), 14)
    i = len(source) - 1
    last = next(row for row in reversed(rows) if 'frontal' in row).split(',')
    assert f'CheXpert-v1.0-small/{source.cases[i].id}' == last[0]
    np.testing.assert_array_equal(source.values[i], [float(cell or 'nan') for cell in last[5:]])
