"""The map of a grid: what each arm is worth at each combination of the varied options, from finished members.

gains.json  axes         [{option, name, values}]; the first is that of the curves
            repeated     seeds, folds, leave_out
            arms, roles  of all points, see jaxkd/multirun/arms.py
            metric       of the figures; metrics: all
            level, resamples, patients, cases (of the test part, null where points differ), notes
            points       [{values {option: value}, labelled (patients with labels to train or select by), seeds,
                         members, and a comparison, see arms.py}], in the order of the grid; without members only
                         values: a hole
            equivalence  [{values, arm, labelled, fewest, most, value, low, high, replicates}]: with how many labelled
                         patients the baseline is as good as the arm at that point, read from its curve from `fewest`
                         to `most`; null is more than the most, 0 fewer than the fewest
            regimes      [{text, side}]: a sentence for each student and combination of the further options; side: 1
                         where it is better somewhere and worse nowhere, -1 the other way round, else 0
            failed       {member: reason}
"""
import itertools
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd import errors
from jaxkd.metrics import gain, pooled
from jaxkd.multirun import arms as arm_statistics
from jaxkd.multirun.training_runs import TrainingRun, short_keys
from jaxkd.report import comparison, run_folder, statistics
from jaxkd.report.markup import inline
from jaxkd.runtime import files

SHARE = 'data.labels.share'  # the option whose values are shares of the patients
Point = dict[str, Any]
Results = Mapping[str, Any]


def collect(workdir: str | os.PathLike, members: Sequence[TrainingRun], repeated: Mapping[str, Any],
            varied: Mapping[str, Sequence[Any]], arms: Sequence[str], baseline: str = '', metric: str = '',
            failed: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The content of gains.json. members: finished ones alone; varied: {option: its values}; metric: '' for the primary
    one; failed: {member: reason}.

    ConfigError for a metric or baseline that does not exist; BadData as `rounds.of_stage`, and where nothing is
    finished.
    """
    if not members:
        raise errors.BadData(f'{workdir}: no member is finished, so there is nothing to compare.')
    runs = {m.name: run_folder.read(pathlib.Path(workdir) / m.name) for m in members}
    first = runs[members[0].name]
    chosen = arm_statistics.roles(first, arms, baseline)
    flops = arm_statistics.flops_of(arms, first.folder)
    points, draws = [], []
    for values in (dict(zip(varied, v)) for v in itertools.product(*varied.values())):
        here = _complete([m for m in members if m.point == values])
        point, drawn = _point({m.name: runs[m.name] for m in here}, here, arms, chosen, flops, len(repeated['seeds']))
        points.append(dict(values=values) | point)
        draws.append(drawn)
    metrics = list(dict.fromkeys(m for p in points for m in p.get('ranks', {})))
    if metric:
        errors.check_choice('--metric', metric, metrics)
    metric = metric or next((m for m in (statistics.primary_metric(metrics), *metrics) if m in metrics), '')
    names = dict(zip(varied, short_keys(list(varied))))
    axes = [dict(option=key, name=names[key], values=list(values)) for key, values in varied.items()]
    tested = {(p['patients'], p['cases']) for p in points if 'arms' in p}
    patients, cases = tested.pop() if len(tested) == 1 else (None, None)
    results = dict(axes=axes, repeated=dict(repeated), arms=list(arms), roles=chosen._asdict() | dict(
        kinds=dict(chosen.kinds)), metric=metric, metrics=metrics, level=first.level,
        resamples=first.config.get('bootstrap', 1000), patients=patients, cases=cases, notes=_notes(first, points),
        points=points, equivalence=_equivalence(axes, points, draws, chosen, metric, first.level),
        failed=dict(failed or {}))
    return files.finite(results | dict(regimes=regimes(results)))


def _complete(members: Sequence[TrainingRun]) -> list[TrainingRun]:
    """The members of the seeds with most parts: each seed then tests the same patients."""
    parts: dict[int, set[str]] = {}
    for m in members:
        parts.setdefault(m.seed, set()).add(m.part)
    most = max(parts.values(), key=len, default=set())
    return [m for m in members if parts[m.seed] == most]


def _point(runs: Mapping[str, run_folder.Run], members: Sequence[TrainingRun], arms: Sequence[str],
           chosen: arm_statistics.Roles, flops: Mapping[str, float], seeds: int) -> tuple[Point, Any]:
    """(a point of the map without its values, (test cases, draws of the arms, labels of the ceiling))."""
    if not members:
        return {}, None
    first = runs[members[0].name]
    extra = chosen.ceiling if chosen.ceiling not in arms else ''
    tested = arm_statistics.predictions(runs, members, [*arms, *filter(None, [extra])])
    if not tested:
        raise errors.BadData(f'{first.folder}: no arm has test predictions in every member, so there is nothing to '
                             'compare. Give the stages an evaluator that writes predictions, such as '
                             'evals.classification.')
    found, draws = arm_statistics.compare(tested, chosen, first.config.get('bootstrap', 1000), first.level, extra)
    base = tested.get(chosen.baseline) or next(iter(tested.values()))
    told = [labelled_patients(run, chosen.baseline) for run in runs.values() if chosen.baseline in run.stages]
    used = list(dict.fromkeys(m.seed for m in members))
    point = dict(labelled=float(np.mean(told)) if told else None, seeds=used, missing_seeds=max(0, seeds - len(used)),
                 members=[m.name for m in members], patients=len(set(base[0].patients)), cases=len(base[0].cases),
                 cost=arm_statistics.cost(runs, arms, flops))
    return point | found, (tuple(map(str, base[0].cases)), len(used), draws)


def labelled_patients(run: run_folder.Run, stage: str) -> int:
    """How many patients have labels that a stage may use, to train and to select."""
    entry = run.stages[stage]
    if labels := entry.get('labels'):
        return sum(labels[role]['patients'] for role in ('train', 'val'))
    return sum(entry.get('patients', {}).get(role, 0) for role in ('train', 'val'))


def _notes(first: run_folder.Run, points: Sequence[Point]) -> list[str]:
    notes = [f'{e["source"].get("name", "")}: {e["source"]["note"]}' for e in first.stages.values()
             if e.get('source', {}).get('note')]
    if fewer := [p for p in points if p.get('missing_seeds')]:
        notes.append(f'{len(fewer)} of {len(points)} points have fewer seeds than asked for, as members failed.')
    return list(dict.fromkeys(notes))


def _equivalence(axes: Sequence[Mapping], points: Sequence[Point], draws: Sequence[Any],
                 chosen: arm_statistics.Roles, metric: str, level: float) -> list[dict[str, Any]]:
    """Entries of gains.json: [] unless labels differ along the first axis, with the same test cases and seeds."""
    found: list[dict[str, Any]] = []
    option = axes[0]['option'] if axes else ''
    others = {tuple(str(v) for k, v in p['values'].items() if k != option) for p in points}
    for rest in sorted(others):
        line = [(p, d) for p, d in zip(points, draws) if d is not None and chosen.baseline in d[2]
                and tuple(str(v) for k, v in p['values'].items() if k != option) == rest]
        line.sort(key=lambda pair: pair[0]['labelled'])
        labels = [p['labelled'] for p, _ in line]
        if len(set(labels)) < 2 or len(set(labels)) < len(labels) or len({d[:2] for _, d in line}) > 1:
            continue
        means = [{arm: arm_statistics.sign(metric) * pooled.over_rounds(table[metric]) for arm, table in d[2].items()
                  if metric in table} for _, d in line]
        curve = np.array([mean[chosen.baseline] for mean in means])
        for (p, _), mean in zip(line, means):
            for arm in (a for a in p['compared'] if a != chosen.baseline and a in mean):
                entry = gain.equivalent_labels(mean[arm], curve, labels, level)
                if math.isnan(entry['value']):
                    continue
                found.append(dict(values=p['values'], arm=arm, labelled=p['labelled'], fewest=labels[0],
                                  most=labels[-1], **entry))
    return found


def regimes(results: Results) -> list[dict[str, Any]]:
    """One sentence for each combination of the options behind the first: where the students are better than the best
    control, where worse, and where no difference is seen, by the intervals alone. See `regimes` of gains.json.
    """
    axis, metric, students = next(iter(results['axes']), None), results['metric'], results['roles']['students']
    sentences = []
    for rest in rests(results):
        for student in students:
            sides: dict[int, list[str]] = {1: [], -1: [], 0: []}
            for p in (p for p in results['points'] if rest.items() <= p['values'].items()):
                entry = p.get('against_best', {}).get(student, {}).get(metric)
                if (side := comparison.side(entry)) is not None:
                    shown = f'{place(axis, p)} ({inline(entry, sign=True)} against {entry["control"]})'.lstrip()
                    sides[side * arm_statistics.sign(metric)].append(shown)
            if any(sides.values()):
                where = ', '.join(f'{key} = {value}' for key, value in rest.items())
                text = _sentence(student, statistics.display_name(metric), sides, where)
                sentences.append(dict(text=text, side=bool(sides[1]) - bool(sides[-1])))
    return sentences


def rests(results: Results, behind: int = 1) -> list[dict[str, Any]]:
    """The combinations of the varied options behind the first ones, {option: value}; [{}] without any."""
    axes = results['axes'][behind:]
    return [dict(zip((a['option'] for a in axes), v)) for v in itertools.product(*(a['values'] for a in axes))]


def _sentence(student: str, metric: str, sides: Mapping[int, Sequence[str]], where: str) -> str:
    """sides: {1 (better), -1 (worse), 0 (not seen): places with their intervals}, not all of them empty."""
    words = {1: f'{student} is better than the best control in {metric}',
             -1: f'{student} is worse than the best control in {metric}',
             0: f'no difference between {student} and the best control is seen in {metric}'}
    short = {1: 'it is better', -1: 'it is worse', 0: 'no difference is seen'}
    parts: list[str] = []
    for side, places in sides.items():
        if places and places[0].startswith('('):  # no option is varied
            parts.append(f'{words[side]} {places[0]}')
        elif places:
            parts.append(f'{_listed(places)} {(short if parts else words)[side]}')
    text = '; '.join(parts)
    return (f'With {where}: {text}.' if where else f'{text[0].upper()}{text[1:]}.')


def _listed(parts: Sequence[str]) -> str:
    return f'{", ".join(parts[:-1])} and {parts[-1]}' if len(parts) > 1 else parts[0]


def place(axis: Mapping[str, Any] | None, point: Mapping[str, Any]) -> str:
    """How a sentence names a value of an axis: 'at 5 % of the labels', 'at alpha = 0.5'; '' without an axis."""
    if axis is None:
        return ''
    value = point['values'][axis['option']]
    if axis['option'] == SHARE:
        return 'with all labels' if value == 1 else f'at {tick(axis, value)} of the labels'
    return f'at {axis["name"]} = {tick(axis, value)}'


def axis_label(axis: Mapping[str, Any]) -> str:
    """What stands below an axis of a figure."""
    return 'share of the patients with labels' if axis['option'] == SHARE else axis['name']


def tick(axis: Mapping[str, Any], value: Any) -> str:
    """A value of an axis as text: '5 %' of the labels, '0.5'."""
    if axis['option'] == SHARE:
        return f'{100 * value:.3g} %'
    return f'{value:g}' if isinstance(value, float) else str(value)


def is_number(axis: Mapping[str, Any]) -> bool:
    """Whether all values of an axis are numbers, which then have places on a scale."""
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in axis['values'])
