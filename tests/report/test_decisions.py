"""Decisions at operating points, and the cases that a network gets most wrong."""
import numpy as np
import pytest

from jaxkd.evaluators.predictions.schema import Predictions
from jaxkd.metrics import decision
from jaxkd.report import decisions, run_folder
from jaxkd.runtime import files
from tests.report import test_segmentation
from tests.report.test_report import FULL, LABELS, Page, change, make, make_volumes


def predictions(logit, label, weight=None):
    logit, label = np.array(logit, float)[:, None], np.array(label, float)[:, None]
    weight = np.ones_like(label) if weight is None else np.array(weight, float)[:, None]
    names = np.array([f'c{i}' for i in range(len(logit))])
    return Predictions(names, names, {}, ('a',), label, weight, logit, 1 / (1 + np.exp(-logit)))


def test_counts_worked():
    p = predictions([2, 1, 0.5, 0, -1, 9], [1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 0])
    k, n = decisions.counts(p, 'a', 0.5)  # at the threshold is positive; the last case does not count
    assert k.tolist() == [2, 1, 2, 1] and n.tolist() == [3, 2, 3, 2]
    k, n = decisions.counts(p, 'a', 10.0)
    assert k.tolist() == [0, 2, 0, 2] and n.tolist() == [3, 2, 0, 5], 'nobody is called positive'


def test_exact_intervals_are_those_of_metrics():
    k, n = np.array([0, 3, 10, 7, 0]), np.array([10, 10, 10, 200, 0])
    low, high = decisions.exact(k, n, 0.9)
    for i in range(4):
        assert (low[i], high[i]) == pytest.approx(decision.clopper_pearson(k[i], n[i], 0.9))
    assert (low[4], high[4]) == (0, 1)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = make(tmp_path_factory.mktemp('decided'), FULL)
    point = dict(threshold=0.25, sensitivity=0.9, specificity=0.8)
    for s in ('alone', 'student'):
        change(folder, 'summary.json', lambda summary, s=s: summary['stages'][s].update(decision=dict(
            kind='multilabel', cases=10, labels={label: dict(points={'youden': point, 'specificity_95': point})
                                                 for label in LABELS})))
    return run_folder.read(folder)


def test_the_table_holds_the_rates_of_the_test_part(run):
    page = Page(decisions.operating_points(run))
    p = run.predictions['student']
    c = p.labels.index(LABELS[0])
    positive = p.label[:, c] == 1
    counted = p.weight[:, c] > 0
    hits, n = int((positive & counted & (p.logit[:, c] >= 0.25)).sum()), int((positive & counted).sum())
    assert f'{hits / n:.3f}' in page.text and f'{hits} of {n}' in page.text and page.wrong == []
    assert page.text.count('largest Youden') == 1 and 'sensitivity 0.95' not in page.text, 'only what was fitted'
    assert 'reader' not in page.text.replace('reader_test.csv', ''), 'it has no operating points'


def test_without_operating_points_there_is_no_section(tmp_path):
    assert decisions.operating_points(run_folder.read(make(tmp_path, FULL))) == ''


def test_the_worst_cases_are_the_surest_errors(run):
    p = run.predictions['student']
    wrong = np.where(p.label == 1, -p.logit, p.logit) * (p.weight > 0)
    i, c = np.unravel_index(wrong.argmax(), wrong.shape)
    page = Page(decisions.worst(run))
    first = page.text.partition(f'probability of student{"".join(s for s in run.predictions if s != "student")}')[2]
    assert first.startswith(f'{p.cases[i]}{p.labels[c]}{"yes" if p.label[i, c] else "no"}{p.probability[i, c]:.3f}')
    other = run.predictions['alone']
    assert f'{other.probability[list(other.cases).index(p.cases[i]), c]:.3f}' in first[:200]


def test_the_worst_of_classes_and_of_scans(tmp_path):
    classes = run_folder.read(make_volumes(tmp_path / 'classes', shown=()))
    p = classes.predictions['cpkd']
    right = p.logit.argmax(1) == p.label.argmax(1)
    text = Page(decisions.worst(classes)).text
    assert text.count('benign') + text.count('low grade') > 5
    assert not any(f'{case}benign' in text for case in p.cases[right & (p.label.argmax(1) == 0)])
    scans = run_folder.read(test_segmentation.make(tmp_path / 'scans', n=12))
    p = scans.predictions['sikd']
    dice = np.nanmean([v for m, v in p.measures.items() if m.startswith('dice/')], 0)
    text = Page(decisions.worst(scans)).text
    order = [text.index(f'{p.cases[i]}{dice[i]:.3f}') for i in np.argsort(dice)[:10]]
    assert order == sorted(order)


def test_a_case_without_the_class_is_no_worst_case(tmp_path):
    folder = test_segmentation.make(tmp_path, n=12)
    path = folder / 'predictions' / 'sikd_test.csv'
    head, *rows = [line.split(',') for line in path.read_text().splitlines()]
    dice = [i for i, name in enumerate(head) if name.startswith('measure/dice')]
    rows[0] = ['nan' if i in dice else cell for i, cell in enumerate(rows[0])]
    files.write(path, ''.join(','.join(row) + '\n' for row in [head, *rows]))
    assert rows[0][0] not in Page(decisions.worst(run_folder.read(folder))).text


