"""Gradients of logits with respect to what a layer returns, of models that know nothing of it."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import config, errors
from jaxkd.inference import grad_cam
from jaxkd.metrics import attention
from jaxkd.networks import Network
from tests.fixtures.variables import draw

IMAGE = {'image': np.float32(np.random.default_rng(0).normal(size=(3, 16, 16, 1)))}
CNN = dict(name='cnn', dims=2, channels=(4, 6), act='relu', norm='group', dropout=0.0)


def network(outputs=3, **options):
    module, hp = config.options('models', options, 'x')
    return Network(module.build(hp, outputs), ('image',))


def test_behind_a_mean_over_places_it_is_the_class_activation_map():
    net = network(**CNN, head='gap')
    variables = draw(net.module, IMAGE)
    assert grad_cam.layer_of(net, IMAGE) == ('block2', ('block2',))
    out = jax.tree.map(np.asarray, grad_cam.function(net, 'block2', ('block2',), (0, 2))(variables, IMAGE))
    kernel = np.asarray(variables['params']['head']['linear']['kernel'])
    np.testing.assert_allclose(out['features'], net.apply(variables, IMAGE)[0]['block2'], atol=1e-6)
    for n, c in enumerate((0, 2)):
        expected = np.broadcast_to(kernel[:, c] / 16, (3, 4, 4, 6))  # 4 x 4 places
        np.testing.assert_allclose(out['gradient'][:, n], expected, atol=1e-7)
        cam = np.maximum(out['features'] @ kernel[:, c], 0) / 16
        np.testing.assert_allclose(attention.grad_cam(out['features'], out['gradient'][:, n]), cam, atol=1e-6)


def test_an_earlier_layer_has_the_gradient_of_all_that_follows():
    net = network(**CNN, head='flatten')
    variables = draw(net.module, IMAGE)
    assert grad_cam.layer_of(net, IMAGE, 'block1') == ('block1', ('block1',))
    found = grad_cam.function(net, 'block1', ('block1',), (1,))(variables, IMAGE)['gradient'][:, 0]
    direction = jnp.float32(np.random.default_rng(1).normal(size=(8, 8, 4)))

    @jax.jit
    def moved(amount):
        with grad_cam.nn.intercept_methods(grad_cam.functools.partial(grad_cam._add, ('block1',), amount * direction)):
            return net.apply(variables, IMAGE)[0]['logits'][:, 1]
    slope = (moved(1e-3) - moved(-1e-3)) / 2e-3
    np.testing.assert_allclose(slope, jnp.sum(found * direction, (1, 2, 3)), rtol=1e-2, atol=2e-3)


def test_the_layer_is_found_in_other_networks_or_the_remedy_is_said():
    assert grad_cam.layer_of(network(name='resnet', dims=2, width=0.125, stem='small'), IMAGE)[0] == 'features'
    with pytest.raises(errors.ConfigError, match='no map "features"'):
        grad_cam.layer_of(network(name='vit', size='tiny', width=16, depth=1, heads=2, patch=8), IMAGE)
    with pytest.raises(errors.ConfigError, match='no map "block3".*block2'):
        grad_cam.layer_of(network(**CNN, head='gap'), IMAGE, 'block3')
