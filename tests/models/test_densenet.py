"""DenseNet: the published shapes; that its numbers are torchvision's is tested with the weights
(tests/pretrained/test_torchvision.py).
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import config, errors
from jaxkd.models import densenet
from tests.fixtures.variables import draw

TINY = dict(blocks=(1, 2), growth=8, first=8)


def build(outputs=3, dtype=jnp.float32, **given):
    return densenet.build(ConfigDict(config.merge(densenet.DEFAULTS, given, 'model')), outputs, dtype)


def picture(seed, *shape):
    return np.random.default_rng(seed).random(shape, np.float32)


@pytest.fixture(scope='module')
def tiny():
    model = build(**TINY)
    return model, draw(model, {'image': picture(0, 1, 32, 32, 1)})


@functools.partial(jax.jit, static_argnums=0, static_argnames='train')
def apply(model, variables, x, train=False):
    return model.apply(variables, {'image': x}, train=train, mutable=['batch_stats'])


@pytest.mark.parametrize('blocks, count, last', [((6, 12, 24, 16), 7_978_856, 1024),
                                                 ((6, 12, 32, 32), 14_149_480, 1664)])
def test_shapes_and_parameters_of_the_published_networks(blocks, count, last):
    model = build(1000, blocks=blocks)
    x = {'image': jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)}
    out, variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), x)
    assert sum(a.size for a in jax.tree.leaves(variables['params'])) == count
    third = 256 + 32 * blocks[2]
    wanted = dict(block1=(2, 56, 56, 256), block2=(2, 28, 28, 512), block3=(2, 14, 14, third), block4=(2, 7, 7, last))
    assert {k: v.shape for k, v in out.items()} == wanted | {'pooled': (2, last), 'logits': (2, 1000)}


def test_a_block_keeps_its_input_in_front(tiny):
    model, variables = tiny
    block = densenet.Block(2, 8, model.style)
    x = picture(1, 2, 4, 4, 12)
    inside = draw(block, x, False)
    y = jax.jit(block.apply, static_argnums=2)(inside, x, False)
    assert y.shape == (2, 4, 4, 28)
    np.testing.assert_array_equal(y[..., :12], x)
    layer = jax.jit(densenet.Layer(8, model.style).apply, static_argnums=2)
    first = layer({k: v['layer00'] for k, v in inside.items()}, x, False)
    np.testing.assert_array_equal(y[..., 12:20], first)


def test_halving_is_the_mean_of_four_and_drops_an_odd_side():
    x = picture(2, 1, 5, 4, 6)
    layer = densenet.Halve(build(**TINY).style)
    variables = draw(layer, x, False)
    y = np.maximum(x / np.sqrt(1 + 1e-5), 0) @ variables['params']['conv']['kernel'][0, 0]
    wanted = y[:, :4].reshape(1, 2, 2, 2, 2, 3).mean((2, 4))
    np.testing.assert_allclose(jax.jit(layer.apply, static_argnums=2)(variables, x, False), wanted, atol=1e-6)


def test_pooled_is_the_mean_of_the_last_block(tiny):
    model, variables = tiny
    out, stats = apply(model, variables, picture(3, 2, 29, 40, 1))
    assert out['block2'].min() == 0
    np.testing.assert_allclose(out['pooled'], np.mean(out['block2'], (1, 2)), atol=1e-6)
    head = variables['params']['head']['linear']
    np.testing.assert_allclose(out['logits'], out['pooled'] @ head['kernel'] + head['bias'], atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, stats['batch_stats'], variables['batch_stats'])


def test_remat_changes_nothing_in_training(tiny):
    model, variables = tiny
    x = picture(4, 2, 32, 32, 1)

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(model, variables):
        def loss(params):
            out, stats = model.apply({**variables, 'params': params}, {'image': x}, train=True, mutable=['batch_stats'])
            return jnp.sum(out['logits'] ** 2), stats
        return jax.grad(loss, has_aux=True)(variables['params'])

    plain, again = gradient(model, variables), gradient(build(remat=True, **TINY), variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * (1e-2 + np.abs(a).max())), plain, again)
    assert all(np.abs(a - b).max() > 0 for a, b in zip(*map(jax.tree.leaves,
                                                            (plain[1]['batch_stats'], variables['batch_stats']))))


def test_group_norm_has_no_statistics_and_sees_one_case_at_a_time():
    model = build(norm='group', **TINY)
    x = picture(5, 2, 32, 32, 1)
    variables = draw(model, {'image': x})
    assert set(variables) == {'params'}
    both, one = (apply(model, variables, a, train=True)[0]['logits'] for a in (x, x[:1]))
    np.testing.assert_allclose(both[:1], one, atol=1e-5)


@pytest.mark.parametrize('given, says', [(dict(norm='batsh'), 'Did you mean "batch"'),
                                         (dict(blocks=()), 'model.blocks'),
                                         (dict(growth=0), 'model.growth'), (dict(dropout=-0.1), 'model.dropout'),
                                         (dict(mean=(0.1,)), 'model.mean')])
def test_wrong_choices(given, says):
    with pytest.raises(errors.ConfigError, match=says):
        build(**given)


def test_an_image_that_is_too_small():
    for side, fits in ((28, False), (29, True)):
        x = {'image': jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)}
        model = build(blocks=(1, 1, 1, 1))
        if fits:
            jax.eval_shape(model.init, jax.random.key(0), x)
        else:
            with pytest.raises(errors.ConfigError, match='28 x 28 pixels, too few for 4 blocks'):
                jax.eval_shape(model.init, jax.random.key(0), x)
