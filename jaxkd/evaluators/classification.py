"""Classification of a multi-label student: AUROC, AUPRC, Brier score, calibration; one row of predictions per case.

`data` names external test data, a key of data.external; with part='all' every case of it is tested.
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
from jaxkd.metrics import classification
from jaxkd.networks import Network

DEFAULTS = dict(
    level=0.95,  # confidence level of the intervals, above 0 to below 1
    bins=15,  # number of bins of the calibration error
    data='',  # name of external test data, a key of data.external; '': the test part of the run
    part='test',  # of external data: test (its test part) or all (every case)
)


def check(network: Network, batch: dict, hp: ConfigDict) -> None:
    """ConfigError, before training, unless a case has 0 or 1, and a weight, for each label."""
    label, logits = batch['label'], network.output_shapes(batch)['logits']
    if label.ndim != 2 or logits.shape != label.shape:
        raise errors.ConfigError('classification needs a number for each label and logits of the same shape; labels '
                                 f'are {list(label.shape[1:])} a case, logits {list(logits.shape[1:])}. For classes '
                                 'that exclude each other put "multiclass" into the evals instead.')
    if 'label_weight' not in batch and label.shape[1] > 1:
        raise errors.ConfigError('classification needs a weight for each label of a case. Put "labels" into '
                                 'data.transforms.')


def scores(predict: Predictor, role: str, hp: ConfigDict) -> dict[str, float]:
    """{metric: value} of a part, for validation during training; with `data`, of that part of the external data."""
    predict = predict.with_data(external.external_dataset(predict.data, hp.data)) if hp.data else predict
    outputs, labels = predict(role), predict.data.source.labels
    return classification.scores(outputs.outputs['logits'], outputs.label, outputs.label_weight, labels)


def metrics(labels: Sequence[str], hp: ConfigDict) -> list[str]:
    """The names that `scores` gives."""
    return ['auroc', 'auprc', 'loss', *(f'auroc/{name}' for name in labels)]


def report(predict: Predictor, hp: ConfigDict, resamples: int, seed: int) -> tuple[dict, dict, dict]:
    """-> (test metrics with intervals, {part: Predictions}, {})."""
    data, outputs = predict_parts(predict, hp)
    parts = {role: _predictions(part, data) for role, part in outputs.items()}
    if 'test' not in outputs:
        return {}, parts, {}
    test = outputs['test']
    table = classification.table(test.outputs['logits'], test.label, test.label_weight, test.patients,
                                 data.source.labels, resamples, hp.level, hp.bins, seed)
    return table, parts, {}


def _predictions(outputs: NetworkOutputs, data: Dataset) -> schema.Predictions:
    source, logit = data.source, np.asarray(outputs.outputs['logits'], float)
    cases = [source.cases[i] for i in outputs.index]
    return schema.Predictions(**schema.identify(cases, schema.group_names(source.cases)), labels=tuple(source.labels),
                              label=np.asarray(outputs.label, float), weight=np.asarray(outputs.label_weight, float),
                              logit=logit, probability=expit(logit))


PLUGIN = contracts.EvaluatorPlugin(report, scores, check, metrics=metrics, report_options=('level', 'bins', 'part'),
                                   ranges={'level': '(0, 1)', 'bins': '[1, inf)'})
