"""What the attributes of a DICOM file say of its pixels: depths, signs, scales, colours, compressions; packed TIFF."""
import struct

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset, FileMetaDataset

from jaxkd import errors
from jaxkd.data import volume
from jaxkd.data.formats import bitmap, film, picture
from tests.data.test_volume import ORIENTATIONS, rotation, series

QUICK = dict(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def stored(draw, shape):
    """(voxels in a type of 8 or 16 bits, BitsStored): values that so many bits can hold, the extremes among them."""
    allocated, signed = draw(st.sampled_from([8, 16])), draw(st.booleans())
    bits = draw(st.integers(2, allocated))
    low, high = (-2**(bits - 1), 2**(bits - 1) - 1) if signed else (0, 2**bits - 1)
    voxels = np.random.default_rng(draw(st.integers(0, 2**32))).integers(low, high, shape, endpoint=True)
    voxels.flat[:2] = low, high
    return voxels.astype(f'{"i" if signed else "u"}{allocated // 8}'), bits


@pytest.mark.filterwarnings('ignore')
@settings(max_examples=200, **QUICK)
@given(content=stored((3, 4, 2)), slope=st.sampled_from([None, 1, 0.5, 2.25]), intercept=st.integers(-1024, 50),
       photometric=st.sampled_from(['MONOCHROME1', 'MONOCHROME2']),
       window=st.sampled_from([None, (40, 400), (-600, 1500)]),
       sides=st.tuples(*[st.floats(0.2, 6)] * 3), orientation=st.sampled_from(ORIENTATIONS), angle=st.floats(0, 0.7),
       dirty=st.booleans(), modality=st.sampled_from(['CT', 'MR', 'PT']))
def test_a_series_is_read_as_it_was_written(tmp_path, content, slope, intercept, photometric, window, sides,
                                            orientation, angle, dirty, modality):
    voxels, bits = content
    order, signs = orientation
    frame = (rotation(np.random.default_rng(3), angle) * signs)[:, list(order)]
    tags = dict(PhotometricInterpretation=photometric, BitsStored=bits, HighBit=bits - 1,
                PixelRepresentation=int(voxels.dtype.kind == 'i'))
    if slope:
        tags |= dict(RescaleSlope=slope, RescaleIntercept=intercept)
    if window:
        tags |= dict(WindowCenter=window[0], WindowWidth=window[1])
    unsigned = voxels.view(f'u{voxels.itemsize}')
    padded = unsigned | np.asarray((2**(8 * voxels.itemsize) - 2**bits) * dirty, unsigned.dtype)  # no bits of a pixel
    for path in tmp_path.glob('x/*'):
        path.unlink()
    affine = series(tmp_path / 'x', padded.view(voxels.dtype), frame, sides, modality=modality, **tags)
    found = volume.read(tmp_path / 'x')
    want = voxels * float(slope) + intercept if slope else voxels
    places = np.argwhere(np.ones(voxels.shape))
    at = volume.index(found.affine, volume.world(affine, places))
    np.testing.assert_allclose(at, np.rint(at), atol=1e-3)
    np.testing.assert_allclose(found.voxels[tuple(np.rint(at).astype(int).T)], want[tuple(places.T)], rtol=1e-6)


def put(path, pixels, photometric, bits=None, **tags):
    """One picture as a DICOM file."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPInstanceUID = pydicom.uid.ExplicitVRLittleEndian, '1.2'
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    d = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    d.SOPClassUID, d.SOPInstanceUID, d.Modality = meta.MediaStorageSOPClassUID, '1.2', 'XC'
    d.Rows, d.Columns = pixels.shape[:2]
    d.SamplesPerPixel, d.PhotometricInterpretation = 3 if pixels.ndim > 2 else 1, photometric
    d.BitsAllocated, d.PixelRepresentation = 8 * pixels.itemsize, int(pixels.dtype.kind == 'i')
    d.BitsStored = bits or d.BitsAllocated
    d.HighBit, d.PixelData = d.BitsStored - 1, pixels.tobytes() + bytes(pixels.nbytes % 2)
    for key, value in tags.items():
        setattr(d, key, value)
    d.save_as(path, enforce_file_format=True)
    return str(path)


@pytest.mark.filterwarnings('ignore')
@settings(max_examples=200, **QUICK)
@given(content=stored((3, 5)), inverted=st.booleans(), slope=st.sampled_from([1, 0.5]))
def test_grey_pictures_of_either_sign(tmp_path, content, inverted, slope):
    """Black is the lowest value that the bits can hold, and a window or slope changes nothing."""
    pixels, bits = content
    path = put(tmp_path / 'x.dcm', pixels, 'MONOCHROME1' if inverted else 'MONOCHROME2', bits, RescaleSlope=slope,
               RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    low = -2**(bits - 1) if pixels.dtype.kind == 'i' else 0
    want = pixels.astype(int) - low
    want = 2**bits - 1 - want if inverted else want
    found = film.read(path)
    assert found.dtype == f'u{pixels.itemsize}'
    np.testing.assert_array_equal(found, want)
    if 8 <= bits < 16 and pixels.itemsize == 2:
        np.testing.assert_allclose(picture.read(path), want / (2**bits - 1), rtol=1e-6)


def test_signed_pictures_are_said_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(film, '_reported', set())
    pixels = np.array([[-1000, 0], [50, 3000]], np.int16)
    for name in 'ab':
        picture.read(put(tmp_path / name, pixels, 'MONOCHROME2'))
    said = capsys.readouterr().out
    assert said.count('its pixels are signed, -1000 to 3000 of 16 bits; black is -32768') == 1


def to_ybr(rgb):
    """BT.601 of full range, as DICOM defines YBR_FULL."""
    matrix = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    return np.clip(np.rint(rgb @ np.transpose(matrix) + (0, 128, 128)), 0, 255).astype(np.uint8)


@settings(max_examples=200, **QUICK)
@given(seed=st.integers(0, 2**32), planar=st.booleans(), photometric=st.sampled_from(['RGB', 'YBR_FULL']),
       height=st.integers(1, 5), width=st.integers(1, 5))
def test_colours(tmp_path, seed, planar, photometric, height, width):
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    pixels = rgb if photometric == 'RGB' else to_ybr(rgb)
    pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1)).reshape(height, width, 3) if planar else pixels
    path = put(tmp_path / 'x.dcm', pixels, photometric, PlanarConfiguration=int(planar))
    np.testing.assert_allclose(picture.read(path), rgb, atol=0 if photometric == 'RGB' else 2)
    with pytest.raises(errors.BadData, match='it is coloured. Convert it to grey'):
        film.read(path)


@pytest.mark.filterwarnings('ignore')
def test_pictures_that_pydicom_brings():
    want = picture.read(get_testdata_file('SC_rgb_jpeg_dcmd.dcm', download=False))
    assert want.shape == (256, 256, 3) and want.dtype == np.uint8
    half = picture.read(get_testdata_file('SC_ybr_full_422_uncompressed.dcm', download=False))
    whole = picture.read(get_testdata_file('SC_rgb_rle.dcm', download=False))
    assert half.shape == (100, 100, 3) and np.abs(half.astype(int) - whole).mean() < 3


@pytest.mark.parametrize('photometric, pixels, tags, why', [
    ('PALETTE COLOR', np.zeros((2, 2), np.uint8), {}, 'its pixels are PALETTE COLOR, 1 x 8 bits, which are not read'),
    ('RGB', np.zeros((2, 2, 3), np.uint16), {}, 'its pixels are RGB, 3 x 16 bits'),
    ('HSV', np.zeros((2, 2, 3), np.uint8), {}, 'its pixels are HSV, 3 x 8 bits'),
    ('MONOCHROME2', np.zeros((2, 2), np.uint32), {}, 'its pixels are MONOCHROME2, 1 x 32 bits'),
    ('MONOCHROME2', np.zeros((2, 2), 'u2'), dict(BitsStored=12), 'its BitsAllocated 16, BitsStored 12 and HighBit 15')])
@pytest.mark.filterwarnings('ignore')
def test_pixels_that_are_not_read_are_named(tmp_path, photometric, pixels, tags, why):
    path = put(tmp_path / 'x.dcm', pixels, photometric, PlanarConfiguration=0, **tags)
    with pytest.raises(errors.BadData, match=f'x.dcm cannot be used: {why}'):
        picture.read(path)


def lossless_jpeg(pixels, precision):
    """JPEG Lossless (process 14, first-order prediction) of unsigned pixels [H,W], with a code of 5 bits a category."""
    rows, columns = pixels.shape
    previous = np.empty(pixels.shape, int)
    previous[:, 1:], previous[1:, 0], previous[0, 0] = pixels[:, :-1], pixels[:-1, 0], 2**(precision - 1)
    text = ''
    for difference in (pixels.astype(int) - previous).ravel().tolist():
        difference = (difference + 32767) % 65536 - 32767
        size = abs(difference).bit_length()
        value = difference if difference >= 0 else difference + 2**size - 1
        text += f'{size:05b}' + (f'{value:0{size}b}' if 0 < size < 16 else '')
    text += '1' * (-len(text) % 8)
    data = bytes(int(text[i:i + 8], 2) for i in range(0, len(text), 8)).replace(b'\xff', b'\xff\0')
    frame = struct.pack('>BHHBBBB', precision, rows, columns, 1, 1, 0x11, 0)
    table = bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])

    def segment(marker, content):
        return bytes([0xff, marker]) + struct.pack('>H', len(content) + 2) + content
    return (b'\xff\xd8' + segment(0xc3, frame) + segment(0xc4, table) + segment(0xda, bytes([1, 1, 0, 1, 0, 0])) + data
            + b'\xff\xd9')


def put_lossless(path, pixels, bits):
    put(path, pixels, 'MONOCHROME2', bits)
    d = pydicom.dcmread(path)
    d.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
    d.PixelData = pydicom.encaps.encapsulate([lossless_jpeg(pixels, bits)])
    d['PixelData'].is_undefined_length = True
    d.save_as(path, enforce_file_format=True)
    return str(path)


@pytest.mark.parametrize('bits', [8, 12, 16])
def test_lossless_jpeg(tmp_path, bits):
    pytest.importorskip('libjpeg', reason='the extra "dicom" is not installed')
    pixels = np.random.default_rng(bits).integers(0, 2**bits, (9, 7)).astype('u1' if bits == 8 else 'u2')
    np.testing.assert_array_equal(film.read(put_lossless(tmp_path / 'x.dcm', pixels, bits)), pixels)


def test_jpeg_of_twelve_bits():
    pytest.importorskip('libjpeg', reason='the extra "dicom" is not installed')
    found = film.read(get_testdata_file('JPGExtended.dcm', download=False))
    assert found.shape == (1024, 256) and (found[420, 140], found[230, 120], found.max()) == (244, 95, 264)
    rgb = picture.read(get_testdata_file('SC_rgb_jpeg_gdcm.dcm', download=False))
    np.testing.assert_array_equal(rgb, picture.read(get_testdata_file('SC_rgb_rle.dcm', download=False)))


@pytest.mark.parametrize('name', ['JPGExtended.dcm', ''])
def test_a_codec_that_is_not_installed_is_named_and_the_file_is_not_called_damaged(tmp_path, name, monkeypatch):
    decoders = {uid: pydicom.pixels.get_decoder(uid) for uid in (pydicom.uid.JPEGExtended12Bit,
                                                                 pydicom.uid.JPEGLosslessSV1)}
    for decoder in decoders.values():
        monkeypatch.setattr(decoder, '_available', {k: v for k, v in decoder._available.items() if k == 'pillow'})
    path = get_testdata_file(name, download=False) if name else put_lossless(tmp_path / 'x', np.ones((2, 2), 'u2'), 16)
    with pytest.raises(errors.ConfigError, match=r"pip install 'jaxkd-medical\[dicom\]'"):
        picture.read(path)


def packed_tiff(pixels, bits, order):
    """A TIFF whose pixels follow each other without gaps, each row from a whole byte on."""
    rows = [''.join(f'{v:0{bits}b}' for v in row) for row in pixels.tolist()]
    rows = [row + '0' * (-len(row) % 8) for row in rows]
    data = b''.join(bytes(int(row[i:i + 8], 2) for i in range(0, len(row), 8)) for row in rows)
    height, width = pixels.shape
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height),
               (279, len(data))]
    out = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(f'{order}I', 8 + len(data)) + data
    out += struct.pack(f'{order}H', len(entries))
    for tag, value in entries:
        out += struct.pack(f'{order}HHII', tag, 4, 1, value)
    return out + bytes(4)


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('bits', [10, 12, 14])
def test_packed_tiff_is_read_right_or_named(tmp_path, bits, order):
    pixels = np.random.default_rng(bits).integers(0, 2**bits, (5, 7)).astype(np.uint16)
    (tmp_path / 'x.tif').write_bytes(packed_tiff(pixels, bits, order))
    path = str(tmp_path / 'x.tif')
    if (bits, order) == (12, '<'):  # as Pillow does
        np.testing.assert_array_equal(bitmap.read(path, 100), pixels)
        np.testing.assert_allclose(picture.read(path), pixels / 4095, rtol=1e-6)
        return
    with pytest.raises(errors.BadData, match=f'x.tif cannot be used: its pixels of {bits} bits .Photometric'
                                             'Interpretation 1, Compression 1. are not read. Save it as 8- or 16-bit'):
        picture.read(path)
