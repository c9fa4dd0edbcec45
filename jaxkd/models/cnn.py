"""The plain convolutional network that is published with SimBA, in 3D or 2D, with every block as an output.

Stanley et al., JAMIA 2024 [published, its code]. Five times
    x -> 3^3 convolution with bias -> batch norm -> sigmoid -> 2^3 max pooling, stride 2 = block1 ... block5
then one of
    head='flatten'  2^3 average pooling, stride 2, then all places side by side = pooled [published]
    head='gap'      the mean over places = pooled: any size of input, far fewer weights [our choice]
and dropout -> linear = logits. Both poolings round odd sides up (what lies outside counts for neither), so that
173 x 211 x 155 becomes 87 x 106 x 78, 44 x 53 x 39, 22 x 27 x 20, 11 x 14 x 10, 6 x 7 x 5, at last 3 x 4 x 3: pooled
has 3 * 4 * 3 * 512 = 18,432 values. With head='flatten' the weights belong to one size of input.

Initial weights: Glorot uniform, biases 0, scales 1. Batch norm: running statistics keep `momentum` of themselves at
each step, 1e-3 is added to the variance; these are the defaults of Keras, in which the network was written [published].
act='relu' and the other norms are for comparison [our choice].

Input: a dict of volumes [B,D,H,W,C] (dims=2: images [B,H,W,C]), see jaxkd.models.layers.backbone.read; several are
stacked as channels in alphabetical order, one that is absent as zeros.
Returns: logits float32 [B,outputs] (absent for outputs=0), pooled float32 [B,F], block1 ... blockN [B,d,h,w,channels].
Parameters: blockN/{conv/{kernel, bias}, norm/{scale, bias}}, head/linear/{kernel, bias}; batch_stats:
blockN/norm/{mean, var}.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from ml_collections import ConfigDict, FrozenConfigDict

from jaxkd import errors
from jaxkd.models.layers import backbone, initial, transformer
from jaxkd.models.layers.convolution import NORMS, Conv, Norm, Style, batch_norm
from jaxkd.models.layers.operations import FeatureMap, OutFeatureMap, max_pool

ACTS = dict(sigmoid=nn.sigmoid, relu=nn.relu)
DEFAULTS = dict(
    dims=3,  # 2 for images, 3 for volumes
    channels=(32, 64, 128, 256, 512),  # channels of each block: as many blocks as numbers
    act='sigmoid',  # activation: sigmoid or relu
    norm='batch',  # normalisation: batch, group, layer or instance
    momentum=0.99,  # of the running statistics of batch norm: below some hundred steps take 0.9
    head='flatten',  # flatten (all places side by side) or gap (their mean)
    dropout=0.2,  # share of pooled features dropped before the head, 0 to below 1
    remat=False,  # compute the blocks again in the backward pass: less memory, about a third more time
)


def build(hp: ConfigDict, outputs: int, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The module for an hp like DEFAULTS. Raises ConfigError for a choice that does not exist."""
    for key, choices in dict(act=ACTS, norm=('batch', *NORMS), head=('flatten', 'gap')).items():
        errors.check_choice(f'model.{key}', hp[key], choices)
    backbone.check_dims(hp)
    if not hp.channels or min(hp.channels) < 1:
        raise errors.ConfigError(f'model.channels = {tuple(hp.channels)} must be positive numbers, one for each block.')
    if not 0 <= hp.momentum < 1 or not 0 <= hp.dropout < 1:
        raise errors.ConfigError(f'model.momentum = {hp.momentum} and model.dropout = {hp.dropout} must be in [0, 1).')
    style = Style(hp.norm, False, jnp.dtype(dtype), bias=True, fan='glorot')
    return Cnn(FrozenConfigDict(hp), outputs, style)


class Cnn(nn.Module):
    """See the module's docstring."""

    hp: FrozenConfigDict
    outputs: int
    style: Style

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = ()) -> dict[str, Array]:
        hp = self.hp
        x = jnp.concatenate(backbone.read(inputs, hp.dims)[1], -1)
        block = nn.remat(Block, static_argnums=(2,)) if hp.remat else Block
        out = {}
        for i, c in enumerate(hp.channels, 1):
            x = out[f'block{i}'] = block(c, hp.act, hp.momentum, self.style, name=f'block{i}')(x, train)
        x = x.astype(jnp.float32)
        if hp.head == 'gap':
            out['pooled'] = jnp.mean(x, range(1, x.ndim - 1))
        else:
            x = nn.avg_pool(x, (2,) * hp.dims, (2,) * hp.dims, 'SAME', count_include_pad=False)
            out['pooled'] = x.reshape(x.shape[0], -1)
        return transformer.with_logits(out, self.outputs, hp.dropout, train, initial.glorot_uniform)


class Block(nn.Module):
    """x [B,...,C] -> [B,...,features], every side n becomes ceil(n / 2)."""

    features: int
    act: str
    momentum: float
    style: Style

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> OutFeatureMap:
        style = self.style
        x = Conv(self.features, 3, bias=True, style=style, name='conv')(x)
        if style.norm == 'batch':
            x = batch_norm(style.dtype, train, 'norm', self.momentum, epsilon=1e-3, spread=0)(x)
        else:
            x = Norm(style, name='norm')(x)
        x = ACTS[self.act](x)
        odd = [(0, 0), *((0, n % 2) for n in x.shape[1:-1]), (0, 0)]
        return max_pool(jnp.pad(x, odd, constant_values=-jnp.inf), 2, 2)
