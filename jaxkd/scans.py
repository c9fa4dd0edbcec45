"""Whole scans: which cases make one, what a network predicts of it, and what is true on the grid of its file.

A scan is a volume, predicted by sliding windows of the size that training saw, or all slices of a study in their order,
predicted slice by slice. Hosts predict different scans: everything here runs on the devices of one host.
"""
import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from scipy.special import expit

from jaxkd import parallel, sliding
from jaxkd.data import volume
from jaxkd.data.transforms import image, scan

KEEP = 2**29  # bytes of true labels that are kept instead of being read again


@dataclasses.dataclass(frozen=True)
class Scan:
    """What is measured as one: the cases `indices` of a study, or one volume."""

    name: str
    patient: str
    groups: dict
    indices: tuple


@dataclasses.dataclass(frozen=True)
class Truth:
    """The label of a scan on the grid of its file, and the way of a prediction to that grid."""

    label: np.ndarray | None
    spacing: np.ndarray | None  # mm, in the order of the array's axes
    back: Callable  # label map on the network's grid -> on the file's
    instances: np.ndarray | None = None


def of(data, indices):
    """The Scans of these cases, in their order."""
    found = {}
    for i in indices:
        case = data.source.cases[i]
        found.setdefault(case.study or case.id, []).append(i)
    return [_scan(name, [data.source.cases[i] for i in own], own) for name, own in found.items()]


def _scan(name, cases, indices):
    first, *rest = cases
    groups = {k: v for k, v in first.groups.items() if all(c.groups.get(k) == v for c in rest)}  # those of the scan, not of a slice
    return Scan(name, first.patient, groups, tuple(indices))


def predicted(predict, data, scan, hp):
    """(record with arrays [D,H,W,...], label uint8 [D,H,W], window probabilities [m]) of one scan on the network's grid.

    None where the case has nothing of what the network reads.
    """
    records = [data.record(i) for i in scan.indices]
    present = {k: float(v) for k, v in records[0].get('present', {}).items() if k in predict.network.inputs}
    if present and not any(present.values()):
        return None
    flat = records[0]['label'].ndim == 2
    keys = (*predict.network.inputs, 'label')
    record = {k: np.stack([r[k] for r in records]) if flat else records[0][k] for k in keys} | {
        k: v for k, v in records[0].items() if k in ('affine', 'spacing')}
    window = data.spec()['label'].shape
    classify = 'class_logits' in outputs(predict)
    wanted = ('class_logits',) if classify else ()
    apply = predict.windows(('logits', *wanted), present)
    batch = parallel.local_rows(predict.batch)
    slabs = sliding.stream(apply, {k: record[k] for k in predict.network.inputs}, window, batch, hp.overlap, hp.weights,
                           tuple(hp.mirror), wanted)
    label, _, windows = sliding.labels(slabs, record['label'].shape)
    return record, label, expit(windows['class_logits'][:, 0].astype(np.float64)) if classify else np.zeros(0)


def outputs(predict):
    """What the network gives for one window, as ShapeDtypeStructs."""
    if 'outputs' not in predict.by_window:
        batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *np.shape(a)), a.dtype), predict.data.spec())
        predict.by_window['outputs'] = jax.eval_shape(lambda v, b: predict.network.apply(v, b)[0], predict.variables, batch)
    return predict.by_window['outputs']


def truth(data, scan_, record):
    """The Truth of a Scan; record as `predicted` gives it."""
    if scan_.name in data.kept:
        return data.kept[scan_.name]
    raw = [data.source[i] for i in scan_.indices]
    if record['label'].ndim == 3 and len(raw) >= 1 and not isinstance(_grid(raw[0]), volume.Volume):
        shape, hp = raw[0]['label'].shape, data.hp.image
        spacing = np.asarray(raw[0].get('spacing', (np.nan,) * 3), float)
        found = Truth(np.stack([r['label'] for r in raw]), None if np.isnan(spacing).any() else spacing,
                      lambda x: np.stack([image.back(one, shape, hp) for one in x]))
    else:
        like, affine = _grid(raw[0]), record['affine']
        label = raw[0]['label'].voxels.astype(np.uint8) if 'label' in raw[0] else None
        grid = volume.Volume(np.broadcast_to(np.uint8(0), like.voxels.shape), like.affine)  # its shape, without its voxels
        instances = raw[0]['instances'].voxels if 'instances' in raw[0] else None
        found = Truth(label, volume.spacing(like.affine), lambda x: scan.back(x, affine, grid), instances)
    size = 0 if found.label is None else found.label.nbytes
    if sum(t.label.nbytes for t in data.kept.values() if t.label is not None) + size < KEEP:
        data.kept[scan_.name] = found
    return found


def _grid(raw):
    """The Volume whose grid a prediction is wanted on: that of the label, or else of the first modality."""
    return raw.get('label', next((v for v in raw.values() if isinstance(v, volume.Volume)), None))
