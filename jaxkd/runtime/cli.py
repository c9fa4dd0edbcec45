"""Command line: overrides of a config, an exit code for each kind of error, the end of the process."""
import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from jaxkd.runtime import memory

EXIT_CODES = """exit codes: 0 finished, 1 unexpected error, 2 command line or config, 65 bad data, 66 input missing,
70 loss not finite, 73 cannot write output, 74 damaged checkpoint, 75 interrupted and saved, 76 a peer process died"""


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """-> (options that the parser knows, overrides of the config: 'data.workers=4')."""
    args, overrides = parser.parse_known_args(argv)
    if unknown := [a for a in overrides if not (a.startswith('--config.') and '=' in a)]:
        parser.error(f'unknown: {" ".join(unknown)}.{_meant(parser, unknown[0])}')
    overrides = [a.removeprefix('--config.') for a in overrides]
    return args, overrides + ([f'data.source.root={args.root}'] if getattr(args, 'root', '') else [])


def add_data(parser: argparse.ArgumentParser) -> None:
    """The option --data, which `parse` makes an override of."""
    parser.add_argument('--data', dest='root', metavar='DIR', default='',
                        help='a folder of your own data, short for --config.data.source.root=DIR')


def _meant(parser: argparse.ArgumentParser, word: str) -> str:
    """What was meant by a word that the parser does not know, a clause that starts with a space."""
    name, equals, value = word.partition('=')
    key = name.removeprefix('--').removeprefix('config.')
    if name.startswith('--') and '.' in name:
        return f' Did you mean "--config.{key}={value or "VALUE"}"?'
    known = [option for action in parser._actions for option in action.option_strings]
    if close := difflib.get_close_matches(name, known, n=1):
        return f' Did you mean "{close[0]}{equals}{value}"?'
    return ' Values of the config are set as --config.data.workers=4'


def guarded(function: Callable[..., int], *args) -> int:
    """The exit code that `function` returns, or that of an error, which is written to standard error.

    Freed memory stays with the process from here on; JAX is to be imported in `function`.
    """
    from jaxkd import errors
    memory.keep_freed()
    try:
        return function(*args)
    except errors.JaxkdError as e:
        print(f'\n{"stopped" if e.code == 75 else "error"}: {e}', file=sys.stderr)
        return e.code
    except KeyboardInterrupt:
        print('\nstopped at once; the same command continues from the last checkpoint', file=sys.stderr)
        return 75
    except Exception as e:
        from jaxkd.runtime import files
        if isinstance(e, OSError) and e.errno in files.FULL:
            print(f'\nerror: {files.cannot(e.filename or "the output", e)}', file=sys.stderr)
            return errors.CannotWrite.code
        if errors.is_lost_peer(e):
            print(f'\nerror: {errors.PeerDied.of(e)}', file=sys.stderr)
            return errors.PeerDied.code
        traceback.print_exc()
        return 1


def show(text: str) -> int:
    """Print a long text -> 0, also where its reader has had enough, such as head."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left at the end goes there
    return 0


def columns(rows: Sequence[Sequence[object]]) -> list[str]:
    """A line for each row of cells, in columns as wide as their widest cell."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in texts) for i in range(len(texts[0]))]
    return ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in texts]


def leave(code: int) -> None:
    """End the process with this exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # redirected to a full disk
            code = code or 73
    if code:
        os._exit(code)  # files are closed by now; a reader that hangs must not delay the end
