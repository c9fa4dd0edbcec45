"""HEALNet: what an input adds to the latent states, and what one that is missing leaves as it is."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import config, errors
from jaxkd.models import healnet
from jaxkd.networks import Network
from jaxkd.training import modalities
from tests.fixtures.variables import draw

SMALL = dict(latents=3, width=8, depth=2, heads=2, head=4, expand=2, patch=2, vocab=20)
RNG = np.random.default_rng(0)
BATCH = {'image': np.float32(RNG.random((3, 4, 4, 1))), 'row': np.float32(RNG.normal(size=(3, 5))),
         'tokens': np.int32([[1, 4, 7, 0], [1, 3, 0, 0], [1, 5, 6, 9]])}
FLAGS = {'row': np.float32([1, 0, 1]), 'image': np.float32([1, 1, 0])}


def built(**changes):
    return healnet.build(ConfigDict(config.merge(healnet.DEFAULTS, SMALL | changes, 'model')), 2)


def without(params, name):
    return {k: v for k, v in params.items() if not k.startswith(f'{name}_')}


@pytest.fixture(scope='module')
def net():
    """(module, variables, outputs: of all inputs, with flags, with other content where flags are 0, alone)."""
    model = built()
    variables = jax.tree.map(lambda a: a + 0.1 * RNG.standard_normal(a.shape).astype(np.float32), draw(model, BATCH))
    hidden = {name: np.where(FLAGS[name].reshape(-1, *[1] * (x.ndim - 1)) > 0, x, np.float32('nan'))
              for name, x in BATCH.items() if name in FLAGS}

    @jax.jit
    def run(params):
        apply = lambda p, x: model.apply({'params': p}, x)  # noqa: E731
        rest = lambda *names: {k: v for k, v in BATCH.items() if k not in names}  # noqa: E731
        return dict(all=apply(params, BATCH), flags=apply(params, {**BATCH, 'present': FLAGS}),
                    hidden=apply(params, {**BATCH, **hidden, 'present': FLAGS}),
                    no_row=apply(without(params, 'row'), rest('row')),
                    no_image=apply(without(params, 'image'), rest('image')))
    return model, variables, run(variables['params'])


def test_worked_fourier_features():
    """(-1, 0, 0.5), 2 bands, frequency 10: sines, cosines, the coordinate."""
    found = jax.jit(lambda c: healnet.fourier(c, 2, 10.0))(np.float32([-1, 0, .5]))
    np.testing.assert_allclose(found, [[0, 0, -1, -1, -1], [0, 0, 1, 1, 0], [1, 1, 0, 0, .5]], atol=2e-6)


def test_a_case_without_an_input_has_the_states_of_a_network_without_its_layers(net):
    out = net[2]
    for case, other in ((0, 'all'), (1, 'no_row'), (2, 'no_image')):
        for key in ('latents', 'layer0', 'pooled', 'logits'):
            np.testing.assert_allclose(out['flags'][key][case], out[other][key][case], rtol=1e-5, atol=1e-6)
    assert np.abs(out['all']['logits'] - out['flags']['logits'])[1:].min() > 1e-4
    for key, values in out['flags'].items():
        np.testing.assert_array_equal(values, out['hidden'][key])


def test_the_first_step_is_the_equation(net):
    """Latents over the tokens of one image, in float64."""
    p = net[1]['params']

    def norm(x, w):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * w['scale'] + w['bias']
    blocks = BATCH['image'].astype(float).reshape(3, 2, 2, 2, 2).mean((2, 4)).reshape(3, 4, 1)
    c = np.array([[a, b] for a in (-1., 1) for b in (-1., 1)])
    where = np.concatenate([np.concatenate([np.sin(np.pi * np.outer(x, [1, 5])), np.cos(np.pi * np.outer(x, [1, 5])),
                                            x[:, None]], 1) for x in c.T], 1)
    tokens = np.concatenate([blocks[0], where], 1)
    layer, s = p['image_0'], p['latents'].astype(float)
    x, y = norm(s, layer['cross']['norm']), norm(tokens, layer['cross']['norm_tokens'])
    q, k, v = (a @ layer['cross'][n]['kernel'] for a, n in ((x, 'query'), (y, 'key'), (y, 'value')))
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        e = np.exp(q[:, h] @ k[:, h].T / np.sqrt(4) / 0.5)
        heads.append(e / e.sum(1, keepdims=True) @ v[:, h])
    a = np.concatenate(heads, 1) @ layer['cross']['out']['kernel'] + layer['cross']['out']['bias']
    s = s + np.where(a > 0, a, 0.01 * a)

    def feed(s, w):
        u, g = np.split(norm(s, w['norm']) @ w['in']['kernel'] + w['in']['bias'], 2, 1)
        selu = 1.0507009873554805 * np.where(g > 0, g, 1.6732632423543772 * (np.exp(g) - 1))
        return s + (u * selu) @ w['out']['kernel'] + w['out']['bias']
    expected = feed(s, layer['feed'])
    model = built(depth=1, self_attention=False)
    image = {'image': BATCH['image']}
    params = {'latents': p['latents'], 'norm': p['norm'], 'head': p['head'],
              'image_0': {n: layer[n] for n in ('cross', 'feed')}}
    found = jax.jit(lambda: model.apply({'params': params}, image)['latents'])()
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)


def test_more_tokens_need_no_other_parameters(net):
    model, variables, _ = net
    large = {**BATCH, 'image': np.zeros((3, 8, 8, 1), np.float32), 'row': np.zeros((3, 40), np.float32)}
    count = lambda m, x: jax.tree.map(lambda a: a.shape, jax.eval_shape(m.init, jax.random.key(0), x))  # noqa: E731
    assert count(model, large) == count(model, BATCH)
    tied = count(built(tie=True, depth=3), BATCH)['params']
    assert {k for k in tied if '_' in k} == {'image_0', 'row_0', 'tokens_0'}
    assert {k for k in variables['params'] if '_' in k} == {f'{n}_{i}' for n in BATCH for i in (0, 1)}


def test_inputs_can_be_hidden_and_what_does_not_fit_is_refused():
    model = built()
    modalities.check('drop', Network(model, ('image', 'row')), {k: jax.ShapeDtypeStruct(v.shape, v.dtype)
                                                                for k, v in BATCH.items()})
    shape = lambda m, x: jax.eval_shape(m.init, jax.random.key(0), x)  # noqa: E731
    with pytest.raises(errors.ConfigError, match='set model.vocab to their number'):
        shape(built(vocab=0), BATCH)
    with pytest.raises(errors.ConfigError, match='of 4 x 4 places cannot be cut into blocks of 3'):
        shape(built(patch=3), BATCH)
    with pytest.raises(errors.ConfigError, match='model.latents = 0'):
        built(latents=0)


def test_volumes_and_bfloat16():
    model = healnet.build(ConfigDict(config.merge(healnet.DEFAULTS, SMALL, 'model')), 2, jnp.bfloat16)
    out = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0],
                         {'ct': np.zeros((2, 2, 4, 4, 1), np.float32)})
    assert out['latents'].dtype == jnp.bfloat16 and out['pooled'].dtype == out['logits'].dtype == jnp.float32
