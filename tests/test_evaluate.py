"""A finished run is tested again without training: the same numbers, other options, new data, and what was seen."""
import functools
import itertools
import json
import pathlib
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import config, errors, evaluate, evaluation, main, runner, stages, train
from jaxkd.data import external
from jaxkd.data.source import Case, Source
from jaxkd.evaluators import classification
from jaxkd.evaluators.predictions import schema
from jaxkd.metrics import operating_points
from jaxkd.multirun import plan
from jaxkd.runtime import files
from tests.fixtures import disc, pages

VIT = dict(name='vit', width=16, depth=1, heads=2, patch=16)
TEXT = dict(name='text', width=16, depth=1, heads=2, length=8, vocab=16)


def write_cases(root, patients, seed=0, text=True, images=None):
    """A folder of two random pictures of each patient, or of copies of these files."""
    rng, rows = np.random.default_rng(seed), []
    (root / 'images').mkdir(parents=True)
    for i in range(2 * len(patients)):
        name = f'images/s{seed}_{i}.png'
        if images:
            shutil.copy(images[i], root / name)
        else:
            Image.fromarray(rng.integers(0, 255, (24 + i, 24), np.uint8)).save(root / name)
        report = [f'FINDINGS: A disc in cell {i % 3}.' if text else ''] if text else []
        rows.append(','.join([str(patients[i // 2]), name, *report, str(i % 2), str(i // 2 % 2)]))
    head = ['patient_id', 'image', *(['text'] if text else []), 'Edema', 'Effusion']
    (root / 'cases.csv').write_text('\n'.join([','.join(head), *rows]) + '\n')
    return root


def resolved(root):
    """A teacher that reads reports and a student of images, of two steps each."""
    run = disc.config()
    common = dict(length='2 steps', eval_every='1 step', log_every='2 steps', batch=8)
    for name, model, evals in (('teacher', TEXT, dict(classification={})),
                               ('student', VIT, dict(classification={}, maps=dict(name='localisation', data='')))):
        run[name] |= common | dict(model=model, evals=evals)
    data = dict(run['data'], source=dict(name='folder', root=str(root)), image=dict(size=32, fit='squash'),
                text=dict(length=8, vocab=16))
    del run['image_only']
    return config.resolve(ConfigDict(config.tuples(run | dict(data=data, bootstrap=20, stages=('teacher', 'student')))))


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """(folder of the data, folder of the finished run)"""
    folder = tmp_path_factory.mktemp('finished')
    root = write_cases(folder / 'data', [f'p{i}' for i in range(30)])
    (root / 'boxes.csv').write_text('image,label,x,y,w,h\n' + ''.join(
        f'images/s0_{i}.png,Edema,2,3,9,9\n' for i in range(1, 60, 2)))
    with pages.left_out():
        runner.run(resolved(root), folder / 'run')
    return root, folder / 'run'


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A copy of the finished run, which nothing trains again."""
    monkeypatch.setattr(train, 'train', lambda *args: pytest.fail('trained'))
    return pathlib.Path(shutil.copytree(finished[1], tmp_path / 'run'))


def summary(folder):
    return files.read_summary(folder / 'summary.json')


def predictions(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / 'predictions').iterdir())}


def without_clock(entry):
    return {k: v for k, v in entry.items() if k != 'evaluation_seconds'}


def test_the_same_numbers_again(run, capsys):
    """To the bit, and without what the teachers left for the training. A run of before decisions gets them."""
    before, files = summary(run), predictions(run)
    (run / 'summary.json').write_text(json.dumps(before | dict(stages={
        name: {k: v for k, v in entry.items() if k != 'decision'} for name, entry in before['stages'].items()})))
    shutil.rmtree(run / 'teacher_outputs')
    (run / 'report.html').unlink()
    shutil.rmtree(run / 'predictions')
    assert evaluate.main([str(run)]) == 0
    after = summary(run)
    assert {k: without_clock(v) for k, v in after.pop('stages').items()} == {
        k: without_clock(v) for k, v in before.pop('stages').items()}
    assert after == before and predictions(run) == files and len(files) == 6
    assert (run / 'report.html').exists() and not (run / 'teacher_outputs').exists()
    said = capsys.readouterr().out
    assert said.count('results of the test are the same, 0 changed, 0 are new, 0 are gone') == 2


def test_decisions_are_fitted_on_the_validation_part(finished):
    """From exactly these cases: the labels of the predictions beside them."""
    fitted = summary(finished[1])['stages']['student']['decision']
    validation = schema.read_csv(finished[1] / 'predictions' / 'student_val.csv')
    assert (fitted['kind'], fitted['cases'], [*fitted['labels']]) == ('multilabel', len(validation.cases),
                                                                      ['Edema', 'Effusion'])
    expected = operating_points.fit_labels(validation.logit, validation.label, validation.weight, validation.labels)
    for name, entry in fitted['labels'].items():
        assert entry['positives'] == expected[name]['positives'] == validation.label[:, [*fitted['labels']].index(
            name)].sum()
        assert entry['slope'] == pytest.approx(expected[name]['slope'], rel=1e-3, abs=1e-5)  # 7 digits in the file
        youden = entry['points']['youden']
        assert youden['sensitivity'] + youden['specificity'] >= 1
    assert evaluation.fit_decision(None, None, {}) is None


@pytest.mark.usefixtures('without_pages')
def test_other_options_in_a_finished_folder(finished, run, capsys):
    """By the command of training; what is not asked for any more is removed."""
    before, files = summary(run), predictions(run)
    command = ['--config', str(run / 'config.json'), '--workdir', str(run), '--config.bootstrap=30',
               '--config.student.evals.classification.bins=5']
    assert main.main(command) == 0
    assert 'student: tested again (bootstrap: 20 before, 30 now; evals.classification.bins: 15 before' in (
        capsys.readouterr().out)
    after, conf = summary(run), config.load(run / 'config.json')
    assert [plan.is_complete(c, run) for c in (conf, resolved(finished[0]))] == [True, False]
    assert (conf.bootstrap, conf.student.evals.classification.bins, conf.stages) == (30, 5, ('teacher', 'student'))
    for name in ('teacher', 'student'):
        old, new = (s['stages'][name]['test']['best']['classification/auroc'] for s in (before, after))
        assert old['value'] == new['value'] and old != new
    assert predictions(run) == files  # of the same network on the same cases
    assert after['stages']['student']['seconds'] == before['stages']['student']['seconds']
    del after['stages']['student']['test_options']['evals']['classification']['part']  # as if it were new
    (run / 'summary.json').write_text(json.dumps(after))
    assert main.main(command) == 0
    assert 'tested again' not in capsys.readouterr().out
    conf.student.evals = dict(classification=conf.student.evals.classification.to_dict())
    runner.run(config.resolve(conf), run)
    assert {*files} - {*predictions(run)} == {'student_test_rois.csv', 'student_examples.npz'}


@pytest.mark.usefixtures('without_pages')
def test_what_is_interrupted_is_continued(run, monkeypatch, capsys):
    """The second stage fails: the first is as asked for, the second as it was, and the same command does the rest."""
    before, files, report = summary(run), predictions(run), classification.PLUGIN.report

    def fail(predict, *args):
        if 'image' in predict.network.inputs:
            raise errors.BadData('no room')
        return report(predict, *args)
    with monkeypatch.context() as patch:
        patch.setattr(classification, 'PLUGIN', classification.PLUGIN._replace(report=fail))
        assert evaluate.main([str(run), '--bootstrap', '0']) == 65
    between = summary(run)['stages']
    assert between['student'] == before['stages']['student'] and between['teacher']['test_options']['bootstrap'] == 0
    assert predictions(run) == files and config.load(run / 'config.json').bootstrap == 20
    capsys.readouterr()
    assert main.main(['--config', str(run / 'config.json'), '--workdir', str(run), '--config.bootstrap=0']) == 0
    said, after = capsys.readouterr().out, summary(run)['stages']
    assert 'student: tested again' in said and 'teacher: tested again' not in said
    assert config.load(run / 'config.json').bootstrap == 0
    assert after['student']['test_options']['bootstrap'] == 0 and after['teacher'] == between['teacher']


def test_options_of_the_training_are_refused_with_what_to_do(run, capsys):
    conf = config.load(run / 'config.json')
    conf.student.length = '3 steps'
    with pytest.raises(errors.ConfigError, match='Only bootstrap, evals and data.external may change') as refused:
        runner.run(conf, run)
    assert f'--config.student.init.path={run}/checkpoints/student' in str(refused.value)
    assert "student.length: '2 steps' before, '3 steps' now" in str(refused.value)
    assert evaluate.main([str(run), '--config.student.length=3 steps']) == 2
    conf.student.init.path = f'{run}/checkpoints/student'
    assert stages.build(conf, 'student', run.parent / 'longer', dry=True).total == 3


def test_every_option_either_decides_training_or_the_test(finished):
    """Each key of the config, changed: refused in a finished folder unless it is known to decide the test alone."""
    conf = resolved(finished[0])
    conf.data.external = dict(old=dict(source=dict(root='x')))
    conf.student.evals.classification.data = 'old'  # selects the best step on it
    text = config.dump(conf)

    def leaves(node, path=()):
        for key, value in node.items():
            yield from leaves(value, (*path, key)) if isinstance(value, dict) and value else [(*path, key)]
    free = {('bootstrap',), ('teacher', 'evals', 'classification', 'level'), ('data', 'source', 'root'),
            ('data', 'external', 'old', 'source', 'root')}
    free |= {('student', 'evals', 'classification', k) for k in ('level', 'bins', 'part')}
    free |= {('teacher', 'evals', 'classification', k) for k in ('bins', 'part')}
    changed = 0
    for path, value in itertools.product(leaves(json.loads(text)), ('another', 0.25)):
        other = json.loads(text)
        *parents, last = path
        node = functools.reduce(lambda tree, key: tree[key], parents, other)
        if last == 'select' or last == 'name' and path[1] in ('evals', 'source'):  # they name what is compared
            continue
        node[last] = {'another': value} if node[last] == {} else value
        may_change = {*runner.KEYS_THAT_MAY_CHANGE}
        before, now = (runner._training_options(ConfigDict(c)) for c in (json.loads(text), other))
        free_here = path in free or path[:3] == ('student', 'evals', 'maps') or '.'.join(path) in may_change
        assert (before == now) == free_here, path
        changed += 1
    assert changed > 200


def test_new_data(finished, run, tmp_path, capsys):
    """Without reports the teacher is left out; the student gives its test images the logits that it gave them."""
    root, _ = finished
    test = schema.read_csv(run / 'predictions' / 'student_test.csv')
    images = [root / case for case in test.cases]
    patients = [f'q{i}' for i in range(len(images) // 2)]
    write_cases(tmp_path / 'Ward 7', patients, 9, text=False, images=images)
    assert evaluate.main([str(run), '--data', str(tmp_path / 'Ward 7'), '--bootstrap', '10']) == 0
    said = capsys.readouterr().out
    assert 'teacher: no case of Ward_7 has tokens, so Ward_7 is left out' in said and 'Ward_7/auroc: none -> ' in said
    new = schema.read_csv(run / 'predictions' / 'student_Ward_7.csv')
    assert [*new.patients] == [p for p in patients for _ in range(2)]
    np.testing.assert_array_equal(new.logit, test.logit)
    results = summary(run)['stages']
    assert results['student']['test']['best']['Ward_7/auroc']['n_patients'] == len(patients)
    assert not [k for k in results['teacher']['test']['best'] if k.startswith('Ward_7')]
    assert 'Ward_7' in (run / 'report.html').read_text()
    assert evaluate.main([str(run), '--data', str(tmp_path / 'Ward 7')]) == 0  # once more, by its stored name
    write_cases(tmp_path / 'other' / 'Ward 7', ['z1'], 8, text=False)
    assert evaluate.main([str(run), '--data', str(tmp_path / 'other' / 'Ward 7')]) == 2
    assert 'other data called "Ward_7". Set --name' in capsys.readouterr().err
    table = tmp_path / 'other' / 'Ward 7' / 'cases.csv'
    assert evaluate.main([str(run), '--data', str(table), '--name', 'b', '--config.stages=student']) == 0
    assert summary(run)['stages']['student']['test']['best']['b/auroc']['n_patients'] == 1
    assert config.load(run / 'config.json').stages == ('teacher', 'student')


def test_data_that_moved(finished, run, tmp_path, capsys):
    """The run names its data where they are now; other cases are refused."""
    root, _ = finished
    before = predictions(run)
    shutil.copytree(root, tmp_path / 'moved')
    assert evaluate.main([str(run), f'--config.data.source.root={tmp_path / "moved"}', '--bootstrap', '20']) == 0
    assert predictions(run) == before and config.load(run / 'config.json').data.source.root == str(tmp_path / 'moved')
    table = tmp_path / 'moved' / 'cases.csv'
    table.write_text(''.join(table.read_text().splitlines(keepends=True)[:-1]))
    assert evaluate.main([str(run), '--bootstrap', '20']) != 0
    assert 'images/s0_59.png' in capsys.readouterr().err


def test_other_folders_of_a_source_are_asked_for(run, tmp_path):
    conf = config.load(run / 'config.json').to_dict()
    labels = ('Edema', 'Pleural Effusion')
    conf['data']['source'] = dict(name='mimic_cxr', root='old', reports='old/reports', ms_cxr='boxes', labels=labels)
    conf = config.resolve(ConfigDict(conf))
    with pytest.raises(errors.ConfigError, match='also reads reports=old/reports.*Set --config.data.external.new.source'
                                                 '.reports= --config.data.external.new.source.ms_cxr=, each'):
        evaluate.with_data(conf, str(tmp_path), 'new', run)
    given = ['data.external.new.source.reports=b', 'data.external.new.source.ms_cxr=']
    tested = config.overridden(evaluate.with_data(conf, str(tmp_path), 'new', run, given), given)
    source = tested.data.external.new.source
    assert (source.root, source.reports, source.ms_cxr) == (str(tmp_path), 'b', '')
    assert tested.data.source == conf.data.source
    wrapped = conf.to_dict()
    wrapped['data']['source'] = dict(name='binary', of=conf.data.source.to_dict(), finding='Edema')
    with pytest.raises(errors.ConfigError, match='Set --config.data.external.new.source.of.reports='):
        evaluate.with_data(config.resolve(ConfigDict(wrapped)), str(tmp_path), 'new', run)


@pytest.mark.parametrize('part', ['train', 'val'])
def test_what_was_seen_is_refused(part, finished, run, tmp_path, capsys):
    """A patient of the training, and a picture of it under another name and patient."""
    root, _ = finished
    split = json.loads((run / 'split.json').read_text())['split']
    image = next(case for case, role in split.items() if role == part)
    patient = next(line.split(',')[0] for line in (root / 'cases.csv').read_text().splitlines() if image in line)
    before = (run / 'summary.json').read_bytes(), (run / 'config.json').read_bytes()
    write_cases(tmp_path / 'a', ['new', patient], 5, text=False)
    assert evaluate.main([str(run), '--data', str(tmp_path / 'a')]) == 2
    message = capsys.readouterr().err
    assert '2 cases of it (first: images/s5_2.png) are of patients that this run trains on or selects by' in message
    write_cases(tmp_path / 'b', ['new', 'newer'], 5, text=False)
    shutil.copy(root / image, tmp_path / 'b' / 'images' / 's5_3.png')
    assert evaluate.main([str(run), '--data', str(tmp_path / 'b')]) == 2
    message = capsys.readouterr().err
    assert '1 files of it are files that this run trains on or selects by' in message and 's5_3.png' in message
    assert ((run / 'summary.json').read_bytes(), (run / 'config.json').read_bytes()) == before


def test_patients_of_a_teacher_of_other_data_are_refused(finished, run, tmp_path, capsys):
    """stage.json says on whom teachers and initial weights were trained."""
    from jaxkd.data import splits
    from jaxkd.data.pool import DataPool
    write_cases(tmp_path / 'a', ['new', 'elsewhere'], 5, text=False)
    conf = evaluate.with_data(config.load(run / 'config.json'), str(tmp_path / 'a'), None, run)
    data = stages.trained_student(conf, 'student', run, DataPool()).data
    external.check_unseen(data, 'a', 'all', 'key', ())
    with pytest.raises(errors.ConfigError, match=r'2 cases of it \(first: images/s5_2.png\) are of patients that this '
                                                 'network, its teachers or its initial weights were trained on'):
        external.check_unseen(data, 'a', 'all', 'key', splits.patient_digests([Case('x', 'elsewhere')]))


def test_errors_are_a_sentence_and_a_code(run, tmp_path, capsys):
    for args, code, words in (
            ([str(tmp_path / 'none')], 66, 'holds no run'),
            ([str(run), '--data', str(tmp_path / 'none')], 66, 'does not exist'),
            ([str(run), '--data', str(write_cases(tmp_path / 'test', ['n']))], 2, 'Set --name'),
            ([str(run), '--bootstrap', '-3'], 2, 'bootstrap = -3 must lie in'),
            ([str(run), '--config.student.evals.classification.data=none'], 2, 'holds a run of another config')):
        assert evaluate.main(args) == code, args
        message = capsys.readouterr().err
        assert words in message and 'Traceback' not in message, message
    unfinished = summary(run)
    del unfinished['stages']['student']
    (run / 'summary.json').write_text(json.dumps(unfinished))
    assert evaluate.main([str(run), '--config.stages=student']) == 66
    assert 'stage student is not finished. Train it: python -m jaxkd.main' in capsys.readouterr().err
    assert evaluate.main([str(run)]) == 0
    assert 'student is not finished and left out' in capsys.readouterr().out
    assert config.load(run / 'config.json').stages == ('teacher', 'student')
    with open(run / 'split.json') as f:
        split = json.load(f)
    stage = json.loads((run / 'checkpoints' / 'teacher' / 'stage.json').read_text())
    assert stage['fingerprint'] == split['fingerprint']


def test_a_source_without_a_folder_is_named(run):
    conf = config.load(run / 'config.json').to_dict()
    conf['data']['source'] = dict(name='tests.fixtures.disc')
    with pytest.raises(errors.ConfigError, match='source "tests.fixtures.disc" of this run reads no folder'):
        evaluate.with_data(config.resolve(ConfigDict(conf)), str(run), 'new', run)


class Files(Source):
    def __init__(self, files):
        self.files = files
        self.cases = [Case(f'c{i}', patient) for i, (patient, _) in enumerate(files)]

    def paths(self, i):
        return [self.files[i][1]]


@settings(max_examples=200, deadline=None)
@given(contents=st.lists(st.binary(max_size=3), max_size=6), new=st.lists(st.binary(max_size=3), max_size=6),
       shared=st.booleans(), folders=st.booleans())
def test_equal_files_are_found_under_any_name(tmp_path_factory, contents, new, shared, folders):
    """Byte for byte, also the first of a folder; not empty files, and not one that holds the cases of several."""
    root = tmp_path_factory.mktemp('files')

    def write(name, content):
        path = root / name
        if folders:
            path.mkdir()
            (path / '2.dcm').write_bytes(b'another')
        (path / '1.dcm' if folders else path).write_bytes(content)
        return str(path)
    used = [(f'p{i}', write(f'a{i}', content)) for i, content in enumerate(contents)]
    used += [('another', used[0][1])] if shared and used else []
    tested = [(f'q{i}', write(f'b{i}', content)) for i, content in enumerate(new)]
    found = external._copies(Files(used), range(len(used)), Files(tested), range(len(tested)))
    seen = {*contents[1:]} if shared else {*contents}
    assert sorted(pathlib.Path(p[0]).read_bytes() for p in found) == sorted(c for c in new if c and c in seen)
    assert all(pathlib.Path(a).read_bytes() == pathlib.Path(b).read_bytes() for a, b in found)
