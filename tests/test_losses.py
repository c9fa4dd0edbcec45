"""Worked values were computed in float64; see the equations in jaxkd/losses.py."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxkd import errors, losses

ZS, ZT = jnp.array([[2.0, 0.5, -1.0], [0.0, 1.0, 0.5]]), jnp.array([[3.0, 0.0, -2.0], [-0.5, 2.0, 0.0]])
VS = jnp.array([[1, -1], [0.2, 0.3], [-0.5, 0.5], [0, 1]])
VT = jnp.array([[2, -2], [-0.5, 0.5], [-1.5, 1.5], [0.8, 0.2]])
DISTILL = [losses.bernoulli_kl, losses.kl]
PAIRS = [losses.cosine_distance, losses.squared_error]
logits = hnp.arrays(np.float32, (3, 4), elements=st.floats(-8, 8, width=32))


def close(a, b, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def test_one_label():
    zt, zs = jnp.array([[2.0]]), jnp.array([[0.5]])
    gap, bce = losses.bernoulli_kl(zt, zs, 2.0), losses.binary_cross_entropy(zs, jnp.ones((1, 1)))
    close(gap / 4, 0.060972, atol=1e-6)
    close(gap, 0.243887)
    close(bce, 0.474077)
    close(0.5 * gap + 0.5 * bce, 0.358982)
    close(jax.jit(jax.grad(lambda z: losses.bernoulli_kl(zt, z, 2.0).sum()))(zs), -0.337764)


@pytest.mark.parametrize('temperature, value', [(1.0, 0.104935), (2.0, 0.132505), (4.0, 0.142230)])
def test_three_labels(temperature, value):
    zt, zs = jnp.array([[2.0, -1.0, 0.0]]), jnp.array([[0.5, -0.5, 1.0]])
    close(losses.bernoulli_kl(zt, zs, temperature).mean(), value)


def test_masked_binary_cross_entropy():
    bce = losses.binary_cross_entropy(jnp.array([[1.2, -0.4, 0.3]]), jnp.array([[1.0, 0.0, 0.0]]))
    close(bce, [[0.2633, 0.5130, 0.8544]], atol=1e-4)
    weight = jnp.array([[1.0, 1.0, 0.0]])
    close((bce * weight).sum() / weight.sum(), 0.388149)


def test_cross_entropy():
    close(losses.cross_entropy(ZS, jnp.array([0, 1])).mean(), 0.460790)
    volume = jnp.tile(ZS[:, None, None], (1, 4, 5, 1))
    label = jnp.broadcast_to(jnp.array([0, 1])[:, None, None], (2, 4, 5))
    out = losses.cross_entropy(volume, label)
    assert out.shape == (2, 4, 5)
    close(out.mean(), 0.460790)


@pytest.mark.parametrize('temperature, value', [(1.0, 0.159268), (2.0, 0.279507), (4.0, 0.323024)])
def test_kl(temperature, value):
    assert losses.kl(ZT, ZS, temperature).shape == (2,)
    close(losses.kl(ZT, ZS, temperature).mean(), value)


def test_kl_in_its_published_use():
    soft, hard = losses.kl(ZT, ZS, 4.0).mean(), losses.cross_entropy(ZS, jnp.array([0, 1])).mean()
    close(0.1 * hard + 0.9 * soft, 0.336801)
    gradient = jax.jit(jax.grad(lambda z: losses.kl(ZT, z, 4.0).mean()))(ZS)
    close(gradient[0], [-0.211019, 0.099356, 0.111664], atol=1e-6)


@pytest.mark.parametrize('temperature, value', [(1.0, 0.042889), (2.0, 0.064441)])
def test_bernoulli_kl_mean(temperature, value):
    close(losses.bernoulli_kl(ZT, ZS, temperature).mean(), value)


@pytest.mark.parametrize('temperature, value', [(1.0, 0.160135), (4.0, 0.324929)])
def test_kl_of_voxels(temperature, value):
    out = losses.kl(VT.reshape(1, 2, 2, 2), VS.reshape(1, 2, 2, 2), temperature)
    assert out.shape == (1, 2, 2)
    close(out.mean(), value)


def test_cosine_distance_and_squared_error():
    a, b = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0]]), jnp.array([[1.0, 1.0], [0.0, 1.0], [0.0, -1.0]])
    close(losses.cosine_distance(a, b), [1 - 0.5 ** 0.5, 0.2, 2.0])
    # hint of a feature table: mean over all entries 0.4
    fs, ft = jnp.array([[1, 0], [0.6, 0.8], [0, 2]]), jnp.array([[1, 1], [0, 1], [-1, 2]])
    close(losses.squared_error(fs, ft).mean(), 0.4)
    close(losses.squared_error(fs.reshape(1, 3, 2), ft.reshape(1, 3, 2)), [0.4])


@functools.cache
def divergence(loss):
    """(teacher, student, temperature) -> loss, loss of equal logits, both gradients, probabilities; compiled once."""
    @jax.jit
    def measure(teacher, student, temperature):
        gradient = jax.grad(lambda z: loss(teacher, z, temperature).sum())
        probability = jax.nn.sigmoid if loss is losses.bernoulli_kl else jax.nn.softmax
        return (loss(teacher, student, temperature), loss(teacher, teacher, temperature), gradient(teacher),
                gradient(student), probability(teacher / temperature), probability(student / temperature))
    return measure


@settings(max_examples=25, deadline=None)
@given(logits, logits, st.floats(0.5, 8))
@pytest.mark.parametrize('loss', DISTILL)
def test_distillation_is_a_divergence(loss, teacher, student, temperature):
    value, at_teacher, gradient_at_teacher, gradient, p, q = divergence(loss)(teacher, student, temperature)
    assert (value >= -1e-5).all()
    close(at_teacher, 0)
    close(gradient_at_teacher, 0, atol=1e-5)
    close(gradient, temperature * (q - p), atol=1e-5)


@pytest.mark.parametrize('loss', DISTILL)
def test_teacher_gets_no_gradient(loss):
    assert not jax.jit(jax.grad(lambda t: loss(t, ZS, 2.0).sum()))(ZT).any()


@pytest.mark.parametrize('loss', PAIRS)
def test_pairs_are_symmetric_and_both_sides_learn(loss):
    close(loss(ZS, ZT), loss(ZT, ZS))
    ga, gb = jax.jit(jax.grad(lambda a, b: loss(a, b).sum(), (0, 1)))(ZS, ZT)
    assert ga.any() and gb.any()
    close(loss(ZS, ZS), 0)
    close(jax.jit(jax.grad(lambda a: loss(a, ZS).sum()))(ZS), 0)


def every_loss(a, b):
    """The losses of two logit tables, by name, each as a function of a."""
    return {
        'binary_cross_entropy': (lambda a: losses.binary_cross_entropy(a, jax.nn.sigmoid(b))),
        'cross_entropy': (lambda a: losses.cross_entropy(a, jnp.argmax(b, -1))),
        'bernoulli_kl': (lambda a: losses.bernoulli_kl(b, a, 2.0)),
        'kl': (lambda a: losses.kl(b, a, 2.0)),
        'cosine_distance': (lambda a: losses.cosine_distance(a, b)),
        'squared_error': (lambda a: losses.squared_error(a, b)),
    }


@pytest.mark.parametrize('name', every_loss(ZS, ZT))
def test_finite_at_extremes_and_zero(name):
    corners = jnp.array([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4], [0.0, 0.0], [1e-20, 0.0]])
    a, b = (x.reshape(-1, 2) for x in jnp.broadcast_arrays(corners[:, None], corners[None]))
    loss = every_loss(a, b)[name]
    value, gradient, half = jax.jit(lambda a: (loss(a), jax.grad(lambda a: loss(a).sum())(a),
                                               loss(a.astype(jnp.bfloat16))))(a)
    assert np.isfinite(value).all() and np.isfinite(gradient).all()
    assert half.dtype == value.dtype == jnp.float32


def test_saturated_values_are_exact():
    far = jnp.array([[1e4]])
    close(losses.bernoulli_kl(far, -far, 2.0), 2 * 1e4)  # T^2 (z/T) for p = 1, q = sigmoid(-z/T)
    close(losses.binary_cross_entropy(-far, jnp.ones((1, 1))), 1e4)
    close(losses.cosine_distance(jnp.zeros((1, 3)), jnp.ones((1, 3))), 1)


@functools.cache
def derivative(name):
    """(a, b, direction) -> loss, its sums 0.01 ahead and behind, its derivative along the direction; compiled once."""
    @jax.jit
    def measure(a, b, direction):
        loss = every_loss(a, b)[name]
        return (loss(a), loss(a + 1e-2 * direction).sum(), loss(a - 1e-2 * direction).sum(),
                jnp.sum(jax.grad(lambda a: loss(a).sum())(a) * direction))
    return measure


@settings(max_examples=10, deadline=None)
@given(logits, logits)
@pytest.mark.parametrize('name', every_loss(ZS, ZT))
def test_gradient_is_the_finite_difference_and_jit_equals_eager(name, a, b):
    a, b = a / 4 + np.float32(0.3), b / 4 - np.float32(0.2)
    a[:, 0] += 3.0  # away from zero vectors, where the cosine has a kink
    direction = np.linspace(-1.0, 1.0, a.size, dtype=np.float32).reshape(a.shape)
    value, above, below, slope = derivative(name)(a, b, direction)
    close(value, every_loss(jnp.asarray(a), jnp.asarray(b))[name](jnp.asarray(a)))
    close(slope, (above - below) / 2e-2, rtol=1e-2, atol=2e-3)


def test_shapes_that_would_broadcast_are_refused():
    for loss in (*DISTILL, *PAIRS, losses.binary_cross_entropy):
        with pytest.raises(errors.ConfigError, match='differ'):
            loss(ZS, ZT[:, :1])
    with pytest.raises(errors.ConfigError, match='do not fit'):
        losses.cross_entropy(ZS, jnp.zeros((2, 3), jnp.int32))
