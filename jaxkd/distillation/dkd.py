"""Decoupled distillation (Zhao et al., CVPR 2022 [published]): the target class and the other classes, each by itself.

    alpha TCKD + beta NCKD,  TCKD = T^2 KL(b_T || b_S),  b = (p_y, 1 - p_y),  p = softmax(z / T)
                             NCKD = T^2 KL(p_T without y || p_S without y), both renormalised

At T = 1 the plain KL is TCKD + (1 - p_T,y) NCKD. beta = 8 is the base of the authors' code, 6 and 2 for some pairs of
networks; the weight rises over the first 20 epochs [published]. Two classes are refused: there is only one other class,
NCKD is 0 and the rest is `kd`.
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Cases, Loss, Sides
from jaxkd.state import Mean

DEFAULTS = dict(
    weight=1.0, schedule='linear 20 epochs',
    alpha=1.0,  # weight of TCKD, the class of the label against all others
    beta=8.0,  # weight of NCKD, the other classes among each other
    temperature=4.0,  # divisor T of the logits, 0.1 to 100
)


def parts(student: Shaped[Array, '*places k'], teacher: Shaped[Array, '...'], label: Shaped[Array, '...'],
          temperature: float = 4.0) -> tuple[Float[Array, '*places'], Float[Array, '*places']]:
    """(TCKD, NCKD) [B,...] of logits [B,...,K] and labels int [B,...] in 0..K-1. The teacher gets no gradient."""
    student, teacher = losses.same_shape('dkd', student, teacher)
    own = jax.nn.one_hot(label, student.shape[-1], dtype=bool)

    def logs(z):
        """log p_y, log (1 - p_y), and the log of the rest, renormalised: 0 at y."""
        p = jax.nn.log_softmax(z / temperature)
        others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, p), -1)
        return jnp.sum(jnp.where(own, p, 0), -1), others, jnp.where(own, 0, p - others[..., None])

    (yes_t, no_t, rest_t), (yes_s, no_s, rest_s) = logs(jax.lax.stop_gradient(teacher)), logs(student)
    target = jnp.exp(yes_t) * (yes_t - yes_s) + jnp.exp(no_t) * (no_t - no_s)
    rest = jnp.sum(jnp.where(own, 0, jnp.exp(rest_t) * (rest_t - rest_s)), -1)
    return temperature ** 2 * target, temperature ** 2 * rest


def values(student: Array, teacher: Array, cases: Cases, hp: ConfigDict) -> Mean:
    """The mean over places and cases that have a class: a label outside of 0..K-1 is none."""
    known = (cases.label >= 0) & (cases.label < student.shape[-1])
    target, rest = parts(student, teacher, jnp.where(known, cases.label, 0).astype(jnp.int32), hp.temperature)
    return Mean.of(hp.alpha * target + hp.beta * rest, known * losses.beside(cases.valid, target))


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError for two classes, and for labels that are not one class each."""
    errors.check_range(f'{sides.key}.temperature', hp.temperature, '[0.1, 100]')
    classes = sides.student.shape[-1]
    if classes < 3 or sides.label.shape[1:] != sides.student.shape[1:-1]:
        raise errors.ConfigError(f'{sides.key}: dkd needs three or more classes that exclude each other, since it '
                                 f'parts the class of the label from the others; here are {classes}, and labels '
                                 f'{list(sides.label.shape[1:])} beside logits {list(sides.student.shape[1:])}. Take '
                                 '"kd", or "kd_bce" where labels may be present together.')
    return Loss(lambda student, teacher, cases: values(student, teacher, cases, hp))
