"""The training runs that a config is repeated as: a seed, a fold or a left-out value each, in a folder of its own."""
import dataclasses
import json
import pathlib
import re
from collections.abc import Sequence

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """One training of the config."""

    name: str  # its folder
    seed: int
    split: dict  # options of data.split
    part: str = ''  # which fold, or the value that is left out


def members(conf: ConfigDict, seeds: Sequence[int] = (), folds: int = 0, leave_out: str = '') -> list[TrainingRun]:
    """The members of a resolved config, in order: for each seed (default: the config's own) every fold or left-out
    value.
    """
    parts: list[tuple[str, str, dict]] = [('', '', {})]
    if folds:
        parts = [(f'fold{i}', str(i), dict(folds=folds, fold=i, leave_out='')) for i in range(folds)]
    elif leave_out:
        parts = [(f'{leave_out}_{re.sub(r"[^A-Za-z0-9.-]+", "-", v)}', v,
                  dict(folds=0, fold=0, leave_out=f'{leave_out}={v}')) for v in _values(conf, leave_out)]
    return [TrainingRun('_'.join(filter(None, (f'seed{seed}' if seeds else '', name))), seed, split, part)
            for seed in seeds or (conf.seed,) for name, part, split in parts]


def config_of(conf: ConfigDict, member: TrainingRun) -> ConfigDict:
    """The resolved config of one member."""
    from jaxkd import config
    tree = conf.to_dict()
    tree['seed'] = member.seed
    tree['data']['split'].update(member.split)
    return config.resolve(ConfigDict(tree))


def finished(conf: ConfigDict, member: TrainingRun, workdir: str | pathlib.Path) -> bool:
    """Whether a member is complete in its folder. ConfigError if the folder holds a run of another config."""
    from jaxkd import runner
    from jaxkd.runtime import files
    folder = pathlib.Path(workdir) / member.name
    runner.check_same_config(config_of(conf, member), folder)
    if not ((folder / 'summary.json').exists() and (folder / 'report.html').exists()):
        return False
    found = files.read_json(folder / 'summary.json', 'The summary')['stages']
    return all(found.get(stage, {}).get('finished') for stage in conf.stages)


def _values(conf: ConfigDict, name: str) -> list[str]:
    """What a group of the source's cases can be."""
    from jaxkd import errors
    from jaxkd.config import plugins
    from jaxkd.data import splits
    from jaxkd.runtime import log
    source = plugins.load('data/sources', conf.data.source.name).build(conf.data.source)
    found = splits.group_values(source.cases, name)
    values = sorted(set(found.values()) - {''})
    folders = {re.sub(r'[^A-Za-z0-9.-]+', '-', v) for v in values}
    if len(values) < 2 or len(folders) < len(values):
        raise errors.ConfigError(f'--leave_out {name}: its values are {json.dumps(values)}. It takes two or more, '
                                 'different in more than signs and spaces.')
    nowhere = sum(v == '' for v in found.values())
    if nowhere:
        log.info(f'{nowhere} patients have no {name}: they are never left out, so never tested')
    return values
