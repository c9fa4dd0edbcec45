"""Slices for the report: what the network was asked about, where it looked, and what else the case has.

Of each subgroup, the first cases of the test part (the same in every stage, so that stages can be set side by side);
where this network gets all of them right, the first that it gets wrong as well, and the other way round. Of each case
the axial slice through the middle of the crop in every modality that the case has, whether the network reads it or not:
the network itself is handed its own inputs and nothing else. Over it the class activation map of the predicted class c,

    CAM_c = relu(sum_k W_kc map_k)          (Zhou et al., 2016) [published]; relu and linear upsampling [our choice]

exact for a network whose logits are a linear map of the mean of `map`. That is checked with the numbers at hand: of all
weight matrices of the network the one is taken that reproduces its logits, whatever its name. `map_shape` is how many
positions (z, y, x) such a map has before it is upsampled: of two or three in a side it hardly tells a place.

Pictures lie as radiologists read them: anterior is up, the patient's right is on the left.
"""
import jax
import numpy as np

from jaxkd import errors
from jaxkd.runtime import log

DEFAULTS = dict(
    group='subgroup',  # the group of a case that examples are drawn from, one by one
    first=2,  # cases of each subgroup whatever the network says of them
    look=16,  # cases of each subgroup among which a right and a wrong answer are looked for
)
CLOSE = 0.02  # of the largest logit: bfloat16 carries three digits


def check(network, batch, hp):
    """ConfigError, before training, for a network that reads no volume or shows no `map`."""
    found = jax.eval_shape(lambda key, b: network.apply(network.init(key, b), b)[0], jax.random.key(0), batch)
    volumes = [k for k in network.inputs if len(batch[k].shape) == 5]
    if 'map' not in found or 'logits' not in found or not volumes or len(found['map'].shape) != 5:
        raise errors.ConfigError('slices needs a network that reads a volume and gives, beside its logits, the "map" '
                                 'that it averages. Take "slices" out of the evals of this stage.')


def report(predict, hp, bootstrap, seed):
    """-> ({}, {}, {'slices': arrays}); image and cam [n, ...] are of the n cases in `case`, map_shape [3] of all."""
    data, groups = predict.data, {}
    for i in data.part('test'):
        groups.setdefault(data.source.cases[i].groups.get(hp.group, ''), []).append(i)
    looked = sorted(i for part in groups.values() for i in part[:max(hp.look, hp.first)])
    if not looked:
        return {}, {}, {}
    found = predict('test', ('logits', 'map'), 'slices', keep=looked)
    at = {int(i): n for n, i in enumerate(found.index)}
    right = found.outputs['logits'].argmax(1) == found.label
    rows = []
    for part in groups.values():
        of = [at[i] for i in part if i in at]
        chosen = of[:hp.first]
        for wanted in (False, True):
            if not any(right[n] == wanted for n in chosen):
                chosen = chosen + [n for n in of if right[n] == wanted][:1]
        rows += chosen
    kernel = head(predict.variables['params'], found.outputs)
    if kernel is None:
        log.info('  slices: no weights of this network turn the mean of its map into its logits, so there is no map of '
                'a class')
    return {}, {}, {'slices': _pictures(predict, found, rows, kernel, hp.group)}


def activation(maps, kernel, predicted, size):
    """Class activation maps, middle slice: maps [n,d,h,w,C], kernel [C,K], predicted [n] -> [n,H,W], not negative.

    size: (D, H, W) of the network's input. Linear upsampling with half-pixel centres.
    """
    cams = np.maximum(np.einsum('ndhwc,cn->ndhw', np.asarray(maps, np.float32), kernel[:, predicted]), 0)
    depth, height, width = size
    whole = jax.image.resize(cams, (len(cams), depth, *cams.shape[2:]), 'linear')[:, depth // 2]
    return np.asarray(jax.image.resize(whole, (len(cams), height, width), 'linear'))


def head(params, outputs):
    """The weights [C, K] that give the logits from the mean of `map`; None where none does."""
    pooled, logits = outputs['map'].mean((1, 2, 3)), outputs['logits']
    wanted, best = (pooled.shape[1], logits.shape[1]), (CLOSE * max(1.0, np.abs(logits).max()), None)
    leaves = {jax.tree_util.keystr(path): np.asarray(a, np.float32)
              for path, a in jax.tree_util.tree_leaves_with_path(jax.device_get(params))}
    for name, kernel in leaves.items():
        if kernel.shape == wanted:
            bias = leaves.get(name.replace("'kernel'", "'bias'"), np.zeros(1, np.float32))
            gap = np.abs(pooled @ kernel + bias - logits).max()
            best = min(best, (gap, kernel), key=lambda pair: pair[0])
    return best[1]


def _pictures(predict, found, rows, kernel, group):
    data, labels = predict.data, predict.data.source.labels
    records = [data.case(int(found.index[n])) for n in rows]
    names = [k for k, a in records[0].items() if np.ndim(a) == 4 and a.shape[-1] == 1]
    names.sort(key=lambda k: k not in predict.network.inputs)  # its own first: that is where the map belongs
    size = records[0][names[0]].shape[:3]
    names = [k for k in names if records[0][k].shape[:3] == size]
    logits, cases = found.outputs['logits'][rows].astype(np.float64), [data.source.cases[found.index[n]] for n in rows]
    prob = np.exp(logits - logits.max(1, keepdims=True))
    cam = np.zeros((len(rows), *size[1:]), np.float32)
    if kernel is not None:
        cam = activation(found.outputs['map'][rows], kernel, logits.argmax(1), size)
    return dict(
        case=np.array([case.id for case in cases]),
        group=np.array([f'{group}={case.groups[group]}' if case.groups.get(group) else '' for case in cases]),
        label=found.label[rows].astype(np.int32), labels=np.array(labels),
        probability=(prob / prob.sum(1, keepdims=True)).astype(np.float32),
        modalities=np.array(names),
        present=np.array([[float(r.get('present', {}).get(k, 1)) for k in names] for r in records], np.float32),
        image=np.stack([[upright(grey(r[k][size[0] // 2, ..., 0])) for k in names] for r in records]),  # [n, modality, H, W]
        cam=upright(cam), has_cam=np.array([kernel is not None] * len(rows)),
        map_shape=np.array(found.outputs['map'].shape[1:4], np.int32))


def grey(slice_):
    """[H, W] -> uint8, from its own 1st to its 99th percentile; a slice without contrast is 0."""
    low, high = np.percentile(slice_, (1, 99))
    scaled = (slice_.astype(np.float32) - low) / max(float(high - low), 1e-6)
    return (255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def upright(pictures):
    """Rows run to anterior and columns to the patient's right in the data: turn both around."""
    return np.ascontiguousarray(pictures[..., ::-1, ::-1])
