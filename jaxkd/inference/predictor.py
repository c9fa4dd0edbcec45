"""Predict a part of the data with a network, with results in the order of the cases."""
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxkd import parallel
from jaxkd.data import external, loader
from jaxkd.data.dataset import Dataset
from jaxkd.inference.output_memory import OUTPUT, OutputMemory, Rows
from jaxkd.networks import Network
from jaxkd.runtime import log
from jaxkd.state import valid_mask

Variables = Mapping[str, Any]  # of flax: {'params': ..., 'batch_stats': ...}
Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class NetworkOutputs:
    """Outputs of a network for n cases, in the order of the source and without padding. Arrays have a row per case."""

    index: np.ndarray  # int [n], into source.cases
    ids: tuple[str, ...]  # n, of the cases
    patients: np.ndarray  # str [n]
    label: np.ndarray  # [n, ...], as in a batch
    label_weight: np.ndarray  # float [n, C], 0 where a label does not count; [n, 1] of 1 where batches have none
    boxes: np.ndarray  # [n, K, 5]: label, x, y, w, h in pixels of the network input; label -2 is padding
    outputs: dict[str, np.ndarray]  # by name, [n, ...]


class Predictor:
    """A network as a function, the argument of evaluators.

    With a memory, a case whose outputs were asked for is not predicted again for the next evaluator.
    """

    def __init__(self, network: Network, data: Dataset, batch: int, variables: Variables | None = None,
                 memory: OutputMemory | None = None) -> None:
        self.network, self.data, self.batch, self.variables = network, data, batch, variables
        self.memory = memory

    def with_variables(self, variables: Variables) -> 'Predictor':
        """The same network with these variables."""
        return Predictor(self.network, self.data, self.batch, variables)

    def with_data(self, data: Dataset) -> 'Predictor':
        """The same network on other data."""
        return Predictor(self.network, data, self.batch, self.variables, self.memory)

    def with_memory(self, memory: OutputMemory) -> 'Predictor':
        """The same with a memory, which no other network and no other variables may share."""
        return Predictor(self.network, self.data, self.batch, self.variables, memory)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Outputs of the network for a case of the data: {name: ShapeDtypeStruct with a first axis of 1}."""
        return self.network.output_shapes(self.data.batch_spec(1))

    def predict_batch(self, batch: Batch, outputs: Sequence[str] = ('logits',), capture: Sequence[str] = ()
                      ) -> dict[str, jax.Array]:
        """Outputs for a host batch of the data, of which only the inputs of the network are read."""
        inputs = parallel.shard_batch(self.network.only(batch))
        return _batch_function(self.network, tuple(outputs), tuple(capture))(self.variables, inputs)

    def windows(self, outputs: Sequence[str] = ('logits',),
                present: Mapping[str, float] | None = None) -> Callable[[Batch], dict[str, jax.Array]]:
        """The function for sliding_window: {input: [B,...]} -> outputs by name, on the devices of this host.

        B is a multiple of `parallel.local_rows(1)`. present: {input: 0 or 1} of the scan of the windows.
        """
        compiled, variables = _window_function(self.network, tuple(outputs)), self._host_variables

        def apply(inputs: Batch) -> dict[str, jax.Array]:
            flags = {k: np.full(len(next(iter(inputs.values()))), v, np.float32) for k, v in (present or {}).items()}
            return compiled(variables, self.network.only({**inputs, 'present': flags} if flags else inputs))
        return apply

    @functools.cached_property
    def _host_variables(self) -> Variables | None:
        """The variables on this host; of a single host without a copy."""
        return parallel.to_host(self.variables) if parallel.process()[1] > 1 else self.variables

    def __call__(self, role: str, outputs: Sequence[str] = ('logits',), message: str = '', capture: Sequence[str] = (),
                 keep: Sequence[int] | None = None) -> NetworkOutputs:
        """Every case of a part ('train', 'val', 'test'), or of the indices `keep`, on all hosts.

        Cases without any input of the network are left out. message: label of the progress line, '' for none.
        """
        indices = self.data.partition.indices(role) if keep is None else list(keep)
        if self.memory is None or capture:
            return self._named(self._predicted(indices, outputs, message, capture))
        known = self.memory.outputs(self.data)
        if missing := known.missing(indices, outputs):
            known.add(missing, outputs, self._predicted(missing, known.along(missing, outputs), message))
        return self._named(known.take(indices, outputs))

    def _predicted(self, indices: Sequence[int], outputs: Sequence[str], message: str,
                   capture: Sequence[str] = ()) -> Rows:
        """Rows of the cases with any input of the network, sorted by index; outputs as 'out/<name>'."""
        parts = []
        batches = loader.eval_batches(self.data, indices, self.batch)
        for batch in log.progress(batches, message, -(-len(indices) // self.batch)) if message else batches:
            row: dict[str, Any] = {k: batch[k] for k in ('index', 'label', 'label_weight', 'boxes') if k in batch}
            row['mask'] = np.asarray(valid_mask(batch, self.network.inputs))
            row |= {OUTPUT + k: v for k, v in parallel.to_host(self.predict_batch(batch, outputs, capture)).items()}
            parts.append(row)
        rows = parallel.allgather_hosts(jax.tree.map(lambda *a: np.concatenate(a), *parts))
        order = np.argsort(rows['index'], kind='stable')
        order = order[rows['mask'][order] > 0]
        return {k: v[order] for k, v in rows.items()}

    def _named(self, rows: Rows) -> NetworkOutputs:
        cases = [self.data.source.cases[i] for i in rows['index']]
        weight = rows.get('label_weight', np.ones((len(cases), 1), np.float32))
        by_name = {k.removeprefix(OUTPUT): v for k, v in rows.items() if k.startswith(OUTPUT)}
        return NetworkOutputs(rows['index'], tuple(c.id for c in cases), np.array([c.patient for c in cases]),
                              rows['label'], weight, rows['boxes'], by_name)

    def parameters(self) -> int:
        """Number of trained values."""
        return sum(int(np.prod(a.shape)) for a in jax.tree.leaves((self.variables or {})['params']))

    def flops(self) -> float:
        """Floating-point operations for the logits of one case, as the network is written; nothing is compiled."""
        case = self.data.batch_spec(1)
        apply = functools.partial(_apply, self.network, ('logits',), ())
        return parallel.flops(apply, self.network.variable_shapes(case), self.network.only(case))

    def reinitialized(self, seed: int = 0) -> 'Predictor':
        """The same network with initial variables: a control for attention maps."""
        case = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), self.network.only(self.data.batch_spec(1)))
        return self.with_variables(self.network.init(jax.random.key(seed), case))


def predict_parts(predict: Predictor, hp: ConfigDict) -> tuple[Dataset, dict[str, NetworkOutputs]]:
    """(data, {'val', 'test': outputs} of the parts with cases), of external data (hp.data, hp.part) {'test'} alone."""
    data, indices = external.external_cases(predict.data, hp.data, hp.part, 'evals')
    if not hp.data:
        return data, {role: predict(role, message=f'predicting the {role} part')
                      for role in filter(data.partition.indices, ('val', 'test'))}
    data.cache_in_memory()
    message = f'predicting the test part of {hp.data}'
    return data, {'test': predict.with_data(data)('test', message=message, keep=indices)}


@functools.lru_cache(maxsize=32)
def _batch_function(network: Network, outputs: tuple[str, ...], capture: tuple[str, ...]) -> Callable[..., Any]:
    """Compiled once for all predictors of equal networks."""
    return _saying(parallel.jit_sharded(functools.partial(_apply, network, outputs, capture)))


@functools.lru_cache(maxsize=32)
def _window_function(network: Network, outputs: tuple[str, ...]) -> Callable[..., Any]:
    return _saying(parallel.jit_local(functools.partial(_apply, network, outputs, ())))


def _saying(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, of which the log says that it is compiled at the first call, where that takes a while."""
    calls = itertools.count()

    def call(*args: Any) -> Any:
        with contextlib.nullcontext() if next(calls) else log.waiting('compiling the network for prediction'):
            return function(*args)
    return call


def _apply(network: Network, outputs: tuple[str, ...], capture: tuple[str, ...], variables: Variables, inputs: Batch
           ) -> dict[str, jax.Array]:
    options: dict[str, Any] = {'capture': capture} if capture else {}
    values, _ = network.apply(variables, inputs, **options)
    return {k: mean_over_places(values[k[5:]]) if k.startswith('mean:') else values[k] for k in outputs}


def mean_over_places(x: jax.Array) -> jax.Array:
    """Over places: [B,*places,C] -> [B,C], the output 'mean:<name>'."""
    return x.mean(tuple(range(1, x.ndim - 1)))
