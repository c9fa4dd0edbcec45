"""The pulmonary phantom, its source and its layouts."""
import csv
import importlib
import pickle

import ml_collections
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import io as matlab
from scipy import ndimage, stats

from jaxkd.data import volume
from jaxkd.phantoms import common, pulmonary
from jaxkd.phantoms.layouts import cad_pe, dualphase, fumpe, read, rspect
from jaxkd.phantoms.pulmonary import anatomy, renderer, scanner

COARSE = dict(size=40, depth=20, spacing=(4.0, 4.0, 4.0))


def _source(**changes):
    return pulmonary.build(ml_collections.ConfigDict({**pulmonary.DEFAULTS, 'patients': 12, **changes}))


def _scene(patient, seed=0, **options):
    """(facts, grid, codes on the finer grid) of a patient in the middle of the field."""
    truth = renderer.facts(seed, patient, **options)
    person = anatomy.draw(common.rng(seed, patient, renderer.ANATOMY))
    grid = scanner.Grid((-79, -87, -51), (2.5, 2.5, 2.5), (64, 64, 32))
    low, high = (np.array([f(a) for a in grid.axes]) for f in (np.min, np.max))
    clots = anatomy.clots(common.rng(seed, patient, renderer.CLOTS), person, truth.clots, low, high)
    return truth, person, clots, grid, scanner.tissues(person, clots, grid)


def _counts(patient, pe):
    """(facts, voxels of each clot) of a patient of seed 5."""
    truth = renderer.facts(5, patient, pe)
    _, clots = renderer.render(5, patient, pe=pe, modalities=())
    return truth, np.bincount(clots.voxels.ravel(), minlength=len(truth.clots) + 1)[1:]


@pytest.fixture(scope='module')
def shown():
    """{patient: (volumes, clots)}, five with central emboli, without misregistration."""
    central = [k for k in range(99) if renderer.facts(0, k, 1.0).clots[0] == 'central'][:5]
    return {k: renderer.render(0, k, pe=1.0, warp=0) for k in central}


@given(st.integers(0, 2**40), st.integers(0, 2**30))
@settings(max_examples=100, deadline=None)
def test_facts_are_pure_and_possible(seed, patient):
    truth = renderer.facts(seed, patient, 0.6)
    assert truth == renderer.facts(seed, patient, 0.6)
    order = [renderer.LOCATIONS.index(c) for c in truth.clots]
    assert order == sorted(order) and len(order) <= 5 and truth.pe == bool(order)
    assert truth.groups == {'pe': ('absent', 'present')[truth.pe], 'location': truth.clots[0] if truth.clots
                            else 'none'}
    more = renderer.facts(seed, patient, 0.9)  # another fraction changes which patients have emboli, not the emboli
    assert not truth.pe or more == truth


def test_shares_of_groups():
    groups = [renderer.facts(1, k).groups for k in range(4000)]
    places = [g['location'] for g in groups if g['pe'] == 'present']
    assert len(places) / 4000 == pytest.approx(0.5, abs=0.025)
    counts = [places.count(name) for name in renderer.LOCATIONS]
    assert stats.chisquare(counts, len(places) * np.array(renderer.FRACTIONS)).pvalue > 0.001
    assert {len(renderer.facts(1, k).clots) for k in range(400)} == {0, 1, 2, 3, 4, 5}
    assert [renderer.facts(1, k, fraction).pe for fraction in (0, 1) for k in range(50)] == [0] * 50 + [1] * 50
    missing = np.mean([renderer.absent(1, k, 0.2) == ('ctpa',) for k in range(2000)])
    assert missing == pytest.approx(0.2, abs=0.03) and renderer.absent(1, 0, 0) == ()


def test_cubes_of_radii_add_up_at_each_division():
    """Murray: 13 mm in two branches of weights 1 and 1 gives 13 (1 - 0.12) / 2^(1/3) = 9.08."""
    for k in range(3):
        person = anatomy.draw(np.random.default_rng(k))
        arteries = [t for t in person.tubes if t.kind == 'artery']
        for index, parent in enumerate(arteries):
            children = [t for t in arteries if t.parent == index]
            if children and children[0].level in ('central', 'lobar', 'segmental'):  # further out some leave the lung
                ends = parent.radii[-1] ** 3 * (2 if parent.level == 'trunk' else 1)
                assert sum(t.radii[0] ** 3 for t in children) == pytest.approx(ends, rel=1e-6)
        mean = {level: np.mean([t.radii.mean() for t in arteries if t.level == level]) for level in anatomy.LEVELS}
        assert 11 < arteries[0].radii[0] < 15 and 7.5 < np.mean([t.radii.mean() for t in arteries[1:3]]) < 10
        assert 4.5 < mean['lobar'] < 7 and 2.8 < mean['segmental'] < 4 and 1.5 < mean['subsegmental'] < 2.6
        for t in arteries[1:]:  # each begins on its parent
            gap = np.linalg.norm(arteries[t.parent].points - t.points[0], axis=1).min()
            assert gap < 8 and (t.radii[-1] < t.radii[0])


def test_a_tube_is_as_thick_as_it_says():
    grid = scanner.Grid((-20, -10, -10), (0.5, 0.5, 0.5), (81, 41, 41))
    codes = np.zeros(grid.shape, np.uint8)
    scanner._tube(codes, grid, np.array([(-8.0, 0, 0), (8.0, 0, 0)]), np.array([5.0, 5.0]), 3)
    volume_mm3 = np.pi * 25 * 16 + 4 / 3 * np.pi * 125  # a cylinder and two halves
    assert (codes == 3).sum() / 8 == pytest.approx(volume_mm3, rel=0.03)
    scanner._tube(codes, grid, np.array([(0.0, 0, -9), (0.0, 0, 9)]), np.array([2.0, 2.0]), 4, (3,))
    assert set(np.unique(codes)) == {0, 3, 4} and (codes == 4).sum() / 8 == pytest.approx(np.pi * 4 * 10, rel=0.15)
    before = codes.copy()
    scanner._tube(codes, grid, np.array([(90.0, 0, 0), (99.0, 0, 0)]), np.array([5.0, 5.0]), 7)
    np.testing.assert_array_equal(codes, before)


def test_clots_lie_in_arteries_of_their_place():
    for patient in range(3):
        truth, person, clots, grid, codes = _scene(patient, pe=1.0)
        plain = scanner.tissues(person, [], grid)
        for k, clot in enumerate(clots):
            assert clot.level == truth.clots[k]
            inside = plain[codes == scanner.FIRST + k]
            if clot.kind == 'part':
                assert (inside == scanner.ARTERY).all()
            elif inside.size:  # it widens its vessel: (1 / 1.15)^2 = 0.76 of it was lumen
                assert (inside == scanner.ARTERY).mean() > 0.5 and scanner.AIR not in inside
        vessels = codes < scanner.FIRST
        np.testing.assert_array_equal(codes[vessels], plain[vessels])


def test_labels_count_the_share_of_a_voxel():
    codes = np.zeros((4, 2, 2), np.uint8)
    codes[0, 0, 0] = codes[0, 1, 1] = scanner.FIRST  # 2 of 8: no
    codes[2:, :, 0] = scanner.FIRST
    codes[2, 0, 1] = scanner.FIRST + 1  # 4 of 8 against 1
    np.testing.assert_array_equal(scanner.labels(codes, 2).ravel(), [0, 1])
    assert scanner.labels(codes * 0, 0).max() == 0


def test_every_patient_with_emboli_shows_one_and_no_other():
    for patient in range(10):
        truth, counts = _counts(patient, 0.8)
        assert len(counts) == len(truth.clots) and (not truth.pe or counts[0] >= 8)


@pytest.mark.slow
def test_sizes_of_clots():
    """Of 100 patients with emboli: the first is the largest, and in most it has 20 voxels or more."""
    sizes = {name: [] for name in renderer.LOCATIONS}
    empty = total = first = 0
    for patient in range(100):
        truth, counts = _counts(patient, 1.0)
        sizes[truth.clots[0]].append(counts[0])
        empty, total, first = empty + (counts == 0).sum(), total + len(counts), first + (counts[0] == counts.max())
    central, lobar, segmental, subsegmental = map(np.median, sizes.values())
    assert central > lobar > segmental > 35 and subsegmental > 20
    assert np.mean(np.concatenate(list(sizes.values())) >= 20) > 0.9 and min(map(min, sizes.values())) >= 8
    assert first >= 95 and empty < 0.02 * total


def test_hounsfield_units_of_both_phases(shown):
    blood, defect, extra = [], [], []
    for patient, (volumes, clots) in shown.items():
        person = anatomy.draw(common.rng(0, patient, renderer.ANATOMY))
        grid = common.rng(0, patient, renderer.GRID)
        middle = person.scale * np.array(renderer.MIDDLE) + grid.uniform(-5, 5, 3)
        patient_grid = scanner.Grid(middle - 2 * np.array((39.5, 39.5, 19.5)), (2.0,) * 3, (80, 80, 40))
        codes = scanner.tissues(person, [], patient_grid)
        lumen = scanner._mean((codes == scanner.ARTERY).astype(np.float32)) == 1
        clot = clots.voxels > 0
        core = ndimage.binary_erosion(clots.voxels == 1, np.ones((2, 2, 2)))
        free = lumen & ~ndimage.binary_dilation(clot)
        nct, ctpa = (volumes[m].voxels.astype(float) for m in renderer.MODALITIES)
        blood.append((nct[free].mean(), ctpa[free].mean(), nct[free].std(), ctpa[free].std()))
        if (core & lumen).sum() >= 15:
            defect.append(np.percentile(ctpa[core & lumen], 25))  # where the voxel is clot all through
            extra.append(nct[core & lumen].mean() - nct[free].mean())
        air = ndimage.binary_erosion(nct < -700, iterations=2)
        assert -880 < np.median(nct[air]) < -800 and abs(np.median(ctpa[air]) - np.median(nct[air])) < 5
        assert volumes['nct'].voxels.dtype == np.int16 and clots.voxels.dtype == np.uint8
    nct, ctpa, noise, bright_noise = np.mean(blood, 0)
    assert nct == pytest.approx(42, abs=3) and 300 < ctpa < 400
    assert noise == pytest.approx(12, abs=1) and bright_noise == pytest.approx(15, abs=1)
    assert len(extra) >= 3 and 4 < min(extra) < max(extra) < 28 and 30 < np.median(defect) < 90


def test_noise_has_unit_variance_and_half_of_it_grain():
    """Two points 2 mm apart share exp(-2^2 / (4 3^2)) = 0.895 of the grain, which is half the variance: 0.447."""
    noise = scanner.noise((60, 60, 40), (2.0, 2.0, 2.0), np.random.default_rng(0))
    assert noise.std() == pytest.approx(1, abs=0.02) and noise.dtype == np.float32
    assert np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1] == pytest.approx(0.447, abs=0.03)


def test_difficulty_scales_contrast_and_noise():
    patient = next(k for k in range(99) if renderer.facts(0, k, 1.0).clots[0] == 'central')
    (easy, clots), (hard, same) = (renderer.render(0, patient, pe=1, difficulty=d, warp=0) for d in (0, 1))
    np.testing.assert_array_equal(clots.voxels, same.voxels)
    np.testing.assert_array_equal(easy['ctpa'].voxels, hard['ctpa'].voxels)
    core = ndimage.binary_erosion(clots.voxels == 1)
    gap = (easy['nct'].voxels[core].mean() - hard['nct'].voxels[core].mean())
    assert 4 < gap < 28  # d (1.5 - 0.5), d from 8 to 25
    rough = [np.median(np.abs(np.diff(v['nct'].voxels.astype(float), axis=0))) for v in (easy, hard)]
    assert rough[1] > 1.4 * rough[0]


def test_misregistration_is_bounded_and_smooth():
    voxels = np.indices((40, 40, 20)).astype(np.float32)
    ramp = voxels[0] + 100 * voxels[1]  # linear: displaced values tell the displacement
    for most in (0, 1.5, 3):
        moved = scanner.warp(ramp, most, np.random.default_rng(1))[4:-4, 4:-4, 4:-4] - ramp[4:-4, 4:-4, 4:-4]
        y = np.round(moved / 100, 0)
        assert np.abs(moved).max() <= 101 * most + 0.1 and (most == 0) == (np.abs(y).max() == 0 and np.ptp(moved) == 0)
        assert np.abs(np.diff(moved, axis=0)).max() <= 101 * most * 0.3
    fixed, moved = (renderer.render(0, 3, warp=w, **COARSE)[0] for w in (0, 3))
    np.testing.assert_array_equal(fixed['nct'].voxels, moved['nct'].voxels)
    alone = renderer.render(0, 3, modalities=('nct',), **COARSE)[0]
    np.testing.assert_array_equal(fixed['nct'].voxels, alone['nct'].voxels)
    assert (fixed['ctpa'].voxels != moved['ctpa'].voxels).mean() > 0.5


def test_sizes_show_the_same_scene():
    patient = next(k for k in range(99) if renderer.facts(0, k, 1.0).clots[0] == 'central')
    (coarse, a), (fine, b) = (renderer.render(0, patient, pe=1, warp=0, modalities=('ctpa',), **options)
                              for options in (COARSE, dict(size=64, depth=32, spacing=(2.5, 2.5, 2.5))))
    assert (a.voxels == 1).sum() * 64 == pytest.approx((b.voxels == 1).sum() * 2.5 ** 3, rel=0.2)
    resampled = volume.resample(fine['ctpa'], a.affine, a.voxels.shape, fill=-1000)[2:-2, 2:-2, 2:-2]
    assert np.corrcoef(resampled.ravel(), coarse['ctpa'].voxels[2:-2, 2:-2, 2:-2].ravel())[0, 1] > 0.97


def test_source_keeps_the_contract():
    source = _source(missing_ctpa=0.4, pe=0.6, **COARSE)
    assert len(source) == len(source.cases) == 12 and 'phantom' in source.note and source.skipped == ()
    assert source.labels == ('background', 'embolus') and source.tasks == {'pe': ('absent', 'present')}
    copy = pickle.loads(pickle.dumps(source))
    assert source.cases[:3] == _source(patients=3, pe=0.6, **COARSE).cases
    missing = [bool(renderer.absent(0, i, 0.4)) for i in range(12)]
    for i in (missing.index(True), missing.index(False)):
        record, case = source[i], source.cases[i]
        assert set(record) == {'nct', 'label', 'pe', 'case'} | (set() if missing[i] else {'ctpa'})
        assert record['case'] == case.id == case.study and record['label'].voxels.dtype == np.uint8
        assert isinstance(record['pe'], np.int32) and record['pe'] == source.targets['pe'][i]
        assert case.groups['pe'] == source.tasks['pe'][record['pe']]
        assert record['label'].voxels.max() <= record['pe']
        for key in {'nct', 'ctpa', 'label'} & set(record):
            assert record[key].voxels.shape == (40, 40, 20)
            np.testing.assert_array_equal(record[key].affine, record['nct'].affine)
            np.testing.assert_array_equal(copy[i][key].voxels, record[key].voxels)


@pytest.mark.parametrize('layout, options, name, count', [
    (dualphase, dict(missing_ctpa=0.3), 'dualphase', 3), (fumpe, {}, 'fumpe', 2), (cad_pe, {}, 'cad_pe', 3),
    (read, {}, 'read_pe', 3)], ids=['dualphase', 'fumpe', 'cad_pe', 'read'])
def test_layouts_read_back_voxel_by_voxel(tmp_path, layout, options, name, count):
    layout.write(tmp_path, count, pe=1.0, seed=2, **COARSE, **options)
    loader = importlib.import_module(f'jaxkd.data.sources.{name}')
    source = loader.build(ml_collections.ConfigDict({**loader.DEFAULTS, 'root': str(tmp_path)}))
    assert len(source) == count
    for i, case in enumerate(source.cases):
        k = int(''.join(c for c in case.id if c.isdigit())) - (layout is not dualphase)
        volumes, clots = renderer.render(2, k, pe=1.0, warp=1.0 if layout is dualphase else 0, **COARSE)
        record = source[i]
        for key in ('nct', 'ctpa'):
            if key in record:
                np.testing.assert_array_equal(record[key].voxels, volumes[key].voxels)
                np.testing.assert_allclose(record[key].affine, clots.affine, atol=1e-3)
        np.testing.assert_array_equal(record['label'].voxels, clots.voxels > 0)
        np.testing.assert_allclose(record['label'].affine, clots.affine, atol=1e-3)
        assert record['pe'] == clots.voxels.any()
        if 'instances' in record:
            np.testing.assert_array_equal(record['instances'].voxels, clots.voxels)


def test_layouts_hold_their_traps(tmp_path):
    dualphase.write(tmp_path / 'd', 2, missing_ctpa=0, **COARSE)
    away, nct = (volume.read(tmp_path / f'd/p000001/{m}.nii.gz') for m in ('ctpa', 'nct'))
    home = np.loadtxt(tmp_path / 'd/p000001/ctpa_to_nct.txt')
    assert np.linalg.norm(volume.middle(away) - volume.middle(nct)) > 3
    assert not (tmp_path / 'd/p000000/ctpa_to_nct.txt').exists()
    np.testing.assert_allclose(home[:3, :3] @ home[:3, :3].T, np.eye(3), atol=1e-9)
    fumpe.write(tmp_path / 'f', 2, **COARSE)
    for k in range(2):
        names = sorted((tmp_path / f'f/CT_scans/PAT{k + 1:03d}').iterdir())
        heights = [float(pydicom.dcmread(n).ImagePositionPatient[2]) for n in names]
        assert np.sign(np.diff(heights)).tolist() == [1 - 2 * k] * 19
        assert matlab.loadmat(tmp_path / f'f/GroundTruth/PAT{k + 1:03d}.mat')['Mask'].shape == (40, 40, 20)
    cad_pe.write(tmp_path / 'c', 3, **COARSE)
    assert {p.name for p in (tmp_path / 'c/rs').iterdir()} == {'001RefStd.nrrd', '0002RefStd.nrrd', 'e0003RefStd.nrrd'}
    read.write(tmp_path / 'r', 3, **COARSE)
    signs = {}
    for k, case in enumerate(('01GE', '02GE', '03TS')):
        mask = volume.read(tmp_path / f'r/rs/{case}.nii.gz')
        signs[k] = np.sign(mask.file_affine[2, 2]), round(float(volume.spacing(mask.file_affine)[2]), 3)
    assert signs == {0: (1, 4), 1: (-1, 4), 2: (1, 3.96)}


def test_rspect_table_and_slices(tmp_path):
    rspect.write(tmp_path, 2, pe=0.99, seed=4, **COARSE)
    with open(tmp_path / 'train.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == rspect.COLUMNS and len(rows) == 40
    truth = {k: renderer.render(4, k, pe=0.99, modalities=(), **COARSE)[1] for k in range(2)}
    for row in rows:
        d = pydicom.dcmread(tmp_path / 'train' / row['StudyInstanceUID'] / row['SeriesInstanceUID'] /
                            f'{row["SOPInstanceUID"]}.dcm')
        assert (d.SOPInstanceUID, d.SeriesInstanceUID) == (row['SOPInstanceUID'], row['SeriesInstanceUID'])
        assert pydicom.uid.UID(row['SOPInstanceUID']).is_valid and d.SOPClassUID == pydicom.uid.CTImageStorage
        clots = truth[int(row['StudyInstanceUID'].rpartition('.')[2])]
        k = round((float(d.ImagePositionPatient[2]) - clots.affine[2, 3]) / 4)
        assert int(row['pe_present_on_image']) == clots.voxels[:, :, k].any()
        assert int(row['negative_exam_for_pe']) == 0 and row['rv_lv_ratio_gte_1'] != row['rv_lv_ratio_lt_1']
        sides = np.argwhere(clots.voxels)[:, 0] > 19.5
        assert (int(row['rightsided_pe']), int(row['leftsided_pe'])) == (sides.any(), (~sides).any())
