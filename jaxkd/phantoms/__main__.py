"""Lay a phantom out on disk as an archive lays its files out, to try what reads that archive without having it.

    python -m jaxkd.phantoms write --layout chexpert --out DIR --patients 100 [--size 64] [--seed 0] [--difficulty 0.5]
    python -m jaxkd.phantoms write --layout chexpert --help        what the layout holds, and all its options

A layout is a file of jaxkd/phantoms/layouts: its docstring, and `write(folder, patients, **options)`, whose keywords with
their defaults are the options here.
"""
import argparse
import inspect

from jaxkd.config import plugins
from jaxkd.runtime.cli import guarded, leave

KIND = 'phantoms/layouts'


def main(argv=None):
    """-> the exit code."""
    parser = argparse.ArgumentParser('jaxkd.phantoms', description=__doc__, allow_abbrev=False, add_help=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('command', choices=('write',), nargs='?')
    parser.add_argument('--layout', help='the archive: a file of jaxkd/phantoms/layouts')
    args, rest = parser.parse_known_args(argv)
    if not (args.command and args.layout):
        parser.add_argument('-h', '--help', action='help')
        parser.parse_args(argv)
        parser.error(f'give "write --layout NAME --out DIR --patients N". Layouts: {", ".join(plugins.names(KIND))}')
    return guarded(_run, parser, args, rest)


def _run(parser, args, rest):
    layout = plugins.load(KIND, args.layout)
    full = argparse.ArgumentParser(f'{parser.prog} write --layout {args.layout}', description=layout.__doc__, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    full.add_argument('--out', dest='folder', required=True, help='a folder')
    full.add_argument('--patients', type=int, required=True)
    for name, given in inspect.signature(layout.write).parameters.items():
        if given.default is not given.empty:
            full.add_argument(f'--{name}', default=given.default, type=type(given.default), help=f'default: {given.default}')
    layout.write(**vars(full.parse_args(rest)))
    return 0


if __name__ == '__main__':
    leave(main())
