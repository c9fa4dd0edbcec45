"""ResNet-18, 34 and 50 for volumes (or images), with group norm, leaky ReLU and weight standardisation.

He et al., CVPR 2016 [published]; in 3D as Hara et al., CVPR 2018 [published]; the stride of a bottleneck sits on its
3^3 convolution, as in torchvision. level0 is the stem, level1 ... level4 the four stages of 64, 128, 256, 512 channels
(times 4 for 50), the last three with stride 2.
    stem='full'   7^3 convolution with stem_stride, then 3^3 max pooling with stride 2 [published]
    stem='small'  3^3 convolution with stem_stride, no pooling: for volumes of some ten voxels a side [our choice]
Basic block: 3^3, norm, act, 3^3, norm; bottleneck: 1^3, norm, act, 3^3, norm, act, 1^3, norm. Added to the input, which
passes a 1^3 convolution and a norm where stride or channels change; then act.

The published networks use batch norm and ReLU; group norm, leaky ReLU and weight standardisation are for small batches
[our choice]. Initial weights: Kaiming normal, fan-out; head: truncated normal 0.02. Batch norm sees the zeros of absent
volumes.
The options TORCHVISION with features=0 make torchvision's networks, to the number; its weights can be the initial ones,
see jaxkd.pretrained.import_weights. One difference remains in training: torchvision's running variances are of n - 1,
these of n.
Inputs, outputs and their shapes: jaxkd.models.layers.backbone; layer1 ... layer4 are second names of
level1 ... level4, 56^2 x 64, 28^2 x 128, 14^2 x 256 and 7^2 x 512 for an image of 224 pixels. Parameters of the trunk:
trunk/{stem, blockNN/...}.
"""
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from ml_collections import ConfigDict, FrozenConfigDict

from jaxkd import errors
from jaxkd.contracts import ModelPlugin
from jaxkd.models.layers import backbone
from jaxkd.models.layers.convolution import ACTIVATIONS, NORMS, Style, Unit, activate
from jaxkd.models.layers.operations import FeatureMap, OutFeatureMap, max_pool
from jaxkd.pretrained import import_weights

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}  # blocks of each stage
STEMS = {'full': 7, 'small': 3}
DEFAULTS = dict(
    backbone.DEFAULTS,
    depth=18,  # layers: 18, 34 or 50
    stem='full',  # full (7^3 convolution and pooling) or small (3^3 convolution, for volumes of some ten voxels a side)
    activation='leaky',  # activation: leaky (ReLU) or relu
    depth_strides=(2, 2, 2),  # strides along the depth of the last three stages: 1 keeps a thin volume's depth
)
TORCHVISION = dict(dims=2, norm='batch', activation='relu', weight_standardisation=False, stem='full', width=1.0)


def build(hp: ConfigDict, outputs: int, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The module for an hp like DEFAULTS. Raises ConfigError for a choice that does not exist."""
    errors.check_choice('resnet.depth', hp.depth, DEPTHS)
    errors.check_choice('resnet.stem', hp.stem, STEMS)
    errors.check_choice('model.activation', hp.activation, ACTIVATIONS)
    style = backbone.style(hp, dtype, (*NORMS, 'batch'))._replace(activation=hp.activation, spread=0.0)
    trunk = Resnet(FrozenConfigDict(hp), backbone.strides(hp, 3), style)
    return backbone.build(hp, trunk, outputs, style, tuple((f'layer{i}', f'level{i}') for i in range(1, 5)))


def torchvision(hp: ConfigDict) -> dict[str, str]:
    """{torchvision's name of a layer: our path}."""
    names, count = {'conv1': 'trunk/stem/conv', 'bn1': 'trunk/stem/norm', 'fc': 'head/linear'}, 0
    for stage, blocks in enumerate(DEPTHS[hp.depth], 1):
        for i in range(blocks):
            theirs, ours = f'layer{stage}.{i}', f'trunk/block{count:02d}'
            for unit in (1, 2, 3) if hp.depth >= 50 else (1, 2):
                names |= {f'{theirs}.conv{unit}': f'{ours}/unit{unit}/conv',
                          f'{theirs}.bn{unit}': f'{ours}/unit{unit}/norm'}
            if i == 0 and (stage > 1 or hp.depth >= 50):
                names |= {f'{theirs}.downsample.0': f'{ours}/shortcut/conv',
                          f'{theirs}.downsample.1': f'{ours}/shortcut/norm'}
            count += 1
    return names


def tensors(hp: ConfigDict, shapes: import_weights.Shapes, config_json: Mapping) -> tuple[dict, dict, Sequence[str]]:
    """Of torchvision's names, see contracts.ModelPlugin."""
    return TORCHVISION, import_weights.sources_of(torchvision(hp), shapes), ()


class Resnet(nn.Module):
    """x [B,...,C] -> its five levels."""

    hp: FrozenConfigDict
    strides: tuple[tuple[int, ...], ...]  # of the last three stages
    style: Style

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool = False) -> list[Array]:
        hp = self.hp
        block = nn.remat(Block, static_argnums=(2,)) if hp.remat else Block  # self is argument 0
        x = Unit(backbone.channels(hp.width, 64), STEMS[hp.stem], hp.stem_stride[-hp.dims:], style=self.style,
                 name='stem')(x, train)
        x = max_pool(x) if hp.stem == 'full' else x
        strides: tuple[int | tuple[int, ...], ...] = (1, *self.strides)
        levels, count = [x], 0
        for stage, (n, stride) in enumerate(zip(DEPTHS[hp.depth], strides)):
            c = backbone.channels(hp.width, 64 * 2 ** stage)
            for i in range(n):
                x = block(c, stride if i == 0 else 1, hp.depth >= 50, self.style, name=f'block{count:02d}')(x, train)
                count += 1
            levels.append(x)
        return levels


class Block(nn.Module):
    """A basic block or a bottleneck. Parameters: unit1, unit2, [unit3], [shortcut], each a Unit."""

    features: int
    strides: int | tuple[int, ...]
    bottleneck: bool
    style: Style

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool = False) -> OutFeatureMap:
        c, out = self.features, 4 * self.features if self.bottleneck else self.features
        if self.bottleneck:
            y = Unit(c, 1, style=self.style, name='unit1')(x, train)
            y = Unit(c, 3, self.strides, style=self.style, name='unit2')(y, train)
            y = Unit(out, 1, linear=True, style=self.style, name='unit3')(y, train)
        else:
            y = Unit(c, 3, self.strides, style=self.style, name='unit1')(x, train)
            y = Unit(c, 3, linear=True, style=self.style, name='unit2')(y, train)
        if self.strides != 1 or x.shape[-1] != out:
            x = Unit(out, 1, self.strides, linear=True, style=self.style, name='shortcut')(x, train)
        return activate(x + y, self.style.activation)


PLUGIN = ModelPlugin(tensors=tensors, libraries=lambda hp: {'torchvision': torchvision(hp)})
