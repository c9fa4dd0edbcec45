"""Does a student's attention point at the finding, which nobody ever showed it? With every control in the same table.

For each test image with boxes, the attention of the CLS token becomes a map over the image (see metrics/attention.py):
`last_mean` (the result), `rollout`, `grad_attn` (the only one of a certain finding), and `best_head`, which is chosen
with the answer in hand: an upper bound, never a result. Every map is scored against every box of its image.

Controls: `uniform`, `centred_gaussian` (findings are central, so a blob is a strong competitor), `mean_map` (the mean
last_mean over training images: what can be had without looking at the image) and `untrained` (the same network with
fresh weights). The image-only arm, trained like the student, is a stage of its own: the report sets them side by side.

[published] the question, whether distillation improves it; pointing game and IoU as in CheXlocalize. [our choice] all
the rest: the article's localisation metric was not accessible to us.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import errors, log
from jaxkd.metrics import attention, localisation

DEFAULTS = dict(
    batch=32,  # attention of all blocks is held for so many images at a time
    mean_map=256,  # training images in the mean map
    examples=8,  # images whose maps are kept for the report
    level=0.95,
)


def report(predict, hp, bootstrap, seed):
    """-> ({'map/metric': interval over boxes}, {'test_rois': a row for each box and map}, arrays for pictures)."""
    data = predict.data
    rois = {role: _rois(data, role) for role in ('val', 'test')}
    if not rois['test']:
        log.say('  no test case has a box: nothing to localise')
        return {}, {}, {}
    size = data.spec()['image'].shape[0]
    labels = data.source.labels
    threshold = 0.5
    if rois['val']:
        maps = _maps(predict, rois['val'], hp, size, ('last_mean',))['last_mean']
        threshold = localisation.best_threshold(maps, [r.mask for r in rois['val']])
    found = _maps(predict, rois['test'], hp, size, ('last_mean', 'rollout', 'grad_attn', 'heads'))
    heads = found.pop('heads')
    found['untrained'] = _maps(predict.untrained(seed), rois['test'], hp, size, ('last_mean',))['last_mean']
    controls = localisation.control_maps(size) | {'mean_map': _mean_map(predict, hp, size)}
    found |= {name: (lambda i, m=m: m) for name, m in controls.items()}
    masks, names = [r.mask for r in rois['test']], [f'{r.case} {r.finding(labels)}' for r in rois['test']]
    patients = [r.patient for r in rois['test']]
    rows = {name: localisation.measure(m, masks, threshold, names) for name, m in found.items()}
    by_head = [localisation.measure(m, masks, threshold, names) for m in heads]
    rows['best_head'] = max(by_head, key=lambda r: np.mean([row['auprc'] for row in r]))
    table, flat = {}, []
    for name, measured in rows.items():
        means = localisation.table(measured, patients, bootstrap, hp.level, seed)
        table |= {f'{name}/{metric}': entry for metric, entry in means.items()}
        flat += [dict(map=name, case=r.case, patient=r.patient, finding=r.finding(labels), **row)
                 for r, row in zip(rois['test'], measured)]
    return table, {'test_rois': flat}, {'examples': _examples(predict, rois['test'], found, hp.examples)}


class Roi:
    """One box of one case, as a mask over the network input."""

    def __init__(self, index, case, box, size):
        self.index, self.case, self.patient = index, case.id, case.patient
        self.label, self.box = int(box[0]), box[1:]
        self.mask = localisation.roi_mask(box[1:], size)

    def finding(self, labels):
        return labels[self.label] if self.label >= 0 else 'region'


def _rois(data, role):
    """Every box of a part that can be scored: at least one pixel, and not the whole image."""
    out = []
    for index in data.part(role):
        record = data.record(index)
        for box in record['boxes'][record['boxes'][:, 0] > -2]:
            roi = Roi(index, data.source.cases[index], box, record['image'].shape[0])
            if roi.mask.any() and not roi.mask.all():
                out.append(roi)
    return out


def _maps(predict, rois, hp, size, wanted):
    """{name: function of the ROI's number -> [S,S] map}; 'heads' gives a list of such functions."""
    indices = sorted({r.index for r in rois})
    small = {}  # name -> {index: [g,g] or, for grad_attn, (index, label): [g,g]}
    for batch in predict.data.batches('test', hp.batch, keep=indices):
        rows = [int(i) for i, real in zip(batch['index'], batch['mask']) if real]
        try:
            attn = np.asarray(predict.of(batch, ('attention',), ('attention',))['attention'])
        except TypeError as e:
            raise errors.ConfigError('localise needs a network that shows its attention, such as vit. Take "localise" out '
                                     'of the evals of this stage.') from e
        per_head = [attention.last_head(attn, h) for h in range(attn.shape[2])] if 'heads' in wanted else []
        made = {'last_mean': attention.last_mean(attn), 'rollout': attention.rollout(attn)}
        made |= {f'head{h}': m for h, m in enumerate(per_head)}
        for name, maps in made.items():
            small.setdefault(name, {}).update(zip(rows, maps))
        if 'grad_attn' in wanted:
            for label in sorted({r.label for r in rois if r.index in rows and r.label >= 0}):
                gradient = np.asarray(_gradient(predict)(predict.variables, predict.network.only(batch), attn.shape[1:], label))
                maps = attention.from_gradient(attn[:, -1], gradient)
                small.setdefault('grad_attn', {}).update({(i, label): m for i, m in zip(rows, maps)})

    def of(name):
        if name == 'grad_attn':  # a region without a label has no gradient of its own: the class-agnostic map
            return lambda i: attention.upsample(
                small[name][rois[i].index, rois[i].label] if rois[i].label >= 0 else small['last_mean'][rois[i].index], size)
        return lambda i: attention.upsample(small[name][rois[i].index], size)
    out = {name: of(name) for name in wanted if name != 'heads'}
    if 'heads' in wanted:
        out['heads'] = [of(name) for name in small if name.startswith('head')]
    return out


@functools.lru_cache(maxsize=8)
def _gradient(predict):
    """d logit_c / d attention of the last block: a function (variables, inputs, attention shape, c) -> [B,heads,N,N]."""
    def gradient(variables, inputs, shape, label):
        def logit(offset):
            return predict.network.apply(variables, inputs, offset=offset)[0]['logits'][:, label].sum()
        batch = next(iter(inputs.values())).shape[0]
        return jax.grad(logit)(jnp.zeros((batch, *shape[1:])))
    return jax.jit(gradient, static_argnums=(2,))


def _mean_map(predict, hp, size):
    indices = predict.data.part('train')[:hp.mean_map]
    total, count = 0.0, 0
    for batch in predict.data.batches('train', hp.batch, keep=indices):
        attn = np.asarray(predict.of(batch, ('attention',), ('attention',))['attention'])
        maps = attention.last_mean(attn)[batch['mask'] > 0]
        total, count = total + maps.sum(0), count + len(maps)
    return attention.upsample(total / count, size)


def _examples(predict, rois, found, count):
    """Images with their boxes and maps: of the first patients, one image each, as many findings as there are."""
    chosen, seen = [], set()
    for i, roi in sorted(enumerate(rois), key=lambda x: sum(r.label == x[1].label for r in rois[:x[0]])):
        if roi.patient not in seen and len(chosen) < count:
            chosen.append(i)
            seen.add(roi.patient)
    return dict(image=np.stack([predict.data.record(rois[i].index)['image'][..., 0] for i in chosen]),
                box=np.stack([rois[i].box for i in chosen]),
                case=np.array([rois[i].case for i in chosen]),
                finding=np.array([rois[i].finding(predict.data.source.labels) for i in chosen]),
                **{name: np.stack([found[name](i) for i in chosen]).astype(np.float32)
                   for name in ('last_mean', 'rollout', 'grad_attn')})
