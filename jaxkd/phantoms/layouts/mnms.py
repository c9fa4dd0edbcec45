"""M&Ms: cine MRI of the heart phantom as NIfTI, with labels that are 0 in all frames but two, and a table.

    OpenDataset/{Training/{Labeled,Unlabeled},Validation,Testing}/<ID>/<ID>_sa.nii.gz, <ID>_sa_gt.nii.gz
    OpenDataset/211230_M&Ms_Dataset_information_diagnosis_opendataset.csv

In labels 1 is the left ventricle and 3 the right one. The table counts frames from 0. A cine may begin before
end-diastole.
"""
import os

import numpy as np

from jaxkd.phantoms.heart import archive, renderer
from jaxkd.runtime import files

VENDORS = (('Siemens', 'A', 1), ('Philips', 'B', 2), ('GE', 'C', 4), ('Canon', 'D', 5))
PARTS = 'Training/Labeled', 'Training/Labeled', 'Training/Unlabeled', 'Validation', 'Testing', 'Testing'
TABLE = '211230_M&Ms_Dataset_information_diagnosis_opendataset.csv'
COLUMNS = ',External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight'
LABELS = np.array([0, 3, 2, 1], np.uint8)  # of M&Ms, by those of the phantom


def write(folder: str | os.PathLike, patients: int, domain: str = 'A', seed: int = 0, size: int = 64,
          slices: tuple[int, int] = (8, 10), difficulty: float = 0.5, frames: int = 30) -> None:
    """Write the cine and the labels of each patient, and the table.

    domain: the scanner, 'A' or 'B'. size: pixels of the square picture, 32..512. slices: fewest and most of a patient,
    6..16. difficulty: 0 plain .. 1 noise, and a liver of the muscle's grey. frames: of a cine, 13 or more.
    Raises ConfigError, CannotWrite.
    """
    cohort, rows = archive.Cohort(patients, domain, seed, size, slices, difficulty, frames), [COLUMNS]
    for patient, truth in enumerate(cohort.facts()):
        name, delay = f'A{patient // 100}H{patient // 10 % 10}P{patient % 10}', patient % 4
        ed, es = ((k + delay) % frames for k in renderer.FRAMES)
        part, (vendor, letter, centre) = PARTS[patient % len(PARTS)], VENDORS[patient % len(VENDORS)]
        cine, labels = [], []
        for k in range(frames):
            image, label, spacing = cohort.frame(patient, (k - delay) % frames)
            cine.append(archive.voxels(image, patient))
            labels.append(archive.voxels(LABELS[label] * np.uint8(k in (ed, es)), patient))
        stem = os.path.join(folder, 'OpenDataset', part, name, f'{name}_sa')
        affine = archive.affine(cine[0].shape, spacing)
        archive.write_cine(f'{stem}.nii.gz', np.stack(cine, -1), affine)
        if 'Unlabeled' not in part:
            archive.write_cine(f'{stem}_gt.nii.gz', np.stack(labels, -1), affine)
        rows.append(f'{patient},{name},{vendor},{letter},{centre},{ed},{es},{40 + patient % 40},{truth.group},'
                    f'{"FM"[patient % 2]},{160 + patient % 30},{55 + patient % 40}')
    files.write(os.path.join(folder, 'OpenDataset', TABLE), '\n'.join(rows) + '\n')
