"""Self-distillation with whole modalities hidden (MM-DINOv2, Scholz et al., MICCAI 2025 [published]): the running mean
of the network sees everything and teaches the network, which does not. Pre-training without labels.

    L = dino CE(p_cls, q_cls) + ibot sum_i h_i CE(p_i, q_i) / sum_i h_i + koleo L_K
    q = softmax(z / student_temp),  p = softmax((z' - centre) / teacher_temp),  CE(p, q) = - sum_k p_k log q_k
    L_K = - mean_i log min_j |u_i - u_j|,  u = CLS of norm 1                     (KoLeo, Sablayrolles et al., ICLR 2019)

z, z': scores of K prototypes by the network and by its mean (DINO, Caron et al., ICCV 2021; iBOT, Zhou et al., ICLR
2022 [published]); i runs over hidden tokens, h = 1. centre <- momentum centre + (1 - momentum) mean z', one for CLS and
one for tokens. The mean is that of optim.ema, which the stage hands on; it gets no gradient. The teacher's temperature
rises from `teacher_temp[0]` to `teacher_temp[1]` over `warmup` of the training. Weights and temperatures are those of
the published code.

The model is modality_vit with hide='modality', or hide='others' and seen=('ct',): then the teacher sees all modalities
and the student one, privileged learning without labels [our choice]. Also [our choice]: one view of a case for both
sides instead of two global and some local crops, a constant decay of the mean (published: 0.992 to 1), and labels
belong to the next stage (published: a term of the labelled cases beside these, whose classes are the prototypes).
KoLeo relates the cases of the global batch; with microbatches those of one.
"""
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses, parallel, steps
from jaxkd.contracts import Method
from jaxkd.state import Context, Mean, Progress, TrainState
from jaxkd.training import schedules

DEFAULTS = dict(
    dino=1.0,  # weight of the cross-entropy of CLS
    ibot=1.0,  # weight of the cross-entropy of hidden tokens
    koleo=0.1,  # weight of the distance to the nearest case; 0: none
    student_temp=0.1,  # divisor of the student's scores, 0.001 to 100
    teacher_temp=(0.04, 0.07),  # divisor of the teacher's scores, at first and after `warmup`, each 0.001 to 100
    warmup='linear 15%',  # schedule from the first to the second teacher_temp, see jaxkd/training/schedules.py
    momentum=0.9,  # of the centres, 0 to 1
)
PROVENANCE = ('Published: a hidden modality, the losses of CLS and of hidden tokens, KoLeo, centres, temperatures. Our '
              'choice: one view of a case, a constant decay of the mean weights, labels in the next stage alone, '
              'student and teacher that see fixed modalities (hide="others").')
MEAN = 'mean'  # the name of the teacher among the networks


def cross_entropy(student: Float[Array, '*b k'], teacher: Float[Array, '*b k'], centre: Float[Array, ' k'],
                  student_temp: float, teacher_temp: Any) -> Float[Array, '*b']:
    """CE(p, q) of scores [...,K] -> [...]. The teacher gets no gradient."""
    p = jax.nn.softmax((jax.lax.stop_gradient(teacher) - centre) / teacher_temp)
    return -jnp.sum(p * jax.nn.log_softmax(student / student_temp), -1)


def koleo(cls: Float[Array, 'b d'], valid: Shaped[Array, ' b']) -> Float[Array, ' b']:
    """- log of the distance to the nearest other valid case, of CLS at norm 1; 0 for a case that is alone."""
    u = losses.unit(cls)
    others = (valid[:, None] * valid * (1 - jnp.eye(len(valid)))) > 0
    alike = jax.lax.stop_gradient(jnp.where(others, u @ u.T, -jnp.inf))
    near = u[jnp.argmax(alike, 1)]  # the choice of the neighbour has no gradient
    return jnp.where(others.any(1), -jnp.log(losses.norm(u - near)[:, 0] + 1e-8), 0.0)


def moved(centre: Float[Array, ' k'], scores: Float[Array, '*b k'], valid: Shaped[Array, '*b'],
          momentum: float) -> Float[Array, ' k']:
    """The centre after these scores, of the valid places of all devices; without any it stays."""
    weight = valid[..., None]
    total, count = parallel.psum((jnp.sum(scores * weight, tuple(range(scores.ndim - 1))), jnp.sum(valid)))
    return jnp.where(count > 0, momentum * centre + (1 - momentum) * total / jnp.maximum(count, 1), centre)


def terms(student: Mapping[str, Array], teachers: Mapping[str, Mapping[str, Array]], heads: dict, batch: dict,
          hp: ConfigDict, memory: dict) -> tuple[dict, dict]:
    taught, mask = jax.lax.stop_gradient(dict(teachers[MEAN])), batch['mask']
    low, high = hp.teacher_temp
    temperature = low + (high - low) * memory['warmup']
    cls = cross_entropy(student['prototypes'], taught['prototypes'], memory['cls'], hp.student_temp, temperature)
    token = cross_entropy(student['token_prototypes'], taught['token_prototypes'], memory['token'], hp.student_temp,
                          temperature)
    hidden = student['hidden'] * mask[:, None]
    values = {'dino': cls, 'ibot': Mean.of(token, hidden)}
    if hp.koleo:
        every, valid = parallel.gather((student['pooled'], mask))
        values['koleo'] = jnp.broadcast_to(Mean.of(koleo(every, valid), valid).value, mask.shape)
    kept = {'cls': moved(memory['cls'], taught['prototypes'], mask, hp.momentum),
            'token': moved(memory['token'], taught['token_prototypes'], hidden, hp.momentum)}
    return values, {**memory, **kept}


def weights(hp: ConfigDict, progress: Progress) -> dict:
    return {'dino': hp.dino, 'ibot': hp.ibot} | ({'koleo': hp.koleo} if hp.koleo else {})


def memory(hp: ConfigDict, context: Context) -> dict:
    count = steps.output_shapes(context)['student']['prototypes'].shape[-1]
    return {'cls': jnp.zeros(count), 'token': jnp.zeros(count), 'warmup': jnp.float32(0)}


@dataclasses.dataclass(frozen=True)
class SelfTaught(steps.Recipe):
    """The usual step, with the smoothed weights of the student as one more frozen network."""

    def gradients(self, state: TrainState, frozen: dict, batch: dict, key: Any, weights: Mapping[str, Any]) -> Any:
        mean = {'params': state.ema['student'], **state.stats['student']}
        context = self.context
        factor = schedules.factor(self.hp.warmup, Progress(state.step, state.step / context.epoch,
                                                           state.step / context.total), context.batch['mask'].shape[0])
        state = dataclasses.replace(state, memory={**state.memory, 'warmup': jnp.float32(factor)})
        return super().gradients(state, {**frozen, MEAN: mean}, batch, key, weights)


def build(hp: ConfigDict, context: Context) -> Method:
    """Raises ConfigError for a model without prototypes, no mean of the weights, teachers, numbers out of bounds."""
    key = f'{context.stage}.method'
    schedules.check(f'{key}.warmup', hp.warmup)
    for name, bounds in dict(student_temp='[0.001, 100]', teacher_temp='[0.001, 100]', momentum='[0, 1]').items():
        errors.check_range(f'{key}.{name}', hp[name], bounds)
    outputs = steps.output_shapes(context)['student']
    if missing := [name for name in ('prototypes', 'token_prototypes', 'hidden') if name not in outputs]:
        raise errors.ConfigError(f'{key}: self_distillation needs "{missing[0]}", which the model does not give. '
                                 'Choose model.name="modality_vit", hide="modality" and prototypes above 0.')
    if not context.optim.hp.ema:
        raise errors.ConfigError(f'{key}: self_distillation learns from the running mean of the weights. Set '
                                 f'{context.stage}.optim.ema=0.996.')
    if context.teachers or len(context.networks) > 1:
        raise errors.ConfigError(f'{key}: self_distillation has one network, its own teacher. Remove teachers and '
                                 'networks of the stage.')
    context = dataclasses.replace(context, teachers={MEAN: context.networks['student']})
    recipe = SelfTaught(hp, context, terms, weights, {}, memory, None)
    return Method(recipe.init, recipe.train_step, recipe.after_validation, loss_weights=recipe.loss_weights,
                  teacher_terms=lambda: (), provenance=PROVENANCE)
