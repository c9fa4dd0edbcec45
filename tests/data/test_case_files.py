import os
import random
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import errors
from jaxkd.config import plugins
from jaxkd.data import volume
from jaxkd.data.formats import csv_table
from jaxkd.data.sources import acdc, dualphase, folder, masks, mimic_cxr, mnms, nih_cxr14, openi, paired, slices
from jaxkd.data.sources.shared import case_files

GRID = np.diag([1.0, 1.0, 2.0, 1.0])


@given(st.sampled_from(['ct', 'roi_ct', 'label']), st.sampled_from(case_files.SUFFIXES),
       st.lists(st.booleans(), min_size=20, max_size=20),
       st.lists(st.sampled_from(['notes.txt', 'ct2.nii.gz', 'roi_ct_mask.nii', 'x']), max_size=2))
@settings(max_examples=300, deadline=None)
def test_a_name_is_found_in_any_letter_case(stem, suffix, upper, others):
    name = ''.join(c.upper() if up else c for c, up in zip(stem + suffix, upper))
    assert case_files.locate({name, *others}, stem, 'd') == name
    assert case_files.locate({stem + suffix, name}, stem, 'd') == stem + suffix
    twice = stem + ('.nii' if suffix != '.nii' else '.nrrd')
    if name != stem + suffix and len({name, twice.upper()}) == 2 and twice.upper() != twice:
        with pytest.raises(errors.BadData, match='d has both'):
            case_files.locate({name, twice.upper()}, stem, 'd')
    assert case_files.locate(others, stem, 'd') is None


def build_paired(root, mask_name, **options):
    import nrrd
    mask = np.zeros((8, 8, 6), np.uint8)
    mask[1, 6, 4] = 1
    for case in ('c0', 'c1', 'c2'):
        (root / case).mkdir(parents=True)
        volume.save(root / case / 'ct.nii.gz', mask.astype(np.int16), volume.Volume(mask, GRID))
        path = root / case / mask_name
        if mask_name.lower().endswith('.nrrd'):
            nrrd.write(str(path), mask, {'space': 'right-anterior-superior', 'space directions': GRID[:3, :3],
                                         'space origin': [0, 0, 0], 'Segment0_Name': 'lesion'})
        else:
            volume.save(path, mask, volume.Volume(mask, GRID))
    (root / 'cases.csv').write_text('case_id,patient_id,cls\nc0,p0,0\nc1,p1,1\nc2,p2,1\n')
    options = dict(modalities=('ct',), tasks=(), classes=(), labels=('no', 'yes'), **options)
    return paired.build(ConfigDict({**paired.DEFAULTS, 'root': str(root), **options}))


@pytest.mark.parametrize('name', ['roi_ct.seg.nrrd', 'roi_CT.nii.gz', 'ROI_ct.NII.GZ',
                                  'Roi_Ct.Seg.NRRD'])
def test_masks_are_found_under_the_names_that_programs_give_them(tmp_path, name, capsys):
    np.testing.assert_allclose(build_paired(tmp_path, name)[2]['centre']['ct'], (1, 6, 8))
    assert 'unused' not in capsys.readouterr().out


@pytest.mark.parametrize('name', ['roi_ct_mask.nii.gz', 'ct_seg.nii.gz', 'mask.nrrd'])
def test_what_is_not_used_is_said_with_a_count_and_the_first_name(tmp_path, name, capsys):
    assert 'centre' not in build_paired(tmp_path, name)[0]
    assert (f'paired: 3 files lie there unused, the first c0/{name} ({name} 3 times). Looked for: ct.nii.gz, '
            'roi_ct.nii.gz') in capsys.readouterr().out


def pictures(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.eye(6, dtype=np.uint8) * 255 + np.uint8(sum(map(ord, name)) % 2 and name[0] == 'i')
                        ).save(root / name)


def test_pictures_are_paired_in_any_letter_case(tmp_path, capsys):
    pictures(tmp_path, 'images/A1.png', 'images/b.png', 'masks/a1.PNG', 'masks/b.png')
    (tmp_path / 'masks' / 'notes.gif').write_bytes(b'')
    (tmp_path / 'CASES.csv').write_text('image,patient_id\nA1,p1\nb,p1\n')
    source = masks.build(ConfigDict({**masks.DEFAULTS, 'root': str(tmp_path), 'duplicates': 'keep'}))
    assert [(case.id, case.patient) for case in source.cases] == [('A1', 'p1'), ('b', 'p1')]
    assert 'masks: 1 files lie there unused, the first' in capsys.readouterr().out


def test_one_of_several_readers(tmp_path):
    pictures(tmp_path, *(f'all/{case}{end}.png' for case in 'ab' for end in ('', '_r1', '_r2')))
    options = dict(masks.DEFAULTS, root=str(tmp_path), images='all', masks='all', suffix='_r1', duplicates='keep')
    with pytest.raises(errors.MissingInput, match='has no mask'):
        masks.build(ConfigDict(options))
    source = masks.build(ConfigDict({**options, 'exclude': '.*_r2'}))
    assert [case.id for case in source.cases] == ['a', 'b'] and source.files[0][1][0].endswith('a_r1.png')
    with pytest.raises(errors.ConfigError, match='exclude = .*no regular expression'):
        masks.build(ConfigDict({**options, 'exclude': '('}))


def mixed(name, rng):
    return ''.join(rng.choice((c.upper(), c.lower())) for c in name)


@given(st.integers(0, 2**32), st.sampled_from(['a.png', 'images/a.png', 'P10/p1/s50.txt', 'x/Y/z.nii.gz']),
       st.sampled_from(['', 'beside', 'twice']))
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_path_is_found_in_any_letter_case(tmp_path, seed, name, other):
    shutil.rmtree(tmp_path)
    rng = random.Random(seed)
    real = os.path.join(tmp_path, *(mixed(part, rng) for part in name.split('/')))
    os.makedirs(os.path.dirname(real))
    folder_, last = os.path.split(real)
    others = {'': [], 'beside': [f'{last}x', last[1:]], 'twice': [last.swapcase()]}[other]
    for path in (real, *(os.path.join(folder_, n) for n in others)):
        open(path, 'w').close()
    asked = mixed(name, rng)
    found = csv_table.in_any_case(str(tmp_path), asked)
    if other != 'twice' or os.path.basename(asked) == last:
        assert found == real
    else:
        assert found == str(tmp_path / asked) or os.path.basename(found) == os.path.basename(asked) == last.swapcase()
    assert csv_table.resolve(str(tmp_path), asked) == found


def test_missing_files_of_a_large_folder_list_it_once(tmp_path, monkeypatch):
    for i in range(1001):
        (tmp_path / f'A{i}.png').touch()
    listed, listdir = [], os.listdir
    monkeypatch.setattr(os, 'listdir', lambda path: listed.append(path) or listdir(path))
    for i in range(1100):
        found = csv_table.in_any_case(str(tmp_path), f'a{i}.PNG')
        assert os.path.basename(found) == (f'A{i}.png' if i < 1001 else f'a{i}.PNG')
    assert len(listed) == 1


def scramble(root, seed):
    """Gives all files and folders below a root names in other letter cases."""
    rng = random.Random(seed)
    for folder_, folders, files in os.walk(root, topdown=False):
        for name in (*files, *folders):
            os.rename(os.path.join(folder_, name), os.path.join(folder_, mixed(name, rng)))


def of_slices(root):
    from tests.data import test_slices
    test_slices.write(root / 'data' / 'slices', 'slices')
    (root / 'test.list').write_text('patient002_frame01_slice_0\n')


LAYOUTS = dict(mimic_cxr=(mimic_cxr, dict(patients=12, size=32), dict(reports='mimic-cxr', ms_cxr='ms-cxr')),
               nih_cxr14=(nih_cxr14, dict(patients=12, size=32), dict(resized=True)),
               openi=(openi, dict(patients=12, size=32), dict(images='images')),
               slices=(slices, None, {}))


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('name', LAYOUTS)
def test_archives_in_any_letter_case(tmp_path, name, seed, capsys):
    module, options, given_ = LAYOUTS[name]
    root = tmp_path / 'tree'
    of_slices(root) if options is None else plugins.load('phantoms/layouts', name).write(root, **options)
    tops = {key: root / value for key, value in given_.items() if key in ('reports', 'ms_cxr')}
    top = root / 'mimic-cxr-jpg' if name == 'mimic_cxr' else root

    def build():
        more = {key: str(csv_table.in_any_case(str(root), str(path.relative_to(root)))) for key, path in tops.items()}
        path = csv_table.in_any_case(str(tmp_path), str(top.relative_to(tmp_path)))
        return module.build(ConfigDict({**module.DEFAULTS, **given_, **more, 'root': path}))
    before = build()
    records = {i: before[i] for i in range(0, len(before), 5)}
    capsys.readouterr()
    scramble(root, seed)
    after = build()
    assert 'unused' not in capsys.readouterr().out
    index = {case.id.lower(): i for i, case in enumerate(after.cases)}  # slices are in the order of their names
    assert {case.id.lower(): case.split for case in before.cases} == {k: after.cases[i].split for k, i in index.items()}
    assert len({case.patient for case in after.cases}) == len({case.patient for case in before.cases})
    for i, record in records.items():
        j = index[before.cases[i].id.lower()]
        for key, value in record.items():
            if key != 'case':
                np.testing.assert_array_equal(after[j][key], value)
        assert all(map(os.path.exists, after.paths(j)))


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5)), min_size=1, max_size=10, unique=True),
       st.integers(0, 2**32))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_slices_of_a_volume_in_any_letter_case(tmp_path, places, seed):
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    rng = random.Random(seed)
    for patient, z in places:
        (tmp_path / mixed(f'Patient{patient}_frame01_slice_{z}.h5', rng)).touch()
    hp = ConfigDict({**slices.DEFAULTS, 'root': str(tmp_path), 'on_error': 'skip'})
    studies, first, skipped = slices._files(hp, 'slices', str(tmp_path))
    by_patient = {}
    for patient, z in places:
        by_patient.setdefault(patient, []).append(z)
    whole = {p for p, zs in by_patient.items() if max(zs) - min(zs) < len(zs)}
    assert sorted(int(s.patient.lower().removeprefix('patient')) for s in studies) == sorted(whole)
    assert len(skipped) == len(by_patient) - len(whole)
    for study in studies:
        zs = by_patient[int(study.patient.lower().removeprefix('patient'))]
        assert [os.path.exists(f) for f in study.files] == [True] * len(zs) and first[study.id] == min(zs)


@given(st.lists(st.sampled_from(['a', 'B', 'case 1', 'x_1', 'Über', '心']), min_size=1, max_size=5, unique=True),
       st.sampled_from(['', '_mask', '_Mask', '-seg', '(gt)']), st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_masks_with_a_suffix_in_any_letter_case(stems, suffix, seed):
    rng = random.Random(seed)
    names = {mixed(stem, rng) + suffix: stem for stem in stems}
    by_stem = masks._in_letter_case_of(stems, masks._of_suffix({name: f'{name}.png' for name in names}, suffix))
    assert by_stem == {stem: [f'{name}.png'] for name, stem in names.items()}


def write_root(root, name):
    """A tree of a source with a file beside its tables that nobody asked for."""
    if name == 'paired':
        build_paired(root, 'roi_ct.nii.gz')
    elif name == 'dualphase':
        (root / 'c0').mkdir(parents=True)
        volume.save(root / 'c0' / 'nct.nii.gz', np.zeros((4, 4, 4), np.int16), volume.Volume(np.zeros((4, 4, 4)), GRID))
        (root / 'cases.csv').write_text('case_id,patient_id,pe,split\nc0,p0,1,\n')
    elif name == 'masks':
        pictures(root, 'images/a.png', 'masks/a.png')
    else:
        pictures(root, 'images/a.png', 'images/b.png')
        (root / 'cases.csv').write_text('patient_id,image,Edema\np1,images/a.png,1\np2,images/b.png,0\n')
    (root / 'cases_corrected.csv').write_text('case_id\n')
    (root / 'README.md').touch()


ROOTS = dict(paired=(paired, dict(modalities=('ct',), tasks=(), classes=(), labels=('no', 'yes'))),
             dualphase=(dualphase, {}), masks=(masks, {}), folder=(folder, dict(empty_text='ok')))


@pytest.mark.parametrize('name', ROOTS)
def test_what_lies_unused_in_the_root_is_said(tmp_path, name, capsys):
    module, options = ROOTS[name]
    write_root(tmp_path, name)
    capsys.readouterr()
    module.build(ConfigDict({**module.DEFAULTS, 'root': str(tmp_path), **options}))
    assert f'{name}: 1 files lie there unused, the first cases_corrected.csv. Looked for' in capsys.readouterr().out


def test_pictures_and_cases_that_no_row_names_are_said(tmp_path, capsys):
    write_root(tmp_path / 'a', 'folder')
    pictures(tmp_path / 'a', 'images/c.png')
    folder.build(ConfigDict({**folder.DEFAULTS, 'root': str(tmp_path / 'a'), 'empty_text': 'ok'}))
    assert 'folder: 2 files lie there unused' in capsys.readouterr().out
    build_paired(tmp_path / 'b', 'roi_ct.nii.gz')
    (tmp_path / 'b' / 'c17').mkdir()
    capsys.readouterr()
    module, options = ROOTS['paired']
    module.build(ConfigDict({**module.DEFAULTS, 'root': str(tmp_path / 'b'), **options}))
    assert 'paired: 1 files lie there unused, the first c17.' in capsys.readouterr().out


def test_npz_beside_h5_is_read_and_said(tmp_path, capsys):
    from tests.data import test_slices
    test_slices.write(tmp_path / 'slices', 'slices')
    assert len(slices.build(ConfigDict({**slices.DEFAULTS, 'root': str(tmp_path)}))) == 24
    np.savez(tmp_path / 'all.npz', **test_slices.rows((1, 2)))
    capsys.readouterr()
    assert len(slices.build(ConfigDict({**slices.DEFAULTS, 'root': str(tmp_path)}))) == 16
    said = capsys.readouterr().out
    assert 'holds slices and npz; npz is read, and kind=slices would read another' in said
    assert 'slices: 1 files lie there unused, the first slices' in said


@pytest.mark.parametrize('module, layout', [(acdc, 'acdc'), (mnms, 'mnms')])
def test_scans_of_heart_archives_in_any_letter_case(tmp_path, module, layout):
    plugins.load('phantoms/layouts', layout).write(tmp_path, 5, size=32)
    before = module.build(ConfigDict({**module.DEFAULTS, 'root': str(tmp_path)}))
    record = before[3]
    for i, path in enumerate(sorted(tmp_path.rglob('*.nii*'))):
        path.rename(path.with_name(mixed(path.name, random.Random(i))))
    after = module.build(ConfigDict({**module.DEFAULTS, 'root': str(tmp_path)}))
    assert after.cases == before.cases
    np.testing.assert_array_equal(after[3]['image'], record['image'])
