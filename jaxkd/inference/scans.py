"""Scans: their cases, the prediction of a network, and the true label on the grid of the file.

A scan is a volume, predicted by sliding windows of the size in training, or all slices of a study in their order,
predicted slice by slice. Hosts predict different scans: every function runs on the devices of one host.
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

CACHE = 2**29  # bytes of true labels in the cache


@dataclasses.dataclass(frozen=True)
class Scan:
    """The unit of measurement: the cases `indices` of a study, or a volume."""

    name: str
    patient: str
    groups: dict
    indices: tuple


@dataclasses.dataclass(frozen=True)
class Truth:
    """The label of a scan on the grid of its file, and the function that brings a prediction to that grid."""

    label: np.ndarray | None
    spacing: np.ndarray | None  # mm, in the order of the array's axes
    to_file_grid: Callable[[np.ndarray], np.ndarray]  # label map on the grid of the network -> on that of the file
    instances: np.ndarray | None = None


def group_scans(data: Dataset, indices: Iterable[int]) -> list[Scan]:
    """The Scans of these cases, in their order."""
    indices_by_scan: dict[str, list[int]] = {}
    for i in indices:
        case = data.source.cases[i]
        indices_by_scan.setdefault(case.study or case.id, []).append(i)
    return [_scan(name, [data.source.cases[i] for i in rows], rows) for name, rows in indices_by_scan.items()]


def _scan(name, cases, indices):
    first, *others = cases
    # those of the scan, not of a slice
    groups = {k: v for k, v in first.groups.items() if all(c.groups.get(k) == v for c in others)}
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

    None where the case has no input of the network.
    """
    record, present = scan_record(predict, data, scan)
    if present and not any(present.values()):
        return None
    wanted = ('class_logits',) if 'class_logits' in predict.shapes() else ()
    apply = predict.windows(('logits', *wanted), present)
    slabs = sliding_window.stream(apply, {k: record[k] for k in predict.network.inputs}, window_shape(predict),
                                  parallel.local_rows(predict.batch), hp.overlap, hp.weights, tuple(hp.mirror), wanted)
    label, _, windows = sliding_window.labels(slabs, record['label'].shape)
    return record, label, expit(windows['class_logits'][:, 0].astype(np.float64)) if wanted else np.zeros(0)


def window_shape(predict: Predictor) -> tuple[int, ...]:
    """The shape of a window in training, two or three sides."""
    return predict.shapes()['logits'].shape[1:-1]


def second_reader(data: Dataset, scan: Scan) -> np.ndarray | None:
    """The label of a Scan by a second reader, as `Truth.label`; None where a case of it has none."""
    labels = [data.source.second_reader(i) for i in scan.indices]
    if any(label is None for label in labels):
        return None
    return labels[0].voxels if isinstance(labels[0], volume.Volume) else np.stack(labels)


def scan_truth(data: Dataset, scan: Scan, prepared: Record) -> Truth:
    """The Truth of a Scan; prepared: the record of it on the network's grid, see `scan_record`."""
    if scan.name in data.truth_cache:
        return data.truth_cache[scan.name]
    raw, transforms = [data.source[i] for i in scan.indices], data.transforms
    if 'affine' not in prepared:
        spacing = np.asarray(raw[0].get('spacing', np.nan), float)
        slices, traces = np.stack([r['label'] for r in raw]), [data.trace(i, r) for i, r in zip(scan.indices, raw)]
        truth = Truth(slices, None if np.isnan(spacing).any() else spacing,
                      lambda x: transforms.slices_to_file_grid(x, traces, slices.shape[1:], scan.name))
    else:
        # the grid of the label, or else of the first modality
        grid = raw[0].get('label') or next(v for v in raw[0].values() if isinstance(v, volume.Volume))
        label = raw[0]['label'].voxels.astype(np.uint8) if 'label' in raw[0] else None
        trace = data.trace(scan.indices[0], raw[0], prepared)
        instances = raw[0]['instances'].voxels if 'instances' in raw[0] else None
        shape = grid.voxels.shape
        truth = Truth(label, volume.spacing(grid.affine),
                      lambda x: transforms.to_file_grid(x, trace, shape, scan.name), instances)
    size = 0 if truth.label is None else truth.label.nbytes
    if sum(t.label.nbytes for t in data.truth_cache.values() if t.label is not None) + size < CACHE:
        data.truth_cache[scan.name] = truth
    return truth
