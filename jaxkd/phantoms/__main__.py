"""Phantoms: write them in the layout of an archive, to test a source of that archive without its data; or draw them.

    python -m jaxkd.phantoms list
    python -m jaxkd.phantoms write --layout chexpert --out DIR --patients 100 [--size 64] [--seed 0] [--difficulty 0.5]
    python -m jaxkd.phantoms sheet --organ thorax --out sheet.png [--seed 0]

`write --layout NAME --help` and `sheet --organ NAME --help` list all options. A layout is a file of
jaxkd/phantoms/layouts with a docstring and `write(folder, patients, **options)`, or such a module by its dotted name.
An organ is a folder of jaxkd/phantoms, and `data.source.name = 'jaxkd.phantoms.<organ>'` trains with it; its sheet.py
has `draw(path, **options)`.
"""
import argparse
import ast
import importlib
import inspect
import pathlib
from collections.abc import Callable, Sequence

from jaxkd import errors
from jaxkd.config import plugins
from jaxkd.runtime.cli import EXIT_CODES, guarded, leave

LAYOUTS = 'phantoms/layouts'
FOLDER = pathlib.Path(__file__).parent
PROGRAM = 'python -m jaxkd.phantoms'


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(PROGRAM, description=__doc__, epilog=EXIT_CODES, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('command', choices=tuple(COMMANDS))
    parser.add_argument('options', nargs=argparse.REMAINDER)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line. Returns its exit code."""
    args = build_parser().parse_args(argv)
    return guarded(COMMANDS[args.command], args.options)


def organs() -> list[str]:
    """Names of all phantoms."""
    return sorted(path.parent.name for path in FOLDER.glob('*/sheet.py'))


def _list(options: list[str]) -> int:
    argparse.ArgumentParser(f'{PROGRAM} list', description='Phantoms and layouts.',
                            allow_abbrev=False).parse_args(options)
    for title, paths in (('organs', [FOLDER / organ / '__init__.py' for organ in organs()]),
                         ('layouts', sorted((FOLDER / 'layouts').glob('[!_]*.py')))):
        print(f'{title}:')
        for path in paths:
            name = path.parent.name if path.stem == '__init__' else path.stem
            print(f'  {name:10} {(ast.get_docstring(ast.parse(path.read_text())) or "").partition(chr(10))[0]}')
    return 0


def _write(options: list[str]) -> int:
    name, remaining = _choice('write', 'layout', plugins.names(LAYOUTS), options)
    layout = plugins.load(LAYOUTS, name)
    _call(layout.write, f'{PROGRAM} write --layout {name}', layout.__doc__, remaining)
    return 0


def _sheet(options: list[str]) -> int:
    name, remaining = _choice('sheet', 'organ', organs(), options)
    if name not in organs():
        raise errors.ConfigError(f'There is no phantom "{name}".{errors.nearest(name, organs())}')
    module = importlib.import_module(f'jaxkd.phantoms.{name}.sheet')
    _call(module.draw, f'{PROGRAM} sheet --organ {name}', module.__doc__, remaining)
    return 0


COMMANDS = {'list': _list, 'write': _write, 'sheet': _sheet}


def _choice(command: str, key: str, names: Sequence[str], options: list[str]) -> tuple[str, list[str]]:
    """(the value of --key, all other options); exit code 2 without --key, 0 for --help."""
    parser = argparse.ArgumentParser(f'{PROGRAM} {command}', allow_abbrev=False, add_help=False)
    parser.add_argument(f'--{key}', metavar='NAME', help=f'one of {", ".join(names)}; with --help: its options')
    args, remaining = parser.parse_known_args(options)
    value = getattr(args, key)
    if value is None:
        parser.add_argument('-h', '--help', action='help')
        parser.parse_known_args(options)
        parser.error(f'give --{key} NAME. {key.capitalize()}s: {", ".join(names)}.')
    return value, remaining


def _call(function: Callable, program: str, description: str | None, options: list[str]) -> None:
    """Call `function` with options of the command line: --out is its first parameter."""
    parser = argparse.ArgumentParser(program, description=f'{description}\n{inspect.getdoc(function)}',
                                     allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    (first, *_), parameters = zip(*inspect.signature(function).parameters.items())
    parser.add_argument('--out', dest=first, required=True, help='a folder' if first == 'folder' else 'a .png file')
    for parameter in parameters[1:]:
        default = parameter.default
        if default is parameter.empty:
            parser.add_argument(f'--{parameter.name}', type=int, required=True)
        elif isinstance(default, tuple):
            parser.add_argument(f'--{parameter.name}', type=type(default[0]), nargs=len(default), default=default,
                                help=f'default: {" ".join(map(str, default))}')
        else:
            parser.add_argument(f'--{parameter.name}', type=type(default), default=default,
                                help=f'default: {default!r}')
    values = vars(parser.parse_args(options))
    function(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


if __name__ == '__main__':
    leave(main())
