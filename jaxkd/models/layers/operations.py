"""Convolution and max pooling in 2D and 3D, and the one place that chooses how they are computed.

Layout: x [B,H,W,C] or [B,D,H,W,C], kernels [k...,C/groups,out]. Padding is symmetric, k // 2 on every side, so that a
side n becomes (n + 2*(k//2) - k) // stride + 1, as with padding=k//2 in torch. Max pooling pads (k-1)//2: a window of 2
needs none. Another padding of max pooling can be asked for.

GPUs run XLA's own operations. XLA for the CPU does a 3D convolution 5 to 10 times, a depthwise one about 100
times slower than it need be, so there (`platform_dependent`: the program of another platform holds none of this)
    kernel 1                    a strided slice and a matrix product
    few columns or few places   shifted slices next to each other (im2col) and one matrix product; of a single channel
                                the slices lie one after the other, as they are in memory
    2D, few channels            the three rows under a 3 x 3 kernel side by side as channels of the side that has fewer,
                                the input or the output, and a convolution along the rows, since XLA has quicker
                                kernels for more channels
    other 2D                    XLA's own; of 64 channels of the output or more the kernel's gradient is a matrix
                                product for each tap or row of the kernel
    other 3D                    the depth-shifted inputs side by side as channels, depth in the batch: one 2D
                                convolution
    depthwise                   the sum of shifted slices times a weight for each channel, and its gradients likewise
    max pooling                 one axis after the other, each a maximum of shifted slices
A TPU pads channels to 128 lanes, so that a 3D convolution of few channels is bound by memory. There, where one side
of a volume times the channels is at most FOLDED, that axis is folded into the channels, and a 2D convolution whose
kernel is dense along it, and mostly zero, takes the place: more arithmetic, of which a TPU has plenty, for fewer bytes.

Values and gradients are those of XLA's own operation to float32 rounding. The backward pass of a convolution keeps x
and the kernel, nothing else. Gradients are in reverse mode (jax.grad, jax.vjp); jax.jvp does not pass a convolution.

On the CPU convolutions run in float32, whatever the dtype of x is, and are then rounded to it.
"""
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxkd import errors

FEW = 16  # channels of a side below which XLA's own convolution in 2D is slow on a CPU
MANY = 64  # channels of the output from which on products are quicker than XLA's own gradient of a kernel there
FOLDED = 512  # channels of a folded convolution on a TPU, at most: beyond, the arithmetic costs more than the bytes
Sizes = Sequence[int]  # one for each axis of places
FeatureMap = Float[Array, 'batch *places channels']  # what a layer reads
OutFeatureMap = Float[Array, 'batch *out_places features']  # what a layer gives, of other sides and channels


def convolve(x: FeatureMap, w: Float[Array, '*kernel group_channels features'], strides: int | Sizes = 1,
             groups: int = 1) -> OutFeatureMap:
    """x [B,...,C] * w [k...,C/groups,out] -> [B,...,out] in the dtype of x. Strides: one, or one for each axis.

    Raises ConfigError when axes or channels do not fit.
    """
    axes = x.ndim - 2
    if w.ndim != x.ndim or axes not in (2, 3):
        raise errors.ConfigError(f'A convolution of shape {x.shape} with a kernel {w.shape} is neither 2D nor 3D. Give '
                                 'images [B,H,W,C] or volumes [B,D,H,W,C] and a network of the same dims.')
    if x.shape[-1] != groups * w.shape[-2] or w.shape[-1] % groups:
        raise errors.ConfigError(f'A convolution from {x.shape[-1]} to {w.shape[-1]} channels in {groups} groups '
                                 f'cannot use a kernel {w.shape}. Both numbers of channels must be multiples of the '
                                 'groups.')
    return _convolve(x, w, per_axis(strides, axes), groups)


def max_pool(x: FeatureMap, window: int | Sizes = 3, strides: int | Sizes = 2,
             pad: int | None = None) -> Float[Array, 'batch *out_places channels']:
    """The largest value under a window, x [B,...,C] -> [B,...,C]. The gradient goes to the first of equal values.

    pad: places on each side of every axis, None: (window - 1) // 2.
    """
    axes = x.ndim - 2
    window, strides = per_axis(window, axes), per_axis(strides, axes)
    pads = [(k - 1) // 2 if pad is None else pad for k in window]

    def on_cpu(x):
        for axis in range(axes, 0, -1):  # last axis first: ties then end at the same place as in one window
            x = _pool(x, axis, window[axis - 1], strides[axis - 1], pads[axis - 1])
        return x

    def native(x):
        padding = [(0, 0), *((p, p) for p in pads), (0, 0)]
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), padding)

    return lax.platform_dependent(x, cpu=on_cpu, default=native)


# The two jits inside trace a shape once, however many layers have it, and keep a call outside of jit quick.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
@functools.partial(jax.jit, static_argnums=(2, 3))
def _convolve(x: Array, w: Array, strides: Sizes, groups: int) -> Array:
    native, cpu, tpu = (functools.partial(f, strides=strides, groups=groups) for f in (_native, _on_cpu, on_tpu))
    return lax.platform_dependent(x, w, cpu=cpu, default=native, **_form_for_tpu(x, w, groups, tpu))


def _convolve_forward(x: Array, w: Array, strides: Sizes, groups: int) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, w, strides, groups), (x, w)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _convolve_backward(strides: Sizes, groups: int, residuals: tuple[Array, Array], g: Array) -> tuple[Array, ...]:
    def gradients_of(function):
        return lambda x, w, g: jax.vjp(functools.partial(function, strides=strides, groups=groups), x, w)[1](g)

    def on_cpu(x, w, g):
        if _is_depthwise(x, w, groups):
            wide = [a.astype(jnp.float32) for a in (x, w, g)]
            return tuple(a.astype(x.dtype) for a in _depthwise_gradients(wide[0], wide[1], wide[2], strides))
        if groups == 1 and _is_plane(x, w, strides):
            wide = [a.astype(jnp.float32) for a in (x, w, g)]
            return tuple(a.astype(x.dtype) for a in _plane_gradients(wide[0], wide[1], wide[2], strides))
        return gradients_of(_on_cpu)(x, w, g)

    tpu = _form_for_tpu(*residuals, groups, gradients_of(on_tpu))
    return lax.platform_dependent(*residuals, g, cpu=on_cpu, default=gradients_of(_native), **tpu)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _form_for_tpu(x: Array, w: Array, groups: int, function: Callable) -> dict[str, Callable]:
    """Nothing where it is the native one: that need not be traced twice."""
    return {} if _folded_axis(x, w, groups) is None else {'tpu': function}


def _native(x: Array, w: Array, strides: Sizes, groups: int) -> Array:
    layout = ('NHWC', 'HWIO', 'NHWC') if x.ndim == 4 else ('NDHWC', 'DHWIO', 'NDHWC')
    pads = [(k // 2, k // 2) for k in w.shape[:-2]]
    return lax.conv_general_dilated(x, w, strides, pads, dimension_numbers=layout, feature_group_count=groups)


def on_tpu(x: Array, w: Array, strides: Sizes, groups: int) -> Array:
    """As `convolve`, in the form for a TPU."""
    axis = _folded_axis(x, w, groups)
    if axis is None:
        return _native(x, w, strides, groups)
    # x [B,a,b,n,C] and w [i,j,k,C,out], the axis to be folded in the fourth place
    n, k, channels, features = x.shape[axis + 1], w.shape[axis], *w.shape[-2:]
    places, side = [i for i in range(3) if i != axis], _sides(x, w, strides)[axis]
    x = x.transpose(0, *(i + 1 for i in places), axis + 1, 4)
    reach = np.arange(n)[:, None] - strides[axis] * np.arange(side) + k // 2  # the tap with which out reads in
    taps = jnp.asarray(reach == np.arange(k)[:, None, None], w.dtype)  # [k,n,side]
    w = jnp.einsum('ijkcf,kno->ijncof', w.transpose(*places, axis, 3, 4), taps, precision='highest')  # not rounded
    y = _native(x.reshape(*x.shape[:3], n * channels), w.reshape(*w.shape[:2], n * channels, side * features),
                [strides[i] for i in places], 1)
    y = y.reshape(*y.shape[:3], side, features)
    return jnp.moveaxis(y, 3, axis + 1)


def _folded_axis(x: Array, w: Array, groups: int) -> int | None:
    """The axis of places that a TPU folds into the channels, None: it uses the native operation."""
    widths = [n * max(w.shape[-2:]) for n in x.shape[1:-1]]
    axis = widths.index(min(widths))
    return None if x.ndim == 4 or groups > 1 or math.prod(w.shape[:-2]) == 1 or widths[axis] > FOLDED else axis


def _on_cpu(x: Array, w: Array, strides: Sizes, groups: int) -> Array:
    dtype, x, w = x.dtype, x.astype(jnp.float32), w.astype(jnp.float32)
    if _is_depthwise(x, w, groups):
        out = _depthwise_sum(x, w, strides)
    elif groups > 1:
        parts = zip(jnp.split(x, groups, -1), jnp.split(w, groups, -1))
        out = jnp.concatenate([_dense(*part, strides) for part in parts], -1)
    else:
        out = _dense(x, w, strides)
    return out.astype(dtype)


def _dense(x: Array, w: Array, strides: Sizes) -> Array:
    sizes, sides = w.shape[:-2], _sides(x, w, strides)
    if math.prod(sizes) == 1:
        return _slice(x, (0,) * len(sizes), strides, sides) @ w.reshape(w.shape[-2:])
    if x.shape[-1] == 1 and math.prod(sizes) <= 32:
        rows = [view[..., 0] for _, view in _taps(_pad(x, sizes), sizes, strides, sides)]
        return jnp.tensordot(jnp.stack(rows), w.reshape(-1, w.shape[-1]), (0, 0))
    if math.prod(w.shape[:-1]) <= 32 or max(sides) <= 4:
        columns = [view for _, view in _taps(_pad(x, sizes), sizes, strides, sides)]
        return jnp.concatenate(columns, -1) @ w.reshape(-1, w.shape[-1])
    if len(sizes) == 2:
        return _rows(x, w) if _in_rows(w, strides) else _native(x, w, strides, 1)
    x = _pad(x, (sizes[0], 1, 1))
    planes = (x.shape[2], x.shape[3])
    x = jnp.concatenate([_slice(x, (i, 0, 0), (strides[0], 1, 1), (sides[0], *planes)) for i in range(sizes[0])], -1)
    w = jnp.moveaxis(w, 0, 2).reshape(*sizes[1:], -1, w.shape[-1])
    return _native(x.reshape(-1, *x.shape[2:]), w, strides[1:], 1).reshape(-1, *sides, w.shape[-1])


def _is_plane(x: Array, w: Array, strides: Sizes) -> bool:
    """Whether `_dense` computes this convolution in 2D by `_rows` or by XLA's own operation."""
    wide = math.prod(w.shape[:-1]) > 32 and math.prod(w.shape[:-2]) > 1
    return w.ndim == 4 and wide and max(_sides(x, w, strides)) > 4


def _in_rows(w: Array, strides: Sizes) -> bool:
    return w.shape[:-2] == (3, 3) and tuple(strides) == (1, 1) and min(w.shape[-2:]) < FEW


def _plane_gradients(x: Array, w: Array, g: Array, strides: Sizes) -> tuple[Array, Array]:
    """-> gradients of x and of w, of a convolution in 2D."""
    def native(x: Array, w: Array) -> Array:
        return _native(x, w, strides, 1)
    dx = (_rows(g, jnp.flip(w, (0, 1)).mT) if _in_rows(w, strides) else
          jax.vjp(functools.partial(native, w=w), x)[1](g)[0])
    if w.shape[-1] < MANY:
        return dx, jax.vjp(functools.partial(native, x), w)[1](g)[0]
    # A product over all places for each tap of the kernel; of few channels for each row, its columns side by side.
    sizes, places, x = w.shape[:2], g.shape[1:3], _pad(x, w.shape[:2])
    if x.shape[-1] < 2 * FEW:
        views = [_slice(x, (0, j), (1, strides[1]), (x.shape[1], places[1])) for j in range(sizes[1])]
        x, sizes, strides = jnp.concatenate(views, -1), (sizes[0], 1), (strides[0], 1)
    g = g.reshape(-1, g.shape[-1])
    products = [lax.dot_general(view.reshape(len(g), -1), g, (((0,), (0,)), ((), ())))
                for _, view in _taps(x, sizes, strides, places)]
    return dx, jnp.stack(products).reshape(w.shape)


def _rows(x: Array, w: Array) -> Array:
    """x [B,H,W,C] * w [3,3,C,out] at stride 1, with the rows of the kernel as channels of one of the two sides."""
    (channels, out), height = w.shape[2:], x.shape[1]
    if channels <= out:
        x = _pad(x, (3, 1))
        x = jnp.concatenate([x[:, i:i + height] for i in range(3)], -1)
        return _native(x, jnp.moveaxis(w, 0, 1).reshape(1, 3, 3 * channels, out), (1, 1), 1)
    y = _native(x, jnp.moveaxis(w, 0, 2).reshape(1, 3, channels, 3 * out), (1, 1), 1)
    y = _pad(y, (3, 1))
    return sum((y[:, i:i + height, :, i * out:(i + 1) * out] for i in range(1, 3)), y[:, :height, :, :out])


def _is_depthwise(x: Array, w: Array, groups: int) -> bool:
    return groups > 1 and groups == x.shape[-1] == w.shape[-1]


def _depthwise_sum(x: Array, w: Array, strides: Sizes) -> Array:
    """For each channel: y[o] = sum over taps t of x[o * stride + t - k // 2] * w[t]."""
    sizes = w.shape[:-2]
    views, weights = _taps(_pad(x, sizes), sizes, strides, _sides(x, w, strides)), _weights(w)
    total: Any = sum(view * weights[tap] for tap, view in views)
    return total


def _depthwise_gradients(x: Array, w: Array, g: Array, strides: Sizes) -> tuple[Array, Array]:
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
def _pool(x: Array, axis: int, window: int, stride: int, pad: int) -> Array:
    return functools.reduce(jnp.maximum, _windows(x, axis, window, stride, pad))


def _pool_forward(x: Array, axis: int, window: int, stride: int, pad: int) -> tuple[Array, tuple[Array, Array]]:
    y = _pool(x, axis, window, stride, pad)
    return y, (x, y)


def _pool_backward(axis: int, window: int, stride: int, pad: int, residuals: tuple[Array, Array],
                   g: Array) -> tuple[Array]:
    x, y = residuals
    unassigned, dx = jnp.ones(y.shape, bool), cast(Array, 0)
    length = x.shape[axis] + 2 * pad
    for t, view in enumerate(_windows(x, axis, window, stride, pad)):
        hit = unassigned & (view == y)
        unassigned &= ~hit
        config = [(0, 0, 0)] * x.ndim
        config[axis] = (t, length - t - (y.shape[axis] - 1) * stride - 1, stride - 1)
        dx += lax.pad(jnp.where(hit, g, 0), jnp.zeros((), g.dtype), config)
    return (lax.slice_in_dim(dx, pad, pad + x.shape[axis], axis=axis),)


_pool.defvjp(_pool_forward, _pool_backward)


def _windows(x: Array, axis: int, window: int, stride: int, pad: int) -> list[Array]:
    pads = [(0, 0)] * x.ndim
    pads[axis] = (pad, pad)
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
    span = (x.shape[axis] - window) // stride * stride + 1
    return [lax.slice_in_dim(x, t, t + span, stride, axis) for t in range(window)]


def per_axis(value: int | Sizes, axes: int) -> tuple[int, ...]:
    """One value for each axis, of one for all or one for each."""
    return (value,) * axes if isinstance(value, int) else tuple(value)


def _sides(x: Array, w: Array, strides: Sizes) -> tuple[int, ...]:
    return tuple((n + 2 * (k // 2) - k) // s + 1 for n, k, s in zip(x.shape[1:-1], w.shape[:-2], strides))


def _pad(x: Array, sizes: Sizes) -> Array:
    # The barrier keeps the padding out of the sums that read it, where it would be tested anew for each tap.
    return lax.optimization_barrier(jnp.pad(x, [(0, 0), *((k // 2, k // 2) for k in sizes), (0, 0)]))


def _taps(padded: Array, sizes: Sizes, strides: Sizes, sides: Sizes) -> Iterator[tuple[tuple[int, ...], Array]]:
    """(tap, what that tap of the kernel sees) for all taps, in the order of the kernel's memory."""
    for tap in itertools.product(*map(range, sizes)):
        yield tap, _slice(padded, tap, strides, sides)


def _weights(w: Array) -> dict[tuple[int, ...], Array]:
    """{tap: [1,...,C]} of a depthwise kernel."""
    rows = lax.split(w.reshape(-1, *[1] * (w.ndim - 2), w.shape[-1]), [1] * math.prod(w.shape[:-2]))
    return dict(zip(itertools.product(*map(range, w.shape[:-2])), rows))


def _slice(x: Array, start: Sizes, strides: Sizes, sides: Sizes) -> Array:
    """Every `strides`-th place from `start` on, `sides` of them along each axis."""
    stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, sides, strides)]
    return lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *strides, 1))
