"""What methods for dense prediction share: the supervised loss of one network, with deep supervision.

    L = sum_k w_k [ ce CE(s_k, m_k) + dice Dice(s_k, m_k) ],    w_k = 2^-k, normalised to sum 1
over the resolutions k = 0 (full), 1, ... at which the network gives logits, logits1, ...; m_k is the label by the nearest place.

    CE    weighted mean over the places of all cases; a place counts its class's weight (1 without `class_weights`)
    Dice  1 - mean over foreground classes of (2 sum p m + s) / (sum p + sum m + s), s = 1e-5. `batch`: sums over all
          cases (Isensee et al., 2021 [published]), so that a case without foreground gives no 0/0; `case`: each case for itself.
Label 255 is ignored everywhere. With microbatches a batch Dice sees one microbatch.
"""
import re

import jax.numpy as jnp

from jaxkd import errors, losses, parallel
from jaxkd.data.source import IGNORED
from jaxkd.state import Mean

DEFAULTS = dict(
    ce=1.0,  # weight of the cross-entropy
    dice=0.0,  # weight of the soft Dice
    dice_over='batch',  # or case
    class_weights=(),  # of the cross-entropy, one for each class, background first; () is 1 for all
)


def levels(outputs):
    """[''; '1', '2', ...]: the resolutions at which a network gives logits, finest first."""
    return sorted((k.removeprefix('logits') for k in outputs if re.fullmatch(r'logits\d*', k)), key=lambda n: int(n or 0))


def terms(outputs, label, here, hp):
    """{'ce': Mean, 'dice': Mean, 'ce1': ..., ...} of one network.

    outputs: logits [B,*places,K], coarser ones beside them; label int [B,*places], 255 ignored; here [B]: cases that count.
    """
    found = {}
    for k in levels(outputs):
        logits = outputs[f'logits{k}']
        y = losses.nearest(label, logits.shape[1:-1]).astype(jnp.int32)
        valid = (y != IGNORED) & (here.reshape(-1, *[1] * (y.ndim - 1)) > 0)
        y = jnp.where(valid, y, 0)
        if hp.ce:
            weight = jnp.asarray(hp.class_weights, jnp.float32)[y] if len(hp.class_weights) else 1.0
            found[f'ce{k}'] = Mean.of(losses.cross_entropy(logits, y), valid * weight)
        if hp.dice:
            sums = losses.dice_sums(logits, y, valid)
            if hp.dice_over == 'batch':  # each device counts the whole with the share of its own cases: the shares add up to one
                whole = losses.dice(*(s.sum(0) for s in parallel.gather(sums)))
                found[f'dice{k}'] = Mean.of(jnp.full(here.shape, whole), here)
            else:
                found[f'dice{k}'] = Mean.of(losses.dice(*sums), here)
    return found


def weights(hp, levels):
    """{term: weight} of `terms` for these levels."""
    total = sum(2.0 ** -i for i in range(len(levels)))
    return {f'{term}{k}': hp[term] * 2.0 ** -i / total for term in ('ce', 'dice') if hp[term] for i, k in enumerate(levels)}


def check(hp, method, network, batch, shapes):
    """Raise ConfigError unless labels are dense and the options fit the network's outputs (shapes: its ShapeDtypeStructs)."""
    label = batch['label']
    if label.ndim not in (3, 4) or not jnp.issubdtype(label.dtype, jnp.integer):
        raise errors.ConfigError(f'{method} needs a label for each place, [B,H,W] or [B,D,H,W] of whole numbers; these are '
                                 f'{label.dtype} {list(label.shape)}. Choose a source of segmentations, or another method.')
    logits = shapes['logits']
    if logits.shape[1:-1] != label.shape[1:]:
        raise errors.ConfigError(f'{method}: the network gives logits at {list(logits.shape[1:-1])} places, labels have '
                                 f'{list(label.shape[1:])}. Choose a model for dense prediction, such as unet.')
    if hp.dice_over not in ('batch', 'case'):
        raise errors.ConfigError(f'{method}.dice_over = "{hp.dice_over}".{errors.nearest(hp.dice_over, ("batch", "case"))}')
    if not (hp.ce >= 0 and hp.dice >= 0 and hp.ce + hp.dice > 0):
        raise errors.ConfigError(f'{method}: ce = {hp.ce} and dice = {hp.dice} must not be negative, and not both 0.')
    if len(hp.class_weights) not in (0, logits.shape[-1]) or any(w < 0 for w in hp.class_weights):
        raise errors.ConfigError(f'{method}.class_weights = {tuple(hp.class_weights)} must be empty, or one weight (0 or more) for '
                                 f'each of the {logits.shape[-1]} classes, background first.')
