"""SMIL: the gradient goes through the inner step, and centroids are fitted to what training cases have."""
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.special import expit

from jaxkd import config, errors, parallel, stages
from jaxkd.data import pool
from jaxkd.methods import smil
from jaxkd.networks import Network
from jaxkd.state import Progress, TrainState

HP = ConfigDict(smil.DEFAULTS | dict(name='smil', inner=2.0, fused=(0.3, 0.2), complete=0.7))
CT, MRI = np.float32([1, -.5, 2, .3]), np.float32([.4, 1.5, -1, .8])
Y, HAS = np.int32([0, 1, 1, 0]), np.float32([1, 0, 1, 1])


class Line(nn.Module):
    """s = a ct + w mri, 1 in the place of an MRI that is missing; logits (0, s), fused features s."""

    @nn.compact
    def __call__(self, inputs, train=False):
        a, w = (self.param(name, nn.initializers.ones, ()) for name in ('a', 'weights_mri'))
        mri = jnp.where(inputs['present']['mri'] > 0, inputs['mri'][:, 0], 1)
        s = a * inputs['ct'][:, 0] + w * mri
        return {'logits': jnp.stack([0 * s, s], -1), 'fused1': s[:, None], 'fused2': 2 * s[:, None]}


def recipe():
    network = Network(Line(), ('ct', 'mri'))
    context = types.SimpleNamespace(networks={'student': network}, teachers={}, batch={}, stage='student',
                                    trim=None)
    terms = lambda *args: smil.terms(*args, keep=('ct',), others=('mri',))  # noqa: E731
    return smil.Meta(HP, context, terms, smil.weights, {}, None, None, None, ('ct',))


def total(params, batch):
    """(L, its terms) from the terms of all devices."""
    metrics, _, _ = recipe().measure({'student': params}, {'student': {}}, {}, {}, batch, jax.random.key(0),
                                     Progress(0, 0, 0))
    counts = parallel.psum(jax.lax.stop_gradient({n: m.weight for n, m in metrics.items()}))
    parts = {n: m.total / counts[n] for n, m in metrics.items()}
    return sum(w * parts[n] for n, w in smil.weights(HP, None).items()), parts


BATCH = dict(ct=CT[:, None], mri=MRI[:, None], label=Y, mask=np.ones(4, np.float32), present={'mri': HAS})
PARAMS = dict(a=np.float32(.8), weights_mri=np.float32(-.6))


def by_hand(a, w, at=None):
    """{term: value} in float64; at: (a, w) of the complete features, which get no gradient."""
    def line(a, w, mri):
        return a * CT.astype(float) + w * mri

    def loss(s):
        return np.mean(np.logaddexp(0, s) - Y * s)
    seen = np.where(HAS > 0, MRI.astype(float), 1)
    step = lambda a, w: a - HP.inner * np.mean((expit(line(a, w, 1.0)) - Y) * CT)  # noqa: E731
    kept, fixed = line(step(a, w), w, 1.0), line(step(*(at or (a, w))), (at or (a, w))[1], seen)
    gap = np.mean(np.square(kept - fixed)[HAS > 0])
    return dict(sup=loss(kept), inner=loss(line(a, w, 1.0)), fused1=gap, fused2=4 * gap,
                complete=loss(line(step(a, w), w, seen)))


def test_terms_and_the_gradient_through_the_inner_step_are_those_by_hand():
    (_, parts), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(PARAMS, BATCH)
    a, w = (float(PARAMS[k]) for k in ('a', 'weights_mri'))
    for name, value in by_hand(a, w).items():
        assert float(parts[name]) == pytest.approx(value, rel=1e-5), name
    weigh = smil.weights(HP, None)
    sums = lambda a_, w_: sum(weigh[n] * v for n, v in by_hand(a_, w_, (a, w)).items())  # noqa: E731
    eps = 1e-5
    expected = [(sums(a + eps, w) - sums(a - eps, w)) / (2 * eps), (sums(a, w + eps) - sums(a, w - eps)) / (2 * eps)]
    np.testing.assert_allclose([gradient['a'], gradient['weights_mri']], expected, rtol=1e-4)


def test_two_devices_are_one():
    """The inner gradient is that of all cases, and so is what flows back through it."""
    one = jax.jit(jax.grad(lambda p, b: total(p, b)[0]))(PARAMS, BATCH)

    def step(batch):
        return parallel.psum(jax.grad(lambda p: total(p, batch)[0])(PARAMS))
    halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), BATCH)
    two = jax.jit(jax.vmap(step, axis_name=parallel.AXIS))(halves)
    for name in one:
        np.testing.assert_allclose(two[name], np.full(2, one[name]), rtol=1e-5)


def test_an_inner_step_of_0_is_plain_training_and_meta_parameters_stay():
    found = smil.stepped(dict(ct=1.0, noise1=1.0, weights_ct=1.0), dict(ct=2.0, noise1=2.0, weights_ct=2.0), 0.1)
    assert found == dict(ct=0.8, noise1=1.0, weights_ct=1.0)
    assert smil.stepped(dict(ct=1.0), dict(ct=2.0), 0.0) == dict(ct=1.0)


def test_centroids_are_those_of_cases_that_have_the_input():
    rng = np.random.default_rng(0)
    features = np.float32(rng.normal(size=(40, 2)) * 0.1 + np.repeat([[5, 0], [0, 5]], 20, 0))
    present = np.float32([[1, i % 4 > 0] for i in range(40)])
    outputs = {'feature_ct': features, 'feature_mri': np.where(present[:, 1:] > 0, features, 0), 'present': present}
    start = {'student': {'centroids': {f'{name}_centroids': np.zeros((2, 2), np.float32) for name in ('ct', 'mri')}}}
    state = TrainState(np.int32(0), {}, start, {}, {}, {}, {})
    predict = lambda role, names: types.SimpleNamespace(outputs=outputs)  # noqa: E731
    fitted = smil.solve(state, None, predict, ('ct', 'mri'), 0).stats['student']['centroids']
    for m, name in enumerate(('ct', 'mri')):
        rows = features[present[:, m] > 0]
        expected = sorted(rows[rows[:, k] > 2.5].mean(0).tolist() for k in (0, 1))
        np.testing.assert_allclose(sorted(np.asarray(fitted[f'{name}_centroids']).tolist()), expected, rtol=1e-5)
    few = {k: v[:1] for k, v in outputs.items()}
    with pytest.raises(errors.BadData, match='1 training cases have "ct", too few for 2 centroids'):
        smil.solve(state, None, lambda role, names: types.SimpleNamespace(outputs=few), ('ct', 'mri'), 0)


@pytest.mark.parametrize('changes, message', [
    (['smil.model.name=resnet'], 'whose model is "smil"'),
    (['smil.method.keep=pet,'], 'must name some of the inputs ct, t2'),
    (['smil.method.keep=ct,t2'], 'and leave some out'),
    (['smil.method.fused=0.1,'], 'must be two weights'),
])
def test_what_does_not_fit_is_refused(changes, message, tmp_path):
    if 'resnet' in changes[0]:
        conf = config.load('configs/cpkd_ct_mri.py:meta,smoke', ['data.source.patients=20'])
        conf.smil.model = conf.mri.model
    else:
        conf = config.load('configs/cpkd_ct_mri.py:meta,smoke', ['data.source.patients=20', *changes])
    with pytest.raises(errors.ConfigError, match=message):
        stages.build(conf, 'smil', tmp_path, dry=True, pool=POOL)


POOL = pool.DataPool()
