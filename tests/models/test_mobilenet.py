"""MobileNet, and what it shares with every other convolutional classifier (jaxkd.models.layers.backbone)."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import config, errors, optim
from jaxkd.data.volume import FIXED
from jaxkd.models import mobilenet
from jaxkd.models.layers import backbone
from jaxkd.models.layers.convolution import Unit
from jaxkd.runtime import trees
from tests.fixtures.variables import draw

TINY = dict(version=1, dims=2, width=0.1, features=64)  # 2D compiles in a third of the time
LEVELS = (((64, 1, 2),), ((512, 2, 2),), ((1024, 1, 1),))  # of V1, shortened
SHAPE = (3, 64, 64, 1)


def build(outputs=3, dtype=jnp.float32, **given):
    return mobilenet.build(ConfigDict(config.merge(mobilenet.DEFAULTS, given, 'model')), outputs, dtype)


def key(seed):
    return jax.random.key(seed, impl='rbg')  # compiles in a third of the time


def volume(seed, *shape):
    return np.random.default_rng(seed).integers(-2 * FIXED, 2 * FIXED, shape or SHAPE).astype(np.int16)


@functools.partial(jax.jit, static_argnums=0, static_argnames='train')
def apply(model, params, inputs, train=False, rngs=None):
    """model.apply, compiled: faster than one operation after the other."""
    return model.apply(params, inputs, train=train, rngs=rngs)


@functools.partial(jax.jit, static_argnums=0)
def gradient(model, params, inputs):
    return jax.grad(lambda p: jnp.sum(model.apply(p, inputs)['logits'] ** 2))(params)


@functools.cache
def shapes(model, shape):
    """-> shapes of the parameters by path, shapes of the outputs; without computing anything."""
    run = functools.partial(model.init_with_output, jax.random.key(0))
    out, variables = jax.eval_shape(run, {'ct': jax.ShapeDtypeStruct(shape, jnp.int16)})
    return ({trees.leaf_name(path): a.shape for path, a in jax.tree_util.tree_leaves_with_path(variables['params'])},
            {k: v.shape for k, v in out.items()})


def count(model, shape, under=''):
    return sum(int(np.prod(s)) for name, s in shapes(model, shape)[0].items() if name.startswith(under))


class Trunk(nn.Module):
    """A trunk of a few convolutions, quick to compile: what is tested with it belongs to the shell."""

    levels: int

    @nn.compact
    def __call__(self, x):
        levels = []
        for i in range(self.levels):
            x = Unit(8, 3, 1 + i % 2, name=f'unit{i}')(x)
            levels.append(x)
        return levels


def shell(outputs=3, levels=5, **given):
    hp = ConfigDict(config.merge(backbone.DEFAULTS, {'dims': 2, 'features': 32, **given}, 'model'))
    return backbone.build(hp, Trunk(levels), outputs, backbone.style(hp, jnp.float32))


@pytest.fixture(scope='module')
def small():
    model = shell()
    return model, draw(model, {'ct': volume(0)})


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(mobilenet, 'V1', LEVELS)  # compiles in a third of the time
    model = build(**TINY)
    return model, drawn(model)


@functools.cache
def drawn(model):
    return draw(model, {'ct': volume(0)})


def test_published_numbers_of_parameters():
    model = build(3)
    assert count(model, (2, 32, 224, 224, 1), 'head') == 771
    assert count(model, (2, 32, 224, 224, 1)) - 771 == 2_022_592
    assert count(build(600, features=1280), (1, 16, 112, 112, 3)) == 3_122_648
    # V1 by hand: stem; 27 places and c_in*c_out for each block, a norm after each convolution; projection
    widths = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    blocks = sum(29 * a + a * b + 2 * b for a, b in zip(widths, widths[1:]))
    assert count(build(3, version=1), (2, 32, 224, 224, 1)) - 771 == 27 * 32 + 64 + blocks + 1024 * 256 + 512


@pytest.mark.parametrize('given, levels', [
    (dict(), [(32, 112, 112, 16), (16, 56, 56, 24), (8, 28, 28, 32), (4, 14, 14, 96), (2, 7, 7, 320)]),
    (dict(version=1), [(16, 56, 56, 64), (8, 28, 28, 128), (4, 14, 14, 256), (2, 7, 7, 512), (2, 7, 7, 1024)]),
    (dict(depth_strides=(2, 1, 1, 1), width=0.5),
     [(32, 112, 112, 8), (16, 56, 56, 16), (16, 28, 28, 16), (16, 14, 14, 48), (16, 7, 7, 160)]),
    (dict(dims=2), [(112, 112, 16), (56, 56, 24), (28, 28, 32), (14, 14, 96), (7, 7, 320)])])
def test_shapes_of_all_outputs(given, levels):
    model = build(3, **given)
    shape = (2, 224, 224, 1) if 'dims' in given else (2, 32, 224, 224, 1)
    wanted = {f'level{i}': (2, *s) for i, s in enumerate(levels)}
    wanted |= {'features': (2, *levels[-1][:-1], 256), 'pooled': (2, 256), 'logits': (2, 3)}
    assert shapes(model, shape)[1] == wanted


def test_pooled_is_the_mean_of_features_and_the_head_is_linear(small):
    model, params = small
    out = apply(model, params, {'ct': volume(1)})
    np.testing.assert_allclose(out['pooled'], np.mean(out['features'], (1, 2)), atol=1e-6)
    head = params['params']['head']['linear']
    np.testing.assert_allclose(out['logits'], out['pooled'] @ head['kernel'] + head['bias'], atol=1e-5)


def test_without_a_projection_features_are_the_last_level(small):
    _, params = small
    out = apply(shell(0, features=0), {'params': {'trunk': params['params']['trunk']}}, {'ct': volume(1)})
    assert 'logits' not in out
    np.testing.assert_array_equal(out['features'], out['level4'])
    np.testing.assert_allclose(out['pooled'], np.mean(out['level4'], (1, 2)), atol=1e-6)


def test_names_keep_norms_and_biases_out_of_weight_decay():
    for name, shape in shapes(build(3, dims=2), (2, 224, 224, 1))[0].items():
        spared = optim._match({name: 0}, optim.DEFAULTS['no_decay'], True)[name]
        assert spared == (len(shape) == 1) and name.rpartition('/')[2] in ('kernel', 'scale', 'bias')


def test_fixed_point_and_float_inputs_are_equal(small):
    model, params = small
    x = volume(2)
    a, b = apply(model, params, {'ct': x}), apply(model, params, {'ct': x.astype(np.float32) / FIXED})
    np.testing.assert_array_equal(a['logits'], b['logits'])


def test_a_case_does_not_depend_on_the_others_of_its_batch(tiny):
    model, params = tiny
    x = volume(3)
    a, b = apply(model, params, {'ct': x}), apply(model, params, {'ct': np.concatenate([x[:1], 9 * volume(4)[1:]])})
    np.testing.assert_allclose(a['logits'][0], b['logits'][0], atol=1e-6)
    assert np.abs(a['logits'][1] - b['logits'][1]).max() > 1e-4


def test_several_volumes_are_read_by_one_encoder_and_averaged_where_present(small):
    model, params = small
    t1, t2 = volume(5), volume(6)
    present = {'t1': np.float32([1, 1, 0]), 't2': np.float32([1, 0, 0])}
    alone = [apply(model, params, {'ct': x}) for x in (t1, t2)]
    out = apply(model, params, {'t1': t1, 't2': t2, 'present': present})
    for name in 'pooled', 'features', 'level0', 'level4':
        wanted = [(alone[0][name][0] + alone[1][name][0]) / 2, alone[0][name][1], np.zeros_like(alone[0][name][2])]
        np.testing.assert_allclose(out[name], np.stack(wanted), atol=1e-5 * max(1, np.abs(wanted[0]).max()))
    np.testing.assert_array_equal(out['logits'][2], params['params']['head']['linear']['bias'])


@pytest.mark.parametrize('fuse, seen', [('mean', 1), ('channels', 2)])
def test_an_absent_volume_is_not_read(fuse, seen):
    model = shell(fuse=fuse, levels=2)
    x, other = volume(7).astype(np.float32) / FIXED, volume(8).astype(np.float32) / FIXED
    present = {'t2': np.float32([0, 1, 0])}
    params = draw(model, {'t1': x, 't2': other})
    assert params['params']['trunk']['unit0']['conv']['kernel'].shape[-2] == seen
    outs = []
    for fill in 0, 3.5, np.nan:
        t2 = np.where(present['t2'].reshape(-1, 1, 1, 1) > 0, other, np.float32(fill))
        outs.append(apply(model, params, {'t1': x, 't2': t2, 'present': present}))
    for out in outs[1:]:
        jax.tree.map(np.testing.assert_array_equal, out, outs[0])
    without = apply(model, params, {'t1': x, 't2': other})
    np.testing.assert_allclose(without['logits'][1], outs[0]['logits'][1], atol=1e-5)
    assert np.abs(without['logits'][0] - outs[0]['logits'][0]).max() > 1e-4


def test_order_and_names_of_the_volumes_do_not_matter_for_the_mean(small):
    model, params = small
    a, b = volume(9), volume(10)
    outs = [apply(model, params, inputs) for inputs in ({'t1': a, 't2': b}, {'t2': b, 't1': a}, {'t1': b, 't2': a})]
    np.testing.assert_array_equal(outs[0]['logits'], outs[1]['logits'])
    np.testing.assert_allclose(outs[0]['logits'], outs[2]['logits'], atol=1e-5)


def test_bfloat16_is_close_and_keeps_float32_outside(tiny):
    model, params = tiny
    low = apply(build(dtype=jnp.bfloat16, **TINY), params, {'ct': volume(1)})
    full = apply(model, params, {'ct': volume(1)})
    assert low['level0'].dtype == low['features'].dtype == jnp.bfloat16
    assert low['pooled'].dtype == low['logits'].dtype == jnp.float32
    for name, least in (('level0', 0.9999), ('level1', 0.999), ('pooled', 0.95)):  # each norm magnifies the rounding
        assert np.corrcoef(np.ravel(low[name]).astype(np.float32), np.ravel(full[name]))[0, 1] > least


def test_a_zero_input_has_a_finite_gradient(tiny):
    model, params = tiny
    found = gradient(model, params, {'ct': np.zeros(SHAPE, np.int16)})
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(found))


@pytest.mark.slow
def test_remat_changes_nothing(tiny):
    model, params = tiny
    plain, again = (gradient(m, params, {'ct': volume(1)}) for m in (model, build(**TINY, remat=True)))
    scale = max(np.abs(a).max() for a in jax.tree.leaves(plain))
    assert scale > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * scale), plain, again)


def test_compiled_is_eager():
    model, x = shell(levels=1, features=0), {'ct': volume(1)}
    params = draw(model, x)
    np.testing.assert_allclose(apply(model, params, x)['logits'], model.apply(params, x)['logits'], atol=1e-5)


def test_dropout_in_training_only(small):
    model, (_, params) = shell(dropout=0.5), small

    def run(seed, train):
        return apply(model, params, {'ct': volume(0)}, train=train, rngs={'dropout': key(seed)})['logits']

    assert np.abs(run(1, True) - run(2, True)).max() > 1e-5
    np.testing.assert_array_equal(run(1, False), run(2, False))


def test_blocks_of_version_two_add_their_input():
    model = mobilenet.Block(8, 1, 6, backbone.style(ConfigDict(mobilenet.DEFAULTS), jnp.float32))
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 5, 8), np.float32)
    params = draw(model, x)
    params['params']['reduce']['norm']['scale'] = jnp.zeros(8)
    np.testing.assert_array_equal(jax.jit(model.apply)(params, x), x)
    assert params['params']['expand']['conv']['kernel'].shape == (1, 1, 1, 8, 48)


@pytest.mark.parametrize('given, says', [
    (dict(version=3), 'Known: 1, 2'), (dict(norm='grup'), 'Did you mean "group"'), (dict(fuse='max'), 'model.fuse'),
    (dict(dims=4), 'model.dims'), (dict(depth_strides=(2, 2)), '4 positive numbers'), (dict(width=0.0), 'positive'),
    (dict(stem_stride=(2, 2)), 'three positive numbers')])
def test_wrong_choices(given, says):
    with pytest.raises(errors.ConfigError, match=says):
        build(3, **given)


@pytest.mark.parametrize('inputs, says', [
    ({}, 'no volume'), ({'ct': (1, 4, 8, 8, 1)}, 'Set dims to 3'),
    ({'t1': (1, 8, 8, 1), 't2': (1, 8, 9, 1)}, 'one shape'),
    ({'ct': (1, 8, 8, 1)}, 'groups of 1 cannot be normalised')])
def test_inputs_that_do_not_fit(inputs, says):
    inputs = {k: jnp.zeros(s) for k, s in inputs.items()}
    with pytest.raises(errors.ConfigError, match=says):
        jax.eval_shape(build(**TINY).init, jax.random.key(0), inputs)


@pytest.mark.parametrize('width, n, wanted', [(1.0, 24, 24), (0.5, 24, 16), (0.25, 32, 8), (0.25, 96, 24), (0.1, 16, 8),
                                              (1.4, 32, 48), (0.75, 16, 16)])
def test_channels_are_multiples_of_eight(width, n, wanted):
    assert backbone.channels(width, n) == wanted
