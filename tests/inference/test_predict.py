"""A trained segmenter as a command: scans in, label maps on the grids of their files out."""
import csv
import re
import sys
import types

import flax.linen as nn
import nibabel
import nrrd
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
from jaxkd.inference import masks as masks_module
from jaxkd.phantoms import encode
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


class Two(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, inputs, train=False):
        x = next(iter(inputs.values())).mean((1, 2)) - self.param('at', nn.initializers.zeros, ())
        return {'logits': np.ones((2, self.outputs), np.float32) * x[:, None]}


for name, module in (('threshold', Threshold), ('two', Two)):
    sys.modules[f'deployed.{name}'] = types.SimpleNamespace(DEFAULTS={},
                                                            build=lambda hp, outputs, dtype, m=module: m(outputs))

SCANS = dict(source=dict(name='paired'), transforms=('pseudo_nct', 'scan'), augment=('patch',),
             scan=dict(keys=('nct', 'ctpa'), spacing=(0.0, 0.0, 0.0), windows=((0.0, 100.0), (0.0, 100.0))),
             patch=dict(keys=('nct', 'ctpa'), size=(8, 6, 4)))
SLICES = dict(source=dict(name='acdc'), transforms=('image',), image=dict(size=24, fit='squash'))


@pytest.fixture
def stage(tmp_path):
    """Writes the folder of a trained stage: step 1 is the best, with the threshold 0.5; step 2 the last, with 0.9."""
    def write(data, inputs, labels=('background', 'lesion'), model='deployed.threshold', at=0.5, folder='run',
              evals='segmentation', **metadata):
        hp = dict(inputs=inputs, model=dict(name=model), method=dict(name='supervised'), batch=2,
                  evals={evals: {}} if evals else {})
        run = config.resolve(ConfigDict(dict(stages=('student',), data=data, student=hp)))
        folder = tmp_path / folder / 'checkpoints' / 'student'
        saver = checkpoint.Checkpointer(folder)
        saver.write_metadata(metadata | dict(name='student', config=run.student.to_dict(), labels=labels, assets={},
                                             data=config.stage_data(run, 'student').to_dict()))
        for step, threshold, score in ((1, at, 0.9), (2, 0.9, 0.1)):
            state = TrainState(np.int32(step), {'student': {'at': np.float32(threshold)}}, {'student': {}}, {}, {}, {},
                               {})
            saver.save(step, state, {}, score)
        saver.close()
        return str(tmp_path / folder.parents[1])
    return write


@pytest.fixture
def predicted(tmp_path):
    """Runs the command -> (exit code, {case: row}, folder of the masks)."""
    def run(folder, *inputs, options=(), code=0):
        out = tmp_path / 'out'
        assert predict.main(['--run', folder, '--output', str(out), *(a for i in inputs for a in ('--input', str(i))),
                             *options]) == code
        rows = {}
        if (out / 'predictions.csv').exists():
            with open(out / 'predictions.csv', newline='') as f:
                rows = {row['case']: row for row in csv.DictReader(f)}
        return rows, out / 'masks'
    return run


def ct(path, order=(0, 1, 2), signs=(1, 1, 1), sides=(1.0, 1.5, 3.0), shape=(21, 17, 10)):
    """A NIfTI file of HU with axes in any order and direction, and its voxels."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, list(order)] * np.array(signs) * np.array(sides)[list(order)]
    affine[:3, 3] = -30, 45, 260
    voxels = RNG.integers(0, 100, [shape[i] for i in order]).astype(np.int16)
    voxels[voxels == 50] = 51  # away from the threshold
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return voxels, affine


@pytest.mark.parametrize('order, signs', [((0, 1, 2), (1, 1, 1)), ((0, 1, 2), (-1, -1, 1)), ((2, 0, 1), (1, -1, 1)),
                                          ((1, 2, 0), (-1, -1, -1))])
def test_a_volume_keeps_its_grid(stage, predicted, tmp_path, order, signs):
    voxels, affine = ct(tmp_path / 'scan.nii.gz', order, signs)
    rows, masks = predicted(stage(SCANS, ('nct',)), tmp_path / 'scan.nii.gz',
                            options=('--mirror', '--batch', '3', '--probabilities'))
    found, chance = nibabel.load(masks / 'scan.nii.gz'), nibabel.load(masks.parent / 'probability' / 'scan.nii.gz')
    np.testing.assert_array_equal(np.asarray(found.dataobj), voxels > 50)
    assert found.get_data_dtype() == np.uint8 and chance.get_data_dtype() == np.float32
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    np.testing.assert_allclose(chance.affine, affine, atol=1e-5)
    np.testing.assert_allclose(chance.get_fdata(), 1 / (1 + np.exp(50.0 - voxels)), atol=0.01)  # value = HU / 100
    assert (4, 6, 8) in {shape[1:4] for shape in seen}, 'windows are as large as the patches of training'
    assert {'scan.nii.gz'} == {*rows} and rows['scan.nii.gz']['mask'] == 'masks/scan.nii.gz'
    assert float(rows['scan.nii.gz']['volume_ml/lesion']) == pytest.approx((voxels > 50).sum() * 4.5e-3)


def test_many_volumes_of_a_folder_and_one_of_nrrd(stage, predicted, tmp_path):
    """The mask of an NRRD file lies on its grid, axes and all."""
    voxels = {name: ct(tmp_path / 'scans' / f'{name}.nii.gz')[0] for name in ('a', 'b')}
    c, affine = ct(tmp_path / 'c.nii.gz', (1, 2, 0), (-1, 1, -1))
    lps = np.diag([-1, -1, 1, 1]) @ affine
    (tmp_path / 'scans' / 'deep').mkdir()
    header = {'space': 'left-posterior-superior', 'space directions': lps[:3, :3].T, 'space origin': lps[:3, 3]}
    nrrd.write(str(tmp_path / 'scans' / 'deep' / 'c.nrrd'), c, header)
    (tmp_path / 'scans' / 'notes.txt').write_text('no scan')
    rows, masks = predicted(stage(SCANS, ('nct',)), tmp_path / 'scans')
    assert [*rows] == ['a.nii.gz', 'b.nii.gz', 'deep/c.nrrd']
    for name, scan in voxels.items():
        np.testing.assert_array_equal(np.asarray(nibabel.load(masks / f'{name}.nii.gz').dataobj), scan > 50)
    found, head = nrrd.read(str(masks / 'deep' / 'c.nrrd'))
    np.testing.assert_array_equal(found, c > 50)
    np.testing.assert_allclose(head['space directions'], lps[:3, :3].T)
    np.testing.assert_allclose(head['space origin'], lps[:3, 3])


def test_another_spacing_and_no_patches(stage, predicted, tmp_path):
    """A ball keeps its place and size through the network's grid, which is all one window."""
    voxels, affine = ct(tmp_path / 'scan.nii.gz', sides=(1.0, 1.0, 1.0), shape=(40, 36, 30))
    ball = np.linalg.norm(np.indices(voxels.shape).T - (18, 20, 12), axis=-1).T < 9
    nibabel.save(nibabel.Nifti1Image((100 * ball).astype(np.int16), affine), tmp_path / 'scan.nii.gz')
    data = dict(SCANS, augment=(), scan=dict(SCANS['scan'], spacing=(1.7, 1.5, 2.0)))
    _, masks = predicted(stage(data, ('nct',)), tmp_path / 'scan.nii.gz')
    found = volume.read(masks / 'scan.nii.gz').voxels > 0
    assert found.shape == ball.shape and 2 * (found & ball).sum() / (found.sum() + ball.sum()) > 0.93
    assert (15, 24, 24) in {shape[1:4] for shape in seen}


def test_several_inputs_by_key_folder_and_table(stage, predicted, tmp_path):
    """All inputs are brought to the grid of the first."""
    a, _ = ct(tmp_path / 'plain' / 'one.nii.gz')
    b, _ = ct(tmp_path / 'contrast' / 'one.nii.gz')
    run = stage(SCANS, ('nct', 'ctpa'))
    (tmp_path / 'cases.csv').write_text('ctpa,case,nct,remark\ncontrast/one.nii.gz,first,plain/one.nii.gz,x\n')
    for n, given in enumerate((('ctpa=contrast/one.nii.gz', 'nct=plain/one.nii.gz'), ('nct=plain', 'ctpa=contrast'),
                               ('cases.csv',))):
        rows, masks = predicted(run, *(i.replace('=', f'={tmp_path}/') if '=' in i else tmp_path / i for i in given),
                                options=('--restart',))
        assert [*rows] == [('one.nii.gz', 'one.nii.gz', 'first')[n]]
        found, sure = volume.read(tmp_path / 'out' / next(iter(rows.values()))['mask']).voxels, a + b != 100
        np.testing.assert_array_equal(found[sure], (a + b > 100)[sure])


@pytest.mark.parametrize('source', ['acdc', 'mnms'])
def test_a_source_that_scales_its_volumes(stage, predicted, tmp_path, source):
    """What the source did to values before any transform is done here too: it clips 1.4 % of bright voxels away."""
    voxels, _ = ct(tmp_path / 'scan.nii.gz')
    voxels.flat[::70] = 20_000
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / 'scan.nii.gz')
    data = dict(source=dict(name=source), transforms=('scan',),
                scan=dict(keys=('image',), windows=((),), spacing=(0.0, 0.0, 0.0)))
    _, masks = predicted(stage(data, ('image',)), tmp_path / 'scan.nii.gz')
    values = standard(slice_stacks.scale(voxels), 0.5, 99.5)
    sure = abs(values - 0.5) > 1e-3
    np.testing.assert_array_equal(volume.read(masks / 'scan.nii.gz').voxels[sure], (values > 0.5)[sure])


def test_which_step(stage, predicted, tmp_path, capsys):
    voxels, _ = ct(tmp_path / 'scan.nii.gz')
    voxels[voxels == 90] = 91
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / 'scan.nii.gz')
    run = stage(SCANS, ('nct',))
    for which, threshold in (('best', 50), ('last', 90), ('1', 50)):
        _, masks = predicted(f'{run}/checkpoints/student', tmp_path / 'scan.nii.gz',
                             options=('--which', which, '--restart'))
        np.testing.assert_array_equal(volume.read(masks / 'scan.nii.gz').voxels, voxels > threshold)
    predicted(run, tmp_path / 'scan.nii.gz', options=('--which', '7'), code=66)
    assert 'no step "7"' in capsys.readouterr().err


def test_a_volume_slice_by_slice(stage, predicted, tmp_path):
    """Scaled as the source of ACDC does, along the third axis of the file, which keeps all its axes."""
    voxels, affine = ct(tmp_path / 'cine.nii.gz', (0, 1, 2), (-1, -1, 1), shape=(24, 24, 7))
    _, masks = predicted(stage(SLICES, ('image',)), tmp_path / 'cine.nii.gz', options=('--probabilities',))
    found, scaled = nibabel.load(masks / 'cine.nii.gz'), slice_stacks.scale(voxels)
    np.testing.assert_array_equal(np.asarray(found.dataobj), scaled > 0.5)
    np.testing.assert_allclose(nibabel.load(masks.parent / 'probability' / 'cine.nii.gz').get_fdata(),
                               1 / (1 + np.exp(50 - 100 * scaled)), atol=0.01)
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    assert (24, 24, 1) in {shape[1:] for shape in seen}


def test_slices_of_another_size(stage, predicted, tmp_path):
    voxels, _ = ct(tmp_path / 'cine.nii.gz', shape=(61, 40, 3))
    voxels[:] = 0
    voxels[10:40, 5:30] = 100
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / 'cine.nii.gz')
    _, masks = predicted(stage(SLICES, ('image',)), tmp_path / 'cine.nii.gz')
    found, truth = volume.read(masks / 'cine.nii.gz').voxels > 0, voxels > 0
    assert found.shape == truth.shape and 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.93


def test_pictures_give_pictures(stage, predicted, tmp_path):
    """Five of them in batches of two, of different sizes and forms; a file that is none is named, and costs no other.
    """
    (tmp_path / 'in').mkdir()
    pixels = {}
    for name, shape in (('a.png', (24, 24)), ('b.png', (24, 24, 3)), ('c.jpg', (48, 48)), ('d.png', (30, 40)),
                        ('e.bmp', (24, 24))):
        pixels[name] = np.zeros(shape, np.uint8)
        pixels[name][: shape[0] // 2] = 250
        Image.fromarray(pixels[name]).save(tmp_path / 'in' / name)
    (tmp_path / 'in' / 'bad.png').write_bytes((tmp_path / 'in' / 'a.png').read_bytes()[:-20])
    rows, masks = predicted(stage(SLICES, ('image',)), tmp_path / 'in', options=('--overlays',), code=65)
    assert [*rows] == [*pixels] and float(rows['a.png']['pixels/lesion']) == 288
    for name, image in pixels.items():
        found = np.asarray(Image.open(masks / f'{name[0]}.png'))
        assert found.dtype == np.uint8 and found.shape == image.shape[:2]
        np.testing.assert_array_equal(found, image.reshape(*image.shape[:2], -1)[..., 0] > 128)
        assert (masks.parent / rows[name]['overlay']).exists()
    assert 'bad.png' in (masks.parent / 'errors.csv').read_text()
    page = (masks.parent / 'index.html').read_text()
    assert page.count('<img src="overlays/') == 5 and 'bad.png' in page
    assert all(link.startswith(('overlays/', 'masks/', '#')) for link in re.findall('(?:src|href)="([^"]*)"', page))


def test_a_killed_command_goes_on(stage, predicted, tmp_path, monkeypatch):
    """Finished cases are not predicted again, unless their files changed; a line cut short is; other options are
    refused.
    """
    voxels = {name: ct(tmp_path / 'in' / f'{name}.nii.gz')[0] for name in 'abcd'}
    run, write, written = stage(SCANS, ('nct',)), masks_module.MaskWriter.write, []

    def dies(self, case, *args):
        written.append(case)
        if len(written) == 3:
            raise KeyboardInterrupt
        return write(self, case, *args)
    monkeypatch.setattr(masks_module.MaskWriter, 'write', dies)
    predicted(run, tmp_path / 'in', code=75)
    assert written == ['a.nii.gz', 'b.nii.gz', 'c.nii.gz'] and not (tmp_path / 'out' / 'predictions.csv').exists()
    lines = tmp_path / 'out' / 'cases.jsonl'
    lines.write_bytes(lines.read_bytes()[:-3])  # b
    rows, masks = predicted(run, tmp_path / 'in')
    assert written[3:] == ['b.nii.gz', 'c.nii.gz', 'd.nii.gz'] and [r[0] for r in rows] == [*'abcd']
    ct(tmp_path / 'in' / 'c.nii.gz')
    predicted(run, tmp_path / 'in')
    assert written[6:] == ['c.nii.gz']
    predicted(run, tmp_path / 'in', options=('--overlap', '0.25'), code=2)
    rows, _ = predicted(run, tmp_path / 'in', options=('--overlap', '0.25', '--restart'))
    assert len(written) == 11 and len(rows) == 4
    np.testing.assert_array_equal(np.asarray(nibabel.load(masks / 'a.nii.gz').dataobj), voxels['a'] > 50)


def test_the_mean_of_several(stage, predicted, tmp_path):
    """Thresholds 0.3 and 0.6: the mean of two steep sigmoids is above one half where the two agree, and at a tie of
    probabilities the spread of the volumes says how much they do not.
    """
    voxels, _ = ct(tmp_path / 'scan.nii.gz')
    runs = [stage(SCANS, ('nct',), at=at, folder=f'multi/seed{at}') for at in (0.3, 0.6, 0.6)[:2]]
    runs.append(stage(SCANS, ('nct',), at=0.7, folder='multi/seed0.7'))
    rows, masks = predicted(str(tmp_path / 'multi'), tmp_path / 'scan.nii.gz')
    found = np.asarray(nibabel.load(masks / 'scan.nii.gz').dataobj)
    sure = abs(voxels - 60) > 2
    np.testing.assert_array_equal(found[sure], (voxels > 60)[sure])  # two of three
    sizes = [4.5e-3 * (voxels > 100 * at).sum() for at in (0.3, 0.6, 0.7)]
    row = rows['scan.nii.gz']
    assert float(row['sd_volume_ml/lesion']) == pytest.approx(np.std(sizes, ddof=1), rel=0.02)
    again, _ = predicted(runs[0], tmp_path / 'scan.nii.gz', options=('--run', runs[1], '--run', runs[2], '--restart'))
    assert again['scan.nii.gz'] == row


def dicom_series(folder, voxels):
    """A CT series of axial slices [X,Y,Z], 1 x 1.5 x 3 mm, its files in another order than its slices."""
    folder.mkdir()
    for z, name in enumerate(np.random.default_rng(1).permutation(voxels.shape[2])):
        encode.write_dicom(folder / f'{name}.dcm', voxels[..., z].T.astype(np.uint16) + 1024, 'CTImageStorage',
                           Modality='CT', SOPInstanceUID=f'1.2.3.{z + 1}', SeriesInstanceUID='1.2.3',
                           StudyInstanceUID='1.2', FrameOfReferenceUID='1.2.9', RescaleSlope=1, RescaleIntercept=-1024,
                           ImageOrientationPatient=[1, 0, 0, 0, 1, 0], ImagePositionPatient=[-30, -45, 3.0 * z],
                           PixelSpacing=[1.5, 1.0], PatientID='anon', SliceThickness=3, InstanceNumber=int(name),
                           SeriesNumber=1)  # without names, which a SEG repeats: they were removed


def test_a_dicom_series_gives_a_dicom_seg_or_nifti(stage, predicted, tmp_path, monkeypatch, capsys):
    """Each frame of the SEG lies where its slice does; without the library the extra and the way around are named."""
    hd = pytest.importorskip('highdicom', reason='the extra "seg" is not installed')
    import pydicom
    voxels = RNG.integers(0, 50, (12, 10, 6)).astype(np.int16)
    voxels[2:7, 3:9, 1:4] = 90
    dicom_series(tmp_path / 'ct', voxels)
    run = stage(SCANS, ('nct',))
    rows, masks = predicted(run, tmp_path / 'ct')
    segmentation = hd.seg.segread(masks / 'ct.dcm')
    slices = [pydicom.dcmread(p) for p in (tmp_path / 'ct').iterdir()]
    order = sorted(slices, key=lambda d: d.ImagePositionPatient[2])
    frames = segmentation.get_pixels_by_source_instance([d.SOPInstanceUID for d in order], segment_numbers=[1],
                                                        assert_missing_frames_are_empty=True)[..., 0]
    np.testing.assert_array_equal(frames.transpose(2, 1, 0), voxels > 50)
    assert [*segmentation.segment_numbers] == [1] and segmentation.PatientID == 'anon'
    assert float(rows['ct']['volume_ml/lesion']) == pytest.approx(5 * 6 * 3 * 4.5e-3)
    _, masks = predicted(run, tmp_path / 'ct', options=('--masks', 'nifti', '--restart'))
    found = volume.read(masks / 'ct.nii.gz')
    np.testing.assert_array_equal(found.voxels, (voxels > 50)[::-1, ::-1])  # RAS: both axes turn
    monkeypatch.setitem(sys.modules, 'highdicom', None)
    predicted(run, tmp_path / 'ct', options=('--restart',), code=2)
    assert "pip install 'jaxkd-medical[seg]', or write NIfTI: --masks nifti" in capsys.readouterr().err


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
def test_a_transform_of_the_user_is_inverted(stage, predicted, tmp_path, transforms):
    """Before or after resampling: predict knows none of them by name, and `text` changes no input."""
    ct(tmp_path / 'cine.nii.gz', shape=(24, 24, 5))
    size = 22 if transforms[0] != 'image' else 24
    data = dict(SLICES, transforms=transforms, image=dict(size=size, fit='crop', resize=size))
    voxels = np.asarray(nibabel.load(tmp_path / 'cine.nii.gz').dataobj)
    if size == 22:  # what is left of 24 x 24 is 24 x 22: the crop takes the middle of it, and the rest is 0
        expected = np.zeros(voxels.shape, bool)
        expected[1:-1, 2:] = (slice_stacks.scale(voxels) > 0.5)[1:-1, 2:]
    else:
        expected = slice_stacks.scale(voxels) > 0.5
        expected[:, :2] = False
    _, masks = predicted(stage(data, ('image',)), tmp_path / 'cine.nii.gz')
    np.testing.assert_array_equal(np.asarray(nibabel.load(masks / 'cine.nii.gz').dataobj), expected)


def test_any_evaluator_will_do_where_the_run_says_what_its_labels_are(stage, predicted, tmp_path, capsys):
    Image.fromarray(np.zeros((24, 24), np.uint8)).save(tmp_path / 'scan.png')
    rows, _ = predicted(stage(SLICES, ('image',), evals='', label_kind='voxels'), tmp_path / 'scan.png')
    assert rows['scan.png']['pixels/lesion'] == '0'
    predicted(stage(SLICES, ('image',), evals='', folder='earlier'), tmp_path / 'scan.png', code=2)
    assert re.search('Add to its evals, in its config, "segmentation" where each place has a class, .* repeat its '
                     'python -m jaxkd.main with the same --workdir', capsys.readouterr().err)


def fails(**changes):
    """A user's transform with a fault."""
    return lambda hp: Transform(lambda record: {**record, 'image': record['image'][2:]}, reads=('image',),
                                writes=('image',))._replace(**changes)


@pytest.mark.parametrize('kind, changes, message', [
    ('png', {}, r'Case scan.png: a prediction comes back as \[24, 26\], its file is \[26, 26\]. The transforms are '
                r'deployed.fails \(no inverse\), image. One that changes the grid needs an `inverse`'),
    ('nii.gz', {}, r'Case cine.nii.gz: a prediction comes back as \[22, 24\], its file is \[24, 24\]'),
    ('png', dict(inverse=lambda before, after: np.transpose), r'comes back as \[26, 24\], its file is \[26, 26\]. The '
                                                              'transforms are deployed.fails, image'),
    ('png', dict(inverse=lambda before, after: before['label']),
     r"deployed.fails fails with KeyError in .*before\['label'\]"),
    ('png', dict(apply=lambda record: record['label']),
     r"Case scan.png: the transform deployed.fails fails with KeyError in .*test_predict.py, line \d+: .* Its "
     r'record holds image \(ndarray\), case \(str\). A record of deployment holds the inputs of the network alone: let '
     r"PLUGIN.restrict narrow .* declare reads and writes, and takes='volume'"),
    ('png', dict(apply=lambda record: record['image'].voxels), r"fails with AttributeError in .*\.voxels"),
])
def test_a_faulty_transform_of_the_user_is_named(stage, predicted, tmp_path, capsys, monkeypatch, kind, changes,
                                                 message):
    monkeypatch.setitem(sys.modules, 'deployed.fails', types.SimpleNamespace(DEFAULTS={}, build=fails(**changes)))
    ct(tmp_path / 'cine.nii.gz', shape=(24, 24, 5))
    Image.fromarray(np.zeros((26, 26), np.uint8)).save(tmp_path / 'scan.png')
    data = dict(SLICES, transforms=('deployed.fails', 'image'))
    _, masks = predicted(stage(data, ('image',)), tmp_path / dict(png='scan.png').get(kind, 'cine.nii.gz'), code=2)
    said = capsys.readouterr().err
    assert re.search(message, said) and 'Traceback' not in said and not masks.exists()


@pytest.mark.parametrize('data, inputs, given, message', [
    (SCANS, ('nct',), ['nct=scan.nii.gz', 'ctpa=scan.nii.gz'],
     'ctpa: the network reads nct alone.*privileged and not used at deployment'),
    (SCANS, ('nct',), ['privileged.csv'], 'column "ctpa": the network reads nct alone.*privileged'),
    (SCANS, ('nct',), ['nct=scan.nii.gz', 'pet=scan.nii.gz'], 'pet: the network reads nct alone.*no such input'),
    (SCANS, ('nct', 'ctpa'), ['nct=scan.nii.gz'], 'ctpa=PATH is missing'),
    (SCANS, ('nct', 'ctpa'), ['scan.nii.gz'], 'Give a table cases.csv'),
    (SCANS, ('nct',), ['nct=scan.nii.gz', 'nct=scan.nii.gz'], 'nct is given twice'),
    (SCANS, ('nct',), ['scan.nii.gz', 'scan.nii.gz'], 'names two cases "scan.nii.gz"'),
    (SCANS, ('nct',), ['new'], '--output new is an input'),
    (SLICES, ('image', 'label'), ['scan.png'], 'reads "label", which no file of a case gives'),
    (dict(SLICES, transforms=('labels',)), ('image',), ['scan.png'], 'goes through labels'),
    (dict(SLICES, transforms=()), ('image',), ['scan.png'], 'goes through no transform'),
])
def test_what_cannot_be_is_said_before_anything_is_predicted(stage, tmp_path, monkeypatch, capsys, data, inputs, given,
                                                             message):
    folder = stage(data, inputs)
    ct(tmp_path / 'scan.nii.gz')
    if given == ['new']:
        ct(tmp_path / 'new' / 'scan.nii.gz')
    (tmp_path / 'privileged.csv').write_text('nct,ctpa\nscan.nii.gz,scan.nii.gz\n')
    Image.fromarray(np.zeros((24, 24), np.uint8)).save(tmp_path / 'scan.png')
    monkeypatch.chdir(tmp_path)
    assert predict.main(['--run', folder, '--output', 'new', *(a for text in given for a in ('--input', text))]) == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert not (tmp_path / 'new' / 'predict.json').exists()


def test_other_refusals(stage, predicted, tmp_path, capsys):
    ct(tmp_path / 'scan.nii.gz')
    run, scan = stage(SCANS, ('nct',)), tmp_path / 'scan.nii.gz'
    predicted(str(tmp_path / 'nothing'), scan, code=66)
    predicted(run, scan, options=('--config.seed=1',), code=2)
    predicted(run, scan, options=('--overlap', '1'), code=2)
    predicted(run, scan, options=('--stage', 'studnet'), code=2)
    predicted(run, tmp_path / 'none.nii.gz', code=66)
    (tmp_path / 'empty').mkdir()
    predicted(run, tmp_path / 'empty', code=66)
    scan.write_bytes(b'no scan')
    rows, masks = predicted(run, scan, code=65)
    assert not rows and not masks.exists()
    said = capsys.readouterr()
    assert 'keeps its config' in said.err and 'Did you mean "student"' in said.err
    assert 'not predicted: scan.nii.gz: ' in said.out and 'Traceback' not in said.err


def test_outputs_that_are_neither_of_labels_nor_of_places(stage, predicted, tmp_path, capsys):
    Image.fromarray(np.zeros((24, 24), np.uint8)).save(tmp_path / 'scan.png')
    predicted(stage(SLICES, ('image',), ('a', 'b', 'c'), 'deployed.two'), tmp_path / 'scan.png', code=2)
    assert 'neither one for each nor one for each place' in capsys.readouterr().err
