"""batch['class_weight'] = n / (K n_k): rare classes count as much as frequent ones, within the part of the split that a case is in."""
import dataclasses
import functools

import numpy as np

from jaxkd import errors

DEFAULTS = dict()


@dataclasses.dataclass(frozen=True)
class Plan:
    weight: np.ndarray  # float32 [n]
    keep: np.ndarray  # bool [n]: all


def plan(hp, source, split):
    """Raises ConfigError where a case has no single class that is known beforehand."""
    if 'label' not in source.targets:
        raise errors.ConfigError(f'class_weight: source "{source.name}" has no single class for each case that is known beforehand.')
    y, part = np.asarray(source.targets['label']), np.array([split[case.id] for case in source.cases])
    weight = np.ones(len(y), np.float32)
    for name in np.unique(part):
        here = part == name
        for k in np.unique(y[here]):
            weight[here & (y == k)] = here.sum() / (len(source.labels) * (here & (y == k)).sum())
    return Plan(weight, np.ones(len(y), bool))


def build(hp, plan):
    return functools.partial(apply, plan=plan)


def apply(record, plan):
    return {**record, 'class_weight': plan.weight[int(record['index'])]}
