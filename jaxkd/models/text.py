"""Text encoder for reports: 4 pre-LN layers, width 256, 4 heads, learned positions, CLS pooling [our choice].

Small enough to train from scratch on a few hundred reports; the block is the one of the image network
(jaxkd.models.layers.transformer). A pretrained encoder fits in as another file of this folder with the same inputs and
outputs.

Input: inputs['tokens'] int32 [B,L], L <= `length`, [CLS] first, 0 = [PAD]. Padded positions are never
attended to, so they do not influence the output, and a batch may be padded to any length. Position 0 is
always visible: the softmax of a case without text would otherwise be over nothing.
Initial weights [our choice]: as in the image network; embeddings truncated normal 0.02.

Parameters: embedding/embedding [vocab,d], positions [length,d], encoder/... (see jaxkd.models.layers.transformer),
head/linear.
Returns: logits [B,outputs] (absent for outputs=0), pooled [B,d], tokens_out [B,L,d], block00... [B,L,d]; with
capture=('attention',) attention float32 [B,depth,heads,L,L] after softmax and before dropout.
The states at padded positions are meaningless. With `step` a part alone: -1 the embedding, else that of the encoder
with `states`.
"""
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Int
from ml_collections import ConfigDict, FrozenConfigDict

from jaxkd import errors
from jaxkd.contracts import ModelPlugin
from jaxkd.data import transform
from jaxkd.models.layers import initial, transformer

DEFAULTS = dict(
    vocab=8192,  # size of the vocabulary: that of the transform `text`
    length=256,  # most tokens of a report: that of the transform `text`
    width=256,  # features of a token
    depth=4,  # number of blocks
    heads=4,  # attention heads of a block; they divide width
    mlp=4,  # hidden width of a block's MLP, over width
    dropout=0.1,  # share dropped of embeddings, of each branch of a block and of pooled, 0 to below 1
    attention_dropout=0.0,  # share dropped of attention probabilities, 0 to below 1
    remat=False,  # compute the blocks again in the backward pass: less memory, about a third more time
)


def build(hp: ConfigDict, outputs: int, dtype: DTypeLike = jnp.float32) -> 'Text':
    """The module for an hp like DEFAULTS. Raises ConfigError when heads does not divide width."""
    transformer.check_shape('text', hp.width, hp.depth, hp.heads)
    encoder = transformer.Encoder(hp.depth, hp.heads, hp.mlp, hp.dropout, hp.attention_dropout, remat=hp.remat,
                                  dtype=dtype)
    return Text(encoder, FrozenConfigDict(hp), outputs, dtype)


def check(hp: ConfigDict, data: ConfigDict, model: str = 'text') -> None:
    """ConfigError if the transform that writes tokens has a larger vocabulary or longer reports than the network."""
    for name, options, size in token_writers(data):
        for key, value in (('vocab', size), ('length', options.length)):
            if value > hp[key]:
                raise errors.ConfigError(f'{model}: data.{name} has {key} = {value}, which is more than the network\'s '
                                         f'{key} = {hp[key]}. Give both the same number.')


def token_writers(data: ConfigDict) -> Iterator[tuple[str, ConfigDict, int]]:
    """(name, options, number of words) of each transform in a resolved data config that writes tokens."""
    for name in data.transforms:
        short, vocabulary_size = transform.short_name(name), transform.plugin(name).vocabulary_size
        if vocabulary_size and data[short].out == 'tokens':
            yield short, data[short], vocabulary_size(data[short])


def check_length(model: str, tokens: Int[Array, 'batch tokens'], length: int) -> None:
    """ConfigError for tokens [B,L] with L > length, the number of positions."""
    if tokens.shape[1] > length:
        raise errors.ConfigError(f'{model}: {tokens.shape[1]} tokens do not fit length={length}. Raise the model\'s '
                                 'length or shorten the tokenizer\'s.')


class Text(nn.Module):
    """See the module's docstring."""
    encoder: transformer.Encoder
    hp: FrozenConfigDict
    outputs: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = (),
                 offset: transformer.AttentionMap | None = None, step: int | None = None,
                 states: transformer.Tokens | None = None) -> dict[str, Array]:
        hp, tokens = self.hp, inputs['tokens']
        visible = (tokens != 0) | (jnp.arange(tokens.shape[1]) == 0)
        if step is not None and step >= 0:
            assert states is not None
            return self.encoder(states, train, visible=visible, step=step)
        check_length('text', tokens, hp.length)
        x = nn.Embed(hp.vocab, hp.width, embedding_init=initial.small_normal, dtype=self.dtype,
                     name='embedding')(tokens)
        positions = self.param('positions', initial.small_normal, (hp.length, hp.width))
        x = x + positions[:tokens.shape[1]].astype(x.dtype)
        x = nn.Dropout(hp.dropout)(x, deterministic=not train)
        if step is not None:
            return {'tokens': x}
        out = self.encoder(x, train, capture, visible, offset)
        return transformer.with_logits(out, self.outputs, hp.dropout, train)


PLUGIN = ModelPlugin(check=check)
