"""Durations of training, validation and logging in steps, epochs, examples or percent."""
import re

from jaxkd import errors

PATTERN = re.compile(r'\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?|[0-9]+\.)\s*(%|epochs?|steps?|examples?)\s*')


def check(key: str, duration: str, percent: bool = True) -> None:
    """ConfigError unless the value of the option `key` is a duration of more than nothing; percent: may it be one."""
    match = PATTERN.fullmatch(duration)
    if not match or (match[2] == '%' and not percent):
        share = ' or "5%"' if percent else ''
        raise errors.ConfigError(f'{key} = "{duration}" is no duration: write "3 epochs", "500 steps", "20000 '
                                 f'examples"{share}.')
    interval = '(0, 100]' if match[2] == '%' else '(0, inf)'
    errors.check_range(f'{key} = "{duration}": its number', float(match[1]), interval)


def steps(duration: str, total: int | None = None, epoch: float = 1.0, batch: int = 1) -> int:
    """Steps (at least 1) of '3 epochs', '500 steps', '20000 examples' or, with a total, '5%' of it.

    epoch: steps in an epoch. ConfigError for a text that is no duration.
    """
    match = PATTERN.fullmatch(str(duration))
    if not match or (match[2] == '%' and total is None):
        raise errors.ConfigError(
            f'"{duration}" is no duration: write "3 epochs", "500 steps", "20000 examples" or "5%".')
    unit = {'%': (total or 0) / 100, 'e': epoch, 's': 1}
    scale = 1 / batch if match[2].startswith('example') else unit[match[2][0]]
    return max(1, round(float(match[1]) * scale))
