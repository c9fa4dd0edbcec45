"""What must not change a loss, and where it has its minimum."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import errors
from jaxkd.contracts import Cases
from jaxkd.distillation import (
    adversary,
    affinity,
    at,
    cc,
    confident,
    crd,
    curvature,
    dist,
    infonce,
    lskd,
    mar,
    ntxent,
    pkt,
    reviewkd,
    rkd,
    sp,
)
from tests.fixtures import distillation

RNG = np.random.default_rng(0)
X, Y, ONES = np.float32(RNG.normal(size=(5, 4))), np.float32(RNG.normal(size=(5, 4))), np.ones(5, np.float32)
MAP, OTHER = np.float32(RNG.normal(size=(3, 4, 4, 4))), np.float32(RNG.normal(size=(3, 4, 4, 4)))
ROTATION = np.float32(np.linalg.qr(RNG.normal(size=(4, 4)))[0])
ORDER = np.array([3, 0, 4, 1, 2])


@functools.cache
def found():
    """{loss: (value, what must equal it, what must not)} as one program."""
    def both(loss, x, moved, y, changed=None):
        return loss(x, y), loss(moved, y), loss(x if changed is None else changed, y + (0.5 if changed is None else 0))

    @jax.jit
    def run(x, y, a, b):
        ones = jnp.ones(5)
        relations = lambda x, y: jnp.stack(rkd.relations(x, y, ones))  # noqa: E731
        correlated = lambda x, y: jnp.stack(dist.correlations(x, y, ones))  # noqa: E731
        shuffled, plain = ((x[ORDER], y[ORDER]), (x, y))
        congruence = {form: [cc.gap(*pair, ones, form) for pair in (plain, shuffled)]
                      for form in ('paper', 'repdistiller')}
        return {
            'rkd: translated, rotated, scaled': both(relations, x, 3 * x @ ROTATION + 7, y, x * jnp.arange(1., 5)),
            'sp: rotated, scaled': both(lambda x, y: sp.gap(x, y, ones), x, 3 * x @ ROTATION, y, x + 1),
            'pkt: rotated, each case scaled': both(lambda x, y: pkt.divergence(x, y, ones), x,
                                                   jnp.arange(1., 6)[:, None] * x @ ROTATION, y, x + 1),
            'lskd: shifted, scaled': both(lskd.softened, x, 3 * x + jnp.arange(5.)[:, None], y, x ** 2),
            'dist: each case shifted': both(correlated, x, x + jnp.arange(5.)[:, None], y, 2 * x),
            'at: channels rotated, scaled': both(lambda x, y: at.gap(x, y), a, 3 * a @ ROTATION, b, a + 1),
            'affinity: channels rotated, places scaled': both(lambda x, y: affinity.gap(x, y), a,
                                                              a @ ROTATION * (1 + a[..., :1] ** 2), b, a + 1),
            'infonce: each case scaled': both(lambda x, y: infonce.infonce(infonce.cosines(x, y), ones), x,
                                              x * jnp.arange(1., 6)[:, None], y, x + 1),
            'ntxent: each case scaled': both(lambda x, y: ntxent.nt_xent(x, y, ones), x, x * jnp.arange(1., 6)[:, None],
                                             y, x + 1),
            'curvature: rotated, each case scaled': both(lambda x, y: curvature.gap(x, y, ones, 3), x,
                                                         jnp.arange(1., 6)[:, None] * x @ ROTATION, y, x + 1),
            'cc: order': (*congruence['paper'], congruence['repdistiller'][1] - congruence['repdistiller'][0]),
            'equal': jnp.stack([*relations(x, x), sp.gap(x, x, ones), pkt.divergence(x, x, ones), cc.gap(x, x, ones),
                                curvature.gap(x, x, ones),
                                lskd.softened(x, x).mean(), *correlated(x, x), at.gap(a, a).mean(),
                                affinity.gap(a, a).mean(), reviewkd.hierarchical(a, a).mean()])}
    return jax.tree.map(np.asarray, run(X, Y, MAP, OTHER))


@pytest.mark.parametrize('name', ['rkd: translated, rotated, scaled', 'sp: rotated, scaled',
                                  'pkt: rotated, each case scaled', 'lskd: shifted, scaled', 'dist: each case shifted',
                                  'at: channels rotated, scaled', 'affinity: channels rotated, places scaled',
                                  'infonce: each case scaled', 'ntxent: each case scaled',
                                  'curvature: rotated, each case scaled'])
def test_a_loss_does_not_see(name):
    value, same, changed = found()[name]
    np.testing.assert_allclose(same, value, rtol=2e-4, atol=1e-6)
    assert (np.abs(changed - value) > 1e-4).all(), 'it sees nothing at all'


def test_the_order_of_a_batch_changes_cc_of_repdistiller_and_not_that_of_the_paper():
    value, shuffled, other = found()['cc: order']
    assert shuffled == pytest.approx(value, rel=1e-5) and abs(other) > 1e-3


def test_equal_sides_have_no_gap():
    np.testing.assert_allclose(found()['equal'], 0, atol=2e-5)


def test_dkd_refuses_two_classes_and_pmkl_labels_that_are_together():
    with pytest.raises(errors.ConfigError, match='losses.x: dkd needs three or more classes .* here are 2.*Take "kd"'):
        _build('dkd', (2,), (2,))
    with pytest.raises(errors.ConfigError, match='lskd needs two or more classes'):
        _build('lskd', (1,), (1,))
    with pytest.raises(errors.ConfigError, match='at.*have no places|vectors of 4 and 5, which have no places'):
        _build('at', (4,), (5,))
    with pytest.raises(errors.ConfigError, match=r'\[4, 4, 2\], of the teacher \[3, 3, 2\].*multiples'):
        _build('hint', (4, 4, 2), (3, 3, 2))
    with pytest.raises(errors.ConfigError, match='needs a label for each place'):
        _build('region', (4, 4, 2), (4, 4, 2))
    with pytest.raises(errors.ConfigError, match='mar practises subsets of the inputs .* Set drop="subset"'):
        _build('mar', (4,), (2,))
    with pytest.raises(errors.ConfigError, match='mad reads one tap of the student'):
        _build('mad', ((4,),), ((4,),))


def _build(name, student, teacher):
    from jaxkd import config
    from jaxkd.contracts import Sides
    module, hp = config.options('distillation', dict(name=name), 'losses')
    one = jax.tree.map(lambda shape: jax.ShapeDtypeStruct((1, *shape), jnp.float32), (student, teacher),
                       is_leaf=lambda x: isinstance(x, tuple) and isinstance(x[0], int))
    return module.build(hp, Sides(*one, jax.ShapeDtypeStruct((1,), jnp.int32), 2, 20, 10, 2.0, 0, 0, 'losses.x'))


def test_teachers_weigh_by_how_well_they_know_the_label():
    teachers = np.float32([[[5, 0, 0], [0, 0, 0], [1, 2, 3]], [[0, 5, 0], [0, 0, 0], [3, 2, 1]]])
    w = np.asarray(jax.jit(confident.confidence)(teachers, np.int32([0, 1, -1])))
    gap = np.log(np.exp(teachers[:, 0]).sum(-1)) - teachers[:, 0, 0]
    np.testing.assert_allclose(w[:, 0], 1 - np.exp(gap) / np.exp(gap).sum(), rtol=1e-5)
    assert w[0, 0] > 0.99 and (w[:, 1:] == 0.5).all()
    np.testing.assert_allclose(w.sum(0), 1, rtol=1e-6)


def test_the_adversary_learns_to_tell_and_the_student_to_be_taken_for_the_teacher():
    loss = distillation.built('adversary', reverse=0.5)
    params, (student, teacher) = distillation.variables('adversary', loss), distillation.taps('adversary', 1)

    def run(student, params, of):
        return distillation.value(of, params, student, teacher, None, np.ones(6, np.float32))
    one, two = (jax.jit(jax.grad(lambda s, p, of=of: run(s, p, of), (0, 1)))(student, params) for of in (
        loss, distillation.built('adversary', reverse=0.0)))
    value = jax.jit(lambda s: run(s, params, loss))
    step = 0.5 * one[0] / np.linalg.norm(one[0])
    assert float(value(student - step)) > float(value(student)), 'a step of the student makes it harder to tell'
    assert not two[0].any()
    for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(two[1])):  # the discriminator learns the same in both
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(adversary.entropy(np.zeros((1, 4), np.float32)), 0.25 * 2 / 2, rtol=1e-6)


def test_the_weak_set_of_mar_is_the_subset_whose_predictions_differ_most():
    """Against (.6,.4): (.7,.3) 0.004861, (.55,.45) 0.001244, (.9,.1) 0.041023."""
    counts = np.zeros((7, 2), np.float32)  # a, b, c, ab, ac, bc, abc
    counts[3:] = 20 * np.float32([[.7, .3], [.55, .45], [.9, .1], [.6, .4]])
    gaps, weak, none = jax.jit(lambda c: (mar.divergence(c[3:6], c[6]), mar.weak(c, 3), mar.weak(0 * c, 3)))(counts)
    np.testing.assert_allclose(gaps, (.004861, .001244, .041023), atol=6e-7)
    np.testing.assert_array_equal(weak, (0, 1, 1, 0, 0, 1, 0))  # bc, b and c
    assert not none.any()


def test_mar_counts_predictions_during_its_epochs_alone():
    loss, (student, logits) = distillation.built('mar', mining=(1.0, 2.0)), distillation.taps('mar', 3)
    heads = {'auxiliary': lambda x: x[:, :3]}
    valid = np.float32([1, 1, 1, 1, 1, 0])

    @jax.jit
    def step(memory):
        cases = Cases(jnp.asarray(distillation.labels('mar')), valid, np.arange(6), heads, memory, distillation.KEPT)
        return loss.values(student, logits, cases)
    memory, values, counts = loss.memory(), [], []
    for _ in range(6):  # two calls are an epoch
        value, memory = step(memory)
        values.append(float(value))
        counts.append(np.asarray(memory['counts']).sum())
    assert counts == [0, 0, 5, 10, 10, 10] and values[:3] == [0, 0, 0] and values[3] > 0
    np.testing.assert_array_equal(np.asarray(memory['counts']).sum(1), (6, 2, 2))  # ct, mri, both


def test_the_memory_of_crd():
    """Entries of a batch move towards its features, those of others and of masked cases stay, Z is that of the first
    batch, and no case is its own negative.
    """
    loss = distillation.built('crd')
    params, (student, teacher) = distillation.variables('crd', loss), distillation.taps('crd', 3)
    heads = {side: functools.partial(loss.heads[side].apply, {'params': params[side]}) for side in params}
    valid, index = np.float32([1, 1, 1, 1, 1, 0]), np.int32([4, 7, 1, 0, 9, 12])

    @jax.jit
    def step(memory):
        return loss.values(student, teacher, Cases(None, valid, index, heads, memory))[1]

    before = loss.memory()
    after = step(before)
    later = step(after)
    entered = np.isin(np.arange(20), index[:5])
    np.testing.assert_array_equal(after['seen'], entered)
    for side, x in (('student', student), ('teacher', teacher)):
        np.testing.assert_array_equal(after[side][~entered], before[side][~entered])
        v = np.asarray(heads[side](x))
        v = v / np.linalg.norm(v, axis=1, keepdims=True)
        expected = 0.5 * np.asarray(before[side])[index[:5]] + 0.5 * v[:5]
        np.testing.assert_allclose(np.asarray(after[side])[index[:5]],
                                   expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(after[side], axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(after['z'], later['z'])
    assert (np.asarray(after['z']) > 0).all() and int(later['draws']) == 2
    drawn = np.asarray(jax.jit(lambda: crd.others(jax.random.key(0), after['seen'], index, 200))())
    assert set(drawn.ravel()) == set(index[:5].tolist()), 'cases that training never saw are drawn'
    assert (drawn[:5] != index[:5, None]).all()
