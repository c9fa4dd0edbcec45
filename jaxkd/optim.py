"""The optimiser of a stage: rule, schedule, weight decay, freezing, clipping, and a plateau driven by validation."""
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from jaxkd import errors
from jaxkd.config import durations
from jaxkd.runtime.trees import leaf_name

DEFAULTS = dict(
    name='adamw',  # adamw; adam (weight decay as L2 inside Adam); sgd (momentum = b1, nesterov); rmsprop
    lr=1e-3,  # learning rate after the warm-up, from which the schedule starts
    b1=0.9,  # adam, adamw: decay of the mean of gradients; sgd: momentum
    b2=0.999,  # adam, adamw, rmsprop: decay of the mean of squared gradients
    nesterov=False,  # sgd: Nesterov's momentum
    weight_decay=0.0,  # adamw takes it off the weights, the other rules add it to the gradient (L2); 0 is off
    no_decay=(r'bias$', r'scale$', r'norm', r'positions?$', r'cls$'),  # parameters whose path matches do not decay
    schedule='cosine',  # of the rate: constant, cosine or poly (power 0.9) to 0, milestones, plateau
    warmup='5%',  # duration of a linear rise of the rate from 0; '': none
    milestones=(),  # milestones: durations after the start, such as '50%', at which the rate is multiplied by factor
    factor=0.1,  # milestones, plateau: what the rate is multiplied by
    patience=5,  # plateau: validations in a row without a better score that leave the rate as it is
    floor=0.0,  # milestones, plateau: lowest rate
    clip=0.0,  # largest norm of the gradient of each network, so that one does not shorten another's step; 0 is off
    ema=0.0,  # decay of the smoothed weights that are deployed, for each step; 0 is off
    accumulate=1,  # microbatches in one step: less memory, the same number of cases
    freeze=(),  # parameters whose path matches one of these patterns do not change
    lr_scale=(),  # (pattern, factor) pairs: another rate for some parameters, the first match counts
    skip_nonfinite=0,  # leave out up to so many updates in a row whose gradient is not finite; 0: none
)

RANGES = dict(
    lr='(0, inf)', b1='[0, 1)', b2='[0, 1)', weight_decay='[0, inf)', factor='(0, 1]', patience='[0, inf)',
    floor='[0, inf)', clip='[0, inf)', ema='[0, 1)', accumulate='[1, inf)', skip_nonfinite='[0, inf)')


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The optimiser of a stage, with its plateau."""

    hp: FrozenConfigDict
    tx: optax.GradientTransformationExtraArgs
    rate: Callable  # step -> learning rate, before the plateau's factor

    def update(self, grads: dict, opt_state: Any, params: dict, plateau: dict,
               norm: Callable[[Any], jax.Array] = optax.tree.norm) -> tuple[dict, Any]:
        """(new parameters, new opt_state). norm: of a tree with the names of the parameters, for clipping."""
        updates, opt_state = self.tx.update(grads, opt_state, params, norm=norm)
        factor = plateau.get('factor', 1.0)
        updates = jax.tree.map(lambda u, s: u * (s * factor), updates, self._scales(params))
        return optax.apply_updates(params, updates), opt_state

    def skipped(self, opt_state: Any) -> jax.Array:
        """Whether the update was left out because the gradient was not finite: a scalar bool."""
        if not self.hp.skip_nonfinite:
            return jnp.bool_(False)
        return ~opt_state.last_finite & (opt_state.notfinite_count <= self.hp.skip_nonfinite)

    def rate_of(self, step: Any, plateau: dict) -> jax.Array:
        """Learning rate of a step, for the log."""
        return jnp.float32(self.rate(step) * plateau.get('factor', 1.0))

    def plateau(self) -> dict[str, jax.Array]:
        """The memory of a plateau schedule before the first validation, {} for others."""
        if self.hp.schedule != 'plateau':
            return {}
        return {'factor': jnp.float32(1), 'best': jnp.float32(-jnp.inf), 'waited': jnp.int32(0)}

    def after_validation(self, plateau: dict, score: Any) -> dict:
        """The next memory after a validation with `score` (larger is better)."""
        if not plateau:
            return plateau
        better = score > plateau['best']
        waited = jnp.where(better, 0, plateau['waited'] + 1)
        drop = waited > self.hp.patience
        floor = self.hp.floor / self.hp.lr
        factor = jnp.where(drop, jnp.maximum(plateau['factor'] * self.hp.factor, floor), plateau['factor'])
        return {'factor': factor, 'best': jnp.maximum(plateau['best'], score), 'waited': jnp.where(drop, 0, waited)}

    def _scales(self, params):
        def scale(path, leaf):
            return next((float(f) for pattern, f in self.hp.lr_scale if re.search(pattern, leaf_name(path))), 1.0)
        return jax.tree_util.tree_map_with_path(scale, params)


def build(hp: ConfigDict, total: int, epoch: float, batch: int = 1) -> Optimizer:
    """The optimiser of a stage of `total` steps, `epoch` steps to a pass."""
    return _build(FrozenConfigDict(hp.copy_and_resolve_references()), total, epoch, batch)


@functools.lru_cache(maxsize=64)  # equal options give one optimiser: contexts of equal stages are equal
def _build(hp: FrozenConfigDict, total: int, epoch: float, batch: int) -> Optimizer:
    rate = _schedule(hp, total, epoch, batch)
    decay = optax.add_decayed_weights(hp.weight_decay, lambda params: _match(params, hp.no_decay, matches=False))
    rules = {
        'adamw': lambda: [optax.scale_by_adam(hp.b1, hp.b2), decay],
        'adam': lambda: [decay, optax.scale_by_adam(hp.b1, hp.b2)],
        'sgd': lambda: [decay, optax.trace(hp.b1, nesterov=hp.nesterov)],
        'rmsprop': lambda: [decay, optax.scale_by_rms(hp.b2)]}
    errors.check_choice('optim.name', hp.name, rules)
    clip = [_clip(hp.clip)] if hp.clip else []
    tx = optax.chain(*clip, *rules[hp.name](), optax.scale_by_learning_rate(rate))
    if hp.freeze:
        def labels(params):
            return jax.tree.map(lambda f: 'frozen' if f else 'trained', _match(params, hp.freeze, matches=True))
        tx = optax.partition({'trained': tx, 'frozen': optax.set_to_zero()}, labels)
    if hp.skip_nonfinite:
        tx = optax.apply_if_finite(tx, hp.skip_nonfinite)
    return Optimizer(hp, optax.with_extra_args_support(tx), rate)


def check_ranges(hp: Mapping[str, Any], path: str) -> None:
    """ConfigError for a number outside RANGES, a pair of lr_scale that is none, and for what is no duration."""
    for key, interval in RANGES.items():
        errors.check_range(f'{path}.{key}', hp[key], interval)
    for pair in hp['lr_scale']:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[1], (int, float))):
            raise errors.ConfigError(f'{path}.lr_scale: {pair!r} is no pair of a pattern and a factor.')
        errors.check_range(f'{path}.lr_scale, factor of "{pair[0]}"', pair[1], '[0, inf)')
    for key, durations_ in (('warmup', [hp['warmup']] if hp['warmup'] else []), ('milestones', hp['milestones'])):
        for duration in durations_:
            durations.check(f'{path}.{key}', str(duration))


def check_patterns(hp: ConfigDict, params: dict) -> None:
    """ConfigError for a pattern of freeze or lr_scale that matches no parameter."""
    names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for key, patterns in (('freeze', hp.freeze), ('lr_scale', [p for p, _ in hp.lr_scale])):
        for pattern in patterns:
            if not any(re.search(pattern, n) for n in names):
                raise errors.ConfigError(f'optim.{key}: "{pattern}" matches no parameter. Some of them: {names[:6]}')


def _clip(most):
    def update(grads, state, params=None, *, norm, **_):
        norms = {name: norm({name: g}) for name, g in grads.items()}
        return {name: jax.tree.map(lambda a, n=norms[name]: jnp.where(n < most, a, a / n * most), g)
                for name, g in grads.items()}, state
    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _match(params, patterns, matches):
    def leaf(path, _):
        return any(re.search(p, leaf_name(path)) for p in patterns) == matches
    return jax.tree_util.tree_map_with_path(leaf, params)


def _schedule(hp, total, epoch, batch):
    def count(length):
        return durations.steps(length, total, epoch, batch)

    warm = count(hp.warmup) if hp.warmup else 0
    steps = max(1, total - warm)
    curves = {
        'constant': lambda: optax.constant_schedule(hp.lr),
        'plateau': lambda: optax.constant_schedule(hp.lr),
        'cosine': lambda: optax.cosine_decay_schedule(hp.lr, steps),
        'poly': lambda: optax.polynomial_schedule(hp.lr, 0.0, 0.9, steps),
        'milestones': lambda: lambda step: jnp.maximum(hp.floor, optax.piecewise_constant_schedule(
            hp.lr, {count(m) - warm: hp.factor for m in hp.milestones})(step))}
    errors.check_choice('optim.schedule', hp.schedule, curves)
    curve = curves[hp.schedule]()
    if not warm:
        return curve
    return optax.join_schedules([optax.linear_schedule(0.0, hp.lr, warm), curve], [warm])
