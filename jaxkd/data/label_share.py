"""Labels for few: of the patients outside the test part, a share has labels; those of the others are hidden.

Which patients these are is decided by `data.labels` (options in jaxkd/data/transforms/labels.py) for labels of every
kind, and written into split.json. In each part of the split but the test part patients stand in one order, that of the
draw, of which a share takes the first: a smaller share is part of every larger one.

Hidden means that the source itself does not tell: `HiddenLabels` stands between the files and all that reads labels, so
that neither losses nor class weights, priors, strata or controls can learn what is hidden. Cases of the validation part
without a label take no part in selection. The draw is the one thing that looks at all labels, where `stratify` is set.
"""
import collections
import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record
from jaxkd.data import splits
from jaxkd.data.source import HIDDEN, IGNORED, Source, WrappedSource
from jaxkd.data.volume import Volume

UNKNOWN = -1  # a class that is not known
NONE = ''  # the stratum of patients without any finding


def is_shared(options: ConfigDict) -> bool:
    """Whether options of data.labels hide anything. ConfigError for a share that cannot be."""
    errors.check_range('data.labels.share', options.share, '(0, 1]')
    errors.check_range('data.labels.patients', options.patients, '[0, inf)')
    if options.share < 1 and options.patients:
        raise errors.ConfigError(f'data.labels: share = {options.share:g} and patients = {options.patients} both say '
                                 'how many patients have labels. Set one of them.')
    return bool(options.share < 1 or options.patients)


def labelled(source: Source, split: Mapping[str, str], hp: ConfigDict) -> np.ndarray | None:
    """bool [n]: the cases whose labels are not hidden; None where all are.

    split: {case id: part}; hp: a resolved data config. Every part but that of the test is drawn from alike, at least
    one patient of each. ConfigError for more patients than there are to train on.
    """
    if not is_shared(hp.labels):
        return None
    part_of = {case.patient: split[case.id] for case in source.cases}
    tested, counts = splits.parts(hp.test), collections.Counter(part_of.values())
    patients = sum(counts[part] for part in splits.parts(hp.train))
    if hp.labels.patients > patients:
        raise errors.ConfigError(f'data.labels.patients = {hp.labels.patients}: the training part has {patients} '
                                 'patients.')
    share = hp.labels.patients / patients if hp.labels.patients else hp.labels.share
    strata = _strata(source) if hp.labels.stratify else {}
    chosen = {p for p, part in part_of.items() if part in tested}
    for part in counts.keys() - {*tested}:
        order = ordered([p for p in part_of if part_of[p] == part], strata, f'{hp.split.seed}:labels')
        chosen |= {*order[:max(1, round(share * len(order)))]}
    return np.array([case.patient in chosen for case in source.cases])


def ordered(patients: Iterable[str], strata: Mapping[str, str], salt: str) -> list[str]:
    """Patients in the order of the draw: by a hash, and such that the first k hold of every stratum its share of k, to
    less than one patient and half of one by rounding [our choice].
    """
    rank, members = {p: _hash(f'{salt}:{p}') for p in patients}, collections.defaultdict(list)
    for p in sorted(rank, key=lambda p: (rank[p], p)):
        members[strata.get(p, NONE)].append(p)
    place = {p: (i + 0.5) / len(group) for group in members.values() for i, p in enumerate(group)}
    return sorted(rank, key=lambda p: (place[p], rank[p], p))


def _strata(source: Source) -> dict[str, str]:
    """{patient: the rarest finding or class, by number of patients, that a case of the patient has} [our choice].

    Of labels of places the classes of the further tasks count; empty where there are none.
    """
    has: dict[str, set[str]] = collections.defaultdict(set)
    patients = [case.patient for case in source.cases]
    if (classes := source.targets.get('label')) is not None:
        for patient, k in zip(patients, np.asarray(classes).tolist()):
            has[patient] |= {source.labels[k]} if k >= 0 else set()
    elif source.values is not None:
        for i, c in np.argwhere(np.asarray(source.values) == 1):
            has[patients[i]].add(source.labels[c])
    else:
        for task, known in source.targets.items():
            for patient, k in zip(patients, np.asarray(known).tolist()):
                has[patient] |= {f'{task}={k}'} if k >= 0 else set()
    counts = collections.Counter(name for names in has.values() for name in names)
    return {patient: min(names, key=lambda name: (counts[name], name)) for patient, names in has.items() if names}


@dataclasses.dataclass(frozen=True, eq=False)
class LabelMask:
    """Takes the labels of some cases out of records, whoever read them."""

    hidden: np.ndarray  # bool [n]
    tasks: tuple[str, ...] = ()  # further labels of a record

    def record(self, record: Record, i: int) -> Record:
        """A record of case i, of a source or of a store, behind transforms or not, as training may see it."""
        return hide(record, self.tasks) if self.hidden[i] else record

    def batch(self, stacked: Record, ragged: Sequence[Record], indices: Iterable[int]) -> tuple[Record, list[Record]]:
        """The same for {key: [B, ...]} and the further keys of each case, of the cases `indices`."""
        keys = [key for key in ('label', 'label_weight', *self.tasks) if key in stacked]
        rows = [self.record({key: stacked[key][row] for key in keys}, i) for row, i in enumerate(indices)]
        labels = {key: np.stack([row[key] for row in rows]) for key in keys}
        return {**stacked, **labels}, [self.record(record, i) for record, i in zip(ragged, indices)]


class HiddenLabels(WrappedSource):
    """A source that does not tell the labels of some cases."""

    def __init__(self, source: Source, mask: LabelMask) -> None:
        super().__init__(source)
        self.mask, hidden = mask, mask.hidden
        self.targets = {name: np.where(hidden, UNKNOWN, classes).astype(np.asarray(classes).dtype)
                        for name, classes in source.targets.items()}

    @property
    def values(self) -> np.ndarray | None:  # type: ignore[override]
        """float32 [n,C] of the source, HIDDEN where it does not tell."""
        values = self.source.values
        return None if values is None else np.where(self.mask.hidden[:, None], np.float32(HIDDEN), values)

    def __getitem__(self, i: int) -> Record:
        return self.mask.record(self.source[i], i)


def whole(source: Source) -> Source:
    """The source that tells all labels: for what makes the images, and for what is measured and never learned from."""
    return source.source if isinstance(source, HiddenLabels) else source


def hide(record: Record, tasks: Collection[str] = ()) -> Record:
    """A record without what it says of findings: label, boxes, masks, instances, and the further labels `tasks`.

    Findings become HIDDEN, behind the transform `labels` 0 with weight 0; a class becomes -1, a label of each place
    255. Works on any part of a record, prepared or not.
    """
    out = {key: np.full_like(record[key], UNKNOWN) for key in tasks if key in record}
    if 'label' in record:
        label = record['label']
        if isinstance(label, Volume):
            out['label'] = dataclasses.replace(label, voxels=np.full(label.voxels.shape, IGNORED, np.uint8))
        elif np.ndim(label) > 1:
            out['label'] = np.full(label.shape, IGNORED, np.uint8)
        else:
            finding = 0 if 'label_weight' in record else HIDDEN
            out['label'] = np.full_like(label, finding if np.ndim(label) else UNKNOWN)
    if 'label_weight' in record:
        out['label_weight'] = np.zeros_like(record['label_weight'])
    if 'instances' in record:
        out['instances'] = dataclasses.replace(record['instances'], voxels=np.zeros_like(record['instances'].voxels))
    out |= {key: record[key][:0] for key in ('boxes', 'masks') if key in record}
    return {**record, **out}


def name(options: ConfigDict) -> str:
    """How split.json calls the choice of options of data.labels: 'share=0.05', 'patients=60'."""
    return f'patients={options.patients}' if options.patients else f'share={options.share:g}'


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
