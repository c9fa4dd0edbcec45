"""The SLURM engine: what is submitted, and, on a real scheduler, dependencies, preemption, requeue and exact resume.

The tests that need SLURM (-m slurm) take the cluster that answers, with two nodes and the partitions main, preempt
(requeued when urgent needs its nodes) and urgent. Where none does they start one of their own, as root; where that is
not possible they are skipped and say so, and fail in CI.
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from jaxkd import errors
from launch import manifest, state, sweep
from launch import profile as profiles
from launch.engines import slurm
from tests.fixtures import slurm_cluster, tiny_sweep
from tests.fixtures.same_run import facts

ROOT = pathlib.Path(__file__).parents[2]
ON_TWO_NODES = 'nodes = 2\ntasks_per_node = 1\n'


@pytest.fixture
def plan(tmp_path):
    folder = tmp_path / 'a sweep'
    return folder, manifest.write(folder, 'x.py', manifest.plan(tiny_sweep.get_sweep()))


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Commands that note their arguments: sbatch numbers what it gets, squeue prints what a file holds."""
    (tmp_path / 'bin').mkdir()
    for name, body in dict(sbatch='echo $((100 + $(wc -l < "$F/sbatch.txt")))', squeue='cat "$F/queue.txt"').items():
        head = f'#!/bin/bash\nF={tmp_path}\nprintf "%s\\n" "$*" >> $F/{name}.txt\n'
        (tmp_path / 'bin' / name).write_text(f'{head}{body}\n')
        (tmp_path / 'bin' / name).chmod(0o755)
    (tmp_path / 'queue.txt').write_text('')
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')
    return lambda name: (tmp_path / f'{name}.txt').read_text().splitlines()


def test_students_wait_for_their_teachers_alone(plan, fake, tmp_path, capsys):
    folder, jobs = plan
    assert slurm.run(folder, jobs, '') == 0
    first, *rest = fake('sbatch')
    assert first.startswith('--parsable /') and [line.split()[1] for line in rest] == [
        '--dependency=afterok:101_1:101_0', '--dependency=afterok:101_3:101_2']
    tasks = [pathlib.Path(line.split(maxsplit=1)[1].partition(str(folder))[2].strip('/')) for line in [first]]
    lists = sorted((folder / 'slurm').glob('*.txt'), key=lambda p: p.read_text())
    assert [p.read_text().split() for p in lists] == [
        ['runs/alpha0.25_seed0', 'runs/alpha0.5_seed0'], ['runs/alpha0.25_seed1', 'runs/alpha0.5_seed1'],
        [job.name for job in jobs[:4]]]
    assert tasks[0].suffix == '.sh' and '8 jobs: 0 finished, 8 in the queue' in capsys.readouterr().out


def test_what_is_queued_or_finished_is_not_submitted_again(plan, fake, tmp_path, capsys):
    folder, jobs = plan
    slurm.run(folder, jobs, '')
    names = [line.split('/slurm/')[1].removesuffix('.sh') for line in fake('sbatch')]
    (tmp_path / 'queue.txt').write_text(f'101_0|{names[0]}\n101_3|{names[0]}\n102_1|{names[1]}\n7|another\n')
    for job, code in ((jobs[1], 0), (jobs[2], 0)):
        state.begin(folder, job)
        state.end(folder, job, code, '', {})
    slurm.run(folder, jobs, '')
    assert [line.partition(' /')[0] for line in fake('sbatch')[3:]] == [
        '--parsable --dependency=afterok:101_0', '--parsable --dependency=afterok:101_3']
    written = sorted(p.read_text() for p in (folder / 'slurm').glob('*.txt') if p.stem not in names)
    assert written == ['runs/alpha0.25_seed0\n'], 'the other array is the one of before'
    other = folder.parent / 'another sweep'
    shutil.copytree(folder, other)
    slurm.run(other, manifest.read(other), '')
    assert len(fake('sbatch')) == 8, 'a queue holds several sweeps'


def test_what_failed_too_often_and_what_waits_for_it_are_left(plan, fake, capsys):
    folder, jobs = plan
    for _ in range(3):
        state.begin(folder, jobs[0])
        state.end(folder, jobs[0], 65, 'case7 cannot be read', {})
    slurm.run(folder, jobs, '', retries=2)
    said = capsys.readouterr().out
    assert f'failed (3x, code 65): {jobs[0].name}: case7 cannot be read' in said and '5 in the queue' in said
    assert len(fake('sbatch')) == 2
    slurm.run(folder, jobs, '', retries=3)
    assert len(fake('sbatch')) == 5


def test_the_script_holds_what_the_profile_says(plan):
    folder, _ = plan
    site = slurm.Profile(partition='gpu', account='my lab', time='1:00:00', gpus_per_node=2, nodes=2, tasks_per_node=2,
                         cpus_per_task=8, at_a_time=3, modules=['cuda/12'], setup=['. venv/bin/activate'],
                         environment={'A': 'b c'}, sbatch=['--constraint=a100'], python='py', requeue_on=[75, 76])
    array = slurm.Array((('runs/a',), ('runs/b',)), ())
    text = slurm.script(folder, array, site)
    for line in ('#SBATCH --array=0-1%3', '#SBATCH --requeue', '#SBATCH --open-mode=append', '#SBATCH --nodes=2',
                 '#SBATCH --ntasks-per-node=2', '#SBATCH --gpus-per-node=2', '#SBATCH --signal=TERM@120',
                 '#SBATCH --kill-on-invalid-dep=yes', '#SBATCH --constraint=a100', 'ulimit -c 0', 'module load cuda/12',
                 "export A='b c'", 'export JAXKD_HEARTBEAT=30',
                 f'srun --kill-on-bad-exit=1 --cpus-per-task=8 py -m launch.job \'{folder}\' "${{names[@]}}"'):
        assert line in text, line
    assert 'case $code in 75|76)' in text and 'task=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}' in text
    assert subprocess.run(['bash', '-n'], input=text, text=True).returncode == 0
    if shutil.which('shellcheck'):
        assert subprocess.run(['shellcheck', '-'], input=text, text=True).returncode == 0
    packed = slurm.script(folder, slurm.Array((('runs/a', 'runs/b'),), ()), slurm.Profile(runs_per_task=2))
    assert "-m launch.engines.local" in packed and '--only "${names[@]}"' in packed and '--array=0-0\n' in packed


@pytest.mark.parametrize('text, says', [
    ('partiton = "x"', 'has the key "partiton". Did you mean "partition"'), ('nodes = ', 'is not TOML'),
    ('nodes = "2"', "nodes = '2': expected int"), (None, 'cannot be read'),
    ('nodes = 2\nruns_per_task = 3', 'is for runs of one process')])
def test_wrong_profiles_are_named(plan, tmp_path, fake, text, says):
    folder, jobs = plan
    path = tmp_path / 'site.toml'
    if text is not None:
        path.write_text(text)
    with pytest.raises(errors.ConfigError, match=says):
        slurm.run(folder, jobs, str(path))


def test_the_profile_that_comes_along_is_read_and_slurm_may_be_absent(plan, monkeypatch):
    folder, jobs = plan
    assert profiles.read(ROOT / 'configs/sites/slurm.toml', slurm.Profile).time == '24:00:00'
    monkeypatch.setenv('PATH', '/nowhere')
    with pytest.raises(errors.ConfigError, match='There is no squeue on this machine'):
        slurm.run(folder, jobs, '')


# --- on a real scheduler ------------------------------------------------------------------------------------------


@pytest.fixture(scope='session')
def cluster():
    if slurm_cluster.answers():
        yield
        return
    if why := slurm_cluster.install():
        (pytest.fail if os.environ.get('CI') else pytest.skip)(why)
    with slurm_cluster.started():
        yield


def submit(folder, file, profile, *options):
    (folder.parent / 'site.toml').write_text(profile)
    command = [sys.executable, '-m', 'launch.sweep', str(file), '--workdir', str(folder), '--engine', 'slurm',
               '--profile', str(folder.parent / 'site.toml'), *options]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait(condition, seconds, folder):
    until = time.monotonic() + seconds
    while not (value := condition()):
        logs = ''.join(p.read_text()[-2000:] for p in (folder / 'logs').glob('*.log'))
        assert time.monotonic() < until, subprocess.run(['squeue', '-r'], capture_output=True, text=True).stdout + logs
        time.sleep(0.5)
    return value


def wait_until_finished(folder):
    def done():
        states = state.all_of(folder, manifest.read(folder)).values()
        assert not (failed := [s for s in states if s.status == state.FAILED and s.code is not None]), failed
        return all(s.status == state.FINISHED for s in states)
    wait(done, 400, folder)


def wait_until_out_of_the_queue(folder):
    wait(lambda: not slurm._queued(folder), 60, folder)


def wait_for_steps(folder, lines):
    path = folder / 'runs' / 'seed0' / 'metrics.jsonl'
    wait(lambda: path.exists() and path.read_text().count('\n') >= lines, 120, folder)


def steps(count):
    lengths = dict(length=count, eval_every=count // 2, log_every=20)
    return {f'image_only.{key}': f'{n} steps' for key, n in lengths.items()}


def write_sweep(path, axes, stages, config=tiny_sweep.CONFIG, **overrides):
    path.write_text(f'''
from launch.members import product
def get_sweep():
    return [m._replace(overrides={{**m.overrides, 'stages': {stages!r}, **{overrides!r}}})
            for m in product({config!r}, {axes!r})]
''')
    return path


@pytest.mark.slurm
def test_a_sweep_of_six_runs_trains_their_teacher_once(cluster, tmp_path):
    alphas = {'student.method.alpha': (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)}
    file = write_sweep(tmp_path / 'x.py', alphas, ('teacher', 'student'))
    profile = 'partition = "main"\nruns_per_task = 2\nat_a_time = 2\n'
    said = submit(tmp_path / 'sweep', file, profile)
    assert '7 in the queue' in said and 'submitted' in said
    again = submit(tmp_path / 'sweep', file, profile)
    assert '7 in the queue' in again and 'submitted' not in again
    wait_until_finished(tmp_path / 'sweep')
    logs = [p.read_text() for p in (tmp_path / 'sweep' / 'logs').glob('*.log')]
    assert sum('teacher  step' in text for text in logs) == 1
    summaries = [json.loads(p.read_text()) for p in (tmp_path / 'sweep' / 'runs').glob('*/summary.json')]
    assert len({s['stages']['teacher']['trained_in'] for s in summaries}) == 1 and len(summaries) == 6
    wait_until_out_of_the_queue(tmp_path / 'sweep')
    assert '7 finished, 0 in the queue' in submit(tmp_path / 'sweep', file, profile)


@pytest.fixture(scope='module')
def uninterrupted(cluster, tmp_path_factory):
    """A sweep of one run, and what it gives on two nodes."""
    file = write_sweep(tmp_path_factory.mktemp('uninterrupted') / 'x.py', {'seed': (0,)}, ('image_only',), **steps(800))
    submit(file.parent / 'sweep', file, ON_TWO_NODES)
    wait_until_finished(file.parent / 'sweep')
    return file, facts(file.parent / 'sweep/runs/seed0')


@pytest.mark.slurm
def test_a_run_on_two_nodes_is_preempted_requeued_and_ends_as_if_nothing_had_happened(uninterrupted, tmp_path):
    file, straight = uninterrupted
    folder = tmp_path / 'sweep'
    submit(folder, file, f'partition = "preempt"\n{ON_TWO_NODES}')
    wait_for_steps(folder, 1)
    subprocess.run(['sbatch', '-p', 'urgent', '--exclusive', '-N2', '-n2', '-o', '/dev/null', '--wrap', 'true'],
                   check=True, capture_output=True)
    wait_until_finished(folder)
    assert_continued(folder, straight)


@pytest.mark.slurm
def test_a_cancelled_run_saves_in_time_stays_cancelled_and_is_continued_when_submitted_again(uninterrupted, tmp_path):
    file, straight = uninterrupted
    folder = tmp_path / 'a sweep'
    number = submit(folder, file, ON_TWO_NODES).split('submitted ')[1].split(',')[0]
    wait_for_steps(folder, 1)
    subprocess.run(['scancel', number], check=True)
    wait_until_out_of_the_queue(folder)
    job, = manifest.read(folder)
    assert state.of(folder, job).status == state.INTERRUPTED, 'it saved before SLURM killed it'
    time.sleep(4)
    assert not slurm._queued(folder)
    assert '1 in the queue' in submit(folder, file, ON_TWO_NODES)
    wait_until_finished(folder)
    assert_continued(folder, straight)


def assert_continued(folder, straight):
    """A run on two nodes saved once because of a signal, and then ended as the one that was not interrupted."""
    attempts = json.loads((folder / 'runs/seed0/attempts.json').read_text())
    assert [a['code'] for a in attempts] == [75, 0], attempts
    log, = [p.read_text() for p in (folder / 'logs').glob('*.log')]
    assert 'resuming at step' in log and '2 process(es)' in log
    again = facts(folder / 'runs/seed0')
    for key in straight:
        assert straight[key] == again[key], key


@pytest.mark.slurm
def test_a_run_on_two_nodes_is_that_of_one_process_with_two_devices_bit_for_bit(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv('NPROC', '16')  # virtual devices of one process share its threads
    config, stages = 'configs/mmpkd_cxr.py:smoke', ('teacher', 'image_only', 'student')
    file = write_sweep(tmp_path / 'x.py', {'seed': (0,)}, stages, config=config)
    submit(tmp_path / 'sweep', file, ON_TWO_NODES)
    wait_until_finished(tmp_path / 'sweep')
    log, = [p.read_text() for p in (tmp_path / 'sweep' / 'logs').glob('*.log')]
    assert '2 process(es)' in log
    flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=2'
    alone = subprocess.run([sys.executable, '-m', 'jaxkd.main', '--config', config, f'--config.stages={stages}',
                            '--workdir', str(tmp_path / 'alone')], cwd=ROOT, capture_output=True, text=True,
                           env={**os.environ, 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': flags})
    assert alone.returncode == 0 and '2 x cpu' in alone.stdout, alone.stdout + alone.stderr
    one, two = facts(tmp_path / 'alone'), facts(tmp_path / 'sweep/runs/seed0')
    for key in one:
        assert one[key] == two[key], key


def test_an_unknown_engine_is_refused():
    with pytest.raises(SystemExit):
        sweep.main(['x.py', '--engine', 'pbs'])
