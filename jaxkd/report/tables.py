"""The tables of the report. Each function gives Html, empty when the run has nothing for it."""
from collections.abc import Iterable, Sequence

import numpy as np

from jaxkd.report import comparison, facts, statistics
from jaxkd.report.markup import DASH, Html, cell, clock, details, join, name, number, table, tag
from jaxkd.report.run_folder import Run
from jaxkd.report.verdict import reading

PIXELS = {'hit': 'hit', 'iou_50': 'IoU at 0.5', 'iou_otsu': 'IoU Otsu', 'iou_mass60': 'IoU 60 % mass',
          'iou_top10': 'IoU top 10 %', 'iou_best': 'IoU best t', 'auprc': 'pixel AUPRC',
          'auroc': 'pixel AUROC', 'mass_in_roi': 'mass inside', 'lift': 'lift', 'cnr': 'CNR'}
MAPS = ('last_mean', 'rollout', 'grad_attn', 'grad_cam', 'best_head', 'uniform', 'centred_gaussian', 'mean_map',
        'untrained')
FEW = 10  # positives or negatives of a label
SHOWN = 100  # skipped cases by name


def stages(run: Run) -> Html:
    """Stages side by side: inputs, model, method, training and metrics."""
    entries = run.stages
    rows = [['reads', *(', '.join(e.get('inputs', ())) for e in entries.values())],
            ['model', *(e.get('model', DASH) for e in entries.values())],
            ['method', *(_method(e.get('method', {})) for e in entries.values())],
            ['teachers', *(_teachers(run, s) for s in entries)],
            ['parameters', *(_integer(e.get('parameters')) for e in entries.values())],
            ['steps', *(_integer(e.get('steps')) for e in entries.values())],
            ['best step, validation score', *(_best(e) for e in entries.values())],
            ['training time', *(clock(e['seconds']) if 'seconds' in e else DASH for e in entries.values())]]
    last_is_best = all(e.get('best', {}).get('step') == e.get('last', {}).get('step') for e in entries.values())
    for which in ('best',) if last_is_best else ('best', 'last'):
        tables = [run.table(s, which=which) for s in entries]
        rows += [[f'{statistics.display_name(m)}, {which} step', *(cell(t.get(m)) for t in tables)]
                 for m in _first(tables, which)]
    primary = [t.get(statistics.primary_metric(t), {}) for t in map(run.table, entries)]
    patients = {s: len({*p.patients}) for s, p in run.predictions.items()}  # of an evaluator outside of jaxkd
    rows.append(['test patients', *(_integer(e.get('n_patients', patients.get(s))) for s, e in zip(entries, primary))])
    scans = {s: len(p.cases) for s, p in run.predictions.items() if p.segmented}
    rows += [['test scans', *(_integer(scans.get(s)) for s in entries)]] if scans else []
    last = {line['stage']: line['step'] for line in run.lines}
    unfinished = [join(['Stage ', name(s), ' is not finished', f'; it stands at step {last[s]}. '
                        if s in last else '. ']) for s in run.names if s not in entries]
    classes = any(run.exclusive(s) for s in entries)
    metrics = _first([run.table(s) for s in entries], 'best')
    meaning = ('AUROC and AUPRC: mean over the classes, each against all others; accuracy: the share of cases whose '
               'class is right; balanced: the mean sensitivity'
               if classes else 'a value of the segmentation is a mean over scans, then over classes'
               if 'dice' in metrics else 'macro mean over labels')
    note = (f'Test part, {meaning}; {run.percent} interval below each value. '
            + statistics.lower_is_better(metrics, 'lower is better'))
    if 'ece' in metrics:
        note += ' Resampling adds to the upward bias of ECE, so its interval may lie above the value.'
    return join([tag('p', *unfinished) if unfinished else '',
                 table(['', *entries], rows, note, dense=len(entries) > 4)])


def _first(tables, which):
    """Metrics of the table of stages: of a segmentation the main ones and Dice by class, of labels all."""
    measured = [m for t in tables for m in (statistics.main(t) if 'dice' in t else statistics.shown(t))]
    metrics = [m for m in statistics.NAMES if m in measured and (which == 'best' or m not in statistics.ASIDE)]
    by_class = dict.fromkeys(k for t in tables for k in statistics.per_class(t, 'dice')) if which == 'best' else ()
    return [key for m in metrics for key in (m, *(by_class if m == 'dice' else ()))]


def labels(run: Run) -> Html:
    """AUROC of every label, all stages side by side."""
    by_stage = {s: run.table(s) for s in run.stages if run.table(s) and not run.exclusive(s)}
    rows = []
    for key in dict.fromkeys(k for t in by_stage.values() for k in t if k.startswith('auroc/')):
        entries = [t.get(key, {}) for t in by_stage.values()]
        counts = [(e.get('n_positive'), e.get('n_negative')) for e in entries if e]
        few = any(n is not None and n < FEW for n in counts[0])
        rows.append([f'{key.partition("/")[2]}{" *" if few else ""}', _integer(counts[0][0]), _integer(counts[0][1])]
                    + [join([cell(e), tag('small', f'{e["n_positive"]} / {e["n_negative"]}')])
                       if e and (e.get('n_positive'), e.get('n_negative')) != counts[0] else cell(e) for e in entries])
    return table(['label', 'positive', 'negative', *by_stage], rows,
                 f'Test AUROC at the best step. * fewer than {FEW} positive or negative cases: read with care.')


def differences(run: Run, comparisons: Sequence[comparison.Comparison]) -> Html:
    """Paired differences in the metrics of predictions, macro and by label."""
    shown = statistics.compared(dict.fromkeys(m for c in comparisons for m in c.metrics))
    first = statistics.primary_metric(shown)
    rows = [[join([pair(c), tag('small', f'on {e}') if e else '']), *(cell(metrics.get(m), sign=True) for m in shown),
             reading(metrics[statistics.primary_metric(metrics)]) if metrics else c.why, ', '.join(c.other_differences)]
            for c in comparisons for e, metrics in {'': c.metrics, **c.external}.items()]
    head = ['difference', *(statistics.NAMES[m] for m in shown), f'interval of {statistics.NAMES[first]}',
            'what else differs']
    if not any(c.other_differences for c in comparisons):
        head, rows = head[:-1], [r[:-1] for r in rows]
    note = (f'Best step, the same test cases and the same resampled patients for both; {run.percent} intervals, not '
            'corrected for their number. ' + statistics.lower_is_better(shown, 'below 0 is better'))
    measured, area = [c for c in comparisons if c.metrics], 'dice' if first == 'dice' else 'auroc'
    keys = dict.fromkeys(k for c in measured for k in c.metrics if k.startswith(f'{area}/'))
    by_label = table(['label', *map(pair, measured)],
                     [[k.partition('/')[2], *(cell(c.metrics.get(k), sign=True) for c in measured)] for k in keys])
    by = 'class, each against all others' if first == 'accuracy' else 'class' if first == 'dice' else 'label'
    return join([table(head, rows, note, dense=len(shown) > 5),
                 details(f'Differences in {statistics.NAMES[area]} by {by}', by_label) if by_label else ''])


def provenance(run: Run) -> Html:
    """Of each method: published, inferred and chosen parts."""
    texts = {str(entry.get('method', {}).get('name', '')): entry['provenance'] for entry in run.stages.values()}
    return join([tag('p', name(method), ': ', text) for method, text in texts.items() if text])


def others(run: Run) -> Html:
    """Test metrics of evaluators that no other table shows."""
    by_metric: dict[str, dict[str, dict]] = {}  # {metric: {stage: entry}}
    for s in run.stages:
        for key, entry in run.further_metrics(s).items():
            by_metric.setdefault(key, {})[s] = entry
    rows = [[key, *(cell(entries.get(s)) for s in run.stages)] for key, entries in by_metric.items()]
    return table(['', *run.stages], rows, 'Metrics of the test part at the best step that no other table shows.')


def localisation(run: Run) -> Html:
    """Maps and controls by stage."""
    tables = {s: t for s in run.stages if (t := run.table(s, 'localisation'))}
    rows = []
    for m in dict.fromkeys([*MAPS, *(k.partition('/')[0] for t in tables.values() for k in t)]):
        by_stage = {s: {k: t.get(f'{m}/{k}') for k in PIXELS} for s, t in tables.items() if f'{m}/auprc' in t}
        if len(by_stage) > 1 and len({str(entries) for entries in by_stage.values()}) == 1:  # a control without network
            by_stage = {'all': next(iter(by_stage.values()))}
        shown = join([m, tag('small', 'upper bound: chosen with the answer')]) if m == 'best_head' else m
        rows += [[shown if i == 0 else '', s, *map(cell, entries.values())]
                 for i, (s, entries) in enumerate(by_stage.items())]
    if not rows:
        return Html('')
    first = next(iter(tables.values()))
    own = list(dict.fromkeys(comparison.compared_map(t) for t in tables.values()))
    result, area = first[f'{own[0]}/auprc'], first[f'{own[0]}/auprc_chance']
    return table(['map', 'stage', *PIXELS.values()], rows, (
        f'{result["n_rois"]} boxes or regions of {result["n_patients"]} test patients, at the best step. Chance: pixel '
        f'AUPRC {number(area["value"])} (the share of the image that they cover), pixel AUROC 0.5, lift 1. '
        f'{" or ".join(own)} is the result; {", ".join(comparison.CONTROLS)} are controls, and only what beats them '
        'says that the network looks at the finding. grad_attn and grad_cam alone are of a certain label.'), firsts=2,
        dense=True)


def localisation_differences(run: Run, comparisons: Sequence[comparison.Comparison]) -> Html:
    """The map that is the result, between arms, and against the controls."""
    compared = [(pair(c), _map_of(run, c.a), c.localisation) for c in comparisons if c.localisation]
    compared += [(name(s), f'{_map_of(run, s)} \u2212 {control}', t)
                 for s in run.stages for control, t in comparison.against_controls(run, s).items()]
    rows = [[join([stages, tag('small', maps)]), *(cell(t.get(m), sign=True) for m in PIXELS)]
            for stages, maps, t in compared]
    return table(['difference', *PIXELS.values()], rows, dense=True, caption=
                 f'The same boxes or regions and the same resampled patients for both; {run.percent} intervals, not '
                 'corrected for their number.')


def _map_of(run: Run, stage: str) -> str:
    return comparison.compared_map(run.regions[stage])


def by_group(run: Run, stages: Iterable[str]) -> dict[tuple[str, str, str], dict[str, dict]]:
    """{(column, value, metric): {stage: entry}} of every group of at least `statistics.FEWEST` patients."""
    entries_of: dict[tuple[str, str, str], dict[str, dict]] = {}
    for s, p in ((s, run.predictions[s]) for s in stages if s in run.predictions):
        for group, indices in statistics.groups(p).items():
            entries = statistics.table(p.take(indices), **run.bootstrap)
            for m in ('accuracy', 'auroc') if p.exclusive else (statistics.primary_metric(entries),):
                if m in entries and entries[m].get('n_labels', 1):
                    entries_of.setdefault((*group, m), {})[s] = entries[m]
    return dict(sorted(entries_of.items()))


def subgroups(run: Run) -> Html:
    """The main metrics of every group of at least `statistics.FEWEST` patients, in every stage."""
    groups = by_group(run, run.predictions)
    many_metrics, scans = len({m for *_, m in groups}) > 1, any(m == 'dice' for *_, m in groups)
    rows = [[f'{column} = {value}', *([statistics.NAMES[m]] if many_metrics else []),
             _integer(next(iter(entries.values()))['n_patients']),
             *([] if scans else [max(e.get('n_labels', 0) for e in entries.values()) or DASH]),
             *(cell(entries.get(s)) for s in run.predictions)] for (column, value, m), entries in groups.items()]
    metric = ('Test Dice, mean over scans, then over classes' if scans else
              'Test AUROC, macro mean over the labels with both classes in the group' +
              (' (a label is a class against all others), and accuracy' if many_metrics else ''))
    head = ['group', *(['measure'] if many_metrics else []), 'patients', *([] if scans else ['labels']),
            *run.predictions]
    return table(head, rows, f'{metric}; groups of {statistics.FEWEST} patients or more.')


def parts(run: Run) -> Html:
    """Numbers of cases and patients for training, validation and test, and of labels where some are hidden."""
    roles = [r for r in ('train', 'val', 'test') if any(r in e.get('cases', {}) for e in run.stages.values())]
    labels = {s: e.get('labels', {}).values() for s, e in run.stages.items()}
    few = any(part['patients'] < part['of'] for parts in labels.values() for part in parts)
    rows = [[s, e.get('source', {}).get('name', DASH), *(
        f'{_integer(e["cases"].get(r))} ({_integer(e.get("patients", {}).get(r))})' for r in roles),
        *(f'{part["cases"]:,} ({part["patients"]:,} of {part["of"]:,})' for part in labels[s] if few)]
        for s, e in run.stages.items() if 'cases' in e]
    head = ['stage', 'source', *roles, *(['labels for training', 'for selection'] if few else [])]
    return table(head, rows, 'Cases, and of how many patients' + (
        '. Labels: those that the stage may use; the others are hidden from it.' if few else '.'))


def cohort(run: Run) -> Html:
    """What became of the cases that a source found: used, or skipped, by reason."""
    sources = {e['source']['name']: e['source']['cohort'] for e in run.stages.values()
               if e.get('source', {}).get('cohort')}
    rows = [row for s, c in sources.items() for row in (
        [s, 'found', _integer(c['found'])], ['', 'used', _integer(c['used'])],
        *(['', f'skipped: {reason}', _integer(n)] for reason, n in c['skipped'].items()))]
    return table(['source', 'cases', 'number'], rows, 'Cases of the source, before the split.', firsts=2)


def composition(run: Run) -> list[Html]:
    """Labels and groups of the cases by part, of each source once."""
    shown = []
    for s in {facts.source(run, s).get('name'): s for s in run.stages}.values():
        (label_head, labels), (group_head, groups) = facts.labels(run, s), facts.groups(run, s)
        lacking = facts.missing_labels(run, s)
        shown += [table(label_head, labels, facts.KNOWN),
                  table(group_head, groups, f'Cases by group; fewer than {facts.SMALL} are not counted.'),
                  table(['label', 'uncertain', 'not mentioned'], lacking, 'Labels without a value.')]
    return shown


def still_rising(run: Run) -> Html:
    """Notes on the stages whose best step is their last."""
    return join([tag('p', text, class_='note') for s in run.stages if (text := facts.rising(run, s))])


def skipped(run: Run) -> Html:
    """Cases that the source skipped, with reasons; of a page with pseudonyms only their number, as reasons may name
    cases.
    """
    rows = list(dict.fromkeys((e.get('source', {}).get('name', ''), str(case), facts.without_folders(str(reason)))
                              for e in run.stages.values() for case, reason in e.get('source', {}).get('skipped', ())))
    if not rows:
        return tag('p', 'No case was skipped.')
    count = f'{len(rows)} cases were skipped.' if len(rows) > 1 else '1 case was skipped.'
    if run.pseudonyms:
        return tag('p', count)
    more = f' The first {SHOWN} are shown.' if len(rows) > SHOWN else ''
    return details(count + more, table(['source', 'case', 'reason'], rows[:SHOWN], firsts=2))


def throughput(run: Run) -> Html:
    """Speed of training by metrics.jsonl."""
    rows = []
    for s in run.names:
        lines = [line for line in run.lines if line['stage'] == s and 'examples_per_s' in line]
        speed = [line['examples_per_s'] for line in lines if line['examples_per_s'] is not None]
        wait = [line['data_wait'] for line in lines if line.get('data_wait') is not None]
        if speed:
            rows.append([s, f'{np.median(speed):,.0f}', f'{100 * np.mean(wait):.1f} %' if wait else DASH])
    return table(['stage', 'examples per second, median', 'share of time spent waiting for data'], rows)


def pair(c: comparison.Comparison) -> Html:
    """'a - b' of a comparison."""
    return join([name(c.a), ' \u2212 ', name(c.b), tag('small', 'student and its teacher') if not c.arms else ''])


def _integer(n):
    return DASH if n is None else f'{n:,}'


def _method(hp):
    options = ', '.join(f'{k} {v}' for k, v in hp.items() if k != 'name' and v != '')
    return join([hp.get('name', DASH), tag('small', options, class_='wrap')])


def _teachers(run, stage):
    entry = run.stages[stage]
    shown = [join([origin or t, tag('small', f'step {entry["teachers"][t].get("step", "?")}'
                                             + ('' if origin else ', of another run'))])
             for t, origin in comparison.teachers(run, stage).items()]
    shown += [join([n, tag('small', f'trained along, reads {", ".join(inputs)}')])
              for n, inputs in comparison.co_trained(run, stage).items()]
    if shown and not entry['uses_teacher']:
        shown.append(tag('small', 'its terms all have the weight 0'))
    return join(shown) if shown else 'none'


def _best(entry):
    best = entry.get('best', {})
    score = best.get('score')
    shown = tag('small', f'{entry.get("select", "").partition("/")[2]} {number(score)}') if score is not None else ''
    return join([_integer(best.get('step')), shown])
