"""Bottleneck adapters: what two encoders tell each other after each block."""
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import config
from jaxkd.models import bottleneck, text, vit
from jaxkd.networks import Network
from jaxkd.training import modalities
from tests.fixtures.variables import draw

GIVEN = dict(image=dict(size='tiny', width=8, heads=2, patch=8, depth=3),
             text=dict(vocab=50, length=16, width=8, heads=2, depth=2), width=4)
RNG = np.random.default_rng(1)
INPUTS = {'image': RNG.random((3, 16, 16, 1), np.float32),
          'tokens': np.array([[1, 5, 6, 7], [1, 8, 0, 0], [1, 4, 4, 0]], np.int32)}
FLAGS = {'image': np.float32([1, 1, 0]), 'tokens': np.float32([1, 0, 1])}


@pytest.fixture(scope='module')
def net():
    """(module, parameters, outputs: as initialised, trained, with flags, of the encoders alone)."""
    model = bottleneck.build(ConfigDict(config.merge(bottleneck.DEFAULTS, GIVEN, 'model')), 2)
    params = draw(model, INPUTS)['params']
    image = vit.build(ConfigDict(dict(vit.DEFAULTS, **GIVEN['image'])), 0)
    words = text.build(ConfigDict(dict(text.DEFAULTS, **GIVEN['text'])), 0)
    first = {name: {**part, **{f'up_{side}': jax.tree.map(np.zeros_like, part[f'up_{side}'])
                               for side in ('image', 'text')}} if 'exchange' in name else part
             for name, part in params.items()}

    @jax.jit
    def run(params, first):
        apply = lambda p, x: model.apply({'params': p}, x)  # noqa: E731
        other = {**INPUTS, 'tokens': INPUTS['tokens'][::-1], 'image': INPUTS['image'][::-1]}
        return dict(first=apply(first, INPUTS), trained=apply(params, INPUTS),
                    flags=apply(params, {**INPUTS, 'present': FLAGS}),
                    hidden=apply(params, {**other, 'present': {k: 0 * v for k, v in FLAGS.items()}}),
                    image=image.apply({'params': params['image']}, INPUTS),
                    text=words.apply({'params': params['text']}, INPUTS))
    return model, params, run(params, first)


def test_it_begins_at_the_encoders_and_has_their_parameters(net):
    model, params, out = net
    for name in ('image', 'text'):
        np.testing.assert_allclose(out['first'][f'{name}_pooled'], out[name]['pooled'], rtol=1e-4, atol=1e-5)
        assert np.abs(out['trained'][f'{name}_pooled'] - out[name]['pooled']).max() > 1e-3
    assert {*params} == {'image', 'text', 'exchange0', 'exchange1', 'norm', 'head'}
    fresh = jax.jit(model.init)(jax.random.key(0), INPUTS)['params']
    assert not any(np.asarray(fresh['exchange0'][f'up_{side}']['kernel']).any() for side in ('image', 'text'))


def test_the_exchange_is_the_equation():
    model = bottleneck.Exchange(4, np.float32)
    v, a = RNG.normal(size=(2, 3, 6)).astype(np.float32), RNG.normal(size=(2, 2, 5)).astype(np.float32)
    w = [np.full((2, 3), 1 / 3, np.float32), np.float32([[1, 0], [0, 0]])]  # the second case has no words
    params = jax.tree.map(lambda x: x + np.float32(0.1 * RNG.normal(size=x.shape)), draw(model, v, a, w)['params'])
    linear = lambda name, x: x @ params[name]['kernel'] + params[name]['bias']  # noqa: E731
    low, words = linear('down_image', v), linear('down_text', a)
    expected_v = v + linear('up_image', low + np.stack([words[0, 0], np.zeros(4)])[:, None])
    expected_a = a + linear('up_text', words + low.mean(1, keepdims=True))
    found = jax.jit(lambda: model.apply({'params': params}, v, a, w))()
    np.testing.assert_allclose(found[0], expected_v, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], expected_a, rtol=1e-4, atol=1e-5)


def test_an_input_that_a_case_lacks_says_nothing(net):
    model, _, out = net
    np.testing.assert_allclose(out['flags']['logits'][0], out['trained']['logits'][0], rtol=1e-5, atol=1e-6)
    for case, name in ((1, 'text_pooled'), (2, 'image_pooled')):
        assert not np.asarray(out['flags'][name])[case].any()
    np.testing.assert_array_equal(out['hidden']['logits'][0], out['hidden']['logits'][1])
    modalities.check('drop', Network(model, ('image', 'tokens')), {k: jax.ShapeDtypeStruct(v.shape, v.dtype)
                                                                   for k, v in INPUTS.items()})
