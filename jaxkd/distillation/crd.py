"""Contrastive representation distillation (Tian et al., ICLR 2020 [published]), with a memory of all training cases.

    - (1/B) sum_b [ log x_0 / (x_0 + K/n + eps) + sum_{k=1..K} log (K/n) / (x_k + K/n + eps) ],  eps = 1e-7
    x = exp(<v, m> / tau) / Z

once with the student's v against the teacher's memory m and once the other way round. v: features of a case through a
linear map to `width`, of norm 1, both trained. x_0 has the memory of the case itself, x_1..x_K those of other cases. Z
is n times the mean of the first batch's scores, and stays. After a step the memory of its cases becomes momentum m +
(1 - momentum) v, of norm 1. tau = 0.07, momentum 0.5, K = 16384 and weight 0.8 [published].

K is at most n - 1, n the number of training cases. The other cases are drawn from those that training has seen,
whatever their class: the memory of a case that is never trained on stays random [our choice; the authors draw from all
cases of other classes]. The memory is part of a checkpoint and has an entry for each case of the source. Cases of the
global batch are entered together; with microbatches one after the other.
"""
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses
from jaxkd.contracts import Cases, Loss, Sides

DEFAULTS = dict(
    student='pooled', weight=0.8,
    width=128,  # features of a trained linear map on each side
    negatives=16384,  # other cases that a case is contrasted with, 1 or more; at most all of training
    tau=0.07,  # divisor of the cosines, 0.001 to 100
    momentum=0.5,  # share of its old entry in the memory that a case keeps, 0 to 1
)
EPS = 1e-7


def scores(anchors: Float[Array, 'b d'], rows: Float[Array, 'b k d'], tau: float = 0.07) -> Float[Array, 'b k']:
    """exp(<v, m> / tau), the own memory first."""
    return jnp.exp(jnp.einsum('bd,bkd->bk', anchors, rows, precision='highest') / tau)


def contrast(x: Float[Array, 'b k'], n: float) -> Float[Array, ' b']:
    """The loss of each case from its normalised scores x [B,1+K], x_0 first; n training cases."""
    noise = (x.shape[1] - 1) / n
    return -(jnp.log(x[:, 0] / (x[:, 0] + noise + EPS)) + jnp.sum(jnp.log(noise / (x[:, 1:] + noise + EPS)), 1))


def start(sides: Sides, width: int, seed: int) -> dict[str, Array]:
    """The memory before the first step: random unit vectors for each side, nothing seen, no Z."""
    keys = jax.random.split(jax.random.key(seed), 2)
    banks = {side: losses.unit(jax.random.normal(key, (sides.cases, width)))
             for side, key in zip(('student', 'teacher'), keys)}
    return {**banks, 'seen': jnp.zeros(sides.cases, bool), 'z': jnp.zeros(2), 'draws': jnp.int32(0)}


def others(key: PRNGKeyArray, seen: Shaped[Array, ' n'], index: Shaped[Array, ' b'],
           count: int) -> Shaped[Array, 'b count']:
    """`count` cases for each of `index`, with replacement, of those seen; the first time of all. Never the case itself
    where there is another one.
    """
    known = jnp.where(seen.any(), seen, True)
    order, total = jnp.argsort(~known), known.sum()  # those that may be drawn come first
    drawn = jax.random.randint(key, (index.shape[0], count), 0, total)
    own = order[drawn] == index[:, None]
    return order[jnp.where(own, (drawn + 1) % total, drawn)]


def values(student: Array, teacher: Array, cases: Cases, hp: ConfigDict, negatives: int, n: int,
           seed: int) -> tuple[Array, dict]:
    """(the loss of the batch, the memory after it) from features [B,...]."""
    memory, valid = cases.memory, cases.valid
    v = {side: losses.unit(cases.heads[side](x.reshape(x.shape[0], -1).astype(jnp.float32)))
         for side, x in (('student', student), ('teacher', jax.lax.stop_gradient(teacher)))}
    key = jax.random.fold_in(jax.random.key(seed), memory['draws'])
    rows = jnp.concatenate([cases.index[:, None], others(key, memory['seen'], cases.index, negatives)], 1)
    raw = [scores(v[side], memory[other][rows], hp.tau)
           for side, other in (('student', 'teacher'), ('teacher', 'student'))]
    count = jnp.maximum(valid.sum(), 1)
    first = jnp.stack([jnp.sum(x * valid[:, None]) / (count * x.shape[1]) * n for x in raw])
    z = jax.lax.stop_gradient(jnp.where(memory['z'] > 0, memory['z'], first))
    own, other = (jnp.sum(contrast(x / jnp.maximum(of, EPS), n) * valid) / count for x, of in zip(raw, z))

    place = jnp.where(valid > 0, cases.index, memory['seen'].shape[0])  # out of range: not entered
    moved = {side: memory[side].at[place].set(losses.unit(
        hp.momentum * memory[side][cases.index] + (1 - hp.momentum) * v[side]), mode='drop') for side in v}
    seen = memory['seen'].at[place].set(True, mode='drop')
    return own + other, {**moved, 'seen': seen, 'z': z, 'draws': memory['draws'] + 1}


def build(hp: ConfigDict, sides: Sides) -> Loss:
    errors.check_range(f'{sides.key}.momentum', hp.momentum, '[0, 1]')
    errors.check_range(f'{sides.key}.tau', hp.tau, '[0.001, 100]')
    errors.check_range(f'{sides.key}.negatives', hp.negatives, '[1, inf)')
    negatives = max(1, min(hp.negatives, sides.training - 1))
    return Loss(lambda student, teacher, cases: values(student, teacher, cases, hp, negatives, sides.training,
                                                       sides.seed),
                {side: nn.Dense(hp.width) for side in ('student', 'teacher')},
                lambda: start(sides, hp.width, sides.seed), pairwise=True)
