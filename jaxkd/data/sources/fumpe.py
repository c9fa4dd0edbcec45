"""FUMPE: CT angiographies of 35 patients with voxel masks of pulmonary emboli; no non-contrast scan.

Masoudi et al.: A new dataset of computed-tomography angiography images for computer-aided detection of pulmonary
embolism. Sci Data 5:180180 (2018), CC BY 4.0. Layout: CT_scans/PAT001/*.dcm and GroundTruth/PAT001.mat, variable Mask,
in the order y, x, z.

Slices of a mask are in the order of the NAMES of the DICOM files, those of the series in the order of position. Each
mask slice is assigned to its file, which reverses masks of patients whose names descend. Names that neither ascend nor
descend are refused, since the order of the mask is then unknown.

Interpretation: emboli by readers of CTPA. pe: whether the mask has a voxel. Some scans show no embolus, and some have
slices 3 mm or more apart: list such cases in `exclude`. A network that reads CTPA is an upper reference for
non-contrast CT; results with `pseudo_nct` serve tests, not claims.
"""
import io
import os
import zlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd.data import mask_values, volume
from jaxkd.data.formats import checks, csv_table, image
from jaxkd.data.source import Case, Source
from jaxkd.data.sources.shared import embolism, loading_errors

DEFAULTS = dict(
    root='',  # the folder of the data set
    images='CT_scans',  # the folder of scans below root
    masks='GroundTruth',  # the folder of masks below root
    exclude=(),  # patients to leave out, e.g. ('PAT004',)
    on_error='fail',  # at bad cases: fail (stop) or skip (read all once at the start and leave the bad ones out)
    max_voxels=2**28,  # most voxels of a scan; a larger one is refused
)

NOTE = ('contrast CT alone: no non-contrast scan was taken, and one made by pseudo_nct is good for tests, useless for '
        'claims')
_COMPRESSED = 15  # type of an element of a MATLAB 5 file


def build(hp: ConfigDict) -> Source:
    """An `embolism.Scans` of ctpa and label."""
    names = embolism.list_files(hp, 'fumpe', hp.images, folders=True)
    rows, skipped = loading_errors.collect(names, lambda name: _case(hp, name), hp.on_error, str)
    source = embolism.scans(hp, 'fumpe', rows, skipped, load, read_mask, note=NOTE)
    return embolism.complete(source, hp.on_error, os.path.join(hp.root, hp.images))


def load(source: embolism.Scans, i: int) -> dict[str, volume.Volume]:
    """{'ctpa', 'label'}: both on the grid of the series."""
    ctpa, folder = source.read(i, 'ctpa'), source.path(i, 'ctpa')
    mask, shape = read_mask(source, i).voxels, volume.stored(ctpa.voxels, ctpa.file_affine).shape
    if mask.shape != shape:
        raise checks.bad(source.path(i, 'label'), f'its mask has {mask.shape} voxels (x, y, z), the series {shape}',
                         'Exclude the case or copy both again')
    ranks = np.array(list(embolism.slices(folder).values()))
    if len({*np.diff(ranks).tolist()} | {1, -1}) > 2 or abs(int(ranks[-1] - ranks[0])) != len(ranks) - 1:
        raise checks.bad(folder, 'its slices lie neither up nor down in the order of the names of its files, which the '
                                 'mask follows', 'Restore the names of the archive or exclude the case')
    placed = np.empty(shape, np.uint8)
    placed[:, :, ranks] = mask
    return {'ctpa': ctpa, 'label': volume.turned(placed, ctpa.file_affine, source.path(i, 'label'))}


def read_mask(source: embolism.Scans, i: int) -> volume.Volume:
    """The mask as a Volume whose slices are in the order of file names; its affine says nothing."""
    path = source.path(i, 'label')
    return volume.Volume(mask_values.numbered(read(path, source.max_voxels), path), np.eye(4))


def read(path: str, max_voxels: int, name: str = 'Mask') -> np.ndarray:
    """The numbers of a three-dimensional variable [x,y,z] of a MATLAB 5 file that stores them [y,x,z].

    Nothing but plain numbers is read, and no more than eight bytes for each of max_voxels.
    """
    content = _plain(image.read_bytes(path, 8 * max_voxels), 8 * max_voxels, path)
    with checks.reading(path):
        import scipy.io
        kinds = {key: (shape, kind) for key, shape, kind in scipy.io.whosmat(io.BytesIO(content))}
        if name not in kinds:
            raise checks.bad(path, f'it has no variable {name}, but {", ".join(sorted(kinds)) or "none"}')
        shape, kind = kinds[name]
        if len(shape) != 3 or kind in ('cell', 'struct', 'object', 'char', 'function', 'opaque', 'sparse'):
            raise checks.bad(path, f'its {name} is {kind} of shape {shape}, not three-dimensional numbers')
        checks.count(shape, max_voxels, path)
        values = scipy.io.loadmat(io.BytesIO(content), variable_names=[name])[name]
    if values.shape != shape or values.dtype.kind not in 'biuf':
        raise checks.bad(path, f'its {name} is not what its header claims')
    return values.transpose(1, 0, 2)


def _plain(data: bytes, max_bytes: int, path: str) -> bytes:
    """A MATLAB 5 file with its compressed elements unpacked, at most about `most` bytes: what a header claims of their
    size is never believed.
    """
    if data[:10] == b'MATLAB 7.3' or data[:8] == b'\x89HDF\r\n\x1a\n' or data[512:520] == b'\x89HDF\r\n\x1a\n':
        raise checks.bad(path, 'it is a MATLAB 7.3 file (HDF5), which is not read',
                         "Save it anew in MATLAB: m = load(file); save(file, '-struct', 'm', '-v7')")
    if data[:10] != b'MATLAB 5.0' or data[126:128] not in (b'IM', b'MI'):
        raise checks.bad(path, 'it does not start as a MATLAB 5 file does')
    order: Any = 'little' if data[126:128] == b'IM' else 'big'
    out, position = [data[:128]], 128
    remaining = max_bytes + checks.SLACK
    while position + 8 <= len(data):
        kind, size = (int.from_bytes(data[position + k:position + k + 4], order) for k in (0, 4))
        part, stop = data[position:position + 8 + size], position + 8 + size
        if stop > len(data):
            raise checks.bad(path, 'it ends within a variable')
        if kind == _COMPRESSED:
            unpack = zlib.decompressobj()
            try:
                part = unpack.decompress(part[8:], remaining)
            except zlib.error as e:
                raise checks.damaged(path, e) from e
            if not unpack.eof:
                raise checks.bad(path, 'a variable is cut short, or larger than max_voxels allows',
                                 'Copy it again, or raise max_voxels of the source')
        remaining -= len(part)
        out.append(part)
        position = stop
    return b''.join(out)


def _case(hp: ConfigDict, name: str) -> embolism.Row:
    """(Case, pe, files, None) of a patient."""
    csv_table.check_inside(hp.root, f'{hp.images}/{name}')
    return Case(name, name), None, {'ctpa': f'{hp.images}/{name}',
                                    'label': embolism.mask_file(hp, name, f'{name}.mat')}, None
