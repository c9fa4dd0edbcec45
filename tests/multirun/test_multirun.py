"""Repeated trainings: members train, stop and resume through the command, and what is pooled can be counted by hand."""
import collections
import csv
import dataclasses
import itertools
import json
import os
import pathlib
import sys
import types

import flax.linen as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, recall_score, roc_auc_score

from jaxkd import checkpoint, errors, parallel
from jaxkd.contracts import EvaluatorPlugin
from jaxkd.data.source import Case, Source
from jaxkd.evaluators.predictions import schema
from jaxkd.metrics import bootstrap, pooled
from jaxkd.multirun import __main__, pooling, rounds, training_runs
from jaxkd.multirun.html_page import page
from jaxkd.report import run_folder
from jaxkd.runtime import files
from tests.fixtures import tiny_sweep
from tests.fixtures.same_run import facts
from tests.report.facts import loss

CLASSES = ('x', 'y', 'z')


def thing(name, **content):
    """Make `toys.<name>` importable, as a user's own module would be."""
    sys.modules[f'toys.{name}'] = types.SimpleNamespace(**content)


class Rows(Source):
    """60 patients, every third with two cases; three classes that four numbers tell with some luck, and two signs.

    Every seventh case has an unknown sign.
    """

    name, note, labels, skipped = 'rows', 'random numbers', CLASSES, ()
    cases = tuple(Case(f'c{i}_{k}', f'p{i}', groups={
        'class': CLASSES[i % 3], 'center': 'ABC'[i // 20], 'subgroup': 'challenging' if i % 2 else 'ordinary',
        'torn': str(k), 'alone': 'same'}) for i in range(60) for k in range(1 + (i % 3 == 0)))
    tasks = {'texture': ('soft', 'hard'), 'duct': ('narrow', 'wide')}
    truth = np.array([CLASSES.index(case.groups['class']) for case in cases])
    targets = {'label': truth, 'texture': np.where(np.arange(80) % 7, truth == 0, -1), 'duct': (truth == 1).astype(int)}

    def __getitem__(self, i):
        label = CLASSES.index(self.cases[i].groups['class'])
        row = np.random.default_rng(i).normal(0, 1, 4).astype(np.float32)
        row[label] += 2.5
        return {'row': row, 'label': np.int32(label), 'boxes': np.zeros((0, 5), np.float32)}


class Net(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, inputs, train=False):
        return {'logits': nn.Dense(self.outputs)(nn.gelu(nn.Dense(16)(inputs['row'])))}


def luck(predict, hp, resamples, seed):
    """A metric that follows from the seed, and one that is not defined."""
    return {'even': dict(value=float(seed % 2 == 0)), 'nothing': dict(value=np.nan)}, {}, {}


thing('luck', DEFAULTS={}, PLUGIN=EvaluatorPlugin(luck))
thing('rows', DEFAULTS={}, build=lambda hp: Rows())
thing('net', DEFAULTS={}, build=lambda hp, outputs, dtype: Net(outputs))
CONFIG = '''
from ml_collections import ConfigDict

def get_config(arg=''):
    arm = dict(inputs=('row',), model=dict(name='toys.net'), method=dict(name='supervised', kind='classes'),
               evals=dict(multiclass={}, fate=dict(name='toys.luck')), select='multiclass/accuracy', length='24 steps',
               eval_every='24 steps', batch=16)
    return ConfigDict(dict(
        stages=('blind', 'able'), bootstrap=100, tensorboard=False,
        data=dict(source=dict(name='toys.rows'), transforms=('prior',), prior=dict(classes=(2, 2, 3)),
                  split=dict(fractions=(0.5, 0.1, 0.4), stratify=('class', 'subgroup'))),
        blind=dict(arm, optim=dict(lr=1e-9)), able=dict(arm, optim=dict(lr=0.05))))
'''


@pytest.fixture
def command(tmp_path, without_pages, without_clearing):
    """The command on the toy config."""
    (tmp_path / 'toy.py').write_text(CONFIG)

    def run(*args):
        return __main__.main(['--config', str(tmp_path / 'toy.py'), '--workdir', str(tmp_path / 'out'), *args])
    return run


def table_of(folder, stage):
    """(cases, patients, label [n], probability [n,3]) straight from the CSV."""
    with open(folder / 'predictions' / f'{stage}_test.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    label = [next(c for c, name in enumerate(CLASSES) if row[f'label/{name}'] == '1') for row in rows]
    return ([row['case'] for row in rows], [row['patient'] for row in rows], np.array(label),
            np.array([[float(row[f'probability/{name}']) for name in CLASSES] for row in rows]))


def unlikely_of(folder, stage):
    """The column prior/implausible [n], straight from the CSV."""
    with open(folder / 'predictions' / f'{stage}_test.csv', newline='') as f:
        return np.array([float(row['prior/implausible']) for row in csv.DictReader(f)])


def by_hand(label, probability):
    chosen = probability.argmax(1)
    one_hot = np.eye(3)[label]
    return {'accuracy': accuracy_score(label, chosen), 'balanced_accuracy': balanced_accuracy_score(label, chosen),
            'mean_ovr_accuracy': np.mean([accuracy_score(label == c, chosen == c) for c in range(3)]),
            'brier': np.square(probability - one_hot).sum(1).mean(),
            'auroc': np.mean([roc_auc_score(one_hot[:, c], probability[:, c]) for c in range(3)])}


def test_seeds_through_the_command(command, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'out'
    with monkeypatch.context() as patch:
        stops = itertools.count()
        patch.setattr(checkpoint.Checkpointer, 'preempted', lambda self, step: step == 12 and next(stops) == 2)
        assert command('--seeds', '0,1') == 75
    first = capsys.readouterr().out.partition('member 2 of 2')[0]
    assert all('all stages about' in line for line in first.splitlines() if 'ETA' in line) and 'able  step 2' in first
    assert not (out / 'repeat.json').exists() and (out / 'seed0' / 'report.html').exists()
    begun = files.read_json(out / 'seed0' / 'summary.json', '')
    assert command('--seeds', '0,1', '--only', '0') == 0 and 'not finished yet: seed1' in capsys.readouterr().out
    assert not (out / 'repeat.json').exists()
    assert command('--seeds', '0,1') == 0
    said = capsys.readouterr().out
    assert 'finished before' in said and 'able - blind' in said and 'subgroup = ordinary' in said
    assert files.read_json(out / 'seed0' / 'summary.json', '') == begun, 'a finished member is left alone'

    found = files.read_json(out / 'repeat.json', '')
    assert found['members'] == {'seed0': {'seed': 0, 'part': ''}, 'seed1': {'seed': 1, 'part': ''}}
    assert found['metrics'] == ['accuracy', 'balanced_accuracy', 'mean_ovr_accuracy', 'auroc', 'brier', 'ece',
                                'implausible']
    assert files.read_json(out / 'seed0/split.json', '') == files.read_json(out / 'seed1/split.json', '')
    values = {}
    for stage in ('blind', 'able'):
        tables = [table_of(out / m, stage) for m in found['members']]
        assert tables[0][0] == tables[1][0]
        tests = [files.read_json(out / m / 'summary.json', '')['stages'][stage]['test']['best']
                 for m in found['members']]
        values[stage] = [by_hand(*t[2:]) | {m: test[f'multiclass/{m}']['value'] for m in ('ece', 'implausible')}
                         for t, test in zip(tables, tests)]
        for metric, entry in found['arms']['all'][stage].items():
            if '/' in metric:
                continue
            expected = [v[metric] for v in values[stage]]
            np.testing.assert_allclose(entry['rounds'], expected, atol=1e-5)
            np.testing.assert_allclose([entry['value'], entry['sd']], [np.mean(expected), np.std(expected, ddof=1)],
                                       atol=1e-5)
            if metric != 'ece':  # a resample's is biased upward, so the value may lie below its interval
                assert entry['low'] <= entry['value'] <= entry['high']
            if metric != 'implausible':  # which is of fewer patients, those with known signs
                assert entry['n_patients'] == len(set(tables[0][1]))
    assert values['able'][0] != values['able'][1], 'seeds train other networks'
    pair, = found['differences']['all']
    entry = pair['metrics']['accuracy']
    assert (pair['a'], pair['b'], entry['positive']) == ('able', 'blind',
                                                         2) and entry['low'] > 0, 'what was planted is found'
    np.testing.assert_allclose(entry['value'], np.mean([a['accuracy'] - b['accuracy'] for a, b in zip(
        values['able'], values['blind'])]), atol=1e-6)
    parts = [found['arms'][f'subgroup = {g}']['able']['accuracy'] for g in ('challenging', 'ordinary')]
    weighted = sum(p['value'] * p['n_cases'] for p in parts) / sum(p['n_cases'] for p in parts)
    np.testing.assert_allclose(weighted, found['arms']['all']['able']['accuracy']['value'])

    expected = dict(value=0.5, sd=np.std([1, 0], ddof=1), members={'seed0': 1.0, 'seed1': 0.0})
    assert found['further']['fate/even'] == {'blind': expected, 'able': expected}
    undefined = dict(value=None, sd=None, members={'seed0': None, 'seed1': None})
    assert found['further']['fate/nothing']['able'] == undefined
    text = (out / 'seed0' / 'summary.json').read_text()
    summary = json.loads(text, parse_constant=lambda x: pytest.fail(f'{x} is not JSON'))
    assert summary['stages']['able']['test']['best']['fate/nothing'] == {'value': None}
    assert np.isnan(run_folder.read(out / 'seed0').stages['able']['test']['best']['fate/nothing']['value'])
    html = (out / 'report.html').read_text()
    for part in ('<th>fate/even</th><td>0.500 sd 0.707</td>', 'href="seed1/report.html"', 'rows: random numbers',
                 'subgroup = challenging', 'above 0 in 2 of 2 seeds',
                 'All members share the same test part of', 'resample patients and seeds', 'implausible share', '<svg',
                 'All 2 seeds share one data set, one split and the same test patients. No interval holds what another '
                 'training'):
        assert part in html, part
    assert command('--seeds', '0,1', '--config.blind.batch=8') == 2
    assert 'holds a run of another config' in capsys.readouterr().err


def without_costs(entry):
    return {key: value for key, value in entry.items() if key != 'cost'}  # of which seconds are a part


@pytest.mark.slow
def test_members_that_train_side_by_side_equal_those_that_train_in_turn(tmp_path, capsys):
    args = ['--config', tiny_sweep.CONFIG, '--seeds', '0,1', '--config.stages=image_only']
    for folder, more in (('turn', ()), ('side', ('--parallel', '2'))):
        assert __main__.main([*args, '--workdir', str(tmp_path / folder), *more]) == 0
    said = capsys.readouterr().out
    assert 'started   seed1' in said and 'image_only' in (tmp_path / 'side/logs/seed1.log').read_text()
    for seed in ('seed0', 'seed1'):
        assert facts(tmp_path / 'side' / seed) == facts(tmp_path / 'turn' / seed)
    turn, side = (json.loads((tmp_path / folder / 'repeat.json').read_text(), object_hook=without_costs)
                  for folder in ('turn', 'side'))
    assert side == turn
    assert __main__.main([*args, '--workdir', str(tmp_path / 'bad'), '--parallel', '2',
                          '--config.image_only.init.path=/nowhere']) == 66
    assert 'seed0, seed1: stopped with exit code 66' in capsys.readouterr().err


def test_folds_through_the_command(command, tmp_path):
    """Each member in a call of its own, as an array of jobs would, the last one first."""
    out = tmp_path / 'out'
    for i in (2, 0, 1):
        assert not (out / 'repeat.json').exists()
        assert command('--folds', '3', '--only', str(i), '--config.stages=able') == 0
    found = files.read_json(out / 'repeat.json', '')
    tables = [table_of(out / f'fold{i}', 'able') for i in range(3)]
    tested = collections.Counter(patient for t in tables for patient in set(t[1]))
    assert tested == {f'p{i}': 1 for i in range(60)} and found['patients'] == 60
    entry = found['arms']['all']['able']
    pooled_by_hand = by_hand(*(np.concatenate([t[k] for t in tables]) for k in (2, 3)))
    for metric, value in pooled_by_hand.items():
        folds = [by_hand(*t[2:])[metric] for t in tables]
        np.testing.assert_allclose(entry[metric]['value'], value, atol=1e-5)
        np.testing.assert_allclose(list(entry[metric]['folds'].values()), folds, atol=1e-5)
        np.testing.assert_allclose([entry[metric]['fold_mean'], entry[metric]['fold_sd']],
                                   [np.mean(folds), np.std(folds, ddof=1)], atol=1e-5)
    unlikely = [unlikely_of(out / f'fold{i}', 'able') for i in range(3)]
    np.testing.assert_allclose(entry['implausible']['value'], np.nanmean(np.concatenate(unlikely)))
    np.testing.assert_allclose(list(entry['implausible']['folds'].values()), [np.nanmean(u) for u in unlikely])
    assert 0 < entry['implausible']['value'] < 0.5 and np.isnan(np.concatenate(unlikely)).sum() == 12
    assert entry['implausible']['n_cases'] == 68

    label, chosen = (np.concatenate([f(t) for t in tables]) for f in (lambda t: t[2], lambda t: t[3].argmax(1)))
    counts = confusion_matrix(label, chosen)
    assert found['confusion'] == {'able': {'labels': list(CLASSES), 'counts': counts.tolist()}}
    for c, name in enumerate(CLASSES):
        sensitivity, specificity = (entry[f'{m}/{name}']['value'] for m in ('sensitivity', 'specificity'))
        np.testing.assert_allclose([sensitivity, specificity],
                                   [recall_score(label == c, chosen == c), recall_score(label != c, chosen != c)])
    assert set(found['arms']) == {'all', 'torn = 0', 'torn = 1', *(f'center = {c}' for c in 'ABC'),
                                  'subgroup = challenging', 'subgroup = ordinary'}
    centres = [found['arms'][f'center = {c}']['able']['accuracy'] for c in 'ABC']
    np.testing.assert_allclose(sum(e['value'] * e['n_cases'] for e in centres) / 80, entry['accuracy']['value'])
    html = (out / 'report.html').read_text()
    for part in ('mean of folds', 'pooled', 'each of 60 patients (80 cases) is tested once', 'scales may differ',
                 'One seed', 'center = B', 'specificity', f'>{counts[0, 0]}<small>', 'Out-of-fold predictions'):
        assert part in html, part


def test_each_group_left_out_through_the_command(command, tmp_path, capsys):
    out = tmp_path / 'out'
    assert command('--leave_out', 'center', '--config.stages=able', '--config.able.length=12 steps') == 0
    assert 'center = B, 20 test patients' in capsys.readouterr().out
    found = files.read_json(out / 'repeat.json', '')
    tables = {c: table_of(out / f'center_{c}', 'able') for c in 'ABC'}
    for i, (c, t) in enumerate(tables.items()):
        assert set(t[1]) == {f'p{k}' for k in range(20 * i, 20 * i + 20)}
        entry = found['arms'][f'center = {c}']['able']
        np.testing.assert_allclose(entry['accuracy']['value'], by_hand(*t[2:])['accuracy'])
        np.testing.assert_allclose(entry['implausible']['value'], np.nanmean(unlikely_of(out / f'center_{c}', 'able')))
    assert found['patients'] == 60 and 'Each center left out' in (out / 'report.html').read_text()


@pytest.mark.parametrize('args, says', [
    (('--leave_out', 'centre'), 'no group "centre". Did you mean "center"'),
    (('--leave_out', 'torn'), 'c0_0 (torn "0") and c0_1 (torn "1") belong to one patient'),
    (('--leave_out', 'alone'), 'its values are ["same"]. It takes two or more'),
    (('--leave_out', 'center', '--only', '3'), 'none of the 3 members: 0 center_A, 1 center_B, 2 center_C'),
    (('--folds', '1'), 'fold 0 of 1 folds is not possible'),
    (('--folds', '5', '--config.data.split.file=x.json'), 'folds and leave_out have nothing to draw'),
    (('--seeds', '1', '--config.able.bach=3'), 'no key "bach"'),
])
def test_what_cannot_be_repeated(command, capsys, tmp_path, args, says):
    assert command(*args) in (2, 65) and says in capsys.readouterr().err
    assert not list(tmp_path.glob('out/*/checkpoints'))


@pytest.mark.parametrize('args', [(), ('--folds', '2', '--leave_out', 'center'), ('--seeds', '0,0'), ('--seeds', '1,x'),
                                  ('--seeds', '1', 'config.seed=3'), ('--seeds', '1', '--parallel', '0'),
                                  ('--seeds', '0'), ('--seeds', '1', '--arms', 'able,able'),
                                  ('--seeds', '1', '--parallel', '2', '--only', '0')])
def test_wrong_command_lines(command, args):
    with pytest.raises(SystemExit) as stopped:
        command(*args)
    assert stopped.value.code == 2


def test_the_folder_of_a_run_is_not_written_over(command, tmp_path, capsys):
    files.write_json(tmp_path / 'out' / 'config.json', {})
    assert command('--seeds', '1') == 2 and 'holds a run itself' in capsys.readouterr().err


def test_members_differ_in_what_is_repeated_alone(tmp_path):
    from jaxkd import config
    (tmp_path / 'toy.py').write_text(CONFIG)
    conf = config.load(tmp_path / 'toy.py', ['data.split.seed=7'])
    both = training_runs.members(conf, (3, 4), folds=2)
    assert [m.name for m in both] == ['seed3_fold0', 'seed3_fold1', 'seed4_fold0', 'seed4_fold1']
    one = training_runs.config_of(conf, both[3])
    assert (one.seed, one.data.split.fold, one.data.split.folds, one.data.split.seed) == (4, 1, 2, 7)
    one.seed, one.data.split.fold, one.data.split.folds = 0, 0, 0
    assert one == conf
    held = training_runs.members(conf, leave_out='center')
    assert [(m.name, m.part, m.seed) for m in held] == [(f'center_{c}', c, 0) for c in 'ABC']
    assert training_runs.config_of(conf, held[1]).data.split.leave_out == 'center=B'


def test_members_share_what_is_compiled(tmp_path, monkeypatch):
    import jax
    keys = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
    before = {k: getattr(jax.config, k) for k in keys}
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'elsewhere')
    assert parallel.enable_compilation_cache() == 'elsewhere'
    assert {k: getattr(jax.config, k) for k in keys} == before, 'what the user set stays'
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    (tmp_path / 'jaxkd').write_text('no folder')
    assert parallel.enable_compilation_cache() == '' and {k: getattr(jax.config, k) for k in keys} == before
    (tmp_path / 'jaxkd').unlink()
    try:
        folder = pathlib.Path(parallel.enable_compilation_cache())
        assert str(folder) == jax.config.jax_compilation_cache_dir and folder.parent == tmp_path / 'jaxkd' / 'compiled'
        (folder / 'old').touch(), (folder / 'new').touch()
        os.utime(folder / 'old', times=(0, 0))
        parallel.enable_compilation_cache()
        assert [f.name for f in folder.iterdir()] == ['new']
    finally:
        for k, v in before.items():
            jax.config.update(k, v)


# Pooling, on folders that look like finished runs.

def wrote(folder, predictions, patients, classes=True, groups=None, labels=CLASSES):
    """A member: predictions {stage: (label [n,C], logit [n,C])}; patients and groups {column: [n]} for each case."""
    files.write_json(folder / 'config.json', dict(stages=list(predictions), bootstrap=300))
    entries = {}
    for stage, (label, logit) in predictions.items():
        schema.write_csv(schema.file_path(folder, stage), schema.Predictions(
            np.array([f'case-{p}' for p in patients]), np.array(patients),
            {g: np.array(v) for g, v in (groups or {}).items()},
            labels, label, np.ones_like(label), logit, expit(logit)))
        known = {'multiclass/auroc': {}, 'multiclass/accuracy': {}} if classes else {'classification/auroc': {}}
        entries[stage] = dict(finished=True, inputs=['row'], model='net', method=dict(name='supervised'), teachers={},
                              **loss(dict(name='supervised'), ['row']),
                              patients=dict(test=len(patients)), test=dict(best=known))
    files.write_json(folder / 'summary.json', dict(stages=entries, order=list(predictions)))


def noisy(rng, label, signal, noise=1.0):
    """Log-odds of softmax probabilities that favour the true class by `signal`."""
    z = rng.normal(0, noise, label.shape) + signal * label
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return np.log(p / (1 - p))


def seeds_of(tmp_path, signals, seeds=5, n=90):
    rng = np.random.default_rng(0)
    label = np.eye(3)[np.arange(n) % 3]
    members = [training_runs.TrainingRun(f'seed{s}', s, {}) for s in range(seeds)]
    for m in members:
        wrote(tmp_path / m.name, {stage: (label, noisy(rng, label, signal)) for stage, signal in signals.items()},
              [f'p{i}' for i in range(n)])
    return pooling.pool(tmp_path, members, dict(seeds=list(range(seeds)), folds=0, leave_out=''))


def test_a_planted_difference_is_found_and_equal_arms_are_not_told_apart(tmp_path):
    found = seeds_of(tmp_path, dict(weak=0.5, same=0.5, strong=1.8))
    entries = {(d['a'], d['b']): d['metrics'] for d in found['differences']['all']}
    assert set(entries) == {('same', 'weak'), ('strong', 'weak'), ('strong', 'same')}
    for metric in ('accuracy', 'auroc'):
        planted, null = entries['strong', 'weak'][metric], entries['same', 'weak'][metric]
        assert planted['low'] > 0 and planted['positive'] == 5 and planted['above'] >= 4
        assert null['low'] < 0 < null['high'] and null['above'] + null['below'] <= 1
    own = found['arms']['all']['strong']['accuracy']
    np.testing.assert_allclose(own['value'], np.mean(own['rounds']))


def test_seed_and_patient_intervals_are_those_of_the_bootstrap(tmp_path):
    """One seed: the usual patient-level interval. Several: of the mean of their accuracies, with the same patients."""
    found = seeds_of(tmp_path, dict(arm=1.0), seeds=3)
    right = []
    for m in found['members']:
        p = run_folder.read(tmp_path / m).predictions['arm']
        p = p.take(np.argsort(p.cases))
        right.append(p.logit.argmax(1) == p.label.argmax(1))
    expected = bootstrap.interval(bootstrap.mean(np.mean(right, 0)), p.patients, 300, 0.95, 0)
    entry = found['arms']['all']['arm']['accuracy']
    for k in ('value', 'low', 'high', 'replicates', 'n_patients'):
        np.testing.assert_allclose(entry[k], expected[k])
    assert len(found['differences']['all']) == 0


def test_the_interval_of_a_difference_speaks_of_seeds_too():
    """Patients that do not matter, seeds that do: only drawing seeds shows it. One seed: the draws themselves."""
    same = np.tile([[0.0], [1.0]], (1, 401))
    entry = pooled.difference(same)
    assert (entry['low'], entry['value'], entry['high']) == (0.0, 0.5, 1.0)
    assert (entry['positive'], entry['above'], entry['below'], entry['sd']) == (1, 1, 0, np.std([0, 1], ddof=1))
    mean = pooled.mean(same)
    assert mean['low'] == mean['high'] == 0.5
    one = np.random.default_rng(0).normal(1, 1, (1, 401))
    entry = pooled.difference(one)
    np.testing.assert_allclose((entry['low'], entry['high']), np.quantile(one[0, 1:], [0.025, 0.975]))
    assert np.isnan(entry['sd'])


def test_rounding_is_no_difference():
    """0.3 - 0.1 * 3 is not below 0: accuracies that tie must not be counted as one above the other."""
    tied = np.full((3, 101), 0.3 - 0.1 * 3)
    assert tied[0, 0] != 0
    entry = pooled.difference(tied)
    assert (entry['low'], entry['high'], entry['positive'], entry['above'], entry['below']) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize('seeds, spread, most', [(1, 0.0, 0.08), (5, 0.0, 0.02), (5, 0.3, 0.08), (5, 1.0, 0.18)])
def test_nothing_is_claimed_of_equal_arms_more_often_than_the_level_says(seeds, spread, most):
    """1000 pairs of arms that differ by chance alone: few intervals exclude 0; of narrower ones more would.

    spread: how much the skill of a network depends on its seed; 1 is as much as cases differ, where five seeds are too
    few.
    """
    rng, pairs, n = np.random.default_rng(1), 1000, 60
    hard = rng.normal(0, 1, (pairs, 1, n))  # what makes a case hard, for both arms
    right = [hard + rng.normal(0, spread, (pairs, seeds, 1)) + rng.normal(0, 1, (pairs, seeds, n)) > 0 for _ in 'ab']
    gap = right[0].astype(float) - right[1]
    weights = np.concatenate([np.ones((1, n)), *bootstrap.resamples([f'p{i}' for i in range(n)], 400)])
    entries = [pooled.difference(found, seed=i) for i, found in enumerate(gap @ weights.T / n)]
    value, low, high = (np.array([e[k] for e in entries]) for k in ('value', 'low', 'high'))

    def claims(width):
        return np.mean((value + width * (low - value) > 0) | (value + width * (high - value) < 0))
    assert claims(1) < most < claims(0.75)


def test_a_group_left_out_has_a_row(tmp_path):
    rng = np.random.default_rng(2)
    members = [training_runs.TrainingRun(f'center_{c}', 0, {}, c) for c in 'AB']
    label = np.eye(3)[np.arange(30) % 3]
    for m, signal in zip(members, (0.2, 3.0)):
        wrote(tmp_path / m.name, dict(arm=(label, noisy(rng, label, signal))), [f'{m.part}{i}' for i in range(30)],
              groups={'center': [m.part] * 30, 'subgroup': ['ordinary', 'challenging', ''] * 10})
    found = pooling.write(tmp_path, members, dict(seeds=[], folds=0, leave_out='center'))
    assert set(found['arms']) == {'all', 'subgroup = challenging', 'subgroup = ordinary', 'center = A', 'center = B'}
    of = {g: e['arm']['accuracy'] for g, e in found['arms'].items()}
    assert of['center = A']['value'] < of['center = B']['value'] and of['center = A']['n_patients'] == 30
    assert list(of['center = A']['folds']) == ['center_A']
    np.testing.assert_allclose(of['all']['value'], (of['center = A']['value'] + of['center = B']['value']) / 2)
    np.testing.assert_allclose(of['all']['fold_mean'], of['all']['value'])
    html = (tmp_path / 'report.html').read_text()
    assert 'Each center left out' in html and '<th>center = B</th>' in html and 'subgroup = challenging' in html
    assert 'No interval holds what another training set' in html
    assert json.loads((tmp_path / 'repeat.json').read_text(), parse_constant=lambda x: pytest.fail(x)) == found


@pytest.mark.parametrize('classes', [True, False])
def test_a_column_of_measures_is_pooled_whatever_the_evaluator(tmp_path, classes):
    rng, n = np.random.default_rng(5), 30
    label = np.eye(3)[np.arange(n) % 3]
    members = [training_runs.TrainingRun(f'seed{s}', s, {}) for s in range(2)]
    doses = rng.random((2, 2, n))  # seed, stage, case
    for m, by_stage in zip(members, doses):
        arms = {stage: (label, noisy(rng, label, 1.0)) for stage in ('low', 'high')}
        wrote(tmp_path / m.name, arms, [f'p{i}' for i in range(n)], classes)
        for stage, dose in zip(arms, by_stage):
            path = schema.file_path(tmp_path / m.name, stage)
            schema.write_csv(path, dataclasses.replace(schema.read_csv(path), measures={'dose': dose}))
    found = pooling.write(tmp_path, members, dict(seeds=[0, 1], folds=0, leave_out=''))
    assert 'dose' in found['metrics'] and '<th>dose</th>' in (tmp_path / 'report.html').read_text()
    entry, order = found['arms']['all']['high']['dose'], np.argsort([f'case-p{i}' for i in range(n)])
    np.testing.assert_allclose(entry['rounds'], doses[:, 1, order].mean(1), atol=1e-6)
    assert entry['low'] < entry['value'] < entry['high'] and entry['n_cases'] == n
    difference, = found['differences']['all']
    np.testing.assert_allclose(difference['metrics']['dose']['value'], (doses[:, 1] - doses[:, 0]).mean(), atol=1e-6)


def test_labels_of_which_a_case_may_have_several(tmp_path):
    rng = np.random.default_rng(3)
    label = (rng.random((40, 3)) < 0.4).astype(int)
    logit = rng.normal(0, 1, (40, 3)) + label
    wrote(tmp_path / 'seed0', dict(arm=(label, logit)), [f'p{i // 2}-{i}' for i in range(40)], classes=False)
    found = pooling.pool(tmp_path, [training_runs.TrainingRun('seed0', 0, {})], dict(seeds=[0], folds=0, leave_out=''))
    assert found['metrics'] == ['auroc', 'auprc']
    entry = found['arms']['all']['arm']
    np.testing.assert_allclose(entry['auroc']['value'], roc_auc_score(label, logit, average='macro'), atol=1e-6)
    np.testing.assert_allclose(entry['auroc/y']['value'], roc_auc_score(label[:, 1], logit[:, 1]), atol=1e-6)
    assert entry['auroc']['sd'] is None and 'what another seed would change is not shown' in page(found, tmp_path)


def test_parts_are_joined_in_every_field():
    def part(ids, implausible, **groups):
        rows = np.array([[float(i), 1.0 - i] for i in ids])
        ids = np.array([f'c{i}' for i in ids])
        return schema.Predictions(ids, ids, {g: np.array([v] * len(ids)) for g, v in groups.items()}, ('x', 'y'), rows,
                                  rows, rows, rows, implausible=implausible, exclusive=True)
    known = part([3, 1], np.array([1.0, np.nan]), center='A', size='small')
    whole = rounds.join_parts({'a': known, 'b': part([2], np.array([0.0]), center='B')}, 'arm')
    assert list(whole.cases) == ['c1', 'c2', 'c3'] and list(whole.groups) == ['center'] and whole.exclusive
    assert list(whole.groups['center']) == ['A', 'B', 'A'] and whole.labels == ('x', 'y')
    np.testing.assert_array_equal(whole.implausible, [np.nan, 0, 1])
    np.testing.assert_array_equal(whole.logit[:, 0], [1, 2, 3])
    assert rounds.join_parts({'a': known, 'b': part([2], None)}, 'arm').implausible is None


def test_patients_tested_twice_and_other_cases_are_refused(tmp_path):
    rng = np.random.default_rng(4)
    label = np.eye(3)[np.arange(6) % 3]
    for i, start in enumerate((0, 5)):
        patients = [f'p{k}' for k in range(start, start + 6)]
        for name in (f'fold{i}', f'seed{i}'):
            wrote(tmp_path / name, dict(arm=(label, noisy(rng, label, 1.0))), patients)
    with pytest.raises(errors.BadData, match='patient of case case-p5 is tested by fold0 and by fold1'):
        pooling.pool(tmp_path, [training_runs.TrainingRun(f'fold{i}', 0, {}, str(i)) for i in range(2)],
                      dict(seeds=[], folds=2, leave_out=''))
    with pytest.raises(errors.BadData, match='seeds were tested on different cases'):
        pooling.pool(tmp_path, [training_runs.TrainingRun(f'seed{i}', i, {}) for i in range(2)],
                      dict(seeds=[0, 1], folds=0, leave_out=''))
    with pytest.raises(errors.BadData, match='no stage has test predictions in every member'):
        (tmp_path / 'seed0/predictions/arm_test.csv').unlink()
        pooling.pool(tmp_path, [training_runs.TrainingRun('seed0', 0, {})], dict(seeds=[0], folds=0, leave_out=''))


@given(st.lists(st.text(max_size=80), unique=True, max_size=6))
@settings(deadline=None, max_examples=200)
def test_folders_of_any_names_differ(values):
    names = training_runs.folder_names(values)
    assert list(names) == values and len({name.casefold() for name in names.values()}) == len(values)
    assert all('/' not in name and '_' not in name and len(name.encode()) < 255 for name in names.values())


def test_names_in_any_script_are_folders():
    assert training_runs.folder_names(['\u5317\u4eac', '\u4e0a\u6d77', 'A b', 'A+', 'A-', 'x']) == {
        '\u5317\u4eac': '\u5317\u4eac', '\u4e0a\u6d77': '\u4e0a\u6d77', 'A b': 'A-b', 'A+': 'A-', 'A-': 'A--2',
        'x': 'x'}
