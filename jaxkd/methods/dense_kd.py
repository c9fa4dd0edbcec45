"""Segmentation, with or without a frozen dense teacher: one runner for supervised training and for dense distillation.

    L = L_sup + weight * mean loss(R tap(student(x)), sg tap(teacher(input_fn(x, y)))) + boundary L_B + distance L_D

    L_sup = sum_k w_k [ ce CE(s_k, m_k) + dice Dice(s_k, m_k) ],    w_k = 2^-k, normalised to sum 1
over the resolutions k = 0 (full), 1, ... at which the network gives logits, logits1, ...; m_k is the label by the
nearest place.
    CE    weighted mean over the places of all cases; a place counts its class's weight (1 without `class_weights`)
    Dice  1 - mean over foreground classes of (2 sum p m + s) / (sum p + sum m + s), s = 1e-5. `batch`: sums over all
          cases (Isensee et al., 2021 [published]), so that a case without foreground gives no 0/0; `case`: each case
          for itself.
Label 255 is ignored everywhere. A case of which all is ignored (hidden by data.labels) has no term of the labels, and
none of a teacher whose input or loss is made of the label. With microbatches a batch Dice sees one microbatch.

The inputs of the teacher are chosen by its stage (inputs, input_fn); a method is a choice of tap, loss and weight [all
published by others, see each loss]. With A = tap [B,*places,C], i, j places, k classes:

    mse              mean (A_s - A_t)^2                      FitNets (Romero et al., 2015); SIKD with its own teacher
    cosine           mean_i 1 - cos(A_s,i, A_t,i)
    kl               T^2 mean_i KL(softmax_k(A_t,i / T) || softmax_k(A_s,i / T))      pixel KD where tap is logits
    attention        mean_i (Q_s - Q_t)^2, Q = mean_c A^2 / its norm over places      Zagoruyko and Komodakis, 2017
    channel          T^2 / C sum_c KL(softmax_i(A_t / T) || softmax_i(A_s / T))       CWD (Shu et al., 2021)
    affinity         mean_ij (cos(A_s,i, A_s,j) - cos(A_t,i, A_t,j))^2 on pooled places      SKDS (Liu et al., 2019)
    variation        mean_i (cos(A_s,i, mu_s^y(i)) - cos(A_t,i, mu_t^y(i)))^2, mu: class means of the case
                     IFVD (Wang et al., 2020)
    region           mean over pairs k < l of (cos(mu_s^k, mu_s^l) - cos(mu_t^k, mu_t^l))^2   EMKD (Qin et al., 2021);
                     the published sum over pairs is a mean over the pairs of classes that the case has [our choice]
    L_B = mean_i,k phi_k(i) p_k(i)     boundary loss (Kervadec et al., 2019), phi the signed distance in
                                       batch['distance']
    L_D = mean_i,k |d_k(i) - phi_k(i)|  a linear head on `feature` regresses phi (SDM, Xue et al., 2020)

R is the identity, or with `adapter` a linear map from the student's channels to the teacher's, trained with the student
and not deployed. weight = 0, or no teacher, is the arm without distillation, with the same code.
"""
import functools
import re
from collections.abc import Iterable, Sequence
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
from jaxkd.state import Context, Mean, Progress, valid_mask

SUPERVISED = dict(
    ce=1.0,  # weight of the cross-entropy
    dice=0.0,  # weight of the soft Dice
    dice_over='batch',  # or case
    class_weights=(),  # of the cross-entropy, one for each class, background first; () is 1 for all
)
DEFAULTS = dict(
    SUPERVISED,
    tap='feature', loss='mse', weight=0.0,
    temperature=1.0,  # of kl (4 is usual for logits) and channel
    adapter=False,
    places=512,  # affinity: pooled to at most so many
    boundary=0.0, distance=0.0,  # weights; both need the transform `distance` in data.augment
)
LOSSES = ('mse', 'cosine', 'kl', 'attention', 'channel', 'affinity', 'variation', 'region')
PROVENANCE = ('The losses are those of the named articles, in the form that the head of jaxkd/methods/dense_kd.py '
              'gives. Our choice: their reduction to means, and what stands at padded and ignored places.')


def terms(student: dict, teachers: dict, heads: dict, batch: dict, hp: ConfigDict, reads: Sequence[str] = (),
          classes: int = 2) -> dict:
    """student, teachers: outputs with logits and the tap; batch: label uint8 [B,*places] (255 ignored), [distance]."""
    values: dict[str, Any] = supervised_terms(student, batch['label'], batch['mask'], hp)
    labelled = labelled_cases(batch['label'])
    for teacher in teachers.values() if hp.weight else ():
        a = heads['adapter'](student[hp.tap]) if hp.adapter else student[hp.tap]
        gap = distance(a, jax.lax.stop_gradient(teacher[hp.tap]), batch['label'], hp, classes)
        of_label = 'label' in reads or hp.loss in ('variation', 'region')
        values['distil'] = Mean.of(gap, valid_mask(batch, reads) * (labelled if of_label else 1))
    if hp.boundary:
        gap = _per_case(jax.nn.softmax(student['logits'])[..., 1:] * batch['distance'])
        values['boundary'] = Mean.of(gap, batch['mask'] * labelled)
    if hp.distance:
        gap = _per_case(jnp.abs(heads['distance'](student['feature']) - batch['distance']))
        values['distance'] = Mean.of(gap, batch['mask'] * labelled)
    return values


def labelled_cases(label: Shaped[Array, 'batch ...']) -> Float[Array, ' batch']:
    """1 where a place of the label [B,*places] is not ignored. [B]."""
    return jnp.any(label != IGNORED, range(1, label.ndim)).astype(jnp.float32)


def weights(hp: ConfigDict, progress: Progress, resolutions: Sequence[str] = ('',), taught: bool = True) -> dict:
    used = supervised_weights(hp, resolutions)
    used |= {'distil': hp.weight} if hp.weight and taught else {}
    return used | {k: hp[k] for k in ('boundary', 'distance') if hp[k]}


def levels(outputs: Iterable[str]) -> list[str]:
    """[''; '1', '2', ...]: the resolutions at which a network gives logits, finest first."""
    return sorted((k.removeprefix('logits') for k in outputs if re.fullmatch(r'logits\d*', k)),
                  key=lambda n: int(n or 0))


def supervised_terms(outputs: dict, label: Shaped[Array, 'batch ...'], valid_cases: Shaped[Array, ' batch'],
                     hp: ConfigDict) -> dict[str, Any]:
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
            sums = losses.dice_sums(logits, y, valid)
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


def check_dense(hp: ConfigDict, method: str, network: Network, batch: dict, shapes: dict) -> None:
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


def distance(a: Shaped[Array, 'batch *places channels'], b: Shaped[Array, 'batch *places channels'],
             label: Shaped[Array, 'batch ...'], hp: ConfigDict, classes: int) -> Float[Array, ' batch']:
    """The loss between two taps [B,*places,C], the student's first -> [B]."""
    if hp.loss == 'mse':
        return losses.squared_error(a, b)
    if hp.loss == 'cosine':
        return losses.cosine_distance(a, b).mean(range(1, a.ndim - 1))
    if hp.loss == 'kl':
        return losses.kl(b, a, hp.temperature).mean(range(1, a.ndim - 1))
    if hp.loss == 'attention':
        return losses.squared_error(losses.attention(a), losses.attention(b))
    if hp.loss == 'channel':
        flat = lambda x: x.reshape(x.shape[0], -1, x.shape[-1]).swapaxes(1, 2)  # noqa: E731
        return losses.kl(flat(b), flat(a), hp.temperature).mean(-1)
    if hp.loss == 'affinity':
        return losses.affinity(losses.pool(a, hp.places), losses.pool(b, hp.places))
    owner, valid = regions(label, a.shape[1:-1], classes)
    a, b = (x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32) for x in (a, b))
    if hp.loss == 'variation':
        gap = jnp.square(intra_class_cosine(a, owner) - intra_class_cosine(b, owner))
        return jnp.sum(gap * valid, 1) / jnp.maximum(valid.sum(1), 1)
    first, second = jnp.triu_indices(classes, 1)
    present = owner.sum(1) > 0  # [B,K]
    pairs = present[:, first] & present[:, second]
    gap = jnp.square(class_affinity(a, owner)[:, first, second] - class_affinity(b, owner)[:, first, second])
    return jnp.sum(jnp.where(pairs, gap, 0), 1) / jnp.maximum(pairs.sum(1), 1)


def regions(label: Shaped[Array, 'batch ...'], shape: Sequence[int],
            classes: int) -> tuple[Float[Array, 'batch n classes'], Float[Array, 'batch n']]:
    """label [B,*places] at places of a tap -> one-hot [B,N,K] (zeros where ignored), valid [B,N]."""
    y = losses.nearest(label, shape).reshape(label.shape[0], -1)
    owner = jax.nn.one_hot(y, classes)  # a row of zeros for 255
    return owner, owner.sum(-1)


def intra_class_cosine(a: Float[Array, 'batch n channels'],
                       owner: Float[Array, 'batch n classes']) -> Float[Array, 'batch n']:
    """Cosine of each place with the mean of its class in the same case. a [B,N,C] -> [B,N]."""
    class_mean = jnp.einsum('bnk,bkc->bnc', owner, means(a, owner))
    return jnp.sum(losses.unit(a) * losses.unit(class_mean), -1)


def class_affinity(a: Float[Array, 'batch n channels'],
                   owner: Float[Array, 'batch n classes']) -> Float[Array, 'batch classes classes']:
    """Cosines between the class means of a case. a [B,N,C] -> [B,K,K]."""
    mu = losses.unit(means(a, owner))
    return mu @ mu.mT


def means(a: Float[Array, 'batch n channels'],
          owner: Float[Array, 'batch n classes']) -> Float[Array, 'batch classes channels']:
    """Class means of each case, zeros for a class that it lacks. [B,N,C], [B,N,K] -> [B,K,C]."""
    return jnp.einsum('bnk,bnc->bkc', owner, a) / jnp.maximum(owner.sum(1), 1)[..., None]


def heads(hp: ConfigDict, shapes: dict) -> dict:
    teachers = [out for name, out in shapes.items() if name != 'student']
    modules = {'adapter': nn.Dense(teachers[0][hp.tap].shape[-1])} if hp.adapter and teachers else {}
    return modules | ({'distance': nn.Dense(shapes['student']['logits'].shape[-1] - 1)} if hp.distance else {})


def build(hp: ConfigDict, context: Context) -> Method:
    """Raises ConfigError for unknown losses and taps, taps that do not fit each other, and more than one teacher."""
    shapes, name = steps.output_shapes(context), hp.name
    check_dense(hp, name, context.networks['student'], context.batch, shapes['student'])
    errors.check_choice(f'{name}.loss', hp.loss, LOSSES)
    if len(context.networks) > 1 or len(context.teachers) > 1:
        raise errors.ConfigError(f'{name} learns from one frozen teacher at most, and trains no other network along.')
    if (hp.boundary or hp.distance) and 'distance' not in context.batch:
        raise errors.ConfigError(f'{name}: boundary and distance need batch["distance"]. Put "distance" at the end of '
                                 'data.augment.')
    if hp.weight and context.teachers:
        for network in ('student', *context.teachers):
            if hp.tap not in shapes[network]:
                raise errors.ConfigError(f'{name}.tap: the network of {network} gives no '
                                         f'"{hp.tap}".{errors.nearest(hp.tap, shapes[network])}')
        a, b = (shapes[network][hp.tap].shape for network in ('student', *context.teachers))
        same = hp.loss in ('mse', 'cosine', 'kl', 'channel') and not hp.adapter
        if a[:-1] != b[:-1] or same and a != b:
            raise errors.ConfigError(f'{name}: "{hp.tap}" of the student is {list(a[1:])}, of the teacher '
                                     f'{list(b[1:])}. Choose a tap of equal size'
                                     + (', or set adapter=True.' if a[:-1] == b[:-1] else '.'))
    reads = [k for teacher in context.teachers.values() for k in steps.privileged_inputs(teacher, context)]
    loss_weights = functools.partial(weights, resolutions=levels(shapes['student']), taught=bool(context.teachers))
    loss_terms = functools.partial(terms, reads=reads, classes=shapes['student']['logits'].shape[-1])
    return steps.make_method(loss_terms, loss_weights, hp, context, heads=heads, provenance=PROVENANCE)


def _per_case(x):
    """Mean over all axes but the first."""
    return jnp.mean(x, range(1, x.ndim))
