"""Layers: standardised kernels, norms, initial weights, bias."""
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.models.layers import convolution
from jaxkd.models.layers.convolution import Conv, Norm, Style


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def key(seed):
    return jax.random.key(seed, impl='rbg')  # compiles in a third of the time


def test_standardised_kernels():
    w = normal(0, 3, 3, 3, 4, 5) * 7 + 2
    s = np.asarray(jax.jit(convolution.standardise)(w)).reshape(-1, 5)
    np.testing.assert_allclose(s.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(s.std(0), 1, atol=1e-5)
    grad = jax.jit(jax.grad(lambda w: jnp.sum(convolution.standardise(w) ** 3)))(jnp.ones((3, 3, 2, 4)))  # no variance
    assert np.isfinite(grad).all()


@pytest.mark.parametrize('kind, channels, groups', [('group', 32, 8), ('group', 12, 6), ('group', 11, 1),
                                                    ('layer', 6, 1),
                                                    ('instance', 20, 20)])
def test_norm_against_flax(kind, channels, groups):
    x = normal(0, 2, 3, 4, 5, channels) * 3 + 10
    params = {'scale': normal(1, channels), 'bias': normal(2, channels)}
    theirs = nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False)
    found, wanted = (jax.jit(m.apply)({'params': params}, x) for m in (Norm(Style(kind)), theirs))
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_initial_weights_are_kaiming_fan_out():
    for groups, out, inside in ((1, 64, 16), (64, 64, 64)):
        w = jax.jit(Conv(out, 3, groups=groups).init)(key(0), jnp.zeros((1, 1, 1, 1, inside)))['params']['kernel']
        assert w.shape == (3, 3, 3, inside // groups, out)
        np.testing.assert_allclose(np.std(w), np.sqrt(2 / (27 * out)), rtol=0.05)
    params = jax.eval_shape(Conv(4, 1, bias=True).init, key(0), jnp.zeros((1, 2, 2, 3)))['params']
    assert {k: v.shape for k, v in params.items()} == {'kernel': (1, 1, 3, 4), 'bias': (4,)}


def test_bias_is_added():
    x, kernel, bias = normal(0, 1, 3, 3, 2), normal(1, 1, 1, 2, 4), normal(2, 4)
    conv = Conv(4, 1, bias=True, style=Style(standardise=False))
    found = jax.jit(conv.apply)({'params': dict(kernel=kernel, bias=bias)}, x)
    np.testing.assert_allclose(found, x @ kernel[0, 0] + bias, atol=1e-6)


def test_largest_divisor():
    for n, most in itertools.product(range(1, 40), (1, 8)):
        found = convolution.largest_divisor(n, most)
        assert n % found == 0 and found <= most and not any(n % d == 0 for d in range(found + 1, most + 1))
