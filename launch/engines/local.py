"""The jobs of a sweep on this machine: parallel processes that share its cores or GPUs.

    python -m launch.engines.local SWEEP [--only NAME ...] [--parallel N]

The command is what one task of a job array starts where it is to do several runs.
"""
import argparse
import collections
import os
import pathlib
from collections.abc import Sequence

from jaxkd.runtime.cli import EXIT_CODES, guarded, leave
from launch import manifest, state
from launch.manifest import Job

LASTING = 2, 65, 66, 70, 74  # codes that another try without a change of config or data would end with, too


def run(folder: pathlib.Path, jobs: Sequence[Job], parallel: int = 0, retries: int = 2) -> int:
    """Run the unfinished ones of these jobs of a sweep; those that failed more than `retries` times are left -> the
    exit code.

    parallel: how many at a time; 0: one for each GPU, or for each core where there is none.
    """
    from jaxkd.multirun import processes
    from jaxkd.runtime import log, preemption
    with preemption.catch_signals():
        states = {job.name: state.of(folder, job) for job in jobs}
        todo = [job for job in jobs if states[job.name].status == state.RUNNING  # of a killed command: it will end soon
                or state.may_try_again(states[job.name], retries)]
        names = {job.name for job in todo}
        given_up = {job.name for job in jobs} - names - {n for n, s in states.items() if s.status == state.FINISHED}
        tasks = [processes.Task(job.name, 'launch.job', (folder, job.name), job.log(folder),
                                [name for name in job.after if name in names | given_up]) for job in todo]
        count, before = len(processes.slots(parallel)), len(jobs) - len(todo) - len(given_up)
        log.info(f'{len(jobs)} jobs, {before} finished before; {count} at a time; output in {folder / "logs"}')
        tries: collections.Counter[str] = collections.Counter()

        def again(task: processes.Task, code: int) -> bool:
            tries[task.name] += 1
            now = state.of(folder, manifest.find(jobs, task.name))
            return code not in LASTING and tries[task.name] <= retries and state.may_try_again(now, retries)
        processes.run(tasks, count, again)
        return report(folder, jobs, preemption.requested())


def report(folder: pathlib.Path, jobs: Sequence[Job], stopped: bool = False) -> int:
    """Log what became of the jobs -> the exit code of the sweep: 0 if all are finished, 75 if it was stopped, else that
    of the first job that failed.
    """
    from jaxkd.runtime import log
    states = state.all_of(folder, manifest.read(folder))
    states = {job.name: states[job.name] for job in jobs}
    finished = [s for s in states.values() if s.status == state.FINISHED]
    compiled = [s.result.get('compiled', {}) for s in finished]
    hits, misses = (sum(c.get(key, 0) for c in compiled) for key in ('hits', 'misses'))
    log.info(f'{len(finished)} of {len(jobs)} jobs finished; compiled programs: {misses} new, {hits} from the cache')
    failed = {name: s for name, s in states.items() if s.status == state.FAILED}
    for name, s in failed.items():
        log.info(f'failed ({s.failures}x, code {s.code}): {name}: {s.reason}')
    for name, s in states.items():
        if s.status == state.BLOCKED:
            log.info(f'not started: {name}: {s.reason}')
    if len(finished) == len(jobs):
        return 0
    if stopped:
        log.info('stopped; the same command continues')
        return 75
    return next((s.code for s in failed.values() if s.code), 1)


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code."""
    parser = argparse.ArgumentParser('launch.engines.local', description=__doc__, epilog=EXIT_CODES, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('sweep', help='the folder of the sweep')
    parser.add_argument('--only', nargs='+', metavar='NAME', help='the names of these jobs alone')
    parser.add_argument('--parallel', type=int, default=0, help='jobs at a time')
    args = parser.parse_args(argv)
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    return guarded(_run, args)


def _run(args: argparse.Namespace) -> int:
    from jaxkd import parallel
    parallel.leave_accelerators()
    jobs = manifest.read(args.sweep)
    chosen = [manifest.find(jobs, name) for name in args.only] if args.only else jobs
    return run(pathlib.Path(args.sweep), chosen, args.parallel)


if __name__ == '__main__':
    leave(main())
