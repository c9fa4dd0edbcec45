"""How the weight of a term changes over training: a text of the config, such as 'linear 5%' or 'after 2 epochs, until
80%'.

    ''             1
    linear D       min(1, t / D)                        warm-up: rises over the duration D, then stays
    cosine D       (1 - cos(pi min(1, t / D))) / 2
    ramp D         exp(-5 (1 - min(1, t / D))^2)        Laine and Aila, ICLR 2017 [published]
    after D        0 before D, then 1
    until D        1 before D, then 0

`linear down D` and `cosine down D` fall from 1 to 0. `linear 20 epochs after 5 epochs` begins its duration at the fifth
epoch, as all but `after` and `until` may. Several, with commas between them, are multiplied. Durations are
those of every other option: '20 epochs', '500 steps', '20000 examples', '5%' of the stage.
"""
import math
import re

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import errors
from jaxkd.config import durations
from jaxkd.state import Progress

PART = re.compile(r'(linear down|cosine down|linear|cosine|ramp|after|until) (.+)')


def check(key: str, schedule: str) -> None:
    """ConfigError unless the value of the option `key` is a schedule."""
    for part in _parts(schedule):
        match = PART.fullmatch(part)
        if not match:
            raise errors.ConfigError(f'{key} = "{schedule}": "{part}" is no schedule. Write "linear 5%" (or cosine, '
                                     'ramp, after, until, linear down, cosine down), several with commas.')
        for duration in _durations(match):
            durations.check(key, duration)


def factor(schedule: str, progress: Progress, batch: int) -> ArrayLike:
    """The factor of the weight at `progress`, 1.0 for '', else a scalar in 0..1. batch: cases of a step."""
    value: ArrayLike = 1.0
    for part in _parts(schedule):
        match = PART.fullmatch(part)
        assert match
        elapsed = [_elapsed(duration, progress, batch) for duration in _durations(match)]
        t, *begin = (jnp.asarray(e, jnp.float32) for e in elapsed)
        if begin:  # both are the time since the first step, in units of two durations
            t = jnp.where(begin[0] > 1, t * (1 - 1 / jnp.maximum(begin[0], 1)), 0.0)
        value = value * _factor(match[1], t)
    return value


def _factor(kind: str, t: jax.Array) -> ArrayLike:
    """t: time in units of the duration."""
    if kind in ('after', 'until'):
        return jnp.where((t >= 1) == (kind == 'after'), 1.0, 0.0)
    t = jnp.minimum(1, t)
    if kind == 'ramp':
        return jnp.exp(-5 * jnp.square(1 - t))
    rising = t if kind.startswith('linear') else (1 - jnp.cos(math.pi * t)) / 2
    return 1 - rising if kind.endswith('down') else rising


def _durations(match: re.Match[str]) -> list[str]:
    """The duration of a part, and that after which it begins, where it says so."""
    return match[2].split(' after ', 1) if match[1] not in ('after', 'until') else [match[2]]


def _elapsed(duration: str, progress: Progress, batch: int) -> ArrayLike:
    match = durations.PATTERN.fullmatch(duration)
    assert match
    number, unit = float(match[1]), match[2]
    if unit == '%':
        return progress.fraction / (number / 100)
    if unit.startswith('example'):
        return progress.step * (batch / number)
    return (progress.epoch if unit.startswith('epoch') else progress.step) / number


def _parts(schedule: str) -> list[str]:
    return [' '.join(part.split()) for part in schedule.split(',')] if schedule.strip() else []
