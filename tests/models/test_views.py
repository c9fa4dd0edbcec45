"""One encoder for several views."""
import jax
import numpy as np
import pytest

from jaxkd import config, errors
from tests.fixtures.variables import draw

VIT = dict(name='vit', size='tiny', width=16, depth=1, heads=2, patch=4)
RNG = np.random.default_rng(0)
VIEWS = {name: np.float32(RNG.random((2, 8, 8, 1))) for name in ('image', 'style', 'view')}


def built(name, **options):
    module, hp = config.options('models', dict(name=name, **options), 'x')
    return module.build(hp, 3)


def test_it_is_the_encoder_with_the_same_parameters_for_each_view():
    views, encoder = built('views', of=VIT), built(**VIT)
    variables = draw(encoder, {'image': VIEWS['image']})
    shapes = jax.eval_shape(views.init, jax.random.key(0), VIEWS)
    assert jax.tree.map(np.shape, dict(shapes)) == jax.tree.map(np.shape, dict(variables))
    found, alone = (jax.jit(lambda inputs, m=m: m.apply(variables, inputs)) for m in (views, encoder))
    out = found(VIEWS)
    assert set(out) == {f'{k}{s}' for k in alone({'image': VIEWS['image']}) for s in ('', '_style', '_view')}
    for name, suffix in (('image', ''), ('style', '_style'), ('view', '_view')):
        own = alone({'image': VIEWS[name]})
        for key in ('pooled', 'logits'):
            np.testing.assert_allclose(out[key + suffix], own[key], atol=1e-6)


def test_views_of_other_shapes_are_refused():
    with pytest.raises(errors.ConfigError, match='One must be "image", all of one shape'):
        jax.eval_shape(built('views', of=VIT).init, jax.random.key(0), {**VIEWS, 'view': VIEWS['view'][:, :4]})
    with pytest.raises(errors.ConfigError, match='reads style, view'):
        jax.eval_shape(built('views', of=VIT).init, jax.random.key(0), {k: VIEWS[k] for k in ('style', 'view')})
