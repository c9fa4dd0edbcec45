"""Data that evaluators test on beside the run's own."""
from jaxkd import errors

PARTS = ('test', 'all')


def external_cases(data, name, part, where):
    """(the data that is tested on, indices of its cases): that of the run, or what data.external calls `name`.

    Raises ConfigError for patients that `data` trains on or selects by, and for other classes.
    """
    if part not in PARTS:
        raise errors.ConfigError(f'{where}.part = "{part}".{errors.nearest(part, PARTS)}')
    if not name:
        return data, data.part('test')
    other = data.other(name)
    if tuple(other.source.labels) != tuple(data.source.labels):
        raise errors.ConfigError(f'{where}.data: its classes are {", ".join(other.source.labels)}, this run learns '
                                 f'{", ".join(data.source.labels)}. Map them in the source, or test on another one.')
    chosen = other.part('test') if part == 'test' else list(range(len(other.source.cases)))
    used = {data.source.cases[i].patient for role in ('train', 'val') for i in data.part(role)}
    seen = [other.source.cases[i].id for i in chosen if other.source.cases[i].patient in used]
    if seen:
        raise errors.ConfigError(f'{where}.data: {len(seen)} cases of it (first: {seen[0]}) are of patients that this run trains on or '
                                 'selects by. Use part="test" with the same split, or other patients.')
    if not chosen:
        raise errors.ConfigError(f'{where}.data: no case of it is in its test part. Set part="all".')
    return other, chosen
