"""Tables of runs whose cases have exactly one class: by class, confusion, and differences by group."""
from collections.abc import Sequence

from jaxkd.metrics import multiclass
from jaxkd.report import comparison, statistics
from jaxkd.report.markup import DASH, Html, cell, details, inline, join, name, number, table, tag
from jaxkd.report.run_folder import Run
from jaxkd.report.tables import pair
from jaxkd.report.verdict import reading

COLUMNS = {'sensitivity': 'sensitivity', 'specificity': 'specificity', 'precision': 'precision', 'f1': 'F1',
           'accuracy': 'one-vs-rest accuracy', 'auroc': 'AUROC'}


def by_class(run: Run) -> Html:
    """What every stage makes of every class."""
    found = {s: run.table(s) for s in run.stages if run.exclusive(s)}
    known = dict.fromkeys(k.partition('/')[2] for t in found.values() for k in t if k.startswith('sensitivity/'))
    rows = []
    for c in known:
        of = {s: {m: t.get(f'{m}/{c}', {}) for m in COLUMNS} for s, t in found.items() if f'sensitivity/{c}' in t}
        rows += [[c if i == 0 else '', s, entries['sensitivity'].get('n_positive', DASH), *map(cell, entries.values())]
                 for i, (s, entries) in enumerate(of.items())]
    return table(['class', 'stage', 'cases', *COLUMNS.values()], rows, firsts=2, dense=True, caption=(
        'Test part at the best step, each class against all others; the predicted class is the one of the largest '
        'probability. One-vs-rest accuracy counts the many cases that are rightly not of the class, so it is higher '
        'than the accuracy of a stage and not to be compared with it.'))


def confusion(run: Run) -> Html:
    """A small table of counts for every stage: rows are true, columns predicted, colour is the share of the row."""
    shown = []
    for s, p in run.predictions.items():
        if p.exclusive:
            counts = multiclass.confusion(statistics.predicted(p), p.label.argmax(1), len(p.labels))[0]
            rows = [tag('tr', tag('th', c), *(_shade(n, row.sum(), i == j) for j, n in enumerate(row)))
                    for i, (c, row) in enumerate(zip(p.labels, counts))]
            head = tag('tr', tag('th', 'true \\ predicted'), *(tag('th', c) for c in p.labels))
            shown.append(tag('div', tag('h3', s), tag('table', tag('thead', head), tag('tbody', *rows)),
                             class_='beside'))
    return join([tag('div', *shown), tag('p', 'Test cases, with the share of the true class. The diagonal, framed, is '
                                              'right.',
                                         class_='dim')]) if shown else Html('')


def _shade(n, total, right):
    share = n / total if total else 0.0
    frame = ';outline:1px solid;outline-offset:-2px' if right else ''
    return tag('td', f'{n:.0f}', tag('small', f'{100 * share:.0f} %' if total else DASH),
               style=f'background:rgba(59,130,196,{0.75 * share:.2f}){frame}')


def grouped(run: Run, found: Sequence[comparison.Comparison]) -> Html:
    """Paired differences in every group of cases: of each arm and the first of its family; folded, of the others."""
    firsts = {arms[0] for arms in comparison.arms(run)}
    metrics = statistics.main(dict.fromkeys(m for c in found for t in c.groups.values() for m in t))

    def shown(pairs: Sequence[comparison.Comparison]) -> Html:
        rows = [[pair(c) if i == 0 else '', ' = '.join(group), f'{t[metrics[0]]["n_patients"]:,}',
                 *(cell(t.get(m), sign=True) for m in metrics), reading(t[metrics[0]])]
                for c in pairs for i, (group, t) in enumerate(c.groups.items())]
        return table(['difference', 'group', 'patients', *map(statistics.display_name, metrics),
                      *(f'interval of {statistics.display_name(m)}' for m in metrics[:1])], rows,
                     firsts=2, dense=True, caption=(
                         f'The same test cases and the same resampled patients for both; {run.percent} intervals, not '
                         f'corrected for their number. Groups of {statistics.FEWEST} patients or more.'))
    others = shown([c for c in found if c.b not in firsts])
    return join([shown([c for c in found if c.b in firsts]),
                 details('Differences by group, between the other arms', others) if others else ''])


def implausible(run: Run) -> Html:
    """How often a stage predicts a class that the true signs of a case make unlikely."""
    of = {s: t for s in run.stages for t in [run.table(s, 'multiclass')] if 'implausible' in t}
    if not of:
        return Html('')
    some = next(iter(of.values()))
    told = ''
    if 'implausible_truth' in some:
        implausible = number(some['implausible_truth']['value'])
        told = f' The true classes themselves are implausible in {implausible} of these cases.'
    limits = {e['delta'] for s in of for e in run.options(s).get('evals', {}).values() if 'delta' in e}
    below = f' below {limits.pop():g}' if len(limits) == 1 else ' below the limit of the config'
    shares = join([join([inline(t['implausible']), ' for ', name(s)]) for s, t in of.items()], ', ')
    return tag('p', name('Clinical prior. '), 'Share of the test cases with known signs whose predicted class has a '
                                              'prior', below,
               ' given these signs: ', shares, '.', told)
