"""What a network decides at its operating points on the test part, and the cases that it gets most wrong."""
import numpy as np
from scipy.special import betaincinv, log_expit

from jaxkd.evaluators.predictions.schema import Predictions
from jaxkd.report.markup import DASH, Html, details, join, number, sources, table, tag
from jaxkd.report.run_folder import Run

POINTS = {'youden': "largest Youden's index", 'sensitivity_95': 'sensitivity 0.95',
          'specificity_95': 'specificity 0.95'}
RATES = ('sensitivity', 'specificity', 'positive predictive value', 'negative predictive value')
WORST = 10  # cases


def operating_points(run: Run) -> Html:
    """Rates on the test part at the thresholds that were chosen on the validation part; the first point is unfolded."""
    rows: dict[str, list[list]] = {point: [] for point in POINTS}
    for s, p in run.predictions.items():
        fitted = (run.stages[s].get('decision') or {}).get('labels', {})
        for label in (label for label in p.labels if label in fitted):
            for point, values in fitted[label]['points'].items():
                k, n = counts(p, label, values['threshold'])
                low, high = exact(k, n, run.level)
                rows.setdefault(point, []).append([label, s, number(values['threshold']),
                                                   *(_rate(*of) for of in zip(k, n, low, high))])
    note = ('A label is positive where its logit reaches the threshold, which was chosen on the validation part. '
            f'{run.percent} exact intervals (Clopper and Pearson), which take cases as independent; below them the '
            'counts. Predictive values hold at the prevalence of the test part alone.')
    shown = {point: _by_label(of, note) for point, of in rows.items() if of}
    if not shown:
        return Html('')
    first, *others = shown
    return join([tag('h3', POINTS.get(first, first)), shown[first],
                 *(details(POINTS.get(point, point), shown[point]) for point in others), sources(run.tables())])


def _by_label(rows, note):
    rows = sorted(rows, key=lambda row: row[0])
    shown = [['' if i and rows[i - 1][0] == row[0] else row[0], *row[1:]] for i, row in enumerate(rows)]
    return table(['label', 'stage', 'threshold', *RATES], shown, note, firsts=2, dense=True)


def counts(p: Predictions, label: str, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """(k, n) int [4] of RATES: k of n cases with a known label are right."""
    c = p.labels.index(label)
    known = p.weight[:, c] > 0
    truth, called = p.label[known, c] == 1, p.logit[known, c] >= threshold
    hits, rests = int((truth & called).sum()), int((~truth & ~called).sum())
    k = np.array([hits, rests, hits, rests])
    return k, np.array([truth.sum(), (~truth).sum(), called.sum(), (~called).sum()], int)


def exact(k: np.ndarray, n: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) [m]: exact intervals of k of n (Clopper and Pearson, 1934) [published], 0 to 1 without any case."""
    tail = (1 - level) / 2
    low = np.where(k > 0, betaincinv(np.maximum(k, 1), n - k + 1, tail), 0.0)
    return low, np.where(k < n, betaincinv(k + 1, np.maximum(n - k, 1), 1 - tail), 1.0)


def worst(run: Run) -> Html:
    """The test cases with the largest loss, or the smallest Dice, of the last stage; beside it, the other stages."""
    if not run.predictions:
        return Html('')
    stage, p = list(run.predictions.items())[-1]
    rows = _of_scans(run, stage, p) if p.segmented else _of_classes(run, p) if p.exclusive else _of_labels(run, p)
    others = [s for s in run.predictions if s != stage]
    head = (['scan', f'Dice of {stage}', *others] if p.segmented else
            ['case', 'label', 'true', f'probability of {stage}', *others])
    note = (f'The {len(rows)} test {"scans with the smallest Dice" if p.segmented else "cases that are most wrong"} of '
            f'{stage}, with what the other stages make of them. They are an invitation to look at pictures and labels, '
            'not a sample.')
    return table(head, rows, note)


def _of_labels(run, p):
    wrong = -log_expit(np.where(p.label == 1, p.logit, -p.logit)) * (p.weight > 0)
    order = np.argsort(-wrong, axis=None, kind='stable')[:WORST]
    return [_row(run, p, i, c, p.labels[c], 'yes' if p.label[i, c] == 1 else 'no', p.labels[c])
            for i, c in zip(*np.unravel_index(order, wrong.shape)) if wrong[i, c] > np.log(2)]


def _of_classes(run, p):
    true = p.label.argmax(1)
    order = [i for i in np.argsort(p.probability[np.arange(len(true)), true], kind='stable')[:WORST]
             if p.probability[i].argmax() != true[i]]
    return [_row(run, p, i, int(p.probability[i].argmax()), p.labels[int(p.probability[i].argmax())],
                 p.labels[true[i]], p.labels[int(p.probability[i].argmax())]) for i in order]


def _row(run, p, i, c, label, truth, column):
    found = [number(p.probability[i, c])]
    for other in (q for q in run.predictions.values() if q is not p):
        at = np.flatnonzero((other.cases == p.cases[i]) & (column in other.labels))
        found.append(number(other.probability[at[0], other.labels.index(column)]) if len(at) else DASH)
    return [run.shown(p.cases[i]), label, truth, *found]


def _of_scans(run, stage, p):
    dice = {s: dict(zip(q.cases, _mean_dice(q))) for s, q in run.predictions.items()}
    others = [s for s in run.predictions if s != stage]
    known = {case: value for case, value in dice[stage].items() if np.isfinite(value)}
    return [[run.shown(case), number(known[case]), *(number(dice[s].get(case)) for s in others)]
            for case in sorted(known, key=lambda case: known[case])[:WORST]]


def _mean_dice(p):
    """Of each scan over the classes that count, nan where none does."""
    values = np.array([v for m, v in p.measures.items() if m.partition('/')[0] == 'dice']).reshape(-1, len(p.cases))
    counted = np.isfinite(values)
    return np.divide(np.where(counted, values, 0).sum(0), counted.sum(0), out=np.full(len(p.cases), np.nan),
                     where=counted.any(0))


def _rate(k, n, low, high):
    if not n:
        return DASH
    return join([number(k / n), tag('small', f'({number(low)} to {number(high)})'), tag('small', f'{k} of {n}')])
