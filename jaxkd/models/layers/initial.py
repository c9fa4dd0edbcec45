"""Initial values of parameters.

Flax asks in every call of a network what shape its parameters would begin with, and traces for the answer what draws
them. A jit around that traces each shape once, however many layers and calls have it.
"""
import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

Initializer = Callable[..., Array]  # (key, shape, dtype=float32) -> values


def _once(initializer: Initializer) -> Initializer:
    traced = jax.jit(initializer, static_argnums=(1, 2))
    return lambda key, shape, dtype=jnp.float32: traced(key, tuple(shape), dtype)


small_normal = _once(nn.initializers.truncated_normal(0.02))  # heads, positions, embeddings
glorot_uniform = _once(nn.initializers.glorot_uniform())


@functools.cache
def kaiming(fan: Literal['fan_out', 'fan_in'] = 'fan_out') -> Initializer:
    """Normal, variance 2 / fan: He et al., ICCV 2015, gain of a ReLU [published].

    fan_out: places of the kernel * output channels; fan_in: places of the kernel * input channels of a group.
    """
    return _once(nn.initializers.variance_scaling(2.0, fan, 'normal'))


@functools.cache
def near_one(spread: float) -> Initializer:
    """N(1, spread)."""
    return _once(lambda key, shape, dtype: 1 + spread * jax.random.normal(key, shape, dtype))
