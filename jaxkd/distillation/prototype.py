"""Prototype maps (ProtoKD, Wang et al., ICASSP 2023 [published]): how near each place is to each class.

    mean_ik (cos(F_S,i, mu_S^k) - cos(F_T,i, mu_T^k))^2,  mu: class means of the case

over the places whose label is a class, and over the classes that the case has. ProtoKD is cross-entropy + Dice + 10 kd
(temperature 10, t2=False, every=True) + 0.1 of this. Maps [B,*places,C] of equal places; channels may differ.
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import losses
from jaxkd.contracts import Loss, Sides

DEFAULTS = dict(student='feature', weight=0.1)


def similarity(x: Float[Array, 'b n c'], owner: Float[Array, 'b n k']) -> Float[Array, 'b n k']:
    """Cosine of each place with each class mean of its case."""
    return losses.unit(x) @ losses.unit(losses.class_means(x, owner)).mT


def gap(student: Shaped[Array, 'b *places c'], teacher: Shaped[Array, 'b *places d'], label: Shaped[Array, 'b ...'],
        classes: int) -> Float[Array, ' b']:
    """Maps and a label of any resolution [B,*places] -> [B]. The teacher gets no gradient."""
    owner, valid = losses.regions(label, student.shape[1:-1], classes)
    a, b = (losses.flat(x) for x in (student, jax.lax.stop_gradient(teacher)))
    counted = valid[..., None] * (owner.sum(1, keepdims=True) > 0)  # [B,N,K]
    difference = jnp.square(similarity(a, owner) - similarity(b, owner)) * counted
    return jnp.sum(difference, (1, 2)) / jnp.maximum(counted.sum((1, 2)), 1)


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError without a label for each place, and for maps whose sides are no multiples of each other."""
    return losses.of_regions(gap, sides)
