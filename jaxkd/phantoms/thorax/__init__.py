"""The thorax phantom as a data source: `source.name = 'jaxkd.phantoms.thorax'`."""
from jaxkd.phantoms.thorax.source import DEFAULTS, build

__all__ = ('DEFAULTS', 'build')
