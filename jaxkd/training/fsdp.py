"""Parameters and optimiser divided among devices (fully sharded data parallelism; `fsdp` in the config).

With fsdp = N the devices form groups of N. Each device keeps a part of every large array of parameters, optimiser and
smoothed weights [ZeRO, arXiv 1910.02054, stage 3], as `parallel.state_specs` says. A step gathers the parameters from
the group, again in its backward pass, so that no whole copy is kept in between; the gradients are summed and divided by
a reduce-scatter; each device updates its parts. Teachers stay whole.

Every function here is the identity of its plain form where no step is mapped over the axis.
"""
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Shaped

from jaxkd import parallel
from jaxkd.runtime.trees import leaf_name

Axes = Mapping[str, int]  # leaf of the parameters -> the axis along which it is divided


def axes_of(params: Any, n: int) -> Axes:
    """The divided leaves of parameters, arrays or their shapes."""
    axes = {leaf_name(path): parallel.axis_of(a.shape, n) for path, a in jax.tree_util.tree_leaves_with_path(params)}
    return {name: axis for name, axis in axes.items() if axis is not None}


def gather(params: Any, axes: Axes) -> Any:
    """Whole parameters from the parts of the group. The gradient flows back through a reduce-scatter."""
    def whole(path: tuple, a: Array) -> Array:
        axis = axes.get(leaf_name(path))
        return a if axis is None else jax.lax.all_gather(a, parallel.FSDP, axis=axis, tiled=True)
    return jax.tree_util.tree_map_with_path(whole, params) if parallel.is_mapped(parallel.FSDP) else params


def without_whole_copies(function: Callable[..., Any], axes: Axes) -> Callable[..., Any]:
    """`function`, whose backward pass gathers the parameters anew in the place of keeping them."""
    def keep(primitive: Any, *_: Any, **params: Any) -> bool:
        return not (primitive.name == 'all_gather' and parallel.FSDP in params['axis_name'] != parallel.axes())
    return jax.checkpoint(function, policy=keep) if axes and parallel.is_mapped(parallel.FSDP) else function


def reduce(grads: Any, metrics: Any, axes: Axes) -> tuple[Any, Any]:
    """Sums over all devices of gradients, those of divided leaves being sums over the group, and of metrics."""
    if not axes or not parallel.is_mapped(parallel.FSDP):
        return parallel.psum((grads, metrics))
    leaves, structure = jax.tree_util.tree_flatten_with_path(grads)
    divided = {name: g for path, g in leaves if (name := leaf_name(path)) in axes}
    whole = {name: g for path, g in leaves if (name := leaf_name(path)) not in axes}
    if jax.lax.axis_size(parallel.AXIS) > 1:  # else the group is all devices
        divided = jax.lax.psum(divided, parallel.AXIS)
    whole, metrics = parallel.psum((whole, metrics))
    summed = {**divided, **whole}
    return jax.tree.unflatten(structure, [summed[leaf_name(path)] for path, _ in leaves]), metrics


def norm(tree: Any, axes: Axes) -> Shaped[Array, '']:
    """The l2 norm of a tree that has the names of the parameters, the parts of the group together."""
    if not axes or not parallel.is_mapped(parallel.FSDP):
        return optax.tree.norm(tree)
    squares = {True: jnp.float32(0), False: jnp.float32(0)}
    for path, a in jax.tree_util.tree_leaves_with_path(tree):
        squares[leaf_name(path) in axes] += jnp.sum(jnp.square(a))
    return jnp.sqrt(squares[False] + jax.lax.psum(squares[True], parallel.FSDP))


def spread_nonfinite(grads: Any, axes: Axes) -> Any:
    """The gradients, all nan where a part on any device of the group is not finite: devices then decide alike."""
    if not axes or not parallel.is_mapped(parallel.FSDP):
        return grads
    bad = sum((jnp.sum(~jnp.isfinite(g)) for g in jax.tree.leaves(grads)), jnp.int32(0))
    bad = jax.lax.psum(bad, parallel.FSDP)
    return jax.tree.map(lambda g: jnp.where(bad > 0, jnp.nan, g), grads)
