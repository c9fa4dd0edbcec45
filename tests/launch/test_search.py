"""A search: trials are members, what was proposed and found is on disk, and the same command continues."""
import pytest

from launch import manifest, search, state, sweep
from launch.engines import local
from launch.search import Search, choice, log_uniform, uniform, whole
from tests.fixtures import tiny_sweep

optuna = pytest.importorskip('optuna')
FILE = '''
from launch.search import *
def get_search():
    return Search({config!r}, stage='student', trials={trials}, sampler={sampler!r}, space={{
        'student.method.alpha': uniform(0, 1), 'student.optim.lr': log_uniform(1e-4, 1e-1),
        'student.batch': choice(8, 16), 'teacher.model.depth': whole(1, 2)}})
'''


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a search whose trials end at once: the score is highest at alpha = 0.3; batches of 16 fail."""
    started = []

    def engine(folder, jobs, parallel, retries):
        for job in jobs:
            if job.is_member and state.may_try_again(state.of(folder, job), retries):
                alpha, batch = (job.overrides[f'student.{key}'] for key in ('method.alpha', 'batch'))
                started.append(job.label)
                state.begin(folder, job)
                if batch == 16:
                    state.end(folder, job, 70, 'not finite', {})
                else:
                    state.end(folder, job, 0, '', dict(scores=dict(student=1 - (alpha - 0.3) ** 2)))
                if len(started) == stop.get('at'):
                    return 75
        return 0
    stop = {}
    monkeypatch.setattr(local, 'run', engine)

    def command(trials=8, sampler='tpe', stop_at=None, parallel=2):
        (tmp_path / 'x.py').write_text(FILE.format(config=tiny_sweep.CONFIG, trials=trials, sampler=sampler))
        stop['at'] = stop_at
        code = sweep.main([str(tmp_path / 'x.py'), '--workdir', str(tmp_path / 'sweep'), '--parallel', str(parallel),
                           '--retries', '0'])
        return code, started
    return command


@pytest.mark.parametrize('sampler', ['tpe', 'random'])
def test_trials_are_members_and_the_best_is_named(run, tmp_path, capsys, sampler):
    assert run(8, sampler)[0] == 0
    jobs = [job for job in manifest.read(tmp_path / 'sweep') if job.is_member]
    assert [job.label for job in jobs] == [f'trial{i:04}' for i in range(8)]
    good = [job for job in jobs if job.overrides['student.batch'] == 8]
    assert 0 < len(good) < 8, 'some failed'
    best = min(good, key=lambda job: abs(job.overrides['student.method.alpha'] - 0.3))
    said = capsys.readouterr().out
    assert f'{len(good)} trials; the best is {best.label}, student ' in said
    assert f'--config.student.method.alpha={best.overrides["student.method.alpha"]}' in said
    for job in jobs:
        assert 1e-4 <= job.overrides['student.optim.lr'] <= 0.1 and job.overrides['teacher.model.depth'] in (1, 2)
    assert len({job.overrides['student.method.alpha'] for job in jobs}) == 8


def test_an_interrupted_search_continues_with_its_trials(run, tmp_path):
    code, started = run(6, stop_at=3)
    assert code == 75 and len(started) == 3
    before = {job.label: job for job in manifest.read(tmp_path / 'sweep')}
    code, started = run(6)
    assert code == 0 and sorted(set(started)) == [f'trial{i:04}' for i in range(6)] and len(started) == 6
    now = {job.label: job for job in manifest.read(tmp_path / 'sweep')}
    assert all(now[label] == job for label, job in before.items() if job.is_member)
    code, started = run(10)
    assert code == 0 and started[6:] == [f'trial{i:04}' for i in range(6, 10)], 'more trials may be asked for'


def test_a_dry_run_says_what_is_sought(tmp_path, capsys):
    (tmp_path / 'x.py').write_text(FILE.format(config=tiny_sweep.CONFIG, trials=9, sampler='tpe'))
    assert sweep.main([str(tmp_path / 'x.py'), '--dry_run', '--workdir', str(tmp_path / 'sweep')]) == 0
    said = capsys.readouterr().out
    assert '9 trials (tpe) for the validation score of student' in said
    assert 'runs/trial0000: student.method.alpha=0.5' in said
    assert not (tmp_path / 'sweep').exists()


@pytest.mark.parametrize('changes, says', [(dict(stage='studnt'), 'Did you mean "student"'),
                                           (dict(sampler='grid'), 'sampler = "grid"')])
def test_wrong_searches_are_named(tmp_path, capsys, changes, says):
    fields = dict(config=tiny_sweep.CONFIG, stage='student', space={}) | changes
    (tmp_path / 'x.py').write_text(f'from launch.search import *\ndef get_search():\n    return Search(**{fields!r})')
    assert sweep.main([str(tmp_path / 'x.py'), '--workdir', str(tmp_path / 'sweep')]) == 2
    assert says in capsys.readouterr().err


def test_ranges_are_what_optuna_calls_them():
    found = search._distributions(optuna, Search('x.py', 's', {
        'a': uniform(0, 1), 'b': log_uniform(1, 2), 'c': whole(1, 3), 'd': choice('x', 'y')}))
    d = optuna.distributions
    assert found == {'a': d.FloatDistribution(0, 1), 'b': d.FloatDistribution(1, 2, log=True),
                     'c': d.IntDistribution(1, 3), 'd': d.CategoricalDistribution(['x', 'y'])}
