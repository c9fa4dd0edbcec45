"""Intra-class feature variation (IFVD, Wang et al., ECCV 2020 [published]) of a segmentation.

    mean_i (cos(F_S,i, mu_S^y(i)) - cos(F_T,i, mu_T^y(i)))^2,  mu: class means of the case

over the places whose label is a class. Maps [B,*places,C] of equal places; channels may differ.
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import losses
from jaxkd.contracts import Loss, Sides

DEFAULTS = dict(student='feature', weight=1.0)


def cosine_to_mean(x: Float[Array, 'b n c'], owner: Float[Array, 'b n k']) -> Float[Array, 'b n']:
    """Cosine of each place with the mean of its class in the same case. x [B,N,C], owner one-hot [B,N,K] -> [B,N]."""
    mean = jnp.einsum('bnk,bkc->bnc', owner, losses.class_means(x, owner))
    return jnp.sum(losses.unit(x) * losses.unit(mean), -1)


def gap(student: Shaped[Array, 'b *places c'], teacher: Shaped[Array, 'b *places d'], label: Shaped[Array, 'b ...'],
        classes: int) -> Float[Array, ' b']:
    """Maps and a label of any resolution [B,*places] -> [B]. The teacher gets no gradient."""
    owner, valid = losses.regions(label, student.shape[1:-1], classes)
    a, b = (losses.flat(x) for x in (student, jax.lax.stop_gradient(teacher)))
    difference = jnp.square(cosine_to_mean(a, owner) - cosine_to_mean(b, owner))
    return jnp.sum(difference * valid, 1) / jnp.maximum(valid.sum(1), 1)


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError without a label for each place, and for maps whose sides are no multiples of each other."""
    return losses.of_regions(gap, sides)
