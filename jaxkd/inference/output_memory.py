"""What a network has given for cases, kept while its evaluators run: a case passes it once for all of them."""
import itertools
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.data.dataset import Dataset

Rows = Mapping[str, np.ndarray]  # {key: [n, ...]}; outputs of the network are 'out/<name>', 'index' rises
Request = tuple[Dataset, Collection[int], Sequence[str]]  # data, indices of cases, names of outputs
OUTPUT = 'out/'


class OutputMemory:
    """Outputs of one network with certain variables.

    requests: outputs that will be asked for. They are computed along when anything is asked of one of these cases.
    """

    def __init__(self, requests: Iterable[Request] = ()) -> None:
        self.requests, self.results = tuple(requests), dict[Hashable, tuple[Any, Any]]()

    def outputs(self, data: Dataset) -> 'CaseOutputs':
        """Those of the cases of a data set."""
        requests = [(indices, names) for of, indices, names in self.requests if of is data]
        return self.once('outputs', data, lambda: CaseOutputs(requests))

    def once(self, key: Hashable, data: Dataset, make: Callable[[], Any]) -> Any:
        """What `make` gave the first time; key: all that it depends on beside network, variables and data."""
        key = key, id(data)
        if key not in self.results:
            self.results[key] = data, make()  # the data stays, so no other one gets its id
        return self.results[key][1]


class CaseOutputs:
    """Outputs for cases of one data set."""

    def __init__(self, requests: Sequence[tuple[Collection[int], Sequence[str]]]) -> None:
        self.requests = {name: set[int]() for _, names in requests for name in names}
        for indices, names in requests:
            self.requests |= {name: self.requests[name] | {*indices} for name in names}
        self.tables: list[Rows] = []
        self.asked: dict[str, set[int]] = {}  # {output: cases, those without any input of the network too}

    def missing(self, indices: Sequence[int], names: Sequence[str]) -> list[int]:
        """The cases of which not all of these outputs are known."""
        known = set(indices).intersection(*(self.asked.get(name, set()) for name in names))
        return [i for i in indices if i not in known]

    def along(self, indices: Sequence[int], names: Sequence[str]) -> tuple[str, ...]:
        """The outputs to compute for these cases: `names`, and what was requested of any of them."""
        return *names, *self._requested(indices, names)

    def add(self, indices: Sequence[int], names: Sequence[str], rows: Rows) -> None:
        """Keep `names` of these cases, and of each what was requested of it. rows: of the cases with any input."""
        self.tables.append({k: v for k, v in rows.items() if not k.startswith(OUTPUT)})
        for name, chosen in {**dict.fromkeys(names, {*indices}), **self._requested(indices, names)}.items():
            kept = np.isin(rows['index'], list(chosen))
            self.tables.append({k: rows[k][kept] for k in ('index', OUTPUT + name)})
            self.asked.setdefault(name, set()).update(chosen)

    def _requested(self, indices: Sequence[int], names: Sequence[str]) -> dict[str, set[int]]:
        """{output beside `names`: the cases of which it was requested and is not known}."""
        wanted = {name: (of & {*indices}) - self.asked.get(name, set()) for name, of in self.requests.items()}
        return {name: chosen for name, chosen in wanted.items() if chosen and name not in names}

    def take(self, indices: Sequence[int], names: Sequence[str]) -> dict[str, np.ndarray]:
        """Rows of those cases that have any input, sorted by index. Their outputs must be known."""
        known = np.concatenate([table['index'] for table in self.tables])
        rows = np.intersect1d(known, indices).astype(known.dtype)
        plain = [k for k in dict.fromkeys(itertools.chain(*self.tables)) if not k.startswith(OUTPUT)]
        return {k: self._column(k, rows) for k in (*plain, *(OUTPUT + name for name in names))}

    def _column(self, key: str, rows: np.ndarray) -> np.ndarray:
        tables = [table for table in self.tables if key in table]
        index = np.concatenate([table['index'] for table in tables])
        order = np.argsort(index, kind='stable')
        return np.concatenate([table[key] for table in tables])[order[np.searchsorted(index[order], rows)]]
