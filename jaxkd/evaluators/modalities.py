"""Another evaluator on every non-empty subset of the inputs of a network that reads several.

    evals=dict(multiclass={}, modalities=dict(of=dict(name='multiclass')))

Metrics are those of the other evaluator, as in accuracy@inputs=ct+t2. Inputs outside of the subset are not read; a case
that has none of the subset is left out. There are no predictions or pictures of subsets.
"""
from ml_collections import ConfigDict

from jaxkd.config import plugins
from jaxkd.contracts import EvaluatorPlugin
from jaxkd.inference.predictor import Predictor
from jaxkd.networks import Network
from jaxkd.training import modalities

DEFAULTS: dict = dict(of={})  # the other evaluator: its name and options


def check(network: Network, batch: dict, hp: ConfigDict) -> None:
    """ConfigError for a network of one input, for a model that reads no presence flags, and as the other evaluator."""
    modalities.check('modalities', network, batch)
    other = plugins.contract('evaluators', hp.of.name).check
    if other:
        other(network, batch, hp.of)


def report(predict: Predictor, hp: ConfigDict, resamples: int, seed: int) -> tuple[dict, dict, dict]:
    """-> (metrics of every subset with intervals, {}, {})."""
    evaluator, batch = plugins.contract('evaluators', hp.of.name), predict.data.batch_spec(1)
    table: dict[str, dict] = {}
    for kept in modalities.subsets(predict.network.inputs):
        of_subset = predict
        if len(kept) < len(predict.network.inputs):
            network = modalities.restricted(predict.network, kept, batch)
            of_subset = Predictor(network, predict.data, predict.batch, predict.variables)
        found, _, _ = evaluator.report(of_subset, hp.of, resamples, seed)
        table |= {f'{metric}@inputs={"+".join(kept)}': entry for metric, entry in found.items() if '@' not in metric}
    return table, {}, {}


PLUGIN = EvaluatorPlugin(report, check=check, nested=('of',))
