"""The plain network of SimBA: shapes and parameters of the published one, and one block by hand."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import config, errors
from jaxkd.data.volume import FIXED
from jaxkd.models import cnn
from tests.fixtures.variables import draw

TINY = dict(dims=2, channels=(8, 16))


def build(outputs=2, dtype=jnp.float32, **given):
    return cnn.build(ConfigDict(config.merge(cnn.DEFAULTS, given, 'model')), outputs, dtype)


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@functools.partial(jax.jit, static_argnums=0, static_argnames='train')
def apply(model, variables, x, train=False, seed=0):
    """-> (outputs, new statistics)."""
    return model.apply(variables, {'mri': x}, train=train, rngs={'dropout': jax.random.key(seed)},
                       mutable=['batch_stats'])


def start(model, x):
    return draw(model, {'mri': x})


def test_shapes_and_parameters_of_the_published_network():
    model = build()
    x = {'mri': jax.ShapeDtypeStruct((2, 173, 211, 155, 1), jnp.float32)}
    out, variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), x)
    sides = [(87, 106, 78), (44, 53, 39), (22, 27, 20), (11, 14, 10), (6, 7, 5)]
    wanted = {f'block{i + 1}': (2, *s, 32 * 2 ** i) for i, s in enumerate(sides)}
    assert {k: v.shape for k, v in out.items()} == wanted | {'pooled': (2, 18_432), 'logits': (2, 2)}
    convolutions = 27 * (1 * 32 + 32 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + 3 * (32 + 64 + 128 + 256 + 512)
    count = sum(a.size for a in jax.tree.leaves(variables['params']))
    assert count == convolutions + 18_432 * 2 + 2 == 4_740_866
    assert sum(a.size for a in jax.tree.leaves(variables['batch_stats'])) == 2 * (32 + 64 + 128 + 256 + 512)


@pytest.mark.parametrize('dims', [2, 3])
def test_a_block_by_hand(dims):
    """Sides 5 and 4: the place beyond an odd side takes no part in a maximum or a mean."""
    model = build(dims=dims, channels=(3,), momentum=0.75)
    x = noise(1, 2, *(5, 4, 3)[:dims], 2)
    variables = start(model, x)
    conv = variables['params']['block1']['conv']
    layout = ('NHWC', 'HWIO', 'NHWC') if dims == 2 else ('NDHWC', 'DHWIO', 'NDHWC')
    y = np.asarray(jax.lax.conv_general_dilated(x, conv['kernel'], (1,) * dims, 'SAME', dimension_numbers=layout))
    places = tuple(range(dims + 1))
    mean, var = y.mean(places), y.var(places)

    def after(y):
        y = 1 / (1 + np.exp(-y))
        pooled = np.zeros((2, *(3, 2, 2)[:dims], 3), np.float32)
        for at in np.ndindex(pooled.shape[1:-1]):
            cell = y[(slice(None), *(slice(2 * i, 2 * i + 2) for i in at))]
            pooled[(slice(None), *at)] = cell.max(tuple(range(1, dims + 1)))
        means = np.zeros((2, *(2, 1, 1)[:dims], 3), np.float32)
        for at in np.ndindex(means.shape[1:-1]):
            means[(slice(None), *at)] = pooled[(slice(None),
                                                *(slice(2 * i, 2 * i + 2) for i in at))].mean(tuple(range(1, dims + 1)))
        return pooled, means.reshape(2, -1)

    out, stats = apply(model, variables, x, train=True)
    block, pooled = after((y - mean) / np.sqrt(var + 1e-3))
    np.testing.assert_allclose(out['block1'], block, atol=1e-5)
    np.testing.assert_allclose(out['pooled'], pooled, atol=1e-5)
    running = stats['batch_stats']['block1']['norm']
    np.testing.assert_allclose(running['mean'], 0.25 * mean, atol=1e-6)
    np.testing.assert_allclose(running['var'], 0.75 + 0.25 * var, atol=1e-6)
    out, stats = apply(model, variables, x)  # running statistics: mean 0, variance 1
    np.testing.assert_allclose(out['block1'], after(y / np.sqrt(1.001))[0], atol=1e-5)
    head = variables['params']['head']['linear']
    np.testing.assert_allclose(out['logits'], out['pooled'] @ head['kernel'] + head['bias'], atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, stats['batch_stats'], variables['batch_stats'])


def test_initial_weights_are_glorot_uniform():
    model = build(dims=2, channels=(32, 64))
    params = jax.jit(model.init)(jax.random.key(0, impl='rbg'), {'mri': noise(0, 1, 16, 16, 1)})['params']
    for leaf, fans in ((params['block2']['conv']['kernel'], 9 * (32 + 64)),
                       (params['head']['linear']['kernel'], 4 * 64 + 2)):
        limit = np.sqrt(6 / fans)
        assert 0.97 * limit < np.abs(leaf).max() <= limit and abs(float(leaf.std()) * np.sqrt(3) / limit - 1) < 0.1
    assert all((params[f'block{i}']['norm']['scale'] == 1).all() for i in (1, 2))


def test_the_mean_as_a_head_takes_any_size():
    model = build(head='gap', **TINY)
    variables = start(model, noise(0, 1, 16, 16, 1))
    out, _ = apply(model, variables, noise(1, 2, 13, 10, 1))
    assert out['pooled'].shape == (2, 16)
    np.testing.assert_allclose(out['pooled'], np.mean(out['block2'], (1, 2)), atol=1e-6)


def test_without_outputs_there_are_no_logits():
    assert 'logits' not in jax.eval_shape(lambda x: build(0, **TINY).init_with_output(jax.random.key(0), x)[0],
                                          {'mri': jnp.zeros((1, 8, 8, 1))})


def test_dropout_in_training_only():
    model, x = build(norm='layer', **TINY), noise(0, 2, 16, 16, 1)
    variables = start(model, x)
    logits = [[apply(model, variables, x, train=train, seed=seed)[0]['logits'] for seed in (1, 2)]
              for train in (False, True)]
    np.testing.assert_array_equal(*logits[0])
    assert np.abs(logits[1][0] - logits[1][1]).max() > 1e-3


@pytest.mark.parametrize('norm', ['batch', 'group'])
def test_remat_changes_nothing(norm):
    given, x = dict(TINY, dropout=0.0, norm=norm), noise(0, 2, 9, 8, 1)
    variables = start(build(**given), x)

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(model, variables):
        def loss(params):
            out, stats = model.apply({**variables, 'params': params}, {'mri': x}, train=True, mutable=['batch_stats'])
            return jnp.sum(out['logits'] ** 2), stats
        return jax.grad(loss, has_aux=True)(variables['params'])

    plain, again = gradient(build(**given), variables), gradient(build(remat=True, **given), variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, again)
    assert np.abs(plain[0]['block1']['conv']['kernel']).max() > 1e-4


def test_inputs_are_decoded_stacked_and_zero_where_absent():
    model = build(act='relu', **TINY)
    t1, t2 = noise(1, 2, 8, 8, 1), noise(2, 2, 8, 8, 1)
    variables = draw(model, {'t1': t1, 't2': t2})
    assert variables['params']['block1']['conv']['kernel'].shape == (3, 3, 2, 8)
    run = jax.jit(model.apply)
    absent = run(variables, {'t1': t1, 't2': np.full_like(t2, np.nan), 'present': {'t2': np.zeros(2)}})
    zero = run(variables, {'t1': t1, 't2': 0 * t2})
    np.testing.assert_array_equal(absent['logits'], zero['logits'])
    whole = np.round(t1 * FIXED).astype(np.int16)
    a, b = (run(variables, {'t1': t, 't2': t2})['logits'] for t in (whole, whole.astype(np.float32) / FIXED))
    np.testing.assert_array_equal(a, b)


def test_bfloat16_is_close():
    model, x = build(norm='layer', **TINY), noise(0, 2, 16, 16, 1)
    variables = start(model, x)
    low, full = apply(build(norm='layer', dtype=jnp.bfloat16, **TINY), variables, x)[0], apply(model, variables, x)[0]
    assert low['block2'].dtype == jnp.bfloat16 and low['logits'].dtype == low['pooled'].dtype == jnp.float32
    np.testing.assert_allclose(low['logits'], full['logits'], atol=0.05)


@pytest.mark.parametrize('given, says', [
    (dict(act='sigmoit'), 'Did you mean "sigmoid"'), (dict(norm='bach'), 'Did you mean "batch"'),
    (dict(head='max'), 'model.head'),
    (dict(dims=1), 'model.dims'), (dict(channels=()), 'model.channels'), (dict(momentum=1.0), 'model.momentum')])
def test_wrong_choices(given, says):
    with pytest.raises(errors.ConfigError, match=says):
        build(**given)
