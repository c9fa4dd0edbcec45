"""SIKD and the loss of segmentations: worked numbers, where gradients go, what the student may know."""
import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from scipy.special import softmax

from jaxkd import checkpoint, config, errors, losses, optim, stages, steps, train
from jaxkd.data import loader
from jaxkd.data.pool import DataPool
from jaxkd.distillation import hint
from jaxkd.methods import segmentation as dense
from jaxkd.methods import sikd
from jaxkd.metrics import segmentation
from jaxkd.state import Progress, inference_variables
from tests.fixtures.compiled import call

X = np.float32([[.1, .3, .8], [.2, .9, .7], [.4, .5, .6]])
Y = np.uint8([[0, 0, 3], [0, 3, 3], [1, 1, 2]])
CLASS_MEAN = jax.jit(sikd.class_mean, static_argnums=1)
DATA = ['data.source.patients=10', 'data.source.size=32', 'data.image.size=32', 'data.split.stratify=']
POOL = DataPool()  # stages of the same data share its cases
NOW = Progress(jnp.float32(0), jnp.float32(0), jnp.float32(0))


def painted(x, y, classes=4):
    return np.asarray(CLASS_MEAN({'image': np.float32(x)[None, ..., None], 'label': np.asarray(y)[None]},
                                 classes)['image'][0, ..., 0])


def options(**given):
    return ConfigDict({**dense.DEFAULTS, 'name': 'segmentation', **given})


# 1. Averaging.

def test_worked_image():
    wanted = np.float32([[.2, .2, .8], [.2, .8, .8], [.45, .45, .6]])
    np.testing.assert_allclose(painted(X, Y), wanted, atol=1e-6)
    np.testing.assert_allclose(painted(wanted, Y), wanted, atol=1e-6)  # idempotent
    np.testing.assert_allclose(painted(X, Y).sum(), X.sum(), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(-3, 3), st.floats(-3, 3), st.sampled_from([(5, 6), (3, 4, 5)]))
def test_averaging_is_linear_and_forgets_where_a_pixel_was(seed, a, b, shape):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=shape), rng.integers(0, 4, shape).astype(np.uint8)
    np.testing.assert_allclose(painted(a * x + b, y), a * painted(x, y) + b, atol=2e-5)
    moved = x.copy()
    for k in range(4):
        moved[y == k] = rng.permutation(x[y == k])
    np.testing.assert_allclose(painted(moved, y), painted(x, y), atol=1e-6)


def test_averaging_is_by_image_and_channel_and_keeps_what_is_ignored():
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 4, 4, 3), np.float32), rng.integers(0, 3, (2, 4, 4)).astype(np.uint8)
    y[0, 0, 0], y[1, 2, 3] = 255, 200
    found = np.asarray(sikd.class_mean({'image': x, 'label': y}, 3)['image'])
    for b, k, c in np.ndindex(2, 3, 3):
        np.testing.assert_allclose(found[b, y[b] == k, c], x[b, y[b] == k, c].mean(), rtol=1e-5)
    np.testing.assert_array_equal(found[y > 2], x[y > 2])


def test_fixed_point_images_are_averaged_in_their_own_units():
    x = (1000 * X).astype(np.int16)
    found = sikd.class_mean({'image': x[None, ..., None], 'label': Y[None]}, 4)['image'][0, ..., 0]
    np.testing.assert_allclose(found, painted(x / 4096, Y), atol=1e-6)


# 3, 4. The term and its gradient.

@jax.jit
def cross_entropy(z, y):
    return losses.cross_entropy(z, y.astype(int))


def toy(b=2, side=4, classes=3, channels=5, seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *s: jnp.asarray(rng.normal(size=s), jnp.float32)  # noqa: E731
    out = lambda: {'logits': normal(b, side, side, classes), 'feature': normal(b, side, side, channels)}  # noqa: E731
    batch = {'label': jnp.asarray(rng.integers(0, classes, (b, side, side)), jnp.uint8), 'mask': jnp.ones(b)}
    return out(), out(), batch


def test_the_feature_term_is_a_hint_without_a_regressor_and_weighs_2(run):
    stage = run[2]['sikd'][0]
    assert stage.method.loss_weights(NOW) == {'ce': 1.0, 'distil': 2.0}
    assert 'distil' in stage.method.teacher_terms() and run[2]['sikd'][1].params['heads'] == {}
    student, _, _ = toy()
    gap = call(hint.squared, student['feature'], student['feature'] - 0.5).mean()
    np.testing.assert_allclose(0.30 + 2.0 * gap, 0.80, rtol=1e-6)


def test_losses_on_the_distance():
    student, _, batch = toy()
    phi = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, 2)), jnp.float32)
    hp = options(boundary=0.5, distance=2.0)
    parts = call(lambda *x: dense.terms(x[0], {}, {'distance': lambda x: x[..., :2]}, x[1], hp), student,
                 {**batch, 'distance': phi})
    p = softmax(student['logits'], -1)[..., 1:]
    np.testing.assert_allclose(parts['boundary'].value, (p * phi).mean(), rtol=1e-5)
    np.testing.assert_allclose(parts['distance'].value, np.abs(np.asarray(student['feature'])[..., :2] - phi).mean(),
                               rtol=1e-5)
    assert dense.weights(hp, NOW) == {'ce': 1.0, 'boundary': 0.5, 'distance': 2.0}


# The supervised part.

def test_dice_of_the_specification():
    overlap, p, m = 157.0, 200.0, 200.0  # TP 157, FP 43, FN 43
    np.testing.assert_allclose(1 - losses.dice(jnp.array([overlap]), jnp.array([p]), jnp.array([m])), 0.785, rtol=1e-6)


def test_batch_dice_and_case_dice():
    student, _, batch = toy()
    z, y = student['logits'], batch['label'].astype(int)
    p, m = softmax(z, -1)[..., 1:], np.eye(3)[np.asarray(y)][..., 1:]
    score = lambda axis: (2 * (p * m).sum(axis) + 1e-5) / (p.sum(axis) + m.sum(axis) + 1e-5)  # noqa: E731
    found = {over: call(dense.supervised_terms, student, batch['label'], batch['mask'],
                        options(dice=1.0, dice_over=over))['dice'].value
             for over in ('batch', 'case')}
    np.testing.assert_allclose(found['batch'], 1 - score((0, 1, 2)).mean(), rtol=1e-5)
    np.testing.assert_allclose(found['case'], 1 - score((1, 2)).mean(), rtol=1e-5)


def test_no_foreground_and_nothing_to_learn_from_are_finite():
    student, _, batch = toy()
    for label in (jnp.zeros_like(batch['label']), jnp.full_like(batch['label'], 255)):
        def loss(z, label=label):
            parts = dense.supervised_terms({'logits': z}, label, batch['mask'], options(dice=1.0))
            return sum(p.value for p in parts.values())
        value, gradient = jax.jit(jax.value_and_grad(loss))(student['logits'])
        assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_ignored_places_padded_cases_and_class_weights():
    student, _, batch = toy()
    hp, label = options(dice=1.0, class_weights=(1.0, 3.0, 0.0)), np.array(batch['label'])
    label[0, :2] = 255
    part = jax.jit(lambda z, y, mask: dense.supervised_terms({'logits': z}, y, mask, hp))
    z, one = student['logits'], jnp.array([1.0, 0.0])
    before = part(z, label, one)
    after = part(z.at[0, :2].add(9.0).at[1].add(-5.0), label, one)
    for name in before:
        np.testing.assert_allclose(before[name].value, after[name].value, rtol=1e-6)
    ce, y = losses.cross_entropy(z[0, 2:], batch['label'][0, 2:].astype(int)), np.asarray(batch['label'][0, 2:])
    w = np.array([1.0, 3.0, 0.0])[y]
    np.testing.assert_allclose(before['ce'].value, (w * ce).sum() / w.sum(), rtol=1e-5)


def test_deep_supervision_halves_the_weight_of_each_level():
    hp = options(ce=1.0, dice=1.0)
    found = dense.supervised_weights(hp, dense.levels({'logits': 0, 'logits2': 0, 'logits1': 0, 'feature': 0}))
    assert list(found) == ['ce', 'ce1', 'ce2', 'dice', 'dice1', 'dice2']
    np.testing.assert_allclose([found['ce'], found['ce1'], found['ce2']], np.array([4, 2, 1]) / 7)
    student, _, batch = toy()
    coarse = student | {'logits1': student['logits'][:, ::2, ::2]}
    parts = call(dense.supervised_terms, coarse, batch['label'], batch['mask'], hp)
    y = np.asarray(batch['label'])[:, 1::2, 1::2]  # the middle of two places, rounded up
    np.testing.assert_allclose(parts['ce1'].value, cross_entropy(coarse['logits1'], y).mean(), rtol=1e-6)


def test_nearest_and_pool():
    x = np.arange(8)[None]
    np.testing.assert_array_equal(losses.nearest(x, (4,))[0], [1, 3, 5, 7])
    np.testing.assert_array_equal(losses.nearest(x, (8,))[0], x[0])
    np.testing.assert_array_equal(losses.nearest(x[:, :2], (4,))[0], [0, 0, 1, 1])
    volume = np.random.default_rng(0).normal(size=(2, 4, 8, 8, 3)).astype(np.float32)
    pooled = np.asarray(call(losses.pool, volume, most=32))
    assert pooled.shape == (2, 32, 3)
    np.testing.assert_allclose(pooled.mean(1), volume.mean((1, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(losses.pool(volume, 256), volume.reshape(2, 256, 3))
    with pytest.raises(errors.ConfigError, match='halved'):
        losses.pool(volume[:, :3, :3, :3], 8)


# 2, 5, 6. Two stages as a user runs them.

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Teacher and student of two steps each on the phantom's slices: {stage: (Stage, State)}, folder."""
    folder = tmp_path_factory.mktemp('sikd')
    conf = config.load('configs/sikd_acdc.py:smoke', ['stages=teacher,sikd', *DATA])
    for name in conf.stages:
        conf[name].update(length='2 steps', eval_every='2 steps', select='')
        conf[name].model.channels = (8, 16)
    found = {}
    for name in conf.stages:
        stage = stages.build(conf, name, folder, pool=POOL)
        found[name] = stage, *train.train(stage, folder, tensorboard=False)
    return conf, folder, found


def test_the_teacher_is_frozen(run):
    conf, folder, found = run
    stage, state, _ = found['sikd']
    before, _ = checkpoint.load_student(folder / 'checkpoints' / 'teacher', stage.frozen['shape'], 'best')
    # weights and batch statistics
    chex.assert_trees_all_equal(jax.device_get(stage.frozen['shape']), jax.device_get(before))
    assert set(state.params) == {'student', 'heads'}
    batch = next(loader.eval_batches(stage.data, stage.data.partition.indices('train'), 8))
    apply = jax.jit(lambda variables: stage.context.teachers['shape'].apply(variables, batch)[0]['feature'])
    out = [apply(stage.frozen['shape']) for _ in range(2)]
    np.testing.assert_array_equal(*out)


def test_where_the_gradient_of_the_distillation_goes(run):
    stage, state, _ = run[2]['sikd']
    network = stage.context.networks['student']
    batch = next(loader.eval_batches(stage.data, stage.data.partition.indices('train'), 8))

    def term(params):
        outputs, _ = steps.run_networks(stage.context, {'student': params}, state.stats, stage.frozen, batch,
                                        jax.random.key(0))
        return hint.squared(outputs['student']['feature'], outputs['shape']['feature']).mean()
    grads = jax.jit(jax.grad(term))(inference_variables(state)['params'])
    assert network.inputs == ('image',)
    reached = {name: max(np.abs(g).max() for g in jax.tree.leaves(sub)) for name, sub in grads.items()}
    assert reached.pop('head0') == 0  # the last 1x1 convolution
    assert min(reached.values()) > 0, reached  # the encoder and every block of the decoder


def test_the_student_knows_the_image_alone(run):
    stage, state, _ = run[2]['sikd']
    network, variables = stage.context.networks['student'], inference_variables(state)
    batch = next(loader.eval_batches(stage.data, stage.data.partition.indices('test'), 8))
    compiled = jax.jit(lambda inputs: network.apply(variables, inputs)[0]['logits'])
    apply = lambda batch: compiled(network.only(batch))  # noqa: E731
    out = apply(batch)
    blind = apply({'image': batch['image']})
    other = apply({**batch, 'label': batch['label'] * 0 + 255})
    np.testing.assert_array_equal(out, blind)
    np.testing.assert_array_equal(out, other)


def test_the_students_of_all_arms_are_one_network_with_equal_training():
    conf = config.load('configs/sikd_acdc.py')
    arms = [conf[name] for name in ('unet', 'kd', 'sikd', 'born_again', 'hint', 'attention', 'channel', 'affinity',
                                    'variation',
                                    'region', 'sikd_shape', 'sikd_skips')]
    for key in ('model', 'inputs', 'optim', 'batch', 'length', 'data', 'dtype', 'init'):
        assert all(arm[key] == arms[0][key] for arm in arms), key


@pytest.mark.slow
def test_the_teacher_knows_shapes_in_class_means_and_little_in_raw_images(tmp_path):
    conf = config.load('configs/sikd_acdc.py', ['stages=teacher', 'data.source.patients=40', 'teacher.length=200 steps',
                                                'teacher.eval_every=200 steps'])
    stage = stages.build(conf, 'teacher', tmp_path)
    state, _ = train.train(stage, tmp_path, tensorboard=False)
    network, variables = stage.context.networks['student'], inference_variables(state)
    raw = dataclasses.replace(network, inputs=('image',), input_fn=None)
    found = {}
    for name, reader in (('means', network), ('raw', raw)):
        every = []
        for batch in loader.eval_batches(stage.data, stage.data.partition.indices('val'), 16):
            label = np.asarray(reader.apply(variables, batch)[0]['logits'].argmax(-1))
            every += [segmentation.dices(p, t, stage.data.source.labels, 'present') for p, t, here in
                      zip(label, np.asarray(batch['label']), batch['mask']) if here]
        found[name] = np.nanmean([list(row.values()) for row in every])
    # 0.58 and 0.21; with longer training 0.92
    assert found['means'] > 0.5 and found['raw'] < 0.5 * found['means'], found


def test_published_schedule():
    conf = config.load('configs/sikd_acdc.py:acdc')
    hp = conf.sikd.optim
    rate = optim.build(hp, 200 * 10, 10.0, 16).rate
    at = [float(rate(10 * epoch)) for epoch in (0, 59, 60, 100, 150, 180, 199)]
    np.testing.assert_allclose(at, [1e-3, 1e-3, 5e-4, 2.5e-4, 1.25e-4, 6.25e-5, 6.25e-5], rtol=1e-5)
    assert (hp.name, hp.weight_decay, hp.clip, conf.sikd.batch) == ('adam', 0.0, 0.0, 16)


def test_summary_of_a_run_is_json(run):
    assert json.loads(config.dump(run[0]))['sikd']['method']['weight'] == 2.0


# Errors.

@pytest.mark.parametrize('changes, told', [
    (['sikd.method.tap=dec9'], 'reads "dec9" of "student", which gives .*dec1'), (['sikd.method.tap=enc2'], ''),
    (['sikd.method.class_weights=(1.0,2.0)'], '4 classes'), (['sikd.method.dice_over=bach'], 'batch'),
    (['unet.method.boundary=0.5'], 'augment'), (['sikd.method.ce=0.0'], 'not both 0')])
def test_mistakes_are_told(changes, told, tmp_path):
    conf, stage = config.load('configs/sikd_acdc.py:smoke', [*DATA, *changes]), changes[0].partition('.')[0]
    if told:
        with pytest.raises(errors.ConfigError, match=told):
            stages.build(conf, stage, tmp_path, dry=True, pool=POOL)
    else:
        assert stages.build(conf, stage, tmp_path, dry=True, pool=POOL)  # any tap that both have will do
