"""DICOM: a folder with one series of CT, MR or PT, one frame a file."""
import dataclasses
import io
import math
import os
from typing import Any

import numpy as np

from jaxkd.data.formats import checks, image, inflate

UNEVEN = 0.1  # spacings, of a slice from where even steps put it [our choice]

# The only DICOM elements that are looked at: none of them says who the patient is.
_TAGS = ['Modality', 'SeriesInstanceUID', 'ImagePositionPatient', 'ImageOrientationPatient', 'PixelSpacing', 'Rows',
         'Columns', 'NumberOfFrames', 'SamplesPerPixel', 'PhotometricInterpretation', 'BitsAllocated', 'BitsStored',
         'HighBit', 'PixelRepresentation', 'RescaleSlope', 'RescaleIntercept', 'ModalityLUTSequence', 'PixelData']
_DEFLATED = b'1.2.840.10008.1.2.1.99'
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS to RAS


@dataclasses.dataclass(frozen=True)
class _Slice:
    path: str
    series: str
    pixels: np.ndarray  # as stored, [rows,columns]
    position: np.ndarray  # [3], LPS mm of the first pixel
    across: np.ndarray  # [3,2], LPS mm from column to column, from row to row
    scale: tuple  # slope, intercept


def read(folder: str, max_voxels: int) -> tuple[np.ndarray, np.ndarray]:
    """Voxels [X,Y,Z] = [column,row,slice] of a series and their affine to RAS+.

    All files are slices of the one series, but for a DICOMDIR and hidden files.
    """
    names = sorted(n for n in os.listdir(folder) if not n.startswith('.') and n != 'DICOMDIR')
    if len(names) < 2:
        raise checks.bad(folder, f'a series of slices has at least two files, it holds {len(names)}',
                         'Give the folder of a whole series, or a .nii.gz')
    slices, remaining = [], max_voxels
    for name in names:
        path = os.path.join(folder, name)
        with checks.reading(path):
            slices.append(_slice(path, remaining))
        remaining -= slices[-1].pixels.size
        _check_same_series(slices[0], slices[-1], folder)
    first = slices[0]
    normal = np.cross(*first.across.T)
    heights = np.array([s.position for s in slices]) @ (normal / np.linalg.norm(normal))
    slices = [slices[i] for i in np.argsort(heights, kind='stable')]
    gaps = np.diff(np.sort(heights))
    if gaps.min() < checks.SPACINGS[0]:
        a, b = slices[gaps.argmin()], slices[gaps.argmin() + 1]
        raise checks.bad(folder,
                         f'{os.path.basename(a.path)} and {os.path.basename(b.path)} are slices of the same place',
                         'Keep one acquisition, echo or time a folder')
    positions = np.array([s.position for s in slices])
    step = (positions[-1] - positions[0]) / (len(slices) - 1)  # not along the normal where the gantry was tilted
    deviations = np.linalg.norm(positions - positions[0] - np.arange(len(slices))[:, None] * step, axis=1)
    if deviations.max() > UNEVEN * np.linalg.norm(step):
        raise checks.bad(folder, f'its {len(slices)} slices are not evenly spaced: the gaps are {gaps.min():.4g} to '
                                 f'{gaps.max():.4g} mm, or they drift sideways',
                         'Copy the missing slices or resample it')
    affine = np.eye(4)
    affine[:3] = np.column_stack([first.across, step, positions[0]])
    affine = _FLIP @ affine
    shape = (*first.pixels.shape[::-1], len(slices))
    checks.check_affine(affine, shape, folder)
    unscaled = all(s.scale == (1, 0) for s in slices)
    voxels = np.empty(shape, np.result_type(*[s.pixels.dtype for s in slices]) if unscaled else np.float32, order='F')
    for k, s in enumerate(slices):  # PT scales each slice differently
        voxels[:, :, k] = s.pixels.T if unscaled else inflate.scale(s.pixels.T, *s.scale)
    return voxels, affine


def read_dataset(path: str, max_bytes: int, tags: list[str]) -> Any:
    """The data set of a file of at most `most` bytes, with the elements `tags` alone."""
    with checks.needs('pydicom', path):
        import pydicom
    data = image.read_bytes(path, max_bytes)
    if _DEFLATED in data:  # pydicom would inflate it without a bound
        raise checks.bad(path, 'it is deflated', 'Save it uncompressed')
    return pydicom.dcmread(io.BytesIO(data), specific_tags=tags)


def decode_pixels(dataset: Any, path: str) -> np.ndarray:
    """The pixels [rows,columns] of one grey frame, as stored. Its size was looked at before."""
    import pydicom
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not pydicom.pixels.get_decoder(syntax).is_available:
        raise checks.bad(path, f'its compression ({syntax.name}) needs a decoder that is not installed',
                         'Decompress it, e.g. with gdcmconv --raw')
    if len(dataset.PixelData) > 1.1 * dataset.Rows * dataset.Columns * dataset.BitsAllocated / 8 + checks.SLACK:
        raise checks.bad(path, 'it has more data than pixels')
    pixels = pydicom.pixels.pixel_array(dataset, raw=True)
    if pixels.shape != (dataset.Rows, dataset.Columns):
        raise checks.bad(path, f'its pixels have shape {pixels.shape}')
    return pixels


def _slice(path: str, remaining: int) -> _Slice:
    dataset = read_dataset(path, 2**27, _TAGS)
    modality = dataset.get('Modality')
    if modality not in ('CT', 'MR', 'PT'):
        raise checks.bad(path, f'it is not a CT, MR or PT slice (Modality {str(modality)[:16]})',
                         'Take it out of the folder')
    if dataset.get('NumberOfFrames') not in (None, 1):
        raise checks.bad(path, 'it has several frames', 'Convert it to .nii.gz, or to one frame a file')
    if dataset.get('ImagePositionPatient') is None or dataset.get('ImageOrientationPatient') is None:
        raise checks.bad(path, 'it does not say where it lies (ImagePositionPatient, ImageOrientationPatient)',
                         'Take it out of the folder')
    grey = dataset.SamplesPerPixel == 1 and dataset.PhotometricInterpretation == 'MONOCHROME2'
    if not grey or dataset.BitsAllocated not in (8, 16):
        raise checks.bad(path, 'its pixels are not grey of 8 or 16 bits', 'Convert the series to .nii.gz')
    if dataset.get('ModalityLUTSequence'):
        raise checks.bad(path, 'a table, not a slope, turns its pixels into values', 'Convert the series to .nii.gz')
    if not 1 <= dataset.Rows * dataset.Columns <= remaining:
        raise checks.bad(path,
                         f'with its {dataset.Rows} x {dataset.Columns} pixels the series has more than max_voxels',
                         'Raise max_voxels of the source if that is right')
    pixels = decode_pixels(dataset, path)
    cosines = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
    if not np.allclose(cosines @ cosines.T, np.eye(2), atol=1e-3):
        raise checks.bad(path, 'its rows and columns are not perpendicular')
    down, right = sides = [float(s) for s in dataset.PixelSpacing]  # from row to row, from column to column
    if not 0 < min(sides) <= max(sides) < math.inf:
        raise checks.bad(path, f'its PixelSpacing is {sides}')
    scale = tuple(default if (value := dataset.get(key)) is None else float(value)
                  for key, default in (('RescaleSlope', 1.0), ('RescaleIntercept', 0.0)))
    if not np.isfinite(scale).all() or scale[0] == 0:
        raise checks.bad(path, f'its scale is {scale[0]} and {scale[1]}')
    position = np.array(dataset.ImagePositionPatient, float).reshape(3)
    return _Slice(path, str(dataset.SeriesInstanceUID), pixels, position, cosines.T * (right, down), scale)


def _check_same_series(a: _Slice, b: _Slice, folder: str) -> None:
    """Two slices of one series, or BadData."""
    for equal, problem in ((a.series == b.series, 'two series (SeriesInstanceUID)'),
                       (a.pixels.shape == b.pixels.shape, 'slices of two sizes'),
                       (np.abs(a.across - b.across).max() < 1e-4 * np.abs(a.across).max(),
                        'slices of two orientations or pixel spacings')):
        if not equal:
            raise checks.bad(folder,
                             f'it holds {problem}, e.g. {os.path.basename(a.path)} and {os.path.basename(b.path)}',
                             'Keep one series a folder')
