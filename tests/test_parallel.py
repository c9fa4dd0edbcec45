"""One update, however it is spread: one device, four under mesh, four under pmap, one, two or four microbatches.

Each arrangement runs in a process of its own (virtual devices must exist before JAX starts) and writes its final state.
SGD, not Adam: Adam would hide a gradient that is a multiple of the right one.
"""
import os
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import config

SCRIPT = '''
import sys, numpy as np, jax
from jaxkd import parallel, stages, train
from tests import test_parallel
folder, devices = sys.argv[1], int(sys.argv[2])
assert jax.device_count() == devices
for arrangement in sys.argv[3:]:
    how, accumulate = arrangement.split('-')
    conf, out, workdir = test_parallel.resolved(how, int(accumulate)), {}, folder + '/' + arrangement
    for name in conf.stages:
        state, _ = train.train(stages.build(conf, name, workdir), workdir, tensorboard=False)
        for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.memory)):
            out[name + jax.tree_util.keystr(path)] = parallel.to_host(leaf)
    np.savez(workdir + '.npz', **out)
'''


def resolved(how, accumulate):
    """A cached text-like teacher, a ViT student with uneven label weights, and CPKD: pairwise terms, a value for each
    case.
    """
    from tests.fixtures.parallel_toys import install
    from tests.system import test_contract  # noqa: F401 - makes the contract's toys importable
    install()
    vit = dict(name='vit', width=16, depth=1, heads=2, patch=4)
    optim = dict(name='sgd', lr=0.1, clip=1.0, accumulate=accumulate)
    common = dict(length='4 steps', eval_every='2 steps', log_every='2 steps', batch=16, optim=optim)
    data = dict(source=dict(name='parallel.uneven'), split=dict(fractions=(0.5, 0.25, 0.25)))
    stages = ('teacher', 'student', 'online') if accumulate == 1 else ('teacher', 'student')
    run = dict(stages=stages, parallel=how, data=data, tensorboard=False)
    run['teacher'] = dict(common, inputs=('row',), model=dict(name='contract.table'))
    run['student'] = dict(common, inputs=('image',), model=vit, teachers=dict(t=dict(stage='teacher')),
                          method=dict(name='mmpkd', gamma=0.1))
    # A pairwise term and the memory see one microbatch at a time, so this stage takes its batch whole.
    levels = dict(name='parallel.levels')
    run['online'] = dict(common, data=dict(source=dict(name='parallel.paired')), inputs=('ct',), model=levels,
                         method=dict(name='cpkd', fkd_mode='info', pkd_target='relation'),
                         networks={a: dict(inputs=('mri',), model=levels, task=a) for a in ('texture', 'duct')})
    return config.resolve(ConfigDict(run))


def run(folder, devices, *arrangements):
    """{arrangement: {leaf: array}} of final states, e.g. 'mesh-2': under mesh, two microbatches."""
    # The level that parallel.jit asks for, here for pmap as well, which takes no options of the compiler.
    flags = f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=2'
    env = dict(os.environ, XLA_FLAGS=flags, NPROC='16', JAX_PLATFORMS='cpu',
               PYTHONPATH=os.pathsep.join([os.getcwd(), os.environ.get('PYTHONPATH', '')]))
    env.pop('JAX_COMPILATION_CACHE_DIR', None)  # compiled for another number of devices
    done = subprocess.run([sys.executable, '-c', SCRIPT, str(folder), str(devices), *arrangements], env=env,
                          capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    out = {}
    for arrangement in arrangements:
        with np.load(folder / f'{arrangement}.npz') as found:
            out[arrangement] = dict(found)
    return out


def assert_close(a, b):
    assert a.keys() >= b.keys() and len(b) > 20
    for key in b:
        np.testing.assert_allclose(a[key], b[key], rtol=2e-5, atol=2e-6, err_msg=key)


@pytest.mark.slow
def test_devices_mappers_and_microbatches_agree(tmp_path):
    one = run(tmp_path, 1, 'mesh-1', 'mesh-2', 'mesh-4')
    (tmp_path / 'four').mkdir()
    four = run(tmp_path / 'four', 4, 'mesh-1', 'pmap-1', 'mesh-2')
    for key in four['mesh-1']:  # the same program, compiled alike: the same bits
        np.testing.assert_array_equal(four['mesh-1'][key], four['pmap-1'][key], err_msg=key)
    for other in (one['mesh-2'], one['mesh-4'], *four.values()):
        assert_close(one['mesh-1'], other)
    hard, seen = ([a[f"online[1]['{k}']"] for a in (one['mesh-1'], four['mesh-1'])] for k in ('hard', 'seen'))
    np.testing.assert_array_equal(*seen)  # each training case has its own value, whichever device it was on
    assert seen[0].sum() == 32 and (hard[0] > 0).sum() == 32


def test_what_hosts_tell_each_other_keeps_its_precision(monkeypatch):
    import jax
    from jax.experimental import multihost_utils

    from jaxkd import parallel
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(multihost_utils, 'process_allgather',
                        lambda a, tiled: np.concatenate([np.asarray(jax.numpy.asarray(a))] * 2))
    given = dict(map=np.float64([[1 / 3, np.pi]]), index=np.arange(2**40, 2**40 + 3), mask=np.array([True, False]),
                 logits=np.float32([[0.1, 0.2, 0.3]]))
    for key, a in parallel.allgather_hosts(given).items():
        assert a.dtype == given[key].dtype, key
        np.testing.assert_array_equal(a, np.concatenate([given[key]] * 2))


def test_a_host_alone_stops_nowhere_for_others():
    from jaxkd import parallel
    assert not parallel.reached_sync_point(1)


def test_a_batch_that_does_not_divide_is_refused():
    from jaxkd import errors, parallel
    with pytest.raises(errors.ConfigError, match='nearest that does: 6'):
        parallel.check_batch(7, 3)
