"""Completion of the command `jaxkd` in a shell, by shtab from the parsers of all commands."""
import argparse
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxkd import errors
from jaxkd.runtime import versions

FILES = ('DIR', 'FILE', 'FOLDER', 'OUT', 'PATH', 'WORKDIR', 'RUN', 'BUNDLE')  # metavars of what is a file or a folder
FILE_OPTIONS = ('--config', '--workdir', '--out', '--output', 'workdir')


def script(modules: Mapping[str, tuple[str, str]], others: Mapping[str, str], shell: str) -> str:
    """The script that a shell sources. ConfigError without shtab, and for a shell that it does not know.

    modules: {command: (module with `build_parser`, what it does)}; others: {command without options: what it does}.
    """
    try:
        import shtab
    except ImportError as e:
        raise errors.ConfigError(f'Completion needs the library shtab: {versions.install("completion")}.') from e
    errors.check_choice('--print_completion', shell, shtab.SUPPORTED_SHELLS)
    parser = argparse.ArgumentParser('jaxkd')
    commands = parser.add_subparsers(dest='command')
    for name, (module, about) in modules.items():
        own = importlib.import_module(module).build_parser()
        command = commands.add_parser(name, parents=[own], add_help=False, help=about)
        _complete_files(command._actions, shtab.FILE)
    for name, about in others.items():
        commands.add_parser(name, help=about)
    return str(shtab.complete(parser, shell))


def _complete_files(actions: Sequence[argparse.Action], files: Mapping[str, Any]) -> None:
    for action in actions:
        names = (*action.option_strings, action.dest)
        if action.nargs != 0 and (action.metavar in FILES or {*names} & {*FILE_OPTIONS}):
            action.complete = files  # type: ignore[attr-defined] # as shtab reads it
