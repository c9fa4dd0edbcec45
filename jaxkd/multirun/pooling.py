"""Pooled results of repeated trainings: repeat.json and report.html of a folder of members (jaxkd.multirun.__main__).

A round is the test predictions of a seed, of all its folds together. Cases of a round are tested once.

repeat.json  repeated     seeds, folds, leave_out
             members      {folder: seed, part (fold or left-out value)}
             stages, plain (those with the loss of the labels alone), metrics, external (evaluators on external data),
             level, resamples, patients, cases, notes
             confusion    {stage: {labels, counts [true, predicted]}} of all rounds, where a case has exactly one class
             arms         {group: {stage: {metric: entry}}}, group 'all', 'subgroup = challenging' or an evaluator on
                          external data, entry value, low, high (mean over rounds, interval over patients), sd, rounds,
                          n_patients, n_cases and, with parts, fold_mean, fold_sd, folds {member: value}
             differences  {group: [{a, b, metrics: {metric: entry}}]}, a - b, entry as above with positive, above, below
             comparison   the arms compared, with p values, ranks and costs: jaxkd/multirun/gains.py, of one point
             further      {evaluator/metric: {stage: {value (mean over trainings), sd, members {member: value}}}}: test
                          metrics of summary.json that are not in predictions, such as those of a user's evaluator
"""
import itertools
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd import errors
from jaxkd.evaluators.predictions.schema import Predictions
from jaxkd.metrics import multiclass, pooled
from jaxkd.multirun import arm_tables, gains
from jaxkd.multirun.html_page import ALL, page
from jaxkd.multirun.html_page import text as text
from jaxkd.multirun.rounds import in_order, of_stage, same_cases
from jaxkd.multirun.training_runs import TrainingRun
from jaxkd.report import comparison, run_folder, statistics
from jaxkd.runtime import files


def write(workdir: str | os.PathLike, members: Sequence[TrainingRun], repeated: dict[str, Any],
          arms: Sequence[str] = (), baseline: str = '', metric: str = '') -> dict[str, Any]:
    """Pool finished members, write repeat.json, report.html and the tables of the arms -> the content of repeat.json.

    arms: the stages to compare (default: all); baseline: '' for the first without a teacher; metric: of the
    sentences and tables to read, '' for the main one.
    """
    workdir = pathlib.Path(workdir)
    results = pool(workdir, members, repeated)
    compared = gains.collect(workdir, members, repeated, {}, arms or results['stages'], baseline, metric)
    results['comparison'] = compared
    arm_tables.write(workdir, compared)
    files.write_json(workdir / 'repeat.json', results)
    files.write(workdir / 'report.html', page(results, workdir))
    return results


def pool(workdir: str | os.PathLike, members: Sequence[TrainingRun], repeated: dict[str, Any]) -> dict[str, Any]:
    """The content of repeat.json. members: name (a folder of workdir), seed, part; repeated: seeds, folds, leave_out.

    Raises BadData when a patient is tested twice in a round or rounds differ in their test cases.
    """
    runs = {m.name: run_folder.read(pathlib.Path(workdir) / m.name) for m in members}
    first = next(iter(runs.values()))
    stages = [s for s in first.stages if all(s in run.predictions for run in runs.values())]
    if not stages:
        raise errors.BadData(f'{workdir}: no stage has test predictions in every member, so there is nothing to pool. '
                             'Give the stages an evaluator that writes predictions, such as evals.classification.')
    by_member = {s: {m: in_order(run.predictions[s]) for m, run in runs.items()} for s in stages}
    rounds = {s: of_stage(predictions, members, s) for s, predictions in by_member.items()}
    # the stage with most test cases: teachers are not scored on cases without their inputs
    widest = max(stages, key=lambda s: len(rounds[s][0].cases))
    tested = rounds[widest][0]
    options = dict(n=first.config.get('bootstrap', 1000), seed=0)
    in_parts = bool(repeated['folds'] or repeated['leave_out'])
    arms, differences = {}, {}
    for group in _groups(tested, repeated['leave_out']):
        arms[group], differences[group] = _group(first, rounds, by_member if in_parts else {}, group, options)
    external = {e: {s: {m: in_order(run.external[e][s]) for m, run in runs.items()} for s in by_stage
                    if all(s in run.external.get(e, {}) for run in runs.values())}
                for e, by_stage in first.external.items()}
    for e, by_stage in external.items():
        external_rounds = {s: of_stage(p, members, s, all_alike=True) for s, p in by_stage.items()}
        arms[e], differences[e] = _group(first, external_rounds, {}, ALL, options)
    patients, total = len(set(tested.patients)), sum(first.stages[widest].get('patients', {}).values())
    notes = [f'{e["source"].get("name", "")}: {e["source"]["note"]}' for e in first.stages.values()
             if e.get('source', {}).get('note')]
    if missing := [s for s in first.names if s not in stages]:
        notes.append(f'Not pooled, as not every member has test predictions of them: {", ".join(missing)}')
    if in_parts and patients < total:
        notes.append(f'{total - patients} of {total} patients are in no test part')
    return files.finite(dict(
        repeated=repeated, members={m.name: dict(seed=m.seed, part=m.part) for m in members}, stages=stages,
        plain=[s for s in stages if first.stages[s]['plain']],
        metrics=list(dict.fromkeys(m for table in arms[ALL].values() for m in table if '/' not in m)),
        external=[e for e, by_stage in external.items() if by_stage], level=first.level,
        resamples=options['n'], patients=patients, cases=len(tested.cases), notes=list(dict.fromkeys(notes)),
        confusion={s: _confusion(rounds[s]) for s in stages if rounds[s][0].exclusive}, arms=arms,
        differences=differences, further=_further(runs, stages)))


def arms(workdir: str | os.PathLike, members: Sequence[TrainingRun]) -> dict[str, dict[str, dict]]:
    """{stage: {metric: entry}} over all test patients, as `arms` of repeat.json has them; of the stages with test
    predictions in every member, {} without any. Metrics of the summaries alone have value (mean) and sd.

    Raises BadData as `pool` does.
    """
    runs = {m.name: run_folder.read(pathlib.Path(workdir) / m.name) for m in members}
    first = next(iter(runs.values()))
    tables: dict[str, dict[str, dict]] = {}
    for stage in first.stages:
        if all(stage in run.predictions for run in runs.values()):
            by_member = {m: in_order(run.predictions[stage]) for m, run in runs.items()}
            rounds = of_stage(by_member, members, stage)
            points = _points(by_member if any(m.part for m in members) else {})
            draws = pooled.draws(rounds, n=first.config.get('bootstrap', 1000), seed=0)
            tables[stage] = _entries(draws, rounds[0], points, first.level)
    finished = [s for s in first.stages if all(s in run.stages for run in runs.values())]
    for metric, by_stage in _further(runs, finished).items():
        for stage, entry in by_stage.items():
            tables.setdefault(stage, {})[metric] = entry
    return files.finite(tables)


def _entries(draws: Mapping[str, np.ndarray], tested: Predictions, points: Mapping[str, Mapping[str, float]],
             level: float) -> dict[str, dict]:
    """{metric: entry} of a stage, as in repeat.json; points: of each part."""
    return {metric: {**pooled.mean(values, level), **_counts(tested, metric),
                     **_folds({m: table[metric] for m, table in points.items()})} for metric, values in draws.items()}


def _further(runs: Mapping[str, run_folder.Run], stages: Sequence[str]) -> dict[str, dict[str, dict]]:
    """{evaluator/metric: {stage: {value, sd, members}}} of metrics that every summary holds and no predictions."""
    further: dict[str, dict[str, dict]] = {}
    for stage in stages:
        tables = {member: run.further_metrics(stage) for member, run in runs.items()}
        for metric in (m for m in next(iter(tables.values())) if all(m in table for table in tables.values())):
            values = {member: table[metric]['value'] for member, table in tables.items()}
            spread = pooled.spread(list(values.values()))
            further.setdefault(metric, {})[stage] = dict(value=_mean(values), sd=spread['sd'], members=values)
    return further


def _mean(values: Mapping[str, float]) -> float:
    """Mean of the values that are defined, nan without any."""
    defined = [v for v in values.values() if not math.isnan(v)]
    return float(np.mean(defined)) if defined else math.nan


def _group(run, rounds, parts, group, options):
    """(arms, differences) of a group of cases, as in repeat.json. parts: {stage: {member: predictions}}, or {}."""
    rounds = {s: [p.take(_rows(p, group)) for p in predictions] for s, predictions in rounds.items()}
    rounds = {s: predictions for s, predictions in rounds.items() if len(predictions[0].cases)}
    parts = {s: {m: p.take(rows) for m, p in by_member.items() if len(rows := _rows(p, group))}
             for s, by_member in parts.items()}
    draws = {s: pooled.draws(predictions, **options) for s, predictions in rounds.items()}
    points = {s: _points(parts.get(s, {})) for s in rounds}
    arms = {s: _entries(draws[s], rounds[s][0], points[s], run.level) for s in rounds}
    differences = []
    for a, b in _pairs(run, rounds):
        draws_a, draws_b, points_a, points_b, tested = draws[a], draws[b], points[a], points[b], rounds[a][0]
        if tested.measures:  # the same scans for both
            alike = [statistics.alike(pair) for pair in zip(rounds[a], rounds[b])]
            draws_a, draws_b = (pooled.draws(predictions, **options) for predictions in zip(*alike))
            both = {m: statistics.alike((p, parts[b][m])) for m, p in parts.get(a, {}).items()}
            points_a, points_b = (_points({m: pair[i] for m, pair in both.items()}) for i in (0, 1))
            tested = alike[0][0]
        differences.append(dict(a=a, b=b, metrics={metric: {
            **pooled.difference(draws_a[metric] - draws_b[metric], run.level), **_counts(tested, metric),
            **_folds({m: points_a[m][metric] - points_b[m][metric] for m in points_a})}
            for metric in draws_a if metric in draws_b}))  # only one of them may have a prior
    return arms, differences


def _groups(p, leave_out):
    """'all', each proper subgroup with enough patients, and every value that was left out."""
    subgroups = [group for group, rows in statistics.groups(p).items() if len(rows) < len(p.cases)]
    left_out = [(leave_out, v) for v in np.unique(p.groups.get(leave_out, [])) if v]
    return [ALL, *(f'{column} = {v}' for column, v in dict.fromkeys([*subgroups, *left_out]))]


def _confusion(rounds):
    counts = sum(multiclass.confusion(statistics.predicted(p), p.label.argmax(1), len(p.labels))[0] for p in rounds)
    return dict(labels=list(rounds[0].labels), counts=counts.astype(int).tolist())


def _rows(p, group):
    column, _, value = group.partition(' = ')
    return np.flatnonzero(p.groups.get(column,
                                       np.full(len(p.cases), '')) == value) if value else np.arange(len(p.cases))


def _points(predictions):
    """{member: Predictions} -> {member: {metric: value}}."""
    return {m: {metric: v[0, 0] for metric, v in pooled.draws([p], n=0).items()} for m, p in predictions.items()}


def _folds(values):
    spread = pooled.spread(list(values.values()))
    return dict(folds=values, fold_mean=_mean(values), fold_sd=spread['sd']) if values else {}


def _counts(p, metric):
    rows = statistics.counted(p, metric)
    return dict(n_patients=len(set(p.patients[rows])), n_cases=int(rows.sum()))


def _pairs(run, rounds):
    """(a, b) of stages with the same cases and labels: pairs of arms first, always the later minus the earlier."""
    arms = [(a, b) for group in comparison.arms(run) for i, b in enumerate(group) for a in group[i + 1:]]
    others = [(a, b) for b, a in itertools.combinations(rounds, 2) if (b, a) not in arms]
    return [(a, b) for a, b in dict.fromkeys([*arms, *others]) if a in rounds and b in rounds
            and same_cases(rounds[a], rounds[b])]
