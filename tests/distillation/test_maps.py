"""The losses between maps against plain loops, and the places that they skip."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.distillation import affinity, at, channel, cosine, hint, prototype, region, variation

RNG = np.random.default_rng(0)
A, B = np.float32(RNG.normal(size=(2, 2, 4, 4, 5)))  # the student's maps of two cases, the teacher's
LABEL = RNG.integers(0, 3, (2, 4, 4)).astype(np.uint8)
T = 4.0
OF_CLASSES = {'variation': variation, 'region': region, 'prototype': prototype}


@functools.cache
def found():
    """{loss: values of both cases}, one program."""
    @jax.jit
    def run(a, b):
        return {'hint': hint.squared(a, b), 'cosine': cosine.distance(a, b), 'at': at.gap(a, b),
                'channel': channel.divergence(a, b, T), 'affinity': affinity.gap(a, b, 16),
                **{name: module.gap(a, b, LABEL, 3) for name, module in OF_CLASSES.items()}}
    return run(A, B)


def test_losses_of_maps_against_plain_loops():
    a, b, y = np.float64(A[0]).reshape(16, 5), np.float64(B[0]).reshape(16, 5), LABEL[0].reshape(16)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    soft = lambda x: np.exp(x) / np.exp(x).sum(0, keepdims=True)  # noqa: E731
    q = [unit((x ** 2).sum(-1)) for x in (a, b)]
    p, s = soft(b / T), soft(a / T)
    mu = [np.stack([x[y == k].mean(0) for k in range(3)]) for x in (a, b)]
    near = [unit(x) @ unit(m).T for x, m in zip((a, b), mu)]  # [16,3]
    own = [x[np.arange(16), y] for x in near]
    pairs = [[unit(m)[k] @ unit(m)[l] for k in range(3) for l in range(k + 1, 3)] for m in mu]
    wanted = dict(
        hint=((a - b) ** 2).mean(), cosine=(1 - (unit(a) * unit(b)).sum(-1)).mean(), at=((q[0] - q[1]) ** 2).mean(),
        channel=T ** 2 / 5 * (p * np.log(p / s)).sum(),
        affinity=((unit(a) @ unit(a).T - unit(b) @ unit(b).T) ** 2).mean(), variation=((own[0] - own[1]) ** 2).mean(),
        region=np.mean((np.array(pairs[0]) - pairs[1]) ** 2), prototype=((near[0] - near[1]) ** 2).mean())
    assert wanted.keys() == found().keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found()[name][0], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize('name', OF_CLASSES)
def test_classes_skip_what_is_ignored_and_what_a_case_lacks(name):
    label = LABEL.copy()
    label[0, 0], label[1][label[1] == 2] = 255, 0

    @jax.jit
    def gap(a):
        value, back = jax.vjp(lambda a: OF_CLASSES[name].gap(a, B, label, 3), a)
        return value, back(jnp.ones_like(value))[0]
    value, gradient = gap(A)
    moved = A.copy()
    moved[0, 0] += 3.0
    np.testing.assert_allclose(gap(moved)[0], value, rtol=1e-5)
    assert np.isfinite(gradient).all() and not gradient[0, 0].any() and gradient[1].any()
