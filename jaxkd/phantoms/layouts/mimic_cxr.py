"""The thorax phantom on disk as MIMIC-CXR-JPG, MIMIC-CXR and MS-CXR lie, each under its name and version.

    mimic-cxr-jpg/2.1.0/   metadata, split and both tables of labels as .csv.gz, the table of radiologists as .csv,
                           IMAGE_FILENAMES, files/p10/p10000032/s50414267/<dicom_id>.jpg
    mimic-cxr/2.1.0/       files/p10/p10000032/s50414267.txt, and all of them in mimic-cxr-reports.zip
    ms-cxr/1.1.0/          MS_CXR_Local_Alignment_v1.1.0.csv

Of five patients three are in train, one is in validate and one in test; every fourth is in MS-CXR, whatever its part. Labels are
what the reports say, in both tables; those that the phantom does not know are empty. Radiologists have looked at every second
tested study and saw what is there, which a report may miss. Every third study has a lateral, listed as such: a blank film, as
the phantom has no side. Dates are made up.
"""
import csv
import gzip
import hashlib
import io
import os
import textwrap
import zipfile

import numpy as np
from ml_collections import ConfigDict

from jaxkd.data.sources import mimic_cxr
from jaxkd.data.sources.shared import ms_cxr
from jaxkd.phantoms import picture, thorax
from jaxkd.phantoms.thorax.labeller import LABELS
from jaxkd.runtime import files, log

METADATA = ('dicom_id', 'subject_id', 'study_id', 'PerformedProcedureStepDescription', 'ViewPosition', 'Rows', 'Columns',
            'StudyDate', 'StudyTime', 'ProcedureCodeSequence_CodeMeaning', 'ViewCodeSequence_CodeMeaning',
            'PatientOrientationCodeSequence_CodeMeaning')
SPLIT = ('dicom_id', 'study_id', 'subject_id', 'split')
BOXES = ('dicom_id', 'category_name', 'label_text', 'path', 'x', 'y', 'w', 'h', 'image_width', 'image_height', 'split')
JPG, TEXT, MS_CXR = (os.path.join(*path) for path in (('mimic-cxr-jpg', '2.1.0'), ('mimic-cxr', '2.1.0'), ('ms-cxr', '1.1.0')))
_VIEWS = {'PA': 'postero-anterior', 'AP': 'antero-posterior', 'LATERAL': 'lateral'}
PARTS = 'train', 'train', 'train', 'validate', 'test'
_CELLS = {1: '1.0', 0: '0.0', -1: '-1.0'}
_PRIME = 9_999_991  # ids go round it in steps: no two alike, in no order


def write(folder, patients, size=64, seed=0, difficulty=0.5):
    """Write all images and reports of `patients` patients under `folder`, JPEG of quality 95."""
    source = thorax.build(ConfigDict({**thorax.DEFAULTS, 'patients': patients, 'size': size, 'seed': seed,
                                      'difficulty': difficulty}))
    metadata, split, labels, experts, boxes, reports, studies, tested = [], [], [], [], [], {}, {}, 0
    for i, case in enumerate(log.progress(source.cases, 'writing mimic_cxr')):
        record, patient = source[i], int(case.patient.rpartition('p')[2])
        new, subject = case.study not in studies, subject_id(patient, seed)
        study = studies.setdefault(case.study, str(50_000_000 + (len(studies) + 100_003 * seed) * 7_654_321 % _PRIME))
        part, place = PARTS[patient % len(PARTS)], f'files/p{subject[:2]}/p{subject}/s{study}'
        shots = [(dicom_id(case.id), case.groups['view'], record['image'])]
        if new:
            labels.append([subject, study, *_cells(record['label'])])
            tested += part == 'test'
            if part == 'test' and tested % 2:
                experts.append([study, *_cells(record['truth'])])
            reports[f'{place}.txt'] = typed(record['text'])
            if len(studies) % 3 == 0:
                shots.append((dicom_id(f'{case.id} lateral'), 'LATERAL', np.full((size, size), 128, np.uint8)))
        for name, view, pixels in shots:
            files.write(os.path.join(folder, JPG, place, f'{name}.jpg'), picture.encode(pixels, 'jpeg', quality=95))
            what = 'CHEST (PORTABLE AP)' if view == 'AP' else 'CHEST (PA AND LAT)'
            metadata.append([name, subject, study, what, view, size, size, 21500101 + len(studies) % 28,
                             f'{83000 + len(studies) % 60}.5', '', _VIEWS[view], 'Erect'])
            split.append([name, study, subject, part])
        if in_ms_cxr(patient):
            part, name = 'val' if patient % 8 == 1 else 'test', shots[0][0]
            boxes += [[name, LABELS[int(label)], LABELS[int(label)].lower(), f'{place}/{name}.jpg', *(f'{v:g}' for v in box),
                       size, size, part] for label, *box in record['boxes']]
    labelled = ('subject_id', 'study_id', *mimic_cxr.LABELS)
    said = ('study_id', *('Airspace Opacity' if name == 'Lung Opacity' else name for name in mimic_cxr.LABELS))
    for name, columns, rows in (('metadata', METADATA, metadata), ('split', SPLIT, split), ('chexpert', labelled, labels),
                                ('negbio', labelled, labels)):
        packed = gzip.compress(_csv(columns, rows).encode(), mtime=0)
        files.write(os.path.join(folder, JPG, f'mimic-cxr-2.0.0-{name}.csv.gz'), packed)
    files.write(os.path.join(folder, JPG, mimic_cxr.DEFAULTS['radiologists']), _csv(said, experts))
    files.write(os.path.join(folder, JPG, 'IMAGE_FILENAMES'), ''.join(sorted(
        f'files/p{subject[:2]}/p{subject}/s{study}/{name}.jpg\n' for name, subject, study, *_ in metadata)))
    files.write(os.path.join(folder, MS_CXR, ms_cxr.TABLES[0]), _csv(BOXES, boxes))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as packed:
        for name, text in sorted(reports.items()):
            files.write(os.path.join(folder, TEXT, name), text)
            packed.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)
    files.write(os.path.join(folder, TEXT, mimic_cxr.REPORTS), buffer.getvalue())


def subject_id(patient, seed=0):
    """The subject_id of a patient of the phantom."""
    return str(10_000_000 + (patient + 100_003 * seed) * 1_234_567 % _PRIME)


def dicom_id(case):
    """The dicom_id of a case of the phantom."""
    name = hashlib.sha256(case.encode()).hexdigest()
    return '-'.join(name[k:k + 8] for k in range(0, 40, 8))


def in_ms_cxr(patient):
    return patient % 4 == 1


def typed(text):
    """A report of the phantom as MIMIC-CXR's are typed."""
    parts = [textwrap.fill(line, 78, initial_indent=' ', subsequent_indent=' ', break_on_hyphens=False, break_long_words=False)
             for line in text.splitlines()]
    return f'{" " * 33}FINAL REPORT\n' + '\n \n'.join(parts) + '\n'


def _cells(values):
    """The 14 cells of a row of labels; values float32 [8] as LABELS."""
    said = {name: _CELLS.get(value, '') for name, value in zip(LABELS, values)}
    said['No Finding'] = '' if np.isin(values, (1, -1)).any() else '1.0'
    return [said.get(name, '') for name in mimic_cxr.LABELS]


def _csv(columns, rows):
    """The text of a table, its rows in the order of their first ids."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([columns, *sorted(rows, key=lambda row: row[0])])
    return text.getvalue()
