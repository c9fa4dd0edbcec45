"""Chest CT without and with contrast, and masks of emboli: `data.source.name = 'jaxkd.phantoms.pulmonary'`."""
from jaxkd.phantoms.pulmonary.source import DEFAULTS, build

__all__ = ('DEFAULTS', 'build')
