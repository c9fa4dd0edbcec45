"""The local engine: jobs in processes, killed at any moment and continued by the same command; results as alone."""
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from jaxkd import config, parallel, runner
from jaxkd.multirun import processes
from launch import manifest, state
from tests.fixtures import tiny_sweep
from tests.fixtures.same_run import facts

ROOT = pathlib.Path(__file__).parents[2]


def toy(tmp_path, monkeypatch):
    """A module with commands of no time, in processes of the engine."""
    (tmp_path / 'toy_commands.py').write_text('''
import os, pathlib, sys, time
def main(arguments):
    what, path = arguments
    with open(path, 'a') as f:
        print(what, os.getpid(), len(os.sched_getaffinity(0)), file=f)
    print('said', what)
    if what == 'wait':
        from jaxkd.runtime import preemption
        while not preemption.requested():
            time.sleep(0.02)
        return 75
    if what == 'die':
        os.kill(os.getpid(), 9)
    return 3 if what == 'fail' else 0
''')
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(tmp_path), str(ROOT)]))

    def task(name, what, *after):
        arguments, log = (what, tmp_path / 'said.txt'), tmp_path / 'logs' / f'{name}.log'
        return processes.Task(name, 'toy_commands', arguments, log, after)
    return task


def said(tmp_path):
    return [line.split() for line in (tmp_path / 'said.txt').read_text().splitlines()]


def test_a_process_runs_several_commands_in_their_order(tmp_path, monkeypatch, capfd):
    task = toy(tmp_path, monkeypatch)
    tasks = [task('c', 'c', 'a', 'b'), task('a', 'a'), task('b', 'fail'), task('d', 'die'), task('e', 'e'),
             task('f', 'f', 'd')]
    tries = []

    def again(task, code):
        tries.append((task.name, code))
        return task.name == 'd' and len(tries) < 3
    codes = processes.run(tasks, 1, again)
    assert codes == {'a': 0, 'b': 3, 'd': -9, 'e': 0} and tries == [('b', 3), ('d', -9), ('d', -9)]
    lines = said(tmp_path)
    assert [line[0] for line in lines] == ['a', 'fail', 'die', 'die', 'e']
    assert lines[0][1] == lines[1][1] and len({line[1] for line in lines}) == 4, 'a new process after a failure alone'
    assert (tmp_path / 'logs' / 'a.log').read_text() == 'said a\n'
    assert 'exit   -9 d' in capfd.readouterr().out


def test_a_task_that_the_others_wait_for_has_all_cores(tmp_path, monkeypatch):
    task = toy(tmp_path, monkeypatch)
    both = sorted(os.sched_getaffinity(0))[:2]
    if len(both) < 2:
        pytest.skip('one core')
    codes = processes.run([task('teacher', 'a'), task('x', 'b', 'teacher'), task('y', 'c', 'teacher')], 2)
    cores = {line[0]: int(line[2]) for line in said(tmp_path)}
    assert codes == dict(teacher=0, x=0, y=0)
    assert cores['a'] == len(os.sched_getaffinity(0)) and cores['b'] + cores['c'] == cores['a']


def test_the_cores_are_divided(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setattr(parallel, 'local_gpus', lambda: [])
    assert [slot.cores for slot in processes.slots(3)] == [(0, 1), (2, 3, 4), (5, 6, 7)]
    assert len(processes.slots()) == 8 and processes.slots(16)[15].cores
    assert [slot.cores for slot in processes.slots(0, ready=2)] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    monkeypatch.setattr(parallel, 'local_gpus', lambda: ['4', 'GPU-5'])
    slots = processes.slots(0, ready=1)
    assert [(slot.cores, slot.environment['CUDA_VISIBLE_DEVICES']) for slot in slots] == [
        ((0, 1, 2, 3), '4'), ((4, 5, 6, 7), 'GPU-5')]
    assert processes.slots(4)[3].environment['XLA_PYTHON_CLIENT_MEM_FRACTION'] == '0.450'


def test_gpus_are_counted_without_touching_them(monkeypatch):
    monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,GPU-8')
    assert parallel.local_gpus() == ['2', 'GPU-8']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert parallel.local_gpus() == []
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    monkeypatch.setattr(parallel.glob, 'glob', lambda pattern: ['/dev/nvidia1', '/dev/nvidia0'])
    assert parallel.local_gpus() == ['0', '1']
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
    assert parallel.local_gpus() == []


def test_a_process_whose_parent_is_killed_saves(tmp_path, monkeypatch):
    """kill -9 of the process that started the worker."""
    toy(tmp_path, monkeypatch)
    program = f'''
import pathlib
from jaxkd.multirun import processes
folder = pathlib.Path({str(tmp_path)!r})
task = processes.Task('w', 'toy_commands', ('wait', folder / 'said.txt'), folder / 'w.log')
processes.run([task], 1)
'''
    parent = subprocess.Popen([sys.executable, '-c', program])
    until = time.monotonic() + 60
    while not (tmp_path / 'said.txt').exists() or not said(tmp_path):
        assert time.monotonic() < until and parent.poll() is None
        time.sleep(0.05)
    number = int(said(tmp_path)[0][1])
    parent.kill()
    parent.wait()
    while pathlib.Path(f'/proc/{number}').exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not pathlib.Path(f'/proc/{number}').exists(), 'the worker ended with it'
    assert 'SIGTERM: asked to stop' in (tmp_path / 'w.log').read_text()


def start(folder, file=tiny_sweep.CONFIG, *options):
    command = [sys.executable, '-m', 'launch.sweep', file, '--workdir', str(folder), '--parallel', '2', *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, 'PYTHONPATH': str(ROOT)})


def workers(parent):
    """Numbers of the processes that a process started."""
    children = pathlib.Path(f'/proc/{parent}/task/{parent}/children')
    return [int(n) for n in children.read_text().split()] if children.exists() else []


@pytest.mark.slow
def test_a_sweep_is_killed_at_random_moments_and_equals_the_runs_alone(tmp_path):
    """kill -9 of the command and of members, SIGTERM of the command; then each member is what it would be alone."""
    folder, rng, killed = tmp_path / 'sweep', random.Random(0), []
    for how in ('member', 'command', 'stop', 'member', 'command'):
        process = start(folder)
        time.sleep(rng.uniform(6, 14))
        if how == 'member' and (numbers := workers(process.pid)):
            os.kill(rng.choice(numbers), signal.SIGKILL)
            killed.append(how)
            time.sleep(rng.uniform(1, 4))
        if process.poll() is None:
            process.send_signal(signal.SIGTERM if how == 'stop' else signal.SIGKILL)
            killed.append(how)
        out = process.communicate(timeout=120)[0]
        assert process.returncode in ((75, 0) if how == 'stop' else (-9, 0)), out
    assert len(killed) >= 4
    process = start(folder, tiny_sweep.CONFIG, '--retries', '9')
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0 and '8 of 8 jobs finished' in out, out
    jobs = manifest.read(folder)
    assert all(s.status == state.FINISHED for s in state.all_of(folder, jobs).values())
    for job in (job for job in jobs if job.is_member):
        run = tmp_path / 'alone' / job.name
        runner.run(config.load(job.config, [f'{k}={v!r}' for k, v in job.overrides.items()]), run)
        assert facts(folder / job.name) == facts(run), job.name
    process = start(folder)
    assert '8 finished before' in process.communicate(timeout=60)[0] and process.returncode == 0


@pytest.mark.slow
def test_a_member_that_fails_is_named_and_the_others_finish(tmp_path):
    """A member with a teacher of an impossible file; the same command tries it again, at most as often as allowed."""
    file = tmp_path / 'x.py'
    file.write_text(f'''
from launch.members import Member
def get_sweep():
    few = {{'stages': ('image_only',)}}
    return [Member('bad', {tiny_sweep.CONFIG!r}, {{**few, 'image_only.init.path': '/nowhere'}}),
            Member('good', {tiny_sweep.CONFIG!r}, few)]
''')
    for count in (1, 2, 2):
        process = start(tmp_path / 'sweep', str(file), '--retries', '1')
        out = process.communicate(timeout=120)[0]
        assert process.returncode == 66 and '1 of 2 jobs finished' in out
        assert f'failed ({count}x, code 66): runs/bad: No trained stage at /nowhere' in out
    attempts = json.loads((tmp_path / 'sweep/runs/bad/attempts.json').read_text())
    assert [a['code'] for a in attempts] == [66, 66]
