"""Read a config: a Python file with `get_config(arg='')` or the JSON that a run wrote; then overrides of single values.

`path.py:arg` chooses variants and `a.b=v` overrides a value, which must exist and keep its type. `jaxkd:name:arg` is
the file of that name that comes with the package. A Python config is a program: only run files that you trust. JSON
configs are parsed, never executed.
"""
import ast
import importlib.util
import json
import pathlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.config import plugins, presets
from jaxkd.config.resolution import fits, resolve, tuples
from jaxkd.config.schema import remedy

PACKAGED = 'jaxkd'  # in place of a file: jaxkd:mmpkd_cxr
NAMES = 'name', 'transforms', 'augment'  # keys that say which plug-ins there are

def load(spec: str | pathlib.Path, overrides: Sequence[str] = ()) -> ConfigDict:
    """Read `x.py`, `x.py:variant,variant` or a saved `config.json`; then apply 'data.workers=4' and the like."""
    path, arg = locate(spec)
    functions = {} if path.suffix == '.json' else vars(import_file(path))
    if arg and not functions.get('VARIANTS'):
        raise errors.ConfigError(f'{path} has no variants, also no "{arg}". Remove the colon and the name after it.')
    if path.suffix == '.json':
        try:
            config = ConfigDict(json.loads(path.read_text()))
        except (ValueError, TypeError) as e:
            raise errors.ConfigError(f'{path} is not a saved config: {e}') from e
    elif 'get_config' not in functions:
        raise errors.ConfigError(f"{path} defines no get_config(arg='') that returns a ConfigDict.")
    else:
        try:
            config = functions['get_config'](arg)
        except errors.ConfigError as e:
            raise errors.ConfigError(f'{path}: {e}') from e
    config = ConfigDict(tuples(config.to_dict()))
    before, config = config.get('preset', ''), overridden(resolve(config), overrides)
    least = functions.get('PRESETS', {})
    preset = '' if config.preset in (before, '') else config.preset
    if least and config.preset == presets.AUTO:
        preset = presets.choose(config, least, 'smoke' in arg.split(','))
    if preset:
        arg = presets.insert(arg, preset, least, functions.get('get_config', ConfigDict))
        rest = [assignment for assignment in overrides if not assignment.startswith('preset=')]
        config = overridden(resolve(ConfigDict(tuples(functions['get_config'](arg).to_dict()))), rest)
    return config


def overridden(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """A resolved config with 'data.workers=4' and the like, resolved again.

    Names of plug-ins come first, whatever the order: what else is set are options of these.
    """
    for assignment in sorted(overrides, key=_names_first):
        key, _, text = assignment.partition('=')
        override(config, key, text)
        # adds the options of a new plug-in, for later overrides
        if key.rpartition('.')[2] in NAMES:
            config = resolve(config)
    return resolve(config) if overrides else config


def _names_first(assignment: str) -> tuple[bool, int]:
    """Names of plug-ins before other options, the outer one first."""
    key = assignment.partition('=')[0]
    return (False, key.count('.')) if key.rpartition('.')[2] in NAMES else (True, 0)


def locate(spec: str | pathlib.Path) -> tuple[pathlib.Path, str]:
    """(config file, its variants) of `x.py:variant,variant`, `jaxkd:x:variant` or `config.json`. ConfigError with the
    nearest file if it does not exist.
    """
    file, _, arg = str(spec).partition(':')
    if file != PACKAGED:
        return existing(file), arg
    name, _, arg = arg.partition(':')
    files = {path.stem: path for path in sorted(packaged_folder().glob('*.py'))}
    if name not in files:
        raise errors.ConfigError(f'The package has no config "{PACKAGED}:{name}".{errors.nearest(name, files)}')
    return files[name], arg


def packaged_folder() -> pathlib.Path:
    """The configs that come with the package: in it where a wheel is installed, beside it in the repository."""
    inside = plugins.ROOT / 'configs'
    return inside if inside.is_dir() else plugins.ROOT.parent / 'configs'


def existing(path: str | pathlib.Path) -> pathlib.Path:
    """The path of a config file; ConfigError with the nearest one if it does not exist."""
    path = pathlib.Path(path)
    if not path.is_file():
        files = [str(p) for p in pathlib.Path('configs').glob('*.py')] or [
            f'{PACKAGED}:{p.stem}' for p in packaged_folder().glob('*.py')]
        files += [str(p) for p in path.parent.glob('*.py')]
        raise errors.ConfigError(f'Config file {path} does not exist.{errors.nearest(path, {*files})}')
    return path


def import_file(path: pathlib.Path) -> ModuleType:
    """The module of a Python config, executed."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise errors.ConfigError(f'{path} is no Python file.')
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as e:
        raise errors.ConfigError(f'{path}, line {e.lineno}: {e.msg}.') from e
    return module


def override(config: ConfigDict, key: str, text: str) -> None:
    """Set the value at `key` ('student.optim.lr') to what `text` says, a literal or a word.

    ConfigError for an unknown key or another type.
    """
    node, path = config, key.split('.')
    for depth, part in enumerate(path):
        if not isinstance(node, ConfigDict) or part not in node:
            parent_key = '.'.join(path[:depth]) or 'the config'
            keys = node.keys() if isinstance(node, ConfigDict) else ()
            raise errors.ConfigError(f'--config.{key}: {parent_key} has no key "{part}".{remedy(part, keys)}')
        parent, node = node, node[part]
    value = _parsed(text, node)
    if isinstance(node, ConfigDict) or not fits(node, value):
        examples = 'True or False' if isinstance(node, bool) else f'as in {node!r}'
        raise errors.ConfigError(f'--config.{key}={text}: expected {type(node).__name__}, {examples}.')
    # another plug-in has other options
    if path[-1] == 'name' and len(path) > 1 and value != node:
        for option in set(parent) - {'name'}:
            del parent[option]
    parent[path[-1]] = float(value) if isinstance(node, float) else value


def _parsed(text: str, before: object) -> Any:
    """`text` as a value of the type of `before`; literals only, nothing is executed."""
    if isinstance(before, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {'true': True, 'false': False}.get(text.lower(), text)
    if isinstance(before, tuple) and not isinstance(value, tuple):
        return tuple(filter(None, text.split(','))) if isinstance(value, str) else (value,)
    return value
