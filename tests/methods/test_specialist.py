"""What a faithful specialist must show: its losses, a teacher that stays, a student that is told nothing of the
bias.
"""
import inspect
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import config, errors, evaluation, losses, runner, stages, train
from jaxkd.data import loader
from jaxkd.methods import specialist
from jaxkd.state import inference_variables
from tests.fixtures import grating

AT = np.float32([[0.0, 0.3], [-0.2, 0.5], [-0.5, 1.0]])
AS = np.float32([[0.2, -0.1], [0.4, 0.0], [-0.3, 0.6]])


def options(**changes):
    return ConfigDict(specialist.DEFAULTS | dict(name='specialist') | changes)


def outputs(probes, logits, n=1):
    return {'logits': jnp.tile(jnp.float32(logits), (n, 1))} | {f'probe_block{i + 1}': jnp.tile(p, (n, 1))
                                                                for i, p in enumerate(probes)}


def batch(n=1):
    return {'label': jnp.zeros(n, jnp.int32), 'mask': jnp.ones(n)}


@pytest.mark.parametrize('temperature, expected', [(1.0, 0.168345), (2.0, 0.243887), (4.0, 0.271109)])
def test_the_final_term_of_the_specification(temperature, expected):
    found = specialist.terms(outputs(AS, (0.5, 0)), {'t': outputs(AT, (2, 0))}, {}, batch(),
                             options(temperature=temperature))
    assert float(found['final'].value) == pytest.approx(expected, abs=1e-5)


def test_the_probe_term_of_the_specification():
    """0.01123, 0.03740, 0.01013 at T = 2: mean 0.019586, times T^2 0.078343."""
    each = [float(losses.kl(t, s, 2.0)) / 4 for t, s in zip(AT, AS)]
    np.testing.assert_allclose(each, (0.01123, 0.03740, 0.01013), atol=1e-5)
    found = specialist.terms(outputs(AS, (0.5, 0)), {'t': outputs(AT, (2, 0))}, {}, batch(), options(temperature=2.0))
    assert float(found['inter'].value) == pytest.approx(0.078343, abs=1e-5)


@pytest.mark.parametrize('weights, single, expected', [
    ('uniform', '', (1 / 3, 1 / 3, 1 / 3)), ('early', '', (3 / 6, 2 / 6, 1 / 6)), ('late', '', (1 / 6, 2 / 6, 3 / 6)),
    ('single', 'block2', (0, 1, 0))])
def test_weights_of_the_taps(weights, single, expected):
    hp = options(weights=weights, single=single, temperature=2.0)
    np.testing.assert_allclose(specialist.depth_weights(hp), expected)
    found = specialist.terms(outputs(AS, (0.5, 0)), {'t': outputs(AT, (2, 0))}, {}, batch(), hp)
    assert float(found['inter'].value) == pytest.approx(4 * np.dot(expected, (0.01123, 0.03740, 0.01013)), abs=1e-4)


def test_equal_networks_have_no_gradient():
    def loss(student):
        found = specialist.terms(student, {'t': outputs(AT, (2, 0))}, {}, batch(), options())
        return found['inter'].value + found['final'].value
    assert float(loss(outputs(AT, (2, 0)))) == pytest.approx(0, abs=1e-7)
    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(outputs(AT, (2, 0)))):
        np.testing.assert_allclose(leaf, 0, atol=1e-6)


def test_the_kl_is_of_each_sample():
    """Permuting the batch permutes it; averaging probabilities first would give another number."""
    rng = np.random.default_rng(0)
    t, s = ({k: jnp.float32(rng.normal(size=(6, 2))) for k in outputs(AT, (0, 0))} for _ in range(2))
    order = np.array([3, 1, 5, 0, 2, 4])
    mixed = [{k: v[order] for k, v in of.items()} for of in (s, t)]
    a = specialist.terms(s, {'t': t}, {}, batch(6), options())['inter']
    b = specialist.terms(mixed[0], {'t': mixed[1]}, {}, batch(6), options())['inter']
    assert float(a.value) == pytest.approx(float(b.value), rel=1e-6)
    each = np.mean([np.asarray(losses.kl(t[f'probe_block{i}'], s[f'probe_block{i}'], 4.0)) for i in (1, 2, 3)], 0)
    assert float(a.value) == pytest.approx(each.mean(), rel=1e-5)
    averaged = np.mean([losses.kl(t[f'probe_block{i}'].mean(0), s[f'probe_block{i}'].mean(0), 4.0) for i in (1, 2, 3)])
    assert abs(float(a.value) - averaged) > 0.01


def test_unequal_taps_are_paired_as_listed():
    hp = options(taps=('block1:layer2', 'block2'))
    assert specialist.pairs(hp) == [('block1', 'layer2'), ('block2', 'block2')]


def test_the_loss_has_no_bias_label():
    assert 'bias' not in inspect.getsource(specialist.terms).replace('No bias label', '')
    assert set(inspect.signature(specialist.terms).parameters) == {'student', 'teachers', 'heads', 'batch', 'hp',
                                                                   'reads'}


def resolved(**changes):
    return config.resolve(ConfigDict(grating.config(cases=300, steps='4 steps', batch=16, of=grating.SMALL, **changes)))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    workdir, conf, states = tmp_path_factory.mktemp('specialist'), resolved(), {}
    for name in ('teacher', 'probes', 'specialist'):
        stage = stages.build(conf, name, workdir)
        states[name] = (stage, jax.device_get(train.train(stage, workdir, tensorboard=False)[0]))
    return conf, workdir, states


def test_only_probes_change_in_their_stage(trained):
    _, _, states = trained
    (_, teacher), (_, probes) = states['teacher'], states['probes']
    chex.assert_trees_all_equal(teacher.params['student']['of'], probes.params['student']['of'])
    chex.assert_trees_all_equal(teacher.stats['student'], probes.stats['student'])
    for name in ('probe_block1', 'probe_block2', 'probe_block3'):
        assert (teacher.params['student'][name]['kernel'] != probes.params['student'][name]['kernel']).any()


def test_the_teacher_stays_bit_by_bit_and_the_batch_tells_no_bias(trained):
    conf, workdir, states = trained
    stage, state = states['specialist']
    again = stages.build(conf, 'specialist', workdir)
    chex.assert_trees_all_equal(stage.frozen, again.frozen)
    batches = stage.context.batch, next(loader.train_loader(stage.data, 8, 0))
    assert not {'bias', 'bias_weight'} & {k for batch in batches for k in batch}
    start = jax.device_get(stage.initial())
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), start.params, state.params))


def test_no_gradient_reaches_the_teacher(trained):
    conf, workdir, _ = trained
    live = resolved(specialist=dict(teachers=dict(specialist=dict(stage='probes', cache='no'))))
    stage = stages.build(live, 'specialist', workdir)
    state, given = stage.initial(), jax.tree.map(jnp.asarray, next(loader.train_loader(stage.data, 8, 0)))

    def loss(frozen):
        return stage.method.train_step(state, frozen, given)[1]['loss'].value
    value, gradient = jax.jit(jax.value_and_grad(loss))(stage.frozen)
    assert float(value) > 0
    chex.assert_trees_all_equal(gradient, jax.tree.map(np.zeros_like, stage.frozen))


def test_the_probes_of_the_student_learn_from_the_probe_term_alone(trained):
    conf, workdir, _ = trained
    stage = stages.build(resolved(specialist=dict(method=dict(name='specialist', inter=0.0))), 'specialist', workdir)
    given = jax.tree.map(jnp.asarray, next(loader.train_loader(stage.data, 8, 0, teacher_outputs=stage.cached_outputs)))
    state = stage.initial()
    def loss(params):
        return stage.method.train_step(state.replace(params=params), stage.frozen, given)[1]['loss'].value
    grads = jax.device_get(jax.jit(jax.grad(loss))(state.params))
    assert all(not g.any() for k, g in grads['student'].items() if k.startswith('probe_') for g in jax.tree.leaves(g))
    assert any(g.any() for g in jax.tree.leaves(grads['student']['of']))


def test_student_probes_may_stay_those_of_the_teacher(trained, tmp_path):
    conf, workdir, states = trained
    optim = dict(conf.specialist.optim.to_dict(), freeze=('student/probe_',))
    changed = resolved(specialist=dict(init=dict(stage='probes', only=('^probe_',)), optim=optim))
    stage = stages.build(changed, 'specialist', workdir)
    start = stage.initial()
    given = jax.tree.map(jnp.asarray, next(loader.train_loader(stage.data, 8, 0, teacher_outputs=stage.cached_outputs)))
    after, _ = jax.jit(stage.method.train_step)(start, stage.frozen, given)
    for name in ('probe_block1', 'probe_block3'):
        chex.assert_trees_all_equal(states['probes'][1].params['student'][name], after.params['student'][name])
    first, trained = (params['student']['of']['block1']['conv']['kernel']
                      for params in (jax.device_get(start.params), states['teacher'][1].params))
    assert (first != trained).any()


@pytest.mark.slow
def test_a_compact_teacher_of_another_depth(tmp_path):
    """Two blocks teach three: probes are compared, so neither widths nor depths need agree."""
    small = dict(name='probed', taps=('block1', 'block2'), of=dict(grating.CNN, channels=(4, 8)))
    changes = {name: dict(model=small) for name in ('teacher',)} | dict(probes=dict(model=dict(small, frozen=True)))
    taught = dict(specialist=dict(stage='probes', outputs=('logits', 'probe_block1', 'probe_block2')))
    conf = resolved(**changes, specialist=dict(method=dict(name='specialist', taps=('block1', 'block3:block2')),
                                               teachers=taught))
    for name in ('teacher', 'probes', 'specialist'):
        state, _ = train.train(stages.build(conf, name, tmp_path), tmp_path, tensorboard=False)
    assert np.isfinite(jax.tree.leaves(state.params)[0]).all()


@pytest.mark.parametrize('wrong, said', [
    (dict(method=dict(name='specialist', taps=('block4',))), 'no probe'),
    (dict(method=dict(name='specialist', weights='some')), 'weights'),
    (dict(method=dict(name='specialist', weights='single')), 'single'), (dict(teachers={}), 'one teacher'),
    (dict(method=dict(name='specialist', temperature=0.0)), 'temperature')])
def test_impossible_settings_are_refused(trained, wrong, said):
    _, workdir, _ = trained
    with pytest.raises(errors.ConfigError, match=said):
        stages.build(resolved(specialist=wrong), 'specialist', workdir)


def test_the_floor_is_told_before_training(trained):
    _, _, states = trained
    stage, _ = states['specialist']
    found, told = evaluation.diagnose(stage)
    assert set(found) == {'probe block1', 'probe block2', 'probe block3', 'final'} and 'shortcut floor' in told
    assert all(0 <= v < 1 for values in found.values() for v in values.values())


def test_the_student_is_deployed_with_the_image_alone(trained):
    _, _, states = trained
    stage, state = states['specialist']
    predict = stage.predictors['student'].with_variables(inference_variables(state))
    given = next(loader.eval_batches(stage.data, stage.data.partition.indices('test'), 8))
    expected = np.asarray(predict.predict_batch(given)['logits'])
    np.testing.assert_array_equal(expected, predict.predict_batch({'image': given['image']})['logits'])


@pytest.mark.slow
def test_both_terms_fall(tmp_path):
    """The quick stand-in for the order of methods, which is marked slow."""
    conf = config.resolve(ConfigDict(grating.config(cases=600, steps='100 steps', batch=32)))
    for name in ('teacher', 'probes', 'specialist'):
        train.train(stages.build(conf, name, tmp_path), tmp_path, tensorboard=False)
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    lines = [line for line in lines if line['stage'] == 'specialist' and 'inter' in line]
    for term in ('inter', 'final'):
        assert np.mean([line[term] for line in lines[-2:]]) < 0.8 * lines[0][term]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(5000)
def test_the_order_of_methods_on_gratings(tmp_path):
    """Fixed square in every positive image, 1,000 steps, mean of three seeds; and ERM, which must really fail."""
    found = {}
    for seed in range(3):
        conf = config.resolve(ConfigDict(grating.config(
            seed=seed, stages=('teacher', 'probes', 'erm', 'final', 'inter', 'specialist'), steps='1000 steps',
            batch=32)))
        tests = runner.run(conf, tmp_path / str(seed))['stages']
        for name in ('erm', 'final', 'inter', 'specialist'):
            for key in ('multiclass/auroc', 'flip/auroc', 'neutral/auroc', 'neutral/delta_tpr'):
                found.setdefault((name, key), []).append(tests[name]['test']['best'][key]['value'])
    mean = {k: np.mean(v) for k, v in found.items()}
    print({' '.join(k): np.round(v, 3).tolist() for k, v in found.items()})
    assert (mean['erm', 'multiclass/auroc'] >= 0.99 and mean['erm', 'flip/auroc'] <= 0.05
            and mean['erm', 'neutral/delta_tpr'] >= 0.9)
    neutral = {name: mean[name, 'neutral/auroc'] for name in ('erm', 'final', 'inter', 'specialist')}
    assert neutral['specialist'] >= neutral['erm'] + 0.15
    assert abs(mean['specialist', 'neutral/delta_tpr']) <= 0.5 * abs(mean['erm', 'neutral/delta_tpr'])
    assert neutral['specialist'] >= max(neutral['final'], neutral['inter']) - 0.02
