"""Which stages can be compared, and by how much they differ on the same test cases.

Arms are stages with equal inputs, model and data: between them only the method, its options and its teachers differ
(what else does is said). What an arm is for follows from what summary.json says of its loss (jaxkd/evaluation.py):

no_teacher     no teacher, or one that cannot teach: every term that it has a hand in has the weight 0
shuffled       a teacher, and one of its options or the method's with "shuffle" in its name is on: it teaches nothing of
               the case at hand
same_modality  teachers that read nothing but what the arm reads itself
privileged     a teacher reads something that the arm does not
unknown        a teacher of which the summary does not say what it reads

A network that is trained along with a stage's own is a teacher like a frozen one.
"""
import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from jaxkd.evaluators.predictions.schema import Predictions, RegionScores
from jaxkd.metrics import bootstrap, localisation
from jaxkd.report import statistics
from jaxkd.report.run_folder import Run

KINDS = ('no_teacher', 'shuffled', 'same_modality', 'unknown', 'privileged')  # in the order of arms
SHOWN_ANYWAY = ('method', 'teachers', 'networks', 'evals', 'log_every')  # differences between arms that need no mention
MAP = 'last_mean'  # the map that counts; see evaluators/localisation.py
MANY = 6  # arms
CONTROLS = ('uniform', 'centred_gaussian', 'mean_map', 'untrained')

Table = dict[str, dict]  # {metric: entry with value, low, high, n_patients, ...}


@dataclasses.dataclass
class Comparison:
    """a minus b. A table is empty where `why` says why."""

    a: str
    b: str
    arms: bool  # or else a student and its teacher
    other_differences: list[str]  # options that differ between two arms beside the method
    metrics: Table = dataclasses.field(default_factory=dict)  # of everything in the predictions, segmentations too
    # by (column, value), unless of several labels
    groups: dict[tuple[str, str], Table] = dataclasses.field(default_factory=dict)
    external: dict[str, Table] = dataclasses.field(default_factory=dict)  # by evaluator on external data
    localisation: Table = dataclasses.field(default_factory=dict)
    why: str = ''
    why_no_regions: str = ''

    @property
    def primary_metric(self) -> str:
        """The metric that the two are judged by."""
        return statistics.primary_metric(self.metrics)


def side(entry: Mapping | None) -> int | None:
    """On which side of 0 the interval lies: 1, -1, 0 when it includes 0, None when there is no interval."""
    low, high = (entry or {}).get('low'), (entry or {}).get('high')
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return None
    return 1 if low > 0 else -1 if high < 0 else 0


def teachers(run: Run, stage: str) -> dict[str, str]:
    """{name of a frozen teacher: finished stage of this run that it is, '' when it came from another run}."""
    options, found = run.options(stage).get('teachers', {}), {}
    for t, provenance in run.stages[stage].get('teachers', {}).items():
        origin = options[t].get('stage', '') if t in options else pathlib.Path(provenance.get('folder', '')).name
        found[t] = origin if origin in run.stages else ''
    return found


def reads(run: Run, stage: str, network: str) -> list[str] | None:
    """Inputs of another network of a stage, None where the summary does not say them."""
    return run.stages[stage]['other_networks'][network]['inputs']


def co_trained(run: Run, stage: str) -> dict[str, list[str]]:
    """{network that is trained along with the stage's own: its inputs}."""
    return {n: network['inputs'] for n, network in run.stages[stage]['other_networks'].items() if not network['frozen']}


def uses_teacher(run: Run, stage: str) -> bool:
    """Has any term that comes from another network a weight, at any time?"""
    return run.stages[stage]['uses_teacher']


def kind(run: Run, stage: str) -> str:
    """One of KINDS, see above."""
    entry = run.stages[stage]
    others = entry['other_networks'].values()
    if not others or not uses_teacher(run, stage):
        return 'no_teacher'
    options = [entry.get('method', {}), *run.options(stage).get('teachers', {}).values()]
    if any('shuffle' in option and value for given in options for option, value in given.items()):
        return 'shuffled'
    if any(network['privileged'] for network in others):
        return 'privileged'
    return 'unknown' if any(network['inputs'] is None for network in others) else 'same_modality'


def arms(run: Run) -> list[list[str]]:
    """Finished stages with equal inputs, model and data: a list of lists, baselines first."""
    found: dict[str, list[str]] = {}
    for s, entry in run.stages.items():
        hp = run.options(s)
        key = [entry.get('inputs'), hp.get('input_fn'), hp.get('model', entry.get('model')), hp.get('data')]
        found.setdefault(json.dumps(key, sort_keys=True), []).append(s)
    return [sorted(group, key=lambda s: KINDS.index(kind(run, s))) for group in found.values()]


def comparisons(run: Run) -> list[Comparison]:
    """Every pair of arms (of many, each and the first, the baseline), then every student and its teacher."""
    pairs = [(a, b, True) for group in arms(run) for i, b in enumerate(group[:1] if len(group) > MANY else group)
             for a in group[i + 1:]]
    pairs += [(s, t, False) for s in run.stages for t in teachers(run, s).values() if t]
    found = {}
    for a, b, same_arm in pairs:
        if (a, b) not in found:
            found[a, b] = c = Comparison(a, b, same_arm, _other_differences(run, a, b) if same_arm else [])
            c.metrics, c.why = classified(run, a, b)
            c.external = {e: table for e in run.other_images() for table in [classified(run, a, b, e)[0]] if table}
            if same_arm:
                c.groups = _grouped(run, a, b)
                c.localisation, c.why_no_regions = _localised(run, a, b)
    return list(found.values())


def against_controls(run: Run, stage: str) -> dict[str, Table]:
    """{control: differences of the map that counts minus that control} on the stage's own boxes or regions."""
    regions = run.regions.get(stage, {})
    out = {}
    for control in CONTROLS:
        if MAP in regions and control in regions and _same_regions(regions[MAP], regions[control]):
            out[control] = _paired_regions(run, regions[MAP], regions[control])
    return out


def gap_closed(run: Run, student: str, baseline: str, teacher: str) -> dict:
    """(student - baseline) / (teacher - baseline) in the measure that decides, on the cases that all three have."""
    parts, why = _shared(run, (student, baseline, teacher))
    if why:
        return {}

    def ratio(weights: np.ndarray) -> np.ndarray:
        s, b, t = (statistics.point(p, weights) for p in parts)
        return bootstrap.ratio(s - b, t - b)
    return bootstrap.interval(ratio, parts[0].patients, **run.bootstrap)


def _shared(run: Run, stages: Sequence[str], evaluator: str = '') -> tuple[list[Predictions], str]:
    """Predictions of several stages on the cases that all have, in one order -> ([Predictions], '' or why not).

    Of scans, see `statistics.alike`.
    """
    given = run.external[evaluator] if evaluator else run.predictions
    missing = [s for s in stages if s not in given]
    if missing:
        return [], f'there are no test predictions of {" and ".join(missing)}'
    parts = [given[s] for s in stages]
    scans = all(p.measures for p in parts)
    if any((p.labels, p.exclusive) != (parts[0].labels, parts[0].exclusive) for p in parts) and not scans:
        return [], 'their labels are not the same'
    rows = [{c: i for i, c in enumerate(p.cases)} for p in parts]
    cases = [c for c in rows[0] if all(c in at for at in rows)]
    if not cases:
        return [], 'they have no test case in common'
    parts = [p.take(np.array([at[c] for c in cases])) for p, at in zip(parts, rows)]
    if scans:
        parts = statistics.alike(parts)
        if not any(m.partition('/')[0] == 'dice' for m in parts[0].measures):
            return [], 'they do not segment the same classes'
    used = np.min([p.weight for p in parts], axis=0)
    if any((p.label != parts[0].label)[used > 0].any() for p in parts):
        return [], 'some cases have other labels in one than in the other'
    return [dataclasses.replace(p, weight=used) for p in parts], ''


def classified(run: Run, a: str, b: str, evaluator: str = '') -> tuple[Table, str]:
    """(differences a minus b in every metric, of an evaluator on other data if one is named, '' or why there are
    none).
    """
    parts, why = _shared(run, (a, b), evaluator)
    if why:
        return {}, why
    return statistics.paired(*parts, **run.bootstrap), ''


def _grouped(run: Run, a: str, b: str) -> dict[tuple[str, str], Table]:
    """{(column, value): differences} of every group of the cases that both have, unless these have several labels
    each.
    """
    parts, why = _shared(run, (a, b))
    if why or not (parts[0].exclusive or parts[0].measures):
        return {}
    return {group: statistics.paired(*(p.take(rows) for p in parts), **run.bootstrap)
            for group, rows in statistics.groups(parts[0]).items()}


def _localised(run: Run, a: str, b: str) -> tuple[Table, str]:
    """(differences a minus b in the map that counts, '' or why there are none)."""
    scores = {s: run.regions[s][MAP] for s in (a, b) if MAP in run.regions.get(s, {})}
    if len(scores) < 2:
        return {}, 'no boxes or regions were scored for ' + ' and '.join(s for s in (a, b) if s not in scores)
    if not _same_regions(scores[a], scores[b]):
        return {}, 'they were not scored on the same boxes or regions'
    return _paired_regions(run, scores[a], scores[b]), ''


def _same_regions(a: RegionScores, b: RegionScores) -> bool:
    return (list(a.cases), list(a.findings), list(a.metrics['auprc_chance'])) == (
        list(b.cases), list(b.findings), list(b.metrics['auprc_chance']))


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
