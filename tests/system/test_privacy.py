"""Nothing that names a patient leaves by accident: every place of the input files that can hold a name holds a known
string, and no output holds one.
"""
import base64
import contextlib
import gzip
import io
import json
import pathlib
import re
import zipfile

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image, PngImagePlugin
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from jaxkd import evaluate, predict, runner
from jaxkd.data import volume
from jaxkd.export import __main__ as export
from jaxkd.export import model_card
from jaxkd.report import __main__ as report
from jaxkd.runtime import deidentify
from tests.test_evaluate import resolved

CANARY = 'zanonymus'
UID = '1.2.826.0.1.3680043.8.498.77137713'
PATIENTS, BIRTH = 30, '19010203'
EMPTY = ('PatientID', 'PatientAddress', 'OtherPatientNames', 'PatientComments', 'PatientTelephoneNumbers',
         'EthnicGroup', 'Occupation', 'AccessionNumber', 'StudyID', 'InstitutionName', 'InstitutionAddress',
         'InstitutionalDepartmentName', 'StationName', 'DeviceSerialNumber', 'ReferringPhysicianName',
         'PerformingPhysicianName', 'OperatorsName', 'NameOfPhysiciansReadingStudy', 'RequestingPhysician',
         'StudyDescription', 'SeriesDescription', 'ProtocolName', 'ImageComments', 'AdditionalPatientHistory',
         'RequestedProcedureDescription', 'ContentCreatorName')
# of the basic profile of DICOM PS3.15, its commonest members; '' and '^...': a canary
PHI = dict(PatientName='^Given', PatientBirthDate=BIRTH, PatientSex='F', **dict.fromkeys(EMPTY, ''))


def canary(kind, n=0):
    """A string that stands in no dictionary, short enough for every field of DICOM."""
    return f'{CANARY}{kind}{n}'


def write_dicom(path, pixels, n):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, '1.2.840.10008.5.1.4.1.1.1.1'
    meta.MediaStorageSOPInstanceUID = f'{UID}.{n}.1'
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b'\0' * 128)
    for i, (keyword, value) in enumerate(PHI.items()):
        date_or_code = value and not value.startswith('^')
        setattr(ds, keyword, value if date_or_code else canary('dcm', i)[:16 - len(value)] + value)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = f'{UID}.{n}.2', f'{UID}.{n}.3', 'DX'
    ds.add_new((0x0009, 0x0010), 'LO', canary('private'))
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, 'MONOCHROME2', 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelData = 7, pixels.tobytes()
    pydicom.dcmwrite(path, ds, enforce_file_format=True)


def write_nifti(path):
    """Canaries in every field of text, and in extensions."""
    image = nibabel.Nifti1Image(np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6), np.diag([1.0, 2, 3, 1]))
    for field, length in (('descrip', 80), ('aux_file', 24), ('db_name', 18), ('intent_name', 16)):
        image.header[field] = canary('nii')[:length]
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension('comment', canary('comment').encode()))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension('dicom', canary('extension').encode()))
    nibabel.save(image, path)


def write_series(folder):
    """Three slices of a CT with the same tags as the radiographs."""
    folder.mkdir()
    for i in range(3):
        write_dicom(folder / f'{i}.dcm', np.full((4, 5), 40 * i, np.uint8), i)
        ds = pydicom.dcmread(folder / f'{i}.dcm')
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = '1.2.840.10008.5.1.4.1.1.2'
        ds.Modality, ds.SeriesInstanceUID, ds.StudyInstanceUID = 'CT', f'{UID}.3', f'{UID}.2'
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 2 * i], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.RescaleSlope, ds.RescaleIntercept, ds.InstanceNumber = [1, 1], 1, 0, i + 1
        ds.save_as(folder / f'{i}.dcm')


def write_tree(root):
    """PNG with text and EXIF, JPEG with EXIF and a comment, DICOM; a table with names; a word in each report."""
    (root / canary('folder')).mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for i in range(2 * PATIENTS):
        pixels = rng.integers(0, 255, (24 + i, 24), np.uint8)
        name = f'{canary("folder")}/case{i}.{("png", "jpg", "dcm")[i % 3]}'
        exif = Image.Exif()
        for tag in (0x010E, 0x013B, 0x8298, 0x9286):  # description, artist, copyright, comment
            exif[tag] = canary('exif', tag)
        if name.endswith('png'):
            chunks = PngImagePlugin.PngInfo()
            chunks.add_text('Comment', canary('png'))
            chunks.add_itxt('Patient', canary('itxt'))
            Image.fromarray(pixels).save(root / name, pnginfo=chunks, exif=exif)
        elif name.endswith('jpg'):
            Image.fromarray(pixels).save(root / name, exif=exif, comment=canary('jpeg'))
        else:
            write_dicom(root / name, pixels, i)
        text = f'FINDINGS: A disc in cell {i % 3}. IMPRESSION: seen by {canary("word", i)}.'
        rows.append([f'pat{i // 2}', name, text, canary('name', i), canary('doctor', i % 2), str(i % 2),
                     str(i // 2 % 2)])
    head = ['patient_id', 'image', 'text', 'name', 'doctor', 'Edema', 'Effusion']
    (root / 'cases.csv').write_text(''.join(','.join(row) + '\n' for row in [head, *rows]))
    (root / 'boxes.csv').write_text('image,label,x,y,w,h\n' + ''.join(
        f'{row[1]},Edema,2,3,9,9\n' for row in rows[1::2]))
    return root


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """(root of the data, folder of the run, what the commands printed)"""
    folder, printed = tmp_path_factory.mktemp('privacy'), io.StringIO()
    root, run = write_tree(folder / 'hospital'), folder / 'run'
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        config = resolved(root)
        config.tensorboard = True
        runner.run(config, run)
        assert evaluate.main([str(run), '--bootstrap', '10']) == 0
    return root, run, printed.getvalue()


def contents(folder):
    """(name of a file, its bytes and those within: members of archives, embedded pictures)."""
    for path in sorted(p for p in folder.rglob('*') if p.is_file()):
        data = path.read_bytes()
        yield path, path.name.encode() + data
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as stored:
                yield from ((path, stored.read(name)) for name in stored.namelist())
        for picture in re.findall(rb'base64,([A-Za-z0-9+/=]+)', data):
            yield path, base64.b64decode(picture)


def leaks(folder, *words, ids=True):
    """{file: words found}, without case; `ids`: names of files, which are case ids here, are allowed."""
    found = {}
    for path, data in contents(folder):
        lower = data.lower().replace(canary('folder').encode(), b'') if ids else data.lower()
        for word in words or (CANARY, UID, BIRTH):
            if word.lower().encode() in lower or word.lower().encode('utf-16-le') in lower:
                found.setdefault(str(path.relative_to(folder)), set()).add(word)
    return found


def test_the_tree_is_full_of_canaries(trained):
    """Else the searches below would find nothing because there is nothing."""
    root = trained[0]
    assert {path.name for path in root.rglob('*') if path.is_file()} == {
        pathlib.Path(path).name for path in leaks(root, CANARY)} | {'boxes.csv'}
    assert set(leaks(root, UID, BIRTH)) == {f'{canary("folder")}/case{i}.dcm' for i in range(2, 2 * PATIENTS, 3)}


@pytest.mark.parametrize('form', ['nii.gz', 'nii', 'nrrd'])
@pytest.mark.parametrize('scan', ['scan.nii.gz', 'series'])
def test_a_mask_on_the_grid_of_a_scan_holds_its_grid_alone(tmp_path, scan, form):
    (write_nifti if scan.endswith('gz') else write_series)(tmp_path / scan)
    read = gzip.open(tmp_path / scan).read() if scan.endswith('gz') else (tmp_path / scan / '0.dcm').read_bytes()
    assert CANARY.encode() in read
    like, path = volume.read(tmp_path / scan), tmp_path / 'out' / f'mask.{form}'
    path.parent.mkdir()
    volume.save(path, np.ones(like.voxels.shape, np.uint8), like)
    written = gzip.open(path).read() if form == 'nii.gz' else path.read_bytes()
    assert CANARY.encode() not in written.lower() and UID.encode() not in written and BIRTH.encode() not in written
    assert leaks(tmp_path / 'out', CANARY, 'scan', 'series') == {}
    np.testing.assert_allclose(volume.read(path).affine, like.affine)


def test_neither_the_run_nor_what_it_prints_holds_what_stands_in_files(trained):
    """Of the table: ids, which are names of files here, labels, and the groups that the config asks for."""
    root, run, printed = trained
    words_of_reports = {'checkpoints/teacher/stage.json': {CANARY}}  # its vocabulary, without which it reads nothing
    assert leaks(run) == words_of_reports and (run / 'tensorboard').is_dir() and (run / 'report.html').exists()
    words = printed.lower().replace(canary('folder'), '')
    assert CANARY not in words and UID not in words and 'student' in words
    stages = {s: json.loads((run / 'checkpoints' / s / 'stage.json').read_text()) for s in ('teacher', 'student')}
    assert CANARY in str(stages['teacher'].pop('assets')) and CANARY not in str(stages['teacher']).replace(
        canary('folder'), '')
    assert stages['student']['assets'] == {}, 'the words of reports stay with the network that reads them'
    assert 'FINDINGS' not in (run / 'report.html').read_text()


def test_no_path_is_on_the_page_or_on_the_card(trained, tmp_path):
    root, run, _ = trained
    model_card.write(run, 'student', tmp_path / 'card.md')
    assert report.main([str(run), '--out', str(tmp_path / 'copy')]) == 0
    assert leaks(tmp_path) == {} and leaks(tmp_path, str(root.parent)) == {}
    assert str(root.parent) not in (run / 'report.html').read_text()


def test_ids_are_gone_from_a_copy_with_pseudonyms(trained, tmp_path, capsys):
    root, run, _ = trained
    salt, copy = tmp_path / 'salt', tmp_path / 'copy'
    assert report.main([str(run), '--out', str(copy), '--deidentify', '--salt', str(salt)]) == 0
    assert leaks(copy, CANARY, UID, BIRTH, str(root.parent), salt.read_text().strip(), ids=False) == {}
    text = (copy / 'report.html').read_text() + ''.join(p.read_text() for p in copy.rglob('*.csv'))
    assert not re.search(r'\bpat\d+\b|case\d+\.(png|jpg|dcm)', text) and re.search('case-[0-9a-f]{16}', text)
    head, first, *_ = (copy / 'predictions' / 'student_test.csv').read_text().splitlines()
    before = (run / 'predictions' / 'student_test.csv').read_text().splitlines()
    names = deidentify.pseudonyms(salt)
    case, patient, *rest = before[1].split(',')
    assert head == before[0] and first.split(',')[:2] == [names(case), names(patient, 'patient')]
    numbers = [cell for cell in rest if re.fullmatch(r'-?[0-9.]+', cell)]
    assert [cell for cell in first.split(',')[2:] if re.fullmatch(r'-?[0-9.]+', cell)] == numbers, 'the same numbers'
    assert report.main([str(run), '--out', str(tmp_path / 'again'), '--deidentify', '--salt', str(salt)]) == 0
    assert (tmp_path / 'again' / 'report.html').read_bytes() == (copy / 'report.html').read_bytes()


def test_predictions_of_new_cases(trained, tmp_path, capsys):
    """Pictures of all three kinds, one of them damaged: with the names of files, and with pseudonyms."""
    root, run, _ = trained
    new = tmp_path / 'new' / canary('folder')
    new.mkdir(parents=True)
    for i in range(6):
        name = f'case{i}.{("png", "jpg", "dcm")[i % 3]}'
        (new / name).write_bytes((root / canary('folder') / name).read_bytes()[:100 if i == 5 else None])
    command = ['--run', str(run), '--stage', 'student', '--input', str(tmp_path / 'new'), '--overlays', '--output']
    assert predict.main([*command, str(tmp_path / 'named')]) == 65
    assert leaks(tmp_path / 'named') == {} != leaks(tmp_path / 'named', 'case0')
    hidden = [*command, str(tmp_path / 'hidden'), '--deidentify', '--salt', str(tmp_path / 'salt')]
    assert predict.main(hidden) == 65
    words = CANARY, UID, BIRTH, str(tmp_path), *(f'case{i}' for i in range(6))
    assert leaks(tmp_path / 'hidden', *words, ids=False) == {}
    tables = [(tmp_path / name / 'predictions.csv').read_text().splitlines() for name in ('named', 'hidden')]
    names = deidentify.pseudonyms(tmp_path / 'salt')
    for named, with_pseudonym in zip(*tables, strict=True):
        case, *rest = named.split(',')
        other, *numbers = with_pseudonym.split(',')
        assert other == (names(case) if case != 'case' else 'case')
        assert [c for c in numbers if '/' not in c] == [c for c in rest if '/' not in c]
    assert len({*(tmp_path / 'hidden' / 'overlays').iterdir()}) == 5
    assert predict.main(hidden) == 65 and 'were predicted before' in capsys.readouterr().out, 'it is resumed'
    assert predict.main([*command, str(tmp_path / 'hidden')]) == 2, 'names and pseudonyms in one folder'


def test_a_bundle_holds_neither_names_nor_ids_nor_words_of_reports(trained, tmp_path):
    root, run, _ = trained
    assert export.main(['--run', str(run), '--stage', 'student', '--out', str(tmp_path / 'bundle')]) == 0
    names = {path.name for path in (tmp_path / 'bundle').iterdir()}
    assert {'README.md', 'model.safetensors', 'program.stablehlo', 'metadata.json'} <= names
    words = (CANARY, UID, BIRTH, str(root.parent), 'case0', 'pat0', 'disc in cell')
    assert leaks(tmp_path / 'bundle', *words, ids=False) == {}


def test_digests_of_patients_stay_in_the_folder_of_the_run(trained, tmp_path):
    """stage.json has them, without a salt, for the stages and runs that must not test what it trained on."""
    run = trained[1]
    digests = json.loads((run / 'checkpoints' / 'student' / 'stage.json').read_text())['trained_on']
    assert len(digests) > 5
    assert export.main(['--run', str(run), '--stage', 'student', '--out', str(tmp_path / 'bundle')]) == 0
    assert report.main([str(run), '--out', str(tmp_path / 'copy')]) == 0
    (tmp_path / 'report.html').write_bytes((run / 'report.html').read_bytes())
    (tmp_path / 'summary.json').write_bytes((run / 'summary.json').read_bytes())
    assert leaks(tmp_path, *digests) == {}


def test_pseudonyms_belong_to_a_copy_and_the_salt_stays_out_of_it(trained, tmp_path, capsys):
    run = str(trained[1])
    with pytest.raises(SystemExit):
        report.main([run, '--deidentify'])
    assert '--deidentify needs --out' in capsys.readouterr().err
    for salt in (tmp_path / 'copy' / 'salt', trained[1] / 'salt'):
        assert report.main([run, '--out', str(tmp_path / 'copy'), '--deidentify', '--salt', str(salt)]) == 2
        assert 'handed on' in capsys.readouterr().err and not salt.exists()
