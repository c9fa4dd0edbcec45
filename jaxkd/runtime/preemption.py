"""Preemption: on SIGTERM, SIGUSR1 or Ctrl-C a run saves and exits with 75; a second signal ends it at once.

Python calls the handler of a signal between two instructions of the main thread, which a compilation keeps for minutes.
The number of each signal therefore also goes to a pipe, from which a thread reads it at once.
"""
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from jaxkd import errors, parallel
from jaxkd.runtime import lock

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
REPEATED = 0.3  # seconds in which several signals are one: schedulers send more than one, and to each process
GRACE = 2.0  # seconds after the second signal in which the main thread may end by itself

_signals: list[float] = []  # times


@contextlib.contextmanager
def catch_signals() -> Iterator[None]:
    """Within, a signal is acknowledged and recorded instead of ending the process; a second one ends it at once.

    On several hosts it also goes to JAX's coordination service, through which all hosts agree on a step. Nothing
    changes within another `catch_signals`, nor in a thread that is not the main one.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGUSR1) is _record:
        yield
        return
    _signals.clear()
    notify = _coordination_service()
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    before = {number: signal.signal(number, _record) for number in SIGNALS}
    fd_before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(read_end, notify), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd_before)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        os.write(write_end, bytes(1))
        thread.join()
        os.close(read_end)
        os.close(write_end)


def requested() -> bool:
    """Whether a signal asked this process to end."""
    return bool(_signals)


def raise_if_preempted(label: str) -> None:
    """Raise Interrupted after a signal; to be called when all results are on disk.

    On several hosts the training loop alone stops, where all hosts agree on a step.
    """
    if _signals and parallel.process()[1] == 1:
        raise errors.Interrupted(f'{label}: stopped. Finished steps are saved; the same command continues.')


def _record(number, frame):
    """The handler, in the main thread."""
    now = time.monotonic()
    if _signals and now - _signals[0] > REPEATED:
        raise KeyboardInterrupt
    _signals.append(now)


def _watch(read_end, notify):
    """Acknowledge signals, and end the process after the second one."""
    first = 0.0
    while number := os.read(read_end, 1)[0]:
        if number not in SIGNALS or (first and time.monotonic() - first <= REPEATED):
            continue
        if first:
            time.sleep(GRACE)
            lock.release_all()
            print('stopped at once; the same command continues from the last checkpoint', file=sys.stderr, flush=True)
            os._exit(errors.Interrupted.code)
        first = time.monotonic()
        print(f'\n{signal.Signals(number).name}: asked to stop. The run ends after this step and saves it; a second '
              'signal ends it at once, without saving.', file=sys.stderr, flush=True)
        if notify:
            notify(signal.SIGTERM)


def _coordination_service() -> Callable[[int], None] | None:
    """The function that JAX installed as the handler of SIGTERM on several hosts; None on one host."""
    if parallel.process()[1] == 1:
        return None
    handler_of = ctypes.pythonapi.PyOS_getsig
    handler_of.argtypes, handler_of.restype = [ctypes.c_int], ctypes.c_void_p
    address = handler_of(signal.SIGTERM)
    return ctypes.CFUNCTYPE(None, ctypes.c_int)(address) if address else None
