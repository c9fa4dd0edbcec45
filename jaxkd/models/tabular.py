"""Networks for one row of numbers for each case: the teacher that reads a table.

    mlp      x -> D, widths[0], ..., widths[-1]: linear, LayerNorm, GELU, dropout each -> linear logits [our choice]
    linear   logits = W x + b: logistic regression
    ft       FT-Transformer (Gorishniy, Rubachev, Khrulkov, Babenko: Revisiting deep learning models for tabular data,
             NeurIPS 2021 [published]): feature j becomes the token x_j w_j + b_j, a CLS token goes in front, pre-LN
             blocks (jaxkd.models.layers.transformer), logits from the CLS state. [our choice] MLP ratio and GELU of
             our encoder, where the reference has a ReGLU; its first block has no first LayerNorm, ours does; a ReLU
             before its head is left out.

Input: inputs['row'] float32 [B,D], scaled by the transform `table`; zeros for a case without a row.
Initial weights [our choice]: Xavier uniform in hidden layers, truncated normal 0.02 for the head; tokens of ft uniform
in +-1/sqrt(width), as published.

Parameters: mlp  layerN/{kernel, bias}, normN; linear  head/linear; ft  weights, biases [D,d], cls [1,1,d],
encoder/...; head/linear.
Returns: logits [B,outputs] (absent for outputs=0), pooled float32 [B,d]: the last hidden layer, the CLS state, or the
row itself.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from ml_collections import ConfigDict, FrozenConfigDict

from jaxkd import errors
from jaxkd.models.layers import transformer

KINDS = ('mlp', 'linear', 'ft')
DEFAULTS = dict(
    kind='mlp',  # mlp, linear or ft (FT-Transformer)
    widths=(128, 64),  # mlp: features of each hidden layer
    width=64,  # ft: features of a token
    depth=3,  # ft: number of blocks
    heads=8,  # ft: attention heads of a block; they divide width
    mlp=4,  # ft: hidden width of a block's MLP, over width
    dropout=0.2,  # mlp, ft: share dropped in hidden layers and before the head, 0 to below 1
    attention_dropout=0.0,  # ft: share dropped of attention probabilities, 0 to below 1
    input='row',  # key of the row in a batch
)


def build(hp: ConfigDict, outputs: int, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The module for an hp like DEFAULTS. Raises ConfigError for a kind or width that does not exist."""
    errors.check_choice('tabular.kind', hp.kind, KINDS)
    if hp.kind == 'linear':
        return Linear(outputs, hp.input)
    if hp.kind == 'mlp':
        if not hp.widths or min(hp.widths) < 1:
            raise errors.ConfigError(f'tabular.widths = {tuple(hp.widths)} must be positive numbers, at least one.')
        return Mlp(FrozenConfigDict(hp), outputs, dtype)
    transformer.check_shape('tabular', hp.width, hp.depth, hp.heads)
    encoder = transformer.Encoder(hp.depth, hp.heads, hp.mlp, hp.dropout, hp.attention_dropout, dtype=dtype)
    return Transformer(encoder, FrozenConfigDict(hp), outputs, dtype)


class Linear(nn.Module):
    """Logistic regression."""
    outputs: int
    input: str

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = ()) -> dict[str, Array]:
        row = _row(inputs, self.input)
        return transformer.with_logits({'pooled': row}, self.outputs, 0.0, train)


class Mlp(nn.Module):
    """See the module's docstring."""
    hp: FrozenConfigDict
    outputs: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = ()) -> dict[str, Array]:
        x = _row(inputs, self.hp.input).astype(self.dtype)
        for i, width in enumerate(self.hp.widths):
            x = transformer.Dense(width, dtype=self.dtype, name=f'layer{i}')(x)
            x = transformer.LayerNorm(dtype=self.dtype, name=f'norm{i}')(x)
            x = jax.nn.gelu(x, approximate=False)
            if i < len(self.hp.widths) - 1:  # the head has its dropout
                x = nn.Dropout(self.hp.dropout)(x, deterministic=not train)
        return transformer.with_logits({'pooled': x.astype(jnp.float32)}, self.outputs, self.hp.dropout, train)


class Transformer(nn.Module):
    """See the module's docstring."""
    encoder: transformer.Encoder
    hp: FrozenConfigDict
    outputs: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = (),
                 offset: transformer.AttentionMap | None = None) -> dict[str, Array]:
        row, width = _row(inputs, self.hp.input), self.hp.width

        def uniform(key, shape):
            return jax.random.uniform(key, shape, minval=-width ** -0.5, maxval=width ** -0.5)
        weights, biases = (self.param(name, uniform, (row.shape[1], width)) for name in ('weights', 'biases'))
        cls = self.param('cls', uniform, (1, 1, width))
        x = row[:, :, None] * weights + biases  # [B,D,d]
        x = jnp.concatenate([jnp.broadcast_to(cls, (row.shape[0], 1, width)), x], axis=1).astype(self.dtype)
        out = self.encoder(x, train, capture, offset=offset)
        return transformer.with_logits(out, self.outputs, self.hp.dropout, train)


def _row(inputs: Mapping[str, Any], name: str) -> Float[Array, 'batch columns']:
    if name not in inputs or inputs[name].ndim != 2:
        shapes = ', '.join(f'{k} {v.shape}' for k, v in inputs.items() if k != 'present')
        raise errors.ConfigError(f'tabular reads "{name}" [B,D], it was handed {shapes}. Name it in inputs, or another '
                                 'in model.input.')
    return jnp.asarray(inputs[name], jnp.float32)
