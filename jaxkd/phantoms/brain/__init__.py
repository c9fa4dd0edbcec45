"""T1-weighted volumes, ill or not, and their twins with bias: `data.source.name = 'jaxkd.phantoms.brain'`."""
from jaxkd.phantoms.brain.source import DEFAULTS, build

__all__ = ('DEFAULTS', 'build')
