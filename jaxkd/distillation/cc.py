"""Correlation congruence (Peng et al., ICCV 2019 [published]): a kernel between the cases of a batch.

    C_ij = exp(-2 g) sum_{p=0..P} (2 g)^p / p! <f_i, f_j>^p,  f of norm 1,  g = 0.4, P = 2
    form = 'paper'          |C_S - C_T|^2 / B^2
    form = 'torchdistill'   |C_S - C_T| / B^2
    form = 'repdistiller'   mean_b sum_d |e_S - e_T|_b,d |e_S - e_T|_b+1,d        depends on the order of a batch

f, e = features, through a linear map to `width` on each side where width > 0 (repdistiller has 128). Relates the cases
of the global batch. Weight 0.02 belongs to repdistiller, torchdistill has 0.003 [published].
"""
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Loss, Sides

DEFAULTS = dict(
    student='pooled', weight=0.02,
    form='paper',  # paper (squared difference), torchdistill (its norm) or repdistiller (of neighbours in a batch)
    gamma=0.4,  # of the Gaussian kernel exp(-gamma d^2) between cases; repdistiller has none
    degree=2,  # P of its series, 1 to 8; repdistiller has none
    width=0,  # features of a trained linear map on each side; 0: none
)
FORMS = ('paper', 'torchdistill', 'repdistiller')


def kernel(x: Shaped[Array, 'b d'], gamma: float = 0.4, degree: int = 2) -> Float[Array, 'b b']:
    """C of features [B,d]."""
    x = losses.unit(x.astype(jnp.float32))
    products = x @ x.T
    series = [(2 * gamma) ** p / math.factorial(p) * products ** p for p in range(degree + 1)]
    return math.exp(-2 * gamma) * jnp.sum(jnp.stack(series), 0)


def gap(student: Shaped[Array, 'b d'], teacher: Shaped[Array, 'b e'], valid: Shaped[Array, ' b'], form: str = 'paper',
        gamma: float = 0.4, degree: int = 2) -> Float[Array, '']:
    """[B,d], [B,e], valid [B] -> a number; d = e for repdistiller. Both sides get a gradient: stop one that is not to
    be trained.
    """
    if form == 'repdistiller':
        student, teacher = losses.same_shape('cc', student, teacher)
        difference, both = jnp.abs(student - teacher), valid[:-1] * valid[1:]
        return jnp.sum(jnp.sum(difference[:-1] * difference[1:], -1) * both) / jnp.maximum(both.sum(), 1)
    difference = (kernel(student, gamma, degree) - kernel(teacher, gamma, degree)) * valid[:, None] * valid
    difference = difference.reshape(1, -1)
    total = jnp.sum(jnp.square(difference)) if form == 'paper' else losses.norm(difference)[0, 0]
    return total / jnp.maximum(valid.sum(), 1) ** 2


def build(hp: ConfigDict, sides: Sides) -> Loss:
    errors.check_choice(f'{sides.key}.form', hp.form, FORMS)
    errors.check_range(f'{sides.key}.degree', hp.degree, '[1, 8]')

    def values(student, teacher, cases):
        student, teacher = (x.reshape(x.shape[0], -1) for x in (student, jax.lax.stop_gradient(teacher)))
        if hp.width:
            student, teacher = cases.heads['student'](student), cases.heads['teacher'](teacher)
        return gap(student, teacher, cases.valid, hp.form, hp.gamma, hp.degree)
    return Loss(values, {side: nn.Dense(hp.width) for side in ('student', 'teacher') if hp.width}, pairwise=True)
