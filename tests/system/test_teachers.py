"""What a frozen teacher says: asked once for each study, by what it reads, and out of fold where that is wished."""
import dataclasses
import json
import re
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import checkpoint, config, errors, runner, stages, teachers
from jaxkd.data import external, pool, splits
from jaxkd.data.source import Source
from jaxkd.data.transforms import text
from jaxkd.inference import predictor
from jaxkd.phantoms.thorax import source
from jaxkd.runtime import files

FOLDS = 3
FOLDED = [f'teacher.folds={FOLDS}', 'student.teachers.report.out_of_fold=True']


def conf(*overrides):
    """A small text teacher and a small ViT that learns from it, on 24 patients of the thorax phantom."""
    common = dict(length='2 steps', eval_every='2 steps', batch=8, select='classification/auroc',
                  evals=dict(classification={}))
    c = config.resolve(ConfigDict(dict(
        stages=('teacher', 'student'), bootstrap=0, tensorboard=False,
        data=dict(source=dict(name='jaxkd.phantoms.thorax', patients=24, size=32),
                  transforms=('image', 'text', 'labels'),
                  augment=('contrast',), image=dict(size=32, fit='squash'), text=dict(length=32, vocab=512)),
        teacher=dict(common, inputs=('tokens',), model=dict(name='text', width=16, depth=1, heads=2, length=32,
                                                            vocab=512)),
        student=dict(common, inputs=('image',), model=dict(name='vit', size='tiny', width=16, depth=1, heads=2,
                                                           patch=16),
                     method=dict(name='mmpkd'), teachers=dict(report=dict(stage='teacher'))))))
    for override in overrides:
        key, _, value = override.partition('=')
        config.override(c, key, value)
    return config.resolve(c)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """(config, workdir) of a whole run whose student learns from teachers out of fold."""
    workdir, c = tmp_path_factory.mktemp('folds'), conf(*FOLDED)
    runner.run(c, workdir)
    return c, workdir


def _teacher(stage, workdir, name):
    network = stage.context.teachers['report']
    variables, _ = checkpoint.load_student(workdir / 'checkpoints' / name, None)
    return predictor.Predictor(network, stage.data, 8).with_variables(variables)


def test_each_case_is_told_of_by_the_network_that_never_saw_its_patient(run):
    c, workdir = run
    stage, seen = stages.build(c, 'student', workdir), []
    part, cases = stage.data.partition.indices('train'), stage.data.source.cases
    for j in range(FOLDS):
        folded, own = config.fold(c, 'teacher', j)
        data = stages.build(folded, own, workdir).data
        indices, held = data.partition.train_indices(), data.partition.fold_indices(j, FOLDS)
        assert indices and held and not {cases[i].patient for i in indices} & {cases[i].patient for i in held}
        assert sorted([*indices, *held]) == part
        said = _teacher(stage, workdir, own)('train', keep=held)
        np.testing.assert_allclose(stage.cached_outputs['report']['logits'][said.index], said.outputs['logits'],
                                   atol=1e-5)
        seen += held
    assert sorted(seen) == part  # each case once
    whole = _teacher(stage, workdir, 'teacher')('train')
    assert np.abs(whole.outputs['logits'] - stage.cached_outputs['report']['logits'][whole.index]).max() > 1e-3


def test_folds_leave_nothing_in_the_report_but_their_teacher(run):
    c, workdir = run
    summary = files.read_json(workdir / 'summary.json', 'x')
    assert set(summary['stages']) == {'teacher', 'student'} and (workdir / 'report.html').exists()
    origin = summary['stages']['student']['teachers']['report']
    assert origin['folds'] == FOLDS and origin['digest'] != summary['stages']['teacher'].get('digest')
    runner.run(c, workdir)  # the same command: nothing is trained again
    assert files.read_json(workdir / 'summary.json', 'x')['stages'] == summary['stages']


def test_another_teacher_of_a_fold_is_noticed(run, tmp_path):
    c, workdir = run
    before = stages.build(c, 'student', workdir).teachers['report'].provenance['digest']
    about = workdir / 'checkpoints' / 'teacher_fold1' / 'stage.json'
    before_it = about.read_text()
    try:
        changed = json.loads(before_it)
        changed['data']['holdout_fold'] = [0, FOLDS]
        about.write_text(json.dumps(changed))
        with pytest.raises(errors.ConfigError, match='teacher_fold1 left out another share'):
            stages.build(c, 'student', workdir)
    finally:
        about.write_text(before_it)
    assert stages.build(c, 'student', workdir).teachers['report'].provenance['digest'] == before


def test_an_output_that_a_teacher_lacks_is_refused_with_those_that_it_has():
    network = types.SimpleNamespace(output_shapes=lambda batch: {'logits': np.zeros(2)})
    with pytest.raises(errors.ConfigError, match=re.escape("Set student.teachers.report.outputs=('logits',).")):
        teachers._cached_shapes('student.teachers.report', ('logits', 'pooled'), network, {})


def test_shares_are_even_and_of_patients():
    shares = np.array([splits.fold_of(f'p{i}', 5) for i in range(4000)])
    assert set(shares) == set(range(5)) and np.bincount(shares).min() > 700
    assert [splits.fold_of('p1', 5, s) for s in range(8)] != [splits.fold_of('p1', 5)] * 8


@pytest.mark.parametrize('overrides, what', [
    (['student.teachers.report.out_of_fold=True'], 'stage "teacher" has no folds'),
    (['teacher.folds=1'], 'must be 0 or at least 2'),
    ([*FOLDED, 'student.teachers.report.cache=no'], 'out_of_fold needs outputs that are computed once'),
])
def test_what_cannot_be_is_said_before_training(overrides, what, tmp_path):
    with pytest.raises(errors.ConfigError, match=what):
        runner.dry_run(conf(*overrides), tmp_path)


@pytest.mark.parametrize('holdout_fold, what', [('(3,3)', 'counts from 0 to 2'),
                                                ('(1,)', 'must be .fold, number of folds.')])
def test_a_share_that_does_not_exist_is_refused(holdout_fold, what, tmp_path):
    with pytest.raises(errors.ConfigError, match=what):
        stages.build(conf(f'data.holdout_fold={holdout_fold}'), 'teacher', tmp_path)


def test_folds_that_have_seen_their_patients_are_refused(run, tmp_path):
    """By the weights that they start from: those of a network of all patients, or of another fold."""
    _, workdir = run
    for start in ('teacher', 'teacher_fold1'):
        c = conf('stages=teacher', *FOLDED, f'teacher.init.path={workdir / "checkpoints" / start}')
        with pytest.raises(errors.ConfigError, match='teacher_fold0 is to predict .* Leave init'):
            runner.run(c, tmp_path / start)
        assert not (tmp_path / start / 'checkpoints').exists()
    stage = stages.build(conf('data.holdout_fold=(0,3)',
                              f'teacher.init.path={workdir / "checkpoints" / "teacher_fold0"}'), 'teacher', tmp_path)
    held = splits.patient_digests(stage.data.source.cases[i] for i in stage.data.partition.fold_indices(0, FOLDS))
    assert stage.trained_on_patients and not {*held} & {*stage.trained_on_patients}  # what that fold says of itself


def test_more_folds_than_patients_are_refused(tmp_path):
    with pytest.raises(errors.ConfigError, match='fold [0-9]+ has nobody'):
        runner.run(conf('teacher.folds=60', 'student.teachers.report.out_of_fold=True'), tmp_path)


def test_answers_are_found_again_where_other_cases_came_or_went(run):
    """By their place among the cases that were asked about, not by that in the source."""
    _, workdir = run
    stage = stages.build(conf(), 'student', workdir)
    part, logits = stage.data.partition.indices('train'), stage.cached_outputs['report']['logits']
    trained = set(part)
    first = next(i for i in range(len(stage.data.source.cases)) if i not in trained)
    source = _Without(stage.data.source, first)  # the same training cases, one other case less
    parts = dataclasses.replace(stage.data.partition, cases=source.cases)
    fewer = dataclasses.replace(stage.data, source=source, partition=parts, memory={}, pool=None)
    found = teachers.cached_outputs(stage.context.teachers['report'], None, fewer, 8, ('logits', 'pooled'), workdir,
                              dict(stage.teachers['report'].provenance), [i - (i > first) for i in part])
    np.testing.assert_array_equal(found['logits'][[i - (i > first) for i in part]], logits[part])


class _Without(Source):
    """A source less one case."""

    def __init__(self, source, out):
        self.source, self.out, self.name, self.labels = source, out, source.name, source.labels
        self.cases = tuple(case for i, case in enumerate(source.cases) if i != out)
        self.text_without_image, self.values = True, np.delete(source.values, out, 0)

    def text(self, i):
        return self.source.text(i + (i >= self.out))


# A network that reads reports needs no image.


@pytest.mark.usefixtures('without_pages')
def test_a_stage_of_reports_opens_no_image_and_learns_the_words_once(tmp_path, monkeypatch):
    def never(*args):
        raise AssertionError('an image was opened')
    learned, fit = [], text.fit
    monkeypatch.setattr(text, 'PLUGIN', text.PLUGIN._replace(fit=lambda *args: learned.append(1) or fit(*args)))
    with monkeypatch.context() as m:
        m.setattr(source.Thorax, '__getitem__', never)
        runner.run(conf('stages=teacher', f'teacher.folds={FOLDS}'), tmp_path)
        with pytest.raises(AssertionError, match='an image was opened'):
            runner.run(conf(), tmp_path / 'another')
    assert len(learned) == 1  # for all folds; the checks of the other run open an image before it learns


@pytest.mark.usefixtures('without_pages')
def test_other_data_of_a_stage_of_reports_are_told_and_stay_whole_for_images(tmp_path):
    there = dict(name='classification', data='plain')
    c = conf()
    c.data.external = dict(plain=dict(augment=()))
    c.teacher.evals.there = c.student.evals.there = there
    runner.run(config.resolve(c), tmp_path)
    teacher, student = (stages.build(config.resolve(c), stage, tmp_path).data for stage in ('teacher', 'student'))
    records = [external.external_dataset(data, 'plain')[0] for data in (teacher, student)]
    assert 'image' not in records[0] and 'image' in records[1]


def test_folds_keep_what_they_read_once(tmp_path):
    shared, c = pool.DataPool(), conf(*FOLDED)
    whole = stages.build(c, 'teacher', tmp_path, pool=shared).data
    folded, own = config.fold(c, 'teacher', 0)
    assert (stages.build(folded, own, tmp_path, pool=shared).data.memory is whole.memory
            and len(whole.memory) == len(whole.source.cases))
    assert not shared.get(c.data, tmp_path).memory  # that with images


def test_an_augmentation_that_does_not_say_what_it_touches_stays(tmp_path, monkeypatch):
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own' / 'dropout.py').write_text('from jaxkd.contracts import Transform\nDEFAULTS = dict(rate=0.5)\n'
                                              'def build(hp):\n    return Transform(lambda r, rng: r, random=True)\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert len(stages.build(conf('data.augment=own.dropout,'), 'teacher', tmp_path).data.transforms.augment) == 1


def test_what_is_told_of_a_case_is_what_its_record_says(tmp_path):
    data = stages.build(conf(), 'student', tmp_path, dry=True).data
    text = data.text_only
    assert text is data.text_only and text.text_only is text and not text.transforms.augment
    assert set(text[0]) == set(data[0]) - {'image', 'truth'}
    for i in (0, 3, 7):
        for k, a in text[i].items():
            if k != 'boxes':  # they are of the image
                jax.tree.map(np.testing.assert_array_equal, a, data[i][k])
    other = pool.build(conf('data.transforms=image,text,labels', 'data.text.key=note').data, fit=False)
    assert other.text_only is other  # of another text than the source tells alone


# One answer for each study, under a name of what the teacher reads.


def test_a_report_is_read_once_for_all_images_of_its_study(run, monkeypatch):
    c, workdir = run
    stage = stages.build(conf(), 'student', workdir)
    part, cases = stage.data.partition.indices('train'), stage.data.source.cases
    studies = {cases[i].study for i in part}
    assert len(studies) < len(part)
    logits = stage.cached_outputs['report']['logits']
    for study in studies:
        assert len({logits[i].tobytes() for i in part if cases[i].study == study}) == 1
    alone = _teacher(stage, workdir, 'teacher')('train')
    np.testing.assert_allclose(logits[alone.index], alone.outputs['logits'], atol=1e-5)
    written = list((workdir / 'teacher_outputs').glob('*.npz'))
    sizes = [np.load(path)['logits'].shape[0] for path in written]
    assert len(studies) in sizes and len(part) not in sizes

    def never(*args, **options):
        raise AssertionError('asked again')
    monkeypatch.setattr(predictor.Predictor, '__call__', never)
    again = stages.build(conf(), 'student', workdir)  # from the disk
    np.testing.assert_array_equal(again.cached_outputs['report']['logits'], logits)


@pytest.mark.parametrize('change, same', [
    ('student.batch=4', True), ('data.augment=()', True), ('data.image.fit=letterbox', True),
    ('data.text.section=impression', False), ('data.text.mask_terms=effusion,', False)])
def test_what_the_teacher_reads_names_its_answers(run, change, same):
    _, workdir = run
    stage = stages.build(conf(), 'student', workdir)
    rows = stage.data.partition.indices('train')
    network, other = stage.context.teachers['report'], conf(change)
    data = pool.build(other.data, None, stage.data.transforms.fitted)
    first = [teachers._read_digest(network, d, rows) for d in (stage.data, data)]
    assert (first[0] == first[1]) == same


def test_a_damaged_file_of_answers_is_named(run, tmp_path):
    c, workdir = run
    stages.build(c, 'student', workdir)
    paths = sorted((workdir / 'teacher_outputs').glob('*.npz'))
    kept = [path.read_bytes() for path in paths]
    try:
        for path in paths:
            path.write_bytes(b'no archive')
        with pytest.raises(errors.Damaged, match='Cached teacher outputs .* Delete the file'):
            stages.build(c, 'student', workdir)
    finally:
        for path, data in zip(paths, kept):
            path.write_bytes(data)
