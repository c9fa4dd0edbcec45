"""Two frozen encoders, of an image and of words, that tell each other little after each block: a teacher that has few
weights to train (the fusion of MMA-DFER, Chumachenko, Iosifidis, Gabbouj, CVPR Workshops 2024 [published]).

    after a block, of the tokens v of the image and a of the words:
        v' = down(v), a' = down(a)                               linear, to `width`
        v  <- v + up(v' + mean_tokens a'),  a <- a + up(a' + mean_tokens v')
    pooled = LN [pooled image, pooled words], logits linear
width = 128 [published]. [our choice] up begins at zero, so that training begins at the two encoders as they were; of
unequal depths the last blocks of both are paired; means over words leave padding out; an input that a case lacks says
nothing to the other, and its pooled state is 0. The article's prompts and its transformer over time are left out.

The encoders run as in evaluation. Their weights: init.parts = dict(image=dict(stage=...), text=dict(stage=...)), and
optim.freeze = ('student/image/', 'student/text/') keeps them.

Input: inputs['image'] and inputs['tokens'] as in jaxkd.models.vit and jaxkd.models.text, optionally inputs['present'].
Parameters: image/..., text/..., exchange<n>/{down_image, down_text, up_image, up_text}, norm, head/linear.
Returns: logits [B,outputs] (absent for outputs=0), pooled float32 [B,d_image+d_text], image_pooled, text_pooled.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import ModelPlugin
from jaxkd.models import fusion, text, vit
from jaxkd.models.layers import transformer

DEFAULTS = dict(
    image=dict(vit.DEFAULTS),
    text=dict(text.DEFAULTS),
    width=128,  # features of the bottleneck between image and text
    dropout=0.1,  # share of pooled features dropped before the head, 0 to below 1
)


def build(hp: ConfigDict, outputs: int, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The module for an hp like DEFAULTS. Errors are those of the two networks."""
    errors.check_range('model.width', hp.width, '[1, inf)')
    depths = vit.shape(hp.image)[1], hp.text.depth
    return Bottleneck(vit.build(hp.image, 0, dtype), text.build(hp.text, 0, dtype), depths, hp.width, outputs,
                      hp.dropout, dtype)


class Exchange(nn.Module):
    """What the two sides tell each other after a block."""

    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, image: transformer.Tokens, words: transformer.Tokens, weights: Sequence[Float[Array, 'b n']]
                 ) -> tuple[transformer.Tokens, transformer.Tokens]:
        """weights: of the tokens of either side in its mean, rows of sum 1, or 0 where a case lacks the input."""
        names = ('image', 'text')
        low = [transformer.Dense(self.width, dtype=self.dtype, name=f'down_{name}')(x)
               for name, x in zip(names, (image, words))]
        means = [jnp.einsum('bn,bnd->bd', w.astype(x.dtype), x)[:, None] for w, x in zip(weights, low)]
        new = [x + nn.Dense(x.shape[-1], kernel_init=nn.initializers.zeros, dtype=self.dtype, name=f'up_{name}')(y + m)
               for name, x, y, m in zip(names, (image, words), low, means[::-1])]
        return new[0], new[1]


class Bottleneck(nn.Module):
    """See the module's docstring."""
    image: vit.Vit
    text: text.Text
    depths: tuple[int, int]
    width: int
    outputs: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = ()) -> dict[str, Array]:
        sides, cases = (self.image, self.text), inputs['tokens'].shape[0]
        flags = inputs.get('present', {})
        present = [jnp.asarray(flags.get(name, jnp.ones(cases)), jnp.float32)[:, None] for name in ('image', 'tokens')]
        states = [side(inputs, step=-1)['tokens'] for side in sides]
        visible = (inputs['tokens'] != 0) | (jnp.arange(inputs['tokens'].shape[1]) == 0)
        weights = [w / w.sum(1, keepdims=True) * here
                   for w, here in zip((jnp.ones(states[0].shape[:2]), visible.astype(jnp.float32)), present)]
        paired = min(self.depths)
        for n in range(-max(self.depths), 0):  # counted from the end of both
            states = [side(inputs, step=depth + n, states=x)['tokens'] if depth + n >= 0 else x
                      for side, depth, x in zip(sides, self.depths, states)]
            if n >= -paired:
                exchange = Exchange(self.width, self.dtype, name=f'exchange{paired + n}')
                states = [*exchange(states[0], states[1], weights)]
        ends = [side(inputs, step=depth, states=x)['pooled'] * here
                for side, depth, x, here in zip(sides, self.depths, states, present)]
        pooled = transformer.LayerNorm(name='norm')(jnp.concatenate(ends, -1))
        out = {'image_pooled': ends[0], 'text_pooled': ends[1], 'pooled': pooled}
        return transformer.with_logits(out, self.outputs, self.dropout, train)


PLUGIN = ModelPlugin(check=fusion.check)
