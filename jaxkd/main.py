"""Train and evaluate what a config describes.

    python -m jaxkd.main --config configs/mmpkd_cxr.py [--workdir runs/mmpkd_cxr] [--dry_run] [--config.student.batch=32]

The same command continues an interrupted run. Exit codes: see jaxkd/errors.py.
"""
import argparse
import os
import pathlib
import sys
import traceback


def main(argv=None):
    """-> the exit code."""
    parser = argparse.ArgumentParser('jaxkd.main', description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', required=True, help='a config file, with a variant: configs/mmpkd_cxr.py:smoke')
    parser.add_argument('--workdir', help='where everything goes (default: runs/<config>[_<variant>])')
    parser.add_argument('--dry_run', action='store_true', help='say what would run, and stop')
    return guarded(_run, *parse(parser, argv))


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


def _run(args, overrides):
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    from jaxkd import config, parallel, stages
    conf = config.load(args.config, overrides)
    parallel.start()
    from jaxkd import log
    file, _, variant = args.config.partition(':')
    workdir = pathlib.Path(args.workdir or pathlib.Path('runs') / '_'.join(filter(None, (pathlib.Path(file).stem, variant))))
    log.say(config.dump(conf))
    log.say(f'{parallel.describe()}; ' + ', '.join(f'{k} {v}' for k, v in stages.versions().items()))
    if args.dry_run:
        stages.dry_run(conf, workdir)
        return 0
    log.say(f'workdir: {workdir}')
    parallel.keep_compiled(workdir)
    stages.run(conf, workdir)
    return 0


def leave(code):
    """End the process with this exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)  # what can be closed is closed by now; a reader that hangs must not keep the process


if __name__ == '__main__':
    leave(main())
