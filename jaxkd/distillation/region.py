"""Region affinity (EMKD, Qin et al., TMI 2021 [published]) of a segmentation: which classes look alike.

    mean over pairs k < l of (cos(mu_S^k, mu_S^l) - cos(mu_T^k, mu_T^l))^2,  mu: class means of the case

The published sum over pairs is a mean over the pairs of classes that the case has [our choice]. Maps [B,*places,C] of
equal places; channels may differ.
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import losses
from jaxkd.contracts import Loss, Sides

DEFAULTS = dict(student='feature', weight=1.0)


def class_cosines(x: Float[Array, 'b n c'], owner: Float[Array, 'b n k']) -> Float[Array, 'b k k']:
    """Cosines between the class means of a case. x [B,N,C], owner one-hot [B,N,K] -> [B,K,K]."""
    mu = losses.unit(losses.class_means(x, owner))
    return mu @ mu.mT


def gap(student: Shaped[Array, 'b *places c'], teacher: Shaped[Array, 'b *places d'], label: Shaped[Array, 'b ...'],
        classes: int) -> Float[Array, ' b']:
    """Maps and a label of any resolution [B,*places] -> [B]. The teacher gets no gradient."""
    owner, _ = losses.regions(label, student.shape[1:-1], classes)
    a, b = (losses.flat(x) for x in (student, jax.lax.stop_gradient(teacher)))
    first, second = jnp.triu_indices(classes, 1)
    present = owner.sum(1) > 0  # [B,K]
    pairs = present[:, first] & present[:, second]
    difference = jnp.square(class_cosines(a, owner)[:, first, second] - class_cosines(b, owner)[:, first, second])
    return jnp.sum(jnp.where(pairs, difference, 0), 1) / jnp.maximum(pairs.sum(1), 1)


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError without a label for each place, and for maps whose sides are no multiples of each other."""
    return losses.of_regions(gap, sides)
