"""Data that evaluators test on beside the run's own, as data.external names it."""
import collections
import contextlib
import filecmp
import hashlib
import os
import stat
from collections.abc import Iterable

from jaxkd import errors
from jaxkd.data import splits
from jaxkd.data.dataset import Dataset, TextSource
from jaxkd.data.source import Source
from jaxkd.state import valid_mask

PARTS = ('test', 'all')
SAMPLE = 2**16  # bytes in the middle of two files of one size that are compared before the files are


def external_dataset(dataset: Dataset, name: str) -> Dataset:
    """What data.external calls `name`; without images where `dataset` opens none."""
    tested = dataset.pool.external(dataset, name)
    return tested.text_only if isinstance(dataset.source, TextSource) else tested


def external_cases(dataset: Dataset, name: str, part: str, key: str) -> tuple[Dataset, list[int]]:
    """(the data that is tested on, indices of its cases): that of the run, or what data.external calls `name`.

    key: of the config, of the evaluator. Raises ConfigError for patients that `dataset` trains on or selects by, and
    for other classes.
    """
    if part not in PARTS:
        raise errors.ConfigError(f'{key}.part = "{part}".{errors.nearest(part, PARTS)}')
    if not name:
        return dataset, dataset.partition.indices('test')
    tested = external_dataset(dataset, name)
    if tuple(tested.source.labels) != tuple(dataset.source.labels):
        raise errors.ConfigError(f'{key}.data: its classes are {", ".join(tested.source.labels)}, this run learns '
                                 f'{", ".join(dataset.source.labels)}. Map them in the source, or test on another one.')
    cases = tested.source.cases
    chosen = tested.partition.indices('test') if part == 'test' else list(range(len(cases)))
    used = {dataset.source.cases[i].patient for role in ('train', 'val') for i in dataset.partition.indices(role)}
    leaked = [cases[i].id for i in chosen if cases[i].patient in used]
    if leaked:
        raise errors.ConfigError(f'{key}.data: {len(leaked)} cases of it (first: {leaked[0]}) are of patients that '
                                 'this run trains on or selects by. Leave these patients out, or use part="test" '
                                 'with the same split.')
    if not chosen:
        raise errors.ConfigError(f'{key}.data: no case of it is in its test part. Set part="all".')
    return tested, chosen


def check_unseen(dataset: Dataset, name: str, part: str, key: str, trained_on: Iterable[str]) -> None:
    """What `external_cases` raises, and ConfigError for patients of other networks and for files that were seen.

    trained_on: digests of the patients that teachers and initial weights were trained on. A file is seen if `dataset`
    trains on it or selects by it under any name and patient: the first file of each case is compared, byte for byte.
    """
    tested, chosen = external_cases(dataset, name, part, key)
    if not name:
        return
    cases, seen = tested.source.cases, {*trained_on}
    leaked = [cases[i].id for i in chosen if not seen.isdisjoint(splits.patient_digests([cases[i]]))]
    if leaked:
        raise errors.ConfigError(f'{key}.data: {len(leaked)} cases of it (first: {leaked[0]}) are of patients that '
                                 'this network, its teachers or its initial weights were trained on. Leave them out.')
    partition = dataset.partition
    used = [i for role in ('train', 'val') for i in partition.indices(role)]
    key_of_copies = ('copies', id(dataset.source), id(tested.source), part, partition.fingerprint, str(partition.roles))
    if copies := dataset.pool.once(key_of_copies, lambda: _copies(dataset.source, used, tested.source, chosen)):
        path, other = copies[0]
        raise errors.ConfigError(f'{key}.data: {len(copies)} files of it are files that this run trains on or selects '
                                 f'by, under whatever patient (first: {path}, equal to {other}). Leave their cases '
                                 'out.')


def has_inputs(dataset: Dataset, name: str, part: str, inputs: Iterable[str]) -> bool:
    """Whether a case of the data that is tested on has any of these inputs of a network."""
    tested, chosen = external_cases(dataset, name, part, 'evals')
    inputs = tuple(inputs)
    return any(float(valid_mask(tested[i], inputs)) > 0 for i in chosen)


def _copies(source: Source, used: Iterable[int], tested: Source, chosen: Iterable[int]) -> list[tuple[str, str]]:
    """(file of a case that is tested, equal file of a case that is used) for each such file."""
    sizes = by_size(first_path(tested, i) for i in chosen)
    patients: dict[str, set[str]] = collections.defaultdict(set)
    for i in used if sizes else ():
        patients[first_path(source, i)].add(source.cases[i].patient)
    candidates = by_size(path for path, of in patients.items() if len(of) == 1)  # others hold a whole data set
    samples = {middle_digest(path): path for size, paths in candidates.items() if size in sizes for path in paths}
    pairs = [(path, samples.get(middle_digest(path), '')) for size, paths in sizes.items() if size in candidates
             for path in paths]
    return [(path, other) for path, other in pairs if other and filecmp.cmp(path, other, shallow=False)]


def first_path(source: Source, i: int) -> str:
    """The first file or DICOM folder of case i, '' where the source has no files."""
    return next(iter(source.paths(i) or ()), '')


def by_size(paths: Iterable[str]) -> dict[int, list[str]]:
    """{bytes: files of that size}, without files that are empty or cannot be read; of a DICOM folder the first by name.
    """
    sizes: dict[int, list[str]] = collections.defaultdict(list)
    for path in dict.fromkeys(paths):
        with contextlib.suppress(OSError):
            status = os.stat(path)
            if stat.S_ISDIR(status.st_mode):
                path = min((entry.path for entry in os.scandir(path)), default='')
                status = os.stat(path)
            if status.st_size:
                sizes[status.st_size].append(path)
    return sizes


def middle_digest(path: str) -> tuple[int, str]:
    """(bytes of a file, digest of those in its middle)."""
    with open(path, 'rb') as f:
        size = os.fstat(f.fileno()).st_size
        f.seek(max(0, (size - SAMPLE) // 2))
        return size, hashlib.sha256(f.read(SAMPLE)).hexdigest()
