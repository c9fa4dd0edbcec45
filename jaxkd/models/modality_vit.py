"""One vision transformer for any subset of modalities: each gives tokens of its own, CLS reads those that are there.

    x = [cls, tokens of modality 1, ..., tokens of modality M];  a token = E_m patch + position (+ modality m)

Two encoders of the field are settings of it:

    tokenizer='own'      E_m a linear map for each modality, which tells the modality (BM-MAE, Robinet et al., 2025
                         [published])
    tokenizer='shared'   one map, and to tokens of patches, not to CLS, a learned vector of norm 1 for each modality is
                         added (MM-DINOv2, Scholz et al., MICCAI 2025 [published])

Tokens of a modality that a case lacks are attended to by nobody: it is as if they had been removed, so the same weights
serve every subset, in training, fine-tuning and tests. Positions are fixed sines and cosines of the place in the grid
(BM-MAE [published]; [our choice] for MM-DINOv2, whose positions are learned): another size of input needs no other
weights. Images and volumes alike: a patch is `patch` places, of which images read the last two.

Hidden tokens, for the pre-training methods, in training alone:

    hide='patches'    a budget of (1 - ratio) M N tokens is seen, the others are removed before the encoder; a decoder
                      gets the seen ones, a mask token for each other one, positions and modalities, and predicts voxels
                      (masked_autoencoder). The budget is split among the modalities of a case by Dirichlet(1)
                      [published]; here a token of rank r in its modality, ranks drawn at random, has the priority
                      share_m / (r + 1/2), and the greatest ones are seen: shares are rounded to the nearest (Sainte-
                      Lague), a share beyond the tokens of its modality goes to the others, and all shapes are static
                      [our choice in the place of rejection]
    hide='modality'   a mask token in the place of all tokens of one random modality of the case, if it has several,
                      and, in half of the cases, of the block of places that is nearest to a random centre, the same in
                      all modalities, 10 to 50 % of them (MM-DINOv2 [published]; the shape of a block [our choice])
    hide='others'     all modalities but `seen`: the form of privileged learning [our choice]
The last two go with self_distillation. Without training nothing is hidden; the decoder then has mask tokens for absent
modalities alone, so that `reconstruction` is what it imputes.

Input: as backbone.py has it: volumes [B,D,H,W,C] or images [B,H,W,C] of one shape under any names, optionally
inputs['present'] {name: [B]}. Returns: logits [B,outputs] (absent for outputs=0), pooled [B,d] (CLS), tokens_out and
block00... [B,tokens,d]; with hide='patches' patches and reconstruction [B,M N,voxels], with prototypes prototypes [B,K]
and token_prototypes [B,M N,K]; with any `hide` hidden [B,M N], 1 for hidden tokens of modalities that the case has.
Tokens are those of the modalities in alphabetical order. Parameters: tokenizer[_<name>], [modality_<name>], cls,
encoder/..., head/linear and, with `hide`, decoder/..., mask_token, prototypes/... .
"""
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped
from ml_collections import ConfigDict, FrozenConfigDict

from jaxkd import errors
from jaxkd.contracts import ModelPlugin
from jaxkd.models import vit
from jaxkd.models.layers import backbone, transformer

DEFAULTS = dict(
    size='Ti',  # tiny, Ti, S, B or L: width, depth and heads together
    width=0,  # features of a token; 0: as `size` says
    depth=0,  # number of blocks; 0: as `size` says
    heads=0,  # attention heads of a block, which divide width; 0: as `size` says
    mlp=4,  # hidden width of a block's MLP, over width
    patch=(16, 16, 16),  # places of a token: depth, height, width, divisors of the sides of the input
    mean=(),  # of the input, subtracted first: one value, or one for each channel; (): it comes normalised
    std=(),  # of the input, divided by: as many values as mean
    tokenizer='own',  # own (a map for each modality) or shared (one map, and a vector for each modality)
    dropout=0.0,  # share dropped of embeddings, of each branch of a block and of pooled, 0 to below 1
    attention_dropout=0.0,  # share dropped of attention probabilities, 0 to below 1
    drop_path=0.0,  # share of cases for which a branch is dropped, rising to this over the blocks, 0 to below 1
    remat=False,  # compute the blocks again in the backward pass: less memory, about a third more time
    hide='',  # what training hides: '' (nothing), patches, modality or others, see above
    ratio=0.75,  # hide='patches': share of hidden tokens, above 0 to below 1
    seen=(),  # hide='others': the modalities that are left
    decoder=dict(  # hide='patches': the network that predicts voxels
        width=384,  # features of a token of the decoder
        depth=3,  # blocks of the decoder
        heads=12),  # attention heads of the decoder, which divide its width
    prototypes=0,  # number of prototypes of self_distillation; 0: none
)
TOKENIZERS = ('own', 'shared')
HIDE = ('', 'patches', 'modality', 'others')
BLOCK = (0.1, 0.5)  # share of the places in a block


def build(hp: ConfigDict, outputs: int, dtype: DTypeLike = jnp.float32) -> 'ModalityVit':
    """The module for an hp like DEFAULTS. Raises ConfigError for choices and shapes that do not exist."""
    errors.check_choice('model.tokenizer', hp.tokenizer, TOKENIZERS)
    errors.check_choice('model.hide', hp.hide, HIDE)
    errors.check_range('model.ratio', hp.ratio, '(0, 1)')
    errors.check_range('model.prototypes', hp.prototypes, '[0, inf)')
    backbone.check_mean_std(hp)
    width, depth, heads = vit.shape(hp)
    transformer.check_shape('modality_vit', width, depth, heads)
    transformer.check_shape('modality_vit.decoder', hp.decoder.width, hp.decoder.depth, hp.decoder.heads)
    if len(hp.patch) != 3 or min(hp.patch) < 1:
        raise errors.ConfigError(f'model.patch = {tuple(hp.patch)} must be three positive numbers: depth, height, '
                                 'width.')
    if hp.prototypes and hp.hide == 'patches':
        raise errors.ConfigError('model.prototypes belong to model.hide="modality" or "others", whose tokens all reach '
                                 'the head. Set it to 0, or choose one of these.')
    if bool(hp.seen) != (hp.hide == 'others'):
        raise errors.ConfigError(f'model.seen = {tuple(hp.seen)} names the modalities that model.hide="others" leaves; '
                                 f'hide is "{hp.hide}".')
    encoder = transformer.Encoder(depth, heads, hp.mlp, hp.dropout, hp.attention_dropout, hp.drop_path,
                                  remat=hp.remat, dtype=dtype)
    return ModalityVit(encoder, FrozenConfigDict(hp), outputs, width, dtype)


class Decoder(nn.Module):
    """From the states of seen tokens to the voxels of all: [B,1+K,d] with CLS first -> [B,M N,voxels]."""
    hp: FrozenConfigDict
    voxels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, states: transformer.Tokens, seen: Bool[Array, 'batch k'], index: Shaped[Array, 'batch k'],
                 grid: tuple[int, ...], names: Sequence[str], train: bool) -> Float[Array, 'batch mn v']:
        width = self.hp.width
        x = transformer.Dense(width, dtype=self.dtype, name='embed')(states)
        mask = self.param('mask_token', transformer.small_normal, (width,)).astype(x.dtype)
        batch, tokens = x.shape[0], len(names) * math.prod(grid)
        rows, index = jnp.arange(batch)[:, None], jnp.where(seen, index, tokens)  # out of range: not entered
        full = jnp.broadcast_to(mask, (batch, tokens, width)).at[rows, index].set(x[:, 1:], mode='drop')
        modalities = jnp.stack([self.param(f'modality_{name}', transformer.small_normal, (width,)) for name in names])
        where = positions(grid, width) + modalities[:, None]  # [M,N,width]
        x = jnp.concatenate([x[:, :1], full + where.reshape(tokens, width).astype(x.dtype)], 1)
        x = transformer.Encoder(self.hp.depth, self.hp.heads, dtype=self.dtype, name='blocks')(x, train)['tokens_out']
        return transformer.Dense(self.voxels, dtype=self.dtype, name='voxels')(x[:, 1:])


class Prototypes(nn.Module):
    """The head of DINO (Caron et al., ICCV 2021 [published]), with one hidden layer [our choice]: hidden layer, norm 1,
    cosines with K prototypes. x [..., d] -> [..., K].
    """
    count: int

    @nn.compact
    def __call__(self, x: Float[Array, '*places d']) -> Float[Array, '*places k']:
        x = transformer.Dense(2 * x.shape[-1], name='fc1')(x.astype(jnp.float32))
        x = unit(transformer.Dense(x.shape[-1] // 2, name='fc2')(jax.nn.gelu(x, approximate=False)))
        kernel = self.param('kernel', nn.initializers.normal(1.0), (x.shape[-1], self.count))
        return x @ unit(kernel.T).T


class ModalityVit(nn.Module):
    """See the module's docstring."""
    encoder: transformer.Encoder
    hp: FrozenConfigDict
    outputs: int
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = ()) -> dict[str, Array]:
        hp = self.hp
        dims = next(a.ndim for name, a in sorted(inputs.items()) if name != 'present') - 2
        names, volumes, flags = backbone.read(inputs, dims, hp.mean, hp.std)
        patch = tuple(hp.patch)[-dims:]
        values = jnp.stack([patches(x, patch) for x in volumes], 1)  # [B,M,N,voxels]
        batch, count, places, voxels = values.shape
        grid = tuple(n // p for n, p in zip(volumes[0].shape[1:-1], patch))
        present = jnp.stack([flags.get(name, jnp.ones(batch, bool)) for name in names], 1)  # [B,M]
        seen, block = self._hide(names, present, grid, train)  # bool [B,M,N]: read by the encoder, behind a mask token

        x = self._tokens(names, values.astype(self.dtype))
        if block is not None:
            mask = self.param('mask_token', transformer.small_normal, (self.width,)).astype(x.dtype)
            x = jnp.where(block[..., None], mask, x)
        x = x + positions(grid, self.width).astype(x.dtype)
        if hp.tokenizer == 'shared':
            vectors = [self.param(f'modality_{name}', transformer.small_normal, (self.width,)) for name in names]
            x = x + unit(jnp.stack(vectors))[:, None].astype(x.dtype)

        x, kept = x.reshape(batch, count * places, -1), seen.reshape(batch, -1)
        index = jnp.broadcast_to(jnp.arange(count * places), kept.shape)
        if hp.hide == 'patches' and train:
            kept, index = jax.lax.top_k(kept.astype(jnp.int8), budget(count * places, hp.ratio))
            kept, x = kept > 0, jnp.take_along_axis(x, index[..., None], 1)
        cls = jnp.broadcast_to(self.param('cls', nn.initializers.zeros, (1, 1, self.width)), (batch, 1, self.width))
        x = nn.Dropout(hp.dropout)(jnp.concatenate([cls.astype(x.dtype), x], 1), deterministic=not train)
        visible = jnp.concatenate([jnp.ones((batch, 1), bool), kept], 1)
        out = self.encoder(x, train, capture, visible if flags or hp.hide == 'patches' and train else None)

        hidden = present[..., None] & (block if block is not None else ~seen)
        if hp.hide:
            out['hidden'] = hidden.reshape(batch, -1).astype(jnp.float32)
        if hp.hide == 'patches':
            decoder = Decoder(hp.decoder, voxels, self.dtype, name='decoder')
            out['patches'] = values.reshape(batch, -1, voxels)
            out['reconstruction'] = decoder(out['tokens_out'], kept, index, grid, tuple(names), train)
        if hp.prototypes:
            head = Prototypes(hp.prototypes, name='prototypes')
            out |= {'prototypes': head(out['pooled']), 'token_prototypes': head(out['tokens_out'][:, 1:])}
        return transformer.with_logits(out, self.outputs, hp.dropout, train)

    def _tokens(self, names: Sequence[str], values: Float[Array, 'batch m n voxels']) -> Float[Array, 'batch m n d']:
        if self.hp.tokenizer == 'shared':
            return transformer.Dense(self.width, dtype=self.dtype, name='tokenizer')(values)
        return jnp.stack([transformer.Dense(self.width, dtype=self.dtype, name=f'tokenizer_{name}')(values[:, m])
                          for m, name in enumerate(names)], 1)

    def _hide(self, names: Sequence[str], present: Bool[Array, 'batch m'], grid: tuple[int, ...], train: bool
              ) -> tuple[Bool[Array, 'batch m n'], Bool[Array, 'batch m n'] | None]:
        """(tokens that the encoder reads, tokens behind a mask token or None)."""
        places, here = math.prod(grid), present[..., None]
        there = jnp.broadcast_to(here, (*present.shape, places))
        if self.hp.hide in ('', 'patches'):
            if not (self.hp.hide and train):
                return there, None
            return seen_patches(self.make_rng('dropout'), present, places, self.hp.ratio), None
        if missing := set(self.hp.seen) - set(names):
            raise errors.ConfigError(f'model.seen names "{min(missing)}", the network reads {", ".join(names)}.')
        if not train:
            return there, jnp.zeros_like(there)
        if self.hp.hide == 'others':
            return there, jnp.broadcast_to(jnp.array([name not in self.hp.seen for name in names])[:, None],
                                           there.shape) & here
        return there, hidden_modality(self.make_rng('dropout'), present, grid) & here


def unit(x: Float[Array, '*places d']) -> Float[Array, '*places d']:
    """x / |x| over the last axis, of vectors that are not 0."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-12)


def patches(x: Float[Array, 'batch *places c'], patch: tuple[int, ...]) -> Float[Array, 'batch n voxels']:
    """Non-overlapping patches, row by row. ConfigError where a side is no multiple of them."""
    batch, *sides, channels = x.shape
    if any(n % p for n, p in zip(sides, patch)):
        raise errors.ConfigError(f'modality_vit: an input of {" x ".join(map(str, sides))} cannot be cut into patches '
                                 f'of {" x ".join(map(str, patch))}. Set model.patch to divisors of its sides.')
    x = x.reshape(batch, *(n for side, p in zip(sides, patch) for n in (side // p, p)), channels)
    x = x.transpose(0, *range(1, x.ndim - 1, 2), *range(2, x.ndim - 1, 2), x.ndim - 1)
    return x.reshape(batch, math.prod(n // p for n, p in zip(sides, patch)), -1)


def positions(grid: Sequence[int], width: int) -> Float[np.ndarray, 'n width']:
    """Sines and cosines of each axis, of wave lengths from 2 pi to 20000 pi patches; an equal share of the width for
    each axis, zeros where it does not divide.
    """
    count = width // (2 * len(grid))
    angles = [np.arange(n)[:, None] / 10000 ** (np.arange(count) / max(count, 1)) for n in grid]
    waves = [np.concatenate([np.sin(a), np.cos(a)], 1) for a in angles]  # [n, 2 count] of each axis
    places = np.stack(np.meshgrid(*(np.arange(n) for n in grid), indexing='ij'), -1).reshape(-1, len(grid))
    table = np.concatenate([waves[axis][places[:, axis]] for axis in range(len(grid))], 1)
    return np.pad(table, ((0, 0), (0, width - table.shape[1]))).astype(np.float32)


def budget(tokens: int, ratio: float) -> int:
    """Tokens that are seen: at least one."""
    return max(1, round((1 - ratio) * tokens))


def seen_patches(key: PRNGKeyArray, present: Bool[Array, 'batch m'], places: int, ratio: float
                 ) -> Bool[Array, 'batch m places']:
    """The tokens of the budget, of all modalities, that are seen: no more than those that the case has."""
    split, order = jax.random.split(key)
    share = jax.random.exponential(split, present.shape)  # Dirichlet(1) but for its sum
    rank = jnp.argsort(jnp.argsort(jax.random.uniform(order, (*present.shape, places)), -1), -1)
    return by_shares(share, rank, present, budget(present.shape[1] * places, ratio))


def by_shares(share: Float[Array, 'batch m'], rank: Shaped[Array, 'batch m places'], present: Bool[Array, 'batch m'],
              count: int) -> Bool[Array, 'batch m places']:
    """Whether a token is among the `count` with the greatest share / (rank + 1/2), of the present modalities."""
    priority = jnp.where(present[..., None], share[..., None] / (rank + 0.5), -1).reshape(present.shape[0], -1)
    _, index = jax.lax.top_k(priority, count)
    chosen = jnp.zeros(priority.shape, bool).at[jnp.arange(len(priority))[:, None], index].set(True)
    return (chosen & (priority >= 0)).reshape(rank.shape)


def hidden_modality(key: PRNGKeyArray, present: Bool[Array, 'batch m'], grid: tuple[int, ...]
                    ) -> Bool[Array, 'batch m n']:
    """All places of one random modality of each case that has several, and a block of places in half of the cases."""
    keys = jax.random.split(key, 6)
    batch, count = present.shape
    one = jax.random.categorical(keys[0], jnp.where(present, 0.0, -jnp.inf))  # an absent case has none to hide
    whole = (jnp.arange(count) == one[:, None]) & (present.sum(1, keepdims=True) > 1)
    places = jnp.stack(jnp.meshgrid(*((jnp.arange(n) + 0.5) / n for n in grid), indexing='ij'), -1)
    places = places.reshape(-1, len(grid))
    centre = jax.random.uniform(keys[1], (batch, 1, len(grid)))
    stretch = jnp.exp(jax.random.uniform(keys[2], (batch, 1, len(grid)), minval=-0.6, maxval=0.6))
    rank = jnp.argsort(jnp.argsort(jnp.max(jnp.abs(places - centre) * stretch, -1), -1), -1)  # [B,N]
    ratio = jax.random.uniform(keys[3], (batch, 1), minval=BLOCK[0], maxval=BLOCK[1])
    block = (rank < jnp.round(ratio * len(places))) & (jax.random.uniform(keys[4], (batch, 1)) < 0.5)
    return whole[..., None] | block[:, None]


PLUGIN = ModelPlugin()
