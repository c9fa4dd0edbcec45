"""Train and evaluate what a config describes.

    python -m jaxkd.main --config configs/mmpkd_cxr.py [--workdir runs/mmpkd_cxr] [--dry_run] [--config.student.batch=32]

The same command continues an interrupted run. Exit codes: see jaxkd/errors.py.
"""
import argparse
import os
import pathlib

from jaxkd.runtime.cli import guarded, leave, parse


def main(argv=None):
    """-> the exit code."""
    parser = argparse.ArgumentParser('jaxkd.main', description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', required=True, help='a config file, with a variant: configs/mmpkd_cxr.py:smoke')
    parser.add_argument('--workdir', help='where everything goes (default: runs/<config>[_<variant>])')
    parser.add_argument('--dry_run', action='store_true', help='say what would run, and stop')
    return guarded(_run, *parse(parser, argv))


def _run(args, overrides):
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    from jaxkd import config, parallel, runner
    from jaxkd.runtime import versions
    conf = config.load(args.config, overrides)
    parallel.initialize()
    from jaxkd.runtime import log
    file, _, variant = args.config.partition(':')
    workdir = pathlib.Path(args.workdir or pathlib.Path('runs') / '_'.join(filter(None, (pathlib.Path(file).stem, variant))))
    log.info(config.dump(conf))
    log.info(f'{parallel.describe()}; ' + ', '.join(f'{k} {v}' for k, v in versions.versions().items()))
    if args.dry_run:
        runner.dry_run(conf, workdir)
        return 0
    log.info(f'workdir: {workdir}')
    parallel.enable_compilation_cache(workdir)
    runner.run(conf, workdir)
    return 0


if __name__ == '__main__':
    leave(main())
