"""Does a student's attention point at the finding, which nobody ever showed it? With every control in the same table.

For each test image with boxes, the attention of the CLS token becomes a map over the image (see metrics/attention.py):
`last_mean` (the result), `rollout`, `grad_attn` (the only one of a certain finding), and `best_head`, which is chosen
with the answer in hand: an upper bound, never a result. Every map is scored against every box of its image, or where the record has
the `masks` that boxes are around (CheXlocalize, lesions of mammograms, the phantoms), against these regions.

`data` tests elsewhere, on what data.external of the config calls by that name; with part='all' on every case of it. Thresholds and
the mean map stay those of the run's own validation and training images.

Controls: `uniform`, `centred_gaussian` (findings are central, so a blob is a strong competitor), `mean_map` (the mean
last_mean over training images: what can be had without looking at the image) and `untrained` (the same network with
fresh weights). The image-only arm, trained like the student, is a stage of its own: the report sets them side by side.

[published] the question, whether distillation improves it; pointing game and IoU as in CheXlocalize. [our choice] all
the rest: the article's localisation metric was not accessible to us.
"""
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import errors, parallel
from jaxkd.data import external
from jaxkd.metrics import attention, localisation
from jaxkd.runtime import log

DEFAULTS = dict(
    batch=32,  # attention of all blocks is held for so many images at a time
    mean_map=256,  # training images in the mean map
    examples=8,  # images whose maps are kept for the report
    level=0.95,
    data='', part='test',  # or all
)


def check(network, batch, hp):
    """ConfigError, before training, for a network that does not show attention over a square grid of patches."""
    def look(key, batch):
        return network.apply(network.init(key, batch), batch, want=('attention',))[0]
    try:
        found = jax.eval_shape(look, jax.random.key(0), batch)
    except TypeError:
        found = {}
    if 'attention' not in found or 'image' not in network.inputs:
        raise errors.ConfigError('localise needs a network that reads an image and shows its attention, such as vit. Take '
                                 '"localise" out of the evals of this stage.')


def report(predict, hp, bootstrap, seed):
    """-> ({'map/metric': interval over boxes}, {'test_rois': a row for each box and map}, arrays for pictures)."""
    data, chosen = external.external_cases(predict.data, hp.data, hp.part, 'evals')
    own, predict = predict, predict.on(data) if hp.data else predict
    rois = {'val': _rois(own.data, own.data.part('val')), 'test': _rois(data, chosen)}
    if not rois['test']:
        log.info('  no test case has a box: nothing to localise')
        return {}, {}, {}
    size = data.spec()['image'].shape[0]
    labels = data.source.labels
    controls = localisation.control_maps(size) | {'mean_map': _mean_map(own, hp, size)}
    untrained = own.untrained(seed)

    def maps_of(role):
        of = own if role == 'val' else predict
        found = _maps(of, rois[role], hp, size, ('last_mean', 'rollout', 'grad_attn', 'heads'))
        found['untrained'] = _maps(untrained.on(of.data), rois[role], hp, size, ('last_mean',))['last_mean']
        return found | {name: (lambda i, m=m: m) for name, m in controls.items()}
    found = maps_of('test')
    # Every map, controls too, gets the threshold that is best for it on validation boxes; without those, none.
    masks = {role: [r.mask for r in rois[role]] for role in rois}
    best = {name: localisation.best_threshold(m, masks['val']) for name, m in maps_of('val').items()} if rois['val'] else {}
    names, patients = [f'{r.case} {r.finding(labels)}' for r in rois['test']], [r.patient for r in rois['test']]
    rows = {name: localisation.measure(m, masks['test'], best.get(name), names) for name, m in found.items()}
    heads = [name for name in rows if name.startswith('head')]
    by_head = [rows.pop(name) for name in heads]
    rows['best_head'] = max(by_head, key=lambda r: np.mean([row['auprc'] for row in r]))
    table, flat = {}, []
    for name, measured in rows.items():
        means = localisation.table(measured, patients, bootstrap, hp.level, seed)
        table |= {f'{name}/{metric}': entry for metric, entry in means.items()}
        flat += [dict(map=name, case=r.case, patient=r.patient, finding=r.finding(labels), **row)
                 for r, row in zip(rois['test'], measured)]
    return table, {'test_rois': flat}, {'examples': _examples(predict, rois['test'], found, hp.examples)}


class Roi:
    """One box of one case, or the region inside it, as a mask over the network input."""

    def __init__(self, index, case, box, mask):
        self.index, self.case, self.patient = index, case.id, case.patient
        self.label, self.box, self.mask = int(box[0]), box[1:], mask

    def finding(self, labels):
        return labels[self.label] if self.label >= 0 else 'region'


def _rois(data, indices):
    """Every box or region of these cases that can be scored: at least one pixel, and not the whole image."""
    out = []
    for index in indices:
        record = data.record(index)
        boxes = record['boxes'][record['boxes'][:, 0] > -2]
        masks = data.masks(index) if len(boxes) else None
        if masks is None:
            masks = [localisation.roi_mask(box[1:], record['image'].shape[0]) for box in boxes]
        elif len(masks) != len(boxes):
            raise errors.BadData(f'Case {data.source.cases[index].id} has {len(boxes)} boxes and {len(masks)} masks. A source of masks has '
                                 'one for each box.')
        for box, mask in zip(boxes, np.asarray(masks, bool)):
            if mask.any() and not mask.all():
                out.append(Roi(index, data.source.cases[index], box, mask))
    return out


def _maps(predict, rois, hp, size, wanted):
    """{name: function of the ROI's number -> [S,S] map}; 'heads' gives one for each head: head0, head1, ..."""
    labels = sorted({r.label for r in rois if r.label >= 0}) if 'grad_attn' in wanted else []
    found = _patch_maps(predict, sorted({r.index for r in rois}), hp, wanted, labels)
    at = {int(i): n for n, i in enumerate(found['index'])}

    def of(name):
        def lookup(i):
            row, roi = at[rois[i].index], rois[i]
            if name == 'grad_attn':  # a region without a label has no gradient of its own: the class-agnostic map
                own = found['grad_attn'][row, labels.index(roi.label)] if roi.label >= 0 else found['last_mean'][row]
                return attention.upsample(own, size)
            return attention.upsample(found[name][row], size)
        return lookup
    out = {name: of(name) for name in wanted if name != 'heads'}
    return out | {name: of(name) for name in found if name.startswith('head')}


def _patch_maps(predict, indices, hp, wanted, labels):
    """{'index': [n], map: [n,g,g], 'grad_attn': [n,labels,g,g]} of the cases `indices`, from all hosts."""
    gradient, rows = _gradient(predict.network, tuple(labels)), []
    extra = getattr(predict.network.module, 'registers', 0)
    for batch in predict.data.batches('test', hp.batch, keep=indices):
        attn = _attention(predict, batch)
        row = dict(index=batch['index'], mask=batch['mask'], last_mean=attention.last_mean(attn, extra))
        if 'rollout' in wanted:
            row['rollout'] = attention.rollout(attn, extra)
        if 'heads' in wanted:
            row |= {f'head{h}': attention.last_head(attn, h, extra) for h in range(attn.shape[2])}
        if labels:
            inputs = parallel.shard_batch(predict.network.only(batch))
            gradients = parallel.to_host(gradient(predict.variables, inputs, (parallel.rows(hp.batch) * parallel.process()[1],
                                                                            *attn.shape[2:])))
            row['grad_attn'] = np.stack([attention.from_gradient(attn[:, -1], gradients[:, c], extra)
                                         for c in range(len(labels))], 1)
        rows.append(row)
    found = parallel.allgather_hosts({k: np.concatenate([row[k] for row in rows]) for k in rows[0]})
    real = found.pop('mask') > 0
    return {k: v[real] for k, v in found.items()}


def _attention(predict, batch):
    return parallel.to_host(predict.of(batch, ('attention',), ('attention',)))['attention']


def _gradient(network, labels):
    """d logit_c / d attention of the last block: (variables, inputs, attention shape) -> [B,labels,heads,N,N]."""
    def gradient(variables, inputs, shape):
        def logit(offset, label):
            return network.apply(variables, inputs, offset=offset)[0]['logits'][:, label].sum()
        return jax.vmap(jax.grad(logit), (None, 0), 1)(jnp.zeros(shape), jnp.array(labels))
    return parallel.jit_sharded(gradient, static_argnums=(2,))


def _mean_map(predict, hp, size):
    """Mean last_mean over (some) training images: the best map that never looks at the image."""
    found = _patch_maps(predict, predict.data.part('train')[:hp.mean_map], hp, (), [])
    return attention.upsample(found['last_mean'].mean(0), size)


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
