"""Preemption: on SIGTERM, SIGUSR1 or Ctrl-C a run saves and exits with 75."""
import contextlib
import signal
from collections.abc import Iterator

from jaxkd import errors, parallel

_signals: list[int] = []


@contextlib.contextmanager
def catch_signals() -> Iterator[None]:
    """Within, a signal is recorded instead of ending the process; a second Ctrl-C ends it at once.

    On several hosts JAX's coordination service handles SIGTERM, so that all hosts agree on a step.
    """
    def note(number, frame):
        if _signals and number == signal.SIGINT:
            raise KeyboardInterrupt
        _signals.append(number)
    names = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT] if parallel.process()[1] == 1 else []
    _signals.clear()
    try:
        before = {n: signal.signal(n, note) for n in names}
    except ValueError:  # not the main thread, as in a notebook: signals stay with the process
        before = {}
    try:
        yield
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def requested() -> bool:
    """Whether a signal asked this process to end."""
    return bool(_signals)


def raise_if_preempted(label: str) -> None:
    """Raise Interrupted after a signal; to be called when all results are on disk."""
    if _signals:
        raise errors.Interrupted(f'{label}: stopped. Finished steps are saved; the same command continues.')
