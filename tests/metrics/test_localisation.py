"""Localisation: the worked 4 x 4 example, floors and ceilings, controls, properties, tables."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from jaxkd import errors
from jaxkd.data import threshold
from jaxkd.metrics import attention, localisation

A = np.array([[.02, .03, .02, .01], [.03, .20, .15, .02], [.02, .18, .12, .03], [.05, .04, .04, .04]])
G = np.zeros((4, 4), bool)
G[1:3, 1:4] = True
BOX = (1, 1, 3, 2)


def maps_and_rois(n=30, size=32, seed=0):
    """Random maps, and boxes that tend to lie where the map is high in every second case."""
    rng = np.random.default_rng(seed)
    maps = attention.upsample(rng.dirichlet(np.full(16, 0.5), size=n).reshape(n, 4, 4), size)
    maps = np.maximum(maps, 0)
    corners = rng.integers(0, size // 2, size=(n, 2))
    corners[::2] = [np.clip(np.unravel_index(m.argmax(), m.shape), 4, size - 12)[::-1] - np.array([4, 4])
                    for m in maps[::2]]
    return maps, np.stack([localisation.roi_mask((x, y, 12, 10), size) for x, y in corners])


def test_worked_example():
    row = localisation.metrics(A, G, threshold=0.5)
    assert row['hit'] == 1
    assert row['iou_50'] == row['iou_best'] == pytest.approx(4 / 6)
    assert row['iou_mass60'] == pytest.approx(4 / 6) and A[localisation.mass_mask(A)].sum() == pytest.approx(0.65)
    assert row['auprc'] == pytest.approx(0.8091, abs=5e-5)
    assert row['auroc'] == pytest.approx(0.7917, abs=5e-5)
    assert row['mass_in_roi'] == pytest.approx(0.70)
    assert row['auprc_chance'] == 0.375 and row['lift'] == pytest.approx(1.867, abs=5e-4)
    assert row['cnr'] == pytest.approx(1.2303, abs=5e-5)
    assert row['iou_top10'] == pytest.approx(2 / 6)  # two of 16 pixels, both inside
    assert row['iou_otsu'] == pytest.approx(4 / 6)  # 0.12 and more against 0.05 and less
    assert all(type(v) is float for v in row.values())


def test_uniform_map_scores_at_chance():
    for uniform in (np.full((4, 4), 1 / 16), attention.upsample(np.full((1, 3, 3), 1 / 9), 4)[0]):
        row = localisation.metrics(uniform, G, threshold=0.3)
        assert row['auprc'] == 0.375 == row['auprc_chance'] and row['auroc'] == 0.5
        assert row['lift'] == pytest.approx(1) and row['mass_in_roi'] == pytest.approx(0.375)
        assert row['hit'] == row['iou_50'] == row['iou_otsu'] == row['iou_best'] == 0
        assert np.isnan(row['cnr'])


def test_perfect_map():
    row = localisation.metrics(G / 6, G, threshold=0.9)
    for name in ('hit', 'iou_50', 'iou_otsu', 'iou_best', 'auprc', 'auroc', 'mass_in_roi'):
        assert row[name] == pytest.approx(1), name
    assert row['lift'] == pytest.approx(1 / 0.375) and np.isnan(row['cnr'])
    assert row['iou_mass60'] == pytest.approx(4 / 6)  # 60 % of the mass of a flat ROI is 60 % of it


def iou(mask, roi):
    return (mask & roi).sum() / max((mask | roi).sum(), 1)


def plain_row(map, roi, t):
    """The definitions, pixel by pixel."""
    inside, outside = map[roi], map[~roi]
    scaled = threshold.min_max_scaled(map)
    noise = np.sqrt(scaled[roi].var() + scaled[~roi].var())
    top, selected = np.zeros(map.shape, bool), 0.0
    for i in sorted(range(map.size), key=lambda i: (-map.flat[i], i)):
        if selected < (0.6 - 1e-9) * map.sum():
            top.flat[i], selected = True, selected + map.flat[i]
    first = max(range(map.size), key=lambda i: (map.flat[i], -i))
    tenth = np.zeros(map.shape, bool)
    for i in sorted(range(map.size), key=lambda i: (-map.flat[i], i))[:max(1, round(map.size / 10))]:
        tenth.flat[i] = True
    return {'hit': float(roi.flat[first]), 'iou_50': iou(scaled > 0.5, roi), 'iou_best': iou(scaled > t, roi),
            'iou_otsu': iou(threshold.otsu(map), roi), 'iou_mass60': iou(top, roi), 'iou_top10': iou(tenth, roi),
            'auprc': np.mean([np.sum(inside >= v) / np.sum(map >= v) for v in inside]),
            'auroc': np.mean([np.mean((outside < v) + (outside == v) / 2) for v in inside]),
            'mass_in_roi': inside.sum() / map.sum(), 'lift': inside.sum() / map.sum() / roi.mean(),
            'cnr': abs(scaled[roi].mean() - scaled[~roi].mean()) / noise if noise else np.nan,
            'auprc_chance': roi.mean()}


@settings(deadline=None, max_examples=250)
@given(st.integers(0, 10**6), st.integers(2, 7), st.sampled_from([1, 2, 5, 10**6]), st.floats(0.05, 0.95))
def test_rois_of_shared_maps_agree_with_the_definitions(seed, size, levels, t):
    rng = np.random.default_rng(seed)
    maps = rng.integers(levels, size=(2, size, size)) / levels
    maps[:, rng.integers(size), 0] += 1
    map_of = rng.integers(2, size=4)  # one map for several ROIs, in a row or not
    rois = rng.random((4, size, size)) < 0.4
    rois[:, 0, 0], rois[:, -1, -1] = True, False
    shared = list(maps)
    found = localisation.measure(lambda i: shared[map_of[i]], rois, t)
    for row, m, roi in zip(found, map_of, rois):
        assert row == pytest.approx(plain_row(maps[m], roi, t), rel=1e-12, abs=1e-12, nan_ok=True)
        assert row == localisation.metrics(maps[m], roi, t) or np.isnan(row['cnr'])
    means = [np.mean([iou(threshold.min_max_scaled(maps[m]) > t, roi) for m, roi in zip(map_of, rois)])
             for t in localisation.THRESHOLDS]
    best = localisation.THRESHOLDS.index(localisation.best_threshold(lambda i: shared[map_of[i]], rois))
    assert means[best] == pytest.approx(max(means), abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 40))
def test_ranks_agree_with_sklearn(seed, size, levels):
    rng = np.random.default_rng(seed)
    map, roi = rng.integers(levels, size=(size, size)) + 1.0, rng.random((size, size)) < 0.3
    roi.flat[:2] = True, False
    row = localisation.metrics(map, roi)
    assert row['auprc'] == pytest.approx(average_precision_score(roi.ravel(), map.ravel()))
    assert row['auroc'] == pytest.approx(roc_auc_score(roi.ravel(), map.ravel()))
    bent = localisation.metrics(np.exp(map / 20), roi)  # ranks do not see a monotone map
    assert bent['auroc'] == pytest.approx(row['auroc']) and bent['hit'] == row['hit']
    shrunk = localisation.metrics(map / 8, roi)  # nothing sees a factor (8: without round-off)
    assert shrunk == pytest.approx(row, nan_ok=True)
    bounded = [row[k] for k in row if k not in ('lift', 'cnr')]
    assert min(bounded) >= 0 and max(bounded) <= 1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30).filter(lambda v: sum(v) > 0),
       st.sampled_from([0.1, 0.6, 0.9]))
def test_mass_mask_is_the_smallest_set(values, q):
    values = np.array(values)
    kept = values[localisation.mass_mask(values, q)]
    assert kept.sum() >= q * values.sum() * (1 - 1e-6)
    assert kept.sum() - kept.min() < q * values.sum()  # one fewer would not do
    assert kept.min() >= values[~localisation.mass_mask(values, q)].max(initial=0)


def test_mass_mask_ties_and_round_off():
    np.testing.assert_array_equal(localisation.mass_mask(np.full((2, 2), 0.25), 0.5), [[1, 1], [0, 0]])
    assert localisation.mass_mask(np.full(10, 0.1), 0.6).sum() == 6  # 0.1 summed six times is not 0.6 in binary
    assert localisation.mass_mask(np.full(10, 0.1), 0.3).sum() == 3
    values = np.random.default_rng(0).integers(1, 4, size=1000)
    kept = np.flatnonzero(localisation.mass_mask(values))
    first = sorted(range(1000), key=lambda i: (-values[i], i))[:len(kept)]
    np.testing.assert_array_equal(kept, sorted(first))


def test_otsu_maximises_the_variance_between():
    map = np.random.default_rng(0).gamma(2, size=(16, 16))
    grey = np.rint(255 * threshold.min_max_scaled(map))

    def between(t):
        low, high = grey[grey <= t], grey[grey > t]
        return low.size * high.size * (low.mean() - high.mean())**2 if low.size and high.size else -1

    best = max(range(256), key=between)
    np.testing.assert_array_equal(threshold.otsu(map), grey > best)


def test_first_of_equal_maxima_decides_the_hit():
    map = np.ones((4, 4))
    map[0, 3] = map[1, 1] = 2
    assert localisation.metrics(map, G)['hit'] == 0
    map[0, 3] = 1
    assert localisation.metrics(map, G)['hit'] == 1


def test_roi_mask_takes_pixel_centres():
    np.testing.assert_array_equal(localisation.roi_mask(BOX, 4), G)
    np.testing.assert_array_equal(localisation.roi_mask((0.6, 1.4, 3.2, 1.3), 4), G)
    assert localisation.roi_mask((0.5, 0, 1, 1), 4).sum() == 1  # centre on left edge is in, on the right not
    assert localisation.roi_mask((-5, -5, 20, 20), 4).all()
    assert not localisation.roi_mask((1.6, 1.6, 0.5, 0.5), 4).any()


def test_controls():
    controls = localisation.control_maps(16)
    assert list(controls) == ['uniform', 'centred_gaussian']
    assert all(m.sum() == pytest.approx(1) for m in controls.values())
    blob = controls['centred_gaussian']
    np.testing.assert_allclose(blob, blob[::-1, ::-1])
    assert blob[8, 12] / blob[8, 8] == pytest.approx(np.exp(-(4.5**2 - 0.5**2) / (2 * 4**2)))
    assert localisation.metrics(blob, localisation.roi_mask((4, 4, 8, 8), 16))['lift'] > 1.5


def test_best_threshold():
    map = np.where(G, 0.75, 0.65)  # parted by t = 0.7 alone
    map[0, 0], map[3, 3] = 1, 0
    assert localisation.best_threshold([map], [G]) == 0.7
    assert localisation.best_threshold(lambda i: [map, G][i], iter([G, G])) == 0.7
    assert localisation.best_threshold([G / 2], [G]) == 0.1  # the lowest among equals
    maps, rois = maps_and_rois()
    scaled = np.array([threshold.min_max_scaled(m) for m in maps])
    means = [np.mean([iou(m, r) for m, r in zip(scaled > t, rois)]) for t in localisation.THRESHOLDS]
    assert localisation.best_threshold(maps, rois) == localisation.THRESHOLDS[np.argmax(means)]


def test_bad_input_names_the_roi():
    for roi, message in ((np.ones((4, 4)), 'the whole image'), (0 * G, 'empty'), (np.eye(5), 'shape')):
        with pytest.raises(errors.BadData, match=f'ROI case 7: .*{message}'):
            localisation.measure([A, A], [G, roi], names=['case 6', 'case 7'])
    for map in (-A, A * np.nan, A * 0):
        with pytest.raises(errors.BadData, match='ROI 0: A map must be'):
            localisation.measure([map], [G])
    for rois in ([G], [G, G, G]):
        with pytest.raises(errors.BadData, match='2 maps, but not as many ROIs'):
            localisation.measure([A, A], rois)
    for empty in (lambda: localisation.measure([], []), lambda: localisation.best_threshold(lambda i: A, [])):
        with pytest.raises(errors.BadData, match='no ROI'):
            empty()
    with pytest.raises(errors.BadData, match='0 patient ids'):
        localisation.table([], [])
    with pytest.raises(errors.BadData, match='2 patient ids for 1 cases'):
        localisation.table(localisation.measure([A], [G]), ['a', 'b'])
    with pytest.raises(errors.BadData, match='1 and 0 ROIs'):
        localisation.paired_table(localisation.measure([A], [G]), [], ['a'])


def test_table_and_lazy_maps():
    maps, rois = maps_and_rois()
    rows = localisation.measure(maps, rois, threshold=0.4)
    assert rows == localisation.measure(lambda i: maps[i], iter(rois), threshold=0.4)
    rows[3]['cnr'] = np.nan
    found = localisation.table(rows, np.arange(30) // 3, n=200)
    assert set(found) == set(rows[0])
    assert found['auprc']['value'] == pytest.approx(np.mean([r['auprc'] for r in rows]))
    assert found['auprc']['low'] < found['auprc']['value'] < found['auprc']['high']
    assert (found['auprc']['n_rois'], found['cnr']['n_rois'], found['auprc']['n_patients']) == (30, 29, 10)
    assert found['cnr']['value'] == pytest.approx(np.nanmean([r['cnr'] for r in rows]))


def test_paired_table():
    maps, rois = maps_and_rois()
    worse = localisation.measure(maps, rois)
    better = localisation.measure(maps + 0.3 * maps.max() * rois, rois)
    found = localisation.paired_table(better, worse, np.arange(30) // 3, n=200)
    assert 'auprc_chance' not in found
    for name in ('auprc', 'auroc', 'lift', 'mass_in_roi'):
        assert 0 < found[name]['low'] <= found[name]['value']
        gains = [b[name] - w[name] for b, w in zip(better, worse)]
        assert found[name]['value'] == pytest.approx(np.mean(gains))
    same = localisation.paired_table(worse, worse, np.arange(30) // 3, n=50)
    assert all(entry[k] == 0 for entry in same.values() for k in ('value', 'low', 'high'))


def test_many_rois():
    maps, rois = maps_and_rois(300, 64)
    rows = localisation.measure(maps, rois, threshold=localisation.best_threshold(maps, rois))
    found = localisation.table(rows, np.arange(300) // 2)
    assert found['auroc']['low'] > 0.5
