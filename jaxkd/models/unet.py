"""Encoder-decoders for dense prediction in 2D and 3D: U-Nets, and residual ones with deep supervision.

Ronneberger et al., MICCAI 2015 [published]. Level 0 has the resolution of the input, level i + 1 that of level i
divided by strides[i]. With N + 1 channels:
    enc0 = blocks(x), enc(i+1) = blocks(down(enc(i)))
    dec(i) = blocks([enc(i), up(dec(i+1))]) for i = N-1 ... 0, decN = encN
    logits = 1^k convolution of dec0; logits1, logits2, ... of dec1, dec2, ...: `deep` of them
    features -> pooled -> linear = class_logits, where `classify` > 0: a class activation map is w . features
classify_at  coarsest  features = encN, pooled is their mean over places
             finest    features = dec0, pooled the largest value of each channel: for what is small beside its window
skips=False leaves the enc(i) out of the decoder: everything then passes encN.

block  double     3^k, norm, act, 3^k, norm, act (k axes)
       residual   3^k, norm, act, 3^k, norm; added to the input, which passes a 1^k convolution and a norm where stride
                  or channels change; then act (He et al., CVPR 2016 [published])
down   pool       the largest value under a window as large as the stride
       stride     the first convolution of the level's first block
up     linear     interpolation with half-pixel centres (align_corners off), 3^k convolution, norm, act
       transpose  transposed convolution with a kernel as large as the stride

The defaults are the network of SIKD's code [published]: 34,526,084 trained values for 1 channel and 4 classes, its
teacher (skips=False) 31,392,644. Of CPMN no network is published; our choice for it is
    dims=3, channels=(32, 64, 128, 256, 320, 320), blocks=(1, 2, 2, 2, 2, 2), strides=(2, 2, 2, 2, (1, 2, 2)),
    block='residual', down='stride', up='transpose', norm='instance', activation='leaky', bias=False, deep=3, classify=1
Initial kernels: Kaiming normal, fan-in; class head: truncated normal 0.02. Batch norm: see convolution.batch_norm.

Input: a dict of images [B,H,W,C] (dims=3: volumes [B,D,H,W,C]) under any names, of one shape, stacked as channels in
alphabetical order, and optionally inputs['present'] {name: [B]}: zeros where it is 0. Integers are fixed point and are
divided by jaxkd.data.volume.FIXED, floats are taken as they are.
Returns: logits, logits1, ... float32 [B,...,outputs] (absent for outputs=0), enc0 ... encN, dec0 ... decN-1, feature
(dec0), and with `classify` class_logits float32 [B,classify], pooled float32 [B,C], features [B,...,C].
Parameters: enc<level>_<block>, dec<level>_<block> (unit1, unit2, [shortcut]), up<level>, head<level>,
class_head/linear.
"""
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from ml_collections import ConfigDict, FrozenConfigDict

from jaxkd import errors
from jaxkd.models.layers import backbone, transformer
from jaxkd.models.layers.convolution import ACTIVATIONS, NORMS, Conv, Style, Unit, activate
from jaxkd.models.layers.operations import FeatureMap, OutFeatureMap, max_pool

DEFAULTS = dict(
    dims=2,  # 2 for images, 3 for volumes
    channels=(64, 128, 256, 512, 1024),  # channels of the levels, fine to coarse
    blocks=(1,),  # blocks of each level of the encoder; a single entry stands for all levels, here and in the next two
    decoder_blocks=(1,),  # blocks of each level of the decoder, fine to coarse
    strides=(2,),  # strides from each level to the next, one number or one for each axis, such as (1, 2, 2)
    block='double',  # double (two convolutions) or residual
    down='pool',  # how a level becomes coarser: pool or stride
    up='linear',  # how a level becomes finer: linear (interpolation) or transpose (convolution)
    norm='batch',  # normalisation: batch, instance, group or layer
    activation='relu',  # activation: relu or leaky (ReLU)
    bias=True,  # whether convolutions before a norm have a bias
    skips=True,  # the decoder reads the encoder's levels, too; False: all passes the coarsest level
    deep=0,  # how many levels of the decoder below the finest have logits; 0: none
    classify=0,  # number of class logits; 0: none
    classify_at='coarsest',  # of what: the mean of the coarsest level, or the largest values of the finest decoded one
    dropout=0.0,  # share of whole channels dropped at the coarsest level, 0 to below 1
    remat=False,  # compute the blocks again in the backward pass: less memory, about a third more time
)
CHOICES = dict(block=('double', 'residual'), down=('pool', 'stride'), up=('linear', 'transpose'),
               classify_at=('coarsest', 'finest'), norm=(*NORMS, 'batch'), activation=tuple(ACTIVATIONS), dims=(2, 3))


def build(hp: ConfigDict, outputs: int, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The module for an hp like DEFAULTS. Raises ConfigError for a choice that does not exist."""
    for key, values in CHOICES.items():
        errors.check_choice(f'model.{key}', hp[key], values)
    below = len(hp.channels) - 1
    if below < 1 or min(hp.channels) < 1:
        raise errors.ConfigError(f'model.channels = {tuple(hp.channels)} must be at least two positive numbers.')
    if not 0 <= hp.deep < below:
        raise errors.ConfigError(f'model.deep = {hp.deep} must lie in 0..{below - 1}: {len(hp.channels)} channels make '
                                 f'{below} levels of the decoder, and the finest has a head in any case.')
    if hp.classify < 0:
        raise errors.ConfigError(f'model.classify = {hp.classify} is a number of class logits: 0 for none.')
    strides = tuple((s,) * hp.dims if isinstance(s, int) else tuple(s) for s in _each(hp, 'strides', below))
    for stride in strides:
        if len(stride) != hp.dims or min(stride) < 1:
            raise errors.ConfigError(f'model.strides: {stride} is not one positive number for each of {hp.dims} axes.')
    style = Style(hp.norm, False, jnp.dtype(dtype), hp.activation, hp.bias, 'fan_in')
    return Unet(FrozenConfigDict(hp), _each(hp, 'blocks', below + 1), _each(hp, 'decoder_blocks', below), strides,
                outputs, style)


class Unet(nn.Module):
    """See the module's docstring."""

    hp: FrozenConfigDict
    blocks: tuple[int, ...]  # of each level of the encoder
    decoder_blocks: tuple[int, ...]  # of each level of the decoder, fine to coarse
    strides: tuple[tuple[int, ...], ...]
    outputs: int
    style: Style

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = ()) -> dict[str, Array]:
        names, volumes, _ = backbone.read(inputs, len(self.strides[0]))
        self.check_sides(names[0], volumes[0].shape[1:-1])
        hp, pooled = self.hp, self.hp.down == 'pool'
        block = nn.remat(Block, static_argnums=(2,)) if hp.remat else Block  # self is argument 0

        def stage(x, name, level, n, stride=1):
            for i in range(n):
                x = block(hp.channels[level], stride if i == 0 else 1, hp.block == 'residual', self.style,
                          name=f'{name}{level}_{i}')(x, train)
            return x

        x, out, last = jnp.concatenate(volumes, -1), {}, len(self.strides)
        x = out['enc0'] = stage(x.astype(self.style.dtype), 'enc', 0, self.blocks[0])
        for i, stride in enumerate(self.strides, 1):
            x = max_pool(x, stride, stride) if pooled else x
            x = stage(x, 'enc', i, self.blocks[i], 1 if pooled else stride)
            if i == last:
                x = nn.Dropout(hp.dropout, broadcast_dims=tuple(range(1, x.ndim - 1)))(x, deterministic=not train)
            out[f'enc{i}'] = x
        for i in reversed(range(last)):
            up = Linear if hp.up == 'linear' else Transpose
            x = up(hp.channels[i], self.strides[i], self.style, name=f'up{i}')(x, train)
            x = jnp.concatenate([out[f'enc{i}'], x], -1) if hp.skips else x
            x = out[f'dec{i}'] = stage(x, 'dec', i, self.decoder_blocks[i])
            if i <= hp.deep and self.outputs:
                head = Conv(self.outputs, 1, bias=True, style=Style(standardise=False, fan='fan_in'), name=f'head{i}')
                out[f'logits{i or ""}'] = head(x)
        if hp.classify:
            level, pool = (f'enc{last}', jnp.mean) if hp.classify_at == 'coarsest' else ('dec0', jnp.max)
            out['features'] = out[level]
            out['pooled'] = pool(out[level].astype(jnp.float32), range(1, x.ndim - 1))
            out['class_logits'] = transformer.Head(hp.classify, 0.0, name='class_head')(out['pooled'])
        return out | {'feature': out['dec0']}

    def check_sides(self, name: str, sides: Sequence[int]) -> None:
        """ConfigError for an input whose sides the strides do not divide."""
        for axis, side in enumerate(sides):
            product = math.prod(s[axis] for s in self.strides)
            if side % product:
                nearest = ' or '.join(str(n) for n in (side // product * product, -(-side // product) * product) if n)
                axis_name = ('depth', 'height', 'width')[-len(sides):][axis]
                raise errors.ConfigError(f'Input "{name}" has {axis_name} {side} (of {sides}), which the product of '
                                         f'its model.strides, {product}, does not divide. Cut or resize it to '
                                         f'{nearest}, or lower the strides.')


class Block(nn.Module):
    """x -> [B,...,features]; see the module's docstring. Parameters: unit1, unit2, [shortcut], each a Unit."""

    features: int
    strides: int | tuple[int, ...]
    residual: bool
    style: Style

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool = False) -> OutFeatureMap:
        c, style = self.features, self.style
        y = Unit(c, 3, self.strides, style=style, name='unit1')(x, train)
        y = Unit(c, 3, linear=self.residual, style=style, name='unit2')(y, train)
        if not self.residual:
            return y
        if x.shape != y.shape:
            x = Unit(c, 1, self.strides, linear=True, style=style, name='shortcut')(x, train)
        return activate(x + y, style.activation)


class Linear(nn.Module):
    """Interpolation to `strides` times the places, 3^k convolution, norm, activation. Parameters: unit."""

    features: int
    strides: tuple[int, ...]
    style: Style

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool = False) -> OutFeatureMap:
        return Unit(self.features, 3, style=self.style, name='unit')(upsample(x, self.strides), train)


class Transpose(nn.Module):
    """Transposed convolution, kernel = strides: every place becomes a block of places. Parameters: conv/{kernel,
    [bias]}.

    One matrix product to prod(strides) * features channels, the last axis of the block fastest, then moved to places:
    there are no overlaps, and no convolution with holes, which is slow on every platform.
    """

    features: int
    strides: tuple[int, ...]
    style: Style

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool = False) -> OutFeatureMap:
        sides, c = x.shape[1:-1], self.features
        x = Conv(math.prod(self.strides) * c, 1, bias=False, style=self.style, name='conv')(x)
        x = x.reshape(x.shape[0], *sides, *self.strides, c)
        order = [axis + 1 + half * len(sides) for axis in range(len(sides)) for half in (0, 1)]
        x = x.transpose(0, *order, 1 + 2 * len(sides))
        x = x.reshape(x.shape[0], *(n * s for n, s in zip(sides, self.strides)), c)
        return x + self.param('bias', nn.initializers.zeros, (c,)).astype(x.dtype) if self.style.bias else x


def upsample(x: FeatureMap, strides: Sequence[int]) -> Float[Array, 'batch *out_places channels']:
    """Linear interpolation of x [B,...,C] to strides[a] times the places along axis a, half-pixel centres, edges
    repeated.
    """
    return jax.image.resize(x, (x.shape[0], *(n * s for n, s in zip(x.shape[1:-1], strides)), x.shape[-1]), 'linear')


def _each(hp: ConfigDict, key: str, n: int) -> tuple:
    """n values from a list of n, or of one for all."""
    values = tuple(hp[key])
    if len(values) not in (1, n):
        raise errors.ConfigError(f'model.{key} = {values} has {len(values)} entries: {len(hp.channels)} channels need '
                                 f'{n}, or one for all.')
    if key != 'strides' and min(values) < 1:
        raise errors.ConfigError(f'model.{key} = {values} must be positive.')
    return values * n if len(values) == 1 else values
