"""Exceptions, each with a process exit code.

Codes (stable; a batch script requeues on 75 alone):
0 finished, 1 unexpected error, 2 command line or config, 65 bad data, 66 input missing, 70 loss not finite,
73 cannot write output, 74 damaged checkpoint, 75 interrupted and saved, 76 a peer process died.
"""
import difflib
from collections.abc import Iterable, Sequence


class JaxkdError(Exception):
    """The message is a complete sentence with the file or case, the key, and the remedy."""

    code = 1


class ConfigError(JaxkdError):
    code = 2


class BadData(JaxkdError):
    code = 65


class MissingInput(JaxkdError):
    code = 66


class NonFinite(JaxkdError):
    code = 70


class CannotWrite(JaxkdError):
    code = 73


class Damaged(JaxkdError):
    code = 74


class Interrupted(JaxkdError):
    code = 75


class PeerDied(JaxkdError):
    code = 76

    @classmethod
    def of(cls, e: BaseException) -> 'PeerDied':
        """The sentence for an error of JAX that `is_lost_peer`."""
        return cls(f'another process of this run died ({" ".join(str(e).split())[:160]}). Look into its output; the '
                   'same command for all processes continues from the last checkpoint.')


def is_lost_peer(e: BaseException | None) -> bool:
    """Whether an error of JAX, or one that it led to, means that another process of a run has ended."""
    words = ('heartbeat', 'UNAVAILABLE', 'Connection reset', 'Connection closed')
    return e is not None and (any(word in str(e) for word in words) or is_lost_peer(e.__cause__ or e.__context__))


def check_choice(key: str, value: object, known: Iterable[object]) -> None:
    """ConfigError that names the nearest of `known` unless `value`, that of the option `key`, is one of them."""
    known = tuple(known)
    if value not in known:
        raise ConfigError(f'{key} = "{value}".{nearest(value, known)}')


def check_range(key: str, value: float | Sequence[float], interval: str) -> None:
    """ConfigError unless `value`, that of the option `key`, or each of several lies in `interval`, such as '(0, 1]'."""
    low, high = (float(end) for end in interval[1:-1].split(','))
    for x in value if isinstance(value, Sequence) else (value,):
        if not (low <= x <= high) or (x == low and interval[0] == '(') or (x == high and interval[-1] == ')'):
            raise ConfigError(f'{key} = {value} must lie in {interval}.')


def nearest(name: object, known: Iterable[object]) -> str:
    """A clause that names the closest of `known`, or all of them when none is close. Starts with a space."""
    names = sorted(one_line(str(n)) for n in known)
    close = difflib.get_close_matches(str(name), names, n=1)
    return f' Did you mean "{close[0]}"?' if close else f' Known: {", ".join(names) or "none"}.'


def one_line(text: str) -> str:
    """A text of a file without line breaks and other control characters, which a damaged one may hold."""
    return ''.join(c if c.isprintable() else ' ' for c in text)
