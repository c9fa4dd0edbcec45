"""The encoder-decoder of SIKD (2D, batch norm) and the one of CPMN (3D, residual, instance norm): one definition."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from ml_collections import ConfigDict, FrozenConfigDict

from jaxkd import config, errors, optim
from jaxkd.data.volume import FIXED
from jaxkd.models import unet
from jaxkd.models.layers.convolution import Style
from jaxkd.models.layers.operations import max_pool
from jaxkd.networks import Network
from jaxkd.runtime import trees
from tests.fixtures.variables import draw

RESIDUAL = dict(dims=3, block='residual', down='stride', up='transpose', norm='instance', activation='leaky',
                bias=False, classify=1)
LARGE = dict(RESIDUAL, channels=(32, 64, 128, 256, 320, 320), blocks=(1, 2, 2, 2, 2, 2),
             strides=(2, 2, 2, 2, (1, 2, 2)), deep=3)
SMALL = dict(RESIDUAL, channels=(8, 16, 32), blocks=(1, 2, 2), deep=1)
TINY = dict(channels=(4, 8))  # 2D, batch norm
SHAPE = (2, 8, 12, 1)


def build(outputs=4, dtype=jnp.float32, **given):
    return unet.build(ConfigDict(config.merge(unet.DEFAULTS, given, 'model')), outputs, dtype)


def key(seed):
    return jax.random.key(seed, impl='rbg')  # compiles in a third of the time


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@functools.cache
def shapes(model, *shape):
    """-> shapes of the variables by path, shapes of the outputs; without computing anything."""
    run = functools.partial(model.init_with_output, jax.random.key(0))
    out, variables = jax.eval_shape(run, {'image': jax.ShapeDtypeStruct(shape, jnp.float32)})
    return ({trees.leaf_name(path): a.shape for path, a in jax.tree_util.tree_leaves_with_path(variables)},
            {k: v.shape for k, v in out.items()})


def count(model, *shape):
    return sum(int(np.prod(s)) for name, s in shapes(model, *shape)[0].items() if name.startswith('params'))


@functools.partial(jax.jit, static_argnums=0, static_argnames='train')
def apply(model, variables, inputs, train=False):
    """-> outputs, new variables. Compiled: faster than one operation after the other."""
    rngs, mutable = ({'dropout': key(0)}, ['batch_stats']) if train else (None, [])
    return model.apply(variables, inputs, train=train, rngs=rngs, mutable=mutable)


upsample = jax.jit(unet.upsample, static_argnums=1)


@pytest.fixture(scope='module')
def tiny():
    model = build(**TINY)
    return model, draw(model, {'image': normal(0, *SHAPE)})


@pytest.fixture(scope='module')
def small():
    model = build(2, **{**SMALL, 'channels': (4, 8, 8), 'blocks': (1,), 'dims': 2})  # compiles in a third of the time
    return model, draw(model, {'image': normal(0, *SHAPE)})


def test_published_numbers_of_trained_values():
    assert count(build(), 2, 256, 256, 1) == 34_526_084
    assert count(build(skips=False), 2, 256, 256, 1) == 31_392_644


def test_trained_values_of_the_residual_network_counted_by_hand():
    def conv(a, b, places=27):
        return places * a * b + 2 * b  # with its norm

    def block(a, b, changes=True):
        return conv(a, b) + conv(b, b) + (conv(a, b, 1) if changes else 0)

    encoder = block(1, 8) + block(8, 16) + block(16, 16, False) + block(16, 32) + block(32, 32, False)
    decoder = 8 * 32 * 16 + block(32, 16) + 8 * 16 * 8 + block(16, 8)
    heads = (16 * 2 + 2) + (8 * 2 + 2) + (32 + 1)
    assert count(build(2, **SMALL), 1, 16, 32, 32, 1) == encoder + decoder + heads
    assert 150_000 < encoder + decoder < 200_000


@pytest.mark.parametrize('skips', [True, False])
def test_shapes_of_all_outputs_in_2d(skips):
    _, found = shapes(build(skips=skips), 2, 256, 256, 1)
    levels = [(256 >> i, 256 >> i, 64 << i) for i in range(5)]
    wanted = {f'enc{i}': s for i, s in enumerate(levels)} | {f'dec{i}': s for i, s in enumerate(levels[:4])}
    assert found == {k: (2, *s) for k, s in (wanted | dict(feature=levels[0], logits=(256, 256, 4))).items()}


def test_shapes_of_all_outputs_in_3d():
    _, found = shapes(build(2, **LARGE), 2, 64, 128, 128, 1)
    levels = [(64, 128, 128, 32), (32, 64, 64, 64), (16, 32, 32, 128), (8, 16, 16, 256), (4, 8, 8, 320), (4, 4, 4, 320)]
    wanted = {f'enc{i}': s for i, s in enumerate(levels)} | {f'dec{i}': s for i, s in enumerate(levels[:5])}
    wanted |= dict(feature=levels[0], logits=(64, 128, 128, 2), logits1=(32, 64, 64, 2), logits2=(16, 32, 32, 2),
                   logits3=(8, 16, 16, 2), class_logits=(1,), pooled=(320,), features=levels[5])
    assert found == {k: (2, *s) for k, s in wanted.items()}
    without = shapes(build(0, **{**LARGE, 'classify': 0}), 2, 64, 128, 128, 1)[1]
    assert not {k for k in without if 'logits' in k} and 'features' not in without


@pytest.mark.parametrize('block', ['double', 'residual'])
@pytest.mark.parametrize('down', ['pool', 'stride'])
@pytest.mark.parametrize('up', ['linear', 'transpose'])
def test_all_choices_halve_and_double_in_both_dimensions(block, down, up):
    for dims, stride, norm in ((2, (1, 2), 'batch'), (3, (1, 2, 2), 'instance')):
        model = build(3, dims=dims, channels=(4, 8, 8), strides=(2, stride), block=block, down=down, up=up, norm=norm)
        names, out = shapes(model, 1, *(8, 16, 24)[-dims:], 2)
        assert out['enc2'] == {2: (1, 8, 6, 8), 3: (1, 4, 4, 6, 8)}[dims]
        assert out['logits'] == (1, *(8, 16, 24)[-dims:], 3)
        assert any(n.startswith('batch_stats') for n in names) == (norm == 'batch')


def test_names_keep_norms_and_biases_out_of_weight_decay():
    for name, shape in shapes(build(norm='group', classify=2, channels=(8, 16)), 1, 16, 16, 1)[0].items():
        spared = optim._match({name: 0}, optim.DEFAULTS['no_decay'], True)[name]
        assert spared == (len(shape) == 1) and name.rpartition('/')[2] in ('kernel', 'scale', 'bias')


def test_initial_values_are_those_of_the_published_code():
    model = build(channels=(32, 64))
    params = jax.jit(model.init)(key(1), {'image': normal(0, 1, 8, 8, 1)})['params']
    for path, a in jax.tree_util.tree_leaves_with_path(params):
        name = trees.leaf_name(path)
        if name.endswith('kernel') and a.size > 2000:  # fan-in: places times input channels
            np.testing.assert_allclose(np.std(a), np.sqrt(2 / np.prod(a.shape[:-1])), rtol=0.1, err_msg=name)
        if name.endswith('bias'):
            np.testing.assert_array_equal(a, 0)
    scales = np.concatenate([a for p, a in jax.tree_util.tree_leaves_with_path(params)
                             if trees.leaf_name(p).endswith('scale')])
    np.testing.assert_allclose([scales.mean(), scales.std()], [1, 0.02], atol=0.005)


@pytest.mark.parametrize('skips', [True, False])
def test_without_skips_everything_passes_the_bottleneck(skips):
    model = build(**TINY, skips=skips)
    variables = draw(model, {'image': normal(0, *SHAPE)})
    assert variables['params']['dec0_0']['unit1']['conv']['kernel'].shape[2] == (8 if skips else 4)
    norm = dict(scale=np.zeros(8, np.float32), bias=np.ones(8, np.float32))
    variables['params']['enc1_0']['unit2']['norm'] = norm  # says nothing
    a, b = (apply(model, variables, {'image': normal(seed, *SHAPE)})[0] for seed in (1, 2))
    assert np.abs(a['enc0'] - b['enc0']).max() > 0.1
    np.testing.assert_array_equal(a['enc1'], 1)
    assert (np.abs(a['logits'] - b['logits']).max() > 1e-3) == skips


def test_receptive_field_without_skips():
    """Row 32 moves rows 30..34 of enc0, 13..19 of enc1, hence 25..40 after the interpolation and 22..43 of the
    logits.
    """
    model = build(1, channels=(4, 8), skips=False)
    x = normal(1, 1, 64, 64, 1)
    variables = draw(model, {'image': x})
    other = x.copy()
    other[0, 32, 32] += 5
    a, b = (apply(model, variables, {'image': i})[0] for i in (x, other))
    for name, low, high in (('enc0', 30, 34), ('enc1', 13, 19), ('logits', 22, 43)):
        rows = np.flatnonzero(np.abs(a[name] - b[name])[0].max((1, 2)) > 1e-6)
        assert low <= rows.min() <= low + 2 and high - 2 <= rows.max() <= high, name


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([((1, 5), (3, 2)), ((4, 3), (1, 3)), ((5, 1, 2), (2, 1, 3)), ((2, 3, 4), (3, 2, 2))]),
       st.integers(0, 9))
def test_upsampling_is_linear_interpolation_with_half_pixel_centres(sizes, seed):
    sides, strides = sizes
    axes, x = len(sides), normal(seed, 2, *sides, 3)
    wanted = x
    for axis, (n, s) in enumerate(zip(sides, strides), 1):
        places = np.clip((np.arange(n * s) + 0.5) / s - 0.5, 0, n - 1)
        low, part = np.floor(places).astype(int), (places % 1).reshape(-1, *[1] * (axes + 1 - axis))
        wanted = wanted.take(low, axis) * (1 - part) + wanted.take(np.minimum(low + 1, n - 1), axis) * part
    np.testing.assert_allclose(upsample(x, strides), wanted, atol=1e-5)


def test_upsampling_by_hand():
    x = jnp.float32([0, 4, 8]).reshape(1, 1, 3, 1)
    np.testing.assert_allclose(upsample(x, (1, 2))[0, 0, :, 0], [0, 1, 3, 5, 7, 8], atol=1e-6)
    assert jax.eval_shape(lambda: unet.upsample(x.astype(jnp.bfloat16), (2, 2))).dtype == jnp.bfloat16


@pytest.mark.parametrize('strides, bias', [((2, 2, 2), False), ((1, 2, 3), True), ((2, 2), True)])
def test_transposed_convolution_against_the_native_one(strides, bias):
    axes = len(strides)
    x = normal(0, 2, *range(3, 3 + axes), 5)
    module = unet.Transpose(4, strides, Style(standardise=False, bias=bias, fan='fan_in'))
    params = jax.jit(module.init)(key(0), x)['params']
    assert ('bias' in params) == bias
    kernel = params['conv']['kernel'].reshape(5, *strides, 4)
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / 5), rtol=0.3)  # each place of the output sees 5 values
    if bias:
        params['bias'] = jnp.arange(4.0)
    w = np.flip(np.moveaxis(kernel, 0, -2), range(axes))  # lax.conv with holes in x correlates
    layout = ('NHWC', 'HWIO', 'NHWC') if axes == 2 else ('NDHWC', 'DHWIO', 'NDHWC')
    wanted = lax.conv_general_dilated(x, w, (1,) * axes, [(s - 1, s - 1) for s in strides], lhs_dilation=strides,
                                      dimension_numbers=layout)
    np.testing.assert_allclose(jax.jit(module.apply)({'params': params}, x), wanted + params.get('bias', 0), atol=1e-5)


def test_pooling_with_a_window_of_two_covers_every_place_once():
    x = normal(0, 2, 4, 6, 8, 3)
    blocks = x.reshape(2, 2, 2, 3, 2, 8, 3)

    @jax.jit
    def pool(x):
        y, back = jax.vjp(lambda x: max_pool(x, (2, 2, 1), (2, 2, 1)), x)
        return y, *back(jnp.ones_like(y))

    y, gradient = pool(x)
    np.testing.assert_array_equal(y, blocks.max((2, 4)))
    np.testing.assert_array_equal(gradient, (blocks == blocks.max((2, 4), keepdims=True)).reshape(x.shape))


def test_batch_statistics_move_in_training_and_count_in_evaluation(tiny):
    _, variables = tiny
    network = Network(build(**TINY), ('image',))
    run = jax.jit(network.apply, static_argnames='train')
    x = {'image': normal(1, *SHAPE) * 3 + 1}
    trained, stats = run(variables, x, train=True, key=key(1))
    before, after = variables['batch_stats'], stats['batch_stats']
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert all(np.abs(a - b).max() > 0 for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after)))
    first = lax.conv_general_dilated(x['image'], variables['params']['enc0_0']['unit1']['conv']['kernel'], (1, 1),
                                     'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))  # bias is 0
    moved = after['enc0_0']['unit1']['norm']
    np.testing.assert_allclose(moved['mean'], 0.1 * np.mean(first, (0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved['var'], 0.9 + 0.1 * np.var(first, (0, 1, 2)), rtol=1e-4)
    evaluated, kept = run({**variables, **stats}, x)
    assert kept is not stats and jax.tree.all(jax.tree.map(np.array_equal, kept, stats))
    unmoved, _ = run(variables, x)
    assert np.abs(evaluated['logits'] - trained['logits']).max() > 1e-3
    assert np.abs(evaluated['logits'] - unmoved['logits']).max() > 1e-3


def test_without_batch_norm_a_case_does_not_depend_on_the_others(small):
    model, variables = small
    assert set(variables) == {'params'}
    x = normal(1, *SHAPE)
    a, b = (apply(model, variables, {'image': i}, train=True)[0] for i in (x, np.concatenate([x[:1], 9 * x[1:]])))
    np.testing.assert_allclose(a['logits'][0], b['logits'][0], atol=1e-5)


def test_class_activation_maps_in_3d():
    model = build(2, **{**SMALL, 'channels': (4, 8), 'blocks': (1,), 'deep': 0})
    x = {'nct': normal(1, 2, 4, 6, 8, 1)}
    variables = draw(model, x)
    out, _ = apply(model, variables, x)
    head = variables['params']['class_head']['linear']
    np.testing.assert_array_equal(out['features'], out['enc1'])
    np.testing.assert_allclose(out['pooled'], np.mean(out['features'], (1, 2, 3)), atol=1e-6)
    cam = out['features'] @ head['kernel'] + head['bias']
    np.testing.assert_allclose(out['class_logits'], np.mean(cam, (1, 2, 3)), atol=1e-6)
    np.testing.assert_array_equal(out['feature'], out['dec0'])


def test_class_logits_of_the_finest_level_are_of_its_largest_values():
    model = build(2, **{**SMALL, 'channels': (4, 8), 'blocks': (1,), 'deep': 0, 'classify_at': 'finest'})
    x = {'nct': normal(1, 2, 4, 6, 8, 1)}
    variables = draw(model, x)
    out, _ = apply(model, variables, x)
    head = variables['params']['class_head']['linear']
    np.testing.assert_array_equal(out['features'], out['dec0'])
    np.testing.assert_array_equal(out['pooled'], np.max(out['dec0'], (1, 2, 3)))
    np.testing.assert_allclose(out['class_logits'], out['pooled'] @ head['kernel'] + head['bias'], atol=1e-6)
    with pytest.raises(errors.ConfigError, match=r'classify_at = "middle"'):
        build(2, **{**SMALL, 'classify_at': 'middle'})


def test_deep_heads_are_linear_and_all_outputs_have_gradients(small):
    model, variables = small
    x = {'image': normal(1, *SHAPE)}
    out, _ = apply(model, variables, x, train=True)  # no norm but instance: as in evaluation
    for level, logits in (0, 'logits'), (1, 'logits1'):
        head = variables['params'][f'head{level}']
        np.testing.assert_allclose(out[logits], out[f'dec{level}'] @ head['kernel'][0, 0] + head['bias'], atol=1e-5)

    def loss(params):
        out = model.apply({'params': params}, x, train=True)
        return sum(jnp.sum(out[k] ** 2) for k in ('logits', 'logits1', 'class_logits'))

    for path, a in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(variables['params'])):
        assert np.isfinite(a).all() and np.abs(a).max() > 0, trees.leaf_name(path)


def test_compiled_is_eager(tiny):
    model, variables = tiny
    x = {'image': normal(1, *SHAPE)}
    np.testing.assert_allclose(apply(model, variables, x)[0]['logits'], model.apply(variables, x)['logits'], atol=1e-5)


@pytest.mark.parametrize('net', ['tiny', 'small'])
def test_bfloat16_is_close_and_logits_stay_float32(net, request):
    model, variables = request.getfixturevalue(net)
    x = {'image': normal(1, *SHAPE)}
    low, _ = apply(model.clone(style=model.style._replace(dtype=jnp.bfloat16)), variables, x, train=True)
    full, _ = apply(model, variables, x, train=True)
    for name, a in low.items():
        assert a.dtype == (jnp.float32 if 'logits' in name or name == 'pooled' else jnp.bfloat16), name
    for name in 'enc0', 'logits':
        assert np.corrcoef(np.ravel(low[name]).astype(np.float32), np.ravel(full[name]))[0, 1] > 0.99


@pytest.mark.slow
@pytest.mark.parametrize('net', ['tiny', 'small'])
def test_remat_changes_nothing(net, request):
    model, variables = request.getfixturevalue(net)
    x = {'image': normal(1, *SHAPE)}

    @functools.partial(jax.jit, static_argnums=0)
    def run(model):
        def loss(params):
            out, new = model.apply({**variables, 'params': params}, x, train=True, mutable=['batch_stats'])
            return jnp.mean(out['logits'] ** 2), new
        return jax.grad(loss, has_aux=True)(variables['params'])

    plain, again = run(model), run(model.clone(hp=FrozenConfigDict({**model.hp, 'remat': True})))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), plain, again)


@pytest.mark.slow
def test_gradients_in_3d_reach_every_parameter():
    model = build(2, **{**SMALL, 'channels': (4, 8, 16)})
    x = {'nct': normal(0, 2, 4, 8, 8, 1)}
    params = draw(model, x)['params']

    def loss(params):
        out = model.apply({'params': params}, x, train=True)
        return sum(jnp.sum(out[k] ** 2) for k in ('logits', 'logits1', 'class_logits'))

    for path, a in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert np.isfinite(a).all() and np.abs(a).max() > 0, trees.leaf_name(path)


def test_dropout_leaves_out_whole_channels_in_training_only(tiny):
    model, (_, variables) = build(**TINY, dropout=0.5), tiny
    x = {'image': normal(0, *SHAPE)}
    left = np.abs(apply(model, variables, x, train=True)[0]['enc1']).max((1, 2)) > 0
    assert 0 < left.sum() < left.size
    np.testing.assert_array_equal(apply(model, variables, x)[0]['logits'],
                                  apply(build(**TINY), variables, x)[0]['logits'])


def test_several_inputs_are_channels_and_absent_ones_zeros(tiny):
    x, other = (np.round(normal(s, *SHAPE) * 999).astype(np.int16) for s in (1, 2))
    model, _ = tiny
    variables = draw(model, {'a': x, 'b': other})
    stacked, _ = apply(model, variables, {'x': np.concatenate([x, other], -1).astype(np.float32) / FIXED})
    found, _ = apply(model, variables, {'b': other, 'a': x})
    np.testing.assert_allclose(found['logits'], stacked['logits'], atol=1e-6)
    flags = {'b': np.float32([0, 1])}
    a, _ = apply(model, variables, {'a': x, 'b': other, 'present': flags})
    b, _ = apply(model, variables, {'a': x, 'b': other * np.int16([0, 1]).reshape(2, 1, 1, 1)})
    np.testing.assert_array_equal(a['logits'], b['logits'])
    assert np.abs(a['logits'][0] - found['logits'][0]).max() > 1e-3


@pytest.mark.parametrize('given, says', [
    (dict(block='dubble'), 'Did you mean "double"'), (dict(down='max'), 'pool, stride'), (dict(up='cubic'), 'linear'),
    (dict(norm='btach'), 'Did you mean "batch"'), (dict(activation='gelu'), 'Did you mean "relu"'),
    (dict(dims=4), 'Known: 2, 3'),
    (dict(channels=(8,)), 'at least two'), (dict(channels=(8, 0)), 'positive'),
    (dict(blocks=(1, 2)), '2 entries: 5 channels need 5'),
    (dict(decoder_blocks=(1,) * 5), '5 entries: 5 channels need 4'),
    (dict(strides=(2, 2)), '2 entries: 5 channels need 4'), (dict(strides=((1, 2, 2),)), 'each of 2 axes'),
    (dict(strides=(0,)), 'positive number'), (dict(blocks=(0,)), 'must be positive'),
    (dict(deep=4), r'must lie in 0\.\.3'), (dict(classify=-1), '0 for none')])
def test_wrong_choices(given, says):
    with pytest.raises(errors.ConfigError, match=says):
        build(**given)


@pytest.mark.parametrize('given, shape, says', [
    (dict(), (1, 256, 250, 1), r'"image" has width 250 .* 16, does not divide.* to 240 or 256'),
    (dict(), (1, 8, 256, 1), 'height 8 .* to 16, or'),
    (SMALL, (1, 6, 32, 32, 1), 'depth 6 .* 4, does not divide.* to 4 or 8'),
    (SMALL, (1, 32, 32, 1), 'Set dims to 2'), (dict(dims=3), (1, 32, 32, 1), 'model.dims = 3'),
    (SMALL, (1, 4, 4, 4, 1), 'cannot be normalised')])
def test_inputs_that_do_not_fit(given, shape, says):
    with pytest.raises(errors.ConfigError, match=says):
        shapes(build(**given), *shape)
