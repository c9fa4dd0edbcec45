"""Distillation by any losses between any outputs: a config names taps, losses and weights.

    L = supervised L_sup + sum_n weight_n schedule_n(t) loss_n(tap of the student, tap of a teacher)

    method=dict(name='distil', supervised=0.1, losses=dict(
        kd=dict(weight=0.9, temperature=4.0),                          # logits, from the only teacher
        at=dict(student='block2', weight=1000.0),                      # the tap of the same name
        hint=dict(student='pooled', teacher='report/pooled', schedule='linear 5%')))

The losses are the files of jaxkd/distillation, or modules of one's own (name='my_package.my_loss'); `jaxkd options
NAME` explains each. A tap is an output of a network; 'report/pooled' names the network, too. Several taps,
'block1,block2', are a term each, or all of one loss where it fuses levels. Teachers are frozen (`<stage>.teachers`) or
trained along (`<stage>.networks`).

L_sup is that of the labels: binary cross-entropy of labels that may be present together, cross-entropy of classes
(methods/supervised.py), cross-entropy and Dice of segmentations with deep supervision (methods/segmentation.py).
Networks that are trained along learn their own labels likewise. They may learn from the student, which is deep mutual
learning (Zhang et al., CVPR 2018 [published]): each learns from what the other says, behind a stop-gradient.

    losses=dict(kd=dict(teacher='peer/logits', weight=1.0, temperature=1.0),
                back=dict(name='kd', student='peer/logits', teacher='student/logits', weight=1.0, temperature=1.0))

A case that lacks all privileged inputs of a teacher (all inputs, if the student reads them too) has no term of it; a
case without a label has no term of the labels, and none of a teacher or a loss that reads the label. A term is the mean
over its cases of all devices; a loss that relates cases sees those of all devices, and with microbatches
(optim.accumulate) those of one. Without `losses` this is the arm without a teacher, with the same code.
"""
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, losses, parallel, steps
from jaxkd.config import plugins
from jaxkd.contracts import Cases, Loss, Method, MethodPlugin, Sides
from jaxkd.methods import segmentation
from jaxkd.methods import supervised as labels
from jaxkd.runtime import log
from jaxkd.state import Context, Mean, Progress, label_kind, valid_mask
from jaxkd.training import modalities, schedules

DEFAULTS = dict(
    supervised=1.0,  # weight of the loss of the labels; 0: the teacher alone
    schedule='',  # of this weight, such as 'linear 5%', see jaxkd/training/schedules.py; '': constant
    smoothing=0.0,  # of labels of a case, as in methods/supervised.py: 0 (none) to below 1
    drop='',  # modality dropout of the student's inputs: subset or count, see jaxkd/training/modalities.py; '': none
    case_weight='',  # a key of the batch that weighs the cases of classes, such as 'class_weight'; '': all weigh 1
    **segmentation.SUPERVISED,
    losses={},  # name -> options of a file of jaxkd/distillation (`name` if it is called otherwise), taps and weight
)
PROVENANCE = ('Published: the losses of the named articles, each in the form that its file in jaxkd/distillation '
              'gives, where what is our choice is marked. Our choice: their combination, and that cases without '
              'privileged input have no term of a teacher.')


@dataclasses.dataclass(frozen=True)
class Term:
    """A loss between taps: [(network, output)] of the side that learns and of the one that teaches."""

    name: str
    loss: Loss
    student: tuple[tuple[str, str], ...]
    teacher: tuple[tuple[str, str], ...]
    levels: bool  # the loss gets all its taps at once
    reads: tuple[tuple[str, ...], ...]  # inputs of each network that the student does not read; all, if it reads all
    task: str  # key of the labels
    weight: float
    schedule: str

    def value(self, outputs: Mapping[str, Mapping[str, Array]], heads: Mapping[str, Any], batch: Mapping[str, Any],
              memory: Any) -> tuple[Mean, Any]:
        """(the term, its memory afterwards)."""
        valid = functools.reduce(jnp.minimum, [valid_mask(batch, keys) for keys in self.reads])
        if any('label' in keys for keys in self.reads):  # such a teacher says nothing of a case without a label
            valid = valid * labelled(batch)
        sides = [tuple(outputs[network][output] for network, output in side) for side in (self.student, self.teacher)]
        counted, label, index = valid, batch[self.task], batch['index']
        kept, weight = batch.get('kept'), batch.get('label_weight')
        if self.loss.pairwise:
            sides, counted, label, index, kept, weight = parallel.gather((sides, valid, label, index, kept, weight))
            sides = jax.tree.map(lambda x: jnp.where(losses.beside(counted, x) > 0, x, 0), sides)
        own = {head: heads[f'{self.name}_{head}'] for head in self.loss.heads}
        cases = Cases(label, counted, index, own, memory, kept, weight)
        value = self.loss.values(*(sides if self.levels else [side[0] for side in sides]), cases)
        if self.loss.memory:
            value, memory = value
        if self.loss.pairwise:  # each device weighs the loss of the global batch by its fraction of the cases
            value = jnp.broadcast_to(value, valid.shape)
        return value if isinstance(value, Mean) else Mean.of(value, valid), memory


def terms(student: dict, teachers: dict, heads: dict, batch: dict, hp: ConfigDict, memory: dict | None = None,
          used: Sequence[Term] = (), trained: Mapping[str, Any] | None = None) -> Any:
    """The terms of the labels of all trained networks, then those of `used`; with a memory (these, the new memory)."""
    outputs = {'student': student, **teachers}
    values: dict[str, Any] = {}
    for n, network in (trained or {}).items():
        prefix = '' if n == 'student' else f'{n}_'
        values |= {f'{prefix}{k}': v for k, v in supervised_terms(outputs[n], batch, network, hp).items()}
    remembered = dict(memory or {})
    for term in used:
        values[term.name], new = term.value(outputs, heads, batch, remembered.get(term.name))
        remembered |= {term.name: new} if term.loss.memory else {}
    return values if memory is None else (values, remembered)


def supervised_terms(outputs: Mapping[str, Array], batch: dict, network: Any, hp: ConfigDict) -> dict[str, Mean]:
    """The terms of a network's own labels. A class below 0 is none."""
    label = batch[network.task]
    if label_kind(label) == 'voxels':
        return segmentation.supervised_terms(outputs, label, valid_mask(batch, network.inputs), hp)
    batch = {**batch, 'label': label}
    options = ConfigDict(dict(kind=label_kind(label), smoothing=hp.smoothing, confidence=0.0, focal=0.0,
                              weight=hp.case_weight))
    return labels.terms(dict(outputs), {}, {}, batch, options, network.inputs)


def labelled(batch: Mapping[str, Any]) -> Shaped[Array, ' batch']:
    """1 for a case of which `label` says anything, see `state.label_kind`. [B]."""
    label = batch['label']
    if label_kind(label) == 'voxels':
        return segmentation.labelled_cases(label)
    return jnp.any(batch['label_weight'] > 0, 1) if label_kind(label) == 'multilabel' else label >= 0


def weights(hp: ConfigDict, progress: Progress, used: Sequence[Term] = (), sup: Mapping[str, float] | None = None,
            batch: int = 1) -> dict:
    """{term: weight}; sup: {term of the labels: its share of `supervised`}."""
    factor = schedules.factor(hp.schedule, progress, batch)
    return ({name: hp.supervised * share * factor for name, share in (sup or {'sup': 1.0}).items()} |
            {term.name: term.weight * schedules.factor(term.schedule, progress, batch) for term in used})


def build(hp: ConfigDict, context: Context) -> Method:
    """Raises ConfigError for taps and networks that do not exist, losses that do not fit them, and weights out of
    bounds.
    """
    key = f'{context.stage}.method'
    schedules.check(f'{key}.schedule', hp.schedule)
    errors.check_range(f'{key}.supervised', hp.supervised, '[0, inf)')
    errors.check_range(f'{key}.smoothing', hp.smoothing, '[0, 1)')
    shapes = steps.named_outputs(context, hp, steps.output_shapes(context))
    sup: dict[str, float] = {}
    for n, network in context.networks.items():
        prefix = '' if n == 'student' else f'{n}_'
        sup |= {f'{prefix}{k}': share for k, share in _label_terms(hp, network, context, shapes[n]).items()}
    used = [term for name, options in hp.losses.items()
            for term in _terms_of(name, options, hp, context, shapes, f'{key}.losses.{name}')]
    names = [*sup, *(term.name for term in used), 'loss', 'grad_norm', 'lr', 'skipped']
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise errors.ConfigError(f'{key}.losses: two terms are called "{twice}". Give one of them another name, with '
                                 '`name` for its file.')
    _say_what_is_compared(used, context)
    batch = context.batch['mask'].shape[0]
    bound_terms = functools.partial(terms, used=used, trained=context.networks)
    modules = {f'{term.name}_{head}': module for term in used for head, module in term.loss.heads.items()}
    memory = {term.name: term.loss.memory for term in used if term.loss.memory}
    return steps.make_method(
        bound_terms, functools.partial(weights, used=used, sup=sup, batch=batch), hp, context,
        heads=lambda hp, shapes: modules, provenance=PROVENANCE,
        memory=(lambda hp, context: {name: start() for name, start in memory.items()}) if memory else None,
        drop=_drop(hp, context, f'{key}.drop') if hp.drop else None, plain=not (used or hp.smoothing))


def _drop(hp: ConfigDict, context: Context, key: str) -> Callable[..., tuple[dict, dict]]:
    """(batch, key, hp) -> (the batch with what was kept, `kept` [B,M]; the batch that the student sees)."""
    errors.check_choice(key, hp.drop, modalities.LAWS)
    network = context.networks['student']
    modalities.check(key, network, context.batch)

    def drop(batch, key, hp):
        seen = modalities.drop(batch, network.inputs, key, hp.drop)
        return {**batch, 'kept': jnp.stack([seen['present'][name] for name in network.inputs], 1)}, seen
    return drop


def _label_terms(hp: ConfigDict, network: Any, context: Context, shapes: Mapping[str, Any]) -> dict[str, float]:
    """{term of the labels of a network: its share of `supervised`}. ConfigError where they do not fit."""
    label = context.batch[network.task]
    if label_kind(label) == 'voxels':
        segmentation.check_dense(hp, hp.name, network, context.batch, shapes)
        return segmentation.supervised_weights(hp, segmentation.levels(shapes))
    if hp.case_weight and (hp.case_weight not in context.batch or label_kind(label) != 'classes'):
        raise errors.ConfigError(f'{hp.name}.case_weight = "{hp.case_weight}" weighs cases of classes by '
                                 f'batch["{hp.case_weight}"], which transforms must provide, such as "class_weight".')
    return {'sup': 1.0}


def _terms_of(name: str, options: ConfigDict, hp: ConfigDict, context: Context, shapes: Mapping[str, Any],
              key: str) -> list[Term]:
    """The terms of an entry of `losses`: one, or one for each pair of taps."""
    schedules.check(f'{key}.schedule', options.schedule)
    errors.check_range(f'{key}.weight', options.weight, '[0, inf)')
    frozen = [*context.teachers]
    others = [*frozen, *(n for n in context.networks if n != 'student')]
    if not options.teacher.count('/') and len(others) != 1:
        raise errors.ConfigError(f'{key} learns from one teacher, this stage has {", ".join(others) or "none"}. '
                                 + (f'Name it, as in {key}.teacher={others[0]}/{options.student}.' if others else
                                    f'Give it one in {context.stage}.teachers, or leave the loss out.'))
    learning = _taps(options.student, 'student', f'{key}.student')
    named = options.teacher or ','.join(tap for _, tap in learning)
    teaching = _taps(named, others[0] if others else '', f'{key}.teacher')
    if taught := next((n for n, _ in learning if n in frozen), None):
        raise errors.ConfigError(f'{key}.student names "{taught}", which is frozen and cannot learn.')
    levels = plugins.contract('distillation', options.name).levels
    if not levels and len(learning) != len(teaching):
        raise errors.ConfigError(f'{key}: {len(learning)} taps of the student and {len(teaching)} of the teacher. Name '
                                 'one for each.')
    pairs = [(learning, teaching)] if levels else [((a,), (b,)) for a, b in zip(learning, teaching)]
    return [_term(name if len(pairs) == 1 else f'{name}_{a[0][1]}', options, hp, context, shapes, key, a, b, levels)
            for a, b in pairs]


def _term(name: str, options: ConfigDict, hp: ConfigDict, context: Context, shapes: Mapping[str, Any], key: str,
          learning: tuple[tuple[str, str], ...], teaching: tuple[tuple[str, str], ...], levels: bool) -> Term:
    sides = [tuple(shapes[network][output] for network, output in side) for side in (learning, teaching)]
    learner, batch = context.networks[learning[0][0]], context.batch
    label = jax.ShapeDtypeStruct((1, *batch[learner.task].shape[1:]), batch[learner.task].dtype)
    student, teacher = sides if levels else [side[0] for side in sides]
    loss = plugins.load('distillation', options.name).build(options, Sides(
        student, teacher, label, shapes[learning[0][0]]['logits'].shape[-1], context.cases,
        round(context.epoch * batch['mask'].shape[0]), context.epoch * context.accumulate,
        len(context.networks['student'].inputs) if hp.drop else 0, context.seed, key))
    if not isinstance(loss, Loss):
        raise errors.ConfigError(f'{key}: build of "{options.name}" returns a {type(loss).__name__}; it must be a '
                                 'jaxkd.contracts.Loss.')
    networks = {**context.networks, **context.teachers}
    reads = tuple(() if n == 'student' else steps.privileged_inputs(networks[n], context) or networks[n].inputs
                  for n in dict.fromkeys(n for n, _ in (*learning, *teaching)))
    return Term(name, loss, learning, teaching, levels, reads, learner.task, options.weight, options.schedule)


def _taps(text: str, network: str, key: str) -> tuple[tuple[str, str], ...]:
    """'block1,report/pooled' -> [(network, output)], with `network` where none is named."""
    found = []
    for tap in text.replace(' ', '').split(','):
        named, slash, output = tap.rpartition('/')
        if not output or slash and not named:
            raise errors.ConfigError(f'{key} = "{text}" names no outputs. Write "logits", "block1,block2" or '
                                     '"report/pooled".')
        found.append((named or network, output))
    return tuple(found)


def _say_what_is_compared(used: Sequence[Term], context: Context) -> None:
    related = [term.name for term in used if term.loss.pairwise]
    if related and context.accumulate > 1:
        cases = context.batch['mask'].shape[0]
        few = cases // context.accumulate
        log.info(f'{context.stage}: {", ".join(related)} relate the cases of one microbatch, {few} of the {cases} of a '
                 'step. With optim.accumulate=1 they relate all.')


PLUGIN = MethodPlugin(parts={'losses': 'distillation'})
