"""MobileNetV2 and V1 for volumes (or images), with group norm, leaky ReLU and weight standardisation.

V2 (Sandler et al., CVPR 2018 [published]; in 3D Koepueklue et al., ICCVW 2019 [published]): t = expansion, c =
channels, n = blocks, s = stride of the first block. Output sides for an input of 32 x 224 x 224.
    level   blocks (t, c, n, s)                     C x D x H x W
    stem    3^3 convolution, 32                      32 x 32 x 112 x 112
    level0  (1, 16, 1, 1)                            16 x 32 x 112 x 112
    level1  (6, 24, 2, 2)                            24 x 16 x 56 x 56
    level2  (6, 32, 3, 2)                            32 x 8 x 28 x 28
    level3  (6, 64, 4, 2), (6, 96, 3, 1)             96 x 4 x 14 x 14
    level4  (6, 160, 3, 2), (6, 320, 1, 1)          320 x 2 x 7 x 7
Block: 1^3 to t times the channels, norm, act; depthwise 3^3, norm, act; 1^3, norm; plus its input where the stride is
1 and channels agree.
V1 (Howard et al., 2017 [published]; in 3D as above): level0 ... level4 have 64, 128, 256, 512,
1024 channels in 1, 2, 2, 6, 2 blocks with strides 2, 2, 2, 2, 1. Block: depthwise 3^3, norm, act; 1^3, norm, act.

The published networks use batch norm and ReLU; group norm, leaky ReLU and weight standardisation are for small batches
[our choice]. Initial weights: Kaiming normal, fan-out [published in the code of CPKD]; head: truncated normal 0.02.
Inputs, outputs and their shapes: jaxkd.models.layers.backbone. Parameters of the trunk: trunk/{stem, blockNN/...}.
"""
import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from ml_collections import ConfigDict, FrozenConfigDict

from jaxkd import errors
from jaxkd.models.layers import backbone
from jaxkd.models.layers.convolution import Style, Unit
from jaxkd.models.layers.operations import FeatureMap, OutFeatureMap

V1 = (((64, 1, 2),), ((128, 2, 2),), ((256, 2, 2),), ((512, 6, 2),), ((1024, 2, 1),))  # c, n, s of each level
V2 = (((1, 16, 1, 1),), ((6, 24, 2, 2),), ((6, 32, 3, 2),), ((6, 64, 4, 2), (6, 96, 3, 1)),
      ((6, 160, 3, 2), (6, 320, 1, 1)))
DEFAULTS = dict(
    backbone.DEFAULTS,
    version=2,  # of MobileNet: 1 or 2
    depth_strides=(2, 2, 2, 2),  # strides along the depth of the levels that halve the plane: 1 keeps a thin volume's
    # depth
)


def build(hp: ConfigDict, outputs: int, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The module for an hp like DEFAULTS. Raises ConfigError for a choice that does not exist."""
    if hp.version not in (1, 2):
        raise errors.ConfigError(f'mobilenet: there is no version {hp.version}. Known: 1, 2.')
    style = backbone.style(hp, dtype)
    return backbone.build(hp, Mobilenet(FrozenConfigDict(hp), backbone.strides(hp, 4), style), outputs, style)


class Mobilenet(nn.Module):
    """x [B,...,C] -> its five levels."""

    hp: FrozenConfigDict
    strides: tuple[tuple[int, ...], ...]  # of the four levels that halve the plane
    style: Style

    @nn.compact
    def __call__(self, x: FeatureMap) -> list[Array]:
        hp, halving, levels, count = self.hp, iter(self.strides), [], 0
        block = nn.remat(Block) if hp.remat else Block
        x = Unit(backbone.channels(hp.width, 32), 3, hp.stem_stride[-hp.dims:], style=self.style, name='stem')(x)
        for groups in V1 if hp.version == 1 else V2:
            for *expand, c, n, s in groups:
                for i in range(n):
                    stride = next(halving) if i == 0 and s == 2 else 1
                    features = backbone.channels(hp.width, c)
                    x = block(features, stride, expand[0] if expand else 0, self.style, name=f'block{count:02d}')(x)
                    count += 1
            levels.append(x)
        return levels


class Block(nn.Module):
    """The block of V2 (expansion >= 1) or V1 (0). Parameters: [expand], depthwise, reduce, each a Unit."""

    features: int
    strides: int | tuple[int, ...]
    expansion: int
    style: Style

    @nn.compact
    def __call__(self, x: FeatureMap) -> OutFeatureMap:
        y, c = x, x.shape[-1]
        if self.expansion > 1:
            c *= self.expansion
            y = Unit(c, 1, style=self.style, name='expand')(y)
        y = Unit(c, 3, self.strides, groups=c, style=self.style, name='depthwise')(y)
        y = Unit(self.features, 1, linear=self.expansion > 0, style=self.style, name='reduce')(y)
        return x + y if self.expansion and self.strides == 1 and x.shape == y.shape else y
