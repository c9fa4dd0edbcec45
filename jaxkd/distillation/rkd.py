"""Relational distillation (Park et al., CVPR 2019 [published]): distances between cases, and angles at each case.

    distance  mean_ij h(d_S,ij / mean d_S - d_T,ij / mean d_T)          d = |f_i - f_j|, mean over positive ones
    angle     mean_ijk h(cos_S(ijk) - cos_T(ijk))                       the angle at j between i and k

h is the smooth L1 (0.5 x^2 below 1). Translating, rotating or scaling one side changes nothing; sizes may differ.
Relates the cases of the global batch: the work grows with B^3. The weights 25 and 50 are those of the usual code, 1 and
2 those of the article.
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import losses
from jaxkd.contracts import Loss, Sides

# distance: weight of the distances between cases; angle: weight of the angles
DEFAULTS = dict(student='pooled', weight=1.0, distance=25.0, angle=50.0)


def relations(student: Shaped[Array, 'b d'], teacher: Shaped[Array, 'b e'],
              valid: Shaped[Array, ' b']) -> tuple[Float[Array, ''], Float[Array, '']]:
    """(distance, angle) over the valid cases of [B,d], [B,e]. The teacher gets no gradient."""
    sides = student.astype(jnp.float32), jax.lax.stop_gradient(teacher.astype(jnp.float32))
    pairs = valid[:, None] * valid
    count = jnp.maximum(valid.sum(), 1)

    def relative(x):
        d = jax.lax.map(jax.checkpoint(lambda anchor: losses.norm(x - anchor)[:, 0]), x)  # [B,B], one row at a time
        positive = pairs * (d > 0)
        mean = jnp.sum(d * positive) / jnp.maximum(positive.sum(), 1)
        return d / jnp.where(mean > 0, mean, 1)

    @jax.checkpoint
    def angles(anchors):
        s, t, there = anchors
        s, t = (losses.unit(x - anchor) for x, anchor in zip(sides, (s, t)))
        return there * jnp.sum(_smooth(s @ s.T - t @ t.T) * pairs)

    distance = jnp.sum(_smooth(relative(sides[0]) - relative(sides[1])) * pairs) / count ** 2
    return distance, jnp.sum(jax.lax.map(angles, (*sides, valid))) / count ** 3


def _smooth(x: Float[Array, '...']) -> Float[Array, '...']:
    return jnp.where(jnp.abs(x) < 1, 0.5 * x * x, jnp.abs(x) - 0.5)


def build(hp: ConfigDict, sides: Sides) -> Loss:
    def values(student, teacher, cases):
        student, teacher = (x.reshape(x.shape[0], -1) for x in (student, teacher))
        distance, angle = relations(student, teacher, cases.valid)
        return hp.distance * distance + hp.angle * angle
    return Loss(values, pairwise=True)
