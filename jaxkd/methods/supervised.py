"""Supervised learning of (multi-label) classes: masked binary cross-entropy, or softmax cross-entropy.

    L = sum_bc w_bc BCE(z_bc, y_bc) / sum_bc w_bc        labels [B,C] with weights w in {0, 1}
    L = sum_b w_b (-log softmax(z_b)[y_b]) / sum_b w_b   labels [B], integers; w_b = 1, or batch[weight]

This is stage 1 of privileged distillation (a teacher on its privileged input) and any plain baseline. A case without
any input of the network, or without a label, has weight 0.

focal = g        each loss times (1 - p)^g, p the probability of its label (Lin et al., ICCV 2017 [published, g = 2])
smoothing = e    y' = (1 - e) y + e / K, K = 2 for each of several labels (Szegedy et al., CVPR 2016 [published])
confidence = c   L - c H, H the entropy of the prediction, mean over cases and labels (Pereyra et al., 2017 [published])
weight           'bias_weight' is reweighing (Kamiran and Calders, 2012 [published]), from the transform `shortcut` with
                 reveal=True; 'class_weight' n / (K n_k), from the transform `class_weight`
"""
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from jaxkd import errors, losses, steps
from jaxkd.contracts import Method
from jaxkd.state import Context, Mean, Progress, labelled_mask, valid_mask

DEFAULTS = dict(
    kind='multilabel',  # multilabel (several labels may be present together) or classes (one for each case)
    smoothing=0.0,  # of labels: 0 (none) to below 1
    focal=0.0,  # power g of the focal loss: 0 (none), or 1 or more; not beside smoothing
    confidence=0.0,  # weight of the reward for predictions of large entropy; 0: none
    weight='',  # of cases, kind='classes': a key of the batch, 'class_weight' or 'bias_weight'; '': all weigh 1
)
KINDS = ('multilabel', 'classes')


def terms(student: dict, teachers: dict, heads: dict, batch: dict, hp: ConfigDict, reads: Sequence[str] = ()) -> dict:
    valid, z = valid_mask(batch, reads), student['logits']
    if hp.kind == 'classes':
        loss = (1 - hp.smoothing) * losses.cross_entropy(z, batch['label'])
        if hp.smoothing:
            loss -= hp.smoothing * jnp.mean(jax.nn.log_softmax(z), -1)
        loss = losses.focal(loss, hp.focal) if hp.focal else loss
        known = valid * labelled_mask(batch)
        values = {'sup': Mean.of(loss, known * batch[hp.weight] if hp.weight else known)}
    else:
        target = (1 - hp.smoothing) * batch['label'] + hp.smoothing / 2
        weight = batch['label_weight'] * valid[:, None]
        loss = losses.binary_cross_entropy(z, target)
        values = {'sup': Mean.of(losses.focal(loss, hp.focal) if hp.focal else loss, weight)}
    if hp.confidence:
        values['entropy'] = Mean.of(entropy(z, hp.kind), valid)
    return values


def entropy(z: Float[Array, 'batch classes'], kind: str) -> Float[Array, ' batch']:
    """H of softmax(z) over classes, or the mean over labels of H of sigmoid(z). [B,K] -> [B]."""
    if kind == 'classes':
        return -jnp.sum(jax.nn.softmax(z) * jax.nn.log_softmax(z), -1)
    return jnp.mean(jax.nn.softplus(z) - z * jax.nn.sigmoid(z), -1)


def weights(hp: ConfigDict, progress: Progress) -> dict:
    return {'sup': 1.0} | ({'entropy': -hp.confidence} if hp.confidence else {})


def build(hp: ConfigDict, context: Context) -> Method:
    """Raises ConfigError for a kind, weights or amounts that do not exist."""
    errors.check_choice('supervised.kind', hp.kind, KINDS)
    if not (0 <= hp.smoothing < 1 and hp.confidence >= 0):
        raise errors.ConfigError(f'supervised: smoothing = {hp.smoothing} must lie in [0,1), confidence = '
                                 f'{hp.confidence} must not be negative.')
    errors.check_range('supervised.focal', hp.focal, '[0, inf)')
    if 0 < hp.focal < 1 or hp.focal and hp.smoothing:
        raise errors.ConfigError(f'supervised: focal = {hp.focal} must be 0, or 1 or more and without smoothing = '
                                 f'{hp.smoothing}: the focal loss reads the probability of one hard label.')
    if hp.weight and (hp.weight not in context.batch or hp.kind != 'classes'):
        raise errors.ConfigError(f'supervised.weight = "{hp.weight}" weighs cases of kind="classes" by '
                                 f'batch["{hp.weight}"], which transforms must provide: bias_weight comes from '
                                 '"shortcut" with reveal=True, class_weight from "class_weight".')
    return steps.make_method(functools.partial(terms, reads=context.networks['student'].inputs), weights, hp, context,
                             plain=not (hp.smoothing or hp.confidence or hp.focal))
