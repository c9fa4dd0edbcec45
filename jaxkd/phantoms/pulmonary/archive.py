"""Shared parts of the layouts of archives of pulmonary embolism: CTPA without displacement, radiological axes, DICOM.

All but `dualphase` show CTPA alone and not displaced; the difficulty of the phantom concerns the NCT.
"""
import os
from collections.abc import Iterable, Iterator

import numpy as np

from jaxkd.data import volume
from jaxkd.phantoms import encode
from jaxkd.phantoms.pulmonary import renderer

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS to LPS
ROOT = '1.2.826.0.1.3680043.10.1561.'  # prefix of UIDs


def scans(patients: int, seed: int, size: int, depth: int, spacing: tuple[float, float, float],
          pe: float) -> Iterator[tuple[int, volume.Volume, volume.Volume]]:
    """(patient, CTPA, clots) of the patients 0..patients-1; ConfigError before the first one."""
    renderer.check(patients, size, depth, spacing, pe, seed=seed)
    for patient in range(patients):
        volumes, clots = renderer.render(seed, patient, size, depth, spacing, pe, warp=0, modalities=('ctpa',))
        yield patient, volumes['ctpa'], clots


def rows(voxels: np.ndarray) -> np.ndarray:
    """[X,Y,Z] of a CT on its back as [slice,row,column]: columns run to the patient's left, rows to the back, slices to
    the head.
    """
    return np.ascontiguousarray(voxels[::-1, ::-1].T)


def lps(scan: volume.Volume) -> np.ndarray:
    """The affine (column, row, slice) -> LPS mm of `rows`, float64 [4,4]."""
    affine = np.array(scan.affine)
    affine[:3, 3] = volume.world(affine, (scan.voxels.shape[0] - 1, scan.voxels.shape[1] - 1, 0))
    affine[:3, :2] *= -1
    return FLIP @ affine


def uid(*numbers: int) -> str:
    """A DICOM UID of the phantom."""
    return ROOT + '.'.join(str(n) for n in numbers)


def write_series(folder: str, pixels: np.ndarray, affine: np.ndarray, heights: Iterable[int], names: Iterable[str],
                 study: str) -> None:
    """Write one CT Image Storage file a slice: pixels int16 HU [slice,row,column], each at its height in units of the
    affine (column, row, slice) -> LPS mm. names: of the files, and of their instances where they are UIDs.
    """
    series, step = f'{study}.1', volume.spacing(affine)
    fixed = dict(StudyInstanceUID=study, SeriesInstanceUID=series, FrameOfReferenceUID=f'{study}.2', Modality='CT',
                 PatientName='Phantom', PatientID=study.rpartition('.')[2], ImageType=['ORIGINAL', 'PRIMARY', 'AXIAL'],
                 PatientPosition='HFS', KVP='100', StudyID='1', SeriesNumber='1', Manufacturer='',
                 PositionReferenceIndicator='', AcquisitionNumber='', ImageOrientationPatient=list('100010'),
                 PixelSpacing=[f'{step[1]:.10g}', f'{step[0]:.10g}'], SliceThickness=f'{step[2]:.10g}',
                 BitsStored=12, HighBit=11, RescaleSlope='1', RescaleIntercept='-1024', RescaleType='HU')
    for pixel, height, name in zip(pixels, heights, names):
        encode.write_dicom(os.path.join(folder, f'{name}.dcm'), (pixel.astype(np.int32) + 1024).astype(np.uint16),
                           'CTImageStorage', **fixed, InstanceNumber=str(height + 1),
                           SOPInstanceUID=name if name.startswith(ROOT) else f'{series}.{height + 1}',
                           ImagePositionPatient=[f'{x:.10g}' for x in volume.world(affine, (0, 0, height))])
