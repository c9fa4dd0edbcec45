"""Run the members of a sweep: many runs of configs that differ in what a sweep file says.

    python -m launch.sweep configs/sweeps/mmpkd_alpha.py                    on this machine, members side by side
    python -m launch.sweep configs/sweeps/mmpkd_alpha.py --dry_run          what would run, and what is shared
    python -m launch.sweep configs/sweeps/mmpkd_alpha.py --engine slurm --profile configs/sites/slurm.toml

The sweep file defines get_sweep(), see launch/members.py. Stages that are the same in several members are trained once.
The same command continues the sweep and tries failed members again, each at most --retries times; members may be added
to the file, not changed. `python -m launch.status` shows how far it is, `python -m launch.collect` makes one table.
"""
import argparse
import os
import pathlib
from collections.abc import Sequence

from jaxkd.runtime.cli import EXIT_CODES, guarded, leave
from launch import manifest

ENGINES = ('local', 'slurm', 'tpu', 'k8s')


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser('launch.sweep', description=__doc__, epilog=EXIT_CODES, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file', help='a sweep file: configs/sweeps/mmpkd_alpha.py')
    parser.add_argument('--workdir', metavar='DIR', help='the folder of the sweep (default: runs/sweeps/<file>)')
    parser.add_argument('--engine', choices=ENGINES, default='local', help='where the jobs run')
    parser.add_argument('--profile', metavar='FILE', default='',
                        help='what the site calls its queues and machines: configs/sites/slurm.toml')
    parser.add_argument('--dry_run', action='store_true',
                        help='print the jobs, and the scripts of the engine, and stop; nothing is written')
    parser.add_argument('--parallel', type=int, default=0, metavar='N',
                        help='local: jobs at a time (default: one for each GPU, or for each core without any)')
    parser.add_argument('--retries', type=int, default=2, metavar='N', help='tries after the first that failed')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.parallel < 0 or args.retries < 0:
        parser.error('--parallel and --retries take 0 or more')
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    return guarded(_run, args)


def _run(args: argparse.Namespace) -> int:
    from jaxkd.runtime import lock
    from launch import search
    from launch.engines import k8s, local, slurm, tpu
    folder = pathlib.Path(args.workdir or pathlib.Path('runs') / 'sweeps' / pathlib.Path(args.file).stem)
    functions = manifest.functions_of(args.file)
    if 'get_search' in functions:
        wanted = functions['get_search']()
        plan = manifest.plan(search.members(wanted, {}))
        if args.dry_run:
            print(search.describe(wanted))
    else:
        plan = manifest.plan(manifest.members_of(functions, args.file))
    describe(plan)
    elsewhere = dict(slurm=slurm, tpu=tpu, k8s=k8s).get(args.engine)
    if args.dry_run:
        if elsewhere:
            print(elsewhere.preview(folder, [job for job, _ in plan], args.profile))
        return 0
    from jaxkd import parallel
    parallel.leave_accelerators()

    def engine(jobs: Sequence[manifest.Job]) -> int:
        if elsewhere:
            return elsewhere.run(folder, jobs, args.profile, args.retries)
        return local.run(folder, jobs, args.parallel, args.retries)
    with lock.hold(folder):
        if 'get_search' in functions:
            return search.run(folder, args.file, wanted, engine, args.parallel, args.retries)
        return engine(manifest.write(folder, args.file, plan))


def describe(plan: manifest.Plan) -> None:
    """Print the jobs of a sweep: what each differs in, trains and takes over."""
    trained = sum(len(run.stages) - len(job.shared) if job.is_member else 1 for job, run in plan)
    alone = sum(len(run.stages) for job, run in plan if job.is_member)
    print(f'{sum(job.is_member for job, _ in plan)} members; {trained} stages are trained instead of {alone}')
    for job, run in plan:
        own = [stage for stage in run.stages if stage not in job.shared]
        parts = [', '.join(f'{k}={v}' for k, v in job.overrides.items()), f'trains {", ".join(own) or "nothing"}',
                 f'after {", ".join(job.after)}' if job.after else '']
        print(f'  {job.name}: {"; ".join(filter(None, parts))}')


if __name__ == '__main__':
    leave(main())
