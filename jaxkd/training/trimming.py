"""Labels that are probably wrong are left out: those of the cases with the largest loss (Step-E, Du, arXiv 2511.17040,
2025: rank by loss, leave out a growing share after a warm-up [published, a preprint]). For any method.

    L = sum_i m_i l_i / sum_i m_i,  m_i = 0 for the floor(r n) largest of the n losses,  r = rate schedule(t)

    <stage>.trim = dict(rate=0.3, schedule='linear 20 epochs after 5 epochs', by='student', within_class=True)

The label of a case that is left out is hidden for the step, as data.labels hides it: terms of the labels do not see it,
terms of a teacher go on. In medicine hard positives are rare and have large losses, so cases are ranked within their
class [our choice]: of few cases of a class none is left out before rate times their number reaches 1. `by` names a
network whose loss ranks instead: a large loss of a teacher that reads privileged inputs is better evidence of a wrong
label than one of the student [our choice].

[our choice] Cases of the global batch are ranked, not those of an epoch; with microbatches those of one. Labels that
may be present together are ranked each for itself, positives and negatives apart; of labels of places the mean
cross-entropy of a case ranks it, cases with and without foreground apart, and all its places are hidden. Equal losses
are ranked by the number of the case. A method that makes its own train_step trims nothing.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped
from ml_collections import ConfigDict, FrozenConfigDict

from jaxkd import errors, losses, parallel
from jaxkd.data.source import IGNORED
from jaxkd.state import Mean, Progress, label_kind, valid_mask
from jaxkd.training import schedules


def options(stage: ConfigDict, name: str) -> FrozenConfigDict | None:
    """<stage>.trim, None where it trims nothing. ConfigError for a schedule or a network that does not exist."""
    hp = stage.trim
    if not hp.rate:
        return None
    schedules.check(f'{name}.trim.schedule', hp.schedule)
    errors.check_choice(f'{name}.trim.by', hp.by, ('student', *stage.networks, *stage.teachers))
    return FrozenConfigDict(hp)


def trim(outputs: Mapping[str, Mapping[str, Array]], batch: dict[str, Any], hp: Any, reads: Sequence[str],
         progress: Progress, cases: int) -> tuple[dict[str, Any], Mean]:
    """(the batch without the labels of the cases of largest loss, the share of labels that it lost).

    outputs: {network: {'logits': ...}} of this device's cases; reads: inputs of the student; cases: of a step.
    ConfigError where logits of the network `by` do not fit the labels.
    """
    label, logits = batch['label'], jax.lax.stop_gradient(outputs[hp.by]['logits'])
    check_logits(hp.by, logits, label)
    loss, group = case_losses(logits, label, batch.get('label_weight'))
    group = jnp.where(valid_mask(batch, reads)[:, None] > 0, group, -1)
    rate = hp.rate * schedules.factor(hp.schedule, progress, cases)
    if not hp.within_class:
        group = jnp.minimum(group, 0)
    left_out = largest(loss, group, batch['index'], rate)
    share = Mean.of(left_out.astype(jnp.float32), group >= 0)
    if label_kind(label) == 'multilabel':
        return {**batch, 'label_weight': batch['label_weight'] * ~left_out}, share
    hidden = IGNORED if label_kind(label) == 'voxels' else -1
    return {**batch, 'label': jnp.where(losses.beside(left_out, label), jnp.asarray(hidden, label.dtype), label)}, share


def case_losses(logits: Float[Array, 'b ...'], label: Shaped[Array, 'b ...'], weight: Shaped[Array, 'b c'] | None
                ) -> tuple[Float[Array, 'b c'], Int[Array, 'b c']]:
    """(losses [B,C], the class of each, -1 where there is no label); C = 1 unless labels may be present together."""
    if label_kind(label) == 'multilabel':
        assert weight is not None
        group = jnp.where(weight > 0, (label > 0.5).astype(jnp.int32), -1)
        return losses.binary_cross_entropy(logits, label), group
    if label_kind(label) == 'classes':
        group = label.astype(jnp.int32)
        return losses.cross_entropy(logits, jnp.maximum(group, 0))[:, None], group[:, None]
    known = label != IGNORED
    loss = losses.cross_entropy(logits, jnp.where(known, label, 0).astype(jnp.int32))
    places = range(1, label.ndim)
    mean = jnp.sum(jnp.where(known, loss, 0), places) / jnp.maximum(jnp.sum(known, places), 1)
    foreground = jnp.any(known & (label > 0), places).astype(jnp.int32)
    return mean[:, None], jnp.where(jnp.any(known, places), foreground, -1)[:, None]


def largest(loss: Float[Array, 'b c'], group: Int[Array, 'b c'], index: Shaped[Array, ' b'],
            rate: Any) -> Shaped[Array, 'b c']:
    """True for the floor(rate n) largest of the n losses of a group, of the cases of all devices; none of group -1."""
    others, of, number = parallel.gather((loss, group, index))
    same = (group[:, None] == of[None]) & (of >= 0)[None]  # [b,B,C]
    before = (others[None] > loss[:, None]) | (others[None] == loss[:, None]) & (
        number[None] > index[:, None])[..., None]
    most = jnp.floor(rate * jnp.sum(same, 1) + 1e-4)  # 0.7 of 10 are 7 in float32, too
    return (group >= 0) & (jnp.sum(same & before, 1) < most)


def check_logits(name: str, logits: Array, label: Array) -> None:
    """ConfigError unless logits belong to labels of this shape."""
    shape = logits.shape if label_kind(label) == 'multilabel' else logits.shape[:-1]
    if shape != label.shape:
        raise errors.ConfigError(f'trim.by = "{name}": its logits {list(logits.shape[1:])} do not fit labels '
                                 f'{list(label.shape[1:])}. Name a network that predicts the labels of the stage.')
