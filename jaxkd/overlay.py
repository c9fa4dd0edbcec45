"""Pictures of segmentations for the report: the slice that shows most, what is true and what is predicted, where a network looks.

Feature energy is the mean square over the channels of `feature`, the input of the last linear layer; of a network that
classifies windows, the class activation map relu(w . map) of the windows that tile the plane.
"""
import numpy as np

from jaxkd import parallel, scans, sliding
from jaxkd.eval import slices


def picture(predict, data, scan, record, label, row):
    """The slice of a scan with most of the truth (or else of the prediction): what the report shows of it."""
    truth = record['label']
    area = ((truth > 0) & (truth < 255)).sum((1, 2))
    z = int((area if area.any() else (label > 0).sum((1, 2))).argmax())
    key = predict.network.inputs[0]
    values = [v for k, v in row.items() if k.startswith('dice/')]
    out = dict(case=scan.name, dice=np.nanmean(values) if not np.isnan(values).all() else np.nan, image=record[key][z, ..., 0],
               truth=truth[z], predicted=label[z], three=len(scan.indices) == 1 and record['label'].shape[0] > 1)
    return out | _maps(predict, data, record, z)


def _maps(predict, data, record, z):
    """Feature energy (mean square over the channels of `feature`), or the class activation map, of one slice."""
    window, outputs = data.spec()['label'].shape, scans.outputs(predict)
    if len(window) == 2 and 'feature' in outputs:
        batch = {k: np.repeat(record[k][z:z + 1], parallel.local_rows(1), 0) for k in predict.network.inputs}
        feature = np.asarray(predict.windows(('feature',))(batch)['feature'][0], np.float32)
        energy = np.square(feature).mean(-1)
        return {'energy': (energy / max(float(energy.max()), 1e-12)).astype(np.float32)}
    if len(window) == 3 and {'map', 'class_logits'} <= set(outputs):
        return {'cam': _cam(predict, record, z, window)}
    return {}


def _cam(predict, record, z, window):
    """relu(w . map) of the windows that tile the plane around slice z, put together, [H,W]."""
    shape, out = record['label'].shape, np.zeros(record['label'].shape[1:], np.float32)
    kernel = np.asarray(predict.variables['params']['class_head']['linear']['kernel'], np.float32)
    first = int(np.clip(z - window[0] // 2, 0, max(shape[0] - window[0], 0)))
    for y, x in sliding.windows(shape[1:], window[1:], 0.0):
        place = tuple(slice(a, a + n) for a, n in zip((first, y, x), window))
        batch = {k: _padded(record[k][place], window) for k in predict.network.inputs}
        batch = {k: np.repeat(v[None], parallel.local_rows(1), 0) for k, v in batch.items()}
        maps = np.asarray(predict.windows(('map',))(batch)['map'][:1], np.float32)
        cam = slices.activation(maps, kernel, np.zeros(1, int), window)[0]  # of the middle slice: z, but for the ends of a scan
        part = out[y:y + window[1], x:x + window[2]]
        np.maximum(part, cam[:part.shape[0], :part.shape[1]], out=part)
    return out


def _padded(a, window):
    return np.pad(a, [(0, n - m) for n, m in zip(window, a.shape)] + [(0, 0)] * (a.ndim - len(window)))


def chosen(pictures, examples, labels):
    """The worst, middle and best scans, and the first ones, which all stages share, as arrays with a row each; {} without any.

    image uint8, truth, predicted uint8 [n,H,W]; energy or cam float32 [n,H,W] where there are some; case, rank, dice [n]; labels.
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
    shown = [(pictures[i], rank) for i, rank in sorted(at.items())]
    if not shown:
        return {}
    size = np.max([p['image'].shape for p, _ in shown], 0)
    fit = lambda a: np.pad(a, [(0, n - m) for n, m in zip(size, a.shape)])  # noqa: E731
    turn = lambda p, a: fit(a[::-1, ::-1] if p['three'] else a)  # noqa: E731 - volumes lie as radiologists read them
    out = dict(image=np.stack([turn(p, _shown(p['image'])) for p, _ in shown]), case=np.array([p['case'] for p, _ in shown]),
               rank=np.array([rank for _, rank in shown]), dice=np.array([p['dice'] for p, _ in shown], np.float32),
               labels=np.array(labels), **{k: np.stack([turn(p, p[k]) for p, _ in shown]) for k in ('truth', 'predicted')})
    return out | {k: np.stack([turn(p, p[k]) for p, _ in shown]) for k in ('energy', 'cam') if k in shown[0][0]}


def _shown(slice_):
    """[H,W] -> uint8, from its own 1st to its 99th percentile."""
    low, high = np.percentile(slice_, (1, 99))
    return (255 * np.clip((slice_.astype(np.float32) - low) / max(float(high - low), 1e-6), 0, 1)).astype(np.uint8)
