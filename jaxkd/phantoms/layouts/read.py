"""READ: CTPA of the pulmonary phantom as DICOM of two scanners, masks of emboli as NIfTI.

    images/GE (DICOM files)/01GE, images/TOSHIBA (DICOM files)/03TS, rs/01GE.nii.gz

Slice k of a mask is slice k of the series by position. In every second case the headers disagree about the direction of
slices, and that of the mask is right; the spacing in its header is 1 % too small in every third case.
"""
import os

import numpy as np

from jaxkd.data.formats import nifti
from jaxkd.phantoms.pulmonary import archive


def write(folder: str | os.PathLike, patients: int, seed: int = 0, size: int = 80, depth: int = 40,
          spacing: tuple[float, float, float] = (2.0, 2.0, 2.0), pe: float = 0.5) -> None:
    """Write series and mask of each patient.

    size: voxels in plane, 32..320. depth: slices, 16..256. spacing: mm x, y, z. pe: fraction of patients with emboli.
    Raises ConfigError, CannotWrite.
    """
    for patient, ctpa, clots in archive.scans(patients, seed, size, depth, spacing, pe):
        pixels, mask = archive.rows(ctpa.voxels), (archive.rows(clots.voxels) > 0).astype(np.uint8)
        affine = archive.lps(ctpa)
        mask_affine = np.array(affine)
        if patient % 2:  # the series was stored from head to foot, opposite to its DICOM headers
            pixels, mask = pixels[::-1], mask[::-1]
            mask_affine[:3, 3] += mask_affine[:3, 2] * (len(mask) - 1)
            mask_affine[:3, 2] *= -1
        if patient % 3 == 2:
            mask_affine[:3, :3] *= 0.99
        scanner, short = (('GE', 'GE'), ('TOSHIBA', 'TS'))[patient // 2 % 2]
        name = f'{patient + 1:02d}{short}'
        names = [f'IM{j:04d}' for j in range(len(pixels))]
        archive.write_series(os.path.join(folder, 'images', f'{scanner} (DICOM files)', name), pixels, affine,
                             range(len(pixels)), names, archive.uid(seed, patient))
        nifti.write(os.path.join(folder, 'rs', f'{name}.nii.gz'), mask.transpose(2, 1, 0), archive.FLIP @ mask_affine)
