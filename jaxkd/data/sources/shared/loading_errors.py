"""Options and faults of sources of files: cases that do not load stop a run, or are left out and listed."""
import concurrent.futures
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import splits
from jaxkd.data.formats import nifti
from jaxkd.data.source import Source
from jaxkd.runtime import log


class FileSource(Source):
    """A source of files, from which those that do not load can be left out. Subclasses are dataclasses."""

    per_case: ClassVar[tuple[str, ...]] = ()  # fields with an entry for each case: see `select`

    def without(self, bad: Mapping[int, str]) -> Self:
        """The same source less the cases {index: reason}, which go to `skipped`."""
        keep = [i for i in range(len(self)) if i not in bad]
        return dataclasses.replace(  # type: ignore[type-var]  # sources of files are dataclasses
            self, cases=tuple(self.cases[i] for i in keep),
            skipped=self.skipped + tuple((self.cases[i].id, reason) for i, reason in bad.items()),
            **{name: select(vars(self)[name], keep) for name in self.per_case})


S = TypeVar('S', bound=FileSource)


class Problems:
    """Faults of rows and files: raised with on_error='fail', collected in `skipped` with 'skip'."""

    def __init__(self, on_error: str) -> None:
        self.on_error = on_error
        self.skipped: list[tuple[str, str]] = []  # (case, reason)

    def __call__(self, case: str, error: errors.JaxkdError | str) -> None:
        """Raise an error (a text: BadData), or note it for the case."""
        if self.on_error == 'fail':
            raise errors.BadData(error) if isinstance(error, str) else error
        self.skipped.append((case, str(error)))

    @contextlib.contextmanager
    def noted(self, case: str) -> Iterator[None]:
        """Treats BadData and MissingInput in its body as faults of this case."""
        try:
            yield
        except (errors.BadData, errors.MissingInput) as e:
            self(case, e)


def collect(items: Iterable, parse: Callable[[Any], Any], on_error: str, name: Callable[[Any], str]
            ) -> tuple[list, tuple[tuple[str, str], ...]]:
    """([parse(item)], ((name(item), reason), ...)): a fault stops, or with on_error='skip' leaves the item out."""
    problems, parsed = Problems(on_error), []
    for item in items:  # a context manager for each of many rows takes longer than to read it
        try:
            parsed.append(parse(item))
        except (errors.BadData, errors.MissingInput) as e:
            problems(name(item), e)
    return parsed, tuple(problems.skipped)


def check_options(source_name: str, hp: ConfigDict, **choices: Sequence[str]) -> None:
    """ConfigError unless on_error, nifti_form if it is an option, and each in `choices` has one of its values."""
    forms = {'nifti_form': nifti.FORMS} if 'nifti_form' in hp else {}
    for key, values in {**choices, **forms, 'on_error': ('fail', 'skip')}.items():
        if hp[key] not in values:
            raise errors.ConfigError(f'{source_name}: {key} = "{hp[key]}" is none of '
                                     f'{", ".join(value or "(empty)" for value in values)}.')


def check_root(source_name: str, root: str, content: str) -> None:
    """MissingInput unless root is a folder. content: what it must hold, for the message."""
    if not os.path.isdir(root):
        raise errors.MissingInput(f'{source_name}: root "{root}" is not a folder. Set it to the one that holds '
                                  f'{content}.')


def log_columns(path: str, columns: Sequence[str], labels: Sequence[str], others: Sequence[str] = ()) -> None:
    """Name the label columns of a table and those that nothing reads, so that a label that is not read is seen."""
    unused = [name for name in columns if name and name not in labels and name not in others]
    log.info(f'{path}: labels are {", ".join(labels)}' + (
        f'; {len(unused)} columns are not used: {", ".join(unused[:20])}{", ..." if len(unused) > 20 else ""}'
        if unused else ''))


def log_second_reader(source_name: str, masks: Sequence[Any], looked_for: str) -> None:
    """Say how many cases have masks of a second reader. MissingInput where masks are looked for and none is there.

    masks: for each case, something that is true where it has any.
    """
    if not looked_for:
        return
    if not (count := sum(map(bool, masks))):
        raise errors.MissingInput(f'{source_name}: no case has a mask of a second reader, "{looked_for}". Correct the '
                                  'option, or leave it empty.')
    log.info(f'{source_name}: {count} of {len(masks)} cases have masks of a second reader')


def failures(source: Source) -> dict[int, str]:
    """{index: reason} of the cases whose record, or second label, cannot be made. Threads do not change the result."""
    from tqdm import tqdm
    with concurrent.futures.ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        reasons = pool.map(lambda i: _failure(source, i), range(len(source)))
        # disable=None: a bar on a terminal, silence in a log file
        bar = tqdm(reasons, f'{source.name}: checking', len(source), unit='case', disable=None)
        return {i: reason for i, reason in enumerate(bar) if reason}


def usable(source: S, on_error: str, location: str, remedy: str = '') -> S:
    """The source, with on_error='skip' less the cases that do not load.

    BadData where no case is left (with the first reason, or with the remedy), or where a patient is in two parts.
    """
    if on_error == 'skip':
        source = source.without(failures(source))
    if not len(source):
        reason = f' The first reason: {source.skipped[0][1]}' if source.skipped else remedy and f' {remedy}'
        raise errors.BadData(f'{location} has no usable case.{reason}')
    splits.archive(source.cases)
    return source


def select(values: Any, keep: Sequence[int]) -> Any:
    """The entries `keep` of a sequence, of an array [n,...] or of each array of a dict; an empty one stays empty."""
    if isinstance(values, Mapping):
        return {key: value[keep] for key, value in values.items()}
    if isinstance(values, np.ndarray):
        return values[keep]
    return tuple(values[i] for i in keep) if len(values) else values


def _failure(source: Source, i: int) -> str:
    try:
        source[i]
        source.second_reader(i)
    except (errors.BadData, errors.MissingInput) as e:
        return str(e)
    return ''
