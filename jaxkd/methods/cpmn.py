"""CPMN: cross-phase mutual learning. A non-contrast CT pathway and a CTPA pathway learn pulmonary embolism together.

Bai, Zhou, Hu, Mok, Xiang, Lu, Zhang, Xu. Cross-Phase Mutual Learning Framework for Pulmonary Embolism Identification on
Non-Contrast CT Scans. MICCAI 2024, arXiv 2407.11529.

Two networks without shared weights, the student on the NCT and (networks.ctpa) the privileged one on the CTPA of the
same patient, each segmenting emboli and classifying its window. A network never reads the other phase; losses alone
couple them.

    L = sum_p [ L_seg^p + cls L_cls^p + r ifd L_IFD^p ] + r ifa L_IFA + r mutual L_mut,      r = min(1, t / (0.1 T))
    L_seg   cross-entropy + batch Dice with deep supervision: jaxkd/methods/segmentation.py
    L_cls   BCE(class_logits, y), y = 1 where the window holds at least `voxels` of embolus
    L_IFA   inter-feature alignment, between the phases, on the projected `ifa_tap` pooled to at most `places`, unit
            vectors f:
            pointwise  1/N sum_i (1 - <f_i^n, f_i^c>)
            affinity   1/N^2 sum_ij (<f_i^n, f_j^n> - <f_i^c, f_j^c>)^2
            mixed      half of each                              both pathways get the gradient, unless
                                                                 detach_privileged
    L_IFD   intra-feature discrepancy, inside each phase, on the projected `ifd_tap`, unit vectors f, embolus 1,
            background 0:
            proto_nce  1/2 mean_1 l_i + 1/2 mean_0 l_i,  l_i = -log softmax_k(<f_i, mu_k> / tau)[m_i],  mu_k the unit
            mean
            margin     max(0, <mu_1, mu_0> - delta)
            Background: at most `background` places, half of them drawn from the shell of `shell` voxels around the
            emboli, and an equal number of the most probable false positives. A window without embolus has no such term.
    L_mut   mean over voxels of KL(sg p^c || p^n) + KL(sg p^n || p^c)      (deep mutual learning, Zhang et al., 2018)

Every term is divided by its own number of cases: a patient without CTPA gives the terms of the NCT alone, a window
without labels (all 255) IFA and L_mut alone. `shuffled` is a control: in IFA and L_mut each case meets the CTPA of the
next case of the batch, so that what passes between the phases belongs to nobody in particular.

[published] the task, the two pathways that teach each other, segmentation with classification, the names and purposes
of IFA and IFD. [our choice] every equation above and every default: the article's own were not accessible to us, see
PROVENANCE.
"""
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses, steps
from jaxkd.contracts import Method
from jaxkd.data.source import IGNORED
from jaxkd.methods import segmentation
from jaxkd.models.layers.operations import max_pool
from jaxkd.state import Context, Mean, Progress, valid_mask
from jaxkd.training import schedules, shuffling

PROVENANCE = (
    'Certain (abstract and public digests): the task, NCT alone at test, two pathways that learn from each other, '
    'segmentation and classification at once, the names and the purpose of IFA and IFD. Inferred: unshared weights, a '
    'head that allows class activation maps. Our choice, because the full text was not accessible: every formula, tap, '
    'weight, the ramp, the background set, the network, the decision rule. No number made with this file reproduces '
    'the article.')

DEFAULTS = dict(
    segmentation.SUPERVISED | dict(dice=1.0),
    cls=0.5,  # weight of L_cls, whether the window holds an embolus; 0: none
    voxels=20,  # L_cls: a window with so many voxels of embolus, or more, is positive
    ifa='mixed',  # alignment of the two phases, L_IFA: pointwise, affinity, or mixed (half of each)
    ifa_weight=0.1,  # weight of L_IFA after the ramp; 0: none
    ifa_tap='dec2',  # output of both networks that L_IFA aligns
    places=512,  # L_IFA: features are averaged in blocks until so many places are left, or fewer
    ifd='proto_nce',  # contrast of embolus and background, L_IFD: proto_nce or margin
    ifd_weight=0.1,  # weight of L_IFD after the ramp; 0: none
    ifd_tap='dec0',  # output, of full resolution, in which L_IFD parts embolus and background
    tau=0.5,  # proto_nce: temperature of the cosines, above 0
    delta=0.0,  # margin: cosine of the two means that still costs nothing, -1 to 1
    shell=5,  # voxels around the emboli from which half of the background is drawn, 1 or more
    background=1024,  # most places of the background in a window, 2 or more
    mutual=0.0,  # weight of L_mut after the ramp, the predictions of the other network; 0: none
    ramp='linear 10%',  # schedule of the weights of L_IFA, L_IFD, L_mut, see jaxkd/training/schedules.py; '': constant
    shuffled=False,  # a control: L_IFA and L_mut see the CTPA features of the next case of the batch
    detach_privileged=False,  # the CTPA pathway learns nothing from the NCT: ordinary one-way distillation
    projection=64,  # channels of the projection heads of L_IFA and L_IFD
)
KINDS = dict(ifa=('mixed', 'pointwise', 'affinity'), ifd=('proto_nce', 'margin'))


def terms(student: dict, teachers: dict, heads: dict, batch: dict, hp: ConfigDict, reads: Sequence[str] = ()) -> dict:
    """student: logits, class_logits, taps; teachers: {} or {the other pathway: the same}.

    Label uint8 [B,D,H,W], 1 = embolus.
    """
    label, mask = batch['label'], batch['mask']
    inside, outside = label == 1, label == 0
    both = valid_mask(batch, reads)  # cases with both phases
    values: dict[str, Any] = {}
    paths = [('', 'student', student, mask)] + [('aux_', 'privileged', out, both) for out in teachers.values()]
    for name, path, out, valid in paths:
        values |= {f'{name}{k}': v for k, v in segmentation.supervised_terms(out, label, valid, hp).items()}
        if hp.cls:
            y, certain = patch_label(label, hp.voxels)
            values[f'{name}cls'] = Mean.of(losses.binary_cross_entropy(out['class_logits'][:, 0], y), certain * valid)
        if hp.ifd_weight:
            positive = jax.nn.softmax(out['logits'])[..., 1]
            chosen = background(inside, outside, jax.lax.stop_gradient(positive), hp.shell, hp.background)
            f = losses.unit(heads[f'ifd_{path}'](out[hp.ifd_tap]).reshape(len(label), -1, hp.projection))
            emboli = losses.nearest(inside, out[hp.ifd_tap].shape[1:-1]).reshape(len(label), -1)
            gap, alike = discrepancy(f, emboli, chosen[0], chosen[1], hp)
            defined = valid * inside.any((1, 2, 3)) * chosen[1].any(1)
            values |= {f'{name}ifd': Mean.of(gap, defined), f'{name}prototype_cosine': Mean.of(alike, defined)}
    for out in teachers.values():
        stop = jax.lax.stop_gradient if hp.detach_privileged else lambda x: x
        told = shuffling.next_cases if hp.shuffled else lambda x: x
        known_phases = both * told(both) if hp.shuffled else both
        if hp.ifa_weight:
            f = losses.unit(losses.pool(heads['ifa_student'](student[hp.ifa_tap]), hp.places))
            g = told(stop(losses.unit(losses.pool(heads['ifa_privileged'](out[hp.ifa_tap]), hp.places))))
            values |= {'ifa': Mean.of(alignment(f, g, hp.ifa), known_phases),
                       'phase_cosine': Mean.of(1 - alignment(f, g, 'pointwise'), known_phases)}
        if hp.mutual:
            n, c = student['logits'], told(out['logits'])
            gap = losses.kl(c, n) + (0 if hp.detach_privileged else losses.kl(n, c))
            known = label != IGNORED
            counted = known | ~known.any((1, 2, 3), keepdims=True)  # all voxels of a window without any label
            values['mutual'] = Mean.of(gap, known_phases.reshape(-1, 1, 1, 1) * counted)
    return values


def weights(hp: ConfigDict, progress: Progress, resolutions: Sequence[str] = ('',), paired: bool = True,
            batch: int = 1) -> dict:
    r = schedules.factor(hp.ramp, progress, batch)
    used = segmentation.supervised_weights(hp, resolutions)
    used |= ({'cls': hp.cls} if hp.cls else {}) | ({'ifd': r * hp.ifd_weight} if hp.ifd_weight else {})
    if not paired:
        return used
    used |= {f'aux_{k}': v for k, v in used.items()} | ({'ifa': r * hp.ifa_weight} if hp.ifa_weight else {})
    return used | ({'mutual': r * hp.mutual} if hp.mutual else {})


def patch_label(label: Shaped[Array, 'batch d h w'],
                voxels: int) -> tuple[Float[Array, ' batch'], Float[Array, ' batch']]:
    """(1.0 where a window holds `voxels` of embolus or more, 1.0 where that is certain).

    Voxels of label 255 could hold some.
    """
    emboli = jnp.sum(label == 1, (1, 2, 3))
    yes = emboli >= voxels
    return yes.astype(jnp.float32), (yes | ~jnp.any(label == IGNORED, (1, 2, 3))).astype(jnp.float32)


def alignment(f: Float[Array, 'batch n c'], g: Float[Array, 'batch n c'], kind: str) -> Float[Array, ' batch']:
    """L_IFA of unit vectors [B,N,C] of the two phases -> [B]."""
    if kind == 'mixed':
        return 0.5 * alignment(f, g, 'pointwise') + 0.5 * alignment(f, g, 'affinity')
    return jnp.mean(losses.cosine_distance(f, g), 1) if kind == 'pointwise' else losses.affinity(f, g)


def discrepancy(f: Float[Array, 'batch n c'], inside: Shaped[Array, 'batch n'], index: Shaped[Array, 'batch m'],
                used: Shaped[Array, 'batch m'],
                hp: ConfigDict) -> tuple[Float[Array, ' batch'], Float[Array, ' batch']]:
    """L_IFD and <mu_1, mu_0>, both [B].

    f [B,N,C] unit vectors, inside [B,N]: embolus, index, used [B,M]: the background set.
    """
    behind = jnp.take_along_axis(f, index[..., None], 1)
    weight = [w.astype(jnp.float32) for w in (inside, used)]
    mu = losses.unit(jnp.stack([jnp.einsum('bn,bnc->bc', w, x) for w, x in zip(weight, (f, behind))], 1))
    alike = jnp.sum(mu[:, 0] * mu[:, 1], -1)
    if hp.ifd == 'margin':
        return jnp.maximum(0, alike - hp.delta), alike

    def cost(x, k, w):
        scores = jnp.einsum('bnc,bkc->bnk', x, mu) / hp.tau
        return jnp.sum(w * jax.nn.softplus(scores[..., 1 - k] - scores[..., k]), 1) / jnp.maximum(w.sum(1), 1)
    return 0.5 * cost(f, 0, weight[0]) + 0.5 * cost(behind, 1, weight[1]), alike


def background(inside: Shaped[Array, 'batch d h w'], outside: Shaped[Array, 'batch d h w'],
               positive: Float[Array, 'batch d h w'], shell: int, most: int) -> tuple[Array, Array]:
    """The background set of each window: index int [B,most] of places, used bool [B,most].

    Half of `most` from the shell around the emboli, in a fixed random order; then as many places beyond the shell as it
    gave, those of the largest probability `positive` of embolus, above one half alone.
    """
    places, half = inside[0].size, min(most // 2, inside[0].size)
    near = max_pool(inside[..., None].astype(jnp.float32), 2 * shell + 1, 1)[..., 0] > 0
    # a constant of the traced step
    order = (1 + np.random.default_rng(0).permutation(places).astype(np.float32)) / places
    flat = lambda x: x.reshape(len(x), places)  # noqa: E731
    drawn, first = jax.lax.top_k(flat(near & outside) * order, half)
    wrong, second = jax.lax.top_k(flat(jnp.where(outside & ~near, positive, 0)), half)
    drawn = drawn > 0
    wrong = (wrong > 0.5) & (jnp.arange(half) < drawn.sum(1, keepdims=True))
    return jnp.concatenate([first, second], 1), jnp.concatenate([drawn, wrong], 1)


def heads(hp: ConfigDict, shapes: dict) -> dict:
    """Projections, 1x1x1 convolutions, one for each tap and pathway; never deployed."""
    paths = ('student', 'privileged')[:len(shapes)]
    return {f'{use}_{path}': nn.Dense(hp.projection) for path in paths for use in ('ifa', 'ifd')}


def build(hp: ConfigDict, context: Context) -> Method:
    """Raises ConfigError for unknown kinds, frozen teachers, more than one other pathway, and networks without the
    outputs.
    """
    shapes = steps.output_shapes(context)
    segmentation.check_dense(hp, 'cpmn', context.networks['student'], context.batch, shapes['student'])
    for key, choices in KINDS.items():
        errors.check_choice(f'cpmn.{key}', hp[key], choices)
    if context.teachers or len(context.networks) > 2:
        raise errors.ConfigError('cpmn trains one other pathway along with the student: name it in `networks`, not in '
                                 '`teachers`.')
    if hp.tau <= 0 or hp.background < 2 or hp.shell < 1:
        raise errors.ConfigError(f'cpmn: tau = {hp.tau} must be positive, background = {hp.background} at least 2, '
                                 f'shell = {hp.shell} at least 1.')
    schedules.check(f'{context.stage}.method.ramp', hp.ramp)
    if hp.shuffled:
        shuffling.check_batch(f'{context.stage}.method.shuffled', context.batch['mask'].shape[0], context.accumulate)
    if len(context.batch['label'].shape) != 4:
        raise errors.ConfigError('cpmn reads volumes: labels [B,D,H,W]. Choose a source of volumes, and '
                                 'model.dims = 3.')
    needed = [k for k, used in (('class_logits', hp.cls), (hp.ifd_tap, hp.ifd_weight),
                                (hp.ifa_tap, hp.ifa_weight and len(context.networks) > 1)) if used]
    for network, out in shapes.items():
        for k in needed:
            if k not in out:
                raise errors.ConfigError(f'cpmn: the network of {network} gives no "{k}".{errors.nearest(k, out)} '
                                         '(class_logits need model.classify = 1)')
        if hp.ifd_weight and out[hp.ifd_tap].shape[1:-1] != context.batch['label'].shape[1:]:
            raise errors.ConfigError(f'cpmn.ifd_tap = "{hp.ifd_tap}" must be at full resolution, such as dec0.')
    reads = [k for network in context.networks.values() for k in steps.privileged_inputs(network, context)]
    loss_weights = functools.partial(weights, resolutions=segmentation.levels(shapes['student']),
                                     paired=len(context.networks) > 1, batch=context.batch['mask'].shape[0])
    return steps.make_method(functools.partial(terms, reads=reads), loss_weights, hp, context, heads=heads,
                             provenance=PROVENANCE)
