"""What is said while something runs."""
import re
import socket
import time

from tensorboardX.proto import event_pb2

from jaxkd.runtime import log


def test_a_log_file_gets_a_line_each_minute_with_what_is_left(capsys, monkeypatch):
    monkeypatch.setattr(log, 'MINUTE', 0.0)
    assert list(log.progress(iter('abcd'), 'reading', 4)) == list('abcd')
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r'\d+:\d+', '0:00', line) for line in lines] == ['reading: 0 of 4', *(f'reading: {k} of 4  ETA 0:00'
                                                                                         for k in (1, 2, 3))]


def test_what_is_over_in_a_moment_says_nothing(capsys):
    assert list(log.progress(range(3), 'reading')) == [0, 1, 2] and not capsys.readouterr().out
    assert sum(log.progress(range(500), 'reading')) == 124750
    assert capsys.readouterr().out == 'reading: 500\n'


def test_what_has_no_steps_says_how_long_it_takes(capsys, monkeypatch):
    monkeypatch.setattr(log, 'MINUTE', 0.02)
    with log.waiting('compiling', 0.01):
        time.sleep(0.2)
    first, *others, last = capsys.readouterr().out.splitlines()
    assert first == 'compiling, 0:00 so far' and set(others) == {first} and last == 'compiling, done after 0:00'
    with log.waiting('compiling'):
        pass
    assert not capsys.readouterr().out


def test_files_of_tensorboard_do_not_name_the_machine(tmp_path):
    board = log._board(tmp_path, 'student', 0)
    board.add_scalar('loss', 0.25, 3)
    board.close()
    (path,) = (tmp_path / 'tensorboard' / 'student').iterdir()
    assert re.fullmatch(r'events\.out\.tfevents\.\d+\.jaxkd', path.name)
    data, values = path.read_bytes(), []
    while data:  # records of length, checksum, content, checksum
        size = int.from_bytes(data[:8], 'little')
        event = event_pb2.Event.FromString(data[12:12 + size])
        values += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + size:]
    assert values == [(3, 'loss', 0.25)] and socket.gethostname().encode() not in path.read_bytes()
