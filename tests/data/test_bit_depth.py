"""Grey of 10, 12 and 14 bits in files of 16 reaches a network as its 8-bit version does."""
import csv
import io
import struct
import zlib

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image, TiffImagePlugin
from pydicom.dataset import FileDataset, FileMetaDataset

from jaxkd import config, errors
from jaxkd.data import pool, prepare
from jaxkd.data.formats import picture
from jaxkd.data.transforms import image

GREY_LEVEL = 1.01 / 255


def put_png(path, pixels, bits=0):
    """A PNG, with the chunk sBIT where bits are given."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, 'PNG')
    data = content.getvalue()
    if bits:
        chunk = b'sBIT' + bytes([bits])
        data = data[:33] + struct.pack('>I', 1) + chunk + struct.pack('>I', zlib.crc32(chunk)) + data[33:]
    path.write_bytes(data)


def put_tiff(path, pixels, max_value=None, description=None):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if max_value:
        tags[281] = max_value
    if description:
        tags[270] = description
    Image.fromarray(pixels).save(path, 'TIFF', tiffinfo=tags)


def put_dicom(path, pixels, bits, inverted=False, part10=True):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = '1.2'
    d = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    d.SOPClassUID, d.SOPInstanceUID, d.Modality = meta.MediaStorageSOPClassUID, '1.2', 'DX'
    d.Rows, d.Columns, d.SamplesPerPixel = *pixels.shape, 1
    d.PhotometricInterpretation = 'MONOCHROME1' if inverted else 'MONOCHROME2'
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 8 * pixels.itemsize, bits, bits - 1, 0
    d.PixelData = (np.asarray(2**bits - 1, pixels.dtype) - pixels if inverted else pixels).tobytes()
    d.save_as(path, enforce_file_format=True)
    if not part10:
        path.write_bytes(path.read_bytes()[132:])


def pair(seed, bits):
    """(uint8 [12,9], uint16 of so many bits) of one picture that has black and white."""
    x = np.random.default_rng(seed).random((12, 9))
    x[0, :2] = 0, 1
    return np.rint(x * 255).astype(np.uint8), np.rint(x * (2**bits - 1)).astype(np.uint16)


def network_input(pixels, **options):
    hp = ConfigDict({**image.DEFAULTS, 'size': 12, 'fit': 'letterbox', **options})
    return image.build(hp).apply({'image': pixels})['image']


FORMS = {
    'sBIT': lambda path, pixels, bits: put_png(path, pixels, bits),
    'sBIT, shifted as the standard says': lambda path, pixels, bits: put_png(
        path, (pixels << (16 - bits)) | (pixels >> (2 * bits - 16)), bits),
    'sBIT, shifted': lambda path, pixels, bits: put_png(path, pixels << (16 - bits), bits),
    'MaxSampleValue': lambda path, pixels, bits: put_tiff(path, pixels, 2**bits - 1),
    'SignificantBits': lambda path, pixels, bits: put_tiff(
        path, pixels, description=f'<OME><Pixels Type="uint16" SignificantBits="{bits}"/></OME>'),
    'BitsStored': put_dicom,
    'MONOCHROME1': lambda path, pixels, bits: put_dicom(path, pixels, bits, inverted=True),
    'no Part 10': lambda path, pixels, bits: put_dicom(path, pixels, bits, part10=False),
}


@pytest.mark.filterwarnings('ignore')
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), bits=st.integers(9, 15), form=st.sampled_from(sorted(FORMS)))
def test_bits_that_a_file_declares(tmp_path, seed, bits, form):
    eight, deep = pair(seed, bits)
    FORMS[form](tmp_path / 'x', deep, bits)
    found = picture.read(str(tmp_path / 'x'))
    assert found.dtype == np.float32
    np.testing.assert_allclose(network_input(found), network_input(eight), atol=GREY_LEVEL)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), bits=st.integers(8, 16), most=st.integers(1, 15))
def test_bits_that_the_option_declares(seed, bits, most):
    eight, deep = pair(seed, bits)
    np.testing.assert_allclose(network_input(deep, bits=bits), network_input(eight), atol=GREY_LEVEL)
    dark = deep % 2**most
    with pytest.raises(errors.BadData, match='data.image.bits'):
        network_input(dark)


@pytest.mark.filterwarnings('ignore')
def test_markers_brighter_than_the_picture_are_said(tmp_path, capsys):
    """12 bits with a letter burnt in at 65535: the range of the values is 16 bits, and the picture would be dark."""
    rng = np.random.default_rng(0)
    (tmp_path / 'cases.csv').write_text('patient_id,image,split,a\n' + ''.join(f'p{i},{i}.png,train,{i % 2}\n'
                                                                              for i in range(6)))
    for i in range(6):
        pixels = rng.integers(0, 4096, (64, 64)).astype(np.uint16)
        pixels[:1, :2] = 65535
        Image.fromarray(pixels).save(tmp_path / f'{i}.png')

    def dataset(**options):
        return pool.build(config.resolve(ConfigDict(dict(data=dict(
            source=dict(name='folder', root=str(tmp_path), empty_text='ok'), transforms=('image',),
            image=dict(size=64, fit='squash', **options), split=dict(fractions=(1.0, 0.0, 0.0)))))).data)
    assert dataset().prepared(0)['image'][2:].max() < 0.07
    said = capsys.readouterr().out
    assert 'up to 65535 in 6 of 6 training cases is read as 16 bits' in said
    assert '0.049 % of these pixels alone are above 4095' in said and 'data.image.bits=12 with data.image.clip' in said
    image = dataset(bits=12, clip=True).prepared(0)['image']
    assert image[0, 0] == 1 and image[2:].max() == pytest.approx(1, abs=0.01)
    with pytest.raises(errors.BadData, match='more than 12 bits'):
        dataset(bits=12).prepared(0)
    assert 'these pixels alone' not in capsys.readouterr().out


def test_grey_that_an_offset_hides_is_refused(tmp_path):
    """CT stored without sign, 32768 added, as in DeepLesion: 250 grey levels of 65536."""
    rng = np.random.default_rng(0)
    (tmp_path / 'cases.csv').write_text('patient_id,image,split,a\n' + ''.join(f'p{i},{i}.png,train,{i % 2}\n'
                                                                              for i in range(4)))
    for i in range(4):
        Image.fromarray(rng.integers(32600, 32850, (32, 32)).astype(np.uint16)).save(tmp_path / f'{i}.png')

    def dataset(**options):
        return pool.build(config.resolve(ConfigDict(dict(data=dict(
            source=dict(name='folder', root=str(tmp_path), empty_text='ok'), transforms=('image',),
            image=dict(size=32, fit='squash', **options), split=dict(fractions=(1.0, 0.0, 0.0)))))).data)
    with pytest.raises(errors.BadData, match='lies between 32600 and 32849.*Subtract.*data.image.bits=16'):
        dataset()
    assert dataset(bits=16).prepared(0)['image'].mean() == pytest.approx(0.5, abs=0.01)


def test_what_declares_nothing_stays_as_it_is(tmp_path):
    _, deep = pair(0, 12)
    path = tmp_path / 'x'
    for put in (lambda: put_png(path, deep), lambda: put_png(path, deep, 16), lambda: put_tiff(path, deep),
                lambda: put_tiff(path, deep, 3127), lambda: put_dicom(path, deep, 16)):  # 3127: of this picture
        put()
        found = picture.read(str(path))
        assert found.dtype == np.uint16 and (found == deep).all()
    eight = pair(0, 8)[0]
    for put in (lambda: put_png(path, eight), lambda: put_tiff(path, eight), lambda: put_dicom(path, eight, 8),
                lambda: Image.fromarray(eight).save(path, 'BMP')):
        put()
        assert (picture.read(str(path)) == eight).all()
    put_tiff(path, deep, 255)
    with pytest.raises(errors.BadData, match='4095, more than 8 bits'):
        picture.read(str(path))
    path.write_bytes(b'GIF89a')
    with pytest.raises(errors.BadData, match='none of PNG, JPEG, BMP, TIFF and DICOM'):
        picture.read(str(path))


def folder(root, bits, ending='png', n=40, only=None):
    """A folder of pictures of so many bits, in files that declare nothing; `only`: the share that is deep."""
    root.mkdir()
    rows = [('patient_id', 'image', 'split', 'Mass')]
    for i in range(n):
        deep = pair(i, bits)[1 if bits > 8 and (only is None or i % only == 0) else 0]
        if bits == 8 and ending == 'dcm':
            put_dicom(root / f'{i}.{ending}', deep, 8)
        elif ending == 'dcm':
            put_dicom(root / f'{i}.{ending}', deep, 16)
        else:
            Image.fromarray(deep).save(root / f'{i}.{ending}')
        rows.append((f'p{i}', f'{i}.{ending}', ('train', 'train', 'val', 'test')[i % 4], i % 2))
    with open(root / 'cases.csv', 'w', newline='') as f:
        csv.writer(f).writerows(rows)
    return root


def resolved(root, **more):
    base = dict(source=dict(name='folder', root=str(root), empty_text='ok'), transforms=('image', 'labels'),
                image=dict(size=12, fit='letterbox', **more.pop('image', {})), cache='none')
    return config.resolve(ConfigDict(dict(data=base | more))).data


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('bits, ending', [(10, 'png'), (12, 'png'), (14, 'tif'), (12, 'dcm'), (16, 'png')])
def test_the_range_of_the_training_cases(tmp_path, capsys, bits, ending):
    eight = pool.build(resolved(folder(tmp_path / 'eight', 8, ending)))
    assert eight.transforms.fitted == {} and 'bits' not in capsys.readouterr().out
    hp = resolved(folder(tmp_path / 'deep', bits, ending))
    deep = pool.build(hp)
    assert deep.transforms.fitted == {'image': {'bits': bits}}
    said = capsys.readouterr().out
    assert f'up to {2**bits - 1} in 20 of 20 training cases is read as {bits} bits' in said
    for i in range(len(eight.source.cases)):
        np.testing.assert_allclose(deep[i]['image'], eight[i]['image'], atol=GREY_LEVEL)
    again = pool.build(hp, fitted=deep.transforms.fitted, fit=False)  # another stage, or a resumed run
    assert again.transforms.fitted == deep.transforms.fitted and 'bits' not in capsys.readouterr().out
    assert pool.build(resolved(tmp_path / 'deep', image=dict(bits=bits))).transforms.fitted == {}


def test_eight_and_twelve_bits_in_one_folder(tmp_path):
    mixed, eight = (pool.build(resolved(folder(tmp_path / str(only), bits, only=only)))
                    for bits, only in ((12, 5), (8, None)))
    assert mixed.transforms.fitted == {'image': {'bits': 12}}
    for i in range(40):
        np.testing.assert_allclose(mixed[i]['image'], eight[i]['image'], atol=GREY_LEVEL)


def test_a_brighter_picture_than_those_of_training_is_named(tmp_path):
    root = folder(tmp_path / 'x', 12)
    Image.fromarray(pair(3, 14)[1]).save(root / '3.png')
    data = pool.build(resolved(root))
    with pytest.raises(errors.BadData, match=r'Case 3.png: its image has grey values up to 16383, more than 12 bits .*'
                                             'Set data.image.bits'):
        data[3]


def test_a_store_needs_the_option(tmp_path):
    root = folder(tmp_path / 'x', 12)
    with pytest.raises(errors.BadData, match='16-bit grey up to 4095 alone.*Set data.image.bits, perhaps to 12'):
        prepare.prepare(resolved(root), tmp_path / 'store')
    hp = resolved(root, image=dict(bits=12))
    prepare.prepare(hp, tmp_path / 'store')
    stored = pool.build(resolved(root, image=dict(bits=12), cache='disk', folder=str(tmp_path / 'store')))
    np.testing.assert_array_equal(stored[1]['image'], pool.build(hp)[1]['image'])


@pytest.mark.parametrize('bits', [7, 17, -1])
def test_bits_that_there_are_not(bits):
    with pytest.raises(errors.ConfigError, match='image.bits'):
        network_input(np.zeros((4, 4), np.uint8), bits=bits)
