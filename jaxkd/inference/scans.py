"""Whole scans: which cases make one, what a network predicts of it, and what is true on the grid of its file.

A scan is a volume, predicted by sliding windows of the size that training saw, or all slices of a study in their order,
predicted slice by slice. Hosts predict different scans: everything here runs on the devices of one host.
"""
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy.special import expit

from jaxkd import parallel
from jaxkd.data import volume
from jaxkd.data.dataset import Dataset
from jaxkd.inference import sliding_window
from jaxkd.inference.predictor import Predictor

Record = dict[str, Any]

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


def group_scans(data: Dataset, indices: Iterable[int]) -> list[Scan]:
    """The Scans of these cases, in their order."""
    indices_by_scan: dict[str, list[int]] = {}
    for i in indices:
        case = data.source.cases[i]
        indices_by_scan.setdefault(case.study or case.id, []).append(i)
    return [_scan(name, [data.source.cases[i] for i in rows], rows) for name, rows in indices_by_scan.items()]


def _scan(name, cases, indices):
    first, *rest = cases
    # those of the scan, not of a slice
    groups = {k: v for k, v in first.groups.items() if all(c.groups.get(k) == v for c in rest)}
    return Scan(name, first.patient, groups, tuple(indices))


def scan_record(predict: Predictor, data: Dataset, scan: Scan) -> tuple[Record, dict[str, float]]:
    """({input, 'label': [D,H,W,...], of a volume all keys}, {input: 0 or 1}) of one scan on the network's grid."""
    records = [data.prepared(i) for i in scan.indices]
    keys = (*predict.network.inputs, 'label')
    present = {k: float(v) for k, v in records[0].get('present', {}).items() if k in predict.network.inputs}
    if 'affine' in records[0]:
        return records[0], present
    return {k: np.stack([r[k] for r in records]) for k in keys}, present


def predict_scan(predict: Predictor, data: Dataset, scan: Scan,
                 hp: ConfigDict) -> tuple[Record, np.ndarray, np.ndarray] | None:
    """(record, label uint8 [D,H,W], window probabilities [m]) of one scan on the network's grid.

    None where the case has nothing of what the network reads.
    """
    found, present = scan_record(predict, data, scan)
    if present and not any(present.values()):
        return None
    wanted = ('class_logits',) if 'class_logits' in predict.shapes() else ()
    apply = predict.windows(('logits', *wanted), present)
    slabs = sliding_window.stream(apply, {k: found[k] for k in predict.network.inputs}, window_shape(predict),
                                  parallel.local_rows(predict.batch),
                           hp.overlap, hp.weights, tuple(hp.mirror), wanted)
    label, _, windows = sliding_window.labels(slabs, found['label'].shape)
    return found, label, expit(windows['class_logits'][:, 0].astype(np.float64)) if wanted else np.zeros(0)


def window_shape(predict: Predictor) -> tuple[int, ...]:
    """The places of one window, as training saw it."""
    return predict.shapes()['logits'].shape[1:-1]


def scan_truth(data: Dataset, scan: Scan, prepared: Record) -> Truth:
    """The Truth of a Scan; prepared: the record of it on the network's grid, see `scan_record`."""
    if scan.name in data.truth_cache:
        return data.truth_cache[scan.name]
    raw, inverse = [data.source[i] for i in scan.indices], data.transforms.inverse
    if 'affine' not in prepared:
        spacing, traces = np.asarray(raw[0]['spacing'], float), [data.trace(i, r) for i, r in zip(scan.indices, raw)]
        found = Truth(np.stack([r['label'] for r in raw]), None if np.isnan(spacing).any() else spacing,
                      lambda x: np.stack([inverse(one, trace) for one, trace in zip(x, traces, strict=True)]))
    else:
        like = _grid(raw[0])
        label = raw[0]['label'].voxels.astype(np.uint8) if 'label' in raw[0] else None
        trace = data.trace(scan.indices[0], raw[0], prepared)
        instances = raw[0]['instances'].voxels if 'instances' in raw[0] else None
        found = Truth(label, volume.spacing(like.affine), lambda x: inverse(x, trace), instances)
    size = 0 if found.label is None else found.label.nbytes
    if sum(t.label.nbytes for t in data.truth_cache.values() if t.label is not None) + size < KEEP:
        data.truth_cache[scan.name] = found
    return found


def _grid(raw):
    """The Volume whose grid a prediction is wanted on: that of the label, or else of the first modality."""
    return raw.get('label', next((v for v in raw.values() if isinstance(v, volume.Volume)), None))
