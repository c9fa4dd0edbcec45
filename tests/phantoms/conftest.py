"""Phantoms multiply small matrices, where threads cost more than they save: three times the time on two cores."""
import numpy  # noqa: F401  the limit is set in libraries that are loaded
import pytest
import threadpoolctl


@pytest.fixture(scope='module', autouse=True)
def one_blas_thread():
    with threadpoolctl.threadpool_limits(limits=1, user_api='blas'):
        yield
