"""Run one job of a sweep: what every engine starts.

    python -m launch.job SWEEP NAME

It continues what was begun, takes over the stages that other jobs trained, and ends with an atomic result.json in the
folder of the job. Exit codes: see jaxkd/errors.py.
"""
import argparse
import collections
import functools
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from jaxkd.runtime.cli import EXIT_CODES, guarded, leave
from launch.manifest import Job

PATIENCE = 300.0  # seconds for another process to leave the folder of the job: one that saves after a signal


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code."""
    parser = argparse.ArgumentParser('launch.job', description=__doc__, epilog=EXIT_CODES, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('sweep', help='the folder of the sweep')
    parser.add_argument('name', help='the name of the job: runs/<member> or shared/<stage>-<digest>')
    args = parser.parse_args(argv)
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    return guarded(_run, pathlib.Path(args.sweep), args.name)


def _run(folder: pathlib.Path, name: str) -> int:
    from jaxkd import parallel
    from jaxkd.runtime import log, preemption
    from jaxkd.training import shared_stages
    from launch import manifest, state
    job = manifest.find(manifest.read(folder), name)
    parallel.initialize()
    with preemption.catch_signals():  # until the result is written: a signal must not come in between
        first = parallel.process()[0] == 0
        if first:
            _wait_for_folder(folder / job.name)
        if state.of(folder, job).status == state.FINISHED:
            log.info(f'{job.name}: finished before')
            return 0
        parallel.enable_compilation_cache()
        began, before = time.time(), collections.Counter(_compilations())
        if first:
            state.begin(folder, job)
            shared_stages.share_teacher_outputs(folder, folder / job.name)
        outcome: dict[str, Any] = {}
        code = guarded(_train, folder, job, outcome)
        if first:
            stages = outcome.get('summary', {}).get('stages', {})
            state.end(folder, job, code, outcome.get('reason', ''), dict(
                seconds=round(time.time() - began, 1),
                compiled={key: n - before[key] for key, n in _compilations().items()},
                scores={stage: entry.get('best', {}).get('score') for stage, entry in stages.items()},
                metrics={stage: entry.get('test', {}).get('best', {}) for stage, entry in stages.items()}))
    return code


def _train(folder: pathlib.Path, job: Job, outcome: dict[str, Any]) -> int:
    """outcome: filled with the summary of the run, or the reason why there is none."""
    from jaxkd import parallel, runner
    from jaxkd.runtime import log, versions
    try:
        run_config = job.load(folder)
        log.info(f'{job.name}: {parallel.describe()}; ' + ', '.join(f'{k} {v}' for k, v in versions.versions().items()))
        outcome['summary'] = runner.run(run_config, folder / job.name,
                                        {stage: folder / other for stage, other in job.shared.items()})
    except BaseException as e:
        outcome['reason'] = ' '.join(str(e).split()) or type(e).__name__
        raise
    return 0


def _wait_for_folder(run: pathlib.Path) -> None:
    """Wait while another process, which is about to end, still holds the folder."""
    from jaxkd.runtime import lock, log, preemption
    until = time.monotonic() + PATIENCE
    while (holder := lock.holder(run)) and time.monotonic() < until:
        if until - time.monotonic() > PATIENCE - 1:
            log.info(f'{run} is in use by process {holder.get("process")} on host {holder.get("host")}; waiting')
        preemption.raise_on_one_host(run.name)
        time.sleep(1)


@functools.cache
def _compilations() -> collections.Counter[str]:
    """How many programs this process had from the compilation cache (hits) and did not (misses), counted from the first
    call on.
    """
    import jax
    counts: collections.Counter[str] = collections.Counter(hits=0, misses=0)
    names = {'/jax/compilation_cache/cache_hits': 'hits', '/jax/compilation_cache/cache_misses': 'misses'}

    def count(event: str, **_: Any) -> None:
        if event in names:
            counts[names[event]] += 1
    jax.monitoring.register_event_listener(count)
    return counts


if __name__ == '__main__':
    leave(main())
