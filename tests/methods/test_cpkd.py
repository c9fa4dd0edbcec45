"""CPKD: the worked numbers of its calibrations, where gradients go, and what its switches turn into."""
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxkd import checkpoint, config, errors, losses, optim, stages, train
from jaxkd.data import loader
from jaxkd.distillation import kd
from jaxkd.methods import cpkd, supervised
from jaxkd.state import Progress, inference_variables
from tests.fixtures import parallel_toys
from tests.fixtures.compiled import call
from tests.fixtures.variables import draw

B, N = 6, 20
TASKS = {'texture': 'texture', 'duct': 'duct'}
READS = {'texture': ('t1', 't2'), 'duct': ('t1', 't2')}


def options(**given):
    return ConfigDict({**cpkd.DEFAULTS, **given})


def example(seed=0, absent=()):
    """Outputs of a student and two MRI networks, parameters of the heads, a batch; rows `absent` have no MRI."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    student = {'logits': normal(B, 3), 'pooled': normal(B, 8), **{f'level{i}': normal(B, 2, 2, 2, 4) for i in range(5)}}
    teachers = {a: {'logits': normal(B, 3), 'pooled': normal(B, 8)} for a in TASKS}
    flags = jnp.ones(B).at[jnp.array(absent, int)].set(0)
    prior = rng.dirichlet(np.ones(3), (3, 3))
    batch = {'label': jnp.arange(B) % 3, 'texture': jnp.arange(B) % 3, 'duct': jnp.arange(B) // 2 % 3,
             'index': jnp.arange(B) + 3,
             'mask': jnp.ones(B), 'present': {'t1': flags, 't2': flags},
             'prior': jnp.asarray(np.broadcast_to(prior, (B, 3, 3, 3)), jnp.float32)}
    return student, teachers, batch


@functools.cache
def head_variables(module, name, shape):
    """They follow from the name alone. Drawn by numpy: to compile random numbers into each program takes longest."""
    return draw(module, np.zeros(shape, np.float32), seed=sum(map(ord, name)))


def run(hp, student, teachers, batch, memory=None):
    """The terms, with drawn heads."""
    shapes = {'student': student, **teachers}
    modules = cpkd.heads(hp, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), shapes))
    calls = {name: lambda x, name=name, module=module: module.apply(head_variables(module, name, x.shape), x)
             for name, module in modules.items()}
    terms = functools.partial(cpkd.terms, heads=calls, hp=hp, tasks=TASKS, reads=READS)
    compiled = jax.jit(lambda s, t, batch, memory: terms(s, t, batch=batch, memory=memory))
    return compiled(student, teachers, batch, memory)


def total(hp, parts, epoch=10.0):
    weights = cpkd.weights(hp, Progress(jnp.float32(0), jnp.float32(epoch), jnp.float32(0)), TASKS, (*TASKS,))
    value = lambda part: part.value if hasattr(part, 'value') else jnp.mean(part)  # noqa: E731
    return sum(w * value(parts[name]) for name, w in weights.items())


def fresh():
    return {'hard': jnp.zeros(N), 'seen': jnp.zeros(N, bool)}


# Worked numbers of the specification.

def test_feature_level():
    m, r = jnp.array([[2.0, 0, 0, 0]]), jnp.zeros((1, 4))
    gap = lambda r: cpkd.feature_gap(m, r, np.ones(1, np.float32), options())[0]  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(gap))(r)
    np.testing.assert_allclose(value, 0.4680, atol=5e-5)
    np.testing.assert_allclose(gradient[0], [-0.4612, 0.1537, 0.1537, 0.1537], atol=5e-5)


def test_biological_calibration():
    pi = jnp.array([[0.05, 0.25, 0.70]])
    p = jnp.array([[0.5, 0.3, 0.2]])
    calibrate = jax.jit(cpkd.calibrate)
    q = calibrate(p, pi)
    np.testing.assert_allclose(q[0], [0.1042, 0.3125, 0.5833], atol=5e-5)
    np.testing.assert_allclose(calibrate(jnp.array([[0.2, 0.3, 0.5]]), pi)[0], [0.0230, 0.1724, 0.8046], atol=5e-5)
    np.testing.assert_allclose(calibrate(p, np.full((1, 3), 1 / 3, np.float32)), p, rtol=1e-6)

    table = np.zeros((1, 3, 3, 3), np.float32)
    table[0, 2, 2] = pi[0]  # solid and cut off
    sure = 40 * np.eye(3, dtype=np.float32)

    @jax.jit
    def parts(p, texture=sure[2:]):
        y = jnp.array([2])
        own = losses.cross_entropy(jnp.log(p), y)
        return cpkd.clinical(jnp.log(p), [texture, sure[2:]], [y, y], y, table, own, jnp.ones(1), options())
    found = parts(p)
    np.testing.assert_allclose(found['calibration'][0], 0.1013, atol=5e-5)
    assert found['fixed'][0] == 1
    np.testing.assert_allclose(found['hard'].total, -np.log(0.2), rtol=1e-5)  # 0.05 < 0.10, and wrong
    found = parts(jnp.array([[0.2, 0.3, 0.5]]))
    assert found['fixed'][0] == 0 and found['hard'].total == 0
    found = parts(p, texture=sure[:1])  # a wrong MRI network must not teach
    assert found['calibration'][0] == 0 and found['fixed'][0] == 0


def test_what_the_hard_term_is_divided_by():
    z, y, here = jnp.log(jnp.array([[0.5, 0.3, 0.2]] * 4)), jnp.array([2, 0, 2, 2]), jnp.array([1.0, 1, 1, 0])
    table = jnp.broadcast_to(jnp.array([0.05, 0.25, 0.70]), (4, 3, 3, 3))
    v, a = jnp.zeros((4, 3)), jnp.zeros(4, int)
    hard = {over: jax.jit(lambda z, over=over: cpkd.clinical(z, [v, v], [a, a], y, table, losses.cross_entropy(z, y),
                                                             here, options(hard_over=over))['hard'].value)(z)
            for over in cpkd.MODES['hard_over']}  # rows 0 and 2 are implausible, wrong, and have an MRI
    np.testing.assert_allclose((hard['hard'], hard['cases']), (-np.log(0.2), -np.log(0.2) * 2 / 3), rtol=1e-5)


def test_soft_prior_mixes_by_what_the_networks_predict():
    table = np.random.default_rng(0).dirichlet(np.ones(3), (1, 3, 2))
    t, d = np.array([[0.2, 0.5, 0.3]]), np.array([[0.6, 0.4]])
    expected = np.einsum('bt,bd,btdc->bc', t, d, table)
    np.testing.assert_allclose(call(cpkd.soft_prior, table, [np.log(t), np.log(d)]), expected, rtol=1e-5)


def test_personalised_weight():
    memory = {'hard': jnp.array([1.0, 0.5, 0.0]), 'seen': jnp.array([True, True, False])}
    memory = HARDNESS(memory, jnp.array([0]), jnp.array([2.0]), jnp.ones(1))
    np.testing.assert_allclose(memory['hard'], [1.1, 0.5, 0])  # the other entries stay
    np.testing.assert_allclose(HARDNESS(memory, jnp.array([2]), jnp.array([3.0]), jnp.ones(1))['hard'][2], 3.0)
    assert memory['hard'].sum() / memory['seen'].sum() == pytest.approx(0.8)
    weights = jax.jit(functools.partial(cpkd.case_weights, hp=options()))
    for h, expected in ((1.1, 1.375), (0.2, 0.5), (2.4, 2.0)):
        w = weights({'hard': jnp.array([h, 1.6 - h, 0.0]), 'seen': jnp.array([True, True, False])},
                    jnp.array([0]), jnp.ones(1), jnp.ones(1), jnp.ones(1, bool))
        np.testing.assert_allclose(w, [expected], rtol=1e-6)


def test_rules_of_the_weight():
    memory = {'hard': jnp.array([1.1, 0.5]), 'seen': jnp.ones(2, bool)}
    own, theirs = jnp.array([2.0]), jnp.array([1.0])
    w = call(lambda *x: {mode: cpkd.case_weights(*x, jnp.ones(1, bool), options(update_mode=mode))[0]
                         for mode in cpkd.MODES['update_mode']}, memory, jnp.array([0]), own, theirs)
    assert w['relative'] == pytest.approx(4 / 3) and w['ema'] == pytest.approx(1.375)
    assert w['exp'] == pytest.approx(np.exp(0.3), rel=1e-5) and w['combined'] == pytest.approx((1.375 + 4 / 3) / 2)
    unknown = call(cpkd.case_weights, memory, jnp.array([0]), own, theirs, jnp.zeros(1, bool),
                   options(update_mode='relative'))
    assert unknown == 1


def test_plain_distillation():
    teacher, student = jnp.array([[2.0, 1, 0]]), jnp.array([[1.0, 0, 1]])
    for t, expected in ((1.0, 0.2743), (4.0, 0.4087)):
        np.testing.assert_allclose(call(kd.softened, student, teacher, temperature=t).mean(), expected, atol=5e-5)


# The state of a case.

HARDNESS = jax.jit(cpkd.hardness)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 5, width=32)), min_size=1, max_size=12), st.randoms())
def test_hardness_does_not_depend_on_the_order_of_a_batch(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    old = {'hard': np.arange(10, dtype=np.float32), 'seen': np.arange(10) < 5}

    def after(rows):
        index, loss = map(np.array, zip(*rows))
        return jax.device_get(HARDNESS(old, index, loss.astype(np.float32), np.ones(len(rows), np.float32)))
    one, other = after(rows), after(shuffled)
    np.testing.assert_allclose(one['hard'], other['hard'], rtol=1e-5)
    np.testing.assert_array_equal(one['seen'], other['seen'])
    untouched = sorted({*range(10)} - {i for i, _ in rows})
    np.testing.assert_array_equal(one['hard'][untouched], old['hard'][untouched])


def test_padding_rows_do_not_touch_the_state():
    old = {'hard': jnp.arange(4.0), 'seen': jnp.zeros(4, bool)}
    chex.assert_trees_all_equal(old, HARDNESS(old, jnp.array([1, 2]), jnp.array([9.0, 9.0]), jnp.zeros(2)))


# Where gradients go.

MODES = list(itertools.product(('kl', 'info'), ('aux', 'class', 'relation')))


@pytest.mark.parametrize(('fkd_mode', 'pkd_target'), MODES)
def test_transfer_teaches_the_student_alone(fkd_mode, pkd_target):
    hp = options(fkd_mode=fkd_mode, pkd_target=pkd_target)
    student, teachers, batch = example()

    def transfer(student, teachers, hp=hp):
        parts, _ = run(hp, student, teachers, batch, fresh())
        return parts['feature'].value + parts['prediction'].value
    open_hp = options(fkd_mode=fkd_mode, pkd_target=pkd_target, stop_grad_teacher=False)
    (to_student, to_teachers), opened = jax.jit(lambda *x: (
        jax.grad(transfer, (0, 1))(*x), jax.grad(functools.partial(transfer, hp=open_hp), 1)(*x)))(student, teachers)
    chex.assert_trees_all_equal(to_teachers, jax.tree.map(np.zeros_like, teachers))
    assert np.abs(to_student['pooled']).max() > 1e-4
    if pkd_target != 'relation' or fkd_mode == 'kl':  # the published flag may have let it through
        assert np.abs(opened['texture']['pooled']).max() > 1e-6


def test_auxiliary_tasks_teach_the_mri_networks_alone():
    student, teachers, batch = example()

    def aux(student, teachers):
        parts, _ = run(options(), student, teachers, batch, fresh())
        return parts['aux_texture'].value + parts['aux_duct'].value
    to_student, to_teachers = jax.jit(jax.grad(aux, (0, 1)))(student, teachers)
    assert all(np.abs(g).max() == 0 for g in jax.tree.leaves(to_student))
    assert np.abs(to_teachers['duct']['logits']).max() > 1e-3


@pytest.mark.parametrize('mode', cpkd.MODES['clinical_mode'])
def test_calibration_teaches_the_student_alone(mode):
    student, teachers, batch = example()

    def calibration(student, teachers):
        parts, _ = run(options(clinical_mode=mode), student, teachers, batch, fresh())
        return parts['calibration'].total + parts['hard'].value
    right = {a: {**out, 'logits': 5.0 * np.eye(3, dtype=np.float32)[batch[a]]} for a, out in teachers.items()}
    # the gate is open
    to_student, to_teachers = jax.jit(jax.grad(calibration, (0, 1)))(student, right)
    chex.assert_trees_all_equal(to_teachers, jax.tree.map(np.zeros_like, teachers))
    assert np.abs(to_student['logits']).max() > 1e-3


def test_the_weight_of_a_case_has_no_gradient():
    student, teachers, batch = example()
    for mode in cpkd.MODES['update_mode']:
        hp = options(update_mode=mode)
        weight = lambda s, hp=hp: run(hp, s, teachers, batch, fresh())[0]['weight'].sum()  # noqa: E731
        grad = jax.jit(jax.grad(weight))(student)
        assert all(np.abs(g).max() == 0 for g in jax.tree.leaves(grad))


def test_club_trains_its_own_network_by_likelihood_alone():
    a, b = np.random.default_rng(0).normal(size=(2, B, 8)).astype(np.float32)
    net = cpkd.Gaussian(8)
    params = draw(net, a)

    def term(params, a, name):
        return cpkd.club(a, b, lambda x: net.apply(params, x), jnp.ones(B))[name].value
    value, (to_net, to_a) = jax.jit(jax.value_and_grad(lambda *x: term(*x, 'club'), (0, 1)))(params, a)
    assert max(np.abs(g).max() for g in jax.tree.leaves(to_net)) < 1e-6
    assert np.abs(to_a).max() > 1e-5
    to_net, to_a = jax.jit(jax.grad(lambda *x: term(*x, 'club_fit'), (0, 1)))(params, a)
    assert max(np.abs(g).max() for g in jax.tree.leaves(to_net)) > 1e-4
    assert np.abs(to_a).max() == 0
    likelihood = jax.jit(functools.partial(_likelihood, net, params))
    pairs = np.array([[likelihood(a[i], b[j]) for j in range(B)] for i in range(B)])
    np.testing.assert_allclose(value, np.diag(pairs).mean() - pairs.mean(), rtol=1e-4)


def _likelihood(net, params, a, b):
    mu, spread = net.apply(params, a)
    return -0.5 * jnp.mean((b - mu) ** 2 / jnp.exp(spread) + spread)


# Switches and missing parts.

def test_switches_off_is_the_ordinary_classifier():
    student, teachers, batch = example()
    hp = options(num_heads=1, head_indice=0, fkd_w=0.0, rkd_w=0.0, auxi_w=0.0, clinical=False, kd_mode='static')
    loss = lambda s: total(hp, run(hp, s, teachers, batch))  # noqa: E731
    plain = lambda s: losses.cross_entropy(s['logits'], batch['label']).mean()  # noqa: E731
    assert jax.jit(loss)(student) == jax.jit(plain)(student)
    ours, theirs = jax.jit(jax.grad(loss))(student), jax.jit(jax.grad(plain))(student)
    chex.assert_trees_all_equal(ours, theirs)


def test_static_weight_is_plain_weighting():
    student, teachers, batch = example()
    static, dynamic = options(kd_mode='static'), options(limits=(1.0, 1.0))
    one, _ = run(dynamic, student, teachers, batch, fresh())
    np.testing.assert_allclose(total(static, run(static, student, teachers, batch)), total(dynamic, one), rtol=1e-6)


def test_warm_up():
    hp = options(warmup_epoch=3)
    at = lambda epoch: cpkd.weights(hp, Progress(0.0, jnp.float32(epoch), 0.0), TASKS, (*TASKS,))  # noqa: E731
    assert at(2.99)['feature'] == at(2.99)['prediction'] == 0
    assert at(3)['feature'] == 1.5 and at(3)['prediction'] == 0.5
    assert at(0)['main'] == 1 and at(0)['aux_duct'] == 0.1 and at(0)['hard'] == 1


@pytest.mark.parametrize(('fkd_mode', 'pkd_target'), MODES)
def test_cases_without_mri_have_the_main_term_alone(fkd_mode, pkd_target):
    """Whatever their missing MRI networks say, nothing of it reaches a number or a gradient; nan does not escape."""
    hp = options(fkd_mode=fkd_mode, pkd_target=pkd_target)
    student, teachers, batch = example(absent=(1, 4))
    rows = (1, 4)
    other = jax.tree.map(lambda a: np.asarray(a) + 7.0 * np.float32(np.isin(np.arange(B), rows))[:, None], teachers)
    loss = jax.jit(jax.value_and_grad(lambda s, t, batch: total(hp, run(hp, s, t, batch, fresh())[0])))
    one, two = (loss(student, t, batch) for t in (teachers, other))
    chex.assert_trees_all_close(one, two, rtol=1e-5, atol=1e-6)
    chex.assert_tree_all_finite(one)
    nobody = {**batch, 'present': jax.tree.map(np.zeros_like, batch['present'])}
    value, grad = loss(student, teachers, nobody)
    chex.assert_tree_all_finite((value, grad))
    exits, _ = run(options(fkd_w=0.0, rkd_w=0.0, clinical=False), student, teachers, nobody, fresh())
    np.testing.assert_allclose(value, exits['main'].value, rtol=1e-5)


def test_an_unknown_auxiliary_label_is_masked():
    student, teachers, batch = example()
    unknown = {**batch, 'texture': batch['texture'].at[2].set(-1)}
    found, _ = run(options(), student, teachers, unknown, fresh())
    expected = np.asarray(call(losses.cross_entropy, teachers['texture']['logits'], batch['texture']))
    keep = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(found['aux_texture'].value, expected[keep].mean(), rtol=1e-5)


def test_a_student_that_says_what_the_teacher_says_has_nothing_to_learn():
    p = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(3), B), jnp.float32)
    gap = jax.jit(cpkd.relation_gap)
    np.testing.assert_allclose(gap(p, p, np.ones(B, np.float32)), 0, atol=1e-6)
    rows = np.array([[1.0, 0], [1, 0]]), np.eye(2)  # as in SP: 0.2929
    np.testing.assert_allclose(gap(*np.float32(rows), np.ones(2, np.float32)).mean(), 0.2929, atol=5e-5)


def test_contrast_is_against_all_cases_with_mri():
    m, r = np.random.default_rng(0).normal(size=(2, B, 8)).astype(np.float32)
    here = jnp.array([1, 1, 1, 0, 1, 1.0])
    unit = lambda x: np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    cos = unit(r) @ unit(m).T / 0.1
    keep = np.flatnonzero(here)
    expected = [np.log(np.exp(cos[i, keep]).sum()) - cos[i, i] for i in keep]
    found = np.asarray(call(cpkd.feature_gap, m, r, here, options(fkd_mode='info')))
    np.testing.assert_allclose(found[keep], expected, rtol=1e-4)


def test_exits():
    assert cpkd.exit_levels(options()) == [('exit3', 'level3')]
    assert cpkd.exit_levels(options(head_indice=0)) == [(f'exit{i}', f'level{i}') for i in range(4)]
    assert cpkd.exit_levels(options(num_heads=2, head_indice=0)) == [('exit0', 'level3')]
    assert cpkd.exit_levels(options(num_heads=1, head_indice=0)) == []


@pytest.mark.parametrize(('given', 'said'), [
    (dict(fkd_mode='cl'), 'fkd_mode'), (dict(update_mode='emma'), '"ema"'), (dict(head_indice=5), 'num_heads'),
    (dict(num_heads=6), 'at most 5')])
def test_wrong_options_are_refused(given, said):
    with pytest.raises(errors.ConfigError, match=said):
        cpkd.build(options(**given), None)


# Through the trainer, with networks of a few hundred weights.

def resolved(**method):
    """Six steps of two epochs; without a network in `networks` there is nothing to learn from but the label."""
    parallel_toys.install()
    levels = dict(name='parallel.levels')
    networks = ({} if method.get('name') == 'supervised'
                else {a: dict(inputs=('mri',), model=levels, task=a) for a in TASKS})
    return config.resolve(ConfigDict(dict(
        stages=('online',), tensorboard=False, data=dict(source=dict(name='parallel.paired'),
                                                         split=dict(fractions=(0.5, 0.25, 0.25))),
        online=dict(inputs=('ct',), model=levels, networks=networks, method={'name': 'cpkd', **method}, batch=16,
                    length='6 steps', eval_every='3 steps', log_every='3 steps',
                    optim=dict(name='adam', schedule='plateau', warmup='')))))


def trained(folder, **method):
    conf = resolved(**method)
    return jax.device_get(train.train(stages.build(conf, 'online', folder), folder, tensorboard=False)[0])


@pytest.fixture(scope='module')
def online(tmp_path_factory):
    """A stage, and what it trained."""
    folder = tmp_path_factory.mktemp('online')
    stage = stages.build(resolved(), 'online', folder)
    return stage, jax.device_get(train.train(stage, folder, tensorboard=False)[0]), folder


def test_switched_off_it_trains_the_student_as_the_baseline_does(online, tmp_path):
    off = dict(num_heads=1, head_indice=0, fkd_w=0.0, rkd_w=0.0, auxi_w=0.0, clinical=False, kd_mode='static')
    ours, baseline = trained(tmp_path / 'a', **off), trained(tmp_path / 'b', name='supervised', kind='classes')
    chex.assert_trees_all_equal(ours.params['student'], baseline.params['student'])
    on = online[1]
    assert np.abs(on.params['student']['Dense_0']['kernel'] - ours.params['student']['Dense_0']['kernel']).max() > 1e-4


def test_the_state_of_the_cases_survives_a_stop(online, tmp_path, monkeypatch):
    whole = online[1]
    assert whole.memory['seen'].sum() == 32 and (whole.memory['hard'] > 0).sum() == 32
    monkeypatch.setattr(checkpoint.Checkpointer, 'preempted', lambda self, step: step == 3 and stops.pop())
    stops = [False, True]
    with pytest.raises(errors.Interrupted):
        trained(tmp_path / 'halves')
    stops = [False, False]
    chex.assert_trees_all_equal(whole, trained(tmp_path / 'halves'))


def test_the_deployed_student_reads_ct_alone(online):
    """MRI, its flags, auxiliary labels and prior may be nan or gone: not one bit changes.

    Nothing of MRI is deployed.
    """
    stage, state, folder = online
    predict = stage.predictors['student'].with_variables(inference_variables(state))
    batch = next(loader.eval_batches(stage.data, stage.data.partition.indices('test'), 16))
    expected = np.asarray(predict.predict_batch(batch)['logits'])
    hostile = {k: v if k == 'ct' else jax.tree.map(lambda a: np.full_like(a, np.nan if a.dtype.kind == 'f' else -7), v)
               for k, v in batch.items()}
    np.testing.assert_array_equal(expected, predict.predict_batch(hostile)['logits'])
    np.testing.assert_array_equal(expected, predict.predict_batch({'ct': batch['ct']})['logits'])
    assert (set(predict.network.only(batch)) <= {'ct', 'present'}
            and 'mri' not in predict.network.only(batch).get('present', {}))
    saved, _ = checkpoint.load_student(folder / 'checkpoints' / 'online', None, 'last')
    assert jax.tree.structure(saved['params']) == jax.tree.structure(state.params['student'])
    assert set(state.params) == {'student', 'texture', 'duct', 'heads'}


def test_a_frozen_network_teaches_as_one_that_is_trained_along(tmp_path):
    """In two stages: the first update is that of a network that begins where the frozen one ended and is trained along;
    nothing of the frozen one is trained or kept.
    """
    conf = resolved(clinical=False, kd_mode='static')
    conf.stages = ('mri', 'frozen', 'along')
    mri = dict(inputs=('mri',), model=dict(name='parallel.levels'))
    same = dict(conf.online.to_dict(), length='1 step')
    conf.mri = dict(same, **mri, networks={}, method=dict(name='supervised', kind='classes'))
    conf.frozen = dict(same, networks={}, teachers=dict(mri=dict(stage='mri', cache='no')))
    conf.along = dict(same, networks=dict(mri=dict(mri, init=dict(stage='mri'))))
    conf = config.resolve(ConfigDict({k: v for k, v in conf.to_dict().items() if k != 'online'}))
    ended = {name: train.train(stages.build(conf, name, tmp_path), tmp_path, tensorboard=False)[0]
             for name in conf.stages}
    assert set(ended['frozen'].params) == {'student', 'heads'} and set(ended['along'].params) > {'mri'}
    for part in ('student', 'heads'):
        chex.assert_trees_all_close(ended['frozen'].params[part], ended['along'].params[part], rtol=1e-6, atol=1e-7)
    terms = stages.build(conf, 'frozen', tmp_path).method.loss_weights(Progress(*[jnp.float32(0)] * 3))
    assert set(terms) == {'main', 'feature', 'prediction'}


def test_what_cpkd_needs_is_asked_for(tmp_path):
    with pytest.raises(errors.ConfigError, match='prior'):
        conf = resolved(axes=('texture', 'tube'))
        stages.build(conf, 'online', tmp_path)
    conf = resolved()
    conf.online.networks.texture.task = 'textur'
    with pytest.raises(errors.ConfigError, match='Did you mean "texture"'):
        stages.build(conf, 'online', tmp_path)


def test_a_network_is_scored_on_the_cases_that_it_can_read(online):
    stage, state, _ = online
    part = stage.data.partition.indices('test')
    assert list(stage.predictors['student'].with_variables(inference_variables(state))('test').index) == part
    seen = stage.predictors['texture'].with_variables(inference_variables(state, 'texture'))('test').index
    assert list(seen) == [i for i in part if i % 4] and len(seen) < len(part)


def test_a_teacher_learns_nothing_from_cases_that_it_cannot_read():
    student, _, batch = example(absent=(1, 4))
    hp = ConfigDict(supervised.DEFAULTS | dict(kind='classes'))
    loss = lambda z: supervised.terms({'logits': z}, {}, {}, batch, hp, reads=('t1',))['sup'].value  # noqa: E731
    grad = np.asarray(jax.jit(jax.grad(loss))(student['logits']))
    assert [bool(np.any(row != 0)) for row in grad] == [True, False, True, True, False, True]


def test_clipping_one_network_does_not_shorten_the_step_of_another():
    hp = ConfigDict({**optim.DEFAULTS, 'name': 'sgd', 'b1': 0.0, 'lr': 1.0, 'clip': 1.0, 'schedule': 'constant',
                     'warmup': ''})
    params = {'student': jnp.zeros(2), 'texture': jnp.zeros(2)}
    made = optim.build(hp, 10, 5.0)
    new, _ = made.update({'student': jnp.array([0.3, 0.4]), 'texture': jnp.array([30.0, 40.0])}, made.tx.init(params),
                         params, {})
    np.testing.assert_allclose(new['student'], [-0.3, -0.4], rtol=1e-6)
    np.testing.assert_allclose(new['texture'], [-0.6, -0.8], rtol=1e-6)


def test_hard_cases_weigh_more(online):
    """Of the cases that were trained on, the hardest quarter gets a larger mean weight than the easiest."""
    _, state, _ = online
    index = np.flatnonzero(state.memory['seen'])
    index = index[np.argsort(np.asarray(state.memory['hard'])[index])]
    ones = np.ones(len(index), np.float32)
    w = np.asarray(call(cpkd.case_weights, state.memory, index, ones, ones, ones > 0, options()))
    quarter = len(index) // 4
    assert w[-quarter:].mean() > w[:quarter].mean() and w.min() >= 0.5 and w.max() <= 2
