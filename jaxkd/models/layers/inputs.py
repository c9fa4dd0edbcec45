"""Networks with an encoder for each of several inputs, of which a case may lack any."""
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.config import plugins
from jaxkd.models.layers import backbone


def encoders(hp: ConfigDict, model: str, dtype: DTypeLike) -> tuple[tuple[str, ...], tuple[nn.Module, ...]]:
    """(names of inputs in alphabetical order, their modules without logits) of hp.encoders, input -> options.

    ConfigError for fewer than two.
    """
    names = tuple(sorted(hp.encoders))
    if len(names) < 2:
        raise errors.ConfigError(f'{model}.encoders holds {len(names)} networks. Name one for each of two or more '
                                 f'inputs, as in encoders=dict(ct=dict(name="resnet"), t2=dict(name="resnet")).')
    modules = (plugins.load('models', hp.encoders[name].name).build(hp.encoders[name], 0, dtype) for name in names)
    return names, tuple(modules)


def flags(model: str, names: Sequence[str], inputs: Mapping[str, Any]) -> Float[Array, 'batch inputs']:
    """1 where a case has the input: present [B,M]. ConfigError unless the network reads the inputs `names`."""
    given = sorted(k for k in inputs if k != 'present')
    if given != sorted(names):
        raise errors.ConfigError(f'{model}: model.encoders names {", ".join(names)}, but the network reads '
                                 f'{", ".join(given)}. Name the same inputs.')
    cases, present = inputs[names[0]].shape[0], inputs.get('present', {})
    return jnp.stack([jnp.asarray(present.get(name, jnp.ones(cases)), jnp.float32) for name in names], 1)


def pooled(encoder: nn.Module, name: str, inputs: Mapping[str, Any], present: Float[Array, ' batch'],
           train: bool) -> Float[Array, 'batch width']:
    """The pooled features of one input, zeros and without gradient for a case that lacks it; its content is not read.
    """
    x = backbone.zero_absent(present > 0, inputs[name])
    return backbone.zero_absent(present > 0, encoder({name: x}, train)['pooled'].astype(jnp.float32))
