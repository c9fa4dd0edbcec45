"""Numbers and durations of the trainer lie in their ranges, or are refused with key, value and range."""
import copy
import functools
import math
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxkd import config, errors, optim, runner
from jaxkd.config import durations, schema
from tests.fixtures import disc

RANGES = ({f'image_only.optim.{k}': v for k, v in optim.RANGES.items()}
          | {f'image_only.{k}': v for k, v in schema.STAGE_RANGES.items()}
          | {f'data.{k}': v for k, v in schema.DATA_RANGES.items()} | schema.RUN_RANGES)


def resolve(key, value):
    run = copy.deepcopy(disc.config())
    chosen = dict(stages=('image_only',), data=run['data'], image_only=run['image_only'])
    *path, last = key.split('.')
    functools.reduce(lambda node, part: node.setdefault(part, {}), path, chosen)[last] = value
    return config.resolve(ConfigDict(chosen))


def test_defaults_lie_in_their_ranges():
    for key, interval in optim.RANGES.items():
        errors.check_range(key, optim.DEFAULTS[key], interval)
    config.resolve(ConfigDict(disc.config()))


@pytest.mark.parametrize('key, value', [
    ('image_only.optim.lr', -1.0), ('image_only.optim.lr', 0.0), ('image_only.optim.lr', math.nan),
    ('image_only.optim.lr', math.inf), ('image_only.optim.b1', 1.0), ('image_only.optim.factor', 0.0),
    ('image_only.optim.accumulate', 0), ('image_only.optim.ema', 1.5), ('image_only.optim.clip', -1.0),
    ('image_only.batch', 0), ('image_only.batch', -4), ('bootstrap', -1), ('data.threads', 0), ('data.timeout', 0.0),
    ('data.workers', -1), ('seed', -3), ('seed', 2**31), ('image_only.seed', -1),
    ('data.split.fractions', (0.8, -0.1, 0.3))])
def test_a_number_outside_its_range_is_refused(key, value):
    with pytest.raises(errors.ConfigError) as raised:
        resolve(key, value)
    assert key in str(raised.value) and str(value) in str(raised.value) and RANGES[key] in str(raised.value)


@pytest.mark.parametrize('key, value, says', [
    ('length', '0 epochs', r'\(0, inf\)'), ('length', '0.0 steps', r'\(0, inf\)'), ('length', '5%', 'is no duration'),
    ('length', '-3 epochs', 'is no duration'), ('length', 'nan steps', 'is no duration'),
    ('length', '. steps', 'is no duration'), ('length', '1.2.3 steps', 'is no duration'),
    ('eval_every', '0 steps', r'\(0, inf\)'), ('log_every', '200%', r'\(0, 100\]'),
    ('optim.warmup', '0%', r'\(0, 100\]'),
    ('optim.warmup', 'soon', 'is no duration'), ('optim.milestones', ('5 epochs', '0 epochs'), r'\(0, inf\)'),
    ('optim.lr_scale', (('head', -1.0),), r'\[0, inf\)'), ('optim.lr_scale', ('head', 0.1), 'is no pair')])
def test_a_duration_of_nothing_is_refused(key, value, says):
    with pytest.raises(errors.ConfigError, match=rf'image_only\.{key}.*{says}'):
        resolve(f'image_only.{key}', value)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(set(RANGES.values()))), st.floats(allow_nan=True, allow_infinity=True))
def test_check_range_is_that_of_its_interval(interval, value):
    low, high = (float(end) for end in interval[1:-1].split(','))
    inside = (low < value if interval[0] == '(' else low <= value) and (
        value < high if interval[-1] == ')' else value <= high)
    try:
        errors.check_range('key', value, interval)
        assert inside
    except errors.ConfigError as e:
        assert not inside and 'key' in str(e) and interval in str(e)


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1e6), st.sampled_from(['epoch', ' epochs', ' steps', 'examples', ' %', '  %']))
def test_what_is_checked_is_read(number, unit):
    text = f'{number:.3f}{unit}'
    try:
        durations.check('key', text)
    except errors.ConfigError:
        assert float(f'{number:.3f}') == 0 or ('%' in unit and float(f'{number:.3f}') > 100)
    else:
        assert durations.steps(text, 100, 10.0, 4) >= 1


@pytest.mark.parametrize('total, solve, path, says', [
    (28, None, '', True), (99, None, '', True), (100, None, '', False), (28, max, '', False), (28, None, 'w', False)])
def test_a_stage_too_short_to_learn_says_so(total, solve, path, says, capsys):
    stage = SimpleNamespace(name='student', total=total, method=SimpleNamespace(solve=solve),
                            context=SimpleNamespace(epoch=7.0),
                            config=ConfigDict(dict(init=dict(path=path, stage='', parts={}))))
    runner.warn_if_short(stage)
    assert (f'student: {total} steps in all ({total / 7:.1f} epochs)' in capsys.readouterr().out) == says
