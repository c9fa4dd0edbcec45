"""What holds for every file of jaxkd/distillation: gradients, limits, masks, degenerate inputs, images and volumes."""
import functools
import importlib
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import config
from jaxkd.contracts import Sides
from jaxkd.distillation import reviewkd
from tests.fixtures import distillation
from tests.fixtures.distillation import TAPS, B, K

# taps -> (student, teacher): degenerate ones are those of a network that says nothing
KINDS = ('random', 'masked', 'other', 'zero', 'constant', 'one', 'none')
VALID = np.float32([[1] * B, [1] * (B - 2) + [0] * 2, [1] * (B - 2) + [0] * 2, [1] * B, [1] * B, [1] + [0] * (B - 1),
                    [0] * B])


def stacked(name):
    """Taps of all KINDS, [7, B, ...]. `other` differs from `masked` where cases are not valid."""
    random, other = distillation.taps(name, 1), distillation.taps(name, 2)
    mixed = jax.tree.map(lambda a, b: np.where((np.arange(B) < B - 2).reshape(-1, *[1] * (a.ndim - 1)), a, b), random,
                         other)
    return jax.tree.map(lambda a, m: np.stack([a, a, m, np.zeros_like(a), np.ones_like(a), a, a]), random, mixed)


@functools.cache
def measured(name):
    """{float32, bfloat16: (values [7], gradients of the student's taps, the teacher's, the parameters)}."""
    loss = distillation.built(name)
    params, label = distillation.variables(name, loss), jnp.asarray(distillation.labels(name))

    @jax.jit
    def run(student, teacher):
        def one(student, teacher, valid, dtype):
            def term(s, t, p):
                s, t = jax.tree.map(lambda x: x.astype(dtype), (s, t))
                return distillation.value(loss, p, s, t, label, valid, distillation.start(name))
            return jax.value_and_grad(term, (0, 1, 2))(student, teacher, params)
        return {str(jnp.dtype(dtype)): jax.vmap(functools.partial(one, dtype=dtype))(student, teacher, VALID)
                for dtype in (jnp.float32, jnp.bfloat16)}
    return jax.tree.map(np.asarray, run(*stacked(name)))


@pytest.mark.parametrize('name', TAPS)
def test_gradients_masks_and_degenerate_inputs(name):
    for dtype, (value, (student, teacher, params)) in measured(name).items():
        assert value.dtype == np.float32
        for leaf in jax.tree.leaves((value, student, params)):
            assert [k for k, x in zip(KINDS, leaf) if not np.isfinite(x).all()] == [], f'{dtype}: not finite'
        assert not any(leaf.any() for leaf in jax.tree.leaves(teacher)), 'the teacher learns'
        assert value[KINDS.index('masked')] == value[KINDS.index('other')], 'a masked case counts'
        assert value[KINDS.index('none')] == 0
    value, (student, _, params) = measured(name)['float32']
    assert all(leaf[0].any() for leaf in jax.tree.leaves(student)), 'a side of the student learns nothing'
    assert all(leaf[0].any() for leaf in jax.tree.leaves(params)), 'a head learns nothing'
    assert all(not leaf[KINDS.index('none')].any() for leaf in jax.tree.leaves((student, params)))


@pytest.mark.parametrize('name', TAPS)
def test_what_is_published_and_what_is_our_choice_is_said_beside_the_equation(name):
    text = inspect.getdoc(importlib.import_module(f'jaxkd.distillation.{name}'))
    assert re.search(r'\[(published|our choice|inferred)', text.replace('\n', ' ')), 'no evidence'
    assert re.search(r'^    \S', text, re.M), 'no equation'


# loss -> what makes both sides comparable as they are
EQUAL = dict(affinity={}, at={}, cc=dict(width=0), channel={}, cosine=dict(regressor=False), curvature={}, dist={},
             dkd={}, gd=dict(temperature=1.0), hint=dict(regressor=False), kd={}, kd_bce={}, lskd={}, mad={}, pkt={},
             pmkl={}, probabilities={}, prototype={}, region={}, rkd={}, sp={}, variation={})


@functools.cache
def of_equal_sides():
    """{loss: (value, gradient of the student)} where the student says what the teacher says, one program."""
    def one(name, options, x):
        loss, label = distillation.built(name, **options), jnp.asarray(distillation.labels(name))
        logits = (distillation.taps(name, 1)[1][1],) if name == 'mad' else ()  # the teacher's second tap
        sides = (lambda s, t: ((s,), (t, *logits))) if name == 'mad' else lambda s, t: (s, t)
        return jax.value_and_grad(lambda s: distillation.value(loss, {}, *sides(s, x), label, jnp.ones(B)))(x)

    @jax.jit
    def run(taps):
        return {name: one(name, options, taps[name]) for name, options in EQUAL.items()}
    return jax.tree.map(np.asarray, run({n: jax.tree.leaves(distillation.taps(n, 1)[0])[0] for n in EQUAL}))


@pytest.mark.parametrize('name', EQUAL)
def test_a_student_that_says_what_the_teacher_says_has_nothing_to_learn(name):
    value, gradient = of_equal_sides()[name]
    if name != 'gd':  # its smallest value is the entropy of the teacher
        assert value == pytest.approx(0, abs=2e-4 if name in ('rkd', 'pkt') else 1e-5)
    assert np.abs(gradient).max() < 1e-4


# Losses that ask not where a place lies, and the channels of both sides where they are no classes
PLACES = dict.fromkeys(('channel', 'dist', 'dkd', 'gd', 'kd', 'kd_bce', 'lskd', 'pmkl', 'probabilities'), (K, K))
PLACES |= dict.fromkeys(('affinity', 'at', 'hint', 'prototype', 'region', 'sp', 'variation', 'vid'), (2, 3))
PLACES |= dict.fromkeys(('cosine', 'pmkl_contrast'), (4, 5))


@functools.cache
def of_images_and_volumes():
    """{loss: its values of the same 16 places as an image and as a volume}, one program."""
    rng, label = np.random.default_rng(0), jnp.asarray(np.arange(16 * B) % K)
    x = {name: [np.float32(rng.normal(size=(B, 16, channels))) for channels in both] for name, both in PLACES.items()}
    losses = {name: distillation.built(name, **(dict(regressor=False) if name == 'hint' else {})) for name in PLACES}
    params = {name: distillation.variables(name, loss) for name, loss in losses.items()}

    @jax.jit
    def run(x):
        def one(name, places):
            student, teacher = (a.reshape(B, *places, -1) for a in x[name])
            if name == 'hint':
                teacher = teacher[..., :2]
            return distillation.value(losses[name], params[name], student, teacher, label.reshape(B, *places),
                                      jnp.float32([1] * (B - 1) + [0]))
        return {name: [one(name, places) for places in ((4, 4), (2, 2, 4))] for name in PLACES}
    return jax.tree.map(np.asarray, run(x))


@pytest.mark.parametrize('name', PLACES)
def test_a_volume_is_an_image_of_its_places(name):
    image, volume = of_images_and_volumes()[name]
    assert image > 0 and volume == pytest.approx(image, rel=1e-5)


@pytest.mark.parametrize('name, shape', [('reviewkd', ((2, 4, 4, 2), (2, 2, 2, 3))), ('adversary', ((2, 4, 4, K),))])
def test_losses_with_convolutions_read_volumes(name, shape):
    rng = np.random.default_rng(0)
    maps = [tuple(np.float32(rng.normal(size=(B, *one))) for one in shape) for _ in range(2)]
    student, teacher = maps if name == 'reviewkd' else [side[0] for side in maps]
    module, hp = config.options('distillation', dict(distillation.TAPS[name][1], name=name), 'losses')
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), (student, teacher))
    loss = module.build(hp, Sides(*one, jax.ShapeDtypeStruct((1,), np.int32), K, 20, 10, 2.0, 0, 0, 'losses.x'))
    (head, network), = loss.heads.items()

    @jax.jit
    def run(student, teacher):
        params = {head: network.init(jax.random.key(0), student)['params']}
        return jax.value_and_grad(lambda s, p: distillation.value(loss, p, s, teacher, None, jnp.ones(B)), (0, 1))(
            student, params)
    value, gradients = run(student, teacher)
    assert value > 0 and all(np.isfinite(g).all() and np.asarray(g).any() for g in jax.tree.leaves(gradients))


def test_levels_of_reviewkd_are_those_of_an_image_in_each_slice():
    rng = np.random.default_rng(0)
    a, b = np.float32(rng.normal(size=(2, B, 4, 4, 3)))
    deep = lambda x: np.repeat(x[:, None], 4, 1)  # noqa: E731
    found = jax.jit(reviewkd.hierarchical)
    np.testing.assert_allclose(found(deep(a), deep(b)), found(a, b), rtol=1e-5)
