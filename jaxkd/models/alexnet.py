"""AlexNet for images, as torchvision has it: five convolutions, three linear layers, no normalisation.

Krizhevsky, 2014 (one-column form of Krizhevsky et al., NeurIPS 2012) [published]. Sides for an image of 224 pixels.
    conv1  11^2, stride 4, padding 2, 64     55^2 x 64
    conv2  3^2 max pooling, stride 2; 5^2, 192     27^2 x 192
    conv3  3^2 max pooling, stride 2; 3^2, 384     13^2 x 384
    conv4  3^2, 256     13^2 x 256
    conv5  3^2, 256     13^2 x 256
    3^2 max pooling, stride 2 -> mean over 6 x 6 cells -> 9,216 values -> dropout -> 4,096 -> dropout -> 4,096 = pooled
    -> linear = logits
A ReLU follows each layer but the last; conv1 ... conv5 are after it and before pooling. The 6 x 6 cells overlap where
six does not divide the side, so images may have any size from 63 pixels (torchvision's adaptive pooling).

Initial weights: Kaiming normal, fan-in, and the head truncated normal 0.02 [our choice]; torchvision's can be loaded,
see jaxkd.pretrained.import_weights.
Input: a dict of images [B,H,W,C], see jaxkd.models.layers.backbone.read (with mean and std as described there);
several are stacked as channels in alphabetical order, one that is absent as zeros.
Returns: logits float32 [B,outputs] (absent for outputs=0), pooled float32 [B,hidden], conv1 ... conv5 [B,h,w,channels].
Parameters: conv1 ... conv5, hidden1, hidden2, head/linear, each {kernel, bias}.
"""
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from ml_collections import ConfigDict, FrozenConfigDict

from jaxkd import errors
from jaxkd.contracts import ModelPlugin
from jaxkd.models.layers import backbone, transformer
from jaxkd.models.layers.initial import kaiming
from jaxkd.models.layers.operations import max_pool
from jaxkd.pretrained import import_weights

CELLS = 6
DEFAULTS = dict(
    width=1.0,  # factor of all channels, above 0
    hidden=4096,  # features of the two linear layers
    dropout=0.5,  # share of features dropped before each of the two, 0 to below 1
    mean=(),  # of the input, subtracted first: one value for all channels or one for each; (): it comes normalised
    std=(),  # of the input, divided by: as many values as `mean`
)
TORCHVISION = dict(width=1.0, hidden=4096)


def build(hp: ConfigDict, outputs: int, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The module for an hp like DEFAULTS. Raises ConfigError for a choice that does not exist."""
    if hp.width <= 0 or hp.hidden < 1:
        raise errors.ConfigError(f'model.width = {hp.width} and model.hidden = {hp.hidden} must be positive.')
    transformer.check_dropout(hp.dropout)
    backbone.check_mean_std(hp)
    return Alexnet(FrozenConfigDict(hp), outputs, jnp.dtype(dtype))


def torchvision(hp: ConfigDict) -> dict[str, str]:
    """{torchvision's name of a layer: our path}."""
    convolutions = {f'features.{n}': f'conv{i}' for i, n in enumerate((0, 3, 6, 8, 10), 1)}
    return convolutions | {'classifier.1': 'hidden1', 'classifier.4': 'hidden2', 'classifier.6': 'head/linear'}


def tensors(hp: ConfigDict, shapes: import_weights.Shapes, config_json: Mapping) -> tuple[dict, dict, Sequence[str]]:
    """Of torchvision's names, see contracts.ModelPlugin."""
    return TORCHVISION, import_weights.sources_of(torchvision(hp), shapes), ()


def arrange(path: str, value: np.ndarray) -> np.ndarray:
    """The first linear layer reads places by channel there, channels by place here."""
    if path != 'params/hidden1/kernel' or value.shape[1] % CELLS ** 2:
        return value
    return rearrange(value, 'out (c h w) -> out (h w c)', h=CELLS, w=CELLS)


class Alexnet(nn.Module):
    """See the module's docstring."""

    hp: FrozenConfigDict
    outputs: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool = False, capture: Sequence[str] = ()) -> dict[str, Array]:
        hp = self.hp
        names, images, _ = backbone.read(inputs, 2, hp.mean, hp.std)
        x = jnp.concatenate(images, -1).astype(self.dtype)
        if min(x.shape[1:3]) < 63:
            raise errors.ConfigError(f'alexnet: "{names[0]}" is {x.shape[1]} x {x.shape[2]} pixels; three poolings '
                                     'need 63.')
        out = {}
        for i, (c, kernel) in enumerate(((64, 11), (192, 5), (384, 3), (256, 3), (256, 3)), 1):
            x = max_pool(x, 3, 2, pad=0) if i in (2, 3) else x
            stride, padding = (4, 2) if i == 1 else (1, kernel // 2)
            x = nn.relu(nn.Conv(backbone.channels(hp.width, c), (kernel,) * 2, stride, padding, dtype=self.dtype,
                                kernel_init=kaiming('fan_in'), name=f'conv{i}')(x))
            out[f'conv{i}'] = x
        x = cells(max_pool(x, 3, 2, pad=0), CELLS).reshape(x.shape[0], -1)
        for i in (1, 2):
            x = nn.Dropout(hp.dropout)(x, deterministic=not train)
            x = nn.relu(nn.Dense(hp.hidden, dtype=self.dtype, kernel_init=kaiming('fan_in'), name=f'hidden{i}')(x))
        out['pooled'] = x.astype(jnp.float32)
        return transformer.with_logits(out, self.outputs, 0.0, train)


def cells(x: Float[Array, 'batch height width channels'], n: int) -> Float[Array, 'batch {n} {n} channels']:
    """Means over n x n cells: x [B,h,w,C] -> [B,n,n,C]; cell i of a side s reaches from floor(i s / n) to ceil((i+1) s
    / n).
    """
    if x.shape[1:3] == (n, n):
        return x
    rows, columns = (jnp.asarray(_cell_weights(side, n), x.dtype) for side in x.shape[1:3])
    return jnp.einsum('ip,jq,bpqc->bijc', rows, columns, x)


def _cell_weights(side: int, n: int) -> np.ndarray:
    """[n,side]: what each place contributes to each cell's mean."""
    weights = np.zeros((n, side), np.float32)
    for i in range(n):
        begin, end = i * side // n, math.ceil((i + 1) * side / n)
        weights[i, begin:end] = 1 / (end - begin)
    return weights


def restore(path: str, value: np.ndarray) -> np.ndarray:
    """The way back of `arrange`."""
    if path != 'params/hidden1/kernel':
        return value
    return rearrange(value, 'out (h w c) -> out (c h w)', h=CELLS, w=CELLS)


PLUGIN = ModelPlugin(tensors=tensors, arrange=arrange, restore=restore,
                     libraries=lambda hp: {'torchvision': torchvision(hp)})
