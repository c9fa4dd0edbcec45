import os
import pathlib
import re
import types

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import config, errors
from jaxkd.data import labelled, volume
from jaxkd.data.pool import DataPool
from jaxkd.data.transforms import patch
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
        unet=dict(inputs=('image',), model=dict(name='unet', channels=(4, 8)), method=dict(name='segmentation'),
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


def dense_scans(root, size, foreground):
    """6 scans of 8 x 4 x 4 voxels, of which one is an embolus."""
    label = np.zeros((8, 4, 4), np.int16)
    label[2, 1, 1] = 1
    for i in range(6):
        voxels = np.random.default_rng(i).integers(0, 100, label.shape).astype(np.int16)
        for name, array in (('nct', voxels), ('label', label)):
            (root / f'c{i}').mkdir(exist_ok=True)
            volume.save(root / f'c{i}' / f'{name}.nii.gz', array, volume.Volume(array, np.eye(4)))
    (root / 'cases.csv').write_text('\n'.join(['case_id,patient_id,pe,split', *(f'c{i},p{i},,' for i in range(6))]))
    return DataPool().get(config.resolve(ConfigDict(dict(data=dict(
        source=dict(name='dualphase', root=str(root), label_on='nct'), transforms=('scan',),
        augment=('patch', 'affine3d'),
        scan=dict(keys=('nct',), windows=((-100.0, 200.0),), spacing=(0.0, 0.0, 0.0)),
        patch=dict(keys=('nct',), size=size, foreground=foreground), affine3d=dict(keys=('nct',)))))).data)


@pytest.mark.parametrize('size, foreground, held', [
    ((8, 4, 4), 0.0, None), ((9, 6, 4), 0.0, None),  # a patch of all of the scan, or larger
    ((4, 4, 4), 1.0, None),  # always one around the one voxel
    ((4, 4, 4), 0.0, 3 / 5),  # it begins at 0 to 4, of which 0, 1 and 2 hold x = 2
    ((1, 4, 4), 0.0, 1 / 8)])
def test_a_random_patch_says_how_much_it_holds(tmp_path, size, foreground, held, capsys):
    data = dense_scans(tmp_path, size, foreground)
    capsys.readouterr()
    data.pool.report_crops(data)
    out = capsys.readouterr().out
    assert 'cut off' not in out  # over the epochs nothing is
    if held is None:
        assert out == ''
        return
    share = re.fullmatch(r'dualphase: of the labelled places of a training case a random patch holds (.*) % of embolus '
                         r'on average \(16 patches of 4 cases\), other patches the others\n', out)
    assert abs(float(share[1]) / 100 - held) < 0.19  # three standard deviations of 64 draws


@pytest.mark.parametrize('shape, size', [((7, 5, 4), (3, 5, 2)), ((6, 6, 6), (2, 3, 6)), ((3, 9, 5), (4, 4, 4))])
def test_every_voxel_is_in_reach_of_a_random_patch(shape, size):
    """All places that can be drawn together hold all voxels, each patch with as many as fit."""
    spare = np.abs(np.subtract(shape, size)) + 1
    seen = np.zeros(shape[::-1], bool)
    number = np.arange(seen.size, dtype=np.int32).reshape(*seen.shape, 1)
    for place in np.ndindex(*spare):
        draws = [np.ones(2), (np.array(place) + 0.5) / spare]
        rng = types.SimpleNamespace(random=lambda n, draws=iter(draws): next(draws))
        cut = patch.apply({'ct': number, 'label': np.ones(seen.shape, np.uint8)}, rng, ('ct',), 'label', size, 0.0)
        inside = cut['label'] == 1
        assert inside.sum() == np.minimum(shape, size).prod()
        seen.flat[cut['ct'][inside]] = True
    assert seen.all()


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
