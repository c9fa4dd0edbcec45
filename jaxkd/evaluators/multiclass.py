"""Mutually exclusive classes: accuracies, AUROC, calibration, subgroups; one row of predictions per case.

With a prior P(class | signs) in the data and the true signs in the source (its tasks, e.g. texture and duct),
`implausible` is the fraction of test cases whose predicted class has a prior below `delta` given the true signs;
`implausible_truth` is the same of the true classes, the value of a perfect classifier. [our choice, both]

`data` names external test data, a key of data.external; with part='all' every case of it is tested. With a transform
`shortcut` and two classes, the rates with and without the shortcut are compared (metrics/shortcut.py);
'shortcut/marked' in the rows marks the cases with the shortcut.

In the rows each class is a label against the others: logit = log(p / (1 - p)) of its softmax probability p;
'prior/implausible' is 1 where the predicted class is implausible.
"""
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict
from scipy.special import expit

from jaxkd import contracts, errors
from jaxkd.data import external
from jaxkd.data.dataset import Dataset
from jaxkd.evaluators.predictions import schema
from jaxkd.inference.predictor import NetworkOutputs, Predictor, predict_parts
from jaxkd.metrics import bootstrap, multiclass, shortcut
from jaxkd.networks import Network

DEFAULTS = dict(
    level=0.95,  # confidence level of the intervals, above 0 to below 1
    bins=15,  # number of bins of the calibration error
    delta=0.10,  # a class with a smaller prior is implausible, 0 to 1
    data='',  # name of external test data, a key of data.external; '': the test part of the run
    part='test',  # of external data: test (its test part) or all (every case)
)


def check(network: Network, batch: dict, hp: ConfigDict) -> None:
    """ConfigError, before training, where a case may have several labels or none."""
    label = batch['label']
    if label.ndim != 1 or not np.issubdtype(label.dtype, np.integer):
        raise errors.ConfigError('multiclass needs one class for each case, an integer. These labels are '
                                 f'{label.dtype} {list(label.shape[1:])} a case: put "classification" into the evals '
                                 'instead.')
    logits = network.output_shapes(batch)['logits']
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise errors.ConfigError('multiclass needs logits of at least two classes for each case; these are '
                                 f'{list(logits.shape[1:])} a case. Take "multiclass" out of the evals of this stage.')


def check_data(data: Dataset, hp: ConfigDict) -> None:
    """BadData, before training, for a case without a class, and for a prior without a place for a sign."""
    tested, indices = external.external_cases(data, hp.data, hp.part, 'multiclass')
    if 'label' in tested.source.targets and (rows := [*indices, *([] if hp.data else data.partition.indices('val'))]):
        label = np.asarray(tested.source.targets['label'])[rows]
        if (bad := np.flatnonzero((label < 0) | (label >= len(tested.source.labels)))).size:
            raise errors.BadData(f'{tested.source.name}: {len(bad)} cases that are to be tested or validated on have '
                                 f'no class, the first is {tested.source.id(rows[bad[0]])}. Leave them out.')
    _implausible(tested, np.array(indices, int), np.zeros(len(indices), int), hp.delta)


def scores(predict: Predictor, role: str, hp: ConfigDict) -> dict[str, float]:
    """{metric: value} of a part, for validation during training; with `data`, of that part of the external data."""
    predict = predict.with_data(external.external_dataset(predict.data, hp.data)) if hp.data else predict
    outputs = predict(role)
    return multiclass.scores(outputs.outputs['logits'], outputs.label, predict.data.source.labels)


def metrics(labels: Sequence[str], hp: ConfigDict) -> list[str]:
    """The names that `scores` gives."""
    return [*multiclass.HEADLINE, 'loss']


def report(predict: Predictor, hp: ConfigDict, resamples: int, seed: int) -> tuple[dict, dict, dict]:
    """-> (test metrics with intervals, {part: Predictions}, {'confusion': {part: [K,K] true x predicted}})."""
    data, outputs = predict_parts(predict, hp)
    parts = {role: _predictions(part, data, hp.delta) for role, part in outputs.items()}
    if 'test' not in outputs:
        return {}, parts, {}
    table, names = _table(outputs['test'], parts['test'], data, hp, resamples, seed), data.source.labels
    counts = {role: multiclass.confusion(part.outputs['logits'].argmax(1), part.label, len(names))[0].astype(np.int64)
              for role, part in outputs.items()}
    return table, parts, {} if hp.data else {'confusion': counts | {'labels': np.array(names)}}


def _table(test: NetworkOutputs, predictions: schema.Predictions, data: Dataset, hp: ConfigDict, resamples: int,
           seed: int) -> dict[str, dict]:
    """Metrics of the test part, with subgroups of the run's own data, rates by shortcut and implausible shares."""
    logits, label, patients, names = test.outputs['logits'], test.label, test.patients, data.source.labels
    table = multiclass.table(logits, label, patients, names, resamples, hp.level, hp.bins, seed)
    if shortcut.both_groups(predictions.marked):
        rates = shortcut.statistics(logits.argmax(1), label, predictions.marked)
        table |= bootstrap.intervals(rates, patients, resamples, hp.level, seed)
    groups = {} if hp.data else predictions.groups
    table |= multiclass.subgroups(logits, label, patients, names, groups, resamples, hp.level, seed)
    truth = _implausible(data, test.index, label, hp.delta)
    for name, values in (('implausible', predictions.implausible), ('implausible_truth', truth)):
        if values is not None:
            entry = bootstrap.interval(bootstrap.mean(values), patients, resamples, hp.level, seed)
            table[name] = entry | {'n_cases': int(np.sum(~np.isnan(values)))}
    return table


def _implausible(data: Dataset, index: np.ndarray, classes: np.ndarray, delta: float) -> np.ndarray | None:
    """[n] 1, 0 or nan; None without a prior (see the transform of that name) or without true signs."""
    asset, targets = data.transforms.fitted.get('prior'), data.source.targets
    tasks = data.config['prior']['tasks'] if asset else ()
    if not asset or not tasks or any(t not in targets for t in tasks):
        return None
    prior, = asset.values()
    values = multiclass.implausible(prior, [np.asarray(targets[t])[index] for t in tasks], classes, delta)
    return None if np.isnan(values).all() else values


def _predictions(outputs: NetworkOutputs, data: Dataset, delta: float) -> schema.Predictions:
    """One-vs-rest labels and log-odds of every case, with its shortcut and its plausibility where known."""
    source, logits = data.source, outputs.outputs['logits']
    names, odds = tuple(source.labels), multiclass.log_odds(logits)
    assignment = data.transforms.assignments.get('shortcut') if len(names) == 2 else None
    return schema.Predictions(
        **schema.identify([source.cases[i] for i in outputs.index], schema.group_names(source.cases)), labels=names,
        label=(outputs.label[:, None] == np.arange(len(names))).astype(float), weight=np.ones(odds.shape), logit=odds,
        probability=expit(odds),
        marked=None if assignment is None else np.asarray(assignment.marked, float)[outputs.index],
        implausible=_implausible(data, outputs.index, logits.argmax(1), delta), exclusive=True)


PLUGIN = contracts.EvaluatorPlugin(report, scores, check, metrics=metrics, check_data=check_data, ranges={
    'level': '(0, 1)', 'bins': '[1, inf)', 'delta': '[0, 1]'}, report_options=('level', 'bins', 'delta', 'part'))
