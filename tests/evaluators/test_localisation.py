"""Attention of a network and its gradient come from one pass, and are those of passes of their own."""
import types

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxkd.evaluators import localisation
from jaxkd.inference import output_memory, predictor
from jaxkd.models import vit
from jaxkd.networks import Network


def test_attention_and_its_gradient_in_one_pass():
    hp = ConfigDict(dict(vit.DEFAULTS, width=8, depth=1, heads=2, mlp=1, patch=8, std=(0.5,)))
    network = Network(vit.build(hp, 3), ('image',))
    batch = {'image': np.random.default_rng(0).integers(0, 255, (4, 16, 16, 1)).astype(np.uint8)}
    variables = network.init(jax.random.key(0), batch)
    predict = predictor.Predictor(network, types.SimpleNamespace(), 4, variables)
    found = localisation._attention(predict, batch, 4, (0, 2))

    @jax.jit
    def separate(offset):
        gradient = jax.jacrev(lambda o: network.apply(variables, batch, offset=o)[0]['logits'].sum(0))(offset)
        return network.apply(variables, batch, capture=('attention',))[0]['attention'], gradient
    attention, gradient = separate(jnp.zeros((4, 2, 5, 5)))
    np.testing.assert_allclose(found['attention'], attention, rtol=2e-6)
    assert found['gradient'].shape == (4, 2, 2, 5, 5) and np.abs(gradient).max() > 1e-5
    scale = float(np.abs(gradient).max())
    np.testing.assert_allclose(found['gradient'] / scale, np.moveaxis(gradient[np.array([0, 2])], 0, 1) / scale,
                               atol=2e-6)


def test_maps_that_another_evaluator_made_are_taken(monkeypatch):
    made = []
    monkeypatch.setattr(localisation, '_make_patch_maps', lambda *given: made.append(given) or len(made))
    network, hp = types.SimpleNamespace(), types.SimpleNamespace(batch=2, layer='')
    predict = predictor.Predictor(network, types.SimpleNamespace(), 4, {})

    def maps(of, indices, labels=(1,)):
        return localisation._patch_maps(of, indices, hp, ('last_mean',), labels)
    assert [maps(predict, [1, 2]), maps(predict, [1, 2])] == [1, 2], 'without a memory'
    keeping = predict.with_memory(output_memory.OutputMemory())
    other = keeping.with_data(types.SimpleNamespace())
    assert [maps(keeping, [1, 2]), maps(keeping, [1, 2]), maps(keeping, [1]), maps(other, [1, 2])] == [3, 3, 4, 5]
    assert maps(keeping, [1, 2], labels=()) == 6
