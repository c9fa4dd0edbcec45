import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image
from scipy import ndimage

from jaxkd import errors
from jaxkd.data.transforms import affine, distance, domain_shift, image

RNG = np.random.default_rng(0)
FITS = ['crop', 'letterbox', 'squash']


def options(module, **given):
    return ConfigDict({**module.DEFAULTS, **given})


def make(module, **given):
    return module.build(options(module, **given)).apply


def blobs(height, width):
    y, x = np.mgrid[:height, :width]
    out = np.zeros((height, width), np.uint8)
    out[np.hypot(y - height / 2, x - width / 2) < min(height, width) / 3] = 2
    out[np.hypot(y - height / 2, x - width / 2) < min(height, width) / 6] = 3
    return out


# image


@given(st.integers(20, 90), st.integers(20, 90), st.sampled_from(FITS))
@settings(max_examples=60, deadline=None)
def test_a_label_follows_its_pixels(height, width, fit):
    label = (blobs(height, width) > 0).astype(np.uint8)
    out = make(image, size=48, fit=fit)({'image': label * 255, 'label': label})
    assert out['label'].shape == (48, 48) and out['label'].dtype == np.uint8
    sure = (out['image'][..., 0] < 0.02) | (out['image'][..., 0] > 0.98)
    assert sure.mean() > 0.5
    np.testing.assert_array_equal(out['label'][sure], (out['image'][..., 0] > 0.5)[sure])


def test_worked_label():
    label = np.array([[0, 1], [2, 3]], np.uint8)
    record = {'image': label, 'label': label}
    found = make(image, size=4, fit='squash')(record)['label']
    assert found.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    tall = {'image': np.ones((4, 2), np.uint8), 'label': np.full((4, 2), 3, np.uint8)}
    assert make(image, size=4, fit='letterbox')(tall)['label'].tolist() == [[0, 3, 3, 0]] * 4  # padding is background
    ignored = {'image': np.zeros((8, 8), np.uint8), 'label': np.full((8, 8), 255, np.uint8)}
    assert (make(image, size=4, fit='squash')(ignored)['label'] == 255).all()


def test_other_labels_stay_untouched():
    pixels = np.zeros((30, 30), np.uint8)
    for label in (np.float32([1, 0]), np.int32(2), 3):
        assert make(image, size=16)({'image': pixels, 'label': label})['label'] is label
    assert 'label' not in make(image, size=16)({'image': pixels})
    for label in (np.zeros((30, 29), np.uint8), np.zeros((30, 30), np.int32)):
        with pytest.raises(errors.BadData, match='Case c7: its label is .*size of the image'):
            make(image, size=16)({'image': pixels, 'label': label, 'case': 'c7'})


@given(st.integers(3, 40), st.integers(3, 40), st.sampled_from(FITS), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_inverse_is_exact_where_nothing_is_scaled(height, width, fit, seed):
    size = {'crop': min(height, width), 'letterbox': max(height, width), 'squash': height}[fit]
    width = height if fit == 'squash' else width
    hp = options(image, size=size, fit=fit, resize=size)
    label = np.random.default_rng(seed).integers(0, 4, (height, width), np.uint8)
    before, transform = {'image': label, 'label': label}, image.build(hp)
    after = transform.apply(before)
    back = pickle.loads(pickle.dumps(transform.inverse(before, after)))
    found = back(after['label'])
    # what floats are brought back with
    np.testing.assert_array_equal(back(after['label'].astype(np.float16)), found.astype(np.float32))
    assert found.dtype == np.uint8 and found.shape == label.shape
    if fit == 'crop':  # the middle square comes back, what was cut off is background
        top, left = round((height - size) / 2), round((width - size) / 2)
        kept = np.zeros_like(label)
        kept[top:top + size, left:left + size] = label[top:top + size, left:left + size]
        np.testing.assert_array_equal(found, kept)
    else:
        np.testing.assert_array_equal(found, label)


@given(st.integers(30, 120), st.integers(30, 120), st.sampled_from(FITS))
@settings(max_examples=60, deadline=None)
def test_inverse_puts_shapes_where_they_were(height, width, fit):
    label = blobs(height, width)
    hp = options(image, size=96, fit=fit)
    before, transform = {'image': label, 'label': label}, image.build(hp)
    after = transform.apply(before)
    back = transform.inverse(before, after)
    found = back(after['label'])
    inside = back(np.ones((96, 96), np.uint8)) > 0  # what the window shows
    assert inside.all() == (fit != 'crop')
    # Two roundings to the nearest, of 1.25 pixels at most: no pixel may differ that lies two or more from any boundary.
    plain = ndimage.minimum_filter(label, 5) == ndimage.maximum_filter(label, 5)
    np.testing.assert_array_equal(found[plain & inside], label[plain & inside])
    assert (plain & inside & (label > 0)).any()
    assert not found[~inside].any()
    chance = back((after['label'] == 1).astype(np.float32))
    assert chance.dtype == np.float32 and 0 <= chance.min() and chance.max() <= 1 and not chance[~inside].any()
    np.testing.assert_array_equal(chance[plain & inside], (label == 1)[plain & inside])


# affine


def old_affine(record, rng, degrees, scale, shift, keys):
    """As it was before it had labels and chances, written anew."""
    draws = rng.uniform(-1, 1, 4)
    angle, size = np.deg2rad(degrees) * draws[0], 1 + scale * draws[1]
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / size
    return {key: affine.warp(record[key], rotation, shift * draws[2:]) for key in keys}


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_affine_draws_what_it_drew_before(seed):
    pixels = np.random.default_rng(1).random((20, 24, 2)).astype(np.float32)
    one, other = np.random.default_rng(seed), np.random.default_rng(seed)
    found = make(affine)({'image': pixels}, one)
    expected = old_affine({'image': pixels}, other, 10.0, 0.1, 0.05, ('image',))
    np.testing.assert_array_equal(found['image'], expected['image'])
    assert one.random() == other.random()  # and leaves the generator where it was


def test_affine_moves_labels_as_images():
    label = blobs(64, 64)
    record = {'image': (label > 0).astype(np.float32)[..., None], 'label': label, 'case': 'a'}
    f = make(affine, degrees=180.0, scale=0.0, shift=0.125, prob=0.5, labels=('label',))
    moved = 0
    for seed in range(40):
        out = f(record, np.random.default_rng(seed))
        assert (out['label'].dtype == np.uint8 and out['label'].shape == (64, 64)
                and {*np.unique(out['label'])} <= {0, 2, 3})
        sure = (out['image'][..., 0] < 0.01) | (out['image'][..., 0] > 0.99)
        np.testing.assert_array_equal((out['label'] > 0)[sure], (out['image'][..., 0] > 0.5)[sure])
        moved += (out['label'] != label).any()
    assert 10 < moved < 40
    corner = {'image': np.ones((32, 32, 1), np.float32), 'label': np.full((32, 32), 3, np.uint8)}
    shifted = make(affine, degrees=0.0, scale=0.0, shift=0.5, labels=('label',))(corner,
                                                                                 np.random.default_rng(1))['label']
    assert {*np.unique(shifted)} == {0, 3}  # fill is background


def test_affine_chances_are_independent():
    """A dot off the centre: turned, moved, both, or neither, each a quarter of the time."""
    dot = np.zeros((65, 65, 1), np.float32)
    dot[30:35, 50:55] = 1
    f = make(affine, degrees=180.0, scale=0.0, shift=0.125, prob=0.5)
    draws, middles = [], []
    y, x = np.mgrid[:65, :65] - 32
    for seed in range(300):
        rng = np.random.default_rng(seed)
        rng.uniform(size=4)
        draws.append(rng.random(3) < 0.5)
        out = f({'image': dot}, np.random.default_rng(seed))['image'][..., 0]
        middles.append(((x * out).sum() / out.sum(), (y * out).sum() / out.sum()) if out.sum() > 20 else (np.nan,) * 2)
    middles, (turned, _, moved) = np.array(middles), np.array(draws).T
    apart = np.hypot(*(middles - (20, 0)).T)
    assert (apart[~turned & ~moved] < 1e-3).all()
    on_circle = np.abs(np.hypot(*middles.T) - 20) < 0.3
    assert on_circle[turned & ~moved].all() and np.mean(apart[turned & ~moved] > 1) > 0.9
    assert (np.abs(middles[~turned & moved] - (20, 0)) < 0.125 * 65 + 0.1).all()
    for both in (turned & moved, turned & ~moved, ~turned & moved, ~turned & ~moved):
        assert 50 < both.sum() < 100
    never = make(affine, prob=0.0)({'image': dot}, np.random.default_rng(0))['image']
    np.testing.assert_allclose(never, dot, atol=1e-6)


def test_affine_errors():
    with pytest.raises(errors.ConfigError, match='prob'):
        make(affine, prob=1.5)
    record = {'image': np.zeros((8, 8, 1), np.float32), 'label': np.float32([1])}
    with pytest.raises(errors.ConfigError, match='affine.labels: "label" is no label of each pixel'):
        make(affine, labels=('label',))(record, np.random.default_rng(0))


# distance


def test_worked_distance():
    """A square of 3 x 3 in 7 x 7: its middle is 1.5 pixels inside, its neighbours half a pixel to either side."""
    label = np.zeros((7, 7), np.uint8)
    label[2:5, 2:5] = 1
    label[0, 0] = 255
    out = make(distance, classes=3)({'label': label}, np.random.default_rng(0))['distance']
    assert out.shape == (7, 7, 2) and out.dtype == np.float32
    phi = out[..., 0] * np.hypot(7, 7)
    np.testing.assert_allclose(phi[3], [1.5, 0.5, -0.5, -1.5, -0.5, 0.5, 1.5], atol=1e-6)
    np.testing.assert_allclose(phi[0, 0], np.hypot(2, 2) - 0.5, atol=1e-6)
    assert (out[..., 1] == 0).all()  # absent


@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_distance_has_the_sign_of_the_class_and_is_bounded(height, width, seed):
    label = np.random.default_rng(seed).integers(0, 3, (height, width), np.uint8)
    out = make(distance, classes=3)({'label': label}, None)['distance']
    assert np.abs(out).max() < 1
    for k in (1, 2):
        inside = label == k
        if inside.any() and not inside.all():
            assert ((out[..., k - 1] < 0) == inside).all()
            far = np.argwhere(inside)  # by all pairs
            own = np.array([[np.hypot(*(far - (y, x)).T).min() for x in range(width)] for y in range(height)])
            np.testing.assert_allclose(out[..., k - 1][~inside] * np.hypot(height, width), own[~inside] - 0.5,
                                       atol=1e-5)
        else:
            assert not out[..., k - 1].any()
    if (label == 1).any() and not (label == 1).all():  # inside and outside change places with the sign
        np.testing.assert_array_equal(distance.signed(label == 1), -distance.signed(label != 1))


def test_distance_in_three_dimensions_and_where_nothing_is_random():
    label = np.zeros((4, 6, 8), np.uint8)
    label[2:] = 1
    hp = options(distance, classes=2, sampling=(3.0, 1.0, 1.0))
    transform = distance.build(hp)
    out = transform.apply({'label': label}, np.random.default_rng(0))['distance']
    assert out.shape == (4, 6, 8, 1) and transform.random
    np.testing.assert_allclose(out[:, 0, 0, 0] * np.sqrt(12**2 + 6**2 + 8**2), [5.5, 2.5, -2.5, -5.5], atol=1e-5)
    for f in (transform.eval_mode, pickle.loads(pickle.dumps(transform)).eval_mode):
        np.testing.assert_array_equal(f({'label': label})['distance'], out)
    for wrong, why in ((dict(classes=1), 'classes'), (dict(sampling=(1.0,)), 'sampling'),
                       (dict(sampling=(0.0, 1.0)), 'sampling')):
        with pytest.raises(errors.ConfigError, match=why):
            make(distance, **wrong)
    with pytest.raises(errors.ConfigError, match='3 numbers, "label" 2 axes'):
        make(distance, sampling=(1.0, 1.0, 1.0))({'label': label[0]}, None)
    for record in ({}, {'label': np.int32(1)}, {'label': np.zeros((4, 4), np.float32)}):
        with pytest.raises(errors.ConfigError, match='no label of each pixel'):
            make(distance)(record, None)


# domain_shift


def shifted(case='p1_slice_3', pixels=None, **given):
    pixels = np.full((40, 40, 1), 0.5, np.float32) if pixels is None else pixels
    return make(domain_shift, **given)({'image': pixels, 'case': case, 'label': 1})['image']


def test_domain_shift_belongs_to_the_case_and_the_seed():
    texture = RNG.random((40, 40, 1)).astype(np.float32)
    one = shifted(pixels=texture)
    assert one.shape == (40, 40, 1) and one.dtype == np.float32 and 0 <= one.min() and one.max() <= 1
    np.testing.assert_array_equal(one, shifted(pixels=texture))
    copy = pickle.loads(pickle.dumps(make(domain_shift)))
    np.testing.assert_array_equal(one, copy({'image': texture, 'case': 'p1_slice_3'})['image'])
    assert ((one != shifted('p2_slice_3', texture)).mean() > 0.9
            and (one != shifted(pixels=texture, seed=1)).mean() > 0.9)
    quiet = shifted(pixels=texture, noise=0.0)  # slices of a volume share all but the noise
    np.testing.assert_array_equal(quiet, shifted('p1_slice_4', texture, noise=0.0))
    assert (one != shifted('p1_slice_4', texture)).mean() > 0.9
    assert (quiet != shifted('p1_slice_4', texture, noise=0.0, slices='')).mean() > 0.9
    assert (shifted('a', texture, noise=0.0) != shifted('b', texture, noise=0.0)).mean() > 0.9  # ids without a slice


def test_domain_shift_does_what_its_strengths_say():
    off = dict(gamma=0.0, bias=0.0, blur=0.0, noise=0.0)
    texture = RNG.random((40, 40, 3)).astype(np.float32)
    np.testing.assert_array_equal(shifted(pixels=texture, **off), texture)
    for case in 'abcde':
        dark = shifted(case, **{**off, 'gamma': 1.0})  # 0.5 to the power of 2 ** [0.5, 1]
        assert 0.25 - 1e-6 <= dark.min() == dark.max() <= 0.5 ** 2 ** 0.5 + 1e-6
        assert (shifted(case, **{**off, 'gamma': -1.0}) > 0.5).all()
        lit = np.log2(shifted(case, **{**off, 'bias': 0.5}) / 0.5)
        assert 0.25 - 1e-5 <= np.abs(lit).max() <= 0.5 + 1e-5 and np.abs(np.diff(lit[..., 0], axis=0)).max() < 0.1
        grain = shifted(case, pixels=np.full((90, 90, 3), 0.5, np.float32), **{**off, 'noise': 0.08})
        assert 0.04 * 0.95 < grain.std() < 0.08 * 1.05 and abs(grain.mean() - 0.5) < 0.01
        assert (np.ptp(grain, axis=2) == 0).all()  # grey stays grey
        assert shifted(case, texture, **{**off, 'blur': 2.0}).std() < 0.5 * texture.std()


def test_domain_shift_errors():
    with pytest.raises(errors.ConfigError, match=r'record\["case"\]'):
        make(domain_shift)({'image': np.zeros((4, 4, 1), np.float32)})
    for pixels in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 1))):
        with pytest.raises(errors.ConfigError, match='case c.*List it after "image"'):
            make(domain_shift)({'image': pixels, 'case': 'c'})
    for wrong in (dict(noise=-0.1), dict(blur=-1.0), dict(bias=9.0), dict(gamma=-9.0)):
        with pytest.raises(errors.ConfigError, match=next(iter(wrong))):
            make(domain_shift, **wrong)


def test_image_then_shift_then_affine_in_a_row():
    """A colour file to a batch record, as a run has it."""
    pixels = np.asarray(Image.fromarray(blobs(50, 70) * 80).convert('RGB'))
    record = {'image': pixels, 'label': blobs(50, 70), 'case': 'x', 'spacing': np.full(3, np.nan, np.float32)}
    for f in (make(image, size=32, channels=3, fit='letterbox'), make(domain_shift)):
        record = f(record)
    out = make(affine, labels=('label',))(record, np.random.default_rng(0))
    out = make(distance)(out, np.random.default_rng(0))
    assert out['image'].shape == (32, 32, 3) and out['label'].shape == (32, 32) and out['distance'].shape == (32, 32, 3)
    assert not out['distance'][..., 0].any() and out['distance'][..., 1].min() < 0  # no class 1 in it
