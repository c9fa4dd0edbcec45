"""A stand-in for the non-contrast CT that a set of CT angiographies lacks: good for tests, useless for claims.

From record['ctpa'] and record['label'] [proposed by the specification of CPMN]
    nct = ctpa - (ctpa - 45)   inside: above 120 HU, eroded by one voxel (six neighbours)
    nct + d                    in clots (label 1 to 254), one d of a case, uniform in 8 to 25 HU
    nct + noise                everywhere, normal, standard deviation 12 HU
rounded to whole HU. Everything is drawn from a hash of the case id and `seed`, so that a case always has the same one.

Why no claim can rest on it: the rim of one voxel that erosion spares keeps its contrast and outlines vessels and clots;
cancellous bone above 120 HU loses its own as vessels do (a bound in HU cannot tell it from opacified blood, so none is
set); the noise comes on top of that of the CTPA; and the two are aligned to the voxel, as no two scans are.
"""
import functools
import hashlib

import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from jaxkd import errors
from jaxkd.contracts import Record, Transform
from jaxkd.data import volume
from jaxkd.data.source import IGNORED

DEFAULTS = dict(
    blood=45.0,  # HU of blood without contrast medium
    opacified=120.0,  # HU above which a voxel holds contrast medium
    clot=(8.0, 25.0),  # least and most HU that clots are brighter by
    noise=12.0,  # standard deviation of the noise, HU
    seed=0,  # another one draws other clots and noise
)


def build(hp: ConfigDict) -> Transform:
    if not (0 <= hp.noise < np.inf and len(hp.clot) == 2 and hp.clot[0] <= hp.clot[1]):
        raise errors.ConfigError(f'pseudo_nct: noise = {hp.noise:g} must be at least 0, clot = {hp.clot} two rising '
                                 'HU.')
    return Transform(functools.partial(apply, **{k: hp[k] for k in DEFAULTS}), reads=('ctpa', 'label', 'case'),
                     writes=('nct',), takes='volume')


def apply(record: Record, blood: float, opacified: float, clot: tuple[float, float], noise: float, seed: int) -> Record:
    """Adds record['nct'], a Volume int16 on the grid of record['ctpa']."""
    case, ctpa = record.get('case', ''), record.get('ctpa')
    if 'nct' in record:
        raise errors.ConfigError(f'pseudo_nct: case {case} has a true nct. Take the transform out of data.transforms.')
    if not case or ctpa is None:
        raise errors.BadData(f'pseudo_nct: case "{case}" has no id or no ctpa, which its nct would be made of. Remove '
                             'it.')
    if (label := record.get('label')) is not None and label.voxels.size and label.voxels.min() == IGNORED:
        raise errors.ConfigError(f'pseudo_nct: the label of case {case} is ignored or hidden (data.labels), and an nct '
                                 'without its clots would tell of that. Use true ncts, or labels for everybody.')
    rng = np.random.default_rng([seed, *hashlib.sha256(case.encode()).digest()])
    d = rng.uniform(*clot)
    voxels, shape = ctpa.voxels, ctpa.voxels.shape
    out = np.empty(shape, np.int16, order='F')  # slices in one piece
    for part, x in volume.slabs(ctpa, ctpa.affine, shape, 1, 0.0):
        above, below = min(part.start, 1), min(shape[2] - part.stop, 1)  # slices that erosion looks at
        inside = ndimage.binary_erosion(voxels[:, :, part.start - above:part.stop + below] > opacified)
        x[inside[:, :, above:inside.shape[2] - below]] = blood
        if record.get('label') is not None:
            x[_clots(record['label'], ctpa, part)] += np.float32(d)
        x += np.float32(noise) * rng.standard_normal(x.shape[::-1], np.float32).T
        out[:, :, part] = np.clip(np.rint(x), -2**15, 2**15 - 1)
    return {**record, 'nct': volume.Volume(out, ctpa.affine, ctpa.file_affine)}


def _clots(label: volume.Volume, like: volume.Volume, part: slice) -> np.ndarray:
    """bool [X,Y,z]: label 1 to 254 in the slices `part` of the grid of `like`."""
    shape = (*like.voxels.shape[:2], part.stop - part.start)
    (_, values), = volume.slabs(label, volume.moved(like.affine, (0, 0, part.start)), shape, 0, 0.0)
    return (values > 0) & (values < IGNORED)
