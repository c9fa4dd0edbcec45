"""What all commands share: overrides of a config, one exit code for each kind of error, an end that no thread delays."""
import os
import sys
import traceback


def parse(parser, argv):
    """-> (options that the parser knows, overrides of the config: 'data.workers=4')."""
    args, rest = parser.parse_known_args(argv)
    if wrong := [a for a in rest if not (a.startswith('--config.') and '=' in a)]:
        parser.error(f'unknown: {" ".join(wrong)}. Values of the config are set as --config.data.workers=4')
    return args, [a.removeprefix('--config.') for a in rest]


def guarded(function, *args):
    """What `function` returns, the exit code; or that of what went wrong, which is said on standard error."""
    from jaxkd import errors
    try:
        return function(*args)
    except errors.JaxkdError as e:
        print(f'\n{"stopped" if e.code == 75 else "error"}: {e}', file=sys.stderr)
        return e.code
    except KeyboardInterrupt:
        print('\nstopped at once; the same command continues from the last checkpoint', file=sys.stderr)
        return 75
    except Exception as e:
        traceback.print_exc()
        lost = any(word in str(e) for word in ('heartbeat', 'UNAVAILABLE', 'Connection reset', 'Connection closed'))
        return 76 if lost else 1  # another process of this run died


def leave(code):
    """End the process with this exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)  # what can be closed is closed by now; a reader that hangs must not keep the process
