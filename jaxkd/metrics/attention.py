"""From the attention of a ViT to a map over the image: [B, g, g], non-negative, sum 1.

`attn` [B, depth, heads, N, N] holds probabilities after softmax; token 0 is CLS, the last g x g tokens are the
patches, row by row; `extra` tokens (registers) may stand between. Row = the token that attends, column = the token
attended to.

last_mean      CLS row of the last block, mean over heads (Caron et al., 2021, DINO) [published]
last_head      a single head of it. The choice of the best head needs the truth: an upper bound, never a result
rollout        CLS row of A_L ... A_1, where A = (mean over heads + identity) / 2 (Abnar & Zuidema, 2020)
               [published]
from_gradient  mean over heads of relu(gradient * attention), last block (after Chefer et al., 2021)
               [published]; the only map of a certain finding, the others are the same for all of an image

grad_cam       relu of the sum of features, each weighed by the mean gradient of the finding's logit (Selvaraju et al.,
               2017) [published]; of convolutional networks, and of a certain finding

A map without any mass (no patch has positive evidence, or CLS attends to itself alone) becomes uniform, which
scores at chance [our choice].
"""
import math

import numpy as np
from jaxtyping import Float

from jaxkd import errors


def last_mean(attn: Float[np.ndarray, 'batch depth heads tokens tokens'],
              extra: int = 0) -> Float[np.ndarray, 'batch g g']:
    """attn [B, depth, heads, N, N] -> [B, g, g]."""
    return _to_map(_checked(attn, 5)[:, -1, :, 0].mean(axis=1), extra)


def last_head(attn: Float[np.ndarray, 'batch depth heads tokens tokens'], h: int,
              extra: int = 0) -> Float[np.ndarray, 'batch g g']:
    """attn [B, depth, heads, N, N], h in 0..heads-1 -> [B, g, g]; ConfigError for any other h."""
    attn = _checked(attn, 5)
    if not 0 <= h < attn.shape[2]:
        raise errors.ConfigError(f'There is no attention head {h}: they are 0 to {attn.shape[2] - 1}.')
    return _to_map(attn[:, -1, h, 0], extra)


def rollout(attn: Float[np.ndarray, 'batch depth heads tokens tokens'],
            extra: int = 0) -> Float[np.ndarray, 'batch g g']:
    """attn [B, depth, heads, N, N] -> [B, g, g]."""
    blocks = _checked(attn, 5).mean(axis=2)
    row = np.zeros(blocks.shape[::2])
    row[:, 0] = 1  # only the CLS row of the product is needed: carry it from the last block to the first
    for block in np.moveaxis(blocks, 1, 0)[::-1]:
        row = (np.einsum('bn,bnm->bm', row, block) + row) / 2
    return _to_map(row, extra)


def from_gradient(attn_last: Float[np.ndarray, 'batch heads tokens tokens'],
                  grad_last: Float[np.ndarray, 'batch heads tokens tokens'],
                  extra: int = 0) -> Float[np.ndarray, 'batch g g']:
    """Last block's attention and the gradient of a finding's logit by it, [B, heads, N, N] -> [B, g, g]."""
    attn, grad = _checked(attn_last, 4), _checked(grad_last, 4)
    return _to_map(np.maximum(attn[:, :, 0] * grad[:, :, 0], 0).mean(axis=1), extra)


def grad_cam(features: Float[np.ndarray, 'batch h w channels'],
             gradient: Float[np.ndarray, 'batch h w channels']) -> Float[np.ndarray, 'batch h w']:
    """relu(sum_k a_k A_k), a_k the mean over places of the gradient: [B, h, w, K] twice -> [B, h, w], not of sum 1."""
    features, gradient = np.asarray(features, np.float64), np.asarray(gradient, np.float64)
    if not (np.isfinite(features).all() and np.isfinite(gradient).all()):
        raise errors.NonFinite('Features or gradients hold values that are not finite. The network diverged.')
    return np.maximum(np.einsum('bhwk,bk->bhw', features, gradient.mean((1, 2))), 0)


def with_mass(maps: Float[np.ndarray, '*batch h w']) -> Float[np.ndarray, '*batch h w']:
    """Maps of sum 1; one without any mass becomes uniform."""
    total = maps.sum((-2, -1), keepdims=True)
    return np.where(total > 0, maps / np.where(total > 0, total, 1), 1 / np.prod(maps.shape[-2:]))


def upsample(map: Float[np.ndarray, '*batch g g'], size: int) -> Float[np.ndarray, '*batch {size} {size}']:
    """Bilinear with half-pixel centres, clamped at the border: [..., g, g] -> [..., size, size].

    As torch.nn.functional.interpolate(align_corners=False). A constant map stays exactly constant. Values are
    interpolated, not divided: the result sums to about (size / g)^2.
    """
    map = np.asarray(map, dtype=np.float64)
    g = map.shape[-1]
    position = np.clip((np.arange(size) + 0.5) * g / size - 0.5, 0, g - 1)
    low = position.astype(int)
    high, t = np.minimum(low + 1, g - 1), position - low
    # a + t (b - a), not a matrix product: equal values stay equal, so ranks of pixels see no round-off
    map = map[..., low, :] + t[:, None] * (map[..., high, :] - map[..., low, :])
    return map[..., low] + t * (map[..., high] - map[..., low])


def _checked(attn: Float[np.ndarray, '...'], dims: int) -> Float[np.ndarray, '...']:
    attn = np.asarray(attn, dtype=np.float64)
    if attn.ndim != dims or attn.shape[-1] != attn.shape[-2]:
        raise errors.BadData(f'Attention has the shape {attn.shape}; it must be '
                             f'{"[B, depth, heads, N, N]" if dims == 5 else "[B, heads, N, N]"}.')
    if not np.isfinite(attn).all():
        raise errors.NonFinite('Attention holds values that are not finite. The network diverged.')
    return attn


def _to_map(row: Float[np.ndarray, 'batch tokens'], extra: int) -> Float[np.ndarray, 'batch g g']:
    """CLS row [B, N] -> [B, g, g] with sum 1."""
    patches = row[:, 1 + extra:]
    g = math.isqrt(patches.shape[1])
    if g == 0 or g * g != patches.shape[1]:
        raise errors.ConfigError(
            f'Attention over {row.shape[1]} tokens is not CLS and a square grid of patches. Maps need '
            'square images and a network whose first token is CLS, with no further tokens but patches.')
    total = patches.sum(axis=1, keepdims=True)
    patches = np.where(total > 0, patches / np.where(total > 0, total, 1), 1 / (g * g))
    return patches.reshape(-1, g, g)
