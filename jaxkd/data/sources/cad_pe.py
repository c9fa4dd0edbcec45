"""CAD-PE: 91 CT angiographies with a numbered mask of each clot; no non-contrast scan.

Gonzalez et al.: Computer aided detection for pulmonary embolism challenge (CAD-PE). arXiv 2003.13440 (2020), terms of
IEEE DataPort. Layout: images/001.nrrd and rs/0001RefStd.nrrd, or 001RefStd.nrrd as other copies have it; ids such as
e0032 (images/e0032.nrrd, rs/e0032RefStd.nrrd).

A reference mask holds one number for each clot: all voxels above 0 are embolus, and the numbers are kept in
record['instances'], a Volume on the same grid, for recall of lesions. Image and reference correspond by voxel index;
the header of the image gives the position of both.

Interpretation: emboli by agreement of three readers of CTPA. pe: whether the reference has a voxel. A network that
reads CTPA is an upper reference for non-contrast CT; results with `pseudo_nct` serve tests, not claims.
"""
import os
import re

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import mask_values, volume
from jaxkd.data.formats import checks
from jaxkd.data.source import Case, Source
from jaxkd.data.sources import fumpe
from jaxkd.data.sources.shared import embolism, loading_errors

DEFAULTS = dict(
    root='',  # the folder of the data set
    images='images',  # the folder of scans below root
    masks='rs',  # the folder of reference masks below root
    exclude=(),  # ids of cases to leave out, e.g. ('012', 'e0032')
    on_error='fail',  # at bad cases: fail (stop) or skip (read all once at the start and leave the bad ones out)
    max_voxels=2**28,  # most voxels of a scan; a larger one is refused
)


def build(hp: ConfigDict) -> Source:
    """An `embolism.Scans` of ctpa, label and instances."""
    names = [name for name in embolism.list_files(hp, 'cad_pe', hp.images) if name.lower().endswith('.nrrd')]
    masks = {*embolism.list_files(hp, 'cad_pe', hp.masks)}
    rows, skipped = loading_errors.collect(names, lambda name: _case(hp, name, masks), hp.on_error, _id)
    source = embolism.scans(hp, 'cad_pe', rows, skipped, load, embolism.read_mask, note=fumpe.NOTE)
    return embolism.complete(source, hp.on_error, os.path.join(hp.root, hp.images))


def load(source: embolism.Scans, i: int) -> dict[str, volume.Volume]:
    """{'ctpa', 'label', 'instances'} on one grid."""
    ctpa, reference, path = source.read(i, 'ctpa'), source.read(i, 'label'), source.path(i, 'label')
    clots = volume.stored(reference.voxels, reference.file_affine)
    if clots.shape != (shape := volume.stored(ctpa.voxels, ctpa.file_affine).shape):
        raise checks.bad(path, f'it has {clots.shape} voxels, the scan {shape}', 'Exclude the case or copy both again')
    embolus = mask_values.numbered(clots, path).astype(np.uint8)
    return {'ctpa': ctpa, 'label': volume.turned(embolus, ctpa.file_affine, path),
            'instances': volume.turned(clots, ctpa.file_affine, path)}


def _case(hp: ConfigDict, name: str, masks: set[str]) -> embolism.Row:
    """(Case, pe, files, None) of an image."""
    case = _id(name)
    stems = [case, *(f'{int(case):0{width}d}' for width in (4, 3) if case.isascii() and case.isdigit())]
    references = [stem for stem in dict.fromkeys(f'{stem}RefStd.nrrd' for stem in stems) if stem in masks]
    if len(references) != 1:
        mask_folder = os.path.join(hp.root, hp.masks)
        raise (errors.BadData if references else errors.MissingInput)(
            f'Case {case}: {mask_folder} has {" and ".join(references) or f"no {stems[-1]}RefStd.nrrd"}. Keep one '
            'reference for each image, or exclude the case.')
    return Case(case, case), None, {'ctpa': f'{hp.images}/{name}', 'label': f'{hp.masks}/{references[0]}'}, None


def _id(name: str) -> str:
    return re.sub(r'(?i)\.nrrd$', '', name)
