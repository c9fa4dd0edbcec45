"""Tables for cases with exactly one class: metrics by class, confusion, and differences by group."""
from collections.abc import Sequence

import numpy as np

from jaxkd.metrics import multiclass
from jaxkd.report import comparison, statistics
from jaxkd.report.markup import DASH, Html, cell, details, inline, join, name, number, table, tag
from jaxkd.report.run_folder import Run
from jaxkd.report.tables import pair
from jaxkd.report.verdict import reading

COLUMNS = {'sensitivity': 'sensitivity', 'specificity': 'specificity', 'precision': 'precision', 'f1': 'F1',
           'accuracy': 'one-vs-rest accuracy', 'auroc': 'AUROC'}
CONFUSION = 'Test cases, with the share of the true class. The diagonal, framed, is right.'


def by_class(run: Run) -> Html:
    """Metrics of every class in every stage."""
    tables = {s: run.table(s) for s in run.stages if run.exclusive(s)}
    rows = []
    for c in dict.fromkeys(c for t in tables.values() for c in statistics.classes(t, 'sensitivity')):
        by_stage = {s: {m: t.get(f'{m}/{c}', {}) for m in COLUMNS} for s,
                    t in tables.items() if f'sensitivity/{c}' in t}
        rows += [[c if i == 0 else '', s, entries['sensitivity'].get('n_positive', DASH), *map(cell, entries.values())]
                 for i, (s, entries) in enumerate(by_stage.items())]
    return table(['class', 'stage', 'cases', *COLUMNS.values()], rows, firsts=2, dense=True, caption=(
        'Test part at the best step, each class against all others; the predicted class is the one of the largest '
        'probability. One-vs-rest accuracy counts the many cases that are rightly not of the class, so it is higher '
        'than the accuracy of a stage and not to be compared with it.'))


def confusion(run: Run) -> Html:
    """A table of counts for every stage: rows are true, columns predicted."""
    matrices = [matrix(s, p.labels, multiclass.confusion(statistics.predicted(p), p.label.argmax(1), len(p.labels))[0])
                for s, p in run.predictions.items() if p.exclusive]
    return join([tag('div', *matrices), tag('p', CONFUSION, class_='dim')]) if matrices else Html('')


def matrix(stage: str, labels: Sequence[str], counts: Sequence[Sequence[float]] | np.ndarray) -> Html:
    """A confusion matrix [true, predicted] with shaded fractions of the true class and a framed diagonal."""
    rows = [tag('tr', tag('th', c), *(_shade(n, sum(row), i == j) for j, n in enumerate(row)))
            for i, (c, row) in enumerate(zip(labels, counts))]
    head = tag('tr', tag('th', 'true \\ predicted'), *(tag('th', c) for c in labels))
    return tag('div', tag('h3', stage), tag('table', tag('thead', head), tag('tbody', *rows)), class_='beside')


def _shade(n, total, diagonal):
    fraction = n / total if total else 0.0
    frame = ';outline:1px solid;outline-offset:-2px' if diagonal else ''
    return tag('td', f'{n:.0f}', tag('small', f'{100 * fraction:.0f} %' if total else DASH),
               style=f'background:rgba(59,130,196,{0.75 * fraction:.2f}){frame}')


def grouped(run: Run, comparisons: Sequence[comparison.Comparison]) -> Html:
    """Paired differences in every group of cases: of each arm minus the first; folded, of the other pairs."""
    firsts = {arms[0] for arms in comparison.arms(run)}
    metrics = statistics.main(dict.fromkeys(m for c in comparisons for t in c.groups.values() for m in t))

    def shown(pairs: Sequence[comparison.Comparison]) -> Html:
        rows = [[pair(c) if i == 0 else '', ' = '.join(group), f'{t[metrics[0]]["n_patients"]:,}',
                 *(cell(t.get(m), sign=True) for m in metrics), reading(t[metrics[0]])]
                for c in pairs for i, (group, t) in enumerate(c.groups.items())]
        return table(['difference', 'group', 'patients', *map(statistics.display_name, metrics),
                      *(f'interval of {statistics.display_name(m)}' for m in metrics[:1])], rows, firsts=2, dense=True,
                     caption=(f'The same test cases and the same resampled patients for both; {run.percent} intervals, '
                              f'not corrected for their number. Groups of {statistics.FEWEST} patients or more.'))
    others = shown([c for c in comparisons if c.b not in firsts])
    return join([shown([c for c in comparisons if c.b in firsts]),
                 details('Differences by group, between the other arms', others) if others else ''])


def implausible(run: Run) -> Html:
    """The fraction of predictions that are unlikely given the true signs of a case."""
    tables = {s: t for s in run.stages if 'implausible' in (t := run.table(s, 'multiclass'))}
    if not tables:
        return Html('')
    truth = next(iter(tables.values())).get('implausible_truth')
    text = 'The true classes themselves are implausible in {} of these cases.'
    limits = {e['delta'] for s in tables for e in run.options(s).get('evals', {}).values() if 'delta' in e}
    limit = f'{limits.pop():g}' if len(limits) == 1 else 'the limit of the config'
    fractions = join([join([inline(t['implausible']), ' for ', name(s)]) for s, t in tables.items()], ', ')
    return tag('p', name('Clinical prior. '), 'Share of the test cases with known signs whose predicted class has a '
               f'prior below {limit} given these signs: ', fractions, '. ',
               text.format(number(truth['value'])) if truth else '')
