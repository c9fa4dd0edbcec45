"""Masks as COCO writes them, against worked examples, by round trip and damaged."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd import errors
from jaxkd.data.formats import rle

MOST = 10**6


@pytest.mark.parametrize('rows, counts', [
    ([[0, 1], [0, 1]], '22'),  # down the columns: two 0, two 1
    ([[1, 1]], '02'),  # runs begin with 0
    ([[0, 1, 1, 0, 1]], '121O'),  # 1, 2, 1, 1: the fourth less the last but one is -1, five bits 11111: 48 + 31
    ([[0] * 100], 'T3'),  # 100 = 3 * 32 + 4: 4 + 32, then 3
])
def test_worked_examples(rows, counts):
    mask = np.array(rows, np.uint8)
    assert rle.encode(mask) == counts
    np.testing.assert_array_equal(rle.decode(counts, mask.shape, MOST, 'x'), mask)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_round_trip(rows, columns, share, seed):
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((rows, columns)) < share, np.ones((3, 9), bool)).astype(np.uint8)
    found = rle.decode(rle.encode(mask), list(mask.shape), MOST, 'x')
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, mask)


@given(st.text(max_size=60) | st.text('0123456789:;<=>?@ABCNOPQRSTnop', max_size=60), st.integers(1, 9),
       st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_mask_or_bad_data(counts, rows, columns):
    try:
        mask = rle.decode(counts, (rows, columns), MOST, 'case 7')
    except errors.BadData as e:
        assert 'case 7' in str(e)
    else:
        assert mask.shape == (rows, columns) and {*np.unique(mask)} <= {0, 1}


@pytest.mark.parametrize('counts, size, what', [
    ('22', (2,), 'is not'), ('22', (2, -2), 'is not'), ('22', (2, 2.0), 'is not'), ('22', '22', 'is not'),
    (b'22', (2, 2), 'is not'),
    ('22', (10**5, 10**5), 'max_pixels'), ('23', (2, 2), 'covers 5'), ('', (2, 2), 'covers 0'), ('T', (2, 2), 'covers'),
    ('O5', (2, 2), 'negative'), ('2 ', (2, 2), 'cannot be read'), ('P' * 50 + '2', (2, 2), 'cannot be read')])
def test_damage(counts, size, what):
    with pytest.raises(errors.BadData, match=f'case 7 .*{what}'):
        rle.decode(counts, size, MOST, 'case 7')


@settings(deadline=None)
@given(st.integers(0, 4), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_masks_of_an_image_are_one_text(n, rows, columns, seed):
    masks = (np.random.default_rng(seed).random((n, rows, columns)) < 0.4).astype(np.uint8)
    found = rle.decode_masks(rle.encode_masks(masks), 'x')
    assert found.dtype == np.uint8 and (found.shape == masks.shape if n else not found.size)
    assert (found == masks).all() if n else rle.encode_masks(masks) == ''
