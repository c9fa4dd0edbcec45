"""Segmentation: the worked masks, both policies for empty ones, a brute-force reference, invariances, lesions,
tables.
"""
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from jaxkd import errors
from jaxkd.metrics import bootstrap, segmentation

QUICK, LABELS = 50, ('background', 'x')
SURFACES = ('hd95_mm', 'hd95_voxel', 'assd_mm', 'assd_voxel', 'nsd')
DISTANCES = SURFACES[:4]


def one(predicted, truth, *args, **kwargs):
    """Metrics of class x without its name."""
    row = segmentation.measure(np.asarray(predicted).astype(int), np.asarray(truth).astype(int), LABELS, *args,
                               **kwargs)
    assert all(type(v) is float for v in row.values()) and list(row) == [f'{m}/x' for m in segmentation.METRICS]
    return {name.removesuffix('/x'): v for name, v in row.items()}


def squares():
    """Two 4 x 4 squares in 9 x 9, one column apart."""
    predicted, truth = np.zeros((2, 9, 9), int)
    predicted[2:6, 2:6] = truth[2:6, 3:7] = 1
    return predicted, truth


def blobs(seed, shape, classes=2):
    """Smooth random masks that overlap in part, whole numbers below classes."""
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.normal(size=(3, *shape)), (0, *(1.0,) * len(shape)))
    return [np.digitize(fields[0] + f, np.linspace(0.1, 0.6, classes - 1)) for f in fields[1:]]


def brute(predicted, truth, spacing):
    """Surface distances by comparing every surface voxel with every other."""
    edges = [np.argwhere(m & ~ndimage.binary_erosion(m)) * np.asarray(spacing, float) for m in (predicted, truth)]
    gaps = cdist(*edges)
    return np.concatenate([gaps.min(1), gaps.min(0)])


def test_worked_squares():
    predicted, truth = squares()
    row = one(predicted, truth)
    assert (row['dice'], row['iou'], row['hd95_voxel'], row['volume_error'], row['empty']) == (0.75, 0.6, 1.0, 0, 0)
    # of the 12 surface voxels of each, 6 lie on the surface of the other
    assert row['assd_voxel'] == pytest.approx(0.5)
    truth[8, 8] = 1
    row = one(predicted, truth, tolerance=0.5)
    assert round(row['dice'], 4) == 0.7273 and row['hd95_voxel'] == 1.0
    assert round(brute(predicted > 0, truth > 0, (1, 1)).max(), 4) == 4.2426  # what hd95 does not see
    assert row['assd_voxel'] == pytest.approx((12 + 18**0.5) / 25) and row['nsd'] == 12 / 25
    assert row['volume_error'] == pytest.approx(-1 / 17)


def test_worked_counts():
    predicted, truth = np.zeros((2, 400), int)
    predicted[:200], truth[43:243] = 1, 1  # 157 right, 43 too many, 43 missed
    assert one(predicted.reshape(1, 20, 20), truth.reshape(1, 20, 20))['dice'] == 0.785


@pytest.mark.parametrize('spacing, hd95', [((1, 1), 1), ((2, 3), 3), ((3, 2), 2), ((0.5, 0.5), 0.5)])
def test_spacing_of_an_image(spacing, hd95):
    row = one(*squares(), spacing)
    assert row['hd95_mm'] == pytest.approx(hd95) and row['hd95_voxel'] == 1
    assert np.isnan(row['volume_error_ml'])  # an image has no thickness


def test_unknown_spacing_leaves_voxels():
    volume = [np.stack([m, m]) for m in squares()]
    for spacing in (None, (np.nan, 1.4, 1.4), (np.nan,) * 3):
        row = one(*volume, spacing, tolerance=0.9)
        assert np.isnan([row['hd95_mm'], row['assd_mm'], row['volume_error_ml']]).all() and row['hd95_voxel'] == 1
        assert row['nsd'] == 0.75  # those that coincide, 12 of 16: with two slices every voxel is at the surface
    assert one(*volume, (9, 0.8, 0.8), tolerance=0.9)['nsd'] == 1  # in mm they are near
    assert one(*volume, np.float32([9, 1.1, 1.1]), tolerance=1.1)['nsd'] == 1  # float32(1.1) is above 1.1


def test_a_volume_of_one_slice_is_an_image():
    predicted, truth = squares()
    flat, image = one(predicted[None], truth[None], (np.nan, 2, 3)), one(predicted, truth, (2, 3))
    np.testing.assert_equal(flat, image)
    thick = one(np.pad(predicted, 1)[None], np.pad(0 * truth, 1)[None], (8, 2, 3))
    assert thick['volume_error_ml'] == pytest.approx(16 * 48 / 1000)
    assert thick['hd95_mm'] == pytest.approx(np.hypot(22, 33))


STRICT = {'none': (0.75, 0.6, 1, 1), 'truth': (0, 0, 0, 'far'), 'prediction': (0, 0, 0, 'far'), 'both': (np.nan,) * 4}
PRESENT = STRICT | {'truth': (np.nan,) * 4}
LEGACY = {'none': (0.75, 0.6, 1, 1), 'truth': (1, 1, 1, 0), 'prediction': (0, 0, 0, 0), 'both': (0, 0, 0, 0)}


@pytest.mark.parametrize('policy, expected', [('strict', STRICT), ('present', PRESENT), ('legacy', LEGACY)])
@pytest.mark.parametrize('code, case', list(enumerate(STRICT)))
def test_empty_masks(policy, expected, code, case):
    predicted, truth = (np.stack([m, m]) for m in squares())
    predicted, truth = predicted * (case not in ('prediction', 'both')), truth * (case not in ('truth', 'both'))
    row = one(predicted, truth, (4, 2, 2), policy)
    dice, iou, nsd, distance = expected[case]
    assert row['empty'] == code
    np.testing.assert_equal([row['dice'], row['iou'], row['nsd']], [dice, iou, nsd])
    for unit, diagonal, step in (('voxel', np.sqrt(4 + 81 + 81), 1), ('mm', np.sqrt(64 + 324 + 324), 2)):
        wanted = diagonal if distance == 'far' else distance * step  # nan stays nan
        np.testing.assert_allclose(row[f'hd95_{unit}'], wanted)
        np.testing.assert_allclose(row[f'assd_{unit}'], wanted / 4 if case == 'none' else wanted)
    assert np.isnan(row['volume_error']) == (case in ('truth', 'both'))
    ml = {'none': 0, 'truth': 32 * 16 / 1000, 'prediction': -32 * 16 / 1000, 'both': 0}[case]
    if policy != 'legacy' and np.isnan(dice):
        ml = np.nan
    np.testing.assert_allclose(row['volume_error_ml'], ml)


def test_legacy_distances_stay_unknown_without_a_spacing():
    predicted, truth = squares()
    row = one(predicted, 0 * truth, None, 'legacy')
    assert row['hd95_voxel'] == 0 and np.isnan(row['hd95_mm'])
    row = one(predicted, 0 * truth)
    assert row['hd95_voxel'] == pytest.approx(np.hypot(9, 9)) and np.isnan(row['hd95_mm'])


def test_ignored_voxels_count_nowhere():
    predicted, truth = squares()
    truth[8, 8] = predicted[0, 0] = 1
    marked = truth.copy()
    marked[8, 8] = marked[0, 0] = 255
    assert one(predicted, marked)['dice'] == 0.75 and one(predicted, truth)['dice'] < 0.75
    np.testing.assert_equal(one(predicted, marked), one(*squares()))
    marked[predicted == 1] = 255
    assert one(predicted, marked)['empty'] == 2  # all that was predicted is ignored
    for policy in segmentation.POLICIES:
        assert np.isnan(list(one(predicted, np.full((9, 9), 255), policy=policy).values())).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 9), min_size=2, max_size=3), st.data())
def test_agrees_with_brute_force(seed, shape, data):
    predicted, truth = (m.astype(bool) for m in blobs(seed, (*shape[:-1], shape[-1] + 1)))
    spacing = data.draw(st.lists(st.sampled_from([0.5, 1.0, 1.7, 6.0]), min_size=len(shape), max_size=len(shape)))
    row = one(predicted, truth, spacing, tolerance=1.5)
    if len(shape) == 3 and shape[0] == 1:
        predicted, truth, spacing = predicted[0], truth[0], spacing[1:]
    if row['empty']:
        assert not (predicted.any() and truth.any())
        return
    mm, voxel = brute(predicted, truth, spacing), brute(predicted, truth, [1] * truth.ndim)
    expected = {'dice': 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()), 'nsd': np.mean(mm <= 1.5),
                'iou': (predicted & truth).sum() / (predicted | truth).sum(), 'hd95_mm': np.percentile(mm, 95),
                'hd95_voxel': np.percentile(voxel, 95), 'assd_mm': mm.mean(), 'assd_voxel': voxel.mean()}
    assert {name: row[name] for name in expected} == pytest.approx(expected)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([(9, 11), (4, 6, 7)]))
def test_symmetries(seed, shape):
    predicted, truth = blobs(seed, shape)
    spacing = (5.0, 1.5, 0.8)[-len(shape):]
    row = one(predicted, truth, spacing)

    def same(other, names):
        return {m: other[m] for m in names} == pytest.approx({m: row[m] for m in names}, nan_ok=True)

    assert same(one(truth, predicted, spacing), ('dice', 'iou', *SURFACES))
    assert same(one(predicted[::-1], truth[::-1], spacing), row)
    assert same(one(predicted.T, truth.T, spacing[::-1]), row)
    wide = [np.pad(m, 3) for m in (predicted, truth)]
    if row['empty'] == 0:  # the diagonal of an empty one is that of the wider array
        assert same(one(*wide, spacing), row)
    scaled = one(predicted, truth, np.multiply(spacing, 3), tolerance=6.0)
    assert same(scaled, ('dice', 'nsd', 'hd95_voxel', 'volume_error'))
    np.testing.assert_allclose([scaled[m] for m in ('hd95_mm', 'assd_mm')],
                               [3 * row[m] for m in ('hd95_mm', 'assd_mm')])
    np.testing.assert_allclose(row['iou'], row['dice'] / (2 - row['dice']))
    perfect = one(truth, truth, spacing)
    if truth.any():
        assert [perfect[m] for m in ('dice', 'iou', 'nsd', 'volume_error', *DISTANCES)] == [1, 1, 1] + [0] * 5


def test_single_voxels_and_full_arrays():
    a, b = np.zeros((2, 5, 6, 7), bool)
    a[0, 0, 0] = b[4, 5, 6] = True
    row = one(a, b, (2, 1, 1))
    corners = np.sqrt(64 + 25 + 36)
    assert row['dice'] == row['nsd'] == 0 and row['hd95_mm'] == row['assd_mm'] == pytest.approx(corners)
    assert corners < np.sqrt(100 + 36 + 49)  # an empty mask is worse than any other
    full = np.ones((5, 6, 7), bool)
    row = one(full, full, (2, 1, 1))
    assert (row['dice'], row['hd95_mm'], row['nsd']) == (1, 0, 1)
    inside = full.copy()
    inside[1:-1, 1:-1, 1:-1] = False  # its surface is that of the full one and the wall of the hollow
    assert one(full, full & (np.arange(7) < 6), (2, 1, 1))['hd95_mm'] == 1
    assert one(inside, full, (2, 1, 1))['hd95_mm'] == 0
    assert one(np.ones((1, 1)), np.ones((1, 1)))['dice'] == 1


def test_classes_are_measured_one_by_one():
    predicted, truth = blobs(3, (6, 20, 20), 4)
    names = ('background', 'RV', 'MYO', 'LV')
    row = segmentation.measure(predicted.astype(np.uint8), truth, names, (8, 1.5, 1.5))
    assert list(row)[:4] == ['dice/RV', 'dice/MYO', 'dice/LV', 'iou/RV'] and len(row) == 3 * len(segmentation.METRICS)
    for c, name in enumerate(names[1:], 1):
        alone = one(predicted == c, truth == c, (8, 1.5, 1.5))
        assert {m: row[f'{m}/{name}'] for m in alone} == pytest.approx(alone)
    np.testing.assert_equal(segmentation.measure(np.asfortranarray(predicted), truth, names, (8, 1.5, 1.5)), row)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([(7, 9), (3, 6, 6)]), st.integers(2, 5),
       st.sampled_from(['strict', 'present']))
def test_dice_alone_is_that_of_measure(seed, shape, classes, policy):
    predicted, truth = blobs(seed, shape, classes)
    truth[..., 0] = 255
    names = tuple('bwxyz'[:classes])
    expected = {k: v for k, v in segmentation.measure(predicted, truth, names, policy=policy).items()
                if k.startswith('dice/')}
    assert segmentation.dices(predicted.astype(np.uint8), truth.astype(np.uint8), names,
                              policy) == pytest.approx(expected, nan_ok=True)


def test_agrees_with_medpy():
    binary = pytest.importorskip('medpy.metric.binary')
    for seed in range(20):
        predicted, truth = blobs(seed, (6, 12, 12))
        row, spacing = one(predicted, truth, (5, 1.2, 0.8)), (5, 1.2, 0.8)
        assert row['hd95_mm'] == pytest.approx(binary.hd95(predicted, truth, spacing))
        assert row['assd_mm'] == pytest.approx(binary.assd(predicted, truth, spacing))


def test_far_masks_in_a_large_scan_are_quick():
    """A distance transform of these 79 million voxels takes half a minute."""
    predicted, truth = np.zeros((2, 300, 512, 512), np.uint8)
    truth[100:120, 200:230, 200:240] = predicted[101:120, 203:230, 200:240] = predicted[-1, -1, -1] = 1
    started = time.process_time()
    row = segmentation.measure(predicted, truth, LABELS, (1.5, 0.8, 0.8))
    assert time.process_time() - started < 5
    assert row['hd95_mm/x'] == pytest.approx(2.4) and row['dice/x'] > 0.9


def scene():
    """Three true lesions, two of which touch at a corner and are one by connectivity; four predicted parts."""
    predicted, truth = np.zeros((2, 6, 20, 20), int)
    truth[1, 1:3, 1:3] = truth[2, 3, 3] = 1  # joined by a corner
    truth[3, 8:12, 8:12] = truth[5, 17:19, 17:19] = 1
    predicted[1, 1, 1] = predicted[3, 8:11, 8:12] = 1
    predicted[0, 15, 15] = predicted[0, 18, 2] = 1  # of nothing
    return predicted, truth


def test_lesions():
    predicted, truth = scene()
    assert segmentation.lesions(predicted, truth) == {'lesion_recall': pytest.approx(2 / 3), 'lesion_false': 2}
    assert segmentation.lesions(predicted > 0, truth > 0) == segmentation.lesions(predicted, truth)
    # 1 of 5 voxels, 12 of 16, none of 4
    for fraction, recall in ((0.2, 2 / 3), (0.21, 1 / 3), (0.75, 1 / 3), (0.76, 0)):
        assert segmentation.lesions(predicted, truth, fraction=fraction)['lesion_recall'] == pytest.approx(recall)
    ids = np.where(truth, 7, 0)
    ids[2, 3, 3], ids[0, 15, 15] = 300, 9  # the corner is a lesion of its own; 9 lies where truth says nothing
    found = segmentation.lesions(predicted, truth, instances=ids)
    assert found == {'lesion_recall': 0.5, 'lesion_false': 2}
    assert segmentation.lesions(3 * predicted, 3 * truth, label=3) == segmentation.lesions(predicted, truth)
    np.testing.assert_equal(segmentation.lesions(3 * predicted, 3 * truth),
                            {'lesion_recall': np.nan, 'lesion_false': 0})


def test_lesions_without_truth_and_with_ignored_voxels():
    predicted, truth = scene()
    np.testing.assert_equal(segmentation.lesions(predicted, 0 * truth), {'lesion_recall': np.nan, 'lesion_false': 4})
    assert segmentation.lesions(0 * predicted, truth) == {'lesion_recall': 0, 'lesion_false': 0}
    assert np.isnan(list(segmentation.lesions(predicted, np.full_like(truth, 255)).values())).all()
    truth[0, 15, 15:] = truth[5] = 255  # one of the false parts, and the lesion that was missed
    assert segmentation.lesions(predicted, truth) == {'lesion_recall': 1, 'lesion_false': 1}
    with pytest.raises(errors.BadData, match='same shape'):
        segmentation.lesions(predicted, truth[:3])
    with pytest.raises(errors.BadData, match='same shape'):
        segmentation.lesions(predicted, truth, instances=truth[0])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([(12, 12), (4, 8, 8)]))
def test_lesions_agree_with_labels_of_the_whole(seed, shape):
    predicted, truth = blobs(seed, shape)
    joined = np.ones((3,) * len(shape))
    true, n = ndimage.label(truth, joined)
    parts, count = ndimage.label(predicted, joined)
    hit = [predicted[true == i].any() for i in range(1, n + 1)]
    false = sum(not truth[parts == i].any() for i in range(1, count + 1))
    expected = {'lesion_recall': np.mean(hit) if n else np.nan, 'lesion_false': false}
    assert segmentation.lesions(predicted, truth) == pytest.approx(expected, nan_ok=True)


def scans():
    """Columns of six scans of four patients; b is in two of them, c in none."""
    nan = np.nan
    columns = {'dice/a': [0.8, 0.9, 0.7, 0.0, 1.0, 0.5], 'dice/b': [nan, 0.4, 0.6, nan, nan, nan], 'dice/c': [nan] * 6,
               'empty/a': [0, 0, 0, 1, 0, 0], 'empty/b': [3, 0, 2, 3, 3, 3], 'empty/c': [3] * 6,
               'lesion_recall': [1, nan, 0.5, 1, 1, 0]}
    return {name: np.array(v, float) for name, v in columns.items()}, list('ppqqrs')


def test_table():
    columns, patients = scans()
    found = segmentation.table(columns, patients, QUICK)
    assert list(found) == ['dice', 'dice/a', 'dice/b', 'dice/c', 'lesion_recall']
    assert found['dice/a']['value'] == pytest.approx(3.9 / 6) and found['dice/b']['value'] == pytest.approx(0.5)
    assert found['dice']['value'] == pytest.approx((3.9 / 6 + 0.5) / 2)  # of the classes that are there, each as much
    assert found['lesion_recall']['value'] == pytest.approx(0.7)
    counts = {name: (e['n_cases'], e['n_patients'], e.get('n_labels')) for name, e in found.items()}
    assert counts == {'dice': (6, 4, 2), 'dice/a': (6, 4, None), 'dice/b': (2, 2, None), 'dice/c': (0, 0, None),
                      'lesion_recall': (5, 4, None)}
    empties = [[found[f'dice/{c}'][key] for key in segmentation.EMPTY.values()] for c in 'abc']
    assert empties == [[1, 0, 0], [0, 1, 4], [0, 0, 6]] and 'n_empty_truth' not in found['dice']
    assert np.isnan([found['dice/c'][k] for k in ('value', 'low', 'high')]).all()
    assert found['dice/a']['low'] < found['dice/a']['value'] < found['dice/a']['high']
    assert found['dice/b']['replicates'] < QUICK == found['dice']['replicates']
    np.testing.assert_equal(segmentation.table(columns, patients, QUICK), found)


def test_intervals_are_those_of_duplicated_scans():
    columns, patients = scans()
    found, draws = segmentation.table(columns, patients, QUICK), []
    for block in bootstrap.resamples(patients, QUICK):
        for w in block.astype(int):
            means = [np.nanmean(v) for v in (columns[f'dice/{c}'].repeat(w) for c in 'ab') if not np.isnan(v).all()]
            draws.append(np.mean(means))
    np.testing.assert_allclose([found['dice']['low'], found['dice']['high']], np.quantile(draws, [0.025, 0.975]))


def test_an_interval_needs_two_patients_with_a_value():
    columns, patients = {'dice/a': [0.5, 0.7, np.nan, np.nan]}, list('ppqr')
    entry = segmentation.table(columns, patients, QUICK)['dice/a']
    assert (entry['value'] == pytest.approx(0.6) and entry['n_patients'] == 1
            and np.isnan([entry['low'], entry['high']]).all())


def test_paired_table():
    columns, patients = scans()
    better = {name: v + 0.1 * (np.arange(6) != 0) for name, v in columns.items()} | {'nsd/a': np.ones(6)}
    better['dice/a'][3] = np.nan
    found = segmentation.paired_table(better, columns, patients, QUICK)
    assert list(found) == ['dice', 'dice/a', 'dice/b', 'dice/c', 'lesion_recall']
    assert found['dice/a']['value'] == pytest.approx(0.08) and found['dice/a']['n_cases'] == 5
    assert found['dice']['value'] == pytest.approx((0.08 + 0.1) / 2) and found['dice/a']['low'] > 0
    assert 'n_empty_truth' not in found['dice/a']
    same = segmentation.paired_table(columns, columns, patients, QUICK)
    assert [same['dice'][k] for k in ('value', 'low', 'high')] == [0, 0, 0]


def test_measured_scans_make_a_table():
    rows = [segmentation.measure(*blobs(seed, (4, 16, 16), 3), ('background', 'a', 'b'), (8, 1, 1))
            for seed in range(6)]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    found = segmentation.table(columns, range(6), QUICK)
    assert set(found) == {f'{m}{c}' for m in segmentation.METRICS if m != 'empty' for c in ('', '/a', '/b')}
    values = segmentation.statistics(columns)(np.ones((1, 6)))
    assert {m: v[0] for m, v in values.items()} == pytest.approx({m: e['value'] for m, e in found.items()})


@pytest.mark.parametrize('args, message', [
    ((np.zeros((4, 4), int), np.zeros((4, 5), int), LABELS), 'same shape'),
    ((np.zeros(4, int), np.zeros(4, int), LABELS), 'same shape'),
    ((np.zeros((0, 4), int), np.zeros((0, 4), int), LABELS), 'same shape'),
    ((np.zeros((4, 4)), np.zeros((4, 4), int), LABELS), 'prediction is of type float64'),
    ((np.full((4, 4), 2), np.zeros((4, 4), int), LABELS), 'prediction holds the value 2; a class is one of 0 to 1'),
    ((np.full((4, 4), 255), np.zeros((4, 4), int), LABELS), 'prediction holds the value 255'),
    ((np.zeros((4, 4), int), np.full((4, 4), -1), LABELS), 'truth holds the value -1; .* 255 where ignored'),
    ((np.zeros((4, 4), int), np.zeros((4, 4), int), LABELS[:1]), 'name the background and'),
    ((np.zeros((4, 4), int), np.zeros((4, 4), int), LABELS, (1, 1, 1)),
     r'spacing \(1, 1, 1\) does not fit a scan of 2 axes'),
    ((np.zeros((4, 4), int), np.zeros((4, 4), int), LABELS, (1, 0)), 'above 0'),
])
def test_scans_that_do_not_fit(args, message):
    with pytest.raises(errors.BadData, match=message):
        segmentation.measure(*args)


def test_bad_options_and_columns():
    predicted, truth = squares()
    with pytest.raises(errors.ConfigError, match='"present", not "lenient"'):
        one(predicted, truth, None, 'lenient')
    with pytest.raises(errors.ConfigError, match='tolerance'):
        one(predicted, truth, tolerance=-1)
    columns, patients = scans()
    with pytest.raises(errors.BadData, match='Column "dice/a" has the shape'):
        segmentation.table(columns, patients[:4], QUICK)
    with pytest.raises(errors.BadData, match='"dice" is a column and the mean'):
        segmentation.statistics(columns | {'dice': columns['dice/a']})
    with pytest.raises(errors.BadData, match='no patient id'):
        segmentation.table(columns, ['', *patients[1:]], QUICK)
