"""Several inputs with a head for each and one for all together (MIND, Guerra-Manzanares and Shamout, TMLR 2025
[published]: a small network that needs no imputation for what a case lacks).

    f_m = pooled features of input m by an encoder of its own
    z_m = W_m f_m + b_m,  z_fused = W [f_1, ..., f_M] + b
    logits = z_fused of a case that has all inputs, else the mean of z_m over those that it has       [our choice]

What the heads learn: their labels by the loss `heads`, teachers of one input each by `ensemble` with the tap
logits_<input>, all of them with logits_fused (jaxkd/distillation).

Input: those that `encoders` names, and optionally inputs['present'] {name: [B]}. Returns: logits, logits_fused,
logits_<input> [B,outputs] (zeros and without gradient for an input that the case lacks), heads [B,M+1,outputs] (those
of the inputs, then the fused one), present float32 [B,M+1] (which of them apply), pooled [B,sum d], pooled_<input>
[B,d]. Without logits for outputs=0. Parameters: <input>/..., head_<input>, head/linear.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from jaxkd.contracts import ModelPlugin
from jaxkd.models.layers import backbone, transformer
from jaxkd.models.layers import inputs as several

DEFAULTS = dict(
    encoders={},  # input -> name and options of a model with the output pooled
    dropout=0.0,  # share of fused features dropped before their head, 0 to below 1
)


def build(hp: ConfigDict, outputs: int, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The module for an hp like DEFAULTS. Errors are those of the encoders."""
    transformer.check_dropout(hp.dropout)
    names, encoders = several.encoders(hp, 'mind', dtype)
    return Mind(names, encoders, outputs, hp.dropout)


class Mind(nn.Module):
    """See the module's docstring."""

    names: tuple[str, ...]
    encoders: tuple[nn.Module, ...]
    outputs: int
    dropout: float

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = ()) -> dict[str, Array]:
        present = several.flags('mind', self.names, inputs)
        features = [several.pooled(encoder.clone(name=name, parent=self), name, inputs, present[:, m], train)
                    for m, (name, encoder) in enumerate(zip(self.names, self.encoders))]
        out = {f'pooled_{name}': f for name, f in zip(self.names, features)}
        out['pooled'] = jnp.concatenate(features, -1)
        if not self.outputs:
            return out
        fused = transformer.with_logits(out, self.outputs, self.dropout, train)['logits']
        heads = [backbone.zero_absent(present[:, m] > 0, nn.Dense(
            self.outputs, kernel_init=transformer.small_normal, name=f'head_{name}')(f))
            for m, (name, f) in enumerate(zip(self.names, features))]
        alone = backbone.masked_mean(jnp.stack(heads), present.T > 0)
        complete = jnp.all(present > 0, 1)
        out |= {f'logits_{name}': z for name, z in zip(self.names, heads)}
        return out | {'logits': jnp.where(complete[:, None], fused, alone), 'logits_fused': fused,
                      'heads': jnp.stack([*heads, fused], 1),
                      'present': jnp.concatenate([present, complete[:, None].astype(jnp.float32)], 1)}


PLUGIN = ModelPlugin(parts={'encoders': 'models'})
