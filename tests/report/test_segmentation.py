"""The report of made-up segmentation runs: its numbers, on the own and on other data, its pictures, and what it leaves
out."""
import functools
import json
import re

import numpy as np
import pytest

from jaxkd import errors
from jaxkd.evaluators.predictions import schema
from jaxkd.methods import cpmn, sikd
from jaxkd.metrics import bootstrap, classification, segmentation
from jaxkd.multirun import pooling, training_runs
from jaxkd.multirun.html_page import page as repeated_page
from jaxkd.report import comparison, figures, html_page, pictures, run_folder, statistics, tables, verdict
from jaxkd.report import segmentation as segmentation_tables
from jaxkd.runtime import files
from tests.report.facts import loss
from tests.report.test_report import Page

HOSTILE = '<script>alert("1")</script>&\'$x'
LABELS = ('background', 'RV', f'LV {HOSTILE}')
SCANS, SIZE, RESAMPLES = 40, 48, 60


def scan(i, error, rng, labels=LABELS, ill=True):
    """(image uint8, truth, predicted) [2,H,W]: a disc for each class, the predicted one misplaced by `error` pixels."""
    z, y, x = np.mgrid[:2, :SIZE, :SIZE]
    truth, predicted = np.zeros((2, 2, SIZE, SIZE), np.uint8)
    for c in range(1, len(labels) if ill else 1):
        if (i % 8, c) == (3, 1):
            continue  # every eighth scan lacks the first class
        cy, cx, r = SIZE / 2, SIZE * c / len(labels), 5 + i % 3
        truth[np.hypot(y - cy, x - cx) < r] = c
        predicted[np.hypot(y - cy - rng.normal(0, error), x - cx - rng.normal(0, error)) < r] = c
    if i % 16 == 3:
        predicted[:, :4, :4] = 1  # a false alarm where there is none
    image = (60 + 50 * truth + rng.integers(0, 40, truth.shape)).astype(np.uint8)
    return image, truth, predicted


def predicted_scans(rows):
    """Predictions of rows {column: value}."""
    columns = {k: np.array([r[k] for r in rows]) for k in rows[0]}
    labels = tuple(k.removeprefix('logit/') for k in columns if k.startswith('logit/'))
    return schema.Predictions(columns['case'], columns['patient'], {k: columns[k] for k in ('phase', 'group')}, labels,
                              *(np.array([columns[f'{k}/{name}'] for name in labels], float).T.reshape(len(rows), -1)
                                for k in schema.BY_LABEL),
                              {k.removeprefix('measure/'): v for k, v in columns.items() if k.startswith('measure/')},
                              volume_ml=columns.get('volume_ml'))


@functools.cache
def segmented(error, seed, labels=LABELS, classify=False, patients='p', n=SCANS, spacing=(5, 2, 2)):
    """What the evaluator gives for a network that errs so much -> (test table, rows, arrays)."""
    rng, rows, kept = np.random.default_rng(seed), [], []
    for i in range(n):
        ill = not classify or i % 2 == 0
        image, truth, predicted = scan(i, error, rng, labels, ill)
        row = dict(case=f'{patients}{i // 2}_f{i % 2}' + (HOSTILE if i % 2 == 0 else ''), patient=f'{patients}{i // 2}',
                   phase=('ED', 'ES')[i % 2], group=('DCM', 'NOR')[i // 2 % 2])
        found = segmentation.measure(predicted, truth, labels, spacing)
        row |= {f'measure/{k}': v for k, v in found.items()}
        if classify:
            z = (2 if ill else -2) + rng.normal(0, 1 + error)
            row |= {'measure/sensitivity': float(z > 0) if ill else np.nan,
                    'measure/specificity': np.nan if ill else float(z <= 0), 'label/PE': int(ill), 'weight/PE': 1,
                    'logit/PE': z, 'probability/PE': 1 / (1 + np.exp(-z)), 'volume_ml': 0.0}
        rows.append(row)
        dice = np.array([v for k, v in found.items() if k.startswith('dice/')])
        if not np.isnan(dice).all():
            kept.append((np.nanmean(dice), row['case'], image[0], truth[0], predicted[0]))
    names = [k for k in rows[0] if k.startswith('measure/')]
    columns = {k.removeprefix('measure/'): np.array([r[k] for r in rows]) for k in names}
    who = [r['patient'] for r in rows]
    table = segmentation.table(columns, who, RESAMPLES, seed=3)
    if classify:
        logit, label = (np.array([[r[f'{k}/PE']] for r in rows], float) for k in ('logit', 'label'))
        table |= classification.table(logit, label, np.ones_like(label), who, ('PE',), RESAMPLES, seed=3)
        table |= {'t_cls': dict(value=0.5), 'v_min': dict(value=1.25), 'youden': dict(value=0.9)}
    kept.sort(key=lambda k: k[0])
    ranks = {0: 'worst', len(kept) // 2: 'middle', len(kept) - 1: 'best'}
    dice, case, image, truth, predicted = (np.array([kept[i][k] for i in ranks]) for k in range(5))
    arrays = dict(image=image, truth=truth, predicted=predicted, case=case, dice=dice.astype(np.float32),
                  rank=np.array(list(ranks.values())), labels=np.array(labels))
    stack = np.stack([image, truth, predicted], 1)[:2, :, None].repeat(5, 2).astype(np.uint8)
    stack[:, 1:, 0] = 0  # nothing in the first slice
    arrays |= dict(stack=stack, stack_row=np.arange(len(stack), dtype=np.int32))
    heat = 'cam' if classify else 'energy'
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    return table, predicted_scans(rows), arrays | {heat: np.float32(np.exp(-4 * np.hypot(y - 0.5,
        x - rng.random((len(case), 1, 1)))))}


HEART = dict(  # stage: (inputs, model, method, teachers, networks, pixels of error at home, elsewhere)
    teacher=(['image', 'label'], 'bare', dict(name='segmentation'), (), {}, 0.2, 0.2),
    unet=(['image'], 'unet', dict(sikd.DEFAULTS, name='sikd', weight=0.0), (), {}, 2.0, 3.0),
    sikd=(['image'], 'unet', dict(sikd.DEFAULTS, name='sikd'), ('teacher',), {}, 1.0, 1.2))
LUNG = dict(nct=(['nct'], 'unet', dict(cpmn.DEFAULTS, name='cpmn'), (), {}, 2.0, 3.0),
            cpmn=(['nct'], 'unet', dict(cpmn.DEFAULTS, name='cpmn'), (), dict(ctpa=dict(inputs=['ctpa'])), 1.0, 1.5))


def make(folder, arms=HEART, labels=LABELS, classify=False, elsewhere=True, seed=0, n=SCANS, test=slice(None), **how):
    """A working folder. test: which scans of its own data it tests."""
    conf, summary, lines = dict(stages=list(arms), bootstrap=RESAMPLES), {}, []
    for i, (s, (inputs, model, method, teachers, networks, home, away)) in enumerate(arms.items()):
        metrics = {}
        evals = dict(segmentation=dict(name='segmentation', data='', policy='strict', level=0.95))
        evals |= dict(shifted=dict(evals['segmentation'], data='shifted')) if elsewhere else {}
        for e in evals:
            table, rows, arrays = segmented(home if e == 'segmentation' else away, 10 * seed + i, labels, classify,
                                            'p' if e == 'segmentation' else 'q', n, **how)
            rows = rows.take(np.arange(n)[test]) if e == 'segmentation' else rows
            metrics |= {f'{e}/{k}': v for k, v in table.items()}
            evaluator = '' if e == 'segmentation' else e
            schema.write_csv(schema.file_path(folder, s, evaluator=evaluator), rows)
            files.write_npz(schema.file_path(folder, s, 'segments', evaluator, '.npz'), arrays)
        conf[s] = dict(inputs=inputs, model=dict(name=model), data={}, method=method, networks=networks, batch=4,
                       evals=evals, teachers={t: dict(stage=t, path='') for t in teachers})
        summary[s] = dict(
            finished=True, select='segmentation/dice', mode='max', steps=60, parameters=12345, seconds=61.0,
            inputs=inputs, model=model,
            method=method, **loss(method, inputs, {t: arms[t][0] for t in teachers},
                                  {n: v['inputs'] for n, v in networks.items()}),
            teachers={t: dict(folder=f'gone/{t}', step=40, digest='0') for t in teachers},
            cases=dict(train=100, val=10, test=n), patients=dict(train=50, val=5, test=n // 2),
            best=dict(step=40, score=0.7), last=dict(step=60, score=0.6), test=dict(best=metrics, last=metrics),
            source=dict(name='jaxkd.phantoms.heart', note='a phantom, not patients', labels=list(labels), skipped=()))
        lines += [dict(stage=s, step=20, ce=0.4, loss=0.4, examples_per_s=5.0, data_wait=0.1),
                  {'stage': s, 'step': 60, 'segmentation/dice': 0.6}]
    files.write_json(folder / 'config.json', conf)
    files.write_json(folder / 'summary.json', dict(seed=3, order=list(arms), stages=summary))
    files.write(folder / 'metrics.jsonl', ''.join(json.dumps(line) + '\n' for line in lines))
    return folder


@pytest.fixture(scope='module')
def heart(tmp_path_factory):
    return make(tmp_path_factory.mktemp('heart'))


@pytest.fixture(scope='module')
def heart_page(heart):
    return html_page.write(heart).read_text()


@pytest.fixture(scope='module')
def lung(tmp_path_factory):
    return make(tmp_path_factory.mktemp('lung'), LUNG, ('background', 'embolus'), classify=True)


def in_order(text, parts):
    at = 0
    for part in parts:
        assert part in text[at:], f'{part!r} does not follow'
        at = text.index(part, at) + len(part)


def test_page_stands_alone_and_has_its_parts(heart_page):
    page = Page(heart_page)
    assert page.wrong == [] and not page.tags & {'link', 'iframe', 'img', 'object'} and len(heart_page) < 1_000_000
    assert {link for link in page.links if not link.startswith(('#', 'data:image/'))} == {
        'metrics.jsonl', *(f'predictions/{s}_test.csv' for s in ('teacher', 'unet', 'sikd'))}
    in_order(page.text,
             ['Higher Dice than without a teacher, in this run', 'the Dice, mean over 2 classes, is',
              'On the other data of shifted (20 patients)', 'difference in Dice', 'Dice, best step',
              'Dice of RV, best step', 'HD95 in mm, best step', 'NSD, best step', 'Dice, last step', 'test scans',
              'Segmentation', 'Empty masks',
              'Other data', 'shifted', 'in-domain', 'Scans', 'Predictions', 'Feature energy', 'Method',
              'Paired differences', 'phase = ED', 'Learning', 'Subgroups', 'group = DCM', 'smallest Dice of sikd',
              'Cases', 'Funding and interests', 'To repeat it'])
    assert f'LV {HOSTILE}' in page.text and f'_f0{HOSTILE}' in page.text
    for absent in ('ROC curves', 'Calibration', 'Confusion', 'Localisation', 'There are no test predictions',
                   'volume_ml', 'nan', 'AUROC', 'HD95 in voxels, best', 'ECE'):
        assert absent not in page.text, absent


def test_numbers_are_those_of_the_summary(heart, heart_page):
    best = json.loads((heart / 'summary.json').read_text())['stages']['sikd']['test']['best']
    for key in ('segmentation/dice', 'segmentation/dice/RV', 'segmentation/hd95_mm', 'shifted/dice', 'shifted/dice/RV',
                'segmentation/volume_error_ml/RV'):
        e = best[key]
        shown = f'{e["value"]:.3f}<small>({e["low"]:.3f} to {e["high"]:.3f})</small>'.replace('-', '\u2212')
        assert shown in heart_page, key
    e = best['segmentation/dice/RV']
    assert f'<small>n = {e["n_cases"]}</small>' in heart_page
    assert e['n_empty_truth'] == 3 and e['n_empty_both'] == 2, 'the made-up scans without an RV'
    assert f'<th>RV</th><th>sikd</th><td>3</td><td>0</td><td>2</td>' in heart_page  # noqa: F541
    assert 'a distance is the diagonal' in heart_page


def with_overlap(run, first=True, alone=False):
    """The Run with an evaluator `overlap` from elsewhere that measures a `dice` too, before or after segmentation."""
    for s, entry in run.summary['stages'].items():
        run.config[s]['evals']['overlap'] = dict(name='mine.overlap', policy='legacy')
        measured = {'overlap/dice': dict(value=0.123), 'overlap/auroc': dict(value=0.456)}
        for which, tests in entry['test'].items():
            tests = {} if alone else tests
            entry['test'][which] = measured | tests if first else tests | measured
    return run


@pytest.mark.parametrize('first', [True, False])
def test_a_metric_of_an_evaluator_from_elsewhere_is_not_taken_for_that_of_segmentation(heart, first):
    run, before = with_overlap(run_folder.read(heart), first), run_folder.read(heart)
    assert run.table('sikd') == before.table('sikd') and run.evaluator('sikd', 'segmentation') == 'segmentation'
    others = Page(tables.others(run)).text
    assert 'overlap/dice' in others and '0.123' in others and 'overlap/auroc' in others
    assert 'segmentation/dice' not in others and tables.others(before) == ''
    for part in (segmentation_tables.by_class, tables.stages):
        assert part(run) == part(before)
    text = Page(segmentation_tables.empty(run)).text
    assert 'Here every class is in every scan' not in text and 'only predicted' in text and 'legacy' not in text


def test_nothing_is_said_of_empty_masks_where_no_class_was_measured(heart):
    run = with_overlap(run_folder.read(heart), alone=True)
    assert run.table('sikd') == {} and segmentation_tables.empty(run) == ''
    assert 'overlap/dice' in Page(tables.others(run)).text and 'Here every class' not in html_page.page(run)


def test_the_plugin_of_an_evaluator_counts_and_not_its_key(heart):
    run = run_folder.read(heart)
    for s, entry in run.summary['stages'].items():
        run.config[s]['evals']['organs'] = run.config[s]['evals'].pop('segmentation')
        for which, tests in entry['test'].items():
            entry['test'][which] = {k.replace('segmentation/', 'organs/'): v for k, v in tests.items()}
    assert run.evaluator('sikd', 'segmentation') == 'organs'
    assert run.table('sikd') == run_folder.read(heart).table('sikd')


def test_measures_are_read_as_they_were_written(heart):
    run = run_folder.read(heart)
    p = run.predictions['sikd']
    assert p.labels == () and p.label.shape == p.logit.shape == (SCANS, 0) and set(p.groups) == {'phase', 'group'}
    assert run.table('sikd') == run.table_of('sikd', 'segmentation') != run.table_of('sikd', 'shifted')
    found = segmentation.statistics(p.measures)(np.ones((1, SCANS)))
    for m in ('dice', 'dice/RV', 'hd95_mm', 'nsd', 'volume_error'):
        np.testing.assert_allclose(found[m][0], run.table('sikd')[m]['value'], rtol=1e-5)
    np.testing.assert_array_equal(p.measures['abs_volume_error_ml/RV'], np.abs(p.measures['volume_error_ml/RV']))
    some = p.take(np.array([5, 1]))
    assert list(some.cases) == ['p2_f1', 'p0_f1'] and len(some.measures['dice/RV']) == 2
    assert set(run.external) == {'shifted'} and set(run.external['shifted']) == set(HEART)


def test_paired_differences_are_of_the_same_scans(heart):
    run = run_folder.read(heart)
    c = next(c for c in comparison.comparisons(run) if (c.a, c.b) == ('sikd', 'unet'))
    for of, predictions in ((c.metrics, run.predictions), (c.external['shifted'], run.external['shifted'])):
        a, b = (predictions[s] for s in ('sikd', 'unet'))
        gaps = [a.measures[f'dice/{k}'] - b.measures[f'dice/{k}'] for k in LABELS[1:]]
        np.testing.assert_allclose(of['dice']['value'], np.mean([np.nanmean(g) for g in gaps]))
        draws = np.concatenate([np.mean([bootstrap.mean(g)(w) for g in gaps], 0) for w in bootstrap.resamples(
            a.patients, RESAMPLES, 3)])
        np.testing.assert_allclose([of['dice']['low'], of['dice']['high']], np.quantile(draws, (0.025, 0.975)))
        assert (of['dice']['n_patients'] == SCANS // 2 and comparison.side(of['dice']) == 1
                and comparison.side(of['hd95_mm']) == -1)
    ed = run.predictions['sikd'].groups['phase'] == 'ED'
    gaps = [(run.predictions['sikd'].measures[f'dice/{k}'] - run.predictions['unet'].measures[f'dice/{k}'])[ed]
            for k in LABELS[1:]]
    np.testing.assert_allclose(c.groups['phase', 'ED']['dice']['value'], np.mean([np.nanmean(g) for g in gaps]))
    page = Page(tables.differences(run, [c])).text
    assert ('on shifted' in page and 'volume error in ml' in page and 'volume bias' not in page
            and 'Differences in Dice by class' in page)
    e = c.metrics['dice']
    text = Page(verdict.paragraphs(run, [c])).text
    assert f'sikd minus unet is +{e["value"]:.3f} (+{e["low"]:.3f}'.replace('(+', '(') in text
    e = c.external['shifted']['dice']
    assert f'sikd minus unet is +{e["value"]:.3f} ({e["low"]:.3f} to {e["high"]:.3f}) in Dice' in text
    assert re.search(r'HD95 in mm \u2212[0-9.]+ \([^)]*\) \(better\)',
                     text) and 'no arm with a shuffled teacher' in text


def test_a_scan_that_one_arm_leaves_out_counts_for_neither():
    def of(dice):
        ids = np.array([f'c{i}' for i in range(len(dice))])
        return schema.Predictions(ids, ids, {}, (), *np.zeros((4, len(dice), 0)),
                                  measures={'dice/x': np.array(dice), 'own/x': np.ones(4)})
    a, b = statistics.alike([of([0.9, np.nan, 0.5, 0.7]), dataclass_without(of([0.8, 0.0, 0.5, np.nan]), 'own/x')])
    np.testing.assert_array_equal(a.measures['dice/x'], [0.9, np.nan, 0.5, np.nan])
    np.testing.assert_array_equal(b.measures['dice/x'], [0.8, np.nan, 0.5, np.nan])
    assert list(a.measures) == ['dice/x'] and list(statistics.counted(a, 'dice')) == [True, False, True, False]


def dataclass_without(p, name):
    p.measures.pop(name)
    return p


def test_other_data_beside_the_own(heart, tmp_path):
    run = run_folder.read(heart)
    own, other = run.predictions['unet'], run.external['shifted']['unet']
    gap = segmentation_tables._gap(run, own, other)
    value = lambda p: np.mean([np.nanmean(p.measures[f'dice/{k}']) for k in LABELS[1:]])  # noqa: E731
    np.testing.assert_allclose(gap['dice']['value'], value(other) - value(own))
    assert gap['dice']['low'] < gap['dice']['value'] < gap['dice']['high']
    same = segmentation_tables._gap(run, own, own)
    assert same['dice']['low'] == same['dice']['high'] == 0, 'the same patients are drawn on both sides'
    few = segmentation_tables._gap(run, own, other.take(np.array([0, 1])))
    assert np.isnan(few['dice']['low']), 'one patient has no interval'
    text = Page(segmentation_tables.external(run)).text
    in_order(text, ['shifted', 'shifted \u2212 in-domain', 'unet', 'Dice of RV', 'HD95', 'NSD', 'Further measures',
                    'IoU'])
    make(tmp_path, elsewhere=False)
    assert run_folder.read(tmp_path).external == {} and segmentation_tables.external(run_folder.read(tmp_path)) == ''


def test_other_data_is_set_beside_the_same_plugin_alone(heart):
    run = run_folder.read(heart)
    for s in run.stages:
        run.config[s]['evals']['shifted']['name'] = 'mine.overlap'
    dice = run.table_of('unet', 'shifted')['dice']['value']
    row = f'<th>Dice</th><td>\u2013</td><td>{dice:.3f}'
    text = segmentation_tables.external(run)
    assert row in text and f'<td>{run.table("unet")["dice"]["value"]:.3f}' not in text
    text = segmentation_tables.external(with_overlap(run))
    assert f'<th>Dice</th><td>0.123</td><td>{dice:.3f}' in text, 'the evaluator of that plug-in on the run\'s own data'
    assert text.count('<td>\u2013</td></tr>') == text.count('</td></tr>'), 'predictions are of another evaluator'


@pytest.mark.parametrize('error, headline, side',
                         [(4.0, 'Negative result in Dice', -1), (2.0, 'Null result in Dice', 0)])
def test_verdict_of_a_segmentation_follows_the_interval(tmp_path, error, headline, side):
    arms = {s: v if s != 'sikd' else (*v[:5], error, 1.2) for s, v in HEART.items()}
    run = run_folder.read(make(tmp_path, arms))
    found = comparison.comparisons(run)
    assert comparison.side(found[0].metrics['dice']) == side
    text = Page(verdict.paragraphs(run, found)).text
    assert headline in text and 'on the other data of shifted' in text.lower()


def test_who_teaches_whom(heart, lung, tmp_path):
    kinds = {s: comparison.kind(run_folder.read(heart), s) for s in HEART}
    assert kinds == dict(teacher='no_teacher', unet='no_teacher', sikd='privileged')
    run = run_folder.read(lung)
    assert {s: comparison.kind(run, s) for s in LUNG} == dict(nct='no_teacher', cpmn='privileged')

    def kind(**options):
        arms = dict(cpmn=(['nct'], 'unet', dict(cpmn.DEFAULTS, name='cpmn', **options), (), LUNG['cpmn'][4], 2, 2))
        return comparison.kind(run_folder.read(make(tmp_path, arms, ('background', 'embolus'), elsewhere=False, n=4)),
                               'cpmn')
    assert kind(ifa_weight=0.0) == 'no_teacher', 'each pathway learns from labels alone'
    assert kind(ifa_weight=0.0, mutual=0.5) == 'privileged'


def test_the_rule_is_asked_on_other_data_too(tmp_path):
    twin = (['image'], 'unet', dict(sikd.DEFAULTS, name='sikd'), ('unet',), {}, 2.0, 1.0)
    mixed = (['image'], 'unet', dict(sikd.DEFAULTS, name='sikd', shuffle=True), ('teacher',), {}, 2.0, 3.0)
    run = run_folder.read(make(tmp_path, dict(HEART, twin=twin, mixed=mixed)))
    text = Page(verdict.paragraphs(run, comparison.comparisons(run))).text
    assert 'In Dice this run meets the rule' in text
    assert ('On the other data of shifted the rule is not met: the interval of the difference to twin does not lie '
            'above 0') in text


def test_patients_and_scans_in_one_table(lung):
    run = run_folder.read(lung)
    text = Page(segmentation_tables.patients(run)).text
    assert 'sensitivity' in text and 'AUROC' in text and 'n = 20' in text and 'volume in ml 1.250' in text
    p = run.predictions['cpmn']
    assert p.labels == ('PE',) and set(p.groups) == {'phase', 'group'}
    assert f'{np.nanmean(p.measures["sensitivity"]):.3f}' in text
    found = statistics.table(p, **run.bootstrap)
    np.testing.assert_allclose(found['auroc']['value'], run.table('cpmn')['auroc']['value'])
    page = Page(html_page.page(run))
    assert page.wrong == []
    in_order(page.text, ['sensitivity, best step', 'specificity, best step', 'AUROC, best step', 'embolus',
                         'ROC curves', 'Calibration'])
    assert 'mean of classes' not in page.text and 'Class activation' in page.text and 'Feature energy' not in page.text


def test_stages_with_and_without_a_class_head_are_compared_in_their_masks(lung, tmp_path):
    make(tmp_path, LUNG, ('background', 'embolus'), classify=True)
    path = tmp_path / 'predictions' / 'nct_test.csv'
    head, *rows = [line.split(',') for line in path.read_text().splitlines()]
    keep = [i for i, c in enumerate(head) if not c.endswith('/PE')]
    files.write(path, ''.join(','.join(row[i] for i in keep) + '\n' for row in (head, *rows)))
    c, = comparison.comparisons(run_folder.read(tmp_path))
    assert (c.metrics['dice'] == comparison.comparisons(run_folder.read(lung))[0].metrics['dice']
            and 'auroc' not in c.metrics)


def test_strips_hold_every_scan(heart):
    run = run_folder.read(heart)
    drawn = figures.scans(run)
    defined = sum(int(np.sum(~np.isnan(p.measures[f'dice/{k}']))) for of in (run.predictions, run.external['shifted'])
                  for p in of.values() for k in LABELS[1:])
    assert drawn.count('<circle') == defined and 'sikd, shifted' in drawn


def test_pictures_of_a_case_stand_side_by_side(heart, tmp_path):
    run = run_folder.read(heart)
    a = run.segments()
    cases = {str(c) for of in a.values() for c in of['case']}
    predictions, energy = pictures.segments(run)
    assert predictions.count('type="range"') >= 1 and 'data-slices="5"' in predictions and 'range' not in energy
    assert (f'color:{figures.COLOURS[0]}">\u25cf </span><span class="key">RV' in predictions
            and 'class="legend"' not in energy)
    for part in (predictions, energy):
        assert part.count('<svg class="tile large"') == len(cases) + sum(len(of['case']) for of in a.values())
    text = Page(predictions).text
    assert 'scanimageteacherunetsikd' in text and 'not among its examples' in text
    i = list(a['sikd']['rank']).index('worst')
    assert f'Dice {a["sikd"]["dice"][i]:.3f}, worst' in text
    assert pictures._box(np.pad(np.ones((60, 10), bool), 90)) == (slice(75, 165), slice(50, 140))
    make(tmp_path, n=6)
    for damage in (b'PK broken', None):
        path = tmp_path / 'predictions' / 'unet_segments.npz'
        arrays = {k: v for k, v in a['unet'].items()}
        files.write_npz(path, arrays | {'truth': arrays['truth'][:,:5]}) if damage is None else path.write_bytes(damage)
        with pytest.raises(errors.Damaged, match='unet_segments.npz'):
            pictures.segments(run_folder.read(tmp_path))


def test_colours_say_the_prediction_and_the_line_the_truth():
    image, truth, predicted = np.zeros((3, 168, 168), np.uint8)
    truth[40:80, 40:80], predicted[100:140, 100:140], truth[0, 0] = 1, 2, 255
    base = pictures._base(image)
    line, colours = pixels(pictures._outline(base, truth)), pixels(pictures._over(base, 'predicted', predicted)[0])
    assert (line[80, 80:160] == 255).all() and not line[120, 120].any() and not line[10, 10].any(), 'around nothing'
    colour = [int(figures.COLOURS[1][i:i + 2], 16) for i in (1, 3, 5)]
    assert colours[240, 240].tolist() == [*colour, 255] and not colours[10, 10, 3] and not colours[120, 120, 3]
    assert pixels(base.drawn).shape[:2] == (168, 168), 'as many pixels as were read'


def test_a_picture_stands_on_the_page_once(heart):
    content = html_page.page(run_folder.read(heart))
    drawn = re.findall('<image id="([^"]+)"', content)
    assert drawn and {*re.findall('<use href="#([^"]+)"', content)} <= {*drawn}


def test_slices_of_a_volume_stand_in_one_picture():
    stack = np.repeat(np.arange(0, 250, 50, dtype=np.uint8), 40 * 30).reshape(5, 40, 30)
    base = pictures._base(stack)
    sheet = pixels(base.drawn)
    assert sheet.shape[:2] == (200, 30) and [int(v) for v in sheet[20::40, 15, 0]] == [0, 50, 100, 150, 200]
    tile = pictures._tile(base, pictures._heat(base, stack))
    assert 'viewBox="0 80 30 40"' in tile and 'data-slices="5"' in tile, 'the middle one is seen'
    assert pictures._base(np.zeros((900, 600), np.uint8))[2:4] == (213, 320), 'large pictures are made smaller'


def pixels(svg):
    import base64
    import io

    from PIL import Image
    data = re.search('base64,([^"]+)"', svg)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert('RGBA')).astype(int)


@pytest.mark.parametrize('damage', ['x', ''])
def test_damaged_measures(tmp_path, damage):
    make(tmp_path, n=4)
    path = tmp_path / 'predictions' / 'unet_test.csv'
    head, row, *rest = path.read_text().splitlines()
    cells = row.split(',')
    cells[head.split(',').index('measure/dice/RV')] = damage
    files.write(path, '\n'.join([head, ','.join(cells), *rest]) + '\n')
    if damage:
        with pytest.raises(errors.Damaged, match='unet_test.csv'):
            run_folder.read(tmp_path).predictions  # noqa: B018
    else:
        assert np.isnan(run_folder.read(tmp_path).predictions['unet'].measures['dice/RV'][0])


def members_of(tmp_path, arms=HEART, seeds=3, **how):
    members = [training_runs.TrainingRun(f'seed{s}', s, {}) for s in range(seeds)]
    for m in members:
        make(tmp_path / m.name, {s: arms[s] for s in arms if s != 'teacher'}, seed=m.seed, **how)
    return pooling.write(tmp_path, members, dict(seeds=list(range(seeds)), folds=0, leave_out=''))


def test_seeds_of_a_segmentation_are_pooled(tmp_path):
    arms = {s: (*v[:3], (), {}, *v[5:]) for s, v in HEART.items()}
    found = members_of(tmp_path, arms)
    runs = [run_folder.read(tmp_path / f'seed{s}') for s in range(3)]
    for group, of in (('all', lambda r: r.predictions), ('shifted', lambda r: r.external['shifted'])):
        dice = {s: np.array([[of(r)[s].measures[f'dice/{k}'] for k in LABELS[1:]] for r in runs])
                for s in ('unet', 'sikd')}
        for s, d in dice.items():
            expected, entry = np.nanmean(d, 2).mean(1), found['arms'][group][s]['dice']
            np.testing.assert_allclose(entry['rounds'], expected)
            np.testing.assert_allclose([entry['value'], entry['sd']], [expected.mean(), expected.std(ddof=1)])
            assert entry['low'] < entry['value'] < entry['high'] and (entry['n_patients'], entry['n_cases']) == (20, 40)
            np.testing.assert_allclose(found['arms'][group][s]['dice/RV']['value'], np.nanmean(d[:, 0], 1).mean())
        d, = found['differences'][group]
        gaps = np.nanmean(dice['sikd'] - dice['unet'], 2).mean(1)
        np.testing.assert_allclose(d['metrics']['dice']['rounds'], gaps, atol=1e-9)
        assert (d['a'], d['b']) == ('sikd', 'unet')
        assert d['metrics']['dice']['low'] > 0 and d['metrics']['dice']['positive'] == 3
        assert d['metrics']['dice/RV']['n_cases'] < 40, 'scans without an RV count for neither'
    assert found['external'] == ['shifted'] and found['confusion'] == {}
    assert {'phase = ED', 'phase = ES', 'group = DCM', 'group = NOR'} < set(found['arms'])
    html = (tmp_path / 'report.html').read_text()
    page = Page(html)
    assert page.wrong == [] and 'Confusion' not in html and 'nan' not in page.text
    in_order(page.text,
             ['Arms', 'Dice', 'HD95 in mm', 'NSD', 'Further metrics', 'IoU', 'Classes', 'RV', 'Other data', 'shifted',
              'Groups', 'phase = ED', 'Paired differences', 'above 0 in 3 of 3 seeds', 'on shifted', 'Every training'])
    said = pooling.text(found)
    in_order(said, ['all, 20 test patients', 'Dice', 'HD95 in mm', 'sikd - unet', 'shifted, 20 test patients',
                    'sikd - unet'])
    assert json.loads((tmp_path / 'repeat.json').read_text(), parse_constant=lambda x: pytest.fail(x)) == found


def test_patients_are_pooled_beside_their_masks(tmp_path):
    found = members_of(tmp_path, LUNG, 2, labels=('background', 'embolus'), classify=True, elsewhere=False)
    p = run_folder.read(tmp_path / 'seed1').predictions['cpmn']
    entry = found['arms']['all']['cpmn']
    np.testing.assert_allclose(entry['sensitivity']['rounds'][1], np.nanmean(p.measures['sensitivity']))
    np.testing.assert_allclose(entry['auroc']['rounds'][1], classification.auroc(p.logit[:, 0], p.label[:, 0])[0])
    assert (entry['sensitivity']['n_patients'], entry['specificity']['n_cases'], entry['auroc']['n_cases']) == (20, 20,
                                                                                                                40)
    html = repeated_page(found, tmp_path)
    table = Page(html[html.index('<h2>Arms'):html.index('<h2>Classes')]).text
    in_order(table, ['Dice', 'HD95 in mm', 'NSD', 'sensitivity', 'specificity', 'AUROC', 'cpmn'])


@pytest.mark.parametrize('split', [True, False])
def test_folds_pool_their_own_parts_and_all_test_the_other_data(tmp_path, split):
    members = [training_runs.TrainingRun(f'fold{i}', 0, {}, str(i)) for i in range(2)]
    for i, m in enumerate(members):
        make(tmp_path / m.name, {'unet': HEART['unet'], 'sikd': (*HEART['sikd'][:3], (), {}, 1.0, 1.2)}, seed=i,
             test=slice(20 * i, 20 * i + 20))
        if split:  # the other data is divided like the own
            for path in (tmp_path / m.name / 'predictions').glob('*_shifted.csv'):
                head, *rows = path.read_text().splitlines()
                files.write(path, '\n'.join([head, *rows[20 * i:20 * i + 20]]) + '\n')
    found = pooling.write(tmp_path, members, dict(seeds=[], folds=2, leave_out=''))
    runs = [run_folder.read(tmp_path / m.name) for m in members]
    dice = np.concatenate([[r.predictions['unet'].measures[f'dice/{k}'] for k in LABELS[1:]] for r in runs], 1)
    entry = found['arms']['all']['unet']['dice']
    np.testing.assert_allclose(entry['value'], np.nanmean(dice, 1).mean())
    assert list(entry['folds']) == ['fold0', 'fold1'] and entry['n_cases'] == 40
    other = [np.array([r.external['shifted']['unet'].measures[f'dice/{k}'] for k in LABELS[1:]]) for r in runs]
    entry = found['arms']['shifted']['unet']['dice']
    expected = [np.nanmean(np.concatenate(other, 1), 1).mean()] if split else [np.nanmean(o, 1).mean() for o in other]
    np.testing.assert_allclose(entry['rounds'], expected)
    assert len(found['differences']['shifted']) == 1
    if not split:
        assert 'of 2 trainings' in (tmp_path / 'report.html').read_text()
