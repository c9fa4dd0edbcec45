"""Parameters and optimiser divided among devices: the numbers of one device, half of the memory, the student alone."""
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from jaxkd import config, errors, optim, parallel
from jaxkd.runtime import log
from jaxkd.state import TrainState
from jaxkd.training import fsdp, step_cost
from tests.fixtures import disc

SCRIPT = '''
import json, sys, jax, numpy as np
from jaxkd import checkpoint, errors, parallel, stages, train
from jaxkd.training import step_cost
from tests import test_fsdp
folder, devices, stop = sys.argv[1], int(sys.argv[2]), [None]
assert jax.device_count() == devices
checkpoint.Checkpointer.preempted = lambda self, step: step == stop[0]
facts = {}
for job in sys.argv[3:]:  # system, folder, fsdp, step at which the student stops
    system, workdir, n, stop_at = job.split(',')
    conf, workdir = test_fsdp.SYSTEMS[system](int(n)), f'{folder}/{system}_{workdir}'
    for name in conf.stages:
        stop[0] = int(stop_at) or None if name == conf.stages[-1] else None
        stage = stages.build(conf, name, workdir)
        if (stage.folder / '4').exists():
            continue
        try:
            state, _ = train.train(stage, workdir, tensorboard=False)
        except errors.Interrupted:
            continue
    if int(stop_at):
        continue
    leaves = jax.tree_util.tree_leaves_with_path((state.params, state.ema, state.opt_state))
    np.savez(f'{workdir}.npz', **{jax.tree_util.keystr(path): parallel.whole(leaf) for path, leaf in leaves})
    shapes = jax.eval_shape(stage.method.init, jax.random.key(0))
    program = parallel.compiled_step(stage.method.train_step, shapes, stage.context.frozen, stage.context.batch, int(n))
    divided = [a for a in jax.tree.leaves(shapes.params) if parallel.axis_of(a.shape, int(n)) is not None]
    facts[job] = dict(collectives=step_cost.collectives(program.as_text()), divided=4 * sum(a.size for a in divided),
                      largest=max([a.size for a in divided], default=0),
                      all=4 * sum(a.size for a in jax.tree.leaves(shapes.params)),
                      held=sum(a.addressable_shards[0].data.size for a in jax.tree.leaves(state.params)) * 4)
print(json.dumps(facts))
'''


def _short(run, name, **given):
    run[name] |= dict(length='4 steps', eval_every='4 steps', log_every='1 steps', batch=16, select='',
                      optim=dict(name='sgd', lr=0.1, clip=1.0, ema=0.9, skip_nonfinite=2), **given)


def classification(n):
    """MMPKD on discs: a cached teacher on words, a ViT as student."""
    run = disc.config()
    run.update(stages=('teacher', 'student'), fsdp=n, tensorboard=False)
    run['data']['source']['cases'] = 60
    vit = dict(name='vit', width=32, depth=2, heads=2, patch=16)
    _short(run, 'teacher')
    _short(run, 'student', model=vit)
    run['teacher']['model'] |= dict(depth=1, width=16, dropout=0.0)
    return config.resolve(ConfigDict({k: run[k] for k in run if k != 'image_only'}))


def segmentation(n):
    """SIKD on hearts: a teacher on images painted by their label, in every step, and a U-Net as student."""
    conf = config.load('configs/sikd_acdc.py:smoke', [
        'stages=teacher,sikd', 'data.source.patients=10', 'data.source.size=32', 'data.image.size=32',
        'data.split.stratify=', 'tensorboard=false', f'fsdp={n}'])
    for name in conf.stages:
        conf[name].model.update(norm='group', channels=(8, 16))
        conf[name].optim.update(name='sgd', lr=0.1, clip=1.0)
        conf[name].update(length='4 steps', eval_every='4 steps', log_every='1 steps', select='')
        conf[name].data.train_filter = ''
    return conf


SYSTEMS = dict(classification=classification, segmentation=segmentation)


def run(folder, devices, *jobs):
    flags = f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0'
    env = dict(os.environ, XLA_FLAGS=flags, NPROC='16', JAX_PLATFORMS='cpu',
               PYTHONPATH=os.pathsep.join([os.getcwd(), os.environ.get('PYTHONPATH', '')]))
    done = subprocess.run([sys.executable, '-c', SCRIPT, str(folder), str(devices), *jobs], env=env,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize('system', SYSTEMS)
def test_divided_among_devices_a_stage_learns_the_same_and_goes_on_on_others(system, tmp_path):
    run(tmp_path, 1, f'{system},one,1,0', f'{system},moved,1,1')
    four = run(tmp_path, 4, f'{system},two,2,0', f'{system},four,4,0', f'{system},moved,2,2', f'{system},moved,4,3')
    run(tmp_path, 1, f'{system},moved,1,0')
    one, *others = (dict(np.load(tmp_path / f'{system}_{name}.npz')) for name in ('one', 'two', 'four', 'moved'))
    assert len(one) > 20
    for other in others:
        assert other.keys() == one.keys()
        for key in one:
            np.testing.assert_allclose(other[key], one[key], rtol=2e-5, atol=2e-6, err_msg=key)
    lines = [[line for line in log.read(tmp_path / f'{system}_{name}') if 'grad_norm' in line]
             for name in ('one', 'two', 'four', 'moved')]
    for line, *rest in zip(*lines, strict=True):
        for other in rest:
            assert [other[k] for k in ('step', 'loss', 'grad_norm')] == pytest.approx(
                [line[k] for k in ('step', 'loss', 'grad_norm')], rel=1e-4)
    for (_, _, n, _), fact in ((job.split(','), fact) for job, fact in four.items()):
        kinds = {kind: 0 for kind, *_ in fact['collectives']}
        for kind, _, size, group in fact['collectives']:
            kinds[kind] += size
            assert kind == 'all-reduce' or group == int(n)
        divided, whole = fact['divided'], fact['all'] - fact['divided']
        assert divided > 0.5 * fact['all'] and fact['held'] == divided / int(n) + whole
        # Of the student alone: each part comes once forward and at most once backward, its gradient goes out once.
        assert divided <= kinds['all-gather'] <= 2 * divided
        assert kinds['reduce-scatter'] == divided / int(n)
        assert kinds['all-reduce'] <= whole + (divided / int(n) if n == '2' else 0) + 400  # and metrics


STEPS = '''
import jax, jax.numpy as jnp, numpy as np
from ml_collections import ConfigDict, FrozenConfigDict
from jaxkd import config, optim, parallel
from jaxkd.methods import smil
from jaxkd.networks import Network
from jaxkd.state import Context
assert jax.device_count() == 2
rng = np.random.default_rng(0)
batch = {n: np.float32(rng.normal(size=(16, 40))) for n in ('ct', 'mri')} | dict(
    label=np.int32([0, 1] * 8), mask=np.float32([1] * 15 + [0]), index=np.arange(16, dtype=np.int32),
    present={'mri': np.float32([1, 0, 1, 1] * 4)})
rows = {n: dict(name='tabular', widths=(32,), dropout=0.0, input=n) for n in ('ct', 'mri')}
plugin, hp = config.options('models', dict(name='smil', width=64, clusters=3, encoders=rows), 'x')
network = Network(plugin.build(hp, 2), ('ct', 'mri'))
rule = optim.build(ConfigDict(optim.DEFAULTS | dict(name='sgd', lr=0.1, clip=1.0, ema=0.9)), 8, 1.0, 8)
trim = FrozenConfigDict(dict(rate=0.4, schedule='', by='student', within_class=True))
found = []
for n in (1, 2):
    context = Context({'student': network}, {}, {}, batch, rule, 16, 1.0, 8, 0, fsdp=n, trim=trim)
    method = smil.build(ConfigDict(smil.DEFAULTS | dict(name='smil', inner=0.5, complete=0.5)), context)
    start = method.init(jax.random.key(0))
    assert any(parallel.axis_of(a.shape, n) is not None for a in jax.tree.leaves(start.params)) == (n > 1)
    state, step = parallel.place_state(start, n), parallel.compile_step(method.train_step, fsdp=n)
    for _ in range(2):
        state, metrics = step(state, {}, batch)
    found.append(jax.tree.map(parallel.whole, (state.params, state.ema, {k: m.value for k, m in metrics.items()})))
moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), jax.tree.map(np.asarray, start.params), found[0][0])
assert max(jax.tree.leaves(moved)) > 1e-3 and found[0][2]['trimmed'] > 0
for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found[0]), jax.tree.leaves(found[1]), strict=True):
    np.testing.assert_allclose(b, a, rtol=2e-5, atol=2e-6, err_msg=jax.tree_util.keystr(path))
print(len(jax.tree.leaves(found[0])), 'leaves')
'''


@pytest.mark.slow
def test_an_inner_step_and_labels_left_out_are_the_same_among_devices():
    """smil, which differentiates through a step, and `trim`, which ranks all cases: two devices, whole and divided."""
    env = dict(os.environ, XLA_FLAGS='--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0',
               NPROC='16', JAX_PLATFORMS='cpu',
               PYTHONPATH=os.pathsep.join([os.getcwd(), os.environ.get('PYTHONPATH', '')]))
    env.pop('JAX_COMPILATION_CACHE_DIR', None)  # compiled for another number of devices
    done = subprocess.run([sys.executable, '-c', STEPS], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) > 30


def test_arrays_are_cut_along_their_largest_axis_that_divides():
    assert parallel.axis_of((64, 128), 4) == 1 and parallel.axis_of((128, 64), 4) == 0
    assert parallel.axis_of((64, 66), 4) == 0 and parallel.axis_of((64, 64), 2) == 0
    assert parallel.axis_of((63, 65), 4) is None and parallel.axis_of((128, 64), 1) is None
    assert parallel.axis_of((512,), 4) is None and parallel.axis_of((1024,), 4) == 0 and parallel.axis_of((), 2) is None


def state():
    params = {'student': {'kernel': jnp.ones((64, 32)), 'bias': jnp.zeros(32)}, 'heads': {}}
    tx = optim.build(ConfigDict({**optim.DEFAULTS, 'clip': 1.0}), 10, 5).tx
    return TrainState(jnp.int32(0), params, {}, tx.init(params), params, {'bank': jnp.zeros((64, 32))}, {})


def test_optimiser_and_smoothed_weights_are_cut_like_the_parameters_and_memories_are_whole():
    specs = parallel.state_specs(state(), 4)
    assert specs.params['student'] == specs.ema['student'] == dict(kernel=P('fsdp'), bias=P())
    moments = jax.tree.leaves(specs.opt_state, is_leaf=lambda s: isinstance(s, P))
    assert moments.count(P('fsdp')) == 2 and specs.memory['bank'] == P()
    assert fsdp.axes_of(state().params, 4) == {'student/kernel': 0} and not fsdp.axes_of(state().params, 1)


def test_memory_of_a_device_counts_its_parts():
    whole = step_cost.held(state(), {}, {}, 8)
    parts = step_cost.held(state(), {}, {}, 8, fsdp=4)
    kernel, bias = 4 * 64 * 32, 4 * 32
    assert whole['parameters'] == kernel + bias and parts['parameters'] == kernel // 4 + bias
    assert parts['optimiser'] == whole['optimiser'] - 2 * kernel * 3 // 4
    assert parts['other'] == whole['other'] - kernel * 3 // 4, 'the bank is whole'


def test_outside_of_groups_everything_is_as_without():
    tree, axes = {'student': {'kernel': jnp.float32([3.0, 4.0])}}, {'student/kernel': 0}
    assert fsdp.gather(tree, axes) is tree and fsdp.spread_nonfinite(tree, axes) is tree
    assert fsdp.norm(tree, axes) == 5
    summed, _ = fsdp.reduce(tree, {}, axes)
    assert jax.tree.structure(summed) == jax.tree.structure(tree)


@pytest.mark.parametrize('mode, n, message', [('pmap', 2, 'does not go with fsdp = 2'), ('mesh', 3, 'What fits: 1.')])
def test_groups_that_do_not_come_out_even_are_refused(mode, n, message):
    with pytest.raises(errors.ConfigError, match=message):
        parallel.check_mode(mode, n)
