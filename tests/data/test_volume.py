import collections
import gzip
import itertools
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileDataset, FileMetaDataset

from jaxkd import errors
from jaxkd.data import volume
from jaxkd.data.formats import dicom, nifti
from jaxkd.data.volume import Volume

REAL = pathlib.Path(os.environ.get('JAXKD_REAL_DATA') or pathlib.Path(__file__).parents[2].parent / 'shared' / 'data')
SHAPE = (7, 6, 5)
NOISE = np.random.default_rng(0).integers(-1000, 2000, SHAPE).astype(np.int16)
CANONICAL = [[0, 1], [1, 1], [2, 1]]
ORIENTATIONS = [(order, signs) for order in itertools.permutations(range(3))
                for signs in itertools.product((1, -1), repeat=3)]


def rotation(rng, angle):
    """About a random axis."""
    x, y, z = (axis := rng.normal(size=3)) / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def affine_of(order=(0, 1, 2), signs=(1, 1, 1), sides=(0.8, 1.5, 3.0), turn=0.2, shear=0.0):
    """Columns of a turned and sheared frame, in another order, some reversed. Half of all are left-handed."""
    frame = rotation(np.random.default_rng(5), turn) @ (np.eye(3) + shear * np.eye(3, k=1))
    affine = np.eye(4)
    affine[:3, :3] = frame[:, list(order)] * signs * sides
    affine[:3, 3] = -30, 45, 260
    return affine.astype(np.float32).astype(float)  # what NIfTI can say


def put(path, voxels=NOISE, affine=None, kind=nibabel.Nifti1Image, edit=None, **fields):
    """A NIfTI file. `edit` changes the image, `fields` change the bytes of its header."""
    made = kind(voxels, affine_of() if affine is None else affine, dtype=voxels.dtype)
    if edit:
        edit(made)
    content = made.to_bytes()
    if fields:
        length = made.header.template_dtype.itemsize
        header = np.frombuffer(content[:length], made.header.structarr.dtype).copy()
        for key, value in fields.items():
            header[key] = value
        content = header.tobytes() + content[length:]
    path.write_bytes(gzip.compress(content, 1, mtime=0) if path.name.endswith('.gz') else content)
    return path


def refused(path, match, **options):
    with pytest.raises(errors.BadData, match=match) as e:
        volume.read(path, **options)
    assert str(path) in str(e.value) and str(e.value).endswith('.') and type(e.value) is errors.BadData
    pickle.loads(pickle.dumps(e.value))  # readers send it between processes


def equal(a, b):
    return (a.voxels.dtype == b.voxels.dtype and np.array_equal(a.voxels, b.voxels)
            and np.array_equal(a.affine, b.affine))


def check_mark(found, place, value=777):
    """The one voxel of this value is where it was put, and the axes are RAS."""
    at, = np.argwhere(found.voxels == value)
    assert np.abs(volume.world(found.affine, at) - place).max() < 1e-3
    assert found.voxels[tuple(np.round(volume.index(found.affine, place)).astype(int))] == value
    assert nibabel.io_orientation(found.affine).tolist() == CANONICAL


@pytest.mark.parametrize('turn, shear', [(0, 0), (0.3, 0), (0.2, 0.25)])
def test_all_48_orientations_there_and_back(tmp_path, turn, shear):
    """A marked voxel stays in its place of the world, and a saved file is bit by bit the one that was read."""
    voxels = NOISE.copy()
    voxels[5, 1, 2] = 7777
    for order, signs in ORIENTATIONS:
        affine = affine_of(order, signs, turn=turn, shear=shear)
        one = volume.read(put(tmp_path / 'one.nii', voxels, affine))
        place = volume.world(affine, [5, 1, 2])
        check_mark(one, place, 7777)
        volume.save(tmp_path / 'two.nii.gz', one.voxels, one)
        check_mark(volume.read(tmp_path / 'two.nii.gz'), place, 7777)
        stored = nibabel.load(tmp_path / 'two.nii.gz')
        assert stored.get_data_dtype() == np.int16 and np.array_equal(np.asarray(stored.dataobj), voxels)
        assert np.array_equal(stored.affine, affine)
        assert int(stored.header['qform_code']) == (0 if shear else 1)
        assert equal(one, volume.read(tmp_path / 'two.nii.gz'))
    assert len(ORIENTATIONS) == 48


def test_agrees_with_nibabel(tmp_path):
    for order, signs in ORIENTATIONS:
        path = put(tmp_path / 'x.nii', affine=affine_of(order, signs, shear=0.1))
        other = nibabel.as_closest_canonical(nibabel.load(path))
        found = volume.read(path)
        assert np.array_equal(other.dataobj, found.voxels) and np.allclose(other.affine, found.affine)


@pytest.mark.parametrize('dtype', ['u1', 'i1', 'i2', 'u2', 'i4', 'u4', 'i8', 'f4', 'f8', '>i2', '>f4', '>f8'])
@pytest.mark.parametrize('kind', [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize('name', ['x.nii', 'x.nii.gz'])
def test_types_and_versions(tmp_path, dtype, kind, name):
    order = '>' if dtype[0] == '>' else '<'
    voxels = (NOISE % 100).astype(dtype)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(voxels.dtype)
    made = kind(voxels, affine_of(), header)
    (tmp_path / name).write_bytes(gzip.compress(made.to_bytes()) if name.endswith('gz') else made.to_bytes())
    found = volume.read(tmp_path / name)
    assert found.voxels.dtype == np.dtype(dtype).newbyteorder('=') and np.array_equal(found.voxels, voxels)
    volume.save(tmp_path / 'y.nii', found.voxels, found)
    assert equal(volume.read(tmp_path / 'y.nii'), found)


@pytest.mark.parametrize('shape', [(1,), (1, 1), (1, 1, 1, 1)])
def test_single_further_axes_are_dropped(tmp_path, shape):
    found = volume.read(put(tmp_path / 'x.nii', NOISE.reshape(SHAPE + shape)))
    assert np.array_equal(found.voxels, NOISE)
    volume.save(tmp_path / 'y.nii', found.voxels, found)
    assert nibabel.load(tmp_path / 'y.nii').shape == SHAPE


def test_scale(tmp_path):
    path = put(tmp_path / 'x.nii', scl_slope=0.5, scl_inter=-10)
    found = volume.read(path).voxels
    assert found.dtype == np.float32 and np.array_equal(found, NOISE * 0.5 - 10)
    for slope, inter in ((1, 0), (0, 7), (np.nan, 7)):  # identity, and two ways to say that there is none
        found = volume.read(put(tmp_path / 'x.nii', scl_slope=slope, scl_inter=inter)).voxels
        assert found.dtype == np.int16 and np.array_equal(found, NOISE)
    assert volume.read(put(tmp_path / 'x.nii', scl_slope=1, scl_inter=3)).voxels.dtype == np.float32
    refused(put(tmp_path / 'x.nii', scl_slope=np.inf), 'scale')
    refused(put(tmp_path / 'x.nii', scl_slope=1, scl_inter=np.nan), 'scale')
    refused(put(tmp_path / 'x.nii', scl_slope=3e38), 'infinite')  # finite, the voxels would not be


def test_qform_alone(tmp_path):
    for order, signs in ORIENTATIONS:  # half of all are mirrored: pixdim[0] = -1
        affine = affine_of(order, signs)

        def edit(made):
            made.set_qform(affine, 1)  # noqa: B023
            made.set_sform(None, 0)
        found = volume.read(put(tmp_path / 'x.nii', affine=affine, edit=edit))
        assert np.allclose(found.file_affine, affine, atol=1e-4)
    plain = np.diag([1.0, 2, 3, 1])
    path = put(tmp_path / 'x.nii', affine=plain, pixdim=[0, 1, 2, 3, 0, 0, 0, 0], qform_code=1, sform_code=0)
    assert np.array_equal(volume.read(path).affine, plain)  # pixdim[0] = 0 is +1, as the standard says


def test_forms_that_disagree(tmp_path):
    def shift(mm):
        def edit(made):
            moved = affine_of()
            moved[0, 3] += mm
            made.header.set_qform(moved, 1)
        return edit
    one = volume.read(put(tmp_path / 'x.nii', edit=shift(0.3)))  # voxels are 0.8 mm: below half of one
    assert np.array_equal(one.file_affine, affine_of())  # the sform
    refused(put(tmp_path / 'x.nii', edit=shift(0.5)), 'sform and its qform.*0.5 mm apart')
    far = np.diag([1.0, 1, 1, 1])
    small = np.eye(4)
    small[:3, :3] = rotation(np.random.default_rng(0), 0.02)  # 0.1 voxels on 7, two on 200

    def turn(made):
        made.header.set_qform(small, 1)
    volume.read(put(tmp_path / 'x.nii', affine=far, edit=turn))
    refused(put(tmp_path / 'x.nii', np.zeros((200, 200, 2), np.uint8), far, edit=turn), 'apart')


ODD_QFORM = dict(quaternion=dict(quatern_b=1, quatern_c=1), nan=dict(quatern_d=np.nan),
                 negative=dict(pixdim=[1, -1, 2, 3, 0, 0, 0, 0]), zero=dict(pixdim=[1, 1, 0, 3, 0, 0, 0, 0]),
                 unit=dict(pixdim=[1, np.inf, 1, 1, 0, 0, 0, 0]), far=dict(qoffset_x=np.nan))
ODD_SFORM = dict(zero=dict(srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4), nan=dict(srow_x=[np.nan, 0, 0, 1]),
                 flat=dict(srow_x=[1, 0, 0, 0], srow_y=[1, 0, 0, 0]), huge=dict(srow_x=[0, 0, 0, 1e8]))


@pytest.mark.filterwarnings('ignore')
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(odd_qform=st.sampled_from(['', 'absent', *ODD_QFORM]), odd_sform=st.sampled_from(['', 'absent', *ODD_SFORM]),
       form=st.sampled_from(nifti.FORMS), shift=st.sampled_from([0.0, 40.0]),
       kind=st.sampled_from([nibabel.Nifti1Image, nibabel.Nifti2Image]))
def test_forms_of_a_header(tmp_path, odd_qform, odd_sform, form, shift, kind):
    """The one that is asked for; else the sform, the qform where that is of no use, and none where they disagree."""
    plain, moved = np.diag([1.0, 2, 3, 1]), np.diag([1.0, 2, 3, 1])
    moved[2, 3] = shift
    fields = {**ODD_QFORM.get(odd_qform, {}), **ODD_SFORM.get(odd_sform, {}), 'sform_code': int(odd_sform != 'absent'),
              'qform_code': int(odd_qform != 'absent')}
    path = put(tmp_path / 'x.nii', affine=plain, kind=kind, edit=lambda made: made.header.set_qform(moved, 1), **fields)
    usable = dict(sform=plain) if not odd_sform else {}
    usable |= dict(qform=moved) if not odd_qform else {}
    asked = usable if form == 'auto' else {name: usable[name] for name in usable if name == form}
    if not asked or len(asked) == 2 and shift:
        with pytest.raises(errors.BadData) as e:
            volume.read(path, nifti_form=form)
        assert 'damaged' not in str(e.value) and str(path) in str(e.value)
    else:
        assert np.allclose(volume.read(path, nifti_form=form).file_affine, next(iter(asked.values())))


@pytest.mark.parametrize('kind', [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_quaternion_a_hair_longer_than_one(tmp_path, kind):
    turned = np.diag([-0.8, 0.8, -2.5, 1.0])
    edit = dict(edit=lambda made: made.header.set_qform(turned, 1), affine=turned, kind=kind)
    for length in (1.0000005, 1.0009):
        for code in (0, 1):
            path = put(tmp_path / 'x.nii', quatern_c=length, qform_code=1, sform_code=code, **edit)
            assert np.allclose(volume.read(path).file_affine, turned)
    refused(put(tmp_path / 'x.nii', quatern_c=1.01, qform_code=1, sform_code=0, **edit), 'quaternion is 1.01 long')


@pytest.mark.parametrize('fields, why', [
    (dict(sform_code=0, qform_code=0), 'where its voxels are'),
    (dict(pixdim=[1, 0, 1, 1, 0, 0, 0, 0], sform_code=0, qform_code=1), 'pixdim'),
    (dict(pixdim=[1, np.nan, 1, 1, 0, 0, 0, 0], sform_code=0, qform_code=1), 'pixdim'),
    (dict(pixdim=[1, -1, 1, 1, 0, 0, 0, 0], sform_code=0, qform_code=1), 'pixdim'),
    (dict(quatern_b=1, quatern_c=1, sform_code=0, qform_code=1), 'quaternion is 1.414'),
    (dict(quatern_b=np.nan, sform_code=0, qform_code=1), 'quaternion is nan'),
    (dict(srow_x=[0, 0, 0, 1]), 'singular'),
    (dict(srow_x=[0, 0, 0, 1], srow_y=[0, 1, 0, 1], srow_z=[0, 0, 1, 1]), 'affine has voxels of 0 x'),
    (dict(srow_x=[np.nan, 0, 0, 1]), 'not finite'),
    (dict(srow_x=[1e30, 0, 0, 1]), 'affine has voxels of'),
    (dict(srow_x=[1, 0, 0, np.inf]), 'not finite'),
    (dict(srow_x=[1, 0, 0, 2e5]), 'from the origin'),
    (dict(srow_x=[200, 0, 0, 1]), '200'),
    (dict(srow_x=[1, 1, 0, 0], srow_y=[1, 1, 0, 0], srow_z=[0, 0, 1, 0]), 'singular'),
    (dict(srow_x=[1, 1, 0, 0], srow_y=[1, 1.001, 0, 0], srow_z=[0, 0, 1, 0]), 'singular'),
    (dict(xyzt_units=1), 'unit'),
    (dict(xyzt_units=3), 'unit'),
    (dict(dim=[2, 42, 5, 1, 1, 1, 1, 1]), 'axes'),
    (dict(dim=[0, 7, 6, 5, 1, 1, 1, 1]), 'axes'),
    (dict(dim=[8, 7, 6, 5, 1, 1, 1, 1]), 'not start|axes|not a NIfTI'),
    (dict(dim=[3, 7, -6, 5, 1, 1, 1, 1]), 'axes'),
    (dict(dim=[3, 7, 0, 5, 1, 1, 1, 1]), 'axes'),
    (dict(dim=[3, 7, 6, 6, 1, 1, 1, 1]), 'claims'),
    (dict(dim=[3, 7, 6, 4, 1, 1, 1, 1]), 'claims|follow'),
    (dict(dim=[4, 7, 6, 1, 5, 1, 1, 1]), 'more than one volume'),
    (dict(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), '30000 x 30000 x 30000.*max_voxels'),
    (dict(datatype=128, bitpix=24), 'type 128'),
    (dict(datatype=32, bitpix=64), 'type 32'),
    (dict(datatype=2304, bitpix=32), 'type 2304'),
    (dict(datatype=1, bitpix=1), 'type 1'),
    (dict(datatype=999), 'type 999'),
    (dict(bitpix=8), 'bits'),
    (dict(datatype=512), None),
    (dict(datatype=8), 'bits'),
    (dict(vox_offset=0), 'byte 0'),
    (dict(vox_offset=340), 'byte 340'),
    (dict(vox_offset=352.5), 'byte 352.5'),
    (dict(vox_offset=np.nan), 'byte nan'),
    (dict(vox_offset=1e30), 'byte 1'),
    (dict(vox_offset=354), 'claims'),
    (dict(magic=b'ni1'), 'one piece'),
    (dict(magic=b''), 'one piece'),
    (dict(sizeof_hdr=349), 'does not start'),
])
@pytest.mark.parametrize('name', ['x.nii', 'x.nii.gz'])
def test_headers_that_lie(tmp_path, fields, why, name):
    path = put(tmp_path / name, **fields)
    if why is None:
        assert np.array_equal(volume.read(path).voxels, NOISE.view(np.uint16))
    else:
        refused(path, why)


def test_several_volumes_and_cap(tmp_path):
    refused(put(tmp_path / 'x.nii', np.zeros((4, 4, 4, 2), np.int16)), 'more than one volume')
    path = put(tmp_path / 'x.nii')
    assert volume.read(path, max_voxels=210).voxels.size == 210  # at the cap
    refused(path, '7 x 6 x 5.*max_voxels = 209', max_voxels=209)


def test_voxels_that_are_not_finite(tmp_path):
    for value in (np.nan, np.inf, -np.inf):
        for dtype in ('f4', 'f8'):
            voxels = NOISE.astype(dtype)
            voxels[3, 3, 3] = value
            refused(put(tmp_path / 'x.nii.gz', voxels), 'NaN or infinite')


def test_amounts_that_are_wrong(tmp_path):
    good = put(tmp_path / 'good.nii').read_bytes()
    packed = gzip.compress(good, mtime=0)
    for name, content in {
        'empty.nii': b'', 'empty.nii.gz': b'', 'short.nii': good[:200], 'short.nii.gz': gzip.compress(good[:200]),
        'cut.nii': good[:-1], 'cut.nii.gz': gzip.compress(good[:-1]), 'more.nii': good + b'\0',
        'more.nii.gz': gzip.compress(good + b'\0'), 'tail.nii.gz': packed + b'x', 'zeros.nii.gz': packed + bytes(100),
        'text.nii': b'hello ' * 100, 'text.nii.gz': b'hello ' * 100, 'nothing.nii.gz': gzip.compress(b''),
        'end.nii.gz': packed[:-1], 'half.nii.gz': packed[:len(packed) // 2], 'head.nii.gz': packed[:9],
        'header.nii': good[:348], 'second.nii.gz': packed + gzip.compress(b'more'), 'two.nii.gz': packed + packed,
        'crc.nii.gz': packed[:-8] + struct.pack('<II', zlib.crc32(good) ^ 1, len(good)),
        'length.nii.gz': packed[:-4] + struct.pack('<I', len(good) + 1),
    }.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, 'cannot be used|damaged')
    members = [gzip.compress(part) for part in (good[:500], good[500:], b'')]
    (tmp_path / 'members.nii.gz').write_bytes(b''.join(members))
    assert np.array_equal(volume.read(tmp_path / 'members.nii.gz').voxels, NOISE)
    (tmp_path / 'wrong_name.nii').write_bytes(packed)
    assert np.array_equal(volume.read(tmp_path / 'wrong_name.nii').voxels, NOISE)


def test_extensions_are_passed_over(tmp_path):
    def edit(made):
        made.header.extensions.append(nibabel.nifti1.Nifti1Extension('comment', b'Canary Name ' * 300))
    found = volume.read(put(tmp_path / 'x.nii.gz', edit=edit))
    assert np.array_equal(found.voxels, NOISE)
    volume.save(tmp_path / 'y.nii', found.voxels, found)
    assert b'Canary' not in (tmp_path / 'y.nii').read_bytes()


def test_saved_header_says_nothing_of_the_patient(tmp_path):
    path = put(tmp_path / 'x.nii', descrip=b'Canary', aux_file=b'Canary', intent_name=b'Canary')
    assert path.read_bytes().count(b'Canary') == 3
    found = volume.read(path)
    volume.save(tmp_path / 'Other' / 'y.nii', found.voxels, found)
    volume.save(tmp_path / 'y.nii.gz', found.voxels, found)
    content = (tmp_path / 'Other' / 'y.nii').read_bytes()
    packed = (tmp_path / 'y.nii.gz').read_bytes()
    assert content == gzip.decompress(packed) and len(content) == 352 + 2 * NOISE.size
    assert b'Canary' not in content and packed[3:8] == bytes(5)  # no name and no time in the gzip header either
    assert nibabel.load(tmp_path / 'y.nii.gz').header.get_xyzt_units()[0] == 'mm'


def test_things_that_are_no_volume(tmp_path):
    os.mkfifo(tmp_path / 'pipe.nii')
    (tmp_path / 'folder.nii').mkdir()
    (tmp_path / 'x').mkdir()
    (tmp_path / 'x' / 'one').mkdir()
    (tmp_path / 'x' / 'two').mkdir()
    os.symlink('loop.nii', tmp_path / 'loop.nii')
    for name in ('a.hdr', 'a.img', 'a.mha', 'a.mhd', 'a.nhdr', 'a.dcm', 'a.png', 'a'):
        (tmp_path / name).write_bytes(b'x')
    for name, why in {'pipe.nii': 'regular', 'folder.nii': 'two files', 'x': 'two files', 'a.hdr': 'pair',
                      'a.img': 'pair', 'a.mha': 'MetaImage.*Convert it to .nii.gz', 'a.mhd': 'MetaImage',
                      'a.nhdr': 'one .nrrd', 'a.dcm': 'no DICOM file', 'a.png': 'neither', 'a': 'neither',
                      'loop.nii': 'cannot be used'}.items():
        refused(tmp_path / name, why)
    refused('/dev/zero', 'cannot be used')
    refused('a\0b.nii', 'damaged')
    refused('x' * 300 + '.nii', 'cannot be used')
    for path in (tmp_path / 'none.nii', tmp_path / 'a' / 'x.nii', tmp_path / 'none'):
        with pytest.raises(errors.MissingInput, match='does not exist'):
            volume.read(path)


@pytest.mark.parametrize('library, package', [('nibabel', 'nibabel'), ('nrrd', 'pynrrd'), ('pydicom', 'pydicom')])
def test_a_library_that_is_not_installed(tmp_path, monkeypatch, library, package):
    """It is never taken for a damaged file: that would be skipped, and all others with it."""
    nifti, one = put(tmp_path / 'x.nii'), Volume(NOISE, np.eye(4))
    nrrd_file(tmp_path / 'x.nrrd')
    series(tmp_path / 'x')
    monkeypatch.setitem(sys.modules, library, None)  # import raises ModuleNotFoundError
    needs = {nifti: {'nibabel'}, tmp_path / 'x.nrrd': {'nibabel', 'nrrd'}, tmp_path / 'x': {'nibabel', 'pydicom'}}
    for path, libraries in needs.items():
        if library in libraries:
            with pytest.raises(errors.ConfigError, match=f'pip install {package}.$') as e:
                volume.read(path)
            assert str(path) in str(e.value)
        else:
            assert volume.read(path).voxels.size == NOISE.size
    if library == 'nibabel':
        with pytest.raises(errors.ConfigError, match='y.nii needs .*pip install nibabel.$'):
            volume.save(tmp_path / 'y.nii', NOISE, one)
        assert not (tmp_path / 'y.nii').exists()
    with pytest.raises(errors.MissingInput, match='does not exist'):
        volume.read(tmp_path / 'none.nii')


def test_libraries_are_imported_when_a_file_is_read():
    code = 'import sys; from jaxkd.data.volume import FIXED; print({"nibabel", "pydicom", "nrrd"} & {*sys.modules})'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout == 'set()\n', done.stderr


def peak(path):
    """MiB that were taken at most while `path` was refused."""
    tracemalloc.start()
    try:
        with pytest.raises(errors.BadData):
            volume.read(path)
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def test_bombs_are_refused_with_little_memory(tmp_path):
    head = put(tmp_path / 'x.nii').read_bytes()
    volume.read(tmp_path / 'x.nii')  # imports
    (tmp_path / 'after.nii.gz').write_bytes(gzip.compress(head + bytes(2**25), 9))
    (tmp_path / 'member.nii.gz').write_bytes(gzip.compress(head) + gzip.compress(bytes(2**25), 9))
    put(tmp_path / 'claims.nii', dim=[3, 1000, 1000, 1000, 1, 1, 1, 1])
    put(tmp_path / 'claims.nii.gz', dim=[3, 1000, 1000, 1000, 1, 1, 1, 1])
    put(tmp_path / 'offset.nii.gz', vox_offset=2**26)
    with open(tmp_path / 'sparse.nii', 'wb') as f:
        f.write(head)
        f.truncate(2**40)
    for name in ('after.nii.gz', 'member.nii.gz', 'claims.nii', 'claims.nii.gz', 'offset.nii.gz', 'sparse.nii'):
        assert peak(tmp_path / name) < 2, name


def test_memory_of_a_good_file(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 9, (128, 96, 64)).astype(np.int16)
    path = put(tmp_path / 'x.nii.gz', voxels)
    put(tmp_path / 'y.nii.gz', voxels, scl_slope=2)
    for name, most in (('x.nii.gz', 1.5), ('y.nii.gz', 3.7)):  # int16, and float32 beside it and its finite mask
        volume.read(path)
        tracemalloc.start()
        volume.read(tmp_path / name)
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert taken < most * voxels.nbytes, name


def mutated(rng, good):
    data = bytearray(good)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(data)))
        kind = rng.integers(4)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at:at + 4] = rng.bytes(4)
        elif kind == 2:
            del data[at:at + int(rng.integers(1, 40))]
        else:
            data[at:at] = rng.bytes(int(rng.integers(1, 20)))
    return bytes(data) or b'x'


def refill(path, content):
    with open(path, 'r+b') as f:  # opening for writing anew is slow on some file systems
        f.write(content)
        f.truncate()


def attempt(path, content, most=10**6):
    """1 when it was refused; else what was read is a volume that can be believed."""
    refill(path, content)
    try:
        found = volume.read(path, max_voxels=most)
    except errors.BadData as e:
        assert str(path) in str(e)
        return 1
    assert found.voxels.ndim == 3 and 0 < found.voxels.size <= most and np.isfinite(found.voxels).all()
    sides = volume.spacing(found.affine)
    assert (0.01 <= sides).all() and (sides <= 100).all() and abs(np.linalg.det(found.affine)) > 1e-8
    return 0


def unpacked(data):
    """What Python's own gzip makes of it; None where it refuses."""
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return None


def test_200_flipped_bits_of_a_gz_file(tmp_path):
    """A flip that changes what the file holds is refused; one in a header field without data does nothing.

    Else a flip may be refused or do nothing: the flag "this is text", the bits that fill up the last byte, or a
    reference to an earlier place that holds the same. No flip ever gives other voxels.
    """
    rng, path = np.random.default_rng(2), tmp_path / 'x.nii.gz'
    smooth = (np.add.outer(np.arange(16), np.arange(20))[..., None] * np.ones(12)).astype(np.int16)
    noise = rng.normal(size=(16, 20, 12)).astype(np.float32)
    for voxels in (smooth, noise):
        plain = nibabel.Nifti1Image(voxels, affine_of()).to_bytes()
        with open(path, 'wb') as f, gzip.GzipFile('x.nii', 'wb', fileobj=f, mtime=1) as packed:
            packed.write(plain)
        good, whole = path.read_bytes(), volume.read(path)
        assert good[3] == 8 and good[10:16] == b'x.nii\0'
        silent = range(8 * 4, 8 * 15)  # time, XFL, OS and the name but for its end
        others = rng.permutation([bit for bit in range(8 * len(good)) if bit not in silent])[:200]
        seen = collections.Counter()
        for bit in (*silent, *others.tolist()):
            data = bytearray(good)
            data[bit // 8] ^= 1 << bit % 8
            refill(path, data)
            where = 'silent' if bit in silent else 'equal' if unpacked(data) == plain else 'changed'
            try:
                assert equal(volume.read(path), whole), f'bit {bit} gave other voxels'
                seen[where, 'same'] += 1
            except errors.BadData:
                seen[where, 'refused'] += 1
        print(dict(seen))
        assert seen['silent', 'same'] == len(silent) == 88 and not seen['silent', 'refused']
        assert seen['changed', 'refused'] == 200 - seen['equal', 'same'] - seen['equal', 'refused'] > 190
        assert not seen['changed', 'same']


@pytest.mark.parametrize('kind', [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_3000_mutated_headers(tmp_path, kind):
    rng, path = np.random.default_rng(3), tmp_path / 'x.nii'
    good = put(path, kind=kind, edit=lambda made: made.header.set_qform(affine_of(), 1)).read_bytes()
    length = 352 if kind is nibabel.Nifti1Image else 544
    assert attempt(path, good) == 0
    count = sum(attempt(path, mutated(rng, good[:length]) + good[length:]) for _ in range(2700))
    tracemalloc.start()  # slow, so only for some
    count += sum(attempt(path, mutated(rng, good[:length]) + good[length:]) for _ in range(300))
    assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    tracemalloc.stop()
    assert 2000 < count < 2900


def test_threads(tmp_path):
    paths = [put(tmp_path / f'{i}.nii.gz', NOISE + np.int16(i)) for i in range(4)]
    good = [False] * 4

    def work(i):
        good[i] = all(np.array_equal(volume.read(paths[i]).voxels, NOISE + np.int16(i)) for _ in range(20))
    threads = [threading.Thread(target=work, args=[i]) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(good)


def test_save_on_a_grid_of_ones_own(tmp_path):
    affine = volume.grid((1, 2, 3), (1, 2, 4), SHAPE)
    mine = Volume(NOISE, affine)
    volume.save(tmp_path / 'x.nii.gz', NOISE > 0, mine)
    found = volume.read(tmp_path / 'x.nii.gz')
    assert found.voxels.dtype == np.uint8 and np.array_equal(found.voxels, NOISE > 0)
    assert np.array_equal(found.affine, affine) and np.allclose(volume.middle(found), (1, 2, 3))


def test_save_refuses(tmp_path):
    mine = Volume(NOISE, np.eye(4))
    for name, voxels, why in (('x.nii', NOISE[1:], 'Resample'), ('x.png', NOISE, 'nii.gz'),
                              ('x.nii', NOISE.astype(complex), 'complex'), ('x.nii', NOISE.astype('f2'), 'float16'),
                              ('x.nii', np.full(SHAPE, np.nan), 'finite')):
        with pytest.raises(errors.BadData, match=why):
            volume.save(tmp_path / name, voxels, mine)
    with pytest.raises(errors.BadData, match='singular'):
        volume.save(tmp_path / 'x.nii', NOISE, Volume(NOISE, np.ones((4, 4))))
    (tmp_path / 'file').write_bytes(b'')
    with pytest.raises(errors.CannotWrite):
        volume.save(tmp_path / 'file' / 'x.nii', NOISE, mine)
    assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_helpers():
    affine = volume.grid((10, 20, 30), (1, 2, 3), (5, 4, 3))
    assert affine.tolist() == [[1, 0, 0, 8], [0, 2, 0, 17], [0, 0, 3, 27], [0, 0, 0, 1]]
    assert volume.spacing(affine).tolist() == [1, 2, 3]
    assert volume.world(affine, [[2, 1.5, 1], [0, 0, 0]]).tolist() == [[10, 20, 30], [8, 17, 27]]
    assert volume.index(affine, [10, 20, 30]).tolist() == [2, 1.5, 1]
    assert volume.middle(Volume(np.zeros((5, 4, 3)), affine)).tolist() == [10, 20, 30]
    assert volume.spacing(affine_of((2, 0, 1), (1, -1, 1))) == pytest.approx([0.8, 1.5, 3.0])


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_blob_keeps_its_place(seed):
    """Its centroid on any turned grid is its world position to a twentieth of a voxel, from any sheared source."""
    rng = np.random.default_rng(seed)
    shape, sides = rng.integers(36, 48, 3), rng.uniform(0.7, 1.5, 3)
    frame = rotation(rng, rng.uniform(0, 3)) @ (np.eye(3) + np.triu(rng.uniform(-0.3, 0.3, (3, 3)), 1))
    source = np.eye(4)
    source[:3, :3] = frame * rng.choice([-1, 1], 3) * sides
    source[:3, 3] = rng.uniform(-200, 200, 3)
    place = volume.world(source, (shape - 1) / 2 + rng.uniform(-2, 2, 3))
    every = volume.world(source, np.stack(np.indices(shape), axis=-1))
    blob = np.exp(-np.sum((every - place)**2, axis=-1) / (2 * 2.5**2))
    sides = rng.uniform(0.8, 2.5, 3)  # finer and coarser
    size = np.ceil(30 / sides).astype(int)
    target = volume.grid((0, 0, 0), sides, size)
    target[:3, :3] = rotation(rng, rng.uniform(0, 3)) @ target[:3, :3]
    target[:3, 3] = place + rng.uniform(-2, 2, 3) - target[:3, :3] @ (size - 1) / 2
    found = volume.resample(Volume(blob, source), target, size)
    assert found.shape == tuple(size) and found.dtype == np.float32
    centroid = np.stack(np.indices(size), axis=-1).reshape(-1, 3).T @ found.ravel() / found.sum()
    assert np.abs(centroid - volume.index(target, place)).max() < 0.05


def test_resampling_on_its_own_grid_is_exact():
    for order, signs in ORIENTATIONS[::5]:
        affine = affine_of(order, signs, shear=0.2)
        assert np.allclose(volume.resample(Volume(NOISE, affine), affine, SHAPE), NOISE, atol=0.01)
        assert np.array_equal(volume.resample(Volume(NOISE, affine), affine, SHAPE, order=0), NOISE)


def test_what_is_linear_stays_so():
    """Any linear function of the place is met exactly, also where the source is smoothed, away from its border."""
    x, y, z = np.moveaxis(volume.world(affine := affine_of(shear=0.2), np.stack(np.indices((40, 30, 20)), -1)), -1, 0)
    source = Volume(x + 2 * y - 3 * z, affine)
    for sides in ((0.5, 0.5, 0.5), (2, 2, 2)):
        target = volume.grid(volume.middle(source), sides, (4, 3, 2))
        places = volume.world(target, np.stack(np.indices((4, 3, 2)), -1))
        assert np.allclose(volume.resample(source, target, (4, 3, 2)), places @ (1, 2, -3), atol=0.01)


def test_outside_is_fill():
    one = Volume(np.full((3, 3, 3), 8.0), np.eye(4))
    found = volume.resample(one, volume.grid((1, 1, 1), (0.5, 1, 1), (13, 3, 3)), (13, 3, 3), fill=-4)
    # Centres from -2 to 4 in halves: one whole voxel beyond the last centre is fill, half way is half.
    assert found[:, 1, 1].tolist() == [-4, -4, -4, 2, 8, 8, 8, 8, 8, 2, -4, -4, -4]
    far = volume.resample(one, volume.grid((500, 0, 0), (1, 1, 1), (2, 3, 4)), (2, 3, 4), fill=-4)
    assert far.shape == (2, 3, 4) and far.dtype == np.float32 and (far == -4).all()


def test_smoothing_has_the_stated_width():
    """A single voxel, seen on a grid four times as coarse along one axis."""
    voxels = np.zeros((65, 9, 9))
    voxels[32, 4, 4] = 1
    found = volume.resample(Volume(voxels, np.eye(4)), volume.grid((32, 4, 4), (4, 1, 1), (9, 3, 3)), (9, 3, 3))
    sigma = np.sqrt((4**2 - 1) / (8 * np.log(2)))
    expected = np.exp(-(np.arange(-4, 5) * 4)**2 / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))
    assert np.allclose(found[:, 1, 1], expected, atol=1e-4) and expected[4] == pytest.approx(0.2425, abs=1e-4)
    assert (found[:, 0] == 0).all() and (found[:, :, 2] == 0).all()  # the other axes are left alone
    labels = volume.resample(Volume(voxels, np.eye(4)), volume.grid((32, 4, 4), (4, 1, 1), (9, 3, 3)), (9, 3, 3), 0)
    assert labels.sum() == 1 and labels[4, 1, 1] == 1  # labels are not smoothed


def test_smoothing_removes_what_the_grid_cannot_show():
    board = Volume(np.indices((40, 40, 40)).sum(axis=0) % 2 * 100.0, np.eye(4))
    fine = volume.resample(board, volume.grid((20, 20, 20), (1, 1, 1), (5, 5, 5)), (5, 5, 5))
    coarse = volume.resample(board, volume.grid((20, 20, 20), (4, 4, 4), (5, 5, 5)), (5, 5, 5))
    turned = volume.grid((20, 20, 20), (4, 4, 4), (5, 5, 5))
    turned[:3, :3] = rotation(np.random.default_rng(1), 1) @ turned[:3, :3]
    turned[:3, 3] = 20 - turned[:3, :3] @ (2, 2, 2)
    assert fine.std() > 49 and np.abs(coarse - 50).max() < 0.1
    assert np.abs(volume.resample(board, turned, (5, 5, 5)) - 50).max() < 0.5


def test_a_crop_is_part_of_the_whole():
    """Only what the grid needs is filtered, and it makes no difference."""
    rng = np.random.default_rng(4)
    source = Volume(rng.normal(size=(60, 50, 40)), affine_of(shear=0.2, sides=(1, 1, 1.5)))
    whole = volume.grid(volume.middle(source), (2, 2.5, 2), (40, 40, 40))
    small = whole.copy()
    small[:3, 3] = volume.world(whole, (17, 15, 18))
    part = volume.resample(source, whole, (40, 40, 40))[17:23, 15:20, 18:22]
    assert part.std() > 0.05
    assert np.allclose(volume.resample(source, small, (6, 5, 4)), part, atol=1e-5)


def test_order_is_checked():
    with pytest.raises(errors.ConfigError, match='order'):
        volume.resample(Volume(NOISE, np.eye(4)), np.eye(4), SHAPE, order=3)


# DICOM

OBLIQUE = rotation(np.random.default_rng(8), 0.5)
UID = '1.2.826.0.1.3680043.8.498.1'


def series(folder, voxels=NOISE, frame=OBLIQUE, sides=(0.8, 1.5, 3.0), origin=(-20.0, 30, 100), modality='CT',
           seed=0, edit=None, step=None, **tags):
    """A series whose column, row and slice axes are the columns of `frame` (LPS); shuffled names. Its RAS affine."""
    folder.mkdir(exist_ok=True)
    names = np.random.default_rng(seed).permutation(voxels.shape[2])
    step = frame[:, 2] * sides[2] if step is None else np.asarray(step)
    for k in range(voxels.shape[2]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        meta.MediaStorageSOPInstanceUID = f'{UID}.{k + 1}'
        d = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        d.SOPClassUID, d.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        d.PatientName, d.Modality, d.SeriesInstanceUID = 'Canary', modality, UID
        d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = *voxels.shape[1::-1], 1, 'MONOCHROME2'
        d.BitsAllocated = d.BitsStored = 8 * voxels.itemsize
        d.HighBit, d.PixelRepresentation = d.BitsStored - 1, int(voxels.dtype.kind == 'i')
        d.PixelSpacing = [f'{sides[1]:.8g}', f'{sides[0]:.8g}']  # from row to row first
        d.ImageOrientationPatient = [f'{x:.12g}' for x in frame[:, :2].T.ravel()]
        d.ImagePositionPatient = [f'{x:.10g}' for x in np.array(origin) + k * step]
        d.PixelData = voxels[:, :, k].tobytes(order='F')
        if modality != 'MR':
            d.RescaleSlope, d.RescaleIntercept = 1, 0
        for key, value in tags.items():
            setattr(d, key, value)
        if edit:
            edit(d, k)
        d.save_as(folder / f'{names[k]:04d}.dcm', enforce_file_format=True)
    affine = np.eye(4)
    affine[:3] = np.column_stack([frame[:, 0] * sides[0], frame[:, 1] * sides[1], step, origin])
    return np.diag([-1, -1, 1, 1]) @ affine


def test_dicom_series(tmp_path):
    voxels = NOISE.copy()
    voxels[5, 1, 2] = 7777
    for i, (order, signs) in enumerate(ORIENTATIONS[::7]):
        frame = (OBLIQUE * signs)[:, list(order)]
        affine = series(tmp_path / str(i), voxels, frame, seed=i)
        found = volume.read(tmp_path / str(i))
        assert found.voxels.dtype == np.int16
        check_mark(found, volume.world(affine, [5, 1, 2]), 7777)
        volume.save(tmp_path / 'x.nii.gz', found.voxels, found)
        check_mark(volume.read(tmp_path / 'x.nii.gz'), volume.world(affine, [5, 1, 2]), 7777)
        if np.linalg.det(frame) > 0:  # else the slices go down the normal, and were sorted to go up
            assert np.allclose(found.file_affine, affine, atol=1e-4)
            assert np.array_equal(nibabel.load(tmp_path / 'x.nii.gz').dataobj, voxels)


@pytest.mark.filterwarnings('ignore')
def test_dicom_scale(tmp_path):
    series(tmp_path / 'mr', modality='MR')
    assert np.array_equal(np.sort(volume.read(tmp_path / 'mr').voxels, axis=None), np.sort(NOISE, axis=None))
    series(tmp_path / 'ct', RescaleIntercept=-1024)
    ct = volume.read(tmp_path / 'ct')
    assert ct.voxels.dtype == np.float32
    assert np.array_equal(np.sort(ct.voxels, axis=None), np.sort(NOISE - 1024.0, axis=None))

    def edit(d, k):
        d.RescaleSlope = k + 1
    series(tmp_path / 'pt', frame=np.eye(3), modality='PT', edit=edit)  # the stored axes are L, P, S
    assert np.array_equal(volume.read(tmp_path / 'pt').voxels[::-1, ::-1], NOISE * np.arange(1.0, 6))
    for tags in (dict(RescaleSlope=0), dict(RescaleSlope='nan'), dict(RescaleIntercept='inf')):
        series(tmp_path / 'bad', **tags)
        refused(tmp_path / 'bad', 'scale')


def test_dicom_unused_bits_are_ignored(tmp_path):
    """Old scanners kept an overlay above the twelve bits of a pixel."""
    voxels = (NOISE + 1000).astype(np.uint16)
    series(tmp_path / 'x', voxels | 0x8000, frame=np.eye(3), BitsStored=12, HighBit=11)
    assert np.array_equal(volume.read(tmp_path / 'x').voxels[::-1, ::-1], voxels)


def test_dicom_tilted_gantry(tmp_path):
    """The slices climb askew: a sheared grid, not an error."""
    affine = series(tmp_path / 'x', frame=np.eye(3), step=(0, 0.9, 3.0))
    assert np.allclose(volume.read(tmp_path / 'x').file_affine, affine)


def test_dicom_odd_files_beside(tmp_path):
    series(tmp_path / 'x')
    (tmp_path / 'x' / 'DICOMDIR').write_bytes(b'x')
    (tmp_path / 'x' / '.hidden').write_bytes(b'x')
    assert volume.read(tmp_path / 'x').voxels.shape
    (tmp_path / 'x' / '0017.dcm').write_bytes(b'x')  # named as the slices: not simply passed over
    refused_file(tmp_path / 'x', '0017.dcm cannot be used: it is no DICOM file')
    (tmp_path / 'x' / '0017.dcm').unlink()
    os.mkfifo(tmp_path / 'x' / 'pipe')
    refused_file(tmp_path / 'x', 'pipe cannot be used: it is not a regular')


def test_what_is_no_slice_is_passed_over_and_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dicom, '_reported', set())
    series(tmp_path / 'x')
    whole = volume.read(tmp_path / 'x')
    for name in ('LICENSE', 'Thumbs.db', 'DICOMDIR', 'list.csv'):
        (tmp_path / 'x' / name).write_bytes(b'any bytes')
    (tmp_path / 'x' / '__MACOSX').mkdir()

    def structures(d, k):
        d.SOPClassUID, d.Modality = pydicom.uid.RTStructureSetStorage, 'RTSTRUCT'
        for key in ('Rows', 'Columns', 'PixelData', 'ImagePositionPatient'):
            delattr(d, key)

    def localizer(d, k):
        d.ImageType, d.ImageOrientationPatient = ['ORIGINAL', 'PRIMARY', 'LOCALIZER'], [0, 1, 0, 0, 0, -1]
    for name, edit, uid in (('rs', structures, UID + '.7'), ('scout', localizer, UID)):
        series(tmp_path / name, NOISE[:, :, :1], edit=edit, SeriesInstanceUID=uid)
        (tmp_path / name / '0000.dcm').rename(tmp_path / 'x' / f'{name}.dcm')
    capsys.readouterr()
    assert equal(volume.read(tmp_path / 'x'), whole)
    said = capsys.readouterr().out
    for part in ('4 x no DICOM file, e.g. DICOMDIR', '1 x a folder, e.g. __MACOSX', '1 x a localizer, e.g. scout.dcm',
                 '1 x RT Structure Set Storage (RTSTRUCT), e.g. rs.dcm'):
        assert part in said
    volume.read(tmp_path / 'x')
    assert capsys.readouterr().out == ''


def test_units_of_pet_are_said_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dicom, '_reported', set())
    for name, units, said in (('a', 'BQML', 'PET in BQML (Bq/ml, no SUV)'), ('b', 'BQML', ''),
                              ('c', 'GML', 'PET in GML (g/ml, SUV by body weight)'), ('d', '', 'PET in no Units.')):
        series(tmp_path / name, frame=np.eye(3), modality='PT', Units=units)
        volume.read(tmp_path / name)
        line = capsys.readouterr().out
        assert said in line and line.count('\n') == bool(said)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('implicit, little, meta', [(True, True, False), (False, True, False), (False, False, False),
                                                    (False, True, True)])
def test_dicom_without_the_header_of_part_10(tmp_path, implicit, little, meta):
    voxels = NOISE if little else NOISE.byteswap()
    series(tmp_path / 'x', frame=np.eye(3))
    series(tmp_path / 'bare', voxels, frame=np.eye(3))
    for path in (tmp_path / 'bare').iterdir():
        d = pydicom.dcmread(path)
        if meta:  # group 2, but no preamble
            path.write_bytes(path.read_bytes()[132:])
        else:
            bare = pydicom.Dataset({e.tag: e for e in d})
            pydicom.dcmwrite(path, bare, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
        assert path.read_bytes()[128:132] != b'DICM'
    assert equal(volume.read(tmp_path / 'bare'), volume.read(tmp_path / 'x'))


def enhanced(path, voxels=NOISE, shared=('orientation', 'spacing'), slopes=None, edit=None, modality='CT'):
    """One file of many frames, geometry in functional groups; slices along z, from -20, 30, 100 (LPS)."""
    series(path.parent / 'frame', voxels[:, :, :1], frame=np.eye(3), modality=modality)
    d = pydicom.dcmread(path.parent / 'frame' / '0000.dcm')
    n = voxels.shape[2]
    place = dict(orientation=('PlaneOrientationSequence', dict(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])),
                 spacing=('PixelMeasuresSequence', dict(PixelSpacing=[1.5, 0.8], SliceThickness=3)))

    def item(**values):
        out = pydicom.Dataset()
        for key, value in values.items():
            setattr(out, key, value)
        return out

    def groups(names, **more):
        return item(**{key: [item(**values)] for key, values in [*(place[name] for name in names), *more.items()]})
    frames = []
    for k in range(n):
        more = dict(PlanePositionSequence=dict(ImagePositionPatient=[-20, 30, 100 + 3 * k]))
        if slopes is not None:
            more['PixelValueTransformationSequence'] = dict(RescaleSlope=slopes[k], RescaleIntercept=-1024)
        frames.append(groups([name for name in place if name not in shared], **more))
    for key in ('ImagePositionPatient', 'ImageOrientationPatient', 'PixelSpacing', 'RescaleSlope', 'RescaleIntercept'):
        if key in d:
            delattr(d, key)
    d.SOPClassUID, d.NumberOfFrames, d.PerFrameFunctionalGroupsSequence = pydicom.uid.EnhancedCTImageStorage, n, frames
    d.SharedFunctionalGroupsSequence = [groups(shared)]
    d.PixelData = voxels.tobytes(order='F')
    if edit:
        edit(d)
    d.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize('modality', ['CT', 'MR'])
@pytest.mark.parametrize('shared', [(), ('orientation',), ('orientation', 'spacing')])
def test_enhanced_file_of_many_frames(tmp_path, shared, modality):
    (tmp_path / 'one').mkdir()
    path = enhanced(tmp_path / 'one' / 'x.dcm', shared=shared, modality=modality)
    series(tmp_path / 'many', frame=np.eye(3))
    assert equal(volume.read(tmp_path / 'one'), volume.read(tmp_path / 'many'))
    assert equal(volume.read(path), volume.read(tmp_path / 'many'))
    slopes = np.arange(1.0, 6)
    scaled = volume.read(enhanced(path, shared=shared, slopes=slopes, modality=modality)).voxels
    assert np.array_equal(scaled[::-1, ::-1], (NOISE * slopes - 1024).astype(np.float32))


def test_files_of_many_frames_that_are_refused(tmp_path):
    def forget(d):
        del d.PerFrameFunctionalGroupsSequence

    def fewer(d):
        d.PerFrameFunctionalGroupsSequence = d.PerFrameFunctionalGroupsSequence[:2]

    def same(d):
        d.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0].ImagePositionPatient = [-20, 30, 100]
    for edit, why in ((forget, 'several frames'), (fewer, '5 frames and describes 2'),
                      (same, 'x.dcm, frame 1 and x.dcm, frame 2 are slices of the same place')):
        refused_file(enhanced(tmp_path / 'x.dcm', edit=edit), why)
    series(tmp_path / 'mosaic', edit=lambda d, k: setattr(d, 'ImageType', ['ORIGINAL', 'PRIMARY', 'M', 'MOSAIC']))
    refused_file(tmp_path / 'mosaic', 'Siemens mosaic.*dcm2niix')
    series(tmp_path / 'one', NOISE[:, :, :1])
    refused_file(tmp_path / 'one' / '0000.dcm', 'Give the folder of a whole series')


def refused_file(folder, match):
    with pytest.raises(errors.BadData, match=match) as e:
        volume.read(folder)
    assert 'Canary' not in str(e.value)


@pytest.mark.parametrize('change, why', [
    (lambda d, k: setattr(d, 'Modality', 'RTSTRUCT'), 'two files, it holds 0; .*RTSTRUCT'),
    (lambda d, k: k == 3 and setattr(d, 'Modality', 'OT'), r'\(OT\), though'),
    (lambda d, k: delattr(d, 'Modality'), 'not a CT, MR or PT slice'),
    (lambda d, k: setattr(d, 'NumberOfFrames', 2), 'several frames'),
    (lambda d, k: delattr(d, 'ImagePositionPatient'), 'where it lies'),
    (lambda d, k: delattr(d, 'ImageOrientationPatient'), 'where it lies'),
    (lambda d, k: delattr(d, 'PixelSpacing'), 'no PixelSpacing'),
    (lambda d, k: delattr(d, 'PixelData'), 'damaged'),
    (lambda d, k: setattr(d, 'PhotometricInterpretation', 'PALETTE COLOR'), 'PALETTE COLOR, 1 x 16 bits, not grey'),
    (lambda d, k: setattr(d, 'HighBit', 14), 'BitsStored 16 and HighBit 14'),
    (lambda d, k: setattr(d, 'BitsStored', 17), 'BitsStored 17'),
    (lambda d, k: setattr(d, 'SamplesPerPixel', 3), 'grey'),
    (lambda d, k: setattr(d, 'BitsAllocated', 32), 'grey'),
    (lambda d, k: setattr(d, 'Rows', 100), 'damaged'),
    (lambda d, k: (setattr(d, 'Rows', 65535), setattr(d, 'Columns', 65535)), 'max_voxels'),
    (lambda d, k: setattr(d, 'PixelData', bytes(10**6)), 'more data than pixels'),
    (lambda d, k: setattr(d, 'PixelSpacing', [0, 1]), 'PixelSpacing'),
    (lambda d, k: setattr(d, 'PixelSpacing', [1, -1]), 'PixelSpacing'),
    (lambda d, k: setattr(d, 'PixelSpacing', [1000, 1000]), 'affine'),
    (lambda d, k: setattr(d, 'ImageOrientationPatient', [1, 0, 0, 1, 0, 0]), 'perpendicular'),
    (lambda d, k: setattr(d, 'ImageOrientationPatient', [0] * 6), 'perpendicular'),
    (lambda d, k: setattr(d, 'ImagePositionPatient', ['nan', 0, k]), 'affine|spaced|same place'),
    (lambda d, k: setattr(d, 'ImagePositionPatient', [0, 0]), 'damaged'),
    (lambda d, k: setattr(d, 'ImagePositionPatient', [1, 2, 3]), 'same place'),
    (lambda d, k: setattr(d, 'SeriesInstanceUID', UID + f'.{k % 2}'), 'two series'),
    (lambda d, k: k == 3 and setattr(d, 'ImageOrientationPatient', [0, 1, 0, -1, 0, 0]), 'two orientations'),
    (lambda d, k: k == 3 and setattr(d, 'PixelSpacing', [1, 1]), 'pixel spacings'),
    (lambda d, k: k == 3 and (setattr(d, 'Rows', 3), setattr(d, 'Columns', 14)), 'two sizes'),
    (lambda d, k: setattr(d, 'ModalityLUTSequence', [pydicom.Dataset()]), 'table'),
    (lambda d, k: setattr(d, 'ImagePositionPatient', [0, 0, (0, 3, 6, 9, 13)[k]]), 'not evenly spaced'),
    (lambda d, k: setattr(d, 'ImagePositionPatient', [2 * (k == 2), 0, 3 * k]), 'not evenly spaced'),
])
@pytest.mark.filterwarnings('ignore')
def test_dicom_refusals(tmp_path, change, why):
    frame = np.eye(3)
    series(tmp_path / 'x', frame=frame, edit=change)
    refused_file(tmp_path / 'x', why)


def test_dicom_missing_and_double_slices(tmp_path):
    long = np.tile(NOISE, (1, 1, 8))
    for gone in (1, 20, 38):
        folder = tmp_path / str(gone)
        series(folder, long)
        assert volume.read(folder).voxels.shape[2] >= 0
        files = {np.round(float(pydicom.dcmread(p).ImagePositionPatient[2]), 3): p for p in folder.iterdir()}
        files[sorted(files)[gone]].unlink()
        refused_file(folder, '39 slices are not evenly spaced')
    series(tmp_path / 'x')
    one = next((tmp_path / 'x').iterdir())
    whole = volume.read(tmp_path / 'x')
    (tmp_path / 'x' / 'copy').write_bytes(one.read_bytes())
    assert equal(volume.read(tmp_path / 'x'), whole)
    d = pydicom.dcmread(one)
    d.PixelData = bytes(len(d.PixelData))
    d.save_as(tmp_path / 'x' / 'copy')
    refused_file(tmp_path / 'x', f'(copy and {one.name}|{one.name} and copy) are slices of the same place')
    series(tmp_path / 'one', NOISE[:, :, :1])
    refused_file(tmp_path / 'one', 'at least two')
    (tmp_path / 'none').mkdir()
    refused_file(tmp_path / 'none', 'at least two')


def test_dicom_cap(tmp_path):
    series(tmp_path / 'x')
    assert volume.read(tmp_path / 'x', max_voxels=210).voxels.size == 210
    with pytest.raises(errors.BadData, match='max_voxels'):
        volume.read(tmp_path / 'x', max_voxels=209)


def test_dicom_compressed(tmp_path):
    def squeeze(d, k):
        d.compress(pydicom.uid.RLELossless)

    def unknown(d, k):
        d.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
        d.PixelData = pydicom.encaps.encapsulate([b'xx'])
        d['PixelData'].is_undefined_length = True
    series(tmp_path / 'plain', frame=np.eye(3))
    series(tmp_path / 'rle', frame=np.eye(3), edit=squeeze)
    assert equal(volume.read(tmp_path / 'plain'), volume.read(tmp_path / 'rle'))
    series(tmp_path / 'jls', edit=unknown)
    with pytest.raises((errors.ConfigError, errors.BadData), match=r'jaxkd\[dicom\]|damaged'):  # as codecs are there
        volume.read(tmp_path / 'jls')

    def deflate(d, k):
        d.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    series(tmp_path / 'deflated', edit=deflate)
    refused_file(tmp_path / 'deflated', 'deflated')


@pytest.mark.filterwarnings('ignore')
def test_400_mutated_dicom_files(tmp_path):
    rng = np.random.default_rng(6)
    count = 0
    for seed in range(2):
        series(tmp_path / 'x', NOISE[:, :, :3], modality=('CT', 'MR')[seed])
        path = tmp_path / 'x' / '0001.dcm'
        good = path.read_bytes()
        for _ in range(200):
            head = mutated(rng, good[128:-84])
            refill(path, good[:128] + head + good[-84:])
            try:
                found = volume.read(tmp_path / 'x', max_voxels=10**6)
            except errors.BadData as e:
                count += 1
                assert str(tmp_path / 'x') in str(e)
            else:
                assert found.voxels.shape and np.isfinite(found.voxels).all() and np.isfinite(found.affine).all()
    assert 100 < count < 400


# NRRD

def nrrd_file(path, voxels=NOISE, drop=(), lps=True, **fields):
    affine = affine_of((1, 0, 2), (1, -1, 1), shear=0.1)
    stored = np.diag([-1, -1, 1, 1]) @ affine if lps else affine
    header = {'space': 'left-posterior-superior' if lps else 'right-anterior-superior',
              'space directions': stored[:3, :3].T, 'space origin': stored[:3, 3], 'encoding': 'gzip',
              **{key.replace('_', ' '): value for key, value in fields.items()}}
    nrrd.write(str(path), voxels, {k: v for k, v in header.items() if k not in drop})
    return affine


@pytest.mark.parametrize('dtype', ['u1', 'i1', 'i2', 'u2', 'i4', 'u4', 'i8', 'u8', 'f4', 'f8', '>i2', '>f8'])
@pytest.mark.parametrize('lps', [True, False])
@pytest.mark.parametrize('encoding', ['raw', 'gzip'])
def test_nrrd(tmp_path, dtype, lps, encoding):
    voxels = (np.abs(NOISE) % 100).astype(dtype)
    voxels[5, 1, 2] = 101
    affine = nrrd_file(tmp_path / 'x.nrrd', voxels, lps=lps, encoding=encoding)
    found = volume.read(tmp_path / 'x.nrrd')
    assert found.voxels.dtype == np.dtype(dtype).newbyteorder('=') and np.allclose(found.file_affine, affine)
    check_mark(found, volume.world(affine, [5, 1, 2]), 101)
    volume.save(tmp_path / 'x.nii.gz', found.voxels, found)
    assert np.array_equal(nibabel.load(tmp_path / 'x.nii.gz').dataobj, voxels)


def test_nrrd_refusals(tmp_path):
    path = tmp_path / 'x.nrrd'
    for change, why in ((dict(space='left-anterior-superior'), 'space is left-anterior'),
                        (dict(space='scanner-xyz'), 'space is'), (dict(drop=('space origin',)), 'origin'),
                        (dict(encoding='bzip2'), 'raw nor gzip'), (dict(encoding='ascii'), 'raw nor gzip'),
                        (dict(voxels=np.zeros((3, 4, 5, 2), np.int16), space_directions=np.vstack(
                            [np.eye(3), np.full((1, 3), np.nan)])), 'not one volume'),
                        (dict(space_units=['m', 'm', 'm']), 'mm'),
                        (dict(space_directions=np.zeros((3, 3))), 'affine'),
                        (dict(voxels=np.full(SHAPE, np.nan)), 'NaN')):
        nrrd_file(path, **change)
        refused(path, why)
    nrrd_file(path)
    good = path.read_bytes()
    refused(path, 'max_voxels', max_voxels=209)
    for content in (b'', b'NRRD0005\n', good[:100], good[:-1], good + b'x', good.replace(b'\n\n', b'\n'),
                    good.replace(b'sizes: 7 6 5', b'sizes: 7 6 6'), good.replace(b'sizes: 7 6 5', b'sizes: 7 6 4'),
                    good.replace(b'endian: little', b'endian: middle'), good.replace(b'type: int16', b'type: block'),
                    good.replace(b'encoding: gzip', b'encoding: raw'),
                    good.replace(b'encoding: gzip', b'encoding: gzip\ndata file: /etc/passwd'),
                    good.replace(b'encoding: gzip', b'encoding: gzip\nbyte skip: 4'),
                    good.replace(b'sizes: 7 6 5', b'sizes: 70000 60000 50000')):
        path.write_bytes(content)
        refused(path, 'cannot be used|damaged')


def test_500_mutated_nrrd_files(tmp_path):
    rng, path = np.random.default_rng(7), tmp_path / 'x.nrrd'
    nrrd_file(path)
    good, whole = path.read_bytes(), volume.read(path)
    start = good.index(b'\n\n') + 2
    assert sum(attempt(path, mutated(rng, good[:start]) + good[start:]) for _ in range(500)) > 300
    for _ in range(100):  # of its data, which gzip guards
        at = int(rng.integers(start, len(good)))
        refill(path, good[:at] + bytes([good[at] ^ 1 << int(rng.integers(8))]) + good[at + 1:])
        try:
            assert equal(volume.read(path), whole)
        except errors.BadData:
            pass


# Real files

def real(*names):
    """A file or folder of the real data, or the test is skipped."""
    path = REAL.joinpath(*names)
    if not path.exists():
        pytest.skip(f'no {path.name} under JAXKD_REAL_DATA')
    return path


@pytest.mark.parametrize('folder', ['totalsegmentator_samples', 'sts_ct_mr_pet/nifti', 'sts_ct_mr_pet/nifti_3mm'])
def test_every_real_nifti_loads(folder):
    paths = sorted(real(folder).rglob('*.nii.gz'))
    assert paths
    for path in paths:
        found, other = volume.read(path), nibabel.as_closest_canonical(nibabel.load(path))
        assert np.allclose(found.affine, other.affine)
        assert np.allclose(found.voxels, np.asarray(other.dataobj), rtol=1e-6)


def test_real_compressed_series():
    found = volume.read(real('totalsegmentator_samples', 'example_ct_dicom'))  # JPEG 2000
    assert found.voxels.shape == (512, 512, 20) and found.voxels.min() >= -1024 and found.voxels.max() > 1000
    assert np.allclose(volume.spacing(found.affine), (0.9765625, 0.9765625, 2.0))


@pytest.mark.parametrize('series, other', [('CT', 'CT_image'), ('MR_T1', 'MR_T1_image')])
def test_real_series_agrees_with_its_nifti(series, other):
    """The NIfTI is the series on a grid of 3 mm."""
    found = volume.read(real('sts_ct_mr_pet', 'dicom', 'STS_025', series, 'image'))
    there = volume.read(real('sts_ct_mr_pet', 'nifti_3mm', 'STS_025', f'{other}.nii.gz'))
    here = volume.resample(found, there.affine, there.voxels.shape)
    inner = (slice(2, -2),) * 3  # 0.9999; one voxel beside, at most 0.988
    assert np.corrcoef(here[inner].ravel(), there.voxels[inner].ravel())[0, 1] > 0.9995


def test_real_volume_there_and_back(tmp_path):
    path = real('totalsegmentator_samples', 'example_ct.nii.gz')
    found = volume.read(path)
    volume.save(tmp_path / 'x.nii.gz', found.voxels, found)
    one, two = nibabel.load(path), nibabel.load(tmp_path / 'x.nii.gz')
    assert np.array_equal(one.dataobj, two.dataobj) and np.array_equal(one.affine, two.affine)


def test_a_mask_on_a_sheared_grid_is_copied_to_a_straight_one_at_the_same_place():
    affine, label = np.eye(4), np.zeros((20, 16, 10), np.uint8)
    affine[:3, :3] = [[1, 0, 0.3], [0, 1, 0], [0, 0, 2]]
    label[8:12, 6:9, 3:6] = 1
    copy = volume.straightened(label, volume.Volume(label, affine))
    assert np.count_nonzero(copy.affine[:3, :3]) == 3 and copy.voxels.dtype == np.uint8
    middles = [volume.world(a, np.argwhere(x).mean(0)) for x, a in ((label, affine), (copy.voxels, copy.affine))]
    np.testing.assert_allclose(*middles, atol=0.05)
    assert copy.voxels.sum() == pytest.approx(label.sum(), rel=0.05)
    assert volume.straightened(label, volume.Volume(label, np.diag([-1.0, 2.0, 3.0, 1.0]))) is None
