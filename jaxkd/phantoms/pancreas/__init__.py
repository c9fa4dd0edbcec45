"""The pancreas phantom as a data source: `source.name = 'jaxkd.phantoms.pancreas'`."""
from jaxkd.phantoms.pancreas.source import DEFAULTS, build

__all__ = ('DEFAULTS', 'build')
