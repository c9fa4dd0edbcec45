"""Features that tell which input they are of (ShaSpec, Wang et al., CVPR 2023 [published]); no teacher.

    mean_m CE(domain logits of sp_m, m)

over the inputs that the case has. Its two sides are outputs of the student, models/shaspec.py. Weight 0.02 [published].
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import losses
from jaxkd.contracts import Loss, Sides

DEFAULTS = dict(student='domain', teacher='student/present', weight=0.02)


def domain(logits: Shaped[Array, 'b m m'], present: Shaped[Array, 'b m']) -> Float[Array, ' b']:
    """Logits [B,M,M] and flags [B,M] -> [B]."""
    present = jax.lax.stop_gradient(present)
    label = jnp.broadcast_to(jnp.arange(logits.shape[1]), logits.shape[:2])
    return jnp.sum(losses.cross_entropy(logits, label) * present, 1) / jnp.maximum(present.sum(1), 1)


def build(hp: ConfigDict, sides: Sides) -> Loss:
    return Loss(lambda logits, present, cases: domain(logits, present))
