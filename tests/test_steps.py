"""Names that a method, a teacher or `select` lacks are refused with those that exist, before anything is trained."""
import re
import types

import jax
import pytest

from jaxkd import config, errors, runner, steps, teachers

CONFIG = 'configs/mmpkd_cxr.py:smoke'


@pytest.fixture
def outputs():
    context = types.SimpleNamespace(stage='student', batch=dict(teacher_outputs=dict(report={})))
    return steps.named_outputs(context, types.SimpleNamespace(name='mine'),
                               dict(student=dict(logits=1, pooled=2), report=dict(logits=3)))


def test_a_missing_output_is_named_with_stage_teacher_and_remedy(outputs):
    with pytest.raises(errors.ConfigError, match=re.escape(
            'student.method: mine reads "pooled" of "report", which gives logits. '
            "Set student.teachers.report.outputs=('logits', 'pooled') if its model gives that")):
        outputs['report']['pooled']
    with pytest.raises(errors.ConfigError, match='"tap" of "student", which gives logits, pooled. Choose another'):
        outputs['student']['tap']


def test_a_missing_network_is_named_with_the_nearest(outputs):
    with pytest.raises(errors.ConfigError, match='reads outputs of "reprot", which is no network of this stage. '
                                                 'Did you mean "report".*Name it in student.teachers'):
        outputs['reprot']
    assert outputs['report']['logits'] == 3 and dict(outputs['student']) == dict(logits=1, pooled=2)


def test_named_outputs_are_trees_as_dicts_are(outputs):
    assert jax.tree.map(lambda x: 2 * x, outputs) == dict(student=dict(logits=2, pooled=4), report=dict(logits=6))


def test_functions_of_a_method_that_take_other_arguments_are_refused():
    context, hp = types.SimpleNamespace(stage='student'), types.SimpleNamespace(name='mine')

    def terms(student, teachers, batch):
        return {}
    with pytest.raises(errors.ConfigError, match=re.escape(
            'student.method: terms(student, teachers, batch) of mine is called as terms(student, teachers, heads, '
            'batch, hp). Let it take these.')):
        steps.make_method(terms, lambda hp, progress: {}, hp, context)
    with pytest.raises(errors.ConfigError, match=re.escape('is called as weights(hp, progress)')):
        steps.make_method(lambda student, teachers, heads, batch, hp: {}, lambda hp: {}, hp, context)
    with pytest.raises(errors.ConfigError, match=re.escape('is called as terms(student, teachers, heads, batch, hp, ')):
        steps.make_method(lambda student, teachers, heads, batch, hp: {}, lambda hp, progress: {}, hp, context,
                          memory=lambda hp, context: {})


def test_outputs_that_a_diagnosis_reads_are_checked():
    trained = dict(report=types.SimpleNamespace(outputs=dict(logits=[1, 2])))
    with pytest.raises(errors.ConfigError, match=re.escape('student.method reads "pooled" of teacher "report", which '
                                                           'gives logits. Set student.teachers.report.outputs=')):
        teachers.outputs_of('student', trained, 'report', None, 8, ('logits', 'pooled'), 0)
    with pytest.raises(errors.ConfigError, match='"text", which is no teacher of this stage. Known: report. Name it'):
        teachers.outputs_of('student', trained, 'text', None, 8, ('logits',), 0)
    assert teachers.outputs_of('student', trained, 'report', None, 8, ('logits',), 1) == dict(logits=2)


@pytest.mark.parametrize('overrides, message', [
    (['student.method.gamma=0.1', 'student.teachers.report.outputs=logits,'],
     'student.method: mmpkd reads "pooled" of "report", which gives logits. Set student.teachers.report.outputs='),
    (['student.select=classification/aurok'],
     'student.select = "classification/aurok": classification gives no metric "aurok". Did you mean "auroc"'),
    (['student.select=classification'], 'student.select = "classification": .* no metric ""'),
])
def test_a_wrong_name_is_found_before_training(overrides, message, tmp_path):
    with pytest.raises(errors.ConfigError, match=message):
        runner.dry_run(config.load(CONFIG, ['stages=student,', *overrides]), tmp_path)


def test_a_dry_run_names_the_network_of_each_stage(tmp_path, capsys):
    runner.dry_run(config.load(CONFIG, ['stages=teacher,', 'teacher.model.depth=1']), tmp_path)
    page = capsys.readouterr().out
    assert re.search(r'^  text: [0-9,]+ parameters', page, re.M) and 'student' not in page
