"""Masks of a second reader: what they say beside a network, in worked numbers."""
import csv
import types

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import contracts, errors
from jaxkd.data import volume
from jaxkd.data.dataset import Dataset
from jaxkd.data.partition import Partition
from jaxkd.data.sources import dualphase, masks
from jaxkd.data.transform import Transforms
from jaxkd.evaluators import segmentation
from jaxkd.inference import scans
from jaxkd.report import run_folder
from jaxkd.report import segmentation as tables
from tests.report.test_segmentation import make

HP = ConfigDict({**segmentation.DEFAULTS, 'examples': (0, 0, 0, 0)})


def square(column, rows=4):
    mask = np.zeros((12, 12), np.uint8)
    mask[4:4 + rows, column:column + 4] = 255
    return mask


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def pictures(root, seconds, folder='all', second='all/{}_r2.png'):
    """Three images whose first reader draws a square of 4 x 4 pixels; seconds: {image: mask of the second reader}."""
    for i, case in enumerate('abc'):
        save(root / folder / f'{case}.png', np.full((12, 12), 50 + i, np.uint8))
        save(root / ('all' if folder == 'all' else 'masks') / f'{case}{"_r1" * (folder == "all")}.png', square(3))
    for case, mask in seconds.items():
        save(root / second.format(case), mask)


def build(root, **options):
    return masks.build(ConfigDict({**masks.DEFAULTS, 'root': str(root), **options}))


def measured(source, monkeypatch):
    """The table of a network that always draws what the first reader drew."""
    monkeypatch.setattr(scans, 'predict_scan', lambda predict, data, scan, hp: (
        record := scans.scan_record(predict, data, scan)[0], record['label'], np.zeros(0)))
    transforms = Transforms((contracts.Transform(lambda r: {**r, 'image': r['image'][..., None] / np.float32(255)},
                                                 inverse=lambda before, after: lambda values: values),), (), {}, {})
    split = {case.patient: 'test' for case in source.cases}
    data = Dataset(ConfigDict(dict(boxes=1, cache='none')), source,
                   Partition(source.cases, split, dict(train='train', val='val', test='test')), transforms)
    predict = types.SimpleNamespace(data=data, network=types.SimpleNamespace(inputs=('image',)))
    return segmentation.report(predict, HP, 20, 0)


READERS = dict(images='all', masks='all', suffix='_r1', second_suffix='_r2')


def test_a_second_reader_is_measured_against_the_first(tmp_path, monkeypatch, capsys):
    pictures(tmp_path, {'a': square(3), 'b': square(4)})  # equal, and one pixel aside: 2 * 12 / 32 = 0.75
    source = build(tmp_path, **READERS)
    assert len(source) == 3 and '2 of 3 cases have masks of a second reader' in capsys.readouterr().out
    assert source.second_reader(2) is None and {*source[0]} == {'image', 'label', 'spacing', 'case'}
    table, predictions, _ = measured(source, monkeypatch)
    assert table['dice']['value'] == 1 and table['dice']['n_cases'] == 3
    assert table['second_reader/dice']['value'] == table['second_reader/dice/lesion']['value'] == 0.875
    assert table['second_reader/dice']['n_cases'] == 2 and table['second_reader/hd95_voxel/lesion']['value'] == 0.5
    assert not any('second' in k for k in predictions['test'].measures)


def test_without_a_second_reader_nothing_is_said(tmp_path, monkeypatch):
    pictures(tmp_path, {})
    source = build(tmp_path, images='all', masks='all', suffix='_r1')
    assert not any('second' in k for k in measured(source, monkeypatch)[0])
    with pytest.raises(errors.MissingInput, match='no case has a mask of a second reader, "_r2"'):
        build(tmp_path, **READERS)


@pytest.mark.parametrize('options, second', [
    (dict(second_masks='masks2'), 'masks2/{}.png'),
    (dict(second_masks='masks2', second_suffix='_b'), 'masks2/{}_b.png'),
    (dict(second_suffix='_2'), 'masks/{}_2.png')])
def test_where_the_masks_of_a_second_reader_lie(tmp_path, options, second, capsys):
    pictures(tmp_path, {'b': square(4)}, 'images', second)
    source = build(tmp_path, **options)
    assert [case.id for case in source.cases] == ['a', 'b', 'c']
    np.testing.assert_array_equal(source.second_reader(1), square(4) // 255)
    np.testing.assert_array_equal(source[1]['label'], square(3) // 255)
    assert 'unused' not in capsys.readouterr().out


def test_all_pictures_in_the_root(tmp_path, capsys):
    pictures(tmp_path / 'data', {'a': square(4)})
    root = (tmp_path / 'data' / 'all').rename(tmp_path / 'flat')
    where = dict(images='', masks='', suffix='_r1')
    assert len(build(root, **where, exclude='.*_r2')) == 3
    capsys.readouterr()
    source = build(root, **where, second_suffix='_r2')
    assert len(source) == 3 and source.second_reader(0) is not None and 'unused' not in capsys.readouterr().out


def test_masks_of_a_second_reader_that_are_wrong(tmp_path):
    pictures(tmp_path, {'a': square(3), 'b': square(3)[:, :10]})
    with pytest.raises(errors.BadData, match='b_r2.png cannot be used: it is 10 x 12, its image 12 x 12'):
        build(tmp_path, **READERS)
    assert build(tmp_path, **READERS, on_error='skip').skipped[0][0] == 'b'
    save(tmp_path / 'all' / 'b_r2.png', square(3) // 2)
    with pytest.raises(errors.BadData, match='b_r2.png cannot be used: its grey values are 0, 127'):
        build(tmp_path, **READERS)
    with pytest.raises(errors.ConfigError, match='second_masks = "all" is no folder of its own'):
        build(tmp_path, images='all', masks='all', suffix='_r1', second_masks='all')


GRID = np.diag([1.0, 1.0, 2.0, 1.0])


def build_dualphase(root, second, affine=GRID, white=1, **options):
    """One case whose first reader draws a cube of 4 voxels a side; second: the mask of the second reader."""
    cube = np.zeros((12, 12, 12), np.uint8)
    cube[4:8, 4:8, 4:8] = white
    (root / 'c0').mkdir(exist_ok=True)
    for name, voxels, grid in (('nct', cube.astype(np.int16), GRID), ('label', cube, GRID),
                               ('label_2', second, affine)):
        volume.save(root / 'c0' / f'{name}.nii.gz', voxels, volume.Volume(voxels, grid))
    with open(root / 'cases.csv', 'w', newline='') as f:
        csv.writer(f).writerows([('case_id', 'patient_id', 'pe', 'split'), ('c0', 'p0', '', '')])
    options = {'second_label': 'label_2', **options}
    return dualphase.build(ConfigDict({**dualphase.DEFAULTS, 'root': str(root), **options}))


@pytest.mark.parametrize('white', [1, 255])
def test_volumes(tmp_path, white):
    second = np.zeros((12, 12, 12), np.uint8)
    second[4:8, 4:8, 5:9] = white  # one slice, 2 mm, aside: 2 * 48 / 128
    source = build_dualphase(tmp_path, second, white=white)
    assert {*source[0]} == {'nct', 'label', 'pe', 'case'} and len(source.paths(0)) == 3
    truth = scans.Truth(source[0]['label'].voxels, volume.spacing(source[0]['label'].affine), lambda x: x)
    data, scan = types.SimpleNamespace(source=source), scans.Scan('c0', 'p0', {}, (0,))
    row = segmentation._agreement(data, scan, truth, HP)
    assert row['second_reader/dice/embolus'] == 0.75 and row['second_reader/hd95_mm/embolus'] == 2
    assert row['second_reader/volume_error_ml/embolus'] == 0


def test_what_the_second_reader_did_not_know_does_not_count(tmp_path):
    second = np.zeros((12, 12, 12), np.uint8)
    second[4:6, 4:8, 4:8], second[6:8, 4:8, 4:8] = 1, 255
    source = build_dualphase(tmp_path, second)
    truth = scans.Truth(source[0]['label'].voxels, None, lambda x: x)
    row = segmentation._agreement(types.SimpleNamespace(source=source), scans.Scan('c0', 'p0', {}, (0,)), truth, HP)
    assert row['second_reader/dice/embolus'] == 1


def test_the_masks_of_both_readers_have_names(tmp_path):
    second = np.ones((12, 12, 12), np.uint8)
    build_dualphase(tmp_path, second)
    (tmp_path / 'c0' / 'label.nii.gz').rename(tmp_path / 'c0' / 'Label_1.nii.gz')
    options = dict(dualphase.DEFAULTS, root=str(tmp_path))
    source = dualphase.build(ConfigDict({**options, 'label': 'label_1', 'second_label': 'label_2'}))
    assert source[0]['label'].voxels.sum() == 64 and source.second_reader(0).voxels.sum() == 12**3
    for names in (dict(label='label_1', second_label='label_1'), dict(label='nct'), dict(label='')):
        with pytest.raises(errors.ConfigError, match='must be names of their own'):
            dualphase.build(ConfigDict({**options, **names}))


def test_both_readers_share_a_grid(tmp_path):
    with pytest.raises(errors.BadData, match='label_2.nii.gz cannot be used: it is not on the grid of the mask of the'):
        build_dualphase(tmp_path, np.ones((12, 12, 12), np.uint8), np.diag([1.0, 1.0, 3.0, 1.0]))
    with pytest.raises(errors.MissingInput, match='dualphase: no case has a mask of a second reader, "label_3"'):
        build_dualphase(tmp_path, np.ones((12, 12, 12), np.uint8), second_label='label_3')


def test_the_report_shows_the_second_reader_below_the_stages(tmp_path):
    run = run_folder.read(make(tmp_path, elsewhere=False, n=8))
    before = tables.by_class(run)
    assert 'second reader' not in before
    for entry in run.summary['stages'].values():
        entry['test']['best'] |= {f'segmentation/second_reader/{k}': dict(value=0.912, low=0.9, high=0.93, n_cases=7)
                                  for k in ('dice', 'dice/RV')}
    after = tables.by_class(run)
    assert after.count('<th>second reader</th>') == 3 and '0.912' in after and '<small>n = 7</small>' in after
