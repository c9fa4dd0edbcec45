"""Resident processes that are asked in turn: a machine that is slower for a minute is so for all of them.

A worker (`serve`) gets ready, says so with facts about itself, and then does as many repetitions as each line of its
input names. Nothing but the standard library, so that a worker may run in another environment.
"""
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

GREETING = 'ready '


class Worker(NamedTuple):
    """How to start a process that serves."""

    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()


def serve(run: Callable[[int], None], **facts: Any) -> None:
    """Do `run(repetitions)` for each line of the input and print seconds of the clock and of the processor."""
    print(GREETING + json.dumps(facts | dict(peak_mb=peak_mb())), flush=True)
    for line in sys.stdin:
        gc.collect()  # what the last repetition left: a process that does this once never pays for it
        before, begin = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        run(int(line))
        seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(json.dumps(dict(seconds=seconds, cpu=spent, faults=after.ru_minflt - before.ru_minflt,
                              peak_mb=peak_mb())), flush=True)


def peak_mb() -> float:
    """The largest resident set of this process so far."""
    try:
        with open('/proc/self/status') as file:  # of this program; getrusage begins with that of its parent
            return next(int(line.split()[1]) for line in file if line.startswith('VmHWM')) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Resident:
    """A running worker."""

    def __init__(self, worker: Worker):
        self.command = ' '.join(os.path.basename(word) for word in worker.command)  # for messages
        self.process = subprocess.Popen(worker.command, env=os.environ | dict(worker.env), stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        self.facts: dict[str, Any] = {}

    def wait_until_ready(self) -> None:
        """RuntimeError where the process ends instead, or says why it cannot: {'left_out': reason}."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(GREETING):
                self.facts = json.loads(line.removeprefix(GREETING))
                break
        else:
            raise RuntimeError(f'{self.command} ended with {self.process.wait()}')
        if 'left_out' in self.facts:
            raise RuntimeError(self.facts['left_out'])

    def ask(self, repetitions: int) -> dict[str, float]:
        """{'seconds', 'cpu', 'faults'} of one repetition, the mean over so many; 'peak_mb' of the process."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f'{repetitions}\n')
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f'{self.command} ended with {self.process.wait()}')
        answer = json.loads(line)
        return {k: v if k == 'peak_mb' else v / repetitions for k, v in answer.items()}

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def in_turn(workers: Mapping[str, Worker], rounds: int, seconds: float
            ) -> tuple[dict[str, list[dict[str, float]]], dict[str, dict], dict[str, str]]:
    """({name: answer of each round}, {name: facts}, {name: why it was left out}).

    seconds: about as long each is asked in a round.
    """
    residents = {name: Resident(worker) for name, worker in workers.items()}
    answers: dict[str, list] = {}
    left_out: dict[str, str] = {}
    try:
        for name, resident in residents.items():
            try:
                resident.wait_until_ready()
                answers[name] = []
            except RuntimeError as e:
                left_out[name] = str(e)
        turns = {}
        for name in answers:
            residents[name].ask(1)  # the first repetition compiles, the second one warms up
            turns[name] = _repetitions(residents[name], seconds)
        for _ in range(rounds):
            for name in answers:
                answers[name].append(residents[name].ask(turns[name]))
    finally:
        for resident in residents.values():
            resident.close()
    return answers, {name: residents[name].facts for name in answers}, left_out


def _repetitions(resident: Resident, seconds: float) -> int:
    """How often a worker repeats in about this time, by a trial that is long enough to empty what it read ahead."""
    count = 1
    while (took := count * resident.ask(count)['seconds']) < seconds / 4:
        count *= 4
    return max(1, round(count * seconds / took))


def spread(values: Sequence[float]) -> dict[str, float]:
    """{'median', 'min', 'max'}."""
    return dict(median=statistics.median(values), min=min(values), max=max(values))
