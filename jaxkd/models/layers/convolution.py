"""Convolution, max pooling and normalisation in 2D and 3D, and the one place that chooses how they are computed.

Layout: x [B,H,W,C] or [B,D,H,W,C], kernels [k...,C/groups,out]. Padding is symmetric, k // 2 on every side, so that a
side n becomes (n + 2*(k//2) - k) // stride + 1, as with padding=k//2 in torch. Max pooling pads (k-1)//2: a window of 2
needs none. Another padding of max pooling can be asked for.

GPU and TPU run XLA's own operations. XLA for the CPU does a 3D convolution 5 to 10 times, a depthwise one about 100
times slower than it need be, so there (`platform_dependent`: the program of another platform holds none of this)
    kernel 1                    a strided slice and a matrix product
    few columns or few places   shifted slices next to each other (im2col) and one matrix product
    2D                          XLA's own: only 3D is slow
    other 3D                    the depth-shifted inputs side by side as channels, depth in the batch: one 2D convolution
    depthwise                   the sum of shifted slices times a weight for each channel, and its gradients likewise
    max pooling                 one axis after the other, each a maximum of shifted slices
Values and gradients are those of XLA's own operation to float32 rounding. The backward pass of a convolution keeps x and
the kernel, nothing else. Gradients are in reverse mode (jax.grad, jax.vjp); jax.jvp does not pass a convolution.

Parameters are float32. Convolutions run in `dtype` (on the CPU in float32, whatever x is, and are then rounded to it),
statistics of kernels and activations in float32.
"""
import functools
import itertools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxkd import errors

NORMS = {'group': 8, 'layer': 1, 'instance': None}  # the most groups of channels; None: each channel is one
ACTIVATIONS = {'leaky': functools.partial(nn.leaky_relu, negative_slope=0.01), 'relu': nn.relu}


class Style(NamedTuple):
    """What all layers of one network share."""

    norm: str = 'group'  # of NORMS, or batch
    standardise: bool = True  # the kernels, see `standardise`
    dtype: jnp.dtype = jnp.float32
    activation: str = 'leaky'  # of ACTIVATIONS
    bias: bool = False  # of the convolutions before a norm
    fan: str = 'fan_out'  # or fan_in: of the initial kernels, see `kaiming`; glorot: uniform, variance 2 / (fan in + fan out)
    spread: float = 0.02  # of the initial scales of batch norm


class Conv(nn.Module):
    """Convolution. x [B,...,C] -> [B,...,features] in the style's dtype. Parameters: kernel, [bias]."""

    features: int
    kernel: int | tuple = 3  # one size for all axes, or one for each
    strides: int | tuple = 1
    groups: int = 1  # the number of channels makes it depthwise
    bias: bool = False
    style: Style = Style()

    @nn.compact
    def __call__(self, x):
        axes, channels = x.ndim - 2, x.shape[-1]
        shape = (*_each(self.kernel, axes), channels // self.groups, self.features)
        first = nn.initializers.glorot_uniform() if self.style.fan == 'glorot' else kaiming(self.style.fan)
        w = self.param('kernel', first, shape)
        w = standardise(w) if self.style.standardise else w
        dtype = self.style.dtype
        x = convolve(x.astype(dtype), w.astype(dtype), self.strides, self.groups)
        return x + self.param('bias', nn.initializers.zeros, (self.features,)).astype(dtype) if self.bias else x


class Norm(nn.Module):
    """Normalisation over the places and the channels of a group, then a scale and a bias for each channel.

    x [B,...,C] -> [B,...,C]: (x - mean) / sqrt(variance + 1e-5) * scale + bias, one mean and one (biased) variance for
    each case and group of neighbouring channels (Wu and He, ECCV 2018 [published]). Groups: 8, or the largest divisor of
    C below that [our choice]. No case sees another one, so a batch may be of any size.
    Raises ConfigError where a group holds one value or two: they would become 0, or a sign.
    """

    style: Style = Style()

    @nn.compact
    def __call__(self, x):
        batch, channels = x.shape[0], x.shape[-1]
        groups = largest_divisor(channels, NORMS[self.style.norm] or channels)
        if x.size // batch // groups <= 2:
            raise errors.ConfigError(f'At {"/".join(self.path)} a case is {x.shape[1:]}: {groups} groups of '
                                     f'{x.size // batch // groups} cannot be normalised. Set model.norm to layer, raise '
                                     'model.width, model.features or model.channels, lower the strides, or use larger volumes.')
        scale = self.param('scale', nn.initializers.ones, (channels,))
        bias = self.param('bias', nn.initializers.zeros, (channels,))

        def mean(a):  # over places first: one quick pass over memory
            a = jnp.mean(a, 1).reshape(batch, groups, -1)
            a = jnp.broadcast_to(jnp.mean(a, -1, keepdims=True), a.shape)
            return a.reshape(batch, 1, channels)

        flat = x.astype(jnp.float32).reshape(batch, -1, channels)
        centred = flat - mean(flat)
        flat = centred * (lax.rsqrt(mean(centred * centred) + 1e-5) * scale) + bias
        return flat.reshape(x.shape).astype(self.style.dtype)


def batch_norm(dtype, train, name, momentum=0.9, epsilon=1e-5, spread=0.02):
    """Batch normalisation (Ioffe and Szegedy, ICML 2015 [published]): one mean and variance for each channel.

    Training uses those of the batch (on several devices: of the device's share) and moves the running ones by a tenth
    (1 - momentum) towards them; evaluation uses the running ones, batch_stats/.../{mean, var}. The scale starts at
    N(1, spread).
    """
    def scale(key, shape, dtype):
        return 1 + spread * jax.random.normal(key, shape, dtype) if spread else jnp.ones(shape, dtype)

    return nn.BatchNorm(not train, momentum=momentum, epsilon=epsilon, use_fast_variance=False, dtype=dtype, scale_init=scale,
                        name=name)


def normalisation(style, train, name):
    """The module that the style names; only batch norm looks at `train`."""
    return batch_norm(style.dtype, train, name, spread=style.spread) if style.norm == 'batch' else Norm(style, name=name)


class Unit(nn.Module):
    """Convolution, normalisation and, unless linear, the activation. Parameters: conv/{kernel, [bias]}, norm/{scale, bias}.

    Only batch norm has batch_stats and looks at `train`.
    """

    features: int
    kernel: int | tuple = 3
    strides: int | tuple = 1
    groups: int = 1
    linear: bool = False
    style: Style = Style()

    @nn.compact
    def __call__(self, x, train=False):
        style = self.style
        x = Conv(self.features, self.kernel, self.strides, self.groups, style.bias, style, name='conv')(x)
        x = normalisation(style, train, 'norm')(x)
        return x if self.linear else activate(x, style.activation)


def kaiming(fan='fan_out'):
    """Normal, variance 2 / fan: He et al., ICCV 2015, gain of a ReLU [published].

    fan_out: places of the kernel * output channels; fan_in: places of the kernel * input channels of a group.
    """
    return nn.initializers.variance_scaling(2.0, fan, 'normal')


def activate(x, kind='leaky'):
    """Leaky ReLU with slope 0.01 below zero, or ReLU."""
    return ACTIVATIONS[kind](x)


def standardise(w):
    """Weight standardisation: every output channel of a kernel [k...,C,out] gets mean 0 and (biased) variance 1.

    Qiao et al., 2019 [published], in float32; 1e-10 is added to the variance, as in BiT (Kolesnikov et al., ECCV 2020
    [published]): a depthwise kernel starts with a variance of 1e-4, beside which the usual 1e-5 would count.
    """
    w = w.astype(jnp.float32)
    w = w - jnp.mean(w, range(w.ndim - 1), keepdims=True)
    return w * lax.rsqrt(jnp.mean(w * w, range(w.ndim - 1), keepdims=True) + 1e-10)


def largest_divisor(n, most):
    """The largest divisor of n that is not above `most`."""
    return next(d for d in range(min(n, most), 0, -1) if n % d == 0)


def convolve(x, w, strides=1, groups=1):
    """x [B,...,C] * w [k...,C/groups,out] -> [B,...,out] in the dtype of x. Strides: one, or one for each axis.

    Raises ConfigError when axes or channels do not fit.
    """
    axes = x.ndim - 2
    if w.ndim != x.ndim or axes not in (2, 3):
        raise errors.ConfigError(f'A convolution of shape {x.shape} with a kernel {w.shape} is neither 2D nor 3D. Give '
                                 'images [B,H,W,C] or volumes [B,D,H,W,C] and a network of the same dims.')
    if x.shape[-1] != groups * w.shape[-2] or w.shape[-1] % groups:
        raise errors.ConfigError(f'A convolution from {x.shape[-1]} to {w.shape[-1]} channels in {groups} groups cannot '
                                 f'use a kernel {w.shape}. Both numbers of channels must be multiples of the groups.')
    return _convolve(x, w, _each(strides, axes), groups)


def max_pool(x, window=3, strides=2, pad=None):
    """The largest value under a window, x [B,...,C] -> [B,...,C]. The gradient goes to the first of equal values.

    pad: places on each side of every axis, None: (window - 1) // 2.
    """
    axes = x.ndim - 2
    window, strides = _each(window, axes), _each(strides, axes)
    pads = [(k - 1) // 2 if pad is None else pad for k in window]

    def quick(x):
        for axis in range(axes, 0, -1):  # last axis first: ties then end at the same place as in one window
            x = _pool(x, axis, window[axis - 1], strides[axis - 1], pads[axis - 1])
        return x

    def native(x):
        around = [(0, 0), *((p, p) for p in pads), (0, 0)]
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), around)

    return lax.platform_dependent(x, cpu=quick, default=native)


# The two jits inside trace a shape once, however many layers have it, and keep a call outside of jit quick.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
@functools.partial(jax.jit, static_argnums=(2, 3))
def _convolve(x, w, strides, groups):
    quick, own = (functools.partial(f, strides=strides, groups=groups) for f in (_quick, _native))
    return lax.platform_dependent(x, w, cpu=quick, default=own)


def _convolve_forward(x, w, strides, groups):
    return _convolve(x, w, strides, groups), (x, w)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _convolve_backward(strides, groups, saved, g):
    def own(x, w, g):
        return jax.vjp(functools.partial(_native, strides=strides, groups=groups), x, w)[1](g)

    def quick(x, w, g):
        if _depthwise(x, w, groups):
            wide = (a.astype(jnp.float32) for a in (x, w, g))
            return tuple(a.astype(x.dtype) for a in _depthwise_gradients(*wide, strides))
        return jax.vjp(functools.partial(_quick, strides=strides, groups=groups), x, w)[1](g)

    return lax.platform_dependent(*saved, g, cpu=quick, default=own)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _native(x, w, strides, groups):
    layout = ('NHWC', 'HWIO', 'NHWC') if x.ndim == 4 else ('NDHWC', 'DHWIO', 'NDHWC')
    pads = [(k // 2, k // 2) for k in w.shape[:-2]]
    return lax.conv_general_dilated(x, w, strides, pads, dimension_numbers=layout, feature_group_count=groups)


def _quick(x, w, strides, groups):
    dtype, x, w = x.dtype, x.astype(jnp.float32), w.astype(jnp.float32)
    if _depthwise(x, w, groups):
        out = _depthwise_sum(x, w, strides)
    elif groups > 1:
        parts = zip(jnp.split(x, groups, -1), jnp.split(w, groups, -1))
        out = jnp.concatenate([_dense(*part, strides) for part in parts], -1)
    else:
        out = _dense(x, w, strides)
    return out.astype(dtype)


def _dense(x, w, strides):
    sizes, sides = w.shape[:-2], _sides(x, w, strides)
    if math.prod(sizes) == 1:
        return _slice(x, (0,) * len(sizes), strides, sides) @ w.reshape(w.shape[-2:])
    if math.prod(w.shape[:-1]) <= 32 or max(sides) <= 4:
        columns = [view for _, view in _taps(_pad(x, sizes), sizes, strides, sides)]
        return jnp.concatenate(columns, -1) @ w.reshape(-1, w.shape[-1])
    if len(sizes) == 2:
        return _native(x, w, strides, 1)
    x = _pad(x, (sizes[0], 1, 1))
    planes = (x.shape[2], x.shape[3])
    x = jnp.concatenate([_slice(x, (i, 0, 0), (strides[0], 1, 1), (sides[0], *planes)) for i in range(sizes[0])], -1)
    w = jnp.moveaxis(w, 0, 2).reshape(*sizes[1:], -1, w.shape[-1])
    return _native(x.reshape(-1, *x.shape[2:]), w, strides[1:], 1).reshape(-1, *sides, w.shape[-1])


def _depthwise(x, w, groups):
    return groups > 1 and groups == x.shape[-1] == w.shape[-1]


def _depthwise_sum(x, w, strides):
    """For each channel: y[o] = sum over taps t of x[o * stride + t - k // 2] * w[t]."""
    sizes = w.shape[:-2]
    views, weights = _taps(_pad(x, sizes), sizes, strides, _sides(x, w, strides)), _weights(w)
    return sum(view * weights[tap] for tap, view in views)


def _depthwise_gradients(x, w, g, strides):
    """-> gradients of x and of w.

    x: a place j of the padded input is phase j % stride of block j // stride. A phase gets the taps t with the same
    remainder, from the outputs j // stride - t // stride: one sum of shifted slices of g for each phase, interleaved.
    w: one reduction over all taps at once, so that x and g are read once.
    """
    sizes, sides = w.shape[:-2], g.shape[1:-1]
    axes, weights = range(len(sizes)), _weights(w)
    blocks = [-(-(n + 2 * (k // 2)) // s) for n, k, s in zip(x.shape[1:-1], sizes, strides)]
    before = [(k - 1) // s for k, s in zip(sizes, strides)]
    pads = [(0, 0), *((b, n - o) for b, n, o in zip(before, blocks, sides)), (0, 0)]
    padded = lax.optimization_barrier(jnp.pad(g, pads))

    def phase(remainders):
        taps = itertools.product(*(range(r, k, s) for r, k, s in zip(remainders, sizes, strides)))
        starts = ((tap, [b - t // s for b, t, s in zip(before, tap, strides)]) for tap in taps)
        return sum((_slice(padded, start, (1,) * len(sizes), blocks) * weights[tap] for tap, start in starts),
                   jnp.zeros((x.shape[0], *blocks, x.shape[-1])))

    dx = jnp.stack([phase(r) for r in itertools.product(*map(range, strides))])
    dx = dx.reshape(*strides, x.shape[0], *blocks, x.shape[-1])
    order = [len(sizes), *itertools.chain(*((len(sizes) + 1 + i, i) for i in axes)), 2 * len(sizes) + 1]
    dx = dx.transpose(order).reshape(x.shape[0], *(n * s for n, s in zip(blocks, strides)), x.shape[-1])
    dx = _slice(dx, [k // 2 for k in sizes], (1,) * len(sizes), x.shape[1:-1])

    products = [view * g for _, view in _taps(_pad(x, sizes), sizes, strides, sides)]
    zeros = [jnp.float32(0)] * len(products)
    # In two steps, the second one over the first axis: shorter sums round less.
    sums = lax.reduce(products, zeros, lambda a, b: [i + j for i, j in zip(a, b)], tuple(range(2, x.ndim - 1)))
    return dx, jnp.stack(sums).sum((1, 2)).reshape(w.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _pool(x, axis, window, stride, pad):
    return functools.reduce(jnp.maximum, _windows(x, axis, window, stride, pad))


def _pool_forward(x, axis, window, stride, pad):
    y = _pool(x, axis, window, stride, pad)
    return y, (x, y)


def _pool_backward(axis, window, stride, pad, saved, g):
    x, y = saved
    free, dx = jnp.ones(y.shape, bool), 0
    length = x.shape[axis] + 2 * pad
    for t, view in enumerate(_windows(x, axis, window, stride, pad)):
        hit = free & (view == y)
        free &= ~hit
        config = [(0, 0, 0)] * x.ndim
        config[axis] = (t, length - t - (y.shape[axis] - 1) * stride - 1, stride - 1)
        dx += lax.pad(jnp.where(hit, g, 0), jnp.zeros((), g.dtype), config)
    return (lax.slice_in_dim(dx, pad, pad + x.shape[axis], axis=axis),)


_pool.defvjp(_pool_forward, _pool_backward)


def _windows(x, axis, window, stride, pad):
    pads = [(0, 0)] * x.ndim
    pads[axis] = (pad, pad)
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
    span = (x.shape[axis] - window) // stride * stride + 1
    return [lax.slice_in_dim(x, t, t + span, stride, axis) for t in range(window)]


def _each(value, axes):
    """One value for each axis."""
    return (value,) * axes if isinstance(value, int) else tuple(value)


def _sides(x, w, strides):
    return tuple((n + 2 * (k // 2) - k) // s + 1 for n, k, s in zip(x.shape[1:-1], w.shape[:-2], strides))


def _pad(x, sizes):
    # The barrier keeps the padding out of the sums that read it, where it would be tested anew for each tap.
    return lax.optimization_barrier(jnp.pad(x, [(0, 0), *((k // 2, k // 2) for k in sizes), (0, 0)]))


def _taps(padded, sizes, strides, sides):
    """(tap, what that tap of the kernel sees) for all taps, in the order of the kernel's memory."""
    for tap in itertools.product(*map(range, sizes)):
        yield tap, _slice(padded, tap, strides, sides)


def _weights(w):
    """{tap: [1,...,C]} of a depthwise kernel."""
    rows = lax.split(w.reshape(-1, *[1] * (w.ndim - 2), w.shape[-1]), [1] * math.prod(w.shape[:-2]))
    return dict(zip(itertools.product(*map(range, w.shape[:-2])), rows))


def _slice(x, start, strides, sides):
    """Every `strides`-th place from `start` on, `sides` of them along each axis."""
    stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, sides, strides)]
    return lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *strides, 1))
