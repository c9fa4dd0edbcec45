"""The plan of a sweep: members, what they share, and what may change later."""
import json
import pathlib

import pytest

from jaxkd import errors
from launch import manifest, sweep
from launch.members import Member, folds, leave_out, product, seeds, single, zipped
from tests.fixtures import tiny_sweep

CONFIG = tiny_sweep.CONFIG


def test_lists_of_members_are_combined():
    grid = product(CONFIG, {'student.optim.lr': (1e-3, 1e-2), 'student.method.alpha': (0, 1)})
    assert [m.name for m in grid] == ['lr0.001-alpha0', 'lr0.001-alpha1', 'lr0.01-alpha0', 'lr0.01-alpha1']
    assert grid[1].overrides == {'student.optim.lr': 1e-3, 'student.method.alpha': 1}
    assert grid[1].assignments() == ['student.optim.lr=0.001', 'student.method.alpha=1']
    pairs = zipped(CONFIG, {'teacher.batch': (8, 16), 'student.batch': (16, 8)})
    assert [m.name for m in pairs] == ['teacher.batch8-student.batch16', 'teacher.batch16-student.batch8']
    assert [m.name for m in seeds(folds(single(CONFIG), 2), (3, 4))] == [
        'base_fold0_seed3', 'base_fold0_seed4', 'base_fold1_seed3', 'base_fold1_seed4']
    assert folds(single(CONFIG), 2)[1].overrides == {'data.split.folds': 2, 'data.split.fold': 1}
    left = leave_out(single(CONFIG), 'center', ('A b', 'C/d'))
    assert [(m.name, m.overrides['data.split.leave_out']) for m in left] == [
        ('base_center_A-b', 'center=A b'), ('base_center_C-d', 'center=C/d')]
    with pytest.raises(errors.ConfigError, match=r'seed 2, student.optim.lr 1'):
        zipped(CONFIG, {'seed': (1, 2), 'student.optim.lr': (1,)})


def test_names_that_cannot_be_folders_or_are_equal_are_refused():
    for bad in ('a/b', '.hidden', '', 'a b', '../up'):
        with pytest.raises(errors.ConfigError, match='each needs another name'):
            manifest.plan([Member(bad, CONFIG, {})])
    with pytest.raises(errors.ConfigError, match='each needs another name'):
        manifest.plan([Member('a', CONFIG, {}), Member('A', CONFIG, {})])
    with pytest.raises(errors.ConfigError, match='has no member'):
        manifest.plan([])
    with pytest.raises(errors.ConfigError, match='Member a: .*no key "studnt"'):
        manifest.plan([Member('a', CONFIG, {'studnt.batch': 8})])


def test_equal_stages_are_one_job_and_come_first():
    jobs = [job for job, _ in manifest.plan(tiny_sweep.get_sweep())]
    assert [job.name.rpartition('-')[0] or job.name for job in jobs] == [
        'shared/teacher', 'shared/image_only', 'shared/teacher', 'shared/image_only',
        'runs/alpha0.25_seed0', 'runs/alpha0.25_seed1', 'runs/alpha0.5_seed0', 'runs/alpha0.5_seed1']
    a, b, c, d = jobs[4:]
    assert a.shared == c.shared and b.shared == d.shared and not {*a.after} & {*b.after}
    assert set(a.shared) == {'teacher', 'image_only'} and a.after == sorted(job.name for job in jobs[:2])
    assert len({job.digest for job in jobs}) == 8


def test_a_stage_that_starts_from_a_shared_one_waits_for_it():
    several = [m._replace(overrides={**m.overrides, 'stages': ('teacher', 'student')})
               for m in product(CONFIG, {'image_only.batch': (8, 16)})]
    jobs = {job.name: (job, run) for job, run in manifest.plan(several)}
    teacher, student, *runs = jobs
    assert jobs[student][0].shared == {'teacher': teacher} and jobs[student][1].stages == ('teacher', 'student')
    assert 'image_only' not in jobs[student][1] and all(len(jobs[name][0].shared) == 2 for name in runs)


def test_the_manifest_comes_back_and_holds_the_configs(tmp_path):
    plan = manifest.plan(tiny_sweep.get_sweep())
    assert manifest.write(tmp_path, 'x.py', plan) == [job for job, _ in plan] == manifest.read(tmp_path)
    for job, run in plan:
        assert job.load(tmp_path) == run
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.json')}
    manifest.write(tmp_path, 'x.py', plan)
    assert {p for p, t in before.items() if p.stat().st_mtime_ns != t} == {tmp_path / 'manifest.json'}
    plan[0][0].file(tmp_path).write_text('{}')
    with pytest.raises(errors.Damaged, match='is not the config that the manifest'):
        plan[0][0].load(tmp_path)
    manifest.write(tmp_path, 'x.py', plan)
    assert plan[0][0].load(tmp_path) == plan[0][1]


def test_members_may_be_added_and_nothing_else(tmp_path):
    few = tiny_sweep.get_sweep()[:1]
    job, = manifest.write(tmp_path, 'x.py', manifest.plan(few))
    assert not job.shared
    jobs = manifest.write(tmp_path, 'x.py', manifest.plan(tiny_sweep.get_sweep()))
    now = manifest.find(jobs, job.label)
    assert now.digest == job.digest and set(now.shared) == {'teacher', 'image_only'}
    with pytest.raises(errors.ConfigError, match='with the member alpha0.25_seed1, which is missing now'):
        manifest.write(tmp_path, 'x.py', manifest.plan(few))
    changed = [m._replace(overrides={**m.overrides, 'student.batch': 16}) for m in tiny_sweep.get_sweep()]
    with pytest.raises(errors.ConfigError, match='alpha0.25_seed0 is another one: student.batch: 8 before, 16 now'):
        manifest.write(tmp_path, 'x.py', manifest.plan(changed))
    assert manifest.read(tmp_path) == jobs


OUTSIDE = dict(format=1, jobs=[dict(name='runs/../../x', digest='', shared={}, config='', overrides={})])


@pytest.mark.parametrize('content', ['{}', '[]', '{"format": 2, "jobs": []}', '{"format": 1, "jobs": [{}]}', '{"a',
                                     json.dumps(OUTSIDE)])
def test_another_file_in_the_place_of_the_manifest_is_named(tmp_path, content):
    (tmp_path / 'manifest.json').write_text(content)
    with pytest.raises(errors.Damaged, match='manifest.json'):
        manifest.read(tmp_path)


@pytest.mark.parametrize('text, says', [
    ('', 'defines no get_sweep'), ('def get_sweep():\n    return [dict(name="a")]', 'with name, config and overrides'),
    ('def get_sweep():\n    return 3', 'must return a list'), ('def get_sweep(:', 'line 1'),
    ('def get_sweep():\n    return [dict(name="a", config="tests/none.py", overrides={})]', 'does not exist')])
def test_wrong_sweep_files_are_named(tmp_path, capsys, text, says):
    (tmp_path / 'x.py').write_text(text)
    assert sweep.main([str(tmp_path / 'x.py'), '--dry_run']) == 2
    assert says in capsys.readouterr().err


def test_a_dry_run_says_what_is_trained_and_writes_nothing(tmp_path, capsys):
    assert sweep.main([CONFIG, '--dry_run', '--workdir', str(tmp_path / 'sweep')]) == 0
    said = capsys.readouterr().out
    assert '4 members; 8 stages are trained instead of 12' in said
    assert 'runs/alpha0.5_seed1: student.method.alpha=0.5, seed=1; trains student; after shared/image_only-' in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('engine, says', [
    ('slurm', '#SBATCH --gpus-per-node=1'), ('tpu', '--accelerator-type=v5litepod-16'), ('k8s', 'kind: JobSet')])
def test_a_dry_run_prints_the_scripts_of_an_engine(tmp_path, capsys, engine, says):
    folder = tmp_path / 'sweep'
    assert sweep.main([CONFIG, '--dry_run', '--workdir', str(folder), '--engine', engine, '--profile',
                       f'configs/sites/{engine}.toml']) == 0
    said = capsys.readouterr().out
    assert says in said and 'runs/alpha0.5_seed1' in said and not folder.exists()


def test_the_sweeps_that_come_along_resolve(capsys):
    paths = sorted((pathlib.Path(__file__).parents[2] / 'configs' / 'sweeps').glob('*.py'))
    assert paths
    for path in paths:
        assert sweep.main([str(path), '--dry_run']) == 0
