"""Masked logit distillation (PMKL, Chen et al., TMI 2021 [published]): only where the teacher is right and better.

    sum_i w_i CE(softmax(z_T,i / T), softmax(z_S,i / T)) / sum_i w_i
    w_i = [argmax z_T,i = y_i] max(0, CE_S,i - CE_T,i)

i runs over the places of all cases, or over cases. w has no gradient, and a sum of 0 gives 0 [our choice]. T = 10
without T^2. PMKL is weighted cross-entropy + Dice (`dice_squared` of distil) + 0.5 of this + 0.5
`pmkl_contrast`.
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Cases, Loss, Sides
from jaxkd.state import Mean

DEFAULTS = dict(weight=0.5, temperature=10.0)  # temperature: divisor T of the logits, 0.1 to 100


def advantage(student: Shaped[Array, '*places k'], teacher: Shaped[Array, '*places k'],
              label: Shaped[Array, '...']) -> Float[Array, '*places']:
    """w of logits [B,...,K] and labels int [B,...]: 0 where the label is none of the classes."""
    known = (label >= 0) & (label < student.shape[-1])
    label = jnp.where(known, label, 0).astype(jnp.int32)
    better = losses.cross_entropy(student, label) - losses.cross_entropy(teacher, label)
    return jax.lax.stop_gradient(jax.nn.relu(better) * (jnp.argmax(teacher, -1) == label) * known)


def soft_cross_entropy(student: Shaped[Array, '*places k'], teacher: Shaped[Array, '...'],
                       temperature: float = 10.0) -> Float[Array, '*places']:
    """[B,...,K], [B,...,K] -> [B,...]. The teacher gets no gradient."""
    student, teacher = losses.same_shape('pmkl', student, teacher)
    soft = jax.nn.softmax(jax.lax.stop_gradient(teacher) / temperature)
    return -jnp.sum(soft * jax.nn.log_softmax(student / temperature), -1)


def values(student: Array, teacher: Array, cases: Cases, temperature: float) -> Mean:
    gap = soft_cross_entropy(student, teacher, temperature)
    return Mean.of(gap, advantage(student, teacher, cases.label) * losses.beside(cases.valid, gap))


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError unless there is a class for each place of the logits, or for each case."""
    errors.check_range(f'{sides.key}.temperature', hp.temperature, '[0.1, 100]')
    if sides.label.shape[1:] != sides.student.shape[1:-1]:
        raise errors.ConfigError(f'{sides.key}: pmkl asks where the teacher is right, so it needs one class for each '
                                 f'row of logits {list(sides.student.shape[1:])}; labels are '
                                 f'{list(sides.label.shape[1:])}. Take "kd_bce".')
    return Loss(lambda student, teacher, cases: values(student, teacher, cases, hp.temperature))
