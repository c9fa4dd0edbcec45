"""MixUp (Zhang et al., ICLR 2018 [published]).

    x' = lam x_i + (1 - lam) x_j,   L = lam CE(z(x'), y_i) + (1 - lam) CE(z(x'), y_j),   lam ~ Beta(alpha, alpha)

One lam for a batch, j a permutation of it (of one device's share), as in the authors' code [published].
"""
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from jaxkd import errors, losses, steps
from jaxkd.contracts import Method
from jaxkd.state import Context, Progress

DEFAULTS = dict(alpha=0.2)


def mix(batch: dict, key: PRNGKeyArray, hp: ConfigDict, inputs: Sequence[str] = ()) -> dict:
    """The batch with `inputs` blended, and beside the label `other_label` [B] and `share` [B], the lam."""
    order, share = jax.random.split(key)
    lam = jax.random.beta(share, hp.alpha, hp.alpha)
    other = jax.random.permutation(order, batch['label'].shape[0])
    blend = {k: _as(batch[k], lam * batch[k] + (1 - lam) * batch[k][other]) for k in inputs}
    return {**batch, **blend, 'other_label': batch['label'][other], 'share': jnp.full(other.shape, lam)}


def terms(student: dict, teachers: dict, heads: dict, batch: dict, hp: ConfigDict) -> dict:
    first, second = (losses.cross_entropy(student['logits'], batch[k]) for k in ('label', 'other_label'))
    return {'ce': batch['share'] * first + (1 - batch['share']) * second}


def weights(hp: ConfigDict, progress: Progress) -> dict:
    return {'ce': 1.0}


def build(hp: ConfigDict, context: Context) -> Method:
    if hp.alpha <= 0:
        raise errors.ConfigError(f'mixup.alpha = {hp.alpha} must be positive.')
    inputs = context.networks['student'].inputs
    return steps.make_method(terms, weights, hp, context, mix=lambda batch, key, hp: mix(batch, key, hp, inputs))


def _as(like, x):
    """Fixed-point volumes stay fixed point."""
    return (jnp.round(x) if jnp.issubdtype(like.dtype, jnp.integer) else x).astype(like.dtype)
