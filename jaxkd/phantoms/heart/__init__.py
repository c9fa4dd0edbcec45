"""The heart phantom as a data source: `source.name = 'jaxkd.phantoms.heart'`."""
from jaxkd.phantoms.heart.source import DEFAULTS, build

__all__ = ('DEFAULTS', 'build')
