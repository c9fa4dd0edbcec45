"""Signals: acknowledged at once whatever the main thread does, recorded once, the second one ends the process."""
import os
import signal
import subprocess
import sys
import time

import pytest

from jaxkd import errors, parallel
from jaxkd.runtime import preemption

COMPILING = 'hashlib.pbkdf2_hmac("sha256", b"a", b"b", 10**9)'  # like a compilation, it is deaf to Python's handlers
LOOPING = 'time.sleep(60)'
REPEATED = 0.1  # seconds


def start(work, folder):
    """A process in which signals are one within REPEATED and the second one leaves the main thread 0.5 s."""
    program = ('import hashlib, sys, time\nfrom jaxkd.runtime import cli, lock, preemption\n'
               f'preemption.REPEATED, preemption.GRACE = {REPEATED}, 0.5\n'
               'def run():\n'
               '    with preemption.catch_signals(), lock.hold(sys.argv[1]):\n'
               f'        print("ready", flush=True)\n        {work}\n    return 0\n'
               'cli.leave(cli.guarded(run))')
    process = subprocess.Popen([sys.executable, '-c', program, str(folder)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'ready\n'
    return process


@pytest.mark.parametrize('number', preemption.SIGNALS)
@pytest.mark.parametrize('work', [COMPILING, LOOPING])
def test_a_signal_is_acknowledged_at_once_and_the_second_ends_the_process(number, work, tmp_path):
    process = start(work, tmp_path)
    process.send_signal(number)
    assert process.stderr.readline() == '\n'
    assert process.stderr.readline().startswith(f'{signal.Signals(number).name}: asked to stop.')
    time.sleep(2 * REPEATED)
    assert process.poll() is None
    process.send_signal(number)
    _, message = process.communicate(timeout=30)
    assert process.returncode == 75 and 'stopped at once' in message and 'Traceback' not in message
    assert not os.listdir(tmp_path), 'the folder is free'


def test_several_signals_at_once_are_one(capfd):
    with preemption.catch_signals():
        assert not preemption.requested()
        for number in preemption.SIGNALS:
            os.kill(os.getpid(), number)
        with preemption.catch_signals():  # of a member of several runs
            assert preemption.requested()
        with pytest.raises(errors.Interrupted, match='arm: stopped'):
            preemption.raise_if_preempted('arm')
    assert capfd.readouterr().err.count('asked to stop') == 1
    with preemption.catch_signals():
        assert not preemption.requested()


def test_handlers_are_those_of_before():
    before = [signal.getsignal(n) for n in preemption.SIGNALS]
    with preemption.catch_signals():
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert [signal.getsignal(n) for n in preemption.SIGNALS] == before and signal.set_wakeup_fd(-1) == -1


def test_hosts_stop_at_one_place_and_do_not_forget_it(monkeypatch):
    """Places are numbered through the process: JAX's service compares with the last number, whatever the stage."""
    places = []
    monkeypatch.setattr(parallel, 'process', lambda: (0, 2))
    monkeypatch.setattr(parallel, 'reached_sync_point', lambda place: bool(places.append(place)) or len(places) == 3)
    monkeypatch.setattr(preemption, '_coordination_service', lambda: None)
    with preemption.catch_signals():
        assert [preemption.agreed() for _ in range(5)] == [False, False, True, True, True]
        with pytest.raises(errors.Interrupted, match='student: stopped'):
            preemption.raise_if_preempted('student')
        preemption.raise_on_one_host('a host that works alone goes on')
    assert [*map(int.__sub__, places[1:], places)] == [1] * 5
