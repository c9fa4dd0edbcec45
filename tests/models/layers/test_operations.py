"""Convolution and pooling against XLA's own operations, on the CPU and on other platforms."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxkd import errors
from jaxkd.models.layers.operations import convolve, max_pool, on_tpu


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def reference(x, w, strides=1, groups=1):
    """The same convolution by XLA's own operation."""
    axes = x.ndim - 2
    layout = ('NHWC', 'HWIO', 'NHWC') if axes == 2 else ('NDHWC', 'DHWIO', 'NDHWC')
    strides = (strides,) * axes if isinstance(strides, int) else strides
    return lax.conv_general_dilated(x, w, strides, [(k // 2, k // 2) for k in w.shape[:-2]], dimension_numbers=layout,
                                    feature_group_count=groups)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def with_gradients(function, x, w, strides, groups):
    y, back = jax.vjp(lambda x, w: function(x, w, strides, groups), x, w)
    g = jnp.sin(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype)
    return y, *back(g)


def check(x, w, strides, groups, function=convolve):
    found, wanted = (with_gradients(f, x, w, strides, groups) for f in (function, reference))
    for a, b in zip(found, wanted):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=2e-6 * max(1, np.abs(b).max()))


CASES = dict(
    stem=((2, 3, 8, 7, 1), 3, 6, (1, 2, 2), 1),  # few columns
    folded=((2, 5, 7, 6, 4), 3, 5, 1, 1),
    folded_strided=((2, 6, 10, 11, 3), (3, 5, 3), 4, 2, 1),
    stem_of_seven=((1, 9, 16, 13, 1), 7, 3, 2, 1),
    small_places=((2, 3, 4, 4, 3), 3, 4, 1, 1),
    kernel_one=((2, 3, 5, 4, 3), 1, 4, 1, 1),
    kernel_one_strided=((2, 3, 5, 4, 3), 1, 4, (1, 2, 2), 1),
    depthwise=((2, 3, 6, 5, 8), 3, 8, 1, 8),
    depthwise_strided=((2, 5, 6, 7, 8), 3, 8, 2, 8),
    depthwise_mixed=((2, 4, 6, 7, 3), (3, 5, 1), 3, (1, 3, 2), 3),
    depthwise_of_one_place=((2, 1, 1, 1, 8), 3, 8, 2, 8),
    groups=((1, 3, 5, 5, 6), 3, 4, 2, 2),
    multiplied=((1, 3, 5, 5, 2), 3, 4, 1, 2),  # depthwise, two outputs for each channel
    flat=((2, 9, 8, 5), 3, 6, 2, 1),
    rows_of_the_input=((2, 5, 8, 5), 3, 6, 1, 1),  # few channels
    rows_of_the_output=((2, 8, 5, 18), 3, 4, 1, 1),
    rows_and_a_smaller_side=((1, 1, 9, 6), 3, 6, 1, 1),
    products=((2, 9, 6, 33), 3, 64, 1, 1),  # many channels of the output
    products_strided=((2, 9, 12, 3), (7, 5), 64, (2, 3), 1),
    flat_depthwise=((2, 9, 8, 6), 3, 6, 2, 6),
    flat_kernel_one=((2, 9, 8, 5), 1, 6, 2, 1),
)


@pytest.mark.parametrize('case', CASES)
def test_values_and_gradients_are_those_of_the_native_operation(case):
    shape, kernel, out, strides, groups = CASES[case]
    sizes = (kernel,) * (len(shape) - 2) if isinstance(kernel, int) else kernel
    check(normal(0, *shape), normal(1, *sizes, shape[-1] // groups, out), strides, groups)


@pytest.mark.parametrize('shape, sizes, out, strides', [
    ((2, 4, 6, 7, 3), (3, 3, 3), 5, (1, 1, 1)), ((1, 7, 6, 5, 2), (3, 1, 5), 4, (2, 1, 2)),
    ((2, 9, 4, 7, 1), (3, 3, 3), 4, (1, 2, 3))])  # the first, the last and the second axis are folded
def test_the_form_for_a_tpu_has_values_and_gradients_of_the_native_operation(shape, sizes, out, strides):
    x, w = normal(0, *shape), normal(1, *sizes, shape[-1], out)
    text = jax.jit(on_tpu, static_argnums=(2, 3)).lower(x, w, strides, 1).as_text()
    assert '[b, 0, 1, f]' in text and '[b, 0, 1, 2, f]' not in text  # one convolution in 2D
    check(x, w, strides, 1, on_tpu)


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_any_shape_stride_and_kernel(data):
    axes = data.draw(st.sampled_from([2, 3]))
    sides = data.draw(st.tuples(*[st.integers(1, 7)] * axes))
    sizes = data.draw(st.tuples(*[st.sampled_from([1, 3, 3, 5])] * axes))
    strides = data.draw(st.tuples(*[st.integers(1, 3)] * axes))
    channels, depthwise = data.draw(st.integers(1, 9)), data.draw(st.booleans())
    out, groups = (channels, channels) if depthwise else (data.draw(st.integers(1, 5)), 1)
    check(normal(0, 2, *sides, channels), normal(1, *sizes, channels // groups, out), strides, groups)


def test_eager_is_compiled():
    x, w = normal(0, 1, 2, 5, 5, 4), normal(1, 3, 3, 3, 1, 4)
    np.testing.assert_allclose(convolve(x, w, 2, 4), jax.jit(convolve, static_argnums=(2, 3))(x, w, 2, 4), atol=1e-6)


@pytest.mark.parametrize('groups', [1, 6])
def test_bfloat16_is_float32_rounded(groups):
    x, w = (jnp.asarray(a, jnp.bfloat16) for a in (normal(0, 2, 3, 6, 6, 6), normal(1, 3, 3, 3, 6 // groups, 6)))
    found = with_gradients(convolve, x, w, 2, groups)
    wanted = with_gradients(reference, x.astype(jnp.float32), w.astype(jnp.float32), 2, groups)
    for a, b in zip(found, wanted):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=1e-2 * np.abs(b).max())


@pytest.mark.parametrize('groups', [1, 8])
def test_other_platforms_keep_the_native_operation(groups):
    x, w = jnp.ones((1, 4, 8, 8, 8)), jnp.ones((3, 3, 3, 8 // groups, 8))
    step = jax.jit(jax.grad(lambda w, x: convolve(x, w, 2, groups).sum(), (0, 1)))
    text = {p: jax.export.export(step, platforms=[p])(w, x).mlir_module() for p in ('cpu', 'cuda', 'tpu')}
    for platform in 'cuda', 'tpu':  # two convolutions for two gradients, none of the slices of the CPU's form
        assert text[platform].count('stablehlo.convolution') == 2 and 'stablehlo.slice' not in text[platform]
    assert '[b, 0, 1, 2, f]' not in text['cpu']  # no 3D convolution there
    pool = jax.jit(jax.grad(lambda x: max_pool(x).sum()))
    assert 'select_and_scatter' in jax.export.export(pool, platforms=['cuda'])(x).mlir_module()
    assert 'select_and_scatter' not in jax.export.export(pool, platforms=['cpu'])(x).mlir_module()


@pytest.mark.parametrize('shape, stride, pad', [((2, 8, 8, 5, 3), 2, None), ((1, 3, 2, 4, 2), (1, 2, 3), None),
                                                ((2, 9, 7, 3), 2, None), ((2, 9, 8, 3), 2, 0)])
def test_max_pool_and_its_gradient(shape, stride, pad):
    x = np.round(normal(0, *shape))  # many ties: the first of equal values gets the gradient
    axes = len(shape) - 2
    strides = (stride,) * axes if isinstance(stride, int) else stride

    def native(x):
        pads = [(0, 0), *[(1, 1) if pad is None else (pad, pad)] * axes, (0, 0)]
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, *[3] * axes, 1), (1, *strides, 1), pads)

    @functools.partial(jax.jit, static_argnums=0)
    def both(f, x):
        y, back = jax.vjp(f, x)
        return y, *back(jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape))

    for a, b in zip(both(lambda x: max_pool(x, 3, stride, pad), x), both(native, x)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('x, w, groups, says', [((1, 4, 4, 2), (3, 3, 3, 2, 2), 1, 'neither 2D nor 3D'),
                                                ((1, 4, 2), (3, 2, 2), 1, 'neither 2D nor 3D'),
                                                ((1, 4, 4, 4), (3, 3, 3, 4), 1, 'multiples of the groups'),
                                                ((1, 4, 4, 4), (3, 3, 2, 3), 2, 'multiples of the groups')])
def test_what_does_not_fit(x, w, groups, says):
    with pytest.raises(errors.ConfigError, match=says):
        convolve(jnp.zeros(x), jnp.zeros(w), 1, groups)


@pytest.mark.parametrize('x, w, forms', [
    ((1, 13, 13, 16), (3, 3, 16, 5), ('cpu',)), ((1, 13, 13, 13, 2), (3, 3, 3, 2, 5), ('cpu', 'tpu')),
    ((1, 13, 13, 13, 64), (3, 3, 3, 64, 5), ('cpu',)), ((1, 13, 13, 13, 2), (1, 1, 1, 2, 5), ('cpu',))])
def test_the_form_of_a_tpu_is_traced_where_it_is_not_the_native_one(x, w, forms, monkeypatch):
    traced, choose = [], lax.platform_dependent
    monkeypatch.setattr(lax, 'platform_dependent',
                        lambda *a, **functions: traced.append({*functions}) or choose(*a, **functions))
    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x, w))
    jax.eval_shape(jax.grad(lambda x, w: convolve(x, w).sum(), (0, 1)), x, w)
    assert traced == [{*forms, 'default'}] * 2  # forward and backward
