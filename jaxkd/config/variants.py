"""Variants of a config file: a base, and one function a variant that changes it. `x.py:covid,encoders` applies both.

A config file holds

    def base(): ...                                       # -> a new ConfigDict
    def smoke(c): ...                                     # changes it in place
    VARIANTS = dict(smoke=smoke, both=(smoke, covid))     # a tuple stands for several, from left to right
    def get_config(arg=''): return config.variant(base(), VARIANTS, arg)

The docstring of `base` and of each variant is a line with its purpose, then the command that runs it.
"""
import inspect
import pathlib
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.config.schema import RUN

Change = Callable[[ConfigDict], None]
Variants = Mapping[str, Any]  # a Change, or a tuple of them
HELP = 'help'  # configs/x.py:help prints the variants
COMMAND = r'python -m ([\w.]+) --config \S+(.*)'


def variant(base: ConfigDict, variants: Variants, arg: str) -> ConfigDict:
    """`base`, changed by the variants that `arg` names, from left to right; a change that several hold is applied once.

    ConfigError for an unknown variant, with the nearest.
    """
    changes: dict[Change, None] = {}
    for name in filter(None, arg.split(',')):
        if name not in variants:
            raise errors.ConfigError(f'There is no variant "{name}".{errors.nearest(name, variants)}')
        changes |= dict.fromkeys(_changes(variants[name]))
    for change in changes:
        change(base)
    return base


def stage_names(config: ConfigDict) -> list[str]:
    """All stages that a config defines, listed in `stages` or not, in the order of their definition."""
    return [name for name in config if name not in RUN]


def describe(module: ModuleType, path: pathlib.Path | str, commands: bool = True) -> str:
    """The variants of a config file, one line each, with the command that runs it below."""
    lines = [f'{path}: {_summary(module)}']
    entries = {'': vars(module).get('base')} | dict(vars(module).get('VARIANTS', {}))
    names = {entry: name for name, entry in entries.items() if not isinstance(entry, tuple)}
    width = max(map(len, entries)) + 1
    for name, entry in entries.items():
        changes = _changes(entry) if entry else ()
        composed = len(changes) > 1 and all(change in names for change in changes)
        parts = f'= {",".join(names[change] for change in changes)}' if composed else '; '.join(map(_summary, changes))
        lines.append(f'  {":" * bool(name) + name:<{width}}  {parts}'.rstrip())
        if commands and (command := _command(changes, f'{path}:{name}'.rstrip(':'))):
            lines.append(' ' * (width + 6) + command.replace(f'configs/{module.__name__}.py', str(path)))
    return '\n'.join(lines)


def command(module: ModuleType, file: str, name: str = '') -> str:
    """The command that runs a variant of configs/<file>, '' for the base, as its docstring gives it."""
    entry = module.VARIANTS[name] if name else module.base
    return _command(_changes(entry), f'configs/{file}:{name}'.rstrip(':'))


def _changes(entry: Change | tuple[Change, ...]) -> tuple[Change, ...]:
    return entry if isinstance(entry, tuple) else (entry,)


def _summary(documented: object) -> str:
    return (inspect.getdoc(documented) or '').partition('\n')[0].rstrip('.')


def _command(changes: tuple[Change, ...], spec: str) -> str:
    """The command in a docstring; for several, one with the options of all."""
    commands = [match for change in changes if (match := re.search(COMMAND, inspect.getdoc(change) or ''))]
    if len(changes) == 1:
        return ' '.join(commands[0][0].split()) if commands else ''
    options = re.findall(r'--\S+(?: [^-\s]\S*)?', ' '.join(command[2] for command in commands))
    return ' '.join([f'python -m {commands[-1][1]} --config {spec}', *dict.fromkeys(options)]) if commands else ''
