import contextlib
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import prepare, source, transform
from jaxkd.data.stores import identity, reader, writer

SETTINGS = {'source': {'name': 'toy', 'root': 'a'}, 'order': ['volume'],
            'transforms': {'volume': {'size': [40, 30, 2]}}}


class Toy(source.Source):
    """Cases with a large array, a small one, a number, a nested number and a text."""

    name = 'toy'

    def __init__(self, n=7, shape=(2, 30, 40, 1)):
        self.cases = tuple(source.Case(f'c{i}', f'p{i}') for i in range(n))
        self.targets = {'label': np.arange(n, dtype=np.int32) % 3}
        self.shape, self.asked = shape, []

    def __getitem__(self, i):
        self.asked.append(i)
        values = np.random.default_rng(i).integers(-9999, 9999, self.shape).astype(np.int16)
        return dict(ct=values, prior=np.float32([[0.1, np.nan], [i, 1 / 3]]), label=self.targets['label'][i],
                    present={'ct': np.float32(1), 't1': np.float32(i % 2)}, text=f'Report {i}. \u00e4' * (i != 2))


def double(record):
    return {**record, 'ct': record['ct'] * np.int16(2)}


def same(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, dict):
            same(value, b[key])
        elif isinstance(value, (str, list)):
            assert value == b[key] and type(value) is type(b[key])
        else:
            np.testing.assert_array_equal(value, b[key])
            assert value.dtype == b[key].dtype


def write(path, toy=None, settings=SETTINGS, transforms=(double,), **given):
    return writer.write(toy or Toy(), transforms, path, settings, **given)


class Silent(Toy):
    """Cases without a text: nothing but arrays of one shape."""

    def __getitem__(self, i):
        return {k: v for k, v in super().__getitem__(i).items() if k != 'text'}


def written(path):
    """The cases that are on disk, also of an unfinished store."""
    return np.flatnonzero(np.load(path / 'sums.npy').any(1)).tolist()


def contents(path):
    return {p.name: p.read_bytes() for p in path.iterdir() if p.name != '.lock'}


@pytest.mark.parametrize('threads', [1, 4])
def test_gives_back_what_was_written(tmp_path, threads):
    toy = Toy()
    made = write(tmp_path / 'x', toy, threads=threads)
    assert (len(made) == 7 and [made.id(i) for i in range(7)] == [f'c{i}' for i in range(7)]
            and made.settings == SETTINGS)
    for i in range(7):
        same(made[i], double(toy[i]))
        assert made.text(i) == double(toy[i])['text']
    rest = 'rest-00000-of-00001.array_record'
    assert sorted(contents(tmp_path / 'x')) == ['ct.npy', 'ids.npy', 'kinds.npy', 'label.npy', 'present.ct.npy',
                                                'present.t1.npy', 'prior.npy', rest, 'store.json', 'sums.npy']
    assert made.nbytes == 7 * (2 * 30 * 40 * 2 + 4 * 4 + 4 + 8) + (tmp_path / 'x' / rest).stat().st_size
    made.verify()


def test_large_arrays_are_views_of_one_map(tmp_path):
    made = write(tmp_path)
    record = made[3]
    assert np.shares_memory(record['ct'], made.arrays['ct']) and not record['ct'].flags.writeable
    assert type(record['ct']) is np.ndarray and isinstance(made.arrays['ct'].base, np.memmap)
    plain = np.load(tmp_path / 'ct.npy', allow_pickle=False)  # a standard file, for other programs
    np.testing.assert_array_equal(plain[3], record['ct'])
    assert made.arrays['label'].dtype == np.int32 and isinstance(record['label'], np.int32)


def test_pickles_by_path(tmp_path):
    made = write(tmp_path)
    data = pickle.dumps(made)
    assert len(data) < 2000
    same(pickle.loads(data)[2], made[2])


def test_a_complete_store_is_not_written_again(tmp_path):
    write(tmp_path)
    toy, before = Toy(), contents(tmp_path)
    write(tmp_path, toy)
    assert toy.asked == [] and contents(tmp_path) == before


def test_other_settings_are_refused_by_name(tmp_path):
    write(tmp_path)
    for change, why in (({'source': {'name': 'toys', 'root': 'a'}}, "source.name was 'toy', and is 'toys' now"),
                        ({'transforms': {'volume': {'size': [40, 30, 3]}}}, r'volume.size was \[40, 30, 2\]'),
                        ({'order': []}, r"order was \['volume'\]"),
                        ({'cases_and_labels': 'x'}, 'ids or labels of its cases')):
        for use in (reader.open, lambda path, settings: write(path, settings=settings)):
            with pytest.raises(errors.ConfigError, match=why):
                use(tmp_path, SETTINGS | change)
    assert len(reader.open(tmp_path)) == 7 and len(reader.open(tmp_path, SETTINGS)) == 7


def test_settings_of_a_data_config():
    hp = ConfigDict(dict(source=dict(name='toy', root='a'), transforms=('volume', 'text', 'image'),
                         volume=dict(size=(1, 2)), text={}, image={}))
    toy = Toy()
    assert transform.shared_prefix(hp) == 1  # text learns from training cases: what comes after it is not kept
    found = identity.settings(hp, toy)
    assert found['order'] == ['volume'] and found['transforms'] == {'volume': {'size': [1, 2]}}
    assert found['source'] == {'name': 'toy', 'root': 'a'} and json.loads(json.dumps(found)) == found
    toy.targets['label'] = toy.targets['label'].copy()
    toy.targets['label'][4] += 1  # a label that was corrected in the table
    assert identity.settings(hp, toy)['cases_and_labels'] != found['cases_and_labels']
    assert identity.settings(hp, Toy(6))['cases_and_labels'] != found['cases_and_labels']


def test_data_and_store_may_move(tmp_path):
    write(tmp_path)
    for root in ('b', '/another/disk', '', None):
        moved = SETTINGS | {'source': {'name': 'toy', 'root': root}}
        assert len(reader.open(tmp_path, moved)) == len(write(tmp_path, settings=moved)) == 7
    assert reader.open(tmp_path).settings['source']['root'] == 'a'  # the reader of the file may want to know


class Scans(Toy):
    """Each case lies in a file, every third one in a folder of two as well."""

    def __init__(self, root):
        super().__init__(6)
        self.root = root
        for i in range(6):
            (root / f'{i}.nii').write_bytes(bytes(100 + i))
            if i % 3 == 0:
                (root / f'{i}').mkdir(parents=True)
                for part in 'ab':
                    (root / f'{i}' / part).write_bytes(bytes(10))
                (root / f'{i}' / '.hidden').write_bytes(bytes(5))  # as file managers leave

    def paths(self, i):
        return (str(self.root / f'{i}.nii'), *([str(self.root / f'{i}')] if i % 3 == 0 else []))


def test_a_scan_that_was_replaced_is_noticed_by_its_size(tmp_path):
    hp = ConfigDict(dict(source=dict(name='toy', root='a'), transforms=()))
    for name in 'ab':
        (tmp_path / name).mkdir()
    toy, copy = Scans(tmp_path / 'a'), Scans(tmp_path / 'b')  # written at another time, elsewhere
    settings = identity.settings(hp, toy)
    assert identity.sizes(toy)[3:5].tolist() == [[103, 20], [104, -1]] and identity.sizes(Toy()) is None
    writer.write(toy, (), tmp_path / 'x', settings)
    reader.open(tmp_path / 'x', identity.settings(hp, copy), copy)
    (tmp_path / 'b' / '4.nii').write_bytes(bytes(99))
    with pytest.raises(errors.ConfigError, match=r'x was.*case c4 had files of \[104\] bytes, and has \[99\] now'):
        reader.open(tmp_path / 'x', identity.settings(hp, copy), copy)
    (tmp_path / 'b' / '3' / 'c').write_bytes(b'one slice more')
    with pytest.raises(errors.ConfigError, match=r'case c3 had files of \[103, 20\] bytes, and has \[103, 34\] now'):
        writer.write(copy, (), tmp_path / 'x', identity.settings(hp, copy))
    copy.targets['label'] = copy.targets['label'] + 1  # that other cases have other files is no news
    with pytest.raises(errors.ConfigError, match='ids or labels of its cases were others'):
        reader.open(tmp_path / 'x', identity.settings(hp, copy), copy)
    (tmp_path / 'b' / '2.nii').unlink()
    with pytest.raises(errors.MissingInput, match='Case c2: .*2.nii cannot be read'):
        identity.sizes(copy)


def test_what_is_no_store(tmp_path):
    with pytest.raises(errors.ConfigError, match='data.folder is empty.*--config.data.folder=DIR'):
        reader.open('')
    with pytest.raises(errors.MissingInput, match='holds no prepared cases.*jaxkd.data.prepare'):
        reader.open(tmp_path)
    with pytest.raises(errors.MissingInput, match='holds no prepared'):
        reader.open(tmp_path / 'none')
    with pytest.raises(errors.CannotWrite):
        (tmp_path / 'file').write_text('')
        write(tmp_path / 'file' / 'x')


@pytest.mark.parametrize('name, damage', [
    ('ct.npy', lambda b: b[:-1]), ('ct.npy', lambda b: b[:100]), ('ct.npy', lambda b: b + b'\0'),
    ('ct.npy', lambda b: b''), ('ct.npy', None), ('ct.npy', lambda b: b.replace(b"'<i2'", b"'>i2'")),
    ('ct.npy', lambda b: b.replace(b'False', b'True ')),
    ('rest-00000-of-00001.array_record', lambda b: b[:-9]), ('rest-00000-of-00001.array_record', None),
    ('sums.npy', lambda b: b[:-9]), ('kinds.npy', None), ('ids.npy', lambda b: b''), ('label.npy', lambda b: b[:-1]),
    ('store.json', lambda b: b[:200]), ('store.json', lambda b: b'{}'), ('store.json', lambda b: b'[1]')])
def test_damage_of_size_or_form_is_refused_at_once(tmp_path, name, damage):
    write(tmp_path)
    file = tmp_path / name
    if damage:
        file.write_bytes(damage(file.read_bytes()))
    else:
        file.unlink()
    with pytest.raises(errors.Damaged, match=name):
        reader.open(tmp_path)


def test_an_object_array_is_not_unpickled(tmp_path):
    write(tmp_path)
    np.save(tmp_path / 'ct.npy', np.array([print], object), allow_pickle=True)
    with pytest.raises(errors.Damaged, match='ct.npy'):
        reader.open(tmp_path)


def test_verify_names_the_damaged_case(tmp_path):
    made = write(tmp_path)
    with open(tmp_path / 'ct.npy', 'r+b') as f:
        f.seek(-2 * 2400 * 2 - 10, os.SEEK_END)  # in the third case from the end
        byte = f.read(1)
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte[0] ^ 1]))
    with pytest.raises(errors.Damaged, match=r'c4 \(ct\) has changed'):
        made.verify()


def test_cases_that_differ_are_refused_by_name(tmp_path):
    class Odd(Toy):
        def __getitem__(self, i):
            record = super().__getitem__(i)
            return {k: v for k, v in record.items() if k != 'prior'} if i == 5 else record
    with pytest.raises(errors.BadData, match=r'Case c5: "prior" is absent, but float32 \[2, 2\] in the first case'):
        write(tmp_path / 'x', Odd())

    class Longer(Toy):
        def __getitem__(self, i):
            return super().__getitem__(i) | ({'ct': np.zeros((2, 30, 41, 1), np.int16)} if i == 3 else {})
    with pytest.raises(errors.BadData, match=r'Case c3: "ct" is int16 \[2, 30, 41, 1\]'):
        write(tmp_path / 'y', Longer())

    class Raw(Toy):
        def __getitem__(self, i):
            return {'scan': object()}
    with pytest.raises(errors.ConfigError, match='"scan" of a prepared case is of type object, not an array'):
        write(tmp_path / 'z', Raw(), transforms=())


def test_goes_on_after_a_bad_case(tmp_path):
    class Bad(Silent):
        bad = (4,)

        def __getitem__(self, i):
            if i in self.bad:
                raise errors.BadData(f'c{i} is cut short.')
            return super().__getitem__(i)
    toy = Bad()
    with pytest.raises(errors.BadData, match='c4 is cut'):
        write(tmp_path / 'x', toy, threads=1)
    with pytest.raises(errors.MissingInput, match='unfinished'):
        reader.open(tmp_path / 'x')
    done = written(tmp_path / 'x')
    assert done[:4] == [0, 1, 2, 3]  # 5 may have begun before the others were called off
    # Two of them are lost as by a power cut: they are made again, no other.
    with open(tmp_path / 'x' / 'ct.npy', 'r+b') as f:
        f.seek(-7 * 4800, os.SEEK_END)
        f.write(bytes(2 * 4800))
    toy.bad, toy.asked = (), []
    write(tmp_path / 'x', toy, threads=1)
    assert toy.asked == [i for i in range(7) if i not in done[2:]]
    write(tmp_path / 'y', Silent())
    assert contents(tmp_path / 'x') == contents(tmp_path / 'y')


def test_other_settings_do_not_go_on(tmp_path):
    class Stops(Toy):
        def __getitem__(self, i):
            if i == 3:
                raise errors.BadData('c3 is cut short.')
            return super().__getitem__(i)
    with pytest.raises(errors.BadData):
        write(tmp_path, Stops())
    with pytest.raises(errors.ConfigError, match='order was'):
        write(tmp_path, settings=SETTINGS | {'order': []})


def test_one_writer_at_a_time(tmp_path):
    inside, leave = threading.Event(), threading.Event()

    class Waits(Toy):
        def __getitem__(self, i):
            inside.set()
            leave.wait(20)
            return super().__getitem__(i)
    first = threading.Thread(target=write, args=(tmp_path, Waits()))
    first.start()
    inside.wait(20)
    try:
        with pytest.raises(errors.CannotWrite, match='another process is preparing'):
            write(tmp_path)
    finally:
        leave.set()
        first.join()
    assert len(reader.open(tmp_path, SETTINGS)) == 7


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(writer.shutil, 'disk_usage', lambda path: ConfigDict(dict(free=30_000)))
    with pytest.raises(errors.CannotWrite, match='7 cases take 0.0 GiB, free are'):
        write(tmp_path)
    assert not list(tmp_path.glob('*.npy'))


# The command, with the user's own source, which takes its time

SLOW = '''
import time
import numpy as np
from jaxkd.data.source import Case, Source
DEFAULTS = dict(n=12, wait=0.0)

class Slow(Source):
    name, note, labels, skipped = 'slow', '', ('a', 'b'), ()
    def __init__(self, hp):
        self.cases = tuple(Case(f'c{i}', f'p{i}') for i in range(hp.n))
        self.wait = hp.wait
    def __getitem__(self, i):
        time.sleep(self.wait)
        ct = np.random.default_rng(i).integers(-999, 999, (8, 16, 16, 1))
        return dict(ct=ct.astype(np.int16), label=np.int32(i % 2))

build = Slow
'''
CONFIG = '''
from ml_collections import ConfigDict
VARIANTS = {'folder': lambda config: None}
def get_config(arg=''):
    return ConfigDict(dict(data=dict(source=dict(name='toys.slow'))))
'''


@pytest.fixture
def command(tmp_path, monkeypatch):
    (tmp_path / 'toys').mkdir()
    (tmp_path / 'toys' / 'slow.py').write_text(SLOW)
    (tmp_path / 'x.py').write_text(CONFIG)
    root = pathlib.Path(__file__).parents[2]
    environment = {**os.environ, 'PYTHONPATH': f'{root}{os.pathsep}{tmp_path}'}
    monkeypatch.syspath_prepend(str(tmp_path))

    def start(*more):
        return subprocess.Popen([sys.executable, '-m', 'jaxkd.data.prepare', '--config', 'x.py', *more], cwd=tmp_path,
                                env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return start


def test_killed_in_the_middle_and_started_again(tmp_path, command):
    slow = ('--out', 'cut', '--config.data.source.wait=0.2')
    process = command(*slow)
    sums, lines = tmp_path / 'cut' / 'sums.npy', 0
    deadline = time.monotonic() + 60
    while lines < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
        with contextlib.suppress(ValueError, EOFError):  # just being made
            lines = len(written(sums.parent)) if sums.exists() else 0
    process.send_signal(signal.SIGKILL)
    process.communicate()
    lines = len(written(sums.parent))
    assert process.returncode == -signal.SIGKILL and 4 <= lines < 12 and not (tmp_path / 'cut' / 'store.json').exists()
    output, error = command(*slow, '--verify').communicate()
    assert '12 cases, 0.00 GiB' in output and 'checksums agree' in output, error
    assert '--config.data.cache=disk --config.data.folder=cut' in output
    hp = ConfigDict(dict(source=dict(name='toys.slow', n=12, wait=0.2), transforms=(), threads=12))
    whole = prepare.prepare(hp, tmp_path / 'whole')
    assert contents(tmp_path / 'cut') == contents(tmp_path / 'whole')
    same(whole[7], prepare.prepare(hp, tmp_path / 'cut')[7])


def test_a_signal_ends_the_command_between_two_cases(tmp_path, command, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    record = writer._record

    def signalled(source, transforms, i):
        if i == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return record(source, transforms, i)
    with monkeypatch.context() as patch:
        patch.setattr(writer, '_record', signalled)
        assert prepare.main(['--config', 'x.py', '--out', 'y']) == 75
    said = capsys.readouterr().err
    assert 'SIGTERM: asked to stop' in said and 'stopped: y: stopped. Finished steps are saved' in said
    assert not (tmp_path / 'y' / 'store.json').exists()
    assert prepare.main(['--config', 'x.py', '--out', 'y', '--verify']) == 0
    assert '12 cases' in capsys.readouterr().out


def test_the_command_in_this_process(tmp_path, command, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert prepare.main(['--config', 'x.py', '--config.data.source.n=3']) == 0
    assert '3 cases' in (out := capsys.readouterr().out) and 'data.folder=prepared/x' in out
    assert prepare.main(['--config', 'x.py:folder', '--config.data.source.n=4']) == 0  # another variant, another folder
    assert 'data.folder=prepared/x_folder' in capsys.readouterr().out
    assert prepare.main(['--config', 'x.py', '--config.data.source.n=4']) == 2
    assert 'source.n was 3, and is 4 now' in capsys.readouterr().err
    assert prepare.main(['--config', 'x.py', '--stage', 'student']) == 2
    assert prepare.main(['--config', 'x.py', '--out', 'y', '--config.data.source.n=0']) == 65
    assert 'holds no case' in capsys.readouterr().err
    assert prepare.main(['--config', 'none.py']) == 2
    with pytest.raises(SystemExit):
        prepare.main(['--config', 'x.py', '--threads=3'])
