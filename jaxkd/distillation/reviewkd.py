"""Knowledge review (Chen et al., CVPR 2021 [published]): deep maps of the student help to imitate shallow ones of the
teacher.

    sum_levels HCL(fused_l, F_T,l)
    HCL(a, b) = [ MSE(a, b) + sum_{s in (4, 2, 1), s < side} c_s MSE(pool_s a, pool_s b) ] / (1 + sum c_s),
                c = 1/2, 1/4, 1/8 in the order of the sizes that are smaller than the map
    fused     from the deepest level up: 1x1 convolution to `width`; above the deepest, two sigmoid maps of it and of
              the upsampled level below add the two; 3x3 convolution to the teacher's channels

The taps are listed from shallow to deep: student='block1,block2,pooled'; a vector is a map of one place. pool_s
averages to s places a side. The fusion blocks train with the student; each case is normalised by itself (group norm)
instead of over the batch, so that masked cases, devices and microbatches change nothing [our choice]. Weight 5 for most
pairs, rising over the first 20 epochs [published]. 2D and 3D.
"""
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Loss, LossPlugin, Sides

# width: channels of the fusion blocks
DEFAULTS = dict(student='block1,block2', weight=5.0, schedule='linear 20 epochs', width=64)
SIZES = (4, 2, 1)


def adaptive_pool(x: Float[Array, 'b *places c'], size: int) -> Float[Array, 'b *sizes c']:
    """The mean over `size` windows along each axis of places; windows overlap where a side is no multiple of it."""
    for axis in range(1, x.ndim - 1):
        n = x.shape[axis]
        window = [[float(i * n // size <= j < -(-(i + 1) * n // size)) for j in range(n)] for i in range(size)]
        matrix = jnp.array(window) / jnp.array(window).sum(1, keepdims=True)
        x = jnp.moveaxis(jnp.tensordot(matrix, x, (1, axis)), 0, axis)
    return x


def hierarchical(student: Shaped[Array, 'b *places c'], teacher: Shaped[Array, '...']) -> Float[Array, ' b']:
    """HCL of two maps [B,*places,C] -> [B]. The teacher gets no gradient."""
    student, teacher = losses.same_shape('reviewkd', student, jax.lax.stop_gradient(teacher))
    value, share, total = losses.squared_error(student, teacher), 1.0, 1.0
    for size in SIZES:
        if size < min(student.shape[1:-1], default=1):
            share, total = share / 2, total + share / 2
            value += share * losses.squared_error(adaptive_pool(student, size), adaptive_pool(teacher, size))
    return value / total


class Fusion(nn.Module):
    """The student's maps, shallow to deep, -> maps of the teacher's places and channels."""

    shapes: tuple[tuple[int, ...], ...]  # (*places, channels) of the teacher's maps
    width: int

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> list[Array]:
        carried, out = None, []
        for level, x in reversed([*enumerate(maps)]):
            *places, channels = self.shapes[level]
            x = nn.GroupNorm(1, name=f'norm{level}')(nn.Dense(self.width, use_bias=False, name=f'in{level}')(x))
            if carried is not None:
                carried = losses.nearest(carried, x.shape[1:-1])
                gates = nn.sigmoid(nn.Dense(2, name=f'gate{level}')(jnp.concatenate([x, carried], -1)))
                x = x * gates[..., :1] + carried * gates[..., 1:]
            carried = x
            x = losses.nearest(x, places)
            kernel = (3,) * len(places)
            x = nn.Conv(channels, kernel, use_bias=False, name=f'out{level}')(x) if places else nn.Dense(channels)(x)
            out.append(nn.GroupNorm(1, name=f'outnorm{level}')(x))
        return out[::-1]


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError unless both sides list as many maps."""
    if len(sides.student) != len(sides.teacher) or len(sides.student) < 2:
        raise errors.ConfigError(f'{sides.key}: reviewkd reads two or more taps of each side, as many of both, from '
                                 f'shallow to deep; here are {len(sides.student)} and {len(sides.teacher)}.')
    rank = max(x.ndim for x in (*sides.student, *sides.teacher)) - 2

    def as_map(x):
        return x.reshape(x.shape[0], *[1] * (rank if x.ndim == 2 else 0), *x.shape[1:]).astype(jnp.float32)

    shapes = tuple(tuple(jax.eval_shape(as_map, x).shape[1:]) for x in sides.teacher)

    def values(student, teacher, cases):
        fused = cases.heads['fusion']([as_map(x) for x in student])
        return sum(hierarchical(a, as_map(b)) for a, b in zip(fused, teacher))
    return Loss(values, {'fusion': Fusion(shapes, hp.width)})


PLUGIN = LossPlugin(levels=True)
