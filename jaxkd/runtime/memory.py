"""Freed memory stays with the process: glibc would return each large block to the kernel and map it anew.

XLA asks for the temporary buffer of a step at every step. Above 32 MiB glibc serves it by mmap, whatever the
environment says, and the kernel clears each of its pages again: a quarter of the time of a small network's step. No
number changes. What a single large scan needed and the network does not is given back between the two.
"""
import ctypes
import functools
from typing import Any

# Of glibc's malloc.h. One arena, since those of other threads cannot grow past 64 MiB; no mmap; nothing is given back.
OPTIONS = {'M_ARENA_MAX': (-8, 1), 'M_MMAP_MAX': (-4, 0), 'M_TRIM_THRESHOLD': (-1, -1)}


def keep_freed() -> bool:
    """Set malloc's options, before threads start; False where the C library has none (macOS, musl, Windows)."""
    libc = _glibc()
    return libc is not None and all([libc.mallopt(option, value) == 1 for option, value in OPTIONS.values()])


def give_back() -> None:
    """Return to the kernel what is free now: a process is as large as what it used at a time, not as the sum."""
    if libc := _glibc():
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> Any:
    """The C library, None where it is another one: their options have other meanings."""
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version, libc.mallopt, libc.malloc_trim  # noqa: B018
    except (AttributeError, OSError, TypeError):
        return None
    return libc
