"""Which steps a stage keeps, and which is its best."""
import subprocess
import sys

import numpy as np
import pytest

from jaxkd import checkpoint
from jaxkd.runtime import saved_student
from jaxkd.state import TrainState

SCORES = {10: 0.2, 20: 0.7, 30: 0.7, 40: 0.1, 50: 0.7, 60: 0.3}


def train(folder, mode, saved_between=()):
    """Checkpoints of a stage with these scores, and of steps without a validation, as a preempted run saves them."""
    saver = checkpoint.Checkpointer(folder, mode)
    saver.write_metadata(dict(config=dict(mode=mode), data={}))
    for step in sorted({*SCORES, *saved_between}):
        params = {'student': {'w': np.full(2, step, np.float32)}}
        score = SCORES.get(step)
        saver.save(step, TrainState(np.int32(step), params, {'student': {}}, {}, {}, {}, {}), {},
                   score if score is None or mode == 'max' else -score)
    saver.close()


@pytest.mark.parametrize('mode', ['max', 'min'])
def test_of_equal_scores_the_earliest_is_the_best_also_of_a_run_that_was_interrupted(mode, tmp_path, monkeypatch):
    monkeypatch.setattr(saved_student, 'stage_metadata', lambda folder: dict(config=dict(mode=mode)))
    for name, saved_between in (('straight', ()), ('interrupted', (23, 35, 55))):
        train(tmp_path / name, mode, saved_between)
        student, step = checkpoint.load_student(tmp_path / name, None)
        assert step == 20 and student['params']['w'].tolist() == [20, 20]
        assert checkpoint.load_student(tmp_path / name, None, 'last')[1] == 60
    assert {*checkpoint.scores(tmp_path / 'straight')} == {20, 50, 60}
    assert {*checkpoint.scores(tmp_path / 'interrupted')} == {20, 55, 60}


def test_a_save_leaves_the_numbers_alone_by_which_hosts_agree_where_to_stop(tmp_path, monkeypatch):
    from jax.experimental import multihost_utils
    monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point', lambda step: pytest.fail('told of a step'))
    train(tmp_path / 'saved', 'max')
    assert 60 in checkpoint.scores(tmp_path / 'saved')


def test_what_failed_first_is_what_is_raised(tmp_path, monkeypatch):
    """Where another process ended during a save, its unfinished writes fail as well, and are no full disk."""
    def closed_after(error, name):
        saver = checkpoint.Checkpointer(tmp_path / name)
        finish, close = saver.manager.wait_until_finished, saver.manager.close

        def lost():
            finish()
            raise RuntimeError('heartbeat of task 1')

        def missed():
            close()
            raise FileNotFoundError(2, 'No such file or directory')
        monkeypatch.setattr(saver.manager, 'wait_until_finished', lost)
        monkeypatch.setattr(saver.manager, 'close', missed)
        try:
            if error:
                raise error
        finally:
            saver.close()
    hook = sys.unraisablehook
    with pytest.raises(ValueError, match='Connection reset'):
        closed_after(ValueError('Connection reset'), 'within')
    with pytest.raises(RuntimeError, match='heartbeat'):
        closed_after(None, 'after')
    assert sys.unraisablehook is hook


FULL = """
import resource, sys
import numpy as np
from jaxkd import checkpoint
from jaxkd.runtime import saved_student
from jaxkd.runtime import cli
from jaxkd.state import TrainState

def run(bad):
    saver = checkpoint.Checkpointer(sys.argv[1])
    saver.write_metadata(dict(config={}, data={}))
    if not bad:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,) * 2)  # as over a quota, for each file
    for step in (1, 2, 3):
        params = {'student': {'w': np.random.default_rng(step).normal(size=60_000).astype(np.float32)}}
        saver.save(step, TrainState(np.int32(step), params, {'student': {}}, {}, {}, {}, {}), {}, 0.5)
        if bad:
            checkpoint.logging.getLogger('absl').error('not ours', exc_info=ValueError('of another kind'))
    saver.close()
    return 0
cli.leave(cli.guarded(run, sys.argv[2:]))
"""


def test_a_checkpoint_that_does_not_fit_ends_in_one_sentence(tmp_path):
    """No traceback of orbax's threads beside it; those of other errors stay."""
    def run(*options):
        return subprocess.run([sys.executable, '-c', FULL, str(tmp_path / 'stage'), *options], capture_output=True,
                              text=True)
    done = run()
    assert done.returncode == 73 and 'Traceback' not in done.stderr
    line, = filter(None, done.stderr.splitlines())
    assert line.startswith('error: Cannot write') and 'over the file size limit. Make room' in line
    done = run('bad')
    assert done.returncode == 0 and 'ValueError: of another kind' in done.stderr
