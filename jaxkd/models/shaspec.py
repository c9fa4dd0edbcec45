"""Shared and specific features of several inputs (ShaSpec, Wang et al., CVPR 2023 [published]), for classification.

    sh_m = pooled features of input m by one encoder for all inputs,  sp_m by an encoder of its own
    f_m  = sh_m + W [sh_m, sp_m]          where the case has input m
           mean of sh over the inputs that it has, elsewhere [the published code takes one of them]
    logits = linear of the mean of f_m

The losses that make sh alike and sp tell the inputs apart are jaxkd/distillation/shaspec_ring.py and shaspec_domain.py;
`drop='count'` of the method distil hides inputs in training as the published code does.

Input: as many images or volumes of one shape as `inputs` says, under any names (taken in alphabetical order), and
optionally inputs['present'] {name: [B]}. Returns: logits [B,outputs] (absent for outputs=0), pooled [B,d], shared
[B,M,d], specific [B,M,d], domain [B,M,M] (which input is it?), present float32 [B,M]. Parameters: shared/...,
specific_<m>/..., compose, domain, head/linear.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from jaxkd import config, errors
from jaxkd.contracts import ModelPlugin
from jaxkd.models.layers import backbone, transformer

DEFAULTS = dict(
    of={},  # the encoder: name and options of a model with the output pooled
    inputs=2,  # number of inputs, 2 to 16
    dropout=0.0,  # share of pooled features dropped before the head, 0 to below 1
)


def build(hp: ConfigDict, outputs: int, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The module for an hp like DEFAULTS. Errors are those of the encoder."""
    errors.check_range('model.inputs', hp.inputs, '[2, 16]')
    module, inside = config.options('models', hp.of.to_dict(), 'shaspec.of')
    encoders = [module.build(inside, 0, dtype) for _ in range(hp.inputs + 1)]
    return ShaSpec(encoders[0], tuple(encoders[1:]), outputs, hp.dropout)


class ShaSpec(nn.Module):
    """See the module's docstring."""

    shared: nn.Module
    specific: tuple[nn.Module, ...]
    outputs: int
    dropout: float

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = ()) -> dict[str, Array]:
        names = sorted(k for k in inputs if k != 'present')
        if len(names) != len(self.specific):
            raise errors.ConfigError(f'shaspec: model.inputs = {len(self.specific)}, but the network reads '
                                     f'{", ".join(names)}. Set model.inputs={len(names)}.')
        cases, flags = inputs[names[0]].shape[0], inputs.get('present', {})
        present = jnp.stack([jnp.asarray(flags.get(name, jnp.ones(cases)), jnp.float32) for name in names], 1)
        seen = [backbone.zero_absent(present[:, m] > 0, inputs[name]) for m, name in enumerate(names)]
        pooled = [[encoder({'image': x}, train)['pooled'].astype(jnp.float32) for encoder, x in zip(encoders, seen)]
                  for encoders in ([self.shared] * len(seen), self.specific)]
        shared, specific = (jnp.stack(features, 1) for features in pooled)
        composed = shared + nn.Dense(shared.shape[-1], name='compose')(jnp.concatenate([shared, specific], -1))
        here = present[..., None]
        common = jnp.sum(shared * here, 1, keepdims=True) / jnp.maximum(here.sum(1, keepdims=True), 1)
        out = {'shared': shared, 'specific': specific, 'domain': nn.Dense(len(names), name='domain')(specific),
               'present': present, 'pooled': jnp.mean(jnp.where(here > 0, composed, common), 1)}
        return transformer.with_logits(out, self.outputs, self.dropout, train)


PLUGIN = ModelPlugin(nested=('of',))
