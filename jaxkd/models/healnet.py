"""Inputs of any kind, read one after the other into a few latent states (HEALNet, Hemker, Simidjievski, Jamnik, NeurIPS
2024 [published]): a teacher of image and table, and of the report, too.

    S [latents,width], learned; in each layer, for each input m that the case has:
        S <- S + Attn_m(LN S, LN x_m)        softmax(q k' / (0.5 sqrt(width of a head))), heads joined by a linear layer
                                             that ends in leaky ReLU
        S <- S + FF_m(S)                     LN, then two linear maps u, g to 4 width: linear(u selu(g))
        self_attention: S <- S + Attn(LN S, LN S), S <- S + FF(S), after each input
    pooled = LN of the mean over latents, logits linear
The temperature 0.5, leaky ReLU, gated SELU and the defaults are those of the published code. An input that a case lacks
is left out of it exactly, self-attention behind it included: the states are those of a network without its layers.

Tokens x_m of an input, alphabetically one input after the other [our choice]:
    image, volume [B,*places,C]  means over blocks of `patch` places a side (1: every place, as published), their values
                                 and the Fourier features of their place
    row [B,D]                    a token for each column: its value and Fourier features of its number [our choice]
    tokens int [B,L]             learned embeddings and Fourier features of the position, padding (0) is not read [our
                                 choice]
Fourier features of a coordinate c in -1 ... 1: sin(pi s c), cos(pi s c) for `bands` scales s from 1 to frequency / 2,
and c. They have no parameters, so that more tokens need no other network.

Input: those named above, under any names, and optionally inputs['present'] {name: [B]}. Returns: logits [B,outputs]
(absent for outputs=0), pooled float32 [B,width], latents [B,latents,width], layer0 ... [B,latents,width].
Parameters: latents, <input>_<layer>/{cross, feed, self, self_feed} (with tie the layers of an input are one,
<input>_0), embedding, norm, head/linear.
"""
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict, FrozenConfigDict

from jaxkd import errors
from jaxkd.contracts import ModelPlugin
from jaxkd.models import text
from jaxkd.models.layers import backbone, transformer

DEFAULTS = dict(
    latents=128,  # number of latent states
    width=128,  # features of a latent state
    depth=3,  # number of layers, each of which reads every input
    heads=8,  # attention heads
    head=64,  # features of an attention head
    expand=4,  # hidden width of the feed-forward part, over width
    self_attention=True,  # attention between the latent states, after each input
    tie=False,  # True: the layers of an input have the same parameters
    bands=2,  # number of scales of the Fourier features of a place
    frequency=10.0,  # twice the largest of these scales, 2 or more
    patch=1,  # places a side of the blocks that are averaged to a token; it divides the sides
    vocab=0,  # size of the vocabulary of reports; 0: none are read
    mean=(),  # of an image, subtracted first: one value, or one for each channel; (): it comes normalised
    std=(),  # of an image, divided by: as many values as mean
    dropout=0.0,  # share of pooled features dropped before the head, 0 to below 1
)


def build(hp: ConfigDict, outputs: int, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The module for an hp like DEFAULTS. Raises ConfigError for sizes that do not exist."""
    for key in ('latents', 'width', 'depth', 'heads', 'head', 'expand', 'bands', 'patch'):
        errors.check_range(f'model.{key}', hp[key], '[1, inf)')
    errors.check_range('model.frequency', hp.frequency, '[2, inf)')
    backbone.check_mean_std(hp)
    transformer.check_dropout(hp.dropout)
    return Healnet(FrozenConfigDict(hp), outputs, dtype)


def check(hp: ConfigDict, data: ConfigDict) -> None:
    """ConfigError if a transform writes more words than the network knows, where it knows any."""
    for name, _, size in text.token_writers(data) if hp.vocab else ():
        if size > hp.vocab:
            raise errors.ConfigError(f'healnet: data.{name} has vocab = {size}, which is more than model.vocab = '
                                     f'{hp.vocab}. Give both the same number.')


def fourier(coordinates: Float[Array, '*places'], bands: int, frequency: float) -> Float[Array, '*places features']:
    """[..., 2 bands + 1]: sines, cosines, the coordinate."""
    scaled = coordinates[..., None] * jnp.linspace(1.0, frequency / 2, bands) * math.pi
    return jnp.concatenate([jnp.sin(scaled), jnp.cos(scaled), coordinates[..., None]], -1)


def places(sides: Sequence[int], bands: int, frequency: float) -> Float[Array, 'n features']:
    """Fourier features of all places of a grid, of each axis one after the other."""
    axes = [np.linspace(-1.0, 1.0, n, dtype=np.float32) if n > 1 else np.zeros(1, np.float32) for n in sides]
    grid = jnp.stack(np.meshgrid(*axes, indexing='ij'), -1).reshape(-1, len(sides))
    return fourier(grid, bands, frequency).reshape(len(grid), -1)


class Attention(nn.Module):
    """S + attention of normalised S [B,N,d] over normalised tokens [B,L,c], where `visible` [B,L]."""

    heads: int
    head: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, state: Float[Array, 'batch n d'], tokens: Float[Array, 'batch l c'],
                 visible: Bool[Array, 'batch l'] | None = None) -> Float[Array, 'batch n d']:
        split = lambda x: x.reshape(*x.shape[:2], self.heads, self.head)  # noqa: E731
        dense = functools.partial(transformer.Dense, dtype=self.dtype)
        x = transformer.LayerNorm(dtype=self.dtype, name='norm')(state)
        y = transformer.LayerNorm(dtype=self.dtype, name='norm_tokens')(tokens)
        q = split(dense(self.heads * self.head, use_bias=False, name='query')(x))
        k, v = (split(dense(self.heads * self.head, use_bias=False, name=name)(y)) for name in ('key', 'value'))
        scores = jnp.einsum('bnhd,blhd->bhnl', q, k, preferred_element_type=jnp.float32) / (0.5 * self.head ** 0.5)
        if visible is not None:
            scores = jnp.where(visible[:, None, None], scores, -1e9)
        out = jnp.einsum('bhnl,blhd->bnhd', jax.nn.softmax(scores).astype(v.dtype), v)
        return state + nn.leaky_relu(dense(state.shape[-1], name='out')(out.reshape(*out.shape[:2], -1)))


class FeedForward(nn.Module):
    """S + FF(S), gated by a SELU."""

    expand: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, state: Float[Array, 'batch n d']) -> Float[Array, 'batch n d']:
        width = state.shape[-1]
        x = transformer.LayerNorm(dtype=self.dtype, name='norm')(state)
        value, gate = jnp.split(transformer.Dense(2 * self.expand * width, dtype=self.dtype, name='in')(x), 2, -1)
        return state + transformer.Dense(width, dtype=self.dtype, name='out')(value * jax.nn.selu(gate))


class Layer(nn.Module):
    """What one input does to the states."""

    hp: FrozenConfigDict
    dtype: DTypeLike

    @nn.compact
    def __call__(self, state: Float[Array, 'batch n d'], tokens: Float[Array, 'batch l c'],
                 visible: Bool[Array, 'batch l'] | None) -> Float[Array, 'batch n d']:
        attention = functools.partial(Attention, self.hp.heads, self.hp.head, self.dtype)
        state = attention(name='cross')(state, tokens, visible)
        state = FeedForward(self.hp.expand, self.dtype, name='feed')(state)
        if self.hp.self_attention:
            state = attention(name='self')(state, state)
            state = FeedForward(self.hp.expand, self.dtype, name='self_feed')(state)
        return state


class Healnet(nn.Module):
    """See the module's docstring."""

    hp: FrozenConfigDict
    outputs: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = ()) -> dict[str, Array]:
        hp, names = self.hp, sorted(k for k in inputs if k != 'present')
        present = {n: jnp.asarray(f) > 0 for n, f in inputs.get('present', {}).items() if n in names}
        tokens = {name: self._tokens(name, backbone.zero_absent(present.get(name), inputs[name])) for name in names}
        state = self.param('latents', nn.initializers.normal(1.0), (hp.latents, hp.width))
        state = jnp.broadcast_to(state, (inputs[names[0]].shape[0], *state.shape)).astype(self.dtype)
        out = {}
        layers = {f'{name}_{i}': Layer(hp, self.dtype, name=f'{name}_{i}') for name in names
                  for i in range(1 if hp.tie else hp.depth)}
        for i in range(hp.depth):
            for name in names:
                after = layers[f'{name}_{0 if hp.tie else i}'](state, *tokens[name])
                state = jnp.where(present[name][:, None, None], after, state) if name in present else after
            out[f'layer{i}'] = state
        pooled = transformer.LayerNorm(name='norm')(jnp.mean(state.astype(jnp.float32), 1))
        return transformer.with_logits(out | {'latents': state, 'pooled': pooled}, self.outputs, hp.dropout, train)

    def _tokens(self, name: str, x: Array) -> tuple[Float[Array, 'batch l c'], Bool[Array, 'batch l'] | None]:
        """Tokens of an input, and which of them are no padding (None: all)."""
        hp, visible = self.hp, None
        if x.ndim == 2 and jnp.issubdtype(x.dtype, jnp.integer):
            if not hp.vocab:
                raise errors.ConfigError(f'healnet: "{name}" are tokens of words; set model.vocab to their number.')
            values = nn.Embed(hp.vocab, hp.width, embedding_init=transformer.small_normal, name='embedding')(x)
            visible, sides = (x != 0) | (jnp.arange(x.shape[1]) == 0), x.shape[1:]
        elif x.ndim == 2:
            values, sides = x[..., None].astype(jnp.float32), x.shape[1:]
        else:
            blocks = self._blocks(name, backbone.normalise(backbone.decode(x), hp.mean, hp.std))
            values, sides = blocks.reshape(len(x), -1, blocks.shape[-1]), blocks.shape[1:-1]
        where = places(sides, hp.bands, hp.frequency)
        where = jnp.broadcast_to(where, (len(x), *where.shape))
        return jnp.concatenate([values, where], -1).astype(self.dtype), visible

    def _blocks(self, name: str, x: Float[Array, 'batch *sides c']) -> Array:
        """Means over blocks of `patch` places a side."""
        patch, sides = self.hp.patch, x.shape[1:-1]
        if any(n % patch for n in sides):
            raise errors.ConfigError(f'healnet: "{name}" of {" x ".join(map(str, sides))} places cannot be cut into '
                                     f'blocks of {patch}. Set model.patch to a divisor of its sides.')
        split = [m for n in sides for m in (n // patch, patch)]
        return x.reshape(len(x), *split, x.shape[-1]).mean(tuple(range(2, 2 * len(sides) + 1, 2)))


PLUGIN = ModelPlugin(check=check)
