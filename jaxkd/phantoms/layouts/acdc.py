"""ACDC: cine MRI of the heart phantom as NIfTI, with labels at end-diastole and end-systole.

    database/training/patient001/{patient001_4d,patient001_frame01,patient001_frame01_gt, ..12, ..12_gt}.nii.gz,
    Info.cfg

Images are int16, labels uint8. The patients 1 to 20 are DCM, the next 20 HCM, and so on, as in ACDC.
"""
import os

import numpy as np

from jaxkd.data.formats import nifti
from jaxkd.phantoms.heart import archive, renderer
from jaxkd.runtime import files


def write(folder: str | os.PathLike, patients: int, domain: str = 'A', seed: int = 0, size: int = 64,
          slices: tuple[int, int] = (8, 10), difficulty: float = 0.5, frames: int = 30) -> None:
    """Write the cine, two labelled frames and Info.cfg of each patient, 100 at most.

    domain: the scanner, 'A' or 'B'. size: pixels of the square picture, 32..512. slices: fewest and most of a patient,
    6..16. difficulty: 0 plain .. 1 noise, and a liver of the muscle's grey. frames: of a cine, 13 or more.
    Raises ConfigError, CannotWrite.
    """
    archive.check_numbered(patients)
    cohort = archive.Cohort(patients, domain, seed, size, slices, difficulty, frames)
    ed, es = (k + 1 for k in renderer.FRAMES)
    for patient, truth in enumerate(cohort.facts()):
        name = f'patient{archive.number(truth, patient):03d}'
        subfolder, cine = os.path.join(folder, 'database', 'training', name), []
        for k in range(frames):
            image, label, spacing = cohort.frame(patient, k)
            cine.append(archive.voxels(image, patient))
            affine = archive.affine(cine[-1].shape, spacing)
            if k in renderer.FRAMES:
                stem = os.path.join(subfolder, f'{name}_frame{k + 1:02d}')
                nifti.write(f'{stem}.nii.gz', cine[-1], affine)
                nifti.write(f'{stem}_gt.nii.gz', archive.voxels(label, patient), affine)
        archive.write_cine(os.path.join(subfolder, f'{name}_4d.nii.gz'), np.stack(cine, -1), affine)
        files.write(os.path.join(subfolder, 'Info.cfg'),
                    f'ED: {ed}\nES: {es}\nGroup: {truth.group}\nHeight: {160 + patient % 30}.0\nNbFrame: {frames}\n'
                    f'Weight: {55 + patient % 40}.0\n')
