"""The layout of ISIC 2017, of small generated lesions, read back, and spoilt."""
import os
import pickle
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import errors
from jaxkd.data import splits
from jaxkd.data.sources import binary, isic2017

COUNTS = {'train': 12, 'val': 4, 'test': 6}
TRUTH = '{}_Part3_GroundTruth.csv'


def made(root, **given):
    return isic2017.build(ConfigDict({**isic2017.DEFAULTS, 'root': str(root), **given}))


def lesion(number, kind, size=(36, 48)):
    """uint8 [H,W,3]: a blot on skin; a nevus (0) is round and even, a melanoma (1) lobed and darker, a keratosis (2)
    ochre.
    """
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:size[0], :size[1]]
    dy, dx = y - size[0] / 2, x - size[1] / 2
    reach = 11 + (kind == 1) * 3 * np.sin(3 * np.arctan2(dy, dx) + number)
    inside = np.hypot(dy, dx) < reach
    colour = [(120, 75, 55), (60, 35, 35), (165, 125, 70)][kind]
    picture = np.where(inside[..., None], colour, (225, 180, 160)) + rng.normal(0, 4, (*size, 1))
    return np.clip(picture, 0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    root, number = tmp_path_factory.mktemp('isic'), 0
    for part, count in COUNTS.items():
        stem = isic2017.FOLDERS[part]
        folder = root / f'{stem}_Data'
        folder.mkdir()
        truth, about = ['image_id,melanoma,seborrheic_keratosis'], ['image_id,age_approximate,sex']
        for k in range(count):
            name, kind = f'ISIC_{number:07d}', k % 3
            Image.fromarray(lesion(number, kind)).save(folder / f'{name}.jpg', quality=95)
            Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / f'{name}_superpixels.png')
            truth.append(f'{name},{float(kind == 1)},{float(kind == 2)}')
            about.append(f'{name},{("unknown", 35, 80)[k % 3]},{("male", "female", "unknown")[k % 3]}')
            number += 1
        (root / TRUTH.format(stem)).write_text('\n'.join(truth) + '\n')
        beside = folder if part == 'train' else root
        (beside / f'{stem}_Data_metadata.csv').write_text('\n'.join(about) + '\n')
    return root


@pytest.fixture
def tree(written, tmp_path):
    shutil.copytree(written, tmp_path / 'isic')
    return tmp_path / 'isic'


def lines(root, part='train'):
    return (root / TRUTH.format(isic2017.FOLDERS[part])).read_text().split('\n')[:-1]


def rewrite(root, rows, part='train', encoding='utf-8', end='\n'):
    (root / TRUTH.format(isic2017.FOLDERS[part])).write_bytes((end.join(rows) + end).encode(encoding))


def test_layout_is_read(written):
    source = pickle.loads(pickle.dumps(made(written)))
    assert (len(source) == 22 and source.labels == ('melanoma', 'seborrheic_keratosis')
            and 'counts as one' in source.note)
    assert splits.make(source.cases) == {c.id: c.split for c in source.cases}
    assert {part: sum(c.split == part for c in source.cases) for part in COUNTS} == COUNTS
    assert len({c.patient for c in source.cases}) == 22
    for k, case in enumerate(source.cases):
        record, number = source[k], int(case.id[5:])
        kind = ('nevus', 'melanoma', 'seborrheic_keratosis').index(case.groups['diagnosis'])
        np.testing.assert_array_equal(record['label'], [kind == 1, kind == 2])
        np.testing.assert_array_equal(source.values[k], record['label'])
        assert (record['image'].shape == (36, 48, 3)
                and np.abs(record['image'].astype(int) - lesion(number, kind)).mean() < 6)
    assert [source.cases[k].groups['age'] for k in range(3)] == ['', '0-39', '80+']
    assert [source.cases[k].groups['sex'] for k in range(3)] == ['male', 'female', '']
    assert source.values.dtype == np.float32 and all(os.path.isfile(path) for k in range(22)
                                                     for path in source.paths(k))


def test_melanoma_against_the_rest(written):
    two = binary.build(ConfigDict({**binary.DEFAULTS, 'of': {**isic2017.DEFAULTS, 'name': 'isic2017',
                                                             'root': str(written)},
                                   'finding': 'melanoma', 'balance': False}))
    assert len(two) == 22 and two.targets['label'].sum() == 4 + 1 + 2


def test_parts_and_wrong_options(written):
    assert len(made(written, parts=('test',))) == 6
    for given in (dict(parts=()), dict(parts=('test', 'test')), dict(parts=('valid',)), dict(on_error='x')):
        with pytest.raises(errors.ConfigError, match=next(iter(given))):
            made(written, **given)
    with pytest.raises(errors.MissingInput, match='is not a folder'):
        made(written / 'nowhere')


def test_tables_of_other_hands(tree):
    want = made(tree)
    rewrite(tree, [','.join(row.split(',')[::-1]) for row in lines(tree)], encoding='utf-8-sig', end='\r\n')
    found = made(tree)
    assert found.cases == want.cases
    np.testing.assert_array_equal(found.values, want.values)
    os.remove(tree / 'ISIC-2017_Training_Data' / 'ISIC-2017_Training_Data_metadata.csv')
    assert 'age' not in made(tree).cases[0].groups


@pytest.mark.parametrize('spoil, what', [
    (lambda rows: [row.rpartition(',')[0] for row in rows], 'no column "seborrheic_keratosis"'),
    (lambda rows: [*rows, rows[2]], 'a second time, or in another part'),
    (lambda rows: [*rows, 'ISIC_0000013,0.0,0.0'], 'ISIC_0000013 stands there a second time, or in another part'),
    (lambda rows: [*rows, 'ISIC_0000099,1.0,1.0'], 'not both 1.0'),
    (lambda rows: [*rows, 'ISIC_0000099,0.5,0.0'], 'must be 0.0 or 1.0'),
    (lambda rows: [*rows, 'ISIC_0000099,,0.0'], 'must be 0.0 or 1.0'),
    (lambda rows: [*rows, '../ISIC_0000099,0.0,0.0'], 'seven digits'),
    (lambda rows: [*rows, 'ISIC_0000099_superpixels,0.0,0.0'], 'seven digits'),
])
def test_spoilt_tables(tree, spoil, what):
    rewrite(tree, spoil(lines(tree)))
    with pytest.raises(errors.BadData, match=what):
        made(tree)
    if 'no column' not in what:
        kept = made(tree, on_error='skip')
        twice = 'ISIC' in what  # the row in train comes first, but its file is that of val
        assert len(kept.skipped) == 1 + twice and len(kept) == 22 - twice


def test_damaged_files(tree):
    folder = tree / 'ISIC-2017_Training_Data'
    whole = (folder / 'ISIC_0000000.jpg').read_bytes()
    (folder / 'ISIC_0000000.jpg').write_bytes(whole[:400])
    os.remove(folder / 'ISIC_0000001.jpg')
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / 'ISIC_0000002.jpg')
    source = made(tree)
    found = (errors.BadData, 'is damaged'), (errors.MissingInput, 'does not exist'), (errors.BadData, 'grey')
    for i, (error, what) in enumerate(found):
        with pytest.raises(error, match=what):
            source[i]
    kept = made(tree, on_error='skip')
    assert len(kept) == len(kept.values) == 19 and len(kept.skipped) == 3
    about = tree / 'ISIC-2017_Validation_Data_metadata.csv'
    about.write_text(about.read_text().replace('80', 'eighty'))
    with pytest.raises(errors.BadData, match='age_approximate') as found:
        made(tree)
    assert 'eighty' not in str(found.value)
    os.remove(tree / TRUTH.format('ISIC-2017_Test_v2'))
    about.unlink()
    with pytest.raises(errors.MissingInput, match='Test_v2_Part3_GroundTruth.csv does not exist'):
        made(tree)
