"""NIfTI-1 and -2 in one piece, of either byte order: .nii and .nii.gz. The one format that is also written."""
import gzip
import math
import os

import numpy as np

from jaxkd import errors, files
from jaxkd.data.formats import checks, stream

APART = 0.5  # voxels, between the two grids of one header [our choice]


def read(f, path, max_voxels):
    """Voxels [X,Y,Z] and affine as the open file has them; RAS+ is the world of NIfTI."""
    size = os.fstat(f.fileno()).st_size
    packed = f.peek(2)[:2] == b'\x1f\x8b'  # whatever its name says
    content = stream.inflated(f) if packed else f
    header, length = _header(content, path)
    axes = int(header['dim'][0])
    shape = [int(n) for n in header['dim'][1:1 + max(axes, 0)]]
    if not 3 <= axes <= 7 or min(shape) < 1:
        raise checks.bad(path, f'its header claims {axes} axes of {tuple(shape)} voxels',
                         'Copy it again or remove its row')
    if max(shape[3:], default=1) > 1:
        raise checks.bad(path, f'it holds more than one volume, its shape is {tuple(shape)}',
                         'Save the one that is meant')
    shape = shape[:3]
    dtype = _type(header, path)
    affine = _affine(header, shape, path)
    slope, inter = float(header['scl_slope']), float(header['scl_inter'])
    scaled = slope != 0 and not math.isnan(slope)  # both mean: not scaled
    if scaled and not (math.isfinite(slope) and math.isfinite(inter)):
        raise checks.bad(path, f'its scale is {slope} and {inter}', 'Copy it again from where it came')
    offset = float(header['vox_offset'])
    if not (length + 4 <= offset <= 2**26 and offset.is_integer()):
        raise checks.bad(path, f'its header puts the voxels at byte {offset}', 'Copy it again from where it came')
    count = checks.count(shape, max_voxels, path)
    checks.fits(size, int(offset) + count * dtype.itemsize, packed, path)
    content.read(int(offset) - length)
    voxels = stream.payload(content, count, dtype, path).reshape(shape, order='F')
    return stream.scale(voxels, slope, inter) if scaled else voxels, affine


def _header(content, path):
    """The header, unchecked but for what makes it one, and its number of bytes."""
    with checks.needs('nibabel', path):
        import nibabel
    start = content.read(348)
    for order in ('little', 'big'):
        length = int.from_bytes(start[:4], order)
        if length in (348, 540):
            break
    else:
        raise checks.bad(path, 'it does not start as a NIfTI file does', 'Copy it again from where it came')
    start += content.read(length - 348)
    if len(start) < length:
        raise checks.bad(path, 'it ends within its header', 'Copy it again from where it came')
    if (start[344:348] if length == 348 else start[4:12]) != (b'n+1\0' if length == 348 else b'n+2\0\r\n\x1a\n'):
        raise checks.bad(path, 'it is not a NIfTI file in one piece (Analyze, or half of a pair, or damaged)',
                         'Save it as one .nii.gz file')
    kind = nibabel.Nifti1Header if length == 348 else nibabel.Nifti2Header
    return kind(start, endianness='<' if order == 'little' else '>', check=False), length


def _type(header, path):
    from nibabel.nifti1 import data_type_codes
    code = int(header['datatype'])
    dtype = data_type_codes.dtype[code] if code in data_type_codes.dtype else None
    if dtype is None or not checks.real(dtype):
        raise checks.bad(path, f'its voxels are of NIfTI type {code}, neither integer nor real',
                         'Save it as int16 or float32')
    if header['bitpix'] != 8 * dtype.itemsize:
        raise checks.bad(path, f'its header claims {dtype} of {header["bitpix"]} bits',
                         'Copy it again from where it came')
    return dtype.newbyteorder(header.endianness)


def _affine(header, shape, path):
    import nibabel
    units = int(header['xyzt_units']) & 7
    if units not in (0, 2):
        raise checks.bad(path, f'its unit of length (code {units}) is not mm', 'Correct xyzt_units and the affine')
    sides = header['pixdim'][1:4]
    if not np.isfinite(sides).all() or (sides == 0).any():
        raise checks.bad(path, f'its header claims voxels of {sides.tolist()} mm', 'Correct pixdim')
    if header['pixdim'][0] == 0:
        header['pixdim'][0] = 1  # as the standard says
    forms = [form for form in (header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]) if form is not None]
    if not forms:
        raise checks.bad(path, 'it does not say where its voxels are (sform_code and qform_code are 0)',
                         'Set one of them from the scanner')
    for form in forms:
        checks.believe(form, shape, path)
    if len(forms) == 2:
        gap = checks.apart(*forms, shape)
        if gap > APART * nibabel.affines.voxel_sizes(forms[0]).min():
            raise checks.bad(path, f'its sform and its qform put the same voxel in places {gap:.3g} mm apart',
                             'Find out which is right and set the code of the other to 0')
    return forms[0]


def write(path, voxels, affine):
    """Write voxels [X,Y,Z] whole or not at all, gzipped for a name in .gz. The header says nothing but their grid."""
    with checks.needs('nibabel', path):
        import nibabel
    voxels = voxels.astype(np.uint8) if voxels.dtype == bool else voxels
    if not checks.real(voxels.dtype):
        raise errors.BadData(f'Cannot save {path}: NIfTI has no {voxels.dtype}. Convert the voxels, e.g. to float32.')
    if not checks.finite(voxels):
        raise errors.BadData(f'Cannot save {path}: some voxels are not finite. Find out where they come from.')
    checks.believe(affine, voxels.shape, path)
    kind = nibabel.Nifti1Image if max(voxels.shape) < 2**15 else nibabel.Nifti2Image
    made = kind(voxels, affine, dtype=voxels.dtype)
    made.header.set_xyzt_units('mm')
    made.header.set_sform(affine, 'scanner')
    made.header.set_qform(affine, 'scanner')
    if checks.apart(affine, made.header.get_qform(), voxels.shape) > 0.01 * nibabel.affines.voxel_sizes(affine).min():
        made.header['qform_code'] = 0  # quaternions cannot say that a grid is sheared
    content = made.to_bytes()
    files.write(path, gzip.compress(content, 3, mtime=0) if path.lower().endswith('.gz') else content)
