"""Pictures of segmentations for the report: the slice with most of the truth, label, prediction and a map.

Feature energy is the mean square over the channels of `feature`, the input of the last linear layer; of a network that
classifies windows, the class activation map (jaxkd/inference/class_activation.py) of the windows that tile the plane.
"""
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd import parallel
from jaxkd.data.dataset import Dataset
from jaxkd.data.source import IGNORED
from jaxkd.inference import class_activation, scans, sliding_window
from jaxkd.inference.predictor import Predictor

STACK, STACKED = 9, 4  # slices of a scan to step through; scans that have them
SIDE = 192  # pixels: of larger slices every second, third ... of these is kept


def picture(scan: scans.Scan, record: scans.Record, key: str, label: np.ndarray,
            row: Mapping[str, float]) -> dict[str, Any]:
    """The slice of the input `key` with most of the truth, or else of the prediction, and STACK slices over the extent
    of either, packed; `examples` adds maps.
    """
    truth = record['label']
    area = ((truth > 0) & (truth != IGNORED)).sum((1, 2))
    area = area if area.any() else (label > 0).sum((1, 2))
    z, extent = int(area.argmax()), np.flatnonzero(area) if area.any() else np.arange(len(area))
    values = [v for k, v in row.items() if k.startswith('dice/')]
    dice = np.nan if np.isnan(values).all() else np.nanmean(values)
    orient = class_activation.upright if 'affine' in record else np.asarray  # volumes in radiological orientation
    planes, step = np.linspace(extent[0], extent[-1], STACK).round().astype(int), -(-max(truth.shape[1:]) // SIDE)
    image, *labels = (a[planes][:, ::step, ::step] for a in (record[key], truth, label))
    stack = orient(np.stack([class_activation.grey(image[..., 0]), *labels]).astype(np.uint8))
    return dict(case=scan.name, dice=dice, scan=scan, z=z, orient=orient, truth=orient(truth[z]),
                image=orient(class_activation.grey(record[key][z, ..., 0])), predicted=orient(label[z]),
                stack=(stack.shape, zlib.compress(stack.tobytes(), 1)))


def examples(predict: Predictor, data: Dataset, pictures: Sequence[dict[str, Any]],
             counts: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    """The worst, middle and best scans, and the first ones, common to all stages, as arrays with a row each; or {}.

    image uint8, truth, predicted uint8 [n,H,W]; energy or cam float32 [n,H,W] if the network has them; case, rank, dice
    [n]; labels. stack uint8 [m,3,STACK,h,w] holds slices of image, truth and prediction of m of the scans, stack_row
    int [m] which.
    """
    pictures = [p for p in pictures if not np.isnan(p['dice'])]
    first, worst, middle, best = counts
    always = {p['case'] for p in pictures[:first]}
    pictures.sort(key=lambda p: p['dice'])
    n = len(pictures)
    ranks = {i: 'first' for i, p in enumerate(pictures) if p['case'] in always}
    ranks |= dict.fromkeys(range(max((n - middle) // 2, 0), min((n - middle) // 2 + middle, n)), 'middle')
    ranks |= dict.fromkeys(range(min(worst, n)), 'worst') | dict.fromkeys(range(max(n - best, 0), n), 'best')
    shown = [pictures[i] | {'rank': rank} | _maps(predict, data, pictures[i]) for i, rank in sorted(ranks.items())]
    if not shown:
        return {}
    size = np.max([p['image'].shape for p in shown], 0)
    maps = [k for k in ('energy', 'cam') if k in shown[0]]
    planes = {k: np.stack([_padded(p[k], size) for p in shown]) for k in ('image', 'truth', 'predicted', *maps)}
    rows = sorted(range(len(shown)), key=lambda i: shown[i]['rank'] != 'first')[:STACKED]
    stacks = [np.frombuffer(zlib.decompress(data), np.uint8).reshape(shape) for i in rows
              for shape, data in [shown[i]['stack']]]
    largest = np.max([a.shape for a in stacks], 0)
    planes |= dict(stack=np.stack([_padded(a, largest) for a in stacks]), stack_row=np.array(rows, np.int32))
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
        return {'energy': picture['orient'](energy / max(float(energy.max()), 1e-12))}
    shape, start = record['label'].shape, max(min(z - window[0] // 2, record['label'].shape[0] - window[0]), 0)
    places = [(start, y, x) for y, x in sliding_window.windows(shape[1:], window[1:], 0.0)]
    out = [apply(sliding_window.cut(inputs, [place], window, rows)) for place in places]
    features, logits = (np.concatenate([np.asarray(o[k][:1], np.float32) for o in out]) for k in wanted)
    kernel = class_activation.head(predict.variables['params'], {'features': features, 'logits': logits})
    if kernel is None:
        return {}
    # the middle slice of the windows is z, except at the ends of a scan
    tiles = class_activation.activation(features, kernel, np.zeros(len(places), int), window)
    cam = np.zeros(shape[1:], np.float32)
    for (_, y, x), tile in zip(places, tiles):
        part = cam[y:y + window[1], x:x + window[2]]
        np.maximum(part, tile[:part.shape[0], :part.shape[1]], out=part)
    return {'cam': picture['orient'](cam)}


def _padded(plane, size):
    return np.pad(plane, [(0, n - m) for n, m in zip(size, plane.shape)])
