"""Data that evaluators test on beside the run's own, as data.external names it."""
from jaxkd import errors
from jaxkd.data.dataset import Dataset, TextSource

PARTS = ('test', 'all')


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
                                 'this run trains on or selects by. Use part="test" with the same split, or other '
                                 'patients.')
    if not chosen:
        raise errors.ConfigError(f'{key}.data: no case of it is in its test part. Set part="all".')
    return tested, chosen
