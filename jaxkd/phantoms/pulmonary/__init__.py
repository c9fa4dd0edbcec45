"""The pulmonary phantom as a data source: `source.name = 'jaxkd.phantoms.pulmonary'`."""
from jaxkd.phantoms.pulmonary.source import DEFAULTS, build

__all__ = ('DEFAULTS', 'build')
