import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import config, errors
from jaxkd.data.volume import FIXED
from jaxkd.models import resnet
from jaxkd.models.layers import backbone
from jaxkd.runtime import trees
from tests.fixtures.variables import draw


def build(outputs=3, dtype=jnp.float32, **given):
    return resnet.build(ConfigDict(config.merge(resnet.DEFAULTS, given, 'model')), outputs, dtype)


def key(seed):
    return jax.random.key(seed, impl='rbg')  # compiles in a third of the time


def parameters(model, shape):
    found = jax.eval_shape(model.init, jax.random.key(0), {'ct': jax.ShapeDtypeStruct(shape, jnp.float32)})['params']
    return {trees.leaf_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(found)}


def count(model, shape):
    return sum(int(np.prod(s)) for s in parameters(model, shape).values())


@pytest.mark.parametrize('depth, published', [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_published_numbers_of_parameters_in_2d(depth, published):
    assert count(build(1000, depth=depth, dims=2, features=0), (1, 64, 64, 3)) == published


def test_parameters_of_resnet18_in_3d_counted_by_hand():
    def conv(places, a, b):
        return places * a * b + 2 * b  # with its norm

    stages = 4 * conv(27, 64, 64)
    for a, b in ((64, 128), (128, 256), (256, 512)):
        stages += conv(27, a, b) + 3 * conv(27, b, b) + conv(1, a, b)
    trunk = conv(343, 1, 64) + stages
    assert trunk == 33_160_000
    assert count(build(3, features=0), (1, 16, 64, 64, 1)) == trunk + 512 * 3 + 3
    assert count(build(3), (1, 16, 64, 64, 1)) == trunk + conv(1, 512, 256) + 256 * 3 + 3


@pytest.mark.parametrize('given, levels', [
    (dict(), [(16, 56, 56, 64), (16, 56, 56, 64), (8, 28, 28, 128), (4, 14, 14, 256), (2, 7, 7, 512)]),
    (dict(stem='small', width=0.25, depth_strides=(2, 1, 1)),
     [(32, 112, 112, 16), (32, 112, 112, 16), (16, 56, 56, 32), (16, 28, 28, 64), (16, 14, 14, 128)]),
    (dict(depth=50, dims=2), [(56, 56, 64), (56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048)])])
def test_shapes_of_all_outputs(given, levels):
    model = build(3, **given)
    shape = (2, 224, 224, 1) if 'dims' in given else (2, 32, 224, 224, 1)
    out = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], {'ct': jnp.zeros(shape, jnp.int16)})
    wanted = {f'level{i}': (2, *s) for i, s in enumerate(levels)}
    wanted |= {f'layer{i}': wanted[f'level{i}'] for i in range(1, 5)}
    wanted |= {'features': (2, *levels[-1][:-1], 256), 'pooled': (2, 256), 'logits': (2, 3)}
    assert {k: v.shape for k, v in out.items()} == wanted


@pytest.mark.parametrize('depth, last', [(18, 512), (34, 512), (50, 2048)])
def test_torchvision_options_make_the_published_network(depth, last):
    model = build(1000, depth=depth, features=0, **resnet.TORCHVISION)
    x = {'image': jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)}
    out, variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), x)
    count = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032}[depth]
    assert sum(a.size for a in jax.tree.leaves(variables['params'])) == count
    wide = last // 512
    assert [out[f'layer{i}'].shape for i in (1, 2, 3, 4)] == [(1, 56 // 2 ** i, 56 // 2 ** i, 64 * 2 ** i * wide)
                                                              for i in range(4)]
    assert out['pooled'].shape == (1, last) and out['logits'].shape == (1, 1000)
    norms = [name for name in parameters(model, (1, 64, 64, 3)) if name.endswith('scale')]
    assert len(jax.tree.leaves(variables['batch_stats'])) == 2 * len(norms)


@pytest.fixture(scope='module')
def batch():
    """A small network with batch norm: build's options, variables, a batch."""
    given = dict(resnet.TORCHVISION, width=0.125, features=0, stem='small', stem_stride=(1, 4, 4))
    x = np.random.default_rng(0).random((3, 64, 64, 1), np.float32)
    return given, draw(build(**given), {'image': x}), x


def test_batch_norm_is_told_whether_it_trains(batch):
    given, variables, x = batch
    model = build(**given)
    run = jax.jit(functools.partial(model.apply, mutable=['batch_stats']), static_argnames='train')
    other = np.concatenate([x[:1], 1 - x[1:]])
    (out, stats), (among, _) = (run(variables, {'image': a}, train=True) for a in (x, other))
    assert all(np.abs(a - b).max() > 0 for a, b in zip(*map(jax.tree.leaves,
                                                            (stats['batch_stats'], variables['batch_stats']))))
    assert np.abs(out['logits'][0] - among['logits'][0]).max() > 1e-4  # a case sees the others of its batch
    (out, stats), (among, _) = (run(variables, {'image': a}, train=False) for a in (x, other))
    jax.tree.map(np.testing.assert_array_equal, stats['batch_stats'], variables['batch_stats'])
    np.testing.assert_allclose(out['logits'][0], among['logits'][0], atol=1e-5)
    assert all((leaf == 1).all() for name, leaf in _leaves(variables['params']) if name.endswith('scale'))


@pytest.mark.slow
def test_remat_with_batch_norm_changes_nothing(batch):
    given, variables, x = batch

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(model, variables):
        def loss(params):
            out, stats = model.apply({**variables, 'params': params}, {'image': x}, train=True, mutable=['batch_stats'])
            return jnp.sum(out['logits'] ** 2), stats
        return jax.grad(loss, has_aux=True)(variables['params'])

    plain, again = (gradient(build(remat=remat, **given), variables) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3 * (1e-3 + np.abs(a).max())), plain, again)


def test_input_normalisation_is_done_before_absent_volumes_become_zeros():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    x = np.random.default_rng(0).random((2, 4, 5, 1), np.float32)
    inputs = {'a': x, 'b': np.full_like(x, np.nan), 'c': np.round(x * FIXED).astype(np.int16),
              'present': {'b': np.zeros(2)}}
    names, (a, b, c), _ = backbone.read(inputs, 2, mean, std)
    assert names == ['a', 'b', 'c']
    np.testing.assert_allclose(a, (np.repeat(x, 3, -1) - np.float32(mean)) / np.float32(std), atol=1e-6)
    np.testing.assert_allclose(c, a, atol=5 / FIXED)
    np.testing.assert_array_equal(b, np.zeros((2, 4, 5, 3)))
    np.testing.assert_allclose(backbone.read({'a': x}, 2, (0.5,), (0.25,))[1][0], 4 * x - 2, atol=1e-6)
    np.testing.assert_array_equal(backbone.read({'a': x}, 2)[1][0], x)
    with pytest.raises(errors.ConfigError, match='2 channels, model.mean and model.std have 3'):
        backbone.read({'a': np.zeros((1, 4, 4, 2), np.float32)}, 2, mean, std)


def _leaves(tree):
    return [(trees.leaf_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


@pytest.mark.parametrize('given, shape', [
    (dict(stem='full', width=0.25), (2, 6, 48, 48, 1)),
    pytest.param(dict(depth=50, dims=2), (2, 64, 64, 1), marks=pytest.mark.slow)])
def test_gradients_are_finite_and_remat_changes_nothing(given, shape, monkeypatch):
    monkeypatch.setitem(resnet.DEPTHS, 18, (2, 1, 1, 1))  # compiles in less time; a block follows another of its stage
    given = dict(given, width=0.125, features=64)
    model = build(**given)
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    params = draw(model, {'ct': x})

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(model, params, x):
        return jax.grad(lambda p: jnp.sum(model.apply(p, {'ct': x})['logits'] ** 2))(params)

    plain, again = (gradient(m, params, x) for m in (model, build(**given, remat=True)))
    scale = max(np.abs(a).max() for a in jax.tree.leaves(plain))
    assert scale > 0 and all(np.isfinite(a).all() for a in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * scale), plain, again)


@pytest.mark.parametrize('bottleneck', [False, True])
def test_blocks_add_their_input(bottleneck):
    style = backbone.style(ConfigDict(resnet.DEFAULTS), jnp.float32)
    x = np.abs(np.random.default_rng(0).standard_normal((2, 3, 6, 6, 16), np.float32))
    block = resnet.Block(4 if bottleneck else 16, 1, bottleneck, style)
    params = draw(block, x)
    assert 'shortcut' not in params['params']
    last = params['params']['unit3' if bottleneck else 'unit2']['norm']
    last['scale'] = jnp.zeros_like(last['scale'])
    np.testing.assert_array_equal(jax.jit(block.apply)(params, x), x)
    strided = resnet.Block(4 if bottleneck else 16, 2, bottleneck, style._replace(norm='layer'))
    shapes = jax.eval_shape(strided.init, key(0), x[:, :1, :1, :1])['params']  # even where one place stays one place
    assert shapes['shortcut']['conv']['kernel'].shape == (1, 1, 1, 16, 16)


@pytest.mark.parametrize('given, says', [(dict(depth=19), 'resnet.depth = "19"'),
                                         (dict(stem='smal'), 'Did you mean "small"'),
                                         (dict(depth_strides=(2, 2, 2, 2)), '3 positive numbers'),
                                         (dict(norm='bach'), 'Did you mean "batch"'),
                                         (dict(activation='rellu'), '"relu"'),
                                         (dict(mean=(0.5,)), 'model.mean'),
                                         (dict(mean=(0.5,), std=(0.0,)), 'positive std')])
def test_wrong_choices(given, says):
    with pytest.raises(errors.ConfigError, match=says):
        build(3, **given)
