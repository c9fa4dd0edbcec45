"""How the weight of a term changes over training: a text of the config, such as 'linear 5%' or 'after 2 epochs, until
80%'.

    ''             1
    linear D       min(1, t / D)                        warm-up: rises over the duration D, then stays
    cosine D       (1 - cos(pi min(1, t / D))) / 2
    ramp D         exp(-5 (1 - min(1, t / D))^2)        Laine and Aila, ICLR 2017 [published]
    after D        0 before D, then 1
    until D        1 before D, then 0

`linear down D` and `cosine down D` fall from 1 to 0. Several, with commas between them, are multiplied. Durations are
those of every other option: '20 epochs', '500 steps', '20000 examples', '5%' of the stage.
"""
import math
import re

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
        durations.check(key, match[2])


def factor(schedule: str, progress: Progress, batch: int) -> ArrayLike:
    """The factor of the weight at `progress`, 1.0 for '', else a scalar in 0..1. batch: cases of a step."""
    value: ArrayLike = 1.0
    for part in _parts(schedule):
        match = PART.fullmatch(part)
        assert match
        value = value * _factor(match[1], _elapsed(match[2], progress, batch))
    return value


def _factor(kind: str, t: ArrayLike) -> ArrayLike:
    """t: time in units of the duration."""
    t = jnp.asarray(t, jnp.float32)
    if kind in ('after', 'until'):
        return jnp.where((t >= 1) == (kind == 'after'), 1.0, 0.0)
    t = jnp.minimum(1, t)
    if kind == 'ramp':
        return jnp.exp(-5 * jnp.square(1 - t))
    rising = t if kind.startswith('linear') else (1 - jnp.cos(math.pi * t)) / 2
    return 1 - rising if kind.endswith('down') else rising


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
