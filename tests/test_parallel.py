"""One update, however it is spread: one device, four under mesh, four under pmap, one, two or four microbatches.

Each arrangement runs in a process of its own (virtual devices must exist before JAX starts) and writes its final state.
SGD, not Adam: Adam would hide a gradient that is a multiple of the right one.
"""
import os
import subprocess
import sys

import numpy as np
import pytest

from jaxkd import config

SCRIPT = '''
import sys, numpy as np, jax
from jaxkd import build, parallel, train
from tests import test_parallel
folder, devices, how, accumulate = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
assert jax.device_count() == devices
conf = test_parallel.resolved(how, accumulate)
out = {}
for name in conf.stages:
    state, _ = train.train(build.build(conf, name, folder), folder, tensorboard=False)
    for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.memory)):
        out[name + jax.tree_util.keystr(path)] = parallel.local(leaf)
np.savez(folder + '/state.npz', **out)
'''


def resolved(how, accumulate):
    """A cached text-like teacher, a ViT student with uneven label weights, and a relational term with a memory."""
    from tests import test_contract  # noqa: F401 - makes the contract's toys importable
    from tests.parallel_toys import install
    install()
    vit = dict(name='vit', width=16, depth=1, heads=2, patch=4)
    optim = dict(name='sgd', lr=0.1, clip=1.0, accumulate=accumulate)
    common = dict(length='4 steps', every='2 steps', log_every='2 steps', batch=16, optim=optim)
    data = dict(source=dict(name='parallel.uneven'), split=dict(fractions=(0.5, 0.25, 0.25)))
    run = dict(stages=('teacher', 'student', 'relation'), parallel=how, data=data, tensorboard=False)
    run['teacher'] = dict(common, inputs=('row',), model=dict(name='contract.table'))
    run['student'] = dict(common, inputs=('image',), model=vit, teachers=dict(t=dict(stage='teacher')),
                          method=dict(name='mmpkd', gamma=0.1))
    # A pairwise term sees one microbatch at a time, so this stage always takes its batch whole.
    whole = dict(common, optim=dict(optim, accumulate=1))
    run['relation'] = dict(whole, inputs=('image',), model=vit, method=dict(name='parallel.relation'))
    return config.resolve(config.ConfigDict(run))


def run(folder, devices, how, accumulate):
    env = dict(os.environ, XLA_FLAGS=f'--xla_force_host_platform_device_count={devices}', NPROC='16', JAX_PLATFORMS='cpu',
               PYTHONPATH=os.pathsep.join([os.getcwd(), os.environ.get('PYTHONPATH', '')]))
    env.pop('JAX_COMPILATION_CACHE_DIR', None)  # compiled for another number of devices
    folder.mkdir()
    done = subprocess.run([sys.executable, '-c', SCRIPT, str(folder), str(devices), how, str(accumulate)], env=env,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / 'state.npz') as found:
        return dict(found)


@pytest.fixture(scope='module')
def one(tmp_path_factory):
    return run(tmp_path_factory.mktemp('one') / 'run', 1, 'mesh', 1)


def assert_close(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=2e-5, atol=2e-6, err_msg=key)


@pytest.mark.slow
def test_devices_and_mappers_agree(one, tmp_path):
    mesh, pmap = (run(tmp_path / how, 4, how, 1) for how in ('mesh', 'pmap'))
    for key in mesh:
        np.testing.assert_array_equal(mesh[key], pmap[key], err_msg=key)  # the same program: the same bits
    assert_close(one, mesh)


@pytest.mark.slow
@pytest.mark.parametrize('devices,accumulate', [(1, 2), (1, 4), (4, 2)])
def test_microbatches_agree(one, tmp_path, devices, accumulate):
    assert_close(one, run(tmp_path / 'run', devices, 'mesh', accumulate))


def test_a_batch_that_does_not_divide_is_refused():
    from jaxkd import errors, parallel
    with pytest.raises(errors.ConfigError, match='nearest that does: 6'):
        parallel.check_batch(7, 3)
