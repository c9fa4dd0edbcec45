"""Read a config: a Python file with `get_config(arg='')`, or the JSON that a run wrote; then overrides of single values.

`path.py:arg` chooses a variant and `a.b=v` overrides a value, which must exist and keep its type. A Python config is a program:
only run files that you trust. JSON configs are parsed, never executed.
"""
import ast
import importlib.util
import json
import pathlib

from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.config.resolution import fits, remedy, resolve, tuples


def load(spec, overrides=()):
    """Read `configs/x.py`, `configs/x.py:arg` or a saved `config.json`; then apply 'data.batch=8' and the like."""
    path, _, arg = str(spec).partition(':')
    path = pathlib.Path(path)
    if not path.is_file():
        there = [str(p) for p in path.parent.glob('*.py')] if path.parent.is_dir() else []
        raise errors.ConfigError(f'Config file {path} does not exist.{errors.nearest(path, there) if there else ""}')
    if path.suffix == '.json':
        try:
            config = ConfigDict(json.loads(path.read_text()))
        except (ValueError, TypeError) as e:
            raise errors.ConfigError(f'{path} is not a saved config: {e}') from e
    else:
        found = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(found)
        try:
            found.loader.exec_module(module)
        except SyntaxError as e:
            raise errors.ConfigError(f'{path}, line {e.lineno}: {e.msg}.') from e
        if not hasattr(module, 'get_config'):
            raise errors.ConfigError(f"{path} defines no get_config(arg='') that returns a ConfigDict.")
        config = module.get_config(arg)
    config = ConfigDict(tuples(config.to_dict()))
    config = resolve(config)
    for assignment in overrides:
        key, _, text = assignment.partition('=')
        override(config, key, text)
        if key.rpartition('.')[2] in ('name', 'transforms', 'augment'):  # options of the new things, for the overrides that follow
            config = resolve(config)
    return resolve(config)


def override(config, key, text):
    node, path = config, key.split('.')
    for depth, part in enumerate(path):
        if not isinstance(node, ConfigDict) or part not in node:
            where = '.'.join(path[:depth]) or 'the config'
            known = node.keys() if isinstance(node, ConfigDict) else ()
            raise errors.ConfigError(f'--config.{key}: {where} has no key "{part}".{remedy(part, known)}')
        parent, node = node, node[part]
    try:
        value = ast.literal_eval(text)  # literals only: nothing is executed
    except (ValueError, SyntaxError):
        value = {'true': True, 'false': False}.get(text.lower(), text)
    if isinstance(node, str):
        value = text
    if isinstance(node, tuple):
        value = tuple(filter(None, text.split(','))) if isinstance(value, str) else value if isinstance(value, tuple) else (value,)
    if isinstance(node, ConfigDict) or not fits(node, value):
        raise errors.ConfigError(f'--config.{key}={text}: expected {type(node).__name__}, as in {node!r}.')
    if path[-1] == 'name' and len(path) > 1 and value != node:  # another thing: the options of the last one are not its
        for option in set(parent) - {'name'}:
            del parent[option]
    parent[path[-1]] = float(value) if isinstance(node, float) else value
