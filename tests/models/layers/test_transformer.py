"""LayerNorm is flax's, with a gradient whose work grows with the depth of a network, not with its square."""
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from jaxkd.models.layers import transformer

FLAX = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False)


def example(shape=(3, 5, 16), mean=2.0):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(mean, 3, shape), jnp.float32)
    params = {'scale': jnp.asarray(rng.normal(1, 0.3, shape[-1:]), jnp.float32),
              'bias': jnp.asarray(rng.normal(0, 0.3, shape[-1:]), jnp.float32)}
    return x, params


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('shape', [(3, 5, 16), (4, 8)])
def test_values_are_those_of_flax(shape, dtype):
    x, params = example(shape)
    ours, theirs = transformer.LayerNorm(dtype=dtype), FLAX.clone(dtype=dtype)
    a = jax.jit(lambda x: ours.apply({'params': params}, x))(x.astype(dtype))
    b = jax.jit(lambda x: theirs.apply({'params': params}, x))(x.astype(dtype))
    assert a.dtype == b.dtype == dtype
    np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
    trees = [m.init(jax.random.key(0), x) for m in (ours, theirs)]
    assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])


@pytest.mark.parametrize('mean', [0.0, 300.0])  # a large mean is what the fast variance loses
def test_gradients_are_those_of_flax(mean):
    x, params = example(mean=mean)
    target = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)

    def gradients(module):
        return jax.jit(jax.grad(lambda p, x: jnp.sum(module.apply({'params': p}, x) * target), (0, 1)))(params, x)
    for a, b in zip(*(jax.tree.leaves(gradients(m)) for m in (transformer.LayerNorm(), FLAX))):
        np.testing.assert_allclose(a, b, rtol=2e-4 if mean else 2e-5, atol=2e-5)


def test_in_reverse_mode_the_gradient_is_that_of_differences():
    x, params = example((2, 6))
    jax.test_util.check_grads(lambda x, s, b: transformer.layer_norm(x, s, b, 1e-6),
                              (x, params['scale'], params['bias']), 1, ('rev',), atol=2e-2, rtol=2e-2)


def additions(depth):
    """Additions in the compiled backward pass of `depth` residual branches."""
    def loss(weights, x):
        for w in weights:
            x = x + jnp.tanh(transformer.layer_norm(x, w[0], w[1], 1e-6) @ w)
        return jnp.sum(x ** 2)
    weights = jax.ShapeDtypeStruct((16, 16), jnp.float32)
    program = jax.jit(jax.grad(loss)).lower([weights] * depth, jax.ShapeDtypeStruct((4, 8, 16), jnp.float32)).compile()
    return len(re.findall(r'= \S+ add\(', program.as_text()))


def test_work_grows_with_the_depth():
    counts = [additions(depth) for depth in (2, 4, 8)]
    assert counts[2] - counts[1] <= 2.1 * (counts[1] - counts[0])


@pytest.mark.parametrize('shape', [(5, 6), (2, 5, 6)])
def test_the_product_of_a_dense_layer_has_the_gradients_of_a_product(shape):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel, weights = (jax.random.normal(k, s) for k, s in zip(keys, (shape, (6, 4), (*shape[:-1], 4))))
    found, expected = (jax.value_and_grad(lambda x, w, f=f: jnp.sum(weights * f(x, w)), (0, 1))(x, kernel)
                       for f in (transformer.product, jnp.matmul))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
