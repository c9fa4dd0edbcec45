"""Comparable stages, and their differences on the same test cases.

Arms are stages with equal inputs, model and data: they differ in the method, its options and its teachers (any other
difference is listed). The kind of an arm follows from the entry of its loss in summary.json (jaxkd/evaluation.py):

no_teacher     no teacher, or a teacher whose terms all have the weight 0
shuffled       a teacher, and an option of it or of the method with "shuffle" in its name is on: its outputs belong to
               other cases
same_modality  the inputs of all teachers are inputs of the arm
privileged     an input of a teacher is not an input of the arm
unknown        the summary does not name the inputs of a teacher

A network that is trained along with the student is a teacher like a frozen one.
"""
import dataclasses
import json
import math
import pathlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from jaxkd.evaluators.predictions.schema import Predictions, RegionScores
from jaxkd.metrics import bootstrap, localisation
from jaxkd.report import statistics
from jaxkd.report.run_folder import Run

KINDS = ('no_teacher', 'shuffled', 'same_modality', 'unknown', 'privileged')  # in the order of arms
# keys that are not listed as differences between arms
SHOWN_ANYWAY = ('method', 'teachers', 'networks', 'evals', 'log_every')
MAPS = ('last_mean', 'grad_cam')  # the map that is compared, of attention or of convolutions; see
# evaluators/localisation.py
MANY = 6  # arms
CONTROLS = ('uniform', 'centred_gaussian', 'mean_map', 'untrained')

Table = dict[str, dict]  # {metric: entry with value, low, high, n_patients, ...}


@dataclasses.dataclass
class Comparison:
    """a minus b. A table is empty where `why` gives a reason."""

    a: str
    b: str
    arms: bool  # False: a student and its teacher
    other_differences: list[str]  # options beside the method that differ between two arms
    metrics: Table = dataclasses.field(default_factory=dict)  # of all predictions and measures
    # by (column, value); {} for several labels a case
    groups: dict[tuple[str, str], Table] = dataclasses.field(default_factory=dict)
    external: dict[str, Table] = dataclasses.field(default_factory=dict)  # by evaluator on external data
    localisation: Table = dataclasses.field(default_factory=dict)
    why: str = ''
    why_no_regions: str = ''

    @property
    def primary_metric(self) -> str:
        """The metric of the verdict."""
        return statistics.primary_metric(self.metrics)


def side(entry: Mapping | None) -> int | None:
    """Sign of the interval: 1 or -1 where it excludes 0, 0 where it includes 0, None without an interval."""
    low, high = (entry or {}).get('low'), (entry or {}).get('high')
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return None
    return 1 if low > 0 else -1 if high < 0 else 0


def teachers(run: Run, stage: str) -> dict[str, str]:
    """{name of a frozen teacher: its finished stage in this run, '' for a teacher of another run}."""
    options, stages = run.options(stage).get('teachers', {}), {}
    for t, provenance in run.stages[stage].get('teachers', {}).items():
        origin = options[t].get('stage', '') if t in options else pathlib.Path(provenance.get('folder', '')).name
        stages[t] = origin if origin in run.stages else ''
    return stages


def co_trained(run: Run, stage: str) -> dict[str, list[str]]:
    """{network that is trained along with the student: its inputs}."""
    return {n: network['inputs'] for n, network in run.stages[stage]['other_networks'].items() if not network['frozen']}


def kind(run: Run, stage: str) -> str:
    """One of KINDS, see above."""
    entry = run.stages[stage]
    others = entry['other_networks'].values()
    if not others or not entry['uses_teacher']:
        return 'no_teacher'
    options = [entry.get('method', {}), *run.options(stage).get('teachers', {}).values()]
    if any('shuffle' in key and value for group in options for key, value in group.items()):
        return 'shuffled'
    if any(network['privileged'] for network in others):
        return 'privileged'
    return 'unknown' if any(network['inputs'] is None for network in others) else 'same_modality'


def arms(run: Run) -> list[list[str]]:
    """Finished stages with equal inputs, model and data: a list of lists, baselines first.

    Arms may differ in whether they draw labelled cases alone (data.labels.only), which tells them nothing more.
    """
    groups: dict[str, list[str]] = {}
    for s, entry in run.stages.items():
        hp = run.options(s)
        data = {k: v for k, v in _flat(hp.get('data') or {}).items() if k != 'labels.only'}
        key = [entry.get('inputs'), hp.get('input_fn'), hp.get('model', entry.get('model')), data]
        groups.setdefault(json.dumps(key, sort_keys=True), []).append(s)
    return [sorted(group, key=lambda s: KINDS.index(kind(run, s))) for group in groups.values()]


def comparisons(run: Run) -> list[Comparison]:
    """Every pair of arms (of more than MANY, see `_pairs`), then every student and its teacher."""
    of_arms = {pair: True for group in arms(run) for pair in _pairs(run, group)}
    of_teachers = {(s, t): False for s in run.stages for t in teachers(run, s).values() if t}
    return [_comparison(run, a, b, same_arm) for (a, b), same_arm in (of_arms | of_teachers | of_arms).items()]


def _pairs(run: Run, group: list[str]) -> list[tuple[str, str]]:
    """Pairs of a group of `arms`; of more than MANY each with the first, the baseline, and what is privileged with the
    controls that a claim needs.
    """
    if len(group) <= MANY:
        return [(a, b) for i, b in enumerate(group) for a in group[i + 1:]]
    kinds = {s: kind(run, s) for s in group}
    students, controls = ([s for s in group if kinds[s] in chosen] for chosen in (
        ('privileged', 'unknown'), ('shuffled', 'same_modality')))
    return [*((a, group[0]) for a in group[1:]), *((s, c) for c in controls for s in students)]


def _comparison(run: Run, a: str, b: str, same_arm: bool) -> Comparison:
    c = Comparison(a, b, same_arm, _other_differences(run, a, b) if same_arm else [])
    c.metrics, c.why = classified(run, a, b)
    c.external = {e: table for e in run.other_images() for table in [classified(run, a, b, e)[0]] if table}
    if same_arm:
        c.groups = _grouped(run, a, b)
        c.localisation, c.why_no_regions = _localised(run, a, b)
    return c


def compared_map(names: Collection[str]) -> str:
    """The first of MAPS among the names of maps, or of maps with a metric behind them; '' without one."""
    found = {name.partition('/')[0] for name in names}
    return next((map for map in MAPS if map in found), '')


def against_controls(run: Run, stage: str) -> dict[str, Table]:
    """{control: differences of the map of the stage minus that control} on the boxes or regions of the stage."""
    regions = run.regions.get(stage, {})
    own = compared_map(regions)
    return {control: _paired_regions(run, regions[own], regions[control]) for control in CONTROLS
            if own and control in regions and _same_regions(regions[own], regions[control])}


def gap_closed(run: Run, student: str, baseline: str, teacher: str) -> dict:
    """(student - baseline) / (teacher - baseline) in the primary metric, on the cases that all three have."""
    parts, why = _shared(run, (student, baseline, teacher))
    if why:
        return {}

    def ratio(weights: np.ndarray) -> np.ndarray:
        s, b, t = (statistics.point(p, weights) for p in parts)
        return bootstrap.ratio(s - b, t - b)
    return bootstrap.interval(ratio, parts[0].patients, **run.bootstrap)


def _shared(run: Run, stages: Sequence[str], evaluator: str = '') -> tuple[list[Predictions], str]:
    """Predictions of several stages on their common cases, in the same order -> ([Predictions], '' or why not).

    Of scans, see `statistics.alike`.
    """
    predictions = run.external[evaluator] if evaluator else run.predictions
    if missing := [s for s in stages if s not in predictions]:
        return [], f'there are no test predictions of {" and ".join(missing)}'
    parts = [predictions[s] for s in stages]
    scans = all(p.segmented for p in parts)
    if any((p.labels, p.exclusive) != (parts[0].labels, parts[0].exclusive) for p in parts) and not scans:
        return [], 'their labels are not the same'
    rows = [{c: i for i, c in enumerate(p.cases)} for p in parts]
    cases = [c for c in rows[0] if all(c in row_of for row_of in rows)]
    if not cases:
        return [], 'they have no test case in common'
    parts = [p.take(np.array([row_of[c] for c in cases])) for p, row_of in zip(parts, rows)]
    # what else an evaluator of the user measures has no direction that is known here
    parts = statistics.alike(parts) if scans else [dataclasses.replace(p, measures={}) for p in parts]
    if scans and not parts[0].segmented:
        return [], 'they do not segment the same classes'
    if not (scans or parts[0].labels):
        return [], 'they hold neither labels nor Dice'
    weight = np.min([p.weight for p in parts], axis=0)
    if any((p.label != parts[0].label)[weight > 0].any() for p in parts):
        return [], 'some cases have other labels in one than in the other'
    return [dataclasses.replace(p, weight=weight) for p in parts], ''


def classified(run: Run, a: str, b: str, evaluator: str = '') -> tuple[Table, str]:
    """(differences a minus b in every metric, '' or why there are none); evaluator: '' or one on external data."""
    parts, why = _shared(run, (a, b), evaluator)
    return ({}, why) if why else (statistics.paired(*parts, **run.bootstrap), '')


def _grouped(run: Run, a: str, b: str) -> dict[tuple[str, str], Table]:
    """{(column, value): differences} of every group of their common cases; {} for several labels a case."""
    parts, why = _shared(run, (a, b))
    if why or not (parts[0].exclusive or parts[0].measures):
        return {}
    return {group: statistics.paired(*(p.take(rows) for p in parts), **run.bootstrap)
            for group, rows in statistics.groups(parts[0]).items()}


def _localised(run: Run, a: str, b: str) -> tuple[Table, str]:
    """(differences a minus b in the map of MAPS that both have, '' or why there are none)."""
    both = {*run.regions.get(a, {})} & {*run.regions.get(b, {})}
    own = {s: compared_map(both) or compared_map(run.regions.get(s, {})) for s in (a, b)}
    if own[a] and own[b] and own[a] != own[b]:
        return {}, f'their maps are of two kinds, {own[a]} and {own[b]}'
    scores = {s: run.regions[s][own[s]] for s in (a, b) if own[s]}
    if len(scores) < 2:
        return {}, 'no boxes or regions were scored for ' + ' and '.join(s for s in (a, b) if s not in scores)
    if not _same_regions(scores[a], scores[b]):
        return {}, 'they were not scored on the same boxes or regions'
    return _paired_regions(run, scores[a], scores[b]), ''


def _same_regions(a: RegionScores, b: RegionScores) -> bool:
    a_regions, b_regions = (list(zip(r.cases, r.findings, r.metrics['auprc_chance'])) for r in (a, b))
    return a_regions == b_regions


def _paired_regions(run: Run, a: RegionScores, b: RegionScores) -> Table:
    return localisation.paired_table(a.rows(), b.rows(), list(a.patients), **run.bootstrap)


def _other_differences(run: Run, a: str, b: str) -> list[str]:
    flat_a, flat_b = _flat(run.options(a)), _flat(run.options(b))
    keys = sorted({*flat_a, *flat_b})
    return [k for k in keys if flat_a.get(k) != flat_b.get(k) and k.partition('.')[0] not in SHOWN_ANYWAY]


def _flat(tree: object, prefix: str = '') -> dict[str, object]:
    if isinstance(tree, dict):
        return {k: v for key, sub in tree.items() for k, v in _flat(sub, f'{prefix}.{key}' if prefix else key).items()}
    return {prefix: tree}
