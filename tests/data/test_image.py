import io
import os
import pickle
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from jaxkd import errors
from jaxkd.data.formats import image

GREY = (np.add.outer(np.arange(40), np.arange(50)) * 2).astype(np.uint8)


def encode(picture, form='PNG', **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind, body):
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def png(width, height, depth, colour, rows):
    header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    chunks = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + chunks


@pytest.fixture
def put(tmp_path):
    def put(data, name='x.png'):
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)
    return put


def test_grey_is_returned_as_stored(put):
    found = image.read(put(encode(Image.fromarray(GREY))))
    assert found.dtype == np.uint8 and (found == GREY).all()
    found[0, 0] = 7  # writable and its own


def test_16_bit_grey_keeps_its_bits(put):
    deep = GREY.astype(np.uint16) * 257 + 3
    found = image.read(put(encode(Image.fromarray(deep))))
    assert found.dtype == np.uint16 and (found == deep).all()


def test_jpeg_is_close_and_chosen_by_content_not_by_name(put):
    found = image.read(put(encode(Image.fromarray(GREY), 'JPEG', quality=95), 'wrong_name.png'))
    assert found.shape == GREY.shape and np.abs(found.astype(int) - GREY).max() < 8


def test_one_bit_becomes_black_and_white(put):
    found = image.read(put(encode(Image.fromarray(GREY > 80))))
    assert (found == np.where(GREY > 80, 255, 0)).all() and found.dtype == np.uint8


def test_palette_becomes_its_colours(put):
    colours = Image.new('P', (3, 2), 1)
    colours.putpalette([0, 0, 0, 10, 20, 30])
    found = image.read(put(encode(colours)))
    assert found.shape == (2, 3, 3) and (found == [10, 20, 30]).all()


@pytest.mark.parametrize('mode, shape', [('LA', (40, 50)), ('RGBA', (40, 50, 3))])
def test_opaque_alpha_is_dropped_and_transparency_refused(put, mode, shape):
    whole = Image.fromarray(GREY).convert(mode)
    found = image.read(put(encode(whole)))
    assert found.shape == shape and (found.reshape(40, 50, -1)[..., 0] == GREY).all()
    whole.putalpha(200)
    with pytest.raises(errors.BadData, match='transparent'):
        image.read(put(encode(whole)))


def test_what_cannot_be_read_without_doubt_is_refused(put):
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = Image.new('P', (3, 2), 1)
    clear.putpalette([0, 0, 0, 9, 9, 9])
    still = Image.fromarray(GREY)
    for data, why in [
        (encode(Image.new('CMYK', (4, 4)), 'JPEG'), 'CMYK'),
        (png(5, 4, 16, 2, (b'\0' + bytes(30)) * 4), '16 bits'),
        (encode(still, 'JPEG', exif=exif), 'EXIF'),
        (encode(clear, transparency=1), 'transparent'),
        (encode(still, save_all=True, append_images=[Image.fromarray(255 - GREY)]), 'frames'),
    ]:
        with pytest.raises(errors.BadData, match=why):
            image.read(put(data))


def test_a_header_alone_is_no_image(put):
    path = put(encode(Image.fromarray(GREY))[:60])  # no pixels left
    with pytest.raises(errors.BadData):
        image.read(path)


def test_bomb_is_refused_before_decoding(put):
    claims = png(30_000, 30_000, 8, 0, b'')
    with pytest.raises(errors.BadData, match='30000 x 30000.*max_pixels'):
        image.read(put(claims))
    path = put(encode(Image.fromarray(GREY)))
    assert image.read(path, max_pixels=2000).shape == (40, 50)  # at the cap
    with pytest.raises(errors.BadData, match='max_pixels = 1,999'):
        image.read(path, max_pixels=1999)


def test_own_cap_above_that_of_the_library(put, recwarn):
    rows = (b'\0' + bytes(12_000)) * 8_000  # 96 million pixels; Pillow alone would warn
    assert image.read(put(png(12_000, 8_000, 8, 0, rows))).shape == (8_000, 12_000)
    assert not recwarn


@pytest.mark.parametrize('cut', [1, 5, 20, 300])
@pytest.mark.parametrize('form', ['PNG', 'JPEG'])
def test_truncated(put, form, cut):
    noise = np.random.default_rng(0).integers(0, 256, (40, 50)).astype(np.uint8)
    path = put(encode(Image.fromarray(noise), form)[:-cut])
    if form == 'PNG' and cut == 1:
        assert (image.read(path) == noise).all()  # of the checksum of an empty chunk: no pixel is in doubt
    else:
        with pytest.raises(errors.BadData, match='is damaged'):
            image.read(path)


def test_things_that_are_no_image(put, tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'folder.png').mkdir()
    for path in (put(b'', 'empty.png'), put(b'hello', 'text.png'), put(b'GIF89a' + bytes(50), 'gif.png'),
                 tmp_path / 'pipe', tmp_path / 'folder.png', '/dev/zero', 'a\0b'):
        with pytest.raises(errors.BadData):
            image.read(path)
    for path in (tmp_path / 'none.png', tmp_path / 'text.png' / 'x.png'):
        with pytest.raises(errors.MissingInput, match='does not exist'):
            image.read(path)


def test_huge_file_is_refused_unread(tmp_path):
    with open(tmp_path / 'sparse.png', 'wb') as f:
        f.truncate(2**40)
    with pytest.raises(errors.BadData, match='bytes'):
        image.read(tmp_path / 'sparse.png')


@pytest.mark.parametrize('add', ['add_text', 'add_itxt'])
@pytest.mark.parametrize('zip', [False, True])
def test_large_text_and_profile_beside_the_pixels_of_a_png(put, add, zip):
    info = PngImagePlugin.PngInfo()
    getattr(info, add)('comment', 'x' * 3_000_000, zip=zip)
    data = encode(Image.fromarray(GREY), pnginfo=info, icc_profile=b'x' * (2 << 20))
    tracemalloc.start()
    assert (image.read(put(data)) == GREY).all()
    assert tracemalloc.get_traced_memory()[1] < 2 * len(data) + 2**20  # nothing was unpacked
    tracemalloc.stop()
    end = data.index(b'IDAT') - 4  # text may also stand behind the pixels
    assert (image.read(put(data[:33] + data[end:-12] + data[33:end] + data[-12:])) == GREY).all()
    damaged = bytearray(data)
    damaged[data.index(b'comment') + 2] ^= 1
    with pytest.raises(errors.BadData, match='checksum'):
        image.read(put(bytes(damaged)))


@pytest.mark.parametrize('form', ['PNG', 'JPEG'])
def test_mutations_never_escape(form, tmp_path):
    """3,000 each: an image within the cap or BadData, and a PNG never with other pixels."""
    rng, path = np.random.default_rng(1), tmp_path / 'x'
    good = encode(Image.fromarray(GREY), form, **({'quality': 90} if form == 'JPEG' else {}))
    path.write_bytes(good)
    pixels, refused = image.read(path), 0
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(rng.integers(1, 5)):
            at = int(rng.integers(len(data)))
            kind = rng.integers(4)
            if kind == 0:
                data[at] ^= 1 << int(rng.integers(8))
            elif kind == 1:
                data[at:at + 4] = rng.bytes(4)
            elif kind == 2:
                del data[at:at + int(rng.integers(1, 40))]
            else:
                data[at:at] = rng.bytes(int(rng.integers(1, 20)))
            data = data or bytearray(b'x')
        path.write_bytes(data)
        try:
            found = image.read(path, max_pixels=10**6)
        except errors.BadData as e:
            refused += 1
            assert str(path) in str(e)
            pickle.loads(pickle.dumps(e))  # readers send it between processes
        else:
            assert found.size <= 3 * 10**6
            if form == 'PNG':
                assert found.shape == pixels.shape and (found == pixels).all()
    assert refused > (2900 if form == 'PNG' else 300)
