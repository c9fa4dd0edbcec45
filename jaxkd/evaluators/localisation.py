"""Localisation of findings by the maps of a student that was trained without boxes, with controls.

For each test image with boxes, the attention of the CLS token becomes a map over the image (see metrics/attention.py):
`last_mean` (the result), `rollout`, `grad_attn` (the only map of a certain finding), and `best_head`, which is chosen
with the test boxes: an upper bound, never a result. A convolutional network has one map, of a certain finding:
`grad_cam` (see inference/grad_cam.py), the result; for a region of no label it is the mean of those of all labels [our
choice]. Every map is scored against every box of its image or, where the record has `masks` within the boxes
(CheXlocalize, lesions of mammograms, the phantoms), against these regions.

`data` names external test data, a key of data.external; with part='all' every case of it is tested. Thresholds and the
mean map are those of the run's validation and training images.

Controls: `uniform`, `centred_gaussian` (a strong control, since findings are central), `mean_map` (the mean result over
training images, of all labels, independent of the test image) and `untrained` (the same network with initial weights).
The image-only arm is another stage of the config; the report compares both.

[published] the question, whether distillation improves localisation; pointing game and IoU as in CheXlocalize. [our
choice] everything else: the localisation metric of the article was not accessible to us.
"""
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxkd import contracts, errors, parallel
from jaxkd.data import external, loader
from jaxkd.data.dataset import Dataset
from jaxkd.evaluators.predictions import schema
from jaxkd.inference import grad_cam
from jaxkd.inference.predictor import Predictor
from jaxkd.metrics import attention, localisation
from jaxkd.networks import Network
from jaxkd.runtime import log

DEFAULTS = dict(
    batch=32,  # images at a time, of which the attention of all blocks is held
    mean_map=256,  # number of training images in the mean map
    examples=8,  # number of images whose maps are kept for the report
    level=0.95,  # confidence level of the intervals, above 0 to below 1
    layer='',  # of a convolutional network: the output that Grad-CAM reads; '' is `features`, or its last map
    data='',  # name of external test data, a key of data.external; '': the test part of the run
    part='test',  # of external data: test (its test part) or all (every case)
)

ATTENTION, CONVOLUTION = ('last_mean', 'rollout', 'grad_attn'), ('grad_cam',)  # maps, the result first
Map = Callable[[int], np.ndarray]  # number of the region -> map over the image, [S, S]


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """One box of one case, or the lesion inside it, as a mask over the network input."""

    index: int  # of the case, into source.cases
    case: str
    patient: str
    label: int  # -1: of no label
    box: np.ndarray  # [4]: x, y, w, h in pixels of the network input
    mask: np.ndarray  # bool [S, S]

    def finding(self, labels: Sequence[str]) -> str:
        """The name of its label."""
        return labels[self.label] if self.label >= 0 else 'region'


def check(network: Network, batch: dict, hp: ConfigDict) -> None:
    """ConfigError, before training, for a network with neither attention over a grid of patches nor a map."""
    if 'image' not in network.inputs:
        raise errors.ConfigError('localisation needs a network that reads an image. Take "localisation" out of the '
                                 'evals of this stage.')
    if not _has_attention(network, batch):
        try:
            grad_cam.layer_of(network, batch, hp.layer)
        except errors.ConfigError as e:
            raise errors.ConfigError('localisation needs a network that shows its attention, such as vit, or has a map '
                                     f'of convolutions. {e} Take "localisation" out of the evals of this stage, or set '
                                     'its option layer.') from e


def _has_attention(network: Network, batch: Mapping) -> bool:
    if not isinstance(network.module, contracts.ShowsAttention):
        return False
    try:
        return 'attention' in network.output_shapes(batch, capture=('attention',))
    except TypeError:
        return False


def report(predict: Predictor, hp: ConfigDict, resamples: int, seed: int) -> tuple[dict, dict, dict]:
    """-> ({'map/metric': interval over regions}, {'test_rois': RegionScores}, arrays for pictures)."""
    data, indices = external.external_cases(predict.data, hp.data, hp.part, 'evals')
    train, test = predict, predict.with_data(data) if hp.data else predict
    regions = {'val': _regions(train.data, train.data.partition.indices('val')), 'test': _regions(data, indices)}
    if not regions['test']:
        log.info('  no test case has a box: nothing to localise')
        return {}, {}, {}
    size = data.batch_spec(1)['image'].shape[1]
    own = ATTENTION if _has_attention(predict.network, data.batch_spec(1)) else CONVOLUTION
    controls = localisation.control_maps(size) | {'mean_map': _mean_map(train, hp, size, own[0])}
    untrained = train.reinitialized(seed)

    def maps_of(role: str) -> dict[str, Map]:
        network = train if role == 'val' else test
        maps = _maps(network, regions[role], hp, size, (*own, 'heads') if own == ATTENTION else own)
        initial = _maps(untrained.with_data(network.data), regions[role], hp, size, own[:1])
        constant: dict[str, Map] = {name: functools.partial(_constant, m) for name, m in controls.items()}
        return maps | {'untrained': initial[own[0]]} | constant
    maps = maps_of('test')
    measured = _measured(maps, maps_of('val') if regions['val'] else {}, regions, data.source.labels)
    patients = [r.patient for r in regions['test']]
    table: dict[str, dict] = {}
    for name, rows in measured.items():
        means = localisation.table(rows, patients, resamples, hp.level, seed)
        table |= {f'{name}/{metric}': entry for metric, entry in means.items()}
    scores = _region_scores(measured, regions['test'], data.source.labels)
    return table, {'test_rois': scores}, {'examples': _examples(test, regions['test'], maps, hp.examples, own)}


def _constant(map: np.ndarray, i: int) -> np.ndarray:
    return map


def _measured(maps: Mapping[str, Map], val_maps: Mapping[str, Map], regions: Mapping[str, list[Region]],
              labels: Sequence[str]) -> dict[str, list[dict[str, float]]]:
    """{map: a row of metrics for each test region}, the best head among them.

    The threshold of every map, controls too, is the best on validation regions; no regions, no threshold.
    """
    masks = {role: [r.mask for r in part] for role, part in regions.items()}
    thresholds = {name: localisation.best_threshold(m, masks['val']) for name, m in val_maps.items()}
    names = [f'{r.case} {r.finding(labels)}' for r in regions['test']]
    rows = {name: localisation.measure(m, masks['test'], thresholds.get(name), names) for name, m in maps.items()}
    by_head = [rows.pop(name) for name in [name for name in rows if name.startswith('head')]]
    if by_head:
        rows['best_head'] = max(by_head, key=lambda r: np.mean([row['auprc'] for row in r]))
    return rows


def _region_scores(measured: Mapping[str, list[dict[str, float]]], regions: Sequence[Region],
                   labels: Sequence[str]) -> schema.RegionScores:
    rows = [row for map_rows in measured.values() for row in map_rows]
    repeated = list(regions) * len(measured)
    return schema.RegionScores(np.repeat(list(measured), len(regions)), np.array([r.case for r in repeated]),
                               np.array([r.patient for r in repeated]), np.array([r.finding(labels) for r in repeated]),
                               {k: np.array([row[k] for row in rows]) for k in rows[0]})


def _regions(data: Dataset, indices: Sequence[int]) -> list[Region]:
    """Every box or lesion of these cases with at least one pixel and less than the image."""
    regions = []
    for index in indices:
        record, case = data[index], data.source.cases[index]
        boxes = record['boxes'][record['boxes'][:, 0] > -2]
        masks = data.masks(index) if len(boxes) else None
        if masks is None:
            masks = np.array([localisation.roi_mask(box[1:], record['image'].shape[0]) for box in boxes])
        elif len(masks) != len(boxes):
            raise errors.BadData(f'Case {case.id} has {len(boxes)} boxes and {len(masks)} masks. A source of masks has '
                                 'one for each box.')
        for box, mask in zip(boxes, np.asarray(masks, bool)):
            if mask.any() and not mask.all():
                regions.append(Region(index, case.id, case.patient, int(box[0]), box[1:], mask))
    return regions


def _maps(predict: Predictor, regions: Sequence[Region], hp: ConfigDict, size: int,
          wanted: Sequence[str]) -> dict[str, Map]:
    """{name: function of the region's number -> [S,S] map}; 'heads' gives one for each head: head0, head1, ..."""
    labels = sorted({r.label for r in regions if r.label >= 0}) if 'grad_attn' in wanted else []
    maps = _patch_maps(predict, sorted({r.index for r in regions}), hp, wanted, labels)
    row_of = {int(i): n for n, i in enumerate(maps['index'])}

    @functools.lru_cache(maxsize=1)  # regions of an image follow each other
    def upsampled(name: str, *index: int) -> np.ndarray:
        return attention.upsample(maps[name][index], size)

    def of_region(name: str, i: int) -> np.ndarray:
        row, label = row_of[regions[i].index], regions[i].label
        if name == 'grad_attn' and label >= 0:
            return upsampled(name, row, labels.index(label))
        if name == 'grad_cam':  # the last one stands for all labels
            return upsampled(name, row, label)
        # a region without a label has no gradient: the class-agnostic map
        return upsampled('last_mean' if name == 'grad_attn' else name, row)
    names = [name for name in wanted if name != 'heads'] + [name for name in maps if name.startswith('head')]
    return {name: functools.partial(of_region, name) for name in names}


def _patch_maps(predict: Predictor, indices: Sequence[int], hp: ConfigDict, wanted: Sequence[str],
                labels: Sequence[int]) -> dict[str, np.ndarray]:
    """{'index': [n], map: [n,g,g], 'grad_attn': [n,labels,g,g]} of the cases `indices`, from all hosts.

    Other evaluators of the same network get those that one has made.
    """
    make = functools.partial(_make_patch_maps, predict, indices, hp, wanted, labels)
    key = ('patch maps', tuple(indices), hp.batch, tuple(wanted), tuple(labels), hp.layer)
    return predict.memory.once(key, predict.data, make) if predict.memory else make()


def _make_patch_maps(predict: Predictor, indices: Sequence[int], hp: ConfigDict, wanted: Sequence[str],
                     labels: Sequence[int]) -> dict[str, np.ndarray]:
    if set(wanted) & set(CONVOLUTION):
        return _make_grad_cams(predict, indices, hp)
    rows, extra = [], predict.network.module.registers
    for batch in loader.eval_batches(predict.data, list(indices), hp.batch):
        out = _attention(predict, batch, hp.batch, labels)
        attn = out['attention']
        row = dict(index=batch['index'], mask=batch['mask'], last_mean=attention.last_mean(attn, extra))
        if 'rollout' in wanted:
            row['rollout'] = attention.rollout(attn, extra)
        if 'heads' in wanted:
            row |= {f'head{h}': attention.last_head(attn, h, extra) for h in range(attn.shape[2])}
        if labels:
            row['grad_attn'] = np.stack([attention.from_gradient(attn[:, -1], out['gradient'][:, c], extra)
                                         for c in range(len(labels))], 1)
        rows.append(row)
    return _valid_rows(rows)


def _make_grad_cams(predict: Predictor, indices: Sequence[int], hp: ConfigDict) -> dict[str, np.ndarray]:
    """{'index': [n], 'grad_cam': [n,labels+1,h,w]}, the mean of all labels last."""
    network, spec, rows = predict.network, predict.data.batch_spec(1), []
    labels = tuple(range(network.output_shapes(spec)['logits'].shape[1]))
    cams = grad_cam.function(network, *grad_cam.layer_of(network, spec, hp.layer), labels)
    for batch in loader.eval_batches(predict.data, list(indices), hp.batch):
        out = parallel.to_host(cams(predict.variables, parallel.shard_batch(network.only(batch))))
        by_label = [attention.grad_cam(out['features'], out['gradient'][:, c]) for c in labels]
        maps = attention.with_mass(np.stack(by_label, 1))
        rows.append(dict(index=batch['index'], mask=batch['mask'],
                         grad_cam=np.concatenate([maps, maps.mean(1, keepdims=True)], 1)))
    return _valid_rows(rows)


def _valid_rows(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The rows of all hosts without padding, one array for each key, in the order of the cases: a mean of them does not
    depend on the hosts.
    """
    arrays = parallel.allgather_hosts({k: np.concatenate([row[k] for row in rows]) for k in rows[0]})
    valid = np.flatnonzero(arrays.pop('mask') > 0)
    order = valid[np.argsort(arrays['index'][valid], kind='stable')]
    return {k: v[order] for k, v in arrays.items()}


def _attention(predict: Predictor, batch: Mapping, size: int, labels: Sequence[int]) -> dict[str, np.ndarray]:
    """{'attention': [B,depth,heads,N,N], 'gradient' of labels, if any: [B,labels,heads,N,N]} of this host's rows."""
    if not labels:
        return parallel.to_host(predict.predict_batch(batch, ('attention',), ('attention',)))
    maps = predict.network.output_shapes(batch, capture=('attention',))['attention'].shape[2:]
    shape = (parallel.rows(size) * parallel.process()[1], *maps)
    inputs = parallel.shard_batch(predict.network.only(batch))
    return parallel.to_host(_with_gradient(predict.network, tuple(labels))(predict.variables, inputs, shape))


@functools.lru_cache(maxsize=8)
def _with_gradient(network: Network, labels: tuple[int, ...]) -> Callable[..., dict[str, jax.Array]]:
    """(variables, inputs, shape of one block's attention) -> attention of all blocks, and of these labels
    d logit_c / d attention of the last block, in one pass through the network.
    """
    def both(variables: dict, inputs: dict, shape: tuple[int, ...]) -> dict[str, jax.Array]:
        def logits(offset: jax.Array) -> tuple[jax.Array, jax.Array]:
            out, _ = network.apply(variables, inputs, capture=('attention',), offset=offset)
            return out['logits'][:, jnp.array(labels)].sum(0), out['attention']
        _, back, maps = jax.vjp(logits, jnp.zeros(shape), has_aux=True)
        return dict(attention=maps, gradient=jax.vmap(back, out_axes=1)(jnp.eye(len(labels)))[0])
    return parallel.jit_sharded(both, static_argnums=(2,))


def _mean_map(predict: Predictor, hp: ConfigDict, size: int, own: str) -> np.ndarray:
    """Mean of the map `own` over the first hp.mean_map training images, [S, S]."""
    wanted = (own,) if own in CONVOLUTION else ()
    maps = _patch_maps(predict, predict.data.partition.indices('train')[:hp.mean_map], hp, wanted, [])[own]
    return attention.upsample((maps[:, -1] if wanted else maps).mean(0), size)


def _examples(predict: Predictor, regions: Sequence[Region], maps: Mapping[str, Map],
              count: int, own: Sequence[str]) -> dict[str, np.ndarray]:
    """Images with their boxes and maps: an image a patient, with as many different findings as possible."""
    by_patient: dict[str, int] = {}
    for i, region in sorted(enumerate(regions), key=lambda x: sum(r.label == x[1].label for r in regions[:x[0]])):
        by_patient.setdefault(region.patient, i)
    chosen, labels = list(by_patient.values())[:count], predict.data.source.labels
    return dict(image=np.stack([predict.data.prepared(regions[i].index)['image'][..., 0] for i in chosen]),
                box=np.stack([regions[i].box for i in chosen]), case=np.array([regions[i].case for i in chosen]),
                finding=np.array([regions[i].finding(labels) for i in chosen]),
                **{name: np.stack([maps[name](i) for i in chosen]).astype(np.float32)
                   for name in own})


PLUGIN = contracts.EvaluatorPlugin(report, check=check, ranges={
    'level': '(0, 1)', 'batch': '[1, inf)', 'mean_map': '[1, inf)', 'examples': '[1, inf)'})
