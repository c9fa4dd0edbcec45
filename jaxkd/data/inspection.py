"""What a source holds, seen before anything is trained: parts, labels, forms of the arrays, equal files."""
import collections
import filecmp
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.contracts import Record
from jaxkd.data import external
from jaxkd.data.source import IGNORED, Source
from jaxkd.data.volume import Volume

# Keys of a record whose form is not worth a line.
NOT_SHOWN = ('case', 'boxes', 'masks', 'centre', 'spacing', 'mask', 'index')


def parts(source: Source, split: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """{part: {'patients', 'studies', 'cases': number}}, train, val and test first. Cases without a study are their own.
    """
    cases: dict[str, list] = {name: [] for name in ('train', 'val', 'test')}
    for case in source.cases:
        cases.setdefault(split[case.id], []).append(case)
    return {part: dict(patients=len({c.patient for c in several}), studies=len({c.study or c.id for c in several}),
                       cases=len(several)) for part, several in cases.items() if several}


def labels(source: Source, split: Mapping[str, str]) -> dict[str, dict[str, dict[str, int]]]:
    """{label: {part: {value: number of cases}}}: 'present', 'absent', 'uncertain', 'not mentioned' of findings, the
    names of classes where labels exclude each other. {} where a label is known of places alone, as in masks.
    """
    part_of = [split[case.id] for case in source.cases]
    found: dict[str, dict[str, dict[str, int]]] = {}
    if source.values is not None:
        for name, column in zip(source.labels, np.asarray(source.values).T):
            found[name] = _counts(part_of, [_MEANING[float(v)] if v == v else 'not mentioned' for v in column])
    classes = {'label': source.labels, **source.tasks}
    for name, values in source.targets.items():
        known = {i: str(c) for i, c in enumerate(classes[name])}
        found['class' if name == 'label' else name] = _counts(part_of, [known.get(int(v), 'unknown') for v in values])
    return found


_MEANING = {1.0: 'present', 0.0: 'absent', -1.0: 'uncertain'}


def _counts(part_of: Sequence[str], meanings: Sequence[str]) -> dict[str, dict[str, int]]:
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for part, meaning in zip(part_of, meanings):
        counts[part][meaning] += 1
    return {part: dict(counter.most_common()) for part, counter in counts.items()}


def chosen(source: Source, split: Mapping[str, str], most: int) -> list[int]:
    """Indices of at most `most` cases, evenly out of every part."""
    if len(source.cases) <= most:
        return list(range(len(source.cases)))
    by_part: dict[str, list[int]] = collections.defaultdict(list)
    for i, case in enumerate(source.cases):
        by_part[split[case.id]].append(i)
    each = max(1, most // max(1, len(by_part)))
    picked = [indices[j] for indices in by_part.values()
              for j in np.unique(np.linspace(0, len(indices) - 1, min(each, len(indices))).astype(int))]
    return picked[:most]


def forms(records: Iterable[Record], classes: Sequence[str] = ()) -> dict[str, list[str]]:
    """{key of a record: what its arrays are like: sizes, type, values, spacing of volumes; characters of texts}.

    classes: names of the classes of a label for each place, whose share of all places is told.
    """
    values: dict[str, list[Any]] = collections.defaultdict(list)
    for record in records:
        for key, value in record.items():
            if isinstance(value, (Volume, str)) or isinstance(value, np.ndarray) and value.ndim > 1:
                values[key].append(value)
    return {key: _form(key, several, classes) for key, several in values.items() if key not in NOT_SHOWN}


def _form(key: str, values: list[Any], classes: Sequence[str]) -> list[str]:
    n = f'in {len(values)} cases'
    if isinstance(values[0], str):
        lengths = [len(v) for v in values]
        return [f'{_span(lengths)} characters {n}' + (f', {lengths.count(0)} empty' if 0 in lengths else '')]
    arrays = [v.voxels if isinstance(v, Volume) else v for v in values]
    sizes = ['x'.join(map(str, shape)) for shape in sorted({a.shape for a in arrays})]
    lines = [f'{" to ".join(sizes) if len(sizes) <= 2 else f"{sizes[0]} to {sizes[-1]}, {len(sizes)} sizes"} {n}']
    types = collections.Counter(str(a.dtype) for a in arrays)
    if key == 'label' and classes:
        counts = np.sum([np.bincount(a.astype(np.int64).ravel(), minlength=IGNORED + 1) for a in arrays], 0)
        total = counts.sum()
        shares = [f'{name} {counts[i] / total:.2%}' for i, name in enumerate([*classes])]
        return [*lines, ', '.join(shares + ([f'ignored {counts[IGNORED] / total:.2%}'] if counts[IGNORED] else []))]
    lines.append(f'{", ".join(types)}, values {min(a.min() for a in arrays):g} to {max(a.max() for a in arrays):g}')
    if (deep := [int(a.max()) for a in arrays if a.dtype == np.uint16]):
        lines.append(f'16-bit grey with up to {max(deep).bit_length()} bits in use: see data.image.bits')
    if isinstance(values[0], Volume):
        spacing = np.array([np.linalg.norm(v.affine[:3, :3], axis=0) for v in values])
        lines.append('spacing ' + ' x '.join(_span(np.round(axis, 2).tolist()) for axis in spacing.T) + ' mm')
    return lines


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f'{low:g}' if low == high else f'{low:g} to {high:g}'


def equal_files(source: Source) -> list[list[int]]:
    """Groups of cases whose first files are equal, byte for byte; of a DICOM folder the first file by name."""
    owner = {external.first_path(source, i): i for i in range(len(source.cases))}
    groups = []
    for paths in external.by_size(owner).values():
        candidates = collections.defaultdict(list)
        for path in paths if len(paths) > 1 else ():
            candidates[external.middle_digest(path)].append(path)
        for several in candidates.values():
            while len(several) > 1:
                first, *rest = several
                equal = [path for path in rest if filecmp.cmp(first, path, shallow=False)]
                if equal:
                    groups.append([owner.get(p, owner.get(os.path.dirname(p), -1)) for p in (first, *equal)])
                several = [path for path in rest if path not in equal]
    return groups
