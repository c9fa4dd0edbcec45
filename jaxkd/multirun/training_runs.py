"""The training runs of a repeated config: a seed, a fold or a left-out value each, in its folder."""
import dataclasses
import itertools
import json
import pathlib
import re
import unicodedata
from collections.abc import Sequence

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """One training of the config."""

    name: str  # its folder
    seed: int
    split: dict  # options of data.split
    part: str = ''  # the fold, or the value that is left out


def members(run_config: ConfigDict, seeds: Sequence[int] = (), folds: int = 0,
            leave_out: str = '') -> list[TrainingRun]:
    """The members of a resolved config: for each seed (default: that of the config) every fold or left-out value."""
    parts: list[tuple[str, str, dict]] = [('', '', {})]
    if folds:
        parts = [(f'fold{i}', str(i), dict(folds=folds, fold=i, leave_out='')) for i in range(folds)]
    elif leave_out:
        folders = folder_names(_values(run_config, leave_out))
        parts = [(f'{leave_out}_{folder}', v, dict(folds=0, fold=0, leave_out=f'{leave_out}={v}'))
                 for v, folder in folders.items()]
    return [TrainingRun('_'.join(filter(None, (f'seed{seed}' if seeds else '', name))), seed, split, part)
            for seed in seeds or (run_config.seed,) for name, part, split in parts]


def config_of(run_config: ConfigDict, member: TrainingRun) -> ConfigDict:
    """The resolved config of one member."""
    from jaxkd import config
    tree = run_config.to_dict()
    tree['seed'] = member.seed
    tree['data']['split'].update(member.split)
    return config.resolve(ConfigDict(tree))


def finished(run_config: ConfigDict, member: TrainingRun, workdir: str | pathlib.Path) -> bool:
    """Whether a member is complete in its folder, tested with the present options.

    ConfigError if the folder holds a run of another config.
    """
    from jaxkd import runner
    folder = pathlib.Path(workdir) / member.name
    member_config = config_of(run_config, member)
    runner.check_same_config(member_config, folder)
    if not ((folder / 'summary.json').exists() and (folder / 'report.html').exists()):
        return False
    summary = runner.read_summary(folder)
    return (all(summary['stages'].get(stage, {}).get('finished') for stage in run_config.stages)
            and not runner.outdated(member_config, summary))


def folder_names(values: Sequence[str]) -> dict[str, str]:
    """{value: name of its folder}: letters of any script and digits stay; equal names, in any case, are numbered."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for value in values:
        stem = re.sub(r'(?:[^\w.-]|_)+', '-', unicodedata.normalize('NFC', value))[:40]
        numbered = (f'{stem}{"-" * (i > 1)}{i if i > 1 else ""}' for i in itertools.count(1))
        names[value] = next(name for name in numbered if name.casefold() not in taken)
        taken.add(names[value].casefold())
    return names


def _values(run_config: ConfigDict, name: str) -> list[str]:
    """The values of a group of cases of the source."""
    from jaxkd import errors
    from jaxkd.data import source as sources
    from jaxkd.data import splits
    from jaxkd.runtime import log
    source = sources.build(run_config.data.source)
    by_patient = splits.group_values(source.cases, name)
    values = sorted(set(by_patient.values()) - {''})
    if len(values) < 2:
        raise errors.ConfigError(f'--leave_out {name}: its values are {json.dumps(values, ensure_ascii=False)}. It '
                                 'takes two or more.')
    if missing := sum(v == '' for v in by_patient.values()):
        log.info(f'{missing} patients have no {name}: they are never left out, so never tested')
    return values
