"""Classification of a multi-label student: AUROC, AUPRC, Brier score, calibration; one row of predictions per case.

`data` tests on external data, on what data.external of the config calls by that name; with part='all' every case of it
is tested.
"""
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict
from scipy.special import expit

from jaxkd import contracts
from jaxkd.data import external
from jaxkd.data.dataset import Dataset
from jaxkd.evaluators.predictions import schema
from jaxkd.inference.predictor import NetworkOutputs, Predictor
from jaxkd.metrics import classification

DEFAULTS = dict(
    level=0.95,
    bins=15,  # of the calibration error
    data='', part='test',  # or all
)


def scores(predict: Predictor, role: str, hp: ConfigDict) -> dict[str, float]:
    """{metric: value} of one part, for validation during training; with `data`, of the same part there."""
    predict = predict.with_data(external.external_dataset(predict.data, hp.data)) if hp.data else predict
    found = predict(role)
    return classification.scores(found.outputs['logits'], found.label, found.label_weight, predict.data.source.labels)


def metrics(labels: Sequence[str], hp: ConfigDict) -> list[str]:
    """The names that `scores` gives."""
    return ['auroc', 'auprc', 'loss', *(f'auroc/{name}' for name in labels)]


def report(predict: Predictor, hp: ConfigDict, resamples: int, seed: int) -> tuple[dict, dict, dict]:
    """-> (test metrics with intervals, {part: Predictions}, {})."""
    data, indices = external.external_cases(predict.data, hp.data, hp.part, 'evals')
    if hp.data:
        data.cache_in_memory()
        predict = predict.with_data(data)
    parts, where, labels = {}, f' of {hp.data}' if hp.data else '', data.source.labels
    for role in ('test',) if hp.data else filter(data.partition.indices, ('val', 'test')):
        found = predict(role, what=f'predicting the {role} part{where}', keep=indices if hp.data else None)
        parts[role] = _predictions(found, data)
    if 'test' not in parts:
        return {}, parts, {}
    table = classification.table(found.outputs['logits'], found.label, found.label_weight, found.patients, labels,
                                 resamples, hp.level, hp.bins, seed)
    return table, parts, {}


def _predictions(found: NetworkOutputs, data: Dataset) -> schema.Predictions:
    source, logit = data.source, np.asarray(found.outputs['logits'], float)
    cases = [source.cases[i] for i in found.index]
    return schema.Predictions(**schema.identify(cases, schema.group_names(source.cases)), labels=tuple(source.labels),
                              label=np.asarray(found.label, float), weight=np.asarray(found.label_weight, float),
                              logit=logit, probability=expit(logit))


PLUGIN = contracts.EvaluatorPlugin(report, scores, metrics=metrics)
