"""Configs: plain Python in, plain JSON out, and no key that nobody reads.

A config file defines `get_config(arg='')`; `path.py:arg` chooses a variant and `a.b=v` overrides a value, which must
exist and keep its type. What a run resolves is written as JSON, which is data and runs again as it is.
A Python config is a program: only run files that you trust. JSON configs are parsed, never executed.
"""
import copy
import json
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.config import plugins
from jaxkd.config.schema import NETWORK, RENAMED_PLUGINS, RUN, STAGE, TEACHER, remedy


def resolve(config: ConfigDict) -> ConfigDict:
    """Fill in every default and refuse every unknown key, so that the result says all that a run does."""
    given = config.to_dict()
    stages = {k: v for k, v in given.items() if k not in RUN}
    run: dict[str, Any] = merge(RUN, {k: v for k, v in given.items() if k in RUN and k != 'data'}, 'the config')
    run['data'] = _data(RUN['data'], given.get('data', {}), 'data')
    for name, stage in stages.items():
        if not isinstance(stage, dict):
            raise errors.ConfigError(f'The config has no key "{name}".{remedy(name, RUN)}')
        if not re.fullmatch(r'[A-Za-z][A-Za-z0-9_]*', name):
            raise errors.ConfigError(f'Stage "{name}" names a folder: use letters, digits and _.')
        run[name] = _stage(stage, name, run['data'])
    for name in run['stages']:
        if name not in stages:
            raise errors.ConfigError(f'stages lists "{name}", which the config does not define.{remedy(name, stages)}')
        _check_folds(run, name)
        _check_origins(run, name)
    return ConfigDict(run)


def _check_folds(run: dict, name: str) -> None:
    """ConfigError where the `folds` of a stage, or those that a teacher of it needs, cannot be."""
    folds = run[name]['folds']
    for key, teacher in run[name]['teachers'].items():
        if teacher['out_of_fold'] and not teacher['path'] and run.get(teacher['stage'], {}).get('folds', 0) < 2:
            raise errors.ConfigError(f'{name}.teachers.{key}.out_of_fold: stage "{teacher["stage"]}" has no folds. Set '
                                     f'{teacher["stage"]}.folds = 5.')
    if folds == 1 or folds < 0:
        raise errors.ConfigError(f'{name}.folds = {folds} must be 0 or at least 2.')
    for j in range(folds):
        if f'{name}_fold{j}' in run:
            raise errors.ConfigError(f'Stage "{name}_fold{j}" is what the folds of "{name}" are called. Rename it.')


def _check_origins(run: dict, name: str) -> None:
    """ConfigError where a stage starts from, or learns from, a stage that there is not."""
    stages = [key for key in run if key not in RUN]
    inits = [run[name]['init'], *(network['init'] for network in run[name]['networks'].values())]
    for origin in (*inits, *run[name]['teachers'].values()):
        if origin['stage'] and not origin['path'] and origin['stage'] not in stages:
            raise errors.ConfigError(f'{name} starts from stage "{origin["stage"]}", which the config does not define.'
                                     f'{remedy(origin["stage"], stages)}')


def merge(defaults: Mapping[str, Any], given: Mapping[str, Any], where: str) -> dict:
    """`given` over `defaults`: an unknown key or another type is a ConfigError; an empty dict of defaults is open."""
    out = copy.deepcopy(dict(defaults))  # or an override of one stage reached all that share a default with it
    for key, value in given.items():
        if key not in defaults:
            raise errors.ConfigError(f'{where} has no key "{key}".{remedy(key, defaults)}')
        default = defaults[key]
        if isinstance(default, dict) and isinstance(value, dict):
            out[key] = merge(default, value, f'{where}.{key}') if default else dict(value)
        elif not fits(default, value):
            raise errors.ConfigError(
                f'{where}.{key} = {value!r}: expected {type(default).__name__}, as in {default!r}.')
        else:
            out[key] = float(value) if isinstance(default, float) else value
    return out


def options(kind: str, given: Mapping[str, Any], where: str) -> tuple[ModuleType, ConfigDict]:
    """(module, hp) of a plug-in chosen by name: its options over the DEFAULTS of its file."""
    hp = _options(kind, given, where)
    return plugins.load(kind, hp['name']), ConfigDict(hp)


def _options(kind: str, given: Mapping[str, Any], where: str) -> dict:
    if not given.get('name'):
        raise errors.ConfigError(f'{where}.name is empty. Known: {", ".join(plugins.names(kind))}.')
    hp = merge(dict(plugins.load(kind, given['name']).DEFAULTS, name=''), given, where)
    for key in plugins.contract(kind, given['name']).nested:  # another of the same kind
        hp[key] = _options(kind, hp[key], f'{where}.{key}')
    return hp


def dump(config: ConfigDict) -> str:
    """The resolved config as JSON text."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True)


def _stage(given: dict, where: str, data: dict) -> dict:
    """A stage with all defaults; `data` is the run's."""
    stage = merge({**STAGE, 'model': {}, 'method': {}, 'optim': {}}, given, where)
    stage['method'] = {**STAGE['method'], **stage['method']}
    stage['model'] = _options('models', stage['model'], f'{where}.model')
    stage['method'] = _options('methods', stage['method'], f'{where}.method')
    from jaxkd import optim  # imports jax: kept out of the parsing of a command line
    stage['optim'] = merge(optim.DEFAULTS, stage['optim'], f'{where}.optim')
    for name, network in stage['networks'].items():
        path = f'{where}.networks.{name}'
        network = merge({**NETWORK, 'model': {}}, network, path)
        network['model'] = _options('models', network['model'], f'{path}.model')
        stage['networks'][name] = network
    for name, teacher in stage['teachers'].items():
        path = f'{where}.teachers.{name}'
        stage['teachers'][name] = teacher = merge(TEACHER, teacher, path)
        if not teacher['stage'] and not teacher['path']:
            raise errors.ConfigError(f'{path}: give a stage (of this run) or a path (of another run).')
    for name in (*stage['networks'], *stage['teachers']):
        if name in ('student', 'heads'):
            raise errors.ConfigError(f'{where}: "{name}" is taken, call that network something else.')
    for name, hp in stage['evals'].items():
        stage['evals'][name] = _options('evaluators', {'name': name, **hp}, f'{where}.evals.{name}')
    chosen = stage['select'].partition('/')[0]
    if chosen and chosen not in stage['evals']:
        raise errors.ConfigError(f'{where}.select names "{chosen}", which is not among evals.'
                                 f'{remedy(chosen, stage["evals"], RENAMED_PLUGINS["evaluators"])}')
    if chosen and not plugins.contract('evaluators', stage['evals'][chosen]['name']).scores:
        raise errors.ConfigError(f'{where}.select: {chosen} has no scores for validation, only a report at the end.')
    if stage['mode'] not in ('max', 'min'):
        raise errors.ConfigError(f'{where}.mode = "{stage["mode"]}". Known: max, min.')
    if stage['data']:
        _data(data, stage['data'], f'{where}.data')
    return stage


def _data(defaults: dict, given: dict, where: str) -> dict:
    """The data part: its own keys, and one key of options for each transform that it lists."""
    out = merge({k: v for k, v in defaults.items() if k != 'source'},
                {k: v for k, v in given.items() if k in defaults and k != 'source'}, where)
    source = given.get('source', {})
    if source.get('name', defaults['source']['name']) == defaults['source']['name']:
        source = {**defaults['source'], **source}
    out['source'] = _options('data/sources', source, f'{where}.source')
    listed = {name.rpartition('.')[2]: name for name in (*out['transforms'], *out['augment'])}
    spare = {name: name for name in plugins.names('data/transforms') if name in given or name in defaults}
    for short, name in (spare | listed).items():  # what is not listed keeps its options for a variant that lists it
        hp = {**defaults.get(short, {}), **given.get(short, {}), 'name': name}
        out[short] = _options('data/transforms', hp, f'{where}.{short}')
    for key in given:
        if key not in out:
            raise errors.ConfigError(f'{where} has no key "{key}".{remedy(key, out)} The options of a transform'
                                     ' stand under its name, which transforms or augment must list.')
    return out


def stage_data(config: ConfigDict, name: str) -> ConfigDict:
    """The data that a stage sees: the run's, with the stage's differences."""
    return changed_data(config.data, config[name].data.to_dict(), f'{name}.data')


def fold(config: ConfigDict, name: str, index: int) -> tuple[ConfigDict, str]:
    """(the config with one more stage, that stage's name): network `index` of the `folds` of stage `name`.

    It is tested on nothing.
    """
    config, fold_name = ConfigDict(config.to_dict()), f'{name}_fold{index}'
    stage = config[name].to_dict()
    chosen = stage['select'].partition('/')[0]
    data = {**stage['data'], 'holdout_fold': (index, stage['folds'])}
    evals = {k: v for k, v in stage['evals'].items() if k == chosen}
    config[fold_name] = {**stage, 'folds': 0, 'data': data, 'evals': evals}
    return config, fold_name


def changed_data(data: ConfigDict, changes: dict, where: str) -> ConfigDict:
    """A resolved data config with differences, such as another source."""
    return ConfigDict(_data(data.to_dict(), changes, where))


def fits(default: object, value: object) -> bool:
    """Whether a value has the type of its default; an int may stand for a float, a list for a tuple."""
    if isinstance(default, (tuple, list)):
        return isinstance(value, (tuple, list))
    return type(value) is type(default) or (isinstance(default, float) and type(value) is int)


def tuples(tree: Any) -> Any:
    """Lists become tuples (JSON has no tuples), also inside dicts."""
    if isinstance(tree, dict):
        return {k: tuples(v) for k, v in tree.items()}
    return tuple(map(tuples, tree)) if isinstance(tree, (list, tuple)) else tree
