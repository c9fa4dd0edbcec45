"""Classes that exclude each other: accuracies, AUROC, calibration, subgroups; one row of predictions per case.

Where the data knows a prior P(class | signs) and the source the true signs (its tasks, e.g. texture and duct),
`implausible` is the share of test cases whose predicted class has a prior below `delta` given the true signs;
`implausible_truth` is the same of the true classes: what a perfect classifier would have. [our choice, both]

`data` tests on external data, on what data.external of the config calls by that name; with part='all' every case of it
is tested. Where a transform `shortcut` decided which images have one, and there are two classes, the rates of both
groups are compared (metrics/shortcut.py); 'shortcut/marked' in the rows says who has it.

In the rows each class is a label of its own against the rest: logit = log(p / (1 - p)) of its softmax probability p;
'prior/implausible' says whether the predicted class is.
"""
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict
from scipy.special import expit

from jaxkd import contracts, errors
from jaxkd.data import external
from jaxkd.data.dataset import Dataset
from jaxkd.evaluators.predictions import schema
from jaxkd.inference.predictor import NetworkOutputs, Predictor
from jaxkd.metrics import bootstrap, multiclass, shortcut
from jaxkd.networks import Network

DEFAULTS = dict(
    level=0.95,
    bins=15,  # of the calibration error
    delta=0.10,  # a class with a smaller prior is implausible
    data='', part='test',  # or all
)


def check(network: Network, batch: dict, hp: ConfigDict) -> None:
    """ConfigError, before training, where a case may have several labels or none."""
    label = batch['label']
    if label.ndim != 1 or not np.issubdtype(label.dtype, np.integer):
        raise errors.ConfigError('multiclass needs one class for each case, an integer. These labels are '
                                 f'{label.dtype} {list(label.shape[1:])} a case: put "classification" into the evals '
                                 'instead.')


def scores(predict: Predictor, role: str, hp: ConfigDict) -> dict[str, float]:
    """{metric: value} of one part, for validation during training; with `data`, of the same part there."""
    predict = predict.with_data(external.external_dataset(predict.data, hp.data)) if hp.data else predict
    found = predict(role)
    return multiclass.scores(found.outputs['logits'], found.label, predict.data.source.labels)


def metrics(labels: Sequence[str], hp: ConfigDict) -> list[str]:
    """The names that `scores` gives."""
    return [*multiclass.HEADLINE, 'loss']


def report(predict: Predictor, hp: ConfigDict, resamples: int, seed: int) -> tuple[dict, dict, dict]:
    """-> (test metrics with intervals, {part: Predictions}, {'confusion': {part: [K,K] true x predicted}})."""
    data, indices = external.external_cases(predict.data, hp.data, hp.part, 'evals')
    if hp.data:
        data.cache_in_memory()
        predict = predict.with_data(data)
    names, where, found, parts, counts = data.source.labels, f' of {hp.data}' if hp.data else '', {}, {}, {}
    for role in ('test',) if hp.data else filter(data.partition.indices, ('val', 'test')):
        what = f'predicting the {role} part{where}'
        found[role] = predict(role, what=what, keep=indices if hp.data else None)
        parts[role] = _predictions(found[role], data, hp.delta)
        predicted = found[role].outputs['logits'].argmax(1)
        counts[role] = multiclass.confusion(predicted, found[role].label, len(names))[0].astype(np.int64)
    if 'test' not in found:
        return {}, parts, {}
    table = _table(found['test'], parts['test'], data, hp, resamples, seed)
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
    for name, share in (('implausible', predictions.implausible), ('implausible_truth', truth)):
        if share is not None:
            entry = bootstrap.interval(bootstrap.mean(share), patients, resamples, hp.level, seed)
            table[name] = entry | {'n_cases': int(np.sum(~np.isnan(share)))}
    return table


def _implausible(data: Dataset, index: np.ndarray, classes: np.ndarray, delta: float) -> np.ndarray | None:
    """[n] 1, 0 or nan; None without a prior (see the transform of that name) or a true sign to ask it about."""
    asset, targets = data.transforms.fitted.get('prior'), data.source.targets
    tasks = data.config['prior']['tasks'] if asset else ()
    if not asset or not tasks or any(t not in targets for t in tasks):
        return None
    prior, = asset.values()
    found = multiclass.implausible(prior, [np.asarray(targets[t])[index] for t in tasks], classes, delta)
    return None if np.isnan(found).all() else found


def _predictions(found: NetworkOutputs, data: Dataset, delta: float) -> schema.Predictions:
    """One-vs-rest labels and log-odds of every case, with what is known of a shortcut and of the prior."""
    source, logits = data.source, found.outputs['logits']
    names, odds = tuple(source.labels), multiclass.log_odds(logits)
    assignment = data.transforms.assignments.get('shortcut') if len(names) == 2 else None
    return schema.Predictions(
        **schema.identify([source.cases[i] for i in found.index], schema.group_names(source.cases)), labels=names,
        label=(found.label[:, None] == np.arange(len(names))).astype(float), weight=np.ones(odds.shape), logit=odds,
        probability=expit(odds),
        marked=None if assignment is None else np.asarray(assignment.marked, float)[found.index],
        implausible=_implausible(data, found.index, logits.argmax(1), delta), exclusive=True)


PLUGIN = contracts.EvaluatorPlugin(report, scores, check, metrics)
