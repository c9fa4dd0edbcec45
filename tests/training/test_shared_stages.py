"""Stages that one run trained and another takes over: as if it had trained them, and refused where options differ."""
import json
import pathlib
import shutil

import pytest
from ml_collections import ConfigDict

from jaxkd import config, errors, main, runner
from jaxkd.runtime import files
from jaxkd.training import shared_stages
from tests.fixtures import pages, tiny_sweep
from tests.fixtures.same_run import facts

pytestmark = pytest.mark.usefixtures('without_pages')


def resolved(**changes):
    changes = dict(stages='teacher,student') | changes
    run = config.load(tiny_sweep.CONFIG, [f'{key.replace("__", ".")}={value}' for key, value in changes.items()])
    return config.resolve(ConfigDict(config.tuples(json.loads(config.dump(run)))))


def only(run, *stages):
    return ConfigDict(run.to_dict() | dict(stages=stages))


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Folders of a run that trained all stages alone, and of one that trained the teacher alone."""
    root = tmp_path_factory.mktemp('runs')
    with pages.left_out():
        runner.run(resolved(), root / 'alone')
        runner.run(only(resolved(), 'teacher'), root / 'teacher')
    return root


def test_a_run_with_a_shared_stage_equals_the_one_that_trained_it(folders, tmp_path, capsys):
    runner.run(resolved(), tmp_path / 'run', {'teacher': folders / 'teacher'})
    said = capsys.readouterr().out
    assert f'teacher: taken over from {folders / "teacher"}' in said and 'teacher  step' not in said
    assert facts(tmp_path / 'run') == facts(folders / 'alone')
    summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
    assert pathlib.Path(tmp_path / 'run' / summary['stages']['teacher']['trained_in']).resolve() == folders / 'teacher'
    assert 'trained_in' not in summary['stages']['student']
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / 'teacher')  # links: the stage stays where it was trained
    assert facts(folders / 'teacher')['weights'] == {'teacher': facts(folders / 'alone')['weights']['teacher']}


def test_a_stage_to_take_over_is_named_with_its_folder(capsys):
    with pytest.raises(SystemExit):
        main.main(['--config', tiny_sweep.CONFIG, '--take_over', 'teacher'])
    assert 'as in teacher=runs/a' in capsys.readouterr().err


def test_what_an_interrupted_try_left_is_replaced(folders, tmp_path):
    run = tmp_path / 'run'
    shutil.copytree(folders / 'alone' / 'checkpoints' / 'student', run / 'checkpoints' / 'teacher')
    (run / 'checkpoints' / '.teacher.0123' / '4').mkdir(parents=True)
    (run / 'metrics.jsonl').write_text('{"stage": "teacher", "step": 2, "loss": 3}\n{"stage": "oth')
    runner.run(only(resolved(), 'teacher'), run, {'teacher': folders / 'teacher'})
    assert {**facts(run), 'config': ''} == {**facts(folders / 'teacher'), 'config': ''}
    assert not list((run / 'checkpoints').glob('.*'))


@pytest.mark.parametrize('changes, error, says', [
    (dict(seed=1), errors.ConfigError, 'other options, seed or data'),
    (dict(teacher__optim__lr=0.5), errors.ConfigError, 'other options, seed or data'),
    (dict(data__split__seed=1), errors.ConfigError, 'other options, seed or data'),
])
def test_other_options_are_refused(folders, tmp_path, changes, error, says):
    with pytest.raises(error, match=says):
        runner.run(resolved(**changes), tmp_path / 'run', {'teacher': folders / 'teacher'})
    assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_a_stage_that_is_not_finished_and_another_split_are_refused(folders, tmp_path):
    with pytest.raises(errors.MissingInput, match='student is not finished there'):
        runner.run(resolved(), tmp_path / 'a', {'student': folders / 'teacher'})
    (tmp_path / 'b').mkdir()
    split = json.loads((folders / 'teacher' / 'split.json').read_text())
    other = shutil.copytree(folders / 'teacher', tmp_path / 'other')
    (other / 'split.json').unlink()
    first = min(split['split'])
    split['split'][first] = 'val' if split['split'][first] == 'train' else 'train'
    del split['fingerprint']
    (other / 'split.json').write_text(json.dumps(split))
    shutil.copytree(folders / 'teacher', tmp_path / 'b', dirs_exist_ok=True)
    summary = files.read_summary(tmp_path / 'b' / 'summary.json')
    summary['stages']['teacher']['finished'] = False
    (tmp_path / 'b' / 'summary.json').write_text(json.dumps(summary))
    with pytest.raises(errors.BadData, match='is not the split of'):
        runner.run(only(resolved(), 'teacher'), tmp_path / 'b', {'teacher': other})


def test_the_digest_holds_what_decides_a_stage_and_nothing_else():
    digest = shared_stages.digest
    base = resolved()
    for same in (dict(student__method__alpha=0.1), dict(data__workers=2), dict(tensorboard=True), dict(note='x')):
        assert digest(resolved(**same), 'teacher') == digest(base, 'teacher'), same
    assert digest(resolved(student__method__alpha=0.1), 'student') != digest(base, 'student')
    assert digest(resolved(teacher__optim__lr=0.1), 'student') != digest(base, 'student'), 'a teacher decides, too'
    assert digest(resolved(teacher__optim__lr=0.1), 'image_only') == digest(base, 'image_only')
    for other in (dict(seed=1), dict(data__source__cases=50), dict(bootstrap=20)):
        assert digest(resolved(**other), 'teacher') != digest(base, 'teacher'), other
    own = [ConfigDict(resolved(data__labels__share=share).to_dict()) for share in (0.5, 1.0)]
    for run in own:
        run.image_only.data = dict(labels=dict(share=1.0))
    assert digest(own[0], 'image_only') == digest(own[1], 'image_only'), 'it sets the option itself'
    assert digest(own[0], 'student') != digest(own[1], 'student')
    assert shared_stages.prior_stages(base, 'student') == ['teacher']
    assert shared_stages.prior_stages(base, 'teacher') == []
