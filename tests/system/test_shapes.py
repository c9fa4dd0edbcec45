"""Shapes in signatures are checked as the functions run: in a process of its own, for jaxtyping rewrites what is
imported.
"""
import os
import subprocess
import sys

CHECKED = ('jaxkd.losses', 'jaxkd.steps', 'jaxkd.state')  # modules whose annotations are enforced
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


def test_annotated_shapes_hold():
    done = subprocess.run([sys.executable, '-c', CALLS.format(modules=CHECKED)], capture_output=True, text=True,
                          env=os.environ)
    assert done.returncode == 0 and done.stdout.strip() == 'refused', done.stderr
