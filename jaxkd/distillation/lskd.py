"""Logit standardisation (Sun et al., CVPR 2024 [published]): `kd` of z-scored logits, so that the student may keep its
own scale.

    T^2 KL( softmax(n(z_T) / T) || softmax(n(z_S) / T) ),  n(z) = (z - mean_k z) / (std_k z + 1e-7)

std with K - 1 in the divisor. Equal logits stay 0, with zero gradient. T = 2 [published].
"""
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Loss, Sides

DEFAULTS = dict(weight=0.9, temperature=2.0)  # temperature: divisor T of the standardised logits, 0.1 to 100


def standardised(z: Shaped[Array, '*places k']) -> Float[Array, '*places k']:
    """n(z) over the last axis."""
    z = z.astype(jnp.float32)
    z = z - z.mean(-1, keepdims=True)
    return z / (losses.norm(z) / (z.shape[-1] - 1) ** 0.5 + 1e-7)


def softened(student: Shaped[Array, 'b *places k'], teacher: Shaped[Array, '...'],
             temperature: float = 2.0) -> Float[Array, ' b']:
    """[B,...,K], [B,...,K] -> [B]. The teacher gets no gradient."""
    return losses.per_case(losses.kl(standardised(teacher), standardised(student), temperature))


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError for a single logit, which has no deviation."""
    errors.check_range(f'{sides.key}.temperature', hp.temperature, '[0.1, 100]')
    if sides.student.shape[-1] < 2:
        raise errors.ConfigError(f'{sides.key}: lskd needs two or more classes, here is one logit. Take "kd_bce".')
    return Loss(lambda student, teacher, cases: softened(student, teacher, hp.temperature))
