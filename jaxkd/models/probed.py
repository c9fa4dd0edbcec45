"""Any network with linear probes at named taps: what can be read, class by class, from its intermediate features.

    g_l = Dense(K) of the mean over places of F_l        bias on, no hidden layer [our choice]; Alain and Bengio, 2017
                                                         [published]

taps name outputs of the network inside, [B,...,C] or [B,C]. Outputs: those of the network inside and probe_<tap> [B,K]
for each tap. frozen=True reads features that are not to change: the network inside runs as in evaluation, batch
statistics included, and no gradient reaches it (freeze its parameters in `optim`, too: weight decay knows no
gradients).

Parameters: of/..., probe_<tap>/{kernel, bias}.
"""
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from jaxkd import config, errors
from jaxkd.contracts import ModelPlugin

DEFAULTS = dict(
    of={},  # the network inside: name and options
    taps=(),  # outputs of the network inside that get a probe
    frozen=False,  # the network inside runs as in evaluation, without a gradient
)


def build(hp: ConfigDict, outputs: int, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The module for an hp like DEFAULTS. Errors are those of the network inside; an unknown tap is one when it is
    run.
    """
    module, inside = config.options('models', hp.of.to_dict(), 'probed.of')
    return Probed(module.build(inside, outputs, dtype), outputs, tuple(hp.taps), hp.frozen)


class Probed(nn.Module):
    """See the module's docstring."""

    of: nn.Module
    outputs: int
    taps: tuple[str, ...]
    frozen: bool

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, **options: Any) -> dict[str, Array]:
        out = self.of(inputs, train and not self.frozen, **options)
        out = jax.lax.stop_gradient(out) if self.frozen else out
        for tap in self.taps:
            if tap not in out:
                raise errors.ConfigError(f'probed.taps: the network gives no "{tap}".{errors.nearest(tap, out)}')
            x = out[tap].astype(jnp.float32)
            pooled = jnp.mean(x, tuple(range(1, x.ndim - 1)))
            out = {**out, f'probe_{tap}': nn.Dense(self.outputs, name=f'probe_{tap}')(pooled)}
        return out


PLUGIN = ModelPlugin(nested=('of',))
