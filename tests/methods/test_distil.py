"""The generic method: what a config names is what is learned."""
import os
import pathlib
import subprocess
import sys
import types

import flax.linen as nn
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import config, errors, optim, stages
from jaxkd.contracts import Loss
from jaxkd.methods import distil
from jaxkd.networks import Network
from jaxkd.state import Context, Progress
from tests.fixtures import distillation

ZS, ZT = np.float32([[2, .5, -1], [0, 1, .5]]), np.float32([[3, 0, -2], [-.5, 2, 0]])
BATCH = dict(label=np.int32([0, 1]), mask=np.ones(2, np.float32), index=np.int32([3, 5]))
IMAGE = types.SimpleNamespace(inputs=('image',), task='label')


def resolved(losses=None, **changes):
    """A run whose student sees an image and learns of a network of the MRI, which a third of the cases lack."""
    from tests.system import test_contract  # noqa: F401 - makes the contract's toys importable
    net = dict(name='contract.net')
    common = dict(length='4 steps', eval_every='2 steps', log_every='2 steps', batch=8)
    student = dict(common, inputs=('image',), model=net, teachers=dict(mri=dict(stage='teacher', cache='no')),
                   method=dict(name='distil', losses=losses or {}))
    return config.resolve(ConfigDict(dict(
        stages=('teacher', 'student'), tensorboard=False,
        data=dict(source=dict(name='contract.toys'), transforms=('contract.present',)),
        teacher=dict(common, inputs=('mri',), model=dict(net, key='mri')), student=student | changes)))


def built(losses=None, **changes):
    return stages.build(resolved(losses, **changes), 'student', pathlib.Path('nowhere'), dry=True)


def term(student='student/logits', teacher='t/logits', reads=(), called='kd', **options):
    """The term of `kd` on logits of three classes."""
    side = lambda text: (tuple(text.split('/')),)  # noqa: E731
    return distil.Term(called, distillation.built('kd', **options), side(student), side(teacher), False, (reads,),
                       'label', 1.0, '')


def values(used, others, batch=BATCH, student=ZS):
    """{term: its mean} of students' logits and those of other networks by name."""
    hp = ConfigDict(distil.DEFAULTS | dict(name='distil'))

    @jax.jit
    def run(student, others):
        others = {n: {'logits': z} for n, z in others.items()}
        found = distil.terms({'logits': student}, others, {}, batch, hp, used=used, trained={'student': IMAGE})
        return {name: mean.value for name, mean in found.items()}
    return run(student, others)


def test_kd_is_a_configuration():
    found = values([term(temperature=4.0)], {'t': ZT})
    assert [float(found[n]) for n in ('sup', 'kd')] == pytest.approx([.460790, .323024], rel=1e-5)
    hp = ConfigDict(distil.DEFAULTS | dict(supervised=0.1))
    used = [distil.Term('kd', Loss(lambda *x: 0), (), (), False, (), 'label', 0.9, '')]
    assert distil.weights(hp, Progress(0, 0, 0), used) == {'sup': 0.1, 'kd': 0.9}  # 0.336801 in all


def test_two_networks_teach_each_other_and_none_learns_what_the_other_should():
    """Deep mutual learning: L_1 = CE + KL(p_2 || p_1) = 0.620058, L_2 = 0.331649; peers are behind a stop-gradient."""
    used = [term(teacher='peer/logits', temperature=1.0),
            term('peer/logits', 'student/logits', called='back', temperature=1.0)]
    hp = ConfigDict(distil.DEFAULTS | dict(name='distil'))

    @jax.jit
    def run(z1, z2):
        def loss(z1, z2):
            found = distil.terms({'logits': z1}, {'peer': {'logits': z2}}, {}, BATCH, hp, used=used,
                                 trained={'student': IMAGE, 'peer': IMAGE})
            return found['kd'].value + found['back'].value, {n: m.value for n, m in found.items()}
        (_, parts), gradient = jax.value_and_grad(loss, has_aux=True)(z1, z2)
        return parts, gradient
    parts, gradient = run(ZS, ZT)
    assert float(parts['sup'] + parts['kd']) == pytest.approx(.620058, rel=1e-5)
    assert float(parts['peer_sup'] + parts['back']) == pytest.approx(.331649, rel=1e-5)
    np.testing.assert_allclose(gradient[0], (-.080451, .064084, .016368), atol=1e-6)


def test_a_case_without_the_privileged_input_has_no_term_and_a_case_without_a_class_no_label():
    batch = BATCH | dict(present={'mri': np.float32([1, 0])}, label=np.int32([-1, 1]))
    found = values([term(reads=('mri',), temperature=1.0)], {'t': ZT}, batch)
    assert float(found['kd']) == pytest.approx(.102886, rel=1e-5)  # of the first case
    assert float(found['sup']) == pytest.approx(float(np.log(np.exp(ZS[1]).sum()) - ZS[1, 1]), rel=1e-5)
    found = values([term(reads=('mri',))], {'t': ZT}, batch | dict(present={'mri': np.float32([0, 0])}))
    assert float(found['kd']) == 0


def test_weights_follow_their_schedules_and_each_tap_is_a_term():
    stage = built(dict(
        kd_bce=dict(weight=2.0, schedule='linear 50%'), at=dict(student='tap,dense', teacher='tap,dense', weight=10.0),
        late=dict(name='hint', student='pooled', schedule='after 100%')))
    weights = [{k: float(v) for k, v in stage.method.loss_weights(Progress(f * 4, f, f)).items()} for f in (0, .25, 1)]
    assert weights == [dict(sup=1, kd_bce=0, at_tap=10, at_dense=10, late=0),
                       dict(sup=1, kd_bce=1, at_tap=10, at_dense=10, late=0),
                       dict(sup=1, kd_bce=2, at_tap=10, at_dense=10, late=100)]
    assert sorted(stage.method.teacher_terms()) == ['at_dense', 'at_tap', 'kd_bce', 'late']
    assert not stage.method.plain and built().method.plain


@pytest.mark.parametrize('losses, message', [
    (dict(kdd={}), 'No distillation called "kdd". Did you mean "kd"'),
    (dict(kd=dict(temprature=2.0)), 'student.method.losses.kd has no key "temprature". Did you mean "temperature"'),
    (dict(hint=dict(student='layer9')), 'reads "layer9" of "student", which gives dense, logits, pooled, tap'),
    (dict(hint=dict(teacher='pet/pooled')), 'reads outputs of "pet", which is no network of this stage'),
    (dict(hint=dict(student='tap', teacher='tap,dense')), 'losses.hint: 1 taps of the student and 2 of the teacher'),
    (dict(hint=dict(student='mri/tap')), 'losses.hint.student names "mri", which is frozen'),
    (dict(hint=dict(student='tap,')), '"tap," names no outputs'),
    (dict(kd_bce=dict(schedule='soon')), 'losses.kd_bce.schedule = "soon"'),
    (dict(kd_bce=dict(weight=-1.0)), r'losses.kd_bce.weight = -1.0 must lie in \[0, inf\)'),
    (dict(sup=dict(name='kd_bce')), 'two terms are called "sup"'),
    (dict(dkd={}), 'dkd needs three or more classes'),
])
def test_what_does_not_fit_is_refused_before_training(losses, message):
    with pytest.raises(errors.ConfigError, match=message):
        built(losses)


@pytest.mark.parametrize('old, new', [('kd', 'losses=dict(kd=dict(weight=alpha'), ('hint', 'losses=dict(hint='),
                                      ('dense_kd', "name='segmentation' from labels alone")])
def test_a_method_that_is_a_configuration_now_is_refused_with_its_new_spelling(old, new):
    with pytest.raises(errors.ConfigError) as refused:
        resolved(method=dict(name=old))
    assert f'There is no method "{old}" any more. Write name=' in str(refused.value) and new in str(refused.value)


def test_a_loss_without_a_teacher_or_with_two_says_so():
    with pytest.raises(errors.ConfigError, match='kd_bce learns from one teacher, this stage has none. Give it one'):
        built(dict(kd_bce={}), teachers={})
    two = dict(a=dict(stage='teacher', cache='no'), b=dict(stage='teacher', cache='no'))
    with pytest.raises(errors.ConfigError, match='this stage has a, b. Name it, as in .*kd_bce.teacher=a/logits'):
        built(dict(kd_bce={}), teachers=two)
    stage = built(dict(ensemble=dict(teacher='a/logits,b/logits')), teachers=two)
    assert sorted(stage.method.loss_weights(Progress(0, 0, 0))) == ['ensemble', 'sup']


def test_microbatches_are_named_where_a_loss_relates_cases(capsys):
    built(dict(rkd={}, kd_bce={}), optim=dict(accumulate=2))
    assert 'student: rkd relate the cases of one microbatch, 4 of the 8 of a step' in capsys.readouterr().out


class Rows(nn.Module):
    """Logits of three classes and features of a row of numbers."""

    @nn.compact
    def __call__(self, inputs, train=False):
        x, = (a for name, a in inputs.items() if name != 'present')
        pooled = nn.Dense(4)(x)
        return {'logits': nn.Dense(3)(pooled), 'pooled': pooled}


def updated(accumulate, losses):
    """(parameters after two steps, metrics of the second) where cases lack inputs, labels or are padding."""
    rng = np.random.default_rng(0)
    batch = dict(ct=np.float32(rng.normal(size=(12, 5))), mri=np.float32(rng.normal(size=(12, 5))),
                 label=np.int32([0, 1, 2, -1, 0, 1, 2, 0, -1, -1, 1, 0]), index=np.arange(12, dtype=np.int32),
                 mask=np.float32([1] * 11 + [0]), present={'mri': np.float32([1, 0, 1, 1, 1, 1, 0, 0, 1, 0, 0, 1])})
    student, teacher = Network(Rows(), ('ct',)), Network(Rows(), ('mri',))
    frozen = {'mri': teacher.init(jax.random.key(5), batch)}
    rule = optim.build(ConfigDict(optim.DEFAULTS | dict(name='sgd', lr=0.5)), 8, 1.0, 12)
    context = Context({'student': student}, {'mri': teacher}, frozen, batch, rule, 12, 2.0, 8, 0, accumulate)
    _, hp = config.options('methods', dict(name='distil', losses=losses), 'student.method')
    method = distil.build(hp, context)
    state, step = method.init(jax.random.key(0)), jax.jit(method.train_step)
    for _ in range(2):
        state, metrics = step(state, frozen, batch)
    return state.params, {n: m.value for n, m in metrics.items()}


def test_microbatches_give_the_update_of_the_whole_batch():
    """Of every loss of single cases, with other numbers of cases, labels and privileged inputs in each."""
    of_cases = dict(kd={}, dkd=dict(schedule='linear 4 steps'), gd={}, lskd={}, kd_bce={}, pmkl={}, hint={}, cosine={},
                    probabilities=dict(weight=1.0), vid=dict(student='pooled'))
    whole, parts = (updated(n, of_cases) for n in (1, 3))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6, err_msg=jax.tree_util.keystr(path))
    assert float(whole[1]['weight_of_dkd']) == 0.25 and all(float(whole[1][name]) > 0 for name in of_cases)


DEVICES = '''
import functools, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from jaxkd import parallel
from jaxkd.methods import distil
from tests.fixtures import distillation
assert jax.device_count() == 2
names, used, params, inputs = sys.argv[1].split(','), [], {}, {}
for name in names:
    loss = distillation.built(name)
    params |= {f'{name}_{k}': v for k, v in distillation.variables(name, loss).items()}
    inputs[name] = distillation.taps(name, 1)
    levels = isinstance(inputs[name][0], tuple)
    count = [len(x) if levels else 1 for x in inputs[name]]
    sides = [tuple((side, f'{name}{i}') for i in range(n)) for side, n in zip(('student', 't'), count)]
    used.append(distil.Term(name, loss, *sides, levels, ((),), 'label', 1.0, ''))
modules = {f'{term.name}_{k}': m for term in used for k, m in term.loss.heads.items()}
batch = dict(label=np.int32([0, 1, 2, 0, 1, 2]), mask=np.float32([1, 1, 0, 1, 1, 1]), index=np.arange(6),
             kept=distillation.KEPT)

def means(params, inputs, batch):
    outputs = {side: {f'{n}{i}': x for n in names for i, x in enumerate(inputs[n][k] if isinstance(inputs[n][k], tuple)
                                                                        else inputs[n][k:k + 1])}
               for k, side in enumerate(('student', 't'))}
    heads = {n: functools.partial(m.apply, {'params': params[n]}) for n, m in modules.items()}
    found = {term.name: term.value(outputs, heads, batch, distillation.start(term.name))
             for term in used}
    return {n: mean for n, (mean, _) in found.items()}, {n: memory for n, (_, memory) in found.items() if memory}

def step(params, inputs, batch):
    def objective(params):
        found, memory = means(params, inputs, batch)
        counts = parallel.psum(jax.lax.stop_gradient({n: m.weight for n, m in found.items()}))
        return sum(m.total / counts[n] for n, m in found.items()), (
            {n: m.total / counts[n] for n, m in found.items()}, memory)
    gradients, (values, memory) = jax.grad(objective, has_aux=True)(params)
    return *parallel.psum((gradients, values)), memory

one = jax.jit(step)(params, inputs, batch)
two = jax.jit(jax.shard_map(step, mesh=parallel.mesh(), in_specs=(P(), P('batch'), P('batch')), out_specs=P(),
                            check_vma=False))(params, inputs, batch)
for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(jax.block_until_ready(two))):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6, err_msg=jax.tree_util.keystr(path))
print(len(jax.tree.leaves(one)), 'leaves')
'''


def test_losses_that_relate_cases_see_those_of_all_devices():
    """Values, gradients of their heads and memories on two devices are those on one."""
    related = {name for name in distillation.TAPS if distillation.built(name).pairwise}
    assert {'sp', 'cc', 'rkd', 'pkt', 'dist', 'crd', 'infonce', 'mad', 'mar', 'barlow', 'ntxent', 'curvature',
            'pmkl_contrast'} == related
    env = dict(os.environ, XLA_FLAGS='--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0',
               NPROC='16', JAX_PLATFORMS='cpu',
               PYTHONPATH=os.pathsep.join([os.getcwd(), os.environ.get('PYTHONPATH', '')]))
    env.pop('JAX_COMPILATION_CACHE_DIR', None)  # compiled for another number of devices
    done = subprocess.run([sys.executable, '-c', DEVICES, ','.join(sorted(related))], env=env, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) > 40


def test_a_run_that_is_resolved_names_every_option_and_can_be_resolved_again():
    conf = resolved(dict(kd_bce=dict(weight=2.0), mine=dict(name='hint', student='tap')))
    assert conf.student.method.losses.mine.to_dict() == dict(
        name='hint', student='tap', teacher='', weight=100.0, schedule='', regressor=True)
    assert config.resolve(ConfigDict(conf.to_dict())).to_dict() == conf.to_dict()
    text = config.describe_options(conf, 'student.method.losses')
    assert 'student.method.losses.mine.regressor = True' in text
    assert 'schedule = ' in text and "'linear 5%'" in text
