"""Tables of runs that segment scans: by class, on other data, and decisions on patients."""
import numpy as np

from jaxkd.metrics import bootstrap, pooled
from jaxkd.report import statistics
from jaxkd.report.markup import DASH, Html, cell, details, join, name, number, table, tag
from jaxkd.report.run_folder import DECIDING, Run

MEAN = 'mean of classes'
SECOND = 'second_reader/'
PATIENTS = ('sensitivity', 'specificity', 'auroc')
POINT = {'t_cls': 'score', 'v_min': 'volume in ml'}
EMPTY = {'n_empty_truth': 'only predicted', 'n_empty_prediction': 'only in the truth', 'n_empty_both': 'in neither'}
POLICY = {'strict': 'A class that is in neither the truth nor the prediction of a scan does not count there; where it '
                    'is in one of them, Dice, IoU and NSD are 0 and a distance is the diagonal of the '
                    'scan. ', 'present': 'Policy "present": a scan without the class does not count; what is predicted '
                                         'there shows in the false lesions and in the specificity. ',
          'legacy': 'Policy "legacy": a class that is predicted but not there counts as right, one that is there but '
                    'not predicted, or in neither, as Dice 0 and distance 0. This rewards failures; it is for '
                    'comparison with older tables. '}


def by_class(run: Run) -> Html:
    """Metrics of every class in every stage, and of a second reader if there is one, with the number of scans."""
    tables = {s: t for s in run.stages if 'dice' in (t := run.table(s, 'segmentation'))}
    second = next(iter(tables.values()), {})
    if second := {k.removeprefix(SECOND): e for k, e in second.items() if k.startswith(SECOND)}:
        tables['second reader'] = second
    shown = {m for t in tables.values() for m in statistics.shown(t)}
    metrics = [m for m in statistics.SCANS if m in shown and m not in PATIENTS]
    classes = list(dict.fromkeys(c for t in tables.values() for c in statistics.classes(t, *metrics)))
    if len(classes) != 1:
        classes.append(MEAN)
    rows = []
    for c in classes:
        rows += [[c if i == 0 else '', s, *(_counted(t.get(f'{m}/{c}', t.get(m) if c == classes[-1] else None))
                                            for m in metrics)] for i, (s, t) in enumerate(tables.items())]
    return table(['class', 'stage', *map(statistics.display_name, metrics)], rows, firsts=2, dense=True, caption=(
        f'Test part at the best step: value, {run.percent} interval, scans that count. A bias is predicted minus true. '
        + 'Second reader: masks of another person, measured against the same masks as the stages. ' * bool(second)
        + statistics.lower_is_better(metrics, 'lower is better')))


def empty(run: Run) -> Html:
    """Numbers of scans without a class, in truth or prediction, and the policy for them."""
    tables = {s: run.table(s, 'segmentation') for s in run.stages}
    if not any(statistics.classes(t, 'dice') for t in tables.values()):
        return Html('')
    counts = {(c, s): e for s, t in tables.items() for c in statistics.classes(t, 'dice')
              for e in [t.get(f'dice/{c}', {})] if any(e.get(k) for k in EMPTY)}
    policies = {hp.get('policy') for s in run.stages for e, hp in run.options(s).get('evals', {}).items()
                if run.plugin(s, e) == 'segmentation'}
    rows = [[c, s, *(e.get(k, DASH) for k in EMPTY)] for (c, s), e in sorted(counts.items(), key=lambda c: c[0][0])]
    return join([tag('p', name('Empty masks. '), *(POLICY[p] for p in POLICY if p in policies),
                     '' if counts else 'Here every class is in every scan, in the truth and in every prediction.'),
                 table(['class', 'stage', *EMPTY.values()], rows, 'Scans of the test part.', firsts=2)])


def external(run: Run) -> Html:
    """In-domain test part and external data side by side, with differences."""
    return join([_side_by_side(run, e, run.external[e]) for e in run.other_images()])


def _side_by_side(run, evaluator, predictions):
    rows: list[list] = []
    folded: list[list] = []
    for s, p in predictions.items():
        same = run.evaluator(s, run.plugin(s, evaluator))
        internal, external = run.table_of(s, same) if same else {}, run.table_of(s, evaluator)
        comparable = same and run.evaluator(s, *DECIDING) in ('', same)  # the evaluator that wrote the predictions
        gap = _gap(run, run.predictions[s], p) if comparable and s in run.predictions else {}
        metrics = [k for m in statistics.shown(external) for k in (m, *statistics.per_class(external, m))]
        main = [*statistics.main(external), *statistics.per_class(external, 'dice')]
        for part, selected in ((rows, [m for m in metrics if m in main]),
                               (folded, [m for m in metrics if m not in main])):
            part += [[s if i == 0 else '', statistics.display_name(m),
                      *(_counted(t.get(m)) for t in (internal, external)), cell(gap.get(m), sign=True)]
                     for i, m in enumerate(selected)]
    head = ['stage', 'measure', 'in-domain', evaluator, f'{evaluator} \u2212 in-domain']
    note = (f'Test part of the run and the data of {evaluator}, at the best step: value, {run.percent} interval, scans '
            'that count. The difference draws the same patients on both sides where these are the same, else each side '
            'by itself. A dash: no evaluator of the same plug-in measured this on the test part of the run.')
    return join([tag('h3', evaluator), table(head, rows, note, firsts=2),
                 details('Further measures', table(head, folded, firsts=2)) if folded else ''])


def _gap(run, internal, external):
    """External minus in-domain predictions, in the common metrics."""
    n, level, seed = (run.bootstrap[k] for k in ('n', 'level', 'seed'))
    same = set(internal.patients) == set(external.patients)
    subtracted, draws = pooled.draws([internal], n, seed), pooled.draws([external], n, seed if same else seed + 1)
    gap = {}
    for m in (m for m in draws if m in subtracted):
        a, b = draws[m][0], subtracted[m][0]  # a single patient has no draws
        gap[m] = bootstrap.summary(a[0] - b[0], a[1:] - b[1:] if len(a) == len(b) else np.empty(0), level)
    return gap


def patients(run: Run) -> Html:
    """Sensitivity and specificity of decisions on patients, of stages that classify beside the segmentation."""
    rows, points = [], []
    for evaluator in ('', *run.external):
        for s in run.stages:
            entries = run.table_of(s, evaluator) if evaluator else run.table(s)
            if 'dice' in entries and any(m in entries for m in PATIENTS):
                rows.append([s, evaluator or 'in-domain', *(_counted(entries.get(m)) for m in PATIENTS)])
                values = [f'{text} {number(entries[k].get("value"))}' for k, text in POINT.items() if k in entries]
                points += [f'{s}{f" on {evaluator}" if evaluator else ""}: {", ".join(values)}'] if values else []
    caption = ('At the best step: sensitivity of the ill, specificity of the well, AUROC of the score, each with the '
               'patients that count. ')
    if points:
        caption += f'Called ill from these thresholds up, chosen on the validation part: {"; ".join(points)}.'
    return table(['stage', 'data', *(statistics.NAMES[m] for m in PATIENTS)], rows, caption, firsts=2)


def _counted(entry):
    """A cell with the number of scans or patients below it."""
    n = (entry or {}).get('n_cases', (entry or {}).get('n_patients'))
    return join([cell(entry), tag('small', f'n = {n:,}') if n is not None else '']) if entry else DASH
