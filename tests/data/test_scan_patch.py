import functools
import math
import pathlib
import pickle
import types

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from ml_collections import ConfigDict
from scipy import ndimage

from jaxkd import config, errors
from jaxkd.contracts import TransformPlugin
from jaxkd.data import transform, volume
from jaxkd.data.source import Case, Source
from jaxkd.data.stores import writer
from jaxkd.data.transforms import affine3d, intensity, patch, pseudo_nct, scan
from jaxkd.data.volume import FIXED, Volume

REAL = pathlib.Path(__file__).parents[2] / '..' / 'shared' / 'data' / 'totalsegmentator_samples/pulmonary_report/models'
EXACT = dict(keys=('nct',), windows=((-100.0, 200.0),), spacing=(0.0, 0.0, 0.0))


def made(module, **given):
    return module.build(ConfigDict({**module.DEFAULTS, **given})).apply


def back(labels, affine, like):
    """What the inverse of `scan` makes of labels on the grid `affine`."""
    transform = scan.build(ConfigDict({**scan.DEFAULTS, **EXACT}))
    return pickle.loads(pickle.dumps(transform.inverse({'nct': like}, {'affine': affine})))(labels)


def rng(seed=0):
    return np.random.default_rng(seed)


def grid(spacing=(1.0, 1.0, 1.0), origin=(0, 0, 0), degrees=0):
    angle = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[:3, :3] *= spacing
    affine[:3, 3] = origin
    return affine


def noise(shape, seed=0):
    return rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def body(shape=(60, 50, 30), spacing=(4.0, 4.0, 5.0)):
    """A patient of 40 HU in air, with two lungs of -800 HU and a windpipe that reaches the last slice; (scan,
    lungs).
    """
    x, y, z = np.indices(shape)
    voxels = np.full(shape, -1000, np.int16)
    voxels[((x - 30) / 26)**2 + ((y - 25) / 20)**2 < 1] = 40
    lungs = (((abs(x - 30) - 12) / 8)**2 + ((y - 25) / 12)**2 < 1) & (z >= 6) & (z < 22)
    voxels[lungs] = -800
    voxels[29:32, 24:27, 20:] = -1000
    voxels[20:40, 2:4] = -1000  # a pocket below the table, joined to the air outside
    return Volume(voxels, grid(spacing, (-120, -100, -700))), lungs


# scan

def test_values_on_the_own_grid_are_exact():
    hu = np.array([-1000, -100, -25, 50, 200, 3000], np.int16).reshape(6, 1, 1)
    out = made(scan, **EXACT)({'nct': Volume(hu, grid((0.7, 0.7, 1.0))), 'case': 'a', 'pe': np.int32(1)})
    assert out.keys() == {'nct', 'label', 'affine', 'present', 'pe'}
    np.testing.assert_array_equal(out['nct'].ravel(), [0, 0, 1024, 2048, 4096, 4096])  # (hu + 100) / 300 * 4096
    assert out['nct'].shape == (1, 1, 6, 1) and out['nct'].dtype == np.int16 and out['nct'].flags.c_contiguous
    assert out['label'].dtype == np.uint8 and (out['label'] == 255).all()  # nothing is known
    assert out['affine'].dtype == np.float32 and out['present'] == {'nct': 1}


@hypothesis.given(st.tuples(*[st.integers(1, 24)] * 3), st.integers(0, 2**32 - 1))
@hypothesis.settings(max_examples=25, deadline=None)
def test_without_resampling_no_voxel_changes(shape, seed):
    voxels = noise(shape, seed)
    labels = rng(seed).integers(0, 3, shape).astype(np.uint8)
    affine = grid((0.7421875, 0.7421875, 0.625), (-180.3, -170.1, -1012.4))
    out = made(scan, **{**EXACT, 'windows': ((-1000.0, 1000.0),)})({'nct': Volume(voxels, affine),
                                                                    'label': Volume(labels, affine)})
    np.testing.assert_allclose(out['nct'][..., 0].T / FIXED * 2000 - 1000, voxels, atol=1000 / FIXED + 1e-3)
    np.testing.assert_array_equal(out['label'].T, labels)
    np.testing.assert_allclose(out['affine'], affine, rtol=1e-6)


def test_the_grid_is_that_of_the_first_key_alone():
    nct = Volume(noise((20, 16, 12)), grid((2.0, 2.0, 3.0), (5, -7, 100)))
    f = made(scan, spacing=(1.0, 2.0, 1.5))
    alone = f({'nct': nct})
    assert alone['nct'].shape == (24, 16, 40, 1)
    np.testing.assert_allclose(volume.spacing(alone['affine']), (1.0, 2.0, 1.5))
    np.testing.assert_allclose(volume.world(alone['affine'], (19.5, 7.5, 11.5)), volume.middle(nct))
    assert alone['present'] == {'nct': 1, 'ctpa': 0} and not alone['ctpa'].any()
    assert alone['ctpa'].shape == alone['nct'].shape
    other = Volume(noise((30, 9, 40), 1), grid((1.3, 3.0, 0.7), (-3, 0, 90), degrees=12))
    both = f({'nct': nct, 'ctpa': other, 'label': Volume(np.ones((5, 5, 5), np.uint8), grid(origin=(10, 0, 105)))})
    for key in ('nct', 'affine'):
        np.testing.assert_array_equal(both[key], alone[key])
    assert both['present'] == {'nct': 1, 'ctpa': 1} and both['ctpa'].any()
    assert set(np.unique(both['label'])) == {1, 255}  # outside of the mask's own grid nothing is known


def test_slices_at_a_time_are_the_whole():
    """The same as one resampling of the whole scan, smoothing included."""
    nct = Volume(noise((20, 18, 90)), grid((1.0, 1.0, 0.5)))
    ctpa = Volume(noise((25, 25, 61), 1), grid((0.8, 0.9, 0.7), (-1, -2, -3), degrees=7))
    out = made(scan, spacing=(1.5, 1.0, 1.1), windows=((-1000.0, 1000.0),) * 2)({'nct': nct, 'ctpa': ctpa})
    for key, found in (('nct', nct), ('ctpa', ctpa)):
        affine = out['affine'].astype(float)
        whole = volume.resample(found, affine, out[key].shape[2::-1], 1, -1000.0)
        np.testing.assert_allclose(out[key][..., 0].T / FIXED * 2000 - 1000, whole, atol=1.0)


def test_a_turned_first_scan_is_covered_by_an_upright_grid():
    turned = Volume(np.full((40, 20, 6), 50, np.int16), grid((1.0, 1.0, 2.0), (7, 3, -20), degrees=30))
    out = made(scan, **EXACT)({'nct': turned})
    affine = out['affine'].astype(float)
    np.testing.assert_allclose(affine[:3, :3], np.diag((1, 1, 2)), atol=1e-6)
    at = volume.index(affine, volume.world(turned.affine, np.array([[0, 0, 0], [39, 0, 0], [0, 19, 5], [39, 19, 5]])))
    assert (at > -0.6).all() and (at < np.array(out['nct'].shape[2::-1]) - 0.4).all()
    filled = (out['nct'] == 2048).sum()
    assert 0.85 < filled / turned.voxels.size < 1.05


def test_a_marker_keeps_its_place_and_comes_back():
    nct = Volume(noise((40, 36, 20)), grid((0.9, 0.9, 2.5), (-80, 40, 300)))
    labels = np.zeros(nct.voxels.shape, np.uint8)
    labels[10:16, 20:27, 5:9] = 1
    out = made(scan, keys=('nct',), windows=((-100.0, 200.0),), spacing=(0.6, 0.6, 1.5))({
        'nct': nct, 'label': Volume(labels, nct.affine)})
    mass = np.array(ndimage.center_of_mass(out['label'] == 1))[::-1]
    np.testing.assert_allclose(volume.world(out['affine'], mass), volume.world(nct.affine, (12.5, 23, 6.5)), atol=0.5)
    again = back(out['label'], out['affine'], nct)
    assert again.dtype == np.uint8 and again.shape == labels.shape
    np.testing.assert_array_equal(again, labels)  # a finer grid holds the coarse one


def test_inverse_is_background_outside_of_the_labels():
    like = Volume(np.zeros((9, 8, 7), np.int16), grid((1.0, 2.0, 3.0), (4, 5, 6)))
    cut = volume.moved(like.affine, (2, 3, 1))
    want = np.zeros((9, 8, 7), np.uint8)
    want[2:6, 3:6, 1:3] = 1
    np.testing.assert_array_equal(back(np.ones((2, 3, 4), np.uint8), cut.astype(np.float32), like), want)
    far = volume.moved(like.affine, (100, 0, 0))
    assert not back(np.ones((2, 3, 4), np.uint8), far, like).any()


@hypothesis.given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(0, 14)] * 3))
@hypothesis.settings(max_examples=25, deadline=None)
def test_a_fixed_size_is_the_middle_padded_with_ignored(seed, size):
    shape = tuple(rng(seed).integers(1, 12, 3).tolist())
    voxels, affine = noise(shape, seed), grid((1.5, 1.0, 2.0), (3, 2, 1))
    labels = rng(seed).integers(0, 2, shape).astype(np.uint8)
    # A mask on a larger grid: what lies beyond the scan is ignored all the same
    wide = Volume(np.pad(labels, 9), volume.moved(affine, (-9, -9, -9)))
    out = made(scan, **EXACT, size=size)({'nct': Volume(voxels + np.int16(0), affine), 'label': wide})
    want = tuple(s or n for s, n in zip(size, shape))
    assert out['label'].T.shape == want and out['nct'].shape == (*want[::-1], 1)
    again = back(np.where(out['label'] == 255, 7, out['label']), out['affine'], Volume(voxels, affine))
    start = [(n - s) // 2 for n, s in zip(shape, want)]
    inside = tuple(slice(max(0, a), min(n, a + s)) for a, n, s in zip(start, shape, want))
    np.testing.assert_array_equal(again[inside], labels[inside])
    assert (out['label'] != 255).sum() == labels[inside].size
    assert not out['nct'][out['label'] == 255].any()


def test_a_key_without_a_window_is_standardised():
    voxels = np.array([0, 0, 10, 20, 30, 40], np.int16).reshape(6, 1, 1)
    out = made(scan, keys=('nct', 't1'), windows=((-100.0, 200.0), ()), spacing=(0.0, 0.0, 0.0),
               percentiles=(0.0, 100.0))(
        {'nct': Volume(voxels, grid()), 't1': Volume(voxels, grid())})
    np.testing.assert_allclose(out['t1'].ravel() / FIXED, [0, 0, *np.array([-15, -5, 5, 15]) / np.sqrt(125)], atol=1e-3)


def test_lungs():
    nct, lungs = body()
    low, high = scan.lungs_of(nct)
    inside = np.argwhere(lungs)
    assert (low <= inside.min(axis=0)).all() and (low >= inside.min(axis=0) - 2).all()
    assert (high[:2] >= inside.max(axis=0)[:2]).all() and (high[:2] <= inside.max(axis=0)[:2] + 2).all()
    out = made(scan, **EXACT, lungs=True, margin=3)({'nct': nct, 'label': Volume(lungs.astype(np.uint8), nct.affine)})
    assert out['label'].sum() == lungs.sum() and out['label'].size < lungs.size
    first = np.round(volume.index(nct.affine, out['affine'][:3, 3])).astype(int)
    np.testing.assert_array_equal(first, np.maximum(low - 3, 0))
    again = back(out['label'], out['affine'], nct)
    np.testing.assert_array_equal(again, lungs)


def test_nothing_but_the_first_key_decides_the_crop():
    nct, lungs = body()
    f = made(scan, spacing=(5.0, 5.0, 5.0), lungs=True, margin=1)
    alone = f({'nct': nct})
    full = f({'nct': nct, 'ctpa': Volume(noise((70, 60, 50)), grid((4.0, 4.0, 4.0), (-150, -120, -720))),
              'label': Volume(np.eye(60, 50, dtype=np.uint8)[..., None].repeat(30, 2), nct.affine)})
    assert alone['nct'].shape == full['nct'].shape and alone['nct'].size < 0.5 * (30 * 40 * 48)
    for key in ('nct', 'affine'):
        np.testing.assert_array_equal(alone[key], full[key])


@pytest.mark.parametrize('change', [
    lambda v: np.full_like(v, 40),
    lambda v: np.full_like(v, -1000),
    lambda v: np.where(np.indices(v.shape)[1] == 25, -1000, v),  # a scan cut so that the lungs meet the air outside
    lambda v: np.where((v == -800) & (np.indices(v.shape)[2] > 6), 40, v)[:, :, :20]])  # next to no lung
def test_a_scan_without_lungs_stays_whole(change):
    nct, _ = body()
    changed = Volume(change(nct.voxels), nct.affine)
    assert scan.lungs_of(changed) is None
    assert made(scan, **EXACT, lungs=True)({'nct': changed})['nct'].T.shape[1:] == changed.voxels.shape


@pytest.mark.parametrize('record, words', [
    ({'ctpa': Volume(noise((4, 4, 4)), grid())}, 'no nct'),
    ({'nct': Volume(np.full((4, 4, 4), np.nan), grid())}, 'nct has voxels that are not finite'),
    ({'nct': Volume(noise((4, 4, 4)), grid()), 'label': Volume(np.full((4, 4, 4), 0.5), grid())}, 'whole numbers'),
    ({'nct': Volume(noise((4, 4, 4)), grid()), 'label': Volume(np.full((4, 4, 4), 256), grid())}, 'whole numbers')])
def test_a_case_that_cannot_be_used_is_named(record, words):
    with pytest.raises(errors.BadData, match=f'Case p7: .*{words}'):
        made(scan)({**record, 'case': 'p7'})


@pytest.mark.parametrize('module, given, words', [
    (scan, dict(keys=()), 'keys'),
    (scan, dict(keys=('nct', 'nct')), 'keys'),
    (scan, dict(keys=('nct', 'label')), 'keys'),
    (scan, dict(windows=((0.0, 1.0),)), 'windows'),
    (scan, dict(windows=((0.0, 1.0), (5.0, 1.0))), 'rise'),
    (scan, dict(spacing=(1.0, -1.0, 1.0)), 'spacing'),
    (scan, dict(size=(8, 8)), 'size'),
    (scan, dict(size=(8, 8, 2.5)), 'size'),
    (scan, dict(percentiles=(5.0, 101.0)), 'percentiles'),
    (patch, dict(size=(8, 0, 8)), 'size'),
    (patch, dict(foreground=1.5), 'foreground'),
    (pseudo_nct, dict(clot=(9.0, 8.0)), 'clot'),
    (affine3d, dict(labels=('label',)), 'joint=True'),
    (affine3d, dict(prob=2.0), 'prob'),
    (intensity, dict(gamma=-1.0), 'gamma'),
    (intensity, dict(prob=-1.0), 'prob')])
def test_options_that_cannot_be(module, given, words):
    with pytest.raises(errors.ConfigError, match=words):
        made(module, **given)


def test_a_spacing_that_would_fill_the_memory_is_refused():
    with pytest.raises(errors.ConfigError, match='Make it larger'):
        made(scan, spacing=(1e-3, 1e-3, 1e-3))({'nct': Volume(noise((40, 40, 40)), grid())})


def test_a_config_takes_the_options():
    run = config.resolve(ConfigDict(dict(data=dict(
        source=dict(name='jaxkd.phantoms.pancreas'), transforms=('scan',), augment=('patch', 'affine3d', 'intensity'),
        scan=dict(windows=((-100.0, 200.0), ())), patch=dict(size=(8, 8, 4)),
        affine3d=dict(joint=True, labels=('label',)),
        intensity=dict(gamma=0.5)))))
    assert run.data.scan.windows == ((-100.0, 200.0), ()) and run.data.intensity.prob == 1.0


# store

class Three(Source):
    """Three cases of different grids, the second without CTPA."""

    name, note, labels, skipped = 'three', '', ('background', 'embolus'), ()
    tasks, targets = {'pe': ('absent', 'present')}, {'pe': np.array([0, 1, 1], np.int32)}
    cases = tuple(Case(f'c{i}', f'p{i}') for i in range(3))

    def __getitem__(self, i):
        nct, lungs = body((60, 50, 30 - i))
        record = {'nct': nct, 'ctpa': nct, 'label': Volume(lungs.astype(np.uint8), nct.affine), 'case': f'c{i}',
                  'pe': self.targets['pe'][i], 'instances': Volume(lungs.astype(np.int32), nct.affine)}
        return {k: v for k, v in record.items() if i != 1 or k != 'ctpa'}


def test_a_store_holds_scans_of_a_fixed_size(tmp_path):
    f = made(scan, spacing=(6.0, 6.0, 6.0), lungs=True, size=(32, 28, 20))
    made_store = writer.write(Three(), [f], tmp_path / 'a', {})
    for i in range(3):
        want, got = f(Three()[i]), made_store[i]
        assert got.keys() == want.keys() == {'nct', 'ctpa', 'label', 'affine', 'present', 'pe'}
        for key in ('nct', 'ctpa', 'label', 'affine', 'pe'):
            np.testing.assert_array_equal(got[key], want[key])
        assert got['present'] == want['present'] == {'nct': 1, 'ctpa': float(i != 1)}
        cut = made(patch, size=(16, 16, 8))(got, rng(i))  # from a memory map that cannot be written
        assert cut['nct'].shape == cut['ctpa'].shape == (8, 16, 16, 1)
    made_store.verify()
    with pytest.raises(errors.BadData, match='Case c1: .*resample or pad them to one shape'):
        writer.write(Three(), [made(scan, spacing=(6.0, 6.0, 6.0))], tmp_path / 'b', {}, threads=1)


# patch

def boxes(shape=(12, 20, 24), foreground=((3, 4, 5),), seed=0):
    """A record as `scan` leaves it; foreground voxels (x, y, z)."""
    nct = rng(seed).permutation(math.prod(shape)).astype(np.int16).reshape(*shape, 1)
    label = np.zeros(shape, np.uint8)
    label[0, 0] = 255
    for x, y, z in foreground:
        label[z, y, x] = 1
    return {'nct': nct, 'ctpa': -nct, 'label': label, 'affine': grid((0.8, 0.8, 1.5), (10, 20, 30)).astype(np.float32),
            'present': {'nct': np.float32(1)}}


@hypothesis.given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 30)] * 3), st.floats(0, 1))
@hypothesis.settings(max_examples=60, deadline=None)
def test_one_place_for_all(seed, size, foreground):
    record = boxes()
    out = made(patch, size=size, foreground=foreground)(record, rng(seed))
    assert out['nct'].shape == (*size[::-1], 1) and out['label'].shape == size[::-1]
    np.testing.assert_array_equal(out['ctpa'], -out['nct'])
    # The affine finds each voxel again
    there = np.round(volume.index(record['affine'].astype(float), out['affine'][:3, 3])).astype(int)
    for z, y, x in np.ndindex(out['label'].shape) if out['label'].size < 300 else [(0, 0, 0),
                                                                                   tuple(n - 1 for n in size[::-1])]:
        at = np.array([x, y, z]) + there
        if (at >= 0).all() and (at < (24, 20, 12)).all():
            assert out['nct'][z, y, x, 0] == record['nct'][at[2], at[1], at[0], 0]
            assert out['label'][z, y, x] == record['label'][at[2], at[1], at[0]]
        else:
            assert out['nct'][z, y, x, 0] == 0 and out['label'][z, y, x] == 255
    for n, s, a in zip((24, 20, 12), size, there):
        assert min(0, n - s) <= a <= max(0, n - s)


def test_foreground_is_within_the_middle_half_where_the_scan_allows():
    voxel = (11, 9, 6)
    record = boxes(foreground=(voxel,))
    f = made(patch, size=(8, 8, 4), foreground=1.0)
    seen = []
    for seed in range(200):
        out = f(record, rng(seed))
        z, y, x = np.argwhere(out['label'] == 1)[0]
        seen.append((x, y, z))
    # [0.25, 0.75) of 8, 4
    assert np.min(seen, axis=0).tolist() == [2, 2, 1] and np.max(seen, axis=0).tolist() == [5, 5, 2]
    corner = boxes(foreground=((0, 0, 1),))
    assert all((f(corner, rng(s))['label'] == 1).any() for s in range(20))


def test_the_share_of_foreground_patches():
    record = boxes((40, 40, 40), foreground=((20, 20, 20),))
    for share, want in ((0.33, 0.33), (0.0, 0.0), (1.0, 1.0)):
        f = made(patch, size=(4, 4, 4), foreground=share)
        hit = np.mean([(f(record, rng(seed))['label'] == 1).any() for seed in range(400)])
        assert abs(hit - want) < 0.06  # 4^3 of 37^3 places hold it by chance
    normal = boxes(foreground=())
    assert made(patch, size=(8, 8, 4), foreground=1.0)(normal, rng())['nct'].shape == (4, 8, 8, 1)


def test_every_foreground_voxel_comes_alike():
    label = np.zeros((3, 4, 5), np.uint8)
    places = [(1, 0, 0), (4, 3, 0), (2, 1, 2), (0, 2, 2), (3, 3, 2)]
    for n, (x, y, z) in enumerate(places):
        label[z, y, x] = n % 2 + 1
    label[1] = 255
    found = [tuple(patch.foreground_voxel(label, u).tolist()) for u in np.arange(10) / 10]
    assert sorted(found) == sorted(2 * places)
    assert patch.foreground_voxel(np.full((2, 2, 2), 255, np.uint8), 0.5) is None


def test_evaluation_has_the_middle():
    record = boxes()
    out = patch.build(ConfigDict({**patch.DEFAULTS, 'size': (8, 30, 5)})).eval_mode(record)
    np.testing.assert_array_equal(out['nct'][:, 5:25], record['nct'][3:8, :, 8:16])
    assert (out['label'][:, :5] == 255).all() and (out['label'][:, 25:] == 255).all() and not out['nct'][:, :5].any()


def test_patches_need_one_grid():
    with pytest.raises(errors.ConfigError, match='List "scan"'):
        made(patch)({'nct': Volume(noise((4, 4, 4)), grid()), 'label': np.zeros((4, 4, 4), np.uint8)}, rng())
    with pytest.raises(errors.ConfigError, match='differ in shape'):
        made(patch)({**boxes(), 'ctpa': np.zeros((3, 3, 3, 1), np.int16)}, rng())


# affine3d and intensity

def test_labels_are_warped_with_their_scan():
    label = ndimage.zoom(rng(3).integers(0, 3, (4, 6, 7)), (1, 5, 5), order=0).astype(np.uint8)
    record = {'nct': (label.astype(np.int16) * 1000)[..., None], 'label': label, 'present': {}}
    f = made(affine3d, keys=('nct',), joint=True, labels=('label',), degrees=30.0, scale=0.2, shift=0.1)
    out = f(record, rng(5))
    assert (out['label'].dtype == np.uint8 and out['label'].shape == label.shape
            and set(np.unique(out['label'])) <= {0, 1, 2})
    assert (out['label'] != label).any()
    sure = ndimage.generic_filter(out['label'][1], np.ptp, 5) == 0  # away from edges linear and nearest agree
    assert sure.mean() > 0.2
    np.testing.assert_array_equal(out['nct'][1, ..., 0][sure], out['label'][1][sure].astype(np.int16) * 1000)
    still = affine3d.warp_labels(label, 0.0, 1.0, 0.0, 0.0)
    np.testing.assert_array_equal(still, label)
    np.testing.assert_array_equal(affine3d.warp_labels(label[:, :30, :30], np.pi / 2, 1.0, 0.0, 0.0),
                                  np.rot90(label[:, :30, :30], -1, (1, 2)))
    away = affine3d.warp_labels(np.full((1, 4, 4), 2, np.uint8), 0.0, 1.0, 0.5, 0.0)
    np.testing.assert_array_equal(away[0], [[0, 0, 2, 2]] * 4)


@pytest.mark.parametrize('module', [affine3d, intensity])
def test_chance(module):
    record = {'nct': rng().integers(0, 4096, (2, 16, 16, 1)).astype(np.int16)}
    f = made(module, keys=('nct',), prob=0.25)
    changed = [(f(record, rng(seed))['nct'] != record['nct']).any() for seed in range(400)]
    assert abs(np.mean(changed) - 0.25) < 0.07


def test_what_is_switched_off_draws_nothing():
    """The parameters of a run that does without are what they were before these options came."""
    record = {key: rng(1).integers(0, 4096, (3, 16, 16, 1)).astype(np.int16) for key in ('nct', 'ctpa')}
    out = made(intensity, keys=('nct', 'ctpa'), noise=0.05)(record, rng(7))
    again = rng(7)
    for key in ('nct', 'ctpa'):
        b, c = 1 + again.uniform(-1, 1, 2) * (0.2, 0.1)
        mean = record[key].mean(dtype=np.float32)
        want = np.float32(b * c) * record[key] + np.float32(b * (1 - c)) * mean
        want = want + np.float32(0.05 * FIXED) * again.standard_normal(record[key].shape, np.float32)
        np.testing.assert_allclose(out[key], np.rint(want), atol=1)
    moved, again = made(affine3d, keys=('nct', 'ctpa'))(record, rng(7)), rng(7)
    for key in ('nct', 'ctpa'):
        drawn = again.uniform(-1, 1, 4) * (np.deg2rad(15), 0.1, 0.05, 0.05) + (0, 1, 0, 0)
        np.testing.assert_array_equal(moved[key], affine3d.warp(record[key], *drawn))


def test_gamma_keeps_the_ends_and_the_order():
    values = np.linspace(0, 4096, 65).astype(np.int16).reshape(1, 5, 13, 1)
    for power in (0.5, 2.0):
        out = intensity.change(values, 1.0, 1.0, 0.0, None, power).ravel()
        assert out[0] == 0 and out[-1] == 4096 and (np.diff(out) >= 0).all()
        np.testing.assert_allclose(out / 4096, (values.ravel() / 4096)**power, atol=2 / 4096)
    flat = np.full((1, 4, 4, 1), 7, np.int16)
    np.testing.assert_array_equal(intensity.change(flat, 1.0, 1.0, 0.0, None, 2.0), flat)
    f = made(intensity, keys=('nct',), brightness=0.0, contrast=0.0, gamma=0.5)
    middle = [f({'nct': values}, rng(seed))['nct'].ravel()[32] / 4096 for seed in range(300)]
    assert 0.5**1.5 <= min(middle) < 0.37 and 0.61 < max(middle) <= 0.5**(2 / 3) + 1e-3
    assert abs(np.mean(np.array(middle) < 0.5) - 0.5) < 0.1


def test_blur_is_in_plane_and_keeps_the_sum():
    point = np.zeros((3, 21, 21, 1), np.float32)
    point[1, 10, 10] = 1
    out = intensity.change(point, 1.0, 1.0, 0.0, None, 1.0, 1.5)
    np.testing.assert_allclose(out.sum(axis=(1, 2, 3)), [0, 1, 0], atol=1e-5)
    spread = (out[1, ..., 0] * (np.arange(21) - 10)**2).sum()
    assert abs(spread - 1.5**2) < 0.05


# pseudo_nct

def angiography(shape=(24, 24, 20)):
    """Soft tissue, a vessel of 350 HU with a clot of 50 HU inside; (record, vessel, clot)."""
    x, y, z = np.indices(shape)
    vessel, clot = (x - 12)**2 + (y - 12)**2 < 49, (x - 12)**2 + (y - 12)**2 + (z - 10)**2 < 9
    voxels = np.where(clot, 50, np.where(vessel, 350, 40)).astype(np.int16)
    affine = grid((0.7, 0.7, 1.0))
    return {'ctpa': Volume(voxels, affine), 'label': Volume(clot.astype(np.uint8), affine), 'case': 'a'}, vessel, clot


def test_pseudo_nct_follows_its_rule():
    record, vessel, clot = angiography()
    out = made(pseudo_nct, noise=0.0, clot=(10.0, 10.0))(record)['nct']
    inside = ndimage.binary_erosion(record['ctpa'].voxels > 120)
    assert out.voxels.dtype == np.int16 and inside.sum() > 500
    np.testing.assert_array_equal(out.voxels[inside], 45)
    np.testing.assert_array_equal(out.voxels[clot], 60)
    rest = ~inside & ~clot
    np.testing.assert_array_equal(out.voxels[rest], record['ctpa'].voxels[rest])
    assert out.affine is record['ctpa'].affine


def test_pseudo_nct_is_a_function_of_the_case():
    record, _, clot = angiography()
    f = made(pseudo_nct)
    one, again, other = f(record), f(record), f({**record, 'case': 'b'})
    np.testing.assert_array_equal(one['nct'].voxels, again['nct'].voxels)
    assert (one['nct'].voxels != other['nct'].voxels).mean() > 0.5
    assert (made(pseudo_nct, seed=1)(record)['nct'].voxels != one['nct'].voxels).mean() > 0.5
    np.testing.assert_array_equal(f(pickle.loads(pickle.dumps(record)))['nct'].voxels, one['nct'].voxels)
    added = [made(pseudo_nct, noise=0.0)({**record, 'case': str(n)})['nct'].voxels[clot][0] - 50 for n in range(40)]
    assert 8 <= min(added) < 12 and 21 < max(added) <= 25
    tissue = ~ndimage.binary_dilation(record['ctpa'].voxels != 40)
    assert abs(one['nct'].voxels[tissue].std() - 12) < 0.5


def test_pseudo_nct_without_label_and_with_a_label_elsewhere():
    record, _, clot = angiography()
    f = made(pseudo_nct, noise=0.0, clot=(10.0, 10.0))
    bare = f({k: v for k, v in record.items() if k != 'label'})
    np.testing.assert_array_equal(bare['nct'].voxels[clot], 50)
    small = Volume(clot[5:20, 5:20, 5:18].astype(np.uint8), volume.moved(record['ctpa'].affine, (5, 5, 5)))
    np.testing.assert_array_equal(f({**record, 'label': small})['nct'].voxels, f(record)['nct'].voxels)
    hidden = Volume(np.full(clot.shape, 255, np.uint8), record['ctpa'].affine)
    with pytest.raises(errors.ConfigError, match='label of case a is ignored or hidden'):
        f({**record, 'label': hidden})
    with pytest.raises(errors.ConfigError, match='true nct'):
        f({**record, 'nct': record['ctpa']})
    with pytest.raises(errors.BadData, match='case "a" has no id or no ctpa'):
        f({'case': 'a'})


# a real scan

@functools.cache
def real():
    if not (REAL / 'ct_cropped.nii.gz').exists():
        pytest.skip(f'{REAL} is not there')
    return {'ctpa': volume.read(REAL / 'ct_cropped.nii.gz'), 'label': volume.read(REAL / 'pulmonary_artery.nii.gz'),
            'case': 'real'}


def test_a_real_angiography():
    record = made(pseudo_nct)({**real(), 'label': Volume(np.zeros_like(real()['label'].voxels),
                                                         real()['label'].affine)})
    artery = ndimage.binary_erosion(real()['label'].voxels > 0, iterations=2)
    assert real()['ctpa'].voxels[artery].mean() > 200 and abs(np.median(record['nct'].voxels[artery]) - 45) < 3
    f = made(scan, spacing=(1.5, 1.5, 3.0))
    out = f({**record, 'label': real()['label']})
    assert out['nct'].shape == (56, 102, 122, 1)  # its lungs meet the edge of this scan
    share = out['label'].mean() / real()['label'].voxels.mean()
    assert 0.97 < share < 1.03
    blood = out['label'] == 1
    assert out['ctpa'][blood].mean() / FIXED * 900 - 200 > 200  # HU of the artery itself
    again = back(out['label'], out['affine'], real()['label'])
    truth = real()['label'].voxels
    dice = 2 * (again & truth).sum() / (again.sum() + truth.sum())
    assert dice > 0.93
    exact = made(scan, spacing=(0.0, 0.0, 0.0))({**record, 'label': real()['label']})
    np.testing.assert_array_equal(back(exact['label'], exact['affine'], real()['label']), truth)


def test_memory_of_a_whole_scan():
    """Beside scans and results no more than about one further scan."""
    import tracemalloc
    shape = (128, 128, 240)
    record = {'nct': Volume(np.zeros(shape, np.int16), grid()), 'label': Volume(np.zeros(shape, np.uint8), grid())}
    for given in (dict(spacing=(0.0, 0.0, 0.0)), dict(spacing=(1.1, 1.1, 1.2))):
        tracemalloc.start()
        out = made(scan, keys=('nct',), windows=((-100.0, 200.0),), **given)(record)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak - out['nct'].nbytes - out['label'].nbytes < 1.2 * record['nct'].voxels.nbytes
    assert isinstance(made(scan), functools.partial) and not isinstance(made(scan), types.LambdaType)


@pytest.mark.parametrize('kind', [dict, ConfigDict])
def test_a_transform_may_restrict_some_options_and_keeps_the_others(monkeypatch, kind):
    plug = TransformPlugin(restrict=lambda hp, inputs: kind({'keys': inputs}))
    monkeypatch.setattr(transform, 'plugin', lambda name: plug)
    hp = ConfigDict(dict(keys=('ct', 'mri'), size=3))
    assert transform.restricted_options('mine.crop', hp, ('ct',)).to_dict() == dict(keys=('ct',), size=3)
    assert hp['keys'] == ('ct', 'mri')
