"""What a faithful MMPKD must show: sight of the image alone, a frozen teacher, an image-only arm that is exactly
that.
"""
import functools
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import config, errors, parallel, runner, stages, steps, train
from jaxkd.data import loader
from jaxkd.inference import deployed, predictor
from jaxkd.metrics import localisation
from jaxkd.runtime import files, saved_student
from jaxkd.state import Progress, inference_variables
from tests.fixtures import disc

SMALL = dict(name='vit', width=16, depth=1, heads=2, patch=16)


def resolved(**stages):
    """A few steps of a small ViT on 60 discs; `stages` changes single stages."""
    run = disc.config()
    run['data']['source']['cases'] = 60
    run['teacher']['model'] |= dict(depth=1, width=16)
    for name in run['stages']:
        run[name] |= dict(length='3 steps', eval_every='3 steps', batch=8, select='')  # no validation: it is compiled
        if name != 'teacher':
            run[name] |= dict(model=dict(SMALL, drop_path=0.2), data=dict(augment=('affine', 'contrast')))
        run[name] |= stages.get(name, {})
    return config.resolve(ConfigDict(run))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """(config, workdir, final states) of teacher, image-only arm and student."""
    workdir, conf, states = tmp_path_factory.mktemp('mmpkd'), resolved(), {}
    for name in conf.stages:
        states[name] = jax.device_get(train.train(stages.build(conf, name, workdir), workdir, tensorboard=False)[0])
    return conf, workdir, states


def test_the_student_cannot_cheat(trained):
    """Privileged inputs, labels and boxes may be permuted, set to nan or deleted: not one bit changes."""
    conf, workdir, states = trained
    stage = stages.build(conf, 'student', workdir)
    predict = stage.predictors['student'].with_variables(inference_variables(states['student']))
    batch = next(loader.eval_batches(stage.data, stage.data.partition.indices('test'), 8))
    expected = np.asarray(predict.predict_batch(batch)['logits'])
    hostile = {k: v[::-1] if k == 'tokens' else jax.tree.map(_nan, v) if k != 'image' else v for k, v in batch.items()}
    np.testing.assert_array_equal(expected, predict.predict_batch(hostile)['logits'])
    np.testing.assert_array_equal(expected, predict.predict_batch({'image': batch['image']})['logits'])
    assert set(predict.network.only(batch)) == {'image'}
    with pytest.raises(KeyError):
        predict.predict_batch({k: v for k, v in batch.items() if k != 'image'})


def _nan(a):
    return np.full_like(a, np.nan) if a.dtype == np.float32 else a


def test_presence_flags_of_other_inputs_stay_outside():
    network = predictor.Network(None, ('image',))
    batch = {'image': np.zeros(1), 'mri': np.zeros(1), 'present': {'mri': np.ones(1), 'image': np.ones(1)}}
    assert network.only(batch) == {'image': batch['image'], 'present': {'image': batch['present']['image']}}


def _with_live_teacher(trained, alpha=0.5):
    conf, workdir, _ = trained
    conf = resolved(student=dict(method=dict(name='mmpkd', alpha=alpha, gamma=0.1),
                                 teachers=dict(report=dict(stage='teacher', cache='no'))))
    return stages.build(conf, 'student', workdir)


def test_no_gradient_reaches_the_teacher(trained):
    stage = _with_live_teacher(trained)
    state = stage.initial()
    batch = jax.tree.map(jnp.asarray, next(loader.train_loader(stage.data, 8, 0)))

    def loss(frozen):
        return stage.method.train_step(state, frozen, batch)[1]['loss'].value
    value, gradient = jax.jit(jax.value_and_grad(loss))(stage.frozen)
    assert float(value) > 0
    chex.assert_trees_all_equal(gradient, jax.tree.map(np.zeros_like, stage.frozen))


def test_cached_and_live_teachers_say_the_same(trained):
    live = _with_live_teacher(trained)
    cached = stages.build(resolved(student=dict(teachers=dict(report=dict(stage='teacher', cache='yes')))), 'student',
                         trained[1])
    batch = next(loader.train_loader(cached.data, 8, 0, teacher_outputs=cached.cached_outputs))
    assert cached.frozen == {'report': {}} and 'teacher_outputs' not in next(loader.train_loader(live.data, 8, 0))
    outputs, _ = jax.jit(functools.partial(steps.run_networks, live.context))(
        *_student(live), live.frozen, batch | {'teacher_outputs': {}}, jax.random.key(0))
    for key in ('logits', 'pooled'):
        np.testing.assert_allclose(batch['teacher_outputs']['report'][key], outputs['report'][key], atol=1e-5)


def _student(stage):
    state = stage.initial()
    return state.params, state.stats


def test_alpha_zero_is_the_run_without_a_teacher(trained, tmp_path, monkeypatch):
    """Bit for bit, with the teacher's file there (and its term logged) or not, as compiled outside of tests: two
    programs.
    """
    conf, workdir, states = trained
    conf = resolved(student=dict(method=dict(name='mmpkd', alpha=0.0)))
    if 'fusion_emitters' in os.environ['XLA_FLAGS']:
        options = {'xla_cpu_use_fusion_emitters': True}
        monkeypatch.setattr(parallel, 'jit', functools.partial(jax.jit, compiler_options=options))
        monkeypatch.setattr(parallel, '_over_mesh', parallel._over_mesh.__wrapped__)  # no program of other tests
    alone, zero = (jax.device_get(train.train(stages.build(conf, name, _copy_teacher(workdir, tmp_path)), tmp_path,
                                              tensorboard=False)[0])
                   for name in ('image_only', 'student'))
    chex.assert_trees_all_equal(zero.params, alone.params)
    different = jax.tree.map(lambda a, b: bool(np.any(a != b)), zero.params['student'],
                             states['student'].params['student'])
    assert all(jax.tree.leaves(different['encoder']['block00']['attn'])), 'alpha = 0.5 must matter'


def _copy_teacher(workdir, to):
    import shutil
    shutil.copytree(workdir / 'checkpoints' / 'teacher', to / 'checkpoints' / 'teacher', dirs_exist_ok=True)
    return to


def test_a_teacher_that_saw_this_runs_validation_patients_is_refused(trained, tmp_path):
    conf = resolved()
    conf.data.split.seed = 1
    with pytest.raises(errors.BadData, match='was trained on .* patients'):
        stages.build(conf, 'student', _copy_teacher(trained[1], tmp_path))


def test_weights_to_start_from_are_checked_like_teachers(trained, tmp_path):
    conf = resolved(image_only=dict(init=dict(path=str(trained[1] / 'checkpoints' / 'image_only'))))
    stages.build(conf, 'image_only', tmp_path / 'same split')
    conf.data.split.seed = 1
    with pytest.raises(errors.BadData, match='was trained on .* patients'):
        stages.build(conf, 'image_only', tmp_path / 'other split')


def test_what_a_student_learned_from_its_teachers_is_remembered(trained):
    conf, workdir, _ = trained
    about = files.read_json(workdir / 'checkpoints' / 'student' / 'stage.json', '')
    teacher = files.read_json(workdir / 'checkpoints' / 'teacher' / 'stage.json', '')
    assert set(teacher['trained_on']) <= set(about['trained_on']) and about['data']['text']['vocab'] == 64
    assert teacher['assets']['text']['words'][0] in ('a', 'cell', 'disc', 'in', 'is', 'nothing', 'seen')
    assert 'text' not in about['assets'], 'a network of images holds no word of a report'


def test_a_teacher_is_fed_what_it_learned_to_read(trained, tmp_path):
    conf = resolved()
    conf.data.text.mask_terms = ('disc',)
    with pytest.raises(errors.ConfigError, match=r'trained with data.text.mask_terms = \(\)'):
        stages.build(conf, 'student', _copy_teacher(trained[1], tmp_path))


def test_it_is_distil_with_two_losses_of_cases_that_have_a_report(trained):
    recipe = _with_live_teacher(trained, alpha=0.3).method.train_step.__self__
    used = {term.name: (term.weight, term.reads) for term in recipe.terms.keywords['used']}
    assert used == {'kd': (0.3, ((), ('tokens',))), 'rep': (0.1, ((), ('tokens',)))}
    assert recipe.loss_weights(Progress(0, 0, 0)) == {'sup': 0.7, 'kd': 0.3, 'rep': 0.1}
    assert recipe.modules.keys() == {'rep_regressor'}


@pytest.mark.parametrize('changes', [dict(alpha=1.5), dict(temperature=0.0), dict(gamma=-1.0)])
def test_options_out_of_bounds_are_refused(trained, changes):
    conf = resolved(student=dict(method=dict(name='mmpkd', **changes)))
    with pytest.raises(errors.ConfigError, match='must'):
        stages.build(conf, 'student', trained[1])


def test_a_teacher_of_other_labels_is_refused(trained, tmp_path):
    workdir = _copy_teacher(trained[1], tmp_path)
    path = workdir / 'checkpoints' / 'teacher' / 'stage.json'
    about = files.read_json(path, '')
    files.write_json(path, about | dict(labels=['nodule']))
    with pytest.raises(errors.ConfigError, match='nodule.*disc'):
        stages.build(resolved(), 'student', workdir)


def _of_an_earlier_version(metadata):
    metadata['config']['compute'] = metadata['config'].pop('dtype')


def _without_a_key(metadata):
    del metadata['config']['folds']


def _with_a_former_filter(metadata):
    metadata['data']['train_where'] = metadata['data'].pop('train_filter')


def _with_a_former_option(metadata):
    name = metadata['data']['transforms'][0]
    del metadata['data'][name][sorted(set(metadata['data'][name]) - {'name'})[0]]


@pytest.mark.parametrize('change, message', [
    (_of_an_earlier_version, r'config\.compute is called "dtype" now.*Train the stage again'),
    (_with_a_former_filter, r'data\.train_where is called "train_filter" now'),
    (_without_a_key, r'it has no config\.folds'),
    (_with_a_former_option, r'it has no data\.'),
])
def test_a_stage_of_an_earlier_version_is_refused(trained, tmp_path, monkeypatch, change, message):
    workdir = _copy_teacher(trained[1], tmp_path)
    path = workdir / 'checkpoints' / 'teacher' / 'stage.json'
    digest = saved_student.file_digest(path)
    monkeypatch.setattr(saved_student, 'file_digest', lambda path: digest)  # the earlier version saved it as it is
    metadata = files.read_json(path, '')
    change(metadata)
    files.write_json(path, metadata)
    initial = dict(stage='teacher', which='best', path='', only=())
    for conf in (resolved(), resolved(image_only=dict(init=initial))):
        with pytest.raises(errors.ConfigError, match=message):
            stages.build(conf, 'student' if not conf.image_only.init.stage else 'image_only', workdir)
    with pytest.raises(errors.ConfigError, match=message):
        deployed.load(str(path.parent))


def test_a_damaged_description_of_a_stage_is_named(trained, tmp_path):
    workdir = _copy_teacher(trained[1], tmp_path)
    path = workdir / 'checkpoints' / 'teacher' / 'stage.json'
    files.write_json(path, dict(labels=['disc']))
    with pytest.raises(errors.Damaged, match='stage.json does not hold the config'):
        stages.build(resolved(), 'student', workdir)


def test_caching_a_teacher_whose_input_is_augmented_is_refused(trained):
    conf = resolved(student=dict(teachers=dict(report=dict(stage='image_only', cache='yes'))))
    with pytest.raises(errors.ConfigError, match='augmentation changes what it reads'):
        stages.build(conf, 'student', trained[1])


def test_a_missing_teacher_is_named(tmp_path):
    with pytest.raises(errors.MissingInput, match='No trained stage.*List stage "teacher" before'):
        stages.build(resolved(), 'student', tmp_path)


def test_the_teacher_may_read_report_and_image(tmp_path):
    """teacher_inputs = priv+image: a fusion network; it is fed live, because its image is augmented."""
    fusion = dict(inputs=('image', 'tokens'), model=dict(name='fusion',
                                                         image={k: v for k, v in SMALL.items() if k != 'name'},
                                                         text=dict(width=16, depth=1, heads=2, length=16, vocab=64)))
    conf = resolved(teacher=fusion)
    for name in ('teacher', 'student'):
        stage = stages.build(conf, name, tmp_path)
        state, _ = train.train(stage, tmp_path, tensorboard=False)
    assert stage.cached_outputs == {} and stage.frozen['report']['params']
    chex.assert_tree_all_finite(state.params)


@pytest.mark.slow
def test_discs_end_to_end(tmp_path):
    """Teacher >= 0.99, both arms >= 0.90 and within 0.03 of each other, localisation finite beside all controls.

    Nothing is asserted about which arm localises better: that depends on the domain.
    """
    conf = config.resolve(ConfigDict(disc.config()))
    summary = runner.run(conf, tmp_path)
    auroc = {name: entry['test']['best']['classification/auroc']['value'] for name, entry in summary['stages'].items()}
    assert auroc['teacher'] >= 0.99
    assert min(auroc['image_only'], auroc['student']) >= 0.90
    assert abs(auroc['image_only'] - auroc['student']) <= 0.03
    found = summary['stages']['student']['test']['best']
    for row in ('last_mean', 'rollout', 'grad_attn', 'best_head', 'uniform', 'centred_gaussian', 'mean_map',
                'untrained'):
        for metric in ('hit', 'iou_50', 'iou_otsu', 'iou_mass60', 'iou_best', 'auprc', 'auroc', 'mass_in_roi', 'lift',
                       'cnr'):
            entry = found[f'localisation/{row}/{metric}']
            if (row, metric) != ('uniform', 'cnr'):  # no contrast, no noise: not defined
                assert np.isfinite([entry['value'], entry['low'], entry['high']]).all(), (row, metric)
    assert found['localisation/uniform/lift']['value'] == pytest.approx(1)
    assert found['localisation/uniform/auroc']['value'] == pytest.approx(0.5)
    assert set(localisation.control_maps(8)) == {'uniform', 'centred_gaussian'}
    assert (tmp_path / 'report.html').stat().st_size > 20_000
