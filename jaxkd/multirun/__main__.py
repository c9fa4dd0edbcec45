"""Train a config several times and pool the results: seeds, cross-validation folds, or leaving out a group at a time.

    python -m jaxkd.multirun --config configs/mmpkd_cxr.py --workdir runs/five --seeds 0,1,2,3,4
    python -m jaxkd.multirun --config configs/mmpkd_cxr.py --workdir runs/folds --folds 5 [--seeds 0,1]
    python -m jaxkd.multirun --config configs/mmpkd_cxr.py --workdir runs/views --leave_out view

Every member (a seed, a fold, a held-out value, or a combination with seeds) is a usual run in DIR/<member>. Members are
trained in order; finished ones are skipped, and the same command resumes an interrupted one. --parallel 2 trains two at
a time, each in a process of its own with its share of the cores or GPUs. --only 2 trains the third alone, for job
arrays. The command that completes the last member writes DIR/repeat.json and DIR/report.html. Seeds
change the training alone: the split (data.split.seed) and the images of a phantom do not change, so all seeds share
their test patients.
"""
import argparse
import os
import pathlib
from collections.abc import Sequence

from jaxkd.multirun.training_runs import config_of, finished, members
from jaxkd.runtime.cli import EXIT_CODES, guarded, leave, parse


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code."""
    parser = argparse.ArgumentParser('jaxkd.multirun', description=__doc__, epilog=EXIT_CODES, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', required=True, help='a config file, with a variant: configs/mmpkd_cxr.py:smoke')
    parser.add_argument('--workdir', required=True, help='the folder of all members')
    parser.add_argument('--seeds', type=_seeds, default=(), help='comma-separated: 0,1,2')
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument('--folds', type=int, default=0, help='how many parts of a cross-validation')
    parts.add_argument('--leave_out', default='', help='a group of the cases: each value of it is left out in turn')
    parser.add_argument('--parallel', type=int, default=1, metavar='N',
                        help='members that train at a time, output in DIR/logs (default: 1, in this process)')
    parser.add_argument('--only', type=int, help='train this member alone, counted from 0')
    args, overrides = parse(parser, argv)
    if not (args.seeds or args.folds or args.leave_out):
        parser.error('say what to repeat: --seeds, --folds or --leave_out')
    if args.parallel < 1 or (args.parallel > 1 and args.only is not None):
        parser.error('--parallel takes 1 or more, and has nothing to do with --only')
    return guarded(_run, args, overrides)


def _run(args, overrides):
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    from jaxkd import config, errors, parallel
    run_config = config.load(args.config, overrides)
    if args.parallel > 1:  # this process only waits and pools: the devices are for the members
        parallel.leave_accelerators()
    parallel.initialize()

    import jax

    from jaxkd import runner
    from jaxkd.runtime import log, preemption, versions
    workdir = pathlib.Path(args.workdir)
    if (workdir / 'config.json').exists():
        raise errors.ConfigError(f'{workdir} holds a run itself, whose report would be overwritten. Choose another '
                                 '--workdir.')
    training_runs = members(run_config, args.seeds, args.folds, args.leave_out)
    if args.only is not None and not 0 <= args.only < len(training_runs):
        names = ', '.join(f'{i} {m.name}' for i, m in enumerate(training_runs))
        raise errors.ConfigError(f'--only {args.only} is none of the {len(training_runs)} members: {names}.')
    log.info(config.overview(run_config, args.config, overrides))
    log.info(f'{parallel.describe()}; ' + ', '.join(f'{k} {v}' for k, v in versions.versions().items()))
    if warning := parallel.unused_accelerator():
        log.info(warning)
    parallel.enable_compilation_cache()
    with preemption.catch_signals():
        if args.parallel > 1:
            _train_side_by_side(run_config, training_runs, workdir, args.parallel)
        for i, member in enumerate(training_runs):
            if args.only not in (None, i):
                continue
            log.info(f'\n{member.name}, member {i + 1} of {len(training_runs)}')
            if finished(run_config, member, workdir):
                log.info('finished before')
                continue
            later = 0 if args.only is not None else sum(
                not finished(run_config, other, workdir) for other in training_runs[i + 1:])
            runner.run(config_of(run_config, member), workdir / member.name, later_runs=later)
            preemption.raise_if_preempted(member.name)
            jax.clear_caches()  # of this process: programs of finished members would fill its memory
    if unfinished := [m.name for m in training_runs if not finished(run_config, m, workdir)]:
        log.info(f'not finished yet: {", ".join(unfinished)}. The last member to finish pools them all.')
    elif parallel.process()[0] == 0:
        from jaxkd.multirun import pooling
        repeated = dict(seeds=list(args.seeds), folds=args.folds, leave_out=args.leave_out)
        log.info('\n' + pooling.text(pooling.write(workdir, training_runs, repeated)))
        log.info(f'report: {workdir / "report.html"}')
    return 0


def _train_side_by_side(run_config, training_runs, workdir, count):
    """Train the members that are not finished in processes of their own, `count` at a time."""
    from jaxkd import config, errors
    from jaxkd.multirun import processes
    from jaxkd.runtime import files, preemption
    tasks = []
    for member in training_runs:
        if not finished(run_config, member, workdir):
            path = workdir / 'configs' / f'{member.name}.json'
            files.write(path, config.dump(config_of(run_config, member)) + '\n')
            arguments = '--config', path, '--workdir', workdir / member.name
            tasks.append(processes.Task(member.name, 'jaxkd.main', arguments, workdir / 'logs' / f'{member.name}.log'))
    codes = processes.run(tasks, count)
    preemption.raise_if_preempted(str(workdir))
    if failed := {name: code for name, code in codes.items() if code}:
        error = errors.JaxkdError(f'{", ".join(failed)}: stopped with exit code {next(iter(failed.values()))}. See '
                                  f'{workdir / "logs"}; the same command continues.')
        error.code = next(iter(failed.values()))
        raise error


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
