"""Where in the network a shortcut acts: prediction depth of images with it and of the same images without it.

For each tap a k-nearest-neighbour vote among the training cases (features are means over places); the depth of an image is
the first tap from which all votes agree with the network. Images whose depth the shortcut lowers are decided earlier. See
jaxkd/metrics/shortcut.py for formulas and sources. An analysis of trained networks; nothing is trained or selected by it.
"""
import jax
import numpy as np

from jaxkd import errors
from jaxkd.data import external
from jaxkd.metrics import shortcut

DEFAULTS = dict(
    taps=('block1', 'block2', 'block3', 'block4'),
    k=30,
    data='marked', clean='clean',  # of data.external: all test images with the shortcut, and without
    part='test',
    most=2000,  # training cases among which neighbours are looked for, the first ones
)


def check(network, batch, hp):
    """ConfigError, before training, for a tap that the network does not give."""
    found = jax.eval_shape(lambda key, b: network.apply(network.init(key, b), b)[0], jax.random.key(0), batch)
    for tap in hp.taps:
        if tap not in found:
            raise errors.ConfigError(f'depth.taps: the network gives no "{tap}".{errors.nearest(tap, found)}')


def report(predict, hp, bootstrap, seed):
    """-> ({kl, depth, shift: entries}, {}, {'depth': histograms}). depth: where the largest term of the KL stands."""
    outputs = ('logits', *(f'mean:{tap}' for tap in hp.taps))
    train = predict('train', outputs, '  prediction depth: training features', keep=predict.data.trained()[:hp.most])
    found, each = {}, {}
    for name in (hp.data, hp.clean):
        other, chosen = external.external_cases(predict.data, name, hp.part, 'depth')
        cases = predict.on(other)('test', outputs, keep=chosen)
        votes = np.stack([shortcut.votes(train.outputs[t], train.label, cases.outputs[t], hp.k) for t in outputs[1:]], 1)
        each[name] = shortcut.depths(votes, cases.outputs['logits'].argmax(1))
        found[name] = shortcut.histogram(each[name], len(hp.taps))
    kl, terms, depth = shortcut.located(found[hp.data], found[hp.clean])
    n = dict(n_patients=len(set(cases.patients)), n_cases=len(cases.ids))
    table = {'kl': {'value': kl, **n}, 'depth': {'value': float(depth), **n},
             'shift': {'value': float(each[hp.data].mean() - each[hp.clean].mean()), **n}}
    return table, {}, {'depth': dict(taps=np.array([*hp.taps, 'none']), marked=found[hp.data], clean=found[hp.clean], terms=terms)}
