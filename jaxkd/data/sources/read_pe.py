"""READ: 40 CT angiographies of two scanners with voxel masks of pulmonary emboli; no non-contrast scan.

de Andrade et al.: Pixel-level annotated dataset of computed tomography angiography images of acute pulmonary embolism.
Sci Data 10:518 (2023), CC0 1.0. Layout: images/GE (DICOM files)/01GE/, images/TOSHIBA (DICOM files)/01TS/,
rs/01GE.nii.gz.

Voxel (i, j, k) of a mask is pixel (i, j) of slice k of the series, sorted by position, although their headers disagree
about the direction of slices. Directions and origin are those of the mask's header; its spacing is rounded, by about a
slice over a long series, so the spacing (mm) is that of DICOM.

Interpretation: emboli by readers of CTPA of patients with emboli. pe: whether the mask has a voxel; nearly all cases
are positive, so there is no specificity. Group: scanner. A network that reads CTPA is an upper reference for
non-contrast CT; results with `pseudo_nct` serve tests, not claims.
"""
import os

import numpy as np
from ml_collections import ConfigDict

from jaxkd.data import mask_values, volume
from jaxkd.data.formats import checks
from jaxkd.data.source import Case, Source
from jaxkd.data.sources import fumpe
from jaxkd.data.sources.shared import embolism, loading_errors

DEFAULTS = dict(
    root='',  # the folder of the data set
    images=('images/GE (DICOM files)', 'images/TOSHIBA (DICOM files)'),  # the folders of scans below root, one of each
    # scanner
    masks='rs',  # the folder of masks below root
    exclude=(),  # cases to leave out, e.g. ('01GE',)
    on_error='fail',  # at bad cases: fail (stop) or skip (read all once at the start and leave the bad ones out)
    nifti_form='auto',  # which affine of the masks holds: sform, qform, or auto (refuse a file whose two disagree)
    max_voxels=2**28,  # most voxels of a scan; a larger one is refused
)


def build(hp: ConfigDict) -> Source:
    """An `embolism.Scans` of ctpa and label."""
    names = [(folder, name) for folder in hp.images for name in embolism.list_files(hp, 'read_pe', folder, True)]
    rows, skipped = loading_errors.collect(names, lambda pair: _case(hp, *pair), hp.on_error, lambda pair: pair[1])
    source = embolism.scans(hp, 'read_pe', rows, skipped, load, embolism.read_mask, note=fumpe.NOTE)
    return embolism.complete(source, hp.on_error, os.path.join(hp.root, hp.masks))


def load(source: embolism.Scans, i: int) -> dict[str, volume.Volume]:
    """{'ctpa', 'label'} on one grid."""
    ctpa, mask = source.read(i, 'ctpa'), source.read(i, 'label')
    ct_voxels, mask_voxels = volume.stored(ctpa.voxels, ctpa.file_affine), volume.stored(mask.voxels, mask.file_affine)
    if ct_voxels.shape != mask_voxels.shape:
        raise checks.bad(source.path(i, 'label'), f'it has {mask_voxels.shape} voxels, the series {ct_voxels.shape}',
                         'Exclude the case or copy both again')
    affine = np.array(mask.file_affine)
    affine[:3, :3] *= volume.spacing(ctpa.file_affine) / volume.spacing(mask.file_affine)
    embolus = mask_values.numbered(mask_voxels, source.path(i, 'label')).astype(np.uint8)
    return {'ctpa': volume.turned(ct_voxels, affine, source.path(i, 'ctpa')),
            'label': volume.turned(embolus, affine, source.path(i, 'label'))}


def _case(hp: ConfigDict, folder: str, name: str) -> embolism.Row:
    """(Case, pe, files, None) of a series."""
    mask = embolism.mask_file(hp, name, f'{name}.nii.gz')
    scanner = os.path.basename(folder).partition(' ')[0]
    return Case(name, name, groups={'scanner': scanner}), None, {'ctpa': f'{folder}/{name}', 'label': mask}, None
