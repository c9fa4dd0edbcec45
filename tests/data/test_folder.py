import concurrent.futures
import csv
import pickle
import re

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import errors, main
from jaxkd.data import prepare
from jaxkd.data.sources import folder

HEADER = ['patient_id', 'image', 'text', 'edema', 'effusion', 'view']
ROWS = [
    ['p1', 'img/a.png', 'Clear lungs, no edema.', '0', '1', 'PA'],
    ['p1', 'img/b.png', 'Edema.', '1', '', 'AP'],
    ['p2', 'img/c.jpg', 'Effusion "possible".', '-1', '0.0', 'PA'],
]


@pytest.fixture
def make(tmp_path):
    def make(header=HEADER, rows=ROWS, boxes=None, encoding='utf-8', end='\n', **given):
        (tmp_path / 'img').mkdir(exist_ok=True)
        for i, name in enumerate(('a.png', 'b.png', 'c.jpg')):
            Image.fromarray(np.full((20, 30), 40 * i, np.uint8)).save(tmp_path / 'img' / name)
        for name, head, body in (('cases.csv', header, rows),
                                 ('boxes.csv', ['image', 'label', 'x', 'y', 'w', 'h'], boxes)):
            if body is not None:
                with open(tmp_path / name, 'w', newline='', encoding=encoding) as f:
                    csv.writer(f, lineterminator=end).writerows([head, *body])
        return folder.build(ConfigDict({**folder.DEFAULTS, 'root': str(tmp_path), **given}))
    return make


def changed(row, column, value):
    rows = [list(r) for r in ROWS]
    rows[row][HEADER.index(column)] = value
    return rows


def with_column(name, *values):
    return [*HEADER, name], [[*row, value] for row, value in zip(ROWS, values, strict=True)]


def test_a_good_folder(make):
    boxes = [['img/a.png', 'effusion', '1', '2', '3.5', '4'], ['img/a.png', '', '0', '0', '30', '20']]
    source = make(boxes=boxes, groups=('view',))
    assert source.name == 'folder' and source.note == '' and source.skipped == ()
    assert source.labels == ('edema', 'effusion') and len(source) == 3
    assert [c.id for c in source.cases] == ['img/a.png', 'img/b.png', 'img/c.jpg']
    assert [c.patient for c in source.cases] == ['p1', 'p1', 'p2']
    assert source.cases[1].groups == {'view': 'AP'}
    first, second, third = (source[i] for i in range(3))
    assert first['image'].shape == (20, 30) and first['text'] == 'Clear lungs, no edema.' == source.text(0)
    np.testing.assert_array_equal(first['label'], np.float32([0, 1]))
    np.testing.assert_array_equal(second['label'], np.float32([1, np.nan]))
    np.testing.assert_array_equal(third['label'], np.float32([-1, 0]))
    np.testing.assert_allclose(first['boxes'], [[1, 1, 2, 3.5, 4], [-1, 0, 0, 30, 20]])
    assert second['boxes'].shape == (0, 5) and first['boxes'].dtype == first['label'].dtype == np.float32


def test_findings_are_cells_of_the_table_and_no_labels(make):
    header, rows = with_column('age', '1', '63', '')
    header, rows = [*header, 'density'], [[*row, cell] for row, cell in zip(rows, ('B', ' C ', ''))]
    source = make(header, rows, findings=('age', 'density'))
    assert source.labels == make().labels and source.table_without_image
    assert [source.table(i) for i in range(3)] == [[{'age': '1', 'density': 'B'}], [{'age': '63', 'density': 'C'}], []]
    assert source[1]['table'] == source.table(1) and source[1]['text'] == make()[1]['text']
    assert 'table' not in make(header[:-2], [row[:-2] for row in rows])[0]
    fewer = pickle.loads(pickle.dumps(source)).without({0: 'bad'})
    assert [fewer.table(i) for i in range(2)] == [source.table(1), []]
    assert fewer.identity()['findings'] == {'img/b.png': ['age: 63', 'density: C'], 'img/c.jpg': []}  # of a store
    for wrong in (dict(findings=('edema',), labels=('edema', 'effusion')), dict(findings=('patient_id',))):
        with pytest.raises(errors.ConfigError, match='that column is a label, or tells patient'):
            make(header, rows, **wrong)
    with pytest.raises(errors.BadData, match='no column "weight"'):
        make(header, rows, findings=('weight',))


def test_a_teacher_reads_the_table_in_the_place_of_reports(tmp_path, capsys):
    images = tmp_path / 'images'
    images.mkdir()
    lines = ['patient_id,image,Edema,density,age']
    for i in range(24):
        Image.fromarray(np.full((20, 20), 9 * i, np.uint8)).save(images / f'{i}.png')
        lines.append(f'p{i},images/{i}.png,{i % 2},{"ABC"[i % 3]},{40 + i}')
    (tmp_path / 'cases.csv').write_text('\n'.join(lines))
    columns = ['--config.data.source.findings=density,age', '--config.data.table.sets=density',
               '--config.data.table.numbers=age']
    for spec in ('folder,table', 'folder,table,tiny', 'folder,tiny,table'):
        assert main.main(['--config', f'configs/mmpkd_cxr.py:{spec}', '--data', str(tmp_path), *columns,
                          '--dry_run']) == 0
        said = capsys.readouterr().out
        assert re.search(r'teacher +supervised +tabular +row', said) and '(16, 4) ' in said, 'three words and a number'
    prepared = ['--config', 'configs/mmpkd_cxr.py:folder,table,tiny', '--data', str(tmp_path), *columns]
    assert prepare.main([*prepared, '--out', str(tmp_path / 'store')]) == 0
    on_disk = ['--config.data.cache=disk', f'--config.data.folder={tmp_path / "store"}', '--dry_run']
    assert main.main([*prepared, *on_disk]) == 0
    (tmp_path / 'cases.csv').write_text('\n'.join(lines).replace(',40', ',41'))
    capsys.readouterr()
    assert main.main([*prepared, *on_disk]) == 2 and 'was prepared with other settings' in capsys.readouterr().err
    assert main.main(['--config', 'configs/mmpkd_cxr.py:folder,table', '--data', str(tmp_path), '--dry_run']) == 2
    assert 'data.table reads no column' in capsys.readouterr().err


def test_spreadsheet_habits(make):
    plain = make()
    odd = make(rows=[*ROWS, [''] * 6], encoding='utf-8-sig', end='\r\n')
    assert odd.cases == plain.cases and odd.texts == plain.texts and odd.labels == plain.labels


def test_pickles_and_serves_threads(make):
    source = make(boxes=[['img/a.png', '', '0', '0', '30', '20']])
    copy = pickle.loads(pickle.dumps(source))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for i, record in zip(list(range(3)) * 20, pool.map(copy.__getitem__, list(range(3)) * 20)):
            np.testing.assert_array_equal(record['image'], source[i]['image'])
    copy[0]['label'][:] = 9
    copy[0]['boxes'][:] = 9
    assert copy[0]['label'].max() == 1 and copy[0]['boxes'].max() == 30  # a record is the caller's own


def test_reports_in_files(make, tmp_path):
    header = ['text_file' if c == 'text' else c for c in HEADER]
    for name, body in (('a', 'Clear.'), ('b', '\ufeffKerley-Linien für Ödem\r\n'), ('c', 'x')):
        (tmp_path / f'{name}.txt').write_bytes(body.encode())
    rows = [[*row[:2], f'{name}.txt', *row[3:]] for row, name in zip(ROWS, 'abc')]
    source = make(header, rows)
    assert source.text(1) == source[1]['text'] == 'Kerley-Linien für Ödem'
    (tmp_path / 'a.txt').write_bytes(b'')
    (tmp_path / 'b.txt').write_bytes(b'\xff\xfe')
    (tmp_path / 'c.txt').unlink()
    for i, kind, why in ((0, errors.BadData, 'empty_text'), (1, errors.BadData, 'UTF-8'),
                         (2, errors.MissingInput, 'c.txt')):
        with pytest.raises(kind, match=why):
            source[i]
    assert make(header, rows, empty_text='ok')[0]['text'] == ''


def test_without_reports(make):
    header = [c for c in HEADER if c != 'text']
    rows = [[*row[:2], *row[3:]] for row in ROWS]
    with pytest.raises(errors.BadData, match='neither "text" nor "text_file".*empty_text'):
        make(header, rows)
    assert make(header, rows, empty_text='ok')[0]['text'] == ''
    assert make(rows=changed(1, 'text', ' '), empty_text='ok')[1]['text'] == ''


def test_listed_labels_choose_and_order(make):
    header, rows = with_column('age', '1', '44', '60')
    source = make(header, rows, labels=('effusion',))
    assert source.labels == ('effusion',) and source[0]['label'].tolist() == [1]
    assert make(header, rows, labels=('effusion', 'edema'))[0]['label'].tolist() == [1, 0]
    with pytest.raises(errors.BadData, match='row 3: column "age".*list the label columns'):
        make(header, rows)
    with pytest.raises(errors.BadData, match='no column "edma".*"edema"'):
        make(labels=('edma',))


BAD_ROWS = [  # what is wrong, the table, what the error says
    ('label value', changed(1, 'edema', 'maybe'), r'cases.csv, row 3: column "edema" of case img/b.png is '
                                                  r'not 1, 0'),
    ('no patient', changed(2, 'patient_id', ' '), r'row 4: column "patient_id" is empty'),
    ('no image', changed(0, 'image', ''), r'row 2: column "image" is empty'),
    ('twice', changed(1, 'image', 'img/a.png'), r'row 3: column "image" names img/a.png a second time'),
    ('twice, in another letter case', changed(1, 'image', 'IMG/a.PNG'), 'column "image" names IMG/a.PNG a second time'),
    ('twice, spelled otherwise', changed(1, 'image', './img//a.png'), 'a second time'),
    ('parent', changed(1, 'image', '../b.png'), r'row 3: column "image" must not leave the root'),
    ('parent inside', changed(1, 'image', 'img/../../b.png'), 'must not leave the root'),
    ('absolute', changed(1, 'image', '/etc/passwd'), 'must not leave the root'),
    ('drive', changed(1, 'image', 'C:\\b.png'), 'must not leave the root'),
    ('no report', changed(1, 'text', '  '), r'row 3: column "text" of case img/b.png is '
                                            r'empty.*empty_text="ok"'),
]


@pytest.mark.parametrize('rows, why', [case[1:] for case in BAD_ROWS], ids=[case[0] for case in BAD_ROWS])
def test_a_bad_row_fails_or_is_skipped(make, rows, why):
    with pytest.raises(errors.BadData, match=why):
        make(rows=rows)
    source = make(rows=rows, on_error='skip')
    (case, reason), = source.skipped
    assert len(source) == 2 and len(source.values) == 2 and len(source.texts) == 2
    with pytest.raises(errors.BadData, match=why):
        raise errors.BadData(reason)
    assert 'maybe' not in reason  # cells are never quoted, paths are


def test_a_table_that_is_no_such_table(make, tmp_path):
    header, rows = with_column('split', 'train', 'train', 'tset')
    for args, why in [
        (([c if c != 'image' else 'Image' for c in HEADER], ROWS), 'no column "image".*"Image"'),
        ((HEADER, [ROWS[0], ROWS[1][:-1], ROWS[2]]), 'row 3: 5 cells under 6 columns'),
        ((HEADER, [ROWS[0], [*ROWS[1], 'x'], ROWS[2]]), 'row 3: 7 cells'),
        (([*HEADER[:-1], 'edema'], ROWS), 'two columns called "edema"'),
        ((header, rows), 'row 4: column "split".*"test"'),
        (([*HEADER, 'text_file'], [[*r, 'x'] for r in ROWS]), 'both "text" and "text_file"'),
        ((['patient_id', 'image', 'text'], [r[:3] for r in ROWS]), 'no label column'),
        ((HEADER, []), 'no label column'),
        ((['patient_id;image;text'], []), 'separated by semicolons'),
    ]:
        with pytest.raises(errors.BadData, match=why):
            make(*args)
    table = tmp_path / 'cases.csv'
    for data, why in ((b'', 'no column'), (b'patient_id,image,text,y\np,a.png,"open,1\n', 'quote'),
                      ('patient_id,image,text,y\np,a.png,é,1\n'.encode('latin1'), 'UTF-8'),
                      (b'\xff\xfea\0b', 'UTF-8')):
        table.write_bytes(data)
        with pytest.raises(errors.BadData, match=why):
            make(rows=None)
    table.unlink()
    with pytest.raises(errors.MissingInput, match='cases.csv'):
        make(rows=None)
    table.mkdir()
    with pytest.raises(errors.BadData, match='cannot be read'):
        make(rows=None)
    with pytest.raises(errors.MissingInput, match='root'):
        make(rows=None, root=str(tmp_path / 'none'))
    for key in ('on_error', 'empty_text'):
        with pytest.raises(errors.ConfigError, match=key):
            make(rows=None, **{key: 'maybe'})


def test_patient_in_two_given_parts(make):
    header, rows = with_column('split', 'train', 'test', '')
    for on_error in ('fail', 'skip'):  # leaving a case out would hide that the table is wrong
        with pytest.raises(errors.BadData, match=r'img/a.png \(train\) and img/b.png \(test\) belong to one'):
            make(header, rows, on_error=on_error)
    header, rows = with_column('split', 'train', '', 'test')
    assert [c.split for c in make(header, rows).cases] == ['train', '', 'test']


def test_a_study_has_one_patient_and_one_report(make):
    header, rows = with_column('study_id', 's1', 's2', 's3')
    assert [c.study for c in make(header, rows).cases] == ['s1', 's2', 's3']
    for shared in (('s1', 's1', 's3'), ('s1', 's2', 's1')):
        with pytest.raises(errors.BadData, match='column "study_id" of case'):
            make(*with_column('study_id', *shared))


def test_boxes(make):
    box = ['img/b.png', 'edema', '1', '2', '3', '4']
    for at, value, why in [(1, 'edma', 'row 2: column "label".*"edema"'), (2, '-1', 'x, y >= 0'), (4, '0', 'w, h > 0'),
                           (5, 'nan', 'numbers'), (3, 'x', 'numbers'), (4, 'inf', 'numbers')]:
        bad = [*box[:at], value, *box[at + 1:]]
        with pytest.raises(errors.BadData, match=why):
            make(boxes=[bad])
        source = make(boxes=[bad], on_error='skip')
        assert [c.id for c in source.cases] == ['img/a.png', 'img/c.jpg']
        assert source.skipped[0][0] == 'img/b.png'
    with pytest.raises(errors.BadData, match='no image img/z.png'):
        make(boxes=[['img/z.png', *box[1:]]], on_error='skip')
    wide = make(boxes=[[*box[:4], '28', '4'], [*box[:4], '30', '4']])  # to 29 and 31 (rounding) of 30
    assert len(wide[1]['boxes']) == 2
    with pytest.raises(errors.BadData, match=r'img/b.png: a box reaches to \(32, 6\), the image only'):
        make(boxes=[[*box[:4], '31', '4']])[1]
    with pytest.raises(errors.MissingInput, match='other.csv'):
        folder.build(ConfigDict({**folder.DEFAULTS, 'root': wide.files[0][0], 'boxes': 'other.csv'}))


def test_bad_files_fail_when_read_or_are_skipped_at_the_start(make, tmp_path):
    header = [*HEADER]
    rows = [*ROWS, ['p3', 'gone.png', 'x', '0', '0', 'PA'], ['p4', 'cut.png', 'x', '0', '0', 'PA'],
            ['p5', 'link.png', 'x', '0', '0', 'PA'], ['p6', 'img', 'x', '0', '0', 'PA'],
            ['p7', 'inside.png', 'x', '0', '0', 'PA']]
    make()
    (tmp_path / 'cut.png').write_bytes((tmp_path / 'img' / 'a.png').read_bytes()[:-30])
    outside = tmp_path.parent / f'{tmp_path.name}_outside.png'
    outside.write_bytes((tmp_path / 'img' / 'a.png').read_bytes())
    (tmp_path / 'link.png').symlink_to(outside)
    (tmp_path / 'inside.png').symlink_to(tmp_path / 'img' / 'a.png')
    source = make(header, rows)
    assert len(source) == 8 and source[7]['image'].shape == (20, 30)
    for i, kind, why in ((3, errors.MissingInput, 'gone.png'), (4, errors.BadData, 'cut.png'),
                         (5, errors.BadData, 'link.png is a link that leaves'),
                         (6, errors.BadData, 'regular file')):
        with pytest.raises(kind, match=why):
            source[i]
    sources = [make(header, rows, on_error='skip') for _ in range(3)]
    for source in sources:
        assert [c.id for c in source.cases] == ['img/a.png', 'img/b.png', 'img/c.jpg', 'inside.png']
        assert [name for name, _ in source.skipped] == ['gone.png', 'cut.png', 'link.png', 'img']
        assert all(name in reason for name, reason in source.skipped)
    for name in ('a.png', 'b.png', 'c.jpg'):
        (tmp_path / 'img' / name).unlink()
    hp = ConfigDict({**folder.DEFAULTS, 'root': str(tmp_path), 'on_error': 'skip'})
    with pytest.raises(errors.BadData, match='no usable case.*first reason.*img/a.png does not exist'):
        folder.build(hp)


@pytest.mark.slow
def test_large_table(tmp_path):
    """400,000 images, 100,000 patients, 14 labels, reports of 200 characters: no image is touched."""
    with open(tmp_path / 'cases.csv', 'w', newline='') as f:
        rows = csv.writer(f)
        labels = [f'finding{i}' for i in range(14)]
        rows.writerow(['patient_id', 'image', 'text', 'study_id', *labels])
        values = ['1', '0', '-1', '', '', '', '0.0', '1.0']
        report = 'The heart is not enlarged. ' * 8
        rows.writerows([f'p{i // 4}', f'files/p{i // 4}/{i}.jpg', report, f's{i // 4}-{i % 2}',
                        *(values[(i + j) % 8] for j in range(14))] for i in range(400_000))
    source = folder.build(ConfigDict({**folder.DEFAULTS, 'root': str(tmp_path)}))
    assert len(source) == 400_000 and source.labels == tuple(labels)
