"""NCT and CTPA of the pulmonary phantom with masks of emboli as NIfTI, as the source `dualphase` reads them.

    cases.csv (case_id, patient_id, pe, split), <case_id>/{nct,ctpa,label}.nii.gz

In every second case the CTPA and its mask are displaced in world coordinates, and ctpa_to_nct.txt (4 x 4, world mm RAS)
maps them onto the voxels of the NCT.
"""
import os

import numpy as np

from jaxkd.data import volume
from jaxkd.data.formats import nifti
from jaxkd.phantoms import common, encode
from jaxkd.phantoms.pulmonary import renderer
from jaxkd.runtime import files

COLUMNS = ('case_id', 'patient_id', 'pe', 'split')


def write(folder: str | os.PathLike, patients: int, seed: int = 0, size: int = 80, depth: int = 40,
          spacing: tuple[float, float, float] = (2.0, 2.0, 2.0), pe: float = 0.5, difficulty: float = 0.5,
          warp: float = 1.0, missing_ctpa: float = 0.1) -> None:
    """Write the volumes of the patients, and the table; the split is left to be drawn.

    size: voxels in plane, 32..320. depth: slices, 16..256. spacing: mm x, y, z. pe: fraction of patients with emboli.
    difficulty: 0 plain .. 1 little contrast of clots and much noise, in NCT. warp: voxels that CTPA is displaced by at
    most, beside NCT. missing_ctpa: fraction of patients without CTPA. Raises ConfigError, CannotWrite.
    """
    renderer.check(patients, size, depth, spacing, pe, difficulty, warp, missing_ctpa, seed)
    table = []
    for patient in range(patients):
        missing = renderer.absent(seed, patient, missing_ctpa)
        volumes, clots = renderer.render(seed, patient, size, depth, spacing, pe, difficulty, warp,
                                         common.available(renderer.MODALITIES, missing))
        name = f'p{patient:06d}'
        _write_case(os.path.join(folder, name), patient, seed, volumes, clots)
        table.append([name, name, renderer.facts(seed, patient, pe).pe, ''])
    files.write(os.path.join(folder, 'cases.csv'), encode.table(COLUMNS, table))


def _write_case(folder: str, patient: int, seed: int, volumes: dict[str, volume.Volume], clots: volume.Volume) -> None:
    affine = clots.affine
    if 'ctpa' in volumes and patient % 2:
        to_nct = _rigid(np.random.default_rng((seed, patient)), volume.middle(clots))
        affine = np.linalg.inv(to_nct) @ clots.affine
        lines = [' '.join(f'{x:.12g}' for x in row) + '\n' for row in to_nct]
        files.write(os.path.join(folder, 'ctpa_to_nct.txt'), ''.join(lines))
    nifti.write(os.path.join(folder, 'label.nii.gz'), (clots.voxels > 0).astype(np.uint8), affine)
    for name, scan in volumes.items():
        nifti.write(os.path.join(folder, f'{name}.nii.gz'), scan.voxels, clots.affine if name == 'nct' else affine)


def _rigid(rng: np.random.Generator, middle: np.ndarray) -> np.ndarray:
    """World to world, float64 [4,4]: a few degrees about an axis through `middle`, and a shift of some mm."""
    from scipy.spatial import transform
    move = np.eye(4)
    move[:3, :3] = transform.Rotation.from_rotvec(rng.uniform(-6, 6, 3), degrees=True).as_matrix()
    move[:3, 3] = middle - move[:3, :3] @ middle + rng.uniform(-25, 25, 3)
    return move
