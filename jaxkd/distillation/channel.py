"""Channel-wise distillation (CWD, Shu et al., ICCV 2021 [published]): where each channel is strong.

    T^2 / C sum_c KL( softmax_i(F_T,ic / T) || softmax_i(F_S,ic / T) )        i runs over places

Maps [B,*places,C] of equal shape.
"""
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Loss, Sides

DEFAULTS = dict(weight=1.0, temperature=4.0)  # temperature: divisor T of the features, 0.1 to 100


def divergence(student: Shaped[Array, 'b *places c'], teacher: Shaped[Array, '...'],
               temperature: float = 4.0) -> Float[Array, ' b']:
    """[B,*places,C], [B,*places,C] -> [B]. The teacher gets no gradient."""
    a, b = (jnp.moveaxis(x.reshape(x.shape[0], -1, x.shape[-1]), 1, 2) for x in (student, teacher))
    return losses.kl(b, a, temperature).mean(-1)


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError for features without places, and maps of unequal shape."""
    errors.check_range(f'{sides.key}.temperature', hp.temperature, '[0.1, 100]')
    losses.check_maps(sides.key, sides.student.shape, sides.teacher.shape)
    return Loss(lambda student, teacher, cases: divergence(student, teacher, hp.temperature))
