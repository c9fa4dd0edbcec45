"""MixUp (Zhang et al., ICLR 2018 [published]).

    x' = lam x_i + (1 - lam) x_j,   L = lam CE(z(x'), y_i) + (1 - lam) CE(z(x'), y_j),   lam ~ Beta(alpha, alpha)

One lam for a batch, j a permutation of the rows of one device, as in the authors' code [published].
"""
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from jaxkd import errors, losses, steps
from jaxkd.contracts import Method
from jaxkd.state import Context, Mean, Progress, labelled_mask

DEFAULTS = dict(alpha=0.2)  # the share of a case is drawn from Beta(alpha, alpha); above 0, larger mixes more


def mix(batch: dict, key: PRNGKeyArray, hp: ConfigDict, inputs: Sequence[str] = ()) -> dict:
    """The batch with `inputs` blended, and further `other_label` [B] and `lam` [B]."""
    order_key, lam_key = jax.random.split(key)
    lam = jax.random.beta(lam_key, hp.alpha, hp.alpha)
    order = jax.random.permutation(order_key, batch['label'].shape[0])
    blend = {k: _cast(batch[k].dtype, lam * batch[k] + (1 - lam) * batch[k][order]) for k in inputs}
    return {**batch, **blend, 'other_label': batch['label'][order], 'lam': jnp.full(order.shape, lam)}


def terms(student: dict, teachers: dict, heads: dict, batch: dict, hp: ConfigDict) -> dict:
    first, second = (losses.cross_entropy(student['logits'], batch[k]) for k in ('label', 'other_label'))
    both = labelled_mask(batch) * (batch['other_label'] >= 0)
    return {'ce': Mean.of(batch['lam'] * first + (1 - batch['lam']) * second, both)}


def weights(hp: ConfigDict, progress: Progress) -> dict:
    return {'ce': 1.0}


def build(hp: ConfigDict, context: Context) -> Method:
    if hp.alpha <= 0:
        raise errors.ConfigError(f'mixup.alpha = {hp.alpha} must be positive.')
    inputs = context.networks['student'].inputs
    return steps.make_method(terms, weights, hp, context, mix=lambda batch, key, hp: mix(batch, key, hp, inputs))


def _cast(dtype, x):
    """x in `dtype`, rounded for fixed point."""
    return (jnp.round(x) if jnp.issubdtype(dtype, jnp.integer) else x).astype(dtype)
