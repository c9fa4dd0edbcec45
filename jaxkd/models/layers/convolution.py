"""Convolutional layers in 2D and 3D: convolution, normalisation, and both with an activation.

Layout and padding: jaxkd.models.layers.operations. Parameters are float32. Convolutions run in `dtype`, statistics of
kernels and activations in float32.
"""
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxkd import errors
from jaxkd.models.layers import initial
from jaxkd.models.layers.operations import FeatureMap, OutFeatureMap, convolve, per_axis

NORMS = {'group': 8, 'layer': 1, 'instance': None}  # the most groups of channels; None: each channel is one
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    'leaky': functools.partial(nn.leaky_relu, negative_slope=0.01), 'relu': nn.relu}


class Style(NamedTuple):
    """What all layers of one network share."""

    norm: str = 'group'  # of NORMS, or batch
    standardise: bool = True  # the kernels, see `standardise`
    dtype: DTypeLike = jnp.float32
    activation: str = 'leaky'  # of ACTIVATIONS
    bias: bool = False  # of the convolutions before a norm
    fan: Literal['fan_out', 'fan_in', 'glorot'] = 'fan_out'  # of the initial kernels, see `initial`; glorot: uniform,
    # variance 2 / (fan in + fan out)
    spread: float = 0.02  # of the initial scales of batch norm


class Conv(nn.Module):
    """Convolution. x [B,...,C] -> [B,...,features] in the style's dtype. Parameters: kernel, [bias]."""

    features: int
    kernel: int | tuple[int, ...] = 3  # one size for all axes, or one for each
    strides: int | tuple[int, ...] = 1
    groups: int = 1  # the number of channels makes it depthwise
    bias: bool = False
    style: Style = Style()

    @nn.compact
    def __call__(self, x: FeatureMap) -> OutFeatureMap:
        axes, channels = x.ndim - 2, x.shape[-1]
        shape = (*per_axis(self.kernel, axes), channels // self.groups, self.features)
        initializer = initial.glorot_uniform if self.style.fan == 'glorot' else initial.kaiming(self.style.fan)
        w = self.param('kernel', initializer, shape)
        w = standardise(w) if self.style.standardise else w
        dtype = self.style.dtype
        x = convolve(x.astype(dtype), w.astype(dtype), self.strides, self.groups)
        return x + self.param('bias', nn.initializers.zeros, (self.features,)).astype(dtype) if self.bias else x


class Norm(nn.Module):
    """Normalisation over the places and the channels of a group, then a scale and a bias for each channel.

    x [B,...,C] -> [B,...,C]: (x - mean) / sqrt(variance + 1e-5) * scale + bias, one mean and one (biased) variance for
    each case and group of neighbouring channels (Wu and He, ECCV 2018 [published]). Groups: 8, or the largest divisor
    of C below that [our choice]. No case sees another one, so a batch may be of any size.
    Raises ConfigError where a group holds one value or two: they would become 0, or a sign.
    """

    style: Style = Style()

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        batch, channels = x.shape[0], x.shape[-1]
        groups = largest_divisor(channels, NORMS[self.style.norm] or channels)
        if x.size // batch // groups <= 2:
            raise errors.ConfigError(f'At {"/".join(self.path)} a case is {x.shape[1:]}: {groups} groups of '
                                     f'{x.size // batch // groups} cannot be normalised. Set model.norm to layer, '
                                     'raise model.width, model.features or model.channels, lower the strides, or use '
                                     'larger volumes.')
        scale = self.param('scale', nn.initializers.ones, (channels,))
        bias = self.param('bias', nn.initializers.zeros, (channels,))
        return _normalise(x, scale, bias, groups, self.style.dtype)


def batch_norm(dtype: DTypeLike, train: bool, name: str, momentum: float = 0.9, epsilon: float = 1e-5,
               spread: float = 0.02) -> nn.BatchNorm:
    """Batch normalisation (Ioffe and Szegedy, ICML 2015 [published]): one mean and variance for each channel.

    Training uses those of the batch (on several devices: of the device's share) and moves the running ones by a tenth
    (1 - momentum) towards them; evaluation uses the running ones, batch_stats/.../{mean, var}. The scale starts at
    N(1, spread).
    """
    scale = initial.near_one(spread) if spread else nn.initializers.ones
    return nn.BatchNorm(not train, momentum=momentum, epsilon=epsilon, use_fast_variance=False, dtype=dtype,
                        scale_init=scale, name=name)


def normalisation(style: Style, train: bool, name: str) -> nn.Module:
    """The module that the style names; only batch norm looks at `train`."""
    if style.norm == 'batch':
        return batch_norm(style.dtype, train, name, spread=style.spread)
    return Norm(style, name=name)


class Unit(nn.Module):
    """Convolution, normalisation and, unless linear, the activation. Parameters: conv/{kernel, [bias]}, norm/{scale,
    bias}.

    Only batch norm has batch_stats and looks at `train`.
    """

    features: int
    kernel: int | tuple[int, ...] = 3
    strides: int | tuple[int, ...] = 1
    groups: int = 1
    linear: bool = False
    style: Style = Style()

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool = False) -> OutFeatureMap:
        style = self.style
        x = Conv(self.features, self.kernel, self.strides, self.groups, style.bias, style, name='conv')(x)
        x = normalisation(style, train, 'norm')(x)
        return x if self.linear else activate(x, style.activation)


@functools.partial(jax.jit, static_argnums=(3, 4))  # traced once for a shape, however many layers have it
def _normalise(x: Array, scale: Array, bias: Array, groups: int, dtype: DTypeLike) -> Array:
    batch, channels = x.shape[0], x.shape[-1]

    def mean(a):  # over places first: one quick pass over memory
        a = jnp.mean(a, 1).reshape(batch, groups, -1)
        a = jnp.broadcast_to(jnp.mean(a, -1, keepdims=True), a.shape)
        return a.reshape(batch, 1, channels)

    flat = x.astype(jnp.float32).reshape(batch, -1, channels)
    centred = flat - mean(flat)
    flat = centred * (lax.rsqrt(mean(centred * centred) + 1e-5) * scale) + bias
    return flat.reshape(x.shape).astype(dtype)


def activate(x: Float[Array, '*shape'], kind: str = 'leaky') -> Float[Array, '*shape']:
    """Leaky ReLU with slope 0.01 below zero, or ReLU."""
    return ACTIVATIONS[kind](x)


@jax.jit  # as above
def standardise(w: Float[Array, '*shape']) -> Float[Array, '*shape']:
    """Weight standardisation: every output channel of a kernel [k...,C,out] gets mean 0 and (biased) variance 1.

    Qiao et al., 2019 [published], in float32; 1e-10 is added to the variance, as in BiT (Kolesnikov et al., ECCV 2020
    [published]): a depthwise kernel starts with a variance of 1e-4, beside which the usual 1e-5 would count.
    """
    w = w.astype(jnp.float32)
    w = w - jnp.mean(w, range(w.ndim - 1), keepdims=True)
    return w * lax.rsqrt(jnp.mean(w * w, range(w.ndim - 1), keepdims=True) + 1e-10)


def largest_divisor(n: int, most: int) -> int:
    """The largest divisor of n that is not above `most`."""
    return next(d for d in range(min(n, most), 0, -1) if n % d == 0)
