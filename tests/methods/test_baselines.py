"""The methods that specialist teachers are compared with: worked numbers and what must not move."""
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.special import expit, log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from jaxkd import config, errors, losses, stages, train
from jaxkd.data.source import Case
from jaxkd.data.transforms import class_weight, strong
from jaxkd.distillation import at, hint
from jaxkd.methods import dfr, group_dro, jtt, mixup, supervised
from tests.fixtures import grating
from tests.fixtures.compiled import call


def options(module, **changes):
    return ConfigDict(module.DEFAULTS | dict(name=module.__name__.rpartition('.')[2]) | changes)


def cases(n=8, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    return {'logits': np.float32(rng.normal(size=(n, classes)))}, {
        'label': np.int32(rng.integers(0, classes, n)), 'mask': np.ones(n, np.float32),
        'bias': np.int32(rng.integers(0, 2, n))}


def test_group_dro_of_the_specification():
    """Losses (.2, .9, .4, .1), uniform q, eta 0.01: q = (.24950, .25125, .25000, .24925), loss 0.40095."""
    loss = np.float32([.2, .9, .4, .1])
    q = np.asarray(call(group_dro.moved, np.full(4, 0.25, np.float32), loss, 0.01))
    np.testing.assert_allclose(q, (.24950, .25125, .25000, .24925), atol=1e-5)
    assert float(q @ loss) == pytest.approx(0.40095, abs=1e-5)


def test_the_mean_of_group_dro_is_the_weighted_sum_of_group_losses():
    student, batch = cases(12)
    batch['mask'][3] = 0
    memory = {'q': np.float32([.1, .2, .3, .4])}
    found, new = call(group_dro.terms, student, {}, {}, batch, options(group_dro), memory)
    loss, group = call(losses.cross_entropy, student['logits'], batch['label']), 2 * batch['label'] + batch['bias']
    there = np.asarray(batch['mask']) > 0
    of = np.array([np.asarray(loss)[there & (group == g)].mean() if (there & (group == g)).any() else 0
                   for g in range(4)])
    expected = np.asarray(call(group_dro.moved, memory['q'], np.float32(of), 0.01))
    np.testing.assert_allclose(new['q'], expected, rtol=1e-5)
    assert float(found['dro'].value) == pytest.approx(float(expected @ of), rel=1e-5)


def test_jtt_weighs_what_the_first_network_got_wrong():
    student, batch = cases(6)
    first = 5 * np.eye(2, dtype=np.float32)[batch['label']]
    first[2] = first[2, ::-1]
    found = call(jtt.terms, student, {'first': {'logits': first}}, {}, batch, options(jtt, up=50.0))
    weight = np.ones(6)
    weight[2] = 50
    loss = np.asarray(call(losses.cross_entropy, student['logits'], batch['label']))
    assert float(found['ce'].value) == pytest.approx((weight * loss).sum() / weight.sum(), rel=1e-5)
    assert float(found['wrong'].value) == pytest.approx(1 / 6)


def test_attention_of_the_specification():
    """Q_S = (.1796, .8980, .1796, .3592), Q_T = (.9129, .3651, .1826, 0): 0.23767."""
    s = np.stack([[[1, 2], [0, 1]], [[0, 1], [1, 1]]], -1)[None].astype(np.float32)
    t = np.stack([[[2, 1], [1, 0]], [[1, 1], [0, 0]]], -1)[None].astype(np.float32)
    attention = jax.jit(losses.attention)
    np.testing.assert_allclose(attention(s)[0], (.1796, .8980, .1796, .3592), atol=1e-4)
    np.testing.assert_allclose(attention(t)[0], (.9129, .3651, .1826, 0), atol=1e-4)
    assert float(call(at.gap, s, t)[0]) == pytest.approx(0.23767, abs=1e-5)


def test_a_hint_is_0_where_features_agree():
    x = np.float32(np.random.default_rng(0).normal(size=(3, 4, 4, 5)))
    squared = jax.jit(hint.squared)
    assert not squared(x, x).any()
    np.testing.assert_allclose(squared(x, x + np.float32(0.5)), 0.25, rtol=1e-5)


def test_mixup_blends_inputs_and_losses_alike():
    rng = np.random.default_rng(0)
    batch = {'image': np.float32(rng.random((6, 4, 4, 1))), 'label': np.int32([0, 1, 0, 1, 1, 0]),
             'mask': np.ones(6, np.float32)}
    mixed = call(lambda batch, seed: mixup.mix(batch, jax.random.key(seed), options(mixup), ('image',)), batch,
                 np.uint32(3))
    mixed = jax.tree.map(np.asarray, mixed)
    lam = float(mixed['lam'][0])
    assert 0 <= lam <= 1 and (mixed['lam'] == mixed['lam'][0]).all()
    # the permutation, told by the images
    other = [int(np.argmin([np.abs(lam * batch['image'][i] + (1 - lam) * batch['image'][j] - mixed['image'][i]).sum()
                            for j in range(6)]))
             for i in range(6)]
    np.testing.assert_array_equal(mixed['other_label'], batch['label'][np.array(other)])
    z, classes = np.float32(rng.normal(size=(6, 2))), np.eye(2)
    found = call(mixup.terms, {'logits': z}, {}, {}, mixed, options(mixup))['ce'].value
    soft = lam * classes[batch['label']] + (1 - lam) * classes[mixed['other_label']]
    np.testing.assert_allclose(found, -(soft * log_softmax(z, 1)).sum(-1).mean(), rtol=1e-5)


def test_mixup_keeps_fixed_point_volumes():
    batch = {'t1': np.int16([[0], [101]]), 'label': np.int32([0, 1])}
    mixed = jax.eval_shape(lambda batch: mixup.mix(batch, jax.random.key(0), options(mixup), ('t1',)), batch)
    assert mixed['t1'].dtype == np.int16


def test_reversal_turns_the_gradient_and_keeps_the_value():
    x = jnp.float32([1.0, -2.0])
    np.testing.assert_allclose(losses.reverse(x, 0.1), x, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.grad(lambda x: (losses.reverse(x,
                                                                               0.1) * jnp.float32([3, 5])).sum()))(x),
                                                                               (-0.3, -0.5), rtol=1e-5)


@pytest.mark.parametrize('kind', ['classes', 'multilabel'])
def test_smoothing_and_confidence(kind):
    student, batch = cases(8, 3)
    if kind == 'multilabel':
        batch |= {'label': np.float32(np.random.default_rng(1).integers(0, 2, (8, 3))),
                  'label_weight': np.ones((8, 3), np.float32)}
    z = student['logits']
    hp = options(supervised, kind=kind, smoothing=0.1, confidence=0.1)
    found = call(supervised.terms, student, {}, {}, batch, hp)
    if kind == 'classes':
        soft = 0.9 * np.eye(3)[batch['label']] + 0.1 / 3
        expected, p = -(soft * log_softmax(z, 1)).sum(-1).mean(), softmax(z, 1)
        entropy = -(p * np.log(p)).sum(-1).mean()
    else:
        soft, p = 0.9 * batch['label'] + 0.05, expit(z)
        expected = call(losses.binary_cross_entropy, z, np.float32(soft)).mean()
        entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()
    assert float(found['sup'].value) == pytest.approx(float(expected), rel=1e-5)
    assert float(found['entropy'].value) == pytest.approx(float(entropy), rel=1e-5)
    assert supervised.weights(options(supervised, confidence=0.1), None) == {'sup': 1.0, 'entropy': -0.1}


@pytest.mark.parametrize('kind', ['classes', 'multilabel'])
def test_the_focal_loss_is_that_of_the_label_and_finite_where_it_is_certain(kind):
    """p = (.9, .3), y = (1, 0), power 2: 0.016577."""
    z = np.float32([np.log(9), np.log(3 / 7)])
    student, batch = {'logits': z[None]}, {'label': np.float32([[1, 0]]), 'label_weight': np.ones((1, 2), np.float32),
                                           'mask': np.ones(1, np.float32)}
    if kind == 'classes':
        student = {'logits': np.stack([0 * z, z], 1)}
        batch = {'label': np.int32([1, 0]), 'mask': np.ones(2, np.float32)}
    run = jax.jit(jax.value_and_grad(lambda s, power: supervised.terms(
        s, {}, {}, batch, options(supervised, kind=kind, focal=power))['sup'].value), static_argnums=1)
    assert float(run(student, 2.0)[0]) == pytest.approx(.016577, rel=5e-5)
    for size in (0.0, 100.0, -100.0):
        value, gradient = run({'logits': np.full_like(student['logits'], size)}, 1.5)
        assert np.isfinite(value) and np.isfinite(gradient['logits']).all()


def test_reweighing_is_a_weighted_mean():
    student, batch = cases(8)
    batch['bias_weight'] = np.float32(np.arange(1, 9))
    found = call(supervised.terms, student, {}, {}, batch, options(supervised, kind='classes', weight='bias_weight'))
    loss = np.asarray(call(losses.cross_entropy, student['logits'], batch['label']))
    assert float(found['sup'].value) == pytest.approx(np.average(loss, weights=np.arange(1, 9)), rel=1e-5)


def test_class_weights_of_each_part():
    source = types.SimpleNamespace(name='x', labels=('a', 'b'), targets={'label': np.array([0, 0, 0, 1, 0, 1])},
                                   cases=tuple(Case(f'c{i}', f'p{i}') for i in range(6)))
    found = class_weight.assign(None, source, {f'c{i}': 'train' if i < 4 else 'test' for i in range(6)})
    np.testing.assert_allclose(found.weight, [4 / 6, 4 / 6, 4 / 6, 2, 1, 1])


def test_dfr_is_the_balanced_sparse_regression():
    """Two informative features of 20: the refitted head ranks as scikit-learn's own fit does, and its log-odds are in
    the head.
    """
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 400)
    h = rng.normal(3, 2, (400, 20)) + 2 * label[:, None] * (np.arange(20) < 2)
    kernel, offset = dfr.refit(h, label, 2 * label, (1.0, 0.1, 0.01), 5, 0)
    reference = LogisticRegression(l1_ratio=1.0, C=0.1, solver='liblinear').fit((h - h.mean(0)) / h.std(0), label)
    ours, theirs = h @ kernel + offset, reference.decision_function((h - h.mean(0)) / h.std(0))
    assert np.corrcoef(ours, theirs)[0, 1] > 0.98 and ((ours > 0) == label).mean() > 0.75
    assert (np.abs(kernel[:2]) > 3 * np.abs(kernel[2:]).max()).all()
    with pytest.raises(errors.BadData, match='4 cases'):
        dfr.refit(h, label, np.arange(400), (1.0,), 2, 0)



def test_dfr_changes_the_head_and_nothing_else(tmp_path):
    run = grating.config(cases=300, steps='2 steps', batch=16, stages=('erm', 'dfr'), of=grating.SMALL)
    run['dfr'] = dict(run['erm'], data=dict(train='clean'), init=dict(stage='erm'), method=dict(name='dfr'),
                      length='1 steps', eval_every='1 steps')
    conf = config.resolve(ConfigDict(run))
    states = [train.train(stages.build(conf, name, tmp_path), tmp_path, tensorboard=False)[0]
              for name in ('erm', 'dfr')]
    before, after = (s.params['student'] for s in states)
    changed = {jax.tree_util.keystr(p) for (p, a), b in zip(jax.tree_util.tree_leaves_with_path(before),
                                                            jax.tree.leaves(after))
               if (np.asarray(a) != np.asarray(b)).any()}
    assert changed == {"['of']['head']['linear']['kernel']", "['of']['head']['linear']['bias']"}


@pytest.mark.parametrize('method', ['group_dro', 'adversarial'])
def test_methods_that_need_the_bias_say_so(method, tmp_path):
    run = grating.config(cases=300, steps='2 steps', batch=16, stages=('erm',), of=grating.SMALL)
    run['erm'] = dict(run['erm'], method=dict(name=method))
    with pytest.raises(errors.ConfigError, match='reveal'):
        stages.build(config.resolve(ConfigDict(run)), 'erm', tmp_path)
    run['erm'] |= dict(data=dict(shortcut=dict(reveal=True)))
    state, _ = train.train(stages.build(config.resolve(ConfigDict(run)), 'erm', tmp_path), tmp_path, tensorboard=False)
    assert int(state.step) == 2 and np.isfinite(jax.tree.leaves(state.params)[0]).all()


@pytest.mark.parametrize('shape', [(32, 40, 1), (32, 32, 3), (6, 12, 14, 1)])
def test_strong_augmentation(shape):
    record = {'image': np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32), 'other': np.zeros(3)}
    hp = options(strong)
    a, b = (strong.apply(record, np.random.default_rng(5), hp)['image'] for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert a.shape == shape and a.dtype == np.float32 and a.min() >= 0 and a.max() <= 1
    assert any((strong.apply(record, np.random.default_rng(k), hp)['image'] != record['image']).any() for k in range(5))
    never = options(strong, prob=0.0)
    np.testing.assert_array_equal(strong.apply(record, np.random.default_rng(0), never)['image'], record['image'])


def test_strong_augmentation_of_fixed_point_volumes():
    x = np.random.default_rng(0).uniform(-0.4, 0.4, (6, 12, 14, 1)).astype(np.float32)
    hp = options(strong, limits=(-0.5, 0.5))
    fixed = np.round(x * 4096).astype(np.int16)
    a = strong.apply({'image': fixed}, np.random.default_rng(1), hp)['image']
    b = strong.apply({'image': fixed / np.float32(4096)}, np.random.default_rng(1), hp)['image']
    assert a.dtype == np.int16
    np.testing.assert_allclose(a / 4096, b, atol=0.6 / 4096)


def test_the_whole_image_is_the_crop_of_share_one():
    x = np.random.default_rng(0).random((8, 9, 2), dtype=np.float32)
    np.testing.assert_allclose(strong._crop(x, np.ones(2), np.full(2, 0.3)), x, atol=1e-6)
