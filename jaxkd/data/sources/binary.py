"""One finding of a source of images with several labels, as two classes: absent (0) and present (1).

For shortcut experiments [our choice, after the specification of specialist teachers]: cases with an unknown finding are
left out, a patient has one image, and the classes are balanced. Ids and labels alone decide, before any image is read;
cases are drawn by a hash of (seed, id), so neither order nor machine matters. A split with `stratify=('class',)` then
keeps the parts balanced, too.

The nested source `of` needs `values` (see jaxkd/data/source.py). Boxes and masks of the finding become those of class
1.
"""
import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import SourcePlugin
from jaxkd.data import source

PLUGIN = SourcePlugin(nested=('of',))
DEFAULTS = dict(
    of={},  # the source inside: name and options
    finding='Pleural Effusion',  # one of its labels
    uncertain='drop',  # cases of raw -1: drop them, or count them as ones or zeros
    blank='drop',  # cases of raw nan, not mentioned: drop them, or count them as zeros
    one=True,  # one image of a patient, the first of the source in which the finding is known; False: all
    balance=True,  # as many cases of one class as of the other, of each part that the archive gives
    most=0,  # most cases of each class, of each such part; 0: all
    seed=0,  # another one chooses other cases for balance and most
)
VALUES = {'drop': np.nan, 'ones': 1.0, 'zeros': 0.0}


def build(hp: ConfigDict) -> source.Source:
    """Raises ConfigError for a finding or a policy that does not exist, BadData where a class has no case left."""
    for key, choices in (('uncertain', tuple(VALUES)), ('blank', ('drop', 'zeros'))):
        if hp[key] not in choices:
            raise errors.ConfigError(f'binary.{key} = "{hp[key]}".{errors.nearest(hp[key], choices)}')
    inside = source.build(hp.of)
    if inside.values is None:
        raise errors.ConfigError(f'binary: source "{hp.of.name}" does not offer the labels of all cases (`values`). '
                                 'Take a source of images with several labels, or use this one without "binary".')
    if hp.finding not in inside.labels:
        raise errors.ConfigError(f'binary.finding = "{hp.finding}".{errors.nearest(hp.finding, inside.labels)}')
    return Binary(inside, inside.labels.index(hp.finding), *_chosen(inside, hp))


def _chosen(inside: source.Source, hp: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """(indices into the cases of the source inside, in its order; their classes int32)."""
    raw = np.asarray(inside.values, np.float32)[:, inside.labels.index(hp.finding)]
    value = np.where(np.isnan(raw), VALUES[hp.blank], np.where(raw == -1, VALUES[hp.uncertain], raw))
    index = np.flatnonzero(~np.isnan(value)).tolist()
    if hp.one:
        first: dict[str, int] = {}
        for i in index:
            first.setdefault(inside.cases[i].patient, i)
        index = sorted(first.values())
    groups: dict[tuple[str, int], list[int]] = {}
    for i in index:
        groups.setdefault((inside.cases[i].split, int(value[i])), []).append(i)
    chosen: list[int] = []
    for part in {split for split, _ in groups}:
        counts = [len(groups.get((part, y), ())) for y in (0, 1)]
        if hp.balance and min(counts) == 0:
            raise errors.BadData(f'binary: {hp.finding} is present in {counts[1]} and absent in {counts[0]} cases'
                                 f'{f" of the part {part}" if part else ""}: nothing to tell apart. Change finding, '
                                 'uncertain or blank.')
        for y in (0, 1):
            limit = min(filter(None, (min(counts) if hp.balance else 0, hp.most)), default=0)
            chosen += by_hash(groups.get((part, y), ()), hp.seed, lambda i: inside.cases[i].id)[:limit or None]
    rows = np.array(sorted(chosen), int)
    return rows, value[rows].astype(np.int32)


def by_hash(items: Iterable, seed: int, name: Callable[[Any], str] = str) -> list:
    """`items` in the order of a hash of (seed, name of the item)."""
    return sorted(items, key=lambda x: hashlib.sha256(f'{seed}:{name(x)}'.encode()).digest())


class Binary(source.Source):
    """See the module's docstring."""

    labels = ('absent', 'present')

    def __init__(self, inside: source.Source, finding: int, index: np.ndarray, label: np.ndarray) -> None:
        self.inside, self.finding, self.index = inside, finding, index
        self.name, self.note, self.skipped = inside.name, inside.note, inside.skipped
        self.targets = {'label': label}
        groups = ({**inside.cases[i].groups, 'class': self.labels[y]} for i, y in zip(index, label))
        self.cases = tuple(dataclasses.replace(inside.cases[i], groups=g) for i, g in zip(index, groups))

    def __getitem__(self, i: int) -> dict[str, Any]:
        record = dict(self.inside[int(self.index[i])])
        boxes = np.asarray(record.get('boxes', np.zeros((0, 5))), np.float32).reshape(-1, 5)
        of_finding = boxes[:, 0] == self.finding
        record['boxes'] = np.concatenate([np.ones((of_finding.sum(), 1), np.float32), boxes[of_finding, 1:]], 1)
        if 'masks' in record:
            record['masks'] = record['masks'][of_finding]
        return {**record, 'label': self.targets['label'][i]}
