"""The usual step of a method: one loss made of named terms, one optimiser over everything trained.

A method's file holds `terms(student, teachers, heads, batch, hp)`: outputs in, unweighted terms by name out. This file
measures, weighs and differentiates them, sums over microbatches and devices, and applies the update.

Each term is divided by its own global weight before the gradient is taken. The update is therefore the same for one
device, a mesh, pmap and any number of microbatches, with masked, missing or padded cases. Exceptions: batch statistics
and dropout see the rows of one device and one microbatch, a pairwise term sees one microbatch.
"""
import dataclasses
import functools
import inspect
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, PRNGKeyArray, Shaped

from jaxkd import errors, parallel
from jaxkd.contracts import Method
from jaxkd.networks import Network
from jaxkd.runtime.dataflow import dependencies
from jaxkd.state import Context, Mean, Progress, TrainState
from jaxkd.training import fsdp, shuffling, trimming

Metrics = dict[str, Mean]


@jax.tree_util.register_pytree_node_class
class Named(dict):
    """A dict for the code of a method: reading a key that it lacks raises the ConfigError `message(key)`."""

    def __init__(self, entries: Mapping[str, Any], message: Callable[[str], str]) -> None:
        super().__init__(entries)
        self.message = message

    def __missing__(self, key: str) -> NoReturn:
        raise errors.ConfigError(self.message(key))

    def tree_flatten(self) -> tuple[list, tuple[str, ...]]:
        return [self[name] for name in sorted(self)], tuple(sorted(self))

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], values: Iterable[Any]) -> dict:
        return dict(zip(names, values))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The functions of a method, see `make_method`, and the step that is made of them."""

    hp: Any
    context: Context
    terms: Callable[..., Any]
    weights: Callable[[Any, Progress], Mapping[str, Any]]
    modules: Mapping[str, Any]  # flax modules of the method
    memory: Callable[[Any, Context], Any] | None
    mix: Callable[..., dict] | None
    drop: Callable[..., tuple[dict, dict]] | None = None

    @functools.cached_property
    def axes(self) -> fsdp.Axes:
        """How the parameters are divided among devices; {} where each holds them whole."""
        if self.context.fsdp == 1:
            return {}
        return fsdp.axes_of(jax.eval_shape(self.init, jax.random.key(0)).params, self.context.fsdp)

    def loss_weights(self, progress: Progress) -> Mapping[str, Any]:
        return self.weights(self.hp, progress)

    def loss_terms(self, student: dict, others: dict, heads: Mapping[str, Callable], batch: dict,
                   method_state: Any) -> tuple[dict[str, Any], Any]:
        """({term: values or Mean}, new method state)."""
        others = named_outputs(self.context, self.hp, {'student': student, **others})
        student = others.pop('student')
        if self.memory is None:
            return self.terms(student, others, heads, batch, self.hp), method_state
        return self.terms(student, others, heads, batch, self.hp, method_state)

    def measure(self, params: dict, stats: dict, method_state: Any, frozen: dict, batch: dict, key: PRNGKeyArray,
                progress: Progress) -> tuple[Metrics, dict, Any]:
        """({name: Mean}, new batch statistics, new method state)."""
        batch, seen = self._changed(batch, key)
        outputs, stats = run_networks(self.context, params, stats, frozen, batch, key, seen)
        heads = {n: functools.partial(self.modules[n].apply, {'params': p}) for n, p in params['heads'].items()}
        metrics, method_state = self.trimmed_metrics(outputs, heads, batch, method_state, progress)
        return metrics, stats, jax.lax.stop_gradient(method_state)

    def trimmed_metrics(self, outputs: dict, heads: Mapping[str, Callable], batch: dict, method_state: Any,
                        progress: Progress) -> tuple[Metrics, Any]:
        """`metrics` of the batch without the labels that `<stage>.trim` leaves out, and their share as `trimmed`."""
        if self.context.trim is None:
            return self.metrics(outputs, heads, batch, method_state)
        context = self.context
        batch, share = trimming.trim(outputs, batch, context.trim, context.networks['student'].inputs, progress,
                                     context.batch['mask'].shape[0])
        metrics, method_state = self.metrics(outputs, heads, batch, method_state)
        return {**metrics, 'trimmed': share}, method_state

    def _changed(self, batch: dict, key: PRNGKeyArray) -> tuple[dict, dict]:
        """The batch that terms and other networks see, and the one that the student sees."""
        batch = self.mix(batch, _key(key, 'mix'), self.hp) if self.mix else batch
        return self.drop(batch, _key(key, 'drop'), self.hp) if self.drop else (batch, batch)

    def metrics(self, outputs: dict, heads: Mapping[str, Callable], batch: dict, method_state: Any
                ) -> tuple[Metrics, Any]:
        """({term: Mean}, new method state) from the outputs of all networks by name."""
        others = {n: out for n, out in outputs.items() if n != 'student'}
        values, method_state = self.loss_terms(outputs['student'], others, heads, batch, method_state)
        means = {n: v if isinstance(v, Mean) else self.mean(n, v, batch['mask']) for n, v in values.items()}
        return means, method_state

    def mean(self, name: str, values: Any, mask: Shaped[Array, ' batch']) -> Mean:
        """The Mean of a term over the cases of `mask` [B]. ConfigError unless its values are [B] too."""
        if jnp.shape(values) != mask.shape:
            raise errors.ConfigError(f'Method {self.hp.name}: term "{name}" has shape {jnp.shape(values)}; it must be '
                                     '[B] or Mean.of(value, weight).')
        return Mean.of(values, mask)

    def progress(self, state: TrainState) -> Progress:
        return Progress(state.step, state.step / self.context.epoch, state.step / self.context.total)

    def gradients(self, state: TrainState, frozen: dict, batch: dict, key: PRNGKeyArray,
                  weights: Mapping[str, Any]) -> tuple[dict, Metrics, dict, Any]:
        """(gradients and metrics summed over microbatches and devices, batch statistics, new method state)."""
        progress = self.progress(state)

        def measure(params, stats, method_state, frozen, batch, key):
            whole = fsdp.gather(params, self.axes)
            return self.measure(whole, stats, method_state, frozen, batch, key, progress)

        def objective(params, stats, method_state, batch, key, counts):
            metrics, stats, method_state = measure(params, stats, method_state, frozen, batch, key)
            if counts is None:
                counts = parallel.psum(jax.lax.stop_gradient({n: m.weight for n, m in metrics.items()}))
            loss = sum((w * metrics[n].total / jnp.maximum(counts[n], 1e-12) for n, w in weights.items()),
                       jnp.float32(0))
            return loss, (metrics, (stats, method_state))

        def differentiate(carry, batch_and_key, counts=None):
            grads, (metrics, carry) = jax.grad(loss, has_aux=True)(state.params, *carry, *batch_and_key, counts)
            return carry, (grads, metrics)

        def weigh(carry, batch_and_key):
            (stats, method_state), (batch, key) = carry, batch_and_key
            metrics, *new = measure(state.params, stats, method_state, frozen, batch, key)
            return tuple(new), {n: m.weight for n, m in metrics.items()}

        loss = fsdp.without_whole_copies(objective, self.axes)
        carry, microbatches = (state.stats, state.memory), self.context.accumulate
        if microbatches == 1:
            carry, (grads, metrics) = differentiate(carry, (batch, key))
        else:
            micro = jax.tree.map(lambda a: a.reshape(microbatches, -1, *a.shape[1:]), batch)
            xs = (micro, jax.random.split(key, microbatches))
            # Weights first, over all microbatches; the compiler drops the networks that they do not depend on.
            counts = parallel.psum(_sum(jax.lax.scan(weigh, carry, xs)[1]))
            carry, stacked = jax.lax.scan(lambda c, x: differentiate(c, x, counts), carry, xs)
            grads, metrics = _sum(stacked)
        return *fsdp.reduce(grads, metrics, self.axes), *carry

    def train_step(self, state: TrainState, frozen: dict, batch: dict) -> tuple[TrainState, Metrics]:
        """The next state and the metrics of all devices, from each device's rows of a batch."""
        key = parallel.fold_device(jax.random.fold_in(jax.random.key(self.context.seed), state.step))
        weights = self.loss_weights(self.progress(state))
        weights = {n: w for n, w in weights.items() if not (isinstance(w, (int, float)) and w == 0)}
        grads, metrics, stats, method_state = self.gradients(state, frozen, batch, key, weights)
        return self.update(state, weights, grads, metrics, stats, method_state)

    def update(self, state: TrainState, weights: Mapping[str, Any], grads: dict, metrics: Metrics, stats: dict,
               method_state: Any) -> tuple[TrainState, Metrics]:
        """The state after an update by summed gradients, and the metrics: terms, loss, gradient norm, learning rate,
        and weights that follow a schedule.
        """
        optim = self.context.optim
        norm_of = functools.partial(fsdp.norm, axes=self.axes)
        if optim.hp.skip_nonfinite:
            grads = fsdp.spread_nonfinite(grads, self.axes)
        params, opt_state = optim.update(grads, state.opt_state, state.params, state.plateau, norm_of)
        stats = parallel.pmean(stats)
        skipped = optim.skipped(opt_state)
        if optim.hp.skip_nonfinite:  # a skipped step changes no state and has weight 0 in every mean
            stats, method_state = jax.tree.map(
                lambda new, old: jnp.where(skipped, old, new), (stats, method_state), (state.stats, state.memory))
            metrics = jax.tree.map(lambda a: jnp.where(skipped, 0, a), metrics)
        ema = optax.incremental_update(params, state.ema, 1 - optim.hp.ema) if optim.hp.ema else {}
        loss = sum((w * metrics[n].value for n, w in weights.items()), jnp.float32(0))
        norm = jnp.where(skipped, 0, norm_of(grads))
        scalars = {'loss': loss, 'grad_norm': norm, 'lr': optim.rate_of(state.step, state.plateau)}
        scalars |= {f'weight_of_{n}': w for n, w in weights.items() if isinstance(w, jax.Array)}  # that change
        if optim.hp.skip_nonfinite:
            scalars['skipped'] = jnp.float32(skipped)
        metrics |= {n: Mean(v, jnp.float32(1)) for n, v in scalars.items()}
        return TrainState(state.step + 1, params, stats, opt_state, ema, method_state, state.plateau), metrics

    def init(self, key: PRNGKeyArray) -> TrainState:
        """The state before the first step. ConfigError for a weight without a term."""
        return parallel.run(self._initial_state, key, *init_networks(self.context, key))

    def _initial_state(self, key: PRNGKeyArray, params: dict, stats: dict) -> TrainState:
        context = self.context
        params['heads'] = {}
        method_state = self.memory(self.hp, context) if self.memory else {}

        def first_call(x, name):  # a head gets its parameters when the terms first call it
            if name not in params['heads']:
                params['heads'][name] = self.modules[name].init(_key(key, name), x)['params']
            return self.modules[name].apply({'params': params['heads'][name]}, x)

        heads = {n: functools.partial(first_call, name=n) for n in self.modules}
        outputs = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), output_shapes(context))
        metrics, _ = self.metrics(outputs, heads, self._changed(_one_row(context), key)[0], method_state)
        for name in self.loss_weights(Progress(*[jnp.float32(0)] * 3)):
            if name not in metrics:
                raise errors.ConfigError(f'Method {self.hp.name} weighs "{name}" but has no such term.'
                                         f'{errors.nearest(name, metrics)}')
        ema = jax.tree.map(jnp.copy, params) if context.optim.hp.ema else {}
        return TrainState(jnp.int32(0), params, stats, context.optim.tx.init(params), ema, method_state,
                          context.optim.plateau())

    def after_validation(self, state: TrainState, score: ArrayLike) -> TrainState:
        return dataclasses.replace(state, plateau=self.context.optim.after_validation(state.plateau, score))

    def teacher_terms(self) -> list[str]:
        """The terms that depend on outputs of the student and of another network."""
        def run(student, others, batch, method_state):
            heads = {n: lambda x, m=m: m.init_with_output(jax.random.key(0), x)[0] for n, m in self.modules.items()}
            return self.loss_terms(student, others, heads, self._changed(batch, jax.random.key(0))[0], method_state)
        others = output_shapes(self.context)
        student, method_state = others.pop('student'), self.memory(self.hp, self.context) if self.memory else {}
        arguments = dependencies(run, student, others, _one_row(self.context), method_state)
        used = {n: frozenset().union(*jax.tree.leaves(a)) for n, a in arguments[0].items()}
        indirect = {1, 3} if any(1 in a for a in jax.tree.leaves(arguments[1])) else {1}
        return [n for n, positions in used.items() if 0 in positions and positions & indirect]


def make_method(terms: Callable[..., Any], weights: Callable[[Any, Progress], Mapping[str, Any]], hp: Any,
                context: Context, heads: Callable[..., Mapping[str, Any]] | None = None,
                memory: Callable[[Any, Context], Any] | None = None, mix: Callable[..., dict] | None = None,
                drop: Callable[..., tuple[dict, dict]] | None = None, **fields: Any) -> Method:
    """A Method from its terms.

    terms(student, teachers, heads, batch, hp) -> {name: [B] values, or a Mean where something else than the cases of
        batch['mask'] is averaged}. `student` holds the outputs of the stage's network, `teachers` those of all other
        networks by name (frozen ones behind a stop-gradient), `heads` functions by name. Reading a network or an output
        that is missing is a ConfigError. With `memory`, terms takes the memory as a last argument and returns (terms,
        new memory), equal on all devices: see `parallel.gather`.
    weights(hp, progress) -> {name: float, or a traced scalar}. A term without a weight is only logged. A plain 0 takes
        the term out of the loss altogether. A weight without a term is a ConfigError.
    heads(hp, shapes) -> {name: flax module}: trainable modules of the method, e.g. a projector; `shapes` are the
        outputs of all networks as ShapeDtypeStructs. Those that terms calls train under params['heads']; none is
        deployed.
    memory(hp, context) -> tree of arrays: a bank, prototypes, one value for each training case.
    mix(batch, key, hp) -> the batch that networks and terms see, with the rows of one device blended.
    drop(batch, key, hp) -> (the batch that other networks and the terms see, the batch that the student sees).
    fields: further fields of the Method, such as its provenance. The terms through which a teacher teaches are derived
        from `terms`, unless `teacher_terms` is given.

    Raises ConfigError for functions that take other arguments.
    """
    given = ('student', 'teachers', 'heads', 'batch', 'hp', *(['memory'] if memory else []))
    for function, name, arguments in ((terms, 'terms', given), (weights, 'weights', ('hp', 'progress')),
                                      (heads, 'heads', ('hp', 'shapes')), (memory, 'memory', ('hp', 'context')),
                                      (mix, 'mix', ('batch', 'key', 'hp')), (drop, 'drop', ('batch', 'key', 'hp'))):
        if function:
            _check_arguments(function, name, arguments, hp, context)
    modules = heads(hp, named_outputs(context, hp, output_shapes(context))) if heads else {}
    recipe = Recipe(hp, context, terms, weights, modules, memory, mix, drop)
    fields = dict(loss_weights=recipe.loss_weights, teacher_terms=recipe.teacher_terms) | fields
    return Method(recipe.init, recipe.train_step, recipe.after_validation, **fields)


def _check_arguments(function: Callable, name: str, arguments: Sequence[str], hp: Any, context: Context) -> None:
    """ConfigError unless a function of a method can be called with these arguments, in this order."""
    signature = inspect.signature(function)
    try:
        signature.bind(*arguments)
    except TypeError as e:
        raise errors.ConfigError(f'{context.stage}.method: {name}{signature} of {hp.name} is called as '
                                 f'{name}({", ".join(arguments)}). Let it take these.') from e


def run_networks(context: Context, params: dict, stats: dict, frozen: dict, batch: dict, key: PRNGKeyArray,
                 seen: dict | None = None) -> tuple[dict, dict]:
    """({network: outputs}, new batch statistics). Frozen teachers run unless in batch['teacher_outputs'].

    seen: what the student sees in place of the batch.
    """
    outputs, new = {}, {}
    for name, network in context.networks.items():
        variables = {'params': params[name], **stats[name]}
        inputs = seen if seen is not None and name == 'student' else batch
        outputs[name], new[name] = network.apply(variables, inputs, train=True, key=_key(key, name))
    for name, network in context.teachers.items():
        cached = batch.get('teacher_outputs', {})
        out = cached[name] if name in cached else network.apply(frozen[name], _read_by(name, context, batch))[0]
        outputs[name] = jax.lax.stop_gradient(out)
    return outputs, new


def _read_by(teacher: str, context: Context, batch: dict) -> dict:
    """The batch as a frozen teacher reads it, that of a control with inputs of other cases."""
    if teacher not in batch.get('exchange', {}):
        return batch
    network = context.teachers[teacher]
    return shuffling.exchanged(batch, privileged_inputs(network, context) or network.inputs, teacher)


def named_outputs(context: Context, hp: Any, outputs: Mapping[str, Mapping[str, Any]]) -> Named:
    """Outputs {network: {output: value}} of which a missing name is a ConfigError with stage, network, names and
    remedy.
    """
    def no_output(network, key):
        label = f'{context.stage}.teachers.{network}.outputs'
        remedy = f'Set {label}={(*outputs[network], key)} if its model gives that, or choose another model or method.'
        cached = network in context.batch.get('teacher_outputs', {})
        return (f'{context.stage}.method: {hp.name} reads "{key}" of "{network}", which gives '
                f'{", ".join(outputs[network])}. {remedy if cached else "Choose another model or method."}')

    def no_network(name):
        return (f'{context.stage}.method: {hp.name} reads outputs of "{name}", which is no network of this stage.'
                f'{errors.nearest(name, outputs)} Name it in {context.stage}.teachers or {context.stage}.networks.')
    return Named({n: Named(out, functools.partial(no_output, n)) for n, out in outputs.items()}, no_network)


def init_networks(context: Context, key: PRNGKeyArray) -> tuple[dict, dict]:
    """(params, batch statistics) of the trained networks by name: equal keys give equal weights."""
    params, stats = {}, {}
    row = jax.tree.map(lambda a: np.zeros((1, *a.shape[1:]), a.dtype), context.batch)  # no program for each shape
    for name, network in context.networks.items():
        variables = dict(network.init(_key(key, name), row))
        params[name], stats[name] = variables.pop('params'), variables
    return params, stats


def output_shapes(context: Context) -> dict[str, Any]:
    """Outputs of all networks for one case as ShapeDtypeStructs, by name. Nothing is computed."""
    batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), context.batch)
    shapes = {name: network.output_shapes(batch, train=True) for name, network in context.networks.items()}
    cached = batch.get('teacher_outputs', {})
    return shapes | {name: cached[name] if name in cached else network.output_shapes(batch)
                     for name, network in context.teachers.items()}


def require_keys(keys: Iterable[str], hp: Any, context: Context) -> None:
    """ConfigError for keys that a method needs for training and a batch lacks."""
    missing = [k for k in keys if k not in context.batch]
    if missing:
        raise errors.ConfigError(f'Method {hp.name} needs "{missing[0]}" in a batch, a label that methods without it '
                                 'do not see. Set data.shortcut.reveal=True for this stage.')


def only_teacher(hp: Any, context: Context, remedy: str = 'Give the stage one in `teachers`.') -> tuple[str, tuple]:
    """(name, privileged inputs) of the stage's teacher. ConfigError unless there is exactly one."""
    if len(context.teachers) != 1:
        raise errors.ConfigError(f'{hp.name} learns from one teacher, not from {len(context.teachers)}. {remedy}')
    (name, network), = context.teachers.items()
    return name, privileged_inputs(network, context)


def privileged_inputs(network: Network, context: Context) -> tuple[str, ...]:
    """Inputs of a teacher that the student does not read."""
    return tuple(k for k in network.inputs if k not in context.networks['student'].inputs)


def _one_row(context: Context) -> Any:
    return jax.tree.map(lambda a: jnp.zeros((1, *a.shape[1:]), a.dtype), context.batch)


def _key(key: PRNGKeyArray, name: str) -> PRNGKeyArray:
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _sum(stacked: Any) -> Any:
    return jax.tree.map(lambda a: jnp.sum(a, 0), stacked)
