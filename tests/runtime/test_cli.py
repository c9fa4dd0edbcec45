"""Every command ends in a sentence and a code, whatever could not be written."""
import errno
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd import parallel
from jaxkd.phantoms import __main__ as phantoms
from jaxkd.runtime import cli, files

PLATFORMS = 'cuda', 'tpu', 'rocm'


def fail(e):
    raise e


@settings(max_examples=200, deadline=None)
@given(number=st.sampled_from(sorted(errno.errorcode)), name=st.sampled_from([None, '/run/metrics.jsonl']))
def test_a_full_disk_is_73_whatever_was_written(number, name):
    e = OSError(number, 'text', *([name] if name else []))
    assert cli.guarded(fail, e) == (73 if number in files.FULL else 1)


def test_a_process_that_lost_another_one_says_so_whatever_failed_after_that(capsys):
    def run():
        try:
            raise ValueError('UNKNOWN: Gloo all-reduce failed: Connection closed by peer')
        finally:
            raise ValueError('NOT_FOUND: of the save that was cut short')
    assert cli.guarded(run) == 76
    said = capsys.readouterr().err
    assert 'another process of this run died' in said and 'Traceback' not in said


@pytest.mark.skipif(not files.pathlib.Path('/dev/full').exists(), reason='needs /dev/full')
def test_output_on_a_full_disk_ends_in_73():
    program = ('from jaxkd.runtime import cli, log\n'
               'def run(): log.info("a line"); return 0\n'
               'cli.leave(cli.guarded(run))')
    with open('/dev/full', 'w') as full:
        done = subprocess.run([sys.executable, '-c', program], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 73
    assert 'Cannot write the output: the disk is full. Make room' in done.stderr and 'Traceback' not in done.stderr


def test_a_reader_that_has_had_enough_is_no_error():
    program = 'from jaxkd.runtime import cli; cli.leave(cli.show("a line\\n" * 100000))'
    done = subprocess.run(['bash', '-c', f"set -o pipefail; {sys.executable} -c '{program}' | head -1"],
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, 'a line\n', '')


DRY_RUN = ['--config', 'configs/mmpkd_cxr.py:smoke', '--dry_run']


def test_a_device_that_is_not_there_is_a_sentence():
    done = subprocess.run([sys.executable, '-m', 'jaxkd.main', *DRY_RUN], capture_output=True, text=True,
                          env=dict(os.environ, JAX_PLATFORMS='nonsense'))
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert 'error: JAX_PLATFORMS=nonsense, but JAX finds no such device here' in done.stderr


@pytest.fixture(scope='module')
def elsewhere():
    """{name: (code, stderr)} of commands for devices that are not there, in one process: JAX keeps no device that it
    did not find.
    """
    stage = ['--run', 'a', '--input', 'image=a.png', '--output', 'b.png']
    program = ('import contextlib, io, json, os, sys\nimport jax\nfrom jaxkd import main, predict\nfound = {}\n'
               'for name, platform, run, args in json.loads(sys.argv[1]):\n'
               '    os.environ["JAX_PLATFORMS"] = platform\n'
               '    jax.config.update("jax_platforms", platform)\n'
               '    with contextlib.redirect_stderr(io.StringIO()) as said:\n'
               '        code = dict(main=main, predict=predict)[run].main(args)\n'
               '    found[name] = code, said.getvalue()\n'
               'print(json.dumps(found))')
    runs = [('predict', 'nonsense', 'predict', stage), *((p, p, 'main', DRY_RUN) for p in PLATFORMS)]
    done = subprocess.run([sys.executable, '-c', program, json.dumps(runs)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize('platform', PLATFORMS)
def test_a_device_that_this_machine_may_lack_is_a_sentence(platform, elsewhere):
    code, said = elsewhere[platform]
    if code:
        assert code == 2 and 'Traceback' not in said
        assert f'error: JAX_PLATFORMS={platform}, but JAX finds no such device here' in said


def test_a_prediction_on_a_device_that_is_not_there_is_a_sentence(elsewhere):
    code, said = elsewhere['predict']
    assert code == 2 and 'error: JAX_PLATFORMS=nonsense, but JAX finds no such device' in said


@pytest.mark.parametrize('options, code, words', [
    (['write', '--layout', 'nonsense', '--out', 'x'], 2, 'Known: acdc'),
    (['write', '--layout', 'acdc', '--out', 'file/x', '--patients', '10'], 73, 'error: Cannot write'),
    (['write', '--layout', 'acdc', '--out', 'x', '--patients', '0'], 2, 'patients=0 is out of range'),
    (['sheet', '--organ', 'thorax', '--out', 'file/x.png', '--size', '32', '--rows', '1', '--columns', '1'], 73,
     'error: Cannot write'),
])
def test_commands_of_phantoms_end_in_a_sentence(options, code, words, tmp_path, monkeypatch, capsys):
    (tmp_path / 'file').write_text('')
    monkeypatch.chdir(tmp_path)
    assert phantoms.main(options) == code
    message = capsys.readouterr().err
    assert words in message and 'Traceback' not in message


def test_a_gpu_that_is_not_used_is_named(monkeypatch):
    monkeypatch.setattr(parallel.os.path, 'exists', lambda path: path == '/dev/nvidia0')
    with monkeypatch.context() as patch:
        patch.setattr(parallel.jax, 'default_backend', lambda: 'cpu')
        patch.setenv('JAX_PLATFORMS', '')
        assert parallel.unused_accelerator().startswith('warning: this machine has an NVIDIA GPU, but JAX runs on')
        patch.setenv('JAX_PLATFORMS', 'cpu')
        assert parallel.unused_accelerator() == ''
