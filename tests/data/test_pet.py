"""SUV by body weight of PET in DICOM, in worked numbers."""
import csv
import datetime

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import volume
from jaxkd.data.formats import dicom, pet
from jaxkd.data.sources import paired
from tests.data.test_volume import series

# 70 kg, 370 MBq of fluorine-18 an hour before the scan: 253.31 MBq are left, and 5,000 Bq/ml are SUV 1.3817.
VOXELS = np.full((4, 5, 3), 5000, np.int16)
WORKED = {'START': 1.38168, 'ADMIN': 0.945946}
DOSE = dict(RadionuclideTotalDose=370e6, RadionuclideHalfLife=6586.2, RadiopharmaceuticalStartTime='100000.00')
TAGS = dict(Units='BQML', DecayCorrection='START', PatientWeight=70, SeriesDate='20240301', SeriesTime='110000',
            AcquisitionTime='110130')


def write(folder, dose=None, edit=None, **tags):
    item = pydicom.Dataset()
    for key, value in {**DOSE, **(dose or {})}.items():
        if value is not None:
            setattr(item, key, value)
    tags = {k: v for k, v in {**TAGS, **tags}.items() if v is not None}
    series(folder, VOXELS, modality='PT', RadiopharmaceuticalInformationSequence=[item], edit=edit, **tags)
    return folder


@pytest.mark.parametrize('correction', ['START', 'ADMIN'])
def test_suv_by_body_weight(tmp_path, correction):
    found = volume.read(write(tmp_path / 'x', DecayCorrection=correction), pet_units='suv')
    np.testing.assert_allclose(found.voxels, WORKED[correction], rtol=1e-5)
    assert found.voxels.dtype == np.float32 and volume.read(tmp_path / 'x').voxels.max() == 5000


def test_what_the_scale_of_each_slice_says_comes_first(tmp_path):
    def edit(d, k):
        d.RescaleSlope, d.AcquisitionTime = 0.5 + k, f'11{k:02d}00'
    found = volume.read(write(tmp_path / 'x', edit=edit), pet_units='suv').voxels
    np.testing.assert_allclose(np.unique(found), np.array([0.5, 1.5, 2.5]) * WORKED['START'], rtol=1e-5)


@pytest.mark.parametrize('tags, dose', [
    (dict(SeriesTime='153000'), {}),  # made later than it was acquired
    (dict(SeriesTime=None, AcquisitionDate='20240301'), {}), (dict(AcquisitionTime=None, SeriesTime='11:01:30'), {}),
    ({}, dict(RadiopharmaceuticalStartDateTime='20240301100000', RadiopharmaceuticalStartTime='03')),
    (dict(TimezoneOffsetFromUTC='+0100'), dict(RadiopharmaceuticalStartDateTime='20240301090000.0+0000')),
    (dict(SeriesDate='20240302', SeriesTime='002000', AcquisitionTime='002130'),
     dict(RadiopharmaceuticalStartTime='232000'))])  # before midnight
def test_where_the_scan_began(tmp_path, tags, dose):
    later = 90 * ('153000' in tags.values() or None in tags.values())
    want = WORKED['START'] * 2 ** (later / 6586.2)
    found = volume.read(write(tmp_path / 'x', dose, **tags), pet_units='suv').voxels
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_what_is_suv_already_stays(tmp_path):
    bare = dict(PatientWeight=None, DecayCorrection=None)
    assert volume.read(write(tmp_path / 'a', Units='GML', **bare), pet_units='suv').voxels.max() == 5000
    with pytest.raises(errors.BadData, match='SUV cannot be computed: SUVType is "LBM", not BW'):
        volume.read(write(tmp_path / 'b', Units='GML', SUVType='LBM', **bare), pet_units='suv')
    series(tmp_path / 'ct', VOXELS)
    assert volume.read(tmp_path / 'ct', pet_units='suv').voxels.dtype == np.int16


@pytest.mark.parametrize('tags, dose, why', [
    (dict(Units='CNTS'), {}, 'Units is "CNTS", not BQML'), (dict(Units=None), {}, 'Units is "", not BQML'),
    (dict(DecayCorrection='NONE'), {}, 'DecayCorrection is "NONE", not START or ADMIN'),
    (dict(DecayCorrection=None), {}, 'DecayCorrection is ""'),
    (dict(PatientWeight=None), {}, 'PatientWeight is missing'),
    (dict(PatientWeight=0), {}, 'PatientWeight is 0.0, not 1 to 500 kg'),
    ({}, dict(RadionuclideTotalDose=None), 'RadionuclideTotalDose is missing'),
    ({}, dict(RadionuclideTotalDose=370), 'RadionuclideTotalDose is 370.*100000 to 1e.11 Bq'),
    ({}, dict(RadionuclideHalfLife=None), 'RadionuclideHalfLife is missing'),
    ({}, dict(RadiopharmaceuticalStartTime=None), 'RadiopharmaceuticalStartTime is missing'),
    ({}, dict(RadiopharmaceuticalStartTime='110500'),
     'RadiopharmaceuticalStartTime is "110500", 1,435 minutes before the scan began'),
    ({}, dict(RadiopharmaceuticalStartDateTime='20240301120000'), 'RadiopharmaceuticalStartDateTime is .*-60 minutes'),
    ({}, dict(RadiopharmaceuticalStartDateTime='20240301'),
     'RadiopharmaceuticalStartDateTime is "20240301", no date and time'),
    (dict(SeriesTime=None, AcquisitionTime=None), {}, 'SeriesTime and AcquisitionTime are missing')])
@pytest.mark.filterwarnings('ignore')
def test_what_is_missing_is_named(tmp_path, tags, dose, why):
    with pytest.raises(errors.BadData, match=f'x cannot be used: SUV cannot be computed: {why}'):
        volume.read(write(tmp_path / 'x', dose, **tags), pet_units='suv')


def test_slices_that_differ(tmp_path):
    def edit(d, k):
        d.PatientWeight = 70 + k
    with pytest.raises(errors.BadData, match='PatientWeight differs between its slices'):
        volume.read(write(tmp_path / 'x', edit=edit), pet_units='suv')


@given(st.integers(0, 86399), st.floats(0, 9.9), st.floats(3, 150), st.floats(1e7, 1e10),
       st.sampled_from([4057.7, 6586.2, 282280.0]), st.booleans(),
       st.sampled_from(['{:%H%M%S}', '{:%H:%M:%S}', '{:%H%M%S}.5']),
       st.sampled_from(['', '+0200', '-0930']))
@settings(max_examples=300, deadline=None)
def test_any_times(second, half_lives, weight, dose, half_life, dated, clock, zone):
    began = datetime.datetime(2024, 2, 29) + datetime.timedelta(seconds=second)
    uptake = int(min(half_lives * half_life, 10**9 if dated else 86000))
    injected = began - datetime.timedelta(seconds=uptake)
    given = {'RadiopharmaceuticalStartDateTime': f'{injected:%Y%m%d%H%M%S}{zone}'} if dated else {
        'RadiopharmaceuticalStartTime': clock.format(injected)}
    late = 0.0 if dated else 0.5 * clock.endswith('5')
    facts = dict.fromkeys((*pet.SCAN_TAGS, *pet.ACQUISITION_TAGS, 'RadiopharmaceuticalStartTime',
                           'RadiopharmaceuticalStartDateTime'), '')
    facts |= dict(Units='BQML', DecayCorrection='START', PatientWeight=str(weight), SeriesDate=f'{began:%Y%m%d}',
                  SeriesTime=clock.format(began), RadionuclideTotalDose=str(dose), RadionuclideHalfLife=str(half_life),
                  RadiopharmaceuticalInformationSequence='1 items', TimezoneOffsetFromUTC=zone, **given)
    shift = 0.5 * clock.endswith('5') - late
    want = 1000 * weight / (dose * 2 ** (-(uptake + shift) / half_life))
    np.testing.assert_allclose(pet.suv_factor([facts, facts], 'x'), want, rtol=1e-9)


def build(root, ending, **options):
    for i in range(2):
        (root / f'c{i}').mkdir(parents=True)
        volume.save(root / f'c{i}' / 'ct.nii.gz', VOXELS, volume.Volume(VOXELS, np.eye(4)))
        if ending:
            volume.save(root / f'c{i}' / f'pet{ending}', VOXELS, volume.Volume(VOXELS, np.eye(4)))
        else:
            write(root / f'c{i}' / 'pet')
    with open(root / 'cases.csv', 'w', newline='') as f:
        csv.writer(f).writerows([('case_id', 'patient_id', 'cls'), ('c0', 'p0', '0'), ('c1', 'p1', '1')])
    options = dict(modalities=('ct', 'pet'), tasks=(), classes=(), **options)
    return paired.build(ConfigDict({**paired.DEFAULTS, 'root': str(root), **options}))


def test_the_option_of_the_source(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dicom, '_reported', set())
    source = build(tmp_path / 'a', '', pet_units='suv')
    np.testing.assert_allclose(source[0]['pet'].voxels, WORKED['START'], rtol=1e-5)
    assert source[0]['ct'].voxels.max() == 5000
    said = capsys.readouterr().out
    assert 'PET in BQML (Bq/ml, no SUV). They become SUV by body weight' in said
    assert '2 of 4 volumes, such as c0/ct.nii.gz, are not DICOM and stay as they are' in said
    assert build(tmp_path / 'b', '')[0]['pet'].voxels.max() == 5000
    with pytest.raises(errors.ConfigError, match='no case has DICOM'):
        build(tmp_path / 'c', '.nii.gz', pet_units='suv')
    with pytest.raises(errors.ConfigError, match='paired: pet_units = "SUV" is none of .empty., suv'):
        build(tmp_path / 'd', '', pet_units='SUV')
