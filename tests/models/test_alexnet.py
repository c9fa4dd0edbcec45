"""AlexNet: the published shapes; that its numbers are torchvision's is tested with the weights
(tests/pretrained/test_torchvision.py).
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import config, errors
from jaxkd.models import alexnet
from tests.fixtures.variables import draw

TINY = dict(width=0.125, hidden=32)


def build(outputs=3, dtype=jnp.float32, **given):
    return alexnet.build(ConfigDict(config.merge(alexnet.DEFAULTS, given, 'model')), outputs, dtype)


def picture(seed, *shape):
    return np.random.default_rng(seed).random(shape, np.float32)


@pytest.fixture(scope='module')
def tiny():
    model = build(**TINY)
    return model, draw(model, {'image': picture(0, 1, 64, 64, 1)})


@functools.partial(jax.jit, static_argnums=0, static_argnames='train')
def apply(model, variables, x, train=False, seed=0):
    return model.apply(variables, {'image': x}, train=train, rngs={'dropout': jax.random.key(seed)})


def test_shapes_and_parameters_of_the_published_network():
    model = build(1000)
    x = {'image': jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)}
    out, variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), x)
    assert sum(a.size for a in jax.tree.leaves(variables['params'])) == 61_100_840
    wanted = {f'conv{i}': (2, side, side, c) for i, (side, c) in enumerate(((55, 64), (27, 192), (13, 384), (13, 256),
                                                                            (13, 256)), 1)}
    assert {k: v.shape for k, v in out.items()} == wanted | {'pooled': (2, 4096), 'logits': (2, 1000)}


def test_images_of_another_size_and_a_rectangle(tiny):
    model, variables = tiny
    for shape in (2, 63, 63, 1), (2, 80, 130, 1):
        out = apply(model, variables, picture(1, *shape))
        assert out['pooled'].shape == (2, 32) and np.isfinite(out['logits']).all()
    with pytest.raises(errors.ConfigError, match='62 x 70 pixels'):
        apply(model, variables, picture(1, 1, 62, 70, 1))


def test_taps_are_after_the_activation_and_the_head_is_linear(tiny):
    model, variables = tiny
    out = apply(model, variables, picture(2, 2, 64, 64, 1))
    assert all(out[f'conv{i}'].min() == 0 and out[f'conv{i}'].max() > 0 for i in range(1, 6))
    head = variables['params']['head']['linear']
    np.testing.assert_allclose(out['logits'], out['pooled'] @ head['kernel'] + head['bias'], atol=1e-5)
    assert 'logits' not in jax.eval_shape(lambda x: build(0, **TINY).init_with_output(jax.random.key(0),
                                                                                      {'image': x})[0],
                                          jnp.zeros((1, 64, 64, 1)))


@pytest.mark.parametrize('side', [1, 3, 6, 7, 13])
def test_cells_are_means_over_places_that_may_overlap(side):
    x = picture(3, 2, side, 9, 4)
    wanted = np.zeros((2, 6, 6, 4))
    for i in range(6):
        for j in range(6):
            rows = slice(i * side // 6, -(-(i + 1) * side // 6))
            wanted[:, i, j] = x[:, rows, j * 9 // 6:-(-(j + 1) * 9 // 6)].mean((1, 2))
    np.testing.assert_allclose(alexnet.cells(jnp.asarray(x), 6), wanted, atol=1e-6)


def test_dropout_in_training_only(tiny):
    model, variables = tiny
    x = picture(4, 2, 64, 64, 1)
    again = [[apply(model, variables, x, train=train, seed=seed)['logits'] for seed in (1, 2)]
             for train in (False, True)]
    np.testing.assert_array_equal(*again[0])
    assert np.abs(again[1][0] - again[1][1]).max() > 1e-4


def test_gradients_reach_every_parameter(tiny):
    model, variables = tiny
    x = picture(5, 4, 64, 64, 1)
    found = jax.jit(jax.grad(lambda v: jnp.sum(model.apply(v, {'image': x})['logits'] ** 2)))(variables)
    assert all(np.isfinite(a).all() and np.abs(a).max() > 0 for a in jax.tree.leaves(found))


def test_bfloat16_is_close(tiny):
    model, variables = tiny
    x = picture(6, 2, 64, 64, 1)
    low, full = (apply(m, variables, x) for m in (build(dtype=jnp.bfloat16, **TINY), model))
    assert low['conv5'].dtype == jnp.bfloat16 and low['pooled'].dtype == low['logits'].dtype == jnp.float32
    np.testing.assert_allclose(low['pooled'], full['pooled'], atol=0.05 * float(full['pooled'].max()))


@pytest.mark.parametrize('given, says', [(dict(width=0.0), 'model.width'), (dict(dropout=1.0), 'model.dropout'),
                                         (dict(std=(0.5,)), 'model.mean')])
def test_wrong_choices(given, says):
    with pytest.raises(errors.ConfigError, match=says):
        build(**given)
