"""A process that runs commands one after the other, as the one that started it says (jaxkd/multirun/processes.py).

Standard input holds a line of JSON for each command: module, arguments, log (the file to which its output is added).
One that ends with 0 is answered by a line on standard output; with any other code the process ends, so that the next
command begins in a fresh one. When the input ends, because the other process closed it or died, however suddenly, this
one saves what is running, as after SIGTERM, and ends.
"""
import gc
import importlib
import json
import os
import queue
import signal
import sys
import threading

from jaxkd import errors
from jaxkd.runtime.cli import leave

_busy = threading.Event()


def main() -> int:
    """-> the exit code."""
    import jax

    from jaxkd.runtime import preemption
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    answers = os.fdopen(os.dup(1), 'w')
    with preemption.catch_signals():
        threading.Thread(target=_read, args=(lines, preemption.requested), daemon=True).start()
        while line := lines.get():
            if preemption.requested():
                return errors.Interrupted.code
            task = json.loads(line)
            with open(task['log'], 'ab') as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            if code := importlib.import_module(task['module']).main(task['arguments']):
                return code
            _busy.clear()
            jax.clear_caches()
            gc.collect()
            print(0, file=answers, flush=True)
    return 0


def _read(lines, stopping):
    """Hand on the lines of standard input; at its end b''."""
    while line := sys.stdin.buffer.readline():
        _busy.set()
        lines.put(line)
    if _busy.is_set() and not stopping():
        os.kill(os.getpid(), signal.SIGTERM)
    lines.put(b'')


if __name__ == '__main__':
    leave(main())
