"""What came out of repeated trainings, pooled: repeat.json and report.html of a folder of members
(jaxkd.multirun.__main__).

A round is the test predictions of one seed, of all folds together where there are folds. Cases of a round are tested
once.

repeat.json  repeated     seeds, folds, leave_out
             members      {folder: seed, part (fold or left-out value)}
             stages, plain (those whose loss is that of the labels alone), metrics, external (evaluators on external
             data), level, resamples, patients, cases, notes
             confusion    {stage: {labels, counts [true, predicted]}} of all rounds together, where a case has one class
             arms         {group: {stage: {metric: entry}}}, group 'all', 'subgroup = challenging' or an evaluator on
                          other data, entry value, low, high (mean over rounds, interval over patients), sd, rounds,
                          n_patients, n_cases and, with parts, fold_mean, fold_sd, folds {member: value}
             differences  {group: [{a, b, metrics: {metric: entry}}]}, a - b, entry as above with positive, above, below
             further      {evaluator/metric: {stage: {value (mean over trainings), sd, members {member: value}}}}: test
                          metrics of summary.json that no predictions hold, such as those of an evaluator of one's own
"""
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd import errors
from jaxkd.evaluators.predictions.schema import Predictions
from jaxkd.metrics import multiclass, pooled
from jaxkd.multirun.html_page import ALL, page
from jaxkd.multirun.html_page import text as text  # of what `write` returns, for a terminal
from jaxkd.multirun.training_runs import TrainingRun
from jaxkd.report import comparison, run_folder, statistics
from jaxkd.runtime import files


def write(workdir: str | os.PathLike, members: Sequence[TrainingRun], about: dict[str, Any]) -> dict[str, Any]:
    """Pool finished members and write repeat.json and report.html -> what repeat.json holds."""
    workdir = pathlib.Path(workdir)
    found = pool(workdir, members, about)
    files.write_json(workdir / 'repeat.json', found)
    files.write(workdir / 'report.html', page(found, workdir))
    return found


def pool(workdir: str | os.PathLike, members: Sequence[TrainingRun], about: dict[str, Any]) -> dict[str, Any]:
    """The content of repeat.json. members: name (a folder of workdir), seed and part; about: seeds, folds, leave_out.

    Raises BadData when a patient is tested twice in a round or rounds differ in their test cases.
    """
    runs = {m.name: run_folder.read(pathlib.Path(workdir) / m.name) for m in members}
    first = next(iter(runs.values()))
    stages = [s for s in first.stages if all(s in run.predictions for run in runs.values())]
    if not stages:
        raise errors.BadData(f'{workdir}: no stage has test predictions in every member, so there is nothing to pool. '
                             'Give the stages an evaluator that writes predictions, such as evals.classification.')
    own = {s: {m: _sorted(run.predictions[s]) for m, run in runs.items()} for s in stages}
    rounds = {s: _rounds(of, members, s) for s, of in own.items()}
    # a teacher is not scored on cases that lack what it reads
    widest = max(stages, key=lambda s: len(rounds[s][0].cases))
    tested = rounds[widest][0]
    how = dict(n=first.config.get('bootstrap', 1000), seed=0)
    parts = own if about['folds'] or about['leave_out'] else {}
    arms, differences = {}, {}
    for group in _groups(tested, about['leave_out']):
        arms[group], differences[group] = _group(first, rounds, parts, group, how)
    external = {e: {s: {m: _sorted(run.external[e][s]) for m, run in runs.items()} for s in of
                     if all(s in run.external.get(e, {}) for run in runs.values())} for e, of in first.external.items()}
    for e, of in external.items():
        arms[e], differences[e] = _group(first, {s: _rounds(p, members, s, shared=True) for s, p in of.items()}, {},
                                         ALL, how)
    patients = len(set(tested.patients))
    total = sum(first.stages[widest].get('patients', {}).values())
    notes = [f'{e["source"].get("name", "")}: {e["source"]["note"]}' for e in first.stages.values()
             if e.get('source', {}).get('note')]
    left = [s for s in first.names if s not in stages]
    notes += [f'Not pooled, as not every member has test predictions of them: {", ".join(left)}'] if left else []
    if (about['folds'] or about['leave_out']) and patients < total:
        notes.append(f'{total - patients} of {total} patients are in no test part')
    plain = [s for s in stages if first.stages[s]['plain']]
    return files.finite(dict(
        repeated=about, members={m.name: dict(seed=m.seed, part=m.part) for m in members}, stages=stages, plain=plain,
        metrics=list(dict.fromkeys(m for of in arms[ALL].values() for m in of if '/' not in m)),
        external=[e for e, of in external.items() if of], level=first.level,
        resamples=how['n'], patients=patients, cases=len(tested.cases), notes=list(dict.fromkeys(notes)),
        confusion={s: _confusion(rounds[s]) for s in stages if rounds[s][0].exclusive}, arms=arms,
        differences=differences, further=_further(runs, stages)))


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


def _sorted(p):
    return p.take(np.argsort(p.cases, kind='stable'))


def _rounds(own, members, stage, shared=False):
    """{member: predictions} -> of each seed, its parts together; `shared`: of each member where all tested the same
    cases.
    """
    if shared and all(np.array_equal(p.cases, own[members[0].name].cases) for p in own.values()):
        return list(own.values())
    rounds = [join_parts({m.name: own[m.name] for m in members if m.seed == seed}, stage)
              for seed in dict.fromkeys(m.seed for m in members)]
    for other in rounds[1:]:
        if not np.array_equal(other.cases, rounds[0].cases):
            raise errors.BadData(f'{stage}: the seeds were tested on different cases, so their mean would compare '
                                 'patients instead of seeds. Train all members on the same data.')
    return rounds


def _group(run, rounds, own, group, how):
    """(arms, differences) of a group of cases, as in repeat.json. own: {stage: {member: predictions}} where these are
    parts.
    """
    def of_group(found: Iterable[Predictions]) -> list[Predictions]:
        return [p.take(_rows(p, group)) for p in found]
    rounds = {s: of_group(of) for s, of in rounds.items()}
    rounds = {s: of for s, of in rounds.items() if len(of[0].cases)}
    own = {s: {m: p for m, p in zip(of, of_group(of.values())) if len(p.cases)} for s, of in own.items()}
    drawn = {s: pooled.draws(of, **how) for s, of in rounds.items()}
    points = {s: _points(own.get(s, {})) for s in rounds}
    arms = {s: {metric: {**pooled.mean(values, run.level), **_counts(rounds[s][0], metric),
                         **_folds({m: of[metric] for m, of in points[s].items()})}
                for metric, values in drawn[s].items()} for s in rounds}
    differences = []
    for a, b in _pairs(run, rounds):
        drawn_a, drawn_b, points_a, points_b, some = drawn[a], drawn[b], points[a], points[b], rounds[a][0]
        if some.measures:  # the same scans for both
            alike = [statistics.alike(pair) for pair in zip(rounds[a], rounds[b])]
            drawn_a, drawn_b = (pooled.draws(of, **how) for of in zip(*alike))
            both = {m: statistics.alike((p, own[b][m])) for m, p in own.get(a, {}).items()}
            points_a, points_b = (_points({m: pair[i] for m, pair in both.items()}) for i in (0, 1))
            some = alike[0][0]
        differences.append(dict(a=a, b=b, metrics={metric: {
            **pooled.difference(drawn_a[metric] - drawn_b[metric], run.level), **_counts(some, metric),
            **_folds({m: points_a[m][metric] - points_b[m][metric] for m in points_a})}
            for metric in drawn_a if metric in drawn_b}))  # one of them alone may have been asked for a prior
    return arms, differences


def join_parts(parts: Mapping[str, Predictions], stage: str) -> Predictions:
    """{member: predictions} of one round -> all of them, in the order of case ids. BadData where a patient is in
    two.
    """
    seen: dict[str, str] = {}
    for member, p in parts.items():
        if p.labels != next(iter(parts.values())).labels:
            raise errors.BadData(f'{stage}: {member} has other labels than the members before it. Train all members on '
                                 'the same data.')
        for case, patient in zip(p.cases, p.patients):
            if seen.setdefault(str(patient), member) != member:
                raise errors.BadData(f'{stage}: the patient of case {case} is tested by {seen[str(patient)]} and by '
                                     f'{member}, but must be tested once. Is data.split set for this stage alone? '
                                     'Otherwise start in a new --workdir.')
    fields = {f.name: _join([getattr(p, f.name) for p in parts.values()]) for f in dataclasses.fields(Predictions)}
    return _sorted(Predictions(**fields))


def _join(values):
    """A field of all parts: rows one after the other, None where a part has none; what is not of a case is the
    first's.
    """
    first = values[0]
    if any(v is None for v in values):
        return None
    if isinstance(first, dict):
        return {k: _join([v[k] for v in values]) for k in first if all(k in v for v in values)}
    return np.concatenate(values) if isinstance(first, np.ndarray) else first


def _groups(p, leave_out):
    """'all', each group of enough patients that are not all, and every value that was left out."""
    some = [group for group, rows in statistics.groups(p).items() if len(rows) < len(p.cases)]
    held = [(leave_out, v) for v in np.unique(p.groups.get(leave_out, [])) if v]
    return [ALL, *(f'{column} = {v}' for column, v in dict.fromkeys([*some, *held]))]


def _confusion(rounds):
    counts = sum(multiclass.confusion(statistics.predicted(p), p.label.argmax(1), len(p.labels))[0] for p in rounds)
    return dict(labels=list(rounds[0].labels), counts=counts.astype(int).tolist())


def _rows(p, group):
    column, _, value = group.partition(' = ')
    return np.flatnonzero(p.groups.get(column, np.full(len(p.cases), ''))
                          == value) if value else np.arange(len(p.cases))


def _points(own):
    """{member: {metric: value}}."""
    found = {m: pooled.draws([p], n=0) for m, p in own.items()}
    return {m: {metric: v[0, 0] for metric, v in of.items()} for m, of in found.items()}


def _folds(values):
    if not values:
        return {}
    return dict(folds=values, fold_mean=_mean(values), fold_sd=pooled.spread(list(values.values()))['sd'])


def _counts(p, metric):
    rows = statistics.counted(p, metric)
    return dict(n_patients=len(set(p.patients[rows])), n_cases=int(rows.sum()))


def _pairs(run, rounds):
    """(a, b) of stages that predict the same of the same cases: arms of one family first, the later minus the
    earlier.
    """
    arms = [(a, b) for family in comparison.arms(run) for i, b in enumerate(family) for a in family[i + 1:]]
    order = list(rounds)
    others = [(a, b) for i, b in enumerate(order) for a in order[i + 1:] if (b, a) not in arms]
    return [(a, b) for a, b in dict.fromkeys([*arms, *others]) if a in rounds and b in rounds
            and _same(rounds[a], rounds[b])]


def _same(a, b):
    if len(a) != len(b) or not all(np.array_equal(p.cases, q.cases) for p, q in zip(a, b)):
        return False
    return all(p.labels == q.labels and p.exclusive == q.exclusive and all(
        np.array_equal(getattr(p, k), getattr(q, k), equal_nan=True) for k in ('label', 'weight'))
        for p, q in map(statistics.alike, zip(a, b)))
