"""Predict a part of the data with one network, and put the cases' results in order."""
import dataclasses
import functools

import jax
import numpy as np

from jaxkd import errors, log, parallel
from jaxkd.state import Network, has

EVERY = ('test', 'all')


def tested(data, name, part, where):
    """(the data that is tested on, indices of its cases): that of the run, or what data.elsewhere calls `name`.

    Raises ConfigError for patients that `data` trains on or selects by, and for other classes.
    """
    if part not in EVERY:
        raise errors.ConfigError(f'{where}.part = "{part}".{errors.nearest(part, EVERY)}')
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


@dataclasses.dataclass(frozen=True)
class Cases:
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
        return {k: mean(found[k[5:]]) if k.startswith('mean:') else found[k] for k in outputs}

    def of(self, batch, outputs=('logits',), want=()):
        """Outputs for one host batch of the data. Nothing but the network's own inputs goes in."""
        inputs = parallel.place(self.network.only(batch))
        compiled = self._once('rows', lambda: parallel.by_row(self._apply, static_argnums=(2, 3)))
        return compiled(self.variables, inputs, tuple(outputs), tuple(want))

    def windows(self, outputs=('logits',), present=()):
        """The function that jaxkd.sliding applies: {input: [B,...]} -> outputs by name, on the devices of this host alone.

        B is a multiple of `parallel.local_rows(1)`. present: {input: 0 or 1} of the scan that the windows are of.
        """
        outputs, variables = tuple(outputs), self._own_variables
        compiled = self._once(outputs, lambda: parallel.on_this_host(lambda v, x: self._apply(v, x, outputs, ())))

        def apply(inputs):
            flags = {k: np.full(len(next(iter(inputs.values()))), v, np.float32) for k, v in dict(present).items()}
            return compiled(variables, self.network.only({**inputs, 'present': flags} if flags else inputs))
        return apply

    @functools.cached_property
    def _own_variables(self):
        """A copy that no other host has a part in; a single host needs none."""
        return parallel.local(self.variables) if parallel.hosts()[1] > 1 else self.variables

    def __call__(self, role, outputs=('logits',), what='', want=(), keep=None) -> Cases:
        """Every case of a part ('train', 'val', 'test'), or of the indices `keep`, on all hosts.

        A case that has nothing of what the network reads is left out: nothing could be said of it.
        """
        rows = []
        part = self.data.part(role) if keep is None else keep
        batches = self.data.batches(role, self.batch, keep)
        for batch in log.progress(batches, what, -(-len(part) // self.batch)) if what else batches:
            row = {k: batch[k] for k in ('index', 'mask', 'label', 'label_weight', 'boxes') if k in batch}
            row['mask'] = np.asarray(has(batch, self.network.inputs))
            row |= {f'out/{k}': v for k, v in parallel.local(self.of(batch, outputs, want)).items()}
            rows.append(row)
        rows = parallel.collect(jax.tree.map(lambda *a: np.concatenate(a), *rows))
        order = np.argsort(rows['index'], kind='stable')
        order = order[rows['mask'][order] > 0]
        rows = {k: v[order] for k, v in rows.items()}
        cases = [self.data.source.cases[i] for i in rows['index']]
        n = len(cases)
        return Cases(rows['index'], tuple(c.id for c in cases), np.array([c.patient for c in cases]),
                     rows['label'], rows.get('label_weight', np.ones((n, 1), np.float32)), rows['boxes'],
                     {k[4:]: v for k, v in rows.items() if k.startswith('out/')})

    def parameters(self):
        """Number of trained values."""
        return sum(int(np.prod(a.shape)) for a in jax.tree.leaves(self.variables['params']))

    def untrained(self, seed=0):
        """The same network before any training: a control for attention maps."""
        one = jax.tree.map(lambda a: a[:1], self.network.only(next(self.data.batches('test', self.batch))))
        return self.using(parallel.jit(self.network.init)(jax.random.key(seed), one))


def mean(x):
    """Over places: [B,*places,C] -> [B,C], what the output 'mean:<name>' stands for."""
    return x.mean(tuple(range(1, x.ndim - 1)))
