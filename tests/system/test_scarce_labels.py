"""A run in which few patients have labels: nothing in it depends on the labels of the others."""
import json
import re

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import checkpoint, config, runner
from jaxkd.runtime import files, saved_student
from tests.fixtures import disc


def resolved(**data):
    """Teacher, image_only, self_training, shuffled and student on 60 small discs, of which a third has labels."""
    vit = dict(name='vit', width=16, depth=1, heads=2, patch=16)
    short = dict(batch=8, length='4 steps', eval_every='2 steps', log_every='2 steps', evals=dict(classification={}))
    image = dict(short, model=vit)
    run = disc.config(image_only=image, student=image, teacher=dict(
        short, model=dict(name='text', width=8, depth=1, heads=2, length=16, vocab=64)))
    run['data']['source']['cases'], run['bootstrap'] = 60, 10
    run['data'] |= dict(labels=dict(share=0.3), augment=('contrast',)) | data
    run['self_training'] = run['student'] | dict(teachers=dict(image=dict(stage='image_only')))
    run['shuffled'] = run['student'] | dict(teachers=dict(report=dict(stage='teacher', shuffled=True)))
    for name in ('teacher', 'image_only'):
        run[name] |= dict(data=dict(labels=dict(only=True)))
    run['stages'] = ('teacher', 'image_only', 'self_training', 'shuffled', 'student')
    return config.resolve(ConfigDict(run))


def digests(c, workdir):
    """{stage: digest of the last variables}."""
    runner.run(c, workdir)
    found = {name: checkpoint.load_student(workdir / 'checkpoints' / name, None, 'last')[0] for name in c.stages}
    return {name: saved_student.digest(variables) for name, variables in found.items()}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('scarce')
    return workdir, digests(resolved(), workdir)


def split_of(workdir):
    """(labelled cases, hidden ones, those of the test part)."""
    content = json.loads((workdir / 'split.json').read_text())
    labelled, = content['labelled'].values()
    tested = {case for case, part in content['split'].items() if part == 'test'}
    return {*labelled}, content['split'].keys() - tested - {*labelled}, tested


@pytest.mark.usefixtures('without_pages')
def test_no_network_changes_when_all_hidden_labels_do(run, tmp_path):
    workdir, found = run
    labelled, hidden, _ = split_of(workdir)
    assert len(hidden) > len(labelled) > 4
    turned = resolved(source=dict(name='tests.fixtures.disc', cases=60, wrong=tuple(sorted(hidden))))
    assert digests(turned, tmp_path) == found
    scores = [files.read_json(folder / 'summary.json', 'x')['stages'] for folder in (workdir, tmp_path)]
    assert all(scores[0][name]['best'] == scores[1][name]['best'] for name in found)
    assert scores[0]['student']['decision'] == scores[1]['student']['decision']


@pytest.mark.usefixtures('without_pages')
def test_a_network_changes_when_a_label_does_that_is_told(run, tmp_path):
    workdir, found = run
    labelled, _, _ = split_of(workdir)
    turned = resolved(source=dict(name='tests.fixtures.disc', cases=60, wrong=tuple(sorted(labelled))))
    turned.stages = ('teacher',)
    assert digests(turned, tmp_path)['teacher'] != found['teacher']


def test_the_summary_counts_all_labels_that_were_used_and_marks_whom_the_teacher_learned_from(run):
    workdir, _ = run
    labelled, hidden, tested = split_of(workdir)
    stages = files.read_json(workdir / 'summary.json', 'x')['stages']
    counts = stages['student']['labels']
    assert counts['train']['cases'] + counts['val']['cases'] == len(labelled)
    assert counts['train'] == stages['image_only']['labels']['train'] == dict(cases=10, patients=5, of=18)
    assert stages['student']['cases'] == dict(train=36, val=counts['val']['cases'], test=len(tested))
    metadata = saved_student.stage_metadata(workdir / 'checkpoints' / 'student')
    assert metadata['label_kind'] == 'multilabel'
    assert len(metadata['labelled_on']) == 5 and {*metadata['labelled_on']} < {*metadata['trained_on']}


def test_the_report_begins_with_what_the_teacher_was_worth_against_the_best_control(run):
    workdir, _ = run
    page = re.sub('<[^>]*>', '', (workdir / 'report.html').read_text())
    stages = files.read_json(workdir / 'summary.json', 'x')['stages']
    values = {s: entry['test']['best']['classification/auroc']['value'] for s, entry in stages.items()}
    best, = re.findall(r'student minus (\w+) \(best of 3 controls\) is ', page)
    assert values[best] == max(values[s] for s in ('image_only', 'self_training', 'shuffled'))
    assert 'Labels of 5 of 18 training patients.' in page and '10 (5 of 18)' in page


def test_the_log_says_how_many_labels_there_are(run, capsys):
    workdir, _ = run
    c = resolved()
    runner.dry_run(c, workdir)
    out = capsys.readouterr().out
    assert 'Labels of 5 of 18 training and ' in out and 'in all' in out


def test_arms_of_one_teacher_see_the_same_cases_in_the_same_order(run):
    from jaxkd import stages
    from jaxkd.data import loader
    workdir, _ = run
    c = resolved()
    c['ceiling'] = c.student.to_dict() | dict(data=dict(labels=dict(share=1.0)), teachers={})
    c = config.resolve(c)
    batches = {name: next(loader.train_loader(stages.build(c, name, workdir).data, 8, 0))
               for name in ('self_training', 'shuffled', 'student', 'ceiling')}
    for name, batch in batches.items():
        np.testing.assert_array_equal(batch['index'], batches['student']['index'])
        np.testing.assert_array_equal(batch['image'], batches['student']['image'])
        assert batch['label_weight'].all() == (name == 'ceiling')
