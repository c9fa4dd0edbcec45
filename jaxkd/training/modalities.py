"""Networks that read several inputs, of which a case may lack any: subsets of inputs, in training and in tests.

Modality dropout (Neverova et al., 2015 [published]) hides whole inputs of a case from the student, never all:

    subset   each non-empty subset of the inputs that the case has is equally likely (MMANet [published])
    count    first their number, uniform in 1 ... M, then a subset of that size (ShaSpec [published])

An input is hidden by its presence flag: the network must read the flags, as those of models/layers/backbone.py do.
"""
import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from jaxkd import errors
from jaxkd.networks import Network
from jaxkd.runtime.dataflow import dependencies

LAWS = ('subset', 'count')


def subsets(names: Sequence[Any]) -> list[tuple]:
    """All non-empty subsets, small ones first, each in the order of `names`."""
    return [chosen for size in range(1, len(names) + 1) for chosen in itertools.combinations(names, size)]


def probabilities(present: Shaped[Array, 'b m'], law: str) -> Float[Array, 'b s']:
    """P of each of the `subsets` of M inputs, for cases that have some of them: rows of sum 1; of a case that has none
    all subsets are equally likely.
    """
    count = present.shape[1]
    members = np.array([[i in chosen for i in range(count)] for chosen in subsets(range(count))])  # [S,M]
    possible = jnp.all(~members[None] | (present > 0)[:, None], -1)  # [B,S]
    weight = jnp.ones(len(members))
    if law == 'count':  # of the subsets of a size, those that the case has share the weight of the size
        sizes, here = members.sum(1), (present > 0).sum(1)
        choose = jnp.array([[math.comb(n, size) for size in sizes] for n in range(count + 1)])[here]
        weight = 1 / jnp.maximum(choose, 1)
    weight = jnp.where(possible.any(1, keepdims=True), possible * weight, 1.0)
    return weight / weight.sum(1, keepdims=True)


def drop(batch: Mapping[str, Any], names: Sequence[str], key: PRNGKeyArray, law: str) -> dict[str, Any]:
    """The batch with lower presence flags of `names`: each case keeps a random subset of those that it has."""
    given, cases = batch.get('present', {}), batch['mask'].shape[0]
    present = jnp.stack([jnp.asarray(given.get(name, jnp.ones(cases)), jnp.float32) for name in names], 1)
    chosen = jax.random.categorical(key, jnp.log(probabilities(present, law)))
    members = jnp.array([[float(name in kept) for name in names] for kept in subsets(names)])
    kept = present * members[chosen]
    return {**batch, 'present': {**given, **{name: kept[:, i] for i, name in enumerate(names)}}}


def only(batch: Mapping[str, Any], names: Sequence[str], kept: Sequence[str]) -> dict[str, Any]:
    """The batch with presence flags of 0 for those of `names` that are not among `kept`."""
    absent = {name: jnp.zeros(batch['mask'].shape[0], jnp.float32) for name in names if name not in kept}
    return {**batch, 'present': {**batch.get('present', {}), **absent}}


def restricted(network: Network, kept: tuple[str, ...], batch: Mapping[str, Any]) -> Network:
    """The network where it has no input but `kept`: the others are not read, and absent in what its model sees.

    batch: arrays or ShapeDtypeStructs of all inputs.
    """
    absent = tuple((name, tuple(batch[name].shape[1:]), jnp.dtype(batch[name].dtype).name)
                   for name in network.inputs if name not in kept)
    return dataclasses.replace(network, inputs=kept, input_fn=_adding(absent, network.input_fn))


def check(key: str, network: Network, batch: Mapping[str, Any]) -> None:
    """ConfigError unless the network has several inputs whose presence flags its model reads; key: of the option."""
    if len(network.inputs) < 2:
        raise errors.ConfigError(f'{key}: the network reads "{", ".join(network.inputs)}" alone. Give it several '
                                 'inputs, of which a case may lack some.')
    one = {k: jax.ShapeDtypeStruct((1, *batch[k].shape[1:]), batch[k].dtype) for k in network.inputs}
    flags = {name: jax.ShapeDtypeStruct((1,), jnp.float32) for name in network.inputs}

    def logits(variables, inputs, flags):
        return network.apply(variables, {**inputs, 'present': flags})[0]['logits']
    if 2 not in dependencies(logits, network.variable_shapes({**one, 'present': flags}), one, flags):
        raise errors.ConfigError(f'{key}: the model {type(network.module).__name__} reads no presence flags, so an '
                                 'input cannot be hidden from it. Take one that does, such as resnet with fuse="mean".')


@functools.cache  # equal functions for equal networks
def _adding(absent: Sequence[tuple[str, tuple[int, ...], str]], then: Any) -> Any:
    return functools.partial(_with_absent, absent=absent, then=then)


def _with_absent(inputs: dict[str, Any], absent: Sequence[tuple[str, tuple[int, ...], str]], then: Any) -> dict:
    """Inputs with zeros and flags of 0 for those that are absent; then the input_fn of the network."""
    rows = next(a for name, a in inputs.items() if name != 'present').shape[0]
    flags = {name: jnp.ones(rows, jnp.float32) for name in inputs if name != 'present'}
    flags |= {**inputs.get('present', {})} | {name: jnp.zeros(rows, jnp.float32) for name, _, _ in absent}
    inputs = {**inputs, **{name: jnp.zeros((rows, *shape), dtype) for name, shape, dtype in absent}, 'present': flags}
    return then(inputs) if then else inputs
