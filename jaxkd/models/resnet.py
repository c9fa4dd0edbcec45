"""ResNet-18, 34 and 50 for volumes (or images), with group norm, leaky ReLU and weight standardisation.

He et al., CVPR 2016 [published]; in 3D as Hara et al., CVPR 2018 [published]; the stride of a bottleneck sits on its 3^3
convolution, as in torchvision. level0 is the stem, level1 ... level4 the four stages of 64, 128, 256, 512 channels (times
4 for 50), the last three with stride 2.
    stem='full'   7^3 convolution with stem_stride, then 3^3 max pooling with stride 2 [published]
    stem='small'  3^3 convolution with stem_stride, no pooling: for volumes of some ten voxels a side [our choice]
Basic block: 3^3, norm, act, 3^3, norm; bottleneck: 1^3, norm, act, 3^3, norm, act, 1^3, norm. Added to the input, which
passes a 1^3 convolution and a norm where stride or channels change; then act.

The published networks use batch norm and ReLU; group norm, leaky ReLU and weight standardisation are for small batches
[our choice]. Initial weights: Kaiming normal, fan-out; head: truncated normal 0.02.
Inputs, outputs and their shapes: jaxkd.backbone. Parameters of the trunk: trunk/{stem, blockNN/...}.
"""
import flax.linen as nn
import jax.numpy as jnp

from jaxkd import backbone, errors
from jaxkd.convolution import Style, Unit, activate, max_pool

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}  # blocks of each stage
STEMS = {'full': 7, 'small': 3}
DEFAULTS = dict(
    backbone.DEFAULTS,
    depth=18,  # 18, 34, 50
    stem='full',  # or small
    depth_strides=(2, 2, 2),  # along the depth, of the last three stages: 1 keeps a thin volume's depth
)


def build(hp, outputs, dtype=jnp.float32):
    """The module for an hp like DEFAULTS. Raises ConfigError for a choice that does not exist."""
    if hp.depth not in DEPTHS:
        raise errors.ConfigError(f'resnet: no depth {hp.depth}.{errors.nearest(hp.depth, DEPTHS)}')
    if hp.stem not in STEMS:
        raise errors.ConfigError(f'resnet: no stem "{hp.stem}".{errors.nearest(hp.stem, STEMS)}')
    style = backbone.style(hp, dtype)
    trunk = Resnet(hp.depth, hp.width, hp.stem, tuple(hp.stem_stride)[-hp.dims:], backbone.strides(hp, 3), hp.remat, style)
    return backbone.build(hp, trunk, outputs, style)


class Resnet(nn.Module):
    """x [B,...,C] -> its five levels."""

    depth: int
    width: float
    stem: str
    stem_stride: tuple
    strides: tuple  # of the last three stages
    remat: bool
    style: Style

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block) if self.remat else Block
        x = Unit(backbone.channels(self.width, 64), STEMS[self.stem], self.stem_stride, style=self.style, name='stem')(x)
        x = max_pool(x) if self.stem == 'full' else x
        levels, count = [x], 0
        for stage, (n, stride) in enumerate(zip(DEPTHS[self.depth], (1, *self.strides))):
            c = backbone.channels(self.width, 64 * 2 ** stage)
            for i in range(n):
                x = block(c, stride if i == 0 else 1, self.depth >= 50, self.style, name=f'block{count:02d}')(x)
                count += 1
            levels.append(x)
        return levels


class Block(nn.Module):
    """A basic block or a bottleneck. Parameters: unit1, unit2, [unit3], [shortcut], each a Unit."""

    features: int
    strides: int | tuple
    bottleneck: bool
    style: Style

    @nn.compact
    def __call__(self, x):
        c, out = self.features, 4 * self.features if self.bottleneck else self.features
        if self.bottleneck:
            y = Unit(c, 1, style=self.style, name='unit1')(x)
            y = Unit(c, 3, self.strides, style=self.style, name='unit2')(y)
            y = Unit(out, 1, linear=True, style=self.style, name='unit3')(y)
        else:
            y = Unit(c, 3, self.strides, style=self.style, name='unit1')(x)
            y = Unit(c, 3, linear=True, style=self.style, name='unit2')(y)
        if self.strides != 1 or x.shape[-1] != out:
            x = Unit(out, 1, self.strides, linear=True, style=self.style, name='shortcut')(x)
        return activate(x + y)
