"""CPKD: clinical priors-inspired privileged knowledge distillation. A CT student, and MRI networks trained with it.

Chen, Gan, Han, Hu, Liu, Yang, Yu, Zhang. Medical Image Analysis 111, 104041 (2026). doi 10.1016/j.media.2026.104041

Each MRI network a predicts an auxiliary label (texture, duct) from features m_a with logits v_a. The CT student has
features f, logits z, and exits z^h at its levels. For training alone it has heads r_a = W_a f and u_a = A_a r_a.

    L = L_main + auxi_w L_aux + [epoch >= warmup_epoch] mean_i w_i (fkd_w lF_i + rkd_w lP_i) + [clinical] L_clin +
    L_club

    L_main = mean_h CE(z^h, y), the last num_heads levels, those with index >= head_indice
    L_aux  = sum_a CE(v_a, y_a)                                          a label of -1 leaves the case out
    lF     = mean_a t^2 KL(m_a / t || r_a / t) over channels, or InfoNCE with cosines (`info`), t = kd_temp
    lP     = mean_a t^2 KL(v_a / t || u_a / t)                           pkd_target = aux
             t^2 KL(c / t || z / t), c = Linear([m_a]) trained with CE   pkd_target = class
             |rownorm(P P') - rownorm(Q Q')|^2 / B^2                     pkd_target = relation; rows P of z, Q of all
                                                                         v_a

Biological calibration (`clinical`), from a prior P(class | texture, duct) in batch['prior']; g = 1 where they are
right:
    L_clin = clinical_w1 L_hard + clinical_w2 L_cal
    L_hard = sum of CE(z_i, y_i) over {pi_i(argmax p_i) < delta and argmax p_i != y_i} / number of cases with MRI
    L_cal  = mean_i g_i mean_c (p_i(c) - sg q_i(c))^2,  q ~ p pi^gamma,  pi: the prior at what the MRI networks predict
Personalised calibration (`kd_mode` = dynamic), one hardness for each training case: see `hardness` and `case_weights`.
Optional: club times the vCLUB bound of the mutual information of the features of the two `axes`.

A stage with `teachers` in place of networks takes finished, frozen MRI networks of the main class: two stages, which
tells what is transferred from when learning begins [our choice]. They have no part in L_aux.

Every mean is over the cases that have what the term needs: without MRI there is no auxiliary term, no transfer and no
calibration, without a label (-1) there is transfer alone, of weight 1. Published, inferred and chosen parts:
PROVENANCE. No number made with this file reproduces the article.
"""
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses, parallel, steps
from jaxkd.contracts import Method
from jaxkd.state import Context, Mean, Progress, labelled_mask, valid_mask

PROVENANCE = (
    'Certain (abstract, public training script): CT alone at test; texture and duct as auxiliary MRI tasks; one joint '
    'optimiser; the logged terms and their default weights; one state value for each training case; the names of all '
    'modes. Inferred: cross-entropy for the auxiliary tasks, KL over channels, which weight belongs to which term, the '
    'counter. Our choice, because the sources are silent: the inside of both calibrations (prior table, gate, delta, '
    'gamma, L_hard, L_cal, hardness rules, mu, limits), prediction-level targets, InfoNCE, CLUB (its network shares '
    'the optimiser), stop-gradients, exits. L_hard is divided by all cases with MRI; by its own few cases (hard_over = '
    'hard) it outweighs all else. The authors\' loss code is not public: nothing here is presented as their formula.')

DEFAULTS = dict(
    num_heads=5,  # exits of the student, at its last num_heads levels: 1 to 5
    head_indice=3,  # the first exit that is supervised: 0 to num_heads - 1
    auxi_w=0.1,  # weight of L_aux, the labels of the MRI networks
    fkd_w=1.5,  # weight of lF, the features of the MRI networks; 0: none
    fkd_mode='kl',  # lF: kl (over channels) or info (InfoNCE with cosines)
    rkd_w=0.5,  # weight of lP, the predictions of the MRI networks; 0: none
    pkd_target='aux',  # lP: aux (their logits), class (a class head on their features) or relation (between cases)
    kd_temp=1.0,  # temperature t of the KL divergences in lF and lP, above 0
    warmup_epoch=0,  # epochs of training before lF and lP count; 0: they count from the start
    kd_mode='dynamic',  # weights w of cases in lF and lP: dynamic (by hardness) or static (all 1)
    update_mode='ema',  # dynamic w, clipped to `limits`: ema (a case's mean loss, over that of all cases); exp (of the
    # difference); relative (the student's loss to that of the MRI networks); combined (the mean of ema and relative)
    momentum=0.9,  # of the running mean of a case's loss, its hardness: 0 (the last loss) to 1 (the first)
    limits=(0.5, 2.0),  # dynamic w: smallest and largest
    clinical=True,  # whether L_clin counts, the calibration by the prior; it needs the transform `prior`
    clinical_w1=1.0,  # weight of L_hard in L_clin
    clinical_w2=1.0,  # weight of L_cal in L_clin
    clinical_mode='mse',  # L_cal: mse or kl between the prediction and the calibrated one
    hard_over='cases',  # what the sum L_hard is divided by: cases (all with MRI) or hard (those in the sum)
    axes=('texture', 'duct'),  # networks whose predictions index the prior, in the order of its axes
    gamma=1.0,  # exponent of the prior in the calibrated prediction; 0: the prior changes nothing
    delta=0.1,  # L_hard: a prediction with a smaller prior is implausible, 0 to 1
    stop_grad_teacher=True,  # lF and lP teach the student alone; False: the MRI networks get their gradient, too
    club=0.0,  # weight of the bound that keeps the features of the two `axes` apart; 0: none, 0.01 where it is used
)
MODES = dict(fkd_mode=('kl', 'info'), pkd_target=('aux', 'class', 'relation'), kd_mode=('dynamic', 'static'),
             update_mode=('relative', 'ema', 'combined', 'exp'), clinical_mode=('mse', 'kl'),
             hard_over=('cases', 'hard'))
LEVELS = 5


def terms(student: dict, teachers: dict, heads: dict, batch: dict, hp: ConfigDict, memory: dict | None = None,
          tasks: Mapping[str, str] | None = None, reads: Mapping[str, Sequence[str]] | None = None) -> Any:
    """student: logits, pooled, level0..4; teachers: {network: logits, pooled}; tasks, reads: {network: label key,
    inputs}.

    -> {name: Mean or [B]}, and the new memory where there is one.
    """
    y, z, mask = batch['label'], student['logits'], labelled_mask(batch)
    student_loss = losses.cross_entropy(z, y)
    exits = [losses.cross_entropy(heads[name](student[level]), y) for name, level in exit_levels(hp)]
    values: dict[str, Any] = {'main': Mean.of(sum(exits, student_loss) / (len(exits) + 1), mask)}
    if not teachers:
        return values if memory is None else (values, memory)
    assert tasks is not None and reads is not None
    stop = jax.lax.stop_gradient if hp.stop_grad_teacher else lambda x: x
    valid = {a: valid_mask(batch, reads[a]) for a in teachers}
    any_valid = functools.reduce(jnp.maximum, valid.values())
    aux, defined = {}, {}
    for a, out in teachers.items():
        defined[a] = valid[a] * (batch[tasks[a]] >= 0)
        aux[a] = losses.cross_entropy(out['logits'], jnp.maximum(batch[tasks[a]], 0))
        values[f'aux_{a}'] = Mean.of(aux[a], defined[a])

    w = jnp.ones_like(student_loss)
    if memory is not None:
        mri_loss = _mean(aux, defined)
        index, loss, counted = parallel.gather((batch['index'], student_loss, mask))
        memory = hardness(memory, index, loss, counted, hp.momentum)
        w = case_weights(memory, batch['index'], student_loss, mri_loss, sum(defined.values()) > 0, hp)
        w = jnp.where(mask > 0, w, 1.0)  # nothing is known of how hard a case without a label is
        values['weight'] = w

    aligned = {a: heads[f'align_{a}'](student['pooled']) for a in teachers}
    if hp.fkd_w:
        gap = {a: feature_gap(stop(out['pooled']), aligned[a], valid[a], hp) for a, out in teachers.items()}
        values['feature'] = Mean.of(w * _mean(gap, valid), any_valid)
    if hp.rkd_w and hp.pkd_target == 'aux':
        gap = {a: losses.kl(out['logits'], heads[f'logits_{a}'](aligned[a]), hp.kd_temp, hp.stop_grad_teacher)
               for a, out in teachers.items()}
        values['prediction'] = Mean.of(w * _mean(gap, valid), any_valid)
    elif hp.rkd_w and hp.pkd_target == 'class':
        features = [teachers[a]['pooled'] * valid[a][:, None] for a in sorted(teachers)]
        c = heads['mri_class'](jnp.concatenate(features, -1))
        values['mri_class'] = Mean.of(losses.cross_entropy(c, y), any_valid * mask)
        values['prediction'] = Mean.of(w * losses.kl(c, z, hp.kd_temp, hp.stop_grad_teacher), any_valid)
    elif hp.rkd_w:
        rows = jnp.concatenate([jax.nn.softmax(teachers[a]['logits']) * valid[a][:, None] for a in sorted(teachers)],
                               -1)
        values['prediction'] = Mean.of(w * relation_gap(jax.nn.softmax(z), stop(rows), any_valid), any_valid)
    if hp.clinical:
        logits = [teachers[a]['logits'] for a in hp.axes]
        labels = [batch[tasks[a]] for a in hp.axes]
        all_valid = functools.reduce(jnp.minimum, [valid[a] for a in hp.axes]) * mask
        found = clinical(z, logits, labels, y, batch['prior'], student_loss, all_valid, hp)
        values |= {name: v if isinstance(v, Mean) else Mean.of(v, mask) for name, v in found.items()}
    if hp.club:
        first, second = hp.axes
        values |= club(teachers[first]['pooled'], teachers[second]['pooled'], heads['club'],
                       jnp.minimum(valid[first], valid[second]))
    return (values, memory) if memory is not None else values


def weights(hp: ConfigDict, progress: Progress, tasks: Mapping[str, str] | None = None,
            trained: Sequence[str] = ()) -> dict:
    started = jnp.where(progress.epoch >= hp.warmup_epoch, 1.0, 0.0) if hp.warmup_epoch else 1.0
    used = {'main': 1.0}
    if tasks:
        used |= {f'aux_{a}': hp.auxi_w for a in trained}
        used |= {'feature': started * hp.fkd_w} if hp.fkd_w else {}
        used |= {'prediction': started * hp.rkd_w} if hp.rkd_w else {}
        used |= {'mri_class': 1.0} if hp.rkd_w and hp.pkd_target == 'class' else {}
        used |= {'hard': hp.clinical_w1, 'calibration': hp.clinical_w2} if hp.clinical else {}
        used |= {'club': hp.club, 'club_fit': 1.0} if hp.club else {}
    return used


def exit_levels(hp: ConfigDict) -> list[tuple[str, str]]:
    """[(head, level)] of the supervised exits before the last one, which is the head of the network."""
    return [(f'exit{h}', f'level{LEVELS - hp.num_heads + h}') for h in range(hp.head_indice, hp.num_heads - 1)]


# Feature and prediction level.

def feature_gap(m: Float[Array, 'batch d'], r: Float[Array, 'batch d'], valid: Shaped[Array, ' batch'],
                hp: ConfigDict) -> Float[Array, ' batch']:
    """lF of one network: m, r [B,d] -> [B]."""
    if hp.fkd_mode == 'kl':
        return losses.kl(m, r, hp.kd_temp, hp.stop_grad_teacher)
    unit = lambda x: x / jnp.sqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-12)  # noqa: E731
    m, r = unit(m), unit(r)
    every_m, every_valid = parallel.gather((m, valid))  # against all cases with an MRI, of all devices
    alike = jnp.where(every_valid > 0, r @ every_m.T / 0.1, -jnp.inf)
    alike = jnp.where(jnp.any(every_valid > 0), alike, 0.0)
    return jax.nn.logsumexp(alike, -1) - jnp.sum(m * r, -1) / 0.1


def relation_gap(p: Float[Array, 'batch k'], q: Float[Array, 'batch m'],
                 valid: Shaped[Array, ' batch']) -> Float[Array, ' batch']:
    """Row i of |rownorm(P P') - rownorm(Q Q')|^2 / B over the B valid cases: the term is the mean of the rows.

    p [B,K], q [B,M], valid [B] -> [B]. Relates the cases of one microbatch.
    """
    every_p, every_q, every_valid = parallel.gather((p, q, valid))
    count = jnp.maximum(every_valid.sum(), 1)

    def rows(a, b):
        g = (a @ b.T) * every_valid
        return g / jnp.sqrt(jnp.sum(jnp.square(g), -1, keepdims=True) + 1e-12)
    return jnp.sum(jnp.square(rows(p, every_p) - rows(q, every_q)), -1) / count


# Biological prediction calibration.

def calibrate(p: Float[Array, 'batch classes'], prior: Float[Array, 'batch classes'],
              gamma: float = 1.0) -> Float[Array, 'batch classes']:
    """q_c = p_c pi_c^gamma / sum. p, prior [B,C], rows sum to 1."""
    q = p * prior ** gamma
    return q / jnp.maximum(q.sum(-1, keepdims=True), 1e-12)


def soft_prior(table: Shaped[Array, 'batch ...'], logits: Sequence[Array]) -> Float[Array, 'batch classes']:
    """pi(c) = sum over axes of softmax(v_a) times the table. table [B,T,D,C], logits [[B,T], [B,D]] -> [B,C]."""
    for v in logits:
        p = jax.nn.softmax(v)
        table = jnp.sum(p.reshape(*p.shape, *[1] * (table.ndim - 2)) * table, 1)
    return table


def clinical(z: Float[Array, 'batch classes'], logits: Sequence[Array], labels: Sequence[Array],
             y: Shaped[Array, ' batch'], table: Shaped[Array, 'batch ...'], student_loss: Float[Array, ' batch'],
             valid: Shaped[Array, ' batch'], hp: ConfigDict) -> dict[str, Any]:
    """Terms hard and calibration; fixed, 1 where the calibration corrects a case (num_fixed_by_aux / B), all [B].

    valid: 1 for cases with MRI and label.

    gate: MRI networks with a wrong prediction for a case must not correct its class.
    hard: the cross-entropy of implausible and wrong predictions, added once more; hp.hard_over chooses the divisor.
    calibration: pulls p to sg q where the gate is open, mean over all cases and classes.
    """
    logits, p = [jax.lax.stop_gradient(v) for v in logits], jax.nn.softmax(z)
    pi = soft_prior(table, logits)
    q = jax.lax.stop_gradient(calibrate(p, pi, hp.gamma))
    gate = valid
    for v, a in zip(logits, labels):
        gate = gate * (jnp.argmax(v, -1) == a)
    chosen = jnp.argmax(p, -1)
    implausible = jnp.take_along_axis(pi, chosen[:, None], -1)[:, 0] < hp.delta
    gap = (jnp.mean(jnp.square(p - q), -1) if hp.clinical_mode == 'mse' else
           jnp.sum(jax.scipy.special.xlogy(q, q) - q * jax.nn.log_softmax(z), -1))
    hard = valid * implausible * (chosen != y)
    return {'hard': Mean.of(student_loss, hard) if hp.hard_over == 'hard' else Mean.of(student_loss * hard, valid),
            'calibration': gate * gap,
            'fixed': gate * (chosen != y) * (jnp.argmax(q, -1) == y),
            'implausible': Mean.of(jnp.float32(implausible), valid)}


# Personalised distillation calibration.

def hardness(memory: dict, index: Shaped[Array, ' batch'], loss: Float[Array, ' batch'],
             mask: Shaped[Array, ' batch'], momentum: float = 0.9) -> dict:
    """{'hard' [N], 'seen' [N]} after the losses [B] of cases `index`: the loss at first, then a running mean.

    The order of a batch does not matter; a case that is in it twice counts once, with its mean loss.
    """
    loss = jax.lax.stop_gradient(loss)
    total = jnp.zeros_like(memory['hard']).at[index].add(loss * mask)
    count = jnp.zeros_like(memory['hard']).at[index].add(mask)
    now = total / jnp.maximum(count, 1)
    moved = jnp.where(memory['seen'], momentum * memory['hard'] + (1 - momentum) * now, now)
    return {'hard': jnp.where(count > 0, moved, memory['hard']), 'seen': memory['seen'] | (count > 0)}


def case_weights(memory: dict, index: Shaped[Array, ' batch'], student_loss: Float[Array, ' batch'],
                 mri_loss: Float[Array, ' batch'], defined: Shaped[Array, ' batch'],
                 hp: ConfigDict) -> Float[Array, ' batch']:
    """w [B] of cases `index`: larger for cases that are hard for the student; without gradient.

    student_loss, mri_loss [B]: cross-entropy of the student, and the mean over the MRI networks, defined where
    `defined` [B] is set.
    """
    low, high = hp.limits
    h = memory['hard'][index]
    mean = memory['hard'].sum() / jnp.maximum(memory['seen'].sum(), 1)  # unseen ones are 0
    relative = jnp.clip(2 * student_loss / (student_loss + mri_loss + 1e-8), low, high)
    relative = jnp.where(defined, relative, 1.0)
    ema = jnp.clip(h / jnp.maximum(mean, 1e-12), low, high)
    w = {'ema': ema, 'relative': relative, 'exp': jnp.clip(jnp.exp(h - mean), low, high),
         'combined': jnp.clip(0.5 * ema + 0.5 * relative, low, high)}[hp.update_mode]
    return jax.lax.stop_gradient(w)


# Optional: features of the two MRI networks should say different things (vCLUB, Cheng et al., ICML 2020 [published]).

def club(a: Float[Array, 'batch d'], b: Float[Array, 'batch e'], network: Callable[..., Any],
         valid: Shaped[Array, ' batch']) -> dict[str, Mean]:
    """a, b [B,d] -> club: mean_i [log q(b_i | a_i) - mean_j log q(b_j | a_i)]; club_fit: -log q(b_i | a_i), which
    trains q.

    q = `network` must not learn from the bound. The bound of features behind a stop-gradient is therefore subtracted:
    it has the same value, and its gradient is that of q.
    """
    stop = jax.lax.stop_gradient

    def likelihood(mu, spread, b):  # spread: log variance; up to a constant
        return -0.5 * jnp.mean(jnp.square(b - mu) / jnp.exp(spread) + spread, -1)

    def bound(a, b):
        mu, spread = network(a)
        every_b, every_valid = parallel.gather((b, valid))
        pairs = likelihood(mu[:, None], spread[:, None], every_b[None])
        return likelihood(mu, spread, b) - pairs @ (every_valid / jnp.maximum(every_valid.sum(), 1))

    value, taken = bound(a, b), bound(stop(a), stop(b))
    mu, spread = network(stop(a))
    return {'club': Mean.of(value - taken + stop(taken), valid),
            'club_fit': Mean.of(-likelihood(mu, spread, stop(b)), valid)}


class Exit(nn.Module):
    """Mean over all positions, a hidden layer, class logits."""

    outputs: int
    width: int = 256

    @nn.compact
    def __call__(self, level: Float[Array, 'batch *places c']) -> Float[Array, 'batch outputs']:
        x = level.mean(tuple(range(1, level.ndim - 1)))
        return nn.Dense(self.outputs)(nn.leaky_relu(nn.Dense(self.width)(x)))


class Gaussian(nn.Module):
    """q(b | a): mean and log variance."""

    outputs: int
    width: int = 128

    @nn.compact
    def __call__(self, a: Float[Array, 'batch d']) -> tuple[Array, Array]:
        return (nn.Dense(self.outputs)(nn.relu(nn.Dense(self.width)(a))),
                nn.tanh(nn.Dense(self.outputs)(nn.relu(nn.Dense(self.width)(a)))))


def heads(hp: ConfigDict, shapes: dict) -> dict:
    student = shapes['student']
    modules: dict[str, nn.Module] = {name: Exit(student['logits'].shape[-1]) for name, _ in exit_levels(hp)}
    for a, out in shapes.items():
        if a != 'student':
            modules |= {f'align_{a}': nn.Dense(out['pooled'].shape[-1]),
                        f'logits_{a}': nn.Dense(out['logits'].shape[-1])}
    modules['mri_class'] = nn.Dense(student['logits'].shape[-1])
    if hp.club:
        modules['club'] = Gaussian(shapes[hp.axes[1]]['pooled'].shape[-1])
    return modules


def memory(hp: ConfigDict, context: Context) -> dict:
    return {'hard': jnp.zeros(context.cases), 'seen': jnp.zeros(context.cases, bool)}


def build(hp: ConfigDict, context: Context) -> Method:
    """Raises ConfigError for an unknown mode, or a prior whose axes no network that is trained predicts."""
    for key, choices in MODES.items():
        errors.check_choice(f'cpkd.{key}', hp[key], choices)
    if not 0 <= hp.head_indice < hp.num_heads <= LEVELS:
        raise errors.ConfigError(f'cpkd: num_heads = {hp.num_heads} must be at most {LEVELS}, head_indice = '
                                 f'{hp.head_indice} below it.')
    trained = {a: network for a, network in context.networks.items() if a != 'student'}
    if trained and hp.clinical:
        missing = [a for a in hp.axes if a not in trained]
        if missing or 'prior' not in context.batch:
            raise errors.ConfigError(f'cpkd.clinical needs the networks of cpkd.axes ({", ".join(hp.axes)}) and '
                                     f'"prior" in data.transforms. Missing: {missing or "prior"}.')
    if hp.club and (len(hp.axes) != 2 or not {*hp.axes} <= {*trained}):
        raise errors.ConfigError(f'cpkd.club relates the two networks of cpkd.axes; the stage trains '
                                 f'{", ".join(trained) or "none"}.')
    every = {**trained, **context.teachers}
    tasks = {a: network.task for a, network in every.items()}
    reads = {a: steps.privileged_inputs(network, context) for a, network in every.items()}
    return steps.make_method(functools.partial(terms, tasks=tasks, reads=reads),
                             functools.partial(weights, tasks=tasks, trained=(*trained,)), hp, context,
                             heads=heads, memory=memory if hp.kd_mode == 'dynamic' and every else None,
                             provenance=PROVENANCE)


def _mean(values, valid):
    """Mean of [B] values over the networks whose inputs the case has."""
    count = sum(valid.values())
    return sum(jnp.where(valid[a] > 0, values[a], 0) for a in values) / jnp.maximum(count, 1)
