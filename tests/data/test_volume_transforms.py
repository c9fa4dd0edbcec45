import functools
import math
import pickle

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from ml_collections import ConfigDict
from scipy import ndimage

from jaxkd import errors
from jaxkd.data.source import Source
from jaxkd.data.transforms import affine3d, crop, intensity, prior, rotate_flip, volume
from jaxkd.data.transforms import scan as scan_transform
from jaxkd.data.volume import FIXED, Volume

KEYS = ('ct', 't1')


def made(module, asset=None, **given):
    hp = ConfigDict({**module.DEFAULTS, **({'keys': KEYS} if 'keys' in module.DEFAULTS else {}), **given})
    return (module.build(hp) if asset is None else module.build(hp, asset)).apply


def scan(voxels, affine=None):
    return Volume(np.asarray(voxels), np.eye(4) if affine is None else affine)


def rng(seed=0):
    return np.random.default_rng(seed)


def pair(shape=(6, 8, 8), seed=3, absent=()):
    """A record as `volume` leaves it: two int16 arrays, no two voxels alike."""
    order = rng(seed).permutation(2 * math.prod(shape)).astype(np.int16).reshape(2, *shape, 1)
    record = {key: np.zeros_like(a) if key in absent else a for key, a in zip(KEYS, order)}
    return {**record, 'label': np.int32(1), 'present': {key: np.float32(key not in absent) for key in KEYS}}


# volume

def test_ct_window_and_fixed_point():
    hu = np.array([-1000, -160, -60, 40, 240, 3000], np.int16).reshape(6, 1, 1)
    out = made(volume, keys=('ct',), size=(6, 1, 1), spacing=(1.0, 1.0, 1.0))({'ct': scan(hu)})
    assert out['ct'].shape == (1, 1, 6, 1) and out['ct'].dtype == np.int16 and out['ct'].flags.c_contiguous
    np.testing.assert_array_equal(out['ct'][0, 0, :, 0], [0, 0, 1024, 2048, 4096, 4096])  # (hu + 160) / 400 * 4096
    assert out['present'] == {'ct': 1} and out['present']['ct'].dtype == np.float32


def test_other_modalities_are_standardised_over_what_is_not_zero():
    values = np.array([0, 0, 10, 20, 30, 40], np.int16).reshape(6, 1, 1)
    out = made(volume, hu=(), keys=('t1',), size=(6, 1, 1), spacing=(1.0, 1.0, 1.0), percentiles=(0.0, 100.0))
    got = out({'t1': scan(values)})['t1'].ravel() / FIXED
    np.testing.assert_allclose(got, [0, 0, *np.array([-15, -5, 5, 15]) / np.sqrt(125)], atol=0.5 / FIXED)
    # percentiles (25, 75) of 10, 20, 30, 40 are 17.5 and 32.5: mean 25, deviation sqrt((2 7.5^2 + 2 5^2) / 4)
    got = volume.standard(values.astype(np.float32), 25, 75).ravel()
    np.testing.assert_allclose(got[2:], np.array([-7.5, -5, 5, 7.5]) / np.sqrt(40.625), rtol=1e-6)


def test_standard_limits_and_flat_volumes():
    spike = np.ones(10_000, np.float32)
    spike[0] = 1e6
    assert volume.standard(spike, 0, 100).max() == np.float32(7.9)
    for flat in (np.zeros(8, np.float32), np.full(8, 7.0, np.float32)):
        np.testing.assert_array_equal(volume.standard(flat, 0.5, 99.5), np.zeros(8))


@hypothesis.given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e6), st.floats(-1e5, 1e5))
@hypothesis.settings(max_examples=30, deadline=None)
def test_any_modality_fits_in_16_bits(seed, scale, shift):
    voxels = (rng(seed).standard_cauchy((5, 6, 7)) * scale + shift).astype(np.float32)
    f = made(volume, hu=(), keys=('t1',), size=(5, 6, 7), spacing=(1.0, 1.0, 1.0), percentiles=(0.0, 100.0))
    got = f({'t1': scan(voxels)})['t1']
    want = np.clip(volume.standard(voxels, 0, 100).T[..., None].astype(np.float64), -7.9, 7.9)
    assert np.abs(got / FIXED - want).max() <= 0.5 / FIXED + 1e-4  # nothing wrapped around


def test_a_marker_keeps_its_place_in_the_world():
    """A point in a turned, flipped, anisotropic scan comes out at the voxel that the grid has for its millimetres."""
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.1, 0.9, 2.5])
    affine[:3, 3] = (-80, 40, 300)
    voxels = np.full((50, 60, 20), -160, np.float32)
    at = np.array([31, 22, 9])
    voxels[tuple(at)] = 240
    marker = affine[:3, :3] @ at + affine[:3, 3]
    centre = marker + (3.0, -5.0, 4.0)
    spacing, size = np.array([0.5, 0.5, 1.25]), (33, 41, 15)
    f = made(volume, keys=('ct',), size=size, spacing=tuple(spacing.tolist()))
    out = f({'ct': scan(voxels, affine), 'centre': {'ct': centre}})['ct'][..., 0].astype(float)
    mass = np.array(ndimage.center_of_mass(out))[::-1]  # x, y, z
    found = centre + (mass - (np.array(size) - 1) / 2) * spacing
    np.testing.assert_allclose(found, marker, atol=0.1)
    assert 'centre' not in f({'ct': scan(voxels, affine), 'centre': {'ct': centre}})


def marked(length):
    """A scan whose brightest voxel lies at x = 20 mm and whose middle is at (length - 1) / 2; 1 mm, 3 x 3 across."""
    voxels = np.ones((length, 3, 3), np.float32)
    voxels[20] = 240
    return scan(voxels)


@pytest.mark.parametrize('lesion, ct, t1', [
    ({'ct': 18, 't1': 23}, 18, 23),
    ({'ct': 18}, 18, 18),  # one mask, of the CT: MRI is taken at the same place
    ({'t1': 23}, 21, 23),  # one mask, of the MRI: nothing of it may reach the crop of CT, whose middle is 21
    ({}, 21, 21)])
@pytest.mark.parametrize('keys', [('ct', 't1'), ('t1', 'ct')])
def test_which_centre(keys, lesion, ct, t1):
    f = made(volume, keys=keys, hu=('ct',), size=(21, 3, 3), spacing=(1.0, 1.0, 1.0), window=(0.0, 240.0))
    centres = {'centre': {key: (x, 1, 1) for key, x in lesion.items()}} if lesion else {}
    out = f({'ct': marked(43), 't1': marked(51), **centres})
    found = {key: 20 + 10 - int(out[key][1, 1, :, 0].argmax()) for key in keys}  # x of voxel 10, the middle of the crop
    assert found == {'ct': ct, 't1': t1}


def test_which_centre_without_ct():
    """MRI alone has nobody to ask; and of two modalities in HU each keeps to itself."""
    record = {'ct': marked(43), 't1': marked(51), 't2': marked(41), 'centre': {'t2': (18, 1, 1)}}
    alone = {key: record[key] for key in ('t1', 't2', 'centre')}
    assert volume.centre('t1', alone, ('ct',))[0] == volume.centre('t1', record, ())[0] == 25
    assert volume.centre('t2', alone, ('ct',))[0] == 18
    assert volume.centre('t1', record, ('t2', 't1'))[0] == 25 and volume.centre('ct', record, ('t2', 'ct'))[0] == 21


@hypothesis.given(st.tuples(st.floats(-4, 54), *[st.floats(-1, 3)] * 2), st.booleans())
@hypothesis.settings(max_examples=20, deadline=None)
def test_no_mask_of_another_modality_changes_the_crop_of_ct(lesion, early):
    keys = ('t1', 'ct') if early else ('ct', 't1')
    f = made(volume, keys=keys, size=(9, 3, 3), spacing=(1.0, 1.0, 1.0))
    with_mask = f({'ct': marked(43), 't1': marked(51), 'centre': {'t1': lesion}})
    np.testing.assert_array_equal(with_mask['ct'], f({'ct': marked(43)})['ct'])


@hypothesis.given(st.integers(0, 2**32), st.sampled_from(((1.0, 1.0, 1.0), (173 / 28, 211 / 32, 155 / 24),
                                                          (0.7, 2.0, 3.1))))
@hypothesis.settings(max_examples=20, deadline=None)
def test_own_grid_takes_voxels_as_they_are_and_minmax_scales_them(seed, spacing):
    voxels = rng(seed).integers(-300, 4000, (7, 6, 5)).astype(np.int16)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = rng(seed).uniform(-90, 90, 3)
    f = made(volume, hu=(), minmax=KEYS, spacing=(0.0, 0.0, 0.0), size=(7, 6, 5))
    out = f({'ct': scan(voxels, affine), 't1': scan(np.full((7, 6, 5), 3, np.int16), affine)})
    unit = (voxels - voxels.min()) / np.ptp(voxels.astype(int)) - 0.5
    assert np.abs(out['ct'][..., 0].T - unit * FIXED).max() <= 0.51
    assert out['ct'].min() == -FIXED // 2 and out['ct'].max() == FIXED // 2 and not out['t1'].any()


def test_field_is_checked_with_the_spacing_of_the_scan():
    record = {'ct': scan(np.ones((9, 9, 9)), np.diag([2.0, 1, 1, 1])), 'field': (4.0, 4.0, 6.0)}
    assert made(volume, keys=('ct',), size=(3, 5, 7), spacing=(0.0, 0.0, 0.0))(record)['ct'].all()
    with pytest.raises(errors.ConfigError, match='reaches outside'):
        made(volume, keys=('ct',), size=(4, 5, 7), spacing=(0.0, 0.0, 0.0))(record)


def test_absent_and_partly_outside():
    voxels = np.full((4, 4, 4), 1000, np.float32)
    f = made(volume, size=(8, 6, 4), margin=(2, 0, 0), spacing=(1.0, 1.0, 1.0))
    out = f({'ct': scan(voxels), 'label': np.int32(2)})
    assert out['t1'].shape == out['ct'].shape == (4, 6, 10, 1)
    assert not out['t1'].any() and out['t1'].dtype == np.int16 and out['label'] == 2
    assert out['present'] == {'ct': 1, 't1': 0}
    assert (out['ct'] > 0).sum() == 4 * 4 * 4 and out['ct'].max() == 4096


def test_not_finite_is_refused():
    voxels = np.ones((4, 4, 4), np.float32)
    voxels[1, 2, 3] = np.nan
    with pytest.raises(errors.BadData, match='Case p7: t1 has voxels that are not finite'):
        record = {'case': 'p7', 'ct': scan(np.ones((4, 4, 4))), 't1': scan(voxels)}
        made(volume, size=(4, 4, 4), spacing=(1.0, 1.0, 1.0))(record)


def test_a_crop_larger_than_the_field_is_refused():
    record = {'case': 'p7', 'ct': scan(np.ones((9, 9, 9))), 'field': (4.0, 4.0, 6.0)}
    assert made(volume, keys=('ct',), size=(5, 5, 7), spacing=(1.0, 1.0, 1.0))(record)['ct'].all()
    for given in (dict(size=(6, 5, 7)), dict(size=(5, 5, 7), margin=(0, 0, 1)),
                  dict(size=(3, 3, 3), spacing=(2.5, 1.0, 1.0))):
        with pytest.raises(errors.ConfigError, match=r'reaches outside.*volume.margin = \((5, 5, 7|2, 5, 7)\)'):
            made(volume, keys=('ct',), **{'spacing': (1.0, 1.0, 1.0), **given})(record)


@pytest.mark.parametrize('given, why', [
    (dict(keys=()), 'keys'), (dict(keys=('ct', 'ct')), 'keys'), (dict(hu=('cy',)), 'not among keys. Known: ct, t1'),
    (dict(size=(8, 8)), 'size'), (dict(size=(8, 8, 0)), 'size'), (dict(margin=(0, -1, 0)), 'margin'),
    (dict(size=(8.5, 8, 8)), 'whole numbers'), (dict(spacing=(1.0, -0.1, 1.0)), 'spacing'),
    (dict(minmax=('t2',)), 'minmax'), (dict(minmax=('ct',), hu=('ct',)), 'minmax'),
    (dict(window=(240.0, -160.0)), 'window'), (dict(percentiles=(0.5, 101.0)), 'percentiles')])
def test_wrong_options_of_volume(given, why):
    with pytest.raises(errors.ConfigError, match=why):
        made(volume, **given)


# crop

def test_crop_reaches_every_place_equally_often():
    record = pair((4, 5, 6))
    f = made(crop, size=(4, 4, 4))
    source = rng()
    seen = [tuple(np.argwhere(record['ct'] == f(record, source)['ct'][0, 0, 0])[0]) for _ in range(600)]
    places, counts = np.unique(seen, axis=0, return_counts=True)
    assert places[:, :3].tolist() == [[0, y, x] for y in range(2) for x in range(3)]
    assert counts.min() > 60  # 100 expected, deviation 9


@pytest.mark.parametrize('joint', [False, True])
def test_crop_joint_or_each_on_its_own(joint):
    record = pair((8, 12, 12))
    record['t1'] = record['ct']
    f = made(crop, size=(5, 5, 3), joint=joint)
    source = rng()
    outs = [f(record, source) for _ in range(40)]
    assert all(out['ct'].shape == (3, 5, 5, 1) for out in outs)
    same = [np.array_equal(out['ct'], out['t1']) for out in outs]
    assert all(same) if joint else sum(same) < 4


def test_what_is_found_on_the_small_grid_goes_back_to_the_scan():
    shape, at = (40, 36, 20), {'ct': (18.0, 16.0, 24.0)}
    labels = np.zeros(shape, np.uint8)
    labels[16:22, 14:19, 6:10] = 2
    record = {'ct': scan(labels.astype(np.int16) * 100, np.diag([1.0, 1.0, 3.0, 1.0])), 'centre': at}
    hp = ConfigDict({**volume.DEFAULTS, 'keys': KEYS, 'size': (25, 25, 13), 'spacing': (1.0, 1.0, 3.0),
                     'window': (0.0, 200.0)})
    transform = volume.build(hp)
    after = transform.apply(record)
    back = pickle.loads(pickle.dumps(transform.inverse(record, after)))
    values = after['ct'][..., 0] / np.float32(FIXED)
    np.testing.assert_array_equal(back(np.uint8(2) * (values > 0.5)), labels)
    np.testing.assert_allclose(back(values.astype(np.float16)), labels / 2, atol=1e-3)


def test_crop_in_evaluation_is_the_centre():
    record = pair((5, 8, 9))
    hp = ConfigDict({**crop.DEFAULTS, 'keys': KEYS, 'size': (5, 4, 3)})
    out = crop.build(hp).eval_mode(record)
    for key in KEYS:
        np.testing.assert_array_equal(out[key], record[key][1:4, 2:6, 2:7])
        assert np.shares_memory(out[key], record[key])  # nothing is read that is not used
    whole = crop.build(ConfigDict({**hp.to_dict(), 'size': (9, 8, 5)})).eval_mode(record)
    np.testing.assert_array_equal(whole['ct'], record['ct'])
    np.testing.assert_array_equal(made(crop, size=(9, 8, 5))(record, rng())['ct'], record['ct'])


def test_crop_refuses_what_is_too_small_or_no_volume():
    with pytest.raises(errors.ConfigError, match=r'crop.size = \(9, 8, 6\).*larger than ct, which is \(8, 8, 6\)'):
        made(crop, size=(9, 8, 6))(pair(), rng())
    with pytest.raises(errors.ConfigError, match='three positive'):
        made(crop, size=(9, 8))
    for module in (functools.partial(made, crop, size=(2, 2, 2)), *(functools.partial(made, m) for m in
                                                                     (rotate_flip, intensity, affine3d))):
        with pytest.raises(errors.ConfigError, match='keys: "t2" is no array.*"volume"'):
            module(keys=('t2',))(pair(), rng())


# rotate_flip

def test_a_quarter_turn_and_a_flip():
    plane = np.array([[1, 2], [3, 4]]).reshape(1, 2, 2, 1)
    assert rotate_flip.turn(plane, 0, 0).ravel().tolist() == [3, 4, 1, 2]
    assert rotate_flip.turn(plane, 0, 1).ravel().tolist() == [2, 1, 4, 3]
    assert rotate_flip.turn(plane, 1, 0).ravel().tolist() == [1, 3, 2, 4]  # rotated [[2,4],[1,3]], then upside down
    for k in range(4):  # slices keep their order
        assert (rotate_flip.turn(np.arange(3).reshape(3, 1, 1, 1), k, 1).ravel() == [0, 1, 2]).all()


def test_rotate_flip_leaves_half_alone_and_mirrors_the_rest():
    record, f, source = pair(), made(rotate_flip), rng()
    mirrored = [rotate_flip.turn(record['ct'], k, axis) for k in range(4) for axis in range(2)]
    same = others = 0
    for _ in range(200):
        out = f(record, source)['ct']
        same += np.array_equal(out, record['ct'])
        others += any(np.array_equal(out, m) for m in mirrored)
    assert same + others == 200 and 70 < same < 130  # 100 expected, deviation 7
    always = made(rotate_flip, prob=1.0)
    assert not any(np.array_equal(always(record, source)['ct'], record['ct']) for _ in range(50))


@pytest.mark.parametrize('joint', [False, True])
def test_rotate_flip_joint_or_each_on_its_own(joint):
    record = pair()
    record['t1'] = record['ct']
    f, source = made(rotate_flip, joint=joint, prob=1.0), rng()
    same = [np.array_equal(out['ct'], out['t1']) for out in (f(record, source) for _ in range(60))]
    assert all(same) if joint else 2 < sum(same) < 30  # 8 draws make 4 mirror images: a quarter agree


def test_rotate_flip_needs_squares():
    with pytest.raises(errors.ConfigError, match='ct is 7 x 8 voxels in plane.*square'):
        made(rotate_flip)(pair((6, 8, 7)), rng())
    with pytest.raises(errors.ConfigError, match='prob'):
        made(rotate_flip, prob=1.5)


# intensity

def test_intensity_worked_value():
    voxels = np.array([0, 1000, 2000, 5000], np.int16).reshape(1, 2, 2, 1)  # mean 2000
    got = intensity.change(voxels, 1.2, 0.5, 0, None)
    np.testing.assert_array_equal(got.ravel(), [1200, 1800, 2400, 4200])  # 1.2 (2000 + 0.5 (v - 2000))
    assert got.dtype == np.int16
    same = intensity.change(voxels, 1.0, 1.0, 0, None)
    np.testing.assert_array_equal(same, voxels)
    np.testing.assert_array_equal(voxels.ravel(), [0, 1000, 2000, 5000])  # the stored case is not touched


def test_fixed_point_and_float_agree_and_saturate():
    voxels = (rng().normal(0, 6000, (4, 9, 9, 1))).clip(-32000, 32000).astype(np.int16)
    fixed = intensity.change(voxels, 1.15, 0.9, 0, None)
    exact = intensity.change((voxels / FIXED).astype(np.float32), 1.15, 0.9, 0, None)
    assert exact.dtype == np.float32
    np.testing.assert_allclose(fixed / FIXED, np.clip(exact, -8, 32767 / FIXED), atol=0.51 / FIXED)
    high = intensity.change(np.full((1, 1, 1, 1), 32000, np.int16), 1.2, 1.0, 0, None)
    assert high.item() == 32767
    with pytest.raises(errors.ConfigError, match='uint8'):
        intensity.change(np.ones((1, 1, 1, 1), np.uint8), 1, 1, 0, None)


def test_intensity_draws():
    record = pair()
    record['t1'] = record['ct']
    apart, joint = made(intensity), made(intensity, joint=True)
    assert not np.array_equal(*(apart(record, rng())[key] for key in KEYS))
    out = joint(record, rng())
    np.testing.assert_array_equal(out['ct'], out['t1'])
    noisy = made(intensity, brightness=0.0, contrast=0.0, noise=0.05)
    flat = {'ct': np.zeros((8, 32, 32, 1), np.int16), 't1': np.zeros((8, 32, 32, 1), np.float32)}
    out = noisy(flat, rng())
    assert abs(out['ct'].std() / FIXED - 0.05) < 0.002 and abs(out['t1'].std() - 0.05) < 0.002
    one = {'ct': np.full((1, 1, 1, 1), 10_000, np.int16), 't1': record['t1']}
    means = [made(intensity, contrast=0.0)(one, rng(i))['ct'].item() / 10_000 for i in range(300)]
    assert 0.8 <= min(means) < 0.82 and 1.18 < max(means) <= 1.2
    with pytest.raises(errors.ConfigError, match='brightness'):
        made(intensity, brightness=1.0)


# affine3d

def test_affine_identity_and_whole_shifts():
    voxels = pair((3, 9, 11))['ct']
    np.testing.assert_array_equal(affine3d.warp(voxels, 0, 1, 0, 0), voxels)
    shifted = affine3d.warp(voxels, 0, 1, 2 / 11, -3 / 9)  # two to the right (more x), three up (less y)
    want = np.zeros_like(voxels)
    want[:, :6, 2:] = voxels[:, 3:, :-2]
    np.testing.assert_array_equal(shifted, want)
    np.testing.assert_array_equal(affine3d.warp(voxels, 0, 1, 2.0, 0), np.zeros_like(voxels))  # all of it outside


def test_affine_quarter_turn():
    voxels = pair((2, 9, 9))['ct']
    np.testing.assert_array_equal(affine3d.warp(voxels, np.pi / 2, 1, 0, 0), np.rot90(voxels, -1, (1, 2)))  # x to y


@hypothesis.given(st.floats(-0.3, 0.3), st.floats(0.8, 1.25), st.floats(-0.1, 0.1), st.floats(-0.1, 0.1),
                  st.sampled_from([(2, 12, 17), (1, 7, 7)]), st.integers(0, 99))
@hypothesis.settings(max_examples=40, deadline=None)
def test_affine_agrees_with_scipy(angle, size, right, down, shape, seed):
    voxels = rng(seed).normal(size=(*shape, 1)).astype(np.float32)
    got = affine3d.warp(voxels, angle, size, right, down)[..., 0]
    c, s = np.cos(angle) / size, np.sin(angle) / size
    matrix = np.array([[c, -s], [s, c]])  # y, x
    middle = (np.array(shape[1:]) - 1) / 2
    offset = middle - matrix @ (middle + np.array([down * shape[1], right * shape[2]]))
    for plane, mine in zip(voxels[..., 0], got):
        want = ndimage.affine_transform(plane, matrix, offset, order=1, mode='grid-constant', cval=0)
        np.testing.assert_allclose(mine, want, atol=1e-4)


def test_affine_bounds_and_joint():
    record = pair()
    record['t1'] = record['ct']
    out = made(affine3d, joint=True)(record, rng())
    np.testing.assert_array_equal(out['ct'], out['t1'])
    assert out['ct'].dtype == np.int16 and not np.array_equal(out['ct'], record['ct'])
    assert not np.array_equal(*(made(affine3d)(record, rng())[key] for key in KEYS))
    still = made(affine3d, degrees=0.0, scale=0.0, shift=0.0)(record, rng())
    np.testing.assert_array_equal(still['ct'], record['ct'])
    full = np.full((1, 16, 16, 1), 32767, np.int16)
    assert affine3d.warp(full, 0.2, 1, 0, 0).min() >= 0  # rounding does not wrap around
    with pytest.raises(errors.ConfigError, match='scale'):
        made(affine3d, scale=1.0)


# all random ones

RANDOM = {crop: dict(size=(5, 5, 3)), rotate_flip: {}, intensity: dict(noise=0.1), affine3d: {}}


@pytest.mark.parametrize('module', RANDOM, ids=lambda m: m.__name__.rpartition('.')[2])
@pytest.mark.parametrize('joint', [False, True])
def test_the_generator_fully_determines_the_result(module, joint):
    f = made(module, joint=joint, **RANDOM[module])
    record = pair()
    before = {key: record[key].copy() for key in KEYS}
    first, again, other = f(record, rng(5)), f(record, rng(5)), [f(record, rng(i)) for i in range(6, 12)]
    for key in KEYS:
        np.testing.assert_array_equal(first[key], again[key])
        np.testing.assert_array_equal(record[key], before[key])
        assert first[key].dtype == np.int16 and any(not np.array_equal(first[key], o[key]) for o in other)
    assert module.build(ConfigDict({**module.DEFAULTS, **RANDOM[module]})).random and first['label'] == 1


@pytest.mark.parametrize('module', RANDOM, ids=lambda m: m.__name__.rpartition('.')[2])
@pytest.mark.parametrize('joint', [False, True])
def test_an_absent_modality_stays_zero(module, joint):
    f = made(module, joint=joint, **RANDOM[module])
    for seed in range(5):
        out = f(pair(absent=('t1',)), rng(seed))
        assert not out['t1'].any() and out['t1'].shape == out['ct'].shape and out['ct'].any()
        assert out['present'] == {'ct': 1, 't1': 0}


# prior

class Signs(Source):
    name = 'toy'
    tasks = {'texture': ('cystic', 'mixed', 'solid'), 'duct': ('normal', 'dilated', 'cut_off')}
    labels = ('benign', 'low_grade', 'malignant')

    def __init__(self, rows):
        columns = zip(('texture', 'duct', 'label'), zip(*rows))
        self.targets = {name: np.array(column, np.int32) for name, column in columns}


def counted(source, indices, **given):
    hp = ConfigDict({**prior.DEFAULTS, **given})
    asset = prior.fit(hp, source, indices, lambda x: x)
    return asset, prior.build(hp, asset).apply


def test_counts_with_laplace():
    rows = [(2, 2, 0)] * 1 + [(2, 2, 1)] * 9 + [(2, 2, 2)] * 40
    asset, f = counted(Signs(rows), range(50))
    out = f({'ct': 1})['prior']
    np.testing.assert_allclose(out[2, 2], [0.0377, 0.1887, 0.7736], atol=5e-5)
    np.testing.assert_allclose(np.delete(out.reshape(9, 3), 8, axis=0), 1 / 3, rtol=1e-6)  # never seen
    assert out.dtype == np.float32 and out.shape == (3, 3, 3) and f({'ct': 1})['ct'] == 1
    import json
    assert json.loads(json.dumps(asset)) == asset


def test_counts_training_cases_with_known_labels_alone():
    rows = [(0, 0, 0), (0, 0, 2), (-1, 0, 1), (0, -1, 1), (0, 0, 1)]
    _, f = counted(Signs(rows), [0, 1, 2, 3])  # case 4 is not in training
    np.testing.assert_allclose(f({})['prior'][0, 0], [2 / 5, 1 / 5, 2 / 5], rtol=1e-6)
    _, f = counted(Signs(rows), [0], alpha=0.5)
    np.testing.assert_allclose(f({})['prior'][0, 0], [1.5 / 2.5, 0.5 / 2.5, 0.5 / 2.5], rtol=1e-6)


def test_without_an_asset_shapes_are_known():
    out = made(prior)({})['prior']
    assert out.shape == (3, 3, 3) and out.dtype == np.float32
    np.testing.assert_allclose(out, 1 / 3)


def table(tmp_path, change=lambda rows: rows, header='texture,duct,p_class0,p_class1,p_class2'):
    rows = change([f'{t},{d},0.2,0.3,0.5' for t in ('cystic', 'mixed', '2') for d in (0, 1, 2)])
    (tmp_path / 'prior.csv').write_text('\n'.join((header, *rows)))
    return dict(file=str(tmp_path / 'prior.csv'))


def test_a_clinicians_table(tmp_path):
    given = table(tmp_path, lambda rows: [*rows[:-1], 'solid,cut_off,0.0501,0.25,0.70'])
    _, f = counted(Signs([(0, 0, 0)]), [0], **given)
    out = f({})['prior']
    np.testing.assert_allclose(out[2, 2], np.array([0.0501, 0.25, 0.7]) / 1.0001, rtol=1e-6)
    np.testing.assert_allclose(out[1, 0], [0.2, 0.3, 0.5], rtol=1e-6)


@pytest.mark.parametrize('change, why', [
    (lambda rows: rows[:-1], 'no row for texture solid with duct cut_off'),
    (lambda rows: [*rows, rows[0]], 'row 11: this texture and duct came before'),
    (lambda rows: ['cystic,0,0.2,0.3,0.4', *rows[1:]], 'row 2: p_class0 to p_class2 must be numbers'),
    (lambda rows: ['cystic,0,-0.2,0.7,0.5', *rows[1:]], 'row 2'),
    (lambda rows: ['cystic,0,nan,0.5,0.5', *rows[1:]], 'row 2'),
    (lambda rows: ['cystic,0,a,0.5,0.5', *rows[1:]], 'row 2'),
    (lambda rows: ['cystic,3,0.2,0.3,0.5', *rows[1:]],
     'row 2: column "duct" must be one of normal, dilated, cut_off, or 0 to 2'),
    (lambda rows: ['Cystic,0,0.2,0.3,0.5', *rows[1:]], 'row 2: column "texture"')])
def test_a_wrong_table(tmp_path, change, why):
    with pytest.raises(errors.BadData, match=why):
        counted(Signs([(0, 0, 0)]), [0], **table(tmp_path, change))


def test_wrong_options_of_prior(tmp_path):
    source = Signs([(0, 0, 0)])
    for given, why in ((dict(tasks=('texture', 'dukt')), 'no label "dukt".*"duct"'),
                       (dict(classes=(3, 3, 2)), r'\(3, 3, 3\)')):
        with pytest.raises(errors.ConfigError, match=why):
            counted(source, [0], **given)
    for given in (dict(alpha=0.0), dict(tasks=('texture',)), dict(classes=(3, 3))):
        with pytest.raises(errors.ConfigError, match='prior: tasks'):
            made(prior, **given)
    with pytest.raises(errors.ConfigError, match=r'stored prior has shape \(1, 1, 2\)'):
        made(prior, asset={'prior': [[[0.5, 0.5]]]})
    with pytest.raises(errors.BadData, match='p_class3'):
        counted(source, [0], **table(tmp_path, lambda rows: [r + ',0' for r in rows],
                                     'texture,duct,p_class0,p_class1,p_class2,p_class3'))
    with pytest.raises(errors.MissingInput, match='prior.csv'):
        counted(source, [0], file=str(tmp_path / 'none' / 'prior.csv'))


@pytest.mark.parametrize('least, most, said', [(-1000, 400, ''), (-1, 900, ''), (0, 3071, 'from 0 to 3071 in 2 cases'),
                                               (0.0, 1.0, 'from 0 to 1 in 2 cases'), (24, 1400, 'from 24 to 1400')])
def test_ct_without_a_value_below_0_is_named(least, most, said):
    """An offset that was lost: -160 to 240 HU of values from 0 on is next to nothing of what a patient is made of."""
    records = [{'ct': scan(np.array([[[least, most]]]), np.eye(4)), 't1': scan(np.ones((1, 1, 2)), np.eye(4))},
               {'t1': scan(np.ones((1, 1, 2)), np.eye(4))},
               {'ct': scan(np.array([[[most, most]]]), np.eye(4))}]
    for module, options in ((volume, {}), (scan_transform, dict(keys=('ct', 't1'), windows=((-160.0, 240.0), ())))):
        hp = ConfigDict({**module.DEFAULTS, **options})
        line = module.PLUGIN.describe(hp, records, [0, 1, 2])
        assert (said in line and 'its window is -160 to 240 HU' in line) if said else not line
        assert module.PLUGIN.describe(hp, records, [1]) == module.PLUGIN.describe(hp, records, []) == ''
