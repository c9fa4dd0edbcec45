"""Tables of runs that segment scans: by class, on other data, and patients that are told ill or well."""
import numpy as np

from jaxkd.metrics import bootstrap, pooled
from jaxkd.report import statistics
from jaxkd.report.markup import DASH, Html, cell, details, join, name, number, table, tag
from jaxkd.report.run_folder import DECIDING, Run

MEAN = 'mean of classes'
PATIENTS = ('sensitivity', 'specificity', 'auroc')
POINT = {'t_cls': 'score', 'v_min': 'volume in ml'}
EMPTY = {'n_empty_truth': 'only predicted', 'n_empty_prediction': 'only in the truth', 'n_empty_both': 'in neither'}
POLICY = {
    'strict': 'A class that is in neither the truth nor the prediction of a scan does not count there; where it is in '
    'one of '
              'them, Dice, IoU and NSD are 0 and a distance is the diagonal of the scan. ',
    'present': 'Policy "present": a scan without the class does not count; what is predicted there shows in the false '
    'lesions '
               'and in the specificity. ',
    'legacy': 'Policy "legacy": a class that is predicted but not there counts as right, one that is there but not '
    'predicted, '
              'or in neither, as Dice 0 and distance 0. This rewards failures; it is for comparison with older '
              'tables. '}


def by_class(run: Run) -> Html:
    """What every stage makes of every class, and how many scans the mean of each metric counts."""
    found = {s: t for s in run.stages for t in [run.table(s, 'segmentation')] if 'dice' in t}
    metrics = [m for m in statistics.SCANS if m not in PATIENTS and any(m in statistics.shown(t)
                                                                        for t in found.values())]
    classes = list(dict.fromkeys(c for t in found.values() for c in statistics.classes(t, *metrics)))
    if len(classes) != 1:
        classes.append(MEAN)
    rows = []
    for c in classes:
        of = {s: [t.get(f'{m}/{c}', t.get(m) if c == classes[-1] else None) for m in metrics] for s, t in found.items()}
        rows += [[c if i == 0 else '', s, *map(_counted, entries)] for i, (s, entries) in enumerate(of.items())]
    return table(['class', 'stage', *map(statistics.display_name, metrics)], rows, firsts=2, dense=True, caption=(
        f'Test part at the best step: value, {run.percent} interval, scans that count. A bias is predicted minus true. '
        + statistics.lower_is_better(metrics, 'lower is better')))


def empty(run: Run) -> Html:
    """How many scans lack a class, in truth or prediction, and what was made of them."""
    tables = {s: run.table(s, 'segmentation') for s in run.stages}
    if not any(statistics.classes(t, 'dice') for t in tables.values()):
        return Html('')
    found = {(c, s): e for s, t in tables.items() for c in statistics.classes(t, 'dice')
             for e in [t.get(f'dice/{c}', {})] if any(e.get(k) for k in EMPTY)}
    policies = {hp.get('policy') for s in run.stages for e, hp in run.options(s).get('evals', {}).items()
                if run.plugin(s, e) == 'segmentation'}
    rows = [[c, s, *(e.get(k, DASH) for k in EMPTY)] for (c, s), e in sorted(found.items(), key=lambda f: f[0][0])]
    return join([tag('p', name('Empty masks. '), *(POLICY[p] for p in POLICY if p in policies),
                     '' if found else 'Here every class is in every scan, in the truth and in every prediction.'),
                 table(['class', 'stage', *EMPTY.values()], rows, 'Scans of the test part.', firsts=2)])


def external(run: Run) -> Html:
    """Own test part and other data side by side, and how much the two differ."""
    return join([_beside(run, e, run.external[e]) for e in run.other_images()])


def _beside(run, evaluator, of):
    rows: list[list] = []
    more: list[list] = []
    for s, other in of.items():
        same = run.evaluator(s, run.plugin(s, evaluator))
        here, there = run.table_of(s, same) if same else {}, run.table_of(s, evaluator)
        comparable = same and run.evaluator(s, *DECIDING) in ('', same)  # the predictions are of the one that decides
        gap = _gap(run, run.predictions[s], other) if comparable and s in run.predictions else {}
        known = [k for m in statistics.shown(there) for k in (m, *statistics.several(there, m))]
        first = [*statistics.main(there), *statistics.several(there, 'dice')]
        for some, part in ((rows, [m for m in known if m in first]), (more, [m for m in known if m not in first])):
            some += [[s if i == 0 else '', statistics.display_name(m), *(_counted(t.get(m)) for t in (here, there)),
                      cell(gap.get(m), sign=True)] for i, m in enumerate(part)]
    head = ['stage', 'measure', 'in-domain', evaluator, f'{evaluator} \u2212 in-domain']
    told = (f'Test part of the run and the data of {evaluator}, at the best step: value, {run.percent} interval, scans '
            'that count. The difference draws the same patients on both sides where these are the same, else each side '
            'by itself. A dash: no evaluator of the same plug-in measured this on the test part of the run.')
    return join([tag('h3', evaluator), table(head, rows, told, firsts=2),
                 details('Further measures', table(head, more, firsts=2)) if more else ''])


def _gap(run, own, other):
    """Other data minus own, in all that both measure."""
    n, level, seed = (run.bootstrap[k] for k in ('n', 'level', 'seed'))
    same = set(own.patients) == set(other.patients)
    here, there = pooled.draws([own], n, seed), pooled.draws([other], n, seed if same else seed + 1)
    found = {}
    for m in (m for m in there if m in here):
        a, b = there[m][0], here[m][0]  # of one patient there is no draw
        found[m] = bootstrap.summary(a[0] - b[0], a[1:] - b[1:] if len(a) == len(b) else np.empty(0), level)
    return found


def patients(run: Run) -> Html:
    """Patients told ill or well, where a stage does that beside the segmentation."""
    rows, points = [], []
    for where in ('', *run.external):
        for s in run.stages:
            found = run.table_of(s, where) if where else run.table(s)
            if 'dice' in found and any(m in found for m in PATIENTS):
                rows.append([s, where or 'in-domain', *(_counted(found.get(m)) for m in PATIENTS)])
                at = [f'{what} {number(found[k].get("value"))}' for k, what in POINT.items() if k in found]
                points += [f'{s}{f" on {where}" if where else ""}: {", ".join(at)}'] if at else []
    caption = ('At the best step: sensitivity of the ill, specificity of the well, AUROC of the score, each with the '
               'patients that count. ' + ('Called ill from these thresholds up, chosen on the validation part: '
                                 + '; '.join(points) + '.'
                                 if points else ''))
    return table(['stage', 'data', *(statistics.NAMES[m] for m in PATIENTS)], rows, caption, firsts=2)


def _counted(entry):
    """A cell with the number of scans or patients below it."""
    n = (entry or {}).get('n_cases', (entry or {}).get('n_patients'))
    return join([cell(entry), tag('small', f'n = {n:,}') if n is not None else '']) if entry else DASH
