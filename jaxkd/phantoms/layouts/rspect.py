"""RSPECT: CTPA of the pulmonary phantom as DICOM without order, and a table of labels by slice and exam.

    train/<study>/<series>/<instance>.dcm, train.csv
"""
import os
from typing import Any

import numpy as np

from jaxkd.data import volume
from jaxkd.phantoms import encode
from jaxkd.phantoms.pulmonary import archive, renderer
from jaxkd.runtime import files

COLUMNS = ('StudyInstanceUID SeriesInstanceUID SOPInstanceUID pe_present_on_image negative_exam_for_pe qa_motion '
           'qa_contrast flow_artifact rv_lv_ratio_gte_1 rv_lv_ratio_lt_1 leftsided_pe chronic_pe '
           'true_filling_defect_not_pe rightsided_pe acute_and_chronic_pe central_pe indeterminate').split()


def write(folder: str | os.PathLike, patients: int, seed: int = 0, size: int = 80, depth: int = 40,
          spacing: tuple[float, float, float] = (2.0, 2.0, 2.0), pe: float = 0.5) -> None:
    """Write the series of each patient, and the table.

    size: voxels in plane, 32..320. depth: slices, 16..256. spacing: mm x, y, z. pe: fraction of patients with emboli.
    Raises ConfigError, CannotWrite.
    """
    table = []
    for patient, ctpa, clots in archive.scans(patients, seed, size, depth, spacing, pe):
        pixels, rng = archive.rows(ctpa.voxels), np.random.default_rng((seed, patient))
        study, series = archive.uid(seed, patient), archive.uid(seed, patient, 1)
        names = [archive.uid(seed, patient, 1, 1 + int(j)) for j in rng.permutation(len(pixels))]
        archive.write_series(os.path.join(folder, 'train', study, series), pixels, archive.lps(ctpa),
                             range(len(pixels)), names, study)
        exam = _exam(renderer.facts(seed, patient, pe), clots, rng)
        present = np.any(clots.voxels > 0, (0, 1)).tolist()
        columns = [int(exam[c]) for c in COLUMNS[4:]]
        table += [[study, series, name, int(p), *columns] for name, p in zip(names, present)]
    files.write(os.path.join(folder, 'train.csv'), encode.table(COLUMNS, table))


def _exam(truth: renderer.Facts, clots: volume.Volume, rng: np.random.Generator) -> dict[str, Any]:
    """The columns of an exam; those of features that the phantom does not draw, such as motion, are random."""
    pe = int((clots.voxels > 0).any())
    x = clots.affine[0, 0] * np.argwhere(clots.voxels > 0)[:, 0] + clots.affine[0, 3]
    middle = volume.middle(clots)[0]
    unclear = int(not pe and rng.random() < 0.05)
    strain, chronic = rng.random() < (0.6 if 'central' in truth.clots else 0.2), rng.choice(3, p=(0.85, 0.1, 0.05))
    exam: dict[str, Any] = dict(negative_exam_for_pe=1 - pe - unclear, indeterminate=unclear,
                                qa_motion=rng.random() < 0.02 or unclear, qa_contrast=rng.random() < 0.03,
                                flow_artifact=rng.random() < 0.05, true_filling_defect_not_pe=rng.random() < 0.01)
    return exam | dict(
        rv_lv_ratio_gte_1=pe and strain, rv_lv_ratio_lt_1=pe and not strain, leftsided_pe=(x < middle).any(),
        rightsided_pe=(x >= middle).any(), chronic_pe=pe and chronic == 1, acute_and_chronic_pe=pe and chronic == 2,
        central_pe=pe and 'central' in truth.clots)
