"""Train and evaluate what a config describes.

    python -m jaxkd.main --config configs/mmpkd_cxr.py:smoke             train, evaluate, write the report
    python -m jaxkd.main --config configs/mmpkd_cxr.py --config.student.batch=32 --workdir runs/mine
    python -m jaxkd.main --list                                          all configs and their variants, all plug-ins
    python -m jaxkd.main --config configs/mmpkd_cxr.py:help              the variants of one, with their commands
    python -m jaxkd.main --config configs/mmpkd_cxr.py:smoke --options student.optim     the options below a key

Variants compose: configs/mmpkd_cxr.py:covid,encoders. Every value that --options shows is set as --config.KEY=VALUE.
Outside of the repository, jaxkd:mmpkd_cxr:smoke is the config that comes with the package. The same command continues
an interrupted run.
"""
import argparse
import os
import pathlib
from collections.abc import Sequence

from jaxkd.runtime.cli import EXIT_CODES, add_data, guarded, leave, parse, show


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    usage = 'python -m jaxkd.main --config FILE[:VARIANT] [--workdir DIR] [--config.KEY=VALUE ...]'
    parser = argparse.ArgumentParser('jaxkd.main', usage=usage, description=__doc__, epilog=EXIT_CODES,
                                     allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', metavar='FILE',
                        help='a config file, with variants: configs/mmpkd_cxr.py:smoke; or the config.json of a run')
    add_data(parser)
    parser.add_argument('--workdir', metavar='DIR', help='where everything goes (default: runs/<config>[_<variant>])')
    parser.add_argument('--dry_run', nargs='?', const='shapes', choices=('shapes', 'memory'),
                        help='check everything, print what would run, and stop; memory: with memory, work and '
                             'time of a step, which takes a compilation')
    parser.add_argument('--topology', metavar='T', default='',
                        help='a dry run for devices that are not here: tpu:v5e:4x4 (kind and grid), gpu:h100:1x8 '
                             '(kind, hosts x GPUs). Each step is compiled for them')
    parser.add_argument('--list', nargs='*', metavar='PATH',
                        help='list configs and plug-ins, one line each; with files or folders, these configs alone')
    parser.add_argument('--options', nargs='?', const='', metavar='KEY',
                        help='print the options and their values, and stop')
    parser.add_argument('--take_over', nargs='+', default=(), metavar='STAGE=DIR',
                        help='stages that the run in folder DIR trained with the same options: taken from there')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code."""
    parser = build_parser()
    args, overrides = parse(parser, argv)
    if wrong := [text for text in args.take_over if not all(text.partition('='))]:
        parser.error(f'--take_over {wrong[0]}: write the stage and the folder of a run, as in teacher=runs/a')
    if args.list is not None:
        return guarded(_list, args.list)
    if not args.config:
        parser.error('--config FILE is required. The files and their variants: --list')
    return guarded(_run, args, overrides)


def _list(paths: Sequence[str]) -> int:
    from jaxkd.config import catalogue
    return show(catalogue.configs(paths) if paths else catalogue.everything())


def _run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from jaxkd.config import loading
    file, variant = loading.locate(args.config)
    if variant == 'help':
        from jaxkd.config import variants
        return show(variants.describe(loading.import_file(file), args.config.removesuffix(f':{variant}')))
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    from jaxkd import config
    run_config = config.load(args.config, overrides)
    if args.options is not None:
        return show(config.describe_options(run_config, args.options))
    from jaxkd import parallel, runner
    from jaxkd.runtime import versions
    parallel.initialize()
    from jaxkd.runtime import log
    name = '_'.join(filter(None, (file.stem, variant.replace(',', '_'))))
    workdir = pathlib.Path(args.workdir or pathlib.Path('runs') / name)
    log.info(config.overview(run_config, args.config, overrides))
    log.info(f'{parallel.describe()}; ' + ', '.join(f'{k} {v}' for k, v in versions.versions().items()))
    if warning := parallel.unused_accelerator():
        log.info(warning)
    parallel.enable_compilation_cache()
    if args.dry_run or args.topology:
        runner.dry_run(run_config, workdir, args.dry_run == 'memory', args.topology)
        return 0
    log.info(f'workdir: {workdir} (config.json there holds every value)')
    runner.run(run_config, workdir, dict(text.split('=', 1) for text in args.take_over))
    return 0


if __name__ == '__main__':
    leave(main())
