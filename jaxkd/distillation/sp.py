"""Similarity preserving (Tung and Mori, ICCV 2019 [published]): which cases of a batch resemble which.

    |G_S - G_T|^2 / B^2,  G = rows of F F' with norm 1,  F the features of a case as one vector

Features of the two sides may differ in size. Relates the cases of the global batch. Weight 3000 on the last map
[published] was tuned with batches of 64.
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import losses
from jaxkd.contracts import Loss, Sides

DEFAULTS = dict(student='pooled', weight=3000.0)


def similarities(x: Shaped[Array, 'b ...'], valid: Shaped[Array, ' b']) -> Float[Array, 'b b']:
    """G: zeros in rows and columns of cases that are not valid."""
    x = x.reshape(x.shape[0], -1).astype(jnp.float32) * valid[:, None]
    return losses.unit(x @ x.T)


def gap(student: Shaped[Array, 'b ...'], teacher: Shaped[Array, 'b ...'],
        valid: Shaped[Array, ' b']) -> Float[Array, '']:
    """[B,...], [B,...], valid [B] -> a number. The teacher gets no gradient."""
    difference = similarities(student, valid) - similarities(jax.lax.stop_gradient(teacher), valid)
    return jnp.sum(jnp.square(difference)) / jnp.maximum(valid.sum(), 1) ** 2


def build(hp: ConfigDict, sides: Sides) -> Loss:
    return Loss(lambda student, teacher, cases: gap(student, teacher, cases.valid), pairwise=True)
