"""Weights of one network in another whose names agree."""
import re

import jax
import jax.numpy as jnp

from jaxkd import errors
from jaxkd.runtime import log
from jaxkd.runtime.trees import leaf_name


def restore_matching(ours, theirs, folder, adapt=None, only=()):
    """Weights of another checkpoint where names agree (and match one of the patterns `only`), and what starts fresh is
    said.

    Another shape is an error, unless the model's `adapt(name, value, shape)` knows how to make one of the other.
    """
    flat = {leaf_name(p): a for p, a in jax.tree_util.tree_leaves_with_path(theirs)}
    flat = {name: a for name, a in flat.items() if not only or any(re.search(pattern, name) for pattern in only)}
    fresh = []

    def leaf(path, a):
        name = leaf_name(path)
        if name not in flat:
            fresh.append(name)
            return a
        if flat[name].shape != a.shape and adapt:
            flat[name] = adapt(name, flat[name], a.shape)
        if flat[name].shape != a.shape:
            raise errors.ConfigError(f'init: {name} is {flat[name].shape} in {folder} and {a.shape} here.')
        return jnp.asarray(flat[name], a.dtype)
    out = jax.tree_util.tree_map_with_path(leaf, ours)
    if len(fresh) == len(jax.tree.leaves(ours)) and fresh:
        raise errors.ConfigError(f'init: {folder} shares no parameter with this model, e.g. {fresh[0]}.')
    if fresh:
        log.info(f'init: {len(fresh)} parameters are not in {folder} and start fresh, e.g. {fresh[0]}')
    return out
