"""Label maps and probabilities as files, on the grid of the file that was predicted.

    picture    PNG whose grey values are the indices of the classes
    NIfTI      .nii.gz; slices keep the order of the file's axes
    NRRD       .nrrd
    DICOM      a segmentation object of the series (DICOM SEG), or with form='nifti' .nii.gz
"""
import dataclasses
import io
import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from jaxkd import errors
from jaxkd.data import volume
from jaxkd.data.formats import dicom_seg, nifti
from jaxkd.inference.case_files import stem
from jaxkd.inference.case_reader import FileGrid
from jaxkd.runtime import files, log

FORMS = ('same', 'nifti')
_ENDINGS = {'picture': '.png', 'slices': '.nii.gz', 'nifti': '.nii.gz', 'nrrd': '.nrrd', 'dicom': '.dcm'}


@dataclasses.dataclass(frozen=True)
class MaskWriter:
    """Writes below the folder `out`; names are relative to it."""

    out: pathlib.Path
    labels: tuple[str, ...]
    form: str = 'same'  # or 'nifti', for DICOM
    algorithm: str = ''  # for DICOM SEG

    def check(self, grid: FileGrid) -> None:
        """ConfigError, before a case is predicted, where the library is missing that writes its mask."""
        if grid.kind == 'dicom' and self.form == 'same':
            dicom_seg.require()

    def write(self, case: str, grid: FileGrid, values: np.ndarray) -> dict[str, str]:
        """The label map uint8 of a case, as Prepared.to_file_grid gives it -> {'mask': name}; of a sheared grid also
        'mask_straight', a copy on a straight one.
        """
        name = f'masks/{safe(case)}{self._ending(grid)}'
        path = self.out / name
        if grid.kind == 'picture':
            _write_png(path, values[0])
        elif grid.kind == 'slices':
            assert grid.affine is not None
            nifti.write(str(path), values.T, grid.affine)
        elif name.endswith('.dcm'):
            assert grid.like is not None
            dicom_seg.write(path, volume.stored(values, grid.like.file_affine), grid.path, self.labels, self.algorithm)
        else:
            assert grid.like is not None
            volume.save(path, values, grid.like)
        return {'mask': name} | self._straightened(case, grid, values)

    def _straightened(self, case: str, grid: FileGrid, values: np.ndarray) -> dict[str, str]:
        like = grid.like
        if grid.affine is not None:  # of slices
            like = volume.turned(values.T, grid.affine, grid.path)
            values = like.voxels
        if like is None or (straight := volume.straightened(values, like)) is None:
            return {}
        name = f'masks/{safe(case)}_straight.nii.gz'
        volume.save(self.out / name, straight.voxels, straight)
        log.info(f'{case}: its grid is sheared, as that of a tilted gantry, and the mask is kept on it. Programs built '
                 f'on ITK refuse such files: for them there is {name}.')
        return {'mask_straight': name}

    def write_probability(self, case: str, grid: FileGrid, values: np.ndarray) -> str:
        """The probability of anything but background, float, likewise; of a picture in PNG of 16 bits."""
        name = f'probability/{safe(case)}{".nii.gz" if grid.kind == "dicom" else self._ending(grid)}'
        path = self.out / name
        if grid.kind == 'picture':
            _write_png(path, np.rint(values[0].astype(np.float32) * 65535).astype(np.uint16))
        elif grid.kind == 'slices':
            assert grid.affine is not None
            nifti.write(str(path), values.T.astype(np.float32), grid.affine)
        else:
            assert grid.like is not None
            volume.save(path, values.astype(np.float32), grid.like)
        return name

    def _ending(self, grid: FileGrid) -> str:
        return '.nii.gz' if self.form == 'nifti' and grid.kind == 'dicom' else _ENDINGS[grid.kind]


def safe(case: str) -> str:
    """The name of a case as that of a file: without its ending, parts of a path stay folders."""
    parts = [re.sub(r'[^\w.() -]', '_', part) for part in pathlib.PurePosixPath(stem(case.replace('\\', '/'))).parts]
    return '/'.join(part if part.strip('. ') else '_' * len(part) for part in parts) or 'case'


def check_names(cases: Sequence[str]) -> None:
    """ConfigError where two cases would be written to one file."""
    by_name: dict[str, str] = {}
    for case in cases:
        other = by_name.setdefault(safe(case).lower(), case)
        if other != case:
            raise errors.ConfigError(f'The cases "{other}" and "{case}" would be written to one file. Name them in a '
                                     'table with a column "case".')


def check_output(out: str, paths: Sequence[str]) -> None:
    """ConfigError where the output folder is an input."""
    if any(os.path.realpath(out) == os.path.realpath(path) for path in paths):
        raise errors.ConfigError(f'--output {out} is an input. Write to another folder.')


def _write_png(path: pathlib.Path, pixels: np.ndarray) -> None:
    from PIL import Image
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, 'PNG')
    files.write(path, content.getvalue())
