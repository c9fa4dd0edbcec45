"""Several teachers as one (Hinton, Vinyals, Dean 2015; MIND, Guerra-Manzanares and Shamout, TMLR 2025 [published]): the
mean of their softened classes.

    T^2 KL( mean_m softmax(z_m / T) || softmax(z_S / T) )        mean='logits': softmax(mean_m z_m / T) instead

The taps name the teachers: teacher='report/logits,table/logits'. Labels that may be present together are one Bernoulli
each, and the mean over labels [our choice]. A case counts where every teacher has an input.
"""
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Loss, LossPlugin, Sides
from jaxkd.distillation import kd, kd_bce

# temperature: divisor T of the logits, 0.1 to 100; mean: of the teachers' probabilities or logits
DEFAULTS = dict(weight=0.9, temperature=4.0, mean='probabilities')
MEANS = ('probabilities', 'logits')


def joint(teachers: Shaped[Array, 'm *places k'], temperature: float = 4.0, mean: str = 'probabilities',
          several: bool = False) -> Float[Array, '*places k']:
    """The logits [B,...,K] of a teacher that says what the teachers [M,B,...,K] say in the mean."""
    teachers = teachers.astype(jnp.float32)
    if mean == 'logits':
        return teachers.mean(0)
    count = math.log(teachers.shape[0])
    if several:
        yes, no = (jax.nn.logsumexp(jax.nn.log_sigmoid(sign * teachers / temperature), 0) - count for sign in (1, -1))
        return temperature * (yes - no)
    return temperature * (jax.nn.logsumexp(jax.nn.log_softmax(teachers / temperature), 0) - count)


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError unless all logits have the shape of the student's."""
    errors.check_choice(f'{sides.key}.mean', hp.mean, MEANS)
    errors.check_range(f'{sides.key}.temperature', hp.temperature, '[0.1, 100]')
    shapes = [tuple(x.shape[1:]) for x in (*sides.student, *sides.teacher)]
    if len(sides.student) != 1 or len({*shapes}) > 1:
        raise errors.ConfigError(f'{sides.key}: ensemble reads one tap of the student and one of equal shape of each '
                                 f'teacher; these are {shapes}.')
    several = jnp.issubdtype(sides.label.dtype, jnp.floating)
    loss = (kd_bce if several else kd).softened

    def values(student, teacher, cases):
        return loss(student[0], joint(jnp.stack(teacher), hp.temperature, hp.mean, several), hp.temperature)
    return Loss(values)


PLUGIN = LossPlugin(levels=True)
