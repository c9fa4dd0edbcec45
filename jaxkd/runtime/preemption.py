"""Being asked to end: a scheduler's SIGTERM or SIGUSR1, or Ctrl-C. The run saves where it can and exits with 75."""
import contextlib
import signal
from collections.abc import Iterator

from jaxkd import errors, parallel

_asked: list[int] = []


@contextlib.contextmanager
def catch_signals() -> Iterator[None]:
    """Within, a signal leaves a note instead of ending the process; a second Ctrl-C ends it at once.

    On several hosts SIGTERM stays with JAX's coordination service, which makes all hosts agree on a step.
    """
    def note(number, frame):
        if _asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        _asked.append(number)
    names = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT] if parallel.process()[1] == 1 else []
    _asked.clear()
    try:
        before = {n: signal.signal(n, note) for n in names}
    except ValueError:  # not the main thread, as in a notebook: the owner of the process decides
        before = {}
    try:
        yield
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def requested() -> bool:
    """Whether this process was asked to end."""
    return bool(_asked)


def raise_if_preempted(where: str) -> None:
    """Interrupted, if asked: for places where all that is done is on disk."""
    if _asked:
        raise errors.Interrupted(f'{where}: stopped. What is done is saved; the same command continues.')
