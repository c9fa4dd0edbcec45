"""The roles of the cases of a source: training, selection (val) and test."""
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import splits
from jaxkd.data.source import Case

ROLES = ('train', 'val', 'test')


@dataclasses.dataclass(frozen=True)
class Partition:
    """All indices are into `cases`, in their order."""

    cases: Sequence[Case]
    split: dict[str, str]  # case id -> part
    roles: dict[str, str]  # 'train', 'val', 'test' -> the parts that play it, such as 'train+clean'
    keep: np.ndarray | None = None  # bool [n]: cases that no transform excludes; None for all
    known: np.ndarray | None = None  # bool [n]: cases whose labels data.labels does not hide; None for all
    only_labelled: bool = False  # training draws from these alone
    train_filter: str = ''  # 'foreground=yes': of the training part, only cases of that group are trained on
    holdout_fold: tuple[int, ...] = ()  # (fold, n_folds): training patients that are not trained on
    seed: int = 0  # of the split, which decides the folds

    @functools.cached_property
    def _indices(self) -> dict[str, list[int]]:
        parts = {role: splits.parts(self.roles[role]) for role in ROLES}
        part_of = [self.split[case.id] for case in self.cases]
        return {role: [i for i, part in enumerate(part_of) if part in parts[role]
                       and (self.keep is None or self.keep[i])] for role in ROLES}

    def indices(self, role: str) -> list[int]:
        """Cases of a role: 'train', 'test' or 'val', of the last those that selection may use: whose label is known."""
        return self.labelled(self._indices[role]) if role == 'val' else list(self._indices[role])

    def cases_of(self, role: str) -> list[int]:
        """Cases of a role, labelled or not."""
        return list(self._indices[role])

    def labelled(self, indices: Sequence[int]) -> list[int]:
        """Those of some cases whose labels may be used."""
        return [i for i in indices if self.known is None or self.known[i]]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the split: sha256 over all (case id, part)."""
        return splits.fingerprint(self.split)

    def train_indices(self) -> list[int]:
        """Cases that training draws from: those of its role, less what holdout_fold and train_filter leave out."""
        return list(self._train_indices)

    @functools.cached_property
    def _train_indices(self) -> list[int]:
        chosen, (name, _, value) = self._indices['train'], self.train_filter.partition('=')
        chosen = self.labelled(chosen) if self.only_labelled else chosen
        if self.holdout_fold:
            if len(self.holdout_fold) != 2:
                raise errors.ConfigError(f'data.holdout_fold = {self.holdout_fold} must be (fold, number of folds), as '
                                         'in (0, 5).')
            held_out = set(self.fold_indices(*self.holdout_fold))
            chosen = [i for i in chosen if i not in held_out]
        if not self.train_filter:
            return chosen
        groups = {f'{k}={v}' for i in chosen for k, v in self.cases[i].groups.items()}
        if self.train_filter not in groups:
            raise errors.ConfigError(f'data.train_filter: no training case has {self.train_filter}.'
                                     f'{errors.nearest(self.train_filter, groups)}')
        return [i for i in chosen if self.cases[i].groups.get(name) == value]

    def fold_indices(self, fold: int, n_folds: int) -> list[int]:
        """Training cases of one fold, whole patients only. ConfigError unless 0 <= fold < n_folds."""
        if not 0 <= fold < n_folds:
            raise errors.ConfigError(f'data.holdout_fold = ({fold}, {n_folds}): the first number counts from 0 to '
                                     f'{n_folds - 1}.')
        return [i for i in self._indices['train'] if splits.fold_of(self.cases[i].patient, n_folds, self.seed) == fold]


def build(config: ConfigDict, cases: Sequence[Case], split: dict[str, str], keep: np.ndarray | None,
          known: np.ndarray | None = None) -> Partition:
    """The Partition of a resolved data config."""
    roles = {role: config[role] for role in ROLES}
    return Partition(cases, split, roles, keep, known, config.labels.only, config.train_filter,
                     tuple(config.holdout_fold), config.split.seed)
