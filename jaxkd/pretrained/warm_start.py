"""Initial weights from a checkpoint of another network, where names agree."""
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import errors
from jaxkd.runtime import log
from jaxkd.runtime.trees import leaf_name


def restore_matching(initial: Any, checkpoint: Any, folder: str | pathlib.Path,
                     adapt: Callable[..., Any] | None = None, only: Sequence[str] = ()) -> Any:
    """`initial` with the leaves of `checkpoint` where names agree (and match one of the patterns `only`); leaves that
    start fresh are logged.

    adapt: see contracts.ModelPlugin. ConfigError for a shape that it does not change, and if no name agrees.
    """
    flat = {leaf_name(p): a for p, a in jax.tree_util.tree_leaves_with_path(checkpoint)}
    flat = {name: a for name, a in flat.items() if not only or any(re.search(pattern, name) for pattern in only)}
    fresh = []

    def leaf(path, a):
        name = leaf_name(path)
        if name not in flat:
            fresh.append(name)
            return a
        value = adapt(name, flat[name], a.shape, ()) if adapt and flat[name].shape != a.shape else flat[name]
        if value.shape != a.shape:
            raise errors.ConfigError(f'init: {name} is {value.shape} in {folder} and {a.shape} here.')
        return jnp.asarray(value, a.dtype)
    out = jax.tree_util.tree_map_with_path(leaf, initial)
    if fresh and len(fresh) == len(jax.tree.leaves(initial)):
        raise errors.ConfigError(f'init: {folder} shares no parameter with this model, e.g. {fresh[0]}.')
    if fresh:
        log.info(f'init: {len(fresh)} parameters are not in {folder} and start fresh, e.g. {fresh[0]}')
    return out
