"""The students of all configs leave the house: trained small, they and their bundles predict three kinds of files."""
import nibabel
import nrrd
import numpy as np
import pytest
from PIL import Image

from jaxkd import main, predict
from jaxkd.export import __main__ as export
from jaxkd.phantoms import encode
from tests.export.test_run import bare, same_predictions
from tests.fixtures import commands

pytest.importorskip('onnxruntime')
CONFIGS = dict(mmpkd_cxr='picture', mmpkd_mammo='picture', specialist='picture', sikd_acdc='slices',
               cpkd_ct_mri='volume', cpmn_pe='volume')
STAGES = dict(specialist='specialist', sikd_acdc='sikd', cpkd_ct_mri='cpkd', cpmn_pe='cpmn')  # of several in question


@pytest.mark.slow
@pytest.mark.parametrize('config', CONFIGS)
def test_a_student_is_trained_predicts_is_exported_and_predicts_elsewhere(config, tmp_path):
    run = tmp_path / 'run'
    assert main.main(['--config', f'configs/{config}.py:smoke', '--workdir', str(run), '--config.bootstrap=20']) == 0
    leaves(run, config, tmp_path)


@pytest.mark.slow
def test_the_lines_to_try(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands.run_lines('docs/how_to/predict.md', 'test_the_lines_to_try')
    out = tmp_path / 'try' / 'predicted'
    assert (out / 'index.html').is_file() and len([*(out / 'overlays').iterdir()]) > 5


def leaves(run, config, out, **python):
    """Predict three kinds of files with a run, its bundle, and the bundle's run.py."""
    kind, stage = CONFIGS[config], ('--stage', STAGES[config]) if config in STAGES else ()
    (out / 'cases').mkdir(parents=True)
    {'picture': pictures, 'slices': slices, 'volume': volumes}[kind](out / 'cases')
    given = ['--input', str(out / 'cases'), '--masks', 'nifti', '--output']
    assert predict.main(['--run', str(run), *stage, *given, str(out / 'of_run')]) == 0
    assert export.main(['--run', str(run), *stage, '--out', str(out / 'bundle')]) == 0
    assert predict.main(['--model', str(out / 'bundle'), *given, str(out / 'of_bundle')]) == 0
    bare(out / 'bundle', [str(out / 'cases')], out / 'elsewhere', **python)
    for other in ('of_bundle', 'elsewhere'):
        same_predictions(out / other, out / 'of_run')


def pictures(folder):
    """A bright half disc with some structure, the breast of a mammogram, as PNG, JPEG, TIFF and DICOM of 12 bits."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:150, :120] / 150
    inside = x**2 + (y - 0.5)**2 < 0.2
    grey = np.where(inside, 90 + 60 * np.cos(9 * x) * np.cos(7 * y) + rng.normal(0, 4, x.shape), 2).astype(np.uint8)
    for name in ('a.png', 'b.jpg', 'c.tif'):
        Image.fromarray(grey if name != 'c.tif' else grey[:, ::-1]).save(folder / name)
    encode.write_dicom(folder / 'd.dcm', grey.astype(np.uint16) * 16, 'DigitalXRayImageStorageForPresentation',
                       Modality='DX', SOPInstanceUID='1.2.3.4', BitsStored=12, HighBit=11)


def slices(folder):
    pictures(folder)
    save_nifti(folder / 'e.nii.gz')


def save_nifti(path):
    nibabel.save(nibabel.Nifti1Image(scan(), np.diag([-1.5, -1.5, 4.0, 1.0])), path)


def volumes(folder):
    """A CT as NIfTI, NRRD and a DICOM series."""
    save_nifti(folder / 'a.nii.gz')
    nrrd.write(str(folder / 'b.nrrd'), scan(), {'space': 'left-posterior-superior', 'space origin': [-40.0, -50.0, 9.0],
                                                'space directions': np.diag([1.5, 1.5, 4.0]), 'encoding': 'gzip'})
    (folder / 'c').mkdir()
    for z, plane in enumerate(scan().T):
        encode.write_dicom(folder / 'c' / f'{z}.dcm', (plane + 1024).astype(np.uint16), 'CTImageStorage',
                           Modality='CT', SeriesInstanceUID='1.2.3', StudyInstanceUID='1.2', RescaleSlope=1,
                           SOPInstanceUID=f'1.2.3.{z}', RescaleIntercept=-1024, InstanceNumber=z,
                           ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[1.5, 1.5],
                           ImagePositionPatient=[-40.0, -50.0, 4.0 * z])


def scan():
    """int16 [X,Y,Z]: a body in air with bright and dark regions."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (64, 56, 20)), indexing='ij')
    body = 40 + 30 * np.sin(5 * x) * np.cos(4 * y) + 60 * (x**2 + y**2 + z**2 < 0.1)
    for side in (-0.4, 0.4):
        body[((x - side) / 0.3)**2 + (y / 0.5)**2 + (z / 0.8)**2 < 1] = -850
    voxels = np.where(x**2 + y**2 < 0.85, body, -1000)
    return (voxels + np.random.default_rng(0).normal(0, 9, x.shape)).astype(np.int16)
