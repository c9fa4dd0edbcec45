"""run.py of a bundle: without jaxkd and JAX it gives the table and the masks of jaxkd.predict."""
import csv
import os
import subprocess
import sys
import zlib

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from jaxkd import predict
from jaxkd.data import volume
from jaxkd.data.formats import dicom, film, picture
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
    jax = students.predicted(kind)
    done = subprocess.run([sys.executable, '-c', BARE, str(students.exported(kind) / 'run.py'), '--input', *inputs,
                           '--output', str(tmp_path / 'onnx')], cwd=tmp_path, capture_output=True, text=True,
                          env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'})
    assert done.returncode == 0, done.stderr
    expected, found = (rows(path / 'predictions.csv') for path in (jax, tmp_path / 'onnx'))
    assert [r['case'] for r in found] == [r['case'] for r in expected] and len(found) >= 3
    for a, b in zip(found, expected):
        assert a.keys() == b.keys()
        for column in a:
            if column in ('case', 'class', 'mask') or column.startswith(('patient/', 'youden/', 'sensitivity_95/')):
                assert a[column] == b[column]
            else:
                assert float(a[column]) == pytest.approx(float(b[column]), abs=5e-3, rel=5e-3), column
        if 'mask' in a:
            assert same_mask(tmp_path / 'onnx' / a['mask'], jax / b['mask']) > 0.995


def same_mask(found, expected):
    """Share of places with the same label on the same grid."""
    if found.suffix == '.png':
        return np.mean(np.array(Image.open(found)) == np.array(Image.open(expected)))
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
    assert rows(tmp_path / 'out' / 'predictions.csv')[0]['mask'] == 'masks/ct.nii.gz'
    assert same_mask(tmp_path / 'out' / 'masks' / 'ct.nii.gz', tmp_path / 'jax' / 'masks' / 'ct.nii.gz') > 0.995


def test_pictures_are_read_as_the_package_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 4096, (9, 7)).astype(np.uint16)
    for name, pixels in (('grey.png', wide.astype(np.uint8)), ('wide.png', wide * 16), ('low.png', wide),
                         ('colour.png', rng.integers(0, 256, (9, 7, 3), np.uint8)),
                         ('alpha.png', np.dstack([wide.astype(np.uint8)] * 3 + [np.full((9, 7), 255, np.uint8)]))):
        Image.fromarray(pixels).save(tmp_path / name)
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
