"""The function of a network that predicts, and what is said of it."""
import contextlib

from jaxkd.inference import predictor
from jaxkd.runtime import log


def test_the_first_call_says_that_it_compiles(monkeypatch):
    said = []
    monkeypatch.setattr(log, 'waiting', lambda label: said.append(label) or contextlib.nullcontext())
    function = predictor._saying(lambda a, b: a + b)
    assert [function(1, 2), function(3, 4)] == [3, 7]
    assert said == ['compiling the network for prediction']
