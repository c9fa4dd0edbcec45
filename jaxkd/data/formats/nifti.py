"""NIfTI-1 and -2 in one piece, of either byte order: .nii and .nii.gz. The one format that is also written."""
import contextlib
import gzip
import io
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxkd import errors
from jaxkd.data.formats import checks, inflate
from jaxkd.runtime import files

FORMS = ('auto', 'sform', 'qform')
MAX_FORM_DISTANCE = 0.5  # voxels, between the two grids of one header [our choice]
_LONGEST = 1.001  # length of a quaternion that rounding explains [our choice]


def read(f: io.BufferedReader, path: str, max_voxels: int, frame: int | None = None,
         placed: bool = True, form: str = 'auto') -> tuple[np.ndarray, np.ndarray]:
    """Voxels [X,Y,Z] and affine as the open file has them; RAS+ is the world of NIfTI.

    frame   which volume of a file with a fourth axis, from 0; None refuses a file of several
    placed  False takes a file that does not say where its voxels are as a grid of its spacing that starts at 0
    form    which affine of the header holds: 'sform', 'qform', or 'auto', the sform, or the qform where that is absent
            or not usable; BadData where both are usable and contradict each other
    """
    content = inflate.open_any(f)
    header, length = _header(content, path)
    shape, frames = _shape(header, path)
    if frame is None and math.prod(frames) > 1:
        raise checks.bad(path, f'it holds more than one volume, its shape is {(*shape, *frames)}',
                         'Save the one that is meant')
    dtype = _type(header, path)
    affine = _affine(header, shape, path, placed, form)
    slope, inter = float(header['scl_slope']), float(header['scl_inter'])
    scaled = slope != 0 and not math.isnan(slope)  # both mean: not scaled
    if scaled and not (math.isfinite(slope) and math.isfinite(inter)):
        raise checks.bad(path, f'its scale is {slope} and {inter}')
    offset = float(header['vox_offset'])
    if not (length + 4 <= offset <= 2**26 and offset.is_integer()):
        raise checks.bad(path, f'its header puts the voxels at byte {offset}')
    count = checks.count(shape, max_voxels, path)
    needed = int(offset) + count * math.prod(frames) * dtype.itemsize
    checks.check_size(os.fstat(f.fileno()).st_size, needed, content is not f, path)
    content.read(int(offset) - length)
    index, n_frames = frame or 0, math.prod(frames)
    if not 0 <= index < n_frames or n_frames != max(frames, default=1):
        raise checks.bad(path, f'it has no frame {index} (from 0), its shape is {(*shape, *frames)}',
                         'Correct the number of the frame')
    voxels = inflate.read_voxels(content, count, dtype, path, index * count, (n_frames - 1 - index) * count)
    voxels = voxels.reshape(shape, order='F')
    return inflate.scale(voxels, slope, inter) if scaled else voxels, affine


def load(path: str, max_voxels: int, frame: int | None = None, placed: bool = True,
         form: str = 'auto') -> tuple[np.ndarray, np.ndarray]:
    """As `read`, of a path, and voxels that are finite: axes stay as the file has them, where `volume.read` turns
    them.
    """
    with _open(path) as f:
        voxels, affine = read(f, path, max_voxels, frame, placed, form)
    if not checks.finite(voxels):
        raise checks.bad(path, 'some voxels are NaN or infinite', 'Find out why, or copy it again')
    return voxels, affine


def head(path: str) -> tuple[tuple[int, ...], int]:
    """((X, Y, Z), number of frames) by the header alone."""
    with _open(path) as f:
        shape, frames = _shape(_header(inflate.open_any(f), path)[0], path)
    return tuple(shape), math.prod(frames)


def read_grid(f: io.BufferedReader, path: str, form: str = 'auto') -> tuple[tuple[int, ...], np.ndarray]:
    """(shape, affine) that `read` returns, by the header alone."""
    header, _ = _header(inflate.open_any(f), path)
    shape, _ = _shape(header, path)
    return tuple(shape), _affine(header, shape, path, True, form)


@contextlib.contextmanager
def _open(path: str) -> Iterator[io.BufferedReader]:
    """The open file; within, whatever goes wrong ends as BadData or MissingInput."""
    with checks.reading(path):
        if os.path.exists(path) and not os.path.isfile(path):
            raise checks.bad(path, 'it is not a regular file', 'Point the table at the file itself')
        with np.errstate(all='ignore'), open(path, 'rb') as f:  # numbers that overflow are found as not finite
            yield f


def _shape(header: Any, path: str) -> tuple[list[int], list[int]]:
    """[X, Y, Z] and the axes that follow, mostly none."""
    axes = int(header['dim'][0])
    shape = [int(n) for n in header['dim'][1:1 + max(axes, 0)]]
    if not 3 <= axes <= 7 or min(shape) < 1:
        raise checks.bad(path, f'its header claims {axes} axes of {tuple(shape)} voxels')
    return shape[:3], shape[3:]


def _header(content: io.BufferedIOBase, path: str) -> tuple[Any, int]:
    """The header, unchecked but for what makes it one, and its number of bytes."""
    with checks.needs('nibabel', path):
        import nibabel
    start = content.read(348)
    for order in ('little', 'big'):
        length = int.from_bytes(start[:4], order)
        if length in (348, 540):
            break
    else:
        raise checks.bad(path, 'it does not start as a NIfTI file does')
    start += content.read(length - 348)
    if len(start) < length:
        raise checks.bad(path, 'it ends within its header')
    if (start[344:348] if length == 348 else start[4:12]) != (b'n+1\0' if length == 348 else b'n+2\0\r\n\x1a\n'):
        raise checks.bad(path, 'it is not a NIfTI file in one piece (Analyze, or half of a pair, or damaged)',
                         'Save it as one .nii.gz file')
    kind = nibabel.Nifti1Header if length == 348 else nibabel.Nifti2Header
    return kind(start, endianness='<' if order == 'little' else '>', check=False), length


def _type(header: Any, path: str) -> np.dtype:
    from nibabel.nifti1 import data_type_codes
    code = int(header['datatype'])
    dtype: Any = data_type_codes.dtype[code] if code in data_type_codes.dtype else None
    if dtype is None or not checks.real(dtype):
        raise checks.bad(path, f'its voxels are of NIfTI type {code}, neither integer nor real',
                         'Save it as int16 or float32')
    if header['bitpix'] != 8 * dtype.itemsize:
        raise checks.bad(path, f'its header claims {dtype} of {header["bitpix"]} bits')
    return dtype.newbyteorder(header.endianness)


def _affine(header: Any, shape: list[int], path: str, placed: bool, form: str) -> np.ndarray:
    import nibabel
    units = int(header['xyzt_units']) & 7
    if units not in (0, 2):
        raise checks.bad(path, f'its unit of length (code {units}) is not mm', 'Correct xyzt_units and the affine')
    faults: list[errors.BadData] = []
    placements = {}
    for name in ('sform', 'qform') if form == 'auto' else (form,):
        try:
            placement = _qform(header, path) if name == 'qform' else header.get_sform(coded=True)[0]
            if placement is not None:
                checks.check_affine(placement, shape, path)
                placements[name] = placement
        except errors.BadData as e:
            faults.append(e)
    if len(placements) == 2:
        distance = checks.max_distance(placements['sform'], placements['qform'], shape)
        if distance > MAX_FORM_DISTANCE * nibabel.affines.voxel_sizes(placements['sform']).min():
            raise checks.bad(path, f'its sform and its qform put the same voxel in places {distance:.3g} mm apart',
                             'Find out which is right and set the code of the other to 0, or choose it for all files '
                             'with nifti_form="sform" or "qform" of the source')
    if placements:
        return next(iter(placements.values()))
    if faults:
        raise faults[0]
    sides = np.abs(header['pixdim'][1:4])
    if placed or form != 'auto':
        raise checks.bad(path, 'it does not say where its voxels are '
                               f'({"sform_code and qform_code are" if form == "auto" else form + "_code is"} 0)',
                         'Set one of them from the scanner')
    if not np.isfinite(sides).all() or not sides.all():
        raise checks.bad(path, f'its header claims voxels of {sides.tolist()} mm', 'Correct pixdim')
    affine = np.diag([*sides, 1.0])
    checks.check_affine(affine, shape, path)
    return affine


def _qform(header: Any, path: str) -> np.ndarray | None:
    """The affine of the quaternion; None where its code is 0. A length that rounding put above 1 becomes 1."""
    if header['qform_code'] <= 0:
        return None
    sides, length = header['pixdim'][1:4], sum(float(header[f'quatern_{axis}'])**2 for axis in 'bcd')**0.5
    if not np.isfinite(sides).all() or (sides <= 0).any():
        raise checks.bad(path, f'its header claims voxels of {sides.tolist()} mm', 'Correct pixdim')
    if not length <= _LONGEST:  # also nan
        raise checks.bad(path, f'its quaternion is {length:.6g} long, the longest is 1', 'Correct quatern_b, c and d')
    if length > 1:
        for axis in 'bcd':
            header[f'quatern_{axis}'] /= length
    header['pixdim'][0] = -1 if header['pixdim'][0] < 0 else 1  # 0 is 1, as the standard says
    return header.get_qform()


def write(path: str, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Write voxels [X,Y,Z] whole or not at all, gzipped for a name in .gz. The header says nothing but their grid."""
    with checks.needs('nibabel', path):
        import nibabel
    voxels = voxels.astype(np.uint8) if voxels.dtype == bool else voxels
    if not checks.real(voxels.dtype):
        raise errors.BadData(f'Cannot save {path}: NIfTI has no {voxels.dtype}. Convert the voxels, e.g. to float32.')
    if not checks.finite(voxels):
        raise errors.BadData(f'Cannot save {path}: some voxels are not finite. Find out where they come from.')
    checks.check_affine(affine, voxels.shape, path)
    image_class = nibabel.Nifti1Image if max(voxels.shape) < 2**15 else nibabel.Nifti2Image
    nifti = image_class(voxels, affine, dtype=voxels.dtype)
    nifti.header.set_xyzt_units('mm')
    nifti.header.set_sform(affine, 'scanner')
    nifti.header.set_qform(affine, 'scanner')
    if checks.sheared(affine, voxels.shape):
        nifti.header['qform_code'] = 0  # quaternions cannot say it
    content = nifti.to_bytes()
    files.write(path, gzip.compress(content, 3, mtime=0) if path.lower().endswith('.gz') else content)
