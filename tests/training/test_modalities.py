"""Subsets of the inputs of a network: how often each remains, and what a network of a subset sees."""
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import errors
from jaxkd.networks import Network
from jaxkd.training import modalities

NAMES = ('ct', 'mri', 'pet')


@pytest.mark.parametrize('law, count, expected', [('subset', 2, 2 / 3), ('subset', 3, 4 / 7), ('subset', 4, 8 / 15),
                                                  ('count', 4, 0.625)])
def test_how_often_an_input_remains(law, count, expected):
    found = np.asarray(modalities.probabilities(jnp.ones((1, count)), law))[0]
    kept = np.array([[i in chosen for i in range(count)] for chosen in modalities.subsets(range(count))])
    np.testing.assert_allclose(found @ kept, expected, rtol=1e-6)
    assert found.sum() == pytest.approx(1) and len(found) == 2 ** count - 1


@pytest.mark.parametrize('law', modalities.LAWS)
def test_a_case_keeps_some_of_what_it_has(law):
    present = {'mri': np.float32([1, 0, 1, 0] * 50), 'pet': np.float32([1, 1, 0, 0] * 50), 'age': np.ones(200)}
    batch = {'mask': np.ones(200), 'present': present}
    found = jax.jit(lambda key: modalities.drop(batch, NAMES, key, law))(jax.random.key(0))['present']
    kept = np.stack([found[name] for name in NAMES], 1)
    had = np.stack([np.ones(200), present['mri'], present['pet']], 1)
    assert (kept <= had).all() and (kept.sum(1) > 0).all() and (found['age'] == 1).all()
    seen = {tuple(row) for row in kept[::4].astype(int)}
    assert len(seen) == 7, 'each subset of three'
    assert {tuple(row) for row in kept[3::4].astype(int)} == {(1, 0, 0)}


class Mean(nn.Module):
    """The mean over the inputs that a case has, (0, 3) of (1, 2) and (-1, 4) without (3, 0)."""
    flags: bool = True

    @nn.compact
    def __call__(self, inputs, train=False):
        x = jnp.stack([inputs[name] for name in NAMES], 1)
        here = jnp.stack([inputs['present'][name] for name in NAMES], 1) if self.flags and 'present' in inputs else (
            jnp.ones(x.shape[:2]))
        return {'logits': (x * here[..., None]).sum(1) / here.sum(1, keepdims=True)}


def test_a_network_of_a_subset_reads_and_sees_nothing_else():
    batch = {'ct': np.float32([[1, 2]]), 'mri': np.float32([[3, 0]]), 'pet': np.float32([[-1, 4]])}
    network = modalities.restricted(Network(Mean(), NAMES), ('ct', 'pet'), batch)
    assert network.inputs == ('ct', 'pet') and hash(network) == hash(modalities.restricted(Network(Mean(), NAMES),
                                                                                           ('ct', 'pet'), batch))
    out, _ = network.apply({}, {**batch, 'mri': np.full((1, 2), np.nan, np.float32)})
    np.testing.assert_allclose(out['logits'], [[0, 3]])


def test_networks_whose_inputs_cannot_be_hidden_are_refused():
    batch = {name: jax.ShapeDtypeStruct((4, 2), jnp.float32) for name in NAMES}
    modalities.check('x.drop', Network(Mean(), NAMES), batch)
    with pytest.raises(errors.ConfigError, match='x.drop: the model Mean reads no presence flags'):
        modalities.check('x.drop', Network(Mean(flags=False), NAMES), batch)
    with pytest.raises(errors.ConfigError, match='reads "ct" alone'):
        modalities.check('x.drop', types.SimpleNamespace(inputs=('ct',)), batch)
