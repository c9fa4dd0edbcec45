"""RSPECT (RSNA-STR pulmonary embolism): 7,279 CT angiographies with labels of exams and slices, but no mask.

Colak et al.: The RSNA Pulmonary Embolism CT Dataset. Radiology: Artificial Intelligence 3:e200254 (2021), terms of the
competition. Layout: train/<StudyInstanceUID>/<SeriesInstanceUID>/<SOPInstanceUID>.dcm and train.csv, one row for each
of 1,790,594 slices.

label    positions within a slice are unknown: every voxel of a slice with pe_present_on_image = 1 is 255 (ignored),
         every voxel of other slices 0. A network learns from it only where there is no embolus.
pe       0 where negative_exam_for_pe is 1; -1 (unknown) where indeterminate is 1; else 1
A study is a case and a patient, since the table has no patient column; two studies of one patient may be in two parts.

Interpretation: sensitivity and specificity against the readers' exam labels; Dice and lesion metrics are undefined.
Only CTPA: a network that reads it is an upper reference for non-contrast CT; results with `pseudo_nct` serve tests, not
claims.

The table is read once, row by row; exams and the 5 % of slices with an embolus stay in memory. `missing` decides on
exams without a folder, since the complete data set has 900 GB.
"""
import os
import re

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import volume
from jaxkd.data.formats import checks, csv_table
from jaxkd.data.source import Case, Source
from jaxkd.data.sources import fumpe
from jaxkd.data.sources.shared import embolism, loading_errors

DEFAULTS = dict(
    root='',  # the folder of the data set
    table='train.csv',  # name of the table of slices
    images='train',  # the folder of exams below root
    missing='fail',  # exams of the table without a folder: fail, or skip, which leaves them out unread
    exclude=(),  # StudyInstanceUIDs of exams to leave out
    on_error='fail',  # at bad exams: fail (stop) or skip (read all once at the start and leave the bad ones out)
    max_voxels=2**28,  # most voxels of a scan; a larger one is refused
)

_COLUMNS = ('StudyInstanceUID', 'SeriesInstanceUID', 'SOPInstanceUID', 'pe_present_on_image', 'negative_exam_for_pe',
            'indeterminate')

Exam = tuple[str, int, int, frozenset[str]]  # series, pe, number of slices, those with an embolus


def build(hp: ConfigDict) -> Source:
    """An `embolism.Scans` of ctpa and label."""
    loading_errors.check_options('rspect', hp, missing=('fail', 'skip'))
    loading_errors.check_root('rspect', hp.root, hp.table)
    path = csv_table.find_file(hp.root, hp.table)
    exams = {study: exam for study, exam in read(path).items() if study not in hp.exclude}
    if hp.missing == 'skip':
        present = {*os.listdir(folder)} if os.path.isdir(folder := os.path.join(hp.root, hp.images)) else set()
        exams = {study: exam for study, exam in exams.items() if study in present}
    rows, skipped = loading_errors.collect(exams, lambda study: _case(hp, study, exams[study], path), hp.on_error, str)
    source = embolism.scans(hp, 'rspect', rows, skipped, load, None,
                             note=f'no masks, only labels of slices and exams; {fumpe.NOTE}')
    return embolism.complete(source, hp.on_error, path)


def load(source: embolism.Scans, i: int) -> dict[str, volume.Volume]:
    """{'ctpa', 'label'} on one grid. BadData for slices that the table does not tell of."""
    ctpa, folder = source.read(i, 'ctpa'), source.path(i, 'ctpa')
    count, positive = source.facts[i]
    ranks = {re.sub(r'(?i)\.dcm$', '', name): rank for name, rank in embolism.slices(folder).items()}
    shape = volume.stored(ctpa.voxels, ctpa.file_affine).shape  # one number a slice: a view takes no memory
    if not len(ranks) == shape[2] == count or not positive <= ranks.keys():
        raise checks.bad(folder, f'it holds {len(ranks)} files of {shape[2]} slices, the table {count} of this series, '
                                 f'{len(positive - ranks.keys())} of them with an embolus and without a file',
                         'Copy the series again or exclude the study')
    values = np.zeros(count, np.uint8)
    values[[ranks[name] for name in positive]] = 255
    return {'ctpa': ctpa, 'label': volume.turned(np.broadcast_to(values, shape), ctpa.file_affine, folder)}


def read(path: str) -> dict[str, Exam]:
    """{study: (series, pe, number of slices, frozenset of the slices with an embolus)} of a table, read row by row."""
    positive: dict[str, list[str]] = {}
    exams: dict[str, list] = {}
    for number, (study, series, slice_, *cells) in csv_table.iterate(path, _COLUMNS):
        present, negative, indeterminate = values = [csv_table.label(cell) for cell in cells]
        for column, value in zip(_COLUMNS[3:], values):
            if value not in (0, 1):
                raise errors.BadData(f'{path}, row {number}: column "{column}" is neither 0 nor 1. Correct it.')
        labels = series, negative, indeterminate
        exam = exams.setdefault(study, [labels, 0])
        exam[1] += 1
        if exam[0] != labels:
            raise errors.BadData(f'{path}, row {number}: its study has another series or other exam labels in an '
                                 'earlier row. Keep one series a study.')
        if present:
            positive.setdefault(study, []).append(slice_)
    return {study: (series, _pe(path, study, negative, indeterminate, study in positive), count,
                    frozenset(positive.get(study, ())))
            for study, ((series, negative, indeterminate), count) in exams.items()}


def _pe(path: str, study: str, negative: float, indeterminate: float, has_embolus: bool) -> int:
    """1, 0, or -1 for an exam, of labels 0 and 1; BadData where they contradict one another."""
    if negative and (indeterminate or has_embolus):
        raise errors.BadData(f'{path}: study {study} has negative_exam_for_pe = {negative:g}, indeterminate = '
                             f'{indeterminate:g} and slices {"with" if has_embolus else "without"} an embolus, which '
                             'cannot be. Correct its rows, or leave them out.')
    return -1 if indeterminate else 1 - int(negative)


def _case(hp: ConfigDict, study: str, exam: Exam, path: str) -> embolism.Row:
    """(Case, pe, files, facts) of an exam."""
    series, pe, count, positive = exam
    folder = f'{hp.images}/{study}/{series}'
    csv_table.check_inside(hp.root, folder)
    if not os.path.isdir(os.path.join(hp.root, folder)):
        raise errors.MissingInput(f'Case {study}: {os.path.join(hp.root, folder)} does not exist, though {path} names '
                                  "it. Copy it there, or set missing='skip'.")
    return Case(study, study), pe, {'ctpa': folder}, (count, positive)
