"""Pictures of segmentations for the report: the slice that shows most, what is true and what is predicted, where a
network looks.

Feature energy is the mean square over the channels of `feature`, the input of the last linear layer; of a network that
classifies windows, the class activation map (jaxkd/inference/class_activation.py) of the windows that tile the plane.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd import parallel
from jaxkd.data.dataset import Dataset
from jaxkd.data.source import IGNORED
from jaxkd.inference import class_activation, scans, sliding_window
from jaxkd.inference.predictor import Predictor


def picture(scan: scans.Scan, record: scans.Record, key: str, label: np.ndarray,
            row: Mapping[str, float]) -> dict[str, Any]:
    """The slice of a scan with most of the truth (or else of the prediction), of the input `key`; its maps come in
    `chosen`.
    """
    truth = record['label']
    area = ((truth > 0) & (truth != IGNORED)).sum((1, 2))
    z = int((area if area.any() else (label > 0).sum((1, 2))).argmax())
    values = [v for k, v in row.items() if k.startswith('dice/')]
    dice = np.nan if np.isnan(values).all() else np.nanmean(values)
    turn = class_activation.upright if 'affine' in record else np.asarray  # volumes lie as radiologists read them
    return dict(case=scan.name, dice=dice, scan=scan, z=z, turn=turn,
                image=turn(class_activation.grey(record[key][z, ..., 0])),
                truth=turn(truth[z]), predicted=turn(label[z]))


def chosen(predict: Predictor, data: Dataset, pictures: Sequence[dict[str, Any]],
           examples: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    """The worst, middle and best scans, and the first ones, which all stages share, as arrays with a row each; {}
    without any.

    image uint8, truth, predicted uint8 [n,H,W]; energy or cam float32 [n,H,W] where there are some; case, rank, dice
    [n]; labels.
    """
    pictures = [p for p in pictures if not np.isnan(p['dice'])]
    first, worst, middle, best = examples
    always = {p['case'] for p in pictures[:first]}
    pictures.sort(key=lambda p: p['dice'])
    n = len(pictures)
    at = {i: 'worst' for i in range(min(worst, n))} | {i: 'best' for i in range(max(n - best, 0), n)}
    for i in range(max((n - middle) // 2, 0), min((n - middle) // 2 + middle, n)):
        at.setdefault(i, 'middle')
    for i, p in enumerate(pictures):
        if p['case'] in always:
            at.setdefault(i, 'first')
    shown = [pictures[i] | {'rank': rank} | _maps(predict, data, pictures[i]) for i, rank in sorted(at.items())]
    if not shown:
        return {}
    size = np.max([p['image'].shape for p in shown], 0)
    maps = [k for k in ('energy', 'cam') if k in shown[0]]
    planes = {k: np.stack([_padded(p[k], size) for p in shown]) for k in ('image', 'truth', 'predicted', *maps)}
    return planes | dict(case=np.array([p['case'] for p in shown]), rank=np.array([p['rank'] for p in shown]),
                         dice=np.array([p['dice'] for p in shown], np.float32), labels=np.array(data.source.labels))


def _maps(predict, data, picture):
    """Feature energy, or the class activation map, of the slice of a picture."""
    window, shapes = scans.window_shape(predict), predict.shapes()
    wanted = ('feature',) if len(window) == 2 and 'feature' in shapes else ('features', 'class_logits')
    if not {*wanted} <= {*shapes}:
        return {}
    record, present = scans.scan_record(predict, data, picture['scan'])
    apply, rows = predict.windows(wanted, present), parallel.local_rows(1)
    inputs, z = {k: record[k] for k in predict.network.inputs}, picture['z']
    if len(window) == 2:
        batch = {k: np.repeat(a[z:z + 1], rows, 0) for k, a in inputs.items()}
        energy = np.square(np.asarray(apply(batch)['feature'][0], np.float32)).mean(-1)
        return {'energy': picture['turn'](energy / max(float(energy.max()), 1e-12))}
    shape, start = record['label'].shape, max(min(z - window[0] // 2, record['label'].shape[0] - window[0]), 0)
    places = [(start, y, x) for y, x in sliding_window.windows(shape[1:], window[1:], 0.0)]
    out = [apply(sliding_window.cut(inputs, [place], window, rows)) for place in places]
    found = {k: np.concatenate([np.asarray(o[k][:1], np.float32) for o in out]) for k in wanted}
    kernel = class_activation.head(predict.variables['params'],
                                   {'features': found['features'], 'logits': found['class_logits']})
    if kernel is None:
        return {}
    # of the middle slice of the windows: z, but for the ends of a scan
    cams, cam = class_activation.activation(found['features'], kernel, np.zeros(len(places), int),
                                            window), np.zeros(shape[1:], np.float32)
    for (_, y, x), tile in zip(places, cams):
        part = cam[y:y + window[1], x:x + window[2]]
        np.maximum(part, tile[:part.shape[0], :part.shape[1]], out=part)
    return {'cam': picture['turn'](cam)}


def _padded(plane, size):
    return np.pad(plane, [(0, n - m) for n, m in zip(size, plane.shape)])
