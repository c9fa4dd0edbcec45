"""Images of your own: a folder of images, one table of cases, optionally one table of boxes.

cases.csv, one row for each image, in any order of columns:
    patient_id   images of a patient are in one part of the split
    image        PNG, JPEG, BMP, TIFF or DICOM, relative to the root; this is also the case id
    text         the report, or text_file, a UTF-8 file relative to the root
    study_id     optional: images of a study share their report
    split        optional: train, val, test, or empty for "to be drawn"
    any others   labels (1 present, 0 absent, -1 uncertain, empty not mentioned; also 1.00, True, yes and the like),
                 groups such as the view, findings for a teacher that reads a table, or unused

boxes.csv, one row for each box, optional:
    image, label (a label column, or empty: tied to none), x, y, w, h in pixels of that image

Label columns are those of `labels`. With an empty list, each column with a 1, 0 or -1 in any row, and each whose
cells are mostly True and False or yes and no; then all its cells must be such values or empty, so that a mistyped label
is an error. The log names the labels, and the columns that are not used.

on_error='fail' reads an image when its case is read and stops at the first bad one. 'skip' reads every image
once at the start, leaves bad cases out and lists them in `skipped`, so that the order of cases is fixed
before training.
"""
import dataclasses
import os
import posixpath
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import SourcePlugin
from jaxkd.data import splits
from jaxkd.data.formats import csv_table, image
from jaxkd.data.source import MISSING, NOBODY, Case, Source
from jaxkd.data.sources.shared import case_files, image_archive, loading_errors

DEFAULTS = dict(
    root='',  # the folder that holds the tables and the images
    table='cases.csv',  # name of the table of cases
    boxes='boxes.csv',  # name of the table of boxes, which may be absent under this name; '': none
    labels=(),  # label columns; (): all that hold labels
    groups=(),  # columns of the table for subgroup tables
    findings=(),  # columns of the table that a teacher may read, such as measurements: data.table says how; (): none
    allow_ids=(),  # patient ids that look like none, such as 'NA', and are ids
    empty_text='error',  # cases without a report, or a table without reports: error, or ok
    on_error='fail',  # at bad images: fail (stop) or skip (read all once at the start and leave the bad ones out)
    max_pixels=image.MAX_PIXELS,  # most pixels of an image; a larger one is refused
)

_OWN = ('patient_id', 'image', 'text', 'text_file', 'study_id', 'split')


def build(hp: ConfigDict) -> Source:
    loading_errors.check_options('folder', hp, empty_text=('error', 'ok'))
    loading_errors.check_root('folder', hp.root, hp.table)
    path = csv_table.find_file(hp.root, hp.table)
    columns, rows = csv_table.read(path, ('patient_id', 'image'))
    findings = tuple(hp.findings)
    if wrong := [name for name in findings if name in (*hp.labels, *_OWN)]:
        raise errors.ConfigError(f'folder: findings = "{wrong[0]}": that column is a label, or tells patient, image or '
                                 'split. Take it out.')
    at = {name: csv_table.column(path, columns, name) for name in findings}
    labels = tuple(hp.labels) or _label_columns(columns, rows, (*hp.groups, *findings))
    if not labels:
        raise errors.BadData(f'{path} has no label column: none holds 1, 0 or -1.')
    parse = _Rows(path, hp, columns, labels)
    loading_errors.log_columns(path, columns, labels, (*_OWN, *hp.groups, *findings))
    image_column, patient_column = parse.at['image'], parse.at['patient_id']
    ids = {cells[patient_column] for _, cells in rows}
    if hp.on_error == 'fail' and not NOBODY.isdisjoint(map(str.lower, ids)):
        csv_table.check_patients(path, 'patient_id', ((n, cells[patient_column]) for n, cells in rows), hp.allow_ids)
    parsed, skipped = loading_errors.collect(rows, lambda row: parse(*row), hp.on_error,
                                             lambda row: row[1][image_column])
    cases, values, texts = zip(*parsed) if parsed else ((), (), ())
    used = [hp.table, hp.boxes, *(case.id for case in cases), *(texts if parse.text == 'text_file' else ())]
    case_files.report_unused('folder', hp.root, used, f'{hp.table}, {hp.boxes}, and what they name')
    boxes, bad_boxes = _boxes(hp, labels, {cells[image_column] for _, cells in rows})
    reports: Sequence[str] = texts
    if parse.text == 'text_file':
        reports = image_archive.Texts(tuple((hp.root, name) for name in texts), '' if hp.empty_text == 'ok' else
                      'Remove its case, write the report, or set empty_text="ok".')
    source = image_archive.Archive('folder', '', labels, cases, np.array(values, np.float32).reshape(-1, len(labels)),
                     tuple((hp.root, case.id) for case in cases), reports, boxes, max_pixels=hp.max_pixels,
                     skipped=skipped)
    if findings:
        by_image = {cells[image_column]: cells for _, cells in rows}
        source = Described(**vars(source), findings=tuple(
            {name: cell for name, j in at.items() if (cell := csv_table.text(by_image[case.id][j]))} for case in cases))
    if bad_boxes:
        source = source.without({i: bad_boxes[c.id] for i, c in enumerate(cases) if c.id in bad_boxes})
    return loading_errors.usable(source, hp.on_error, path)


@dataclasses.dataclass
class Described(image_archive.Archive):
    """Images with cells of the table that describe them; findings: {column: cell} of each case, without empty cells."""

    findings: tuple = ()
    table_without_image = True
    per_case = (*image_archive.Archive.per_case, 'findings')

    def __getitem__(self, i: int) -> dict[str, Any]:
        return dict(super().__getitem__(i), table=self.table(i), case=self.cases[i].id)

    def table(self, i: int) -> list[dict[str, str]]:
        """One row of findings, or none where all its cells are empty."""
        return [dict(self.findings[i])] if self.findings[i] else []

    def identity(self) -> dict[str, Any]:
        written = {case.id: [*map(': '.join, cells.items())] for case, cells in zip(self.cases, self.findings)}
        return super().identity() | {'findings': written}


class _Rows:
    """Turns a row into (Case, label values, text), and checks that images and studies are unique."""

    def __init__(self, path: str, hp: ConfigDict, columns: list[str], labels: Sequence[str]) -> None:
        self.path, self.root, self.columns, self.groups = path, hp.root, columns, tuple(hp.groups)
        self.at = {name: csv_table.column(path, columns, name) for name in (*labels, *self.groups)}
        self.at.update({name: columns.index(name) for name in _OWN if name in columns})
        self.label_at = [self.at[name] for name in labels]
        self.empty_text, self.allow_ids, self.on_error = hp.empty_text, tuple(hp.allow_ids), hp.on_error
        self.studies: dict[str, tuple[str, str]] = {}
        self.known: dict[str, float | None] = {}  # cell -> label
        self.images: dict[str, str] = {}  # path in lower case -> as it stands in the table
        texts = [name for name in ('text', 'text_file') if name in columns]
        if len(texts) == 2:
            raise errors.BadData(f'{path} has both "text" and "text_file". Keep one.')
        if not texts and hp.empty_text != 'ok':
            raise errors.BadData(f'{path} has neither "text" nor "text_file".{errors.nearest("text", columns)} Without '
                                 'reports, set empty_text="ok".')
        self.text = texts[0] if texts else ''

    def __call__(self, number: int, cells: list[str]) -> tuple[Case, list[float | None], str]:
        index = self.at
        name, patient = cells[index['image']], cells[index['patient_id']]
        study = csv_table.text(cells[index['study_id']]) if 'study_id' in index else ''
        split = csv_table.text(cells[index['split']]) if 'split' in index else ''
        text = csv_table.text(cells[index[self.text]]) if self.text else ''
        if not name:
            raise self.error(number, 'image', 'is empty. Fill it in')
        if self.on_error == 'skip':  # otherwise all rows were checked at once
            csv_table.check_patients(self.path, 'patient_id', [(number, patient)], self.allow_ids)
        self.check_path(number, 'image', name)
        path = posixpath.normpath(name)
        other = self.images.setdefault(path.lower(), path)
        if other is not path and (other == path or csv_table.in_any_case(self.root, path) == csv_table.in_any_case(
                self.root, other)):
            raise self.error(number, 'image', f'names {name} a second time. Keep one of the rows')
        if not text and self.text and (self.empty_text != 'ok' or self.text == 'text_file'):
            raise self.error(number, self.text, f'of case {name} is empty. Remove the row, or '
                             'set empty_text="ok" and give the reports in a column "text"')
        if self.text == 'text_file':
            self.check_path(number, 'text_file', text)
        if study and self.studies.setdefault(study, (patient, text)) != (patient, text):
            raise self.error(number, 'study_id', f'of case {name} is that of another row with another patient or '
                                                 'report. Give each study its own id')
        if split and split not in splits.NAMES:
            raise self.error(number, 'split', f'of case {name} is none of {", ".join(splits.NAMES)} or empty.'
                             f'{errors.nearest(split, splits.NAMES)} Rename it')
        try:
            values = [self.known[cells[j]] for j in self.label_at]
        except KeyError:
            values = [csv_table.label(cells[j]) for j in self.label_at]
            self.known.update((cells[j], value) for j, value in zip(self.label_at, values) if len(self.known) < 1000)
        if None in values:
            raise self.error(number, self.columns[self.label_at[values.index(None)]], f'of case {name} is not 1, 0, -1 '
                             'or empty, nor True, False, yes or no. Correct it, or list the label columns '
                             '(labels=A,B) if this is not one')
        groups = {g: csv_table.text(cells[index[g]]) for g in self.groups}
        return Case(name, patient, study, split, groups), values, text

    def check_path(self, number: int, column: str, name: str) -> None:
        try:
            csv_table.check_inside(self.root, name)
        except errors.BadData as e:
            raise self.error(number, column, f'must not leave the root: {e}') from e

    def error(self, number: int, column: str, problem: str) -> errors.BadData:
        return errors.BadData(f'{self.path}, row {number}: column "{column}" {problem}.')


def _label_columns(columns: list[str], rows: list[tuple[int, list[str]]], groups: Sequence[str]) -> tuple[str, ...]:
    """The columns with a number 1, 0 or -1 in any cell, and those that mostly say true, false, yes or no."""
    def is_label(j: int) -> bool:
        if any(not cells[j].isalpha() and csv_table.label(cells[j]) in (1, 0, -1) for _, cells in rows):
            return True
        filled = [cells[j] for _, cells in rows if cells[j].lower() not in MISSING]
        return 2 * sum(csv_table.label(cell) is not None for cell in filled) > len(filled)
    return tuple(name for j, name in enumerate(columns)
                 if name and name not in _OWN and name not in groups and is_label(j))


def _boxes(hp: ConfigDict, labels: Sequence[str], images: set[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """({image: float32 [n,5]}, {image: reason}); the second is empty unless on_error='skip'."""
    path = csv_table.find_file(hp.root, hp.boxes)
    if not hp.boxes or hp.boxes == DEFAULTS['boxes'] and not os.path.lexists(path):
        return {}, {}
    columns, rows = csv_table.read(path, ('image', 'label', 'x', 'y', 'w', 'h'))
    image_column, label_column, *number_columns = [columns.index(c) for c in ('image', 'label', 'x', 'y', 'w', 'h')]
    index = {'': -1, **{name: j for j, name in enumerate(labels)}}
    bad: dict[str, str] = {}
    boxes: dict[str, list[tuple]] = {}
    for number, cells in rows:
        name, location = cells[image_column], f'{path}, row {number}'
        if name not in images:
            raise errors.BadData(f'{location}: {hp.table} has no image {name}. Write it as it stands there.')
        try:
            x, y, w, h = (float(cells[j]) for j in number_columns)
            valid = x >= 0 and y >= 0 and w > 0 and h > 0 and max(x + w, y + h) < 1e6  # False for nan
        except ValueError:
            valid = False
        reason = ''
        label = csv_table.text(cells[label_column])
        if label not in index:
            reason = f'{location}: column "label" is no label column.{errors.nearest(label, labels)}'
        elif not valid:
            reason = f'{location}: {name} needs numbers x, y >= 0 and w, h > 0. Correct them.'
        if not reason:
            boxes.setdefault(name, []).append((index[label], x, y, w, h))
        elif hp.on_error == 'fail':
            raise errors.BadData(reason)
        else:
            bad.setdefault(name, reason)
    return {name: np.array(rows, np.float32) for name, rows in boxes.items()}, bad


PLUGIN = SourcePlugin(case_count=csv_table.count)
