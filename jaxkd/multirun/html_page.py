"""The page of repeated trainings, and its main numbers as plain text, from the content of repeat.json."""
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.multirun import gain_page
from jaxkd.report import classes, comparison, figures, plot, shortcuts, statistics
from jaxkd.report.html_page import document, section
from jaxkd.report.markup import DASH, Html, details, interval, join, name, number, table, tag
from jaxkd.report.markup import panels as side_by_side
from jaxkd.runtime import files

Results = Mapping[str, Any]  # the content of repeat.json, see jaxkd/multirun/pooling.py
ALL = 'all'  # the group of every test patient
SCANS = ('dice', 'iou', 'hd95_mm', 'hd95_voxel', 'assd_mm', 'nsd', 'volume_error_ml', 'abs_volume_error_ml')  # by class
OF_LABELS = ('sensitivity', 'specificity', 'auroc')  # by label


def text(results: Results) -> str:
    """The main numbers as plain text, for a terminal: of every group, and the differences over all patients."""
    metrics, lines = [m for m in _main(results) if m != 'nsd'], []

    def row(label: str, cells: Iterable[str]) -> None:
        lines.append(f'  {label:24}' + ''.join(f'{cell:40}' for cell in cells).rstrip())
    for group, arms in results['arms'].items():
        pooled = _parts(results) and group not in (*_left_out(results), *results['external'])
        lines.append(f'{group}, {_patients(arms):,} test patients' + (', all folds pooled' if pooled else ''))
        row('', map(statistics.display_name, metrics))
        for s, entries in arms.items():
            row(s, (_line(entries.get(m)) for m in metrics))
        for d in results['differences'][group] if group in (ALL, *results['external']) else ():
            row(f'{d["a"]} - {d["b"]}', (_line(d['metrics'].get(m), sign=True) for m in metrics))
    return '\n'.join(lines)


def page(results: Results, workdir: str | os.PathLike) -> str:
    """HTML text of the content of repeat.json."""
    title = f'Repeated: {pathlib.Path(workdir).resolve().name}'
    left_out = _left_out(results)
    others = [g for g in results['arms'] if g not in (ALL, *left_out, *results['external'])]
    config = pathlib.Path(workdir, next(iter(results['members'])), 'config.json')
    sections = {
        'Arms': [_arms(results)],
        'Shortcuts': [shortcuts.of_repeat(results, files.read_json(config, 'The config of a member'))],
        f'Each {results["repeated"]["leave_out"]} left out': [
            _groups(results, left_out, 'Patients of the group that was left out of the training.')],
        'Classes': [_classes(results), _confusion(results)],
        'Other data': [_groups(results, results['external'], 'Data that no member was trained on, tested by the same '
                                                         'networks.')],
        'Groups': [_groups(results, others, f'Groups of {statistics.FEWEST} patients or more.')],
        'Paired differences': [_differences(results) or tag(
            'p', 'No two stages were tested on the same cases and labels.', class_='dim'),
            _by_group(results, [*left_out, *others])],
        'Comparison': [gain_page.section_of_repeat(results['comparison'])] if 'comparison' in results else [],
        'Metrics of the summaries': [_further(results)],
        'Every training': [_strips(results)],
        'Members': [tag('ul', *(tag('li', tag('a', m, href=f'{m}/report.html')) for m in results['members']))]}
    body = [tag('h1', title), *(tag('p', n, class_='note') for n in results['notes']), _lead(results),
            *(tag('p', p) for p in description(results)),
            *(section(head, *parts) for head, parts in sections.items() if any(parts))]
    return document(title, body, closed=True)


def _lead(results):
    """The primary metric of every arm, and the differences, over all patients."""
    metric = _main(results)[0]
    values = {s: e for s, entries in results['arms'][ALL].items() if (e := entries.get(metric))}
    rows = {f'{d["a"]} \u2212 {d["b"]}': e for d in results['differences'].get(ALL, ())[:figures.ROWS]
            if (e := d['metrics'].get(metric))}
    name = statistics.display_name(metric)
    colours = {s: figures.COLOURS[i % len(figures.COLOURS)] for i, s in enumerate(results['stages'])}
    return tag('div', figures.intervals(name, values, colours), figures.intervals(f'difference in {name}', rows, {
        r: figures.SIDES[comparison.side(e)] for r, e in rows.items()}, at=0.0), class_='lead')


def description(results: Results) -> list[str]:
    """Two paragraphs: what was repeated and shared, and the meaning of the intervals."""
    repeated, n = results['repeated'], f'{results["patients"]:,} patients ({results["cases"]:,} cases)'
    seeds, parts = len(repeated['seeds']), _parts(results)
    text = [f'{len(results["members"])} trainings of one config.']
    if seeds:
        text.append(f'Seeds {", ".join(map(str, repeated["seeds"]))}: initial weights, data order and augmentation '
                    'differ, the split does not.' if seeds > 1 else f'Seed {repeated["seeds"][0]}.')
    if repeated['folds']:
        text.append(f'{repeated["folds"]} folds: each of {n} is tested once{" for each seed" * (seeds > 1)}, by a '
                    'network that was not trained on this patient.')
    elif parts:
        text.append(f'Each {repeated["leave_out"]} left out in turn: its patients are tested by a network that was '
                    f'trained on the others; {n} in all.')
    else:
        text.append(f'All members share the same test part of {n}.')
    if parts:
        text.append('"Pooled" takes the out-of-fold predictions of all networks together. ' + (
            'AUROC and AUPRC then rank patients by scores of different networks, whose scales may differ; the mean of '
            'folds does not, but a' if 'auroc' in results['metrics'] else 'Beside it stands the mean of folds; a') +
            ' fold holds few patients, and folds share training patients, so its sd is no standard error.')
    shared = (f'All {seeds} seeds share one data set, one split and the same test patients. ' if seeds > 1 else
              f'All trainings share one data set and one {"division of its patients" if parts else "split"}. ')
    limits = [tag('b', shared, 'No interval holds what another training set or another split would change.'),
              f'Intervals: {100 * results["level"]:g} %, {results["resamples"]:,} resamples of the test patients, the '
              'networks as they are: they say what other test patients would change.']
    if seeds > 1:
        limits.append('Those of a mean over seeds keep the seeds too, and do not shrink with more seeds; sd is that of '
                      f'one training over {seeds} seeds. Those of differences resample patients and seeds'
                      + (', and with so few seeds may be somewhat too narrow.' if seeds < 10 else '.'))
    else:
        limits.append('One seed: what another seed would change is not shown.')
    limits.append('No correction is made for the number of comparisons.')
    return [join(text, ' '), join(limits, ' ')]


def _arms(results):
    first, more = _columns(results)
    seeds = len(results['repeated']['seeds'])

    def shown(metrics: Sequence[str], note: str = '') -> Html:
        rows = [[name(s), *(_cell(entries.get(m)) for m in metrics)] for s, entries in results['arms'][ALL].items()]
        caption = ' '.join(filter(None, (note, statistics.lower_is_better(metrics, 'lower is better'))))
        return table(['arm', *map(statistics.display_name, metrics)], rows, caption, dense=True)
    note = f'{results["patients"]:,} test patients{", all folds pooled" if _parts(results) else ""}: '
    note += f'mean over {seeds} seeds, interval over patients, sd over seeds' if seeds > 1 else 'interval over patients'
    note += '; mean of folds and its sd over all trainings.' if _parts(results) else '.'
    return join([shown(first, note), details('Further metrics', shown(more)) if more else ''])


def _groups(results, groups, caption):
    """A row for every group and arm."""
    rows = [[g if i == 0 else '', s, f'{entries[_main(results)[0]]["n_patients"]:,}',
             *(_cell(entries.get(m)) for m in _main(results))] for g in groups for i,
            (s, entries) in enumerate(results['arms'][g].items())]
    return table(['group', 'arm', 'patients', *map(statistics.display_name, _main(results))], rows, caption, firsts=2,
                 dense=True)


def _classes(results):
    """Each class or label by itself."""
    arms, scans = results['arms'][ALL], 'dice' in results['metrics']
    entries = {m: e for table in arms.values() for m, e in table.items()}
    metrics = SCANS if scans else OF_LABELS
    labels = statistics.classes(entries, *metrics)
    shown = [m for m in metrics if any((entries.get(f'{m}/{c}') or {}).get('value') is not None for c in labels)]
    rows = [[c if i == 0 else '', s, *(_cell(arms[s].get(f'{m}/{c}')) for m in shown)]
            for c in labels for i, s in enumerate(arms)]
    return table(['class' if scans else 'label', 'arm', *map(statistics.display_name, shown)], rows,
                 '' if scans else 'Each against all others.', firsts=2, dense=True)


def _confusion(results):
    """Counts of every arm: rows true, columns predicted."""
    seeds = len(results['repeated']['seeds'])
    all_seeds = f', of all {seeds} seeds together' if seeds > 1 else ''
    note = (f'{"Out-of-fold" if _parts(results) else "Test"} predictions{all_seeds}: cases, with the share of the true '
            'class.')
    matrices = [classes.matrix(s, confusion['labels'], confusion['counts']) for s,
                confusion in results['confusion'].items()]
    return join([tag('h3', 'Confusion'), tag('p', note, class_='dim'), tag('div', *matrices)]) if matrices else Html('')


def _differences(results):
    seeds = len(results['repeated']['seeds'])

    def shown(metrics: Sequence[str], groups: Iterable[str]) -> Html:
        rows = []
        for group, d in [(g, d) for g in groups for d in results['differences'][g]]:
            cells = [join([_pair(d), tag('small', f'on {group}') if group != ALL else ''])]
            for m in metrics:
                e = d['metrics'].get(m)
                n = len(e['rounds']) if e else 0
                counts = [f'above 0 in {e["positive"]} of {n} {"seeds" if n == seeds else "trainings"}',
                          f'own interval above 0 in {e["above"]}, below in {e["below"]}'] if n > 1 else []
                cells.append(join([_cell(e, sign=True), *(tag('small', text) for text in counts)]))
            rows.append(cells)
        return table(['difference', *map(statistics.display_name, metrics)], rows, dense=True, caption=(
            f'The same patients for both; intervals resample {"patients and seeds" if seeds > 1 else "patients"}. '
            + statistics.lower_is_better(metrics, 'a difference below 0 speaks for the arm named first')))
    first, more = ([m for m in part if m not in statistics.ASIDE or 'dice' not in results['metrics']]
                   for part in _columns(results))
    return join([shown(first, [ALL, *results['external']]),
                 details('Differences in further metrics', shown(more, [ALL, *results['external']])) if more else ''])


def _by_group(results, groups):
    main = _main(results)
    rows = [[g if i == 0 else '', _pair(d), *(_cell(d['metrics'].get(m), sign=True) for m in main)]
            for g in groups for i, d in enumerate(results['differences'][g])]
    return details('Paired differences by group', table(['group', 'difference', *map(statistics.display_name, main)],
                                                        rows, firsts=2, dense=True)) if rows else Html('')


def _further(results):
    """Metrics that stand in the summaries alone."""
    entries = results['further']
    rows = [[metric, *(_line(stages.get(s)) for s in results['stages'])] for metric, stages in entries.items()]
    return table(['metric', *results['stages']], rows, (
        'Mean and sd over all trainings of what the summary of each says. No predictions hold these metrics, so there '
        'is neither an interval nor a paired difference.'))


def _strips(results):
    """A dot for every training, a line at the mean, a panel for each metric with higher better."""
    stages = results['stages']
    metrics = [m for m in (_main(results) if 'dice' in results['metrics'] else results['metrics'])
               if m not in statistics.LOWER_IS_BETTER]

    panels = []
    for m in metrics:
        panels.append(plot.Panel(statistics.display_name(m), y=(len(stages) - 0.5, -0.5), y_names=stages))
        for row, s in enumerate(stages):
            e = results['arms'][ALL][s].get(m)
            trainings = [] if not e else e['folds'].values() if 'folds' in e else e['rounds']
            values = np.array([v for v in trainings if v is not None], float)
            if not len(values):
                continue
            offset = np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else np.zeros(1)
            panels[-1].dots(values, row + offset, figures.COLOURS[row % len(figures.COLOURS)], 3)
            panels[-1].line([values.mean()] * 2, [row - 0.3, row + 0.3], width=1.3)
    legend = tag('p', f'A dot is one training ({", ".join(results["members"])}, from top to bottom), on its own test '
                      'patients; the line is their mean.', class_='dim')
    return join([legend, side_by_side(*(plot.figure([p], (230, 50 * len(stages))) for p in panels))])


def _patients(arms):
    """Largest number of test patients of the stages in {stage: {metric: entry}}: a teacher may lack inputs of some."""
    return max(next(iter(entries.values()))['n_patients'] for entries in arms.values())


def _parts(results):
    """Whether folds or groups were left out."""
    return bool(results['repeated']['folds'] or results['repeated']['leave_out'])


def _left_out(results):
    """The groups that were left out of a training."""
    column = results['repeated']['leave_out']
    return [g for g in results['arms'] if column and g.startswith(f'{column} = ')]


def _main(results):
    """The metrics of the first columns: of labels the primary metric and AUROC."""
    entries = _entries(results)
    main = (statistics.main(entries) if 'dice' in entries else
            dict.fromkeys((statistics.primary_metric(entries), 'auroc')))
    return [m for m in main if m in entries] or results['metrics'][:1]


def _entries(results):
    """{metric: an entry of it} over all patients."""
    return {m: table[m] for table in results['arms'][ALL].values() for m in results['metrics'] if m in table}


def _columns(results):
    """Metrics of the first tables, and those of a folded table of scans."""
    if 'dice' not in results['metrics']:
        return results['metrics'], []
    named = [*statistics.shown(_entries(results)), *(m for m in results['metrics'] if m not in statistics.NAMES)]
    return _main(results), [m for m in named if m not in _main(results)]


def _pair(d):
    return join([name(d['a']), ' \u2212 ', name(d['b'])])


def _cell(entry, sign=False):
    """Value, interval, sd over seeds and, of several folds, their mean and sd."""
    if not entry:
        return DASH
    small = [interval(entry), _sd(entry)]
    if len(entry.get('folds', {})) > 1 and entry['fold_mean'] is not None:
        small.append(f'mean of folds {number(entry["fold_mean"], sign)}, sd {number(entry["fold_sd"])}')
    return join([number(entry['value'], sign), *(tag('small', t) for t in small if t)])


def _line(entry, sign=False):
    if not entry:
        return DASH
    return ' '.join(filter(None, (number(entry['value'], sign), interval(entry), _sd(entry))))


def _sd(entry):
    return f'sd {number(entry["sd"])}' if entry['sd'] is not None else ''
