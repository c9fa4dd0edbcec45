"""Shared and specific encoders: what a case without an input is made of."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import config, errors
from jaxkd.networks import Network
from jaxkd.training import modalities
from tests.fixtures import grating
from tests.fixtures.variables import draw


@pytest.fixture(scope='module')
def net():
    """(module, its variables, the network as one program, a batch of three cases)."""
    module, hp = config.options('models', dict(name='shaspec', of=grating.SMALL), 'x')
    model, rng = module.build(hp, 3), np.random.default_rng(0)
    batch = {name: np.float32(rng.normal(size=(3, 8, 8, 1))) for name in ('ct', 'mri')}
    variables = draw(model, batch)
    return model, variables, jax.jit(lambda inputs: model.apply(variables, inputs)), batch


def test_an_input_that_a_case_lacks_is_not_read_and_its_shared_features_stand_in(net):
    model, variables, apply, batch = net
    flags = {'mri': np.float32([1, 0, 0])}
    out = apply({**batch, 'present': flags})
    hidden = np.where(flags['mri'].reshape(-1, 1, 1, 1) > 0, batch['mri'], np.float32('nan'))
    blind = apply({**batch, 'mri': hidden, 'present': flags})
    for key in out:
        np.testing.assert_array_equal(out[key], blind[key])
    width = out['shared'].shape[-1]
    assert out['logits'].shape == (3, 3) and out['shared'].shape == out['specific'].shape == (3, 2, width)
    assert out['domain'].shape == (3, 2, 2)
    np.testing.assert_array_equal(out['present'], [[1, 1], [1, 0], [1, 0]])
    weights = variables['params']['compose']
    both = np.concatenate([out['shared'][1, 0], out['specific'][1, 0]])
    composed = out['shared'][1, 0] + both @ weights['kernel'] + weights['bias']
    np.testing.assert_allclose(out['pooled'][1], (composed + out['shared'][1, 0]) / 2, rtol=1e-4, atol=1e-5)


def test_one_encoder_reads_all_inputs_and_each_has_its_own(net):
    model, variables, apply, batch = net
    assert {'shared', 'specific_0', 'specific_1', 'compose', 'domain', 'head'} == set(variables['params'])
    same = apply({'ct': batch['ct'], 'mri': batch['ct']})
    np.testing.assert_array_equal(same['shared'][:, 0], same['shared'][:, 1])
    assert (np.asarray(same['specific'][:, 0]) != np.asarray(same['specific'][:, 1])).any()


def test_it_can_do_without_an_input_and_names_a_wrong_number_of_them(net):
    model, _, _, batch = net
    modalities.check('drop', Network(model, ('ct', 'mri')), batch)
    with pytest.raises(errors.ConfigError, match='model.inputs = 2, but the network reads ct, mri, pet'):
        jax.eval_shape(model.init, jax.random.key(0), {**batch, 'pet': jnp.zeros((3, 8, 8, 1))})
