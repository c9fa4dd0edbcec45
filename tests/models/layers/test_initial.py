"""Initial values are those of flax, and each shape is traced once."""
import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxkd.models.layers import initial


@pytest.mark.parametrize('ours, theirs', [
    (initial.small_normal, nn.initializers.truncated_normal(0.02)),
    (initial.glorot_uniform, nn.initializers.xavier_uniform()),
    (initial.kaiming('fan_in'), nn.initializers.variance_scaling(2.0, 'fan_in', 'normal'))])
def test_values_are_those_of_flax(ours, theirs):
    key, shape = jax.random.key(3), (3, 4, 5)
    np.testing.assert_array_equal(ours(key, shape), jax.jit(lambda key: theirs(key, shape))(key))


def test_a_shape_is_traced_once_for_all_layers_and_calls():
    drawn = []

    def draw(key, shape, dtype=float):
        drawn.append(shape)
        return jax.random.normal(key, shape, dtype)
    once = initial._once(draw)

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4, kernel_init=once)(nn.Dense(4, kernel_init=once)(x))
    x = np.ones((2, 4), np.float32)
    variables = jax.eval_shape(Twice().init, jax.random.key(0), x)
    jax.eval_shape(Twice().apply, variables, x)
    assert drawn == [(4, 4)] and initial.kaiming() is initial.kaiming()
