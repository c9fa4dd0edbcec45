"""FUMPE: CTPA of the pulmonary phantom as DICOM, masks of emboli as MATLAB files.

    CT_scans/PAT001/*.dcm, GroundTruth/PAT001.mat (Mask, y x z)

Every second patient has file names in order from head to foot; the mask has the order of the names.
"""
import os

import numpy as np

from jaxkd.phantoms import encode
from jaxkd.phantoms.pulmonary import archive


def write(folder: str | os.PathLike, patients: int, seed: int = 0, size: int = 80, depth: int = 40,
          spacing: tuple[float, float, float] = (2.0, 2.0, 2.0), pe: float = 0.5) -> None:
    """Write series and mask of each patient.

    size: voxels in plane, 32..320. depth: slices, 16..256. spacing: mm x, y, z. pe: fraction of patients with emboli.
    Raises ConfigError, CannotWrite.
    """
    from scipy import io as matlab
    for patient, ctpa, clots in archive.scans(patients, seed, size, depth, spacing, pe):
        name, order = f'PAT{patient + 1:03d}', np.arange(ctpa.voxels.shape[2])[::-1 if patient % 2 else 1]
        names = [f'D{j:04d}' for j in range(len(order))]
        archive.write_series(os.path.join(folder, 'CT_scans', name), archive.rows(ctpa.voxels)[order],
                             archive.lps(ctpa), order, names, archive.uid(seed, patient))
        mask = (archive.rows(clots.voxels)[order] > 0).astype(np.uint8).transpose(1, 2, 0)
        with encode.buffered(os.path.join(folder, 'GroundTruth', f'{name}.mat')) as buffer:
            matlab.savemat(buffer, {'Mask': mask}, do_compression=True)
