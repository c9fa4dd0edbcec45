"""BERT, a text encoder that comes with pretrained weights (Devlin et al., NAACL 2019 [published]).

    x <- LN(word + position + type embedding);  x <- LN(x + attention(x));  x <- LN(x + mlp(x)) in each block
Exact GELU; the type is always the first: a report is one text. The defaults are BERT-base (BioClinicalBERT, CXR-BERT);
all-MiniLM-L6-v2 is width=384, depth=6, pool='mean', normalise=True.

Input: inputs['tokens'] int32 [B,L], L <= `length`, [CLS] first, 0 = [PAD]: transforms/wordpiece.py with the vocabulary
of the weights. Padded positions are never attended to, so they do not influence the output, and a batch may be padded
to any length. Position 0 is always visible: the softmax of a case without text would otherwise be over nothing.
Initial weights: embeddings truncated normal 0.02 [published], the rest as in the image network [our choice].

Parameters: words/embedding [vocab,d], positions [length,d], types [2,d], norm, blockNN/{attn/{qkv, proj}, norm1,
mlp/{fc1, fc2}, norm2}, head/linear.
Returns: logits [B,outputs] (absent for outputs=0), pooled float32 [B,d], tokens_out [B,L,d], block00... [B,L,d] the
state after each block; with capture=('attention',) attention float32 [B,depth,heads,L,L] after softmax and before
dropout. `offset` [B,heads,L,L] is added to the probabilities of the last block. The states at padded positions are
meaningless.
"""
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict, FrozenConfigDict

from jaxkd import errors
from jaxkd.contracts import ModelPlugin
from jaxkd.models import text
from jaxkd.models.layers import initial, transformer
from jaxkd.models.layers.transformer import AttentionMap, Tokens
from jaxkd.pretrained import import_weights

POOLS = ('', 'cls', 'mean')
PADDED = 128  # rows
DEFAULTS = dict(
    vocab=30522,  # pieces of the vocabulary: rows of the table of words
    length=512,  # most tokens of a report: rows of the table of positions
    width=768,  # features of a token
    depth=12,  # number of blocks
    heads=12,  # attention heads of a block; they divide width
    mlp=4,  # hidden width of a block's MLP, over width
    dropout=0.1,  # share dropped of embeddings, of each branch of a block and of pooled, 0 to below 1
    attention_dropout=0.1,  # share dropped of attention probabilities, 0 to below 1
    eps=1e-12,  # added to the variance in LayerNorm
    pool='',  # cls (the state of [CLS]) or mean (over all tokens with [CLS] and [SEP], as sentence encoders do); '': as
    # 1_Pooling/config.json beside the weights says, cls without weights
    normalise=False,  # divide what is pooled by its length
    remat=False,  # compute the blocks again in the backward pass: less memory, about a third more time
    frozen=False,  # neither dropout nor a gradient within: a head on fixed features. Freeze them in `optim`, too
)

TENSORS = {  # Hugging Face's names: our path
    'embeddings.word_embeddings.weight': 'words/embedding',
    'embeddings.position_embeddings.weight': 'positions',
    'embeddings.token_type_embeddings.weight': 'types',
    'embeddings.LayerNorm': 'norm'}
PARTS = {  # of encoder.layer.N
    'attention.self.query': 'attn/qkv', 'attention.self.key': 'attn/qkv', 'attention.self.value': 'attn/qkv',
    'attention.output.dense': 'attn/proj', 'attention.output.LayerNorm': 'norm1',
    'intermediate.dense': 'mlp/fc1', 'output.dense': 'mlp/fc2', 'output.LayerNorm': 'norm2'}
CONFIG_JSON = dict(vocab='vocab_size', length='max_position_embeddings', width='hidden_size', depth='num_hidden_layers',
                   heads='num_attention_heads', eps='layer_norm_eps')  # keys of a config.json
# Of its training; a classifier reads the pooler, which is not built here.
UNUSED = ('pooler.', 'cls.', 'cls_projection_head.', 'classifier.', 'embeddings.position_ids',
          'embeddings.token_type_ids')


def build(hp: ConfigDict, outputs: int, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The module for an hp like DEFAULTS. Raises ConfigError when heads does not divide width, or for a pool that does
    not exist.
    """
    transformer.check_shape('bert', hp.width, hp.depth, hp.heads)
    errors.check_choice('bert.pool', hp.pool, POOLS)
    return Bert(FrozenConfigDict(hp), outputs, dtype)


def check(hp: ConfigDict, data: ConfigDict) -> None:
    """ConfigError if the vocabulary of the tokens does not have the size of the network's table.

    A table that was padded to a multiple of 8 may have up to PADDED rows more.
    """
    text.check(hp, data, 'bert')
    for name, _, size in text.token_writers(data):
        if size < hp.vocab and (hp.vocab % 8 or hp.vocab - size >= PADDED):
            raise errors.ConfigError(f'bert: data.{name} has a vocabulary of {size} words, the network vocab = '
                                     f'{hp.vocab}. Give both the same number; other weights have another vocabulary.')


def tensors(hp: ConfigDict, shapes: import_weights.Shapes, config_json: Mapping) -> tuple[dict, dict, Sequence[str]]:
    """Of Hugging Face's names, also with the gamma and beta of the first BERTs, see contracts.ModelPlugin."""
    table = TENSORS | {f'encoder.layer.{i}.{name}': f'block{i:02d}/{path}' for i in range(_depth(shapes))
                       for name, path in PARTS.items()}
    table |= {f'{name}.{old}': f'{path}/{new}' for name, path in table.items()
              for old, new in (('gamma', 'scale'), ('beta', 'bias'))}
    sources, unused = import_weights.sources_of(table, shapes), [k for k in shapes if k.startswith(UNUSED)]
    activation, positions = (config_json.get(k) for k in ('hidden_act', 'position_embedding_type'))
    if activation not in (None, 'gelu') or positions not in (None, 'absolute'):
        raise errors.ConfigError('init.path: its layers have another activation than the exact GELU, or positions that '
                                 'are not learned one by one. That is not built here. Take a BERT as it was published.')
    words, table_rows, hidden = (shapes.get(sources.get(f'params/{path}', [''])[0], ()) for path in (
        'words/embedding', 'positions', 'block00/mlp/fc1/kernel'))
    if [len(s) for s in (words, table_rows, hidden)] != [2, 2, 2]:
        return {}, sources, unused  # another kind of network: import_weights reports what it lacks, or has besides
    width = words[1]
    required = dict(vocab=words[0], length=table_rows[0], width=width, depth=_depth(shapes),
                    mlp=hidden[0] / width if hidden[0] % width else hidden[0] // width)
    required = import_weights.check_config_json(config_json, CONFIG_JSON, required)
    return required | _required_pool(hp, config_json.get('pooling_mode', '')), sources, unused


def _required_pool(hp: ConfigDict, mode: str) -> dict[str, str]:
    """The pooling that the file beside the weights says. ConfigError for another than POOLS, and without one."""
    if mode not in POOLS:
        raise errors.ConfigError(f'init.path: 1_Pooling/config.json beside the weights says "{mode}", which is not '
                                 'built here. Give other weights, or remove that file and set model.pool to "cls" or '
                                 '"mean".')
    if not mode and not hp.pool:
        raise errors.ConfigError('init.path: no 1_Pooling/config.json beside the weights says how the states of their '
                                 'tokens become one. Set model.pool to "cls", as most BERTs, or "mean", as most '
                                 'sentence encoders.')
    return {'pool': mode} if mode and mode != (hp.pool or 'cls') else {}


def _depth(shapes: Iterable[str]) -> int:
    """Blocks in a file."""
    return 1 + max((int(m[1]) for k in shapes if (m := re.match(r'encoder\.layer\.(\d+)\.', k))), default=-1)


class Block(nn.Module):
    """One post-LN block. x [B,L,d] -> x [B,L,d], attention [B,heads,L,L] or None."""
    hp: FrozenConfigDict
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Tokens, train: bool, return_attention: bool, visible: Bool[Array, 'batch tokens'] | None,
                 offset: AttentionMap | None) -> tuple[Tokens, AttentionMap | None]:
        def add(x, y, name):
            y = nn.Dropout(self.hp.dropout)(y, deterministic=not train)
            return transformer.LayerNorm(epsilon=self.hp.eps, dtype=self.dtype, name=name)(x + y)

        attend = transformer.Attention(self.hp.heads, self.hp.attention_dropout, self.dtype, name='attn')
        y, attention = attend(x, train, visible, offset)
        x = add(x, y, 'norm1')
        x = add(x, transformer.Mlp(self.hp.mlp, self.dtype, name='mlp')(x), 'norm2')
        return x, (attention if return_attention else None)  # None: remat must not keep what nobody reads


class Bert(nn.Module):
    """See the module's docstring."""
    hp: FrozenConfigDict
    outputs: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = (),
                 offset: AttentionMap | None = None) -> dict[str, Array]:
        hp, tokens = self.hp, inputs['tokens']
        encoder_train = train and not hp.frozen
        text.check_length('bert', tokens, hp.length)
        visible = (tokens != 0) | (jnp.arange(tokens.shape[1]) == 0)
        x = nn.Embed(hp.vocab, hp.width, embedding_init=initial.small_normal, name='words')(tokens)
        positions = self.param('positions', initial.small_normal, (hp.length, hp.width))
        types = self.param('types', initial.small_normal, (2, hp.width))
        x = x + positions[:tokens.shape[1]] + types[0]
        x = transformer.LayerNorm(epsilon=hp.eps, dtype=self.dtype, name='norm')(x)
        x = nn.Dropout(hp.dropout)(x, deterministic=not encoder_train)

        block = nn.remat(Block, static_argnums=(2, 3)) if hp.remat else Block  # self is argument 0
        out: dict[str, Array] = {}
        attention: list[Any] = []
        for i in range(hp.depth):
            x, a = block(hp, self.dtype, name=f'block{i:02d}')(x, encoder_train, 'attention' in capture, visible,
                                                               offset if i == hp.depth - 1 else None)
            out[f'block{i:02d}'] = x
            attention.append(a)
        out |= {'tokens_out': x, 'pooled': self.pooled(x, visible)}
        out = jax.lax.stop_gradient(out) if hp.frozen else out
        if 'attention' in capture:
            out['attention'] = jnp.stack(attention, axis=1)
        return transformer.with_logits(out, self.outputs, hp.dropout, train)

    def pooled(self, x: Tokens, visible: Bool[Array, 'batch tokens']) -> Float[Array, 'batch width']:
        """The state of [CLS], or the mean of the visible ones, in float32."""
        state = (x[:, 0].astype(jnp.float32) if self.hp.pool in ('', 'cls') else
                 jnp.mean(x, 1, where=visible[:, :, None], dtype=jnp.float32))
        return state / jnp.linalg.norm(state, axis=-1, keepdims=True) if self.hp.normalise else state


PLUGIN = ModelPlugin(check=check, tensors=tensors)
