"""DenseNet-121 for images, as torchvision has it: each layer reads all layers before it.

Huang et al., CVPR 2017 [published]. Sides for an image of 224 pixels and the defaults.
    stem         7^2 convolution, stride 2; norm, ReLU; 3^2 max pooling, stride 2     56^2 x 64
    block1       6 layers     56^2 x 256
    block2       12 layers     28^2 x 512
    block3       24 layers     14^2 x 1024
    block4       16 layers; norm, ReLU     7^2 x 1024
    mean over places = pooled -> linear = logits
Layer: norm, ReLU, 1^2 convolution to 4 * growth channels, norm, ReLU, 3^2 convolution to growth channels, appended to
its input. Between blocks: norm, ReLU, 1^2 convolution to half of the channels, 2^2 mean pooling. block1 ... block3 are
what a block hands over, before the norm that follows; block4 is after the last norm and ReLU, so that pooled is its
mean.

Batch norm as published; other norms, growth and blocks make smaller networks or larger batches possible [our choice].
Initial weights: Kaiming normal, fan-in [as torchvision]; head: truncated normal 0.02 [our choice]. torchvision's
weights can be loaded, see jaxkd.pretrained.import_weights; in training its running variances are of n - 1, these of n.
Input: a dict of images [B,H,W,C], see jaxkd.models.layers.backbone.read (with mean and std as described there);
several are stacked as channels in alphabetical order, one that is absent as zeros.
Returns: logits float32 [B,outputs] (absent for outputs=0), pooled float32 [B,C], block1 ... blockN [B,h,w,C].
Parameters: stem/{conv, norm}, blockN/layerNN/{norm1, conv1, norm2, conv2}, halveN/{norm, conv}, norm, head/linear.
"""
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from ml_collections import ConfigDict, FrozenConfigDict

from jaxkd import errors
from jaxkd.contracts import ModelPlugin
from jaxkd.models.layers import backbone, transformer
from jaxkd.models.layers.convolution import NORMS, Conv, Style, Unit, normalisation
from jaxkd.models.layers.operations import FeatureMap, OutFeatureMap, max_pool
from jaxkd.pretrained import import_weights

BOTTLENECK = 4
DEFAULTS = dict(
    blocks=(6, 12, 24, 16),  # layers of each block; torchvision's 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)
    growth=32,  # channels that a layer adds
    first=64,  # channels of the stem
    norm='batch',  # normalisation: batch, group, layer or instance
    dropout=0.0,  # share of pooled features dropped before the head, 0 to below 1
    mean=(),  # of the input, subtracted first: one value for all channels or one for each; (): it comes normalised
    std=(),  # of the input, divided by: as many values as `mean`
    remat=False,  # compute the blocks again in the backward pass: less memory, about a third more time
)
TORCHVISION = dict(norm='batch')


def build(hp: ConfigDict, outputs: int, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The module for an hp like DEFAULTS. Raises ConfigError for a choice that does not exist."""
    errors.check_choice('model.norm', hp.norm, ('batch', *NORMS))
    if not hp.blocks or min(*hp.blocks, hp.growth, hp.first) < 1:
        raise errors.ConfigError(f'model.blocks = {tuple(hp.blocks)}, model.growth = {hp.growth} and model.first = '
                                 f'{hp.first} must be positive numbers.')
    transformer.check_dropout(hp.dropout)
    style = Style(hp.norm, False, jnp.dtype(dtype), 'relu', fan='fan_in', spread=0.0)
    backbone.check_mean_std(hp)
    return Densenet(FrozenConfigDict(hp), outputs, style)


def torchvision(hp: ConfigDict) -> dict[str, str]:
    """{torchvision's name of a layer: our path}. Its older files write norm.1 where newer ones write norm1."""
    names = {'features.conv0': 'stem/conv', 'features.norm0': 'stem/norm', 'features.norm5': 'norm',
             'classifier': 'head/linear'}
    for b, count in enumerate(hp.blocks, 1):
        for i, part, n, dot in itertools.product(range(count), ('norm', 'conv'), (1, 2), ('', '.')):
            theirs = f'features.denseblock{b}.denselayer{i + 1}.{part}{dot}{n}'
            names[theirs] = f'block{b}/layer{i:02d}/{part}{n}'
        if b < len(hp.blocks):
            names |= {f'features.transition{b}.{part}': f'halve{b}/{part}' for part in ('norm', 'conv')}
    return names


def tensors(hp: ConfigDict, shapes: import_weights.Shapes, config_json: Mapping) -> tuple[dict, dict, Sequence[str]]:
    """Of torchvision's names, see contracts.ModelPlugin."""
    return TORCHVISION, import_weights.sources_of(torchvision(hp), shapes), ()


class Densenet(nn.Module):
    """See the module's docstring."""

    hp: FrozenConfigDict
    outputs: int
    style: Style

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = ()) -> dict[str, Array]:
        hp, count = self.hp, len(self.hp.blocks)
        names, images, _ = backbone.read(inputs, 2, hp.mean, hp.std)
        x = jnp.concatenate(images, -1)
        if min(x.shape[1:3]) < 2 ** (count + 1) - 3:
            raise errors.ConfigError(f'densenet: "{names[0]}" is {x.shape[1]} x {x.shape[2]} pixels, too few for '
                                     f'{count} blocks: each but the first halves the sides.')
        block = nn.remat(Block, static_argnums=(2,)) if hp.remat else Block  # self is argument 0
        x = max_pool(Unit(hp.first, 7, 2, style=self.style, name='stem')(x, train))
        out = {}
        for i, layers in enumerate(hp.blocks, 1):
            x = block(layers, hp.growth, self.style, name=f'block{i}')(x, train)
            if i < count:
                out[f'block{i}'] = x
                x = Halve(self.style, name=f'halve{i}')(x, train)
        x = out[f'block{count}'] = nn.relu(normalisation(self.style, train, 'norm')(x))
        out['pooled'] = jnp.mean(x.astype(jnp.float32), (1, 2))
        return transformer.with_logits(out, self.outputs, hp.dropout, train)


class Block(nn.Module):
    """x [B,h,w,C] -> [B,h,w,C + count * growth]."""

    count: int
    growth: int
    style: Style

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> Float[Array, 'batch *places _']:
        for i in range(self.count):
            x = jnp.concatenate([x, Layer(self.growth, self.style, name=f'layer{i:02d}')(x, train)], -1)
        return x


class Layer(nn.Module):
    """x [B,h,w,C] -> [B,h,w,growth]."""

    growth: int
    style: Style

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> Float[Array, 'batch *places {self.growth}']:
        x = nn.relu(normalisation(self.style, train, 'norm1')(x))
        x = Conv(BOTTLENECK * self.growth, 1, style=self.style, name='conv1')(x)
        x = nn.relu(normalisation(self.style, train, 'norm2')(x))
        return Conv(self.growth, 3, style=self.style, name='conv2')(x)


class Halve(nn.Module):
    """x [B,h,w,C] -> [B,h//2,w//2,C//2]."""

    style: Style

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> OutFeatureMap:
        x = nn.relu(normalisation(self.style, train, 'norm')(x))
        x = Conv(x.shape[-1] // 2, 1, style=self.style, name='conv')(x)
        h, w = (n // 2 * 2 for n in x.shape[1:3])
        return x[:, :h, :w].reshape(x.shape[0], h // 2, 2, w // 2, 2, -1).mean((2, 4))


def libraries(hp: ConfigDict) -> dict[str, dict[str, str]]:
    """{library: {its name: our path}}, without the older spelling."""
    return {'torchvision': {k: v for k, v in torchvision(hp).items() if '.norm.' not in k and '.conv.' not in k}}


PLUGIN = ModelPlugin(tensors=tensors, libraries=libraries)
