"""The one place that reads and writes 3D images.

read      .nii and .nii.gz (NIfTI-1 and -2, either byte order), .nrrd (attached data, raw or gzip), a folder with one
          DICOM series (CT, MR or PT, one frame a file), an enhanced DICOM file of many frames; contours of RTSTRUCT
save      .nii, .nii.gz and .nrrd, on the grid and the axes of the file that was read
resample  a volume on another grid

World coordinates are millimetres, RAS+: x grows to the patient's right, y to the front, z to the head. What is read has
its axes swapped and flipped to be the closest to RAS. No voxel is interpolated, and the affine says where each one is.

Every fault of a file is a BadData (MissingInput when there is no file), never an error of a library, and is raised
before memory is allocated by the header alone. A library that is not installed is a ConfigError: it stops a run where
bad files would be skipped. A .gz file is read to its last byte and its checksum compared, so flipped bits are detected.
Uncompressed files and DICOM carry no checksum: there, a flipped bit changes a voxel undetected.
Needs about three times the memory of the voxels. Thread-safe.

A format is one file of the folder formats: its `read` returns the voxels in their stored order and the affine to RAS+,
and imports the library of the format at the first call. checks.py and inflate.py serve all formats. This file selects
the format and turns the axes.
"""
import dataclasses
import functools
import math
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxkd import errors
from jaxkd.data.formats import checks, dicom, nifti, nrrd, rtstruct

FIXED = 4096  # fixed point of a prepared volume: the int16 value v stands for v / 4096
MAX_VOXELS = 2**30
SAME = 0.01  # voxels, by which grids may differ and still be one
SLICES = 16  # resampled at a time


@dataclasses.dataclass(frozen=True)
class Volume:
    """An image in the patient's space, its axes turned to RAS."""

    voxels: np.ndarray  # [X,Y,Z], any integer or float type
    affine: np.ndarray  # float64 [4,4], voxel index -> world mm
    file_affine: Any = None  # float64 [4,4] of the file, before its axes were turned; None without a file


def read(path: str | os.PathLike, max_voxels: int = MAX_VOXELS, nifti_form: str = 'auto',
         pet_units: str = '') -> Volume:
    """The Volume of a .nii, .nii.gz or .nrrd file or of a folder with one DICOM series.

    Voxels keep the type of the file; where it scales them (scl_slope, RescaleSlope) they become float32. They may be
    a view that is not contiguous. Refuses more than `max_voxels` before it reads any. nifti_form: 'auto', 'sform' or
    'qform', see formats/nifti.py. pet_units: '' or 'suv', see formats/pet.py.
    """
    path = os.fspath(path)
    with checks.reading(path):
        return _read(path, max_voxels, nifti_form, pet_units)


def read_grid(path: str | os.PathLike, nifti_form: str = 'auto') -> Volume | None:
    """As `read`, by the header alone: voxels are all 0 and take no memory. None for DICOM, whose slices say it."""
    path = os.fspath(path)
    if path.lower().endswith(('.dcm', '.ima')) or os.path.isdir(path):
        return None
    with checks.reading(path), np.errstate(all='ignore'), open(path, 'rb') as f:
        reader = _reader(path)
        shape, affine = (nifti.read_grid(f, path, nifti_form) if reader is nifti.read else nrrd.read_grid(f, path))
        return turned(np.broadcast_to(np.uint8(0), shape), affine, path)


def read_contours(contours: rtstruct.Contours, max_voxels: int = MAX_VOXELS) -> Volume:
    """bool: the mask that an RTSTRUCT draws, on the grid of the DICOM series that it is drawn on."""
    with checks.reading(contours.series):
        shape, affine = _dicom_grid(contours.series, max_voxels, os.stat(contours.series).st_mtime_ns)
    return turned(rtstruct.read(contours.path, contours.region, shape, affine), affine, contours.path)


@functools.lru_cache(1024)
def _dicom_grid(series, max_voxels, changed):
    """(shape, affine) of a series, which is read for them once."""
    voxels, affine = dicom.read(series, max_voxels)
    return voxels.shape, affine


def save(path: str | os.PathLike, voxels: ArrayLike, like: Volume) -> None:
    """Write voxels [X,Y,Z], on the grid of the Volume `like`, as .nii, .nii.gz or .nrrd, whole or not at all.

    The file has the axes and the affine of the file that `like` was read from (without one: those of `like`), and a
    header that says nothing else. bool becomes uint8, other types stay. `read` gives back the same voxels.
    """
    path, voxels = os.fspath(path), np.asarray(voxels)
    if not path.lower().endswith(('.nii', '.nii.gz', '.nrrd')):
        raise errors.BadData(f'Cannot save {path}: volumes are written as NIfTI or NRRD. Let its name end in .nii, '
                             '.nii.gz or .nrrd.')
    if voxels.shape != like.voxels.shape or voxels.ndim != 3:
        raise errors.BadData(f'Cannot save {path}: its voxels are {voxels.shape}, those of the volume whose grid it '
                             f'takes are {like.voxels.shape}. Resample it onto that grid first.')
    write = nrrd.write if path.lower().endswith('.nrrd') else nifti.write
    if like.file_affine is None:
        write(path, voxels, like.affine)
    else:
        write(path, stored(voxels, like.file_affine), like.file_affine)


def stored(voxels: np.ndarray, file_affine: np.ndarray) -> np.ndarray:
    """Voxels [X,Y,Z] of a Volume in the order of the axes of its file, whose affine is `file_affine`."""
    import nibabel
    back = nibabel.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], nibabel.io_orientation(file_affine))
    return nibabel.apply_orientation(voxels, back)


def resample(volume: Volume, affine: np.ndarray, shape: Sequence[int], order: int = 1, fill: float = 0.0) -> np.ndarray:
    """float32 [shape] of the volume on the grid `affine` (float [4,4], index -> world mm).

    order 1 is linear, 0 the nearest voxel (for labels). Beyond the outermost voxel centres, values pass to `fill`
    within one voxel. Where the grid is coarser, the volume is smoothed first (order 1 alone): along each source axis by
    a Gaussian of variance (r^2 - 1) / (8 ln 2) voxels, r = the length of one target voxel's edges along that axis, in
    source voxels. [published: Cardoso et al. 2015, both point spreads are Gaussians as wide as a voxel at half
    height; our choice: each source axis on its own, also between rotated grids]
    """
    if order not in (0, 1):
        raise errors.ConfigError(f'resample: order is {order!r}. Give 1 (linear) or 0 (nearest).')
    across = np.linalg.inv(volume.affine) @ affine  # target index -> source index
    across[np.abs(across) < 1e-12] = 0
    corners = checks.corners(across, shape)
    r2 = np.sum(across[:3, :3]**2, axis=1)
    sigma = np.sqrt(np.maximum(r2 - 1, 0) / (8 * math.log(2))) * order
    margin = np.ceil(4 * sigma) + 2  # what the filter and the interpolation look at
    low = np.maximum(np.floor(corners.min(axis=0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(corners.max(axis=0) + margin) + 1, volume.voxels.shape).astype(int)
    if (low >= high).any():
        return np.full(shape, fill, np.float32)
    from scipy import ndimage  # pictures do not need it
    source = volume.voxels[tuple(map(slice, low, high))].astype(np.float32)
    for axis in np.flatnonzero(sigma > 0.05):  # below, the kernel is a single voxel
        source = ndimage.gaussian_filter1d(source, sigma[axis], axis, mode='nearest', truncate=4.0)
    return ndimage.affine_transform(source, across[:3, :3], across[:3, 3] - low, tuple(shape), np.float32, order,
                                    mode='grid-constant', cval=fill, prefilter=False)


def moved(affine: np.ndarray, start: ArrayLike) -> np.ndarray:
    """The affine of a grid whose voxel 0 is the voxel `start` (x, y, z) of this one."""
    out = np.array(affine)
    out[:3, 3] += affine[:3, :3] @ np.asarray(start)
    return out


def slabs(volume: Volume, affine: np.ndarray, shape: Sequence[int], order: int,
          fill: float) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields (slice of z, float32 [X,Y,z]): a Volume on a grid, some slices at a time, exact where the grids agree."""
    across = np.linalg.inv(volume.affine) @ affine
    shifted = np.eye(4)
    shifted[:3, 3] = np.rint(across[:3, 3])
    exact = checks.max_distance(across, shifted, shape) < SAME
    for z in range(0, shape[2], SLICES):
        slab = (*shape[:2], min(SLICES, shape[2] - z))
        part = slice(z, z + slab[2])
        if exact:
            yield part, _cut(volume.voxels, shifted[:3, 3].astype(int) + (0, 0, z), slab, fill)
        else:
            yield part, resample(volume, moved(affine, (0, 0, z)), slab, order, fill)


def to_grid(values: np.ndarray, affine: np.ndarray, like: Volume) -> np.ndarray:
    """[X,Y,Z] on the grid of the Volume `like`, of values [Z,Y,X] on the grid `affine`; 0 outside of them.

    Whole numbers, a label map, by the nearest voxel; floats linearly -> float32.
    """
    source, linear = Volume(np.asarray(values).T, affine), values.dtype.kind == 'f'
    out = np.empty(like.voxels.shape, np.float32 if linear else values.dtype)
    for part, voxels in slabs(source, like.affine, out.shape, int(linear), 0.0):
        out[:, :, part] = voxels
    return out


def upright(like: Volume, sides: ArrayLike) -> tuple[np.ndarray, tuple[int, int, int]]:
    """(affine, shape) of the grid along the world's axes that is as wide as a Volume. sides: mm of its voxels, [3]."""
    reach = np.ptp(checks.corners(like.affine, like.voxels.shape), axis=0) + spacing(like.affine)  # its outer faces
    x, y, z = np.maximum(np.rint(reach / np.asarray(sides)), 1).astype(int).tolist()
    return grid(middle(like), sides, (x, y, z)), (x, y, z)


def straightened(label: np.ndarray, like: Volume) -> Volume | None:
    """A label map [X,Y,Z] on the grid of `like` by the nearest voxel on one along the world's axes, where that grid is
    sheared (a tilted gantry), which programs built on ITK refuse; None where it is not.
    """
    if not checks.sheared(like.affine, label.shape):
        return None
    affine, shape = upright(like, spacing(like.affine))
    target = Volume(np.broadcast_to(np.uint8(0), shape), affine)
    return dataclasses.replace(target, voxels=to_grid(label.T, like.affine, target))


def without_voxels(volume: Volume) -> Volume:
    """A Volume on the same grid that takes no memory: all 0."""
    return dataclasses.replace(volume, voxels=np.broadcast_to(np.uint8(0), volume.voxels.shape))


def spacing(affine: ArrayLike) -> np.ndarray:
    """float64 [3]: mm from voxel to voxel along each axis."""
    return np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)


def world(affine: np.ndarray, index: ArrayLike) -> np.ndarray:
    """World mm [...,3] of voxel indices [...,3]."""
    return np.asarray(index) @ affine[:3, :3].T + affine[:3, 3]


def index(affine: np.ndarray, point: ArrayLike) -> np.ndarray:
    """Voxel indices, as floats [...,3], of world points [...,3] in mm."""
    return world(np.linalg.inv(affine), point)


def middle(volume: Volume) -> np.ndarray:
    """World mm [3] of the middle of a volume."""
    return world(volume.affine, (np.array(volume.voxels.shape) - 1) / 2)


def grid(centre: ArrayLike, spacing: ArrayLike, shape: Sequence[int]) -> np.ndarray:
    """Affine float64 [4,4] of a grid along the world's axes whose middle is `centre` (x, y, z mm)."""
    affine = np.diag(np.append(spacing, 1.0))
    affine[:3, 3] = np.asarray(centre) - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


@np.errstate(all='ignore')  # numbers that overflow are found afterwards, as not finite
def _read(path, max_voxels, nifti_form, pet_units):
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode) or path.lower().endswith(('.dcm', '.ima')):
        voxels, affine = dicom.read(path, max_voxels, pet_units)
        return turned(voxels, affine, path)
    reader = _reader(path)
    if not stat.S_ISREG(mode):
        raise checks.bad(path, 'it is not a regular file', 'Point the table at the file itself')
    with open(path, 'rb') as f:
        options = dict(form=nifti_form) if reader is nifti.read else {}
        voxels, affine = reader(f, path, max_voxels, **options)
    return turned(voxels, affine, path)


def _reader(path):
    name = path.lower()
    if name.endswith(('.nii', '.nii.gz')):
        return nifti.read
    if name.endswith('.nrrd'):
        return nrrd.read
    for endings, description, remedy in (
            (('.hdr', '.img', '.hdr.gz', '.img.gz'), 'a pair of header and image', 'Save it as one .nii.gz file'),
            (('.mha', '.mhd'), 'a MetaImage', 'Convert it to .nii.gz'),
            (('.nhdr',), 'an NRRD header apart from its data', 'Save it as one .nrrd file')):
        if name.endswith(endings):
            raise checks.bad(path, f'it is {description}', remedy)
    raise checks.bad(path, 'it is neither .nii, .nii.gz, .nrrd nor a folder with a DICOM series',
                     'Convert it to .nii.gz')


def turned(voxels: np.ndarray, affine: np.ndarray, path: str) -> Volume:
    """The Volume of voxels in the order of a file with this affine, its axes turned to RAS."""
    with checks.needs('nibabel', path):
        import nibabel
    if not checks.finite(voxels):
        raise checks.bad(path, 'some voxels are NaN or infinite', 'Find out why, or copy it again')
    turn = nibabel.io_orientation(affine)
    turned = affine @ nibabel.orientations.inv_ornt_aff(turn, voxels.shape)
    return Volume(nibabel.apply_orientation(voxels, turn), turned, affine)


def _cut(voxels, start, shape, fill):
    """float32 [shape] of the voxels from `start` on, `fill` where there are none."""
    low, high = np.maximum(start, 0), np.minimum(np.add(start, shape), voxels.shape)
    if (low <= start).all() and (high >= np.add(start, shape)).all():
        return voxels[tuple(map(slice, low, high))].astype(np.float32)
    out = np.full(shape, fill, np.float32)
    if (low < high).all():
        out[tuple(map(slice, low - start, high - start))] = voxels[tuple(map(slice, low, high))]
    return out
