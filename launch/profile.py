"""Profiles of a site: what a cluster or a project calls its queues and machines, in a TOML file."""
import dataclasses
import os
import pathlib
import tomllib
from typing import Any, TypeVar

from jaxkd import errors

Profile = TypeVar('Profile')


def read(path: str | os.PathLike, kind: type[Profile]) -> Profile:
    """The profile in a file; '' stands for the defaults. kind: a dataclass whose fields are the keys.

    ConfigError for an unknown key, with the nearest, for another type, and for a required key that is missing.
    """
    try:
        content = tomllib.loads(pathlib.Path(path).read_text()) if path else {}
    except OSError as e:
        raise errors.ConfigError(f'The profile {path} cannot be read: {e.strerror}. Give the path of a TOML file, as '
                                 'configs/sites/slurm.toml is.') from e
    except ValueError as e:
        raise errors.ConfigError(f'The profile {path} is not TOML: {e}.') from e
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key, value in content.items():
        if key not in fields:
            raise errors.ConfigError(f'{path} has the key "{key}".{errors.nearest(key, fields)}')
        example = _default(fields[key])
        if example is not None and type(value) is not type(example):
            raise errors.ConfigError(f'{path}: {key} = {value!r}: expected {type(example).__name__}, as in '
                                     f'{example!r}.')
    if missing := [name for name, field in fields.items() if _default(field) is None and name not in content]:
        raise errors.ConfigError(f'{path or "No profile was given: --profile FILE with"}: the key "{missing[0]}" is '
                                 'missing.')
    return kind(**content)


def _default(field: dataclasses.Field) -> Any:
    """The default of a field; None for a required one."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default
