"""A network: a model and the selection of its inputs."""
import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import config, errors, parallel
from jaxkd.config import plugins


@dataclasses.dataclass(frozen=True)
class Network:
    """A model and the selection of its inputs.

    The model reads the keys `inputs` of a batch and their presence flags, no other key: even 'an MRI exists' can reveal
    a label. `input_fn(inputs) -> inputs`, if any, makes the model's inputs from them (a config names a function of
    (inputs, classes), classes being the number of the network's outputs).
    """

    module: Any
    inputs: tuple
    input_fn: Callable | None = None
    task: str = 'label'  # key of the labels in a batch
    outputs: int = 0  # how many logits it must give of a case or a place; 0: any

    def only(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs [B,...] of a batch, and 'present' {input: [B]} where cases may lack one."""
        selected = {k: batch[k] for k in self.inputs}
        present = {k: v for k, v in batch.get('present', {}).items() if k in self.inputs}
        return {**selected, 'present': present} if present else selected

    def init(self, key: Any, batch: Mapping[str, Any]) -> dict:
        """Initial variables for such a batch. Compiled, once for equal networks."""
        leaves, structure = jax.tree.flatten(self.only(batch))
        return parallel.run(_init(self._function, structure), key, leaves)

    def apply(self, variables: Mapping[str, Any], batch: Mapping[str, Any], train: bool = False, key: Any = None,
              **options: Any) -> tuple[dict, dict]:
        """-> (outputs by name with floats in float32, new batch statistics)."""
        rngs = {'dropout': key} if train else None
        mutable = [k for k in variables if k != 'params'] if train else False
        inputs = self._model_inputs(batch)
        with self._reads(inputs):
            out = self.module.apply(variables, inputs, train=train, rngs=rngs, mutable=mutable, **options)
        out, stats = out if train else (out, {k: v for k, v in variables.items() if k != 'params'})
        self._check_outputs(out)
        return jax.tree.map(lambda a: a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a, out), stats

    def output_shapes(self, batch: Mapping[str, Any], train: bool = False, variables: Mapping[str, Any] | None = None,
                      **options: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """Outputs for a batch of arrays or ShapeDtypeStructs, by name. Nothing is computed; equal networks are traced
        once, whatever the number of cases. With `variables` the initial ones are not traced; FlaxError where they are
        those of other inputs.
        """
        given = None if variables is None else _spec(variables)
        outputs = _output_shapes(self._function, *self._of_one_case(batch), given, train, tuple(options.items()))
        rows = jax.tree.leaves(self.only(batch))[0].shape[0]
        return {name: jax.ShapeDtypeStruct((rows, *a.shape[1:]) if a.shape[:1] == (1,) else a.shape, a.dtype)
                for name, a in outputs.items()}

    def variable_shapes(self, batch: Mapping[str, Any]) -> dict:
        """Initial variables for such a batch, of any number of cases, as ShapeDtypeStructs. Nothing is computed."""
        return _variable_shapes(self._function, *self._of_one_case(batch))

    @property
    def _function(self) -> 'Network':
        """Equal for networks that compute the same, whatever their task."""
        return dataclasses.replace(self, task='')

    def _of_one_case(self, batch: Mapping[str, Any]) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
        """(structure, leaves) of the inputs of one case."""
        leaves, structure = jax.tree.flatten(self.only(batch))
        return structure, tuple(jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype) for a in leaves)

    def _check_outputs(self, out: Any) -> None:
        if not isinstance(out, Mapping) or 'logits' not in out:
            kind = ('an array' if isinstance(out, jax.Array) else f'only {", ".join(map(str, out)) or "an empty dict"}'
                    if isinstance(out, Mapping) else f'a {type(out).__name__}')
            raise errors.ConfigError(f'Model {type(self.module).__name__} returns {kind}; it must return a dict with '
                                     '"logits".')
        if self.outputs and out['logits'].shape[-1:] != (self.outputs,):
            raise errors.ConfigError(f'Model {type(self.module).__name__} gives logits {list(out["logits"].shape)} for '
                                     f'{self.outputs} labels or classes. Its last axis must be the `outputs` that its '
                                     'build is given.')

    def _model_inputs(self, batch: Mapping[str, Any]) -> Any:
        inputs = self.only(batch)
        return self.input_fn(inputs) if self.input_fn else inputs

    @contextlib.contextmanager
    def _reads(self, inputs: Any) -> Iterator[None]:
        """ConfigError where the model reads an input that it has not."""
        try:
            yield
        except KeyError as e:
            key = e.args[0] if e.args else None
            if not isinstance(inputs, Mapping) or not isinstance(key, str) or key in inputs:
                raise
            remedy = ('Flags of presence are there only where cases may lack an input: use inputs.get("present").'
                      if key == 'present' else 'Correct the model or its options, or list in `inputs` what the '
                      'network may read at deployment.')
            raise errors.ConfigError(f'Model {type(self.module).__name__} fails with KeyError "{key}". Its inputs are '
                                     f'{", ".join(inputs)}.{errors.nearest(key, inputs)} {remedy}') from e


@functools.lru_cache(maxsize=256)
def _init(network: Network, structure: Any) -> Callable[[Any, list], dict]:
    def init(key, leaves):
        inputs = network._model_inputs(structure.unflatten(leaves))
        with network._reads(inputs):
            return network.module.init({'params': key}, inputs, train=False)
    return jax.jit(init)  # traced once for shapes and values


@functools.lru_cache(maxsize=256)
def _variable_shapes(network: Network, structure: Any, leaves: tuple) -> dict:
    return jax.eval_shape(network.init, jax.eval_shape(jax.random.key, 0), structure.unflatten(leaves))


def _spec(tree: Any) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
    """(structure, leaves) of the shapes of a tree."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in leaves)


@functools.lru_cache(maxsize=256)
def _output_shapes(network: Network, structure: Any, leaves: tuple, given: tuple | None, train: bool, options: tuple
                   ) -> dict:
    def outputs(variables: dict, batch: dict, key: jax.Array) -> dict:
        return network.apply(variables, batch, train, key, **dict(options))[0]
    variables = _variable_shapes(network, structure, leaves) if given is None else given[0].unflatten(given[1])
    return jax.eval_shape(outputs, variables, structure.unflatten(leaves), jax.eval_shape(jax.random.key, 0))


def build(hp: Any, dtype: str, outputs: int, batch: Mapping[str, Any], data: Any, path: str,
          task: str = 'label') -> Network:
    """The Network of a resolved stage, or of one of its `networks`.

    Raises ConfigError for inputs that a batch lacks.
    """
    missing = [k for k in hp.inputs if k not in batch]
    if missing or not hp.inputs:
        raise errors.ConfigError(f'{path}.inputs: no "{missing[0]}" in a batch.{errors.nearest(missing[0], batch)}'
                                 if missing else f'{path}.inputs is empty. A batch has: {", ".join(sorted(batch))}.')
    if 'present' in hp.inputs:
        raise errors.ConfigError(f'{path}.inputs: "present" is no input. A model finds the flags of its own inputs in '
                                 'inputs.get("present"); those of others would tell what exists of a case.')
    if dtype not in ('float32', 'bfloat16'):
        raise errors.ConfigError(f'{path}: dtype = "{dtype}". Known: bfloat16, float32.')
    module, options = config.options('models', hp.model.to_dict(), f'{path}.model')
    _check(options, data)
    network = Network(module.build(options, outputs, jnp.dtype(dtype)), tuple(hp.inputs),
                      _function(hp.input_fn, path, outputs), task, outputs)
    try:
        hash(network)  # equal networks share shapes and compiled functions
    except TypeError as e:
        raise errors.ConfigError(f'{path}.model: {options.name} builds a {type(network.module).__name__} with a field '
                                 'that cannot be hashed. Use tuples, strings and numbers.') from e
    return network


def _check(options: Any, data: Any) -> None:
    """What the file of a model, and those of the models in it, refuse of the data."""
    plugin = plugins.contract('models', options.name)
    if plugin.check:
        plugin.check(options, data)
    inside = [options[key] for key in plugin.nested] + [part for key in plugin.parts for part in options[key].values()]
    for part in inside:
        _check(part, data)


def _function(dotted: str, path: str, classes: int) -> Callable | None:
    if not dotted:
        return None
    module, _, name = dotted.rpartition('.')
    try:
        return _with_classes(getattr(importlib.import_module(module), name), classes)
    except (ImportError, AttributeError, ValueError) as e:
        raise errors.ConfigError(f'{path}.input_fn = "{dotted}" cannot be imported ({e}).') from e


@functools.cache  # equal functions for equal networks
def _with_classes(function: Callable, classes: int) -> Callable:
    return functools.partial(function, classes=classes)
