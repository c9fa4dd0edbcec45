"""The page of repeated trainings, and its main numbers as plain text: of what `jaxkd.multirun.pooling.pool` found."""
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.report import classes, figures, shortcuts, statistics
from jaxkd.report.html_page import document
from jaxkd.report.markup import DASH, Html, details, interval, join, name, number, table, tag
from jaxkd.runtime import files

Found = Mapping[str, Any]  # what repeat.json holds, see jaxkd/multirun/pooling.py
ALL = 'all'  # the group of every test patient
SCANS = ('dice', 'iou', 'hd95_mm', 'hd95_voxel', 'assd_mm', 'nsd', 'volume_error_ml', 'abs_volume_error_ml')  # by class
OF_LABELS = ('sensitivity', 'specificity', 'auroc')  # by label


def text(found: Found) -> str:
    """The main numbers as plain text, for a terminal: of every group, and the differences over all patients."""
    metrics, lines, held = [m for m in _main(found) if m != 'nsd'], [], _held(found)

    def row(what: str, entries: Mapping[str, Any], sign: bool = False) -> None:
        lines.append(f'  {what:24}' + ''.join(f'{_line(entries.get(m), sign):40}' for m in metrics).rstrip())
    for group, of in found['arms'].items():
        pooled = _parts(found) and group not in (*held, *found['external'])
        lines.append(f'{group}, {_patients(of):,} test patients' + (', all folds pooled' if pooled else ''))
        lines.append(f'  {"":24}' + ''.join(f'{statistics.display_name(m):40}' for m in metrics).rstrip())
        for s, entries in of.items():
            row(s, entries)
        for d in found['differences'][group] if group in (ALL, *found['external']) else ():
            row(f'{d["a"]} - {d["b"]}', d['metrics'], sign=True)
    return '\n'.join(lines)


def page(found: Found, workdir: str | os.PathLike) -> str:
    """HTML text of what `jaxkd.multirun.pooling.pool` found."""
    title = f'Repeated: {pathlib.Path(workdir).resolve().name}'
    held = _held(found)
    others = [g for g in found['arms'] if g not in (ALL, *held, *found['external'])]
    sections = {
        'Arms': [_arms(found)],
        'Shortcuts': [shortcuts.of_repeat(found, files.read_json(pathlib.Path(workdir, next(iter(found['members'])),
                                                                              'config.json'),
                                                                 'The config of a member'))],
        f'Each {found["repeated"]["leave_out"]} left out': [_groups(found, held, (
            'Patients of the group that was left out of the training.'))],
        'Classes': [_classes(found), _confusion(found)],
        'Other data': [_groups(found, found['external'], 'Data that no member was trained on, tested by the same '
                                                         'networks.')],
        'Groups': [_groups(found, others, f'Groups of {statistics.FEWEST} patients or more.')],
        'Paired differences': [_differences(found) or tag(
            'p', 'No two stages were tested on the same cases and labels.', class_='dim'),
                               _by_group(found, [*held, *others])],
        'Metrics of the summaries': [_further(found)],
        'Every training': [_strips(found)],
        'Members': [tag('ul', *(tag('li', tag('a', m, href=f'{m}/report.html')) for m in found['members']))]}
    body = [tag('h1', title), *(tag('p', p) for p in what(found)), *(tag('p', n, class_='note')
                                                                     for n in found['notes']),
            *(tag('section', tag('h2', head), *parts) for head, parts in sections.items() if any(parts))]
    return document(title, body)


def what(found: Found) -> list[str]:
    """What was repeated, what is shared and what an interval speaks of, in words: a list of paragraphs."""
    about, n = found['repeated'], f'{found["patients"]:,} patients ({found["cases"]:,} cases)'
    seeds, parts = len(about['seeds']), _parts(found)
    said = [f'{len(found["members"])} trainings of one config.']
    if seeds:
        said.append(f'Seeds {", ".join(map(str, about["seeds"]))}: initial weights, data order and augmentation '
                    'differ, the split does not.' if seeds > 1 else f'Seed {about["seeds"][0]}.')
    if about['folds']:
        said.append(f'{about["folds"]} folds: each of {n} is tested once{" for each seed" * (seeds > 1)}, by a network '
                    'that was not trained on this patient.')
    elif parts:
        said.append(f'Each {about["leave_out"]} left out in turn: its patients are tested by a network that was '
                    f'trained on the others; {n} in all.')
    else:
        said.append(f'All members share the same test part of {n}.')
    if parts:
        said.append('"Pooled" takes the out-of-fold predictions of all networks together. ' + (
            'AUROC and AUPRC then rank patients by scores of different networks, whose scales may differ; the mean of '
            'folds does not, but a' if 'auroc' in found['metrics'] else 'Beside it stands the mean of folds; a') +
            ' fold holds few patients, and folds share training patients, so its sd is no standard error.')
    shared = (f'All {seeds} seeds share one data set, one split and the same test patients. ' if seeds > 1 else
              f'All trainings share one data set and one {"division of its patients" if parts else "split"}. ')
    limits = [tag('b', shared, 'No interval holds what another training set or another split would change.'),
              f'Intervals: {100 * found["level"]:g} %, {found["resamples"]:,} resamples of the test patients, the '
              'networks as they are: they say what other test patients would change.']
    if seeds > 1:
        limits.append('Those of a mean over seeds keep the seeds too, and do not shrink with more seeds; sd is that of '
                      f'one training over {seeds} seeds. Those of differences resample patients and seeds'
                      + (', and with so few seeds may be somewhat too narrow.' if seeds < 10 else '.'))
    else:
        limits.append('One seed: what another seed would change is not shown.')
    limits.append('No correction is made for the number of comparisons.')
    return [join(said, ' '), join(limits, ' ')]


def _arms(found):
    first, more = _columns(found)
    seeds = len(found['repeated']['seeds'])

    def shown(metrics: Sequence[str], *note: str) -> Html:
        rows = [[name(s), *(_cell(of.get(m)) for m in metrics)] for s, of in found['arms'][ALL].items()]
        return table(['arm', *map(statistics.display_name, metrics)], rows, ' '.join(filter(None, (
            *note, statistics.lower_is_better(metrics, 'lower is better')))), dense=True)
    return join([shown(
        first, f'{found["patients"]:,} test patients' + (', all folds pooled' if _parts(found) else '') + ':',
        (f'mean over {seeds} seeds, interval over patients, sd over seeds' if seeds > 1 else 'interval over patients')
        + ('; mean of folds and its sd over all trainings.' if _parts(found) else '.')),
        details('Further metrics', shown(more)) if more else ''])


def _groups(found, groups, caption):
    """A row for every group and arm."""
    rows = [[g if i == 0 else '', s, f'{entries[_main(found)[0]]["n_patients"]:,}',
             *(_cell(entries.get(m)) for m in _main(found))] for g in groups for i,
            (s, entries) in enumerate(found['arms'][g].items())]
    return table(['group', 'arm', 'patients', *map(statistics.display_name, _main(found))], rows, caption, firsts=2,
                 dense=True)


def _classes(found):
    """Each class or label by itself."""
    arms, scans = found['arms'][ALL], 'dice' in found['metrics']
    every = {m: e for of in arms.values() for m, e in of.items()}
    wanted = SCANS if scans else OF_LABELS
    known = statistics.classes(every, *wanted)
    shown = [m for m in wanted if any((every.get(f'{m}/{c}') or {}).get('value') is not None for c in known)]
    rows = [[c if i == 0 else '', s, *(_cell(arms[s].get(f'{m}/{c}')) for m in shown)] for c in known for i,
            s in enumerate(arms)]
    return table(['class' if scans else 'label', 'arm', *map(statistics.display_name, shown)], rows,
                 '' if scans else 'Each against all others.', firsts=2, dense=True)


def _confusion(found):
    """Counts of every arm: rows true, columns predicted."""
    seeds = len(found['repeated']['seeds'])
    over = f', of all {seeds} seeds together' if seeds > 1 else ''
    of = f'{"Out-of-fold" if _parts(found) else "Test"} predictions{over}: cases, with the share of the true class.'
    matrices = [classes.matrix(s, confusion['labels'], confusion['counts']) for s,
                confusion in found['confusion'].items()]
    return join([tag('h3', 'Confusion'), tag('p', of, class_='dim'), tag('div', *matrices)]) if matrices else Html('')


def _differences(found):
    seeds = len(found['repeated']['seeds'])
    on = 'patients and seeds' if seeds > 1 else 'patients'

    def shown(metrics: Sequence[str], groups: Iterable[str]) -> Html:
        rows = []
        for group, d in [(g, d) for g in groups for d in found['differences'][g]]:
            cells = [join([_pair(d), tag('small', f'on {group}') if group != ALL else ''])]
            for m in metrics:
                e = d['metrics'].get(m)
                n = len(e['rounds']) if e else 0
                counted = [tag('small', f'above 0 in {e["positive"]} of {n} {"seeds" if n == seeds else "trainings"}'),
                           tag('small',
                               f'own interval above 0 in {e["above"]}, below in {e["below"]}')] if n > 1 else []
                cells.append(join([_cell(e, sign=True), *counted]))
            rows.append(cells)
        return table(['difference', *map(statistics.display_name, metrics)], rows, dense=True, caption=(
            f'The same patients for both; intervals resample {on}. '
            + statistics.lower_is_better(metrics, 'a difference below 0 speaks for the arm named first')))
    first, more = ([m for m in part if m not in statistics.ASIDE or 'dice' not in found['metrics']]
                   for part in _columns(found))
    return join([shown(first, [ALL, *found['external']]),
                 details('Differences in further metrics', shown(more, [ALL, *found['external']])) if more else ''])


def _by_group(found, groups):
    main = _main(found)
    rows = [[g if i == 0 else '', _pair(d), *(_cell(d['metrics'].get(m), sign=True) for m in main)]
            for g in groups for i, d in enumerate(found['differences'][g])]
    return details('Paired differences by group', table(['group', 'difference', *map(statistics.display_name, main)],
                                                        rows, firsts=2, dense=True)) if rows else Html('')


def _further(found):
    """Metrics that stand in the summaries alone."""
    entries = found['further']
    rows = [[metric, *(_line(stages.get(s)) for s in found['stages'])] for metric, stages in entries.items()]
    return table(['metric', *found['stages']], rows, (
        'Mean and sd over all trainings of what the summary of each says. No predictions hold these metrics, so there '
        'is neither an interval nor a paired difference.'))


def _strips(found):
    """One dot for every training, a line at the mean, one panel for each metric of which more is better."""
    stages = found['stages']
    metrics = [m for m in (_main(found) if 'dice' in found['metrics'] else found['metrics'])
               if m not in statistics.LOWER_IS_BETTER]

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
        for axes, m in zip(panels, metrics):
            for row, s in enumerate(stages):
                e = found['arms'][ALL][s].get(m)
                values = np.array([v for v in _every(e) if v is not None], float)
                if not len(values):
                    continue
                colour = figures.COLOURS[row % len(figures.COLOURS)]
                offset = np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else np.zeros(1)
                axes.scatter(values, row + offset, 22, color=colour, alpha=0.8, linewidths=0)
                axes.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color=figures.INK, linewidth=1)
            axes.set(xlabel=statistics.display_name(m), ylim=(len(stages) - 0.5, -0.5))
            axes.set_yticks(range(len(stages)), stages)
            axes.xaxis.get_major_locator().set_params(nbins=5)
    legend = tag('p', f'A dot is one training ({", ".join(found["members"])}, from top to bottom), on its own test '
                      'patients; the line is their mean.', class_='dim')
    return join([legend, figures.svg('repeated', (3 * len(metrics) + 1.2, 0.55 * len(stages) + 1), draw)])


def _every(entry):
    """The value of every member."""
    return [] if not entry else list(entry['folds'].values()) if 'folds' in entry else entry['rounds']


def _patients(arms):
    """How many were tested, at most; {stage: {metric: entry}} of one group. A teacher may lack what it reads of
    some.
    """
    return max(next(iter(entries.values()))['n_patients'] for entries in arms.values())


def _parts(found):
    """Were folds or groups left out?"""
    return bool(found['repeated']['folds'] or found['repeated']['leave_out'])


def _held(found):
    """The groups that were left out of a training."""
    column = found['repeated']['leave_out']
    return [g for g in found['arms'] if column and g.startswith(f'{column} = ')]


def _main(found):
    """The metrics that stand first: of labels the one that decides, and AUROC."""
    every = {m: of[m] for of in found['arms'][ALL].values() for m in found['metrics'] if m in of}
    known = statistics.main(every) if 'dice' in every else dict.fromkeys((statistics.primary_metric(every), 'auroc'))
    return [m for m in known if m in every] or found['metrics'][:1]


def _columns(found):
    """Metrics of the first tables, and those that are folded away where there are many."""
    if 'dice' not in found['metrics']:
        return found['metrics'], []
    every = {m: of[m] for of in found['arms'][ALL].values() for m in found['metrics'] if m in of}
    named = [*statistics.shown(every), *(m for m in found['metrics'] if m not in statistics.NAMES)]
    return _main(found), [m for m in named if m not in _main(found)]


def _pair(d):
    return join([name(d['a']), ' \u2212 ', name(d['b'])])


def _cell(entry, sign=False):
    """Value, interval, sd over seeds and, of several folds, their mean and sd."""
    if not entry:
        return DASH
    small = [interval(entry), f'sd {number(entry["sd"])}' if entry['sd'] is not None else '']
    if len(entry.get('folds', {})) > 1 and entry['fold_mean'] is not None:
        small.append(f'mean of folds {number(entry["fold_mean"], sign)}, sd {number(entry["fold_sd"])}')
    return join([number(entry['value'], sign), *(tag('small', t) for t in small if t)])


def _line(entry, sign=False):
    if not entry:
        return DASH
    return ' '.join(filter(None, (number(entry['value'], sign), interval(entry),
                                  f'sd {number(entry["sd"])}' if entry['sd'] is not None else '')))
