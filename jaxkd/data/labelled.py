"""A look at the labels of training cases before a dense stage trains: whether there are any, and what crops cut off."""
import collections
from collections.abc import Iterable

import numpy as np

from jaxkd import errors
from jaxkd.contracts import Record
from jaxkd.data import volume
from jaxkd.data.dataset import Dataset
from jaxkd.data.source import IGNORED
from jaxkd.data.volume import Volume
from jaxkd.runtime import log

_CASES = {2: 400, 3: 4}  # of the training part that crops are compared with, by dimensions [our choice]
_DRAWS = 16  # random patches of each of them [our choice]
_LEAST = 0.0005  # share of the voxels of a class that is worth a line [our choice]

Counts = dict[str, tuple[int, int]]  # class or mask -> its places in a case that reach the network, and all


def is_dense(dataset: Dataset) -> bool:
    """Whether the label of a case is one of each place."""
    return 'label' in (case := dataset.batch_spec(1)) and case['label'].ndim > 2


def check(dataset: Dataset, stage: str) -> None:
    """BadData where no training case of a dense stage has a place of a class other than the first, background."""
    cases = dataset.partition.train_indices()
    labels = (np.asarray(dataset.prepared(i)['label']) for i in cases)
    if cases and not any(((label > 0) & (label != IGNORED)).any() for label in labels):
        names = ', '.join(dataset.source.labels[1:])
        few = f', of which data.labels leaves {len(dataset.partition.labelled(cases))},' if dataset.label_mask else ''
        raise errors.BadData(
            f'{stage}: in none of the {len(cases)} training cases of {dataset.source.name}{few} anything is labelled '
            f'as {names}, the first {dataset.source.id(cases[0])}. Look at the names and values of the masks, and at '
            'what the transforms cut off.')


def check_grid(dataset: Dataset) -> None:
    """ConfigError unless a prediction for the first training case comes back to the grid of its label."""
    if cases := dataset.partition.train_indices():
        record, prepared = dataset.source[cases[0]], dataset.prepared(cases[0])
        if (label := _of_file(record)) is not None:
            dataset.transforms.to_file_grid(np.zeros(prepared['label'].shape, np.uint8), dataset.trace(
                cases[0], record, prepared), label.shape, dataset.source.id(cases[0]))


def report_crops(dataset: Dataset) -> None:
    """Says, in the log, which share of the labelled places of each class, or of masks, the transforms cut off, and of
    random patches what one of them holds.
    """
    if not (cases := dataset.partition.train_indices()) or not (dense := is_dense(dataset)) and not (
            dataset.source.crop_regions(cases[0])):
        return
    limit = _CASES[dataset.batch_spec(1)['label'].ndim - 1 if dense else 3]
    looked_at = [cases[i] for i in np.unique(np.linspace(0, len(cases) - 1, limit).round().astype(int))]
    cut = _shares_outside((_label_counts if dense else _region_counts)(dataset, i) for i in looked_at)
    if cut:
        log.info(f'{dataset.source.name}: of the labelled places of {len(looked_at)} training cases the transforms cut '
                 f'off {", ".join(f"{100 * share:.1f} % of {name}" for name, share in cut.items())}')
    if dense and (not_held := _shares_outside(_patch_counts(dataset, i) for i in looked_at)):
        held = ', '.join(f'{100 * (1 - share):.1f} % of {name}' for name, share in not_held.items())
        log.info(f'{dataset.source.name}: of the labelled places of a training case a random patch holds {held} on '
                 f'average ({_DRAWS} patches of {len(looked_at)} cases), other patches the others')


def _shares_outside(counts: Iterable[Counts]) -> dict[str, float]:
    """{class or mask: share of its places in all cases that is not inside}, where that is worth a line."""
    inside: collections.Counter[str] = collections.Counter()
    total: collections.Counter[str] = collections.Counter()
    for of_case in counts:
        for name, (reached, places) in of_case.items():
            inside[name] += reached
            total[name] += places
    return {name: share for name, n in total.items() if n and (share := 1 - inside[name] / n) >= _LEAST}


def _label_counts(dataset: Dataset, i: int) -> Counts:
    """Counts of each class of a dense label, on the grid of its file."""
    record, prepared, labels = dataset.source[i], dataset.prepared(i), dataset.source.labels
    if (label := _of_file(record)) is None:
        return {}
    reached = dataset.transforms.inverse(np.ones(prepared['label'].shape, np.uint8), dataset.trace(i, record, prepared))
    if reached.shape != label.shape:
        return {}
    inside, total = (np.bincount(part.ravel().astype(np.uint8), minlength=256) for part in (label[reached > 0], label))
    return {name: (int(inside[c]), int(total[c])) for c, name in enumerate(labels) if c}


def _of_file(record: Record) -> np.ndarray | None:
    """The label of each place of a record of the source, if it has one."""
    label = record.get('label')
    return label.voxels if isinstance(label, Volume) else label


def _patch_counts(dataset: Dataset, i: int) -> Counts:
    """Counts of each class in random patches of a case, as `patch` cuts them, and in as many whole ones."""
    cuts = [t for t in dataset.transforms.augment if t.eval_mode and (t.writes is None or 'label' in t.writes)]
    if not cuts:
        return {}
    whole = dataset.prepared(i)
    total, held = np.bincount(whole['label'].ravel(), minlength=256) * _DRAWS, np.zeros(256, int)
    for draw in range(_DRAWS):
        rng, record = np.random.default_rng((i, draw)), whole
        for transform in cuts:
            record = transform.apply(record, rng)
        held += np.bincount(record['label'].ravel(), minlength=256)
    return {name: (int(held[c]), int(total[c])) for c, name in enumerate(dataset.source.labels) if c}


def _region_counts(dataset: Dataset, i: int) -> Counts:
    """Counts of each mask that a crop is centred on, on the grid of the mask; random crops at their middle."""
    record, prepared = dataset.source[i], dataset.prepared(i)
    counts: Counts = {}
    for key, mask in dataset.source.crop_regions(i).items():
        scan = record[key]
        alone = {k: v for k, v in record.items() if k == key or not isinstance(v, Volume)}
        place = np.arange(prepared[key].size, dtype=np.int32).reshape(prepared[key].shape)
        kept = np.zeros(prepared[key].shape[:3], np.uint8)
        kept.flat[dataset.transforms.evaluate({**prepared, key: place})[key].ravel()] = 1
        reached = dataset.transforms.inverse(kept, dataset.trace(i, alone, prepared))
        on_mask = volume.resample(Volume(reached, scan.affine), mask.affine, mask.voxels.shape, order=0)
        counts[f'the mask of {key}'] = (int((mask.voxels & (on_mask > 0)).sum()), int(mask.voxels.sum()))
    return counts
