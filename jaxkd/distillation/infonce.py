"""Contrast of the two sides of a case with those of other cases: a bound on their mutual information.

    bound = 'infonce'   mean_i - log softmax_j( cos(s_i, t_j) / tau )_i        van den Oord et al., 2018 [published]
                        `symmetric`: the average with that of t and s
    bound = 'jsd'       mean_i softplus(-cos(s_i, t_i)) + mean_{i != j} softplus(cos(s_i, t_j))
                                                                    Deep InfoMax, Hjelm et al., 2019 [published]

s, t = features, through a linear map to `width` on each side where width > 0. With `both` the teacher's side gets a
gradient, too: that of a network of `<stage>.networks`, trained along, as in cross-modal information maximisation (CMIM,
Sylvain et al., 2020). The cases of the global batch are each other's negatives.
"""
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Loss, Sides

DEFAULTS = dict(
    student='pooled', weight=0.1,
    bound='infonce',  # bound of the mutual information: infonce or jsd
    tau=0.1,  # infonce: divisor of the cosines, 0.001 to 100
    symmetric=True,  # infonce: the average of both directions
    width=128,  # features of a trained linear map on each side; 0: none
    both=False,  # the teacher's side learns, too, where it is trained along
)
BOUNDS = ('infonce', 'jsd')


def cosines(student: Shaped[Array, 'b d'], teacher: Shaped[Array, 'b d']) -> Float[Array, 'b b']:
    """cos(s_i, t_j) [B,B]."""
    student, teacher = losses.same_shape('infonce', student, teacher)
    return losses.unit(student) @ losses.unit(teacher).T


def infonce(alike: Float[Array, 'b b'], valid: Shaped[Array, ' b'], tau: float = 0.1,
            symmetric: bool = True) -> Float[Array, '']:
    """The first bound, of cosines [B,B], over the valid cases."""
    def one_way(scores):
        own = jax.nn.log_softmax(jnp.where(valid > 0, scores / tau, -1e9))
        return -jnp.sum(jnp.where(valid > 0, jnp.diagonal(own), 0)) / jnp.maximum(valid.sum(), 1)
    return (one_way(alike) + one_way(alike.T)) / 2 if symmetric else one_way(alike)


def jensen_shannon(alike: Float[Array, 'b b'], valid: Shaped[Array, ' b']) -> Float[Array, '']:
    """The second bound, of cosines [B,B], over the valid cases."""
    others = valid[:, None] * valid * (1 - jnp.eye(len(valid)))
    own = jnp.sum(jax.nn.softplus(-jnp.diagonal(alike)) * valid) / jnp.maximum(valid.sum(), 1)
    return own + jnp.sum(jax.nn.softplus(alike) * others) / jnp.maximum(others.sum(), 1)


def build(hp: ConfigDict, sides: Sides) -> Loss:
    errors.check_choice(f'{sides.key}.bound', hp.bound, BOUNDS)
    errors.check_range(f'{sides.key}.tau', hp.tau, '[0.001, 100]')

    def values(student, teacher, cases):
        student, teacher = (x.reshape(x.shape[0], -1)
                            for x in (student, teacher if hp.both else jax.lax.stop_gradient(teacher)))
        if hp.width:
            student, teacher = cases.heads['student'](student), cases.heads['teacher'](teacher)
        alike = cosines(student, teacher)
        return (infonce(alike, cases.valid, hp.tau, hp.symmetric) if hp.bound == 'infonce'
                else jensen_shannon(alike, cases.valid))
    return Loss(values, {side: nn.Dense(hp.width) for side in ('student', 'teacher') if hp.width}, pairwise=True)
