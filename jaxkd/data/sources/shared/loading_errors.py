"""Cases that do not load: found by loading every one of them, and left out of a source."""
import concurrent.futures
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import numpy as np

from jaxkd import errors
from jaxkd.data.source import Source


class FileSource(Source):
    """A source of files, from which those that do not load can be left out. Subclasses are dataclasses."""

    def without(self, bad: Mapping[int, str]) -> Self:
        """The same source less the cases {index: reason}, which go to `skipped`."""
        raise NotImplementedError


S = TypeVar('S', bound=FileSource)


def failures(source: Source) -> dict[int, str]:
    """{index: reason} of the cases whose record cannot be made. Threads do not change the result."""
    from tqdm import tqdm
    with concurrent.futures.ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        reasons = pool.map(lambda i: _failure(source, i), range(len(source)))
        # disable=None: a bar on a terminal, silence in a log file
        bar = tqdm(reasons, f'{source.name}: checking', len(source), unit='case', disable=None)
        return {i: reason for i, reason in enumerate(bar) if reason}


def without(source: S, bad: Mapping[int, str], **per_case: Any) -> S:
    """The same source less the cases {index: reason}, which go to `skipped`.

    per_case: fields of the source with an entry for each case, sequences, arrays [n,...] or dicts of arrays.
    """
    keep = [i for i in range(len(source)) if i not in bad]
    return dataclasses.replace(  # type: ignore[type-var]  # sources of files are dataclasses
        source, cases=tuple(source.cases[i] for i in keep),
        skipped=source.skipped + tuple((source.cases[i].id, reason) for i, reason in bad.items()),
        **{name: select(values, keep) for name, values in per_case.items()})


def select(values: Any, keep: Sequence[int]) -> Any:
    """The entries `keep` of a sequence, of an array [n,...] or of each array of a dict; an empty one stays empty."""
    if isinstance(values, Mapping):
        return {key: value[keep] for key, value in values.items()}
    if isinstance(values, np.ndarray):
        return values[keep]
    return tuple(values[i] for i in keep) if len(values) else values


def require_cases(source: Source, where: str, remedy: str = '') -> None:
    """BadData where no case is left: with the first reason why one was left out, else with the remedy."""
    if not len(source):
        reason = f' The first reason: {source.skipped[0][1]}' if source.skipped else remedy and f' {remedy}'
        raise errors.BadData(f'{where} has no usable case.{reason}')


def _failure(source: Source, i: int) -> str:
    try:
        source[i]
    except (errors.BadData, errors.MissingInput) as e:
        return str(e)
    return ''
