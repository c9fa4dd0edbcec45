"""The layout of NIH ChestX-ray14, written by the thorax phantom, read back, and spoilt; and the tables of the archive
itself.
"""
import collections
import csv
import gzip
import os
import pathlib
import pickle
import random
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import errors
from jaxkd.data import splits
from jaxkd.data.sources import nih_cxr14
from jaxkd.phantoms import thorax
from jaxkd.phantoms.layouts import nih_cxr14 as layout
from jaxkd.phantoms.thorax.labeller import LABELS

REAL = pathlib.Path(os.environ.get('JAXKD_REAL_DATA')
                    or pathlib.Path(__file__).parents[2] / '../shared/data') / 'nih_cxr14'
TABLE, BOXES = nih_cxr14.TABLES[0], 'BBox_List_2017.csv'
PHANTOM = dict(patients=60, size=48, seed=3)


def made(root, **given):
    return nih_cxr14.build(ConfigDict({**nih_cxr14.DEFAULTS, 'root': str(root), 'resized': True, **given}))


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('nih')
    layout.write(folder, **PHANTOM)
    return folder


@pytest.fixture
def tree(written, tmp_path):
    shutil.copytree(written, tmp_path / 'nih')
    return tmp_path / 'nih'


def cells(path):
    with open(path, newline='') as f:
        return list(csv.reader(f))


def rewrite(path, rows, encoding='utf-8', end='\n', pack=bytes):
    path.write_bytes(pack((end.join(','.join(row) for row in rows) + end).encode(encoding)))


def changed(rows, row, column, cell):
    rows[row][rows[0].index(column)] = cell
    return rows


def test_written_tree_is_the_phantom(written):
    phantom = thorax.build(ConfigDict({**thorax.DEFAULTS, **PHANTOM}))
    source = pickle.loads(pickle.dumps(made(written)))
    assert len(source) == len(phantom) and source.labels == nih_cxr14.LABELS and source.skipped == ()
    assert {c.split for c in source.cases} == {'', 'test'} and {len(c.id) for c in source.cases} == {16}
    names = [layout.NAMES.get(name, name) for name in LABELS]
    at, shots, boxed = [source.labels.index(name) for name in names], collections.Counter(), 0
    for k, (case, of) in enumerate(zip(source.cases, phantom.cases)):
        number = int(of.patient[-6:]) + 1
        assert case.id == f'{number:08d}_{shots[number]:03d}.png' and case.patient == case.id[:8]
        shots[number] += 1
        assert case.groups == {'view': of.groups['view'], 'sex': case.groups['sex'], 'age': case.groups['age']}
        assert (case.groups['age'] == '') == (number % 30 == 0)  # older than anybody
        record, want = source[k], phantom[k]
        np.testing.assert_array_equal(record['image'], want['image'])
        np.testing.assert_array_equal(source.values[k, at], want['label'] == 1)
        np.testing.assert_array_equal(record['label'], source.values[k])
        assert np.delete(source.values[k], at).sum() == 0 and record['text'] == ''
        assert case.split == ('' if number % 5 else 'test')
        shown = [[at[int(label)], *box] for label, *box in want['boxes']
                 if case.split and want['label'][int(label)] == 1 and names[int(label)] in layout.BOXED]
        np.testing.assert_allclose(record['boxes'], np.reshape(shown, (-1, 5)), atol=1e-4)
        boxed += len(shown)
    assert boxed > 5 and any(nih_cxr14.LABELS[int(b[0])] == 'Infiltration' for found in source.boxes.values()
                             for b in found)


def test_parts_are_those_of_the_lists_and_the_rest_is_drawn(tree):
    source = made(tree)
    split = splits.make(source.cases, dict(train=0.8, val=0.2, test=0.0))
    splits.check(source.cases, split)
    assert {i for i, part in split.items() if part == 'test'} == {c.id for c in source.cases if c.split == 'test'}
    assert {'train', 'val'} < {*split.values()}
    assert {c.split for c in made(tree, lists=False).cases} == {''}
    for name in nih_cxr14.LISTS:
        os.rename(tree / name, tree / 'away')
        with pytest.raises(errors.MissingInput, match=name):
            made(tree)
        os.rename(tree / 'away', tree / name)
    text = (tree / 'test_list.txt').read_text()
    (tree / 'test_list.txt').write_bytes(b'\xef\xbb\xbf' + text.replace('\n', '\r\n').encode() + b'\r\n')
    assert made(tree).cases == source.cases
    (tree / 'test_list.txt').write_text(f'{text}\n00000001_099.png')
    with pytest.raises(errors.BadData,
                       match=r'test_list\.txt has 00000001_099\.png.*train_val_list.*same patient.*lists=False'):
        made(tree)
    (tree / 'test_list.txt').write_text(text[17:])
    with pytest.raises(errors.BadData, match=r'row \d+: 00000005_000.png is in none of'):
        made(tree)
    for name in nih_cxr14.LISTS:
        os.remove(tree / name)
    assert {c.split for c in made(tree).cases} == {''}


@pytest.mark.parametrize('encoding, end, pack', [('utf-8-sig', '\r\n', bytes), ('utf-8', '\n', gzip.compress)])
def test_tables_however_they_are_saved(tree, encoding, end, pack):
    want = made(tree)
    for name in (TABLE, BOXES):
        rows = cells(tree / name)
        order = random.Random(1).sample(range(len(rows[1])), len(rows[1]))
        os.remove(tree / name)
        rewrite(tree / (f'{name}.gz' if pack is not bytes else name), [[row[j] for j in order] for row in rows],
                encoding, end, pack)
    found = made(tree)
    assert found.cases == want.cases
    np.testing.assert_array_equal(found.values, want.values)
    for case, boxes in want.boxes.items():
        np.testing.assert_array_equal(found.boxes[case], boxes)


def test_one_folder_older_table_and_other_headers(tree):
    want = made(tree)
    (tree / 'images').mkdir()
    for part in ('images_001', 'images_002'):
        for path in (tree / part / 'images').iterdir():
            os.rename(path, tree / 'images' / path.name)
    # the first release: a comma ends the header,
    rows = [[*row, *[''] * (k == 0)] for k, row in enumerate(cells(tree / TABLE))]
    for row in rows[1:]:
        row[4] = f'{int(row[4]):03d}Y'  # ages have a unit
    rewrite(tree / nih_cxr14.TABLES[1], rows)
    os.remove(tree / TABLE)
    head, *boxes = cells(tree / BOXES)
    rewrite(tree / BOXES, [[*head[:2], '"Bbox [x,y,w,h]"', '', '', ''], *boxes])
    found = made(tree)
    assert found.cases == want.cases and found.boxes.keys() == want.boxes.keys()
    assert ({folder for _, name in found.files for folder in [name.partition('/')[0]]} == {'images'}
            and found[0]['image'].any())


def test_boxes_hold_for_the_size_that_they_are_told_for(tree):
    source = made(tree, resized=False)
    k = next(i for i, case in enumerate(source.cases) if case.id in source.boxes)
    with pytest.raises(errors.BadData,
                       match=f'{source.cases[k].id}: its boxes are for an image of 1024 x 1024, the file has 48 x 48'):
        source[k]
    assert len(source[0]['boxes']) == 0 and source.cases[0].id not in source.boxes
    folder, name = source.files[k]
    Image.fromarray(np.zeros((1024, 1024), np.uint8)).save(os.path.join(folder, name))
    np.testing.assert_array_equal(source[k]['boxes'], source.boxes[source.cases[k].id])
    Image.fromarray(np.zeros((512, 256), np.uint8)).save(os.path.join(folder, name))
    np.testing.assert_allclose(made(tree)[k]['boxes'][:, 1:] * [4, 2, 4, 2], source.boxes[source.cases[k].id][:, 1:])
    assert made(tree, boxes='').boxes == {}
    os.remove(tree / BOXES)
    assert made(tree).boxes == {}
    with pytest.raises(errors.MissingInput, match='other.csv'):
        made(tree, boxes='other.csv')


def test_labels_of_other_archives(written):
    want, source = made(written), made(written, labels=('Edema', 'Pleural Effusion'))
    assert source.labels == ('Edema', 'Pleural Effusion')
    np.testing.assert_array_equal(source.values, want.values[:, [nih_cxr14.LABELS.index(name)
                                                                 for name in ('Edema', 'Effusion')]])
    assert {b[0] for boxes in source.boxes.values() for b in boxes} == {1}
    np.testing.assert_array_equal(made(written, labels=('Lung Opacity', 'Edema')).values,
                                  np.stack([np.full(len(want), -1), want.values[:, nih_cxr14.LABELS.index('Edema')]],
                                           1))
    for labels in ((), ('Edema', 'Edema'), ('Effusion', 'Pleural Effusion'), ('Opacity',)):
        with pytest.raises(errors.ConfigError, match='label'):
            made(written, labels=labels)
    with pytest.raises(errors.ConfigError, match='on_error'):
        made(written, on_error='x')


@pytest.mark.parametrize('spoil, what', [
    (lambda rows: [*rows, rows[2]], 'a second time'),
    (lambda rows: changed(rows, 3, 'Image Index', '../00000001_000.png'), 'column "Image Index" is not'),
    (lambda rows: changed(rows, 3, 'Patient ID', '77'), 'is not what its name says'),
    (lambda rows: changed(rows, 3, 'Patient Age', 'old'), 'is no age'),
    (lambda rows: changed(rows, 3, 'Finding Labels', 'Edema|Gout'), 'names another finding'),
    (lambda rows: changed(rows, 3, 'Finding Labels', 'Edema|No Finding'), 'names another finding'),
    (lambda rows: changed(rows, 3, 'Finding Labels', ''), 'names another finding'),
])
def test_spoilt_rows(tree, spoil, what):
    rewrite(tree / TABLE, spoil(cells(tree / TABLE)))
    with pytest.raises(errors.BadData, match=rf'{TABLE}, row \d+: .*{what}') as found:
        made(tree)
    assert 'old' not in str(found.value) and 'Gout' not in str(found.value)
    kept = made(tree, on_error='skip')
    assert len(kept.skipped) == 1 and what in kept.skipped[0][1] and len(kept) == len(kept.values) == len(kept.files)


@pytest.mark.parametrize('at, cell, what', [(0, '00099999_000.png', 'not in the table of labels'),
                                            (1, 'Gout', 'none of the archive'),
                                            (2, '-1', 'not x, y, w, h within'), (3, 'x', 'not x, y, w, h within'),
                                            (4, '1025', 'not x, y, w, h within'), (5, 'nan', 'not x, y, w, h within')])
def test_spoilt_boxes(tree, at, cell, what):
    rows = cells(tree / BOXES)
    rows[2][at] = cell
    rewrite(tree / BOXES, rows)
    with pytest.raises(errors.BadData, match=rf'{BOXES}, row 3: .*{what}'):
        made(tree)


def test_damaged_and_missing_files(tree):
    source = made(tree)
    paths = [pathlib.Path(*file) for file in source.files[:3]]
    paths[0].write_bytes(paths[0].read_bytes()[:300])
    paths[1].write_bytes(b'')
    for i in (0, 1):
        with pytest.raises(errors.BadData, match=paths[i].name):
            source[i]
    os.remove(paths[2])
    with pytest.raises(errors.MissingInput,
                       match=rf'{paths[2].name} is in no folder.*\(1 of {len(source)} are missing\).*present=True'):
        made(tree)
    there = made(tree, present=True)
    assert (len(there) == len(source) - 1 and f'{len(there)} of {len(source)} images are present' in there.note
            and there.skipped == ())
    kept = made(tree, on_error='skip')
    assert kept.cases == source.cases[3:] and sorted(name for name, _ in kept.skipped) == [c.id
                                                                                           for c in source.cases[:3]]
    os.remove(tree / TABLE)
    with pytest.raises(errors.MissingInput, match=f'holds no {TABLE}'):
        made(tree)
    with pytest.raises(errors.MissingInput, match='nowhere'):
        made(tree / 'nowhere')
    rewrite(tree / TABLE, [nih_cxr14.HEADER])
    os.remove(tree / BOXES)
    with pytest.raises(errors.BadData, match='no usable case'):
        made(tree)


@pytest.mark.skipif(not (REAL / f'{TABLE}.gz').is_file(), reason=f'no nih_cxr14 in {REAL.parent} (JAXKD_REAL_DATA)')
def test_the_archive_itself():
    source = made(REAL, present=True)
    assert len(source) == 25 and '25 of 112,120 images' in source.note
    assert {c.patient for c in source.cases} == {f'{n:08d}' for n in (*range(1, 9), 27426)}
    assert all(source[i]['image'].shape == (512, 512) for i in range(25))
    first = dict(zip(source.labels, source.values[1]))
    assert {name for name, value in first.items() if value} == {'Cardiomegaly', 'Emphysema'}
    counts = collections.Counter(nih_cxr14.LABELS[int(box[0])] for boxes in source.boxes.values() for box in boxes)
    assert counts == dict(Atelectasis=180, Effusion=153, Cardiomegaly=146, Infiltration=123, Pneumonia=120,
                          Pneumothorax=98, Mass=85, Nodule=79) and len(source.boxes) == 880
