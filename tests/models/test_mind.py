"""MIND's student: a head for each input, and one for all together where a case has all."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import config
from jaxkd.networks import Network
from jaxkd.training import modalities
from tests.fixtures import grating
from tests.fixtures.variables import draw

PRESENT = {'ct': np.float32([1, 1, 0]), 'mri': np.float32([1, 0, 1])}


@pytest.fixture(scope='module')
def net():
    """(module, its variables, a batch of three cases, outputs and gradients of heads where inputs are missing)."""
    module, hp = config.options('models', dict(name='mind', encoders={n: grating.SMALL for n in PRESENT}), 'x')
    model, rng = module.build(hp, 2), np.random.default_rng(0)
    batch = {name: np.float32(rng.normal(size=(3, 8, 8, 1))) for name in PRESENT}
    batch['ct'][2], batch['mri'][1] = np.nan, np.nan  # never read
    variables = draw(model, batch)

    @jax.jit
    def run(params):
        return jax.vjp(lambda p: model.apply({'params': p}, {**batch, 'present': PRESENT}), params)[0], jax.grad(
            lambda p: model.apply({'params': p}, {**batch, 'present': PRESENT})['logits_mri'][1].sum())(params)
    return model, variables, batch, run(variables['params'])


def test_the_head_in_charge_is_that_of_what_a_case_has(net):
    out = jax.tree.map(np.asarray, net[3][0])
    np.testing.assert_array_equal(out['logits'][0], out['logits_fused'][0])
    np.testing.assert_allclose(out['logits'][1], out['logits_ct'][1], rtol=1e-6)
    np.testing.assert_allclose(out['logits'][2], out['logits_mri'][2], rtol=1e-6)
    np.testing.assert_array_equal(out['present'], [[1, 1, 1], [1, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(out['heads'], np.stack([out[f'logits_{n}'] for n in ('ct', 'mri', 'fused')], 1))
    assert all(np.isfinite(x).all() for x in out.values())
    linear = net[1]['params']['head_ct']
    np.testing.assert_allclose(out['logits_ct'][0], out['pooled_ct'][0] @ linear['kernel'] + linear['bias'], rtol=1e-4,
                               atol=1e-6)
    assert out['pooled'].shape == (3, 8) and (out['pooled_ct'][2] == 0).all()


def test_a_head_learns_nothing_of_an_input_that_a_case_lacks(net):
    model, variables, _, (_, gradient) = net
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))
    assert {*variables['params']} == {'ct', 'mri', 'head', 'head_ct', 'head_mri'}
    batch = {name: jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32) for name in PRESENT}
    modalities.check('drop', Network(model, ('ct', 'mri')), batch)
    module, hp = config.options('models', dict(name='mind', encoders={n: grating.SMALL for n in PRESENT}), 'x')
    features = jax.eval_shape(lambda x: module.build(hp, 0).init_with_output(jax.random.key(0), x)[0], batch)
    assert {*features} == {'pooled', 'pooled_ct', 'pooled_mri'}
