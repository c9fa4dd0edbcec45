"""One encoder that reads several views of a case, for losses between its own outputs.

The first view, an input called `first`, gives the outputs of the encoder under their names; those of every other input
have its name behind them: pooled, pooled_style, pooled_view. Inputs have one shape. A network that reads `first` alone
is the encoder. Parameters are those of the encoder, under the same names: a stage with the encoder itself as its model
starts from them. MSVCL has one encoder for styles and views (Li et al., MICCAI 2021 [published]).
"""
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from jaxkd import config, errors
from jaxkd.contracts import ModelPlugin

DEFAULTS: dict[str, Any] = dict(
    of={},  # the encoder: name and options
    first='image',  # the input whose outputs keep the encoder's names
)


def build(hp: ConfigDict, outputs: int, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The module for an hp like DEFAULTS. Errors are those of the encoder."""
    module, inside = config.options('models', hp.of.to_dict(), 'views.of')
    return Views(module.build(inside, outputs, dtype), hp.first)


class Views(nn.Module):
    """See the module's docstring."""

    of: nn.Module
    first: str

    def setup(self) -> None:
        nn.share_scope(self, self.of)

    def __call__(self, inputs: Mapping[str, Any], train: bool = False, **options: Any) -> dict[str, Array]:
        others = sorted(k for k in inputs if k not in ('present', self.first))
        if self.first not in inputs or any(inputs[k].shape != inputs[self.first].shape for k in others):
            raise errors.ConfigError(f'views: the network reads {", ".join(k for k in inputs if k != "present")}. One '
                                     f'must be "{self.first}", all of one shape.')
        stacked = jnp.concatenate([inputs[k] for k in (self.first, *others)])
        out = self.of({self.first: stacked}, train, **options)
        count = inputs[self.first].shape[0]
        return {name if n == 0 else f'{name}_{others[n - 1]}': value[n * count:(n + 1) * count]
                for name, value in out.items() for n in range(1 + len(others))}


PLUGIN = ModelPlugin(nested=('of',))
