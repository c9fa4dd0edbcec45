"""Resolve a config: fill in all defaults and refuse unknown keys, so that the result as JSON describes a run
completely.
"""
import copy
import functools
import json
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.config import durations, plugins
from jaxkd.config.schema import (
    DATA_RANGES,
    LOSS,
    NETWORK,
    RENAMED_PLUGINS,
    RUN,
    RUN_RANGES,
    STAGE,
    STAGE_DURATIONS,
    STAGE_RANGES,
    TEACHER,
    WEIGHTS,
    remedy,
)


def resolve(config: ConfigDict) -> ConfigDict:
    """The config with every default; ConfigError for an unknown key, a wrong type or a missing stage."""
    chosen = config.to_dict()
    stages = {k: v for k, v in chosen.items() if k not in RUN}
    run: dict[str, Any] = merge(RUN, {k: v for k, v in chosen.items() if k in RUN and k != 'data'}, 'the config')
    run['data'] = _data(RUN['data'], chosen.get('data', {}), 'data')
    check_ranges(run, RUN_RANGES)
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
    """ConfigError for impossible `folds` of a stage or of its teachers."""
    folds = run[name]['folds']
    for key, teacher in run[name]['teachers'].items():
        if teacher['out_of_fold'] and not teacher['path'] and run.get(teacher['stage'], {}).get('folds', 0) < 2:
            raise errors.ConfigError(f'{name}.teachers.{key}.out_of_fold: stage "{teacher["stage"]}" has no folds. Set '
                                     f'{teacher["stage"]}.folds = 5.')
    if folds == 1 or folds < 0:
        raise errors.ConfigError(f'{name}.folds = {folds} must be 0 or at least 2.')
    for j in range(folds):
        if f'{name}_fold{j}' in run:
            raise errors.ConfigError(f'Stage "{name}_fold{j}" has the name of a fold of "{name}". Rename it.')


def _check_origins(run: dict, name: str) -> None:
    """ConfigError if the initial weights or a teacher of a stage are of a stage that is not defined."""
    stages, stage = [key for key in run if key not in RUN], run[name]
    for origin in origins(stage):
        if origin['stage'] and not origin['path'] and origin['stage'] not in stages:
            raise errors.ConfigError(f'{name} starts from stage "{origin["stage"]}", which the config does not define.'
                                     f'{remedy(origin["stage"], stages)}')


def origins(stage: Any) -> list[Any]:
    """Every `stage` and `path` that a resolved stage takes weights or teachers from: options of inits and teachers."""
    inits = [network['init'] for network in (stage, *stage['networks'].values())]
    parts = [part for init in inits for part in init.get('parts', {}).values()]
    return [*inits, *parts, *stage['teachers'].values()]


def _resolve_parts(init: dict, path: str) -> None:
    """Fill in the defaults of the parts of an `init`. ConfigError for one without stage and path."""
    for name, part in init['parts'].items():
        init['parts'][name] = part = merge(WEIGHTS, part, f'{path}.parts.{name}')
        if not part['stage'] and not part['path']:
            raise errors.ConfigError(f'{path}.parts.{name}: give a stage (of this run) or a path (of another run).')


def merge(defaults: Mapping[str, Any], values: Mapping[str, Any], path: str) -> dict:
    """`values` over `defaults`: an unknown key or another type is a ConfigError; an empty dict of defaults is open."""
    out = copy.deepcopy(dict(defaults))  # stages must not have a mutable default in common
    for key, value in values.items():
        if key not in defaults:
            raise errors.ConfigError(f'{path} has no key "{key}".{remedy(key, defaults)}')
        default = defaults[key]
        if isinstance(default, dict) and isinstance(value, dict):
            out[key] = merge(default, value, f'{path}.{key}') if default else dict(value)
        elif not fits(default, value):
            raise errors.ConfigError(f'{path}.{key} = {value!r}: expected {type(default).__name__}, as in {default!r}.')
        else:
            out[key] = float(value) if isinstance(default, float) else value
    return out


def options(kind: str, chosen: Mapping[str, Any], path: str) -> tuple[ModuleType, ConfigDict]:
    """(module, hp) of a plug-in chosen by name: its options over the DEFAULTS of its file."""
    hp = _options(kind, chosen, path)
    return plugins.load(kind, hp['name']), ConfigDict(hp)


def _options(kind: str, chosen: Mapping[str, Any], path: str) -> dict:
    if not chosen.get('name'):
        raise errors.ConfigError(f'{path}.name is empty. Known: {", ".join(plugins.names(kind))}.')
    common = LOSS if kind == 'distillation' else {}
    hp = merge({**common, **plugins.load(kind, chosen['name']).DEFAULTS, 'name': ''}, chosen, path)
    contract = plugins.contract(kind, chosen['name'])
    for key, part in contract.parts.items() if kind in ('methods', 'models') else ():
        hp[key] = {name: _options(part, {'name': name, **given}, f'{path}.{key}.{name}')
                   for name, given in hp[key].items()}
    return hp | {key: _options(kind, hp[key], f'{path}.{key}') for key in contract.nested}


def check_ranges(tree: Mapping[str, Any], ranges: Mapping[str, str], prefix: str = '') -> None:
    """ConfigError for a number outside its range; ranges {'split.fractions': '[0, 1]'}."""
    for key, interval in ranges.items():
        value: Any = functools.reduce(lambda node, part: node[part], key.split('.'), tree)
        errors.check_range(f'{prefix}{key}', value, interval)


def dump(config: ConfigDict) -> str:
    """The resolved config as JSON text."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True)


def _stage(chosen: dict, path: str, data: dict) -> dict:
    """A stage with all defaults; `data` is the run's."""
    stage = merge({**STAGE, 'model': {}, 'method': {}, 'optim': {}}, chosen, path)
    stage['model'] = _options('models', stage['model'], f'{path}.model')
    stage['method'] = _options('methods', {**STAGE['method'], **stage['method']}, f'{path}.method')
    from jaxkd import optim  # imports jax, which the parsing of a command line does without
    stage['optim'] = merge(optim.DEFAULTS, stage['optim'], f'{path}.optim')
    optim.check_ranges(stage['optim'], f'{path}.optim')
    check_ranges(stage, STAGE_RANGES, f'{path}.')
    for key in STAGE_DURATIONS:
        durations.check(f'{path}.{key}', stage[key], percent=key != 'length')
    _resolve_parts(stage['init'], f'{path}.init')
    for name, network in stage['networks'].items():
        stage['networks'][name] = network = merge({**NETWORK, 'model': {}}, network, f'{path}.networks.{name}')
        network['model'] = _options('models', network['model'], f'{path}.networks.{name}.model')
        _resolve_parts(network['init'], f'{path}.networks.{name}.init')
    for name, teacher in stage['teachers'].items():
        stage['teachers'][name] = teacher = merge(TEACHER, teacher, f'{path}.teachers.{name}')
        if not teacher['stage'] and not teacher['path']:
            raise errors.ConfigError(f'{path}.teachers.{name}: give a stage (of this run) or a path (of another run).')
    if taken := {'student', 'heads'} & {*stage['networks'], *stage['teachers']}:
        raise errors.ConfigError(f'{path}: "{min(taken)}" is taken, choose another name for that network.')
    for name, hp in stage['evals'].items():
        stage['evals'][name] = _evaluator(name, hp, f'{path}.evals.{name}')
    selecting = stage['select'].partition('/')[0]
    if selecting and selecting not in stage['evals']:
        raise errors.ConfigError(f'{path}.select names "{selecting}", which is not among evals.'
                                 f'{remedy(selecting, stage["evals"], RENAMED_PLUGINS["evaluators"])}')
    if selecting and not plugins.contract('evaluators', stage['evals'][selecting]['name']).scores:
        raise errors.ConfigError(f'{path}.select: {selecting} has no scores for validation, only a report at the end.')
    errors.check_choice(f'{path}.mode', stage['mode'], ('max', 'min'))
    if stage['data']:
        _data(data, stage['data'], f'{path}.data')
    return stage


def _evaluator(name: str, chosen: dict, path: str) -> dict:
    """The options of the evaluator `name` of a stage."""
    hp = _options('evaluators', {'name': name, **chosen}, path)
    check_ranges(hp, plugins.contract('evaluators', hp['name']).ranges, f'{path}.')
    if '/' in name or hp.get('data') and name in ('val', 'test', 'test_rois'):  # files of predictions, names of metrics
        raise errors.ConfigError(f'{path}: an evaluator cannot be called "{name}". Choose another name, and give '
                                 f'name="{hp["name"]}" among its options.')
    return hp


def _data(defaults: dict, chosen: dict, path: str) -> dict:
    """The data part: keys of the schema, and one key of options for each transform that it lists."""
    out = merge({k: v for k, v in defaults.items() if k != 'source'},
                {k: v for k, v in chosen.items() if k in defaults and k != 'source'}, path)
    check_ranges(out, DATA_RANGES, f'{path}.')
    source = chosen.get('source', {})
    if source.get('name', defaults['source']['name']) == defaults['source']['name']:
        source = {**defaults['source'], **source}
    out['source'] = _options('data/sources', source, f'{path}.source')
    listed = {name.rpartition('.')[2]: name for name in (*out['transforms'], *out['augment'])}
    unlisted = {name: name for name in plugins.names('data/transforms') if name in chosen or name in defaults}
    for short, name in (unlisted | listed).items():  # a variant may list an unlisted transform later
        hp = {**defaults.get(short, {}), **chosen.get(short, {}), 'name': name}
        out[short] = _options('data/transforms', hp, f'{path}.{short}')
    for key in chosen:
        if key not in out:
            raise errors.ConfigError(f'{path} has no key "{key}".{remedy(key, out)} The options of a transform stand '
                                     'under its name, which transforms or augment must list.')
    return out


def stage_data(config: ConfigDict, name: str) -> ConfigDict:
    """The data config of a stage: the run's, with the stage's changes."""
    return changed_data(config.data, config[name].data.to_dict(), f'{name}.data')


def fold(config: ConfigDict, name: str, index: int) -> tuple[ConfigDict, str]:
    """(the config with one more stage, its name): network `index` of the `folds` of stage `name`, never tested."""
    config, fold_name = ConfigDict(config.to_dict()), f'{name}_fold{index}'
    stage = config[name].to_dict()
    data = {**stage['data'], 'holdout_fold': (index, stage['folds'])}
    evals = {k: v for k, v in stage['evals'].items() if k == stage['select'].partition('/')[0]}
    config[fold_name] = {**stage, 'folds': 0, 'data': data, 'evals': evals}
    return config, fold_name


def changed_data(data: ConfigDict, changes: dict, path: str) -> ConfigDict:
    """A resolved data config with changes, such as another source."""
    return ConfigDict(_data(data.to_dict(), changes, path))


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
