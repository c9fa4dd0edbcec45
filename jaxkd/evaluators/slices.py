"""Slices for the report: the modalities of test cases, with class activation maps of the network.

The first cases of each subgroup of the test part (the same in every stage, so that stages can be compared); if all of
these are classified correctly, also the first incorrect one, and vice versa. The picture of a case is the axial slice
through the middle of the crop in every modality of the case, of which the network reads only its inputs; beside it
stand STACK slices from end to end. Over it the class activation map of the predicted class c,

    CAM_c = relu(sum_k W_kc F_k)             (Zhou et al., 2016) [published]; relu and linear upsampling [our choice]

exact for a network with logits that are linear in the mean of `features`. W is the weight matrix of the network, of any
name, that reproduces its logits numerically. `map_shape` is the number of positions (z, y, x) of a map before
upsampling: with two or three along a side it hardly localises.

Pictures are in radiological orientation: anterior is up, the patient's right is on the left.
"""
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from jaxkd import contracts, errors
from jaxkd.data.dataset import Dataset
from jaxkd.inference.class_activation import activation, grey, head, upright
from jaxkd.inference.predictor import NetworkOutputs, Predictor
from jaxkd.networks import Network
from jaxkd.runtime import log

STACK = 9  # slices of a case to step through
DEFAULTS = dict(
    group='subgroup',  # the group of a case that examples are drawn from, one by one
    first=2,  # number of cases of each subgroup, whatever the network says of them
    look=16,  # number of cases of each subgroup among which a right and a wrong answer are looked for
)


def check(network: Network, batch: dict, hp: ConfigDict) -> None:
    """ConfigError, before training, for a network without a volume as input or without `features`."""
    outputs = network.output_shapes(batch)
    volumes = [k for k in network.inputs if len(batch[k].shape) == 5 and batch[k].shape[-1] == 1]
    if 'features' not in outputs or 'logits' not in outputs or not volumes or len(outputs['features'].shape) != 5:
        raise errors.ConfigError('slices needs a network that reads a volume of one channel and gives, beside its '
                                 'logits, the "features" that it averages. Take "slices" out of the evals of this '
                                 'stage.')


def report(predict: Predictor, hp: ConfigDict, resamples: int, seed: int) -> tuple[dict, dict, dict]:
    """-> ({}, {}, {'slices': arrays}); image and cam [n, ...] are of the n cases in `case`, map_shape [3] of all."""
    groups = _groups(predict.data, hp)
    candidates = _candidates(groups, hp)
    if not candidates:
        return {}, {}, {}
    outputs = predict('test', ('logits', 'features'), 'slices', keep=candidates)
    row_of = {int(i): n for n, i in enumerate(outputs.index)}
    correct = outputs.outputs['logits'].argmax(1) == outputs.label
    rows = [n for part in groups.values()
            for n in _examples([row_of[i] for i in part if i in row_of], correct, hp.first)]
    kernel = head((predict.variables or {})['params'], outputs.outputs)
    if kernel is None:
        log.info('  slices: no weights of this network turn the mean of its map into its logits, so there is no map of '
                 'a class')
    return {}, {}, {'slices': _pictures(predict, outputs, rows, kernel, hp.group)}


def requests(predict: Predictor, hp: ConfigDict) -> list[tuple]:
    """The outputs of the cases that examples are drawn from."""
    return [(predict.data, _candidates(_groups(predict.data, hp), hp), ('logits', 'features'))]


def _groups(data: Dataset, hp: ConfigDict) -> dict[str, list[int]]:
    """{subgroup: indices of its test cases}."""
    groups: dict[str, list[int]] = {}
    for i in data.partition.indices('test'):
        groups.setdefault(data.source.cases[i].groups.get(hp.group, ''), []).append(i)
    return groups


def _candidates(groups: Mapping[str, list[int]], hp: ConfigDict) -> list[int]:
    return sorted(i for part in groups.values() for i in part[:max(hp.look, hp.first)])


def _examples(rows: list[int], correct: np.ndarray, first: int) -> list[int]:
    """The first rows; if these are all correct or all incorrect, also the first of the other kind."""
    examples = rows[:first]
    for kind in (False, True):
        if not any(correct[n] == kind for n in examples):
            examples = examples + [n for n in rows if correct[n] == kind][:1]
    return examples


def _pictures(predict: Predictor, outputs: NetworkOutputs, rows: list[int], kernel: np.ndarray | None,
              group: str) -> dict[str, np.ndarray]:
    data, labels = predict.data, predict.data.source.labels
    records = [data[int(outputs.index[n])] for n in rows]
    names = [k for k, a in records[0].items() if np.ndim(a) == 4 and a.shape[-1] == 1]
    names.sort(key=lambda k: k not in predict.network.inputs)  # inputs first: the map is drawn over the first picture
    size = records[0][names[0]].shape[:3]
    names = [k for k in names if records[0][k].shape[:3] == size]
    logits = outputs.outputs['logits'][rows].astype(np.float64)
    cases = [data.source.cases[outputs.index[n]] for n in rows]
    prob = np.exp(logits - logits.max(1, keepdims=True))
    cam = np.zeros((len(rows), *size[1:]), np.float32)
    if kernel is not None:
        cam = activation(outputs.outputs['features'][rows], kernel, logits.argmax(1), size)
    middle, planes = size[0] // 2, np.unique(np.linspace(0, size[0] - 1, STACK).round().astype(int)).tolist()
    return dict(
        case=np.array([case.id for case in cases]),
        group=np.array([f'{group}={case.groups[group]}' if case.groups.get(group) else '' for case in cases]),
        label=outputs.label[rows].astype(np.int32), labels=np.array(labels),
        probability=(prob / prob.sum(1, keepdims=True)).astype(np.float32),
        modalities=np.array(names),
        present=np.array([[float(r.get('present', {}).get(k, 1)) for k in names] for r in records], np.float32),
        image=np.stack([[upright(grey(r[k][middle, ..., 0])) for k in names] for r in records]),  # [n, modality, H, W]
        # [n, modality, S, H, W]
        stack=np.stack([[upright(grey(r[k][planes, ..., 0])) for k in names] for r in records]),
        cam=upright(cam), cam_stack=_stacked(outputs, rows, kernel, logits.argmax(1), size, planes),
        has_cam=np.array([kernel is not None] * len(rows)),
        map_shape=np.array(outputs.outputs['features'].shape[1:4], np.int32))


def _stacked(outputs: NetworkOutputs, rows: list[int], kernel: np.ndarray | None, predicted: np.ndarray,
             size: tuple[int, ...], planes: list[int]) -> np.ndarray:
    """Activation in several slices, uint8 [n, S, H, W], each case to its own largest value."""
    if kernel is None:
        return np.zeros((len(rows), len(planes), *size[1:]), np.uint8)
    cams = activation(outputs.outputs['features'][rows], kernel, predicted, size, planes)
    return upright((255 * cams / np.maximum(cams.max((1, 2, 3), keepdims=True), 1e-12)).round().astype(np.uint8))


PLUGIN = contracts.EvaluatorPlugin(report, check=check, requests=requests,
                                   ranges={'first': '[0, inf)', 'look': '[1, inf)'})
