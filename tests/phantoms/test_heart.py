"""The heart phantom, its source and the layouts it is written in."""
import concurrent.futures
import csv
import pickle

import ml_collections
import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxkd import errors
from jaxkd.data import volume
from jaxkd.phantoms import common, heart
from jaxkd.phantoms.heart import anatomy, archive, renderer, scanner
from jaxkd.phantoms.heart import source as heart_source
from jaxkd.phantoms.layouts import acdc, masks, mnms
from jaxkd.phantoms.layouts import slices as slices_layout

SMALL = dict(size=32, slices=(6, 7))


def _source(**changes):
    return heart.build(ml_collections.ConfigDict({**heart.DEFAULTS, 'patients': 5, **changes}))


def _patients(group, count):
    return [k for k in range(5 * count) if renderer.facts(0, k).group == group]


def _ml(label, spacing):
    return np.array([(label == k).sum() for k in range(4)]) * np.prod(spacing) / 1e3


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 5), st.integers(0, 300), st.sampled_from(renderer.DOMAINS), st.floats(0, 1), st.floats(0, 1))
def test_render_is_pure(seed, patient, domain, contraction, difficulty):
    options = dict(contraction=contraction, domain=domain, difficulty=difficulty, **SMALL)
    image, label, spacing = renderer.render(seed, patient, **options)
    renderer.render(seed + 1, patient, **options)
    again = renderer.render(seed, patient, **options)
    np.testing.assert_array_equal(image, again[0])
    np.testing.assert_array_equal(label, again[1])
    assert image.dtype == np.int16 and label.dtype == np.uint8 and image.shape == label.shape
    assert label.max() <= 3 and 8 <= spacing[0] <= 10 and spacing[1] == spacing[2] and image.min() >= 0
    second_frame = renderer.render(seed, patient, frame=1, **options)
    np.testing.assert_array_equal(label, second_frame[1])
    assert np.mean(image != second_frame[0]) > 0.5


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 3), st.integers(0, 10**6), st.sampled_from(renderer.DOMAINS), st.sampled_from(renderer.PHASES))
def test_facts_know_which_slices_hold_a_label(seed, patient, domain, phase):
    truth = renderer.facts(seed, patient)
    label = renderer.render(seed, patient, renderer.PHASES.index(phase), domain, 32)[1]
    np.testing.assert_array_equal(truth.labelled(phase), label.any((1, 2)))
    assert len(truth.z) == len(label) and 8 <= len(label) <= 10 and truth.labelled(phase).sum() >= 5


def test_every_five_patients_hold_each_group():
    groups = [renderer.facts(3, k).group for k in range(100)]
    assert all(set(groups[k:k + 5]) == set(renderer.GROUPS) for k in range(0, 100, 5))
    assert len({tuple(groups[k:k + 5]) for k in range(0, 100, 5)}) > 5  # in another order each time


def test_muscle_keeps_its_volume_by_the_formula():
    geometry = renderer.facts(0, 0).heart
    inner, outer = anatomy.left_radii(geometry, 0)
    assert (inner, outer) == (pytest.approx(geometry.radius), pytest.approx(geometry.radius + geometry.wall))
    muscle = []
    for c in (0, 0.5, 1):
        inner, outer = anatomy.left_radii(geometry, c)
        ring, apex = anatomy.ring_and_apex(geometry, c)
        muscle.append((outer ** 2 - inner ** 2) * (apex - ring))
    np.testing.assert_allclose(muscle, muscle[0])


def test_systole_is_smaller_and_thicker_and_groups_differ_as_they_should():
    mean = {}
    for group in renderer.GROUPS:
        for phase in (0, 1):
            rendered = [renderer.render(0, k, phase, 'A', 48)[1:] for k in _patients(group, 6)]
            mean[group, phase] = np.mean([_ml(*f) for f in rendered], 0)[1:]
    for group in renderer.GROUPS:  # RV and LV shrink, the volume of muscle is constant
        (rv, myo, lv), (rv_s, myo_s, lv_s) = mean[group, 0], mean[group, 1]
        assert rv_s < 0.8 * rv and lv_s < 0.85 * lv and abs(myo_s / myo - 1) < 0.15, (group, mean)
    left = {g: 1 - mean[g, 1][2] / mean[g, 0][2] for g in renderer.GROUPS}  # ejection fractions
    assert left['HCM'] > left['NOR'] > 0.55 > 0.42 > left['MINF'] > left['DCM'] and left['DCM'] < 0.35
    lv, myo, rv = ({g: mean[g, 0][k] for g in renderer.GROUPS} for k in (2, 1, 0))
    assert lv['DCM'] > lv['MINF'] > lv['NOR'] > lv['HCM'] and lv['DCM'] > 1.6 * lv['NOR']
    assert myo['HCM'] / lv['HCM'] > 1.5 * myo['NOR'] / lv['NOR'] and rv['RV'] > 1.4 * rv['NOR']
    assert 90 < lv['NOR'] < 180 and 60 < myo['NOR'] < 130  # ml of an adult


def test_an_infarct_leaves_the_wall_thin_in_one_place():
    ratios = {'NOR': [], 'MINF': []}
    for group, group_ratios in ratios.items():
        for patient in _patients(group, 8):
            geometry = renderer.facts(0, patient).heart
            angle = np.linspace(-np.pi, np.pi, 72, endpoint=False)
            r = np.linspace(5, 60, 300)
            u, v = (r[:, None] * f(angle) for f in (np.cos, np.sin))
            ring, apex = anatomy.ring_and_apex(geometry, 1)
            z = ring + geometry.scar[1] * (apex - ring)  # the level of the scar
            parts = anatomy.heart(geometry, 1, np.array([z]), u.astype(np.float32), v.astype(np.float32))
            wall = ((parts.outer[0] < 0) & (parts.inner[0] >= 0)).sum(0) * (r[1] - r[0])
            group_ratios.append(wall.min() / np.median(wall))
    assert max(ratios['MINF']) < 0.75 and min(ratios['NOR']) > 0.75, ratios


@pytest.mark.parametrize('domain', renderer.DOMAINS)
def test_levels_run_from_base_to_apex(domain):
    for patient in range(8):
        truth = renderer.facts(0, patient)
        for phase in (0, 1):
            label, spacing = renderer.render(0, patient, phase, domain, 64)[1:]
            area = np.array([[(s == k).sum() for s in label] for k in range(4)]) * spacing[1] ** 2
            full = np.flatnonzero(truth.labelled(renderer.PHASES[phase]))
            middle, last = full[len(full) // 2], full[-1]
            outer = area[2] + area[3]
            assert outer[last] < 0.75 * outer[middle] and area[1, middle] > 150 and area[2, middle] > 500
            assert area[1][full].argmax() < len(full) / 2
    assert all(renderer.facts(0, k).heart.end < 0.95 for k in range(60))  # no right ventricle at the apex


def test_ventricles_lie_as_in_a_short_axis_view():
    for domain in renderer.DOMAINS:
        for patient in range(10):
            label, spacing = renderer.render(0, patient, 0, domain, 64)[1:]
            rv, myo, lv = (np.argwhere(label[len(label) // 2] == k).mean(0) * spacing[1] for k in (1, 2, 3))
            assert rv[1] < lv[1] - 15 and np.linalg.norm(myo - lv) < 8  # RV to the left, muscle around LV
            labelled = np.argwhere(label)[:, 1:]
            assert labelled.min() >= 1 and labelled.max() <= 62  # nothing is cut off


def test_papillary_muscles_are_dark_within_the_cavity():
    dark = []
    for patient in _patients('DCM', 4):
        truth = renderer.facts(0, patient)
        z = int(np.argmin(abs(anatomy.level(truth.heart, 0, truth.z) - 0.5)))
        image, label, _ = renderer.render(0, patient, 0, 'A', 128, difficulty=0)
        inside = image[z][label[z] == 3].astype(float)
        muscle = np.median(image[z][label[z] == 2])
        dark.append(np.mean(inside < (np.median(inside) + muscle) / 2))
    assert 0.015 < min(dark) and max(dark) < 0.25, dark


def _greys(domain, difficulty):
    """Medians of blood and muscle, and the signal of the liver, each over the signal of blood."""
    out = []
    for patient in range(20):
        pose = scanner.place(domain, common.rng(0, patient, renderer.POSE, renderer.DOMAINS.index(domain)), difficulty)
        out.append([pose.signals[k] / pose.signals['blood'] for k in ('heart', 'liver', 'fat')])
    return np.mean(out, 0)


def test_domains_differ_in_contrast_and_difficulty_draws_liver_to_muscle():
    (muscle_a, liver_a, fat_a), (muscle_b, liver_b, fat_b) = _greys('A', 0.5), _greys('B', 0.5)
    assert muscle_b > muscle_a + 0.1 and liver_b > liver_a + 0.15 and fat_a > 0.85 > 0.8 > fat_b
    assert abs(liver_a - muscle_a) < 0.08  # nearly the same grey


def test_domains_show_the_same_patient_elsewhere_and_noisier():
    fields, off, rough = {}, {}, {}
    for domain in renderer.DOMAINS:
        for patient in range(15):
            image, label, spacing = renderer.render(0, patient, 0, domain, 64)
            centre = np.argwhere(label == 3)[:, 1:].mean(0) - 31.5
            fields.setdefault(domain, []).append(64 * spacing[1])
            off.setdefault(domain, []).append(np.linalg.norm(centre * spacing[1]))
            image = image.astype(float)
            muscle, blood = (np.median(image[label == k]) for k in (2, 3))
            step = np.diff(image, axis=2)[(label == 3)[:, :, 1:] & (label == 3)[:, :, :-1]]
            rough.setdefault(domain, []).append(np.median(abs(step)) / (blood - muscle))
    assert max(fields['A']) < min(fields['B']) and np.mean(off['B']) > 1.5 * np.mean(off['A'])
    assert np.mean(rough['B']) > 1.4 * np.mean(rough['A'])
    volumes = np.array([[_ml(*renderer.render(0, k, 0, d, 80)[1:])[1:] for d in renderer.DOMAINS] for k in range(4)])
    np.testing.assert_allclose(volumes[:, 0], volumes[:, 1], rtol=0.08)


def test_difficulty_adds_noise():
    noise = []
    for difficulty in (0, 1):
        one, other = (renderer.render(0, 0, 0, 'A', 64, difficulty=difficulty, frame=k)[0].astype(float)
                      for k in (0, 1))
        noise.append((one - other).std())  # of one scene
    assert noise[1] == pytest.approx(noise[0] * 1.4 / 0.6, rel=0.1)


def test_slices_keep_the_contract():
    source = _source(patients=10)
    assert source.labels == ('background', 'RV', 'MYO', 'LV') and 'phantom' in source.note and source.skipped == ()
    assert len(source) == len(source.cases) == len({c.id for c in source.cases})
    assert {c.patient for c in source.cases} == {f'p{k:06d}' for k in range(10)}
    copy, studies = pickle.loads(pickle.dumps(source)), []
    for i, case in enumerate(source.cases):
        assert case.study == f'{case.patient}_{case.groups["phase"]}' and case.id[:-3] == case.study
        assert set(case.groups) == {'phase', 'group'} and case.groups['group'] in renderer.GROUPS
        studies.append(case.study)
        record = source[i]
        assert set(record) == {'image', 'label', 'spacing', 'case'} and record['case'] == case.id
        assert record['image'].dtype == record['label'].dtype == np.uint8
        assert record['image'].shape == record['label'].shape == (64, 64) and record['label'].any()
        assert record['spacing'].shape == (3,) and record['spacing'].dtype == np.float32
        assert record['image'].max() > 200
        if i % 20 == 0:
            np.testing.assert_array_equal(record['image'], copy[i]['image'])
    order = [int(c.id[-2:]) for c in source.cases if c.study == source.cases[0].study]
    assert order == sorted(order) and len(set(studies)) == 20
    assert studies == sorted(studies)  # ED before ES, all slices of a study together


def test_cases_are_the_same_in_every_domain_and_records_are_not():
    a, b, both = (_source(domain=d) for d in ('A', 'B', 'AB'))
    assert a.cases == b.cases and [c.id for c in both.cases] == [c.id for c in a.cases]
    for i, case in enumerate(both.cases):
        same = {'A': a, 'B': b}[case.groups['domain']]
        np.testing.assert_array_equal(both[i]['image'], same[i]['image'])
        assert not np.array_equal(a[i]['image'], b[i]['image'])
    many = _source(domain='AB', patients=60)
    assert 0.3 < np.mean([c.groups['domain'] == 'A' for c in many.cases]) < 0.7


def test_empty_slices_are_kept_on_request():
    few, all_ = _source(patients=10), _source(patients=10, empty=True)
    extra = [k for k, c in enumerate(all_.cases) if c.id not in {c.id for c in few.cases}]
    assert extra and all(not all_[k]['label'].any() for k in extra)
    assert [k for k, c in enumerate(all_.cases) if c.groups['foreground'] == 'no'] == extra
    assert sum(len(renderer.facts(0, k).z) for k in range(10)) * 2 == len(all_)


def test_a_record_may_be_changed_without_changing_the_next():
    source = _source()
    first = source[3]
    before = {k: np.copy(v) for k, v in first.items()}
    for key in ('image', 'label', 'spacing'):
        first[key][:] = 0
        np.testing.assert_array_equal(source[3][key], before[key])


def test_threads_get_the_same_records():
    source, fresh = _source(seed=11, size=32), _source(seed=11, size=32)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda i: source[i]['image'], list(range(len(source)))[::-1]))[::-1]
    heart_source._many.cache_clear()
    for i in range(len(fresh)):
        np.testing.assert_array_equal(images[i], fresh[i]['image'])


def test_stacks_keep_the_contract_and_hold_the_voxels_of_the_slices():
    stacks, slices = _source(dims=3), _source(empty=True)
    assert [c.id for c in stacks.cases] == list(dict.fromkeys(c.study for c in slices.cases))
    assert all(c.id == c.study for c in stacks.cases)
    for i in (0, 5):
        record = stacks[i]
        assert set(record) == {'image', 'label', 'case'} and record['case'] == stacks.cases[i].id
        image, label = record['image'], record['label']
        assert isinstance(image, volume.Volume) and image.voxels.dtype == np.int16 and label.voxels.dtype == np.uint8
        np.testing.assert_array_equal(image.affine, label.affine)
        flat = [slices[k] for k, c in enumerate(slices.cases) if c.study == record['case']]
        back = label.voxels.transpose(2, 1, 0)[::-1, ::-1, ::-1]
        np.testing.assert_array_equal(back, [f['label'] for f in flat])
        np.testing.assert_allclose(volume.spacing(image.affine)[::-1], flat[0]['spacing'], rtol=1e-6)
        # The right ventricle is to the right and front of the left one, the base above the apex.
        rv, lv = (volume.world(label.affine, np.argwhere(label.voxels == k)).mean(0) for k in (1, 3))
        assert rv[0] > lv[0] + 15
        wide = [(s > 0).sum() for s in label.voxels.transpose(2, 0, 1)]
        assert np.mean(wide[len(wide) // 2:]) > np.mean(wide[:len(wide) // 2])


def _records(patients, **changes):
    source = _source(patients=patients, empty=True, **changes)
    records = {}
    for i, case in enumerate(source.cases):
        records.setdefault((int(case.patient[1:]), case.groups['phase']), []).append(source[i])
    return records


def _rows(stack):
    """[X,Y,Z] of a file as [Z,H,W]."""
    return np.asarray(stack).transpose(2, 1, 0)


def test_acdc_layout(tmp_path):
    acdc.write(tmp_path, 5, 'B', size=32, frames=13, slices=(6, 6))
    top = tmp_path / 'database/training'
    assert {p.name for p in top.iterdir()} == {f'patient{n:03d}' for n in (1, 21, 41, 61, 81)}
    for patient in range(5):
        truth = renderer.facts(0, patient)
        name = f'patient{20 * renderer.GROUPS.index(truth.group) + 1:03d}'
        files = {p.name for p in (top / name).iterdir()}
        assert files == {'Info.cfg', f'{name}_4d.nii.gz', *(f'{name}_frame{k}{e}.nii.gz' for k in ('01', '12')
                                                           for e in ('', '_gt'))}
        info = dict(line.split(': ') for line in (top / name / 'Info.cfg').read_text().splitlines())
        assert list(info) == ['ED', 'ES', 'Group', 'Height', 'NbFrame', 'Weight']
        assert info['ED'] == '1' and info['ES'] == '12' and info['Group'] == truth.group and info['NbFrame'] == '13'
        cine = nibabel.load(top / name / f'{name}_4d.nii.gz')
        assert cine.shape[3] == 13 and cine.get_data_dtype() == np.int16
        for phase, k in ((0, 1), (1, 12)):
            image, label = (nibabel.load(top / name / f'{name}_frame{k:02d}{e}.nii.gz') for e in ('', '_gt'))
            rendered = renderer.render(0, patient, phase, 'B', 32, (6, 6), frame=renderer.FRAMES[phase])
            cut = 2 * (patient % 3)
            assert image.shape == label.shape == (32 - 2 * cut, 32, len(rendered[0])) == cine.shape[:3]
            assert image.get_data_dtype() == np.int16 and label.get_data_dtype() == np.uint8
            columns = slice(cut, 32 - cut)
            np.testing.assert_array_equal(_rows(image.dataobj), rendered[0][:, :, columns])
            np.testing.assert_array_equal(_rows(label.dataobj), rendered[1][:, :, columns])
            np.testing.assert_array_equal(np.asarray(cine.dataobj)[..., k - 1], np.asarray(image.dataobj))
            np.testing.assert_allclose(image.header.get_zooms(), rendered[2][::-1], rtol=1e-5)
            np.testing.assert_allclose(image.affine, label.affine)
            assert nibabel.aff2axcodes(image.affine) == ('L', 'P', 'I')


def test_mnms_layout(tmp_path):
    mnms.write(tmp_path, 6, frames=14, size=32, slices=(6, 6))
    top = tmp_path / 'OpenDataset'
    table, = top.glob('*.csv')
    with open(table, newline='') as f:
        rows = {r['External code']: r for r in csv.DictReader(f)}
    assert len(rows) == 6 and len({r['Vendor'] for r in rows.values()}) == 4
    patients = []
    for part in ('Training/Labeled', 'Training/Unlabeled', 'Validation', 'Testing'):
        for folder in (top / part).iterdir():
            row, name = rows[folder.name], folder.name
            patient = int(row[''])
            patients.append(patient)
            image = nibabel.load(folder / f'{name}_sa.nii.gz')
            assert image.ndim == 4 and image.shape[1:] == (32, 6, 14)
            assert (folder / f'{name}_sa_gt.nii.gz').exists() == ('Unlabeled' not in part)
            if 'Unlabeled' in part:
                continue
            label = np.asarray(nibabel.load(folder / f'{name}_sa_gt.nii.gz').dataobj)
            frames = [int(row['ED']), int(row['ES'])]
            assert sorted(np.flatnonzero(label.any((0, 1, 2)))) == sorted(frames)
            cut = 2 * (patient % 3)
            for phase, k in enumerate(frames):
                truth = renderer.render(0, patient, phase, 'A', 32, (6, 6), frame=renderer.FRAMES[phase])
                for value, stored in ((0, 0), (1, 3), (2, 2), (3, 1)):  # 1 and 3 change places
                    np.testing.assert_array_equal(_rows(label[..., k]) == stored, truth[1][:, :, cut:32 - cut] == value)
                np.testing.assert_array_equal(_rows(image.dataobj[..., k]), truth[0][:, :, cut:32 - cut])
    assert sorted(patients) == list(range(6)) and any(r['ED'] != '0' for r in rows.values())


def test_slices_layout(tmp_path):
    h5py = pytest.importorskip('h5py')

    def arrays(path):
        with h5py.File(path) as f:
            return f['image'][:], f['label'][:]
    slices_layout.write(tmp_path, 6)
    lists = {name: (tmp_path / name).read_text().split() for name in ('train_slices.list', 'test.list')}
    folders = {'train_slices.list': 'ACDC_training_slices', 'test.list': 'ACDC_training_volumes'}
    for name, folder in folders.items():
        assert sorted(f'{n}.h5' for n in lists[name]) == sorted(p.name for p in (tmp_path / folder).iterdir())
    assert not {n[:10] for n in lists['test.list']} & {n[:10] for n in lists['train_slices.list']}
    records, number = _records(6), {k: archive.number(renderer.facts(0, k), k) for k in range(6)}
    with np.load(tmp_path / 'acdc_slices_128.npz', allow_pickle=False) as f:
        npz = dict(f)
    row = 0
    for (patient, phase), slices in records.items():
        name = f'patient{number[patient]:03d}_frame{ {"ED": 1, "ES": 12}[phase]:02d}'
        cut = 2 * (patient % 3)
        truth = np.stack([s['label'] for s in slices])[:, :, cut:64 - cut]
        if patient % 3 == 2:
            image, label = arrays(tmp_path / 'ACDC_training_volumes' / f'{name}.h5')
        else:
            paths = [tmp_path / 'ACDC_training_slices' / f'{name}_slice_{z}.h5' for z in range(len(slices))]
            image, label = map(np.stack, zip(*map(arrays, paths)))
        assert image.dtype == np.float32 and label.dtype == np.uint8
        np.testing.assert_array_equal(label, truth)
        assert (image.min((1, 2)) == 0).all() and (image.max((1, 2)) == 1).all()  # scaled slice by slice
        part = slice(row, row + len(slices))
        row += len(slices)
        assert set(npz['patient'][part]) == {number[patient]} and set(npz['phase'][part]) == {phase}
        assert npz['slice'][part].tolist() == list(range(len(slices)))
        np.testing.assert_array_equal(npz['orig_hw'][part], [(64, 64 - 2 * cut)] * len(slices))
        np.testing.assert_array_equal(npz['label'][part][:, ::2, 2 * cut:128 - 2 * cut:2], truth)
    assert (npz['image'].shape == npz['label'].shape == (row, 128, 128)
            and npz['image'].dtype == npz['label'].dtype == np.uint8)


@pytest.mark.parametrize('values,greys', [('binary', (0, 0, 0, 255)), ('refuge', (255, 255, 128, 0))])
def test_masks_layout(tmp_path, values, greys):
    masks.write(tmp_path, 3, values=values)
    records = {r['case']: r for (p, _), slices in _records(3).items() for r in slices if r['label'].any()}
    names = {p.stem for p in (tmp_path / 'images').iterdir()}
    assert names == {p.stem for p in (tmp_path / 'masks').iterdir()} == set(records)
    for name, record in records.items():
        cut = 2 * (int(name[1:7]) % 3)
        image, mask = (np.asarray(Image.open(tmp_path / kind / f'{name}.png')) for kind in ('images', 'masks'))
        np.testing.assert_array_equal(image, record['image'][:, cut:64 - cut])
        np.testing.assert_array_equal(mask, np.array(greys, np.uint8)[record['label'][:, cut:64 - cut]])


@pytest.mark.parametrize('layout,changes,key', [
    (masks, dict(values='fundus'), 'values'), (acdc, dict(frames=12), 'frames'), (mnms, dict(frames=12), 'frames'),
    (acdc, dict(patients=101), 'patients'), (slices_layout, dict(patients=101), 'patients'),
    (acdc, dict(domain='AB'), 'domain'),
    (acdc, dict(size=8), 'size')])
def test_impossible_layouts_are_refused(tmp_path, layout, changes, key):
    with pytest.raises(errors.ConfigError, match=key):
        layout.write(tmp_path, **{'patients': 1, **changes})
    assert not list(tmp_path.iterdir())


def test_a_cine_passes_from_diastole_to_systole_and_back():
    c = [archive.contraction(k, 30) for k in range(31)]
    assert c[0] == 0 and c[11] == 1 and c[30] == pytest.approx(0, abs=1e-12)
    assert all(a < b for a, b in zip(c[:11], c[1:12])) and all(a > b for a, b in zip(c[11:], c[12:]))
