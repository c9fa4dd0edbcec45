import os
import pathlib
import re

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import config, errors
from jaxkd.data import labelled, volume
from jaxkd.data.pool import DataPool
from jaxkd.runtime import log
from jaxkd.state import Mean


def masks_of(root, label, shape, n=6):
    """n images of the same mask, values 0, 1, 2."""
    for name in ('images', 'masks'):
        (root / name).mkdir(exist_ok=True)
    for i in range(n):
        rng = np.random.default_rng(i)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(root / 'images' / f'p{i}.png')
        Image.fromarray(label.astype(np.uint8)).save(root / 'masks' / f'p{i}.png')


def dataset(root, **image):
    c = ConfigDict(dict(stages=('unet',), data=dict(
        source=dict(name='masks', root=str(root), labels=('background', 'organ', 'tumour'), values=(0, 1, 2)),
        transforms=('image',), image=image, split=dict(fractions=(0.7, 0.1, 0.2))),
        unet=dict(inputs=('image',), model=dict(name='unet', channels=(4, 8)), method=dict(name='dense_kd'),
                  optim=dict(lr=1e-3), batch=2, length='1 step', select='segmentation/dice',
                  evals=dict(segmentation={}))))
    return DataPool().get(config.resolve(c).data)


def test_a_training_part_without_a_label_is_refused(tmp_path):
    masks_of(tmp_path, np.zeros((32, 32)), (32, 32))
    data = dataset(tmp_path, size=16, fit='squash')
    assert labelled.is_dense(data)
    with pytest.raises(errors.BadData, match='unet: in none of the . training cases of masks anything is labelled as '
                                             'organ, tumour, the first p'):
        labelled.check(data, 'unet')


@pytest.mark.parametrize('rows, lost', [((8, 24), ''), ((0, 32), '50.6 % of organ'), ((0, 16), '50.6 % of organ'),
                                        ((0, 8), '100.0 % of organ')])
def test_a_crop_says_what_it_cuts_off(tmp_path, rows, lost, capsys):
    label = np.zeros((32, 32), int)
    label[slice(*rows), 10:20] = 1
    label[15:17, 15:17] = 2
    masks_of(tmp_path, label, (32, 32))
    data = dataset(tmp_path, size=16, resize=32, fit='crop')  # rows and columns 8 to 23
    capsys.readouterr()
    data.pool.report_crops(data)
    out = capsys.readouterr().out
    assert ('of the labelled places of 4 training cases the transforms cut off ' + lost in out) if lost else not out
    assert 'tumour' not in out


def test_a_squashed_image_loses_nothing(tmp_path, capsys):
    label = np.ones((50, 30), int)
    masks_of(tmp_path, label, (50, 30))
    data = dataset(tmp_path, size=16, fit='squash')
    data.pool.report_crops(data)
    assert 'cut off' not in capsys.readouterr().out


def native_slices(root):
    """h5 slices of 216 x 256 pixels, of which the crop of 72 of 128 shows columns 67 to 188, rows 47 to 168."""
    h5py = pytest.importorskip('h5py')
    (root / 'slices').mkdir()
    for patient in range(1, 11):
        label = np.zeros((216, 256), np.uint8)
        label[100:120, 50:90], label[100:120, 90:120], label[100:120, 120:150] = 1, 2, 3
        image = np.random.default_rng(patient).random(label.shape, np.float32)
        for z in range(2):
            with h5py.File(root / 'slices' / f'patient{patient:03d}_frame01_slice_{z}.h5', 'w') as f:
                f['image'], f['label'] = image, label


def test_the_crop_of_the_config_on_slices_of_native_shape(tmp_path, capsys):
    native_slices(tmp_path)
    c = config.load('configs/sikd_acdc.py:slices', [f'data.source.root={tmp_path}', 'data.source.kind=slices'])
    data = DataPool().get(c.data)
    capsys.readouterr()
    for _ in range(2):  # said once
        data.pool.report_crops(data)
    n = len(data.partition.train_indices())
    assert capsys.readouterr().out == (f'slices: of the labelled places of {n} training cases the transforms cut off '
                                       '42.5 % of RV\n')


def test_the_crop_of_the_config_on_real_slices(capsys):
    beside = pathlib.Path(__file__).parents[3] / 'shared' / 'data'
    root = pathlib.Path(os.environ.get('JAXKD_REAL_DATA', beside)) / 'acdc_h5'
    if not root.is_dir():
        pytest.skip(f'no acdc_h5 in {root.parent} (JAXKD_REAL_DATA)')
    options = ['data.source.kind=slices', *(f'data.source.{part}=' for part in ('train', 'val', 'test')),
               'data.split.fractions=(1.0,0.0,0.0)', 'data.split.stratify=()']
    c = config.load('configs/sikd_acdc.py:slices', [f'data.source.root={root}', *options])
    data = DataPool().get(c.data)
    data.pool.report_crops(data)
    assert re.search(r'the transforms cut off \d\.\d % of RV', capsys.readouterr().out)


def test_a_crop_around_a_mask_says_what_it_cuts_off(tmp_path, capsys):
    """ct: 16 x 3 x 3 mm in a crop of 8 mm; t1, on another grid: 4 mm."""
    for i in range(6):
        for key, side, box in (('ct', 1.0, np.s_[2:18, 9:12, 9:12]), ('t1', 2.0, np.s_[4:6, 4:6, 4:6])):
            voxels = np.random.default_rng(i).integers(0, 100, (int(20 / side),) * 3).astype(np.int16)
            mask = np.zeros(voxels.shape, np.uint8)
            mask[box] = 1
            for name, array in ((key, voxels), (f'roi_{key}', mask)):
                (tmp_path / f'c{i}').mkdir(exist_ok=True)
                volume.save(tmp_path / f'c{i}' / f'{name}.nii.gz', array,
                            volume.Volume(array, np.diag([side, side, side, 1.0])))
    rows = ['case_id,patient_id,cls', *(f'c{i},p{i},{i % 2}' for i in range(6))]
    (tmp_path / 'cases.csv').write_text('\n'.join(rows))
    keys, size = ('ct', 't1'), (8, 8, 8)
    data = DataPool().get(config.resolve(ConfigDict(dict(data=dict(
        source=dict(name='paired', root=str(tmp_path), modalities=keys, tasks=(), classes=()), transforms=('volume',),
        augment=('crop',), volume=dict(keys=keys, spacing=(1.0, 1.0, 1.0), size=size, margin=(2, 2, 2)),
        crop=dict(keys=keys, size=size))))).data)
    capsys.readouterr()
    data.pool.report_crops(data)
    assert capsys.readouterr().out == ('paired: of the labelled places of 4 training cases the transforms cut off '
                                       '50.0 % of the mask of ct\n')


def test_a_loss_of_0_from_the_first_step_is_an_error(tmp_path):
    def written(losses, resumed=0):
        writer = log.MetricWriter(tmp_path, 'unet', 4, 2, 2, ['a'], resumed, tensorboard=False)
        for step, loss in enumerate(losses, 1 + resumed):
            writer.add(step, {'loss': Mean(np.float32(loss), np.float32(1))}, [0], 0.0)
        writer.state()
        return writer
    written([0, 0, 0.1]).check_loss(3)
    written([0, 0], resumed=2).check_loss(4)
    with pytest.raises(errors.BadData, match='unet: the loss was 0 in each of the first 3 steps'):
        written([0, 0, 0]).check_loss(3)
