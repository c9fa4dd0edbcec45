"""A trained student as a command: a scan in, a label map on the grid of its file out."""
import sys
import types

import flax.linen as nn
import nibabel
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import checkpoint, config, predict
from jaxkd.contracts import Transform
from jaxkd.data import volume
from jaxkd.data.sources.shared import slice_stacks
from jaxkd.data.transforms.volume import standard
from jaxkd.data.volume import FIXED
from jaxkd.state import TrainState

RNG = np.random.default_rng(0)
seen = []  # shapes that the network was compiled for


class Threshold(nn.Module):
    """Lesion where the (mean) input is above `at`: what it says of a scan is known beforehand."""
    outputs: int

    @nn.compact
    def __call__(self, inputs, train=False):
        x = [inputs[k] / FIXED if inputs[k].dtype == np.int16 else inputs[k] for k in sorted(inputs) if k != 'present']
        seen.append(x[0].shape)
        x = sum(a.mean(-1, keepdims=True) for a in x) / len(x)
        logits = 100 * (x - self.param('at', nn.initializers.constant(0.5), ()))
        return {'logits': np.arange(self.outputs, dtype=np.float32) * logits}


class Pooled(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, inputs, train=False):
        x = next(iter(inputs.values())).mean((1, 2))
        return {'logits': nn.Dense(self.outputs)(x)}


for name, module in (('threshold', Threshold), ('pooled', Pooled)):
    sys.modules[f'deployed.{name}'] = types.SimpleNamespace(DEFAULTS={},
                                                            build=lambda hp, outputs, dtype, m=module: m(outputs))

SCANS = dict(source=dict(name='paired'), transforms=('pseudo_nct', 'scan'), augment=('patch',),
             scan=dict(keys=('nct', 'ctpa'), spacing=(0.0, 0.0, 0.0), windows=((0.0, 100.0), (0.0, 100.0))),
             patch=dict(keys=('nct', 'ctpa'), size=(8, 6, 4)))
SLICES = dict(source=dict(name='acdc'), transforms=('image',), image=dict(size=24, fit='squash'))


@pytest.fixture
def stage(tmp_path):
    """Writes the folder of a trained stage: step 1 is the best, with the threshold 0.5; step 2 the last, with 0.9."""
    def write(data, inputs, labels=('background', 'lesion'), model='deployed.threshold'):
        hp = dict(inputs=inputs, model=dict(name=model), method=dict(name='supervised'))
        run = config.resolve(ConfigDict(dict(stages=('student',), data=data, student=hp)))
        folder = tmp_path / 'checkpoints' / 'student'
        saver = checkpoint.Checkpointer(folder)
        saver.write_metadata(dict(name='student', config=run.student.to_dict(),
                                  data=config.stage_data(run, 'student').to_dict(), labels=labels, assets={}))
        for step, at, score in ((1, 0.5, 0.9), (2, 0.9, 0.1)):
            state = TrainState(np.int32(step), {'student': {'at': np.float32(at)}}, {'student': {}}, {}, {}, {}, {})
            saver.save(step, state, {}, score)
        saver.close()
        return str(folder)
    return write


def ct(path, order=(0, 1, 2), signs=(1, 1, 1), sides=(1.0, 1.5, 3.0), shape=(21, 17, 10)):
    """A NIfTI file of HU with axes in any order and direction, and its voxels."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, list(order)] * np.array(signs) * np.array(sides)[list(order)]
    affine[:3, 3] = -30, 45, 260
    voxels = RNG.integers(0, 100, [shape[i] for i in order]).astype(np.int16)
    voxels[voxels == 50] = 51  # away from the threshold
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return voxels, affine


@pytest.mark.parametrize('order, signs', [((0, 1, 2), (1, 1, 1)), ((0, 1, 2), (-1, -1, 1)), ((2, 0, 1), (1, -1, 1)),
                                          ((1, 2, 0), (-1, -1, -1))])
def test_a_volume_keeps_its_grid(stage, tmp_path, order, signs, capsys):
    voxels, affine = ct(tmp_path / 'scan.nii.gz', order, signs)
    seen.clear()
    code = predict.main(['--stage', stage(SCANS, ('nct',)), '--input', f'nct={tmp_path / "scan.nii.gz"}', '--mirror',
                         '--batch', '3', '--output', str(tmp_path / 'seg.nii.gz'), '--probability',
                         str(tmp_path / 'prob.nii')])
    assert code == 0
    found, chance = nibabel.load(tmp_path / 'seg.nii.gz'), nibabel.load(tmp_path / 'prob.nii')
    np.testing.assert_array_equal(np.asarray(found.dataobj), voxels > 50)
    assert found.get_data_dtype() == np.uint8 and chance.get_data_dtype() == np.float32
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    np.testing.assert_allclose(chance.affine, affine, atol=1e-5)
    np.testing.assert_allclose(chance.get_fdata(), 1 / (1 + np.exp(50.0 - voxels)), atol=0.01)  # value = HU / 100
    assert {shape[1:4] for shape in seen} == {(4, 6, 8)}, 'windows are as large as the patches of training'
    assert f'lesion {(voxels > 50).sum() * 4.5e-3:.4g} ml' in capsys.readouterr().out


def test_another_spacing_and_no_patches(stage, tmp_path):
    """A ball keeps its place and size through the network's grid, which is all one window."""
    voxels, affine = ct(tmp_path / 'scan.nii.gz', sides=(1.0, 1.0, 1.0), shape=(40, 36, 30))
    ball = np.linalg.norm(np.indices(voxels.shape).T - (18, 20, 12), axis=-1).T < 9
    nibabel.save(nibabel.Nifti1Image((100 * ball).astype(np.int16), affine), tmp_path / 'scan.nii.gz')
    data = dict(SCANS, augment=(), scan=dict(SCANS['scan'], spacing=(1.7, 1.5, 2.0)))
    seen.clear()
    assert predict.main(['--stage', stage(data, ('nct',)), '--input', f'nct={tmp_path / "scan.nii.gz"}',
                         '--output', str(tmp_path / 'seg.nii')]) == 0
    found = volume.read(tmp_path / 'seg.nii').voxels > 0
    assert found.shape == ball.shape and 2 * (found & ball).sum() / (found.sum() + ball.sum()) > 0.93
    assert {shape[1:4] for shape in seen} == {(15, 24, 24)}


def test_all_inputs_are_brought_to_the_grid_of_the_first(stage, tmp_path):
    a, _ = ct(tmp_path / 'a.nii.gz')
    b, _ = ct(tmp_path / 'b.nii.gz', (0, 1, 2), (1, 1, 1))
    assert predict.main(['--stage', stage(SCANS, ('nct', 'ctpa')), '--output', str(tmp_path / 'seg.nii.gz'),
                         '--input', f'ctpa={tmp_path / "b.nii.gz"}', '--input', f'nct={tmp_path / "a.nii.gz"}']) == 0
    found, sure = volume.read(tmp_path / 'seg.nii.gz').voxels, a + b != 100
    np.testing.assert_array_equal(found[sure], (a + b > 100)[sure])


@pytest.mark.parametrize('source', ['acdc', 'mnms'])
def test_a_source_that_scales_its_volumes(stage, tmp_path, source):
    """What the source did to values before any transform is done here too: it clips 1.4 % of bright voxels away."""
    voxels, _ = ct(tmp_path / 'scan.nii.gz')
    voxels.flat[::70] = 20_000
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / 'scan.nii.gz')
    data = dict(source=dict(name=source), transforms=('scan',),
                scan=dict(keys=('image',), windows=((),), spacing=(0.0, 0.0, 0.0)))
    assert predict.main(['--stage', stage(data, ('image',)), '--input', f'image={tmp_path / "scan.nii.gz"}',
                         '--output', str(tmp_path / 'seg.nii.gz')]) == 0
    values = standard(slice_stacks.scale(voxels), 0.5, 99.5)
    sure = abs(values - 0.5) > 1e-3
    np.testing.assert_array_equal(volume.read(tmp_path / 'seg.nii.gz').voxels[sure], (values > 0.5)[sure])


def test_which_step(stage, tmp_path, capsys):
    voxels, _ = ct(tmp_path / 'scan.nii.gz')
    voxels[voxels == 90] = 91
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / 'scan.nii.gz')
    common = ['--stage', stage(SCANS, ('nct',)), '--input', f'nct={tmp_path / "scan.nii.gz"}', '--output',
              str(tmp_path / 'seg.nii.gz')]
    for which, threshold in (('best', 50), ('last', 90), ('1', 50)):
        assert predict.main([*common, '--which', which]) == 0
        np.testing.assert_array_equal(volume.read(tmp_path / 'seg.nii.gz').voxels, voxels > threshold)
    assert predict.main([*common, '--which', '7']) == 66
    assert 'no step "7"' in capsys.readouterr().err


def test_a_volume_slice_by_slice(stage, tmp_path):
    """Scaled as the source of ACDC does, along the third axis of the file, which keeps all its axes."""
    voxels, affine = ct(tmp_path / 'cine.nii.gz', (0, 1, 2), (-1, -1, 1), shape=(24, 24, 7))
    seen.clear()
    assert predict.main(['--stage', stage(SLICES, ('image',)), '--input', f'image={tmp_path / "cine.nii.gz"}',
                         '--batch', '4', '--output', str(tmp_path / 'seg.nii.gz'), '--probability',
                         str(tmp_path / 'prob.nii.gz')]) == 0
    found, scaled = nibabel.load(tmp_path / 'seg.nii.gz'), slice_stacks.scale(voxels)
    np.testing.assert_array_equal(np.asarray(found.dataobj), scaled > 0.5)
    np.testing.assert_allclose(nibabel.load(tmp_path / 'prob.nii.gz').get_fdata(), 1 / (1 + np.exp(50 - 100 * scaled)),
                               atol=0.01)
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    assert {shape[1:] for shape in seen} == {(24, 24, 1)}


def test_slices_of_another_size(stage, tmp_path):
    voxels, _ = ct(tmp_path / 'cine.nii.gz', shape=(61, 40, 3))
    voxels[:] = 0
    voxels[10:40, 5:30] = 100
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / 'cine.nii.gz')
    assert predict.main(['--stage', stage(SLICES, ('image',)), '--input', f'image={tmp_path / "cine.nii.gz"}',
                         '--output', str(tmp_path / 'seg.nii.gz')]) == 0
    found, truth = volume.read(tmp_path / 'seg.nii.gz').voxels > 0, voxels > 0
    assert found.shape == truth.shape and 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.93


@pytest.mark.parametrize('suffix, shape', [('.png', (24, 24)), ('.png', (24, 24, 3)), ('.jpg', (48, 48))])
def test_a_picture_gives_a_picture(stage, tmp_path, suffix, shape):
    pixels = np.zeros(shape, np.uint8)
    pixels[: shape[0] // 2] = 250
    Image.fromarray(pixels).save(tmp_path / f'scan{suffix}')
    assert predict.main(['--stage', stage(SLICES, ('image',)), '--input', f'image={tmp_path / f"scan{suffix}"}',
                         '--output', str(tmp_path / 'seg.png')]) == 0
    found = np.asarray(Image.open(tmp_path / 'seg.png'))
    assert found.dtype == np.uint8 and found.shape == shape[:2]
    np.testing.assert_array_equal(found, pixels.reshape(*shape[:2], -1)[..., 0] > 128)


def upside_down(hp):
    """A user's own transform: the first `rows` rows are cut off, the others turned around."""
    def apply(record):
        return {**record, 'image': np.ascontiguousarray(record['image'][hp.rows:][::-1])}

    def inverse(before, after):
        missing = len(before['image']) - len(after['image'])
        return lambda values: np.concatenate([np.zeros((missing, *values.shape[1:]), values.dtype), values[::-1]])
    return Transform(apply, inverse=inverse, reads=('image',), writes=('image',))


sys.modules['deployed.upside_down'] = types.SimpleNamespace(DEFAULTS=dict(rows=2), build=upside_down)


@pytest.mark.parametrize('transforms', [('deployed.upside_down', 'image', 'text'), ('image', 'deployed.upside_down')])
def test_a_transform_of_the_user_is_inverted(stage, tmp_path, transforms):
    """Before or after resampling: predict knows none of them by name, and `text` changes no input."""
    voxels, _ = ct(tmp_path / 'cine.nii.gz', shape=(24, 24, 5))
    size = 22 if transforms[0] != 'image' else 24
    data = dict(SLICES, transforms=transforms, image=dict(size=size, fit='crop', resize=size))
    voxels = np.asarray(nibabel.load(tmp_path / 'cine.nii.gz').dataobj)
    if size == 22:  # what is left of 24 x 24 is 24 x 22: the crop takes the middle of it, and the rest is 0
        expected = np.zeros(voxels.shape, bool)
        expected[1:-1, 2:] = (slice_stacks.scale(voxels) > 0.5)[1:-1, 2:]
    else:
        expected = slice_stacks.scale(voxels) > 0.5
        expected[:, :2] = False
    assert predict.main(['--stage', stage(data, ('image',)), '--input', f'image={tmp_path / "cine.nii.gz"}',
                         '--output', str(tmp_path / 'seg.nii.gz')]) == 0
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / 'seg.nii.gz').dataobj), expected)


@pytest.mark.parametrize('data, inputs, given, output, message', [
    (SCANS, ('nct',), ['nct=scan.nii.gz', 'ctpa=scan.nii.gz'], 'seg.nii.gz',
     'ctpa: the student reads nct alone.*not used at deployment'),
    (SCANS, ('nct', 'ctpa'), ['nct=scan.nii.gz'], 'seg.nii.gz', 'ctpa=FILE is missing'),
    (SCANS, ('nct',), ['scan.nii.gz'], 'seg.nii.gz', 'write it as KEY=FILE, such as nct=scan.nii.gz'),
    (SCANS, ('nct',), ['nct=scan.nii.gz', 'nct=scan.nii.gz'], 'seg.nii.gz', 'nct is given twice'),
    (SCANS, ('nct',), ['nct=scan.nii.gz'], 'seg.png', 'must end in .nii or .nii.gz'),
    (SCANS, ('nct',), ['nct=scan.nii.gz'], 'scan.nii.gz', 'is an input'),
    (SLICES, ('image',), ['image=scan.png'], 'seg.nii.gz', 'must end in .png'),
    (SLICES, ('image',), ['image=scan.nrrd'], 'seg.nii.gz', 'networks of images take .nii'),
    (SLICES, ('image', 'label'), ['image=scan.png'], 'seg.png', 'reads "label", which does not come with a scan'),
    (dict(SLICES, transforms=('labels',)), ('image',), ['image=scan.png'], 'seg.png', 'goes through labels'),
    (dict(SLICES, transforms=()), ('image',), ['image=scan.png'], 'seg.png', 'goes through no transform'),
])
def test_what_cannot_be_is_said_before_anything_is_read(stage, tmp_path, monkeypatch, capsys, data, inputs, given,
                                                        output, message):
    import re
    folder = stage(data, inputs)
    monkeypatch.chdir(tmp_path)
    assert predict.main(['--stage', folder, '--output', output, *(a for text in given for a in ('--input', text))]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_other_refusals(stage, tmp_path, capsys):
    ct(tmp_path / 'scan.nii.gz')
    scan = ['--input', f'nct={tmp_path / "scan.nii.gz"}', '--output', str(tmp_path / 'seg.nii.gz')]
    assert predict.main(['--stage', str(tmp_path / 'nothing'), *scan]) == 66
    folder = stage(SCANS, ('nct',))
    assert predict.main(['--stage', folder, *scan, '--config.seed=1']) == 2
    assert predict.main(['--stage', folder, *scan, '--probability', scan[-1]]) == 2
    assert predict.main(['--stage', folder, *scan, '--overlap', '1']) == 2
    assert predict.main(['--stage', folder, '--input', f'nct={tmp_path / "none.nii.gz"}', *scan[2:]]) == 66
    (tmp_path / 'scan.nii.gz').write_bytes(b'no scan')
    assert predict.main(['--stage', folder, *scan]) == 65
    assert not (tmp_path / 'seg.nii.gz').exists()
    assert 'keeps its config' in capsys.readouterr().err


@pytest.mark.parametrize('model, labels, message', [('deployed.pooled', ('background', 'lesion'), 'is no segmentation'),
                                                    ('deployed.threshold', ('edema', 'mass'), 'first label is edema')])
def test_a_classifier_is_no_segmentation(stage, tmp_path, capsys, model, labels, message):
    Image.fromarray(np.zeros((24, 24), np.uint8)).save(tmp_path / 'scan.png')
    folder = stage(SLICES, ('image',), labels, model)
    assert predict.main(['--stage', folder, '--input', f'image={tmp_path / "scan.png"}', '--output',
                         str(tmp_path / 'seg.png')]) == 2
    assert message in capsys.readouterr().err
