"""Six systems must fit one trainer. A minimal method of each shape runs through it, is stopped, and resumes.

The toys are honest in shape and nothing else: a few random arrays, a few steps. What must hold: each trains, each
checkpoints all of its state, and 3 + 3 steps equal 6 bit for bit.
"""
import json
import sys
import types

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import checkpoint, config, errors, evaluation, losses, networks, parallel, stages, steps, train
from jaxkd.contracts import EvaluatorPlugin, Transform
from jaxkd.data import transform
from jaxkd.data.source import Case, Source
from jaxkd.report import comparison, run_folder
from jaxkd.runtime import log
from jaxkd.state import Mean, inference_variables


def thing(name, build, **defaults):
    """Make `contract.<name>` importable, as a user's own module would be."""
    sys.modules[f'contract.{name}'] = types.SimpleNamespace(DEFAULTS=defaults, build=build)


# A source: 24 cases of 12 patients, a volume-like image, a second modality that a third of them lack, a map, a row.

class Toys(Source):
    name, note, labels, skipped = 'toys', 'random numbers', ('a', 'b'), ()
    cases = tuple(Case(f'c{i}', f'p{i // 2}') for i in range(24))

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        return {'image': rng.random((8, 8, 1), np.float32), 'mri': rng.random((8, 8, 1), np.float32),
                'row': rng.random(5, np.float32), 'map': rng.integers(0, 3, (8, 8)), 'grade': np.int32(i % 3),
                'label': np.float32([i % 2, i % 3 == 0]), 'label_weight': np.ones(2, np.float32),
                'has_mri': np.float32(i % 3 > 0)}


def present(record):
    return {**record, 'present': {'mri': record['has_mri']}}


thing('toys', lambda hp: Toys())


class Net(nn.Module):
    """Convolution, batch norm, dropout; pooled, dense and tapped outputs."""
    outputs: int
    key: str = 'image'
    fixed: bool = False
    probes: bool = False

    @nn.compact
    def __call__(self, inputs, train=False):
        train = train and not self.fixed
        x = nn.Conv(8, (3, 3), name='conv')(inputs[self.key])
        tap = nn.relu(nn.BatchNorm(use_running_average=not train, name='norm')(x))
        dense = nn.Conv(3, (1, 1), name='dense')(tap)
        pooled = nn.Dropout(0.1, deterministic=not train)(tap.mean((1, 2)))
        probe = nn.Dense(self.outputs, name='probe')(pooled) if self.probes else None
        out = {'logits': nn.Dense(self.outputs, name='head')(pooled), 'pooled': pooled, 'tap': tap, 'dense': dense}
        return out | ({'probe': probe} if self.probes else {})


class Table(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, inputs, train=False):
        x = nn.gelu(nn.Dense(8)(inputs['row']))
        return {'logits': nn.Dense(self.outputs)(x), 'pooled': x}


thing('net', lambda hp, outputs, dtype: Net(outputs, hp.key, hp.fixed, hp.probes), key='image', fixed=False,
      probes=False)
thing('table', lambda hp, outputs, dtype: Table(outputs))


# SIKD: the teacher is fed with an image made of the label, the student learns its penultimate feature.

def class_mean(inputs, classes):
    one_hot = jax.nn.one_hot(inputs['map'], classes)[..., None]
    means = (one_hot * inputs['image'][..., None, :]).sum((1, 2)) / (one_hot.sum((1, 2)) + 1e-8)
    return {'image': (one_hot * means[:, None, None]).sum(-2)}


def sikd_terms(student, teachers, heads, batch, hp):
    found = {'seg': losses.cross_entropy(student['dense'], batch['map']).mean((1, 2))}
    for teacher in teachers.values():
        found['shape'] = losses.squared_error(student['tap'], teacher['tap'])
    return found


def sikd_weights(hp, progress):
    return {'seg': 1.0, 'shape': hp.weight} if hp.weight else {'seg': 1.0}


thing('sikd', lambda hp, context: steps.make_method(sikd_terms, sikd_weights, hp, context), weight=0.0)
SIKD = dict(stages=('teacher', 'student'),
            teacher=dict(inputs=('image', 'map'), input_fn='tests.system.test_contract.class_mean',
                         model=dict(name='contract.net'),
                         method=dict(name='contract.sikd')),
            student=dict(inputs=('image',), model=dict(name='contract.net'),
                         method=dict(name='contract.sikd', weight=2.0),
                         teachers=dict(shape=dict(stage='teacher', cache='no'))))


# Specialist teachers: a teacher on a clean subset, probes on its frozen features, a student that matches probe by
# probe.

def specialist_terms(student, teachers, heads, batch, hp):
    weight = batch['label_weight'] * batch['mask'][:, None]
    found = {k: Mean.of(losses.binary_cross_entropy(student[k], batch['label']), weight) for k in hp.supervise}
    for teacher in teachers.values():
        for k in ('probe', 'logits'):
            found[f'kl_{k}'] = losses.bernoulli_kl(teacher[k], student[k], 4.0).mean(-1)
    return found


def specialist_weights(hp, progress):
    return {k: 1.0 for k in hp.supervise} | ({'kl_probe': 10.0, 'kl_logits': 10.0} if hp.match else {})


thing('specialist', lambda hp, context: steps.make_method(specialist_terms, specialist_weights, hp, context),
      supervise=('logits',), match=False)
PROBED = dict(name='contract.net', probes=True)
SPECIALIST = dict(
    stages=('teacher', 'probes', 'student'),
    teacher=dict(inputs=('image',), model=PROBED, method=dict(name='contract.specialist'), data=dict(train='clean')),
    probes=dict(inputs=('image',), model=dict(PROBED, fixed=True), init=dict(stage='teacher'), data=dict(train='clean'),
                method=dict(name='contract.specialist', supervise=('probe',)),
                optim=dict(freeze=('conv', 'norm', 'dense', 'head'))),
    student=dict(inputs=('image',), model=PROBED, teachers=dict(specialist=dict(stage='probes', cache='no')),
                 method=dict(name='contract.specialist', match=True)))


# CPKD: student and teacher trained together, one value for each training case, a schedule driven by validation.

def cpkd_memory(hp, context):
    return {'hard': jnp.zeros(context.cases), 'seen': jnp.zeros(context.cases, bool)}


def cpkd_terms(student, teachers, heads, batch, hp, memory):
    loss = losses.cross_entropy(student['dense'].mean((1, 2)), batch['grade'])
    index, now = parallel.gather((batch['index'], jax.lax.stop_gradient(loss)))  # every device keeps the whole memory
    old = jnp.where(memory['seen'][index], 0.9 * memory['hard'][index] + 0.1 * now, now)
    memory = {'hard': memory['hard'].at[index].set(old), 'seen': memory['seen'].at[index].set(True)}
    mean = memory['hard'].sum() / memory['seen'].sum()
    weight = jnp.clip(memory['hard'][batch['index']] / mean, 0.5, 2.0)
    gap = losses.kl(jax.lax.stop_gradient(teachers['texture']['pooled']), heads['align'](student['pooled']), 1.0)
    here = batch['mask'] * batch['present']['mri']  # a case without MRI has nothing to teach
    return {'main': loss, 'distill': Mean.of(weight * gap, here),
            'aux': Mean.of(losses.cross_entropy(teachers['texture']['dense'].mean((1, 2)), batch['grade']), here),
            'mean_weight': weight}, memory


def cpkd_weights(hp, progress):
    return {'main': 1.0, 'aux': 0.1, 'distill': jnp.where(progress.epoch >= hp.warmup, 1.5, 0.0)}


thing('cpkd', lambda hp, context: steps.make_method(cpkd_terms, cpkd_weights, hp, context, memory=cpkd_memory,
                                              heads=lambda hp, shapes: {'align': nn.Dense(8)}), warmup=1)
CPKD = dict(stages=('online',), online=dict(
    inputs=('image',), model=dict(name='contract.net'), method=dict(name='contract.cpkd'),
    networks=dict(texture=dict(inputs=('mri',), model=dict(name='contract.net', key='mri'))),
    optim=dict(name='adam', schedule='plateau', warmup='', patience=0), evals=dict(loss=dict(name='contract.loss')),
    select='loss/negative', eval_every='2 steps'))


class Loss:
    """An evaluator whose score never gets better, so that the plateau must react."""
    DEFAULTS = {}

    @staticmethod
    def scores(predict, role, hp):
        return {'negative': float(np.isfinite(predict(role, ('pooled',)).outputs['pooled']).all())}

    PLUGIN = EvaluatorPlugin(report=lambda predict, hp, resamples, seed: ({}, {}, {}), scores=scores)


sys.modules['contract.loss'] = Loss


# CPMN: two pathways that teach each other, dense outputs, a ramp; only one pathway is deployed.

def cpmn_terms(student, teachers, heads, batch, hp):
    ctpa = teachers['ctpa']
    unit = lambda x: x / jnp.sqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-6)  # noqa: E731
    alike = (unit(heads['own'](student['tap'])) * unit(heads['other'](ctpa['tap']))).sum(-1).mean((1, 2))
    has = batch['mask'] * batch['present']['mri']
    return {'seg_n': losses.cross_entropy(student['dense'], batch['map']).mean((1, 2)),
            'seg_c': Mean.of(losses.cross_entropy(ctpa['dense'], batch['map']).mean((1, 2)), has),
            'ifa': Mean.of(1 - alike, has)}


def cpmn_weights(hp, progress):
    return {'seg_n': 1.0, 'seg_c': 1.0, 'ifa': 0.1 * jnp.minimum(1.0, progress.fraction / 0.1)}


thing('cpmn', lambda hp, context: steps.make_method(cpmn_terms, cpmn_weights, hp, context, heads=lambda hp, shapes: {
    'own': nn.Dense(4), 'other': nn.Dense(4)}))
CPMN = dict(stages=('pair',), pair=dict(
    inputs=('image',), model=dict(name='contract.net'), method=dict(name='contract.cpmn'),
    networks=dict(ctpa=dict(inputs=('mri',), model=dict(name='contract.net', key='mri'))), optim=dict(ema=0.9)))

# MMPKD, mammography: a tabular teacher, cached; the real method, with its representation term.
TABULAR = dict(stages=('teacher', 'student'),
               teacher=dict(inputs=('row',), model=dict(name='contract.table')),
               student=dict(inputs=('image',), model=dict(name='contract.net'),
                            teachers=dict(table=dict(stage='teacher')),
                            method=dict(name='mmpkd', gamma=0.1)))

# Losses named by a config, among them one with a memory of all cases, from a teacher that a third of the cases lack.
NAMED = dict(stages=('teacher', 'student'),
             teacher=dict(inputs=('mri',), model=dict(name='contract.net', key='mri')),
             student=dict(inputs=('image',), model=dict(name='contract.net'),
                          teachers=dict(mri=dict(stage='teacher', cache='no')),
                          method=dict(name='distil', losses=dict(
                              kd_bce=dict(schedule='linear 50%'), hint=dict(student='tap', weight=1.0), rkd={},
                              crd=dict(width=4, negatives=3)))))

SYSTEMS = dict(sikd=SIKD, specialist=SPECIALIST, cpkd=CPKD, cpmn=CPMN, tabular=TABULAR, named=NAMED)


class Present:
    DEFAULTS = {}

    @staticmethod
    def build(hp):
        return Transform(present)


sys.modules['contract.present'] = Present


def resolved(system, split, **changes):
    """A run of six steps of a batch of eight per stage; changes apply to every stage."""
    system = {k: dict(v) if isinstance(v, dict) else v for k, v in system.items()}
    data = dict(source=dict(name='contract.toys'), transforms=('contract.present',), split=dict(file=str(split)))
    for name in system['stages']:
        system[name] = dict(length='6 steps', eval_every='3 steps', log_every='2 steps',
                            batch=8) | system[name] | changes
    return config.resolve(ConfigDict(dict(system, data=data, tensorboard=False)))


@pytest.fixture
def split(tmp_path):
    """Six patients to train with, of whom three are the clean subset; written as a user would write it."""
    parts = ['clean'] * 3 + ['train'] * 4 + ['val'] * 3 + ['test'] * 2
    split = {c.id: parts[int(c.patient[1:])] for c in Toys.cases}
    (tmp_path / 'split.json').write_text(json.dumps({'split': split}))
    return tmp_path / 'split.json'


def run(conf, workdir):
    """All stages through the real trainer -> {stage: final state}."""
    out = {}
    for name in conf.stages:
        out[name] = train.train(stages.build(conf, name, workdir), workdir, tensorboard=False)[0]
    return out


@pytest.mark.parametrize('system', SYSTEMS)
def test_every_system_trains_and_resumes_bit_for_bit(system, split, tmp_path, monkeypatch):
    conf = resolved(SYSTEMS[system], split)
    whole = run(conf, tmp_path / 'whole')

    monkeypatch.setattr(checkpoint.Checkpointer, 'preempted', lambda self, step: step == 3 and stops.pop())
    halves, stops = {}, None
    for name in conf.stages:
        stops = [False, True]
        with pytest.raises(errors.Interrupted):
            train.train(stages.build(conf, name, tmp_path / 'halves'), tmp_path / 'halves', tensorboard=False)
        stops = [False, False]
        halves[name] = train.train(stages.build(conf, name, tmp_path / 'halves'), tmp_path / 'halves',
                                   tensorboard=False)[0]
    chex.assert_trees_all_equal(whole, halves)
    for name, state in whole.items():
        assert int(state.step) == 6
        chex.assert_tree_all_finite(state.params)
        saved, _ = checkpoint.load_student(tmp_path / 'whole' / 'checkpoints' / name, None, 'last')
        chex.assert_trees_all_equal(saved, inference_variables(state))  # the student alone: no partner, no head
    last = whole[conf.stages[-1]]
    if system == 'cpkd':
        assert float(last.plateau['factor']) < 1, 'validation drives the rate'
        assert last.memory['seen'].sum() == 8 and (last.memory['hard'] > 0).sum() == 8
    if system == 'named':  # the memory of crd is part of the state that both runs end with
        assert last.memory['crd']['seen'].sum() and int(last.memory['crd']['draws']) == 6
        assert sorted(last.params['heads']) == ['crd_student', 'crd_teacher', 'hint_regressor']
        for name in ('whole', 'halves'):  # weights that change are logged: means of 0, 1/3, 2/3, 1, 1, 1
            lines = [line for line in log.read(tmp_path / name) if 'kd_bce' in line]
            assert [line['weight_of_kd_bce'] for line in lines] == pytest.approx([1 / 6, 5 / 6, 1])
            assert not any('weight_of_hint' in line for line in lines), 'one that stays does not'
    if system in ('cpkd', 'cpmn'):
        assert set(last.params) - {'heads'} == {'student', *conf[conf.stages[-1]].networks}


@pytest.mark.parametrize('weight, taught', [(2.0, True), (0.0, False)])
def test_a_teacher_without_weight_is_no_teacher_whatever_the_terms_are_called(split, tmp_path, weight, taught):
    system = SIKD | dict(student=SIKD['student'] | dict(method=dict(name='contract.sikd', weight=weight)))
    conf = resolved(system, split)
    run(conf, tmp_path)
    facts = evaluation.loss_facts(stages.build(conf, 'student', tmp_path))
    summary = dict(stages={'student': dict(finished=True, inputs=['image'], **facts)})
    found = run_folder.Run(tmp_path, conf.to_dict(), json.loads(json.dumps(summary)), [])
    assert comparison.kind(found, 'student') == ('privileged' if taught else 'no_teacher')
    assert (facts['teacher_terms'] == ['shape'] and facts['uses_teacher'] == taught
            and facts['term_weights']['seg'] == 1.0)
    assert facts['other_networks'] == {'shape': dict(frozen=True, inputs=['image', 'map'], privileged=['map'])}


@pytest.mark.parametrize('shape', [(), (2, 2)])
def test_a_term_of_another_shape_is_refused_by_name(shape):
    recipe = steps.Recipe(ConfigDict(dict(name='mine')), None, None, None, {}, None, None)
    with pytest.raises(errors.ConfigError) as refused:
        recipe.mean('ce', jnp.zeros(shape), jnp.ones(2))
    assert str(refused.value) == (f'Method mine: term "ce" has shape {shape}; it must be [B] or '
                                  'Mean.of(value, weight).')
    assert recipe.mean('ce', jnp.ones(2), jnp.ones(2)).value == 1


@pytest.mark.parametrize('outputs, kind', [(lambda x: x, 'an array'), (lambda x: (x, x), 'a tuple'),
                                           (lambda x: {'pooled': x}, 'only pooled')])
@pytest.mark.parametrize('training', [False, True])
def test_a_model_without_logits_is_refused_by_name(outputs, kind, training):
    class Mine(nn.Module):
        @nn.compact
        def __call__(self, inputs, train=False):
            return outputs(nn.Dense(2)(inputs['image']))
    network, batch = networks.Network(Mine(), ('image',)), {'image': jnp.zeros((1, 3))}
    variables = network.init(jax.random.key(0), batch)
    with pytest.raises(errors.ConfigError) as refused:
        jax.eval_shape(lambda v: network.apply(v, batch, train=training, key=jax.random.key(0))[0], variables)
    assert str(refused.value) == f'Model Mine returns {kind}; it must return a dict with "logits".'


@pytest.mark.parametrize('key, classes, message', [
    ('imgae', 2, r'Model Net fails with KeyError "imgae". Its inputs are image. Did you mean "image"\? Correct the'),
    ('present', 2, r'KeyError "present".*only where cases may lack an input: use inputs.get\("present"\)'),
    ('image', 3, r'Model Net gives logits \[1, 2\] for 3 labels or classes. Its last axis must be the `outputs`')])
def test_a_model_of_other_inputs_or_outputs_is_refused(key, classes, message):
    batch = {'image': jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)}
    with pytest.raises(errors.ConfigError, match=message):
        networks.Network(Net(2, key), ('image',), outputs=classes).output_shapes(batch)


def test_a_model_may_ask_for_what_is_not_there_and_map_over_its_inputs():
    class Mine(nn.Module):
        @nn.compact
        def __call__(self, inputs, train=False):
            try:
                inputs['mask']
            except KeyError:
                inputs = jax.tree.map(lambda a, scale: a * scale, inputs, {'image': 2.0})
            return {'logits': nn.Dense(2)(inputs['image'])}
    batch = {'image': jax.ShapeDtypeStruct((4, 3), jnp.float32)}
    assert networks.Network(Mine(), ('image',)).output_shapes(batch)['logits'].shape == (4, 2)


def test_flags_of_presence_are_no_input():
    hp = config.load('configs/cpmn_pe.py:smoke').nct
    with hp.unlocked():
        hp.inputs = ('nct', 'present')
    with pytest.raises(errors.ConfigError, match='nct.inputs: "present" is no input'):
        networks.build(hp, 'float32', 2, {'nct': None, 'present': None}, None, 'nct')


def test_what_a_transform_looks_up_in_vain_is_not_told():
    def fails(record):
        return {'F': 1}[record['table']]
    with pytest.raises(errors.ConfigError) as refused:
        transform._call('mine', False, fails, {'table': 'Miller'})
    assert 'The transform mine fails with KeyError in ' in str(refused.value) and 'Miller' not in str(refused.value)
    assert "return {'F': 1}[record['table']]" in str(refused.value)


def test_weights_of_another_shape_are_refused_with_the_line_that_weighs():
    with pytest.raises(errors.ConfigError, match=r'Mean.of in .*test_contract.py, line \d+: its values have the shape '
                                                 r'\[2, 3\], its weights \[2\]'):
        Mean.of(jnp.ones((2, 3)), jnp.ones(2))
    assert Mean.of(jnp.ones((2, 3)), jnp.ones((2, 1))).weight == 6
