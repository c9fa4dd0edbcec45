"""MIND and CMIM as configurations of the method `distil`: who learns of which cases."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.special import log_softmax

from jaxkd import config, stages
from jaxkd.contracts import Cases
from jaxkd.data import pool
from jaxkd.methods import distil
from jaxkd.state import Progress
from tests.fixtures import distillation
from tests.methods.test_distil import BATCH, IMAGE, ZS, ZT

OTHER = np.float32([[0, 1, 2], [1, 1, -1]])


def value(name, teachers, present, **options):
    """A term between the student's head and teachers of one input each, where cases lack some."""
    loss = distillation.built(name, **options)
    taps = tuple((n, 'logits') for n in teachers)
    term = distil.Term('x', loss, (('student', 'logits'),), taps, name == 'ensemble', tuple((n,) for n in teachers),
                       'label', 1.0, '')
    outputs = {n: {'logits': z} for n, z in {'student': ZS, **teachers}.items()}
    return jax.jit(lambda o: term.value(o, {}, BATCH | dict(present=present), None)[0].value)(outputs)


def test_one_teacher_of_one_input_is_plain_distillation():
    flags = dict(ct=np.float32([1, 0]))
    assert value('ensemble', dict(ct=ZT), flags, temperature=2.0) == pytest.approx(
        float(value('kd', dict(ct=ZT), flags, temperature=2.0)), rel=1e-6)


def test_the_fused_head_learns_of_cases_with_all_inputs_alone():
    flags = dict(ct=np.float32([1, 1]), mri=np.float32([0, 1]))
    p = np.mean([np.exp(log_softmax(z[1].astype(float))) for z in (ZT, OTHER)], 0)
    expected = np.sum(p * (np.log(p) - log_softmax(ZS[1].astype(float))))
    found = value('ensemble', dict(ct=ZT, mri=OTHER), flags, temperature=1.0)
    assert found == pytest.approx(expected, rel=1e-5)


def test_labels_are_learned_by_the_heads_that_apply():
    heads = np.stack([ZS, ZT], 1)
    loss = distillation.built('heads')
    cases = Cases(np.int32([0, 1]), np.ones(2, np.float32), np.arange(2), {})
    found = jax.jit(lambda h: loss.values(h, np.float32([[1, 1], [0, 1]]), cases).value)(heads)
    each = [-log_softmax(z.astype(float))[c] for z, c in ((ZS[0], 0), (ZT[0], 0), (ZT[1], 1))]
    assert found == pytest.approx(np.mean(each), rel=1e-5)
    several = Cases(np.float32([[1, 0, 1], [0, 0, 1]]), np.ones(2, np.float32), np.arange(2), {},
                    label_weight=np.float32([[1, 0, 0], [0, 0, 0]]))
    found = jax.jit(lambda h: loss.values(h, np.float32([[1, 0], [1, 1]]), several).value)(heads)
    assert found == pytest.approx(np.logaddexp(0, -2), rel=1e-5)  # of the first label of the first head


def test_the_config_gives_each_head_its_teachers(tmp_path):
    conf = config.load('configs/cpkd_ct_mri.py:mind,smoke', ['data.source.patients=20'])
    stage = stages.build(conf, 'mind', tmp_path, dry=True, pool=pool.DataPool())
    assert {*stage.method.loss_weights(Progress(0, 0, 0))} == {'sup', 'heads', 'ct', 't2', 'fused'}
    assert sorted(stage.method.teacher_terms()) == ['ct', 'fused', 't2']
    used = {term.name: term for term in stage.method.train_step.__self__.terms.keywords['used']}
    assert used['ct'].reads == ((), ('ct',), ('ct',)) and used['t2'].reads == ((), ('t2',), ('t2',))
    assert {*used['fused'].reads} == {(), ('ct',), ('t2',)}


# CMIM: L(z_a) + L(z_b) + L(z_all) - weight I(z_a; z_b), both encoders trained together.

FEATURES = distillation.taps('infonce', 3)


def bound(student, teacher, **options):
    loss = distillation.built('infonce', width=0, **options)
    return distillation.value(loss, {}, student, teacher, jnp.zeros(6, int), jnp.ones(6))


@pytest.mark.parametrize('kind', ['infonce', 'jsd'])
def test_pairs_of_a_case_are_nearer_than_shuffled_ones_and_both_sides_learn_unless_detached(kind):
    a = FEATURES[0]
    b = a + 0.1 * np.float32(np.random.default_rng(0).normal(size=a.shape))

    @jax.jit
    def run(a, b):
        both, detached = (jax.grad(functools.partial(bound, bound=kind, both=of), (0, 1))(a, b) for of in (True, False))
        return bound(a, b, bound=kind), bound(a, jnp.roll(b, 1, 0), bound=kind), both, detached
    aligned, shuffled, both, detached = run(a, b)
    assert aligned < shuffled
    assert np.asarray(both[0]).any() and np.asarray(both[1]).any()
    np.testing.assert_allclose(both[0], detached[0], atol=1e-6)
    assert np.asarray(detached[0]).any() and not np.asarray(detached[1]).any()


def test_labels_of_the_joint_features_teach_both_encoders():
    loss = distillation.built('joint', both=True)
    params = distillation.variables('joint', loss)

    @jax.jit
    def run(a, b):
        return jax.value_and_grad(lambda a, b: distillation.value(
            loss, params, a, b, jnp.asarray(distillation.labels('joint')), jnp.ones(6)), (0, 1))(a, b)
    found, (own, other) = run(*FEATURES)
    linear = params['classes']
    z = np.concatenate(FEATURES, 1) @ linear['kernel'] + linear['bias']
    assert found == pytest.approx(-log_softmax(z, 1)[np.arange(6), distillation.labels('joint')].mean(), rel=1e-5)
    assert np.asarray(own).any() and np.asarray(other).any()


def test_without_the_bound_it_is_plain_training():
    hp = ConfigDict(distil.DEFAULTS | dict(name='distil'))
    term = distil.Term('mi', distillation.built('infonce', width=0, both=True), (('student', 'logits'),),
                       (('t', 'logits'),), False, (('mri',),), 'label', 0.0, '')

    @jax.jit
    def gradient(z):
        def loss(z, used):
            found = distil.terms({'logits': z}, {'t': {'logits': ZT}}, {}, BATCH, hp, used=used,
                                 trained={'student': IMAGE})
            weigh = distil.weights(hp, Progress(0, 0, 0), used)
            return sum(w * found[n].value for n, w in weigh.items())
        return jax.grad(loss)(z, [term]), jax.grad(loss)(z, [])
    np.testing.assert_array_equal(*gradient(ZS))
