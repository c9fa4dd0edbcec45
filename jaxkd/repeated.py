"""What came out of repeated trainings, pooled: repeat.json and report.html of a folder of members (jaxkd.repeat).

A round is the test predictions of one seed, of all folds together where there are folds. Cases of a round are tested once.

repeat.json  repeated     seeds, folds, leave_out
             members      {folder: seed, part (fold or left-out value)}
             stages, metrics, labels, level, resamples, patients, cases, notes
             arms         {group: {stage: {metric: entry}}}, group 'all' or 'subgroup = challenging', entry
                          value, low, high (mean over rounds, interval over patients), sd, rounds, n_patients, n_cases and,
                          with parts, fold_mean, fold_sd, folds {member: value}
             differences  {group: [{a, b, metrics: {metric: entry}}]}, a - b, entry as above with positive, above, below
"""
import dataclasses
import math
import pathlib

import numpy as np

from jaxkd import errors, files
from jaxkd.metrics import pooled
from jaxkd.report import CSS, compare, figures, measure, read
from jaxkd.report.markup import DASH, details, interval, join, name, number, table, tag

ALL, BY = 'all', 'subgroup'  # every test patient; the group of cases that is looked at by itself


def write(workdir, members, about):
    """Pool finished members and write repeat.json and report.html -> what repeat.json holds."""
    workdir = pathlib.Path(workdir)
    found = pool(workdir, members, about)
    files.write_json(workdir / 'repeat.json', found)
    files.write(workdir / 'report.html', page(found, workdir))
    return found


def pool(workdir, members, about):
    """The content of repeat.json. members: name (a folder of workdir), seed and part; about: seeds, folds, leave_out.

    Raises BadData when a patient is tested twice in a round or rounds differ in their test cases.
    """
    runs = {m.name: read.read(pathlib.Path(workdir) / m.name) for m in members}
    first = next(iter(runs.values()))
    stages = [s for s in first.stages if all(s in run.predictions for run in runs.values())]
    if not stages:
        raise errors.BadData(f'{workdir}: no stage has test predictions in every member, so there is nothing to pool. Give the '
                             'stages an evaluator that writes predictions, such as evals.classify.')
    rounds, own = {}, {}
    for s in stages:
        own[s] = {m: run.predictions[s] for m, run in runs.items()}
        rounds[s] = [join_parts({m.name: own[s][m.name] for m in members if m.seed == seed}, s)
                     for seed in dict.fromkeys(m.seed for m in members)]
        for other in rounds[s][1:]:
            if not np.array_equal(other.cases, rounds[s][0].cases):
                raise errors.BadData(f'{s}: the seeds were tested on different cases, so their mean would compare patients '
                                     'instead of seeds. Train all members on the same data.')
    how = dict(n=first.config.get('bootstrap', 1000), seed=0)
    arms, differences = {}, {}
    for group in _groups(rounds[stages[0]][0], about['leave_out']):
        drawn = {s: _draw(rounds[s], group, how) for s in stages if len(_rows(rounds[s][0], group))}
        parts = {s: _points(own[s], group) if about['folds'] or about['leave_out'] else {} for s in drawn}
        arms[group] = {s: {metric: {**pooled.mean(values, first.level), **_counts(rounds[s][0], group),
                                    **_folds({m: of[metric] for m, of in parts[s].items()})}
                           for metric, values in drawn[s].items()} for s in drawn}
        differences[group] = [
            dict(a=a, b=b, metrics={metric: {
                **pooled.difference(drawn[a][metric] - drawn[b][metric], first.level), **_counts(rounds[a][0], group),
                **_folds({m: parts[a][m][metric] - parts[b][m][metric] for m in parts[a]})} for metric in drawn[a]})
            for a, b in _pairs(first, rounds) if a in drawn]
    patients = len(set(rounds[stages[0]][0].patients))
    total = sum(first.stages[stages[0]].get('patients', {}).values())
    notes = [f'{e["source"].get("name", "")}: {e["source"]["note"]}' for e in first.stages.values()
             if e.get('source', {}).get('note')]
    left = [s for s in first.names if s not in stages]
    notes += [f'Not pooled, as not every member has test predictions of them: {", ".join(left)}'] if left else []
    if (about['folds'] or about['leave_out']) and patients < total:
        notes.append(f'{total - patients} of {total} patients are in no test part')
    return _plain(dict(
        repeated=about, members={m.name: dict(seed=m.seed, part=m.part) for m in members}, stages=stages,
        metrics=list(dict.fromkeys(m for of in arms[ALL].values() for m in of if '/' not in m)), level=first.level,
        resamples=how['n'], patients=patients, cases=len(rounds[stages[0]][0].cases), notes=list(dict.fromkeys(notes)), arms=arms,
        differences=differences))


def join_parts(parts, stage):
    """{member: predictions} of one round -> all of them, in the order of case ids. BadData where a patient is in two."""
    seen = {}
    for member, p in parts.items():
        if p.labels != next(iter(parts.values())).labels:
            raise errors.BadData(f'{stage}: {member} has other labels than the members before it. Train all members on the '
                                 'same data.')
        for case, patient in zip(p.cases, p.patients):
            if seen.setdefault(str(patient), member) != member:
                raise errors.BadData(f'{stage}: the patient of case {case} is tested by {seen[str(patient)]} and by {member}, but '
                                     'must be tested once. Is data.split set for this stage alone? Otherwise start in a '
                                     'new --workdir.')
    first = next(iter(parts.values()))
    arrays = {k: np.concatenate([getattr(p, k) for p in parts.values()]) for k in ('cases', 'patients', 'label', 'weight',
                                                                                  'logit')}
    groups = {g: np.concatenate([p.groups[g] for p in parts.values()]) for g in first.groups
              if all(g in p.groups for p in parts.values())}
    whole = dataclasses.replace(first, **arrays, groups=groups)
    return whole.take(np.argsort(whole.cases, kind='stable'))


def text(found):
    """The main numbers as plain text, for a terminal: of every group, and the differences over all patients."""
    metrics, lines, held = _main(found), [], found['repeated']['leave_out']

    def row(what, entries, sign=False):
        lines.append(f'  {what:24}' + ''.join(f'{_line(entries.get(m), sign):40}' for m in metrics).rstrip())
    for group, of in found['arms'].items():
        lines.append(f'{group}, {_patients(of):,} test patients'
                     + (', all folds pooled' if _any_folds(found) and not (held and group.startswith(f'{held} = ')) else ''))
        lines.append(f'  {"":24}' + ''.join(f'{_called(m):40}' for m in metrics).rstrip())
        for s, entries in of.items():
            row(s, entries)
        for d in found['differences'][ALL] if group == ALL else ():
            row(f'{d["a"]} - {d["b"]}', d['metrics'], sign=True)
    return '\n'.join(lines)


def page(found, workdir):
    """HTML text of what `pool` found."""
    title = f'Repeated: {pathlib.Path(workdir).resolve().name}'
    held, groups = found['repeated']['leave_out'], list(found['arms'])
    own = [g for g in groups if held and g.startswith(f'{held} = ')]
    columns = [g for g in groups if g not in own]
    main, more = _main(found), [m for m in found['metrics'] if m not in _main(found)]

    def by_metric(draw, over):
        further = [details('Further metrics', *(draw(found, m, over) for m in more))] if more else []
        return [*(draw(found, m, over) for m in main), *further]
    body = [tag('h1', title), tag('p', what(found)), *(tag('p', n, class_='note') for n in found['notes']),
            tag('section', tag('h2', 'Arms'), *by_metric(_arms, columns))]
    if own:
        body.append(tag('section', tag('h2', f'Each {held} left out'), *by_metric(_held, own)))
    pairs = [_differences(found, ALL), *(details(f'Paired differences where {g}', _differences(found, g)) for g in groups[1:])]
    body += [tag('section', tag('h2', 'Paired differences'), *(pairs if found['differences'][ALL] else [
                 tag('p', 'No two stages were tested on the same cases and labels.', class_='dim')])),
             tag('section', tag('h2', 'Every training'), _strips(found)),
             tag('section', tag('h2', 'Members'), tag('ul', *(
                 tag('li', tag('a', m, href=f'{m}/report.html')) for m in found['members'])))]
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
            f'<meta name="viewport" content="width=device-width"/>{tag("title", title)}<style>{CSS}</style></head>\n'
            f'<body>{join(body)}</body></html>\n')


def what(found):
    """What was repeated, and what an interval speaks of, in words."""
    about, n = found['repeated'], f'{found["patients"]:,} patients ({found["cases"]:,} cases)'
    seeds, parts = len(about['seeds']), about['folds'] or about['leave_out']
    said = [f'{len(found["members"])} trainings of one config. ']
    if seeds:
        said.append(f'Seeds {", ".join(map(str, about["seeds"]))}: initial weights, data order and augmentation differ, the split '
                    'does not. ' if seeds > 1 else f'Seed {about["seeds"][0]}. ')
    if about['folds']:
        said.append(f'{about["folds"]} folds: each of {n} is tested once{" for each seed" * (seeds > 1)}, by a network that was '
                    'not trained on this patient. ')
    elif about['leave_out']:
        said.append(f'Each {about["leave_out"]} left out in turn: its patients are tested by a network that was trained on the '
                    f'others; {n} in all. ')
    else:
        said.append(f'All members share the same test part of {n}. ')
    if parts:
        said.append('"Pooled" takes the out-of-fold predictions of all networks together. AUROC and AUPRC then rank '
                    'patients by scores of different networks, whose scales may differ; the fold mean does not, but a fold '
                    'holds few patients, and folds share training patients, so its sd is no standard error. ')
    percent = f'{100 * found["level"]:g} %'
    said.append(f'Intervals: {percent}, {found["resamples"]:,} resamples of the test patients, the networks as they are: they '
                'say what other test patients would change, not what other training patients would. ')
    if seeds > 1:
        said.append('Those of a mean over seeds keep the seeds too, and all seeds share the test patients, so they do not '
                    f'shrink with more seeds; sd is that of one training over {seeds} seeds. Those of differences resample '
                    'patients and seeds' + (', and with so few seeds are somewhat too narrow. ' if seeds < 10 else '. '))
    elif not parts or not seeds:
        said.append('One seed: what another seed would change is not shown. ')
    said.append('No correction is made for the number of comparisons.')
    return ''.join(said)


def _arms(found, metric, groups):
    folds = _any_folds(found)
    head = ['arm']
    for g in groups:
        shown = join([g, tag('small', f'{_patients(found["arms"][g]):,} patients')])
        head += [join([shown, tag('small', 'pooled')]), join([g, tag('small', 'mean of folds')])] if folds else [shown]
    rows = []
    for s in found['stages']:
        cells = [name(s)]
        for g in groups:
            e = found['arms'][g].get(s, {}).get(metric)
            cells += [_cell(e), _fold_cell(e)] if folds else [_cell(e)]
        rows.append(cells)
    seeds = len(found['repeated']['seeds'])
    return table(head, rows, f'{_called(metric)}: ' + (f'mean over {seeds} seeds, ' if seeds > 1 else '')
                 + 'interval over patients' + (', sd over seeds' if seeds > 1 else '')
                 + ('; mean and sd of folds over all trainings.' if folds else '.'))


def _held(found, metric, groups):
    rows = []
    for g in groups:
        of = found['arms'][g]
        rows.append([g, f'{_patients(of):,}', *(_cell(of.get(s, {}).get(metric)) for s in found['stages'])])
    return table(['left out', 'patients', *found['stages']], rows,
                 f'{_called(metric)} on the patients of the group that was left out of the training.')


def _differences(found, group):
    metrics, seeds, folds = found['metrics'], len(found['repeated']['seeds']), _any_folds(found)
    rows = []
    for d in found['differences'][group]:
        cells = [join([name(d['a']), ' \u2212 ', name(d['b'])])]
        for m in metrics:
            e = d['metrics'].get(m)
            counted = []
            if e and seeds > 1:
                counted = [tag('small', f'above 0 in {e["positive"]} of {len(e["rounds"])} seeds'),
                           tag('small', f'own interval above 0 in {e["above"]}, below in {e["below"]}')]
            if e and folds and len(e.get('folds', {})) > 1:
                counted.append(tag('small', f'fold mean {number(e["fold_mean"], True)}, sd {number(e["fold_sd"])}'))
            cells.append(join([_cell(e, sign=True), *counted]))
        rows.append(cells)
    on = 'patients and seeds' if seeds > 1 else 'patients'
    return table(['difference', *map(_called, metrics)], rows, f'{group}: the same patients for both; intervals resample {on}.')


def _strips(found):
    """One dot for every training, a line at the mean, one panel for each metric."""
    stages, metrics = found['stages'], found['metrics']

    def draw(figure):
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
            axes.set(xlabel=_called(m), ylim=(len(stages) - 0.5, -0.5))
            axes.set_yticks(range(len(stages)), stages)
            axes.xaxis.get_major_locator().set_params(nbins=5)
    legend = tag('p', f'A dot is one training ({", ".join(found["members"])}, from top to bottom), on its own test patients; '
                 'the line is their mean.', class_='dim')
    return join([legend, figures._svg('repeated', (3 * len(metrics) + 1.2, 0.55 * len(stages) + 1), draw)])


def _every(entry):
    """The value of every member."""
    return [] if not entry else list(entry['folds'].values()) if 'folds' in entry else entry['rounds']


def _patients(arms):
    """How many were tested; {stage: {metric: entry}} of one group."""
    return next(iter(next(iter(arms.values())).values()))['n_patients']


def _any_folds(found):
    return bool(found['repeated']['folds'] or found['repeated']['leave_out'])


def _called(metric):
    return measure.NAMES.get(metric, metric)


def _cell(entry, sign=False):
    if not entry:
        return DASH
    small = [interval(entry), f'sd {number(entry["sd"])}' if entry['sd'] is not None else '']
    return join([number(entry['value'], sign), *(tag('small', t) for t in small if t)])


def _fold_cell(entry):
    if not entry or len(entry.get('folds', {})) < 2:
        return DASH
    return join([number(entry['fold_mean']), tag('small', f'sd {number(entry["fold_sd"])}')])


def _line(entry, sign=False):
    if not entry:
        return DASH
    return ' '.join(filter(None, (number(entry['value'], sign), interval(entry),
                                  f'sd {number(entry["sd"])}' if entry['sd'] is not None else '')))


def _main(found):
    """The metrics that stand first: the one that decides, and AUROC."""
    first = {m: None for m in found['metrics']}
    return list(dict.fromkeys((measure.decisive(first), 'auroc')))


def _groups(p, leave_out):
    """'all', and each value of the group that is looked at by itself and of that which was left out."""
    columns = [c for c in dict.fromkeys((BY, leave_out)) if c in p.groups]
    return [ALL, *(f'{c} = {v}' for c in columns for v in np.unique(p.groups[c]) if v)]


def _rows(p, group):
    column, _, value = group.partition(' = ')
    return np.flatnonzero(p.groups.get(column, np.full(len(p.cases), '')) == value) if value else np.arange(len(p.cases))


def _draw(rounds, group, how):
    return pooled.draws([p.take(_rows(p, group)) for p in rounds], **how)


def _points(own, group):
    """{member: {metric: value}} of the members that have patients of the group."""
    found = {m: pooled.draws([p.take(_rows(p, group))], n=0) for m, p in own.items() if len(_rows(p, group))}
    return {m: {metric: v[0, 0] for metric, v in of.items()} for m, of in found.items()}


def _folds(values):
    if not values:
        return {}
    around = pooled.spread(list(values.values()))
    defined = [v for v in values.values() if not math.isnan(v)]
    return dict(folds=values, fold_mean=float(np.mean(defined)) if defined else math.nan, fold_sd=around['sd'])


def _counts(p, group):
    rows = _rows(p, group)
    return dict(n_patients=len(set(p.patients[rows])), n_cases=len(rows))


def _pairs(run, rounds):
    """(a, b) of stages that predict the same of the same cases: arms of one family first, the later minus the earlier."""
    arms = [(a, b) for family in compare.families(run) for i, b in enumerate(family) for a in family[i + 1:]]
    order = list(rounds)
    others = [(a, b) for i, b in enumerate(order) for a in order[i + 1:] if (b, a) not in arms]
    return [(a, b) for a, b in dict.fromkeys([*arms, *others]) if a in rounds and b in rounds and _same(rounds[a], rounds[b])]


def _same(a, b):
    keys = ('cases', 'label', 'weight')
    return all(p.labels == q.labels and p.classes == q.classes and all(
        np.array_equal(getattr(p, k), getattr(q, k), equal_nan=k != 'cases') for k in keys) for p, q in zip(a, b))


def _plain(tree):
    """For JSON: nan becomes null, numbers of numpy plain ones."""
    if isinstance(tree, dict):
        return {k: _plain(v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_plain(v) for v in tree]
    if isinstance(tree, (float, np.floating)):
        return float(tree) if math.isfinite(tree) else None
    return int(tree) if isinstance(tree, np.integer) else tree
