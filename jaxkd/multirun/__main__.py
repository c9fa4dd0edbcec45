"""Train a config several times and pool what came out: seeds, cross-validation folds, or one group left out at a time.

    python -m jaxkd.multirun --config configs/mmpkd_cxr.py --workdir runs/five --seeds 0,1,2,3,4
    python -m jaxkd.multirun --config configs/mmpkd_cxr.py --workdir runs/folds --folds 5 [--seeds 0,1]
    python -m jaxkd.multirun --config configs/mmpkd_cxr.py --workdir runs/views --leave_out view

Every member (a seed, a fold, a held-out value, or a combination with seeds) is a usual run in DIR/<member>. They are
trained one after the other; those that are finished are skipped, and the same command continues what was interrupted.
--only 2 trains the third alone, for job arrays. Whoever finds all members finished writes DIR/repeat.json and
DIR/report.html. Seeds change the training alone: the split (data.split.seed) and what a phantom shows stay, so all
seeds share their test patients. Exit codes: see jaxkd/errors.py.
"""
import argparse
import dataclasses
import json
import os
import pathlib
import re

from jaxkd.runtime.cli import guarded, leave, parse


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """One training of the config."""

    name: str  # its folder
    seed: int
    split: dict  # options of data.split
    part: str = ''  # which fold, or the value that is left out


def main(argv=None):
    """-> the exit code."""
    parser = argparse.ArgumentParser('jaxkd.multirun', description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', required=True, help='a config file, with a variant: configs/mmpkd_cxr.py:smoke')
    parser.add_argument('--workdir', required=True, help='the folder of all members')
    parser.add_argument('--seeds', type=_seeds, default=(), help='comma-separated: 0,1,2')
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument('--folds', type=int, default=0, help='how many parts of a cross-validation')
    parts.add_argument('--leave_out', default='', help='a group of the cases: each value of it is left out in turn')
    parser.add_argument('--only', type=int, help='train this member alone, counted from 0')
    args, overrides = parse(parser, argv)
    if not (args.seeds or args.folds or args.leave_out):
        parser.error('say what to repeat: --seeds, --folds or --leave_out')
    return guarded(_run, args, overrides)


def members(conf, seeds=(), folds=0, leave_out=''):
    """The members of a resolved config, in order: for each seed (default: the config's own) every fold or left-out
    value."""
    parts = [('', '', {})]
    if folds:
        parts = [(f'fold{i}', str(i), dict(folds=folds, fold=i, leave_out='')) for i in range(folds)]
    elif leave_out:
        parts = [(f'{leave_out}_{re.sub(r"[^A-Za-z0-9.-]+", "-", v)}', v,
                  dict(folds=0, fold=0, leave_out=f'{leave_out}={v}'))
                 for v in _values(conf, leave_out)]
    return [TrainingRun('_'.join(filter(None, (f'seed{seed}' if seeds else '', name))), seed, split, part)
            for seed in seeds or (conf.seed,) for name, part, split in parts]


def config_of(conf, member):
    """The resolved config of one member."""
    from ml_collections import ConfigDict

    from jaxkd import config
    tree = conf.to_dict()
    tree['seed'] = member.seed
    tree['data']['split'].update(member.split)
    return config.resolve(ConfigDict(tree))


def finished(conf, member, workdir):
    """Whether a member is complete in its folder. ConfigError if the folder holds a run of another config."""
    from jaxkd import runner
    from jaxkd.runtime import files
    folder = pathlib.Path(workdir) / member.name
    runner.check_same_config(config_of(conf, member), folder)
    if not ((folder / 'summary.json').exists() and (folder / 'report.html').exists()):
        return False
    found = files.read_json(folder / 'summary.json', 'The summary')['stages']
    return all(found.get(stage, {}).get('finished') for stage in conf.stages)


def _run(args, overrides):
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    from jaxkd import config, errors, parallel
    conf = config.load(args.config, overrides)
    parallel.initialize()
    import jax

    from jaxkd import runner
    from jaxkd.runtime import log, preemption, versions
    workdir = pathlib.Path(args.workdir)
    if (workdir / 'config.json').exists():
        raise errors.ConfigError(f'{workdir} holds a run itself, whose report would be overwritten. Choose another '
                                 '--workdir.')
    listed = members(conf, args.seeds, args.folds, args.leave_out)
    if args.only is not None and not 0 <= args.only < len(listed):
        names = ', '.join(f'{i} {m.name}' for i, m in enumerate(listed))
        raise errors.ConfigError(f'--only {args.only} is none of the {len(listed)} members: {names}.')
    log.info(config.overview(conf, args.config, overrides))
    log.info(f'{parallel.describe()}; ' + ', '.join(f'{k} {v}' for k, v in versions.versions().items()))
    parallel.enable_compilation_cache(workdir)
    with preemption.catch_signals():
        for i, member in enumerate(listed):
            if args.only not in (None, i):
                continue
            log.info(f'\n{member.name}, member {i + 1} of {len(listed)}')
            if finished(conf, member, workdir):
                log.info('finished before')
                continue
            runner.run(config_of(conf, member), workdir / member.name)
            preemption.raise_if_preempted(member.name)
            jax.clear_caches()  # of this process: programs of finished members would fill its memory
    left = [m.name for m in listed if not finished(conf, m, workdir)]
    if left:
        log.info(f'not finished yet: {", ".join(left)}. The last member to finish pools them all.')
    elif parallel.process()[0] == 0:
        from jaxkd.multirun import pooling
        about = dict(seeds=list(args.seeds), folds=args.folds, leave_out=args.leave_out)
        found = pooling.write(workdir, listed, about)
        log.info('\n' + pooling.text(found))
        log.info(f'report: {workdir / "report.html"}')
    return 0


def _values(conf, name):
    """What a group of the source's cases can be."""
    from jaxkd import errors
    from jaxkd.config import plugins
    from jaxkd.data import splits
    from jaxkd.runtime import log
    source = plugins.load('data/sources', conf.data.source.name).build(conf.data.source)
    found = splits.group_values(source.cases, name)
    values = sorted(set(found.values()) - {''})
    folders = {re.sub(r'[^A-Za-z0-9.-]+', '-', v) for v in values}
    if len(values) < 2 or len(folders) < len(values):
        raise errors.ConfigError(f'--leave_out {name}: its values are {json.dumps(values)}. It takes two or more, '
                                 'different '
                                 'in more than signs and spaces.')
    nowhere = sum(v == '' for v in found.values())
    if nowhere:
        log.info(f'{nowhere} patients have no {name}: they are never left out, so never tested')
    return values


def _seeds(text):
    try:
        seeds = tuple(int(part) for part in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is no list of whole numbers, as in 0,1,2') from None
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise argparse.ArgumentTypeError(f'{text!r} must be different numbers, 0 or above')
    return seeds


if __name__ == '__main__':
    leave(main())
