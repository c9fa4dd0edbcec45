"""Image and text together: both pooled states, concatenated -> LayerNorm -> linear [our choice].

The teacher for which the image is one more input (`priv+image`). Not for the student: it reads the text.

Input: inputs['image'] and inputs['tokens'] as in jaxkd.models.vit and jaxkd.models.text. Parameters:
image/..., text/..., norm, head/linear.
Returns: logits [B,outputs] (absent for outputs=0), pooled float32 [B,d_image+d_text] after the LayerNorm, and
all states of the two networks as image_* and text_*, for example image_block00, text_pooled, image_attention.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from jaxkd.contracts import ModelPlugin
from jaxkd.models import text, vit
from jaxkd.models.layers import transformer

DEFAULTS = dict(
    image=dict(vit.DEFAULTS),
    text=dict(text.DEFAULTS),
    dropout=0.1,  # share of pooled features dropped before the head, 0 to below 1
)


def build(hp: ConfigDict, outputs: int, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The module for an hp like DEFAULTS. Errors are those of the two networks."""
    return Fusion(vit.build(hp.image, 0, dtype), text.build(hp.text, 0, dtype), outputs, hp.dropout)


def check(hp: ConfigDict, data: ConfigDict) -> None:
    """As for `text`."""
    text.check(hp.text, data)


class Fusion(nn.Module):
    """See the module's docstring."""
    image: vit.Vit
    text: text.Text
    outputs: int
    dropout: float

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = ()) -> dict[str, Array]:
        image, words = self.image(inputs, train, capture), self.text(inputs, train, capture)
        pooled = transformer.LayerNorm(name='norm')(jnp.concatenate([image['pooled'], words['pooled']], axis=-1))
        out = {f'image_{k}': v for k, v in image.items()} | {f'text_{k}': v for k, v in words.items()}
        return transformer.with_logits(out | {'pooled': pooled}, self.outputs, self.dropout, train)


PLUGIN = ModelPlugin(check=check)
