"""Prediction depth of images with a shortcut and of the same images without it: where in the network it acts.

For each tap a k-nearest-neighbour vote among the training cases (features are means over places); the depth of an image
is the first tap from which all votes agree with the network. A shortcut that lowers the depth makes the decision
earlier. See jaxkd/metrics/shortcut.py for formulas and sources. An analysis of trained networks: nothing is trained or
selected by it.
"""
import numpy as np
from ml_collections import ConfigDict

from jaxkd import contracts, errors
from jaxkd.data import external
from jaxkd.data.dataset import Dataset
from jaxkd.inference.predictor import Predictor
from jaxkd.metrics import shortcut
from jaxkd.networks import Network

DEFAULTS = dict(
    taps=('block1', 'block2', 'block3', 'block4'),  # outputs of the network, shallow to deep
    k=30,  # number of nearest neighbours that vote
    data='marked',  # name in data.external of the test images, all with the shortcut
    clean='clean',  # name in data.external of the same images without it
    part='test',  # of external data: test (its test part) or all (every case)
    most=2000,  # number of training cases among which neighbours are looked for, the first ones
)


def check(network: Network, batch: dict, hp: ConfigDict) -> None:
    """ConfigError, before training, for a tap that is no output of the network, and for labels that are no classes."""
    outputs = network.output_shapes(batch)
    if not hp.taps or batch['label'].ndim != 1:
        raise errors.ConfigError('prediction_depth needs taps and one class for each case. Take "prediction_depth" '
                                 'out of the evals of this stage.')
    for tap in hp.taps:
        if tap not in outputs:
            raise errors.ConfigError('prediction_depth.taps: the network gives no '
                                     f'"{tap}".{errors.nearest(tap, outputs)}')


def check_data(data: Dataset, hp: ConfigDict) -> None:
    """ConfigError, before training, for fewer training cases than neighbours, and for data.external without `clean`."""
    external.external_cases(data, hp.clean, hp.part, 'prediction_depth')
    if (n := len(_neighbours(data, hp))) < hp.k:
        raise errors.ConfigError(f'prediction_depth asks for k = {hp.k} neighbours; there are {n} labelled training '
                                 'cases. Lower k.')


def report(predict: Predictor, hp: ConfigDict, resamples: int, seed: int) -> tuple[dict, dict, dict]:
    """-> ({kl, depth, shift: entries}, {}, {'depth': histograms}). depth: that of the largest term of the KL."""
    outputs = _outputs(hp)
    train = predict('train', outputs, '  prediction depth: training features',
                    keep=_neighbours(predict.data, hp))
    histograms, depths = {}, {}
    for name in (hp.data, hp.clean):
        data, indices = external.external_cases(predict.data, name, hp.part, 'prediction_depth')
        test = predict.with_data(data)('test', outputs, keep=indices)
        votes = [shortcut.votes(train.outputs[t], train.label, test.outputs[t], hp.k) for t in outputs[1:]]
        depths[name] = shortcut.depths(np.stack(votes, 1), test.outputs['logits'].argmax(1))
        histograms[name] = shortcut.histogram(depths[name], len(hp.taps))
    kl, terms, depth = shortcut.located(histograms[hp.data], histograms[hp.clean])
    n = dict(n_patients=len(set(test.patients)), n_cases=len(test.ids))
    table = {'kl': {'value': kl, **n}, 'depth': {'value': float(depth), **n},
             'shift': {'value': float(depths[hp.data].mean() - depths[hp.clean].mean()), **n}}
    return table, {}, {'depth': dict(taps=np.array([*hp.taps, 'none']), marked=histograms[hp.data],
                                     clean=histograms[hp.clean], terms=terms)}


def requests(predict: Predictor, hp: ConfigDict) -> list[tuple]:
    """The taps of the cases with and without the shortcut."""
    return [(*external.external_cases(predict.data, name, hp.part, 'prediction_depth'), _outputs(hp))
            for name in (hp.data, hp.clean)]


def _outputs(hp: ConfigDict) -> tuple[str, ...]:
    return 'logits', *(f'mean:{tap}' for tap in hp.taps)


def _neighbours(data: Dataset, hp: ConfigDict) -> list[int]:
    return data.partition.labelled(data.partition.train_indices())[:hp.most]


PLUGIN = contracts.EvaluatorPlugin(report, check=check, check_data=check_data, requests=requests,
                                   ranges={'k': '[1, inf)', 'most': '[1, inf)'})
