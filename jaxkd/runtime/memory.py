"""Freed memory stays with the process: glibc would return each large block to the kernel and map it anew.

XLA asks for the temporary buffer of a step at every step. Above 32 MiB glibc serves it by mmap, whatever the
environment says, and the kernel clears each of its pages again: a quarter of the time of a small network's step. No
number changes. What a single large scan needed and the network does not is given back between the two.
"""
import ctypes
import functools
import os
from typing import Any

# Of glibc's malloc.h. One arena, since those of other threads cannot grow past 64 MiB; no mmap; nothing is given back.
OPTIONS = {'M_ARENA_MAX': (-8, 1), 'M_MMAP_MAX': (-4, 0), 'M_TRIM_THRESHOLD': (-1, -1)}

_last = {'resident': 0}  # bytes after `give_back`


def keep_freed() -> bool:
    """Set malloc's options, before threads start; False where the C library has none (macOS, musl, Windows)."""
    libc = _glibc()
    return libc is not None and all([libc.mallopt(option, value) == 1 for option, value in OPTIONS.values()])


def give_back(spare: int = 0) -> None:
    """Return to the kernel what is free now, where the process grew by more than `spare` bytes since the last time: a
    process is then as large as what it uses at a time. Small blocks in a large hole let the next large one not fit.
    """
    libc, before = _glibc(), _resident()
    if libc and before > _last['resident'] + spare:
        libc.malloc_trim(0)
        _last['resident'] = _resident()


def _resident() -> int:
    """Bytes of the resident set; 0 where the system does not say it."""
    try:
        with open('/proc/self/statm') as f:
            return int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    except (OSError, IndexError, ValueError):
        return 0


@functools.cache
def _glibc() -> Any:
    """The C library, None where it is another one: their options have other meanings."""
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version, libc.mallopt, libc.malloc_trim  # noqa: B018
    except (AttributeError, OSError, TypeError):
        return None
    return libc
