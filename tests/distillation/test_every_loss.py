"""What holds for every file of jaxkd/distillation: gradients, limits, masks, degenerate inputs."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures import distillation
from tests.fixtures.distillation import TAPS, B

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
