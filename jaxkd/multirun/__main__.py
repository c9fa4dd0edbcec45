"""Train a config several times and pool the results: seeds, cross-validation folds, left-out groups, a grid of options.

    python -m jaxkd.multirun --config configs/mmpkd_cxr.py --workdir runs/five --seeds 5
    python -m jaxkd.multirun --config configs/mmpkd_cxr.py --workdir runs/folds --folds 5 [--seeds 2]
    python -m jaxkd.multirun --config configs/mmpkd_cxr.py --workdir runs/views --leave_out view
    python -m jaxkd.multirun --config configs/mmpkd_cxr.py --workdir runs/map --vary student.method.alpha=0.2,0.5,0.8
        --vary student.optim.lr=0.001,0.0003 --seeds 3 --arms image_only,student

Every member (a seed, a fold, a held-out value, a point of a grid, or a combination) is a usual run in DIR/<member>.
Stages that are the same in several members are trained once. What is finished is skipped: the same command resumes an
interrupted one, and with a further arm or value it trains what is new. --parallel 2 trains two members at a time, each
in a process of its own with its share of the cores or GPUs. --only 2 trains the third alone, for job arrays.

The command that completes the last member writes DIR/report.html, DIR/repeat.json and tables of the arms
(DIR/arms.csv, .md, .tex); with --vary the report is the map of all points, and DIR/gains.json holds its numbers. A
member of a grid that fails is said and left out. Seeds change the training alone: the split (data.split.seed) and the
images of a phantom do not change, so all seeds share their test patients.
"""
import argparse
import os
import pathlib
from collections.abc import Sequence

from jaxkd.runtime.cli import EXIT_CODES, add_data, guarded, leave, parse


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser('jaxkd.multirun', description=__doc__, epilog=EXIT_CODES, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', required=True, help='a config file, with a variant: configs/mmpkd_cxr.py:smoke')
    add_data(parser)
    parser.add_argument('--workdir', required=True, help='the folder of all members')
    parser.add_argument('--seeds', type=_seeds, default=(), metavar='N',
                        help='how many (5: the seeds 0 to 4), or which, with a comma: 0,3,7')
    parser.add_argument('--vary', action='append', default=[], metavar='KEY=V,V',
                        help='an option of the config and its values; several give a grid')
    parser.add_argument('--arms', type=_names, default=(), metavar='A,B',
                        help='the stages to compare (default: all of the config); what they start from is trained, too')
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument('--folds', type=int, default=0, help='how many parts of a cross-validation')
    parts.add_argument('--leave_out', default='', help='a group of the cases: each value of it is left out in turn')
    parser.add_argument('--baseline', default='', metavar='ARM',
                        help='the arm to which the others are compared (default: the first without a teacher)')
    parser.add_argument('--metric', default='', metavar='NAME',
                        help='what the figures and sentences are of: accuracy, auroc, dice (default: the main one)')
    parser.add_argument('--parallel', type=int, default=1, metavar='N',
                        help='members that train at a time, output in DIR/logs (default: 1, in this process)')
    parser.add_argument('--only', type=int, help='train this member alone, counted from 0')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code."""
    parser = build_parser()
    args, overrides = parse(parser, argv)
    if not (args.seeds or args.folds or args.leave_out or args.vary):
        parser.error('say what to repeat: --seeds, --folds, --leave_out or --vary')
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

    from jaxkd.multirun import plan, training, training_runs
    from jaxkd.runtime import log, preemption, versions
    workdir = pathlib.Path(args.workdir)
    if (workdir / 'config.json').exists():
        raise errors.ConfigError(f'{workdir} holds a run itself, whose report would be overwritten. Choose another '
                                 '--workdir.')
    if args.arms:
        run_config = training_runs.arms(run_config, args.arms)
    varied = training_runs.axes(run_config, args.vary)
    members = training_runs.members(run_config, args.seeds, args.folds, args.leave_out, varied)
    chosen = members
    if args.only is not None:
        if not 0 <= args.only < len(members):
            names = ', '.join(f'{i} {m.name}' for i, m in enumerate(members))
            raise errors.ConfigError(f'--only {args.only} is none of the {len(members)} members: {names}.')
        chosen = members[args.only:args.only + 1]
    log.info(config.overview(run_config, args.config, overrides))
    log.info(f'{parallel.describe()}; ' + ', '.join(f'{k} {v}' for k, v in versions.versions().items()))
    unused = parallel.unused_accelerator()
    if unused and args.parallel == 1:
        log.info(unused)
    parallel.enable_compilation_cache()
    with preemption.catch_signals():
        todo = plan.make(run_config, chosen, workdir, side_by_side=args.parallel > 1)
        if len(todo.jobs) > 1 and (args.parallel == 1 or not unused):  # the steps run on the devices of the members
            todo = plan.with_step_times(todo, workdir, args.parallel)
        log.info(plan.describe(todo, workdir, args.parallel))
        failed = (training.side_by_side(todo, workdir, args.parallel) if args.parallel > 1 else
                  training.in_turn(todo, workdir, keep_going=bool(varied)))
    if not varied:
        training.raise_failed(failed, workdir)
    return _pool(args, run_config, varied, members, failed, workdir)


def _pool(args, run_config, varied, members, failed, workdir):
    """Pool the members, if none is left to be trained -> the exit code: that of the first member that failed."""
    from jaxkd import parallel
    from jaxkd.multirun import plan as plans
    from jaxkd.multirun import pooling, training_runs
    from jaxkd.runtime import log
    unfinished = [m.name for m in members if not plans.is_complete(training_runs.config_of(run_config, m),
                                                                   workdir / m.name)]
    code = next((code for code, _ in failed.values()), 0)
    if waiting := [name for name in unfinished if name not in failed]:
        log.info(f'not finished yet: {", ".join(waiting)}. The last member to finish pools them all.')
    elif parallel.process()[0] == 0:
        repeated = dict(seeds=list(args.seeds), folds=args.folds, leave_out=args.leave_out)
        arms = args.arms or tuple(run_config.stages)
        complete = [m for m in members if m.name not in failed]
        if varied:
            from jaxkd.multirun import gain_page
            log.info('\n' + gain_page.write(workdir, complete, repeated, varied, arms, args.baseline,
                                            args.metric, {name: reason for name, (_, reason) in failed.items()}))
        else:
            log.info('\n' + pooling.text(pooling.write(workdir, complete, repeated, arms, args.baseline,
                                                           args.metric)))
        log.info(f'report: {workdir / "report.html"}')
    return code


def _seeds(text):
    try:
        seeds = tuple(int(part) for part in text.split(',') if part)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is neither a number of seeds nor a list, as in 0,1,2') from None
    if ',' not in text:
        seeds = tuple(range(seeds[0]))
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise argparse.ArgumentTypeError(f'{text!r} must be a number above 0, or different numbers with a comma')
    return seeds


def _names(text):
    names = tuple(part.strip() for part in text.split(',') if part.strip())
    if not names or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f'{text!r} must name different stages, as in image_only,student')
    return names


if __name__ == '__main__':
    leave(main())
