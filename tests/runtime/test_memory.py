"""Large blocks are mapped once."""
import platform
import subprocess
import sys

import pytest

PROGRAM = '''
import ctypes, resource
from jaxkd.runtime import memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        block = libc.malloc(64 << 20)
        ctypes.memset(block, 1, 64 << 20)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), memory.keep_freed(), faults(), faults())
'''


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the C library is not glibc')
def test_a_freed_block_is_used_again_without_page_faults():
    out = subprocess.run([sys.executable, '-c', PROGRAM], capture_output=True, text=True, check=True).stdout.split()
    pages = (64 << 20) // 4096
    before, changed, first, later = int(out[0]), out[1], int(out[2]), int(out[3])
    # with huge pages a fault maps more than one page
    assert changed == 'True' and later < 64 and first < before and before <= 4 * pages + 64


GIVEN_BACK = '''
import ctypes
from jaxkd.runtime import memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def resident():
    return int(open('/proc/self/statm').read().split()[1]) * 4096 >> 20

memory.keep_freed()
block, above, before = libc.malloc(64 << 20), libc.malloc(1 << 20), resident()
ctypes.memset(block, 1, 64 << 20)
libc.free(block)
kept = resident() - before
memory.give_back()
print(kept, resident() - before)
'''


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the C library is not glibc')
def test_what_is_free_is_given_back_also_below_what_is_used():
    out = subprocess.run([sys.executable, '-c', GIVEN_BACK], capture_output=True, text=True, check=True).stdout.split()
    assert int(out[0]) >= 60 and int(out[1]) <= 8


def test_another_c_library_is_left_alone(monkeypatch):
    from jaxkd.runtime import memory
    monkeypatch.setattr(memory.ctypes, 'CDLL', lambda name: object())
    memory._glibc.cache_clear()
    assert memory.keep_freed() is False
    memory.give_back()
    memory._glibc.cache_clear()
