"""batch['class_weight'] = n / (K n_k): rare classes count as much as frequent ones, within the part of the split that a
case is in.
"""
import dataclasses
import functools
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform, TransformPlugin

DEFAULTS: dict[str, Any] = dict()


@dataclasses.dataclass(frozen=True)
class Assignment:
    weight: np.ndarray  # float32 [n]
    keep: np.ndarray  # bool [n]: all


def assign(hp: ConfigDict, source: Any, split: dict[str, str]) -> Assignment:
    """Raises ConfigError where a case has no single class that is known beforehand."""
    if 'label' not in source.targets:
        raise errors.ConfigError(f'class_weight: source "{source.name}" has no single class for each case that is '
                                 'known beforehand.')
    y, part = np.asarray(source.targets['label']), np.array([split[case.id] for case in source.cases])
    weight = np.ones(len(y), np.float32)
    for name in np.unique(part):
        in_part = (part == name) & (y >= 0)  # whose class is known
        for k in np.unique(y[in_part]):
            weight[in_part & (y == k)] = in_part.sum() / (len(source.labels) * (in_part & (y == k)).sum())
    return Assignment(weight, np.ones(len(y), bool))


def build(hp: ConfigDict, assignment: Assignment) -> Transform:
    return Transform(functools.partial(apply, weight=assignment.weight), reads=('index',), writes=('class_weight',))


def apply(record: Record, weight: np.ndarray) -> Record:
    """Adds float32 [], of weight [n]."""
    return {**record, 'class_weight': weight[int(record['index'])]}


PLUGIN = TransformPlugin(assign=assign)
