"""Vision transformer (Dosovitskiy et al., ICLR 2021 [published]): the student that sees the image alone.

Sizes Ti, S and B are the published ones; `tiny` is for tests and smoke runs [our choice]. width, depth and
heads replace the value of the size when they are not 0. Image side and patch are free as long as one divides
the other.

Input: inputs['image'] [B,S,S,c] in [0,1], c = 1 or `channels`. Grey is copied to the channels, then
normalised by (x - mean) / std here, so that the weights carry their own convention: one value, or one per
channel. The default .5 and .25 bring a typical grey image to about zero mean and unit spread [our choice].

Tokens: CLS first, then `registers` (Darcet et al., ICLR 2024 [published], 0 = none), then the patches row by
row: the last g*g of N = 1 + registers + g*g, g = S / patch. Positions are learned, for CLS and patches. CLS
pooling.
Initial weights [our choice]: Xavier uniform in the blocks and the patch embedding, zero CLS and biases,
truncated normal 0.02 for positions and head.

Parameters: patch/{kernel [p,p,c,d], bias}, cls [1,1,d], positions [1+g*g,d], [registers [1,r,d]], encoder/...
(see jaxkd.layers), head/linear.
Returns: logits [B,outputs] (absent for outputs=0), pooled [B,d], tokens_out [B,N,d], block00... [B,N,d]; with
want=('attention',) attention float32 [B,depth,heads,N,N] after softmax and before dropout.
"""
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from jaxkd import errors, layers

SIZES = {  # width, depth, heads
    'tiny': (64, 4, 4),
    'Ti': (192, 12, 3),
    'S': (384, 12, 6),
    'B': (768, 12, 12),
}
DEFAULTS = dict(
    size='Ti', width=0, depth=0, heads=0, patch=16, mlp=4,
    channels=1, mean=(0.5,), std=(0.25,),
    dropout=0.0, attention_dropout=0.0, drop_path=0.0,
    registers=0, layer_scale=0.0, remat=False,
)


def build(hp, outputs, dtype=jnp.float32):
    """The module for an hp like DEFAULTS. Raises ConfigError for a size or shape that does not exist."""
    if hp.size not in SIZES:
        raise errors.ConfigError(f'vit: no size "{hp.size}".{errors.nearest(hp.size, SIZES)}')
    width, depth, heads = (given or own for given, own in zip((hp.width, hp.depth, hp.heads), SIZES[hp.size]))
    layers.check_shape('vit', width, depth, heads)
    for key in 'mean', 'std':
        if len(hp[key]) not in (1, hp.channels):
            raise errors.ConfigError(f'vit: {key} has {len(hp[key])} values, channels is {hp.channels}. Give '
                                     'one value for all channels or one for each.')
    if min(hp.std) <= 0:
        raise errors.ConfigError(f'vit: std {tuple(hp.std)} must be positive.')
    encoder = layers.Encoder(
        depth, heads, hp.mlp, hp.dropout, hp.attention_dropout, hp.drop_path, hp.layer_scale, hp.remat, dtype)
    return Vit(encoder, outputs, width, hp.patch, hp.channels, tuple(hp.mean), tuple(hp.std), hp.registers,
               hp.dropout, dtype)


def adapt(name, value, shape):
    """Weights of another image or patch size: the position table is resized, everything else stays as it is."""
    sides = [math.isqrt(max(0, s[0] - 1)) for s in (value.shape, shape)]
    if name != 'positions' or any(1 + g * g != s[0] for g, s in zip(sides, (value.shape, shape))):
        return value
    return resize_positions(value, *sides)


class Vit(nn.Module):
    """See the module's docstring."""
    encoder: layers.Encoder
    outputs: int
    width: int
    patch: int
    channels: int
    mean: tuple
    std: tuple
    registers: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs, train=False, want=(), offset=None):
        x = self.patches(inputs['image'])  # [B, g*g, d]
        batch = x.shape[0]
        cls = self.param('cls', nn.initializers.zeros, (1, 1, self.width))
        positions = self.param('positions', layers.small_normal, (1 + x.shape[1], self.width))
        x = jnp.concatenate([jnp.broadcast_to(cls, (batch, 1, self.width)).astype(x.dtype), x], axis=1)
        x = x + positions.astype(x.dtype)
        if self.registers:
            free = self.param('registers', layers.small_normal, (1, self.registers, self.width))
            free = jnp.broadcast_to(free, (batch, self.registers, self.width)).astype(x.dtype)
            x = jnp.concatenate([x[:, :1], free, x[:, 1:]], axis=1)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        out = self.encoder(x, train, want, offset=offset)
        if self.outputs:
            out['logits'] = layers.Head(self.outputs, self.dropout, name='head')(out['pooled'], train)
        return out

    def patches(self, image):
        _, height, side, c = image.shape
        if height != side or side % self.patch:
            raise errors.ConfigError(f'vit: an image of {height} x {side} pixels cannot be cut into patches '
                                     f'of {self.patch}. Make it square, its side a multiple of patch.')
        if c not in (1, self.channels):
            raise errors.ConfigError(f'vit: the image has {c} channels, the network '
                                     f'channels={self.channels}. Set channels to {c}, or load it as grey.')
        x = (image - jnp.array(self.mean)) / jnp.array(self.std)
        x = jnp.broadcast_to(x, (*image.shape[:3], self.channels)).astype(self.dtype)
        x = nn.Conv(self.width, (self.patch,) * 2, self.patch, padding='VALID', dtype=self.dtype,
                    kernel_init=nn.initializers.xavier_uniform(), name='patch')(x)
        return rearrange(x, 'b h w d -> b (h w) d')


def resize_positions(table, grid_from, grid_to):
    """Position table [1+grid_from**2, d] -> [1+grid_to**2, d]: patches bicubic, the CLS row kept.

    Keys kernel (a = -0.5), half-pixel centres, antialiased when shrinking. Raises ConfigError when the table
    does not have 1+grid_from**2 rows.
    """
    if table.shape[0] != 1 + grid_from ** 2:
        raise errors.ConfigError(f'A position table of {table.shape[0]} rows is no CLS row and a '
                                 f'{grid_from} x {grid_from} grid.'
                                 f' The nearest side is {math.isqrt(table.shape[0] - 1)}.')
    if grid_from == grid_to:
        return table
    grid = rearrange(table[1:], '(h w) d -> h w d', h=grid_from)
    grid = jax.image.resize(grid, (grid_to, grid_to, table.shape[1]), 'bicubic')
    return jnp.concatenate([table[:1], rearrange(grid, 'h w d -> (h w) d')])
