"""How far a sweep is: what runs, what failed and why, and when it may be done.

    python -m launch.status runs/sweeps/mmpkd_alpha
"""
import argparse
import collections
import os
import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence

from jaxkd.runtime.cli import EXIT_CODES, guarded, leave
from launch import manifest, state
from launch.manifest import Job


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser('launch.status', description=__doc__, epilog=EXIT_CODES, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('sweep', help='the folder of the sweep')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code."""
    args = build_parser().parse_args(argv)
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    return guarded(_run, pathlib.Path(args.sweep))


def _run(folder: pathlib.Path) -> int:
    jobs = manifest.read(folder)
    print(describe(folder, jobs, state.all_of(folder, jobs)))
    return 0


def describe(folder: pathlib.Path, jobs: Sequence[Job], states: Mapping[str, state.State]) -> str:
    """The text of the command."""
    counts = collections.Counter(s.status for s in states.values())
    order = (state.FINISHED, state.RUNNING, state.WAITING, state.INTERRUPTED, state.FAILED, state.BLOCKED)
    lines = [f'{folder}: {len(jobs)} jobs, ' + ', '.join(f'{counts[s]} {s}' for s in order if counts[s])]
    for job in jobs:
        now = states[job.name]
        if now.status == state.RUNNING:
            lines.append(f'  running      {job.name}: {_progress(folder, job)}')
        elif now.status in (state.FAILED, state.INTERRUPTED, state.BLOCKED):
            tries = f' ({now.failures}x, code {now.code})' if now.status == state.FAILED else ''
            lines.append(f'  {now.status:12} {job.name}{tries}: {now.reason}')
            if now.status == state.FAILED:
                lines.append(f'               output: {job.log(folder)}')
    if left := _seconds_left(jobs, states):
        done = time.strftime('%Y-%m-%d %H:%M', time.localtime(time.time() + left))
        lines.append(f'about {left / 3600:.1f} h left, done at {done}, if as many run at a time as now and take as '
                     'long as those that are finished')
    return '\n'.join(lines)


def _progress(folder: pathlib.Path, job: Job) -> str:
    """The last step that the job wrote of its metrics."""
    from jaxkd.runtime import log
    lines = log.read(folder / job.name)
    return f'{lines[-1]["stage"]}, step {lines[-1]["step"]}' if lines else 'no step yet'


def _seconds_left(jobs: Sequence[Job], states: Mapping[str, state.State]) -> float:
    """An estimate of the seconds until all jobs are done; 0 where nothing says how long one takes, or all are done."""
    taken: dict[bool, list[float]] = {True: [], False: []}
    for job in jobs:
        if states[job.name].status == state.FINISHED:
            taken[job.is_member].append(states[job.name].seconds)
    known = [*taken[True], *taken[False]]
    if not known:
        return 0.0
    total, running = 0.0, 0
    for job in jobs:
        now = states[job.name].status
        if now in (state.WAITING, state.RUNNING, state.INTERRUPTED):
            total += statistics.mean(taken[job.is_member] or known) * (0.5 if now == state.RUNNING else 1.0)
            running += now == state.RUNNING
    return total / max(1, running)


if __name__ == '__main__':
    leave(main())
