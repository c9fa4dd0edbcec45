"""The pancreas phantom and its source."""
import csv
import pickle

import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from sklearn.metrics import roc_auc_score

from jaxkd.data import volume
from jaxkd.phantoms import common, pancreas
from jaxkd.phantoms.layouts import paired
from jaxkd.phantoms.pancreas import anatomy, renderer, scanner

SMALL = dict(size=32, depth=8, field=(72, 72, 60))


def _source(**changes):
    return pancreas.build(ml_collections.ConfigDict({**pancreas.DEFAULTS, 'patients': 40, **changes}))


def _patients(count, fits):
    """The first patients of seed 0 whose facts fit."""
    patients = []
    for patient in range(20000):
        if fits(renderer.facts(0, patient)):
            patients.append(patient)
            if len(patients) == count:
                return patients
    raise AssertionError('too few patients')


def _person(patient):
    f = renderer.facts(0, patient)
    return anatomy.draw(common.rng(0, patient, renderer.ANATOMY), f.size, f.texture, f.duct, f.label)


def _points(person, image, centroid):
    """The grid of a volume in the coordinates of the person, by the place of the lesion, without breathing."""
    first = image.affine[:3, 3] - centroid + person.lesion.place
    axes = zip(first, volume.spacing(image.affine), image.voxels.shape)
    return anatomy.Points(*(f + s * np.arange(n) for f, s, n in axes))


def _on_grid(points, placed):
    out = np.zeros(points.shape, np.float32)
    out[placed[0]] = placed[1]
    return out


def _gland(person, points):
    return _on_grid(points, anatomy.gland(person, points, np.zeros(points.shape, np.float32)))


def _scene(patient, modality, difficulty=0.5):
    """(image, bool mask of the lesion, person, points, coverage by the gland) of one modality."""
    volumes, masks, centroids = renderer.render(0, patient, difficulty=difficulty, modalities=(modality,))
    person = _person(patient)
    points = _points(person, volumes[modality], centroids[modality])
    return volumes[modality].voxels.astype(float), masks[modality].voxels > 0, person, points, _gland(person, points)


def _contrast(patient, modality, difficulty=0.5):
    """Mean of the lesion less the median of the gland's grey around it."""
    image, inside, person, points, gland = _scene(patient, modality, difficulty)
    around = (gland > 0.95) & ~ndimage.binary_dilation(inside, iterations=2)
    around &= _on_grid(points, anatomy.duct(person, points, 5)) < 0.05
    return image[inside].mean() - np.median(image[around])


def _tube(patient, modality):
    """Brightness of the middle of the gland minus that of its edge, upstream of the lesion."""
    image, _, person, points, gland = _scene(patient, modality)
    wide = _on_grid(points, anatomy.duct(person, points, 2.5))
    upstream = person.lesion.place[0] - points.x > 1.3 * person.lesion.axes[0] + 2
    middle, edge = ((gland > 0.9) & upstream & inside for inside in (wide > 0.5, wide < 0.02))
    return image[middle].mean() - np.median(image[edge])


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 5), st.integers(0, 500), st.floats(0, 1))
def test_render_is_pure_and_modalities_do_not_depend_on_each_other(seed, patient, difficulty):
    one, masks, centroids = renderer.render(seed, patient, difficulty=difficulty, **SMALL)
    alone = renderer.render(seed, patient, difficulty=difficulty, modalities=('t2',), **SMALL)[0]
    renderer.render(seed + 1, patient + 1, **SMALL)
    again = renderer.render(seed, patient, difficulty=difficulty, **SMALL)[0]
    assert list(one) == ['ct', 't1', 't2'] and list(alone) == ['t2']
    np.testing.assert_array_equal(alone['t2'].voxels, one['t2'].voxels)
    for name, image in one.items():
        np.testing.assert_array_equal(image.voxels, again[name].voxels)
        assert image.voxels.dtype == np.int16 and masks[name].voxels.dtype == np.uint8
        assert set(np.unique(masks[name].voxels)) == {0, 1}
        middle = volume.world(image.affine, np.argwhere(masks[name].voxels)).mean(0)
        assert np.linalg.norm(middle - centroids[name]) < 0.5 * np.linalg.norm(volume.spacing(image.affine))


def test_other_seeds_and_patients_differ():
    base = renderer.render(0, 3, **SMALL)[0]['t1'].voxels
    for key in ((1, 3), (0, 4)):
        other = renderer.render(*key, **SMALL)[0]['t1'].voxels
        assert other.shape != base.shape or np.mean(other != base) > 0.5


def test_tables_are_distributions_and_classes_follow_them():
    np.testing.assert_allclose(renderer.PRIOR.sum(-1), 1)
    assert renderer.SIGNS.sum() == pytest.approx(1) and renderer.PRIOR.max(-1).min() >= 0.75
    truths = [renderer.facts(7, k) for k in range(5000)]
    counts = np.zeros((3, 3, 3))
    np.add.at(counts, tuple(np.array([(f.texture, f.duct, f.label) for f in truths]).T), 1)
    cells = counts.sum(-1)
    assert stats.chisquare(cells.ravel(), 5000 * renderer.SIGNS.ravel()).pvalue > 0.001
    expected = cells[..., None] * renderer.PRIOR
    assert stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), 18) > 0.001  # 9 rows of 3 classes
    assert counts.sum((0, 1)).min() > 0.25 * 5000
    best = np.mean([renderer.PRIOR[f.texture, f.duct].argmax() == f.label for f in truths])
    assert renderer.ceiling() == pytest.approx(0.8566) and abs(best - renderer.ceiling()) < 0.015


def test_groups_have_their_documented_shares():
    groups = [renderer.facts(3, k).groups for k in range(3000)]
    for size in ('small', 'middle', 'large'):
        assert np.mean([g['size'] == size for g in groups]) == pytest.approx(1 / 3, abs=0.03)
    for name, centre in scanner.CENTRES.items():
        assert np.mean([g['center'] == name for g in groups]) == pytest.approx(centre.fraction, abs=0.03)
    assert np.mean([g['subgroup'] == 'challenging' for g in groups]) == pytest.approx(0.4, abs=0.03)
    assert all(g['subgroup'] == 'challenging' for g in groups if g['size'] == 'small')


def test_signal_equations_on_worked_numbers():
    # 3 T, TR 3800, TE 85: tumour 0.85 (1 - e^-3.04) e^-1.371 = 0.2055, pancreas 0.8 (1 - e^-5.241) e^-1.977 = 0.1102
    assert scanner.signals('A', 't2')['tumour'] == pytest.approx(1.865, abs=0.005)
    # 1.5 T, TR 120, TE 4.6, 70 degrees: liver and pancreas share T2; E = 0.8148 and 0.8142
    assert scanner.signals('C', 't1')['liver'] == pytest.approx(0.75 / 0.8, abs=0.01)
    for centre in scanner.CENTRES:
        t1, t2 = (scanner.signals(centre, m) for m in ('t1', 't2'))
        assert t1['cyst'] < t1['tumour'] < t1['pancreas'] == 1 < 1.5 < t2['tumour'] < t2['cyst'] / 1.5


def test_ct_noise_has_the_stated_size_and_grain():
    rng = np.random.default_rng(0)
    for name, centre in scanner.CENTRES.items():
        flat = scanner.ct(np.zeros((80, 80, 20), np.float32), (0.2, 0.2, 3.0), name, 1, rng)[20:-20, 20:-20]
        assert flat.std() == pytest.approx(centre.noise, rel=0.1)  # far below the grain: noise in a point
        r = np.corrcoef(flat[:-1].ravel(), flat[1:].ravel())[0, 1]
        assert r == pytest.approx(np.exp(-0.04 / (4 * centre.blur ** 2)), abs=0.02)  # a Gaussian's autocorrelation
        thick = scanner.ct(np.zeros((80, 80, 20), np.float32), (0.2, 0.2, 6.0), name, 1, rng)[20:-20, 20:-20]
        assert thick.std() == pytest.approx(flat.std() / 2 ** 0.5, rel=0.15)


def test_organs_have_their_hounsfield_units():
    ranges = dict(fat=(-112, -88), liver=(85, 135), blood=(125, 195), kidney=(160, 190), spleen=(105, 135),
                  muscle=(50, 70), marrow=(160, 200), bowel=(32, 48), fluid=(4, 20))
    grey = {name: [] for name in (*ranges, 'pancreas')}
    for patient in range(16):
        volumes, masks, centroids = renderer.render(0, patient, 64, 24, (180, 180, 90), 0, modalities=('ct',))
        person, image = _person(patient), volumes['ct']
        points = _points(person, image, centroids['ct'])
        tissue = np.full(points.shape, 'air', 'U8')
        for name, box, cover in anatomy.organs(person, points):
            tissue[box][cover > 0.02] = 'edge'
            tissue[box][cover > 0.999] = name
        gland = _gland(person, points)
        tissue[gland > 0] = 'edge'
        tissue[gland > 0.99] = 'pancreas'
        tissue[ndimage.binary_dilation(masks['ct'].voxels, iterations=3)] = 'edge'
        tissue[_on_grid(points, anatomy.duct(person, points)) > 0] = 'edge'
        for name in grey:
            inside = tissue == name if name == 'pancreas' else ndimage.binary_erosion(tissue == name)
            if inside.sum() > 20:
                grey[name].append(np.median(image.voxels[inside]))
        assert image.voxels.min() >= -1024
    for name, (low, high) in ranges.items():
        assert len(grey[name]) >= 3 and low < min(grey[name]) and max(grey[name]) < high, (name, grey[name])
    assert 85 < np.mean(grey['pancreas']) < 115


def test_texture_is_plain_in_t2_and_hidden_from_the_mean_of_isoattenuating_ct():
    chosen = {iso: [_patients(36 if iso else 16, lambda f, i=iso, t=t: f.iso == i and f.texture == t
                              and (i or f.size > 15)) for t in (0, 2)] for iso in (True, False)}
    score = {}
    for iso, groups in chosen.items():
        for modality in ('ct', 't2'):
            values, cystic = zip(*[(_contrast(p, modality), k == 0) for k, group in enumerate(groups) for p in group])
            score[iso, modality] = roc_auc_score(cystic, values)
            if iso and modality == 'ct':  # HU; the least noise of a voxel at this size is 6
                assert np.median(np.abs(values)) < 6
    assert score[False, 'ct'] < 0.05 and score[False, 't2'] > 0.95  # ordinary: dark in CT, bright in T2
    assert abs(score[True, 'ct'] - 0.5) < 0.17 and score[True, 't2'] > 0.95


def test_challenging_ct_still_holds_weak_signs_of_texture():
    values, cystic = [], []
    for texture in (0, 2):
        for patient in _patients(40, lambda f, t=texture: f.challenging and f.texture == t):
            volumes, _, centroids = renderer.render(0, patient, modalities=('ct',))
            points = _points(_person(patient), volumes['ct'], centroids['ct'])
            parts = anatomy.lesion(_person(patient), points)
            inside = parts.cover > 0.6
            values.append(np.polyfit(parts.profile[inside], volumes['ct'].voxels[parts.box][inside], 1)[0])
            cystic.append(texture == 0)
    assert 0.7 < roc_auc_score(cystic, values) < 0.97


def test_wide_ducts_are_plain_in_t2_and_faint_in_challenging_ct():
    score = {}
    for hard in (False, True):
        patients = [(p, duct > 0) for duct in range(3) for p in _patients(
            16, lambda f, d=duct, h=hard: f.challenging == h and f.duct == d and f.size < 25)]
        for modality in ('ct', 't2'):
            sign = -1 if modality == 'ct' else 1
            score[hard, modality] = roc_auc_score([w for _, w in patients], [sign * _tube(p, modality)
                                                                             for p, _ in patients])
    assert score[False, 't2'] > 0.97 and score[True, 't2'] > 0.97 and score[False, 'ct'] > 0.95
    assert 0.65 < score[True, 'ct'] < 0.99


def test_duct_ends_at_the_lesion_or_passes_it():
    for duct, patient in ((d, _patients(1, lambda f, d=d: f.duct == d)[0]) for d in range(3)):
        person = _person(patient)
        centre, half = person.lesion.place[0], person.lesion.axes[0]
        up, within, down = anatomy._bore(person, np.float32([centre - 2 * half, centre, centre + half + 2])) * 2
        assert 1.6 <= up <= 2.4 if duct == 0 else 5 <= up <= 8
        assert (within == 0) if duct == 2 else (within >= min(up, 3))
        assert down < 2.5 if duct != 1 else down > 2.5


def test_difficulty_takes_contrast_away_and_adds_noise():
    patients = _patients(6, lambda f: not f.challenging and f.texture == 0)
    easy, hard = ([_contrast(p, 'ct', d) for p in patients] for d in (0, 1))
    assert all(e < h < 0 for e, h in zip(easy, hard))
    smooth = [renderer.render(0, 0, difficulty=d, modalities=('ct',))[0]['ct'].voxels.astype(float) for d in (0, 1)]
    rough = [np.median(np.abs(np.diff(v, axis=0))) for v in smooth]
    assert rough[1] > 1.5 * rough[0]


def test_grids_cover_the_field_and_are_misaligned_by_a_bounded_amount():
    gaps = []
    for patient in range(40):
        volumes, _, centroids = renderer.render(2, patient, **SMALL)
        for modality in ('t1', 't2'):
            gaps.append(np.linalg.norm(centroids[modality] - centroids['ct']))
            assert not np.array_equal(volumes[modality].affine, volumes['ct'].affine)
        for modality, image in volumes.items():
            corners = volume.world(image.affine, [[0, 0, 0], np.array(image.voxels.shape) - 1])
            distance = np.abs(corners - centroids[modality])
            assert (distance >= np.array(SMALL['field']) / 2 - volume.spacing(image.affine) / 2).all()
    assert max(gaps) < renderer.MISALIGNED and np.median(gaps) > 2


@pytest.mark.parametrize('size,depth,field,spacing', [
    (32, 8, (96, 96, 72), (3, 3, 9)), (96, 24, (96, 96, 72), (1, 1, 3)), (120, 24, (96, 96, 72), (0.8, 0.8, 3))])
def test_sizes_show_the_same_scene(size, depth, field, spacing):
    patient = _patients(1, lambda f: f.centre == 'A' and f.size > 20)[0]
    volumes, masks, centroids = renderer.render(0, patient, size, depth, field, modalities=('ct',))
    image = volumes['ct']
    np.testing.assert_allclose(volume.spacing(image.affine), spacing)
    ml = masks['ct'].voxels.sum() * np.prod(spacing)
    reference, ref_masks, ref_centroids = renderer.render(0, patient, modalities=('ct',))
    ref_ml = ref_masks['ct'].voxels.sum() * np.prod(volume.spacing(reference['ct'].affine))
    assert ml == pytest.approx(ref_ml, rel=0.2)
    assert np.linalg.norm(centroids['ct'] - ref_centroids['ct']) < 1.0
    resampled = volume.resample(image, reference['ct'].affine, reference['ct'].voxels.shape, fill=-1000)
    core = tuple(slice(n // 4, -n // 4) for n in resampled.shape)
    soft = [np.clip(v[core], -160, 240).astype(float).ravel() for v in (resampled, reference['ct'].voxels)]
    assert np.corrcoef(*soft)[0, 1] > 0.85


def test_source_keeps_the_contract():
    source = _source(patients=60, missing_mri=0.3, missing_t2=0.3, unknown=0.3, **SMALL)
    assert len(source) == len(source.cases) == 60 and source.note and source.skipped == ()
    assert source.labels == ('benign', 'low_grade', 'malignant') and list(source.tasks) == ['texture', 'duct']
    assert set(source.targets) == {'label', *source.tasks} and source.targets['label'].min() == 0
    modalities = set()
    copy = pickle.loads(pickle.dumps(source))
    for i in (*range(25), 59):
        record = source[i]
        images = {k for k, v in record.items() if isinstance(v, volume.Volume)}
        assert images == set(record['centre']) and 'ct' in images and ('t1' in images or 't2' not in images)
        modalities.add(frozenset(images))
        for name, values in source.targets.items():
            assert values.dtype == np.int32 and record[name] == values[i] and isinstance(record[name], np.int32)
        truth, groups = renderer.facts(0, i), source.cases[i].groups
        assert groups['class'] == source.labels[record['label']] and groups['center'] == truth.centre
        assert record['texture'] in (-1, truth.texture) and record['duct'] in (-1, truth.duct)
        np.testing.assert_array_equal(copy[i]['ct'].voxels, record['ct'].voxels)
    assert len(modalities) == 3
    many = _source(patients=500, unknown=0.3)
    assert all(np.mean(many.targets[task] == -1) == pytest.approx(0.3, abs=0.06) for task in many.tasks)


def test_shares_of_what_is_missing():
    full = _source(patients=300, missing_mri=0, missing_t2=0, unknown=0)
    assert all(renderer.absent(0, k, 0, 0, 0) == ((), ()) for k in range(300))
    assert min(full.targets[t].min() for t in full.targets) == 0
    missing = [renderer.absent(1, k, 0.2, 0.25, 0)[0] for k in range(2000)]
    assert np.mean([a == ('t1', 't2') for a in missing]) == pytest.approx(0.2, abs=0.03)
    assert np.mean([a == ('t2',) for a in missing]) == pytest.approx(0.8 * 0.25, abs=0.03)


def test_written_folder_holds_the_same_voxels(tmp_path):
    fractions = dict(missing_mri=0.3, missing_t2=0.3, unknown=0.3)
    source = _source(patients=8, **fractions, **SMALL)
    paired.write(tmp_path, 8, **fractions, **SMALL)
    with open(tmp_path / 'cases.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == 'case_id patient_id center cls texture duct split subgroup size'.split()
    assert [r['case_id'] for r in rows] == [c.id for c in source.cases]
    for i, (row, case) in enumerate(zip(rows, source.cases)):
        record = source[i]
        assert row['cls'] == source.labels[source.targets['label'][i]]
        assert [int(row[k]) for k in ('texture', 'duct')] == [source.targets[k][i] for k in ('texture', 'duct')]
        assert {k: row[k] for k in ('center', 'subgroup', 'size')} == {k: case.groups[k] for k in
                                                                       ('center', 'subgroup', 'size')}
        names = {p.name for p in (tmp_path / case.id).iterdir()}
        assert names == {f'{a}{m}.nii.gz' for a in ('', 'roi_') for m in record['centre']}
        masks = renderer.render(0, i, **SMALL)[1]
        for modality in record['centre']:
            read = volume.read(tmp_path / case.id / f'{modality}.nii.gz')
            roi = volume.read(tmp_path / case.id / f'roi_{modality}.nii.gz')
            assert read.voxels.dtype == np.int16 and roi.voxels.dtype == np.uint8
            np.testing.assert_array_equal(read.voxels, record[modality].voxels)
            np.testing.assert_array_equal(roi.voxels, masks[modality].voxels)
            np.testing.assert_allclose(read.affine, record[modality].affine, atol=1e-4)
    with open(tmp_path / 'prior.csv', newline='') as f:
        for row in csv.DictReader(f):
            np.testing.assert_allclose([float(row[f'p_class{c}']) for c in range(3)],
                                       renderer.PRIOR[int(row['texture']), int(row['duct'])])
