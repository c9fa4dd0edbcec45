import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import config
from jaxkd.models import fusion, text, vit
from tests.fixtures.variables import draw

GIVEN = dict(image=dict(size='tiny', patch=8, depth=2), text=dict(vocab=50, length=16, width=32, depth=1))
INPUTS = {'image': np.random.default_rng(1).random((3, 32, 32, 1), np.float32),
          'tokens': np.array([[1, 5, 6, 7], [1, 8, 0, 0], [1, 4, 4, 0]], np.int32)}


def key(seed):
    return jax.random.key(seed, impl='rbg')  # compiles in a third of the time


@functools.partial(jax.jit, static_argnums=0, static_argnames=('train', 'capture'))
def apply(model, params, inputs, train=False, capture=(), rngs=None):
    """model.apply, compiled: faster than one operation after the other."""
    return model.apply(params, inputs, train=train, capture=capture, rngs=rngs)


@pytest.fixture(scope='module')
def tiny():
    model = fusion.build(ConfigDict(config.merge(fusion.DEFAULTS, GIVEN, 'model')), 2)
    return model, draw(model, INPUTS)


def test_shapes_and_names(tiny):
    model, params = tiny
    out = jax.eval_shape(functools.partial(model.apply, capture=('attention',)), params, INPUTS)
    assert {k: v.shape for k, v in out.items()} == {
        'logits': (3, 2), 'pooled': (3, 96),
        'image_pooled': (3, 64), 'image_tokens_out': (3, 17, 64), 'image_block00': (3, 17, 64),
        'image_block01': (3, 17, 64), 'image_attention': (3, 2, 4, 17, 17),
        'text_pooled': (3, 32), 'text_tokens_out': (3, 4, 32), 'text_block00': (3, 4, 32),
        'text_attention': (3, 1, 4, 4, 4)}
    assert set(params['params']) == {'image', 'text', 'norm', 'head'}
    assert not [k for k in apply(model, params, INPUTS) if 'attention' in k]


def test_pooled_is_the_normalised_pair_and_both_inputs_reach_the_logits(tiny):
    model, params = tiny
    out = apply(model, params, INPUTS)
    pair = np.concatenate([out['image_pooled'], out['text_pooled']], -1)
    expected = (pair - pair.mean(-1, keepdims=True)) / pair.std(-1, keepdims=True)
    np.testing.assert_allclose(out['pooled'], expected, atol=1e-4)
    for name in INPUTS:
        other = apply(model, params, {**INPUTS, name: INPUTS[name][::-1]})
        assert np.abs(out['logits'][0] - other['logits'][0]).max() > 1e-5


def test_networks_are_those_of_the_single_models(tiny):
    model, params = tiny
    out = apply(model, params, INPUTS)
    image = vit.build(ConfigDict(dict(vit.DEFAULTS, **GIVEN['image'])), 0)
    words = text.build(ConfigDict(dict(text.DEFAULTS, **GIVEN['text'])), 0)
    np.testing.assert_allclose(
        apply(image, {'params': params['params']['image']}, INPUTS)['pooled'], out['image_pooled'], atol=1e-6)
    np.testing.assert_allclose(
        apply(words, {'params': params['params']['text']}, INPUTS)['pooled'], out['text_pooled'], atol=1e-6)


def test_dropout_in_training_only(tiny):
    model, params = tiny

    def run(seed, train):
        return apply(model, params, INPUTS, train=train, rngs={'dropout': key(seed)})['logits']

    np.testing.assert_array_equal(run(1, True), run(1, True))
    assert np.abs(run(1, True) - run(2, True)).max() > 1e-5
    np.testing.assert_array_equal(run(1, False), run(2, False))


def test_bfloat16_keeps_float32_outside(tiny):
    _, params = tiny
    half = fusion.build(ConfigDict(config.merge(fusion.DEFAULTS, GIVEN, 'model')), 2, jnp.bfloat16)
    low = apply(half, params, INPUTS)
    assert low['image_block00'].dtype == jnp.bfloat16
    assert low['pooled'].dtype == low['logits'].dtype == jnp.float32
    assert np.isfinite(low['logits']).all()
