"""Decode and resample every case once, and keep the result on disk (see jaxkd/data/stores/reader.py).

    python -m jaxkd.data.prepare --config configs/x.py [--out DIR] [--stage NAME] [--config.data.source.root=DIR]

Runs the source and the transforms before the first that learns from training cases, so folds and stages share the
result. After an interruption the same command continues; SIGTERM and Ctrl-C end it with 75, between two cases. A
complete folder is only opened; --verify compares its checksums.
"""
import argparse
import pathlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from jaxkd.runtime.cli import EXIT_CODES, add_data, guarded, leave, parse

if TYPE_CHECKING:
    from jaxkd.data.stores.reader import Store


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser('jaxkd.data.prepare', description=__doc__, epilog=EXIT_CODES, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', required=True, help='a config file, with a variant: configs/x.py:smoke')
    add_data(parser)
    parser.add_argument('--out', help='where to (default: data.folder, else prepared/<config>[_<variant>])')
    parser.add_argument('--stage', default='', help='prepare the data of this stage, where they differ')
    parser.add_argument('--verify', action='store_true', help='read everything again and compare checksums')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code."""
    return guarded(_run, *parse(build_parser(), argv))


def _run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from jaxkd import config, errors
    from jaxkd.config import loading
    from jaxkd.runtime import log, preemption
    run_config = config.load(args.config, overrides)
    if args.stage and args.stage not in run_config.stages:
        raise errors.ConfigError(f'--stage {args.stage}: no such stage.{errors.nearest(args.stage, run_config.stages)}')
    hp = config.stage_data(run_config, args.stage) if args.stage else run_config.data
    file, variant = loading.locate(args.config)
    name = '_'.join(filter(None, (file.stem, variant)))
    out = pathlib.Path(args.out or hp.get('folder') or pathlib.Path('prepared') / name)
    begin = time.perf_counter()
    with preemption.catch_signals():
        store = prepare(hp, out)
    if args.verify:
        store.verify(hp.threads)
    log.info(f'{len(store)} cases, {store.nbytes / 2**30:.2f} GiB, {time.perf_counter() - begin:.1f} s'
            f'{", checksums agree" if args.verify else ""}: {out}')
    log.info(f'Use it with --config.data.cache=disk --config.data.folder={out}')
    return 0


def prepare(hp: ConfigDict, out: str | pathlib.Path) -> 'Store':
    """The Store of a resolved data config in folder `out`, written where it is not yet."""
    from jaxkd import errors
    from jaxkd.data import source as sources
    from jaxkd.data import transform
    from jaxkd.data.stores import identity, writer
    from jaxkd.runtime import log
    source = sources.build(hp.source, 'data.source')
    if not len(source.cases):
        raise errors.BadData(f'Source {hp.source.name} holds no case.')
    names = hp.transforms[:transform.shared_prefix(hp)]
    for name in names:
        if describe := transform.plugin(name).describe:
            short = transform.short_name(name)
            log.info(f'{short}: {describe(hp[short], source, range(len(source.cases)))}')
    transforms = [transform.make(n, hp[transform.short_name(n)]).apply for n in names]
    return writer.write(source, transforms, out, identity.settings(hp, source), hp.threads)


if __name__ == '__main__':
    leave(main())
