"""run.py of a bundle: without jaxkd and JAX it gives the table and the masks of jaxkd.predict."""
import ast
import csv
import json
import os
import subprocess
import sys
import zlib

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from jaxkd import errors, predict
from jaxkd.data import fields_of_view, volume
from jaxkd.data.formats import dicom, film, picture
from jaxkd.data.formats import nrrd as nrrd_format
from jaxkd.data.transforms import scan
from jaxkd.data.transforms import volume as volume_transform
from jaxkd.export import run
from tests.export import students

pytest.importorskip('onnxruntime')
BARE = """
import importlib.abc, runpy, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('jax', 'jaxlib', 'flax', 'jaxkd', 'scipy'):
            raise ImportError(f'{name} is not there')
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def rows(path):
    with open(path, newline='') as f:
        return list(csv.DictReader(f))


@pytest.mark.parametrize('kind', students.STUDENTS)
def test_run_gives_what_predict_gives(kind, tmp_path):
    inputs = students.cases(kind, tmp_path / 'cases')
    bare(students.exported(kind), inputs, tmp_path / 'onnx')
    same_predictions(tmp_path / 'onnx', students.predicted(kind))


def bare(bundle, inputs, out, python=sys.executable):
    """Predict with run.py of a bundle where neither jaxkd nor JAX can be imported."""
    done = subprocess.run([python, '-c', BARE, str(bundle / 'run.py'), '--input', *inputs, '--output', str(out)],
                          cwd=bundle.parent, capture_output=True, text=True,
                          env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'})
    assert done.returncode == 0, done.stderr


def same_predictions(folder, other):
    """The tables and masks of two folders of predictions are the same to rounding."""
    expected, found = (rows(path / 'predictions.csv') for path in (other, folder))
    assert [r['case'] for r in found] == [r['case'] for r in expected] and len(found) >= 3
    for a, b in zip(found, expected):
        assert a.keys() == b.keys()
        for column in a:
            if column in ('case', 'class', 'mask') or column.startswith(('patient/', 'youden/', 'sensitivity_95/')):
                assert a[column] == b[column]
            elif a[column] or b[column]:  # pictures have pixels, and volumes ml
                assert float(a[column]) == pytest.approx(float(b[column]), abs=5e-3, rel=5e-3), column
        if 'mask' in a:
            assert same_mask(folder / a['mask'], other / b['mask']) > 0.995


def same_mask(found, expected):
    """Share of places with the same label on the same grid."""
    if found.suffix == '.png':
        return np.mean(np.array(Image.open(found)) == np.array(Image.open(expected)))
    if found.suffix == '.nrrd':
        (a, mine), (b, other) = (nrrd.read(str(path)) for path in (found, expected))
        for key in ('space directions', 'space origin'):
            np.testing.assert_allclose(mine[key], other[key])
        assert a.dtype == b.dtype
        return np.mean(a == b)
    a, b = nibabel.load(found), nibabel.load(expected)
    np.testing.assert_allclose(a.affine, b.affine)
    assert a.header['qform_code'] == b.header['qform_code'] and a.get_data_dtype() == b.get_data_dtype()
    return np.mean(np.asarray(a.dataobj) == np.asarray(b.dataobj))


def test_a_dicom_series_is_a_case_as_in_the_package(tmp_path):
    rng, folder = np.random.default_rng(2), tmp_path / 'cases' / 'ct'
    folder.mkdir(parents=True)
    voxels, tilt = rng.integers(0, 1500, (18, 14, 9)), np.array([0.1, 0.4, 3.0])  # a tilted gantry
    for z, name in enumerate(rng.permutation(9)):
        write_dicom(folder / f'{name}.dcm', voxels[..., z].T, SOPClassUID='1.2.840.10008.5.1.4.1.1.2', Modality='CT',
                    SeriesInstanceUID='1.2.3', ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[1.5, 2.0],
                    ImagePositionPatient=[float(v) for v in np.array([-30, -45, 5]) + z * tilt], RescaleSlope=1,
                    RescaleIntercept=-1024)
    found, affine = run.read_series(str(folder))
    expected, theirs = dicom.read(str(folder), 2**20)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(affine, theirs)
    done = started(students.exported('scan'), [str(tmp_path / 'cases')], tmp_path / 'out')
    assert done.returncode == 0 and 'its grid is sheared (a tilted gantry) and kept so' in done.stdout
    assert predict.main(['--run', students.run('scan'), '--input', str(tmp_path / 'cases'), '--output',
                         str(tmp_path / 'jax'), '--masks', 'nifti']) == 0
    for column, name in (('mask', 'masks/ct.nii.gz'), ('mask_straight', 'masks/ct_straight.nii.gz')):
        assert {rows(tmp_path / side / 'predictions.csv')[0][column] for side in ('out', 'jax')} == {name}
        assert same_mask(tmp_path / 'out' / name, tmp_path / 'jax' / name) > 0.995
    straight = nibabel.load(tmp_path / 'out' / 'masks' / 'ct_straight.nii.gz')
    assert straight.header['qform_code'] == 1 and np.count_nonzero(straight.affine[:3, :3]) == 3


@pytest.mark.parametrize('encoding', ['raw', 'gzip'])
def test_an_nrrd_is_read_and_written_as_in_the_package(tmp_path, encoding):
    rng, place = np.random.default_rng(4), tmp_path / 'cases' / 'ct.nrrd'
    place.parent.mkdir()
    for dtype, endian in (('>i2', 'big'), ('<f4', 'little'), ('u1', 'little')):
        header = {'space': 'left-posterior-superior', 'space directions': [[0, 2.5, 0], [-2.0, 0, 0], [0, 0, 3.0]],
                  'space origin': [3.0, -7.5, 1.0], 'encoding': encoding, 'endian': endian, 'space units': ['mm'] * 3}
        nrrd.write(str(place), rng.integers(0, 200, (18, 14, 9)).astype(dtype), header)
        found, affine = run.read_nrrd(str(place))
        with open(place, 'rb') as f:
            expected, theirs = nrrd_format.read(f, str(place), 2**20)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(affine, theirs)
    done = started(students.exported('scan'), [str(place)], tmp_path / 'out')
    assert done.returncode == 0, done.stderr
    assert predict.main(['--run', students.run('scan'), '--input', str(place), '--output', str(tmp_path / 'jax')]) == 0
    assert same_mask(*(tmp_path / side / 'masks' / 'ct.nrrd' for side in ('out', 'jax'))) > 0.995
    for damage in (place.read_bytes()[:-9], place.read_bytes().replace(b'sizes: 18', b'sizes: 19')):
        place.write_bytes(damage)
        with pytest.raises((run.Refused, zlib.error)):
            run.read_nrrd(str(place))


@pytest.mark.parametrize('air', [-900.0, 0.0])
def test_lungs_are_found_where_the_package_finds_them(air):
    rng, o = np.random.default_rng(1), dict(scan.DEFAULTS, keys=('nct',), windows=((-900.0, 100.0),), lungs=True,
                                            spacing=(2.0, 2.0, 3.0), margin=2)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (60, 50, 30)), indexing='ij')
    voxels = np.where(x**2 + y**2 < 0.8, 40.0, -1000.0)
    for side in (-0.4, 0.35):
        voxels[((x - side) / 0.25)**2 + (y / 0.45)**2 + ((z + 0.1) / 0.7)**2 < 1] = air
    voxels[(x**2 + (y + 0.2)**2 < 0.01) & (z > 0.8)] = air  # too small to be one
    voxels = (voxels + rng.normal(0, 20, voxels.shape)).astype(np.int16)
    angle = np.deg2rad(7)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    for affine in (np.diag([2.0, 2.0, 3.0, 1.0]), np.block([[turn * [0.9, 0.9, 2.5], np.array([[5.], [-3.], [9.]])],
                                                            [np.zeros((1, 3)), 1]])):
        expected = scan.apply(dict(nct=volume.Volume(voxels, affine), case='a'), **o)
        found, _ = run.scan(dict(nct=run.Volume(voxels, affine)), o, None)
        assert found['nct'].shape == expected['nct'].shape
        assert np.abs(found['nct'].astype(int) - expected['nct']).max() <= 1
        assert (found['nct'].size < 0.7 * voxels.size) == (air < -500) or affine[0, 0] != 2


def test_a_scan_in_another_frame_of_reference_is_refused_as_in_the_package():
    def at(*origin):
        affine = np.diag([2.0, -2.0, 3.0, 1.0])
        affine[:3, 3] = origin
        return affine
    first = np.zeros((10, 12, 5), np.int16)
    box = np.array([20.0, 24.0, 15.0])
    for away in ([0, 0, 0], [19, 0, 0], [20.1, 0, 0], [0, 23, 0], [0, -24.1, 0], [0, 0, 14.9], [0, 0, 15.1]):
        apart = bool((np.abs(away) >= box).any())
        grids = [(first, at(0, 0, 0)), (first + 1, at(*away))]
        for read, check, refuses in (
                (run.Volume, run.check_overlap, run.Refused),
                (volume.Volume, fields_of_view.check, errors.BadData)):
            one, other = (read(*grid) for grid in grids)
            if apart:
                with pytest.raises(refuses, match='other lies wholly outside of one'):
                    check(other, 'other', one, 'one')
            else:
                check(other, 'other', one, 'one')
    options = dict(scan.DEFAULTS, keys=('nct', 'cta'), windows=((0.0, 1.0), (0.0, 1.0)))
    with pytest.raises(run.Refused, match='cta lies wholly outside of its nct'):
        run.scan(dict(nct=run.Volume(first, at(0, 0, 0)), cta=run.Volume(first, at(0, 0, 40))), options, None)
    options = dict(volume_transform.DEFAULTS, keys=('ct',), hu=('ct',), spacing=(2.0, 2.0, 3.0), size=(4, 4, 4))
    with pytest.raises(run.Refused, match='the crop of ct lies wholly outside of the scan'):
        run.volume(dict(ct=run.Volume(first, at(0, 0, 0)), centre=np.array([0.0, 0.0, 90.0])), options, None)


def test_rows_of_one_case_and_a_text_that_is_none_are_refused(tmp_path):
    (tmp_path / 'cases.csv').write_text('case,image\na,1.png\na,2.png\n')
    with pytest.raises(run.Refused, match='row 3: a case "a" stands there twice'):
        run.find_cases([str(tmp_path / 'cases.csv')], {'image': 'picture'}, [])
    (tmp_path / 'long.txt').write_text('word ' * 2**18)
    with pytest.raises(run.Refused, match='long.txt has more than 1,048,576 bytes'):
        run.read_text(str(tmp_path / 'long.txt'))


def test_pictures_are_read_as_the_package_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 4096, (9, 7)).astype(np.uint16)
    for name, pixels in (('grey.png', wide.astype(np.uint8)), ('wide.png', wide * 16), ('low.png', wide),
                         ('colour.png', rng.integers(0, 256, (9, 7, 3), np.uint8)),
                         ('alpha.png', np.dstack([wide.astype(np.uint8)] * 3 + [np.full((9, 7), 255, np.uint8)]))):
        Image.fromarray(pixels).save(tmp_path / name)
    for ending in ('tif', 'bmp'):
        Image.fromarray(wide.astype(np.uint8)).save(tmp_path / f'grey.{ending}')
        Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)).save(tmp_path / f'colour.{ending}')
        Image.fromarray(wide.astype(np.uint8)).convert('P').save(tmp_path / f'palette.{ending}')
    Image.fromarray(wide).save(tmp_path / 'wide.tif', compression='tiff_lzw')
    Image.fromarray(wide).save(tmp_path / 'declared.tif', tiffinfo={281: 4095})
    Image.fromarray(wide.astype(np.uint8)).convert('P').save(tmp_path / 'palette.png')
    Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)).save(tmp_path / 'colour.jpg')
    data = (tmp_path / 'low.png').read_bytes()
    chunk = b'sBIT\x0c'
    (tmp_path / 'declared.png').write_bytes(
        data[:33] + b'\0\0\0\1' + chunk + zlib.crc32(chunk).to_bytes(4, 'big') + data[33:])
    for name, options in (('one', dict(PhotometricInterpretation='MONOCHROME1')), ('two', {}),
                          ('signed', dict(PixelRepresentation=1)), ('bits', dict(BitsStored=16, HighBit=15))):
        write_dicom(tmp_path / f'{name}.dcm', wide - 2048 * (name == 'signed'), **options)
    for path in sorted(map(str, tmp_path.iterdir())):
        for stored, reader in ((False, picture.read), (True, film.read)):
            if not stored or path.endswith('.dcm'):
                found, expected = run.read_picture(path, stored), reader(path)
                assert found.dtype == expected.dtype, path
                np.testing.assert_array_equal(found, expected, err_msg=path)


def write_dicom(path, pixels, **changes):
    """A grey picture of 12 of 16 bits."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.Modality, dataset.SamplesPerPixel = meta.MediaStorageSOPClassUID, 'DX', 1
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PhotometricInterpretation, dataset.BitsAllocated, dataset.BitsStored = 'MONOCHROME2', 16, 12
    dataset.HighBit, dataset.PixelRepresentation = 11, 0
    for key, value in changes.items():
        setattr(dataset, key, value)
    dataset.PixelData = pixels.astype('<u2').tobytes()
    dataset.save_as(path, enforce_file_format=True)


def test_a_volume_is_resampled_as_the_package_does_it():
    rng = np.random.default_rng(0)
    for order in (0, 1):
        for i in range(6):
            turn = np.linalg.qr(rng.normal(size=(3, 3)))[0] if i % 2 else np.eye(3)
            affine = np.eye(4)
            affine[:3, :3], affine[:3, 3] = turn * rng.uniform(0.7, 2, 3), rng.normal(0, 3, 3)
            voxels, shape = rng.normal(size=(9, 11, 7)).astype(np.float32), (8, 6, 9)
            target = volume.grid(volume.middle(volume.Volume(voxels, affine)) + 0.3, rng.uniform(0.8, 3, 3), shape)
            expected = volume.resample(volume.Volume(voxels, affine), target, shape, order, -5.0)
            found = run.resample(run.Volume(voxels, affine), target, shape, bool(order), -5.0)
            np.testing.assert_allclose(found, expected, atol=2e-5)


@given(st.integers(0, 2**32), st.floats(0.2, 0.9))
@settings(max_examples=60, deadline=None)
def test_parts_of_a_mask_are_those_of_scipy(seed, share):
    mask = np.random.default_rng(seed).uniform(size=(9, 12)) < share
    parts, count = ndimage.label(mask)
    found = run.connected(mask)
    assert (found[~mask] == 0).all() and found.max() == count
    assert len({*zip(parts[mask].tolist(), found[mask].tolist())}) == count


def test_a_bad_case_is_named_and_the_others_go_on(tmp_path):
    inputs = students.cases('image', tmp_path / 'cases')
    (tmp_path / 'cases' / 'bad.png').write_bytes(b'no picture')
    done = started(students.exported('image'), inputs, tmp_path / 'out')
    assert done.returncode == 65 and 'bad.png' in done.stderr
    assert [r['case'] for r in rows(tmp_path / 'out' / 'errors.csv')] == ['bad.png']
    assert len(rows(tmp_path / 'out' / 'predictions.csv')) == 4


def test_a_damaged_bundle_predicts_nothing(tmp_path):
    import shutil
    path = shutil.copytree(students.exported('table'), tmp_path / 'bundle')
    data = bytearray((path / 'model.onnx').read_bytes())
    data[len(data) // 2] ^= 1
    (path / 'model.onnx').write_bytes(data)
    done = started(path, students.cases('table', tmp_path / 'cases'), tmp_path / 'out')
    assert done.returncode == 74 and 'model.onnx' in done.stderr and not (tmp_path / 'out').exists()


def started(path, inputs, out):
    return subprocess.run([sys.executable, str(path / 'run.py'), '--input', *inputs, '--output', str(out)],
                          capture_output=True, text=True)


MOST_LINES = dict(image=503, breast=608, slices=795, scan=770, volume=634, pair=646, report=532, pieces=393, table=371)
IMPORTED = dict(picture={'PIL', 'pydicom'}, volume={'nibabel', 'pydicom'}, text={'report_sections', 'tokenizers'},
                table=set())


@pytest.mark.parametrize('kind', students.STUDENTS)
def test_run_py_imports_and_holds_what_the_inputs_of_the_network_need(kind):
    path = students.exported(kind)
    text, preprocessing = (path / 'run.py').read_text(), json.loads((path / 'preprocessing.json').read_text())
    tree = ast.parse(text)
    imported = {alias.name.partition('.')[0] for node in ast.walk(tree) if isinstance(node, ast.Import)
                for alias in node.names} | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    kinds = {*preprocessing['files']['kinds'].values()}
    needed = {'numpy', 'onnxruntime'}.union(*(IMPORTED[name] for name in kinds))
    if json.loads((path / 'metadata.json').read_text())['task'] == 'segmentation':
        needed.add('nibabel')  # of pictures, too: a stack of slices
    if kind != 'pieces':
        needed.discard('tokenizers')
    assert {name for name in imported if name.partition('.')[0] not in sys.stdlib_module_names} == needed
    assert len(text.splitlines()) <= MOST_LINES[kind]
    defined = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not {*defined} - read, 'what nothing calls'
    assert '\n# What this network needs of the above\n' in text
    linted = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--isolated', '--select', 'F,E9',
                             str(path / 'run.py')], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout
