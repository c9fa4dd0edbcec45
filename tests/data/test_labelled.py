import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import config, errors
from jaxkd.data import labelled
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
