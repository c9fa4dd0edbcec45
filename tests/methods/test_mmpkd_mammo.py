"""MMPKD on mammograms: sight of the image alone, a frozen teacher of tables, and the controls."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import config, errors, stages, steps, teachers, train
from jaxkd.data import loader, pool
from jaxkd.state import inference_variables
from jaxkd.training import shuffling

CONTROLS = ('kd_shuffled', 'image_only_seed1000', 'kd_same_modality')
TINY = ['data.source.patients=24', 'data.source.size=64', 'data.image.size=32', 'teacher.model.widths=(8,)',
        'bootstrap=0']


def conf(*more):
    small = [f'{name}.{k}' for name in ('image_only', 'student', *CONTROLS)
             for k in ('model.width=16', 'model.heads=2', 'model.patch=16', 'batch=8')]
    short = [f'{name}.{k}' for name in ('teacher', 'image_only', 'student', *CONTROLS)
             for k in ('length=2 steps', 'eval_every=2 steps', 'select=')]  # no validation: it is compiled
    return config.load('configs/mmpkd_mammo.py:smoke', [*TINY, *small, *short, *more])


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """(config, workdir, {stage: final state}) of the teacher, the arm that teaches `kd_same_modality`, and the
    student.
    """
    workdir, c = tmp_path_factory.mktemp('mammo'), conf()
    return c, workdir, {
        s: jax.device_get(train.train(stages.build(c, s, workdir), workdir, tensorboard=False)[0])
        for s in ('teacher', 'image_only_seed1000', 'student')}


def test_permuting_the_tables_of_test_cases_changes_no_bit(trained):
    c, workdir, states = trained
    stage = stages.build(c, 'student', workdir)
    predict = stage.predictors['student'].with_variables(inference_variables(states['student']))
    batch = next(loader.eval_batches(stage.data, stage.data.partition.indices('test'), 8))
    expected = np.asarray(predict.predict_batch(batch)['logits'])
    hostile = batch | {'row': batch['row'][::-1] + np.nan, 'label': 1 - batch['label'], 'boxes': batch['boxes'][::-1]}
    np.testing.assert_array_equal(expected, predict.predict_batch(hostile)['logits'])
    np.testing.assert_array_equal(expected, predict.predict_batch({'image': batch['image']})['logits'])
    assert set(predict.network.only(batch)) == {'image'}


def test_cached_and_live_teachers_of_tables_agree_and_get_no_gradient(trained):
    c, workdir, _ = trained
    cached = stages.build(c, 'student', workdir)
    live = stages.build(conf('student.teachers.table.cache=no'), 'student', workdir)
    part = np.array(live.data.partition.indices('train'))
    said = teachers.outputs_of('student', live.teachers, 'table', live.data, live.config.batch, ('logits', 'pooled'),
                               part)
    for key in said:
        np.testing.assert_allclose(said[key], cached.cached_outputs['table'][key][part], atol=1e-5)
    state, batch = live.initial(), jax.tree.map(jnp.asarray, next(loader.train_loader(live.data, 8, 0)))
    gradient = jax.jit(jax.grad(lambda frozen: live.method.train_step(state, frozen,
                                                                      batch)[1]['loss'].value))(live.frozen)
    assert all(not np.any(g) for g in jax.tree.leaves(gradient))


def test_the_teacher_of_the_same_control_reads_the_augmented_image(trained):
    c, workdir, _ = trained
    stage = stages.build(c, 'kd_same_modality', workdir)
    assert not stage.cached_outputs and stage.frozen['image'] and stage.context.teachers['image'].inputs == ('image',)
    batch = jax.tree.map(jnp.asarray, next(loader.train_loader(stage.data, 8, 0)))
    state, parts = jax.jit(stage.method.train_step)(stage.initial(), stage.frozen, batch)
    assert float(parts['kd'].value) >= 0 and np.isfinite(float(parts['loss'].value))


def test_a_stage_may_have_a_seed_of_its_own(trained):
    c, workdir, _ = trained
    alone, other, again = (stages.build(x, s, workdir) for x, s in (
        (c, 'image_only'), (c, 'image_only_seed1000'), (conf('image_only_seed1000.seed=0'), 'image_only_seed1000')))
    assert (alone.seed, other.seed, again.seed) == (0, 1000, 0)
    kernel = [np.asarray(s.initial().params['student']['patch']['kernel']) for s in (alone, other, again)]
    assert np.any(kernel[0] != kernel[1])
    np.testing.assert_array_equal(kernel[0], kernel[2])


# The shuffled control.

class Shown:
    """Data of cases (patient, label), all but the last for training."""

    def __init__(self, *cases):
        self.cases = cases
        self.source = type('Source', (), {'cases': tuple(type('Case', (), {'patient': p}) for p, _ in cases)})
        self.partition, self.text_only, self.label_mask = self, self, None

    def indices(self, role):
        return list(range(len(self.cases) - 1))

    def prepared(self, i):
        return {'label': np.float32([self.cases[i][1]])}


def test_outputs_are_permuted_among_other_patients_with_equal_labels():
    rng = np.random.default_rng(0)
    data = Shown(*[(f'p{i // 2}', int(rng.integers(2))) for i in range(81)])
    outputs = {'logits': np.arange(81.0)[:, None], 'pooled': np.arange(162.0).reshape(81, 2)}
    found = shuffling.permuted(outputs, data, 3, 'x')
    order = found['logits'][:, 0].astype(int)
    assert sorted(order) == list(range(81)) and order[80] == 80  # what is not trained on keeps its own
    for i in range(80):
        assert data.cases[order[i]][1] == data.cases[i][1] and data.cases[order[i]][0] != data.cases[i][0]
    np.testing.assert_array_equal(found['pooled'], outputs['pooled'][order])
    again, another = (shuffling.permuted(outputs, data, seed, 'x')['logits'] for seed in (3, 4))
    np.testing.assert_array_equal(found['logits'], again)
    assert np.any(again != another)


def test_a_case_without_a_partner_keeps_its_own_and_is_counted(capsys):
    data = Shown(('a', 0), ('a', 0), ('b', 1), ('c', 1), ('d', 1))
    found = shuffling.permuted({'logits': np.arange(5.0)}, data, 0, 'arm.teachers.t')['logits']
    assert set(found[:2]) == {0, 1} and found[2] == 3 and found[3] == 2 and found[4] == 4
    assert 'arm.teachers.t: outputs of 2 of 4 training cases come from another patient' in capsys.readouterr().out


def test_labels_of_places_are_never_equal_so_all_cases_are_exchanged(capsys):
    data = Shown(('a', 0), ('b', 1), ('c', 2), ('d', 3))
    data.prepared = None  # no label is read
    found = shuffling.permuted({'logits': np.arange(4)}, data, 0, 'x', dense=True)['logits']
    assert sorted(found) == [0, 1, 2, 3] and found[3] == 3 and all(found[:3] != np.arange(3))
    assert '3 of 3 training cases come from another patient, whatever the labels' in capsys.readouterr().out


def test_the_shuffled_arm_learns_from_permuted_outputs(trained):
    c, workdir, _ = trained
    true, shuffled = (stages.build(c, s, workdir).cached_outputs['table']['logits'] for s in ('student', 'kd_shuffled'))
    stage = stages.build(c, 'kd_shuffled', workdir)
    part = stage.data.partition.indices('train')
    assert np.any(true != shuffled)
    np.testing.assert_array_equal(np.sort(true[part], 0), np.sort(shuffled[part], 0))
    labels = np.array([stage.data.prepared(i)['label'][0] for i in part])
    for y in (0, 1):
        np.testing.assert_array_equal(np.sort(true[part][labels == y], 0), np.sort(shuffled[part][labels == y], 0))
    assert (c.student.method == c.kd_shuffled.method
            and c.student.model == c.kd_same_modality.model == c.image_only.model)


def test_a_teacher_that_runs_in_every_step_reads_the_table_of_another_patient_of_equal_label(trained, capsys):
    _, workdir, _ = trained
    stage = stages.build(conf('kd_shuffled.teachers.table.cache=no'), 'kd_shuffled', workdir)
    assert 'kd_shuffled.teachers.table: reads from another patient of the batch, of equal label' in (
        capsys.readouterr().out)
    assert not stage.cached_outputs and stage.context.batch['exchange']['table']['group'].shape == (8,)
    stream = loader.train_loader(stage.data, 8, 0, 0, stage.cached_outputs, stage.exchanged)
    batch = next(stream)
    stream.close()
    label, cases = batch['label'][:, 0], stage.data.source.cases
    patient = [cases[i].patient for i in batch['index']]
    rows = batch['exchange']['table']
    order = np.asarray(shuffling.partners(*[{**rows, 'present': np.ones((8, 1))}] * 2, np.arange(8)))
    assert all(patient[j] != patient[i] and (label[i] == label[j] or sum(label == label[i]) == 1)
               for i, j in enumerate(order))
    as_it_is, told = ({k: np.asarray(v) for k, v in outputs['table'].items()} for outputs in (
        steps.run_networks(stage.context, stage.initial().params, stage.initial().stats, stage.frozen, given,
                           jax.random.key(0))[0] for given in ({k: v for k, v in batch.items() if k != 'exchange'},
                                                               batch)))
    np.testing.assert_allclose(told['logits'], as_it_is['logits'][order], atol=1e-6)
    assert np.abs(told['logits'] - as_it_is['logits']).max() > 1e-3
    one = 'kd_shuffled.teachers.table.cache=no', 'kd_shuffled.batch=2', 'kd_shuffled.optim.accumulate=2'
    with pytest.raises(errors.ConfigError, match=r'kd_shuffled.teachers.table.shuffled: .* which needs two. Raise '
                                                 r'kd_shuffled.batch = 2 or lower kd_shuffled.optim.accumulate = 2'):
        stages.build(conf(*one), 'kd_shuffled', workdir)


def test_batches_carry_the_row_and_no_table():
    data = pool.build(conf().data)
    batch = next(loader.eval_batches(data, data.partition.indices('test'), 4))
    assert batch['row'].ndim == 2 and batch['image'].shape == (4, 32, 32, 1) and batch['label'].shape == (4, 1)
    assert 'table' not in batch and 'masks' not in batch and set(batch['present']) == {'row'}
