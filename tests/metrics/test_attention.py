"""Maps from attention: worked rollout, sums, orientation, gradients; upsampling against two libraries."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd import errors
from jaxkd.metrics import attention, localisation

A1 = np.array([[.6, .3, .1], [.2, .7, .1], [.1, .1, .8]])
A2 = np.array([[.5, .1, .4], [.3, .4, .3], [.2, .2, .6]])


def random_attention(seed=0, batch=2, depth=3, heads=4, g=3):
    logits = 3 * np.random.default_rng(seed).normal(size=(batch, depth, heads, g * g + 1, g * g + 1))
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def test_worked_rollout():
    """The example has two patches, which are no square: two more are added, to which nothing attends."""
    attn = np.tile(np.eye(5), (1, 2, 1, 1, 1))
    attn[0, 0, 0, :3, :3], attn[0, 1, 0, :3, :3] = A1, A2
    expected = np.array([0.165, 0.220, 0, 0]) / (0.165 + 0.220)
    np.testing.assert_allclose(attention.rollout(attn)[0].ravel(), expected, atol=1e-12)
    np.testing.assert_allclose(attention.rollout(attn)[0].ravel(), [0.4286, 0.5714, 0, 0], atol=5e-5)
    np.testing.assert_allclose(attention.last_mean(attn)[0].ravel(), [0.2, 0.8, 0, 0], atol=1e-12)


def test_rollout_is_the_matrix_product():
    attn = random_attention()
    for b in range(2):
        product = np.eye(10)
        for block in attn[b]:
            product = (block.mean(0) / 2 + np.eye(10) / 2) @ product
        expected = product[0, 1:] / product[0, 1:].sum()
        np.testing.assert_allclose(attention.rollout(attn)[b].ravel(), expected, rtol=1e-12)


def test_mean_is_of_the_last_block_and_rows_are_who_attends():
    attn = np.full((1, 2, 2, 5, 5), 0.2)
    attn[0, 1, 0, 0] = [0.2, 0.8, 0, 0, 0]
    attn[0, 1, 1, 0] = [0.2, 0, 0.8, 0, 0]
    np.testing.assert_allclose(attention.last_mean(attn)[0], [[0.5, 0.5], [0, 0]])
    np.testing.assert_allclose(attention.last_head(attn, 1)[0], [[0, 1], [0, 0]])
    with pytest.raises(errors.ConfigError, match='no attention head 2: they are 0 to 1'):
        attention.last_head(attn, 2)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 5))
def test_maps_sum_to_one(seed, batch, g):
    attn = random_attention(seed, batch=batch, g=g)
    grad = np.random.default_rng(seed).normal(size=attn[:, -1].shape)
    maps = [attention.last_mean(attn), attention.last_head(attn, 3), attention.rollout(attn),
            attention.from_gradient(attn[:, -1], grad)]
    for m in maps:
        assert m.shape == (batch, g, g) and (m >= 0).all()
        np.testing.assert_allclose(m.sum((1, 2)), 1, rtol=1e-12)


def test_gradient_map():
    attn, grad = random_attention()[:, -1], np.random.default_rng(1).normal(size=(2, 4, 10, 10))
    expected = np.maximum(attn * grad, 0).mean(1)[:, 0, 1:]
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(attention.from_gradient(attn, grad).reshape(2, 9), expected)
    np.testing.assert_array_equal(attention.from_gradient(attn, -np.abs(grad)), np.full((2, 3, 3), 1 / 9))


def test_takes_jax_arrays_of_low_precision():
    attn = random_attention()
    low = attention.last_mean(jnp.asarray(attn, jnp.bfloat16))
    assert low.dtype == np.float64
    np.testing.assert_allclose(low, attention.last_mean(attn), rtol=0.02)
    np.testing.assert_allclose(low.sum((1, 2)), 1, rtol=1e-12)


def test_bad_attention():
    with pytest.raises(errors.ConfigError, match='7 tokens is not CLS and a square grid'):
        attention.last_mean(np.full((1, 1, 1, 7, 7), 1 / 7))
    with pytest.raises(errors.ConfigError, match='1 tokens'):
        attention.rollout(np.ones((1, 1, 1, 1, 1)))
    with pytest.raises(errors.BadData, match=r'\(1, 5, 5\)'):
        attention.last_mean(np.ones((1, 5, 5)))
    with pytest.raises(errors.NonFinite):
        attention.rollout(np.full((1, 1, 1, 5, 5), np.nan))


@pytest.mark.parametrize('g, size', [(14, 224), (24, 384), (8, 64), (3, 10), (1, 5), (4, 4)])
def test_upsampling_agrees_with_others(g, size):
    maps = np.random.default_rng(g).random((2, g, g))
    ours = attention.upsample(maps, size)
    theirs = jax.image.resize(maps.astype(np.float32), (2, size, size), 'linear')
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    at = (np.arange(size) + 0.5) * g / size - 0.5
    grid = np.meshgrid(at, at, indexing='ij')
    for m, o in zip(maps, ours):
        expected = scipy.ndimage.map_coordinates(m, grid, order=1, mode='nearest')
        np.testing.assert_allclose(o, expected, atol=1e-12)


def test_upsampling_worked_row_and_constant():
    np.testing.assert_allclose(attention.upsample(np.array([[0.0, 1], [0, 1]]), 4)[2], [0, 0.25, 0.75, 1])
    for size in (50, 256):
        assert np.ptp(attention.upsample(np.full((14, 14), 1 / 196), size)) == 0  # not even round-off


def test_grad_cam_of_the_specification():
    """Mean gradients (0.2, -0.15): map [[0.2, 0.25], [0, 0.05]]; in a box around the upper row it hits, with nine
    tenths of its energy.
    """
    features = np.moveaxis([[[1, 2], [0, 1]], [[0, 1], [3, 1]]], 0, -1)[None]
    gradient = np.moveaxis([[[.2, .2], [.2, .2]], [[-.1, -.1], [-.3, -.1]]], 0, -1)[None]
    found = attention.grad_cam(features, gradient)
    np.testing.assert_allclose(found[0], [[.2, .25], [0, .05]], atol=1e-12)
    np.testing.assert_allclose(attention.with_mass(found).sum((1, 2)), 1)
    np.testing.assert_array_equal(attention.with_mass(np.zeros((1, 2, 2))), np.full((1, 2, 2), .25))
    row = localisation.metrics(attention.with_mass(found)[0], localisation.roi_mask((0, 0, 2, 1), 2))
    assert row['hit'] == 1 and row['mass_in_roi'] == pytest.approx(.9)
    assert row['iou_top10'] == .5  # a tenth of four pixels is one, of the two of the box
    with pytest.raises(errors.NonFinite):
        attention.grad_cam(np.full((1, 2, 2, 1), np.nan), np.zeros((1, 2, 2, 1)))
