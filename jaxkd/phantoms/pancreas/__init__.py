"""Paired CT, T1 and T2 around a lesion, with texture and duct: `data.source.name = 'jaxkd.phantoms.pancreas'`."""
from jaxkd.phantoms.pancreas.source import DEFAULTS, build

__all__ = ('DEFAULTS', 'build')
