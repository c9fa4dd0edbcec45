import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.models import text

TINY = dict(vocab=50, length=24, width=32, depth=2)


def build(dtype=jnp.float32, outputs=3, **given):
    return text.build(ConfigDict(dict(text.DEFAULTS, **{**TINY, **given})), outputs, dtype)


def tokens(lengths, width, seed=0):
    rows = np.random.default_rng(seed).integers(3, 50, (len(lengths), width))
    rows[:, 0] = 1
    return np.where(np.arange(width) < np.array(lengths)[:, None], rows, 0).astype(np.int32)


def key(seed):
    return jax.random.key(seed, impl='rbg')  # compiles in a third of the time


@functools.partial(jax.jit, static_argnums=0, static_argnames=('train', 'capture'))
def apply(model, params, inputs, train=False, capture=(), rngs=None):
    """model.apply, compiled: faster than one operation after the other."""
    return model.apply(params, inputs, train=train, capture=capture, rngs=rngs)


@pytest.fixture(scope='module')
def tiny():
    model = build()
    return model, jax.jit(model.init)(jax.random.key(0), {'tokens': tokens([5], 24)})


def test_shapes_and_default_size(tiny):
    model, params = tiny
    out = apply(model, params, {'tokens': tokens([5, 24, 1], 24)}, capture=('attention',))
    assert {k: v.shape for k, v in out.items()} == {
        'logits': (3, 3), 'pooled': (3, 32), 'tokens_out': (3, 24, 32),
        'block00': (3, 24, 32), 'block01': (3, 24, 32), 'attention': (3, 2, 4, 24, 24)}
    full = text.build(ConfigDict(text.DEFAULTS), 14)
    shapes = jax.eval_shape(full.init, jax.random.key(0), {'tokens': tokens([5], 256)})['params']
    assert shapes['embedding']['embedding'].shape == (8192, 256) and shapes['positions'].shape == (256, 256)
    assert shapes['encoder']['block03']['mlp']['fc1']['kernel'].shape == (256, 1024)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([6, 11]), st.sampled_from([12, 24]), st.integers(0, 6), st.integers(0, 99))
def test_padding_has_no_influence(tiny, short, long, used, seed):
    model, params = tiny
    short = tokens([used, max(used - 2, 0), 3], short, seed)
    long = np.pad(short, ((0, 0), (0, long - short.shape[1])))
    a, b = (apply(model, params, {'tokens': t}, capture=('attention',)) for t in (short, long))
    np.testing.assert_allclose(a['logits'], b['logits'], atol=1e-6)
    np.testing.assert_allclose(b['attention'].sum(-1), 1, atol=1e-5)
    hidden = np.array(long == 0)
    hidden[:, 0] = False
    assert np.where(hidden[:, None, None, None, :], b['attention'], 0).max() == 0


def test_the_embedding_of_padding_gets_no_gradient_unless_a_case_is_empty(tiny):
    model, params = tiny

    @jax.jit
    @jax.grad
    def gradient(p, rows):
        return jnp.sum(model.apply(p, {'tokens': rows})['logits'] ** 2)

    full, empty = (gradient(params, tokens(lengths, 24))['params']['embedding']['embedding'][0]
                   for lengths in ([5, 9], [5, 0]))
    assert not full.any() and empty.any()


def test_words_matter_and_so_does_their_order(tiny):
    model, params = tiny
    row = tokens([6], 6)
    other = np.where(np.arange(6) == 3, 2, row)
    swapped = row[:, [0, 2, 1, 3, 4, 5]]
    logits = [apply(model, params, {'tokens': t})['logits'] for t in (row, other, swapped)]
    assert np.abs(logits[0] - logits[1]).max() > 1e-5 and np.abs(logits[0] - logits[2]).max() > 1e-5


def test_dropout_and_remat(tiny):
    model, params = tiny
    inputs = {'tokens': tokens([5, 9], 24)}

    def run(model, seed, train=True):
        return apply(model, params, inputs, train=train, rngs={'dropout': key(seed)})['logits']

    np.testing.assert_array_equal(run(model, 1), run(model, 1))
    assert np.abs(run(model, 1) - run(model, 2)).max() > 1e-5
    np.testing.assert_array_equal(run(model, 1, False), run(model, 2, False))
    np.testing.assert_allclose(run(model, 1), run(build(remat=True), 1), atol=1e-6)


def test_bfloat16(tiny):
    model, params = tiny
    inputs = {'tokens': tokens([5, 9], 24)}
    low, high = apply(build(jnp.bfloat16), params, inputs), apply(model, params, inputs)
    assert low['block00'].dtype == jnp.bfloat16 and low['logits'].dtype == jnp.float32
    np.testing.assert_allclose(low['pooled'], high['pooled'], atol=0.1)


def test_refusals(tiny):
    model, params = tiny
    with pytest.raises(errors.ConfigError, match='25 tokens do not fit length=24'):
        apply(model, params, {'tokens': tokens([5], 25)})
    with pytest.raises(errors.ConfigError, match='heads 5'):
        build(heads=5)
