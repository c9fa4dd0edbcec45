import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import errors
from jaxkd.data import volume
from jaxkd.data.sources import masks, paired
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
