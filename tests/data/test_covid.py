import csv
import json
import os
import pathlib
import pickle

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import errors
from jaxkd.data import splits
from jaxkd.data.sources import covid

COLUMNS = ['patientid', 'offset', 'finding', 'view', 'modality', 'folder', 'filename', 'clinical_notes']
ROWS = [
    ['2', '0', 'Pneumonia/Viral/COVID-19', 'PA', 'X-ray', 'images', 'a.jpeg', 'Fever.\n Cough.'],
    ['2', '3', 'Pneumonia/Viral/COVID-19', 'AP', 'X-ray', 'images', 'b.png', 'Fever.  Cough.'],
    ['4', '', 'Pneumonia/Fungal/Pneumocystis', 'PA', 'X-ray', 'images', 'c.png', 'HIV.'],
    ['5', '', 'Pneumonia', 'AP Supine', 'X-ray', 'images', 'd.png', 'Cough.'],
    ['6', '', 'COVID-19', 'Axial', 'CT', 'volumes', 'e.nii.gz', 'Cough.'],
    ['7', '', 'COVID-19', 'L', 'X-ray', 'images', 'f.png', 'Lateral.'],
    ['8', '', 'todo', 'PA', 'X-ray', 'images', 'g.png', ''],
]


@pytest.fixture
def make(tmp_path):
    def make(rows=ROWS, columns=COLUMNS, coco=None, **given):
        (tmp_path / 'images').mkdir(exist_ok=True)
        for i, name in enumerate(('a.jpeg', 'b.png', 'c.png', 'd.png', 'f.png', 'g.png')):
            Image.fromarray(np.full((30, 40), 20 * i, np.uint8)).save(tmp_path / 'images' / name)
        if rows is not None:
            with open(tmp_path / 'metadata.csv', 'w', newline='') as f:
                csv.writer(f).writerows([columns, *rows])
        if coco is not None:
            (tmp_path / 'annotations').mkdir(exist_ok=True)
            content = coco if isinstance(coco, str) else json.dumps(coco)
            (tmp_path / 'annotations' / 'annotations.json').write_text(content)
        return covid.build(ConfigDict({**covid.DEFAULTS, 'root': str(tmp_path), **given}))
    return make


def coco(*boxes, width=40, height=30):
    return {'images': [{'id': 9, 'file_name': 'b.png', 'width': width, 'height': height}],
            'annotations': [{'image_id': 9, 'category_id': 1, 'bbox': list(box)} for box in boxes]}


def test_cases_of_the_archive(make):
    source = make()
    # Neither CT, nor lateral, nor a case without a note.
    assert [c.id for c in source.cases] == ['a.jpeg', 'b.png', 'c.png', 'd.png']
    assert source.labels == ('covid19', 'bacterial', 'fungal') and 'diagnosis' in source.note
    assert source.values.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, -1, -1]]
    one, two, three, _ = source.cases
    assert one.patient == two.patient == '2' and one.study == two.study != three.study  # one note
    assert one.groups == {'view': 'PA'} and one.split == ''
    record = source[1]
    assert record['text'] == source.text(1) == 'Fever. Cough.' and record['image'].shape == (30, 40)
    assert record['boxes'].shape == (0, 5) and record['label'].dtype == np.float32
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[2]['image'], source[2]['image'])


def test_options(make):
    everything = make(views=(), require_text=False, labels=('viral', 'covid19', 'no_finding'))
    assert [c.id for c in everything.cases] == ['a.jpeg', 'b.png', 'c.png', 'd.png', 'f.png', 'g.png']
    assert everything.values[0].tolist() == [0, 1, 0] and everything.values[5].tolist() == [-1, -1, -1]
    assert everything.cases[5].study == '' and everything[5]['text'] == ''
    with pytest.raises(errors.ConfigError, match='"covid".*covid19'):
        make(labels=('covid',))
    for key in ('masks', 'on_error'):
        with pytest.raises(errors.ConfigError, match=key):
            make(**{key: 'maybe'})
    with pytest.raises(errors.BadData, match='no usable case.*clinical_notes'):
        make(views=('LL',))


@pytest.mark.parametrize('finding, expected', [  # covid19, viral, bacterial, fungal, other, no_finding
    ('COVID-19', [1, 0, 0, 0, 0, 0]), ('COVID-19, ARDS', [1, 0, 0, 0, 0, 0]),
    ('Pneumonia/Viral/COVID-19', [1, 0, 0, 0, 0, 0]), ('Pneumonia/Viral/SARS', [0, 1, 0, 0, 0, 0]),
    ('Pneumonia/Viral/Influenza/H1N1', [0, 1, 0, 0, 0, 0]), ('Varicella', [0, 1, 0, 0, 0, 0]),
    ('Mycoplasma Bacterial Pneumonia', [0, 0, 1, 0, 0, 0]),
    ('Pneumonia/Bacterial/E.Coli', [0, 0, 1, 0, 0, 0]),
    ('Klebsiella', [0, 0, 1, 0, 0, 0]), ('Tuberculosis', [0, 0, 1, 0, 0, 0]),
    ('Pneumocystis', [0, 0, 0, 1, 0, 0]), ('Pneumonia/Fungal/Aspergillosis', [0, 0, 0, 1, 0, 0]),
    ('Pneumonia/Lipoid', [0, 0, 0, 0, 1, 0]), ('Organizing pneumonia', [0, 0, 0, 0, 1, 0]),
    ('No Finding', [0, 0, 0, 0, 0, 1]),
    ('Pneumonia', [0, -1, -1, -1, -1, 0]), ('ARDS', [0, -1, -1, -1, -1, 0]),
    ('todo', [-1] * 6), ('Unknown', [-1] * 6), ('', [-1] * 6)])
def test_targets(make, finding, expected):
    rows = [['1', '', finding, 'PA', 'X-ray', '', 'a.jpeg', 'x']]
    assert make(rows, labels=covid.LABELS).values.tolist() == [expected]
    cleaned = [[*row, 'No Finding'] for row in rows]
    cleaned = make(cleaned, [*COLUMNS, 'finding_clean'], labels=covid.LABELS)
    assert cleaned.values.tolist() == [[0, 0, 0, 0, 0, 1]]


def test_lung_boxes(make):
    found = make(coco=coco((1, 2, 10.5, 20), (20, 2, 15, 25)))
    np.testing.assert_allclose(found[1]['boxes'], [[-1, 1, 2, 10.5, 20], [-1, 20, 2, 15, 25]])
    assert found[0]['boxes'].shape == (0, 5)
    assert make(coco=coco((1, 2, 10, 20)), boxes='')[1]['boxes'].shape == (0, 5)
    for bad, why in ((coco((1, 2, 10, 20), width=80, height=60), 'boxes are for an image of 80 x 60, the file has 40 x '
                                                                 '30'), (coco((1, 2, 10, 40)), 'b.png')):
        source = make(coco=bad)
        assert source[0]['boxes'].shape == (0, 5)
        with pytest.raises(errors.BadData, match=why):
            source[1]
        skipping = make(coco=bad, on_error='skip')
        assert [name for name, _ in skipping.skipped] == ['b.png']
        assert len(skipping) == len(skipping.values) == 3
    for bad in ('{', '[]', '{}', '{"images": 3, "annotations": []}', '[' * 100_000, coco((1, 2, 3)), coco((1, 2, 0, 3)),
                coco(('x', 2, 3, 4)), {'images': [], 'annotations': [{'image_id': 1, 'bbox': [1, 2, 3, 4]}]}):
        with pytest.raises(errors.BadData, match='not a COCO file'):
            make(coco=bad)
    with pytest.raises(errors.MissingInput, match='other.json'):
        make(boxes='other.json')


def test_masks(make, tmp_path):
    folder = tmp_path / 'annotations' / 'semantic_masks_v7labs_lungs'
    folder.mkdir(parents=True)
    mask = np.zeros((30, 40), np.uint8)
    mask[4:20, 6:36] = 255
    Image.fromarray(mask).save(folder / 'b.png')
    source = make(coco=coco((1, 2, 10, 20)), masks='v7labs')
    record = source[1]
    assert record['masks'].shape == (1, 30, 40) and record['masks'].dtype == np.uint8
    np.testing.assert_array_equal(record['masks'][0], mask > 0)
    assert record['boxes'].tolist() == [[-1, 6, 4, 30, 16]]
    assert source[0]['masks'].shape == (0, 30, 40) and source[0]['boxes'].shape == (0, 5)
    assert make(masks='lungvae')[1]['masks'].shape == (0, 30, 40)
    Image.fromarray(mask * 0).save(folder / 'b.png')  # the archive has such for lateral views
    assert source[1]['masks'].shape == (0, 30, 40) and source[1]['boxes'].shape == (0, 5)
    for bad in (mask[:, :-1], np.stack([mask] * 3, axis=-1)):
        Image.fromarray(bad).save(folder / 'b.png')
        with pytest.raises(errors.BadData, match='b.png is not grey of the size 40 x 30'):
            source[1]


def test_damage(make, tmp_path):
    for rows, why in [([*ROWS, ROWS[0]], 'row 9: a.jpeg stands there a second time'),
                      ([['', *ROWS[0][1:]], *ROWS[1:]], 'row 2: filename or patientid is empty')]:
        with pytest.raises(errors.BadData, match=why):
            make(rows)
        assert len(make(rows, on_error='skip').skipped) == 1
    for at, value in ((6, '../../x.png'), (5, '/etc'), (5, '..')):
        with pytest.raises(errors.BadData, match='leaves the root'):
            make([[*ROWS[0][:at], value, *ROWS[0][at + 1:]]])
    with pytest.raises(errors.BadData, match='no column "finding"'):
        make([row[:2] + row[3:] for row in ROWS], COLUMNS[:2] + COLUMNS[3:])
    source = make()
    (tmp_path / 'images' / 'b.png').unlink()
    (tmp_path / 'images' / 'c.png').write_bytes(b'\x89PNG\r\n\x1a\n')
    for i, kind in ((1, errors.MissingInput), (2, errors.BadData)):
        with pytest.raises(kind, match='[bc].png'):
            source[i]
    (tmp_path / 'metadata.csv').unlink()
    with pytest.raises(errors.MissingInput, match='metadata.csv'):
        make(rows=None)
    with pytest.raises(errors.MissingInput, match='root'):
        make(root='')


@pytest.fixture
def real():
    beside = pathlib.Path(__file__).parents[2] / '../shared/data'
    root = pathlib.Path(os.environ.get('JAXKD_REAL_DATA', beside))
    if not (root / 'covid_chestxray' / 'metadata.csv').is_file():
        pytest.skip(f'no covid_chestxray in {root.resolve()} (JAXKD_REAL_DATA)')
    return str(root / 'covid_chestxray')


def test_real_sample(real):
    source = covid.build(ConfigDict({**covid.DEFAULTS, 'root': real}))
    assert 150 < len(source) and source.skipped == ()
    assert {c.groups['view'] for c in source.cases} == {'PA', 'AP', 'AP Supine'}
    positive = dict(zip(source.labels, (source.values == 1).sum(0)))
    assert positive['covid19'] > positive['bacterial'] > positive['fungal'] > 8
    split = splits.make(source.cases)
    splits.check(source.cases, split)
    with open(os.path.join(real, 'metadata.csv'), newline='') as f:
        groups = {row['filename']: row['finding_group'] for row in csv.DictReader(f)}
    for i in range(0, len(source), 5):
        record = source[i]
        height, width = record['image'].shape
        assert record['image'].dtype == np.uint8 and max(height, width) <= 512 and record['text']
        assert len(record['boxes']) in (0, 2) and (record['boxes'][:, 0] == -1).all()
    for i, case in enumerate(source.cases):  # the copy's own grouping was made by other means
        for label in source.labels:
            assert (source.values[i, source.labels.index(label)] == 1) == (groups[case.id] == label)
    everything = {**covid.DEFAULTS, 'root': real, 'views': (), 'require_text': False}
    both = covid.build(ConfigDict({**everything, 'masks': 'v7labs', 'on_error': 'skip'}))
    assert both.skipped == () and len(both) > 300
    overlaps = []
    lungs = covid.build(ConfigDict(everything))
    for i in range(0, len(both), 10):
        masks, boxes = both[i]['masks'], lungs[i]['boxes']
        if len(masks) and len(boxes):
            area = np.zeros(masks.shape[1:], bool)
            for _, x, y, w, h in boxes.astype(int):
                area[y:y + h, x:x + w] = True
            overlaps.append((masks[0] * area).sum() / masks.sum())
    assert len(overlaps) > 5 and np.median(overlaps) > 0.7  # boxes are where the lungs are (and the heart)
