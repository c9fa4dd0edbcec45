import os
import pathlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import errors
from jaxkd.data.formats import bitmap
from jaxkd.data.sources import masks

ROOT = pathlib.Path(__file__).parents[2]


def put(path, pixels, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)
    return path


def picture(seed, colour=True):
    return np.random.default_rng(seed).integers(0, 256, (20, 24, 3) if colour else (20, 24), np.uint8)


def disc(radius=6, value=255):
    y, x = np.mgrid[:20, :24]
    return np.where(np.hypot(y - 10, x - 12) < radius, value, 0).astype(np.uint8)


def build(root, **given):
    return masks.build(ConfigDict({**masks.DEFAULTS, 'root': str(root), **given}))


@pytest.fixture
def polyps(tmp_path):
    for i, name in enumerate(('a1', 'a2', 'b1')):
        put(tmp_path / 'images' / f'{name}.jpg', picture(i), quality=95)
        put(tmp_path / 'masks' / f'{name}.png', disc(5 + i))
    return tmp_path


def test_folders_of_the_same_names(polyps):
    source = build(polyps)
    assert (source.name == 'masks' and source.labels == ('background', 'lesion') and source.note == ''
            and source.skipped == ())
    assert [(c.id, c.patient, c.study, c.split, c.groups) for c in source.cases][0] == ('a1', 'a1', 'a1', '', {})
    record = source[1]
    assert record.keys() == {'image', 'label', 'spacing', 'case'} and record['case'] == 'a2'
    assert record['image'].shape == (20, 24, 3) and record['image'].dtype == np.uint8
    np.testing.assert_array_equal(record['label'], disc(6) // 255)
    assert record['label'].dtype == np.uint8 and np.isnan(record['spacing']).all() and record['spacing'].shape == (3,)
    assert [os.path.basename(p) for p in source.paths(1)] == ['a2.jpg', 'a2.png']
    assert source.identity() == {'targets': {}, 'values': (0, 255)}  # grey values: stores of prepared cases keep them
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[1]['image'], record['image'])


@pytest.mark.parametrize('ending', ['png', 'bmp', 'tif', 'TIFF', 'BMP'])
@pytest.mark.parametrize('mode', ['L', 'RGB', 'P', '1'])
def test_endings_and_modes_of_masks(tmp_path, ending, mode):
    put(tmp_path / 'images' / 'x.png', picture(0, colour=False))
    mask = Image.fromarray(disc()).convert(mode)
    (tmp_path / 'masks').mkdir()
    mask.save(tmp_path / 'masks' / f'x.{ending}')
    np.testing.assert_array_equal(build(tmp_path)[0]['label'], disc() // 255)
    put(tmp_path / 'images' / 'x.png', picture(1, colour=False))
    (tmp_path / 'images' / 'x.png').unlink()
    Image.fromarray(picture(1)).save(tmp_path / 'images' / f'x.{ending}')  # an image of that kind
    np.testing.assert_array_equal(build(tmp_path)[0]['image'], picture(1))


def test_cup_and_disc(tmp_path):
    mask = np.full((20, 24), 255, np.uint8)
    mask[disc(8) > 0], mask[disc(4) > 0] = 128, 0
    put(tmp_path / 'Images' / 'g0001.jpg', picture(0))
    put(tmp_path / 'Disc_Cup_Masks' / 'g0001.bmp', mask)
    given = dict(images='Images', masks='Disc_Cup_Masks', labels=('background', 'disc', 'cup'))
    label = build(tmp_path, **given, values=(255, 128, 0))[0]['label']
    assert [(label == k).sum() for k in range(3)] == [(mask == v).sum() for v in (255, 128, 0)]
    with pytest.raises(errors.BadData,
                       match=r'g0001.bmp cannot be used: its grey values are 0, 128, 255, and values are'):
        build(tmp_path, **given, values=(255, 100, 0))[0]


def test_soft_edges_of_jpeg(tmp_path):
    put(tmp_path / 'images' / 'x.jpg', picture(0))
    soft = Image.fromarray(np.stack([disc()] * 3, -1)).resize((48, 40)).resize((24, 20))
    soft.save((tmp_path / 'masks').mkdir() or tmp_path / 'masks' / 'x.jpg', quality=60)
    stored = np.asarray(Image.open(tmp_path / 'masks' / 'x.jpg'))[..., 0]
    assert len(np.unique(stored)) > 10
    with pytest.raises(errors.BadData, match='with a tolerance of 16, .*Correct labels and values .*tolerance=127'):
        build(tmp_path)[0]
    np.testing.assert_array_equal(build(tmp_path, tolerance=127)[0]['label'], stored > 127)


@given(st.lists(st.integers(0, 255), min_size=2, max_size=4, unique=True), st.integers(0, 127), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_each_pixel_takes_the_nearest_value(values, tolerance, seed):
    mask = np.random.default_rng(seed).integers(100, 256, (4, 5), np.uint8)
    gaps = np.abs(mask[..., None].astype(int) - values)
    between = np.diff(sorted(values)).min()
    if gaps.min(-1).max() > min(tolerance, (between - 1) // 2 if between >= 16 else 0):
        with pytest.raises(errors.BadData, match='x.png'):
            masks.indices(mask, values, tolerance, 'x.png')
        return
    for dtype in (np.uint8, np.uint16):
        out = masks.indices(mask.astype(dtype), values, tolerance, 'x.png')
        assert out.dtype == np.uint8
        np.testing.assert_array_equal(np.take_along_axis(gaps, out[..., None].astype(int), -1)[..., 0], gaps.min(-1))


def test_masks_of_indices_are_not_read_as_black(polyps):
    put(polyps / 'masks' / 'a2.png', disc(6, value=1))
    with pytest.raises(errors.BadData, match='a2.png .* seems to hold indices'):
        build(polyps, tolerance=127)[1]
    put(polyps / 'masks' / 'a2.png', disc() * 0)  # nothing drawn
    assert not build(polyps)[1]['label'].any()
    for name in ('a1', 'a2', 'b1'):
        put(polyps / 'masks' / f'{name}.png', disc(6, value=1))
    assert build(polyps, values=(0, 1), tolerance=0)[1]['label'].sum() == (disc() > 0).sum()


# ultrasound


@pytest.fixture
def busi(tmp_path):
    for i in (1, 2, 3):
        put(tmp_path / 'benign' / f'benign ({i}).png', picture(i))
        put(tmp_path / 'benign' / f'benign ({i})_mask.png', disc(3 + i))
    put(tmp_path / 'malignant' / 'malignant (1).png', picture(11))
    put(tmp_path / 'malignant' / 'malignant (1)_mask.png', disc())
    put(tmp_path / 'normal' / 'normal (1).png', picture(12))
    put(tmp_path / 'normal' / 'normal (1)_mask.png', disc() * 0)
    return tmp_path


def test_class_folders_and_joined_masks(busi):
    left, right = disc(8).copy(), disc(8).copy()
    left[:, 12:], right[:, :14] = 0, 0
    put(busi / 'benign' / 'benign (2)_mask.png', left)
    put(busi / 'benign' / 'benign (2)_mask_1.png', right)
    source = build(busi, layout='class')
    assert [c.id for c in source.cases] == [*(f'benign/benign ({i})' for i in (1, 2, 3)), 'malignant/malignant (1)']
    assert [c.groups for c in source.cases][2:] == [{'class': 'benign'}, {'class': 'malignant'}]
    np.testing.assert_array_equal(source[1]['label'], (left | right) > 0)
    assert len(source.paths(1)) == 3
    assert build(busi, layout='class', folders=('benign', 'malignant',
                                                'normal')).cases[-1].groups == {'class': 'normal'}


def test_duplicates_go_before_anything_is_split(busi):
    put(busi / 'benign' / 'benign (4).png', picture(2), compress_level=0)  # other bytes, the same pixels
    put(busi / 'benign' / 'benign (4)_mask.png', disc())
    put(busi / 'benign' / 'benign (5).png', picture(11))  # in the other class too
    put(busi / 'benign' / 'benign (5)_mask.png', disc())
    source = build(busi, layout='class')
    assert [c.id for c in source.cases] == [f'benign/benign ({i})' for i in (1, 2, 3)]
    assert source.note == '3 duplicates of images were left out'
    reasons = dict(source.skipped)
    assert reasons['benign/benign (4)'] == 'benign/benign (4) has the same pixels as benign/benign (2).'
    assert 'folders of different classes' in reasons['benign/benign (5)'] == reasons['malignant/malignant (1)']
    assert len(build(busi, layout='class', duplicates='keep')) == 6
    # one folder, names with a suffix
    both = build(busi, layout='folders', images='benign', masks='benign', suffix='_mask')
    assert [c.id for c in both.cases] == [f'benign ({i})' for i in (1, 2, 3, 5)]


# whose images


def test_patients_in_names_and_tables(polyps):
    assert [c.patient for c in build(polyps, patient='([a-z])').cases] == ['a', 'a', 'b']
    with pytest.raises(errors.BadData, match='Case b1: its name does not begin'):
        build(polyps, patient='(a)')
    assert [name for name, _ in build(polyps, patient='(a)', on_error='skip').skipped] == ['b1']
    (polyps / 'cases.csv').write_bytes('\ufeffpatient_id,image,split,site\r\n'
                                       'p1,a1.jpg,train,x\r\np1,a2,train,y\r\np2,b1,,x\r\n'.encode())
    source = build(polyps, groups=('site',))
    assert [(c.patient, c.split, c.groups) for c in source.cases] == [
        ('p1', 'train', {'site': 'x'}), ('p1', 'train', {'site': 'y'}), ('p2', '', {'site': 'x'})]
    with pytest.raises(errors.ConfigError, match='both .*cases.csv and patient'):
        build(polyps, patient='(a)')
    assert build(polyps, table='').cases[0].patient == 'a1'


@pytest.mark.parametrize('text, why', [
    ('image,patient_id\na1,p1\na2,p1\n', 'no row for the image b1'),
    ('image,patient_id\na1,p1\na2,p1\nb1,p2\na1.jpg,p3\n', r'row 5 \(a1.jpg\): names an image a second time'),
    ('image,patient_id\na1,p1\na2,\nb1,p2\n', 'row 3: column "patient_id" is empty'),
    ('image,patient_id,split\na1,p1,train\na2,p1,dev\nb1,p2,\n', 'one of train, val, test'),
    ('image,patient_id,split\na1,p1,train\na2,p1,test\nb1,p2,\n', 'one patient'),
    ('image,patient_id\na1,p1\na2,p1\nb1,p2\nb2,p2\n', 'names b2, which is no image'),
    ('image,patient\na1,p1\n', 'no column "patient_id"')])
def test_tables_that_are_wrong(polyps, text, why):
    (polyps / 'cases.csv').write_text(text)
    with pytest.raises(errors.BadData, match=why):
        build(polyps)


def damage(root, what):
    path = root / 'masks' / 'a2.png'
    if what == 'no mask':
        path.unlink()
        return 'a2.jpg has no mask a2 in'
    if what == 'no image':
        (root / 'images' / 'a2.jpg').unlink()
        return 'a2.png is a mask without an image'
    if what == 'size':
        put(path, disc()[:, :-1])
        return '23 x 20, its image 24 x 20'
    if what == 'cut':
        path.write_bytes(path.read_bytes()[:-20])
        return 'damaged'
    if what == 'cut image':
        (root / 'images' / 'a2.jpg').write_bytes(b'\xff\xd8 and no more')
        return 'is damaged'
    if what == 'colour':
        put(path, picture(0))
        return 'it is coloured'
    if what == 'grey':
        put(path, disc(value=97))
        return 'grey values are 0, 97, and values'


@pytest.mark.parametrize('what', ['no mask', 'no image', 'size', 'cut', 'cut image', 'colour', 'grey'])
def test_damage(polyps, what):
    says = damage(polyps, what)
    with pytest.raises((errors.BadData, errors.MissingInput), match=says):
        source = build(polyps)
        [source[i] for i in range(len(source))]
    source = build(polyps, on_error='skip')
    assert [c.id for c in source.cases] == ['a1', 'b1'] and [name for name, _ in source.skipped] == ['a2']
    assert says in source.skipped[0][1]


def test_bitmaps_that_are_wrong(tmp_path):
    frames = [Image.fromarray(disc()), Image.fromarray(disc())]
    frames[0].save(tmp_path / 'two.tif', save_all=True, append_images=frames[1:])
    Image.fromarray(disc().astype(np.float32)).save(tmp_path / 'real.tif')
    for name in ('x.bmp', 'x.tif'):
        put(tmp_path / name, disc())
        (tmp_path / f'cut_{name}').write_bytes((tmp_path / name).read_bytes()[:100])
        (tmp_path / f'empty_{name}').write_bytes(b'')
    os.mkfifo(tmp_path / 'pipe.bmp')
    for name, why in (('two.tif', '2 frames'), ('real.tif', 'mode F'), ('cut_x.bmp', 'damaged'),
                      ('cut_x.tif', 'damaged'),
                      ('empty_x.bmp', 'damaged'), ('empty_x.tif', 'damaged'), ('pipe.bmp', 'not a regular file')):
        with pytest.raises(errors.BadData, match=why) as found:
            bitmap.read(str(tmp_path / name), 10_000)
        assert name in str(found.value)
    for name in ('x.bmp', 'x.tif'):
        with pytest.raises(errors.BadData, match='max_pixels'):
            bitmap.read(str(tmp_path / name), 479)
        np.testing.assert_array_equal(bitmap.read(str(tmp_path / name), 480), disc())
    deep = (picture(0, colour=False).astype(np.uint16) * 257)
    Image.fromarray(deep).save(tmp_path / 'deep.tif')
    np.testing.assert_array_equal(bitmap.read(str(tmp_path / 'deep.tif'), 480), deep)
    with pytest.raises(errors.MissingInput):
        bitmap.read(str(tmp_path / 'none.bmp'), 480)


def test_options_that_cannot_be(polyps):
    for wrong, why in ((dict(layout='flat'), 'layout'), (dict(duplicates='merge'), 'duplicates'),
                       (dict(on_error='stop'), 'on_error'), (dict(values=(0, 128, 255)), 'values'),
                       (dict(values=(0, 0)), 'values'),
                       (dict(labels=('a', 'a')), 'labels'), (dict(tolerance=-1), 'tolerance'),
                       (dict(patient='('), 'no regular expression'), (dict(patient='a'), 'one group'),
                       (dict(masks='images'), 'suffix')):
        with pytest.raises(errors.ConfigError, match=why):
            build(polyps, **wrong)
    with pytest.raises(errors.MissingInput, match='root'):
        build(polyps / 'x')
    with pytest.raises(errors.MissingInput, match='pictures'):
        build(polyps, images='img')
    put(polyps / 'images' / 'a1.png', picture(0))
    with pytest.raises(errors.BadData, match='both a1.jpg and a1.png'):
        build(polyps)


def test_real_masks_of_lungs():
    root = pathlib.Path(os.environ.get('JAXKD_REAL_DATA', ROOT / '..' / 'shared' / 'data')) / 'covid_chestxray'
    if not root.is_dir():
        pytest.skip(f'no covid_chestxray in {root.parent.resolve()} (JAXKD_REAL_DATA)')
    given = dict(masks='annotations/lungVAE-masks', suffix='_mask', labels=('background', 'lung'))
    source = build(root, **given, on_error='skip')
    assert len(source) == 101 and len(source.skipped) == 220  # most images there have no such mask
    assert all('has no mask' in reason for _, reason in source.skipped)
    shares = [(source[i]['label'] == 1).mean() for i in range(0, 101, 10)]
    assert 0.1 < min(shares) and max(shares) < 0.7
    with pytest.raises(errors.MissingInput, match='has no mask'):
        build(root, **given)
