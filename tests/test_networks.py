"""A network's shapes are found once, and what it is made of must be comparable."""
import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from jaxkd import errors, networks
from jaxkd.networks import Network

TRACES = []


class Counted(nn.Module):
    width: int

    @nn.compact
    def __call__(self, inputs, train):
        TRACES.append(train)
        return {'logits': nn.Dense(self.width)(inputs['x'])}


def test_equal_networks_are_traced_once_for_each_kind_of_batch():
    TRACES.clear()
    batch = {'x': jnp.zeros((4, 3)), 'y': jnp.zeros(4)}
    for _ in range(3):
        shapes = Network(Counted(7), ('x',)).output_shapes(batch)
        assert shapes == {'logits': jax.ShapeDtypeStruct((4, 7), jnp.float32)}
        shapes.clear()  # the caller's to change
    assert TRACES == [False, False]  # its variables, its outputs
    Network(Counted(7), ('x',)).output_shapes(batch, train=True)
    assert TRACES == [False, False, True]
    network, eight = Network(Counted(7), ('x',)), {'x': jnp.zeros((8, 3))}
    assert network.output_shapes(eight) == {'logits': jax.ShapeDtypeStruct((8, 7), jnp.float32)}
    assert network.variable_shapes(eight) == jax.eval_shape(network.init, jax.random.key(0), {'x': jnp.zeros((1, 3))})
    Network(Counted(7), ('x',), task='grade').output_shapes(eight)
    assert TRACES == [False, False, True]  # whatever the number of cases and the task
    Network(Counted(7), ('x',)).output_shapes({'x': jnp.zeros((4, 5))})
    Network(Counted(8), ('x',)).output_shapes(batch)
    assert len(TRACES) == 7


def test_initial_variables_share_that_trace_and_may_be_part_of_another_program(monkeypatch):
    """As outside of tests, where a program of its own is compiled with options that a nested one must not have."""
    monkeypatch.setenv('XLA_FLAGS', '')
    TRACES.clear()
    network, batch, key = Network(Counted(9), ('x',)), {'x': jnp.zeros((1, 3))}, jax.random.key(1)
    network.output_shapes(batch)
    assert TRACES == [False, False]
    alone = network.init(key, batch)
    again = Network(Counted(9), ('x',)).init(jax.random.key(1), batch)
    assert TRACES == [False, False]
    nested = jax.jit(network.init)(key, batch)
    chex.assert_trees_all_equal(alone, again, nested)
    assert jax.eval_shape(network.init, key, batch) == jax.eval_shape(lambda: alone)


def test_a_field_that_cannot_be_compared_is_refused(tmp_path, monkeypatch):
    (tmp_path / 'outside').mkdir()
    (tmp_path / 'outside/listed.py').write_text('''
import flax.linen as nn, numpy as np
DEFAULTS = {}
class Net(nn.Module):
    table: object
    def __call__(self, inputs, train): return {'logits': inputs['x']}
def build(hp, outputs, dtype): return Net(np.zeros(3))
''')
    monkeypatch.syspath_prepend(tmp_path)
    hp = ConfigDict(dict(inputs=('x',), input_fn='', model=dict(name='outside.listed')))
    with pytest.raises(errors.ConfigError, match='builds a Net with a field that cannot be hashed'):
        networks.build(hp, 'float32', 2, {'x': jnp.zeros((1, 3))}, None, 'student')
