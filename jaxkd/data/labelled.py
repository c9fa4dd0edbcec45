"""A look at the labels of training cases before a dense stage trains: whether there are any, and what crops cut off."""
from collections.abc import Sequence

import numpy as np

from jaxkd import errors
from jaxkd.data.dataset import Dataset
from jaxkd.data.source import IGNORED
from jaxkd.data.volume import Volume
from jaxkd.runtime import log

_CASES = {2: 400, 3: 4}  # of the training part that crops are compared with, by dimensions [our choice]
_LEAST = 0.0005  # share of the voxels of a class that is worth a line [our choice]


def is_dense(dataset: Dataset) -> bool:
    """Whether the label of a case is one of each place."""
    return 'label' in (case := dataset.batch_spec(1)) and case['label'].ndim > 2


def check(dataset: Dataset, stage: str) -> None:
    """BadData where no training case of a dense stage has a place of a class other than the first, background."""
    cases = dataset.partition.train_indices()
    labels = (np.asarray(dataset.prepared(i)['label']) for i in cases)
    if cases and not any(((label > 0) & (label != IGNORED)).any() for label in labels):
        names = ', '.join(dataset.source.labels[1:])
        raise errors.BadData(
            f'{stage}: in none of the {len(cases)} training cases of {dataset.source.name} anything is labelled as '
            f'{names}, the first {dataset.source.id(cases[0])}. Look at the names and values of the masks, and at what '
            'the transforms cut off.')


def report_crops(dataset: Dataset) -> None:
    """Says, in the log, which share of the labelled places of each class the transforms cut off."""
    if not (cases := dataset.partition.train_indices()):
        return
    limit = _CASES[dataset.batch_spec(1)['label'].ndim - 1]
    looked_at = [cases[i] for i in np.unique(np.linspace(0, len(cases) - 1, limit).round().astype(int))]
    inside, total = np.sum([_counts(dataset, i) for i in looked_at], axis=0)
    share = np.where(total > 0, 1 - inside / np.maximum(total, 1), 0)
    if (share[1:] >= _LEAST).any():
        log.info(f'{dataset.source.name}: of the labelled places of {len(looked_at)} training cases the transforms cut '
                 'off ' + _percentages(dataset.source.labels[1:], share[1:]))


def _percentages(labels: Sequence[str], share: np.ndarray) -> str:
    return ', '.join(f'{100 * s:.1f} % of {label}' for label, s in zip(labels, share.tolist()) if s >= _LEAST)


def _counts(dataset: Dataset, i: int) -> np.ndarray:
    """int64 [2,C]: places of each class of case i that reach the network, and all, on the grid of its file."""
    record, prepared, n = dataset.source[i], dataset.prepared(i), len(dataset.source.labels)
    label = record.get('label')
    if label is None:
        return np.zeros((2, n), np.int64)
    label = label.voxels if isinstance(label, Volume) else np.asarray(label)
    reached = dataset.transforms.inverse(np.ones(prepared['label'].shape, np.uint8), dataset.trace(i, record, prepared))
    if reached.shape != label.shape:
        return np.zeros((2, n), np.int64)
    return np.stack([np.bincount(part.ravel().astype(np.uint8), minlength=256)[:n]
                     for part in (label[reached > 0], label)])
