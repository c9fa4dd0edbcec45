"""Contrast with a margin (PMKL, Chen et al., TMI 2021 [published]): both sides of a case together, other cases apart.

    mean_ij d_ii^2 where i = j, max(0, margin - d_ij)^2 elsewhere,  d_ij = |p_i - a_j|

p, a: features (maps: their mean over places) through a linear map to `width` on each side, trained with the student.
Relates the cases of the global batch.
"""
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Loss, Sides

# margin: distance at which other cases cost nothing, above 0; width: features of a linear map on each side
DEFAULTS = dict(student='pooled', weight=0.5, margin=1.0, width=64)


def contrast(p: Shaped[Array, 'b d'], a: Shaped[Array, 'b d'], valid: Shaped[Array, ' b'],
             margin: float = 1.0) -> Float[Array, '']:
    """[B,d], [B,d], valid [B] -> a number; both sides get a gradient."""
    p, a = losses.same_shape('pmkl_contrast', p, a)
    d = losses.norm(p[:, None] - a)[..., 0]
    own = jnp.eye(len(valid))
    pairs = own * jnp.square(d) + (1 - own) * jnp.square(jax.nn.relu(margin - d))
    return jnp.sum(pairs * valid[:, None] * valid) / jnp.maximum(valid.sum(), 1) ** 2


def build(hp: ConfigDict, sides: Sides) -> Loss:
    errors.check_range(f'{sides.key}.margin', hp.margin, '(0, inf)')
    errors.check_range(f'{sides.key}.width', hp.width, '[1, inf)')

    def values(student, teacher, cases):
        p, a = (cases.heads[side](losses.flat(x).mean(1) if x.ndim > 2 else x)
                for side, x in (('student', student), ('teacher', jax.lax.stop_gradient(teacher))))
        return contrast(p, a, cases.valid, hp.margin)
    return Loss(values, {side: nn.Dense(hp.width) for side in ('student', 'teacher')}, pairwise=True)
