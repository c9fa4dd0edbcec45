import io
import os
import pathlib
import pickle
import sys
import zipfile

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data.formats import arrays
from jaxkd.data.sources import slices

h5py = pytest.importorskip('h5py')

ROOT = pathlib.Path(__file__).parents[2]
SHAPE = 16, 18


def volume(seed, depth=4, size=3):
    """(image float32 [Z,H,W], label); size: of class 3."""
    rng = np.random.default_rng(seed)
    label = np.zeros((depth, *SHAPE), np.uint8)
    label[1:, 3:8, 4:9] = 1
    label[1:, 9:14, 3:12] = 2
    label[1:, 9:9 + size, 4:9] = 3
    image = rng.random(label.shape, np.float32)
    return (image - image.min()) / np.ptp(image), label


def put(path, image, label, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, 'w') as f:
        for key, values in {'image': image, 'label': label, **more}.items():
            f.create_dataset(key, data=values, compression='gzip' if getattr(values, 'ndim', 0) else None)


def write(folder, kind, numbers=(1, 2, 30)):
    for n in numbers:
        for frame, size in ((1, 4), (9, 2)):  # ED has more of the left ventricle
            image, label = volume(10 * n + frame, size=size)
            name = f'patient{n:03d}_frame{frame:02d}'
            if kind == 'volumes':
                put(folder / f'{name}.h5', image, label, scribble=label.astype(np.uint16))
            else:
                for z in range(4):
                    put(folder / f'{name}_slice_{z}.h5', image[z], label[z])


def rows(numbers=(1, 2, 30), **given):
    out = {k: [] for k in ('image', 'label', 'patient', 'frame', 'slice', 'phase', 'group')}
    for n in numbers:
        for frame, phase in ((1, 'ED'), (9, 'ES')):
            image, label = volume(10 * n + frame)
            for z in reversed(range(4)):  # in no order
                for key, value in zip(out, ((image[z] * 255).astype(np.uint8), label[z], n, frame, z, phase, 'HCM')):
                    out[key].append(value)
    return {**{k: np.array(v) for k, v in out.items()}, **given}


def build(root, **given):
    return slices.build(ConfigDict({**slices.DEFAULTS, 'root': str(root), **given}))


@pytest.mark.parametrize('kind, folder', [('slices', 'data/slices'), ('slices', 'ACDC_training_slices'),
                                          ('slices', '.'),
                                          ('volumes', 'data'), ('volumes', 'ACDC_training_volumes'), ('volumes', '.')])
def test_hdf5(tmp_path, kind, folder):
    write(tmp_path / folder, kind)
    source = build(tmp_path)
    assert source.name == 'slices' and source.labels == ('background', 'RV', 'MYO', 'LV') and len(source) == 3 * 2 * 4
    case = source.cases[6]
    assert (case.id, case.patient, case.study, case.split) == (
        'patient001_frame09_slice_2', 'patient001', 'patient001_frame09', '')
    assert case.groups == {'phase': 'ES', 'group': 'DCM', 'foreground': 'yes'}
    assert [c.groups['foreground'] for c in source.cases[:4]] == ['no', 'yes', 'yes', 'yes']
    assert source.cases[-1].groups['group'] == 'HCM'
    image, label = volume(19, size=2)
    record = source[6]
    np.testing.assert_array_equal(record['image'], image[2])
    np.testing.assert_array_equal(record['label'], label[2])
    assert (record['image'].dtype == np.float32 and record['label'].dtype == np.uint8
            and np.isnan(record['spacing']).all())
    assert record['spacing'].shape == (3,) and record['spacing'].dtype == np.float32 and record['case'] == case.id
    assert len(source.paths(6)) == (4 if kind == 'slices' else 1) and len(build(tmp_path, foreground=True)) == 18
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[6]['image'], record['image'])


def test_more_than_ten_slices_are_in_their_order(tmp_path):
    image, label = volume(0, depth=12)
    for z in range(12):
        put(tmp_path / f'patient150_frame03_slice_{z + 1}.h5', image[z], label[z])  # numbers may begin with 1
    source = build(tmp_path)
    assert [c.id.rpartition('_')[2] for c in source.cases] == [str(z) for z in range(1, 13)]
    np.testing.assert_array_equal(source[10]['image'], image[10])
    # one volume, and no patient of ACDC's 100
    assert source.cases[0].groups == {'phase': '', 'group': '', 'foreground': 'no'}


def test_npz(tmp_path):
    np.savez_compressed(tmp_path / 'all.npz', **rows())
    source = build(tmp_path)
    assert [c.id for c in source.cases][:5] == [*(f'patient001_frame01_slice_{z}' for z in range(4)),
                                                'patient001_frame09_slice_0']
    assert source.cases[4].groups == {'phase': 'ES', 'group': 'HCM', 'foreground': 'no'}
    image, label = volume(19)
    np.testing.assert_array_equal(source[6]['image'], (image[2] * 255).astype(np.uint8))
    np.testing.assert_array_equal(source[6]['label'], label[2])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[6]['label'], label[2])
    named = rows(patient=np.array([f'case{n}' for n in rows()['patient']]))
    del named['group'], named['phase']
    np.savez(tmp_path / 'all.npz', **named)
    assert build(tmp_path).cases[0].id == 'case1_frame01_slice_0' and build(tmp_path).cases[0].groups['group'] == ''
    np.savez(tmp_path / 'other.npz', **named)
    with pytest.raises(errors.ConfigError, match='Set npz'):
        build(tmp_path)
    assert len(build(tmp_path, npz='other.npz')) == 24


def test_npz_that_are_wrong(tmp_path):
    good = rows()
    for change, why in (
            (dict(image=good['image'][:-1]), 'shape'), (dict(label=good['label'][:, :-1]), 'its image is .* its label'),
            (dict(frame=good['frame'].astype(float)), '"frame" holds no numbers'),
            (dict(frame=-good['frame']), '"frame" holds'),
            (dict(slice=good['slice'] * 2), r'numbered \[0, 2, 4, 6\]'),
            (dict(slice=good['slice'] * 0), r'numbered \[0, 0'),
            (dict(label=good['label'] + 1), 'has .4 in 45'), (dict(label=good['label'] * np.nan), 'not finite'),
            (dict(image=good['image'].astype(np.float32)), 'within'),
            (dict(image=good['image'].astype(np.int64)), 'real numbers'),
            (dict(phase=np.arange(24).astype(str)), '"phase" differs'),
            (dict(patient=good['patient'][:, None]), 'shape'),
            (dict(image=np.full(24, {}, object)), 'neither numbers nor text')):
        np.savez(tmp_path / 'all.npz', **{**good, **change})
        with pytest.raises(errors.BadData, match=why):
            source = build(tmp_path)
            [source[i] for i in range(len(source))]
    np.savez(tmp_path / 'all.npz', image=good['image'])
    with pytest.raises(errors.BadData, match='no array "label"'):
        build(tmp_path)
    np.savez(tmp_path / 'all.npz', **good)
    content = (tmp_path / 'all.npz').read_bytes()
    for damaged in (content[:-30], content[:500], b'', content[:400] + bytes([content[400] ^ 1]) + content[401:]):
        (tmp_path / 'all.npz').write_bytes(damaged)
        with pytest.raises(errors.BadData, match='damaged'):
            build(tmp_path)


def test_npz_that_lie_about_their_size(tmp_path):
    """A header of more values than follow, of too many, and values that follow none."""
    def entry(shape, content):
        f = io.BytesIO()
        np.lib.format.write_array_header_1_0(f, {'descr': '|u1', 'fortran_order': False, 'shape': shape})
        return f.getvalue() + content
    for shape, content, why in (((4,), bytes(3), 'damaged'), ((4,), bytes(5), 'damaged'),
                                ((2**40,), bytes(9), 'max_voxels'),
                                ((70_000,), bytes(70_000), ''), ((70_000,), bytes(69_999), 'damaged')):
        with zipfile.ZipFile(tmp_path / 'x.npz', 'w', zipfile.ZIP_DEFLATED) as f:
            f.writestr('a.npy', entry(shape, content))
        if not why:
            assert arrays.npz(tmp_path / 'x.npz', ('a',), 2**20)['a'].shape == shape
            continue
        with pytest.raises(errors.BadData, match=why):
            arrays.npz(tmp_path / 'x.npz', ('a',), 2**20)
    np.savez(tmp_path / 'y.npz', a=np.asfortranarray(np.arange(6).reshape(2, 3)))
    np.testing.assert_array_equal(arrays.npz(tmp_path / 'y.npz', ('a',), 2**20)['a'], [[0, 1, 2], [3, 4, 5]])


def test_hdf5_that_are_wrong(tmp_path):
    image, label = volume(0)
    path, other = tmp_path / 'patient001_frame01.h5', tmp_path / 'elsewhere.hdf'
    put(other, image, label)

    def virtual(f):
        layout = h5py.VirtualLayout(label.shape, label.dtype)
        layout[:] = h5py.VirtualSource(str(other), 'label', label.shape)
        f.create_virtual_dataset('label', layout)
        f['image'] = image

    def link(f):
        f['image'], f['label'] = h5py.ExternalLink(str(other), 'image'), label

    for make, why in (
            (lambda f: f.update(image=image), 'no dataset "label"'),
            (lambda f: f.update(label=label), 'no dataset "image"'),
            (lambda f: f.create_group('label'), 'no dataset "label"'), (link, 'no dataset "image"'),
            (virtual, 'in another file'),
            (lambda f: f.update(image=image, label=label[:, :-1]), 'its image is .* its label'),
            (lambda f: f.update(image=image, label=label[0]), r'A slice is \[H,W\]'),
            (lambda f: f.update(image=image, label=label + 1), 'no class has .4 in 45'),
            (lambda f: f.update(image=image, label=label / 2), '0.5 in 75, 1.5 in 45'),
            (lambda f: f.update(image=image * np.nan, label=label), 'within'),
            (lambda f: f.update(image=image * 2, label=label), 'within'),
            (lambda f: f.update(image=image, label=np.zeros((0, 4, 4), np.uint8)), 'empty'),
            (lambda f: f.create_dataset('label', (2**20, 2**12, 2**4), 'u1', chunks=True), 'max_voxels'),
            (lambda f: f.create_dataset('label', data=np.array([b'x', b'yy'], object), dtype=h5py.string_dtype()),
             'neither')):
        with h5py.File(path, 'w') as f:
            make(f)
        with pytest.raises(errors.BadData, match=why) as found:
            build(tmp_path)[0]
        assert str(path) in str(found.value)
    put(path, image, label)
    content = path.read_bytes()
    for damaged in (content[:len(content) // 2], b'', b'hello' * 300):
        path.write_bytes(damaged)
        with pytest.raises(errors.BadData, match='damaged'):
            build(tmp_path)
    with pytest.raises(errors.BadData, match='no usable case. The first reason'):
        build(tmp_path, on_error='skip')


def test_a_volume_with_a_bad_slice_is_left_out_whole(tmp_path):
    write(tmp_path, 'slices')
    path = tmp_path / 'patient002_frame09_slice_1.h5'
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(errors.BadData, match='patient002_frame09_slice_1'):
        build(tmp_path)
    source = build(tmp_path, on_error='skip')
    assert len(source) == 20 and [name for name, _ in source.skipped] == ['patient002_frame09']
    assert {c.groups['phase'] for c in source.cases if c.patient == 'patient002'} == {''}  # alone, no one can tell
    path.unlink()
    with pytest.raises(errors.BadData, match='lacks slice 1 of patient002_frame09'):
        build(tmp_path)
    image, label = volume(0)
    put(path, image[0, :-1], label[0, :-1])
    with pytest.raises(errors.BadData, match='the first of its volume'):
        build(tmp_path)
    put(path, image[0], label[0])
    put(tmp_path / 'patient002_frame09_slice_01.h5', image[0], label[0])
    with pytest.raises(errors.BadData, match='slice 1 of patient002_frame09 twice'):
        build(tmp_path)


def test_lists(tmp_path):
    write(tmp_path / 'data' / 'slices', 'slices')
    write(tmp_path / 'data', 'volumes')
    with pytest.raises(errors.ConfigError, match='holds slices and volumes. Set kind'):
        build(tmp_path)
    lines = [f'patient001_frame{t}_slice_{z}' for t in ('01', '09') for z in range(4)]
    (tmp_path / 'train_slices.list').write_bytes(b'\xef\xbb\xbf' + '\r\n'.join(lines).encode() + b'\r\n\r\n')
    (tmp_path / 'test.list').write_text('patient002_frame01.h5\npatient002_frame09\n')
    for kind in ('slices', 'volumes'):
        source = build(tmp_path, kind=kind)
        assert {c.patient: c.split for c in source.cases} == {'patient001': 'train', 'patient002': 'test',
                                                              'patient030': ''}
    assert {c.split for c in build(tmp_path, kind='slices', train='', test='').cases} == {''}
    (tmp_path / 'val.list').write_text('patient001_frame09\n')
    with pytest.raises(errors.BadData,
                       match='val.list, line 1: patient001_frame09 is of a patient whom .*train_slices.list'):
        build(tmp_path, kind='slices')
    (tmp_path / 'val.list').write_text('patient030_frame09\n../x\n')
    with pytest.raises(errors.BadData, match='val.list, line 2: this is no name'):
        build(tmp_path, kind='slices')
    (tmp_path / 'val.list').write_text('patient077_frame01\npatient077_frame01_slice_3\n')
    for kind, name in (('slices', 'patient077_frame01_slice_3'), ('volumes', 'patient077_frame01')):
        with pytest.raises(errors.MissingInput, match=f'val.list lists {name}, and'):
            build(tmp_path, kind=kind)
        source = build(tmp_path, kind=kind, on_error='skip')
        assert len(source) == 24 and [name for name, _ in source.skipped] == ['patient077_frame01']
    with pytest.raises(errors.MissingInput, match='mine.list'):
        build(tmp_path, kind='slices', val='mine.list')


def test_options_that_cannot_be(tmp_path, monkeypatch):
    with pytest.raises(errors.MissingInput, match='no file of any kind'):
        build(tmp_path)
    write(tmp_path, 'volumes', (1,))
    with pytest.raises(errors.ConfigError, match='Did you mean "slices"'):
        build(tmp_path, kind='slice')
    with pytest.raises(errors.MissingInput, match='no patient001_frame01_slice_0.h5'):
        build(tmp_path, kind='slices')
    with pytest.raises(errors.ConfigError, match='classes'):
        build(tmp_path, classes=('background', 'background'))
    with pytest.raises(errors.BadData, match='2 in 75, 3 in 60'):
        build(tmp_path, classes=('background', 'heart'))
    monkeypatch.setitem(sys.modules, 'h5py', None)
    for on_error in ('fail', 'skip'):  # never taken for a fault of one file
        with pytest.raises(errors.ConfigError, match=r"pip install 'jaxkd-medical\[h5\]'"):
            build(tmp_path, on_error=on_error)


@pytest.fixture(scope='module')
def real():
    root = pathlib.Path(os.environ.get('JAXKD_REAL_DATA', ROOT / '..' / 'shared' / 'data')) / 'acdc_h5'
    if not root.is_dir():
        pytest.skip(f'no acdc_h5 in {root.parent.resolve()} (JAXKD_REAL_DATA)')
    return root


def test_real_npz(real):
    source = build(real, kind='npz')
    assert (len(source) == 1616 and len({c.patient for c in source.cases}) == 85
            and len({c.study for c in source.cases}) == 170)
    # The groups of the archive are those by number, and ED is what has more of the left ventricle.
    lv = {}
    for i, case in enumerate(source.cases):
        assert case.groups['group'] == slices._group(case.patient)
        lv[case.study] = lv.get(case.study, 0) + int((source[i]['label'] == 3).sum())
    phase = {c.study: c.groups['phase'] for c in source.cases}
    for patient in {c.patient for c in source.cases}:
        ed, es = sorted((s for s in phase if s.startswith(patient)), key=lambda s: phase[s])
        assert (phase[ed], phase[es]) == ('ED', 'ES') and lv[ed] > lv[es]
    assert source.cases[0].groups['foreground'] == 'no' and source[3]['image'].shape == (128, 128)


def test_real_hdf5(real):
    """What the lists name and the folders lack is said, and left out by on_error='skip'."""
    with pytest.raises(errors.MissingInput, match='train_slices.list lists patient021_frame01_slice_0'):
        build(real, kind='slices')
    by_slice, by_volume = (build(real, kind=kind, on_error='skip') for kind in ('slices', 'volumes'))
    assert len(by_slice) == 84 and {c.split for c in by_slice.cases} == {'train'}
    assert {c.patient for c in by_slice.cases} == {'patient001', 'patient041', 'patient061', 'patient081'}
    assert {c.patient for c in by_volume.cases} == {'patient002', 'patient022', 'patient082'}
    assert {c.split for c in by_volume.cases} == {'test'}
    packed = build(real, kind='npz')
    at = {c.id: i for i, c in enumerate(packed.cases)}
    for source in (by_slice, by_volume):
        for i in range(0, len(source), 7):
            case, record = source.cases[i], source[i]
            other = packed.cases[at[case.id]]
            assert (case.groups, case.study, case.patient) == (other.groups, other.study, other.patient)
            small = packed[at[case.id]]['label']
            for k in (1, 2, 3):  # the same picture, square and smaller
                share = (record['label'] == k).sum() * (128 / max(record['label'].shape)) ** 2
                assert abs((small == k).sum() - share) < 6 + 0.05 * share
