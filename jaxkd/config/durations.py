"""How long: training, validation and logging count in steps, epochs, examples or percent."""
import re

from jaxkd import errors


def steps(duration, total=None, epoch=1.0, batch=1):
    """Steps (at least 1) of '3 epochs', '500 steps', '20000 examples' or, of a known total, '5%'."""
    match = re.fullmatch(r'\s*([0-9.]+(?:e[0-9]+)?)\s*(%|epochs?|steps?|examples?)\s*', str(duration))
    if not match or (match[2] == '%' and total is None):
        raise errors.ConfigError(f'"{duration}" is no duration: write "3 epochs", "500 steps", "20000 examples" or "5%".')
    unit = {'%': (total or 0) / 100, 'e': epoch, 's': 1}
    scale = 1 / batch if match[2].startswith('example') else unit[match[2][0]]
    return max(1, round(float(match[1]) * scale))
