"""Variational information distillation (Ahn et al., CVPR 2019 [published]): the teacher's features are likely, given
the student's.

    mean_ci 1/2 [ (mu(F_S) - F_T)^2 / s_c^2 + log s_c^2 ],  s_c^2 = softplus(a_c) + 1e-5

mu is three 1x1 convolutions with ReLU between them and without bias, of the teacher's width; a_c is trained, and begins
where s^2 = 5 [published]. Where the maps differ in size, the larger is averaged in blocks [our choice].
"""
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import losses
from jaxkd.contracts import Loss, Sides

DEFAULTS = dict(student='block2', weight=1.0, variance=5.0)  # variance: s^2 of each channel at the start
EPS = 1e-5


class Gaussian(nn.Module):
    """mu(F_S) [B,...,C] and a [C]."""

    channels: int
    variance: float

    @nn.compact
    def __call__(self, x: Float[Array, 'b *places d']) -> tuple[Array, Array]:
        for _ in range(2):
            x = nn.relu(nn.Dense(self.channels, use_bias=False)(x))
        start = math.log(math.expm1(self.variance - EPS))
        a = self.param('variance', nn.initializers.constant(start), (self.channels,), jnp.float32)
        return nn.Dense(self.channels, use_bias=False)(x), a


def likelihood(mean: Shaped[Array, 'b *places c'], a: Float[Array, ' c'],
               teacher: Shaped[Array, '...']) -> Float[Array, ' b']:
    """Negative log-likelihood per element, without its constant. [B,...,C], [C], [B,...,C] -> [B]."""
    mean, teacher = losses.same_shape('vid', mean, teacher)
    variance = jax.nn.softplus(a) + EPS
    return losses.per_case(0.5 * (jnp.square(mean - jax.lax.stop_gradient(teacher)) / variance + jnp.log(variance)))


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError for maps whose sides are no multiples of each other."""
    losses.check_places(sides.key, sides.student.shape, sides.teacher.shape)

    def values(student, teacher, cases):
        student, teacher = losses.same_places(student, teacher)
        mean, a = cases.heads['gaussian'](student.astype(jnp.float32))
        return likelihood(mean, a, teacher)
    return Loss(values, {'gaussian': Gaussian(sides.teacher.shape[-1], hp.variance)})
