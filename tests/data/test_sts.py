import csv
import os
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.stats import spearmanr

from jaxkd import config, errors
from jaxkd.data import volume as volumes
from jaxkd.data.sources import sts
from jaxkd.data.transforms import volume
from tests.fixtures import dicom_series

ROOT = pathlib.Path(__file__).parents[2]
RECOMMENDED = dict(keys=('ct', 't1', 'pet'), spacing=(3.0, 3.0, 3.0), size=(16, 16, 24))


@pytest.fixture
def make(tmp_path):
    def make(rows, **given):
        with open(tmp_path / 'labels.csv', 'w', newline='') as f:
            csv.writer(f).writerows([['patient', 'lung_metastasis', 'gtv_ml'], *rows])
        return sts.build(ConfigDict({**sts.DEFAULTS, 'root': str(tmp_path), **given}))

    for name, shape in (('STS_001', (21, 25, 31)), ('STS_002', (19, 41, 33)), ('STS_019', (5, 5, 5))):
        folder = tmp_path / 'nifti_3mm' / name
        folder.mkdir(parents=True)
        mask = np.zeros(shape, np.uint8)
        mask[tuple(n // 2 for n in shape)] = 1
        like = volumes.Volume(mask, np.diag([3.0, 3.0, 3.0, 1.0]))
        for file in ('CT_image', 'MR_T1_image', 'PET_image'):
            volumes.save(folder / f'{file}.nii.gz', np.full(shape, 7, np.int16), like)
        volumes.save(folder / 'mask.nii.gz', mask, like)
    return make


ROWS = [['STS_001', '0', '60.5'], ['STS_002', '1', '800'], ['STS_019', '0', '20']]


def test_reads_the_layout(make):
    source = make(ROWS)
    assert source.name == 'sts' and source.labels == ('no', 'yes') and source.tasks == {} and source.note
    assert [(c.id, c.patient) for c in source.cases] == [('STS_001', 'STS_001'), ('STS_002', 'STS_002')]
    assert [c.groups for c in source.cases] == [{'class': 'no', 'size': 'small'}, {'class': 'yes', 'size': 'large'}]
    assert source.targets['label'].tolist() == [0, 1]
    record = source[1]
    assert record.keys() == {'ct', 't1', 'pet', 'label', 'case', 'centre', 'field'} and record['label'] == 1
    for key in ('ct', 't1', 'pet'):
        np.testing.assert_allclose(record['centre'][key], (27, 60, 48))
    # Nearest outermost planes: x 9 voxels (STS_002), y 12, z 15 (STS_001), both sides, 3 mm
    np.testing.assert_allclose(source.field, (54, 72, 90))
    assert len(make(ROWS, exclude=())) == 3
    assert make(ROWS, outside='allow').field == () and 'field' not in make(ROWS, outside='allow')[0]
    assert make(ROWS, modalities=('ct', 'pet'))[0].keys() == {'ct', 'pet', 'label', 'case', 'centre', 'field'}


def test_the_layout_of_ibsi(tmp_path):
    for name in ('STS_001', 'STS_002'):
        folder = tmp_path / 'nifti' / name
        folder.mkdir(parents=True)
        for file, side, shape in (('CT', 1.0, (30, 30, 30)), ('MR_T1', 1.5, (20, 20, 20)), ('PET', 3.0, (10, 12, 10))):
            mask = np.zeros(shape, np.uint8)
            mask[tuple(n // 2 for n in shape)] = 1
            like = volumes.Volume(mask, np.diag([side, side, side, 1.0]))
            volumes.save(folder / f'{file}_image.nii.gz', np.full(shape, 7, np.int16), like)
            volumes.save(folder / f'{file}_mask.nii.gz', mask, like)
    with open(tmp_path / 'labels.csv', 'w', newline='') as f:
        csv.writer(f).writerows([['patient', 'lung_metastasis', 'gtv_ml'], *ROWS[:2]])

    def build(**given):
        return sts.build(ConfigDict({**sts.DEFAULTS, 'root': str(tmp_path), **given}))
    record = build()[0]
    for key, centre in (('ct', (15, 15, 15)), ('t1', (15, 15, 15)), ('pet', (15, 18, 15))):
        np.testing.assert_allclose(record['centre'][key], centre)
    # Beyond the middle PET has 4 voxels of 3 mm in x and z, in y CT 14 of 1 mm and T1 9 of 1.5 mm
    np.testing.assert_allclose(build().field, (24, 27, 24))
    (tmp_path / 'nifti' / 'STS_002' / 'PET_mask.nii.gz').unlink()
    with pytest.raises(errors.MissingInput, match='STS_002.*lacks mask'):
        build()
    (tmp_path / 'nifti' / 'STS_002' / 'PET_image.nii.gz').unlink()
    assert 'pet' not in build()[1]
    (tmp_path / 'nifti').rename(tmp_path / 'elsewhere')
    assert len(build(volumes='elsewhere')) == 2


def put_patient(folder, mr=('AX T1 SE', 'AX STIR'), regions=('GTV_Mass', 'GTV_Edema'), number=0):
    """The folders of a patient as the collection is published: a study each for PET/CT and MR, a folder a series."""
    contour = np.array([(-2.0, -22.0), (8.0, -22.0), (8.0, -10.0), (-2.0, -10.0)])
    studies = {'01-01-2000-PET CT-1': [('CT', 'CT AC', 1.0), ('PT', 'PET AC', 2.0)],
               '01-02-2000-MRI THIGH-2': [('MR', description, 1.5) for description in mr]}
    for study, series in studies.items():
        for n, (modality, description, side) in enumerate(series, 10 * number + len(study)):
            shape = tuple(int(30 / side) for _ in range(2)) + (6,)
            uid = dicom_series.series(folder / study / f'{n}.000000-{description}-{n}', np.full(shape, 7, np.uint16),
                                      (side, side, 4.0), (-12.0, -31.0, 50.0), modality, n, description, Units='BQML')
            if 'STIR' not in description:
                drawn = {f'{region}_{modality}': [np.column_stack([contour, np.full(4, 50.0 + 4 * k)]) for k in (2, 3)]
                         for region in regions}
                dicom_series.rtstruct(folder / study / f'{n}.5-RTstruct-{n}' / '1-1.dcm', uid, drawn)


def test_the_layout_of_the_collection(tmp_path):
    for n, name in enumerate(('STS_001', 'STS_002')):
        put_patient(tmp_path / 'Soft-tissue-Sarcoma' / name, number=n)
    (tmp_path / 'Soft-tissue-Sarcoma' / 'LICENSE').write_text('CC BY 3.0')
    with open(tmp_path / 'labels.csv', 'w', newline='') as f:
        csv.writer(f).writerows([['patient', 'lung_metastasis', 'gtv_ml'], *ROWS[:2]])

    def build(**given):
        return sts.build(ConfigDict({**sts.DEFAULTS, 'root': str(tmp_path), **given}))
    source = build()
    record = source[0]
    assert record.keys() == {'ct', 't1', 'pet', 'label', 'case', 'centre', 'field'}
    for key, side in (('ct', 1.0), ('t1', 1.5), ('pet', 2.0)):
        np.testing.assert_allclose(volumes.spacing(record[key].affine), (side, side, 4))
        np.testing.assert_allclose(record['centre'][key], (-3, 16, 60), atol=side)  # RAS of the drawn rectangle
    # From the middle of the regions to the nearest outermost planes, both sides, by the pixels of each series
    assert all(20 <= size <= 28 for size in source.field[:2]) and source.field[2] == pytest.approx(20)
    mask, = {path.path for path in source.rois[0].values() if 'PET AC' in path.series}
    assert mask in {os.path.relpath(path, tmp_path) for path in source.paths(0)}
    assert [region.region for region in source.rois[0].values()] == ['GTV_Mass_CT', 'GTV_Mass_MR', 'GTV_Mass_PT']
    assert build(region='gtv_edema').rois[1]['ct'].region == 'GTV_Edema_CT'
    assert build(t1='SE')[0].keys() == record.keys()
    assert 't1' not in build(t1='T1 TSE')[0]  # no such series: a case may lack MR
    for given, why in ((dict(region='Tumour'), 'Case STS_001: .*has 1 series of CT and 0 regions Tumour.* GTV_Mass_CT'),
                       (dict(region='GTV'), '1 series of CT and 2 regions GTV'),
                       (dict(t1='STIR'), r'1 series of MR stir and 0 regions .*MR "AX STIR"')):
        with pytest.raises(errors.MissingInput, match=why):
            build(**given)
    assert build(region='GTV_Mass', modalities=('ct', 'pet'))[1].keys() == record.keys() - {'t1'}
    with pytest.raises(errors.ConfigError, match='pet_units'):
        build(pet_units='bw')
    with pytest.raises(errors.BadData, match='DecayCorrection|RadiopharmaceuticalInformationSequence'):
        build(pet_units='suv')


def test_a_crop_that_reaches_outside_of_some_patient_is_refused(make):
    hp = {**volume.DEFAULTS, **RECOMMENDED, 'size': (19, 25, 31)}
    out = volume.build(ConfigDict(hp)).apply(make(ROWS)[0])
    assert out['t1'].shape == (31, 25, 19, 1)
    larger = volume.build(ConfigDict({**hp, 'size': (20, 25, 31)})).apply
    with pytest.raises(errors.ConfigError, match=r'STS_001.*\(19, 25, 31\)'):
        larger(make(ROWS)[0])  # STS_001 itself would have room for it
    assert larger(make(ROWS, outside='allow')[0])['ct'].shape == (31, 25, 20, 1)


def test_errors(make, tmp_path):
    for rows, why in (([['STS_001', '2', '60']], 'row 2: column "lung_metastasis" of STS_001 is not 0 or 1'),
                      ([['STS_001', '0', 'nan']], 'column "gtv_ml" of STS_001'),
                      ([['STS_001', '0', '-']], 'column "gtv_ml" of STS_001'),
                      ([ROWS[0], ROWS[0]], 'row 3: names STS_001 a second time'),
                      ([['../x', '0', '1']], 'leaves the root'),
                      ([], 'no usable case')):
        with pytest.raises(errors.BadData, match=why):
            make(rows)
    with pytest.raises(errors.MissingInput, match='Case STS_003: .*lacks CT_image.nii.gz'):
        make([*ROWS, ['STS_003', '0', '1']])
    assert [c.id for c in make([*ROWS, ['STS_003', '0', '1']], on_error='skip').cases] == ['STS_001', 'STS_002']
    (tmp_path / 'nifti_3mm' / 'STS_002' / 'MR_T1_image.nii.gz').unlink()  # a missing MR is no error
    assert make(ROWS)[1].keys() == {'ct', 'pet', 'label', 'case', 'centre', 'field'}
    (tmp_path / 'nifti_3mm' / 'STS_002' / 'mask.nii.gz').unlink()
    with pytest.raises(errors.MissingInput, match='STS_002.*lacks mask'):
        make(ROWS)
    for given in (dict(outside='maybe'), dict(on_error='maybe'), dict(modalities=('ct', 'mr')), dict(modalities=())):
        with pytest.raises(errors.ConfigError, match=next(iter(given))):
            make(ROWS, **given)


@pytest.fixture(scope='module')
def real():
    beside = ROOT / '..' / 'shared' / 'data'
    root = pathlib.Path(os.environ.get('JAXKD_REAL_DATA', beside)) / 'sts_ct_mr_pet'
    if not root.is_dir():
        pytest.skip(f'no sts_ct_mr_pet in {root.parent.resolve()} (JAXKD_REAL_DATA)')
    source = sts.build(ConfigDict({**sts.DEFAULTS, 'root': str(root)}))
    with open(root / 'labels.csv', newline='') as f:
        ml = {row['patient']: float(row['gtv_ml']) for row in csv.DictReader(f)}
    return source, [source[i] for i in range(len(source))], np.array([ml[case.id] for case in source.cases])


def test_real_layout_of_ibsi():
    root = pathlib.Path(os.environ.get('JAXKD_REAL_DATA', ROOT / '..' / 'shared' / 'data')) / 'sts_ct_mr_pet'
    if not root.is_dir():
        pytest.skip(f'no sts_ct_mr_pet in {root.parent.resolve()} (JAXKD_REAL_DATA)')
    packed = sts.build(ConfigDict({**sts.DEFAULTS, 'root': str(root)}))
    native = {path.name for path in (root / 'nifti').iterdir()}
    others = tuple({case.id for case in packed.cases} - native) + ('STS_019',)
    source = sts.build(ConfigDict({**sts.DEFAULTS, 'root': str(root), 'volumes': 'nifti', 'exclude': others}))
    assert {case.id for case in source.cases} == native and min(source.field) > 30
    for case, record in zip(source.cases, source):
        other = packed[[c.id for c in packed.cases].index(case.id)]
        assert len({record[key].voxels.shape for key in ('ct', 't1', 'pet')}) == 3
        np.testing.assert_allclose(record['centre']['ct'], other['centre']['ct'], atol=3)


def test_real_dicom_with_contours_agrees_with_its_nifti(tmp_path):
    root = pathlib.Path(os.environ.get('JAXKD_REAL_DATA', ROOT / '..' / 'shared' / 'data')) / 'sts_ct_mr_pet'
    if not root.is_dir():
        pytest.skip(f'no sts_ct_mr_pet in {root.parent.resolve()} (JAXKD_REAL_DATA)')
    names = [row.split(',')[0] for row in (root / 'labels.csv').read_text().splitlines()[1:]]
    options = dict(root=str(root), exclude=tuple({*names} - {'STS_025'}), modalities=('ct', 't1'))
    drawn, packed = (sts.build(ConfigDict({**sts.DEFAULTS, **options, 'volumes': v})) for v in ('dicom', 'nifti_3mm'))
    ml = {row['patient']: float(row['gtv_ml']) for row in csv.DictReader(open(root / 'labels.csv', newline=''))}
    for key, mask in drawn.crop_regions(0).items():
        spacing = volumes.spacing(mask.affine)
        assert mask.voxels.sum() * spacing.prod() / 1000 == pytest.approx(ml['STS_025'], abs=0.05)
        np.testing.assert_allclose(drawn[0]['centre'][key], packed[0]['centre'][key], atol=0.3)


def padded(records, size):
    """Share of a crop of `size` voxels of 3 mm that lies outside of the scan, of each record."""
    share = []
    for record in records:
        inside = volumes.Volume(np.ones(record['ct'].voxels.shape, np.float32), record['ct'].affine)
        grid = volumes.grid(record['centre']['ct'], (3.0, 3.0, 3.0), size)
        share.append((volumes.resample(inside, grid, size) < 1 - 1e-5).mean())
    return np.array(share)


def test_real_size_of_the_tumour_leaks_unless_the_crop_lies_inside_every_scan(real):
    source, records, ml = real
    assert spearmanr(ml, [record['ct'].voxels.size for record in records]).statistic > 0.8  # the shape itself
    for size, at_most in (((64, 64, 64), -0.8), ((32, 32, 32), -0.7), ((18, 18, 26), -0.3)):
        assert spearmanr(ml, padded(records, size)).statistic < at_most
    assert not padded(records, RECOMMENDED['size']).any()  # the same for all: nothing to learn from


def test_real_crop_of_the_config_hides_the_field_of_view_but_not_what_the_scan_shows(real):
    source, records, ml = real
    hp = config.load(f'{ROOT / "configs" / "cpkd_ct_mri.py"}:sts', [f'data.source.root={source.root}']).data.volume
    assert (hp.spacing, hp.size, hp.margin) == ((3.0, 3.0, 3.0), (12, 12, 12), (2, 2, 2))
    crops = [volume.build(hp).apply(record) for record in records]
    assert {out[key].shape for out in crops for key in ('ct', 't1', 'pet')} == {(14, 14, 14, 1)}
    assert not padded(records, (14, 14, 14)).any()  # exactly 0 for every patient
    assert spearmanr(ml, padded(records, (32, 32, 32))).statistic < -0.7  # what a naive crop tells
    zeros = {key: spearmanr(ml, [(out[key] == 0).mean() for out in crops]).statistic for key in ('ct', 't1')}
    assert zeros['ct'] == pytest.approx(-0.60, abs=0.03)  # air and fat around a small tumour: the docstring says so
    assert zeros['t1'] == pytest.approx(0.12, abs=0.05)


def test_real_recommended_crop(real):
    source, records, _ = real
    f = volume.build(ConfigDict({**volume.DEFAULTS, **RECOMMENDED})).apply
    for record in records:
        out = f(record)
        assert out['present'] == {'ct': 1, 't1': 1, 'pet': 1}
        for key in ('ct', 't1', 'pet'):
            assert out[key].shape == (24, 16, 16, 1) and out[key].any()
            assert (out[key] == 0).mean() < 0.3  # air in CT, next to nothing in the others
    larger = volume.build(ConfigDict({**volume.DEFAULTS, **RECOMMENDED, 'size': (64, 64, 64)})).apply
    with pytest.raises(errors.ConfigError, match='would tell the size of the lesion'):
        larger(records[0])
