"""The TPU engine, with a gcloud that notes its arguments and plays the slice: asked for, taken away, and again."""
import json
import os
import pathlib
import shutil
import subprocess

import pytest

from jaxkd import errors
from launch import manifest
from launch import profile as profiles
from launch.engines import tpu
from tests.fixtures import tiny_sweep

ROOT = pathlib.Path(__file__).parents[2]
SITE = '''
project = "p 1"
zone = "z"
accelerator_type = "v5litepod-16"
runtime_version = "v2-alpha-tpuv5-lite"
folder = "/mnt/the sweep"
poll = 0
tries = 3
environment = {A = "b c"}
create = ["--network=lab"]
'''
# The states of the slice at each look, one a line in the file; a job fails where its name stands in `failing`.
GCLOUD = r'''#!/bin/bash
F=%s
python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@" >> $F/calls.txt
case "$4" in
  describe)
    now=$(head -n 1 $F/states.txt)
    [ "$(wc -l < $F/states.txt)" -gt 1 ] && sed -i 1d $F/states.txt
    [ "$now" = NONE ] && exit 1
    echo "$now" ;;
  ssh)
    word=$(head -n 1 $F/failing.txt)
    case "$*" in *" $word") [ -n "$word" ] && sed -i 1d $F/failing.txt && exit 1 ;; esac ;;
esac
exit 0
'''


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Run the engine while the slice goes through these states -> (exit code, calls of gcloud)."""
    jobs = manifest.write(tmp_path / 'sweep', 'x.py', manifest.plan(tiny_sweep.get_sweep()))
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'gcloud').write_text(GCLOUD % tmp_path)
    (tmp_path / 'bin' / 'gcloud').chmod(0o755)
    (tmp_path / 'site.toml').write_text(SITE)
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')

    def run(states, failing=()):
        (tmp_path / 'states.txt').write_text('\n'.join(states) + '\n')
        (tmp_path / 'failing.txt').write_text('\n'.join(failing) + '\n')
        code = tpu.run(tmp_path / 'sweep', jobs, str(tmp_path / 'site.toml'))
        return code, [json.loads(line) for line in (tmp_path / 'calls.txt').read_text().splitlines()], jobs
    return run


WHERE = ['--project=p 1', '--zone=z']


def jobs_started(calls):
    return [c[-1].rpartition(' ')[2] for c in calls if c[3] == 'ssh' and 'launch.job' in c[-1]]


def test_each_job_runs_on_all_workers_and_the_slice_is_deleted(engine):
    code, calls, jobs = engine(['NONE', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'])
    assert code == 0 and jobs_started(calls) == [job.name for job in jobs]
    assert [c for c in calls if c[3] == 'create'] == [[
        'compute', 'tpus', 'queued-resources', 'create', 'jaxkd', *WHERE, '--node-id=jaxkd',
        '--accelerator-type=v5litepod-16', '--runtime-version=v2-alpha-tpuv5-lite', '--spot', '--network=lab']]
    assert [c for c in calls if c[3] == 'scp'] == [[
        'compute', 'tpus', 'tpu-vm', 'scp', '--recurse', *WHERE, '--worker=all', os.getcwd(), 'jaxkd:jaxkd']]
    setup, first, *_ = [c for c in calls if c[3] == 'ssh']
    assert setup[-2:] == ['--worker=all', '--command=cd jaxkd && pip install --quiet -e ".[tpu]"']
    assert first == ['compute', 'tpus', 'tpu-vm', 'ssh', 'jaxkd', *WHERE, '--worker=all',
                     "--command=export A='b c' && cd jaxkd && exec python3 -m launch.job '/mnt/the sweep' "
                     f'{jobs[0].name}']
    assert calls[-1][3:] == ['delete', 'jaxkd', *WHERE, '--force', '--quiet']


def test_a_slice_that_is_taken_away_is_asked_for_again_and_the_job_continues(engine):
    code, calls, jobs = engine(['NONE', 'ACTIVE', 'SUSPENDED', 'SUSPENDED', 'SUSPENDED', 'NONE', 'ACTIVE'],
                               failing=['runs/alpha0.25_seed0'])
    started = jobs_started(calls)
    assert code == 0 and started.count('runs/alpha0.25_seed0') == 2 and len(started) == 9
    assert [c[3] for c in calls if c[3] in ('create', 'delete', 'scp')] == ['create', 'scp', 'delete', 'create', 'scp',
                                                                          'delete']


def test_a_job_that_fails_each_time_is_given_up_and_the_others_run(engine, capfd):
    code, calls, jobs = engine(['ACTIVE'], failing=['runs/alpha0.25_seed0'] * 9)
    started = jobs_started(calls)
    assert code == 1 and started.count('runs/alpha0.25_seed0') == 3 and started[-1] == jobs[-1].name
    assert 'runs/alpha0.25_seed0 failed 3 times' in capfd.readouterr().err
    assert not [c for c in calls if c[3] == 'create'] and calls[-1][3] == 'delete'


def test_the_script_is_clean_and_names_are_checked(tmp_path):
    site = profiles.read(ROOT / 'configs/sites/tpu.toml', tpu.Profile)
    text = tpu.script(['runs/a'], site)
    assert subprocess.run(['bash', '-n'], input=text, text=True).returncode == 0
    if shutil.which('shellcheck'):
        assert subprocess.run(['shellcheck', '-'], input=text, text=True).returncode == 0
    with pytest.raises(errors.ConfigError, match='lower-case'):
        tpu.script(['runs/a'], tpu.Profile('p', 'z', 'a', 'r', 'f', name='A b'))
    (tmp_path / 'site.toml').write_text('project = "p"')
    with pytest.raises(errors.ConfigError, match='the key "zone" is missing'):
        profiles.read(tmp_path / 'site.toml', tpu.Profile)
    with pytest.raises(errors.ConfigError, match='No profile was given'):
        profiles.read('', tpu.Profile)
