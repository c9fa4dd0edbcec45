"""Modality-aware regularisation (MMANet, Wei et al., CVPR 2023 [published]): more practice with the weakest subset of
inputs; no teacher.

    mean CE(a(F_S), y) over the cases whose inputs lie within the weak set,  a: a linear head that is not deployed

Needs modality dropout (drop='subset' of distil). During the epochs `mining` the predicted classes of each subset are
counted; of the subsets that lack one input (pairs of three) the weak set is the one with the largest
KL( softmax(h) || softmax(h of all inputs) ), h the share of each class. Until something was counted nothing is weak.
Counting on training cases is our choice: the published loop does it on the test part. Weight 0.5 from the fifth epoch
on [published].
"""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Cases, Loss, Sides
from jaxkd.training import modalities

DEFAULTS = dict(student='pooled', teacher='student/logits', weight=0.5, schedule='after 5 epochs',
                mining=(2.0, 5.0))  # epochs from and until which predictions are counted


def divergence(counts: Float[Array, '*subsets k'], full: Float[Array, ' k']) -> Float[Array, '*subsets']:
    """KL(softmax(h) || softmax(h_full)) of counts of classes, of which h is the share."""
    share = [jax.nn.log_softmax(c / jnp.maximum(c.sum(-1, keepdims=True), 1)) for c in (counts, full)]
    return jnp.sum(jnp.exp(share[0]) * (share[0] - share[1]), -1)


def weak(counts: Float[Array, 's k'], inputs: int) -> Float[Array, ' s']:
    """1 for each of the `subsets` of `inputs` inputs within the weak one, from the counts of each; zeros before any."""
    members = np.array([[i in chosen for i in range(inputs)] for chosen in modalities.subsets(range(inputs))])
    candidates = np.flatnonzero(members.sum(1) == inputs - 1)
    worst = jnp.argmax(divergence(counts[candidates], counts[-1]))
    within = np.array([(members <= members[c]).all(1) for c in candidates], np.float32)  # [candidates,S]
    return jnp.asarray(within)[worst] * (counts.sum() > 0)


def values(student: Array, logits: Array, cases: Cases, hp: ConfigDict, epoch: float) -> tuple[Array, dict]:
    """(the mean over the weak cases, the memory afterwards); epoch: calls in an epoch."""
    memory, count = cases.memory, cases.kept.shape[1]
    members = np.array([[i in chosen for i in range(count)] for chosen in modalities.subsets(range(count))])
    of = jnp.all(cases.kept[:, None] == members, -1) * cases.valid[:, None]  # [B,S] one-hot
    label = jnp.where(cases.label >= 0, cases.label, 0)
    weight = of @ weak(memory['counts'], count) * (cases.label >= 0)
    gap = losses.cross_entropy(cases.heads['auxiliary'](student), label)
    loss = jnp.sum(gap * weight) / jnp.maximum(weight.sum(), 1)
    mined = (memory['calls'] >= hp.mining[0] * epoch) & (memory['calls'] < hp.mining[1] * epoch)
    predicted = jax.nn.one_hot(jnp.argmax(jax.lax.stop_gradient(logits), -1), logits.shape[-1])
    return loss, {'counts': memory['counts'] + mined * (of.T @ predicted), 'calls': memory['calls'] + 1}


def build(hp: ConfigDict, sides: Sides) -> Loss:
    """ConfigError without modality dropout, and unless a case has one class."""
    if not sides.hidden:
        raise errors.ConfigError(f'{sides.key}: mar practises subsets of the inputs of a student. Set drop="subset".')
    if sides.label.ndim != 1 or not jnp.issubdtype(sides.label.dtype, jnp.integer):
        raise errors.ConfigError(f'{sides.key}: mar needs one class for each case; these labels are '
                                 f'{sides.label.dtype} {list(sides.label.shape[1:])}.')
    if len(hp.mining) != 2 or not 0 <= hp.mining[0] < hp.mining[1]:
        raise errors.ConfigError(f'{sides.key}.mining = {tuple(hp.mining)} must be two epochs, from and until.')
    start = dict(counts=jnp.zeros((2 ** sides.hidden - 1, sides.classes)), calls=jnp.int32(0))
    return Loss(lambda student, logits, cases: values(student, logits, cases, hp, sides.epoch),
                {'auxiliary': nn.Dense(sides.classes)}, lambda: dict(start), pairwise=True)
