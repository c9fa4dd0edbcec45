"""Rounds: sets of test predictions in which each patient is tested once, of a seed with all its folds together."""
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxkd import errors
from jaxkd.evaluators.predictions.schema import Predictions
from jaxkd.multirun.training_runs import TrainingRun
from jaxkd.report import statistics


def in_order(p: Predictions) -> Predictions:
    """Predictions by case id."""
    return p.take(np.argsort(p.cases, kind='stable'))


def of_stage(by_member: Mapping[str, Predictions], members: Sequence[TrainingRun], stage: str,
             all_alike: bool = False) -> list[Predictions]:
    """{member: predictions} -> a round a seed, its parts joined; all_alike: a round a member if all test the same.

    BadData where seeds differ in their cases, and as `join_parts`.
    """
    if all_alike and all(np.array_equal(p.cases, by_member[members[0].name].cases) for p in by_member.values()):
        return list(by_member.values())
    rounds = [join_parts({m.name: by_member[m.name] for m in members if m.seed == seed}, stage)
              for seed in dict.fromkeys(m.seed for m in members)]
    if not all(np.array_equal(p.cases, rounds[0].cases) for p in rounds):
        raise errors.BadData(f'{stage}: the seeds were tested on different cases, so their mean would compare patients '
                             'instead of seeds. Train all members on the same data.')
    return rounds


def join_parts(parts: Mapping[str, Predictions], stage: str) -> Predictions:
    """{member: predictions} of a round -> their union, sorted by case id. BadData for a patient in two of them."""
    tested_by: dict[str, str] = {}
    for member, p in parts.items():
        if p.labels != next(iter(parts.values())).labels:
            raise errors.BadData(f'{stage}: {member} has other labels than the members before it. Train all members on '
                                 'the same data.')
        for case, patient in zip(p.cases, p.patients):
            if (other := tested_by.setdefault(str(patient), member)) != member:
                raise errors.BadData(f'{stage}: the patient of case {case} is tested by {other} and by {member}, but '
                                     'must be tested once. Is data.split set for this stage alone? Otherwise start in '
                                     'a new --workdir.')
    fields = {f.name: _join([getattr(p, f.name) for p in parts.values()]) for f in dataclasses.fields(Predictions)}
    return in_order(Predictions(**fields))


def _join(values):
    """A field of all parts: arrays concatenated, None where a part has None, other values those of the first part."""
    first = values[0]
    if any(v is None for v in values):
        return None
    if isinstance(first, dict):
        return {k: _join([v[k] for v in values]) for k in first if all(k in v for v in values)}
    return np.concatenate(values) if isinstance(first, np.ndarray) else first


def same_cases(a: Sequence[Predictions], b: Sequence[Predictions]) -> bool:
    """Whether the rounds of two stages hold the same cases with the same labels."""
    if len(a) != len(b) or not all(np.array_equal(p.cases, q.cases) for p, q in zip(a, b)):
        return False
    return all(p.labels == q.labels and p.exclusive == q.exclusive and all(
        np.array_equal(getattr(p, k), getattr(q, k), equal_nan=True) for k in ('label', 'weight'))
        for p, q in map(statistics.alike, zip(a, b)))
