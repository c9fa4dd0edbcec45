"""Predict a part of the data with a network, with results in the order of the cases."""
import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxkd import parallel
from jaxkd.data import external, loader
from jaxkd.data.dataset import Dataset
from jaxkd.networks import Network
from jaxkd.runtime import log
from jaxkd.state import valid_mask

Variables = Mapping[str, Any]  # of flax: {'params': ..., 'batch_stats': ...}
Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class NetworkOutputs:
    """Outputs of a network for n cases, in the order of the source and without padding. Arrays have a row per case."""

    index: np.ndarray  # int [n], into source.cases
    ids: tuple[str, ...]
    patients: np.ndarray  # str [n]
    label: np.ndarray  # [n, ...]
    label_weight: np.ndarray  # float [n, C]
    boxes: np.ndarray  # [n, K, 5]: label, x, y, w, h in pixels of the network input; label -2 is padding
    outputs: dict[str, np.ndarray]  # by name, [n, ...]


class Predictor:
    """A network as a function, the argument of evaluators."""

    def __init__(self, network: Network, data: Dataset, batch: int, variables: Variables | None = None,
                 compiled: dict[Hashable, Any] | None = None) -> None:
        self.network, self.data, self.batch, self.variables = network, data, batch, variables
        # functions and shapes, which do not depend on the variables
        self._compiled = {} if compiled is None else compiled

    def with_variables(self, variables: Variables) -> 'Predictor':
        """The same compiled functions with these variables."""
        return Predictor(self.network, self.data, self.batch, variables, self._compiled)

    def with_data(self, data: Dataset) -> 'Predictor':
        """The same network on other data."""
        return Predictor(self.network, data, self.batch, self.variables, self._compiled)

    def _cached(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._compiled:
            self._compiled[key] = make()
        return self._compiled[key]

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Outputs of the network for a case of the data: {name: ShapeDtypeStruct with a first axis of 1}."""
        return self._cached('shapes', lambda: output_shapes(self.network, self.data.batch_spec(1)))

    def _apply(self, variables: Variables, inputs: Batch, outputs: tuple[str, ...], capture: tuple[str, ...]
               ) -> dict[str, jax.Array]:
        options: dict[str, Any] = {'capture': capture} if capture else {}
        arrays, _ = self.network.apply(variables, inputs, **options)
        return {k: mean_over_places(arrays[k[5:]]) if k.startswith('mean:') else arrays[k] for k in outputs}

    def predict_batch(self, batch: Batch, outputs: Sequence[str] = ('logits',), capture: Sequence[str] = ()
                      ) -> dict[str, jax.Array]:
        """Outputs for a host batch of the data, of which only the inputs of the network are read."""
        inputs = parallel.shard_batch(self.network.only(batch))
        compiled = self._cached('rows', lambda: parallel.jit_sharded(self._apply, static_argnums=(2, 3)))
        return compiled(self.variables, inputs, tuple(outputs), tuple(capture))

    def windows(self, outputs: Sequence[str] = ('logits',),
                present: Mapping[str, float] | None = None) -> Callable[[Batch], dict[str, jax.Array]]:
        """The function for sliding_window: {input: [B,...]} -> outputs by name, on the devices of this host.

        B is a multiple of `parallel.local_rows(1)`. present: {input: 0 or 1} of the scan of the windows.
        """
        outputs, variables = tuple(outputs), self._host_variables
        compiled = self._cached(outputs, lambda: parallel.jit_local(lambda v, x: self._apply(v, x, outputs, ())))

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
        parts = []
        indices = self.data.partition.indices(role) if keep is None else list(keep)
        batches = loader.eval_batches(self.data, indices, self.batch)
        for batch in log.progress(batches, message, -(-len(indices) // self.batch)) if message else batches:
            row: dict[str, Any] = {k: batch[k] for k in ('index', 'label', 'label_weight', 'boxes') if k in batch}
            row['mask'] = np.asarray(valid_mask(batch, self.network.inputs))
            row |= {f'out/{k}': v for k, v in parallel.to_host(self.predict_batch(batch, outputs, capture)).items()}
            parts.append(row)
        rows = parallel.allgather_hosts(jax.tree.map(lambda *a: np.concatenate(a), *parts))
        order = np.argsort(rows['index'], kind='stable')
        order = order[rows['mask'][order] > 0]
        rows = {k: v[order] for k, v in rows.items()}
        cases = [self.data.source.cases[i] for i in rows['index']]
        weight = rows.get('label_weight', np.ones((len(cases), 1), np.float32))
        by_name = {k[4:]: v for k, v in rows.items() if k.startswith('out/')}
        return NetworkOutputs(rows['index'], tuple(c.id for c in cases), np.array([c.patient for c in cases]),
                              rows['label'], weight, rows['boxes'], by_name)

    def parameters(self) -> int:
        """Number of trained values."""
        return sum(int(np.prod(a.shape)) for a in jax.tree.leaves((self.variables or {})['params']))

    def reinitialized(self, seed: int = 0) -> 'Predictor':
        """The same network with initial variables: a control for attention maps."""
        batch = next(loader.eval_batches(self.data, self.data.partition.indices('test'), self.batch))
        case = jax.tree.map(lambda a: a[:1], self.network.only(batch))
        return self.with_variables(parallel.jit(self.network.init)(jax.random.key(seed), case))


def predict_parts(predict: Predictor, hp: ConfigDict) -> tuple[Dataset, dict[str, NetworkOutputs]]:
    """(data, {'val', 'test': outputs} of the parts with cases), of external data (hp.data, hp.part) {'test'} alone."""
    data, indices = external.external_cases(predict.data, hp.data, hp.part, 'evals')
    if not hp.data:
        return data, {role: predict(role, message=f'predicting the {role} part')
                      for role in filter(data.partition.indices, ('val', 'test'))}
    data.cache_in_memory()
    """(data, {role: outputs}): val and test of the run's data, or the test part of external data (hp.data, hp.part)."""


def output_shapes(network: Network, batch: Batch, **options: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the outputs for a batch of arrays or ShapeDtypeStructs, by name; nothing is computed."""
    def outputs(key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return network.apply(network.init(key, batch), batch, **options)[0]
    return jax.eval_shape(outputs, jax.random.key(0), batch)


def mean_over_places(x: jax.Array) -> jax.Array:
    """Over places: [B,*places,C] -> [B,C], the output 'mean:<name>'."""
    return x.mean(tuple(range(1, x.ndim - 1)))
