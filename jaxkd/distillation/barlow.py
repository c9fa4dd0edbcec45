"""Redundancy reduction (Barlow Twins, Zbontar et al., ICML 2021 [published]) between the two sides of a case.

    sum_i (C_ii - 1)^2 + off sum_{i != j} C_ij^2,  C = z_S' z_T / B,  z of mean 0 and deviation 1 over the batch

z: features through a linear map to `width` on each side where width > 0. The statistics are those of the global batch;
a constant feature is 0. off = 0.005 [published].
"""
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Loss, Sides

# off: weight of correlations between channels, 0 or more; width: features of a trained linear map on each side, 0: none
DEFAULTS = dict(student='pooled', weight=0.01, off=0.005, width=128)


def redundancy(student: Shaped[Array, 'b d'], teacher: Shaped[Array, 'b d'], valid: Shaped[Array, ' b'],
               off: float = 0.005) -> Float[Array, '']:
    """[B,d], [B,d], valid [B] -> a number; both sides get a gradient: stop one that is not to be trained."""
    student, teacher = losses.same_shape('barlow', student, teacher)
    count, weight = jnp.maximum(valid.sum(), 1), valid[:, None]

    def standardised(x):  # unit columns: z / sqrt(B)
        return losses.unit(((x - jnp.sum(x * weight, 0) / count) * weight).T)
    c = standardised(student) @ standardised(teacher).T
    own = jnp.eye(c.shape[0])
    return jnp.sum(own * jnp.square(c - 1) + off * (1 - own) * jnp.square(c))


def build(hp: ConfigDict, sides: Sides) -> Loss:
    errors.check_range(f'{sides.key}.off', hp.off, '[0, inf)')

    def values(student, teacher, cases):
        student, teacher = (x.reshape(x.shape[0], -1) for x in (student, jax.lax.stop_gradient(teacher)))
        if hp.width:
            student, teacher = cases.heads['student'](student), cases.heads['teacher'](teacher)
        return redundancy(student, teacher, cases.valid, hp.off)
    return Loss(values, {side: nn.Dense(hp.width) for side in ('student', 'teacher') if hp.width}, pairwise=True)
