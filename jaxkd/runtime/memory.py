"""Freed memory stays with the process: glibc would return each large block to the kernel and map it anew.

XLA asks for the temporary buffer of a step at every step. Above 32 MiB glibc serves it by mmap, whatever the
environment says, and the kernel clears each of its pages again: a quarter of the time of a small network's step. No
number changes.
"""
import ctypes

# Of glibc's malloc.h. One arena, since those of other threads cannot grow past 64 MiB; no mmap; nothing is given back.
OPTIONS = {'M_ARENA_MAX': (-8, 1), 'M_MMAP_MAX': (-4, 0), 'M_TRIM_THRESHOLD': (-1, -1)}


def keep_freed() -> bool:
    """Set malloc's options, before threads start; False where the C library has none (macOS, musl, Windows)."""
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 # other libraries give these numbers another meaning
        mallopt = libc.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(option, value) == 1 for option, value in OPTIONS.values()])
