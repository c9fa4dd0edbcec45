import concurrent.futures
import gzip
import os
import pathlib
import pickle
import struct
import threading

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import splits
from jaxkd.data.formats import nifti
from jaxkd.data.sources import acdc
from jaxkd.data.sources.shared import slice_stacks

SHAPE = 16, 18, 4  # x, y, z of the files


def save(path, voxels, spacing=(1.5, 1.25, 10.0), codes=1):
    made = nibabel.Nifti1Image(voxels, np.diag([*spacing, 1.0]))
    made.header.set_xyzt_units('mm')
    made.set_sform(made.affine, codes)
    made.set_qform(made.affine, codes)
    if not codes:
        made.header.set_zooms((*spacing, 1.0)[:voxels.ndim])
    path.parent.mkdir(parents=True, exist_ok=True)
    made.to_filename(path)


def volumes(seed, shape=SHAPE):
    """(image int16, label uint8); nothing is labelled in the first slice."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    label[3:8, 4:9, 1:] = 1
    label[8:13, 4:12, 1:] = 2
    label[9:12, 6:10, 1:-1] = 3
    return (rng.normal(100, 10, shape) + 40 * label).astype(np.int16), label


INFO = 'ED: 1\nES: {es}\nGroup: DCM\nHeight: 180.0\nNbFrame: 30\nWeight: 70.0\n'


def write(top, number, ending='.nii.gz', info=INFO, codes=1):
    name, es = f'patient{number:03d}', 7 + number % 3
    for frame in (1, es):
        pixels, label = volumes(100 * number + frame)
        save(top / name / f'{name}_frame{frame:02d}{ending}', pixels, codes=codes)
        save(top / name / f'{name}_frame{frame:02d}_gt{ending}', label, codes=codes)
    (top / name / 'Info.cfg').write_bytes(info.format(es=es).encode())
    return top / name


def build(root, **given):
    return acdc.build(ConfigDict({**acdc.DEFAULTS, 'root': str(root), **given}))


@pytest.fixture
def tree(tmp_path):
    for number in (1, 2, 30):
        write(tmp_path / 'database' / 'training', number)
    (tmp_path / 'database' / 'training' / 'MANDATORY_CITATION.md').write_text('cite')
    return tmp_path


def test_slices_of_the_layout(tree):
    source = build(tree)
    assert source.name == 'acdc' and source.labels == ('background', 'RV', 'MYO', 'LV') and len(source) == 3 * 2 * 4
    assert 'not the published split: 3 patients' in source.note and source.skipped == ()
    case = source.cases[5]
    assert (case.id, case.patient, case.study, case.split) == (
        'patient001_frame08_slice_1', 'patient001', 'patient001_frame08', '')
    assert case.groups == {'phase': 'ES', 'group': 'DCM', 'foreground': 'yes'}
    assert [c.groups['foreground'] for c in source.cases[:8]] == ['no', 'yes', 'yes', 'yes'] * 2
    assert [c.groups['phase'] for c in source.cases[:8]] == ['ED'] * 4 + ['ES'] * 4
    pixels, label = volumes(108)
    record = source[5]
    assert record.keys() == {'image', 'label', 'spacing', 'case'} and record['case'] == case.id
    assert record['image'].shape == record['label'].shape == (18, 16)  # rows are the second axis of the file
    np.testing.assert_array_equal(record['label'], label[:, :, 1].T)
    np.testing.assert_array_equal(record['image'], slice_stacks.scale(pixels)[:, :, 1].T)
    assert record['image'].dtype == np.float32 and record['label'].dtype == np.uint8
    np.testing.assert_allclose(record['spacing'], (10.0, 1.25, 1.5))  # between slices, rows, columns
    assert record['spacing'].dtype == np.float32
    record['image'][:] = 0  # a record is the caller's own
    assert source[5]['image'].any()
    assert [os.path.basename(p) for p in source.paths(5)] == ['patient001_frame08.nii.gz',
                                                              'patient001_frame08_gt.nii.gz']
    assert len(build(tree, foreground=True)) == 18 and all(c.groups['foreground'] == 'yes'
                                                          for c in build(tree, foreground=True).cases)


def test_volumes(tree):
    source = build(tree, dims=3)
    assert [c.id for c in source.cases][:2] == ['patient001_frame01', 'patient001_frame08'] and len(source) == 6
    assert source.cases[0].study == source.cases[0].id and source.cases[0].groups == {'phase': 'ED', 'group': 'DCM'}
    pixels, label = volumes(101)
    record = source[0]
    assert record.keys() == {'image', 'label', 'case'}
    np.testing.assert_array_equal(record['image'].voxels, slice_stacks.scale(pixels))
    np.testing.assert_array_equal(record['label'].voxels, label)
    for key in ('image', 'label'):
        np.testing.assert_allclose(record[key].affine, np.diag([1.5, 1.25, 10.0, 1.0]))


@pytest.mark.parametrize('where', ['.', 'database', 'database/training'])
def test_roots(tree, where):
    assert len(build(tree / where)) == 24


def test_files_that_are_not_packed_or_do_not_say_where_they_are(tmp_path):
    write(tmp_path / 'training', 5, '.nii')
    write(tmp_path / 'training', 6, codes=0)
    write(tmp_path / 'training', 7, info='\ufeffED: 1\r\nES: {es}\r\nGroup: RV\r\n')
    write(tmp_path / 'testing', 101)
    source = build(tmp_path)
    np.testing.assert_allclose([source[i]['spacing'] for i in (0, 8, 16)], [(10.0, 1.25, 1.5)] * 3)
    assert [source.cases[i].groups['group'] for i in (0, 8, 16)] == ['DCM', 'DCM', 'RV']
    assert [c.patient for c in build(tmp_path, folder='testing').cases][0] == 'patient101'


def test_the_published_split(tmp_path):
    """100 patients with one tiny file for all of them."""
    save(tmp_path / 'x.nii.gz', np.ones((4, 4, 2), np.uint8))
    for number in range(1, 101):
        name = f'patient{number:03d}'
        (tmp_path / 'training' / name).mkdir(parents=True)
        (tmp_path / 'training' / name / 'Info.cfg').write_text('ED: 1\nES: 2\nGroup: NOR\n')
        for end in ('01', '01_gt', '02', '02_gt'):
            os.link(tmp_path / 'x.nii.gz', tmp_path / 'training' / name / f'{name}_frame{end}.nii.gz')
    source = build(tmp_path)
    part = {int(c.patient[7:]): c.split for c in source.cases}
    assert source.note == '' and sorted(part.values()) == ['test'] * 15 + ['train'] * 70 + ['val'] * 15
    assert [n for n, p in part.items() if p == 'val'] == [2, 7, 10, 23, 26, 33, 35, 56, 58, 73, 75, 76, 89, 98, 100]
    assert [n for n, p in part.items() if p == 'test'] == [4, 16, 18, 21, 32, 40, 42, 52, 60, 62, 63, 64, 86, 88, 91]
    for block in range(0, 100, 20):  # balanced over the groups of patients
        assert sum(part[n] == 'test' for n in range(block + 1, block + 21)) == 3
    assert splits.make(source.cases)['patient004_frame02_slice_1'] == 'test'
    assert ({c.split for c in build(tmp_path, official=False).cases} == {''}
            and build(tmp_path, official=False).note == '')


def damage(folder, what):
    """One kind of damage to the ES frame of a patient's folder, and what the error says."""
    name = folder.name
    gt, = (p for p in folder.glob('*_gt.nii.gz') if '_frame01' not in p.name)
    path = gt.with_name(gt.name.replace('_gt', ''))
    label = np.asarray(nibabel.load(gt).dataobj).copy()
    if what == 'no gt':
        gt.unlink()
        return f'{folder} has no {name}_frame'
    if what == 'no frame':
        path.unlink()
        return f'{folder} has no {name}_frame'
    if what == 'no info':
        (folder / 'Info.cfg').unlink()
        return 'Info.cfg does not exist'
    if what == 'no ED':
        (folder / 'Info.cfg').write_text('ES: 7\nGroup: DCM\n')
        return 'Info.cfg has no line "ED'
    if what == 'ED is a word':
        (folder / 'Info.cfg').write_text('ED: one\nES: 7\n')
        return 'Info.cfg has no line "ED'
    if what == 'one frame':
        (folder / 'Info.cfg').write_text('ED: 7\nES: 7\n')
        return 'names frame 7 as both'
    if what == 'not text':
        (folder / 'Info.cfg').write_bytes(b'ED: 1\nES: 7\nGroup: \xff\n')
        return 'not UTF-8'
    if what == 'twice':
        save(folder / path.name.removesuffix('.gz'), label)
        return 'has both'
    if what == 'another shape':
        save(gt, label[:-1])
        return '15 x 18 x 4, its image 16 x 18 x 4'
    if what == 'labels':
        label[0, 0, 0] = 4
        save(gt, label)
        return '4 in 1'
    if what == 'halves':
        save(gt, label.astype(np.float32) / 2)
        return '0.5 in 75, 1.5 in 24'
    if what == 'negative':
        save(gt, label.astype(np.int16) - 1)
        return '1 in 957'
    if what == 'cut label':
        gt.write_bytes(gt.read_bytes()[:-20])
        return 'damaged'
    if what == 'cut image':
        path.write_bytes(path.read_bytes()[:len(path.read_bytes()) // 2])
        return 'damaged'
    if what == 'flipped bit':
        content = bytearray(path.read_bytes())
        content[-6] ^= 1
        path.write_bytes(content)
        return 'damaged'
    if what == 'nan':
        pixels = np.ones(SHAPE, np.float32)
        pixels[1, 2, 3] = np.nan
        save(path, pixels)
        return 'NaN'
    if what == 'frames':
        save(path, np.ones((*SHAPE, 2), np.int16))
        return 'more than one volume'


@pytest.mark.parametrize('what', ['no gt', 'no frame', 'no info', 'no ED', 'ED is a word', 'one frame', 'not text',
                                  'twice',
                                  'another shape', 'labels', 'halves', 'negative', 'cut label', 'cut image',
                                  'flipped bit',
                                  'nan', 'frames'])
def test_damage(tree, what):
    says = damage(tree / 'database' / 'training' / 'patient002', what)
    with pytest.raises((errors.BadData, errors.MissingInput), match=says) as found:
        source = build(tree)  # most are found at the start,
        [source[i] for i in range(len(source))]  # damaged images when they are asked for
    assert 'patient002' in str(found.value)
    source = build(tree, on_error='skip')
    assert len(source) == 16 if len(source.skipped) == 1 and source.skipped[0][0] == 'patient002' else len(source) == 20
    assert len(source.skipped) == 1 and source.skipped[0][0].startswith('patient002') and says in source.skipped[0][1]
    assert [source[i]['case'] for i in range(len(source))] == [c.id for c in source.cases]


def test_options_that_cannot_be(tree, tmp_path):
    for wrong, why in ((dict(on_error='stop'), 'on_error'), (dict(dims=4), 'dims'),
                       (dict(dims=3, foreground=True), 'foreground')):
        with pytest.raises(errors.ConfigError, match=why):
            build(tree, **wrong)
    with pytest.raises(errors.MissingInput, match='root "nowhere"'):
        build('nowhere')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(errors.MissingInput, match='no folder patient001'):
        build(tmp_path / 'empty')
    for folder in (tree / 'database' / 'training').glob('patient*'):
        (folder / 'Info.cfg').unlink()
    with pytest.raises(errors.BadData, match='no usable case. The first reason: .*Info.cfg'):
        build(tree, on_error='skip')


def test_it_pickles_and_a_volume_is_read_once(tree, monkeypatch):
    source = build(tree)
    loads, lock = [], threading.Lock()
    original = nifti.load

    def load(path, *rest, **given):
        with lock:
            loads.append(path)
        return original(path, *rest, **given)
    monkeypatch.setattr(nifti, 'load', load)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.__getitem__, range(len(source))))
    assert len(loads) == 2 * 6  # an image and a label of each volume
    copy = pickle.loads(pickle.dumps(source))
    for i in (0, 9, 23):
        for key in ('image', 'label', 'spacing'):
            np.testing.assert_array_equal(copy[i][key], found[i][key])


def test_recent_forgets_the_oldest_and_failures():
    calls = []

    def read(key):
        calls.append(key)
        if key < 0:
            raise errors.BadData(f'{key}')
        return key
    recent = slice_stacks.Recent(read, 2)
    assert [recent(k) for k in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2] and calls == [1, 2, 3, 2]
    for _ in range(2):
        with pytest.raises(errors.BadData):
            recent(-1)
    assert calls[-2:] == [-1, -1]


# scale


def test_worked_scale():
    voxels = np.arange(101, dtype=np.int16).reshape(101, 1, 1)  # percentiles 2 and 98 are 2 and 98
    out = slice_stacks.scale(voxels)[:, 0, 0]
    np.testing.assert_allclose(out[[0, 2, 50, 98, 100]], [0, 0, 0.5, 1, 1], atol=1e-6)
    assert out.dtype == np.float32 and not slice_stacks.scale(np.full((3, 3, 3), 7)).any()


@given(hnp.arrays(np.float64, (5, 4, 3), elements=st.floats(-1e4, 1e4)), st.floats(0.01, 100), st.floats(-1e3, 1e3))
@settings(max_examples=50, deadline=None)
def test_scale_does_not_depend_on_the_scanners_units(voxels, gain, offset):
    out = slice_stacks.scale(voxels)
    assert out.min() >= 0 and out.max() <= 1 and out.dtype == np.float32
    if np.ptp(np.percentile(voxels, (2, 98))) > 1:
        assert out.min() == 0 and out.max() == 1
        np.testing.assert_allclose(slice_stacks.scale(voxels * gain + offset), out, atol=1e-4)


# one frame of a file of many


@pytest.mark.parametrize('name', ['x.nii', 'x.nii.gz'])
@pytest.mark.parametrize('dtype', ['<i2', '>i2', '<f4', '<u1', '>f8'])
def test_a_frame_is_that_of_nibabel(tmp_path, name, dtype):
    voxels = np.random.default_rng(0).integers(0, 200, (5, 4, 3, 6)).astype(dtype)
    header = nibabel.Nifti1Header(endianness=dtype[0])
    made = nibabel.Nifti1Image(voxels, np.diag([1, 2, 3, 1.0]), header)
    made.header.set_data_dtype(dtype)
    made.to_filename(tmp_path / name)
    for t in range(6):
        found, affine = nifti.load(tmp_path / name, 2**20, t)
        np.testing.assert_array_equal(found, voxels[..., t])
        np.testing.assert_array_equal(affine, np.diag([1, 2, 3, 1.0]))
        assert found.dtype.isnative and found.flags.writeable
    assert nifti.head(tmp_path / name) == ((5, 4, 3), 6)
    for t in (-1, 6):
        with pytest.raises(errors.BadData, match=f'no frame {t} '):
            nifti.load(tmp_path / name, 2**20, t)
    with pytest.raises(errors.BadData, match='more than one volume'):
        nifti.load(tmp_path / name, 2**20)
    with pytest.raises(errors.BadData, match='max_voxels'):
        nifti.load(tmp_path / name, 59, 0)  # of a frame


def test_frames_of_other_axes_and_scaled_voxels(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 200, (5, 4, 3)).astype(np.int16)
    save(tmp_path / 'one.nii.gz', voxels)
    np.testing.assert_array_equal(nifti.load(tmp_path / 'one.nii.gz', 2**20, 0)[0], voxels)
    save(tmp_path / 'five.nii.gz', np.zeros((5, 4, 3, 2, 2), np.int16))
    with pytest.raises(errors.BadData, match='no frame 1 '):
        nifti.load(tmp_path / 'five.nii.gz', 2**20, 1)
    made = nibabel.Nifti1Image(np.stack([voxels, voxels + 1], -1), np.eye(4))
    made.header.set_slope_inter(0.5, 3)
    made.to_filename(tmp_path / 'scaled.nii.gz')
    expected = np.asarray(nibabel.load(tmp_path / 'scaled.nii.gz').dataobj[..., 1])
    np.testing.assert_allclose(nifti.load(tmp_path / 'scaled.nii.gz', 2**20, 1)[0], expected, rtol=1e-6)


def test_a_file_of_frames_is_read_to_its_end(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 200, (9, 8, 7, 5)).astype(np.int16)
    save(tmp_path / 'x.nii', voxels)
    plain = (tmp_path / 'x.nii').read_bytes()
    packed = gzip.compress(plain, mtime=0)
    changed = bytearray(plain)
    changed[-1] ^= 1
    for name, content in {
        'cut.nii.gz': packed[:-9], 'half.nii.gz': packed[:len(packed) // 2], 'short.nii.gz': gzip.compress(plain[:-1]),
        'more.nii.gz': gzip.compress(plain + b'\0'), 'tail.nii.gz': packed + b'x', 'cut.nii': plain[:-1],
        'more.nii': plain + b'\0',
        'crc.nii.gz': packed[:-8] + struct.pack('<I', 1) + packed[-4:],
        'bit.nii.gz': gzip.compress(bytes(changed))[:-8] + packed[-8:],  # in the last frame, the first is asked for
    }.items():
        (tmp_path / name).write_bytes(content)
        for t in (0, 2, 4):
            with pytest.raises(errors.BadData, match='cannot be used|damaged'):
                nifti.load(tmp_path / name, 2**20, t)


def test_frames_of_a_real_file():
    path = pathlib.Path(nibabel.__file__).parent / 'tests' / 'data' / 'example4d.nii.gz'
    real = nibabel.load(path)
    for t in range(2):
        voxels, affine = nifti.load(path, 2**24, t)
        np.testing.assert_array_equal(voxels, np.asarray(real.dataobj[..., t]))
        np.testing.assert_allclose(affine, real.affine)


def test_a_grid_without_a_place(tmp_path):
    save(tmp_path / 'x.nii.gz', np.ones((3, 4, 5), np.int16), codes=0)
    with pytest.raises(errors.BadData, match='does not say where'):
        nifti.load(tmp_path / 'x.nii.gz', 2**20)
    np.testing.assert_allclose(nifti.load(tmp_path / 'x.nii.gz', 2**20, placed=False)[1],
                               np.diag([1.5, 1.25, 10.0, 1.0]))
    save(tmp_path / 'y.nii.gz', np.ones((3, 4, 5), np.int16), codes=0, spacing=(1.5, 900.0, 10.0))
    with pytest.raises(errors.BadData, match='outside 0.01 to 100'):
        nifti.load(tmp_path / 'y.nii.gz', 2**20, placed=False)
    for path in (tmp_path, tmp_path / 'none.nii.gz'):
        with pytest.raises((errors.BadData, errors.MissingInput), match='regular file|does not exist'):
            nifti.load(path, 2**20)
    (tmp_path / 'z.nii').write_bytes(b'hello' * 100)
    with pytest.raises(errors.BadData, match='does not start as a NIfTI'):
        nifti.head(tmp_path / 'z.nii')
