"""The arms of one config compared over all seeds: intervals, differences, p values, ranks, gaps closed, costs.

A comparison holds, as JSON
    arms          {arm: {metric: entry as in repeat.json}}, of every arm with test predictions
    compared      students and controls, which have the baseline's network, data and test cases: ranks are theirs, and
                  p values are corrected for their number
    roles         {baseline, students, controls, ceiling, kinds {arm: see report/comparison.py}}
    differences   {arm: {metric: entry with p and p_holm}}: arm - baseline, of all arms with its test cases; p_holm is
                  corrected for the number of compared arms
    against_best  {student: {metric: entry with control, p and p_holm}}: student - the best control in each resample
    ranks         {metric: {arm: {value, low, high, first}}}, 1 is the best
    gap_closed    {student: {metric: entry with ceiling}}: share of the distance from the baseline to the ceiling
    cost          {arm: {steps, seconds, total_seconds, peak_memory, parameters, flops}}, means over trainings;
                  total_seconds with the stages that the arm starts from, flops of a prediction of one case

Intervals of arms resample patients and keep the seeds, all others resample patients and seeds (metrics/pooled.py).
"""
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxkd import errors
from jaxkd.evaluators.predictions.schema import Predictions
from jaxkd.metrics import bootstrap, gain, pooled
from jaxkd.multirun import rounds
from jaxkd.multirun.training_runs import TrainingRun
from jaxkd.report import comparison, run_folder, statistics

Draws = dict[str, dict[str, np.ndarray]]  # {arm: {metric: [rounds, 1 + n]}}
COSTS = ('steps', 'seconds', 'total_seconds', 'peak_memory', 'parameters', 'flops')


class Roles(NamedTuple):
    """What each arm is for."""

    baseline: str  # '' without any
    students: tuple[str, ...]  # which learn from what they are not given
    controls: tuple[str, ...]  # the other arms with the network and data of the students, the baseline too
    ceiling: str  # '': nothing that the gap could be measured with
    kinds: Mapping[str, str]


def roles(run: run_folder.Run, arms: Sequence[str], baseline: str = '') -> Roles:
    """The roles of arms in a finished run. baseline: chosen by the user, '' for the first arm without a teacher.

    Students are the privileged arms, or, where there are none, all that are taught; arms of one network and data, with
    the labels of the same patients, are compared. The ceiling is an arm without a teacher that differs from the
    baseline in that it sets whose labels it has, else the teacher of a student. ConfigError for a baseline that is no
    arm.
    """
    if baseline:
        errors.check_choice('--baseline', baseline, arms)
    kinds = {arm: comparison.kind(run, arm) for arm in arms if arm in run.stages}
    groups = [[arm for arm in kinds if arm in group] for group in comparison.arms(run)]
    taught = [arm for arm in kinds if kinds[arm] in ('privileged', 'unknown')]
    group = next((g for g in groups if baseline in g), None) or max(
        groups, key=lambda g: (sum(arm in taught for arm in g), len(g)), default=[])
    alone = [arm for arm in arms if arm in group and kinds[arm] == 'no_teacher']
    baseline = baseline or next(iter(alone or [arm for arm in arms if arm in group]), '')
    students = tuple(arm for arm in arms if arm in group and arm in taught and arm != baseline)
    if not students:
        students = tuple(arm for arm in arms if arm in group and arm != baseline and kinds[arm] != 'no_teacher')
        controls: tuple[str, ...] = (baseline,) if baseline else ()
    else:
        controls = tuple(arm for arm in arms if arm in group and arm not in students)
    return Roles(baseline, students, controls, _ceiling(run, kinds, baseline, students), kinds)


def _ceiling(run: run_folder.Run, kinds: Mapping[str, str], baseline: str, students: Sequence[str]) -> str:
    def apart_from_labels(arm: str) -> list[Any]:
        options = run.options(arm)
        data = {key: value for key, value in (options.get('data') or {}).items() if key != 'labels'}
        return [options.get('inputs'), options.get('input_fn'), options.get('model'), data]
    group = next((g for g in comparison.arms(run) if baseline in g), [])
    for arm in (arm for arm, kind in kinds.items() if kind == 'no_teacher' and baseline and arm not in group):
        if apart_from_labels(arm) == apart_from_labels(baseline):
            return arm
    teachers = [t for s in students for t in comparison.teachers(run, s).values() if t]
    return next((t for t in teachers if t in run.predictions), '')


def predictions(runs: Mapping[str, run_folder.Run], members: Sequence[TrainingRun],
                arms: Sequence[str]) -> dict[str, list[Predictions]]:
    """{arm: a round a seed} of the arms with test predictions in every member. BadData as `rounds.of_stage`."""
    having = [arm for arm in arms if all(arm in run.predictions for run in runs.values())]
    return {arm: rounds.of_stage({m.name: rounds.in_order(runs[m.name].predictions[arm]) for m in members}, members,
                                 arm) for arm in having}


def compare(tested: Mapping[str, list[Predictions]], chosen: Roles, resamples: int, level: float,
            extra: str = '') -> tuple[dict[str, Any], Draws]:
    """(the comparison without costs, draws of the compared arms). tested: see `predictions`; extra: the ceiling, if it
    is no arm.
    """
    base = chosen.baseline or next(iter(tested), '')
    alike = [arm for arm in tested if base in tested and rounds.same_cases(tested[arm], tested[base])]
    compared = [arm for arm in alike if arm == base or arm in (*chosen.students, *chosen.controls)]
    together = [statistics.alike(parts) for parts in zip(*(tested[arm] for arm in alike))]
    draws = {arm: pooled.draws([parts[i] for parts in together], n=resamples, seed=0) for i, arm in enumerate(alike)}
    others = {arm: pooled.draws(found, n=resamples, seed=0) for arm, found in tested.items() if arm not in alike}
    values = {arm: {metric: {**pooled.mean(v, level), **_counts(tested[arm][0], metric)} for metric, v in table.items()}
              for arm, table in (draws | others).items() if arm != extra}
    first = next(iter(draws.values()), {})
    metrics = [m for m in first if '/' not in m and all(m in table for table in draws.values())]
    means = {metric: {arm: sign(metric) * pooled.over_rounds(draws[arm][metric]) for arm in alike}
             for metric in metrics}
    found = dict(arms={arm: values[arm] for arm in tested if arm in values}, compared=compared,
                 roles=chosen._asdict() | dict(kinds=dict(chosen.kinds)),
                 differences=_differences(draws, [a for a in alike if a != extra], compared, base, metrics, level),
                 against_best=_against_best(means, chosen, level),
                 ranks={metric: gain.ranks({arm: by_arm[arm] for arm in compared}, level)
                        for metric, by_arm in means.items()},
                 gap_closed=_gaps(means, chosen, level))
    return found, draws


def sign(metric: str) -> int:
    """1, or -1 of a metric whose smaller values are better."""
    return -1 if metric in statistics.LOWER_IS_BETTER else 1


def _counts(p: Predictions, metric: str) -> dict[str, int]:
    rows = statistics.counted(p, metric)
    return dict(n_patients=len(set(p.patients[rows])), n_cases=int(rows.sum()))


def _differences(draws: Draws, shown: Sequence[str], compared: Sequence[str], base: str, metrics: Sequence[str],
                 level: float) -> dict[str, dict[str, dict]]:
    tables: dict[str, dict[str, dict]] = {arm: {} for arm in shown if arm != base}
    for metric in metrics:
        gaps = {arm: draws[arm][metric] - draws[base][metric] for arm in tables}
        p = {arm: gain.p_value(pooled.over_rounds(gap)) for arm, gap in gaps.items()}
        corrected = gain.holm({arm: p[arm] for arm in gaps if arm in compared})
        for arm, gap in gaps.items():
            tables[arm][metric] = pooled.difference(gap, level) | dict(p=p[arm], p_holm=corrected.get(arm, math.nan))
    return tables


def _against_best(means: Mapping[str, Mapping[str, np.ndarray]], chosen: Roles, level: float) -> dict[str, dict]:
    tables: dict[str, dict] = {student: {} for student in chosen.students}
    for metric, by_arm in means.items():
        controls = {arm: by_arm[arm] for arm in chosen.controls if arm in by_arm}
        found = {s: gain.against_best(by_arm[s], controls) for s in tables if s in by_arm and controls}
        corrected = gain.holm({s: gain.p_value(draws) for s, (_, draws) in found.items()})
        for s, (control, draws) in found.items():
            draws = sign(metric) * draws
            tables[s][metric] = bootstrap.summary(draws[0], draws[1:], level) | dict(
                control=control, p=gain.p_value(draws), p_holm=corrected[s])
    return {s: table for s, table in tables.items() if table}


def _gaps(means: Mapping[str, Mapping[str, np.ndarray]], chosen: Roles, level: float) -> dict[str, dict]:
    tables: dict[str, dict] = {}
    for metric, by_arm in means.items():
        if chosen.ceiling in by_arm and chosen.baseline in by_arm:
            for student in (s for s in chosen.students if s in by_arm):
                entry = gain.gap_closed(by_arm[student], by_arm[chosen.baseline], by_arm[chosen.ceiling], level)
                tables.setdefault(student, {})[metric] = entry | dict(ceiling=chosen.ceiling)
    return tables


def cost(runs: Mapping[str, run_folder.Run], arms: Sequence[str], flops: Mapping[str, float]) -> dict[str, dict]:
    """{arm: {COSTS}}: means over trainings, None where it is not known. flops: see `flops_of`."""
    def mean(arm: str, key: str) -> float | None:
        values = [run.stages[arm].get(key) for run in runs.values() if arm in run.stages]
        known = [v for v in values if v is not None]
        return float(np.mean(known)) if known else None

    def total(arm: str) -> float | None:
        first = next(iter(runs.values()))
        needed = {arm, *_origins(first, arm)}
        parts = [mean(stage, 'seconds') for stage in needed]
        return None if None in parts else sum(v for v in parts if v is not None)
    return {arm: dict(steps=mean(arm, 'steps'), seconds=mean(arm, 'seconds'), total_seconds=total(arm),
                      peak_memory=mean(arm, 'peak_memory'), parameters=mean(arm, 'parameters'), flops=flops.get(arm))
            for arm in arms}


def _origins(run: run_folder.Run, stage: str) -> set[str]:
    """The stages of the run that a stage starts from or learns from, directly or not."""
    options = run.options(stage)
    inits = [options.get('init', {}), *(n.get('init', {}) for n in options.get('networks', {}).values())]
    named = [o.get('stage', '') for o in (*inits, *options.get('teachers', {}).values()) if not o.get('path')]
    found = {name for name in named if name and name in run.stages}
    return found.union(*(_origins(run, name) for name in found))


def flops_of(arms: Sequence[str], workdir: pathlib.Path) -> dict[str, float]:
    """{arm: floating-point operations of a prediction of one case} of the arms of a finished run; nothing is compiled.
    Arms whose data are not here any more are left out.
    """
    from jaxkd import config, stages
    from jaxkd.data.pool import DataPool
    pool, found = DataPool(), {}
    for arm in arms:
        try:
            run_config = config.load(workdir / 'config.json')
            found[arm] = stages.trained_student(run_config, arm, workdir, pool).flops()
        except errors.JaxkdError:  # such as data that moved since
            continue
    return found
