"""Short-axis cine MRI with labelled ventricles and muscle: `data.source.name = 'jaxkd.phantoms.heart'`."""
from jaxkd.phantoms.heart.source import DEFAULTS, build

__all__ = ('DEFAULTS', 'build')
