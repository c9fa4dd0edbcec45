"""The breast phantom as a data source: `source.name = 'jaxkd.phantoms.breast'`."""
from jaxkd.phantoms.breast.source import DEFAULTS, build

__all__ = ('DEFAULTS', 'build')
