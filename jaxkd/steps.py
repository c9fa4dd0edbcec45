"""The usual step of a method: one loss made of named terms, one optimiser over everything trained.

A method's file holds `terms(student, teachers, heads, batch, hp)`: outputs in, unweighted terms by name out. Here they
are measured, weighted, differentiated, summed over microbatches and devices, and applied.

Each term is divided by its own global weight before the gradient is taken. The update is therefore the same for one
device, a mesh, pmap and any number of microbatches, whatever is masked, missing or padded. Exceptions, by nature:
batch statistics and dropout see one device's share of one microbatch, a pairwise term sees one microbatch.
"""
import functools
import zlib

import jax
import jax.numpy as jnp
import optax

from jaxkd import errors, parallel
from jaxkd.contracts import Method
from jaxkd.runtime.dataflow import dependencies
from jaxkd.state import Mean, Progress, TrainState


def make_method(terms, weights, hp, context, heads=None, memory=None, mix=None, **fields):
    """A Method from its terms.

    terms(student, teachers, heads, batch, hp) -> {name: [B] values, or a Mean where something else than the cases of
        batch['mask'] is averaged}. `student` holds the outputs of the stage's network, `teachers` those of all other
        networks by name (frozen ones behind a stop-gradient), `heads` functions by name. With `memory`, terms takes
        the memory as a last argument and returns (terms, new memory), equal on all devices: see `parallel.gather`.
    weights(hp, progress) -> {name: float, or a traced scalar}. A term without a weight is only logged. A plain 0 takes
        the term out of the loss altogether. A weight without a term is a ConfigError.
    heads(hp, shapes) -> {name: flax module}: the method's own trainable modules, e.g. a projector; `shapes` are the
        outputs of all networks as ShapeDtypeStructs. Those that terms calls train under params['heads']; none is deployed.
    memory(hp, context) -> tree of arrays: a bank, prototypes, one value for each training case.
    mix(batch, key, hp) -> the batch that networks and terms see: what blends the cases of one device's share.
    fields: further fields of the Method, such as its provenance. Which terms are a teacher's is found out from `terms`, unless a
        field says it.
    """
    modules = heads(hp, output_shapes(context)) if heads else {}

    def measure(params, stats, kept, frozen, batch, key, heads=None):
        """-> ({name: Mean}, new batch statistics, new memory)."""
        batch = mix(batch, _key(key, 'mix'), hp) if mix else batch
        outputs, stats = run_networks(context, params, stats, frozen, batch, key)
        student = outputs.pop('student')
        calls = heads or {n: functools.partial(modules[n].apply, {'params': p}) for n, p in params['heads'].items()}
        found = terms(student, outputs, calls, batch, hp, *((kept,) if memory else ()))
        found, kept = found if memory else (found, kept)
        parts = {n: v if isinstance(v, Mean) else Mean.of(v, batch['mask']) for n, v in found.items()}
        return parts, stats, jax.lax.stop_gradient(kept)

    def train_step(state, frozen, batch):
        step_key = parallel.fold_device(jax.random.fold_in(jax.random.key(context.seed), state.step))
        weight = weights(hp, Progress(state.step, state.step / context.epoch, state.step / context.total))
        used = {n: w for n, w in weight.items() if not (isinstance(w, (int, float)) and w == 0)}

        def objective(params, stats, kept, batch, key, counts):
            parts, stats, kept = measure(params, stats, kept, frozen, batch, key)
            if counts is None:
                counts = parallel.psum(jax.lax.stop_gradient({n: m.weight for n, m in parts.items()}))
            loss = sum((w * parts[n].total / jnp.maximum(counts[n], 1e-12) for n, w in used.items()), jnp.float32(0))
            return loss, (parts, (stats, kept))

        def differentiate(carry, batch_and_key, counts=None):
            grads, (parts, carry) = jax.grad(objective, has_aux=True)(state.params, *carry, *batch_and_key, counts)
            return carry, (grads, parts)

        def weigh(carry, batch_and_key):
            parts, *carry = measure(state.params, *carry, frozen, *batch_and_key)
            return tuple(carry), {n: m.weight for n, m in parts.items()}

        carry = (state.stats, state.memory)
        if context.accumulate == 1:
            carry, found = differentiate(carry, (batch, step_key))
        else:
            micro = jax.tree.map(lambda a: a.reshape(context.accumulate, -1, *a.shape[1:]), batch)
            xs = (micro, jax.random.split(step_key, context.accumulate))
            # Weights first, over all microbatches; the compiler drops the networks that they do not depend on.
            counts = parallel.psum(_sum(jax.lax.scan(weigh, carry, xs)[1]))
            carry, found = jax.lax.scan(lambda c, x: differentiate(c, x, counts), carry, xs)
            found = _sum(found)
        grads, parts = parallel.psum(found)
        stats, kept = carry
        params, opt_state = context.optim.update(grads, state.opt_state, state.params, state.plateau)
        stats = parallel.pmean(stats)
        skipped = context.optim.skipped(opt_state)
        if context.optim.hp.skip_nonfinite:  # then nothing of this step stays, and nothing of it is averaged
            stats, kept = jax.tree.map(lambda new, old: jnp.where(skipped, old, new), (stats, kept), (state.stats, state.memory))
            parts = jax.tree.map(lambda a: jnp.where(skipped, 0, a), parts)
        decay = context.optim.hp.ema
        ema = optax.incremental_update(params, state.ema, 1 - decay) if decay else {}
        loss = sum((w * parts[n].value for n, w in used.items()), jnp.float32(0))
        norm = jnp.where(skipped, 0, optax.tree.norm(grads))
        alone = {'loss': loss, 'grad_norm': norm, 'lr': context.optim.rate_of(state.step, state.plateau)}
        if context.optim.hp.skip_nonfinite:
            alone['skipped'] = jnp.float32(skipped)
        parts |= {n: Mean(v, jnp.float32(1)) for n, v in alone.items()}
        return TrainState(state.step + 1, params, stats, opt_state, ema, kept, state.plateau), parts

    def init(key):
        params, stats = init_networks(context, key)
        params['heads'] = {}
        kept = memory(hp, context) if memory else {}

        def first_call(x, name):  # a head gets its parameters where the terms first call it
            if name not in params['heads']:
                params['heads'][name] = modules[name].init(_key(key, name), x)['params']
            return modules[name].apply({'params': params['heads'][name]}, x)

        frozen = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), context.frozen)
        calls = {n: functools.partial(first_call, name=n) for n in modules}
        parts, _, _ = measure(params, stats, kept, frozen, _one_row(context), key, calls)
        names = weights(hp, Progress(*[jnp.float32(0)] * 3))
        for name in names:
            if name not in parts:
                raise errors.ConfigError(f'Method {hp.name} weighs "{name}" but has no such term.'
                                         f'{errors.nearest(name, parts)}')
        ema = jax.tree.map(jnp.copy, params) if context.optim.hp.ema else {}
        return TrainState(jnp.int32(0), params, stats, context.optim.tx.init(params), ema, kept, context.optim.plateau())

    def after_validation(state, score):
        return state.replace(plateau=context.optim.after_validation(state.plateau, score))

    def teacher_terms():
        def run(student, others, batch, kept):
            calls = {n: lambda x, m=m: m.init_with_output(jax.random.key(0), x)[0] for n, m in modules.items()}
            batch = mix(batch, jax.random.key(0), hp) if mix else batch
            found = terms(student, others, calls, batch, hp, *((kept,) if memory else ()))
            return found if memory else (found, {})
        others = output_shapes(context)
        student = others.pop('student')
        found, remembered = dependencies(run, student, others, _one_row(context), memory(hp, context) if memory else {})
        foreign = {1, 3} if any(1 in d for d in jax.tree.leaves(remembered)) else {1}
        read = {n: frozenset().union(*jax.tree.leaves(d)) for n, d in found.items()}
        return [n for n, d in read.items() if 0 in d and d & foreign]

    fields = dict(loss_weights=functools.partial(weights, hp), teacher_terms=teacher_terms) | fields
    return Method(init, train_step, after_validation, **fields)


def run_networks(context, params, stats, frozen, batch, key):
    """-> ({network: outputs}, new batch statistics). Frozen teachers are read from batch['cached'] where they stand."""
    outputs, new = {}, {}
    for name, network in context.networks.items():
        variables = {'params': params[name], **stats[name]}
        outputs[name], new[name] = network.apply(variables, batch, train=True, key=_key(key, name))
    for name, network in context.teachers.items():
        cached = batch.get('cached', {})
        out = cached[name] if name in cached else network.apply(frozen[name], batch)[0]
        outputs[name] = jax.lax.stop_gradient(out)
    return outputs, new


def init_networks(context, key):
    """-> (params, batch statistics) of the networks trained here, by name: equal keys give equal weights."""
    params, stats = {}, {}
    for name, network in context.networks.items():
        variables = dict(network.init(_key(key, name), _one_row(context)))
        params[name], stats[name] = variables.pop('params'), variables
    return params, stats


def output_shapes(context):
    """Outputs of all networks as ShapeDtypeStructs, without computing anything."""
    def run(key, frozen):
        params, stats = init_networks(context, key)
        return run_networks(context, params, stats, frozen, _one_row(context), key)[0]
    return jax.eval_shape(run, jax.random.key(0), context.frozen)


def require_keys(keys, hp, context):
    """ConfigError for keys that a method trains with and a batch lacks."""
    missing = [k for k in keys if k not in context.batch]
    if missing:
        raise errors.ConfigError(f'Method {hp.name} needs "{missing[0]}" in a batch, a label that methods without it do not see. Set '
                                 'data.shortcut.reveal=True for this stage.')


def privileged_inputs(network, context):
    """Inputs of a teacher that the student does not get."""
    return tuple(k for k in network.inputs if k not in context.networks['student'].inputs)


def _one_row(context):
    return jax.tree.map(lambda a: jnp.zeros((1, *a.shape[1:]), a.dtype), context.batch)


def _key(key, name):
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _sum(stacked):
    return jax.tree.map(lambda a: jnp.sum(a, 0), stacked)
