"""Specialist teachers: intermediate-layer distillation against shortcut learning.

Boland, Tsaftaris, Dahdouh: Preventing Shortcut Learning in Medical Image Analysis through Intermediate Layer Knowledge
Distillation from Specialist Teachers. MELBA 2025:020, arXiv 2511.17421; and Boland et al., FAIMI at MICCAI 2024.

A specialist was trained on a small set without the bias; a student learns from a large set with it. Its targets are not
the labels alone, which the shortcut predicts too, but also outputs of the specialist at several depths. The privileged
information is the clean data of the teacher, not a modality; bias labels are not needed.

    stage 1  teacher on the clean set      CE(z_T, y)                            methods/supervised.py
    stage 2  probes on the frozen teacher  sum_l CE(g_l(sg F_l), y)              methods/probe.py, models/probed.py
    stage 3  student on the biased set     L = ce L_CE + inter L_int + final L_fin
             L_int = T^2 mean_i sum_l w_l KL( softmax(a_T,l,i / T) || softmax(a_S,l,i / T) )     a_l = g_l(F_l) [B,K]
             L_fin = T^2 mean_i           KL( softmax(z_T,i / T)   || softmax(z_S,i / T) )
The KL is of each image, then a mean: permuting a batch permutes it. The student's probes learn from L_int alone, and
its gradient flows on into the network up to their tap. The teacher is frozen, runs as in evaluation and sees the same
view.

taps      'block1', or 'block1:layer2' for the student's and the teacher's where networks differ; never guessed
weights   w_l, sum 1: uniform; early (L, L-1, ..., 1) and late, linear in depth; single, of the tap that `single` names
Student probes that stay those of the teacher (equal width): init=dict(stage='probes', only=('^probe_',)) and
optim.freeze=('student/probe_',). inter=0 is plain distillation, final=0 probes alone, both 0 ERM, all on the same path.
"""
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors, losses, steps
from jaxkd.contracts import Method
from jaxkd.data.dataset import Dataset
from jaxkd.metrics import shortcut
from jaxkd.state import Context, Mean, Progress, labelled_mask, valid_mask

PROVENANCE = (
    'Published (abstract): a teacher fine-tuned on a small subset without the bias guides a student trained on biased '
    'data, in intermediate layers. From summaries: sample-level KL over several probes and a term of the final layer. '
    'Our choice: every formula, linear probes on pooled features, the taps, T, the weights of the terms and of the '
    'taps. The articles\' equations were not accessible: no number made with this file is a reproduction.')
DEFAULTS = dict(
    taps=('block1', 'block2', 'block3'),  # probed outputs, shallow to deep; 'block1:layer2': the teacher's other name
    ce=1.0,  # weight of L_CE, the labels
    inter=10.0,  # weight of L_int, the probes; 0: none
    final=10.0,  # weight of L_fin, the last output; 0: none
    temperature=4.0,  # T, the divisor of the logits in L_int and L_fin: 0.1 to 100
    weights='uniform',  # of the taps: uniform, early or late (these count more), or single (one alone)
    single='',  # weights='single': the student's name of the tap that counts
    weight='',  # of the cases in L_CE: a key of the batch, such as 'class_weight'; '': all weigh 1
)
WEIGHTS = ('uniform', 'early', 'late', 'single')


def terms(student: dict, teachers: dict, heads: dict, batch: dict, hp: ConfigDict, reads: Sequence[str] = ()) -> dict:
    """student, teacher: logits [B,K] and probe_<tap> [B,K]; batch: label int [B]. Bias labels are not read."""
    teacher, = teachers.values()
    weight = labelled_mask(batch) * batch[hp.weight] if hp.weight else labelled_mask(batch)
    values = {'ce': Mean.of(losses.cross_entropy(student['logits'], batch['label']), weight)}
    valid = valid_mask(batch, reads)
    if hp.inter:
        gap: Any = sum(w * losses.kl(teacher[f'probe_{t}'], student[f'probe_{s}'], hp.temperature)
                       for (s, t), w in zip(pairs(hp), depth_weights(hp)))
        values['inter'] = Mean.of(gap, valid)
    if hp.final:
        values['final'] = Mean.of(losses.kl(teacher['logits'], student['logits'], hp.temperature), valid)
    return values


def weights(hp: ConfigDict, progress: Progress) -> dict:
    return {'ce': hp.ce} | {k: hp[k] for k in ('inter', 'final') if hp[k]}


def pairs(hp: ConfigDict) -> list[tuple[str, str]]:
    """[(the student's tap, the teacher's)], by depth as the config lists them."""
    return [(tap.partition(':')[0], tap.partition(':')[2] or tap) for tap in hp.taps]


def depth_weights(hp: ConfigDict) -> list[float]:
    """w_l of the taps, sum 1."""
    count = len(hp.taps)
    w = {'uniform': np.ones(count), 'early': np.arange(count, 0, -1.0), 'late': np.arange(1.0, count + 1),
         'single': np.array([float(s == hp.single) for s, _ in pairs(hp)])}[hp.weights]
    return (w / w.sum()).tolist()


def diagnose(dataset: Dataset, teacher_outputs: Callable[..., dict], teacher: str, hp: ConfigDict) -> tuple[dict, str]:
    """The shortcut floor of each tap and of the final output, before training -> {name: {'T=1': nats, ...}}, a line.

    The value of L_int and L_fin (at their temperatures, without T^2) for a student that reads the shortcut alone; see
    metrics/shortcut.py. It is logged, never used: b is available in experiments only.
    """
    plan, rows = dataset.transforms.assignments.get('shortcut'), np.array(dataset.partition.train_indices())
    if plan is None:
        return {}, ''
    names = {f'probe_{t}': f'probe {t}' for _, t in pairs(hp)} | {'logits': 'final'}
    outputs, temperatures = teacher_outputs(teacher, tuple(names), rows), dict.fromkeys((1.0, hp.temperature))
    floors = {name: {f'T={t:g}': shortcut.floor(outputs[k], plan.marked[rows], t) for t in temperatures}
              for k, name in names.items()}
    text = '; '.join(f'{name} ' + ', '.join(f'{v:.2g} ({t})' for t, v in values.items())
                     for name, values in floors.items())
    advice = ('' if max(v['T=1'] for v in floors.values()) >= 1e-3 else
              ' All are below 1e-3: these outputs hold hardly more than the label. Raise the temperature or take '
              'earlier taps.')
    return floors, f'shortcut floor in nats, what a reader of the shortcut alone cannot undercut: {text}.{advice}'


def build(hp: ConfigDict, context: Context) -> Method:
    """Raises ConfigError unless there is one teacher, for taps that either lacks, and for values out of bounds."""
    teacher, reads = steps.only_teacher(hp, context, 'Give the stage one in `teachers`: the one with the probes.')
    errors.check_choice('specialist.weights', hp.weights, WEIGHTS)
    if min(hp.ce, hp.inter, hp.final) < 0 or not 0.1 <= hp.temperature <= 100:
        raise errors.ConfigError(f'specialist: ce = {hp.ce}, inter = {hp.inter}, final = {hp.final} must not be '
                                 f'negative, temperature = {hp.temperature} must lie in 0.1..100.')
    if hp.inter and (not hp.taps or hp.weights == 'single' and hp.single not in [s for s, _ in pairs(hp)]):
        raise errors.ConfigError(f'specialist: inter = {hp.inter} needs taps, and of weights="single" the name of one '
                                 f'of them in `single` (it is "{hp.single}").')
    if hp.weight and hp.weight not in context.batch:
        raise errors.ConfigError(f'specialist.weight = "{hp.weight}" is not in a batch. Put the transform '
                                 f'"{hp.weight}" into data.transforms, or leave it empty.')
    shapes = steps.output_shapes(context)
    taps = [('student', s) for s, _ in pairs(hp)] + [(teacher, t) for _, t in pairs(hp)]
    for network, tap in taps if hp.inter else ():
        if f'probe_{tap}' not in shapes[network]:
            raise errors.ConfigError(f'specialist.taps: the network of {network} has no probe at "{tap}". List it in '
                                     'model.taps of a model "probed"; where the teacher is cached, its outputs must '
                                     f'name it, too: teachers.{teacher}.outputs.'
                                     f'{errors.nearest(f"probe_{tap}", shapes[network])}')
    # with privileged inputs, cases may lack them
    floors = None if reads else functools.partial(diagnose, teacher=teacher, hp=hp)
    return steps.make_method(functools.partial(terms, reads=reads), weights, hp, context, provenance=PROVENANCE,
                             diagnose=floors)
