"""Weights that change over training."""
import math

import numpy as np
import pytest

from jaxkd import errors
from jaxkd.state import Progress
from jaxkd.training import schedules


def at(schedule, step, epoch=10.0, total=200, batch=8):
    """The factor after `step` steps of a stage of 200, with 10 steps an epoch of 80 cases."""
    return float(schedules.factor(schedule, Progress(step, step / epoch, step / total), batch))


@pytest.mark.parametrize('schedule, values', [
    ('', {0: 1, 200: 1}),
    ('linear 20 steps', {0: 0, 5: 0.25, 20: 1, 200: 1}),
    ('linear 10%', {0: 0, 5: 0.25, 20: 1, 200: 1}),
    ('linear 2 epochs', {0: 0, 5: 0.25, 20: 1, 200: 1}),
    ('linear 160 examples', {0: 0, 5: 0.25, 20: 1, 200: 1}),
    ('linear down 20 steps', {0: 1, 5: 0.75, 20: 0, 200: 0}),
    ('cosine 20 steps', {0: 0, 5: (1 - math.cos(math.pi / 4)) / 2, 10: 0.5, 20: 1, 200: 1}),
    ('cosine down 100%', {0: 1, 100: 0.5, 200: 0}),
    ('ramp 200 steps', {0: 0.0067379, 50: 0.0600547, 100: 0.2865048, 200: 1}),  # 10 times this: ACN's 0.067379, ...
    ('after 5 epochs', {0: 0, 49: 0, 50: 1, 200: 1}),
    ('until 50%', {0: 1, 99: 1, 100: 0}),
    ('linear 20 epochs after 5 epochs', {0: 0, 50: 0, 60: 0.05, 150: 0.5, 200: 0.75}),  # Step-E
    ('cosine down 10 steps after 5%', {0: 1, 10: 1, 15: 0.5, 20: 0, 200: 0}),
    ('linear 10 steps, until 50%', {5: 0.5, 50: 1, 150: 0})])
def test_factors(schedule, values):
    schedules.check('weight', schedule)
    np.testing.assert_allclose([at(schedule, step) for step in values], list(values.values()), rtol=1e-5, atol=1e-6)


def test_a_constant_is_a_plain_number():
    factor = schedules.factor('', Progress(0, 0, 0), 8)
    assert factor == 1.0 and isinstance(factor, float)


@pytest.mark.parametrize('schedule, message', [
    ('sudden 5%', 'x.schedule = "sudden 5%": "sudden 5%" is no schedule. Write "linear 5%"'),
    ('linear', '"linear" is no schedule'), ('linear 5 apples', 'is no duration'), ('linear 0 steps', r'\(0, inf\)')])
def test_what_is_no_schedule_is_refused(schedule, message):
    with pytest.raises(errors.ConfigError, match=message):
        schedules.check('x.schedule', schedule)
