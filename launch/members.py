"""Members of a sweep, and how lists of them are made.

A sweep file defines `get_sweep()`, a pure function that returns a list of members:

    from launch.members import product, seeds

    def get_sweep():
        return seeds(product('configs/mmpkd_cxr.py:smoke', {'student.method.alpha': (0.25, 0.5)}), (0, 1, 2))
"""
from collections.abc import Iterable, Mapping, Sequence
from itertools import product as _product
from typing import Any, NamedTuple

from jaxkd import errors
from jaxkd.multirun import training_runs


class Member(NamedTuple):
    """One run: a config, and what differs in it."""

    name: str  # of its folder
    config: str  # 'configs/x.py:variant'
    overrides: Mapping[str, Any]  # {'student.optim.lr': 1e-3}

    def assignments(self) -> list[str]:
        """The overrides as a command line has them: 'student.optim.lr=0.001'."""
        return training_runs.assignments(self.overrides)


def single(config: str, name: str = 'base', **overrides: Any) -> list[Member]:
    """One member, for others to be made of: the config as it is."""
    return [Member(name, config, overrides)]


def product(config: str, axes: Mapping[str, Sequence[Any]]) -> list[Member]:
    """Every combination of the values of all axes, {key of the config: values}; the last axis changes fastest."""
    return _named(config, axes, _product(*axes.values()))


def zipped(config: str, axes: Mapping[str, Sequence[Any]]) -> list[Member]:
    """The first values of all axes together, then the second ones, and so on. ConfigError for unequal lengths."""
    if len({len(values) for values in axes.values()}) > 1:
        lengths = ', '.join(f'{key} {len(values)}' for key, values in axes.items())
        raise errors.ConfigError(f'zipped: the axes have different numbers of values ({lengths}). Give equally many, '
                                 'or use product.')
    return _named(config, axes, zip(*axes.values()))


def seeds(members: Iterable[Member], values: Sequence[int]) -> list[Member]:
    """Each member with each seed."""
    return [_with(member, f'seed{seed}', {'seed': seed}) for member in members for seed in values]


def folds(members: Iterable[Member], count: int) -> list[Member]:
    """Each member with each fold of a cross-validation as its test part."""
    return [_with(member, f'fold{i}', {'data.split.folds': count, 'data.split.fold': i})
            for member in members for i in range(count)]


def leave_out(members: Iterable[Member], group: str, values: Sequence[str]) -> list[Member]:
    """Each member with each value of a group of the cases left out of the training, as the test part."""
    return [_with(member, f'{group}_{folder}', {'data.split.leave_out': f'{group}={value}'})
            for member in members for value, folder in training_runs.folder_names(values).items()]


def _with(member: Member, name: str, overrides: Mapping[str, Any]) -> Member:
    return Member(f'{member.name}_{name}', member.config, {**member.overrides, **overrides})


def _named(config: str, axes: Mapping[str, Sequence[Any]], rows: Iterable[tuple]) -> list[Member]:
    points = [dict(zip(axes, values)) for values in rows]
    return [Member(name, config, point) for name, point in zip(training_runs.point_names(points), points)]
