"""What goes wrong around a run, tried for real: each ends in a sentence and a code, and the same command continues.

Damaged checkpoints, kills of a run of one process, and two runs in one folder: test_train.py and test_workdir.py.
"""
import contextlib
import itertools
import os
import pathlib
import random
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import checkpoint, config, errors, runner, stages, train
from jaxkd.data import loader
from jaxkd.runtime import lock, log, saved_student
from tests.fixtures.same_run import facts
from tests.system.test_hosts import start
from tests.system.test_train import resolved


def readers():
    """Numbers of the processes that this one started to read in."""
    tasks = pathlib.Path('/proc/self/task').glob('*/children')
    numbers = [int(n) for path in tasks for n in path.read_text().split()]
    return {n for n in numbers if b'spawn_main' in pathlib.Path(f'/proc/{n}/cmdline').read_bytes()}


def images(folder, workers=0):
    """The arm on 24 images in a folder, read anew in each epoch."""
    rng, rows = np.random.default_rng(0), ['patient_id,image,text,a']
    folder.mkdir()
    for i in range(24):
        Image.fromarray(rng.integers(0, 255, (40, 40), np.uint8)).save(folder / f'{i}.png')
        rows.append(f'p{i},{i}.png,word,{i % 2}')
    (folder / 'cases.csv').write_text('\n'.join(rows))
    run = resolved(60, 60, select='', evals={}).to_dict()
    run['data'] |= dict(source=dict(name='folder', root=str(folder)), transforms=('image', 'labels'), cache='none',
                        workers=workers)
    return config.resolve(ConfigDict(run))


@pytest.mark.parametrize('count', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_file_that_disappears_in_the_middle_of_an_epoch_is_named(count, tmp_path):
    stage = stages.build(images(tmp_path / 'images', count), 'arm', tmp_path / 'run')
    feed = loader.train_loader(stage.data, 8, 0)
    try:
        next(feed)
        for path in (tmp_path / 'images').glob('*.png'):
            path.unlink()
        with pytest.raises((errors.MissingInput, errors.BadData), match=r'\d+\.png') as stopped:
            for _ in range(30):
                next(feed)
    finally:
        feed.close()
    assert stopped.value.code in (65, 66)


def test_a_reader_process_that_is_killed_is_said(tmp_path):
    stage = stages.build(images(tmp_path / 'images', 1), 'arm', tmp_path / 'run')
    before = readers()
    feed = loader.train_loader(stage.data, 8, 0)
    try:
        next(feed)
        for number in readers() - before:
            os.kill(number, signal.SIGKILL)
        with pytest.raises(errors.JaxkdError, match='A reader process was ended.*exit code -9.*data.workers'):
            for _ in range(100):
                next(feed)
    finally:
        feed.close()


@pytest.mark.usefixtures('without_pages')
def test_a_clock_that_is_set_back_changes_nothing(tmp_path, monkeypatch):
    """The time of day falls by an hour at each look, in a run and for the lock of its folder."""
    conf = resolved(2, 2)
    runner.run(conf, tmp_path / 'straight')
    seconds = itertools.count(time.time(), -3600)
    monkeypatch.setattr(time, 'time', lambda: next(seconds))
    monkeypatch.setattr(lock, 'HEARTBEAT', 0.05)
    runner.run(conf, tmp_path / 'back')
    assert facts(tmp_path / 'back') == facts(tmp_path / 'straight')
    assert all(line['examples_per_s'] > 0 for line in log.read(tmp_path / 'back') if 'examples_per_s' in line)
    with lock.hold(tmp_path / 'back'), pytest.raises(errors.CannotWrite, match='in use'), lock.hold(tmp_path / 'back'):
        pass


@contextlib.contextmanager
def disk(path, megabytes):
    """A file system of its own at a path."""
    path.mkdir(parents=True)
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={megabytes}m', 'tmpfs', str(path)],
                             capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f'no file system can be mounted here: {mounted.stderr.strip()}')
    try:
        yield lambda options: subprocess.run(['mount', '-o', f'remount,{options}', str(path)], check=True)
    finally:
        subprocess.run(['umount', '-l', str(path)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize('fault, says', [('full', 'the disk is full'), ('ro', 'read-only file system')])
def test_a_disk_that_is_full_or_read_only_during_a_save_loses_nothing(fault, says, tmp_path, monkeypatch):
    """Of the checkpoints alone; with room again, the same command continues and ends as if nothing had happened."""
    conf = resolved(6, 2, evals={}, select='')
    straight = train.train(stages.build(conf, 'arm', tmp_path / 'a'), tmp_path / 'a', tensorboard=False)[0]
    folder = tmp_path / 'b' / 'checkpoints'
    with disk(folder, 40) as remount:
        stage = stages.build(conf, 'arm', tmp_path / 'b')
        save = checkpoint.Checkpointer.save

        def at_the_second(self, step, *args):
            if step == 4:
                self.wait()
                if fault == 'full':
                    with contextlib.suppress(OSError), open(folder / 'filler', 'wb', 0) as f:
                        while f.write(bytes(4096)) == 4096:
                            pass
                else:
                    remount('ro')
            save(self, step, *args)
        with monkeypatch.context() as patch, pytest.raises(errors.CannotWrite, match=says) as stopped:
            patch.setattr(checkpoint.Checkpointer, 'save', at_the_second)
            train.train(stage, tmp_path / 'b', tensorboard=False)
        assert stopped.value.code == 73 and list(checkpoint.scores(folder / 'arm')) == [2]
        if fault == 'ro':
            remount('rw')
        (folder / 'filler').unlink(missing_ok=True)
        again = train.train(stages.build(conf, 'arm', tmp_path / 'b'), tmp_path / 'b', tensorboard=False)[0]
        assert saved_student.digest(again) == saved_student.digest(straight)
        assert 2 in checkpoint.scores(folder / 'arm') or 4 in checkpoint.scores(folder / 'arm')


# --- two processes -------------------------------------------------------------------------------------------------


def short(steps=120, every=20, **changes):
    conf = resolved(steps, every, log_every='5 steps', select='', **changes)
    conf.bootstrap = 10
    return conf


def ended(running, seconds=100):
    """What processes said until they ended; none may hang."""
    said = [''] * len(running)

    def read(i):
        said[i] = running[i].communicate()[0]
    threads = [threading.Thread(target=read, args=(i,), daemon=True) for i in range(len(running))]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0, until - time.monotonic()))
    hanging = [i for i, run in enumerate(running) if run.poll() is None]
    for i in hanging:
        running[i].kill()
    assert not hanging, f'processes {hanging} hang: {said}'
    return said


def kill_one_of_two(folder, kills, **length):
    """kill -9 of one of two processes at random moments -> [(victim, codes before, code of the other, last line)]."""
    (folder / 'c.json').write_text(config.dump(short(**length)))
    straight = start(folder / 'c.json', folder / 'straight', 2)
    said = ended(straight, 300)
    assert [run.returncode for run in straight] == [0, 0], said
    rng, outcomes, workdir = random.Random(0), [], folder / 'killed'
    for i in range(kills):
        running, victim, before = start(folder / 'c.json', workdir, 2), rng.randrange(2), len(log.read(workdir))
        if i % 3:  # after it trains, or anywhere between the start and that
            until = time.monotonic() + 100
            while len(log.read(workdir)) < before + 1 and time.monotonic() < until and running[0].poll() is None:
                time.sleep(0.01)
        time.sleep(rng.uniform(0, 1 if i % 3 else 8))
        over = [run.poll() for run in running]
        running[victim].kill()
        said = ended(running)
        other = running[1 - victim].returncode
        outcomes.append((victim, over, other, said[1 - victim].strip().splitlines()[-1:]))
        print(*outcomes[-1], flush=True)
        if over == [None, None]:  # JAX itself ends a process that waits for another one: to join, or in its service
            words = {errors.PeerDied.code: 'another process of this run died',
                     -signal.SIGABRT: 'JAX distributed service detected fatal errors'}
            assert other in words and words[other] in said[1 - victim], (outcomes[-1], said[1 - victim][-3000:])
    running = start(folder / 'c.json', workdir, 2)
    said = ended(running, 300)
    assert [run.returncode for run in running] == [0, 0], said
    assert facts(workdir) == facts(folder / 'straight')
    return outcomes


@pytest.mark.slow
def test_a_run_whose_other_process_is_killed_ends_with_a_sentence_and_continues(tmp_path, monkeypatch):
    monkeypatch.setenv('JAXKD_HEARTBEAT', '10')
    monkeypatch.setenv('JAXKD_JOIN', '40')
    kill_one_of_two(tmp_path, 2)


@pytest.mark.long
def test_twenty_kills_of_one_of_two_processes(tmp_path, monkeypatch):
    monkeypatch.setenv('JAXKD_HEARTBEAT', '10')
    monkeypatch.setenv('JAXKD_JOIN', '40')
    outcomes = kill_one_of_two(tmp_path, 20, steps=4000, every=50)
    assert sum(over == [None, None] for _, over, _, _ in outcomes) >= 15, 'the run is too short'


@pytest.mark.slow
def test_a_nan_on_one_host_ends_both_and_the_last_checkpoint_stays(tmp_path):
    """One case becomes nan on the device; all hosts sum its gradient."""
    conf = short(data=dict(augment=()), input_fn='tests.fixtures.disc.nan_where_black')
    trained = stages.build(conf, 'arm', tmp_path / 'look').data.partition.train_indices()
    case = f'case{trained[0]}'
    conf.data.source.black = (case,)
    (tmp_path / 'c.json').write_text(config.dump(conf))
    running = start(tmp_path / 'c.json', tmp_path / 'run', 2)
    said = ended(running, 200)
    assert [run.returncode for run in running] == [70, 70], said
    assert sum(f'{case},' in text or f'{case}.' in text for text in said) == 1, 'the host that had it names it'
