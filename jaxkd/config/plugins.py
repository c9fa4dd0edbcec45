"""Import plug-ins by name: the folder is the kind, the file the plug-in. There is no registry."""
import functools
import importlib
import pathlib
from types import ModuleType
from typing import Any

from jaxkd import contracts, errors
from jaxkd.config.schema import RENAMED_PLUGINS, REPLACED_METHODS

ROOT = pathlib.Path(__file__).parents[1]
CONTRACTS = {'models': contracts.ModelPlugin, 'data/sources': contracts.SourcePlugin,
             'data/transforms': contracts.TransformPlugin, 'methods': contracts.MethodPlugin,
             'distillation': contracts.LossPlugin}


@functools.cache
def names(kind: str) -> tuple[str, ...]:
    """Names of all plug-ins of a kind, e.g. `names('models')`; `kind` may be nested ('data/sources')."""
    return tuple(sorted(p.stem for p in (ROOT / kind).glob('*.py') if p.stem != '__init__'))


def load(kind: str, name: str) -> ModuleType:
    """Import a plug-in: a short name from its folder, a dotted name from the user's own package.

    Raises ConfigError for a name that no file has, with the nearest.
    """
    if '.' in name:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as e:
            if e.name and not name.startswith(e.name):
                raise  # a module that the user's module imports does not exist
            raise errors.ConfigError(
                f'{kind}: cannot import "{name}". Is its package installed, or its folder on PYTHONPATH?') from e
    if new := RENAMED_PLUGINS.get(kind, {}).get(name):
        raise errors.ConfigError(f'No {kind} called "{name}". It is called "{new}" now.')
    if kind == 'methods' and name in REPLACED_METHODS:
        raise errors.ConfigError(f'There is no method "{name}" any more. Write {REPLACED_METHODS[name]}.')
    if name not in names(kind):
        raise errors.ConfigError(f'No {kind} called "{name}".{errors.nearest(name, names(kind))}'
                                 ' Your own module is named with its package, as in "my_package.my_module".')
    return importlib.import_module(f'jaxkd.{kind.replace("/", ".")}.{name}')


def contract(kind: str, name: str) -> Any:
    """PLUGIN of a plug-in, or the defaults of its kind (contracts.py).

    Raises ConfigError for a name that no file has, and for an evaluator without PLUGIN.
    """
    plugin = getattr(load(kind, name), 'PLUGIN', None)
    if plugin is None and kind not in CONTRACTS:
        raise errors.ConfigError(f'{kind}: "{name}" has no PLUGIN, which an evaluator must have. See '
                                 'docs/how_to/own_plugins.md and docs/reference/contracts.md.')
    return CONTRACTS[kind]() if plugin is None else plugin
