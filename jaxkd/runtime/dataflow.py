"""Which inputs of a function its outputs depend on."""
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Literal


def dependencies(function: Callable[..., Any], *arguments: Any) -> Any:
    """Which arguments each output of a traceable function depends on, by abstract evaluation.

    arguments: trees of arrays or ShapeDtypeStructs. Returns the tree of the function's output with a frozenset of
    argument positions for each leaf. A value behind a stop-gradient is a dependence too. Within a nested program, such
    as a function under jit, every output counts as dependent on all inputs.
    """
    program, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    positions = [i for i, argument in enumerate(arguments) for _ in jax.tree.leaves(argument)]
    origin = {v: frozenset([i]) for v, i in zip(program.jaxpr.invars, positions)}

    def read(variables):
        return frozenset().union(*(origin.get(v, frozenset()) for v in variables if not isinstance(v, Literal)))
    for equation in program.jaxpr.eqns:
        origin.update(dict.fromkeys(equation.outvars, read(equation.invars)))
    return jax.tree.unflatten(jax.tree.structure(shape), [read([v]) for v in program.jaxpr.outvars])
