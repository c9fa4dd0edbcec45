"""Presets of a config file: sizes of networks and inputs, of which one is chosen by the number of cases and the device.

A config file with `PRESETS = dict(tiny=0, small=200, ...)`, the number of cases from which on each is chosen, has a
variant of each name, which sets `c.preset` to its name; a variant for data of one's own sets it to AUTO. `load` then
puts the chosen variant behind that one, so `x.py:folder,smoke` becomes `x.py:folder,tiny,smoke`; smoke is always tiny.
"""
import os
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.config import plugins

AUTO = 'auto'
ON_CPU = 'small'  # the largest that is chosen for a CPU


def choose(config: ConfigDict, least: Mapping[str, int], smoke: bool = False) -> str:
    """The preset for the cases of a resolved config and the device of this machine, logged with its rule; '' where the
    cases cannot be counted, as of a folder that is not there. least: PRESETS of the file, in rising order. smoke: the
    smallest, whatever their number.
    """
    count, source = plugins.contract('data/sources', config.data.source.name).case_count, config.data.source
    if not count or not os.path.isdir(source.get('root', '')):
        return ''
    from jaxkd import parallel  # imports jax
    from jaxkd.runtime import log
    names, most = list(least), max(least.values())
    if smoke:
        log.info(f'preset: {names[0]}, for smoke. Another one: --config.preset={names[-1]}')
        return names[0]
    cases = count(source, most)
    parallel.initialize()
    backend = parallel.backend()
    allowed = names[:names.index(ON_CPU) + 1] if backend == 'cpu' else names
    name = [preset for preset in allowed if cases >= least[preset]][-1]
    rule = ', '.join(f'{preset} from {n:,}' if n else preset for preset, n in least.items())
    counted = f'{cases:,}' if cases < most else f'{most:,} or more'
    log.info(f'preset: {name}, for {counted} cases on {backend} (by cases {rule}; on a CPU at most {ON_CPU}). Another '
             f'one: --config.preset={names[-1]}')
    return name


def insert(arg: str, name: str, least: Mapping[str, int], get_config: Callable[[str], ConfigDict]) -> str:
    """The variants `arg` with the preset `name` behind the one that has presets. ConfigError without such a one."""
    errors.check_choice('preset', name, least)
    names = [variant for variant in arg.split(',') if variant not in least]
    for end in range(1, len(names) + 1):
        if get_config(','.join(names[:end])).get('preset') == AUTO:
            return ','.join([*names[:end], name, *names[end:]])
    raise errors.ConfigError(f'preset = "{name}": "{arg}" has no presets, which are for data of your own. Set preset '
                             'to "".')
