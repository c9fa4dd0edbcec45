"""SMIL: what stands in for an input that a case lacks."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import config, errors
from jaxkd.models import smil
from tests.fixtures import grating
from tests.fixtures.variables import draw


@pytest.fixture(scope='module')
def net():
    """(module, its variables, the network as one program, a batch of three cases)."""
    encoders = {name: grating.SMALL for name in ('ct', 'mri')}
    module, hp = config.options('models', dict(name='smil', encoders=encoders, clusters=3, width=5), 'x')
    model, rng = module.build(hp, 2), np.random.default_rng(0)
    batch = {name: np.float32(rng.normal(size=(3, 8, 8, 1))) for name in encoders}
    variables = draw(model, batch)
    return model, variables, jax.jit(lambda inputs: model.apply(variables, inputs)), batch


def test_the_worked_mixture():
    """Centroids (1, 0), (0, 2), w (0.5, -1): softplus (0.974077, 0.313262), mixture (0.756659, 0.486681)."""
    found = jax.jit(smil.mixed)(np.float32([[.5, -1]]), np.float32([[1, 0], [0, 2]]))
    np.testing.assert_allclose(found, [[.756659, .486681]], rtol=1e-5)


def test_the_noise_of_an_evaluation_is_its_expectation():
    mu, drawn = np.float32([-3, 0, .7, 4]), np.random.default_rng(0).standard_normal((200_000, 1))
    expected = np.log1p(np.exp(mu + drawn)).mean(0)
    np.testing.assert_allclose(jax.jit(smil.expected_noise)(mu), expected, atol=5e-3)
    assert smil.WEIGHTS.sum() == pytest.approx(1) and smil.NODES @ smil.WEIGHTS == pytest.approx(0, abs=1e-6)


def test_a_missing_input_is_made_of_the_others_and_not_read(net):
    _, variables, apply, batch = net
    flags = {'mri': np.float32([1, 0, 0])}
    out = apply({**batch, 'present': flags})
    blind = apply({**batch, 'mri': np.where(flags['mri'].reshape(-1, 1, 1, 1) > 0, batch['mri'], np.float32('nan')),
                   'present': flags})
    for key in out:
        np.testing.assert_array_equal(out[key], blind[key])
    assert not np.asarray(out['feature_mri'])[1:].any()
    np.testing.assert_array_equal(out['present'], [[1, 1], [1, 0], [1, 0]])
    params, centroids = variables['params'], variables['centroids']['mri_centroids']
    known = np.concatenate([out['feature_ct'], out['feature_mri']], -1)
    scores = known @ params['weights_mri']['kernel'] + params['weights_mri']['bias']
    w = np.log1p(np.exp(scores))
    made = w @ centroids / w.sum(-1, keepdims=True)
    used = np.concatenate([out['feature_ct'], np.where([[1], [0], [0]], out['feature_mri'], made)], -1)
    expected = np.maximum(used @ params['fuse1']['kernel'] + params['fuse1']['bias'], 0)
    np.testing.assert_allclose(out['fused1'], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(out['logits'][0], apply(batch)['logits'][0])


def test_parameters_are_named_by_input_and_inputs_must_agree(net):
    model, variables, _, batch = net
    assert {*variables['params']} == {'ct', 'mri', 'weights_ct', 'weights_mri', 'fuse1', 'fuse2', 'noise1', 'noise2',
                                      'head'}
    assert {k: v.shape for k, v in variables['centroids'].items()} == {
        'ct_centroids': (3, 4), 'mri_centroids': (3, 4)}
    with pytest.raises(errors.ConfigError, match='model.encoders names ct, mri, but the network reads ct, mri, pet'):
        jax.eval_shape(model.init, jax.random.key(0), {**batch, 'pet': jnp.zeros((3, 8, 8, 1))})
    with pytest.raises(errors.ConfigError, match='smil.encoders holds 1 networks'):
        module, hp = config.options('models', dict(name='smil', encoders=dict(ct=grating.SMALL)), 'x')
        module.build(hp, 2)
