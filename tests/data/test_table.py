"""Tables plain or packed, and headers that end in columns without a name."""
import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd import errors
from jaxkd.data.formats import csv_table

TEXT = 'id,text\n1,"two\nlines"\n2, b \n'
ROWS = [(2, ['1', 'two\nlines']), (3, ['2', 'b'])]


@pytest.mark.parametrize('encoding, end', [('utf-8', '\n'), ('utf-8-sig', '\r\n'), ('utf-8', '\r')])
@pytest.mark.parametrize('name', ['t.csv', 't.csv.gz'])  # the name decides nothing
@pytest.mark.parametrize('pack', [bytes, gzip.compress])
def test_gzip_or_not_is_the_same_table(tmp_path, encoding, end, name, pack):
    (tmp_path / name).write_bytes(pack(TEXT.replace('\n', end).encode(encoding)))
    columns, rows = csv_table.read(tmp_path / name, ('id',))
    assert columns == ['id', 'text'] and [(n, [c.replace(end, '\n') for c in cells]) for n, cells in rows] == ROWS


def test_find_prefers_the_plain_table(tmp_path):
    # neither: what is then missing has this name
    assert csv_table.find_file(tmp_path, 't.csv') == str(tmp_path / 't.csv')
    (tmp_path / 't.csv.gz').write_bytes(gzip.compress(TEXT.encode()))
    assert csv_table.find_file(tmp_path, 't.csv') == str(tmp_path / 't.csv.gz')
    (tmp_path / 't.csv').write_text(TEXT)
    assert csv_table.find_file(tmp_path, 't.csv') == str(tmp_path / 't.csv')


@given(st.integers(2, 10_000), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_damaged_gzip_file_is_bad_data_or_the_same_table(tmp_path_factory, at, byte):
    whole = bytearray(gzip.compress(TEXT.encode(), mtime=0))
    path = tmp_path_factory.getbasetemp() / 'damaged.csv.gz'
    whole[at % (len(whole) - 2) + 2] = byte
    path.write_bytes(whole)
    try:
        assert csv_table.read(path, ('id',))[1] == ROWS  # a time stamp, the byte that stood there
    except errors.BadData as e:
        assert 'damaged.csv.gz' in str(e)
    path.write_bytes(whole[:3 + at % (len(whole) - 4)])
    with pytest.raises(errors.BadData, match=r'damaged\.csv\.gz'):
        csv_table.read(path, ('id',))


@pytest.mark.parametrize('piece', [b'1,2\n', b'\n', b'0', b'1,'])
def test_what_unpacks_without_end_is_refused(tmp_path, piece, monkeypatch):
    monkeypatch.setattr(csv_table, '_UNPACKED', (2**16, 100))
    (tmp_path / 'bomb.csv').write_bytes(gzip.compress(b'a,b\n' + piece * (2**22 // len(piece))))
    with pytest.raises(errors.BadData, match=r'bomb\.csv.*(unpacks to far more|field larger|cells under)'):
        csv_table.read(tmp_path / 'bomb.csv', ())
    (tmp_path / 'plain.csv').write_bytes(b'a,b\n' + b'1,2\n' * 2**16)
    assert len(csv_table.read(tmp_path / 'plain.csv', ())[1]) == 2**16  # as long as a plain file is


def test_columns_without_a_name_may_end_a_header(tmp_path):
    (tmp_path / 't.csv').write_text('a,b [x,y],,,\n1,2,3\n4,5,6,,,\n')
    columns, rows = csv_table.read(tmp_path / 't.csv', ('a',))
    assert columns[:3] == ['a', 'b [x', 'y]'] and [cells[:3] for _, cells in rows] == [['1', '2', '3'], ['4', '5', '6']]
    for row in ('1,2', '1,2,3,,,,', '1,2,3,4,5,6,7'):
        (tmp_path / 't.csv').write_text(f'a,b [x,y],,,\n{row}\n')
        with pytest.raises(errors.BadData, match='row 2: . cells under 6 columns'):
            csv_table.read(tmp_path / 't.csv', ())
