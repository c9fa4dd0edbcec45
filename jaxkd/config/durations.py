"""Durations of training, validation and logging in steps, epochs, examples or percent."""
import re

from jaxkd import errors


def steps(duration: str, total: int | None = None, epoch: float = 1.0, batch: int = 1) -> int:
    """Steps (at least 1) of '3 epochs', '500 steps', '20000 examples' or, with a total, '5%' of it.

    epoch: steps in an epoch. ConfigError for a text that is no duration.
    """
    match = re.fullmatch(r'\s*([0-9.]+(?:e[0-9]+)?)\s*(%|epochs?|steps?|examples?)\s*', str(duration))
    if not match or (match[2] == '%' and total is None):
        raise errors.ConfigError(
            f'"{duration}" is no duration: write "3 epochs", "500 steps", "20000 examples" or "5%".')
    unit = {'%': (total or 0) / 100, 'e': epoch, 's': 1}
    scale = 1 / batch if match[2].startswith('example') else unit[match[2][0]]
    return max(1, round(float(match[1]) * scale))
