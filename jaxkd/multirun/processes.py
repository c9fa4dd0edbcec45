"""Commands side by side on one machine, in processes that have their share of the cores or GPUs each.

A process runs several commands one after the other, which saves the start of Python and JAX; a new one is started after
a command that failed or took long. All see equally many devices, because the key of a compiled program counts them: so
they share what is compiled.
"""
import contextlib
import dataclasses
import json
import os
import pathlib
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

from jaxkd import parallel
from jaxkd.runtime import log, preemption

POLL = 0.1  # seconds
SHORT = 600.0  # seconds of a command after which its process may run another [our choice]
THREADS = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')


class Task(NamedTuple):
    """A command, run when those before it have ended with 0."""

    name: str
    module: str  # its `main(arguments)` returns the exit code
    arguments: Sequence[Any]  # as text
    log: pathlib.Path  # its output is appended
    after: Sequence[str] = ()  # names of other tasks


class Slot(NamedTuple):
    """What one process may use."""

    cores: tuple[int, ...]
    environment: Mapping[str, str]


@dataclasses.dataclass(eq=False)
class _Worker:
    """A process in a slot, idle without a task."""

    slot: Slot
    process: subprocess.Popen
    input: IO[bytes]
    output: IO[bytes]
    task: Task | None = None
    began: float = 0.0

    def start(self, task: Task) -> None:
        self.task, self.began = task, time.monotonic()
        task.log.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(dict(module=task.module, arguments=list(map(str, task.arguments)), log=str(task.log)))
        with contextlib.suppress(BrokenPipeError):  # the process is dead: `code` says so
            self.input.write(line.encode() + b'\n')
            self.input.flush()

    def code(self) -> int | None:
        """The exit code of the task; None while it runs."""
        if self.process.poll() is not None:
            return self.process.returncode or 1
        if select.select([self.output], [], [], 0)[0] and self.output.readline():
            return 0
        return None

    def stop(self) -> None:
        """Let the process end; what runs is saved."""
        with contextlib.suppress(BrokenPipeError):
            self.input.close()


def slots(count: int = 0, ready: int = 0) -> list[Slot]:
    """The machine in `count` equal parts; 0: one for each GPU, or, without any, one for each core.

    ready: how many tasks wait for a part, if more than 0: fewer than the parts have all cores to themselves.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
    gpus = parallel.local_gpus()
    count = count or len(gpus) or len(cores) or os.cpu_count() or 1
    if ready and not gpus:
        count = min(count, ready)
    parts = []
    for i in range(count):
        own = tuple(cores[i * len(cores) // count:(i + 1) * len(cores) // count]) or tuple(cores)
        environment = {name: str(len(own) or 1) for name in THREADS if name not in os.environ}
        environment |= parallel.gpu_share(gpus, i, count)
        parts.append(Slot(own, environment))
    return parts


def run(tasks: Sequence[Task], count: int = 0,
        again: Callable[[Task, int], bool] = lambda task, code: False,
        ended: Callable[[Task], None] = lambda task: None) -> dict[str, int]:
    """Run all tasks, the first ones first -> {name: exit code} of those that ran; below 0 the signal that ended it.

    count: how many at a time, see `slots`. again: whether a task that ended with a code other than 0 is to be started
    once more. ended: called after each task that ended with 0. After a signal (within `preemption.catch_signals`)
    nothing more is started, and what runs saves and ends.
    """
    waiting, codes, free = list(tasks), dict[str, int](), list[Slot]()
    workers: list[_Worker] = []
    try:
        while not preemption.requested():
            if not any(worker.task for worker in workers):  # the machine may be divided anew
                parts = slots(count, sum(_may_start(task, codes) for task in waiting))
                if len(parts) != len(workers) + len(free):
                    for worker in workers:
                        worker.stop()
                    workers, free = [], parts
            while (idle := [w for w in workers if w.task is None] or free) and (task := _next(waiting, codes)):
                worker = idle[0] if isinstance(idle[0], _Worker) else _started(free.pop(0))
                workers = [w for w in workers if w is not worker] + [worker]
                worker.start(task)
                log.info(f'started   {task.name}')
            if not any(worker.task for worker in workers):
                break  # all is done, or what waits comes after a task that failed
            time.sleep(POLL)
            for worker in [w for w in workers if w.task]:
                if (code := worker.code()) is not None:
                    task = _ended(worker, code, codes)
                    if code or time.monotonic() - worker.began > SHORT:
                        workers.remove(worker)
                        free.append(worker.slot)
                        worker.stop()
                        worker.process.wait()
                    if not code:
                        ended(task)
                    elif not preemption.requested() and again(task, code):
                        waiting.insert(0, task)
                        del codes[task.name]
    finally:
        for worker in workers:
            worker.stop()
        for worker in workers:
            code = worker.process.wait()
            if worker.task:
                _ended(worker, code, codes)
    return codes


def _next(waiting: list[Task], codes: Mapping[str, int]) -> Task | None:
    """The first task that may start, taken out of those that wait."""
    return next((waiting.pop(i) for i, task in enumerate(waiting) if _may_start(task, codes)), None)


def _may_start(task: Task, codes: Mapping[str, int]) -> bool:
    return all(codes.get(name) == 0 for name in task.after)


def _ended(worker: _Worker, code: int, codes: dict[str, int]) -> Task:
    """Note how the task of a worker ended -> the task."""
    task, worker.task = worker.task, None
    assert task is not None
    codes[task.name] = code
    log.info(f'{"finished " if code == 0 else f"exit {code:4}"} {task.name}')
    return task


def _started(slot: Slot) -> _Worker:
    with _on(slot.cores):
        process = subprocess.Popen([sys.executable, '-m', 'jaxkd.multirun.worker'], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, env={**os.environ, **slot.environment})
    assert process.stdin and process.stdout
    return _Worker(slot, process, process.stdin, process.stdout)


@contextlib.contextmanager
def _on(cores: tuple[int, ...]) -> Iterator[None]:
    """Within, this thread and the processes that it starts use these cores alone."""
    if not cores or not hasattr(os, 'sched_setaffinity'):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
