"""The report of made-up runs: what it says, what it refuses to say, and that no text of a file becomes markup."""
import collections
import dataclasses
import html.parser
import json
import re
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd import errors
from jaxkd.data.source import Case
from jaxkd.evaluators import classification as classification_evaluator
from jaxkd.evaluators import multiclass, slices
from jaxkd.evaluators.predictions import schema
from jaxkd.inference import predictor
from jaxkd.methods import cpkd
from jaxkd.metrics import bootstrap, classification
from jaxkd.metrics import localisation as pixels
from jaxkd.report import (
    __main__,
    classes,
    comparison,
    figures,
    html_page,
    markup,
    pictures,
    run_folder,
    statistics,
    tables,
    verdict,
)
from jaxkd.runtime import files
from tests.report.facts import loss

HOSTILE = '<script>alert("1")</script>&\'$x_{$'
LABELS = ('Edema', f'Mass {HOSTILE}')
PATIENTS, VIEWS, SIZE, BOXES = 60, 2, 24, 20
VOID = {'meta', 'br', 'img', 'link', 'hr', 'input'}


class Source:
    name, note, labels = 'rendered', 'a phantom <b>, not patients', LABELS
    skipped = (('case 7', f'unreadable {HOSTILE}'),)
    cases = tuple(Case(f'c{i}{HOSTILE if i < 2 else ""}', f'p{i // VIEWS}',
                       groups={'view': f'AP{HOSTILE}' if i % 2 else 'PA'}) for i in range(PATIENTS * VIEWS))


def truth():
    rng = np.random.default_rng(0)
    return (rng.random((PATIENTS * VIEWS, 2)) < 0.4).astype(np.float32)


def logits(skill, seed):
    """Logits that tell the classes apart by `skill` standard deviations."""
    return (2 * truth() - 1) * skill / 2 + np.random.default_rng(seed).normal(size=(PATIENTS * VIEWS, 2))


def classified(z):
    """What the real evaluator makes of a network with these logits -> (test table, {part: rows})."""
    class Predict:
        class data:
            source = Source
            partition = types.SimpleNamespace(indices=lambda role: [0])

        def __call__(self, role, message='', keep=None):
            n = len(z)
            weight = np.ones((n, 2), np.float32)
            weight[::17, 0] = 0
            return predictor.NetworkOutputs(np.arange(n), tuple(c.id for c in Source.cases),
                                            np.array([c.patient for c in Source.cases]),
                                  truth(), weight, np.zeros((n, 0, 5)), {'logits': z})
    table, rows, _ = classification_evaluator.report(Predict(), type('hp', (), dict(level=0.95, bins=15, data='',
                                                                                    part='test')), 100, 0)
    return table, rows


def localised(skill, seed):
    """Maps of which `skill` of the mass lies in the box, and the controls -> (table, rows, example arrays)."""
    rng = np.random.default_rng(seed)
    corners = np.random.default_rng(9).integers(2, 14, (BOXES, 2))
    boxes = np.concatenate([corners, np.full((BOXES, 2), 6)], 1).astype(float)
    masks = [pixels.roi_mask(b, SIZE) for b in boxes]
    maps = np.array([skill * m / m.sum() + (1 - skill) * rng.dirichlet(np.ones(SIZE**2)).reshape(SIZE, SIZE)
                     for m in masks])
    names = ('last_mean', 'best_head', 'uniform', 'centred_gaussian', 'mean_map', 'untrained')
    controls = pixels.control_maps(SIZE) | {'mean_map': maps.mean(0), 'untrained': np.full((SIZE, SIZE), 1 / SIZE**2)}
    table, flat = {}, collections.defaultdict(list)
    for name in names:
        rows = pixels.measure([controls.get(name, m) for m in maps], masks, 0.5)
        patients = [f'p{i}' for i in range(BOXES)]
        table |= {f'{name}/{k}': v for k, v in pixels.table(rows, patients, 100).items()}
        for i, row in enumerate(rows):
            for k, v in dict(map=name, case=f'c{i}{HOSTILE}', patient=f'p{i}', finding=LABELS[1], **row).items():
                flat[k].append(v)
    examples = dict(image=rng.random((3, SIZE, SIZE), np.float32), box=boxes[:3],
                    case=np.array([f'c{i}{HOSTILE}' for i in range(3)]), finding=np.array([LABELS[1]] * 3),
                    **{k: maps[:3].astype(np.float32) for k in ('last_mean', 'rollout', 'grad_attn')})
    flat = {k: np.array(v) for k, v in flat.items()}
    return table, schema.RegionScores(*(flat.pop(k) for k in schema.REGION), flat), examples


def make(folder, skills, shuffled=(), taught=None, inputs=None, localisation=()):
    """A working folder. skills: {stage: skill}; taught: {stage: its teacher}; a stage named reader reads tokens."""
    taught, inputs = {'student': 'reader', **{s: 'reader'
                                              for s in shuffled}} if taught is None else taught, inputs or {}
    conf, summary, lines = dict(stages=list(skills), bootstrap=100), {}, []
    for i, (s, skill) in enumerate(skills.items()):
        z = logits(skill, 7 + i)
        table, rows = classified(z)
        test = {f'classification/{k}': v for k, v in table.items()}
        for part, r in rows.items():
            schema.write_csv(schema.file_path(folder, s, part), r)
        if s in localisation:
            table, flat, examples = localised(localisation[s], i)
            test |= {f'localisation/{k}': v for k, v in table.items()}
            schema.write_csv(schema.file_path(folder, s, 'test_rois'), flat)
            files.write_npz(schema.file_path(folder, s, 'examples', suffix='.npz'), examples)
        reads = inputs.get(s, ['tokens'] if s == 'reader' else ['image'])
        teachers = {'it': dict(folder=f'gone/checkpoints/{taught[s]}', step=40, digest='0')} if s in taught else {}
        method = dict(name='some', alpha=0.5, **({'shuffle': True} if s in shuffled else {}))
        known = inputs.get(taught.get(s), ['tokens'] if taught.get(s) == 'reader' else ['image'])
        facts = loss(method, reads, {'it': known} if s in taught else {})
        conf[s] = dict(inputs=reads, model=dict(name='vit'), data={}, optim=dict(lr=0.1), method=method,
                       teachers={'it': dict(stage=taught[s], path='')} if s in taught else {})
        summary[s] = dict(finished=True, select='classification/auroc', mode='max', steps=60, parameters=12345,
                          seconds=61.0, inputs=reads, model='vit', method=method, teachers=teachers, **facts,
                          cases=dict(train=100, val=10, test=len(z)), patients=dict(train=50, val=5, test=PATIENTS),
                          best=dict(step=40, score=0.7), last=dict(step=60, score=0.6), test=dict(best=test, last=test),
                          source=dict(name=Source.name, note=Source.note, labels=LABELS, skipped=Source.skipped))
        for step in (20, 40, 60):
            lines += [dict(stage=s, step=step, sup=1 / step, kd=None, loss=1 / step, lr=0.1, grad_norm=1.0,
                           examples_per_s=50.0, data_wait=0.1),
                      {'stage': s, 'step': step, 'classification/auroc': 0.5 + step / 200}]
    files.write_json(folder / 'config.json', conf)
    files.write_json(folder / 'summary.json', dict(note=HOSTILE, seed=3, order=list(skills), versions={'jax': '0'},
                                                   devices='1 x cpu', stages=summary))
    files.write(folder / 'metrics.jsonl', ''.join(json.dumps(line) + '\n' for line in lines))
    return folder


CLASSES = ('benign', 'low grade', f'malignant {HOSTILE}')
VOLUMES = 180


class Pancreas:
    """A source of volumes: one class a case, three signs of each kind, every third case without T1."""

    name, note, labels, skipped = 'pancreas', 'a phantom, not patients', CLASSES, ()
    tasks = {'texture': ('cystic', 'mixed', 'solid'), 'duct': ('normal', 'dilated', 'cut off')}
    targets = {k: np.arange(VOLUMES, dtype=np.int32) % 3 for k in ('label', 'texture', 'duct')}
    cases = tuple(Case(f'v{i}{HOSTILE if i < 2 else ""}', f'p{i // 2}', groups={
        'class': CLASSES[i % 3], 'center': 'AB'[i % 4 > 1], 'subgroup': 'challenging' if i % 5 < 2 else 'ordinary'})
        for i in range(VOLUMES))
    challenging = np.array([c.groups['subgroup'] == 'challenging' for c in cases])


class Volumes:
    """A network on those volumes, as evaluators see it: class logits of a certain skill, less of it where it is
    hard."""

    batch = 8

    def __init__(self, skill, hard, seed, t1=True):
        rng = np.random.default_rng(seed)
        skills = np.where(Pancreas.challenging, hard, skill)[:, None]
        pooled = np.random.default_rng(1).normal(size=(VOLUMES, 3)) + skills * np.eye(3)[Pancreas.targets['label']]
        self.maps = pooled[:, None, None, None] + rng.normal(size=(VOLUMES, 1, 4, 4, 3)) * 2
        self.maps += pooled[:, None, None, None] - self.maps.mean((1, 2, 3), keepdims=True)
        self.variables, self.data, self.t1 = {'params': {'head': {'kernel': np.eye(3), 'bias': np.zeros(3)}}}, self, t1
        self.config, self.network = {'prior': dict(tasks=('texture', 'duct'))}, type('network', (),
                                                                                     dict(inputs=('ct',)))
        self.partition, self.source, fitted = self, Pancreas, {'prior': {'prior': (np.eye(3)[:, None] * 0.9
            + np.zeros((3, 3, 1)) + 0.03).tolist()}}
        self.transforms = types.SimpleNamespace(fitted=fitted, assignments={})

    def indices(self, role):
        return range(VOLUMES)

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        volume = lambda: rng.integers(0, 4096, (4, 16, 16, 1)).astype(np.int16)  # noqa: E731
        present = {'t1': np.float32(self.t1 and i % 3 > 0)}
        return dict(ct=volume(), t1=volume() * np.int16(present['t1']), present=present, label=np.int32(i % 3))

    def __call__(self, role, outputs=('logits',), message='', capture=(), keep=None):
        index = np.arange(VOLUMES) if keep is None else np.array(keep)
        found = {'features': self.maps[index], 'logits': self.maps.mean((1, 2, 3))[index]}
        return predictor.NetworkOutputs(index, tuple(Pancreas.cases[i].id for i in index),
                                        np.array([Pancreas.cases[i].patient for i in index]),
                              Pancreas.targets['label'][index], np.ones((len(index), 1)), np.zeros((len(index), 0, 5)),
                                        found)


def options(module):
    return type('hp', (), module.DEFAULTS)


MRI = dict(texture=dict(inputs=['t1'], task='texture'), duct=dict(inputs=['t1'], task='duct'))
ARMS = dict(  # stage: (method, teachers, networks)
    mri=(dict(name='supervised', kind='classes'), (), {}), ct_only=(dict(name='supervised', kind='classes'), (), {}),
    off=(dict(name='distil', losses=dict(kd=dict(weight=0.0))), ('mri',), {}),
    kd=(dict(name='distil', supervised=0.1, losses=dict(kd=dict(weight=0.9))), ('mri',), {}),
    cpkd=(dict(cpkd.DEFAULTS, name='cpkd'), (), MRI))
SKILLS = dict(mri=(3, 3), ct_only=(2, 0.2), off=(2, 0.2), kd=(2, 1), cpkd=(2, 2.5))


def make_volumes(folder, skills=None, shown=('ct_only', 'cpkd')):
    """A working folder of stages with exclusive classes; skills: {stage: (skill, skill in challenging cases)}."""
    skills = SKILLS if skills is None else skills
    conf, summary, lines = dict(stages=list(skills), bootstrap=100), {}, []
    for i, (s, skill) in enumerate(skills.items()):
        method, teachers, networks = ARMS[s]
        predict = Volumes(*skill, seed=i, t1=True)
        table, rows, arrays = multiclass.report(predict, options(multiclass), 100, 3)
        if s in shown:
            arrays |= slices.report(predict, options(slices), 100, 0)[2]
        for part, r in rows.items():
            schema.write_csv(schema.file_path(folder, s, part), r)
        for what, a in arrays.items():
            files.write_npz(folder / 'predictions' / f'{s}_{what}.npz', a)
        inputs = ['t1'] if s == 'mri' else ['ct']
        test = {f'multiclass/{k}': v for k, v in table.items()}
        facts = loss(method, inputs, {t: ['t1'] for t in teachers}, {n: network['inputs'] for n,
                                                                     network in networks.items()})
        conf[s] = dict(inputs=inputs, model=dict(name='mobilenet3d'), data={}, method=method, networks=networks,
                       batch=4, teachers={t: dict(stage=t, path='') for t in teachers},
                       evals=dict(multiclass=multiclass.DEFAULTS))
        summary[s] = dict(finished=True, select='multiclass/balanced_accuracy', mode='max', steps=60, parameters=12345,
                          seconds=61.0, inputs=inputs, model='mobilenet3d', method=method, **facts,
                          teachers={t: dict(folder=f'gone/{t}', step=40, digest='0') for t in teachers},
                          cases=dict(train=100, val=10, test=VOLUMES),
                          patients=dict(train=50, val=5, test=VOLUMES // 2), best=dict(step=40, score=0.7),
                          last=dict(step=60, score=0.6), test=dict(best=test, last=test),
                          source=dict(name=Pancreas.name, note=Pancreas.note, labels=CLASSES, skipped=()))
        lines.append({'stage': s, 'step': 60, 'multiclass/balanced_accuracy': 0.6})
    files.write_json(folder / 'config.json', conf)
    files.write_json(folder / 'summary.json', dict(seed=3, order=list(skills), stages=summary))
    files.write(folder / 'metrics.jsonl', ''.join(json.dumps(line) + '\n' for line in lines))
    return folder


def change(folder, name, edit):
    tree = json.loads((folder / name).read_text())
    edit(tree)
    files.write_json(folder / name, tree)


def change_method(folder, stage, options):
    change(folder, 'config.json', lambda c: c[stage]['method'].update(options))

    def edit(summary):
        entry = summary['stages'][stage]
        entry['method'].update(options)
        others = entry['other_networks']
        known = [{n: o['inputs'] for n, o in others.items() if o['frozen'] == frozen} for frozen in (True, False)]
        entry.update(loss(entry['method'], entry['inputs'], *known))
    change(folder, 'summary.json', edit)


class Page(html.parser.HTMLParser):
    """Tags, and what is wrong with their nesting."""

    def __init__(self, content):
        super().__init__()
        self.open, self.wrong, self.tags, self.links, self.words = [], [], set(), [], []
        self.feed(content)
        self.close()
        self.wrong += self.open

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [v for k, v in attrs if k in ('href', 'src', 'xlink:href', 'action')]
        self.wrong += [k for k, _ in attrs if k.startswith('on')]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f'/{tag}')

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r'\s+', ' ', ''.join(self.words))


FULL = dict(reader=2.5, alone=0.8, student=0.8)


@pytest.fixture(scope='module')
def full(tmp_path_factory):
    return make(tmp_path_factory.mktemp('run'), FULL, localisation=dict(alone=0.2, student=0.6))


@pytest.fixture(scope='module')
def content(full):
    return html_page.write(full).read_text()


def said(folder):
    run = run_folder.read(folder)
    return Page(verdict.paragraphs(run, comparison.comparisons(run))).text


def test_page_is_whole_small_and_stands_alone(content):
    page = Page(content)
    assert page.wrong == []
    assert not page.tags & {'link', 'iframe', 'img', 'object'} and content.count('<script') == 1
    beside = {link for link in page.links if not link.startswith(('#', 'data:image/'))}
    assert beside == {'metrics.jsonl', *(f'predictions/{s}_test.csv' for s in FULL),
                      *(f'predictions/{s}_test_rois.csv' for s in ('alone', 'student'))}
    assert 'url(' not in content and '@import' not in content and 'http://' not in content
    assert len(content) < 1_000_000


def test_page_holds_everything_in_order(content):
    text = Page(content).text
    order = ['Report of run', 'seed 3', 'rendered: a phantom <b>, not patients', 'Null result in AUROC', 'one seed (3)',
             'difference in AUROC', 'Test AUROC at the best step', 'Best step, the same test cases',
             'training loss terms', 'sensitivity', 'precision', 'predicted probability', 'IoU at 0.5',
             'Maps over test images, last_mean', 'groups of 10 patients', 'most wrong of student',
             '100 (50)', '1 case was skipped', 'Funding and interests', '--workdir NEW', 'resamples behind',
             'Config of the run', 'Words of this page', 'how often a positive case']
    at = [text.index(part) for part in order]
    assert at == sorted(at)
    nav = re.search('<nav>(.*?)</nav>', content)[1]
    sections = re.findall('<section id="([^"]+)"', content)
    assert re.findall('href="#([^"]+)"', nav) == sections and len({*sections}) == len(sections) > 10
    assert content.count('<svg class="tile"') == 3 * 3 * 3  # examples x (image, two stages) x maps


def test_learning_has_a_column_for_each_stage(full):
    drawn = figures.learning(run_folder.read(full))
    for part in ('training loss terms', 'validation score', 'examples per second', 'share of time waiting for data'):
        assert drawn.count(part) == 3, part
    assert drawn.count('loss (dotted)') == 1 and drawn.count('<figure') == 3, 'one figure a stage'
    assert drawn.count('classification/auroc') == 3
    assert drawn.count('stroke-dasharray="2 3"') == 2 * 3, 'loss and the best step of every stage'


def test_hostile_text_stays_text(content):
    text = Page(content).text
    for part in (f'Mass {HOSTILE}', f'c0{HOSTILE}', f'unreadable {HOSTILE}', f'AP{HOSTILE}'):
        assert part in text
    assert content.count('<script') == 1 and '<script>alert' not in content


def test_numbers_are_those_of_the_summary(full, content):
    entry = json.loads((full / 'summary.json').read_text())['stages']['student']['test']['best']
    for key in ('classification/auroc', 'classification/brier', 'classification/auprc',
                f'classification/auroc/{LABELS[1]}', 'localisation/last_mean/lift'):
        e = entry[key]
        assert f'{e["value"]:.3f}<small>({e["low"]:.3f} to {e["high"]:.3f})</small>' in content


def test_two_reports_of_a_run_are_equal(full, content):
    assert html_page.write(full).read_text() == content


def test_paired_differences_follow_the_case_not_the_row(tmp_path):
    make(tmp_path, FULL)
    run = run_folder.read(tmp_path)
    a, b = run.predictions['student'], run.predictions['alone']
    expected = classification.paired_table(a.logit, b.logit, a.label, a.weight, a.patients, a.labels, n=100, seed=3)
    path = tmp_path / 'predictions' / 'alone_test.csv'
    head, *rows = path.read_text().splitlines()
    files.write(path, '\n'.join([head, *rows[::-1]]) + '\n')
    found = comparison.comparisons(run_folder.read(tmp_path))
    assert [(c.a, c.b, c.arms) for c in found] == [('student', 'alone', True), ('student', 'reader', False)]
    assert found[0].metrics == expected


@pytest.mark.parametrize('skill, headline, side', [(3.0, 'Higher AUROC', 1), (0.8, 'Null result', 0),
                                                   (-0.5, 'Negative result', -1)])
def test_verdict_words_follow_the_interval(tmp_path, skill, headline, side):
    make(tmp_path, dict(reader=2.5, alone=0.8, student=skill))
    text = said(tmp_path)
    found = comparison.comparisons(run_folder.read(tmp_path))
    assert comparison.side(found[0].metrics['auroc']) == side
    assert headline in text and f'interval of the paired difference {"excludes" if side else "includes"} 0' in text
    assert ('did worse' in text) == (side == -1)
    assert ('not evidence that there is none' in text) == (side == 0)
    assert 'significan' not in text


def test_an_option_without_a_value_is_left_out(tmp_path):
    make(tmp_path, FULL)
    summary = files.read_summary(tmp_path / 'summary.json')
    summary['stages']['student']['method'] = dict(name='some', smoothing=0.0, weight='')
    files.write_summary(tmp_path / 'summary.json', summary)
    assert '>smoothing 0.0<' in html_page.page(run_folder.read(tmp_path))


def test_of_few_test_patients_nothing_is_concluded(tmp_path):
    make(tmp_path, dict(reader=2.5, alone=0.5, mixed=0.5, twin=0.5, student=3.0), shuffled=('mixed',),
         taught=dict(student='reader', mixed='reader', twin='alone'))
    assert said(tmp_path).startswith('Higher AUROC than without a teacher')
    summary = files.read_summary(tmp_path / 'summary.json')
    summary['stages']['student']['test']['best']['classification/auroc']['n_patients'] = 6
    files.write_summary(tmp_path / 'summary.json', summary)
    text = said(tmp_path)
    assert text.startswith('No conclusion in AUROC, only 6 test patients: student minus alone is ')
    assert 'Nothing: there are only 6 test patients, too few' in text and 'Higher' not in text and 'rule' not in text


def test_gap_closed_is_given_only_where_there_is_a_gap(tmp_path):
    make(tmp_path / 'clear', dict(reader=2.5, alone=0.8, student=1.6))
    values = {s: t['auroc']['value'] for s in FULL for t in [run_folder.read(tmp_path / 'clear').table(s)]}
    share = (values['student'] - values['alone']) / (values['reader'] - values['alone'])
    assert f'gap to the teacher that was closed: {share:.3f} (' in said(tmp_path / 'clear')
    make(tmp_path / 'none', dict(reader=0.8, alone=0.8, student=1.6))
    text = said(tmp_path / 'none')
    assert 'closed is not given' in text and 'its interval includes 0' in text and 'was closed: ' not in text
    make(tmp_path / 'worse', dict(reader=-1.0, alone=0.8, student=1.6))
    assert 'the teacher is the worse of the two' in said(tmp_path / 'worse')


def test_a_privileged_gain_needs_all_three_arms(tmp_path):
    make(tmp_path / 'two', dict(reader=2.5, alone=0.5, student=3.0))
    text = said(tmp_path / 'two')
    assert 'Nothing about privileged data' in text
    assert 'no arm with a shuffled teacher and no arm whose teacher reads the same input' in text
    arms = dict(taught=dict(student='reader', mixed='reader', twin='alone'), shuffled=('mixed',))
    make(tmp_path / 'all', dict(reader=2.5, alone=0.5, mixed=0.5, twin=0.5, student=3.0), **arms)
    run = run_folder.read(tmp_path / 'all')
    assert {s: comparison.kind(run, s) for s in run.stages} == dict(
        reader='no_teacher', alone='no_teacher', mixed='shuffled', twin='same_modality', student='privileged')
    assert 'meets the rule' in said(tmp_path / 'all') and 'other seeds' in said(tmp_path / 'all')
    make(tmp_path / 'twin', dict(reader=2.5, alone=0.5, mixed=0.5, twin=3.0, student=3.0), **arms)
    assert re.search('No privileged gain in AUROC.*difference to twin does not lie above 0', said(tmp_path / 'twin'))


def test_attention_is_held_against_the_maps_that_ignore_the_image(full):
    run = run_folder.read(full)
    c = comparison.comparisons(run)[0]
    assert comparison.side(c.localisation['auprc']) == 1  # 60 % of the mass in the box against 20 %
    against = comparison.against_controls(run, 'student')
    assert set(against) == set(comparison.CONTROLS) and comparison.side(against['centred_gaussian']['auprc']) == 1
    assert 'says more than that map' in said(full)
    page = Page(tables.localisation(run)).text
    assert 'upper bound: chosen with the answer' in page
    assert page.count('centred_gaussianall') == 1  # one row for a control that no network changes


def test_arms_share_inputs_model_and_data_and_other_differences_are_told(tmp_path):
    make(tmp_path, dict(reader=2.5, alone=0.8, other=0.8, student=0.8))

    def edit(conf):
        conf['other']['data'] = dict(train='clean')
        conf['student']['optim']['lr'] = 0.2
    change(tmp_path, 'config.json', edit)
    run = run_folder.read(tmp_path)
    assert comparison.arms(run) == [['reader'], ['alone', 'student'], ['other']]
    assert comparison.comparisons(run)[0].other_differences == ['optim.lr']
    assert 'differ in more than the method and its teacher: optim.lr' in said(tmp_path)


def test_a_teacher_that_nobody_can_ask_supports_no_claim(tmp_path):
    make(tmp_path, dict(alone=0.5, student=3.0), taught=dict(student='elsewhere'))
    change(tmp_path, 'config.json', lambda c: c['student']['teachers']['it'].update(stage='', path='gone'))
    change(tmp_path, 'summary.json', lambda s: s['stages']['student']['other_networks']['it'].update(inputs=None))
    text = said(tmp_path)
    assert 'from another run, what it reads is not known here' in text and 'no privileged gain can be claimed' in text


@pytest.mark.parametrize('lost, absent', [
    ('config.json', 'There is no config.json'), ('summary.json', 'No stage has finished'),
    ('metrics.jsonl', 'metrics.jsonl is missing or empty'), ('predictions/student_test.csv',
                                                             'There are no test predictions of student'),
    ('predictions/student_test_rois.csv', 'last_mean \u2212 uniform'), ('predictions/alone_examples.npz', 'last_mean')])
def test_what_is_missing_is_said(tmp_path, lost, absent):
    make(tmp_path, FULL, localisation=dict(alone=0.2, student=0.6))
    (tmp_path / lost).unlink()
    page = Page(html_page.write(tmp_path).read_text())
    assert absent in page.text and page.wrong == []
    if lost == 'predictions/student_test.csv':
        assert 'cannot be given, because there are no test predictions of student' in page.text
    assert ('Where the attention points' in page.text) == (lost not in ('summary.json',
                                                                        'predictions/student_test_rois.csv'))
    if lost == 'predictions/alone_examples.npz':
        # examples x (image, student) x maps
        assert (tmp_path / 'report.html').read_text().count('<svg class="tile"') == 3 * 2 * 3


def test_stages_that_have_not_finished_are_named(tmp_path):
    make(tmp_path, FULL)
    change(tmp_path, 'summary.json', lambda s: s['stages'].pop('student'))
    page = Page(html_page.write(tmp_path).read_text())
    assert 'Stage student is not finished; it stands at step 60.' in page.text
    assert 'says nothing about privileged distillation' in page.text and page.wrong == []


def test_without_resamples_nothing_is_concluded(tmp_path):
    make(tmp_path, dict(reader=2.5, alone=0.5, student=3.0))
    change(tmp_path, 'config.json', lambda c: c.update(bootstrap=0))
    text = said(tmp_path)
    assert 'No conclusion in AUROC' in text and 'nothing is known of chance' in text and 'nan' not in text


def test_metrics_of_other_evaluators_are_shown(tmp_path):
    make(tmp_path, FULL)
    change(tmp_path, 'summary.json', lambda s: s['stages']['student']['test']['best'].update(
        {'segmentation/dice': dict(value=0.1234, low=0.1, high=0.2)}))
    text = Page(tables.others(run_folder.read(tmp_path))).text
    assert 'segmentation/dice' in text and '0.123(0.100 to 0.200)' in text and 'classify' not in text


@pytest.mark.parametrize('labelled', [True, False])
def test_measures_of_an_evaluator_of_the_user_make_no_scans(tmp_path, labelled):
    make(tmp_path, FULL)
    expected = comparison.comparisons(run_folder.read(tmp_path))[0].metrics
    for stage in FULL:
        path = schema.file_path(tmp_path, stage, 'test')
        p = dataclasses.replace(schema.read_csv(path), measures={'right': truth()[:, 0].astype(float)})
        if not labelled:
            p = dataclasses.replace(p, labels=(), **{k: getattr(p, k)[:, :0] for k in schema.BY_LABEL.values()})
        schema.write_csv(path, p)
        change(tmp_path, 'summary.json', lambda s, stage=stage: s['stages'][stage].update(
            test=dict(best={'mine/right': dict(value=0.5)}, last={})))
    found = comparison.comparisons(run_folder.read(tmp_path))[0]
    if labelled:
        assert found.metrics == expected and 'auroc' in expected
    else:
        assert found.why == 'they hold neither labels nor Dice' and not found.metrics
    text = Page(html_page.write(tmp_path).read_text()).text
    assert 'test scans' not in text and re.search(rf'test patients\s*{PATIENTS}', text) and 'mine/right' in text


def test_no_run_and_damaged_files(tmp_path, capsys):
    with pytest.raises(errors.MissingInput, match='holds no run'):
        html_page.write(tmp_path)
    assert __main__.main([str(tmp_path)]) == 66 and 'holds no run' in capsys.readouterr().err
    make(tmp_path, FULL, localisation=dict(student=0.5))
    assert __main__.main([str(tmp_path)]) == 0 and capsys.readouterr().out.strip() == str(tmp_path / 'report.html')
    before = (tmp_path / 'report.html').read_bytes()
    for name, damage in (('student_test.csv', b'case,patient,logit/a\nc,p,x\n'),
                         ('student_test_rois.csv', b'map,case\na,b,c\n'), ('student_examples.npz', b'PK broken')):
        whole = (tmp_path / 'predictions' / name).read_bytes()
        (tmp_path / 'predictions' / name).write_bytes(damage)
        with pytest.raises(errors.Damaged, match=name):
            html_page.write(tmp_path)
        (tmp_path / 'predictions' / name).write_bytes(whole)
    assert (tmp_path / 'report.html').read_bytes() == before


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=('Cs', 'Cc'))), st.text(st.characters(exclude_categories=('Cs', 'Cc'))))
def test_any_text_survives_as_text(shown, attribute):
    page = Page(markup.table(['a', shown], [[shown, markup.tag('b', shown, title=attribute)]], shown))
    assert page.wrong == [] and ''.join(page.words) == shown + 'a' + 3 * shown
    assert page.tags == {'div', 'table', 'caption', 'thead', 'tbody', 'tr', 'th', 'td',
                         'b', 'span'} - ({'caption', 'span'} if not shown else set())


@settings(deadline=None)
@given(st.floats(allow_nan=True, allow_infinity=True) | st.none())
def test_numbers_have_three_decimals_or_are_a_dash(value):
    shown = markup.number(value, sign=True)
    assert shown == markup.DASH or re.fullmatch('[+\u2212][0-9]+[.][0-9]{3}', shown)
    assert (shown == markup.DASH) == (value is None or not np.isfinite(value))


def test_the_side_of_an_interval():
    side = lambda low, high: comparison.side(dict(low=low, high=high))  # noqa: E731
    assert [side(0.1, 0.2), side(-0.2, -0.1), side(-0.1, 0.1), side(0, 0.1), side(-0.1, 0)] == [1, -1, 0, 0, 0]
    assert side(np.nan, np.nan) is None and comparison.side({}) is None and comparison.side(None) is None


@pytest.fixture(scope='module')
def volumes(tmp_path_factory):
    return make_volumes(tmp_path_factory.mktemp('volumes'))


@pytest.fixture(scope='module')
def volumes_page(volumes):
    return html_page.write(volumes).read_text()


def test_page_of_exclusive_classes_is_whole_and_speaks_of_accuracy_first(volumes_page):
    page = Page(volumes_page)
    assert page.wrong == [] and not page.tags & {'link', 'iframe', 'img', 'object'} and len(volumes_page) < 1_000_000
    order = ['Higher accuracy than without a teacher', 'the accuracy is', 'the balanced accuracy is',
             'In the challenging cases', 'accuracy, best step', 'AUROC, best step', 'log loss, best step',
             'ECE, best step', 'one-vs-rest accuracyAUROC', 'Clinical prior.', 'distil: Published',
             "cpkd: Certain", 'subgroup = challenging', 'true \\ predicted',
             'each panel tells that class from all others', 'The axial slice', 'most wrong of cpkd']
    at = [page.text.index(part) for part in order]
    assert at == sorted(at)
    assert (f'malignant {HOSTILE}' in page.text and '<script>alert' not in volumes_page
            and 'Null result in AUROC' not in page.text)


def test_accuracies_of_the_page_are_those_of_the_summary(volumes, volumes_page):
    entry = json.loads((volumes / 'summary.json').read_text())['stages']['cpkd']['test']['best']
    for key in ('accuracy', 'balanced_accuracy', 'mean_ovr_accuracy', 'loss', 'implausible', f'f1/{CLASSES[2]}',
                'accuracy@subgroup=challenging'):
        e = entry[f'multiclass/{key}']
        assert f'{e["value"]:.3f}<small>({e["low"]:.3f} to {e["high"]:.3f})</small>' in volumes_page
    p = run_folder.read(volumes).predictions['cpkd']
    assert p.exclusive and np.mean(statistics.predicted(p)
                                   == np.arange(VOLUMES) % 3) == entry['multiclass/accuracy']['value']
    assert statistics.table(p, n=100)['loss']['value'] == pytest.approx(entry['multiclass/loss']['value'], rel=1e-6)


def test_confusion_counts_cases(volumes):
    run = run_folder.read(volumes)
    with np.load(volumes / 'predictions' / 'kd_confusion.npz') as stored:
        counts = stored['test']
    text = Page(classes.confusion(run)).text
    kd = text[text.index('kd'):text.index('cpkd')]
    assert f'{CLASSES[0]}' + ''.join(f'{n}{100 * n / 60:.0f} %' for n in counts[0]) in kd
    assert counts.sum() == VOLUMES


def test_arms_by_what_teaches_them(volumes, tmp_path):
    run = run_folder.read(volumes)
    assert {s: comparison.kind(run, s) for s in run.stages} == dict(
        mri='no_teacher', ct_only='no_teacher', off='no_teacher', kd='privileged', cpkd='privileged')
    assert comparison.arms(run) == [['mri'], ['ct_only', 'off', 'kd', 'cpkd']]
    assert 'its terms all have the weight 0' in Page(tables.stages(run)).text
    text = Page(verdict.paragraphs(run, comparison.comparisons(run))).text
    assert 'learned from texture (trained along with it, reads t1) and duct (trained along with it, reads t1)' in text
    assert ('off reads ct and learned' not in text
            and 'no arm with a shuffled teacher and no arm whose teacher reads the same' in text)

    make_volumes(tmp_path, {s: SKILLS[s] for s in ('ct_only', 'cpkd')}, shown=())

    def kind(**options):
        change_method(tmp_path, 'cpkd', options)
        return comparison.kind(run_folder.read(tmp_path), 'cpkd')
    assert kind(fkd_w=0.0, rkd_w=0.0) == 'privileged'  # the calibration is left
    assert kind(clinical=False) == 'no_teacher'  # the auxiliary terms train the MRI networks alone
    assert kind(fkd_w=1.5, warmup_epoch=1) == 'privileged'
    assert kind(warmup_epoch=1000) == 'no_teacher'  # 60 steps of 4 cases are 2.4 epochs: it never began
    change(tmp_path, 'summary.json', lambda s: [n.update(inputs=['ct'])
                                                for n in s['stages']['cpkd']['other_networks'].values()])
    assert kind(warmup_epoch=0) == 'same_modality'


def test_many_arms_are_judged_by_the_same_rule(tmp_path):
    """Of many arms not every pair is compared, but what a claim of each student needs is."""
    students = [f'student{i}' for i in range(6)]
    taught = {**dict.fromkeys(students, 'reader'), 'mixed': 'reader', 'own': 'alone'}
    folder = make(tmp_path, dict(reader=2.5, alone=0.4, mixed=0.4, own=0.5, **dict.fromkeys(students, 2.0)),
                  shuffled=('mixed',), taught=taught)
    pairs = {(c.a, c.b) for c in comparison.comparisons(run_folder.read(folder)) if c.arms}
    assert pairs == {(s, b) for s in students for b in ('alone', 'mixed', 'own')} | {
        ('mixed', 'alone'), ('own', 'alone')}
    assert html_page.write(folder).read_text().count('this run meets the rule') == len(students)


def test_a_teacher_with_the_weight_0_makes_no_arm_of_mmpkd(tmp_path):
    make(tmp_path, FULL, taught=dict(student='reader', alone='reader'))
    change_method(tmp_path, 'alone', dict(name='mmpkd', alpha=0.0))
    run = run_folder.read(tmp_path)
    assert comparison.kind(run, 'alone') == 'no_teacher' and comparison.kind(run, 'student') == 'privileged'
    assert 'alone is the same network with a teacher whose terms all have the weight 0' in said(tmp_path)


def test_a_teacher_without_weight_teaches_nothing_whatever_the_terms_are_called(tmp_path):
    make(tmp_path, FULL)
    change(tmp_path, 'summary.json', lambda s: s['stages']['student'].update(
        teacher_terms=['kd'], term_weights={'seg': 1.0, 'kd': 0.0}, uses_teacher=False))
    run = run_folder.read(tmp_path)
    assert comparison.kind(run, 'student') == 'no_teacher'
    assert 'says nothing about privileged distillation' in said(tmp_path) and 'and learned from' not in said(tmp_path)


def test_a_run_of_an_earlier_version_is_refused_and_not_guessed_at(tmp_path):
    make(tmp_path, FULL)
    change(tmp_path, 'summary.json', lambda s: s['stages']['student'].pop('uses_teacher'))
    with pytest.raises(errors.BadData, match='stage student does not say of its loss .*uses_teacher.*it is evaluated '
                       'anew'):
        html_page.write(tmp_path)


def test_differences_in_groups_use_the_same_resamples(volumes):
    run = run_folder.read(volumes)
    c = next(c for c in comparison.comparisons(run) if (c.a, c.b) == ('cpkd', 'ct_only'))
    a, b = run.predictions['cpkd'], run.predictions['ct_only']
    assert set(c.groups) == {('center', 'A'), ('center', 'B'), ('subgroup', 'challenging'), ('subgroup', 'ordinary')}
    rows = Pancreas.challenging
    right = [(statistics.predicted(p) == p.label.argmax(1))[rows].astype(float) for p in (a, b)]
    draws = np.concatenate([w @ (right[0] - right[1]) / w.sum(1)
                            for w in bootstrap.resamples(a.patients[rows], 100, 3)])
    entry = c.groups['subgroup', 'challenging']['accuracy']
    assert entry['value'] == pytest.approx(np.mean(right[0] - right[1]))
    np.testing.assert_allclose([entry['low'], entry['high']], np.quantile(draws, [0.025, 0.975]))
    assert comparison.side(entry) == 1
    assert f'({entry["n_patients"]} patients) cpkd minus ct_only is +{entry["value"]:.3f}' in said(volumes)
    share = np.nanmean(a.implausible) - np.nanmean(b.implausible)
    assert c.metrics['implausible']['value'] == pytest.approx(share) and share < 0


def test_slices_stand_side_by_side(volumes, volumes_page, tmp_path):
    run = run_folder.read(volumes)
    a = run.slices['cpkd']
    cases = {s: list(run.slices[s]['case']) for s in run.slices}
    every = dict.fromkeys([*cases['ct_only'], *cases['cpkd']])
    # CT, and T1 where there is one
    tiles = len(every) + sum(int(c.partition('<')[0][1:]) % 3 > 0 for c in map(str, every))
    assert volumes_page.count('<svg class="tile"') == tiles + sum(map(len, cases.values()))
    text = Page(volumes_page).text
    assert text.count('absent') >= sum(a['present'][:, 1] == 0) > 0 and 'not among its examples' in text
    assert 'case ct t1 ct_only cpkd'.replace(' ', '') in text.replace(' ', '')
    best = a['probability'][0].argmax()
    assert f'{CLASSES[best]} {a["probability"][0, best]:.2f}' in text
    make_volumes(tmp_path, dict(ct_only=(2, 1)))
    (tmp_path / 'predictions' / 'ct_only_slices.npz').write_bytes(b'PK broken')
    with pytest.raises(errors.Damaged, match='ct_only_slices.npz'):
        pictures.slices(run_folder.read(tmp_path))


def test_classes_are_not_compared_with_labels_of_their_own(volumes, tmp_path):
    make_volumes(tmp_path, {s: SKILLS[s] for s in ('ct_only', 'cpkd')}, shown=())

    def strip(s):
        best = s['stages']['ct_only']['test']['best']
        s['stages']['ct_only']['test']['best'] = {k: v for k, v in best.items() if 'accuracy' not in k}
    change(tmp_path, 'summary.json', strip)
    found = comparison.comparisons(run_folder.read(tmp_path))
    assert found[0].metrics == {} and 'labels are not the same' in found[0].why
    assert 'No conclusion in accuracy' in said(tmp_path)
