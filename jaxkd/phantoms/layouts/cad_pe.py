"""CAD-PE: CTPA of the pulmonary phantom and masks with a number for each clot, both as NRRD.

    images/001.nrrd, rs/001RefStd.nrrd

Every third reference is called 0001RefStd.nrrd, every third case e0001.
"""
import os

import numpy as np

from jaxkd.data.formats import checks
from jaxkd.phantoms import encode
from jaxkd.phantoms.pulmonary import archive


def write(folder: str | os.PathLike, patients: int, seed: int = 0, size: int = 80, depth: int = 40,
          spacing: tuple[float, float, float] = (2.0, 2.0, 2.0), pe: float = 0.5) -> None:
    """Write scan and reference of each patient.

    size: voxels in plane, 32..320. depth: slices, 16..256. spacing: mm x, y, z. pe: fraction of patients with emboli.
    Raises ConfigError, CannotWrite.
    """
    for patient, ctpa, clots in archive.scans(patients, seed, size, depth, spacing, pe):
        number = patient + 1
        name, reference = [(f'{number:03d}',) * 2, (f'{number:03d}', f'{number:04d}'),
                           (f'e{number:04d}',) * 2][patient % 3]
        for path, voxels in ((f'images/{name}.nrrd', ctpa.voxels), (f'rs/{reference}RefStd.nrrd', clots.voxels)):
            _write_nrrd(os.path.join(folder, path), voxels, archive.lps(ctpa))


def _write_nrrd(path: str, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Write [X,Y,Z] in RAS order with the affine of its rows and columns in LPS."""
    with checks.needs('pynrrd', path):
        import nrrd
    header = {'space': 'left-posterior-superior', 'space directions': affine[:3, :3].T, 'space origin': affine[:3, 3]}
    with encode.buffered(path) as buffer:
        nrrd.write(buffer, np.asfortranarray(voxels[::-1, ::-1]), header, compression_level=3)
