"""Curvature (after CurvSSL, Ghojogh et al., 2025 [inferred from its description]): how much the nearest neighbours of a
case lie on one side of it.

    kappa_i = sum_{a < b in kNN(i)} <u_ia, u_ib>,  u_ia = (z_a - z_i) / |z_a - z_i|
    L = mean_i (kappa_S,i - kappa_T,i)^2, each kappa of mean 0 and deviation 1 over the batch     [our choice of a loss]

z: features of norm 1; neighbours are those of each side in itself, of the global batch, and their choice has no
gradient. Of k cases around case i, kappa is k (k - 1) / 2 where all lie in one direction, and least where they balance.
The article aligns two augmentations of a case; here the two are student and teacher. Sizes may differ; turning or
scaling one side changes nothing. The evidence of the article are digits and CIFAR-10.
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Loss, Sides

DEFAULTS = dict(
    student='pooled', weight=0.1,
    neighbours=5,  # nearest cases around each case, 2 or more; at most all others of the batch
)


def curvature(x: Float[Array, 'b d'], valid: Shaped[Array, ' b'], neighbours: int) -> Float[Array, ' b']:
    """kappa of points [B,d] among the valid ones, [B]; the points as they are. Equal points add nothing."""
    between = x - x[:, None]  # [i,a] = z_a - z_i
    others = (valid[:, None] * valid * (1 - jnp.eye(len(valid)))) > 0
    near, index = jax.lax.top_k(jnp.where(others, -jnp.sum(jnp.square(jax.lax.stop_gradient(between)), -1), -jnp.inf),
                                min(neighbours, len(valid) - 1))
    u = losses.unit(jnp.take_along_axis(between, index[..., None], 1)) * jnp.isfinite(near)[..., None]
    return (jnp.sum(jnp.square(u.sum(1)), -1) - jnp.sum(jnp.square(u), (1, 2))) / 2


def gap(student: Shaped[Array, 'b d'], teacher: Shaped[Array, 'b e'], valid: Shaped[Array, ' b'],
        neighbours: int = 5) -> Float[Array, '']:
    """The loss of the valid cases. The teacher gets no gradient."""
    count = jnp.maximum(valid.sum(), 1)

    def standardised(x):
        kappa = curvature(losses.unit(x.astype(jnp.float32)), valid, neighbours)
        centred = (kappa - jnp.sum(kappa * valid) / count) * valid
        return losses.unit(centred) * jnp.sqrt(count)
    return jnp.sum(jnp.square(standardised(student) - standardised(jax.lax.stop_gradient(teacher)))) / count


def build(hp: ConfigDict, sides: Sides) -> Loss:
    errors.check_range(f'{sides.key}.neighbours', hp.neighbours, '[2, inf)')

    def values(student, teacher, cases):
        student, teacher = (x.reshape(x.shape[0], -1) for x in (student, teacher))
        return gap(student, teacher, cases.valid, hp.neighbours)
    return Loss(values, pairwise=True)
