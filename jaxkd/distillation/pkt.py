"""Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018 [published]): how near a case is to each other one.

    mean_ij P_T,ij log((P_T,ij + eps) / (P_S,ij + eps)),  P_ij = (cos(f_i, f_j) + 1) / 2 with rows of sum 1,  eps = 1e-7

Each case is among its own neighbours. Sizes may differ. Relates the cases of the global batch; the mean over B^2 pairs
shrinks with B, and weight 30000 belongs to it [published] at batches of 64.
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import losses
from jaxkd.contracts import Loss, Sides

DEFAULTS = dict(student='pooled', weight=30000.0)
EPS = 1e-7


def neighbours(x: Shaped[Array, 'b d'], valid: Shaped[Array, ' b']) -> Float[Array, 'b b']:
    """P of features [B,d]: rows of sum 1 over the valid cases."""
    x = losses.unit(x.astype(jnp.float32))
    near = (x @ x.T + 1) / 2 * valid
    return near / jnp.maximum(near.sum(-1, keepdims=True), EPS)


def divergence(student: Shaped[Array, 'b d'], teacher: Shaped[Array, 'b e'],
               valid: Shaped[Array, ' b']) -> Float[Array, '']:
    """[B,d], [B,e], valid [B] -> a number. The teacher gets no gradient."""
    p, q = neighbours(jax.lax.stop_gradient(teacher), valid), neighbours(student, valid)
    pairs = valid[:, None] * valid
    return jnp.sum(p * jnp.log((p + EPS) / (q + EPS)) * pairs) / jnp.maximum(valid.sum(), 1) ** 2


def build(hp: ConfigDict, sides: Sides) -> Loss:
    return Loss(lambda student, teacher, cases: divergence(
        student.reshape(student.shape[0], -1), teacher.reshape(teacher.shape[0], -1), cases.valid), pairwise=True)
