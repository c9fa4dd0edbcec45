"""Shared parts of the layouts of cardiac MRI: patients in one scanner, and the voxels of NIfTI from pictures.

Axes of NIfTI: columns of the picture, rows, slices from base to apex; all three run against RAS. Columns are fewer than
rows in two patients of three.
"""
import dataclasses
import gzip
import os

import numpy as np

from jaxkd import errors
from jaxkd.data.formats import checks
from jaxkd.phantoms.heart import renderer
from jaxkd.runtime import files

MAX_PATIENTS = 100  # of a layout that numbers them by group


@dataclasses.dataclass(frozen=True)
class Cohort:
    """Patients 0..patients-1 in one scanner. ConfigError for options outside their range."""

    patients: int
    domain: str
    seed: int
    size: int  # pixels of the square picture
    slices: tuple[int, int]  # fewest and most of a patient
    difficulty: float
    frames: int = 30  # of a cine

    def __post_init__(self) -> None:
        renderer.check(self.patients, self.size, self.slices, self.domain, self.difficulty, self.seed)
        if self.frames <= renderer.FRAMES[1] + 1:
            raise errors.ConfigError(f'heart: frames={self.frames} are too few, end-systole is number '
                                     f'{renderer.FRAMES[1]} from 0; give at least {renderer.FRAMES[1] + 2}.')

    def facts(self) -> list[renderer.Facts]:
        """The Facts of all patients."""
        return [renderer.facts(self.seed, k, tuple(self.slices)) for k in range(self.patients)]

    def frame(self, patient: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(image int16 [Z,H,W], label uint8 [Z,H,W], spacing float32 [3] mm) of a frame of the cine, counted from 0."""
        return renderer.render(self.seed, patient, contraction(number, self.frames), self.domain, self.size,
                               self.slices, self.difficulty, number)


def contraction(frame: int, frames: int) -> float:
    """Of a frame of a cine that begins at end-diastole, 0 to 1."""
    top = renderer.FRAMES[1]
    return float(np.sin(np.pi / 2 * (frame / top if frame <= top else (frames - frame) / (frames - top))) ** 2)


def number(truth: renderer.Facts, patient: int) -> int:
    """The number of a patient in ACDC: 1 to 20 are DCM, the next 20 HCM, and so on."""
    groups = renderer.GROUPS
    return MAX_PATIENTS // len(groups) * groups.index(truth.group) + patient // len(groups) + 1


def check_numbered(patients: int) -> None:
    """ConfigError for more patients than ACDC has numbers for."""
    if patients > MAX_PATIENTS:
        raise errors.ConfigError(f'heart: patients={patients} are too many for ACDC, which numbers them by group; '
                                 f'give at most {MAX_PATIENTS}.')


def narrow(stack: np.ndarray, patient: int) -> np.ndarray:
    """[..., H, W] with fewer columns, by patient."""
    margin = 2 * (patient % 3)
    return stack[..., margin:stack.shape[-1] - margin]


def voxels(stack: np.ndarray, patient: int) -> np.ndarray:
    """[Z,H,W] as [X,Y,Z]."""
    return np.ascontiguousarray(narrow(stack, patient).transpose(2, 1, 0))


def affine(shape: tuple[int, ...], spacing: np.ndarray) -> np.ndarray:
    """float64 [4,4] of a grid around 0; spacing float32 [3], mm between slices, rows and columns."""
    step = -spacing[::-1].astype(np.float64)
    matrix = np.diag([*step, 1.0])
    matrix[:3, 3] = -step * (np.array(shape[:3]) - 1) / 2
    return matrix


def write_cine(path: str | os.PathLike, cine: np.ndarray, matrix: np.ndarray) -> None:
    """Write [X,Y,Z,T] as NIfTI; matrix: its affine."""
    with checks.needs('nibabel', path):
        import nibabel
    image = nibabel.Nifti1Image(cine, matrix)
    image.header.set_xyzt_units('mm', 'sec')
    image.header.set_zooms((*image.header.get_zooms()[:3], 0.03))
    files.write(path, gzip.compress(image.to_bytes(), 3, mtime=0))
