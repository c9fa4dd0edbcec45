"""A working folder: one run at a time, checked as a whole before anything is trained, free until a step is saved."""
import json
import os
import resource
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxkd import config, errors, runner, train
from jaxkd.data import splits
from jaxkd.runtime import lock, log
from tests.fixtures import disc

pytestmark = pytest.mark.usefixtures('without_pages')


def resolved(*stages, **changes):
    """Stages of two steps on 40 discs, the last one with `changes`."""
    run = disc.config()
    stage = dict(run['image_only'], model=dict(name='vit', width=16, depth=1, heads=2, patch=16), batch=8,
                 length='2 steps', eval_every='2 steps', log_every='2 steps', evals=dict(classification={}))
    data = dict(run['data'], source=dict(name='tests.fixtures.disc', cases=40))
    for name in ('teacher', 'image_only', 'student'):
        del run[name]
    stages = stages or ('arm',)
    run |= {name: json.loads(json.dumps(stage)) for name in stages} | dict(stages=stages, data=data, bootstrap=10)
    run[stages[-1]] |= changes
    return config.resolve(ConfigDict(config.tuples(run)))


def change(conf, **values):
    """The config with other values at keys such as last__model__size."""
    for key, value in values.items():
        *parents, option = key.split('__')
        node = conf
        for parent in parents:
            node = node[parent]
        node[option] = value
    return conf


MISTAKES = {
    'last__model__heads': 3, 'last__model__patch': 31, 'last__inputs': ('imag',), 'last__length': 'soon',
    'last__eval_every': 'never', 'last__log_every': '1 step a day', 'last__dtype': 'float12',
    'last__optim__accumulate': 3, 'last__optim__freeze': ('^nothing',), 'last__select': 'classification/auc',
    'last__init__stage': 'arm', 'last__init__path': '/nowhere/checkpoints/arm', 'last__input_fn': 'jaxkd.nothing',
    'last__folds': 39, 'parallel': 'mash',
}


@pytest.mark.parametrize('key', sorted(MISTAKES))
def test_a_mistake_in_the_last_stage_is_found_before_the_first_trains(key, tmp_path, monkeypatch):
    monkeypatch.setattr(train, 'train', lambda *args: pytest.fail('trained'))
    conf = change(resolved('arm', 'last'), **{key: MISTAKES[key]})
    if key == 'last__init__stage':
        conf.stages = ('last', 'arm')
    with pytest.raises((errors.ConfigError, errors.MissingInput)):
        runner.run(conf, tmp_path / 'run')
    assert not (tmp_path / 'run').exists(), 'nothing is left'


def test_a_folder_without_a_saved_step_is_free(tmp_path, monkeypatch, capsys):
    """A first try that failed in its first step, and then another split, another batch and another length."""
    def fail(*args):
        raise errors.BadData('case7 cannot be read')
    with monkeypatch.context() as patch, pytest.raises(errors.BadData):
        patch.setattr(train, 'train', fail)
        runner.run(resolved(), tmp_path)
    assert (tmp_path / 'config.json').exists() and (tmp_path / 'split.json').exists()
    other = change(resolved(), data__split__seed=5, arm__batch=16)
    runner.run(other, tmp_path)
    assert config.load(tmp_path / 'config.json') == other
    cases = disc.build(ConfigDict(dict(other.data.source))).cases
    fractions = dict(zip(splits.NAMES, other.data.split.fractions))
    assert splits.read(tmp_path / 'split.json') == splits.make(cases, fractions, 5)
    with pytest.raises(errors.ConfigError, match='arm.batch: 16 before, 8 now'):
        runner.run(resolved(), tmp_path)


def test_a_single_stage_of_a_finished_folder_leaves_its_config_whole(tmp_path, capsys):
    conf = resolved('arm', 'last')
    runner.run(conf, tmp_path)
    summary = runner.run(change(resolved('arm', 'last'), stages=('last',)), tmp_path)
    assert 'last: finished before' in capsys.readouterr().out
    assert summary['order'] == ['arm', 'last'] and config.load(tmp_path / 'config.json') == conf


def holder(**changes):
    own = dict(token='a', host='here', process=os.getpid(), machine=lock._machine(),
               start=lock._process_start(os.getpid()), since='2026-01-02 03:04:05')
    return own | changes


def test_a_second_run_names_the_first_and_leaves_it_alone(tmp_path):
    program = ('import sys, time; from jaxkd.runtime import lock\n'
               'with lock.hold(sys.argv[1]):\n    print("held", flush=True); time.sleep(60)')
    other = subprocess.Popen([sys.executable, '-c', program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == 'held\n'
        content = (tmp_path / 'run.lock').read_text()
        with pytest.raises(errors.CannotWrite, match=f'in use by process {other.pid} on host .* since 2'):
            runner.run(resolved(), tmp_path)
        assert (tmp_path / 'run.lock').read_text() == content and os.listdir(tmp_path) == ['run.lock']
    finally:
        other.kill()
        other.wait()
    with lock.hold(tmp_path):  # its process is gone
        assert json.loads((tmp_path / 'run.lock').read_text())['process'] == os.getpid()
    assert not os.listdir(tmp_path)


def test_one_process_does_not_hold_a_folder_twice(tmp_path):
    with lock.hold(tmp_path), pytest.raises(errors.CannotWrite, match='in use by process'), lock.hold(tmp_path):
        pass
    assert not os.listdir(tmp_path)


def test_a_run_that_lost_its_folder_ends(tmp_path):
    program = ('import sys, time; from jaxkd.runtime import lock; lock.HEARTBEAT = 0.05\n'
               'with lock.hold(sys.argv[1]):\n    print("held", flush=True); time.sleep(60)')
    other = subprocess.Popen([sys.executable, '-c', program, str(tmp_path)], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
    assert other.stdout.readline() == 'held\n'
    (tmp_path / 'run.lock').write_text(json.dumps(holder(token='b')))
    _, message = other.communicate(timeout=60)
    assert other.returncode == 73 and 'was taken over by process' in message
    assert json.loads((tmp_path / 'run.lock').read_text())['token'] == 'b'


@settings(max_examples=200, deadline=None)
@given(machine=st.sampled_from([lock._machine(), 'another host', 'another boot']),
       start=st.sampled_from([lock._process_start(os.getpid()), '1', '']), age=st.floats(0, 4 * lock.STALE),
       process=st.sampled_from([os.getpid(), 2**22 + 1]))
def test_a_lock_is_stale_by_process_on_this_machine_and_by_heartbeat_on_others(tmp_path_factory, machine, start, age,
                                                                               process):
    folder = tmp_path_factory.mktemp('run')
    path = folder / 'run.lock'
    path.write_text(json.dumps(holder(machine=machine, start=start, process=process)))
    os.utime(path, (time.time() - age,) * 2)
    here = machine == lock._machine() and start
    alive = start == holder()['start'] and process == os.getpid() if here else age < lock.STALE - 1
    if abs(age - lock.STALE) < 2 and not here:
        return
    try:
        with lock.hold(folder):
            assert not alive
    except errors.CannotWrite as e:
        assert alive and f'process {process} on host here since 2026-01-02 03:04:05' in str(e)
        return
    assert not os.listdir(folder)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode), st.just(b'[]'), st.just(b'{}')),
       st.booleans())
def test_a_lock_that_says_nothing_is_one_by_its_heartbeat(tmp_path_factory, content, fresh):
    folder = tmp_path_factory.mktemp('run')
    (folder / 'run.lock').write_bytes(content)
    if not fresh:
        os.utime(folder / 'run.lock', (time.time() - 2 * lock.STALE,) * 2)
    if fresh:
        with pytest.raises(errors.CannotWrite, match='in use by'), lock.hold(folder):
            pass
    else:
        with lock.hold(folder):
            pass
        assert not os.listdir(folder)


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_disk_that_fills_up_is_said_by_whatever_flushes_last(tmp_path, monkeypatch):
    monkeypatch.setattr(log, '_drop_lines_after', lambda *args: None)  # it would read /dev/full, which has no end
    (tmp_path / 'metrics.jsonl').symlink_to('/dev/full')
    with pytest.raises(errors.CannotWrite, match='metrics.jsonl: the disk is full. Make room'):
        runner.run(resolved(), tmp_path)
    with pytest.raises(errors.CannotWrite, match='metrics.jsonl: the disk is full. Make room'):
        writer = log.MetricWriter(tmp_path, 'arm', 2, 8, 1, (), tensorboard=False)
        writer.file.write('a line that no flush wrote')
        writer.close()


def test_a_limit_of_the_size_of_files_is_said(tmp_path, monkeypatch):
    """As on shared machines; orbax's thread meets it first."""
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)  # Python would leave the cut ones
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, before[1]))
    try:
        with pytest.raises(errors.CannotWrite, match='checkpoints/arm.*(File too large|file size limit).*Make room'):
            runner.run(resolved(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [*tmp_path.glob('checkpoints/arm/*')] or os.listdir(tmp_path / 'checkpoints/arm') == ['stage.json']
    runner.run(resolved(), tmp_path)


def test_the_time_that_is_left_is_that_of_all_stages(tmp_path, capsys, monkeypatch):
    """Of 16 examples a stage or a fold of it; runs that follow are as long as this one."""
    later, train_stage = [], train.train
    monkeypatch.setattr(train, 'train', lambda *args: later.append(args[-1]) or train_stage(*args[:-1], args[-1] % 64))
    runner.run(resolved('first', 'second', folds=2), tmp_path, later_runs=3)
    assert later == [16 * (k + 3 * 4) for k in (3, 2, 1, 0)]
    lines = [line for line in capsys.readouterr().out.splitlines() if 'ETA' in line]
    assert [(line.split()[0], 'all stages about' in line) for line in lines] == [
        ('first', True), ('second_fold0', True), ('second_fold1', True), ('second', False)]
