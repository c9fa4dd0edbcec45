"""MIMIC-CXR-JPG: 377,110 chest radiographs of 65,379 patients (Johnson et al., arXiv 1901.07042), with the reports of
MIMIC-CXR and the boxes of MS-CXR (Boecking et al., ECCV 2022).

    root     mimic-cxr-2.0.0-{metadata,split,chexpert,negbio}.csv(.gz), mimic-cxr-2.1.0-test-set-labeled.csv,
             files/p10/p10000032/s50414267/<dicom_id>.jpg (p10: the first two digits of the subject); or the folder
             above
    reports  files/p10/p10000032/s50414267.txt of MIMIC-CXR, or mimic-cxr-reports.zip with the same; or the folder above
    ms_cxr   MS_CXR_Local_Alignment_v1.1.0.csv, or v1.0.0, which has no column split; or its folder, or the one above

A row of the metadata is a case, its id the path of the image below root. Images of a study share report and labels.
Metadata and split are joined by dicom_id, labels by subject and study. Images whose study has no labels, as a few of
the archive, are skipped and counted. Label values are those of the tables: 1, 0, -1 uncertain, nan not mentioned; the
transform `labels` maps them. For tested studies with labels of radiologists these are used; their table has no subject
column, and Airspace Opacity for Lung Opacity. The JPEG files are histogram-equalised.

MS-CXR has images of all parts. A test with it excludes its patients from training, see ms_cxr_patients [our choice].

Names are found in any letter case, and the log says what lies unused beside the tables.

Groups: view; official, the part that the archive gives; by, who labelled (program, radiologist); ms_cxr, the part of
MS-CXR ('all' in v1.0.0). Images and reports are opened only when a case is read. on_error='skip' reads every image at
the start, which takes hours.
"""
import array
import dataclasses
import functools
import glob
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import SourcePlugin
from jaxkd.data.formats import csv_table, image
from jaxkd.data.source import Case, Source
from jaxkd.data.sources.shared import case_files, image_archive, loading_errors, ms_cxr

LABELS = ('Atelectasis', 'Cardiomegaly', 'Consolidation', 'Edema', 'Enlarged Cardiomediastinum', 'Fracture',
          'Lung Lesion', 'Lung Opacity', 'No Finding', 'Pleural Effusion', 'Pleural Other', 'Pneumonia', 'Pneumothorax',
          'Support Devices')
DEFAULTS = dict(
    root='',  # the folder of the tables and of files/, or the one above
    reports='',  # folder of the reports; '': without text
    ms_cxr='',  # folder or table of MS-CXR; '': without boxes, and nobody is held out
    labels=ms_cxr.FINDINGS,  # findings that are labels; or others of CheXpert's
    labeller='chexpert',  # program whose labels are read: chexpert or negbio
    radiologists='mimic-cxr-2.1.0-test-set-labeled.csv',  # table of labels by radiologists, which may be absent under
    # this name; '': none
    views=('AP', 'PA'),  # values of ViewPosition that are read; (): all
    ms_cxr_patients='test',  # MS-CXR patients of train and validate. test: their MS-CXR images are tested, their others
    # left out; out: all are left out; stay: nothing changes, which is no test of localisation
    on_error='fail',  # at bad images: fail (stop) or skip (read all once at the start and leave the bad ones out)
    resized=False,  # True for JPEG files that were made smaller, without a crop: boxes become smaller likewise
    max_pixels=image.MAX_PIXELS,  # most pixels of an image; a larger one is refused
)

PARTS = {'train': 'train', 'validate': 'val', 'test': 'test'}
METADATA, REPORTS = 'mimic-cxr-2.0.0-metadata.csv', 'mimic-cxr-reports.zip'
_TABLES = tuple(f'mimic-cxr-2.0.0-{labeller}.csv' for labeller in ('chexpert', 'negbio'))
_BESIDE = 'files', 'IMAGE_FILENAMES', 'SHA256SUMS.txt', 'index.html'  # of the archive
_IDS = re.compile(r'[0-9a-f]+(?:-[0-9a-f]+)* \d{8} \d{8}')  # dicom_id, subject_id, study_id
_RADIOLOGISTS_SAY = {'Lung Opacity': 'Airspace Opacity'}


def build(hp: ConfigDict) -> Source:
    _check(hp)
    problems = loading_errors.Problems(hp.on_error)
    top = _find('root', hp.root, METADATA, lambda folder: folder
                if os.path.isfile(csv_table.find_file(folder, METADATA)) else '')
    reports = hp.reports and _find('reports', hp.reports, f'"files" or {REPORTS}', _reports_in)
    boxes = hp.ms_cxr and _find('ms_cxr', hp.ms_cxr, ms_cxr.TABLES[0], ms_cxr.table_in)
    boxes_by_image, named_images = ms_cxr.read(boxes, hp.labels, problems) if boxes else ({}, set())
    program, values = _labels(csv_table.find_file(top, f'mimic-cxr-2.0.0-{hp.labeller}.csv'), hp.labels, problems)
    experts, expert_values = _experts(top, hp, problems)
    cases, patient_by_image, views = [], {}, tuple(hp.views)  # held: {image of MS-CXR: its patient}
    rows: list[int] = []
    for dicom, subject, study, view, part in _images(top, problems):
        if dicom in named_images:
            patient_by_image[dicom] = subject
        if views and view not in views:
            continue
        name = f'files/p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg'
        owner, row = program.get(study, (subject, -1))
        expert = part == 'test' and study in experts
        if owner != subject:
            problems(name, f'{name} is of another subject in the table of labels. Restore the tables.')
        elif row < 0 and not expert:
            problems.skipped.append((name, f'{name}: its study has no labels.'))
        else:
            rows.append(len(values) + experts[study][1] if expert else row)
            cases.append(Case(name, subject, study, PARTS[part], _groups(
                view, part, 'radiologist' if expert else 'program', boxes_by_image[dicom].part
                if dicom in boxes_by_image else '')))
    for dicom in sorted(named_images - patient_by_image.keys()):
        problems(dicom, f'mimic_cxr: image {dicom} of MS-CXR is not in the metadata in {top}. Complete them, or remove '
                        'its rows.')
    tables = (METADATA, 'mimic-cxr-2.0.0-split.csv', f'mimic-cxr-2.0.0-{hp.labeller}.csv', hp.radiologists)
    used = [os.path.basename(csv_table.find_file(top, name)) for name in (*tables, *_TABLES)]
    case_files.report_unused('mimic_cxr', top, [*used, *_BESIDE], f'{", ".join(tables)} and files')
    total = len(cases)
    cases, rows = _move_patients(cases, rows, {*patient_by_image.values()}, hp.ms_cxr_patients)
    boxes_by_case = {case.id: boxes_by_image[dicom] for case in cases
                     if (dicom := case.id[case.id.rindex('/') + 1:-4]) in boxes_by_image}
    note = ''.join(('labels were read from reports by a program',
                    ', of some tested studies by radiologists' * bool(experts),
                    f'; {total - len(cases)} images of MS-CXR patients are left out' * (total > len(cases))))
    source = image_archive.Archive(
        'mimic_cxr', note, tuple(hp.labels), tuple(cases), np.concatenate([values, expert_values])[np.array(rows, int)],
        [(top, case.id) for case in cases],
        image_archive.Texts([(reports, f'{case.id[:case.id.rindex("/")]}.txt') for case in cases]) if reports else (),
        boxes={case: image_boxes.boxes for case, image_boxes in boxes_by_case.items()},
        sizes={case: image_boxes.size for case, image_boxes in boxes_by_case.items()}, resized=hp.resized,
        max_pixels=hp.max_pixels, skipped=tuple(problems.skipped))
    return loading_errors.usable(source, hp.on_error, f'mimic_cxr: {top}', 'Set views to those of its metadata.')


def _images(top: str, bad: Callable[[str, str], None]) -> Iterator[tuple[str, str, str, str, str]]:
    """Iterator of (dicom_id, subject_id, study_id, ViewPosition, split) of all images that can be used."""
    parts = {}
    path = csv_table.find_file(top, 'mimic-cxr-2.0.0-split.csv')
    for number, (dicom, part) in csv_table.iterate(path, ('dicom_id', 'split')):
        if part not in PARTS or dicom in parts:
            bad(dicom, f'{path}, row {number}: ' + (f'image {dicom} stands there a second time' if dicom in parts else
                                                    f'column "split" is none of {", ".join(PARTS)}') +
                '. Restore the table.')
        else:
            parts[dicom] = sys.intern(part)
    path = csv_table.find_file(top, METADATA)
    first: dict[str, str] = {}
    for number, (dicom, subject, study, view) in csv_table.iterate(
            path, ('dicom_id', 'subject_id', 'study_id', 'ViewPosition')):
        listed = parts.get(dicom)
        if not _IDS.fullmatch(f'{dicom} {subject} {study}'):
            problem = 'dicom_id, subject_id or study_id is not like 02aa804e-bde0afdd, 10000032, 50414267'
        elif not listed:
            problem = f'image {dicom} ' + ('is not in the table of the split' if listed is None
                                         else 'stands there a second time')
        elif first.setdefault(subject, listed) != listed:  # never skipped: which of the two is wrong, nobody knows
            raise errors.BadData(f'{path}, row {number}: image {dicom} is in the part {listed} of the split, another '
                                 f'image of its patient in {first[subject]}. Restore the tables.')
        else:
            parts[dicom] = ''
            yield dicom, subject, study, view, listed
            continue
        bad(dicom, f'{path}, row {number}: {problem}. Restore the tables.')


def _labels(path: str, labels: Sequence[str], bad: Callable[[str, str], None],
            subject: tuple[str, ...] = ('subject_id',)) -> tuple[dict[str, tuple[str, int]], np.ndarray]:
    """({study: (subject, row of values)}, float32 [n,C]) of a table."""
    rows: dict[str, tuple[str, int]] = {}
    flat_values = array.array('f')  # flat: 227,827 lists would keep the garbage collector busy
    for number, (study, *cells) in csv_table.iterate(path, ('study_id', *subject, *labels)):
        owner = cells.pop(0) if subject else ''
        values = [csv_table.label(cell) for cell in cells]
        if study in rows or None in values:
            problem = f'study {study} stands there a second time' if study in rows else (
                f'column "{labels[values.index(None)]}" of study {study} is not 1.0, 0.0, -1.0 or empty')
            bad(f's{study}', f'{path}, row {number}: {problem}. Restore the table.')
        else:
            rows[study] = owner, len(rows)
            flat_values.extend(values)  # type: ignore[arg-type]  # none is None
    return rows, np.array(flat_values, np.float32).reshape(-1, len(labels))


def _experts(top: str, hp: ConfigDict, bad: Callable[[str, str], None]
             ) -> tuple[dict[str, tuple[str, int]], np.ndarray]:
    """As `_labels`, of the table of radiologists."""
    path = csv_table.find_file(top, hp.radiologists)
    if not hp.radiologists or hp.radiologists == DEFAULTS['radiologists'] and not os.path.lexists(path):
        return {}, np.zeros((0, len(hp.labels)), np.float32)
    return _labels(path, [_RADIOLOGISTS_SAY.get(name, name) for name in hp.labels], bad, ())


def _move_patients(cases: list[Case], rows: list[int], patients: set[str], policy: str) -> tuple[list[Case], list[int]]:
    """(cases, rows) less the images of these patients in train and validate; those of MS-CXR are tested, if they
    may.
    """
    if policy == 'stay':
        return cases, rows
    left_out = {i for i, c in enumerate(cases) if c.patient in patients and c.split != 'test'}
    tested = {i for i in left_out if policy == 'test' and cases[i].groups['ms_cxr']}
    remaining = [i for i in range(len(cases)) if i not in left_out or i in tested]
    kept_cases = [dataclasses.replace(cases[i], split='test') if i in tested else cases[i] for i in remaining]
    return kept_cases, [rows[i] for i in remaining]


@functools.cache
def _groups(view: str, official: str, by: str, part: str) -> dict[str, str]:
    """One dict for all that are alike."""
    return {'view': view, 'official': official, 'by': by, 'ms_cxr': part}


def _find(option: str, folder: str, content: str, find: Callable[[str], str]) -> str:
    """What `look` finds in a folder, or in one right below it, as versions are. MissingInput, or ConfigError for
    several.
    """
    if not folder:
        raise errors.MissingInput(f'mimic_cxr: {option} is empty. Set it to the folder that holds {content}.')
    if os.path.isfile(folder):
        return folder
    subfolders = sorted(glob.glob(os.path.join(glob.escape(folder), '*', '')))
    matches = [path for path in map(find, [folder]) if path] or [path for path in map(find, subfolders) if path]
    if len(matches) != 1:
        raise (errors.ConfigError if matches else errors.MissingInput)(
            f'mimic_cxr: {option} "{folder}" holds ' + (f'{content} {len(matches)} times, in {", ".join(matches)}. Set '
                                                       'it to one of them.'
                                                       if matches
                                                       else f'no {content}. Set it to the folder that does.'))
    return matches[0]


def _reports_in(folder: str) -> str:
    path = csv_table.in_any_case(folder, REPORTS)
    return folder if os.path.isdir(csv_table.in_any_case(folder, 'files')) else path if os.path.isfile(path) else ''


def _check(hp: ConfigDict) -> None:
    loading_errors.check_options('mimic_cxr', hp, labeller=('chexpert', 'negbio'),
                                 ms_cxr_patients=('test', 'out', 'stay'))
    image_archive.check_labels('mimic_cxr', hp.labels, LABELS)


PLUGIN = SourcePlugin(paths=('root', 'reports', 'ms_cxr'))
