"""Configs: plain Python in, plain JSON out; an unknown key is an error."""
from jaxkd.config.loading import load, overridden, override
from jaxkd.config.option_docs import describe_options, dotted
from jaxkd.config.overview import overview
from jaxkd.config.resolution import changed_data, dump, fold, merge, options, origins, resolve, stage_data, tuples
from jaxkd.config.variants import stage_names, variant

__all__ = ('changed_data', 'describe_options', 'dotted', 'dump', 'fold', 'load', 'merge', 'options', 'origins',
           'overridden', 'override', 'overview', 'resolve', 'stage_data', 'stage_names', 'tuples', 'variant')
