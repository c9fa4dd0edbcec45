"""Mammograms with masses and calcifications, and the table of lesions: `data.source.name = 'jaxkd.phantoms.breast'`."""
from jaxkd.phantoms.breast.source import DEFAULTS, build

__all__ = ('DEFAULTS', 'build')
