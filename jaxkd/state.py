"""The types that trainer, methods and evaluators have in common."""
import dataclasses
import functools
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from jaxkd import errors


class Mean(NamedTuple):
    """A sum and its weight, so that masked, padded and sharded batches average exactly."""

    total: jax.Array
    weight: jax.Array

    @classmethod
    def of(cls, values: Shaped[Array, '...'], weights: Any = None) -> 'Mean':
        """Weighted sum of `values`. `weights` broadcasts to their shape; 0 leaves an entry out, also a nan."""
        weights = jnp.ones_like(values) if weights is None else _broadcast(weights, values.shape)
        return cls(jnp.sum(jnp.where(weights > 0, values, 0) * weights), jnp.sum(weights))

    @property
    def value(self) -> Shaped[Array, '']:
        return self.total / jnp.maximum(self.weight, 1e-12)


def _broadcast(weights: Any, shape: tuple[int, ...]) -> jax.Array:
    """Weights in the shape of the values of a Mean. ConfigError with the line that makes it where that cannot be."""
    try:
        return jnp.broadcast_to(weights, shape)
    except ValueError as e:
        caller = traceback.extract_stack(limit=3)[0]
        raise errors.ConfigError(f'Mean.of in {caller.filename}, line {caller.lineno}: its values have the shape '
                                 f'{list(shape)}, its weights {list(jnp.shape(weights))}. Let the weights have that of '
                                 'the values, or one that broadcasts to it.') from e


def valid_mask(batch: Mapping[str, Any], keys: Iterable[str]) -> Shaped[Array, ' batch']:
    """mask [B], and 0 where a case has none of `keys`: all of their presence flags are 0. A key without flag counts as
    present.
    """
    flags = [batch.get('present', {}).get(k) for k in keys]
    present = 1 if not flags or any(f is None for f in flags) else functools.reduce(jnp.maximum, flags)
    return batch['mask'] * present


def labelled_mask(batch: Mapping[str, Any]) -> Shaped[Array, ' batch']:
    """mask [B], and 0 where the class of a case, `label` int [B], is not known: below 0, as data.labels hides it.

    A term of the labels is the mean over these cases, whatever their number: a batch without any gives 0 and no
    gradient.
    """
    return batch['mask'] * (batch['label'] >= 0)


def label_kind(label: Shaped[Array, '...']) -> str:
    """What labels are, by their shape: 'multilabel' float [B,C], 'classes' int [B], 'voxels' int [B,*places]."""
    if jnp.issubdtype(label.dtype, jnp.floating):
        return 'multilabel'
    return 'classes' if label.ndim == 1 else 'voxels'


@flax.struct.dataclass
class TrainState:
    """All that training changes: the content of a checkpoint.

    params and stats (batch statistics) are by network: 'student' is the one that is deployed, then the networks
    trained beside it, and 'heads' for the method's own modules (projectors, probes of a pair), never deployed.
    """

    step: jax.Array
    params: dict
    stats: dict
    opt_state: Any
    ema: dict  # smoothed params, {} when off
    memory: Any  # the method's: a bank, a prototype set, one value for each training case
    plateau: dict  # memory of a schedule driven by validation, {} without one


class Progress(NamedTuple):
    """How far training is, for weights that change: traced scalars."""

    step: jax.Array
    epoch: jax.Array
    fraction: jax.Array


@dataclasses.dataclass(frozen=True)
class Context:
    """The networks, shapes of data and options that a method is built from. Stages with equal ones share what is
    compiled.
    """

    networks: dict  # trained by the stage: {'student': Network, ...}
    teachers: dict  # frozen: {name: Network}
    frozen: dict  # their variables (or ShapeDtypeStructs of them)
    batch: dict  # ShapeDtypeStructs of one batch
    optim: Any  # optim.Optimizer
    cases: int  # cases of the source; batch['index'] is below it
    epoch: float  # steps in one pass over the training part
    total: int  # steps of this stage
    seed: int
    accumulate: int = 1
    parallel: str = 'mesh'  # or pmap, see jaxkd/parallel.py
    fsdp: int = 1  # devices that divide the state among them, see jaxkd/training/fsdp.py
    trim: Any = None  # FrozenConfigDict of <stage>.trim, None without, see jaxkd/training/trimming.py
    stage: str = dataclasses.field(default='stage', compare=False)  # name in the config, for messages

    def __hash__(self) -> int:
        return hash((*self.networks.values(), *self.teachers.values(), self.total, self.seed))


def inference_variables(state: TrainState, name: str = 'student') -> dict:
    """The variables of a network for inference: the smoothed weights where there are any."""
    return {'params': (state.ema or state.params)[name], **state.stats[name]}
