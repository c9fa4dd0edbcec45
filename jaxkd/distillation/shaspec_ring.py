"""Alike features of all inputs of a case (ShaSpec, Wang et al., CVPR 2023 [published]); no teacher.

    sum over neighbours m, m + 1 of a ring of mean_d |sh_m - sh_(m+1)|

over the pairs that the case has: the published code also aligns the zeros of missing inputs. Its two sides are outputs
of the student, models/shaspec.py. Weight 0.1 [published].
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd.contracts import Loss, Sides

DEFAULTS = dict(student='shared', teacher='student/present', weight=0.1)


def ring(shared: Shaped[Array, 'b m d'], present: Shaped[Array, 'b m']) -> Float[Array, ' b']:
    """Features [B,M,d] and flags [B,M] -> [B]."""
    shared, present = shared.astype(jnp.float32), jax.lax.stop_gradient(present)
    gap = jnp.mean(jnp.abs(shared - jnp.roll(shared, -1, 1)), -1)
    return jnp.sum(gap * present * jnp.roll(present, -1, 1), 1)


def build(hp: ConfigDict, sides: Sides) -> Loss:
    return Loss(lambda shared, present, cases: ring(shared, present))
