"""The brain phantom as a data source: `source.name = 'jaxkd.phantoms.brain'`."""
from jaxkd.phantoms.brain.source import DEFAULTS, build

__all__ = ('DEFAULTS', 'build')
