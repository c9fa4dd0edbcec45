"""Normalised temperature-scaled cross-entropy (NT-Xent, SimCLR, Chen et al., ICML 2020 [published]): two views of a
case among those of all others.

    mean over the 2 B views i of  - log exp(cos(z_i, z_p(i)) / tau) / sum_{k != i} exp(cos(z_i, z_k) / tau)

p(i): the other view of the case of i. Beside infonce, views of one side are negatives of each other, too. z = features
through one map for both sides, a hidden layer and `width` (0: none); the sides have one size. With `both` the other
side gets a gradient, too: where the two are views by one network, taps of the student both (models/views.py), as in
MSVCL (Li et al., MICCAI 2021: styles of an image, views of a breast). tau = 0.1 [our choice]. Relates the cases of the
global batch.
"""
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Loss, Sides

DEFAULTS = dict(
    student='pooled', weight=1.0,
    tau=0.1,  # divisor of the cosines, 0.001 to 100
    width=128,  # of a trained map with a hidden layer, for both sides; 0: none
    both=False,  # the teacher's side learns, too: for views by one network
)


def nt_xent(a: Float[Array, 'b d'], b: Float[Array, 'b d'], valid: Shaped[Array, ' b'],
            tau: float = 0.1) -> Float[Array, '']:
    """[B,d], [B,d], valid [B] -> a number, over the views of valid cases; both sides get a gradient."""
    a, b = losses.same_shape('ntxent', a, b)
    z, there = losses.unit(jnp.concatenate([a, b])), jnp.concatenate([valid, valid])
    count = len(z)
    others = (there > 0) & ~jnp.eye(count, dtype=bool)
    scores = jax.nn.log_softmax(jnp.where(others, z @ z.T / tau, -1e9))
    own = scores[jnp.arange(count), (jnp.arange(count) + count // 2) % count]
    return -jnp.sum(jnp.where(there > 0, own, 0)) / jnp.maximum(there.sum(), 1)


class Projection(nn.Module):
    """Two layers with a ReLU between, as SimCLR has them [published]. x [B,d] -> [B,width]."""
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, 'b d']) -> Float[Array, 'b width']:
        return nn.Dense(self.width)(nn.relu(nn.Dense(x.shape[-1])(x)))


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError for a temperature out of bounds, and for sides of unequal sizes."""
    errors.check_range(f'{sides.key}.tau', hp.tau, '[0.001, 100]')
    if sides.student.shape != sides.teacher.shape:
        raise errors.ConfigError(f'{sides.key}: the taps are {list(sides.student.shape[1:])} and '
                                 f'{list(sides.teacher.shape[1:])}. Views of a case have one shape; for those of '
                                 'different networks take infonce.')

    def values(student, teacher, cases):
        teacher = teacher if hp.both else jax.lax.stop_gradient(teacher)
        a, b = (x.reshape(x.shape[0], -1).astype(jnp.float32) for x in (student, teacher))
        if hp.width:
            a, b = cases.heads['projection'](a), cases.heads['projection'](b)
        return nt_xent(a, b, cases.valid, hp.tau)
    return Loss(values, {'projection': Projection(hp.width)} if hp.width else {}, pairwise=True)
