"""MIMIC-CXR-JPG, MIMIC-CXR and MS-CXR: radiographs of the thorax phantom as JPEG, reports, tables of labels, boxes.

    mimic-cxr-jpg/2.1.0/   metadata, split and both tables of labels as .csv.gz, the table of radiologists as .csv,
                           IMAGE_FILENAMES, files/p10/p10000032/s50414267/<dicom_id>.jpg
    mimic-cxr/2.1.0/       files/p10/p10000032/s50414267.txt, and all of them in mimic-cxr-reports.zip
    ms-cxr/1.1.0/          MS_CXR_Local_Alignment_v1.1.0.csv

Of five patients three are in train, one is in validate and one in test; every fourth is in MS-CXR, whatever its part.
Labels are those of the reports, in both tables; findings that the phantom does not draw are empty. Radiologists have
read every second tested study and label the drawn findings, of which a report may miss some. Every third study has a
lateral image, which is blank: the phantom has no lateral view. Dates are invented.
"""
import gzip
import hashlib
import os
import textwrap
import zipfile

import numpy as np

from jaxkd.data.source import Case
from jaxkd.data.sources import mimic_cxr
from jaxkd.data.sources.shared import ms_cxr
from jaxkd.phantoms import encode
from jaxkd.phantoms.thorax import archive
from jaxkd.phantoms.thorax.labeller import LABELS
from jaxkd.runtime import files, log

METADATA = ('dicom_id', 'subject_id', 'study_id', 'PerformedProcedureStepDescription', 'ViewPosition', 'Rows',
            'Columns', 'StudyDate', 'StudyTime', 'ProcedureCodeSequence_CodeMeaning', 'ViewCodeSequence_CodeMeaning',
            'PatientOrientationCodeSequence_CodeMeaning')
SPLIT = ('dicom_id', 'study_id', 'subject_id', 'split')
BOXES = ('dicom_id', 'category_name', 'label_text', 'path', 'x', 'y', 'w', 'h', 'image_width', 'image_height', 'split')
JPG, TEXT, MS_CXR = 'mimic-cxr-jpg/2.1.0', 'mimic-cxr/2.1.0', 'ms-cxr/1.1.0'
PARTS = 'train', 'train', 'train', 'validate', 'test'
_VIEWS = {'PA': 'postero-anterior', 'AP': 'antero-posterior', 'LATERAL': 'lateral'}
_PRIME = 9_999_991  # modulus of ids: unique, unordered


def write(folder: str | os.PathLike, patients: int, size: int = 64, seed: int = 0, difficulty: float = 0.5) -> None:
    """Write all images as JPEG of quality 95 and all reports of the patients.

    size: pixels of the square images, 32..1024. difficulty: 0 plain .. 1 faint findings and noise.
    Raises ConfigError, CannotWrite.
    """
    source = archive.build(patients, size, seed, difficulty)
    tables: dict[str, list[list]] = {name: [] for name in ('metadata', 'split', 'labels', 'radiologists', 'boxes')}
    studies: dict[str, str] = {}
    reports: dict[str, str] = {}
    tested = 0
    for i, case in enumerate(log.progress(source.cases, 'writing mimic_cxr')):
        record, patient = source[i], archive.patient_index(case)
        first, subject, part = case.study not in studies, subject_id(patient, seed), PARTS[patient % len(PARTS)]
        study = studies.setdefault(case.study, _study_id(len(studies), seed))
        stem = f'files/p{subject[:2]}/p{subject}/s{study}'
        images = [(dicom_id(case.id), case.groups['view'], record['image'])]
        if first:
            tested += part == 'test'
            tables['labels'].append([subject, study, *archive.label_cells(record['label'], mimic_cxr.LABELS)])
            if part == 'test' and tested % 2:
                tables['radiologists'].append([study, *archive.label_cells(record['truth'], mimic_cxr.LABELS)])
            reports[f'{stem}.txt'] = format_report(record['text'])
            if len(studies) % 3 == 0:
                images.append((dicom_id(f'{case.id} lateral'), 'LATERAL', np.full((size, size), 128, np.uint8)))
        for name, view, pixels in images:
            files.write(os.path.join(folder, JPG, stem, f'{name}.jpg'), encode.picture(pixels, 'jpeg', quality=95))
            tables['metadata'].append(_metadata(name, subject, study, view, size, len(studies)))
            tables['split'].append([name, study, subject, part])
        if in_ms_cxr(patient):
            tables['boxes'] += _boxes(case, record, stem, size, 'val' if patient % 8 == 1 else 'test')
    _write_tables(folder, tables)
    _write_reports(folder, reports)


def _metadata(name: str, subject: str, study: str, view: str, size: int, number: int) -> list:
    """A row of the table of images; number: of studies so far, which its date is made from."""
    step = 'CHEST (PORTABLE AP)' if view == 'AP' else 'CHEST (PA AND LAT)'
    return [name, subject, study, step, view, size, size, 21500101 + number % 28, f'{83000 + number % 60}.5', '',
            _VIEWS[view], 'Erect']


def _boxes(case: Case, record: dict, stem: str, size: int, part: str) -> list[list]:
    """Rows of MS-CXR, one a box."""
    name = dicom_id(case.id)
    return [[name, LABELS[int(label)], LABELS[int(label)].lower(), f'{stem}/{name}.jpg', *(f'{v:g}' for v in box),
             size, size, part] for label, *box in record['boxes']]


def _write_tables(folder: str | os.PathLike, tables: dict[str, list[list]]) -> None:
    labels: tuple[str, ...] = ('subject_id', 'study_id', *mimic_cxr.LABELS)
    columns: tuple[str, ...]
    for name, columns, rows in (('metadata', METADATA, tables['metadata']), ('split', SPLIT, tables['split']),
                                ('chexpert', labels, tables['labels']), ('negbio', labels, tables['labels'])):
        compressed = gzip.compress(_sorted(columns, rows).encode(), mtime=0)
        files.write(os.path.join(folder, JPG, f'mimic-cxr-2.0.0-{name}.csv.gz'), compressed)
    columns = ('study_id', *('Airspace Opacity' if name == 'Lung Opacity' else name for name in mimic_cxr.LABELS))
    radiologists = os.path.join(folder, JPG, str(mimic_cxr.DEFAULTS['radiologists']))
    files.write(radiologists, _sorted(columns, tables['radiologists']))
    files.write(os.path.join(folder, JPG, 'IMAGE_FILENAMES'), ''.join(sorted(
        f'files/p{subject[:2]}/p{subject}/s{study}/{name}.jpg\n' for name, subject, study, *_ in tables['metadata'])))
    files.write(os.path.join(folder, MS_CXR, ms_cxr.TABLES[0]), _sorted(BOXES, tables['boxes']))


def _write_reports(folder: str | os.PathLike, reports: dict[str, str]) -> None:
    """Each report as a file, and all of them in one archive."""
    path = os.path.join(folder, TEXT, mimic_cxr.REPORTS)
    with encode.buffered(path) as buffer, zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archived:
        for name, text in sorted(reports.items()):
            files.write(os.path.join(folder, TEXT, name), text)
            archived.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)


def _study_id(number: int, seed: int) -> str:
    return str(50_000_000 + (number + 100_003 * seed) * 7_654_321 % _PRIME)


def subject_id(patient: int, seed: int = 0) -> str:
    """The subject_id of a patient of the phantom."""
    return str(10_000_000 + (patient + 100_003 * seed) * 1_234_567 % _PRIME)


def dicom_id(case: str) -> str:
    """The dicom_id of a case of the phantom, by the case's id."""
    name = hashlib.sha256(case.encode()).hexdigest()
    return '-'.join(name[k:k + 8] for k in range(0, 40, 8))


def in_ms_cxr(patient: int) -> bool:
    """Whether a patient has boxes in MS-CXR."""
    return patient % 4 == 1


def format_report(text: str) -> str:
    """A report of the phantom as MIMIC-CXR's are typed."""
    parts = [textwrap.fill(line, 78, initial_indent=' ', subsequent_indent=' ', break_on_hyphens=False,
                           break_long_words=False) for line in text.splitlines()]
    return f'{" " * 33}FINAL REPORT\n' + '\n \n'.join(parts) + '\n'


def _sorted(columns: tuple[str, ...], rows: list[list]) -> str:
    """The text of a table, its rows in the order of their first ids."""
    return encode.table(columns, sorted(rows, key=lambda row: row[0]))
