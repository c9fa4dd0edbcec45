"""Segmentation from labels alone: the baseline of the dense methods, and the part of the labels in them.

    L = L_sup + boundary L_B + distance L_D

    L_sup = sum_k w_k [ ce CE(s_k, m_k) + dice Dice(s_k, m_k) ],    w_k = 2^-k, normalised to sum 1
over the resolutions k = 0 (full), 1, ... at which the network gives logits, logits1, ...; m_k is the label by the
nearest place.
    CE    weighted mean over the places of all cases; a place counts its class's weight (1 without `class_weights`)
    Dice  1 - mean over foreground classes of (2 sum p m + s) / (sum p + sum m + s), s = 1e-5. `batch`: sums over all
          cases (Isensee et al., 2021 [published]), so that a case without foreground gives no 0/0; `case`: each case
          for itself. `dice_squared`: sum p^2 in the place of sum p (V-Net, Milletari et al., 2016; PMKL and ACN
          have it, too [published]).
Label 255 is ignored everywhere. A case of which all is ignored (hidden by data.labels) has no term of the labels. With
microbatches a batch Dice sees one microbatch.

    L_B = mean_i,k phi_k(i) p_k(i)     boundary loss (Kervadec et al., 2019 [published]), phi the signed distance in
                                       batch['distance']
    L_D = mean_i,k |d_k(i) - phi_k(i)|  a linear head on `feature` regresses phi (SDM, Xue et al., 2020 [published])

With a teacher: methods/distil.py, whose losses of maps stand in jaxkd/distillation.
"""
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses, parallel, steps
from jaxkd.contracts import Method
from jaxkd.data.source import IGNORED
from jaxkd.networks import Network
from jaxkd.state import Context, Mean, Progress

SUPERVISED = dict(
    ce=1.0,  # segmentations: weight of the cross-entropy; 0: none
    dice=0.0,  # segmentations: weight of the soft Dice; 0: none
    dice_over='batch',  # the Dice is of all cases of the batch together (batch) or of each (case)
    dice_squared=False,  # segmentations: squares of the probabilities in the divisor of the Dice
    class_weights=(),  # of the cross-entropy, one for each class, background first; (): all 1
)
DEFAULTS = dict(
    SUPERVISED,
    boundary=0.0,  # weight of the boundary loss; it needs the transform `distance` in data.augment; 0: none
    distance=0.0,  # weight of the regression of the signed distance; it needs the same; 0: none
)
PROVENANCE = ('The losses are those of the named articles, in the form that the head of jaxkd/methods/segmentation.py '
              'gives. Our choice: their reduction to means, and what stands at padded and ignored places.')


def terms(student: dict, teachers: dict, heads: dict, batch: dict, hp: ConfigDict) -> dict:
    """student: outputs with logits; batch: label uint8 [B,*places] (255 ignored), [distance]."""
    values: dict[str, Any] = supervised_terms(student, batch['label'], batch['mask'], hp)
    if hp.boundary:
        gap = losses.per_case(jax.nn.softmax(student['logits'])[..., 1:] * batch['distance'])
        values['boundary'] = Mean.of(gap, batch['mask'] * labelled_cases(batch['label']))
    if hp.distance:
        gap = losses.per_case(jnp.abs(heads['distance'](student['feature']) - batch['distance']))
        values['distance'] = Mean.of(gap, batch['mask'] * labelled_cases(batch['label']))
    return values


def labelled_cases(label: Shaped[Array, 'batch ...']) -> Float[Array, ' batch']:
    """1 where a place of the label [B,*places] is not ignored. [B]."""
    return jnp.any(label != IGNORED, range(1, label.ndim)).astype(jnp.float32)


def weights(hp: ConfigDict, progress: Progress, resolutions: Sequence[str] = ('',)) -> dict:
    return supervised_weights(hp, resolutions) | {k: hp[k] for k in ('boundary', 'distance') if hp[k]}


def levels(outputs: Iterable[str]) -> list[str]:
    """[''; '1', '2', ...]: the resolutions at which a network gives logits, finest first."""
    return sorted((k.removeprefix('logits') for k in outputs if re.fullmatch(r'logits\d*', k)),
                  key=lambda n: int(n or 0))


def supervised_terms(outputs: Mapping[str, Array], label: Shaped[Array, 'batch ...'],
                     valid_cases: Shaped[Array, ' batch'], hp: ConfigDict) -> dict[str, Any]:
    """{'ce': Mean, 'dice': Mean, 'ce1': ..., ...} of one network.

    outputs: logits [B,*places,K], coarser ones beside them; label int [B,*places], 255 ignored; valid_cases [B]: 1 for
    cases that count.
    """
    values = {}
    for k in levels(outputs):
        logits = outputs[f'logits{k}']
        y = losses.nearest(label, logits.shape[1:-1]).astype(jnp.int32)
        valid = (y != IGNORED) & (valid_cases.reshape(-1, *[1] * (y.ndim - 1)) > 0)
        y = jnp.where(valid, y, 0)
        if hp.ce:
            weight = jnp.asarray(hp.class_weights, jnp.float32)[y] if len(hp.class_weights) else 1.0
            values[f'ce{k}'] = Mean.of(losses.cross_entropy(logits, y), valid * weight)
        if hp.dice:
            sums = losses.dice_sums(logits, y, valid, hp.dice_squared)
            # each device weighs the Dice of the global batch by its fraction of the cases
            if hp.dice_over == 'batch':
                of_batch = losses.dice(*(s.sum(0) for s in parallel.gather(sums)))
                values[f'dice{k}'] = Mean.of(jnp.full(valid_cases.shape, of_batch), valid_cases)
            else:
                values[f'dice{k}'] = Mean.of(losses.dice(*sums), valid_cases * labelled_cases(label))
    return values


def supervised_weights(hp: ConfigDict, resolutions: Sequence[str]) -> dict[str, float]:
    """{term: weight} of `supervised_terms` for these resolutions."""
    total = sum(2.0 ** -i for i in range(len(resolutions)))
    return {f'{term}{k}': hp[term] * 2.0 ** -i / total for term in ('ce', 'dice') if hp[term]
            for i, k in enumerate(resolutions)}


def check_dense(hp: ConfigDict, method: str, network: Network, batch: dict,
                shapes: Mapping[str, Any]) -> None:
    """Raise ConfigError unless labels are dense and the options fit the network's outputs (shapes: its
    ShapeDtypeStructs).
    """
    label = batch['label']
    if label.ndim not in (3, 4) or not jnp.issubdtype(label.dtype, jnp.integer):
        raise errors.ConfigError(f'{method} needs a label for each place, [B,H,W] or [B,D,H,W] of whole numbers; these '
                                 f'are {label.dtype} {list(label.shape)}. Choose a source of segmentations, or '
                                 'another method.')
    logits = shapes['logits']
    if logits.shape[1:-1] != label.shape[1:]:
        raise errors.ConfigError(f'{method}: the network gives logits at {list(logits.shape[1:-1])} places, labels '
                                 f'have {list(label.shape[1:])}. Choose a model for dense prediction, such as unet.')
    errors.check_choice(f'{method}.dice_over', hp.dice_over, ('batch', 'case'))
    if not (hp.ce >= 0 and hp.dice >= 0 and hp.ce + hp.dice > 0):
        raise errors.ConfigError(f'{method}: ce = {hp.ce} and dice = {hp.dice} must not be negative, and not both 0.')
    if len(hp.class_weights) not in (0, logits.shape[-1]) or any(w < 0 for w in hp.class_weights):
        raise errors.ConfigError(f'{method}.class_weights = {tuple(hp.class_weights)} must be empty, or one weight (0 '
                                 f'or more) for each of the {logits.shape[-1]} classes, background first.')


def heads(hp: ConfigDict, shapes: dict) -> dict:
    return {'distance': nn.Dense(shapes['student']['logits'].shape[-1] - 1)} if hp.distance else {}


def build(hp: ConfigDict, context: Context) -> Method:
    """Raises ConfigError for labels and options that do not fit, and for a teacher."""
    shapes, name = steps.output_shapes(context), hp.name
    check_dense(hp, name, context.networks['student'], context.batch, shapes['student'])
    if len(context.networks) > 1 or context.teachers:
        raise errors.ConfigError(f'{name} learns from labels alone. With {", ".join(context.teachers) or "networks"} '
                                 'take the method "distil", which names its losses.')
    if (hp.boundary or hp.distance) and 'distance' not in context.batch:
        raise errors.ConfigError(f'{name}: boundary and distance need batch["distance"]. Put "distance" at the end of '
                                 'data.augment.')
    loss_weights = functools.partial(weights, resolutions=levels(shapes['student']))
    return steps.make_method(terms, loss_weights, hp, context, heads=heads, provenance=PROVENANCE)
