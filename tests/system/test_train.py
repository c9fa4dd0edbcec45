"""The loop: resumes exactly, never waits for the device, stops on what must not go on, survives what cannot be
asked.
"""
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import checkpoint, config, errors, main, runner, stages, train
from jaxkd.data import loader
from jaxkd.runtime import log, saved_student
from jaxkd.state import inference_variables
from jaxkd.training import shared_stages
from tests.fixtures import disc

IMAGE_ONLY = ['--config', 'configs/mmpkd_cxr.py:smoke', '--config.stages=image_only']
SMALL = dict(name='vit', width=16, depth=1, heads=2, patch=16)


def resolved(steps=6, every=3, **changes):
    """The image-only arm alone, on 40 discs. Tests that train the same six steps compile one program."""
    run = disc.config()
    stage = dict(run['image_only'], model=dict(SMALL, dropout=0.1), batch=8, length=f'{steps} steps',
                 eval_every=f'{every} steps',
                 log_every='2 steps', evals=dict(classification={}), data=dict(augment=('affine', 'contrast')))
    data = dict(run['data'], source=dict(name='tests.fixtures.disc', cases=40))
    run = dict(run, stages=('arm',), arm=stage | changes, data=data)
    for name in ('teacher', 'image_only', 'student'):
        del run[name]
    return config.resolve(ConfigDict(run))


def arm(conf, workdir):
    return jax.device_get(train.train(stages.build(conf, 'arm', workdir), workdir, tensorboard=False)[0])


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """(workdir, final state) of `resolved()`, for tests that work on a copy of it."""
    workdir = tmp_path_factory.mktemp('trained')
    return workdir, arm(resolved(), workdir)


def copy_of(trained, workdir):
    """The trained run once more, in another folder -> its final state."""
    shutil.copytree(trained[0], workdir, dirs_exist_ok=True)
    return trained[1]


def lines(workdir):
    """metrics.jsonl without what a clock says."""
    timed = ('examples_per_s', 'data_wait')
    return [{k: v for k, v in line.items() if k not in timed} for line in log.read(workdir)]


def test_three_and_three_steps_are_six(tmp_path, monkeypatch):
    """Weights, optimiser and log, also when the stop falls between two log lines."""
    conf = resolved(6, 6)
    whole = arm(conf, tmp_path / 'whole')
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpointer, 'preempted', lambda self, step: step == 3)
        with pytest.raises(errors.Interrupted) as stopped:
            arm(conf, tmp_path / 'halves')
    assert stopped.value.code == 75
    chex.assert_trees_all_equal(arm(conf, tmp_path / 'halves'), whole)
    assert lines(tmp_path / 'halves') == lines(tmp_path / 'whole')


def test_no_compilation_after_the_first_step_and_no_wait_for_the_device(tmp_path, monkeypatch):
    """Between log points nothing is compiled and no number leaves the device."""
    from jaxkd import parallel
    conf = resolved(9, 9, log_every='4 steps')
    step, compiled, fetched = [0], [], []

    class Probe:
        """Stands for a number on the device and tells when somebody wants to know it."""

        def __init__(self, value):
            self.value = value

        def __array__(self, *args, **kwargs):
            fetched.append(step[0])
            return np.asarray(self.value)

    def probed(*options, compile=parallel.compile_step):
        run = compile(*options)

        def one(*args):
            state, parts = run(*args)
            step[0] += 1
            return state, jax.tree.map(Probe, parts)
        return one
    monkeypatch.setattr(parallel, 'compile_step', probed)
    stage = stages.build(conf, 'arm', tmp_path)
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(step[0]) if 'backend_compile' in event else None)
    train.train(stage, tmp_path, tensorboard=False)
    jax.monitoring.clear_event_listeners()
    assert 0 in compiled and not [s for s in compiled if 1 <= s < 9], compiled
    assert set(fetched) == {4, 8, 9}, fetched


@pytest.mark.parametrize('workers', [1, 2])
def test_workers_change_nothing(tmp_path, workers):
    """Order, augmentation and resumption are the same with 0, 1 and 2 reader processes."""
    streams = []
    for n, start in ((0, 0), (workers, 0), (workers, 3)):
        conf = resolved()
        conf.data.workers = n
        feed = loader.train_loader(stages.build(conf, 'arm', tmp_path).data, 8, seed=0, start=start)
        streams.append([next(feed) for _ in range(7 - start)])
        feed.close()
    chex.assert_trees_all_equal(streams[0], streams[1])
    chex.assert_trees_all_equal(streams[0][3:], streams[2])


def test_hosts_share_the_global_batch(tmp_path, monkeypatch):
    """Two hosts' rows are one host's batch, in training and in evaluation, where both see equally many batches."""
    from jaxkd import parallel
    data = stages.build(resolved(), 'arm', tmp_path).data
    indices = data.partition.indices('test')
    whole, evaluated = next(loader.train_loader(data, 8, seed=0)), list(loader.eval_batches(data, indices, 8))
    parts, shares = [], []
    for host in range(2):
        monkeypatch.setattr(parallel, 'process', lambda h=host: (h, 2))
        parts.append(next(loader.train_loader(data, 8, seed=0)))
        shares.append(list(loader.eval_batches(data, indices, 8)))
    np.testing.assert_array_equal(np.concatenate([p['image'] for p in parts]), whole['image'])
    assert len(shares[0]) == len(shares[1]) == len(evaluated)
    seen = sorted(int(i) for share in shares for b in share for i in b['index'][b['mask'] > 0])
    assert seen == sorted(int(i) for b in evaluated for i in b['index'][b['mask'] > 0]) == sorted(indices)


def test_a_loss_that_is_not_finite_stops_with_step_terms_and_cases(tmp_path):
    conf = resolved(6, 6)
    conf.arm.optim.lr, conf.arm.optim.clip = 1e30, 0.0
    with pytest.raises(errors.NonFinite, match=r'not finite at step \d.*sup .*Its cases: case\d+, case\d+') as stopped:
        arm(conf, tmp_path)
    assert stopped.value.code == 70
    assert not list((tmp_path / 'checkpoints' / 'arm').glob('[0-9]*')), 'nothing that is not finite may be saved'


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    """The loss shows them one step later; a save may come first."""
    conf = resolved(2, 2, evals={}, select='')
    conf.arm.optim.lr, conf.arm.optim.clip, conf.arm.optim.warmup = 1e38, 0.0, ''
    conf.arm.optim.weight_decay = 1e6
    with pytest.raises(errors.NonFinite, match='not finite'):
        arm(conf, tmp_path)
    assert not list((tmp_path / 'checkpoints' / 'arm').glob('[0-9]*'))


def test_steps_that_are_not_finite_can_be_left_out(tmp_path):
    conf = resolved(4, 4)
    conf.arm.optim.skip_nonfinite = 3
    state = stages.build(conf, 'arm', tmp_path).initial()
    stage = stages.build(conf, 'arm', tmp_path)
    batch = jax.tree.map(jax.numpy.asarray, next(loader.train_loader(stage.data, 8, 0)))
    step = jax.jit(stage.method.train_step)
    bad, _ = step(state, {}, batch | {'image': batch['image'] * np.nan})
    chex.assert_trees_all_equal(bad.params, state.params)
    good, _ = step(bad, {}, batch)
    chex.assert_tree_all_finite(good.params)


def test_a_run_goes_on_past_steps_that_are_not_finite_and_counts_them(tmp_path, monkeypatch):
    conf = resolved(6, 6)
    conf.arm.optim.skip_nonfinite = 2
    stage = stages.build(conf, 'arm', tmp_path)
    good = loader.train_loader(stage.data, 8, 0)

    class Feed:
        data_wait_s, number = 0.0, 0

        def __next__(self):
            self.number += 1
            batch = next(good)
            return batch | {'image': batch['image'] * np.float32(np.nan if self.number in (2, 3) else 1)}

        def close(self):
            good.close()
    monkeypatch.setattr(loader, 'train_loader', lambda *a, **k: Feed())
    state, _ = train.train(stage, tmp_path, tensorboard=False)
    chex.assert_tree_all_finite(state.params)
    assert [line['skipped'] for line in log.read(tmp_path) if 'skipped' in line] == [0.5, 0.5, 0.0]
    assert all(line['sup'] > 0 for line in log.read(tmp_path) if 'sup' in line)


def test_compute_in_bfloat16_keeps_float32_parameters_and_smoothed_weights_are_deployed(tmp_path):
    conf = resolved(3, 3, dtype='bfloat16', select='')
    conf.arm.optim.ema, conf.arm.optim.accumulate, conf.arm.model.drop_path = 0.9, 2, 0.2
    state = arm(conf, tmp_path)
    assert {a.dtype for a in jax.tree.leaves((state.params, state.ema))} == {np.dtype('float32')}
    saved, _ = checkpoint.load_student(tmp_path / 'checkpoints' / 'arm', None, 'last')
    chex.assert_trees_all_equal(saved['params'], state.ema['student'])
    different = jax.tree.map(lambda a, b: bool((a != b).any()), state.ema['student']['head'],
                             state.params['student']['head'])
    assert all(jax.tree.leaves(different))


def test_what_selects_must_exist(tmp_path):
    with pytest.raises(errors.ConfigError, match='select names "clasification".*Did you mean "classification"'):
        resolved(select='clasification/auroc')
    with pytest.raises(errors.ConfigError,
                       match='classification gives no metric "aurocc".*Did you mean "auroc"'):
        arm(resolved(select='classification/aurocc'), tmp_path)
    with pytest.raises(errors.ConfigError, match='localisation needs a network'):
        wrong = resolved(evals=dict(classification={}, localisation={}))
        wrong.arm.model = ConfigDict(config.options('models', dict(name='text'), '')[1])
        wrong.arm.inputs = ('tokens',)
        stages.build(wrong, 'arm', tmp_path / 'b')


@pytest.mark.usefixtures('without_pages')
def test_a_run_without_a_validation_part_keeps_the_last_step(tmp_path):
    conf = resolved()
    conf.data.split.fractions = (0.8, 0.0, 0.2)
    entry = runner.run(conf, tmp_path)['stages']['arm']
    assert entry['best'] == entry['last'] == dict(step=6, score=None)


@pytest.mark.usefixtures('without_pages')
def test_a_stop_between_stages_ends_in_75(tmp_path, monkeypatch):
    """Asked at the very end of training: what is trained is saved, the evaluation waits for the next call."""
    from jaxkd.runtime import preemption
    after = train.train

    def asked_at_the_end(*args):
        out = after(*args)
        os.kill(os.getpid(), signal.SIGTERM)
        return out
    with monkeypatch.context() as patch:
        patch.setattr(train, 'train', asked_at_the_end)
        with pytest.raises(errors.Interrupted):
            runner.run(resolved(), tmp_path)
    assert preemption.requested() and not (tmp_path / 'summary.json').exists()
    assert runner.run(resolved(), tmp_path)['stages']['arm']['finished']


def test_a_teacher_of_another_run_is_given_on_the_command_line():
    conf = config.load('configs/mmpkd_cxr.py', ['student.teachers.report.path=runs/a/checkpoints/teacher',
                                                'stages=student'])
    assert conf.student.teachers.report.path and conf.stages == ('student',)
    conf = config.load('configs/mmpkd_cxr.py', ['teacher.model.name=fusion', 'teacher.model.text.vocab=1024',
                                                'teacher.inputs=tokens,image', 'data.text.mask_terms=edema,effusion'])
    assert conf.teacher.inputs == ('tokens', 'image') and conf.data.text.mask_terms == ('edema', 'effusion')


def test_cases_that_cannot_be_read_are_skipped_and_listed(tmp_path):
    """on_error=skip through a whole run: named in the summary and in the report."""
    from PIL import Image
    rng, rows = np.random.default_rng(0), ['patient_id,image,text,a']
    for i in range(24):
        Image.fromarray(rng.integers(0, 255, (40, 40), np.uint8)).save(tmp_path / f'{i}.png')
        rows.append(f'p{i},{i}.png,word{i},{i % 2}')
    (tmp_path / '3.png').write_bytes((tmp_path / '3.png').read_bytes()[:300])
    (tmp_path / '5.png').unlink()
    (tmp_path / 'cases.csv').write_text('\n'.join(rows))
    run = resolved().to_dict()
    run['data'] |= dict(source=dict(name='folder', root=str(tmp_path), on_error='skip'), transforms=('image', 'labels'))
    run['arm'] |= dict(data={})
    conf = config.resolve(ConfigDict(run))
    summary = runner.run(conf, tmp_path / 'run')
    skipped = summary['stages']['arm']['source']['skipped']
    assert [case for case, _ in skipped] == ['3.png', '5.png']
    page = (tmp_path / 'run' / 'report.html').read_text()
    assert '3.png' in page and '5.png' in page
    conf.data.source.on_error = 'fail'
    with pytest.raises((errors.BadData, errors.MissingInput), match=r'[35]\.png'):
        runner.run(conf, tmp_path / 'other')


REAL = pathlib.Path(os.environ.get('JAXKD_REAL_DATA', pathlib.Path(__file__).parents[2] / '..' / 'shared' / 'data'))


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / 'covid_chestxray').is_dir(),
                    reason='the covid-chestxray sample is not here: set JAXKD_REAL_DATA')
def test_the_same_config_trains_on_real_radiographs(tmp_path):
    tiny = [f'{s}.{k}' for s in ('teacher', 'image_only', 'student')
            for k in ('length=2 steps', 'eval_every=2 steps', 'batch=8')]
    conf = config.load('configs/mmpkd_cxr.py:covid', [f'data.source.root={REAL / "covid_chestxray"}', 'bootstrap=20',
                                                      *tiny])
    summary = runner.run(conf, tmp_path)
    assert set(summary['stages']) == {'teacher', 'image_only', 'student'}
    assert 'localisation/last_mean/auprc' in summary['stages']['student']['test']['best']
    assert 'cannot rank methods' in (tmp_path / 'report.html').read_text()


def test_frozen_parameters_stay_and_misspelled_patterns_are_refused(tmp_path):
    conf = resolved(4, 4)
    conf.arm.optim.freeze, conf.arm.optim.lr_scale = ('patch', 'positions'), (('head', 10.0),)
    stage = stages.build(conf, 'arm', tmp_path)
    before, after = stage.initial(), arm(conf, tmp_path)
    chex.assert_trees_all_equal(before.params['student']['patch'], after.params['student']['patch'])
    assert not np.array_equal(before.params['student']['head']['linear']['kernel'],
                              after.params['student']['head']['linear']['kernel'])
    conf.arm.optim.freeze = ('pach',)
    with pytest.raises(errors.ConfigError, match='"pach" matches no parameter'):
        stages.build(conf, 'arm', tmp_path / 'x').initial()


def test_a_stage_can_start_from_another_stage(tmp_path, trained):
    conf = resolved()
    first = copy_of(trained, tmp_path)
    run = conf.to_dict()
    run['second'] = dict(run['arm'], init=dict(stage='arm', path='', which='last'))
    second = stages.build(config.resolve(ConfigDict(run)), 'second', tmp_path).initial()
    chex.assert_trees_all_equal(second.params['student'], first.params['student'])


def test_a_part_of_a_network_can_start_from_another_stage(tmp_path, trained):
    first, run = copy_of(trained, tmp_path), resolved().to_dict()
    model = dict(name='probed', of=run['arm']['model'], taps=('pooled',))
    run['second'] = dict(run['arm'], model=model, init=dict(parts=dict(of=dict(stage='arm', which='last'))))
    conf = config.resolve(ConfigDict(run))
    stage = stages.build(conf, 'second', tmp_path)
    chex.assert_trees_all_equal(stage.initial().params['student']['of'], first.params['student'])
    assert stage.trained_on_patients == stages.build(conf, 'arm', tmp_path).metadata()['trained_on']
    assert shared_stages.prior_stages(conf, 'second') == ['arm']
    for parts, message in ((dict(off=dict(stage='arm')), 'no part "off". Did you mean "of"'),
                           (dict(of={}), 'give a stage'), (dict(of=dict(stage='amr')), 'starts from stage "amr"')):
        run['second']['init'] = dict(parts=parts)
        with pytest.raises(errors.ConfigError, match=message):
            run['stages'] = (*run['stages'], 'second')
            stages.build(config.resolve(ConfigDict(run)), 'second', tmp_path).initial()


def test_a_vit_starts_from_weights_of_another_image_size(tmp_path, trained):
    """The position table is resized, its CLS row and all other weights are kept."""
    conf = resolved()
    first = copy_of(trained, tmp_path)
    run = conf.to_dict()
    run['large'] = dict(run['arm'], init=dict(stage='arm', path='', which='last'),
                        data=dict(image=dict(size=96, fit='squash'), augment=()))
    large = stages.build(config.resolve(ConfigDict(run)), 'large', tmp_path).initial().params['student']
    small = first.params['student']
    assert large['positions'].shape == (37, 16) and small['positions'].shape == (17, 16)
    np.testing.assert_array_equal(large['positions'][0], small['positions'][0])
    chex.assert_trees_all_equal(large['encoder'], small['encoder'])


def test_plateau_lowers_the_rate_and_is_kept():
    from jaxkd import optim
    hp = ConfigDict(dict(optim.DEFAULTS, schedule='plateau', patience=1, warmup='', lr=1.0, floor=0.05))
    rule = optim.build(hp, 100, 10)
    memory, factors = rule.plateau(), []
    for score in (0.5, 0.6, 0.6, 0.6, 0.59, 0.58, 0.7):
        memory = rule.after_validation(memory, np.float32(score))
        factors.append(round(float(memory['factor']), 3))
    assert factors == [1, 1, 1, 0.1, 0.1, 0.05, 0.05]


def test_schedules():
    from jaxkd import optim
    def at(step, **hp):
        hp = ConfigDict(dict(optim.DEFAULTS, lr=1e-3, **hp))
        return float(optim.build(hp, 200, 1).rate(step))
    milestones = dict(schedule='milestones', warmup='', factor=0.5,
                      milestones=('60 epochs', '100 epochs', '150 epochs', '180 epochs'))
    assert [at(s, **milestones) for s in (0, 59, 60, 100, 150, 180, 199)] == pytest.approx(
        [1e-3, 1e-3, 5e-4, 2.5e-4, 1.25e-4, 6.25e-5, 6.25e-5])
    assert [at(s, warmup='10 steps') for s in (0, 5, 10)] == pytest.approx([0, 5e-4, 1e-3])
    assert at(199, warmup='') < 1e-6 and at(199, schedule='constant', warmup='') == pytest.approx(1e-3)


def files_of(folder):
    return sorted((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)


def test_every_flipped_bit_is_harmless_or_found(tmp_path, trained):
    """Orbax restores flipped bits silently. Here what restores is bit for bit what was saved, or it is refused."""
    expected = saved_student.digest(inference_variables(copy_of(trained, tmp_path)))
    folder, rng, found = tmp_path / 'checkpoints' / 'arm', random.Random(0), 0
    every = [p for p in files_of(folder / '6') if 'state' not in p.parts]
    for _ in range(40):
        path = rng.choices(every, [p.stat().st_size for p in every])[0]
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            assert saved_student.digest(checkpoint.load_student(folder, None, 'last')[0]) == expected
        except errors.Damaged as e:
            found += str(folder) in str(e)
        path.write_bytes(content)
    assert found > 20
    assert saved_student.digest(checkpoint.load_student(folder, None, 'last')[0]) == expected


@pytest.mark.parametrize('damage', ['flip', 'truncate', 'stage'])
def test_a_damaged_checkpoint_is_named_and_the_previous_one_taken(tmp_path, damage, capsys, trained):
    conf = resolved()
    whole = copy_of(trained, tmp_path)
    folder = tmp_path / 'checkpoints' / 'arm'
    if damage == 'stage':
        path = folder / 'stage.json'
        path.write_text(path.read_text().replace('disc', 'disk'))
        with pytest.raises(errors.Damaged, match='stage.json is not the one'):
            arm(conf, tmp_path)
        return
    for path in files_of(folder / '6' / 'state')[-3:]:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content if damage == 'flip' else content[:len(content) // 2])
    chex.assert_trees_all_equal(arm(conf, tmp_path), whole)  # trained again from step 3, saved again
    said = capsys.readouterr().out
    assert 'Trying an older step' in said and f'{folder}/6' in said and 'resuming at step 3' in said
    chex.assert_trees_all_equal(arm(conf, tmp_path), whole)
    assert 'Trying' not in capsys.readouterr().out


@pytest.mark.usefixtures('without_pages')
def test_finished_stages_are_skipped_and_other_configs_refused(tmp_path, capsys):
    conf = resolved()
    first = runner.run(conf, tmp_path)
    assert runner.run(conf, tmp_path) == first and 'arm: finished before' in capsys.readouterr().out
    other = resolved()
    other.arm.optim.lr = 0.5
    with pytest.raises(errors.ConfigError, match='arm.optim.lr: 0.001 before, 0.5 now'):
        runner.run(other, tmp_path)
    free = resolved()
    free.data.threads = 1
    runner.run(free, tmp_path)


def test_a_run_leaves_what_it_promises(tmp_path):
    conf = resolved()
    conf.tensorboard = True
    summary = runner.run(conf, tmp_path)
    entry = summary['stages']['arm']
    assert entry['best']['step'] in (3, 6) and entry['last']['step'] == 6 and entry['seconds'] > 0
    assert set(entry['test']['best']['classification/auroc']) >= {'value', 'low', 'high', 'n_patients'}
    assert config.load(tmp_path / 'config.json') == conf, 'the saved config must be enough to run again'
    kinds = [json.loads(x) for x in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert {'stage', 'step', 'sup', 'loss', 'lr', 'examples_per_s', 'data_wait'} <= set(kinds[0])
    assert len((tmp_path / 'predictions' / 'arm_test.csv').read_text().splitlines()) == 1 + entry['cases']['test']
    assert (tmp_path / 'report.html').exists() and list((tmp_path / 'tensorboard' / 'arm').glob('events*'))
    assert 'tensorflow' not in sys.modules


def test_a_dry_run_tells_and_writes_nothing(tmp_path, capsys):
    small = ['--config.stages=teacher,student', '--config.teacher.model.depth=1', '--config.student.model.depth=1']
    assert main.main(['--config', 'configs/mmpkd_cxr.py:smoke', '--workdir', str(tmp_path / 'run'), '--dry_run',
                      *small]) == 0
    said = capsys.readouterr().out
    for word in ('stage    method      network', 'student  mmpkd       vit', 'batch  image', '(16, 64, 64, 1)',
                 'float32', 'parameters', 'memory of each device: ', 'to an epoch',
                 'teacher_outputs/report/logits'):
        assert word in said
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('args,code,words', [
    (['--config', 'configs/mmpkd_cxr.py:smok'], 2, 'Did you mean "smoke"'),
    (['--config', 'configs/mmpkd_cx.py'], 2, 'Did you mean "configs/mmpkd_cxr.py"'),
    (['--config', 'configs/mmpkd_cxr.py', '--config.student.optim.lrr=1'], 2, 'Did you mean "lr"'),
    (['--config', 'configs/mmpkd_cxr.py', '--config.student.batch=many'], 2, 'expected int'),
    (['--config', 'configs/mmpkd_cxr.py', '--config.student.method.name=mmpk'], 2, 'Did you mean "mmpkd"'),
    (['--config', 'configs/mmpkd_cxr.py', '--config.student.model.name=vitt'], 2, 'Did you mean "vit"'),
    (['--config', 'configs/mmpkd_cxr.py', '--config.data.source.name=openii'], 2, 'Did you mean "openi"'),
    (['--config', 'configs/mmpkd_cxr.py', '--config.stages=teachr'], 2, 'Did you mean "teacher"'),
    ([*IMAGE_ONLY, '--config.image_only.inputs=imag', '--dry_run'], 2, 'Did you mean "image"'),
    ([*IMAGE_ONLY, '--config.image_only.length=soon', '--dry_run'], 2, 'is no duration'),
    (['--config', 'configs/mmpkd_cxr.py:smoke', '--config.student.teachers.report.stage=techer', '--dry_run'], 2,
     '"teacher"'),
    (['--config', 'configs/mmpkd_cxr.py:folder', '--config.data.source.root=/nowhere', '--dry_run'], 66, '/nowhere'),
])
def test_mistakes_are_explained(args, code, words, capsys, tmp_path):
    assert main.main([*args, '--workdir', str(tmp_path / 'run')]) == code
    said = capsys.readouterr().err
    assert words in said and 'Traceback' not in said, said


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(errors.CannotWrite, match='Cannot write'):
        runner.run(resolved(2, 2), tmp_path / 'file' / 'run')


def _start(path, workdir):
    env = dict(os.environ, PYTHONPATH=str(pathlib.Path(__file__).parents[2]))
    command = [sys.executable, '-m', 'jaxkd.main', '--config', str(path), '--workdir', str(workdir)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _final(workdir):
    variables, step = checkpoint.load_student(workdir / 'checkpoints' / 'arm', None, 'last')
    return step, saved_student.digest(variables)


@pytest.mark.slow
def test_kill_it_any_time_and_the_same_command_continues(tmp_path):
    """kill -9 in training and in the middle of a save, SIGTERM in between: the same weights and the same log."""
    conf = resolved(300, 20)
    (tmp_path / 'c.json').write_text(config.dump(conf))
    done = _start(tmp_path / 'c.json', tmp_path / 'whole')
    assert done.communicate(timeout=300) and done.returncode == 0
    workdir, rng, saves = tmp_path / 'killed', random.Random(1), 0
    folder = workdir / 'checkpoints' / 'arm'
    for attempt in range(6):
        before = len(log.read(workdir))
        run = _start(tmp_path / 'c.json', workdir)
        while run.poll() is None and len(log.read(workdir)) < before + 2:  # until it trains
            time.sleep(0.02)
        if attempt % 3 == 0:  # in a save
            until = time.time() + 60
            while run.poll() is None and time.time() < until and not list(folder.glob('*tmp*')):
                time.sleep(0.0005)
            saves += bool(list(folder.glob('*tmp*')))
        else:
            time.sleep(rng.uniform(0, 1.5))
        if run.poll() is not None:
            break
        run.send_signal(signal.SIGTERM if attempt == 4 else signal.SIGKILL)
        said, _ = run.communicate(timeout=60)
        assert run.returncode == (75 if attempt == 4 else -9), said[-2000:]
    assert saves, 'no kill hit a save'
    run = _start(tmp_path / 'c.json', workdir)
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 0, said[-2000:]
    assert _final(workdir) == _final(tmp_path / 'whole')
    assert lines(workdir) == lines(tmp_path / 'whole')
    assert not list(folder.glob('*tmp*'))


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() == 'cpu', reason='needs an accelerator')
def test_the_loop_never_waits_for_an_accelerator(tmp_path):
    conf = resolved(8, 8, log_every='8 steps')
    stage = stages.build(conf, 'arm', tmp_path)
    from jaxkd import parallel
    state, feed = stage.initial(), loader.train_loader(stage.data, 8, 0)
    step = parallel.compile_step(stage.method.train_step)
    state, _ = step(state, stage.frozen, parallel.shard_batch(next(feed)))
    with jax.transfer_guard_device_to_host('disallow'):
        for _ in range(5):
            state, _ = step(state, stage.frozen, parallel.shard_batch(next(feed)))
    feed.close()
