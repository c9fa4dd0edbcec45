import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.models import vit
from jaxkd.models.layers import transformer
from tests.fixtures.variables import draw

TINY = dict(size='tiny', width=32, patch=8, depth=2)
IMAGE = np.random.default_rng(1).uniform(size=(4, 32, 32, 1)).astype(np.float32)


def build(dtype=jnp.float32, outputs=2, **given):
    return vit.build(ConfigDict(dict(vit.DEFAULTS, **{**TINY, **given})), outputs, dtype)


def start(model, image=IMAGE):
    """Parameters with a spread of values: at the initial ones, biases and layer scales are all alike."""
    params = draw(model, {'image': image})
    rng = np.random.default_rng(9)
    return jax.tree.map(lambda a: a + 0.1 * rng.standard_normal(a.shape).astype(a.dtype), params)


def key(seed):
    return jax.random.key(seed, impl='rbg')  # compiles in a third of the time


@functools.partial(jax.jit, static_argnums=0, static_argnames=('train', 'capture'))
def apply(model, params, inputs, train=False, capture=(), offset=None, rngs=None):
    """model.apply, compiled: faster than one operation after the other."""
    return model.apply(params, inputs, train=train, capture=capture, offset=offset, rngs=rngs)


resize_positions = jax.jit(vit.resize_positions, static_argnums=(1, 2))


@pytest.fixture(scope='module')
def tiny():
    model = build()
    return model, start(model)


def test_shapes(tiny):
    model, params = tiny
    out = apply(model, params, {'image': IMAGE})
    shapes = {k: v.shape for k, v in out.items()}
    assert shapes == {'logits': (4, 2), 'pooled': (4, 32), 'tokens_out': (4, 17, 32),
                      'block00': (4, 17, 32), 'block01': (4, 17, 32)}
    np.testing.assert_allclose(out['pooled'], out['tokens_out'][:, 0], atol=1e-6)
    head = params['params']['head']['linear']
    np.testing.assert_allclose(out['logits'], out['pooled'] @ head['kernel'] + head['bias'], atol=1e-5)


def test_attention_rows_sum_to_one_and_leave_the_result_alone(tiny):
    model, params = tiny
    plain = apply(model, params, {'image': IMAGE})
    out = apply(model, params, {'image': IMAGE}, capture=('attention',))
    assert 'attention' not in plain and out['attention'].shape == (4, 2, 4, 17, 17)
    assert out['attention'].dtype == jnp.float32 and (out['attention'] >= 0).all()
    np.testing.assert_allclose(out['attention'].sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(out['logits'], plain['logits'])


def test_attention_is_before_dropout(tiny):
    model, (_, params) = build(attention_dropout=0.5), tiny
    out = apply(model, params, {'image': IMAGE}, train=True, capture=('attention',), rngs={'dropout': key(2)})
    np.testing.assert_allclose(out['attention'].sum(-1), 1, atol=1e-5)
    still = apply(model, params, {'image': IMAGE}, capture=('attention',))
    np.testing.assert_array_equal(out['attention'][:, 0], still['attention'][:, 0])
    assert np.abs(out['logits'] - still['logits']).max() > 1e-4


@pytest.mark.parametrize('knob', ['dropout', 'attention_dropout', 'drop_path'])
def test_dropout_follows_its_key_and_only_in_training(knob, tiny):
    model = build(**{knob: 0.5}, depth=2 if knob == 'drop_path' else 1)  # the first block is never dropped
    _, params = tiny  # those of a second block are not read

    def run(seed, train=True):
        return apply(model, params, {'image': IMAGE}, train=train, rngs={'dropout': key(seed)})['logits']

    np.testing.assert_array_equal(run(1), run(1))
    assert np.abs(run(1) - run(2)).max() > 1e-4
    np.testing.assert_array_equal(run(1, False), run(2, False))
    np.testing.assert_array_equal(run(1, False), apply(model, params, {'image': IMAGE})['logits'])


def test_stochastic_depth_drops_whole_branches_of_an_example(tiny):
    model = build(drop_path=0.999, depth=2)  # linear: block 0 is never dropped, block 1 nearly always
    _, params = tiny
    out = apply(model, params, {'image': IMAGE}, train=True, rngs={'dropout': key(0)})
    still = apply(model, params, {'image': IMAGE})
    np.testing.assert_array_equal(out['block00'], still['block00'])
    np.testing.assert_array_equal(out['block01'], out['block00'])


@pytest.mark.parametrize('dropout', [0.0, 0.3])
def test_remat_changes_neither_values_nor_gradients(dropout, tiny):
    def loss(model):
        def value(params):
            out = apply(model, params, {'image': IMAGE}, train=True, capture=('attention',),
                        rngs={'dropout': key(3)})
            return jnp.sum(out['logits'] ** 2) + jnp.sum(out['attention'] ** 2)
        return jax.jit(jax.value_and_grad(value))

    options = dict(dropout=dropout, attention_dropout=dropout, drop_path=dropout, depth=2 if dropout else 1)
    _, params = tiny
    plain, saved = loss(build(**options))(params), loss(build(remat=True, **options))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, saved)


def test_with_remat_products_of_dense_layers_may_be_kept(tiny):
    def gradients(**options):
        model = build(remat=True, depth=1, **options)
        return jax.jit(jax.grad(lambda p: jnp.sum(apply(model, p, {'image': IMAGE}, train=True)['logits'] ** 2)))
    _, params = tiny
    all_again, kept = gradients(), gradients(keep_products=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), all_again(params), kept(params))
    products = [f.lower(params).as_text().count('dot_general') for f in (all_again, kept)]
    assert products[0] - products[1] == 3  # qkv, proj and fc1 of the block; no gradient needs fc2


@pytest.mark.parametrize('dtype', [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.gpu)])
def test_fused_attention_changes_neither_values_nor_gradients(dtype, tiny):
    def loss(model):
        def value(params):
            out = apply(model, params, {'image': IMAGE}, train=True, rngs={'dropout': key(3)})
            return jnp.sum(out['logits'] ** 2)
        return jax.jit(jax.value_and_grad(value))
    _, params = tiny
    plain, fused = loss(build(dtype))(params), loss(build(dtype, fused=True))(params)
    tolerance = 1e-4 if dtype == jnp.float32 else 0.05
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), plain, fused)


def test_where_there_is_no_kernel_fused_attention_is_the_plain_program(tiny):
    _, params = tiny
    programs = [jax.jit(build(fused=fused).apply).lower(params, {'image': IMAGE}).as_text() for fused in (False, True)]
    assert programs[0] == programs[1], 'float32'


@pytest.mark.parametrize('fallback', [False, True])
def test_the_gradient_of_attention_is_that_of_its_products(fallback):
    q, k, v = (jax.random.normal(key(i), (2, 5, 3, 4)) for i in range(3))

    def plain(q, k, v):
        scores = jnp.einsum('bqhd,bkhd->bhqk', q, k) / 2
        return jnp.einsum('bhqk,bkhd->bqhd', jax.nn.softmax(scores), v)
    expected, pull = jax.vjp(plain, q, k, v)
    found, own = jax.vjp(transformer.fused_attention if fallback else transformer._by_products, q, k, v)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), own(v), pull(v))


def test_in_bfloat16_no_product_of_the_gradient_reads_a_float32_map():
    q = jnp.zeros((2, 5, 3, 4), jnp.bfloat16)
    gradient = jax.grad(lambda *a: jnp.sum(transformer._by_products(*a).astype(jnp.float32)), (0, 1, 2))
    products = [line for line in jax.jit(gradient).lower(q, q, q).as_text().splitlines() if 'dot_general' in line]
    assert len(products) == 5 and not any('xf32>, ' in line or 'xf32>) ->' in line for line in products)


def test_a_patch_is_embedded_as_by_a_convolution(tiny):
    model, params = tiny
    kernel, bias = (params['params']['patch'][k] for k in ('kernel', 'bias'))
    convolved = jax.lax.conv_general_dilated(IMAGE, kernel, (8, 8), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    embedding = vit.PatchEmbedding(32, 8, jnp.float32)
    found = embedding.apply({'params': params['params']['patch']}, IMAGE)
    np.testing.assert_allclose(found, (convolved + bias).reshape(4, 16, 32), atol=1e-5)
    program = jax.jit(model.apply).lower(params, {'image': IMAGE}).as_text()
    assert 'dot_general' in program and 'convolution' not in program


def test_bfloat16_computes_near_float32_with_float32_parameters(tiny):
    _, params = tiny
    half = build(jnp.bfloat16)
    own = jax.eval_shape(half.init, jax.random.key(0), {'image': IMAGE})
    assert {a.dtype for a in jax.tree.leaves(own)} == {jnp.dtype('float32')}
    low = apply(half, params, {'image': IMAGE}, capture=('attention',))
    high = apply(build(), params, {'image': IMAGE}, capture=('attention',))
    assert low['block00'].dtype == jnp.bfloat16
    assert {low[k].dtype for k in ('logits', 'pooled', 'attention')} == {jnp.dtype('float32')}
    np.testing.assert_allclose(low['attention'].sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(low['attention'], high['attention'], atol=0.02)
    np.testing.assert_allclose(low['logits'], high['logits'], atol=0.1)
    assert np.abs(high['logits']).max() > 0.3  # the tolerance above means something


def test_gradient_of_the_offset_is_that_of_the_last_attention(tiny):
    model, params = tiny

    @jax.jit
    @jax.value_and_grad
    def logit(offset):
        return model.apply(params, {'image': IMAGE}, offset=offset)['logits'][:, 0].sum()

    zero = np.zeros((4, 4, 17, 17), np.float32)
    plain = np.sum(apply(model, params, {'image': IMAGE})['logits'][:, 0])
    value, gradient = map(np.asarray, logit(zero))
    np.testing.assert_allclose(value, plain, atol=1e-5)
    direction = np.random.default_rng(4).standard_normal(zero.shape, np.float32) * (np.abs(gradient) > 0)
    step = np.float32(1e-2)
    numeric = (logit(step * direction)[0] - logit(-step * direction)[0]) / (2 * step)
    np.testing.assert_allclose(np.sum(gradient * direction), numeric, rtol=0.02)
    assert abs(numeric) > 1e-2
    assert not gradient[:, :, 1:].any()  # only the CLS row of the last block reaches the logits


@pytest.mark.parametrize('size, patch, grid', [(224, 16, 14), (384, 16, 24), (64, 8, 8)])
def test_grid(size, patch, grid):
    model, image = build(patch=patch), jax.ShapeDtypeStruct((2, size, size, 1), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), {'image': image})
    out = jax.eval_shape(lambda p, i: model.apply(p, {'image': i}, capture=('attention',)), params, image)
    assert params['params']['positions'].shape == (1 + grid ** 2, 32)
    assert out['attention'].shape == (2, 2, 4, 1 + grid ** 2, 1 + grid ** 2)


@pytest.mark.parametrize('size, count', [('Ti', 5_717_416), ('S', 22_050_664), ('B', 86_567_656), ('L', 304_326_632)])
def test_published_parameter_counts(size, count):
    model = vit.build(ConfigDict(dict(vit.DEFAULTS, size=size, channels=3)), 1000)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), {'image': image})
    assert sum(a.size for a in jax.tree.leaves(params)) == count


def test_grey_is_copied_to_channels_and_normalised():
    model = build(depth=1, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    params = start(model)
    grey = apply(model, params, {'image': IMAGE})
    colour = apply(model, params, {'image': np.tile(IMAGE, 3)})
    np.testing.assert_allclose(grey['logits'], colour['logits'], atol=1e-6)
    plain = build(depth=1, mean=(0.0,), std=(1.0,))
    params = start(plain)
    np.testing.assert_allclose(apply(build(depth=1), params, {'image': IMAGE})['logits'],
                               apply(plain, params, {'image': (IMAGE - 0.5) / 0.25})['logits'], atol=1e-5)


def test_registers_stand_between_cls_and_patches_and_layer_scale_shrinks_the_branches():
    model = build(registers=2, layer_scale=1e-5)
    params = jax.jit(model.init)(jax.random.key(0), {'image': IMAGE})  # initial layer scales are what is tested
    out = apply(model, params, {'image': IMAGE}, capture=('attention',))
    assert out['attention'].shape[-1] == 1 + 2 + 16
    assert params['params']['positions'].shape == (17, 32)
    registers = np.tile(params['params']['registers'], (4, 1, 1))
    np.testing.assert_allclose(out['block01'][:, 1:3], registers, atol=1e-3)
    assert params['params']['encoder']['block00']['attn_scale'].shape == (32,)


def test_headless():
    model = build(outputs=0)
    out, params = jax.eval_shape(functools.partial(model.init_with_output, jax.random.key(0)), {'image': IMAGE})
    assert 'head' not in params['params'] and 'logits' not in out


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([(1, 4), (3, 8), (7, 2), (5, 5)]), st.integers(0, 99))
def test_resize_positions(sides, seed):
    grid_from, grid_to = sides
    table = np.random.default_rng(seed).normal(size=(1 + grid_from ** 2, 3)).astype(np.float32)
    out = resize_positions(table, grid_from, grid_to)
    assert out.shape == (1 + grid_to ** 2, 3)
    np.testing.assert_array_equal(out[0], table[0])
    np.testing.assert_array_equal(resize_positions(table, grid_from, grid_from), table)
    table[1:] = table[1]
    np.testing.assert_allclose(resize_positions(table, grid_from, grid_to)[1:],
                               np.broadcast_to(table[1], (grid_to ** 2, 3)), atol=1e-5)


def test_resize_positions_keeps_row_and_column():
    rows, columns = np.mgrid[:14, :14] / 13.0
    table = np.concatenate([np.zeros((1, 2)), np.stack([rows, columns], -1).reshape(-1, 2)])
    grid = np.asarray(resize_positions(table, 14, 24))[1:].reshape(24, 24, 2)
    assert (np.diff(grid[:, 3, 0]) > 0).all() and (np.diff(grid[3, :, 1]) > 0).all()
    np.testing.assert_allclose(grid[:, 3, 0], grid[:, 20, 0], atol=1e-5)
    np.testing.assert_allclose(grid[12, 12], (12.5 * 14 / 24 - 0.5) / 13, atol=1e-5)  # half-pixel centres
    with pytest.raises(errors.ConfigError, match='nearest side is 14'):
        vit.resize_positions(jnp.asarray(table), 16, 24)


@pytest.mark.parametrize('given, shape, words', [
    (dict(), (1, 30, 30, 1), '30.*patches of 8'),
    (dict(), (1, 32, 40, 1), '32 x 40'),
    (dict(), (1, 32, 32, 3), '3 channels'),
    (dict(size='Tiny'), None, 'mean "tiny"'),
    (dict(width=66), None, 'heads 4'),
    (dict(mean=(0.1, 0.2)), None, 'mean has 2'),
    (dict(std=(0.0,)), None, 'positive'),
    (dict(eps=0.0), None, 'eps = 0.0 must be positive'),
])
def test_refusals(given, shape, words):
    with pytest.raises(errors.ConfigError, match=words):
        image = jax.ShapeDtypeStruct(shape, jnp.float32) if shape else IMAGE
        jax.eval_shape(build(**given).init, jax.random.key(0), {'image': image})
