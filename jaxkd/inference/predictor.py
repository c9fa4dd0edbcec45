"""Predict a part of the data with one network, and put the cases' results in order."""
import dataclasses
import functools

import jax
import numpy as np

from jaxkd import parallel
from jaxkd.networks import Network
from jaxkd.runtime import log
from jaxkd.state import valid_mask


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Results in the order of the source, padding removed. Arrays have one row per case."""

    index: np.ndarray  # into source.cases
    ids: tuple
    patients: np.ndarray
    label: np.ndarray
    label_weight: np.ndarray
    boxes: np.ndarray  # [n,K,5]: label, x, y, w, h in pixels of the network input; label -2 where there is none
    outputs: dict  # of the network, by name


class Predictor:
    """A network as a function: evaluators get this, never a model with its data."""

    def __init__(self, network: Network, data, batch, variables=None, shared=None):
        self.network, self.data, self.batch, self.variables = network, data, batch, variables
        self.shared = {} if shared is None else shared  # what does not depend on the variables: compiled functions, shapes

    def using(self, variables):
        """The same compiled functions with these variables."""
        return Predictor(self.network, self.data, self.batch, variables, self.shared)

    def on(self, data):
        """The same network on other data."""
        return Predictor(self.network, data, self.batch, self.variables, self.shared)

    def _once(self, key, make):
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]

    def shapes(self):
        """What the network gives for one case of the data, by name: ShapeDtypeStructs with a first axis of 1."""
        def make():
            batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *np.shape(a)), a.dtype), self.data.spec())
            return jax.eval_shape(lambda key, b: self.network.apply(self.network.init(key, b), b)[0], jax.random.key(0), batch)
        return self._once('shapes', make)

    def _apply(self, variables, inputs, outputs, want):
        found, _ = self.network.apply(variables, inputs, **({'want': want} if want else {}))
        return {k: mean_over_places(found[k[5:]]) if k.startswith('mean:') else found[k] for k in outputs}

    def of(self, batch, outputs=('logits',), want=()):
        """Outputs for one host batch of the data. Nothing but the network's own inputs goes in."""
        inputs = parallel.shard_batch(self.network.only(batch))
        compiled = self._once('rows', lambda: parallel.jit_sharded(self._apply, static_argnums=(2, 3)))
        return compiled(self.variables, inputs, tuple(outputs), tuple(want))

    def windows(self, outputs=('logits',), present=()):
        """The function that jaxkd.inference.sliding_window applies: {input: [B,...]} -> outputs by name, on the devices of this host alone.

        B is a multiple of `parallel.local_rows(1)`. present: {input: 0 or 1} of the scan that the windows are of.
        """
        outputs, variables = tuple(outputs), self._own_variables
        compiled = self._once(outputs, lambda: parallel.jit_local(lambda v, x: self._apply(v, x, outputs, ())))

        def apply(inputs):
            flags = {k: np.full(len(next(iter(inputs.values()))), v, np.float32) for k, v in dict(present).items()}
            return compiled(variables, self.network.only({**inputs, 'present': flags} if flags else inputs))
        return apply

    @functools.cached_property
    def _own_variables(self):
        """A copy that no other host has a part in; a single host needs none."""
        return parallel.to_host(self.variables) if parallel.process()[1] > 1 else self.variables

    def __call__(self, role, outputs=('logits',), what='', want=(), keep=None) -> Predictions:
        """Every case of a part ('train', 'val', 'test'), or of the indices `keep`, on all hosts.

        A case that has nothing of what the network reads is left out: nothing could be said of it.
        """
        rows = []
        part = self.data.part(role) if keep is None else keep
        batches = self.data.batches(role, self.batch, keep)
        for batch in log.progress(batches, what, -(-len(part) // self.batch)) if what else batches:
            row = {k: batch[k] for k in ('index', 'mask', 'label', 'label_weight', 'boxes') if k in batch}
            row['mask'] = np.asarray(valid_mask(batch, self.network.inputs))
            row |= {f'out/{k}': v for k, v in parallel.to_host(self.of(batch, outputs, want)).items()}
            rows.append(row)
        rows = parallel.allgather_hosts(jax.tree.map(lambda *a: np.concatenate(a), *rows))
        order = np.argsort(rows['index'], kind='stable')
        order = order[rows['mask'][order] > 0]
        rows = {k: v[order] for k, v in rows.items()}
        cases = [self.data.source.cases[i] for i in rows['index']]
        n = len(cases)
        return Predictions(rows['index'], tuple(c.id for c in cases), np.array([c.patient for c in cases]),
                     rows['label'], rows.get('label_weight', np.ones((n, 1), np.float32)), rows['boxes'],
                     {k[4:]: v for k, v in rows.items() if k.startswith('out/')})

    def parameters(self):
        """Number of trained values."""
        return sum(int(np.prod(a.shape)) for a in jax.tree.leaves(self.variables['params']))

    def untrained(self, seed=0):
        """The same network before any training: a control for attention maps."""
        one = jax.tree.map(lambda a: a[:1], self.network.only(next(self.data.batches('test', self.batch))))
        return self.using(parallel.jit(self.network.init)(jax.random.key(seed), one))


def mean_over_places(x):
    """Over places: [B,*places,C] -> [B,C], what the output 'mean:<name>' stands for."""
    return x.mean(tuple(range(1, x.ndim - 1)))
