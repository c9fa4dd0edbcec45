"""Generalised distillation (Lopez-Paz et al., ICLR 2016 [published]): soft targets for a student that is not softened.

    - sum_k p_k log softmax(z_S)_k,  p = softmax(z_T / T)       with weight l beside (1 - l) CE(z_S, y)

Labels that may be present together are one Bernoulli each, and the mean over labels [our choice]. t2=True multiplies by
T^2 as the authors' scripts do [published]. A case without label keeps this term: semi-supervised use [published]. The
grid of the authors: T in 1, 2, 5, 10, 20, 50 and l in 0, 0.1, ..., 1.
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Loss, Sides

# temperature: divisor T of the teacher's logits, 0.1 to 100; t2: multiply the loss by T^2
DEFAULTS = dict(weight=0.5, temperature=2.0, t2=False)


def soft_cross_entropy(student: Shaped[Array, 'b *places k'], teacher: Shaped[Array, '...'], temperature: float = 2.0,
                       t2: bool = False, several: bool = False) -> Float[Array, ' b']:
    """[B,...,K], [B,...,K] -> [B]; several: labels that may be present together. The teacher gets no gradient.
    """
    student, teacher = losses.same_shape('gd', student, teacher)
    teacher = jax.lax.stop_gradient(teacher) / temperature
    if several:
        value = losses.binary_cross_entropy(student, jax.nn.sigmoid(teacher)).mean(-1)
    else:
        value = -jnp.sum(jax.nn.softmax(teacher) * jax.nn.log_softmax(student), -1)
    return losses.per_case(value) * (temperature ** 2 if t2 else 1)


def build(hp: ConfigDict, sides: Sides) -> Loss:
    errors.check_range(f'{sides.key}.temperature', hp.temperature, '[0.1, 100]')
    several = jnp.issubdtype(sides.label.dtype, jnp.floating)
    return Loss(lambda student, teacher, cases: soft_cross_entropy(student, teacher, hp.temperature, hp.t2, several))
