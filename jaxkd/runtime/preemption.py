"""Preemption: on SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C a run saves and exits with 75; a second signal ends it at once.

On several hosts each signal goes on to JAX's coordination service, through which all hosts agree on the place where
they stop: none waits for another before a signal came.

Python calls the handler of a signal between two instructions of the main thread, which a compilation keeps for minutes.
The number of each signal therefore also goes to a pipe, from which a thread reads it at once.
"""
import contextlib
import ctypes
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from jaxkd import errors, parallel
from jaxkd.runtime import lock

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
REPEATED = 0.3  # seconds in which several signals are one: schedulers send more than one, and to each process
GRACE = 2.0  # seconds after the second signal in which the main thread may end by itself

_signals: list[float] = []  # times
_places = itertools.count(1)  # that this process has passed; never anew, as the service compares with the last one
_agreed: list[int] = []  # the place at which all hosts stop


@contextlib.contextmanager
def catch_signals() -> Iterator[None]:
    """Within, a signal is acknowledged and recorded instead of ending the process; a second one ends it at once.

    Nothing changes within another `catch_signals`, nor in a thread that is not the main one.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGUSR1) is _record:
        yield
        return
    _signals.clear()
    _agreed.clear()
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


def agreed() -> bool:
    """Whether the run is to end here: on several hosts the same answer on each, as each passes here equally often."""
    if parallel.process()[1] == 1:
        return requested()
    place = next(_places)
    if parallel.reached_sync_point(place):
        _agreed.append(place)
    return bool(_agreed)


def raise_if_preempted(label: str) -> None:
    """Raise Interrupted where `agreed`; to be called when all results are on disk."""
    if agreed():
        _interrupt(label)


def raise_on_one_host(label: str) -> None:
    """Raise Interrupted after a signal, where hosts work alone; those of a run of several go on to the next place where
    all of them agree.
    """
    if requested() and parallel.process()[1] == 1:
        _interrupt(label)


def _interrupt(label):
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
