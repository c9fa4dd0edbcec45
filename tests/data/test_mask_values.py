import csv
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import errors
from jaxkd.data import mask_values, volume
from jaxkd.data.formats import bitmap, image
from jaxkd.data.sources import dualphase, masks, paired

CLASSES = 'background', 'organ', 'tumour', 'cyst'
GRID = np.diag([1.0, 1.0, 2.0, 1.0])


def picture_mask(*values, size=24):
    """Bands of equal height, one of each value."""
    return np.repeat(np.array(values), size // len(values))[:, None] * np.ones((1, size), int)


@given(st.integers(2, 4), st.sampled_from(['uint8', 'int16', 'uint16', 'int32', 'float32', 'float64']),
       st.integers(2, 3), st.sets(st.integers(-2, 260), max_size=2), st.floats(-0.04, 0.04), st.integers(0, 2**32),
       st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_mask_is_its_indices_or_is_refused(count, dtype, dims, further, off, seed, ignored):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, count, (3, 4, 5)[:dims])
    further = [v for v in further if np.dtype(dtype).kind != 'u' or 0 <= v <= np.iinfo(dtype).max]
    for value in further:
        label[tuple(rng.integers(0, n) for n in label.shape)] = value
    voxels = (label + (off if np.dtype(dtype).kind == 'f' else 0)).astype(dtype)
    present = np.unique(label).tolist()
    undeclared = {*present} - {*range(count), *([255] if ignored else [])}
    white = count == 2 and not ignored and {*present} in ({255}, {0, 255})
    if white:
        label = label // 255
    elif undeclared:
        with pytest.raises(errors.BadData) as caught:
            mask_values.indices(voxels, CLASSES[:count], 'm.nii', ignored)
        value = min(undeclared)
        assert f'{value:g} in {(label == value).sum():,}' in str(caught.value) and 'm.nii' in str(caught.value)
        return
    out = mask_values.indices(voxels, CLASSES[:count], 'm.nii', ignored)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, label)


@pytest.mark.parametrize('voxels', [[0, 0.5, 1], [0, 2], [0, 1, 255], [0, 254], [-1, 0, 1], [0, 0.9]])
def test_only_0_and_1_or_255_are_binary(voxels):
    with pytest.raises(errors.BadData, match='no class has'):
        mask_values.binary(np.array(voxels), 'm.nrrd')


@pytest.mark.parametrize('shares', [[0, 1 / 255], [0, 0.04], [-0.01, 0], [0, 1 / 255, 2 / 255]])
def test_a_mask_of_which_all_would_round_to_background_is_refused(shares):
    """As a slope of 1/255 in a header makes it of 0 and 1; a case of that mask would have no lesion, in silence."""
    for dtype in (np.float32, np.float64):
        mask = np.repeat(np.array(shares, dtype), 4).reshape(-1, 2, 2)
        for read in (mask_values.binary, mask_values.numbered):
            with pytest.raises(errors.BadData, match=f'm.nii .*{max(shares, key=abs):g} in 4'):
                read(mask, 'm.nii')
    assert not mask_values.binary(np.array([0, 1e-6, -1e-7]), 'm').any()
    assert mask_values.binary(np.array([0.04, 1.04]), 'm').tolist() == [False, True]


def test_numbered_structures():
    assert mask_values.numbered(np.array([0, 3, 255.0]), 'm').tolist() == [False, True, True]
    for wrong in ([0, -1], [0, 1.5]):
        with pytest.raises(errors.BadData, match='in 1.; declared are whole numbers from 0'):
            mask_values.numbered(np.array(wrong), 'm')


# pictures


def write_pictures(root, stored, ending='png', bits=8, palette=None):
    for name in ('images', 'masks'):
        (root / name).mkdir(exist_ok=True)
    Image.fromarray(np.zeros(stored.shape, np.uint8)).save(root / 'images' / 'x.png')
    mask = Image.fromarray(stored.astype(np.uint8), 'P' if palette else 'L')
    if palette:
        mask.putpalette(list(itertools.chain(*palette)))
    if bits == 1:
        mask = Image.fromarray(stored > 0)
    how = {'bits': bits} if palette and bits < 8 and ending == 'png' else {}
    mask.save(root / 'masks' / f'x.{ending}', **how)
    return root / 'masks' / f'x.{ending}'


def build_masks(root, **options):
    return masks.build(ConfigDict({**masks.DEFAULTS, 'root': str(root), **options}))


def png_of_bits(path, stored, bits):
    """A grey PNG of 1, 2 or 4 bits, which Pillow does not write."""
    import struct
    import zlib
    per_byte = 8 // bits
    rows = np.pad(stored.astype(np.uint8), ((0, 0), (0, -stored.shape[1] % per_byte)))
    rows = rows.reshape(len(rows), -1, per_byte) << np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    content = b''.join(b'\0' + row.tobytes() for row in rows.sum(-1, dtype=np.uint8))
    head = struct.pack('>IIBBBBB', stored.shape[1], stored.shape[0], bits, 0, 0, 0, 0)
    chunks = ((b'IHDR', head), (b'IDAT', zlib.compress(content)), (b'IEND', b''))
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        for kind, data in chunks))


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_a_png_of_few_bits_gives_its_index(tmp_path, bits):
    stored = picture_mask(*range(min(2**bits, 4)))
    path = write_pictures(tmp_path, stored)
    png_of_bits(path, stored, bits)
    np.testing.assert_array_equal(image.stored_numbers(str(path)), stored)
    count = min(2**bits, 4)
    label = build_masks(tmp_path, labels=CLASSES[:count], values=tuple(range(count)))[0]['label']
    np.testing.assert_array_equal(label, stored)
    greys = tuple(255 // (2**bits - 1) * k for k in range(count))  # what viewers show
    np.testing.assert_array_equal(build_masks(tmp_path, labels=CLASSES[:count], values=greys)[0]['label'], stored)


@given(st.sampled_from([1, 2, 4]), st.integers(1, 9), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_numbers_of_few_bits(tmp_path_factory, bits, width, seed):
    stored = np.random.default_rng(seed).integers(0, 2**bits, (3, width))
    path = tmp_path_factory.getbasetemp() / 'bits.png'
    png_of_bits(path, stored, bits)
    np.testing.assert_array_equal(image.stored_numbers(str(path)), stored)
    np.testing.assert_array_equal(image.read(str(path)), stored * (255 // (2**bits - 1)))


@pytest.mark.parametrize('ending', ['png', 'bmp', 'tif'])
def test_a_palette_gives_its_numbers(tmp_path, ending):
    stored = picture_mask(0, 1, 2)
    write_pictures(tmp_path, stored, ending, palette=[(0, 0, 0), (200, 0, 0), (0, 150, 0)])
    label = build_masks(tmp_path, labels=CLASSES[:3], values=(0, 1, 2))[0]['label']
    np.testing.assert_array_equal(label, stored)
    with pytest.raises(errors.BadData, match=r'coloured, and the numbers of its palette \(0, 1, 2\)'):
        build_masks(tmp_path)
    write_pictures(tmp_path, picture_mask(0, 1), ending, palette=[(0, 0, 0), (255, 255, 255)])
    if ending == 'bmp':  # 8 bits and two colours, which Pillow takes for one bit
        with pytest.raises(errors.BadData, match='which Pillow reads wrongly. Save it as PNG'):
            build_masks(tmp_path)
    else:
        np.testing.assert_array_equal(build_masks(tmp_path)[0]['label'], picture_mask(0, 1))


def test_a_palette_with_two_meanings_is_refused(tmp_path):
    write_pictures(tmp_path, picture_mask(0, 1), palette=[(1, 1, 1), (0, 0, 0)])
    with pytest.raises(errors.BadData, match='both values, and differ'):
        build_masks(tmp_path, values=(0, 1))


def test_bits_of_bitmaps(tmp_path):
    Image.fromarray(picture_mask(0, 1) > 0).save(tmp_path / 'a.bmp')
    Image.fromarray(picture_mask(0, 1) > 0).save(tmp_path / 'a.tif')
    for ending in ('bmp', 'tif'):
        np.testing.assert_array_equal(bitmap.stored_numbers(str(tmp_path / f'a.{ending}'), 10**6), picture_mask(0, 1))


@pytest.mark.parametrize('values, stored, count', [
    ((0, 1, 2), (0, 1, 2, 3), 144), ((0, 10, 20), (0, 10, 20, 30), 144), ((0, 10, 20), (0, 10, 15, 20), 144),
    ((0, 128, 255), (0, 64, 128, 255), 144), ((0, 255), (0, 128, 255), 192)])
@pytest.mark.parametrize('tolerance', [0, 16, 127])
def test_a_class_that_is_not_listed_is_refused_with_its_count_before_training(tmp_path, values, stored, count,
                                                                             tolerance):
    write_pictures(tmp_path, picture_mask(*stored))
    unlisted = ({*stored} - {*values}).pop()
    with pytest.raises(errors.BadData, match=rf'x\.png cannot be used.*{unlisted} \({count}\)'):
        build_masks(tmp_path, labels=CLASSES[:len(values)], values=values, tolerance=tolerance)


@pytest.mark.parametrize('stored, count', [((0, 1, 255), 192), ((0, 7), 288), ((0, 248, 255), 192)])
def test_a_class_within_the_default_tolerance_is_refused_too(tmp_path, stored, count):
    """A number of an instance, or a border, next to 0: an even patch, as 0 itself is."""
    write_pictures(tmp_path, picture_mask(*stored))
    with pytest.raises(errors.BadData, match=rf'x\.png cannot be used.*{stored[1]} \({count}\)'):
        build_masks(tmp_path, labels=CLASSES[:2], values=(0, 255))
    write_pictures(tmp_path, picture_mask(0, 254))  # scaled a little: nothing in it is 255
    label = build_masks(tmp_path, labels=CLASSES[:2], values=(0, 255))[0]['label']
    np.testing.assert_array_equal(label, picture_mask(0, 1))


def test_classes_that_no_mask_holds_are_named(tmp_path, capsys):
    write_pictures(tmp_path, picture_mask(0, 1))
    build_masks(tmp_path, labels=CLASSES, values=(0, 1, 2, 3))
    assert 'masks: no mask holds tumour, cyst' in capsys.readouterr().out


# volumes


def save_volume(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith('.nrrd'):
        import nrrd
        nrrd.write(str(path), voxels, {'space': 'right-anterior-superior', 'space directions': GRID[:3, :3],
                                       'space origin': [0, 0, 0]})
    else:
        volume.save(path, voxels, volume.Volume(voxels, GRID))


def build_dualphase(root, values_of_masks, pe='', ending='nii.gz', **options):
    rows = []
    for i, values in enumerate(values_of_masks):
        mask = np.zeros((6, 5, 4), np.uint8)
        mask[1:1 + len(values)] = np.array(values)[:, None, None]
        save_volume(root / f'c{i}' / 'nct.nii.gz', np.zeros(mask.shape, np.int16))
        save_volume(root / f'c{i}' / f'label.{ending}', mask)
        rows.append((f'c{i}', f'p{i}', pe, ''))
    with open(root / 'cases.csv', 'w', newline='') as f:
        csv.writer(f).writerows([('case_id', 'patient_id', 'pe', 'split'), *rows])
    return dualphase.build(ConfigDict({**dualphase.DEFAULTS, 'root': str(root), **options}))


@pytest.mark.parametrize('ending', ['nii.gz', 'nrrd'])
def test_masks_of_0_and_255_are_emboli_where_none_holds_1(tmp_path, ending, capsys):
    source = build_dualphase(tmp_path, [(0, 255), (0,)] * 6, ending=ending)
    assert source.targets['pe'].tolist() == [1, 0] * 6
    assert {*np.unique(source[0]['label'].voxels)} == {0, 1} and not source[1]['label'].voxels.any()
    assert '6 masks hold only 0 and 255, and none holds 1: 255 is read as embolus' in capsys.readouterr().out


def test_255_beside_1_is_not_known(tmp_path, capsys):
    source = build_dualphase(tmp_path, [(0, 1, 255), (0, 255), (0, 1)])
    assert source.targets['pe'].tolist() == [1, 0, 1]
    assert {*np.unique(source[0]['label'].voxels)} == {0, 1, 255} == {*np.unique(source[1]['label'].voxels)} | {1}
    assert '255 is "not known" in masks; 1 hold no 1' in capsys.readouterr().out


def test_0_and_255_beside_0_and_1_must_be_decided(tmp_path):
    values = [(0, 1), (0, 255)]
    with pytest.raises(errors.BadData, match='c1/label.nii.gz cannot be used: it holds only 0 and 255.*white=embolus'):
        build_dualphase(tmp_path, values)
    assert build_dualphase(tmp_path, values, on_error='skip').skipped[0][0] == 'c1'
    assert build_dualphase(tmp_path, values, white='embolus').targets['pe'].tolist() == [1, 1]
    assert build_dualphase(tmp_path, values, white='ignored').targets['pe'].tolist() == [1, 0]


def test_an_unlisted_voxel_stops_before_training_though_the_table_says_pe(tmp_path):
    with pytest.raises(errors.BadData, match='c1/label.nii.gz cannot be used.*3 in 20.; declared are 0 .background'):
        build_dualphase(tmp_path, [(0, 1), (0, 1, 3)], pe='1')


@pytest.mark.parametrize('ending', ['nii', 'nii.gz', 'nrrd'])
@pytest.mark.parametrize('values', [(0, 1), (0, 255), (0, 1, 2)])
def test_masks_that_centre_crops_are_binary(tmp_path, ending, values):
    mask = np.zeros((6, 5, 4), np.uint8)
    for k, value in enumerate(values):
        mask[1 + k] = value
    save_volume(tmp_path / 'c0' / 'ct.nii.gz', np.zeros(mask.shape, np.int16))
    save_volume(tmp_path / 'c0' / f'roi_ct.{ending}', mask)
    (tmp_path / 'cases.csv').write_text('case_id,patient_id,cls\nc0,p0,1\n')
    options = ConfigDict({**paired.DEFAULTS, 'root': str(tmp_path), 'labels': ('no', 'yes'),
                          'modalities': ('ct',), 'tasks': (), 'classes': ()})
    if len(values) > 2:
        with pytest.raises(errors.BadData, match=r'roi_ct.* cannot be used.*2 in 20'):
            paired.build(options)
    else:
        np.testing.assert_allclose(paired.build(options)[0]['centre']['ct'], (2, 2, 3))
