"""Two processes of one run, as on two hosts: the weights, predictions and report of one process, bit for bit where it
has as many devices.
"""
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxkd import checkpoint, config
from jaxkd.runtime import files, log, preemption
from tests.fixtures.same_run import facts
from tests.methods.test_mmpkd import resolved
from tests.training.test_fsdp import classification

ROOT = pathlib.Path(__file__).parents[2]


def start(path, workdir, processes, devices=1):
    """Processes of one run, each with so many devices."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    running = []
    for i in range(processes):
        env = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu', NPROC='16')
        env['XLA_FLAGS'] += f' --xla_force_host_platform_device_count={devices}'
        env.pop('JAX_COMPILATION_CACHE_DIR', None)
        if processes > 1:
            env |= dict(JAX_COORDINATOR_ADDRESS=f'127.0.0.1:{port}', JAX_NUM_PROCESSES=str(processes),
                        JAX_PROCESS_ID=str(i))
        command = [sys.executable, '-m', 'jaxkd.main', '--config', str(path), '--workdir', str(workdir)]
        running.append(subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        text=True))
    return running


def launch(path, workdir, processes, devices=1):
    running = start(path, workdir, processes, devices)
    said = [run.communicate(timeout=400)[0] for run in running]
    assert [run.returncode for run in running] == [0] * processes, said[0][-2500:] + said[-1][-2500:]
    return said


@pytest.mark.slow
def test_two_processes_are_one_with_two_devices_bit_for_bit(tmp_path):
    conf = config.load('configs/mmpkd_cxr.py:smoke', ['tensorboard=false', 'stages=teacher,image_only,student'])
    (tmp_path / 'c.json').write_text(config.dump(conf))
    launch(tmp_path / 'c.json', tmp_path / 'one', 1, devices=2)
    launch(tmp_path / 'c.json', tmp_path / 'two', 2)
    one, two = facts(tmp_path / 'one'), facts(tmp_path / 'two')
    for key in one:
        assert one[key] == two[key], key


@pytest.mark.slow
def test_two_processes_are_one_up_to_rounding_where_it_has_one_device(tmp_path):
    conf = resolved(image_only=dict(evals=dict(classification={}, localisation={})))
    for name in conf.stages:  # dropout draws per device
        conf[name].model.update(dict(dropout=0.0, **({'drop_path': 0.0} if name != 'teacher' else {})))
    conf.bootstrap = 20
    (tmp_path / 'c.json').write_text(config.dump(conf))
    launch(tmp_path / 'c.json', tmp_path / 'one', 1)
    first, second = launch(tmp_path / 'c.json', tmp_path / 'two', 2)
    assert 'step 4/4' in first and 'step 4/4' not in second, 'only one process speaks'
    one, two = (files.read_json(tmp_path / w / 'summary.json', '') for w in ('one', 'two'))
    for name in conf.stages:
        a, b = (checkpoint.load_student(tmp_path / w / 'checkpoints' / name, None, 'last')[0] for w in ('one', 'two'))
        for x, y in zip(_leaves(a), _leaves(b), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)  # Adam magnifies the order of a sum
        for metric in ('classification/brier', *(('localisation/last_mean/auprc',) if name == 'image_only' else ())):
            a, b = (s['stages'][name]['test']['best'][metric]['value'] for s in (one, two))
            assert a == pytest.approx(b, rel=1e-2), metric
        rows = [(tmp_path / w / 'predictions' / f'{name}_test.csv').read_text().splitlines() for w in ('one', 'two')]
        assert [r.split(',')[0] for r in rows[0]] == [r.split(',')[0] for r in rows[1]]
    assert (tmp_path / 'two' / 'report.html').exists()


@pytest.mark.slow
def test_two_processes_divide_the_state_and_one_goes_on_with_it(tmp_path):
    for name, processes, n in (('one', 1, 1), ('two', 2, 2)):
        (tmp_path / f'{name}.json').write_text(config.dump(classification(n)))
        launch(tmp_path / f'{name}.json', tmp_path / name, processes)
    for stage in ('teacher', 'student'):
        a, b = (checkpoint.load_student(tmp_path / w / 'checkpoints' / stage, None, 'last')[0] for w in ('one', 'two'))
        for x, y in zip(_leaves(a), _leaves(b), strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)
    said, = launch(tmp_path / 'one.json', tmp_path / 'two', 1)
    assert 'student: finished before' in said, 'how many devices divide the state changes no run'


@pytest.mark.slow
@pytest.mark.parametrize('number, to', [*((number, (1,)) for number in preemption.SIGNALS), (signal.SIGTERM, (0, 1))])
def test_signals_to_one_or_both_processes_stop_both_at_one_step(number, to, tmp_path):
    conf = resolved()
    conf.stages, conf.image_only.length, conf.image_only.eval_every = ('image_only',), '4000 steps', '2000 steps'
    (tmp_path / 'c.json').write_text(config.dump(conf))
    running = start(tmp_path / 'c.json', tmp_path / 'run', 2)
    until = time.time() + 200
    while len(log.read(tmp_path / 'run')) < 2 and time.time() < until and running[0].poll() is None:
        time.sleep(0.1)
    for i in to:
        running[i].send_signal(number)
    said = [run.communicate(timeout=200)[0] for run in running]
    assert [run.returncode for run in running] == [75, 75], said[0][-2000:] + said[1][-2000:]
    assert [f'{number.name}: asked to stop' in text for text in said] == [i in to for i in range(2)]
    assert all('stopped at step' in text for text in said)
    steps = checkpoint.scores(tmp_path / 'run' / 'checkpoints' / 'image_only')
    assert len(steps) == 1 and 0 < max(steps) < 4000


@pytest.mark.slow
def test_a_signal_between_two_stages_stops_both_processes_though_the_second_stage_is_shorter(tmp_path):
    conf = resolved()
    conf.stages = 'teacher', 'image_only'
    for name, length in (('teacher', '40 steps'), ('image_only', '20 steps')):
        conf[name].length = conf[name].eval_every = length
    (tmp_path / 'c.json').write_text(config.dump(conf))
    running = start(tmp_path / 'c.json', tmp_path / 'run', 2)
    line = next(line for line in running[0].stdout if 'of the best step' in line)
    running[1].send_signal(signal.SIGUSR2)
    said = [run.communicate(timeout=200)[0] for run in running]
    assert [run.returncode for run in running] == [75, 75], line + said[0][-2000:] + said[1][-2000:]
    assert not (tmp_path / 'run' / 'report.html').exists()
    assert all(step < 20 for step in checkpoint.scores(tmp_path / 'run' / 'checkpoints' / 'image_only'))


def _leaves(tree):
    import jax
    return jax.tree.leaves(tree)


@pytest.mark.slow
def test_two_processes_predict_different_scans_and_agree_on_the_table(tmp_path):
    small = [f'unet.model.{k}' for k in ('norm=group', 'channels=(4,8)')]  # batch statistics are those of one device
    conf = config.load('configs/sikd_acdc.py:smoke', ['stages=unet', 'tensorboard=false', 'data.source.patients=10',
                                                      'data.source.size=32',
                                                      'data.image.size=32', 'data.split.stratify=', *small])
    (tmp_path / 'c.json').write_text(config.dump(conf))
    for name, processes in (('one', 1), ('two', 2)):
        launch(tmp_path / 'c.json', tmp_path / name, processes)
    one, two = (files.read_json(tmp_path / w / 'summary.json', '')['stages']['unet']['test']['best']
                for w in ('one', 'two'))
    assert one.keys() == two.keys() and {'segmentation/dice', 'shifted/dice/RV'} <= one.keys()
    for metric in ('segmentation/dice', 'shifted/dice'):
        assert one[metric]['value'] == pytest.approx(two[metric]['value'], abs=0.02), metric
    rows = [(tmp_path / w / 'predictions' / 'unet_shifted.csv').read_text().splitlines() for w in ('one', 'two')]
    assert [r.split(',')[0] for r in rows[0]] == [r.split(',')[0] for r in rows[1]]
