"""JAX on the CPU. Most of the tests' time is compilation: it is kept short, and programs that several tests need are
compiled once.
"""
import atexit
import gc
import importlib.metadata
import itertools
import os
import pathlib
import sys
import tempfile

import pytest

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
FLAGS = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
if importlib.metadata.version('jaxlib').startswith('0.10.'):
    # Its other emitters compile two to four times faster. Later versions have no such flag and refuse unknown ones.
    # Splitting a program among threads costs more than it saves where each core runs tests.
    FLAGS += ' --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
os.environ.setdefault('XLA_FLAGS', FLAGS)
for name in ('OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
    os.environ.setdefault(name, '1')  # before numpy is loaded: threads cost more than they save on small matrices
os.environ.pop('PYTHONDONTWRITEBYTECODE', None)  # or each process that a test starts compiles all that it imports
sys.dont_write_bytecode = False
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', tempfile.mkdtemp(prefix='jaxkd_compiled_'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')  # below that, writing costs more
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')  # tracing is faster without places in the source
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))


@pytest.fixture
def without_pages():
    """Runs write no page with their report."""
    from tests.fixtures import pages
    with pages.left_out():
        yield


@pytest.fixture
def without_clearing(monkeypatch):
    """Members that are trained in turn keep their compiled programs, which are alike and small in tests."""
    monkeypatch.setattr('jax.clear_caches', lambda: None)


def pytest_collection_finish(session):
    """Python's search for garbage passes over what was imported, took a twentieth of the time and is rarer."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def pytest_sessionfinish(session):
    """A worker ends without freeing its compiled programs one by one, which takes seconds."""
    if hasattr(session.config, 'workerinput'):
        atexit.register(os._exit, 0)  # runs first


MAPS = 45_000  # of the 65,530 memory maps that Linux allows a process; each compiled program takes several
FINISHED = itertools.count(1)


def pytest_runtest_teardown(item, nextitem):
    """Forget compiled programs before there are so many that the next one finds no memory to be mapped to."""
    if next(FINISHED) % 20:  # to count takes milliseconds
        return
    try:
        with open('/proc/self/maps', 'rb') as f:
            count = sum(1 for _ in f)
    except OSError:  # not Linux
        return
    if count > MAPS:
        import jax
        jax.clear_caches()
        gc.collect()
