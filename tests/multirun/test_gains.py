"""Grids of options: what is planned, what a map of made-up members says, what a small one through the command does."""
import csv
import dataclasses
import itertools
import json
import pathlib
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from scipy.special import expit

from jaxkd import checkpoint, config, errors
from jaxkd.evaluators.predictions import schema
from jaxkd.multirun import __main__, arm_tables, arms, gain_page, gains, plan, training_runs
from jaxkd.runtime import files
from tests.fixtures import tiny_sweep
from tests.fixtures.same_run import facts
from tests.multirun.test_multirun import CONFIG
from tests.report.facts import loss

SHARES, LABELLED = (0.05, 0.2, 1.0), (30, 120, 600)
IMAGE, REPORT = ['image'], ['tokens']
ARMS = ('teacher', 'image_only', 'self_training', 'shuffled', 'student')
# the signal of each arm by share: the student of 30 labels is between the baselines of 120 and of 600
SIGNAL = dict(image_only=(0.5, 1.2, 2.0), self_training=(0.7, 1.3, 2.0), shuffled=(0.5, 1.1, 1.9),
              student=(1.5, 1.7, 2.0), teacher=(2.4, 2.4, 2.4))


def stage_of(arm):
    """(options in the config, facts in the summary) of an arm."""
    teacher = dict(report=dict(stage='teacher', shuffled=arm == 'shuffled'))
    if arm == 'self_training':
        teacher = dict(own=dict(stage='image_only', shuffled=False))
    reads = REPORT if arm == 'teacher' else IMAGE
    taught = arm not in ('teacher', 'image_only')
    frozen = {t: IMAGE if arm == 'self_training' else REPORT for t in teacher} if taught else None
    method = dict(name='some' if taught else 'supervised')
    return (dict(inputs=reads, model=dict(name='net'), teachers=teacher if taught else {}, method=method),
            loss(method, reads, frozen))


def wrote(folder, signals, label, rng, labelled, hard, seconds=60.0):
    """A finished member. signals: {arm: how far its logits part the classes}; hard [n,2]: noise that all arms share."""
    stages = {arm: stage_of(arm) for arm in signals}
    files.write_json(folder / 'config.json', dict(
        stages=list(signals), bootstrap=200, **{arm: options for arm, (options, _) in stages.items()}))
    patients = np.array([f'p{i // 2}' for i in range(len(label))])
    entries = {}
    for arm, signal in signals.items():
        logit = signal * label + hard + rng.normal(0, 0.7, label.shape)
        schema.write_csv(schema.file_path(folder, arm), schema.Predictions(
            np.array([f'c{i}' for i in range(len(label))]), patients, {}, ('x', 'y'), label, np.ones_like(label), logit,
            expit(logit)))
        options, said = stages[arm]
        entries[arm] = dict(finished=True, **said, **{k: options[k] for k in ('inputs', 'method')}, model='net',
                            teachers={t: dict(folder=f'../{o["stage"]}') for t, o in options['teachers'].items()},
                            patients=dict(train=labelled, test=len(set(patients))), steps=100, seconds=seconds,
                            parameters=1000, test=dict(best={'classification/auroc': {}}))
    files.write_json(folder / 'summary.json', dict(stages=entries, order=list(signals)))


def made_up(tmp_path, varied, seeds=2, n=300, arm_names=ARMS, left_out=()):
    """(members, repeated) of a grid whose first axis is the share of labels; left_out: names of members."""
    rng = np.random.default_rng(0)
    label = (rng.random((n, 2)) < 0.4).astype(float)
    hard = rng.normal(0, 0.7, label.shape)
    points = [dict(zip(varied, values)) for values in itertools.product(*varied.values())]
    members = [training_runs.TrainingRun(f'{name}_seed{s}', s, {}, '', point)
               for name, point in zip(training_runs.point_names(points), points) for s in range(seeds)]
    members = [m for m in members if m.name not in left_out]
    for m in members:
        k = SHARES.index(m.point['data.labels.share'])
        wrote(tmp_path / m.name, {arm: SIGNAL[arm][k] for arm in arm_names}, label, rng, LABELLED[k], hard)
    return members, dict(seeds=list(range(seeds)), folds=0, leave_out='')


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    """(folder, content of gains.json) of a map over shares."""
    folder, varied = tmp_path_factory.mktemp('map'), {'data.labels.share': SHARES}
    members, repeated = made_up(folder, varied)
    said = gain_page.write(folder, members, repeated, varied, ARMS, failed={'share0.5_seed0': 'the loss is <nan>'})
    results = json.loads((folder / 'gains.json').read_text(), parse_constant=pytest.fail)
    assert results['regimes'][0]['text'] in said and 'failed and left out: share0.5_seed0' in said
    return folder, results


def test_roles_follow_from_teachers_and_their_inputs(found):
    _, results = found
    assert results['roles'] == dict(
        baseline='image_only', students=['student'], controls=['image_only', 'self_training', 'shuffled'],
        ceiling='teacher', kinds=dict(teacher='no_teacher', image_only='no_teacher', self_training='same_modality',
                                      shuffled='shuffled', student='privileged'))
    assert [p['compared'] for p in results['points']] == [['image_only', 'self_training', 'shuffled', 'student']] * 3


def test_the_planted_regimes_are_told_by_intervals_alone(found):
    _, results = found
    assert (results['metric'], results['patients'], results['cases']) == ('auroc', 150, 300)
    sides = []
    for point, control in zip(results['points'], ('self_training', 'self_training', None)):
        entry = point['against_best']['student']['auroc']
        assert control in (None, entry['control'])
        sides.append('+' if entry['low'] > 0 else '-' if entry['high'] < 0 else '0')
        best = max(point['arms'][c]['auroc']['value'] for c in results['roles']['controls'])
        assert entry['value'] == pytest.approx(point['arms']['student']['auroc']['value'] - best)
    assert sides == ['+', '+', '0']
    regime, = results['regimes']
    assert regime['side'] == 1 and 'class="card gain"' in (found[0] / 'report.html').read_text()
    assert re.fullmatch(r'At 5 % of the labels \(\+0\.\d+ \(0\.\d+ to 0\.\d+\) against self_training\) and at 20 % of '
                        r'the labels \(.*\) student is better than the best control in AUROC; with all labels \(.*\) '
                        r'no difference is seen\.', regime['text'])


def test_p_values_are_corrected_for_the_arms_and_ranks_and_gaps_follow(found):
    _, results = found
    first, _, last = results['points']
    taught = ('self_training', 'shuffled', 'student')
    assert sorted(first['differences']) == sorted(('teacher', *taught))
    p = {arm: first['differences'][arm]['auroc']['p'] for arm in taught}
    least = min(p.values())
    assert first['differences']['student']['auroc']['p_holm'] == pytest.approx(3 * least) and least == p['student']
    assert first['differences']['teacher']['auroc']['p_holm'] is None
    ranks = first['ranks']['auroc']
    assert ranks['student'] == dict(value=1.0, low=1.0, high=1.0, first=1.0) and ranks['shuffled']['value'] > 2
    assert last['ranks']['auroc']['student']['high'] > 1
    gap = first['gap_closed']['student']['auroc']
    values = {arm: first['arms'][arm]['auroc']['value'] for arm in ('student', 'image_only', 'teacher')}
    assert gap['ceiling'] == 'teacher' and gap['value'] == pytest.approx(
        (values['student'] - values['image_only']) / (values['teacher'] - values['image_only']))
    assert first['cost']['student'] == dict(steps=100, seconds=60, total_seconds=120, peak_memory=None, parameters=1000,
                                            flops=None)


def test_a_student_is_worth_the_labels_between_the_baselines_around_it(found):
    _, results = found
    worth = {(e['values']['data.labels.share'], e['arm']): e for e in results['equivalence']}
    few = worth[0.05, 'student']
    assert 120 < few['low'] < few['value'] < few['high'] < 600 and few['labelled'] == 30
    assert worth[1.0, 'student']['high'] is None and worth[1.0, 'student']['most'] == 600
    assert 20 < worth[0.05, 'self_training']['value'] < 120
    assert arm_tables.labels_text(worth[1.0, 'student']).endswith('more than 600)')


def test_the_tables_hold_every_number(found):
    folder, results = found
    with open(folder / 'arms.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 15 and {r['arm'] for r in rows} == set(ARMS)
    row = next(r for r in rows if (r['data.labels.share'], r['arm']) == ('0.05', 'student'))
    entry = results['points'][0]['arms']['student']['auroc']
    assert float(row['auroc']) == entry['value'] and float(row['auroc_low']) == entry['low'] and row['seeds'] == '2'
    assert row['auroc_best_control'] == 'self_training' and row['kind'] == 'privileged' and float(row['auprc']) > 0.5
    text = (folder / 'arms.md').read_text()
    assert text.startswith('| share | labelled patients | arm |') and '| 0.05 | 30 | student | 2 |' in text
    head, cells = arm_tables.shown(results)
    assert head[2:] == ['arm', 'seeds', 'AUROC', 'difference to image_only', 'p (Holm)', 'rank',
                        'difference to best control', 'gap closed', 'worth labelled patients', 'steps', 'seconds',
                        'with teachers', 'peak MiB', 'parameters', 'MFLOP a case']
    assert {len(row) for row in cells} == {len(head)}
    results['points'][0]['cost']['student'] |= dict(peak_memory=3 * 2**20, flops=2.5e6)
    student = next(row for row in arm_tables.shown(results)[1] if row[0] == '0.05' and row[2] == 'student')
    assert student[-6:] == ['100', '60', '120', '3', '1,000', '2.5']
    results['points'][0]['cost']['student'] |= dict(peak_memory=None, flops=None)
    assert r'image\_only' in (folder / 'arms.tex').read_text()


def test_the_page_draws_each_figure_and_escapes_what_it_is_told(found):
    folder, _ = found
    html = (folder / 'report.html').read_text()
    for part in ('At 5 % of the labels', 'Labelled patients that a gain is worth', 'AUROC, student − best control',
                 'labelled patients that image_only needs', 'href="share0.05_seed1/report.html"',
                 'the loss is &lt;nan&gt;', 'All points share the same 150 test patients (300 cases)', 'p (Holm)',
                 'href="arms.csv"'):
        assert part in html, part
    figures = re.findall(r'<svg.*?</svg>', html, re.S)
    assert len(figures) == 4
    for figure in figures:
        assert not re.search(r'nan|inf', ' '.join(v for e in ET.fromstring(figure).iter() for v in e.attrib.values()))


def test_a_map_over_two_options_has_holes_where_members_failed(tmp_path):
    varied = {'data.labels.share': SHARES[:2], 'student.method.alpha': (0.5, 0.9)}
    members, repeated = made_up(tmp_path, varied, left_out=('share0.2-alpha0.9_seed0', 'share0.2-alpha0.9_seed1',
                                                            'share0.2-alpha0.5_seed1'), n=120)
    results = gains.collect(tmp_path, members, repeated, varied, ARMS)
    assert [len(p.get('seeds', ())) for p in results['points']] == [2, 2, 1, 0]
    assert results['notes'] == ['1 of 4 points have fewer seeds than asked for, as members failed.']
    assert [r['text'].partition(':')[0] for r in results['regimes']] == ['With student.method.alpha = 0.5',
                                                               'With student.method.alpha = 0.9']
    assert results['equivalence'] == [], 'one point of a curve, or other seeds, are no curve'
    html = gain_page.page(results, tmp_path)
    drawing = re.search(r'<svg(?:(?!</svg>).)*alpha 0.9.*?</svg>', html, re.S)[0]
    texts = [e.text for e in ET.fromstring(drawing).iter('text')]
    assert texts.count('–') == 1 and sum(t.startswith(('+0.', '−0.')) for t in texts) == 3
    assert len(list(ET.fromstring(drawing).iter('rect'))) == 3


def test_folds_of_a_point_are_pooled_and_a_baseline_may_be_chosen(tmp_path):
    rng = np.random.default_rng(1)
    label = (rng.random((60, 2)) < 0.5).astype(float)
    members = [training_runs.TrainingRun(f'fold{i}', 0, {}, str(i)) for i in range(2)]
    for i, m in enumerate(members):
        wrote(tmp_path / m.name, dict(image_only=1.0, student=2.0), label, rng, 10, 0)
        for arm in ('image_only', 'student'):
            path = schema.file_path(tmp_path / m.name, arm)
            path.write_text(path.read_text().replace('c', f'{i}c').replace(f'{i}case', 'case').replace(
                f'logit/{i}c', 'logit/c').replace(',p', f',{i}p').replace(f',{i}patient', ',patient').replace(
                    f',{i}probability', ',probability'))
    results = gains.collect(tmp_path, members, dict(seeds=[], folds=2, leave_out=''), {}, ('image_only', 'student'),
                            baseline='student')
    point, = results['points']
    assert results['cases'] == 120 and results['roles']['baseline'] == 'student'
    assert point['differences']['image_only']['auroc']['high'] < 0
    with pytest.raises(errors.ConfigError, match='--baseline'):
        gains.collect(tmp_path, members, dict(seeds=[], folds=2, leave_out=''), {}, ('image_only',), baseline='studnt')


def test_smaller_is_better_where_the_metric_is_an_error():
    values = dict(a=np.full((1, 21), 0.2), b=np.full((1, 21), 0.4))
    assert (arms.sign('brier'), arms.sign('auroc')) == (-1, 1)
    means = {'brier': {arm: -1 * v.mean(0) for arm, v in values.items()}}
    chosen = arms.Roles('b', ('a',), ('b',), '', {})
    entry = arms._against_best(means, chosen, 0.95)['a']['brier']
    assert entry['value'] == entry['high'] == pytest.approx(-0.2), 'in the unit of the metric'


# Plans.

def test_values_of_a_varied_option_have_its_type(tmp_path):
    run = config.load(tiny_sweep.CONFIG)
    assert training_runs.axes(run, ['student.method.alpha=0,0.5', 'student.inputs=("image",),("tokens","image")']) == {
        'student.method.alpha': (0.0, 0.5), 'student.inputs': (('image',), ('tokens', 'image'))}
    for text, says in (('student.method.alfa=1,2', 'no key "alfa"'), ('seed', 'as in'), ('seed=1,,2', 'as in'),
                       ('student.method.alpha=1,1.0', 'stands there twice'), ('batch=1', 'no key "batch"')):
        with pytest.raises(errors.ConfigError, match=says):
            training_runs.axes(run, [text])
    members = training_runs.members(run, (0, 1), varied={'student.method.alpha': (0.25, 0.5)})
    assert [m.name for m in members] == ['alpha0.25_seed0', 'alpha0.25_seed1', 'alpha0.5_seed0', 'alpha0.5_seed1']
    one = training_runs.config_of(run, members[3])
    assert (one.seed, one.student.method.alpha, run.student.method.alpha) == (1, 0.5, 0.5)
    assert training_runs.config_of(run, members[0]).student.method.alpha == 0.25


def test_arms_bring_what_they_start_from():
    run = config.load(tiny_sweep.CONFIG)
    assert training_runs.arms(run, ('student',)).stages == ('teacher', 'student')
    assert training_runs.arms(run, ('image_only', 'student')).stages == ('image_only', 'teacher', 'student')
    with pytest.raises(errors.ConfigError, match='--arms studnt.*Did you mean "student"'):
        training_runs.arms(run, ('studnt',))


def planned(tmp_path, side_by_side, stages=('teacher', 'image_only', 'student')):
    run = training_runs.arms(config.load(tiny_sweep.CONFIG), stages)
    members = training_runs.members(run, (0, 1), varied={'student.method.alpha': (0.25, 0.5)})
    return plan.make(run, members, tmp_path, side_by_side)


def test_a_stage_that_does_not_depend_on_what_is_varied_is_trained_once(tmp_path):
    made = planned(tmp_path, side_by_side=False)
    assert [(j.name, j.trained) for j in made.jobs] == [
        *((f'alpha0.25_seed{s}', ('teacher', 'image_only', 'student')) for s in (0, 1)),
        ('alpha0.5_seed0', ('student',)), ('alpha0.5_seed1', ('student',))]
    assert (made.stages, made.shared) == (8, 4) and not any(j.after for j in made.jobs)
    assert made.jobs[3].take_over == dict.fromkeys(('teacher', 'image_only'), tmp_path / 'alpha0.25_seed1')
    assert '4 members, 8 stages to train, 4 taken over' in plan.describe(made, tmp_path)
    assert 'not known before' in plan.describe(made, tmp_path)


def test_side_by_side_what_others_wait_for_comes_first(tmp_path):
    made = planned(tmp_path, side_by_side=True)
    ahead = 'alpha0.25_seed0.teacher-image_only', 'alpha0.25_seed1.teacher-image_only'
    assert [(j.name, j.trained, j.after) for j in made.jobs] == [
        *((name, ('teacher', 'image_only'), ()) for name in ahead),
        *((f'alpha{a}_seed{s}', ('student',), (ahead[s],)) for a in (0.25, 0.5) for s in (0, 1))]
    assert made.jobs[0].config.stages == ('teacher', 'image_only') and made.stages == 8


def test_hours_follow_from_the_stages_that_are_finished(tmp_path):
    made = planned(tmp_path, side_by_side=False)
    entries = dict(teacher=dict(finished=True, seconds=1800.0, evaluation_seconds=0.0),
                   student=dict(finished=True, seconds=3500.0, evaluation_seconds=100.0))
    files.write_json(tmp_path / 'alpha0.25_seed0' / 'summary.json', dict(stages=entries))
    left = made.jobs[1:]  # a teacher, an image_only of unknown length, three students
    assert plan.hours(made, left, tmp_path) == 'about 4.2 h (of image_only by the other stages)'
    assert plan.hours(made, left, tmp_path, parallel=2) == 'about 2.1 h (of image_only by the other stages)'
    assert plan.hours(made, made.jobs[3:], tmp_path, parallel=4) == 'about 1.0 h'
    assert plan.hours(made, (), tmp_path) == 'nothing is left to train'
    timed = dataclasses.replace(made, measured=dict(image_only=900.0, teacher=9.0))  # a finished stage says more
    assert plan.hours(timed, left, tmp_path) == 'about 3.8 h (training alone, by a few steps of each stage)'
    assert plan.hours(timed, made.jobs[3:], tmp_path) == 'about 1.0 h'


# Through the command.

@pytest.fixture
def command(tmp_path, without_pages, without_clearing):
    """The command on the toy config of repeated trainings: `blind` does not learn, `able` does."""
    (tmp_path / 'toy.py').write_text(CONFIG.replace('bootstrap=100', 'bootstrap=40'))

    def run(*args):
        return __main__.main(['--config', str(tmp_path / 'toy.py'), '--workdir', str(tmp_path / 'out'), *args])
    return run


def test_a_small_grid_is_interrupted_continued_and_given_an_arm(command, tmp_path, capsys, monkeypatch):
    out, varied = tmp_path / 'out', ('--vary', 'able.optim.lr=0.05,0.01')
    with monkeypatch.context() as patch:
        stops = itertools.count()
        patch.setattr(checkpoint.Checkpointer, 'preempted', lambda self, step: step == 12 and next(stops) == 1)
        assert command(*varied, '--arms', 'able') == 75
    assert '2 members, 2 stages to train; about 1 min (training alone, by a few' in capsys.readouterr().out
    assert not (out / 'gains.json').exists()
    assert command(*varied, '--arms', 'able') == 0
    assert '2 members, 1 stage to train, 1 member finished before; about 1 min' in capsys.readouterr().out
    first = {m: files.read_json(out / m / 'summary.json', '')['stages'] for m in ('lr0.05', 'lr0.01')}
    assert command(*varied, '--arms', 'blind,able') == 0
    said = capsys.readouterr().out
    assert '2 members, 1 stage to train, 1 taken over from another member' in said and 'able: finished before' in said
    for member, before in first.items():
        after = files.read_json(out / member / 'summary.json', '')['stages']
        assert list(before) == ['able'] and after['able'] == before['able'] and after['blind']['finished']
    assert after['blind']['trained_in'] == '../lr0.05'
    results = files.read_json(out / 'gains.json', '')
    assert [p['values'] for p in results['points']] == [{'able.optim.lr': 0.05}, {'able.optim.lr': 0.01}]
    point = results['points'][0]
    assert results['roles']['baseline'] == 'blind' and point['differences']['able']['accuracy']['low'] > 0
    assert point['cost']['able']['flops'] >= 2 * (4 * 16 + 16 * 3) and point['cost']['able']['steps'] == 24
    assert 'Map of two' not in (out / 'report.html').read_text()


def test_the_ceiling_that_sets_its_own_labels_is_trained_once_and_each_split_lists_who_has_labels(command, tmp_path,
                                                                                                  capsys):
    text = (tmp_path / 'toy.py').read_text().replace('blind=dict(arm, optim=dict(lr=1e-9))', (
        'blind=dict(arm, optim=dict(lr=0.05), data=dict(labels=dict(share=1.0)))'))
    (tmp_path / 'toy.py').write_text(text)
    assert command('--vary', 'data.labels.share=0.4,0.8', '--arms', 'able,blind') == 0
    said, out = capsys.readouterr().out, tmp_path / 'out'
    assert '2 members, 3 stages to train, 1 taken over' in said and 'blind: taken over' in said
    results = files.read_json(out / 'gains.json', '')
    assert (results['roles']['baseline'], results['roles']['ceiling']) == ('able', 'blind')
    few, more = (p['labelled'] for p in results['points'])
    assert 0 < few < more < 36 and results['points'][0]['compared'] == ['able']
    listed = [files.read_json(out / f'share{share}' / 'split.json', '')['labelled'] for share in (0.4, 0.8)]
    assert {*listed[0]['share=0.4']} < {*listed[1]['share=0.8']}


def test_a_member_of_a_grid_that_fails_is_said_and_left_out(command, tmp_path, capsys):
    assert command('--arms', 'able', '--vary', 'able.optim.lr=1e38,0.05', '--config.able.optim.weight_decay=0.0') == 70
    assert 'failed and left out: lr1e-38 (' in capsys.readouterr().out
    results = files.read_json(tmp_path / 'out' / 'gains.json', '')
    assert [list(p) == ['values'] for p in results['points']] == [True, False]
    assert list(results['failed']) == ['lr1e-38']
    assert 'lr1e-38 failed and is left out' in (tmp_path / 'out' / 'report.html').read_text()


@pytest.mark.slow
def test_side_by_side_gives_the_networks_of_in_turn(tmp_path):
    args = ['--config', tiny_sweep.CONFIG, '--vary', 'student.method.alpha=0.25,0.5', '--seeds', '2']
    for folder, more in (('turn', ()), ('side', ('--parallel', '2'))):
        assert __main__.main([*args, '--workdir', str(tmp_path / folder), *more]) == 0
    names = sorted(path.name for path in tmp_path.glob('turn/alpha*'))
    assert len(names) == 4
    for name in names:
        assert facts(tmp_path / 'side' / name) == facts(tmp_path / 'turn' / name)
    assert pathlib.Path(tmp_path / 'side/alpha0.5_seed0/teacher_outputs').resolve() == tmp_path / 'side/teacher_outputs'
    turn, side = (files.read_json(tmp_path / f / 'gains.json', '') for f in ('turn', 'side'))
    for results in (turn, side):
        for point in results['points']:
            del point['cost']
    assert turn == side
