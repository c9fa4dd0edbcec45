"""Networks for one row of numbers for each case: the teacher that reads a table.

    mlp      x -> D, widths[0], ..., widths[-1]: linear, LayerNorm, GELU, dropout each -> linear logits [our choice]
    linear   logits = W x + b: logistic regression
    ft       FT-Transformer (Gorishniy, Rubachev, Khrulkov, Babenko: Revisiting deep learning models for tabular data,
             NeurIPS 2021 [published]): feature j becomes the token x_j w_j + b_j, a CLS token goes in front, pre-LN
             blocks (jaxkd.models.layers.transformer), logits from the CLS state. [our choice] MLP ratio and GELU of
             our encoder, where the reference has a ReGLU; its first block has no first LayerNorm, ours does; a ReLU
             before its head is left out.

Input: inputs['row'] float32 [B,D], scaled by the transform `table`; where nothing is known of a case, zeros.
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
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.models.layers import transformer
from jaxkd.models.layers.transformer import AttentionMap

KINDS = ('mlp', 'linear', 'ft')
DEFAULTS = dict(
    kind='mlp',  # or 'linear', 'ft'
    widths=(128, 64),  # of mlp
    width=64, depth=3, heads=8, mlp=4,  # of ft; mlp is the ratio within a block
    dropout=0.2,
    attention_dropout=0.0,  # of ft
    input='row',
)


def build(hp: ConfigDict, outputs: int, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The module for an hp like DEFAULTS. Raises ConfigError for a kind or width that does not exist."""
    if hp.kind not in KINDS:
        raise errors.ConfigError(f'tabular.kind = "{hp.kind}".{errors.nearest(hp.kind, KINDS)}')
    if hp.kind == 'linear':
        return Linear(outputs, hp.input)
    if hp.kind == 'mlp':
        if not hp.widths or min(hp.widths) < 1:
            raise errors.ConfigError(f'tabular.widths = {tuple(hp.widths)} must be positive numbers, at least one.')
        return Mlp(outputs, tuple(hp.widths), hp.dropout, hp.input, dtype)
    transformer.check_shape('tabular', hp.width, hp.depth, hp.heads)
    encoder = transformer.Encoder(hp.depth, hp.heads, hp.mlp, hp.dropout, hp.attention_dropout, dtype=dtype)
    return Transformer(encoder, outputs, hp.width, hp.dropout, hp.input, dtype)


class Linear(nn.Module):
    """Logistic regression."""
    outputs: int
    input: str

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = ()) -> dict[str, Array]:
        row = _row(inputs, self.input)
        return {'pooled': row} | ({'logits': transformer.Head(self.outputs, 0.0, name='head')(row, train)}
                                  if self.outputs else {})


class Mlp(nn.Module):
    """See the module's docstring."""
    outputs: int
    widths: tuple[int, ...]
    dropout: float
    input: str
    dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = ()) -> dict[str, Array]:
        x = _row(inputs, self.input).astype(self.dtype)
        last = len(self.widths) - 1
        for i, width in enumerate(self.widths):
            x = transformer.Dense(width, dtype=self.dtype, name=f'layer{i}')(x)
            x = transformer.LayerNorm(dtype=self.dtype, name=f'norm{i}')(x)
            x = jax.nn.gelu(x, approximate=False)
            if i < last:  # the head has a dropout of its own
                x = nn.Dropout(self.dropout)(x, deterministic=not train)
        out = {'pooled': x.astype(jnp.float32)}
        if self.outputs:
            out['logits'] = transformer.Head(self.outputs, self.dropout, name='head')(out['pooled'], train)
        return out


class Transformer(nn.Module):
    """See the module's docstring."""
    encoder: transformer.Encoder
    outputs: int
    width: int
    dropout: float
    input: str
    dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = (),
                 offset: AttentionMap | None = None) -> dict[str, Array]:
        row = _row(inputs, self.input)
        reach = self.width ** -0.5

        def uniform(key, shape):
            return jax.random.uniform(key, shape, minval=-reach, maxval=reach)
        weights = self.param('weights', uniform, (row.shape[1], self.width))
        biases = self.param('biases', uniform, (row.shape[1], self.width))
        cls = self.param('cls', uniform, (1, 1, self.width))
        x = row[:, :, None] * weights + biases  # [B,D,d]
        x = jnp.concatenate([jnp.broadcast_to(cls, (len(row), 1, self.width)), x], axis=1).astype(self.dtype)
        out = self.encoder(x, train, capture, offset=offset)
        if self.outputs:
            out['logits'] = transformer.Head(self.outputs, self.dropout, name='head')(out['pooled'], train)
        return out


def _row(inputs: Mapping[str, Any], name: str) -> Float[Array, 'batch columns']:
    if name not in inputs or inputs[name].ndim != 2:
        given = ', '.join(f'{k} {v.shape}' for k, v in inputs.items() if k != 'present')
        raise errors.ConfigError(f'tabular reads "{name}" [B,D], it was handed {given}. Name it in inputs, or another '
                                 'in model.input.')
    return jnp.asarray(inputs[name], jnp.float32)
