"""The training runs of a repeated config: a point of a grid, a seed, a fold or a left-out value each, in its folder."""
import dataclasses
import functools
import itertools
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """One training of the config."""

    name: str  # its folder
    seed: int
    split: dict  # options of data.split
    part: str = ''  # the fold, or the value that is left out
    point: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # {varied option: its value}


def axes(run_config: ConfigDict, chosen: Sequence[str]) -> dict[str, tuple]:
    """{option: its values} of texts 'optim.lr=0.1,0.01' on a resolved config. Values have the type of the option; a
    comma within brackets does not part two.

    ConfigError for a text without values, an option that comes twice, equal values, and what `config.override` refuses.
    """
    from jaxkd import config, errors
    found: dict[str, tuple] = {}
    for text in chosen:
        key, _, listed = text.partition('=')
        texts = [part.strip() for part in re.split(r',(?![^(\[]*[)\]])', listed)]
        if not all(texts) or key in found:
            raise errors.ConfigError(f'--vary {text}: write each option once, with its values after it, as in '
                                     'student.optim.lr=0.001,0.01.')
        values = []
        for value in texts:
            changed = config.overridden(ConfigDict(run_config.to_dict()), [f'{key}={value}'])
            values.append(functools.reduce(lambda node, part: node[part], key.split('.'), changed))
        if len(set(map(str, values))) < len(values):
            raise errors.ConfigError(f'--vary {text}: a value stands there twice.')
        found[key] = tuple(values)
    return found


def arms(run_config: ConfigDict, chosen: Sequence[str]) -> ConfigDict:
    """The resolved config whose `stages` are these arms and what they start from, in the order that training needs.

    ConfigError for an arm that the config does not define.
    """
    from jaxkd import config, errors
    from jaxkd.training import shared_stages
    defined = config.stage_names(run_config)
    if unknown := [arm for arm in chosen if arm not in defined]:
        raise errors.ConfigError(f'--arms {unknown[0]}: the config defines no such stage.'
                                 f'{errors.nearest(unknown[0], defined)}')
    needed: dict[str, None] = {}
    for arm in chosen:
        needed |= dict.fromkeys([*_in_order(run_config, shared_stages.prior_stages(run_config, arm)), arm])
    return config.resolve(ConfigDict(run_config.to_dict() | dict(stages=tuple(needed))))


def _in_order(run_config: ConfigDict, names: Sequence[str]) -> list[str]:
    """Stages, each after those that it starts from."""
    from jaxkd.training import shared_stages
    return sorted(names, key=lambda name: len(shared_stages.prior_stages(run_config, name)))


def members(run_config: ConfigDict, seeds: Sequence[int] = (), folds: int = 0, leave_out: str = '',
            varied: Mapping[str, Sequence[Any]] | None = None) -> list[TrainingRun]:
    """The members of a resolved config: for each combination of the varied options and each seed (default: that of the
    config) every fold or left-out value.
    """
    parts: list[tuple[str, str, dict]] = [('', '', {})]
    if folds:
        parts = [(f'fold{i}', str(i), dict(folds=folds, fold=i, leave_out='')) for i in range(folds)]
    elif leave_out:
        folders = folder_names(_values(run_config, leave_out))
        parts = [(f'{leave_out}_{folder}', v, dict(folds=0, fold=0, leave_out=f'{leave_out}={v}'))
                 for v, folder in folders.items()]
    varied = varied or {}
    points = [dict(zip(varied, values)) for values in itertools.product(*varied.values())]
    return [TrainingRun('_'.join(filter(None, (folder, f'seed{seed}' if seeds else '', name))), seed, split, part,
                        point) for point, folder in zip(points, point_names(points))
            for seed in seeds or (run_config.seed,) for name, part, split in parts]


def config_of(run_config: ConfigDict, member: TrainingRun) -> ConfigDict:
    """The resolved config of one member."""
    from jaxkd import config
    tree = config.overridden(ConfigDict(run_config.to_dict()), assignments(member.point)).to_dict()
    tree['seed'] = member.seed
    tree['data']['split'].update(member.split)
    return config.resolve(ConfigDict(tree))


def assignments(values: Mapping[str, Any]) -> list[str]:
    """{option: value} as a command line has them: 'student.optim.lr=0.001'."""
    return [f'{key}={value if isinstance(value, str) else repr(value)}' for key, value in values.items()]


def point_names(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """A folder name for each point of a grid, such as 'lr0.01_alpha0.5'; '' for one without options."""
    keys = list(dict.fromkeys(key for point in points for key in point))
    shown = dict(zip(keys, short_keys(keys)))
    texts = ['_'.join(f'{shown[key]}{_text(value)}' for key, value in point.items()) for point in points]
    if len(set(texts)) < len(texts) or not keys:
        return texts
    return list(folder_names(texts).values())


def short_keys(keys: Sequence[str]) -> list[str]:
    """The last parts of dotted keys, as many as tell them apart."""
    for length in range(1, max((key.count('.') + 2 for key in keys), default=1)):
        short = ['.'.join(key.split('.')[-length:]) for key in keys]
        if len(set(short)) == len(short):
            return short
    return list(keys)


def _text(value: Any) -> str:
    return re.sub(r'\W*,\W*', '-', str(value)).strip('()[] ') if isinstance(value, (tuple, list)) else str(value)


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
