"""How far jobs are, and one table of them: two runs finish, one fails, one has not begun."""
import csv
import json
import os

import numpy as np
import pytest

from jaxkd import errors, runner
from jaxkd.report import text_tables
from jaxkd.runtime import lock
from launch import collect, job, manifest, state, status
from launch.members import Member, product, seeds
from tests.fixtures import pages, tiny_sweep


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A sweep of image_only alone: two seeds of one arm are finished, the first of another failed."""
    root = tmp_path_factory.mktemp('sweep')
    members = [m._replace(overrides={**m.overrides, 'stages': ('image_only',)})
               for m in seeds(product(tiny_sweep.CONFIG, {'image_only.optim.lr': (1e-3, 1e-2)}), (0, 1))]
    manifest.write(root, 'x.py', manifest.plan(members))
    with pages.left_out():
        for name in ('runs/lr0.001_seed0', 'runs/lr0.001_seed1'):
            assert job.main([str(root), name]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, 'run', lambda *args: (_ for _ in ()).throw(errors.BadData('case7 cannot | be read')))
        assert job.main([str(root), 'runs/lr0.01_seed0']) == 65
    return root


def jobs_of(folder):
    return manifest.read(folder)


def test_a_finished_job_is_left_alone(folder, capsys):
    before = (folder / 'runs/lr0.001_seed0/result.json').read_bytes()
    assert job.main([str(folder), 'lr0.001_seed0']) == 0
    assert 'finished before' in capsys.readouterr().out
    assert (folder / 'runs/lr0.001_seed0/result.json').read_bytes() == before
    result = json.loads(before)
    assert (result['state'], result['code'], result['attempts']) == ('finished', 0, 1)
    assert result['metrics']['image_only']['classification/auroc']['n_patients'] > 1
    assert set(result['compiled']) == {'hits', 'misses'}
    assert os.readlink(folder / 'runs/lr0.001_seed0/teacher_outputs') == '../../teacher_outputs'


def test_the_status_names_what_failed_and_why(folder, capsys):
    assert status.main([str(folder)]) == 0
    said = capsys.readouterr().out
    assert '4 jobs, 2 finished, 1 waiting, 1 failed' in said
    assert 'failed       runs/lr0.01_seed0 (1x, code 65): case7 cannot | be read' in said
    assert 'h left, done at' in said


def test_the_table_holds_what_is_finished(folder, capsys):
    assert collect.main([str(folder)]) == 0
    said = capsys.readouterr().out
    with open(folder / 'table.csv', newline='') as f:
        done, failed = csv.DictReader(f)
    assert (done['arm'], done['image_only.optim.lr'], done['stage'], done['runs'], done['of']) == (
        'lr0.001', '0.001', 'image_only', '2', '2')
    assert [failed[key] for key in ('arm', 'stage', 'runs', 'of', 'auroc')] == ['lr0.01', '', '0', '2', '']
    values = [json.loads((folder / f'runs/lr0.001_seed{i}/result.json').read_text())['metrics']['image_only'][
        'classification/auroc']['value'] for i in (0, 1)]
    np.testing.assert_allclose(float(done['auroc']), np.mean(values), atol=1e-6)
    np.testing.assert_allclose(float(done['auroc_sd']), np.std(values, ddof=1), atol=1e-6)
    assert float(done['auroc_low']) <= float(done['auroc_high']) and done['patients'] == '5'
    markdown, latex = ((folder / f'table.{kind}').read_text() for kind in ('md', 'tex'))
    assert markdown in said and markdown.splitlines()[2].startswith('| lr0.001 | 0.001 | image_only | 2/2 | 5 | ')
    assert latex.count('\\\\\n') == 3 and 'image\\_only' in latex and '\\toprule' in latex


def test_special_characters_of_tables_are_escaped():
    assert text_tables.as_markdown(['a'], [['x|y']]) == '| a |\n| --- |\n| x\\|y |\n'
    assert text_tables.as_latex(['a_b'], [['5 % & $x^2\\']]) == (
        '\\begin{tabular}{l}\n\\toprule\na\\_b \\\\\n\\midrule\n'
        '5 \\% \\& \\$x\\textasciicircum{}2\\textbackslash{} \\\\\n\\bottomrule\n\\end{tabular}\n')


def test_folds_are_pooled_only_where_a_seed_has_most_of_them():
    class Run:
        def __init__(self, seed, part):
            self.seed, self.part = seed, part
    runs = [(None, Run(*p)) for p in ((0, '0'), (0, '1'), (1, '0'), (2, '1'), (2, '0'))]
    assert [(r.seed, r.part) for _, r in collect._complete(runs)] == [(0, '0'), (0, '1'), (2, '1'), (2, '0')]
    assert collect._complete([]) == []


@pytest.fixture
def plan(tmp_path):
    jobs = manifest.write(tmp_path, 'x.py', manifest.plan(tiny_sweep.get_sweep()))
    return tmp_path, jobs


def test_attempts_are_counted_however_they_end(plan):
    folder, jobs = plan
    one = jobs[0]
    assert state.of(folder, one) == state.State(state.WAITING)
    for n, (code, failures) in enumerate([(75, 0), (1, 1), (None, 2), (75, 2), (70, 3)], 1):
        state.begin(folder, one)
        if code is not None:
            state.end(folder, one, code, f'reason {n}', {})
        now = state.of(folder, one)
        assert now.failures == failures and now.status == ('interrupted' if code == 75 else 'failed')
        assert now.reason == (f'reason {n}' if code is not None else state.DIED)
        assert state.may_try_again(now, 2) is (failures <= 2)
    state.begin(folder, one)
    with lock.hold(folder / one.name):
        assert state.of(folder, one).status == 'running' and not state.may_try_again(state.of(folder, one), 9)
    state.end(folder, one, 0, '', dict(seconds=3.0))
    assert (state.of(folder, one).status, state.of(folder, one).seconds) == ('finished', 3.0)
    other = manifest.Job(one.name, 'another digest', {})
    assert state.of(folder, other).status != 'finished', 'of another config'
    (folder / one.name / 'result.json').write_text('{"sta')
    assert state.of(folder, one).status == 'interrupted' or state.of(folder, one).status == 'failed'


def test_what_waits_for_a_failed_job_is_blocked(plan):
    folder, jobs = plan
    state.begin(folder, jobs[0])
    state.end(folder, jobs[0], 65, 'no images', {})
    states = state.all_of(folder, jobs)
    blocked = [name for name, s in states.items() if s.status == 'blocked']
    assert blocked == ['runs/alpha0.25_seed0', 'runs/alpha0.5_seed0']
    assert states[blocked[0]].reason == f'waits for {jobs[0].name}'
    assert states['runs/alpha0.5_seed1'].status == 'waiting'


def test_a_job_needs_the_stages_that_others_train(plan, capsys):
    folder, jobs = plan
    assert job.main([str(folder), jobs[-1].name]) == 66
    assert 'does not exist' in capsys.readouterr().err
    assert state.of(folder, jobs[-1]).code == 66
    assert job.main([str(folder), 'runs/nothing']) == 2 and 'has no job "runs/nothing"' in capsys.readouterr().err
    assert job.main([str(folder / 'none'), 'x']) == 66


def test_members_are_plain_records():
    assert Member(**dict(name='a', config='x.py', overrides={'note': 'b=c'})).assignments() == ['note=b=c']
