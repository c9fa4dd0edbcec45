"""Shapes in signatures are checked as the functions run: in a process of its own, for jaxtyping rewrites what is
imported.
"""
import os
import subprocess
import sys

import pytest

CHECKED = ('jaxkd.losses', 'jaxkd.steps', 'jaxkd.state', 'jaxkd.models.layers', 'jaxkd.models.resnet',
           'jaxkd.models.vit')  # modules and packages whose annotations are enforced
CALLS = '''
import jaxtyping
with jaxtyping.install_import_hook({modules!r}, 'beartype.beartype'):
    import jax.numpy as jnp
    from jaxkd import losses, state, steps
z, y = jnp.ones((4, 3)), jnp.zeros((4, 3))
assert losses.binary_cross_entropy(z, y).shape == losses.bernoulli_kl(z, y).shape == (4, 3)
assert losses.cross_entropy(z, jnp.zeros(4, int)).shape == losses.kl(z, y).shape == (4,)
assert losses.cosine_distance(z, y).shape == losses.squared_error(z, y).shape == (4,)
places, label = jnp.ones((2, 4, 4, 3)), jnp.zeros((2, 4, 4), int)
assert losses.cross_entropy(places, label).shape == (2, 4, 4) and losses.attention(places).shape == (2, 16)
assert losses.affinity(losses.pool(places, 4), losses.pool(places, 4)).shape == (2,)
assert losses.dice(*losses.dice_sums(places, label, label == 0)).shape == (2,)
assert state.Mean.of(z).value.shape == () and state.valid_mask({{'mask': y[:, 0]}}, ('image',)).shape == (4,)
try:
    losses.unit(y.astype(int))
except jaxtyping.TypeCheckError:
    print('refused')
'''
MODELS = '''
import jaxtyping
with jaxtyping.install_import_hook({modules!r}, 'beartype.beartype'):
    from jaxkd.models import resnet, vit
    from jaxkd.models.layers import operations
import jax, jax.numpy as jnp
from ml_collections import ConfigDict

def shapes(model, given, image, **options):
    net = model.build(ConfigDict(dict(model.DEFAULTS, **given)), 2)
    run = lambda x: net.init_with_output(jax.random.key(0), {{'image': x}}, **options)[0]
    return {{k: v.shape for k, v in jax.eval_shape(run, image).items()}}

out = shapes(vit, dict(size='tiny', width=32, patch=8, depth=1), jnp.ones((4, 32, 32, 1)), capture=('attention',))
assert out['logits'] == (4, 2) and out['attention'] == (4, 1, 4, 17, 17)
for given, image in (dict(), (2, 8, 32, 32, 1)), (resnet.TORCHVISION, (2, 64, 64, 1)):
    assert shapes(resnet, dict(given, stem='full', width=0.125), jnp.ones(image))['logits'] == (2, 2)
try:
    operations.convolve(jnp.ones((1, 4, 4, 2), int), jnp.ones((3, 3, 2, 2)))
except jaxtyping.TypeCheckError:
    print('refused')
'''


@pytest.mark.parametrize('calls', [CALLS, MODELS], ids=['spine', 'models'])
def test_annotated_shapes_hold(calls):
    done = subprocess.run([sys.executable, '-c', calls.format(modules=CHECKED)], capture_output=True, text=True,
                          env=os.environ)
    assert done.returncode == 0 and done.stdout.strip() == 'refused', done.stderr
