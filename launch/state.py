"""How far a job of a sweep is, from the files of its folder.

attempts.json   [{number, started, host, process, ended, code, reason}], the last one open while the job runs
result.json     written once, in one step, when the job ended: state (finished, failed, interrupted), code, reason,
                digest (of its config), seconds, attempts, compiled {hits, misses}, scores {stage: validation score of
                the best step}, metrics {stage: {evaluator/metric: entry of the test}}
"""
import dataclasses
import json
import os
import pathlib
import platform
import time
from collections.abc import Iterable, Mapping
from typing import Any

from jaxkd import errors
from jaxkd.runtime import files
from launch.manifest import Job

FINISHED, RUNNING, WAITING, INTERRUPTED, FAILED, BLOCKED = (
    'finished', 'running', 'waiting', 'interrupted', 'failed', 'blocked')
DIED = 'ended without a result: killed, out of memory, or its machine went down'


@dataclasses.dataclass(frozen=True)
class State:
    """How far a job is."""

    status: str
    reason: str = ''
    failures: int = 0  # attempts that failed, without those that were interrupted and saved
    code: int | None = None
    seconds: float = 0.0  # of the job, if it is finished
    result: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def of(folder: str | os.PathLike, job: Job) -> State:
    """The state of one job, without regard to those before it."""
    from jaxkd.runtime import lock  # imports jax, which the parsing of a command line does without
    run = pathlib.Path(folder) / job.name
    result, attempts = _json(run / 'result.json', {}), _json(run / 'attempts.json', [])
    if result.get('state') == FINISHED and result.get('digest') == job.digest:
        return State(FINISHED, seconds=result.get('seconds', 0.0), code=0, result=result)
    if not attempts:
        return State(WAITING)
    last = attempts[-1]
    if 'ended' not in last and lock.holder(run):
        return State(RUNNING, failures=_failures(attempts[:-1]))
    code, reason = (last.get('code'), last.get('reason', '')) if 'ended' in last else (None, DIED)
    return State(INTERRUPTED if code == errors.Interrupted.code else FAILED, reason, _failures(attempts), code)


def all_of(folder: str | os.PathLike, jobs: Iterable[Job]) -> dict[str, State]:
    """{name of a job: state}; one that waits for a failed one is blocked."""
    states: dict[str, State] = {}
    for job in jobs:  # those that others wait for come first
        state = of(folder, job)
        bad = [name for name in job.after if states[name].status in (FAILED, BLOCKED)]
        if state.status in (WAITING, INTERRUPTED) and bad:
            state = dataclasses.replace(state, status=BLOCKED, reason=f'waits for {bad[0]}')
        states[job.name] = state
    return states


def begin(folder: str | os.PathLike, job: Job) -> None:
    """Note that a job starts. An attempt of before that never ended is closed as one that died."""
    path = pathlib.Path(folder) / job.name / 'attempts.json'
    attempts = _json(path, [])
    if attempts and 'ended' not in attempts[-1]:
        attempts[-1] |= dict(ended='', code=None, reason=DIED)
    attempts.append(dict(number=len(attempts) + 1, started=_now(), host=platform.node(), process=os.getpid()))
    (path.parent / 'result.json').unlink(missing_ok=True)
    files.write_json(path, attempts)


def end(folder: str | os.PathLike, job: Job, code: int, reason: str, result: Mapping[str, Any]) -> None:
    """Note how a job ended: in result.json, then in attempts.json."""
    run = pathlib.Path(folder) / job.name
    attempts = _json(run / 'attempts.json', [])
    state = FINISHED if code == 0 else INTERRUPTED if code == errors.Interrupted.code else FAILED
    files.write_json(run / 'result.json', files.finite(dict(
        state=state, code=code, reason=reason, digest=job.digest, attempts=len(attempts), **result)))
    if attempts:
        attempts[-1] |= dict(ended=_now(), code=code, reason=reason)
        files.write_json(run / 'attempts.json', attempts)


def may_try_again(state: State, retries: int) -> bool:
    """Whether the same command starts a job once more."""
    return state.status in (WAITING, INTERRUPTED, BLOCKED) or state.status == FAILED and state.failures <= retries


def _failures(attempts: list[dict]) -> int:
    return sum(attempt.get('code') not in (0, errors.Interrupted.code) for attempt in attempts)


def _json(path: pathlib.Path, default: Any) -> Any:
    """A file that a job writes; the default where there is none, or something else of that name."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return default
    return content if isinstance(content, type(default)) else default


def _now() -> str:
    return time.strftime('%Y-%m-%d %H:%M:%S')
