"""Chest radiographs with eight findings, their boxes and reports: `data.source.name = 'jaxkd.phantoms.thorax'`."""
from jaxkd.phantoms.thorax.source import DEFAULTS, build

__all__ = ('DEFAULTS', 'build')
