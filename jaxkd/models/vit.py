"""Vision transformer (Dosovitskiy et al., ICLR 2021 [published]): the student that sees the image alone.

Sizes Ti, S, B and L are the published ones; `tiny` is for tests and smoke runs [our choice]. width, depth and
heads replace the value of the size when they are not 0. Image side and patch are free as long as one divides
the other.

Input: inputs['image'] [B,S,S,c] in [0,1], c = 1 or `channels`. Grey is copied to the channels, then
normalised by (x - mean) / std here, so that the weights carry their own convention: one value, or one per
channel. The default .5 and .25 bring a typical grey image to about zero mean and unit spread [our choice].

Tokens: CLS first, then `registers` (Darcet et al., ICLR 2024 [published], 0 = none), then the patches row by
row: the last g*g of N = 1 + registers + g*g, g = S / patch. Positions are learned, for CLS and patches.
Pooled is the CLS state, or with pool='mean' the final LayerNorm of the mean of the patches (timm's fc_norm).
Initial weights [our choice]: Xavier uniform in the blocks and the patch embedding, zero CLS and biases,
truncated normal 0.02 for positions and head. Pretrained ones (jaxkd.pretrained.import_weights) are those of timm (vit,
deit without distillation, dino, dinov2, with registers), of the DINO, DINOv2 and MAE repositories, and of Hugging Face
(ViT, DINOv2, with registers, RAD-DINO): GELU, qkv with bias. Positions of another image size are resized as the
library does that the file is from, see `origin`. Not read: networks without CLS, with SwiGLU, or with an embedding of
their own for registers' positions.

Parameters: patch/{kernel [p,p,c,d], bias}, cls [1,1,d], positions [1+g*g,d], [registers [1,r,d]], encoder/...
(see jaxkd.models.layers.transformer), head/linear.
Returns: logits [B,outputs] (absent for outputs=0), pooled [B,d], tokens_out [B,N,d], block00... [B,N,d]; with
capture=('attention',) attention float32 [B,depth,heads,N,N] after softmax and before dropout. With `step` a part alone:
-1 the embedding, else that of the encoder with `states` (for models that do something between two blocks).
"""
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from ml_collections import ConfigDict, FrozenConfigDict

from jaxkd import errors
from jaxkd.contracts import ModelPlugin
from jaxkd.models.layers import initial, transformer
from jaxkd.pretrained import import_weights
from jaxkd.runtime import log

POOLS = ('cls', 'mean')
SIZES = {  # width, depth, heads
    'tiny': (64, 4, 4),
    'Ti': (192, 12, 3),
    'S': (384, 12, 6),
    'B': (768, 12, 12),
    'L': (1024, 24, 16)}
DEFAULTS = dict(
    size='Ti',  # tiny, Ti, S, B or L: width, depth and heads together
    width=0,  # features of a token; 0: as `size` says
    depth=0,  # number of blocks; 0: as `size` says
    heads=0,  # attention heads of a block, which divide width; 0: as `size` says
    patch=16,  # pixels of a side of a patch; it divides that of the image
    mlp=4,  # hidden width of a block's MLP, over width
    channels=1,  # channels of the image; grey is copied to them
    mean=(0.5,),  # of the image, subtracted first: one value, or one for each channel
    std=(0.25,),  # of the image, divided by: one value, or one for each channel
    dropout=0.0,  # share dropped of embeddings, of each branch of a block and of pooled, 0 to below 1
    attention_dropout=0.0,  # share dropped of attention probabilities, 0 to below 1
    drop_path=0.0,  # share of cases for which a branch is dropped, rising to this over the blocks, 0 to below 1
    registers=0,  # further tokens without a place; 0: none
    layer_scale=0.0,  # initial scale of each branch; 0: no such scale
    eps=1e-6,  # added to the variance in LayerNorm, above 0
    remat=False,  # compute the blocks again in the backward pass: less memory, about a third more time
    keep_products=False,  # with remat: what dense layers give is kept, so that little arithmetic is done again
    fused=False,  # attention by one kernel of cuDNN that keeps no map of N x N: NVIDIA GPUs, bfloat16; else no change
    pool='cls',  # cls (the state of CLS) or mean (of the patches)
)
TENSORS = {  # our path: its names in other libraries
    'cls': ('cls_token', 'embeddings.cls_token'),
    'positions': ('pos_embed', 'embeddings.position_embeddings'),
    'registers': ('reg_token', 'register_tokens', 'embeddings.register_tokens'),
    'patch': ('patch_embed.proj', 'embeddings.patch_embeddings.projection'),
    'encoder/norm': ('norm', 'layernorm'),
    'head/linear': ('head', 'classifier')}
BLOCKS = ('blocks', 'encoder.layer', 'layers')  # then .0, .1, ... and
PARTS = {
    'norm1': ('norm1', 'layernorm_before'),
    'attn/qkv': ('attn.qkv', *(f'attention.attention.{x}' for x in ('query', 'key', 'value')),
                 *(f'attention.{x}_proj' for x in 'qkv')),
    'attn/proj': ('attn.proj', 'attention.output.dense', 'attention.o_proj'),
    'attn_scale': ('ls1.gamma', 'layer_scale1.lambda1'),
    'norm2': ('norm2', 'layernorm_after'),
    'mlp/fc1': ('mlp.fc1', 'intermediate.dense'),
    'mlp/fc2': ('mlp.fc2', 'output.dense'),
    'mlp_scale': ('ls2.gamma', 'layer_scale2.lambda1')}
CONFIG_JSON = dict(width='hidden_size', depth='num_hidden_layers', heads='num_attention_heads', patch='patch_size',
                   channels='num_channels', registers='num_register_tokens',
                   eps='layer_norm_eps')  # keys of a config.json
UNUSED = ('embeddings.mask_token', 'pooler.')  # of training without labels


def build(hp: ConfigDict, outputs: int, dtype: DTypeLike = jnp.float32) -> 'Vit':
    """The module for an hp like DEFAULTS. Raises ConfigError for a size or shape that does not exist."""
    width, depth, heads = shape(hp)
    transformer.check_shape('vit', width, depth, heads)
    for key in 'mean', 'std':
        if len(hp[key]) not in (1, hp.channels):
            raise errors.ConfigError(f'vit: {key} has {len(hp[key])} values, channels is {hp.channels}. Give '
                                     'one value for all channels or one for each.')
    if min(hp.std) <= 0:
        raise errors.ConfigError(f'vit: std {tuple(hp.std)} must be positive.')
    if hp.eps <= 0:
        raise errors.ConfigError(f'vit: eps = {hp.eps} must be positive.')
    errors.check_choice('vit.pool', hp.pool, POOLS)
    encoder = transformer.Encoder(
        depth, heads, hp.mlp, hp.dropout, hp.attention_dropout, hp.drop_path, hp.layer_scale, hp.remat, dtype, hp.eps,
        1 + hp.registers if hp.pool == 'mean' else 0, hp.fused, hp.keep_products)
    return Vit(encoder, FrozenConfigDict(hp), outputs, width, dtype)


def shape(hp: ConfigDict) -> tuple[int, int, int]:
    """(width, depth, heads). Raises ConfigError for a size that does not exist."""
    errors.check_choice('vit.size', hp.size, SIZES)
    width, depth, heads = SIZES[hp.size]
    return hp.width or width, hp.depth or depth, hp.heads or heads


def tensors(hp: ConfigDict, shapes: import_weights.Shapes, config_json: Mapping) -> tuple[dict, dict, Sequence[str]]:
    """Of the names in TENSORS and PARTS, see contracts.ModelPlugin. Raises ConfigError for a network with other
    layers.
    """
    depth = 1 + max((int(m[1]) for k in shapes if (m := re.match(rf'(?:{"|".join(BLOCKS)})\.(\d+)\.', k))), default=-1)
    table = {name: path for path, names in TENSORS.items() for name in names} | {
        f'{prefix}.{i}.{name}': f'encoder/block{i:02d}/{path}'
        for prefix in BLOCKS for i in range(depth) for path, names in PARTS.items() for name in names}
    mean = 'fc_norm.weight' in shapes and 'norm.weight' not in shapes
    table |= {'fc_norm': 'encoder/norm'} if mean else {}
    # behind a norm of both the head reads what is not built here
    spare = UNUSED if mean or 'fc_norm.weight' not in shapes else (*UNUSED, 'fc_norm.', 'head.')
    unused = [k for k in shapes if k.startswith(spare)]
    sources = import_weights.sources_of(table, {k: s for k, s in shapes.items() if k not in unused})
    cls, patch, fc1, fc2, registers = (shapes[sources[k][0]] if (k := f'params/{path}') in sources else () for path in (
        'cls', 'patch/kernel', 'encoder/block00/mlp/fc1/kernel', 'encoder/block00/mlp/fc2/kernel', 'registers'))
    gated = fc1[:1] != fc2[1:] or any('.w12.' in k or '.weights_in.' in k for k in shapes)
    if gated or config_json.get('hidden_act', 'gelu') != 'gelu':
        raise errors.ConfigError('init.path: its layers have another activation than GELU (SwiGLU in giant models), '
                                 'which is not built here. Take a smaller network of the same kind.')
    if [len(s) for s in (cls, patch, fc1)] != [3, 4, 2] or len(registers) not in (0, 3):
        return {}, sources, unused  # another kind of network: import_weights reports what it lacks, or has besides
    width = cls[2]
    required = dict(width=width, depth=depth, patch=patch[3], channels=patch[1],
                    registers=registers[1] if registers else 0,
                    mlp=fc1[0] / width if fc1[0] % width else fc1[0] // width,
                    layer_scale=(hp.layer_scale or 1.0) if 'params/encoder/block00/attn_scale' in sources else 0.0)
    required |= {'pool': 'mean'} if mean else {}
    heads = {(w, d): h for w, d, h in SIZES.values() if w > 64}.get((width, depth))
    required = import_weights.check_config_json(config_json, CONFIG_JSON, required)
    if heads and 'num_attention_heads' not in config_json:
        required['heads'] = heads
    chosen = dict(zip(('width', 'depth', 'heads'), shape(hp)))
    return {k: v for k, v in required.items() if chosen.get(k) != v}, sources, unused


def arrange(path: str, value: np.ndarray) -> np.ndarray:
    """The position table, with a row of zeros for a CLS token that has none."""
    if path != 'params/positions' or value.ndim != 3:
        return value
    table = value.reshape(-1, value.shape[-1])
    return np.pad(table, ((1, 0), (0, 0))) if math.isqrt(len(table)) ** 2 == len(table) else table


def libraries(hp: ConfigDict) -> dict[str, dict[str, str]]:
    """{library: {its name: our path}}; the names of Hugging Face are those of its ViT, which has no registers."""
    depth, timm, hugging_face = shape(hp)[1], dict[str, str](), dict[str, str]()
    for path, (first, *others) in TENSORS.items():
        timm['fc_norm' if path == 'encoder/norm' and hp.pool == 'mean' else first] = path
        hugging_face |= {name if name == 'classifier' else f'vit.{name}': path for name in others[-1:]}
    for i in range(depth):
        ours = f'encoder/block{i:02d}'
        timm |= {f'blocks.{i}.{names[0]}': f'{ours}/{path}' for path, names in PARTS.items()}
        hugging_face |= {f'vit.encoder.layer.{i}.{name}': f'{ours}/{path}' for path, names in PARTS.items()
                         for name in (names[1:4] if path == 'attn/qkv' else names[1:2])}
    plain = not hp.registers and not hp.layer_scale and hp.pool == 'cls'
    return {'timm': timm} | ({'huggingface': hugging_face} if plain else {})


def describe_library(library: str, hp: ConfigDict, tensors: Mapping[str, np.ndarray], labels: Sequence[str]
                     ) -> dict[str, dict[str, Any]]:
    """The config.json of a vision transformer of timm or Hugging Face, with mean and std of its input."""
    width, depth, heads = shape(hp)
    mean, std = (list(v) * (hp.channels if len(v) == 1 else 1) for v in (hp.mean, hp.std))
    positions = tensors['pos_embed' if library == 'timm' else 'vit.embeddings.position_embeddings']
    side = math.isqrt(positions.shape[1] - 1) * hp.patch
    if library == 'timm':
        arguments = dict(img_size=side, patch_size=hp.patch, in_chans=hp.channels, embed_dim=width, depth=depth,
                         num_heads=heads, mlp_ratio=hp.mlp, init_values=hp.layer_scale or None,
                         global_pool='avg' if hp.pool == 'mean' else 'token')
        arguments |= dict(reg_tokens=hp.registers, no_embed_class=False) if hp.registers else {}
        return {'config.json': dict(architecture='vit_base_patch16_224', num_classes=len(labels), model_args=arguments,
                                    pretrained_cfg=dict(mean=mean, std=std, input_size=[hp.channels, side, side],
                                                        num_classes=len(labels), label_names=list(labels)))}
    config = dict(
        architectures=['ViTForImageClassification'], model_type='vit', hidden_size=width, num_hidden_layers=depth,
        num_attention_heads=heads, intermediate_size=hp.mlp * width, hidden_act='gelu', image_size=side,
        patch_size=hp.patch, num_channels=hp.channels, layer_norm_eps=hp.eps, qkv_bias=True, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, id2label={str(i): name for i, name in enumerate(labels)},
        label2id={name: i for i, name in enumerate(labels)})
    return {'config.json': config, 'preprocessor_config.json': dict(
        image_processor_type='ViTImageProcessor', image_mean=mean, image_std=std, size=dict(height=side, width=side))}


def restore(path: str, value: np.ndarray) -> np.ndarray:
    """The way back of `arrange`."""
    return value[None] if path == 'params/positions' else value


def adapt(name: str, value: np.ndarray, shape: tuple[int, ...], names: Collection[str]) -> np.ndarray:
    """Weights of another image or patch size: the position table is resized, everything else stays as it is."""
    sides = [math.isqrt(max(0, s[0] - 1)) for s in (value.shape, shape)]
    if name != 'positions' or any(1 + g * g != s[0] for g, s in zip(sides, (value.shape, shape))):
        return value
    library, antialias, offset = origin(names)
    log.info(f'init: positions are resized as by {library}, bicubically with{"" if antialias else "out"} antialiasing.')
    return (np.asarray(resize_positions(jnp.asarray(value), *sides)) if antialias else
            resize_positions_aliased(value, sides[0], sides[1], offset))


def origin(names: Collection[str]) -> tuple[str, bool, float]:
    """(library, whether it resizes positions with antialiasing, what it adds to the new side) of a file with tensors of
    these names. Those of timm are also written by the authors of DINO, DeiT and supervised networks.
    """
    if 'embeddings.position_embeddings' in names:
        return 'Hugging Face', 'embeddings.register_tokens' in names, 0.0
    if any(k.startswith('decoder_') for k in names):
        return 'the authors of MAE', False, 0.0
    if 'mask_token' in names and 'blocks.0.ls1.gamma' in names:
        return ('the authors of DINOv2', *((True, 0.0) if 'register_tokens' in names else (False, 0.1)))
    return 'timm' if names else 'jaxkd', True, 0.0


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its side, as one matrix product. image [B,S,S,c] -> [B,patches,d], row by row."""
    width: int
    patch: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, image: Float[Array, 'batch side side channels']) -> Float[Array, 'batch patches width']:
        shape = (self.patch, self.patch, image.shape[-1], self.width)
        kernel = self.param('kernel', initial.glorot_uniform, shape).astype(self.dtype)
        bias = self.param('bias', nn.initializers.zeros, (self.width,)).astype(self.dtype)
        x = rearrange(image, 'b (h p) (w q) c -> b (h w) (p q c)', p=self.patch, q=self.patch)
        return x @ kernel.reshape(-1, self.width) + bias


class Vit(nn.Module):
    """See the module's docstring."""
    encoder: transformer.Encoder
    hp: FrozenConfigDict
    outputs: int
    width: int
    dtype: DTypeLike

    registers = property(lambda self: self.hp.registers)

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = (),
                 offset: transformer.AttentionMap | None = None, step: int | None = None,
                 states: transformer.Tokens | None = None) -> dict[str, Array]:
        if step is not None and step >= 0:
            assert states is not None
            return self.encoder(states, train, step=step)
        x = self.patches(inputs['image'])  # [B, g*g, d]
        batch = x.shape[0]
        cls = self.param('cls', nn.initializers.zeros, (1, 1, self.width))
        positions = self.param('positions', initial.small_normal, (1 + x.shape[1], self.width))
        x = jnp.concatenate([jnp.broadcast_to(cls, (batch, 1, self.width)).astype(x.dtype), x], axis=1)
        x = x + positions.astype(x.dtype)
        if self.registers:
            registers = self.param('registers', initial.small_normal, (1, self.registers, self.width))
            registers = jnp.broadcast_to(registers, (batch, self.registers, self.width)).astype(x.dtype)
            x = jnp.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)
        x = nn.Dropout(self.hp.dropout)(x, deterministic=not train)
        if step is not None:
            return {'tokens': x}
        out = self.encoder(x, train, capture, offset=offset)
        return transformer.with_logits(out, self.outputs, self.hp.dropout, train)

    def patches(self, image: Float[Array, 'batch side side channels']) -> Float[Array, 'batch patches width']:
        """Embedded patches, row by row."""
        (_, height, side, c), patch, channels = image.shape, self.hp.patch, self.hp.channels
        if height != side or side % patch:
            raise errors.ConfigError(f'vit: an image of {height} x {side} pixels cannot be cut into patches of '
                                     f'{patch}. Make it square, its side a multiple of patch.')
        if c not in (1, channels):
            raise errors.ConfigError(f'vit: the image has {c} channels, the network channels={channels}. Set channels '
                                     f'to {c}, or load it as grey.')
        x = (image - jnp.array(self.hp.mean)) / jnp.array(self.hp.std)
        x = jnp.broadcast_to(x, (*image.shape[:3], channels)).astype(self.dtype)
        return PatchEmbedding(self.width, patch, self.dtype, name='patch')(x)


def resize_positions(table: Float[Array, 'rows width'], grid_from: int, grid_to: int) -> Float[Array, 'out_rows width']:
    """Position table [1+grid_from**2, d] -> [1+grid_to**2, d]: patches bicubic, the CLS row unchanged.

    Keys kernel (a = -0.5), half-pixel centres, antialiased when shrinking. Raises ConfigError when the table
    does not have 1+grid_from**2 rows.
    """
    if table.shape[0] != 1 + grid_from ** 2:
        raise errors.ConfigError(f'A position table of {table.shape[0]} rows is no CLS row and a {grid_from} x '
                                 f'{grid_from} grid. The nearest side is {math.isqrt(table.shape[0] - 1)}.')
    if grid_from == grid_to:
        return table
    grid = rearrange(table[1:], '(h w) d -> h w d', h=grid_from)
    grid = jax.image.resize(grid, (grid_to, grid_to, table.shape[1]), 'bicubic')
    return jnp.concatenate([table[:1], rearrange(grid, 'h w d -> (h w) d')])


def resize_positions_aliased(table: np.ndarray, grid_from: int, grid_to: int, offset: float = 0.0) -> np.ndarray:
    """As resize_positions, as torch does it without antialiasing: a = -0.75, no other kernel when shrinking.

    offset: added to grid_to in the scale alone, as the authors of DINOv2 do.
    """
    places = (np.arange(grid_to) + 0.5) * grid_from / (grid_to + offset) - 0.5
    weights, first = np.zeros((grid_to, grid_from)), np.floor(places).astype(int)
    for i in range(-1, 3):
        d = np.abs(places - first - i)
        near, far = 1.25 * d ** 3 - 2.25 * d ** 2 + 1, -0.75 * (d ** 3 - 5 * d ** 2 + 8 * d - 4)
        np.add.at(weights, (np.arange(grid_to), np.clip(first + i, 0, grid_from - 1)), np.where(d <= 1, near, far))
    grid = np.einsum('ih,jw,hwd->ijd', weights, weights, table[1:].reshape(grid_from, grid_from, -1))
    return np.concatenate([table[:1], grid.reshape(grid_to ** 2, -1).astype(table.dtype)])


PLUGIN = ModelPlugin(tensors=tensors, arrange=arrange, libraries=libraries, restore=restore,
                     describe_library=describe_library, adapt=adapt)
