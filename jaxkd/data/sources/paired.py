"""Volumes of your own: one modality in every case (CT), further modalities in some (MRI), one table of cases.

cases.csv, one row for each case, in any order of columns:
    case_id      the folder of the case, relative to the root
    patient_id   cases of a patient are in one part of the split
    cls          the main class: its name in `labels`, or its index. Without `labels` the classes are the names in this
                 column, in alphabetical order, or its numbers 0, 1, ..., called class 0, class 1, ...
    <task>       for each of `tasks`: a name in its `classes`, an index, or -1 or empty for unknown
    center       optional: the hospital, for data.split.leave_out; without the column no case has such a group
    split        optional: train, val, test, or empty for "to be drawn"
    any others   `groups` for subgroup tables, or unused

<case_id>/<modality>.nii.gz, or .nii, .nrrd, .dcm (many frames), or a folder <modality> of one DICOM series; likewise
roi_<modality>, also .seg.nrrd, a mask of the lesion (0 and 1, or 0 and 255) on any grid, or .dcm, an RTSTRUCT with
contours on the slices of that series; its centroid is record['centre'][modality]. Files are looked up, in any letter
case, and masks are read once, at the start; the log says what lies there unused. The first modality must be there in
every case; its masks in all cases or in none, since crops around lesions and crops around nothing do not compare.

A table of the prior P(class | signs), DIR/prior.csv, is read by the transform `prior` only, with
--config.data.prior.file=DIR/prior.csv. Without it the prior is estimated on the training part.

on_error='fail' reads volumes when a case is read and stops at the first bad one. 'skip' reads every volume once at the
start, leaves bad cases out and lists them in `skipped`, so that the order of cases is fixed before training.
"""
import collections
import concurrent.futures
import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import SourcePlugin
from jaxkd.data import fields_of_view, mask_values, volume
from jaxkd.data.formats import csv_table, pet, rtstruct
from jaxkd.data.formats.rtstruct import Contours
from jaxkd.data.source import MISSING, Case, Source
from jaxkd.data.sources.shared import case_files, loading_errors
from jaxkd.data.sources.shared.loading_errors import FileSource
from jaxkd.runtime import log

DEFAULTS = dict(
    root='',  # the folder of the table and the folders of cases
    table='cases.csv',  # name of the table of cases
    modalities=('ct', 't1', 't2'),  # names of files; the first is required
    labels=(),  # names of the main classes, in the order of their indices; (): those of the table
    tasks=('texture', 'duct'),  # columns of auxiliary labels; (): none
    classes=(('cystic', 'mixed', 'solid'), ('normal', 'dilated', 'cut_off')),  # names of the classes of each task, a
    # tuple for each
    groups=(),  # columns for subgroup tables, such as subgroup and size, beside class and center
    allow_ids=(),  # patient ids that look like none, such as 'NA', and are ids
    roi='roi_{}',  # name of a modality's mask, {} for the modality; '': none
    region='',  # of a mask that is an RTSTRUCT: the name of its region; '': the only one
    on_error='fail',  # at bad volumes: fail (stop) or skip (read all once at the start and leave the bad ones out)
    nifti_form='auto',  # which affine of NIfTI files holds: sform, qform, or auto (refuse a file whose two disagree)
    pet_units='',  # of PET in DICOM: '' as stored; suv makes Bq/ml SUV by body weight
    max_voxels=2**28,  # most voxels of a scan; a larger one is refused
)

_OWN = ('case_id', 'patient_id', 'cls', 'center', 'split')


@dataclasses.dataclass
class Paired(FileSource):
    """A source of volumes (see jaxkd/data/source.py); `without` and `usable` serve other sources of volumes."""

    root: str
    name: str
    labels: tuple
    tasks: dict = dataclasses.field()  # task -> its class names
    cases: tuple
    targets: dict = dataclasses.field()  # 'label' and each task -> int32 [n]; -1 unknown
    files: tuple  # for each case {modality: path relative to the root}; absent: this case lacks it
    rois: tuple  # for each case {modality: path of its mask, or rtstruct.Contours with such paths}
    max_voxels: int
    field: tuple = ()  # see the transform `volume`; () does not limit
    skipped: tuple = ()
    note: str = ''
    nifti_form: str = 'auto'
    pet_units: str = ''
    per_case = ('targets', 'files', 'rois')

    def __getitem__(self, i: int) -> dict[str, Any]:
        masks = {path: self.mask(path) for path in {*self.rois[i].values()}}  # modalities on one grid share a mask
        centres = {path: centroid(mask, str(path)) for path, mask in masks.items()}
        record: dict[str, Any] = {key: self._read(path) for key, path in self.files[i].items()}
        for key, path in self.rois[i].items():
            fields_of_view.check(masks[path], str(path), record[key], self.files[i][key])
        record.update({name: values[i] for name, values in self.targets.items()}, case=self.cases[i].id)
        if centres:
            record['centre'] = {key: centres[path] for key, path in self.rois[i].items()}
        return record | ({'field': self.field} if self.field else {})

    def paths(self, i: int) -> tuple[str, ...]:
        masks = map(rtstruct.path_of, self.rois[i].values())
        paths = dict.fromkeys((*self.files[i].values(), *masks))  # modalities may share a mask
        return tuple(os.path.join(self.root, path) for path in paths)

    def crop_regions(self, i: int) -> dict[str, volume.Volume]:
        masks = {path: self.mask(path) for path in {*self.rois[i].values()}}
        return {key: masks[path] for key, path in self.rois[i].items()}

    def mask(self, path: str | Contours) -> volume.Volume:
        """The mask of one structure, bool."""
        mask = self._read(path)
        return dataclasses.replace(mask, voxels=mask_values.binary(mask.voxels, str(path)))

    def check_masks(self, i: int) -> list[fields_of_view.Outside]:
        """What lies outside of its scan of each mask, a scan of DICOM left out. BadData for a mask without a meaning,
        and for one that is elsewhere.
        """
        counts = []
        for key, path in self.rois[i].items():
            mask = self.mask(path)
            centroid(mask, str(path))
            file = csv_table.resolve(self.root, self.files[i][key])
            if (scan := volume.read_grid(file, self.nifti_form)) is not None:
                fields_of_view.check(mask, str(path), scan, self.files[i][key])
                counts.append(fields_of_view.outside(mask, str(path), scan))
        return counts

    def _read(self, path: str | Contours) -> volume.Volume:
        if isinstance(path, Contours):
            file, series = (csv_table.resolve(self.root, name) for name in (path.path, path.series))
            return volume.read_contours(Contours(file, path.region, series), self.max_voxels)
        return volume.read(csv_table.resolve(self.root, path), self.max_voxels, self.nifti_form, self.pet_units)


def build(hp: ConfigDict) -> Source:
    _check(hp)
    path = csv_table.find_file(hp.root, hp.table)
    columns, rows = csv_table.read(path, ('case_id', 'patient_id', 'cls', *hp.groups))
    if lacking := [task for task in hp.tasks if task not in columns]:
        raise errors.BadData(
            f'{path} has no column "{lacking[0]}", which tasks of the source names.'
            f'{errors.nearest(lacking[0], columns)} Add it, or name the columns that are there; without any: '
            '--config.data.source.tasks= --config.data.source.classes=, of configs/cpkd_ct_mri.py the variant '
            ':folder,no_tasks.')
    case_column, class_column = columns.index('case_id'), columns.index('cls')
    labels = tuple(hp.labels) or _class_names(path, [cells[class_column] for _, cells in rows])
    parse = _Rows(path, hp, columns, labels)
    if hp.on_error == 'fail':
        patient = columns.index('patient_id')
        csv_table.check_patients(path, 'patient_id', [(n, cells[patient]) for n, cells in rows], hp.allow_ids)
    loading_errors.log_columns(path, columns, ('cls', *hp.tasks), (*_OWN, *hp.groups))
    parsed, skipped = loading_errors.collect(rows, lambda row: parse(*row), hp.on_error,
                                             lambda row: row[1][case_column])
    cases, values, files, rois = zip(*parsed) if parsed else ((),) * 4
    array = np.array(values, np.int32).reshape(-1, 1 + len(hp.tasks))
    source = Paired(hp.root, 'paired', labels, dict(zip(hp.tasks, map(tuple, hp.classes))), cases,
                    dict(zip(('label', *hp.tasks), np.ascontiguousarray(array.T))), files, rois, hp.max_voxels,
                    skipped=skipped, nifti_form=hp.nifti_form, pet_units=hp.pet_units)
    used = [hp.table, 'prior.csv', *(rtstruct.path_of(path) for files in (*source.files, *source.rois)
                                     for path in files.values())]
    case_files.report_unused('paired', hp.root, used, ', '.join(
        f'{name}.nii.gz' for m in hp.modalities for name in ((m, hp.roi.format(m)) if hp.roi else (m,))))
    _check_pet(source)
    return loading_errors.usable(with_masks(_same_rois(source, hp), hp.on_error), hp.on_error, path)


def centroid(mask: volume.Volume, path: str) -> np.ndarray:
    """(x, y, z) mm of the middle of a mask, a Volume of bool."""
    # Sums along axes: a list of a million voxel positions would be a hundred times the mask.
    foreground = mask.voxels
    size = np.count_nonzero(foreground)
    if not size:
        raise errors.BadData(f'{path} is an empty mask. Draw the lesion, or remove the file.')
    index = [np.arange(n) @ np.count_nonzero(foreground, axis=tuple({0, 1, 2} - {axis})) / size
             for axis, n in enumerate(foreground.shape)]
    return volume.world(mask.affine, index)


def _class_names(path: str, cells: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes in a column. BadData where they are fewer than two, or ambiguous."""
    counts = collections.Counter(cell for cell in cells if cell.lower() not in MISSING)
    names = sorted(counts)
    numbers = {name: float(name) for name in names if re.fullmatch(r'[+-]?\d+(?:\.0*)?', name)}
    problem = ''
    if numbers and len(numbers) < len(names):
        problem = 'mixes numbers and names'
    elif numbers and sorted({*numbers.values()}) != [*range(len({*numbers.values()}))]:
        problem = 'does not count 0, 1, 2, ... without a gap'
    elif len({name.lower() for name in names}) < len(names):
        problem = 'spells a class in several ways'
    elif len({*numbers.values()} or names) < 2:
        problem = 'has fewer than two classes'
    if problem:
        raise errors.BadData(f'{path}: column "cls" {problem} ({", ".join(names[:8])}). Correct it, or name the '
                             'classes in labels, in the order of their numbers.')
    labels = [f'class {i}' for i in range(len({*numbers.values()}))] or names
    counted = ', '.join(f'{name} ({counts[name]:,})' for name in names)
    log.info(f'{path}: classes are {", ".join(labels)}, in the table {counted}')
    return tuple(labels)


class _Rows:
    """Turns a row into (Case, class indices, files, masks), and checks that cases are unique."""

    def __init__(self, path: str, hp: ConfigDict, columns: list[str], labels: Sequence[str]) -> None:
        self.path, self.hp = path, hp
        self.folders: set[str] = set()
        self.columns_by_name = {name: columns.index(name) for name in (*_OWN, *hp.tasks, *hp.groups) if name in columns}
        self.classes = dict(zip(('cls', *hp.tasks), (labels, *hp.classes)))

    def __call__(self, number: int, cells: list[str]
                 ) -> tuple[Case, list[int], dict[str, str], dict[str, str | Contours]]:
        row = {name: cells[j] for name, j in self.columns_by_name.items()}
        row |= {name: csv_table.text(row[name]) for name in ('center', 'split', *self.hp.groups) if name in row}
        case, split = row['case_id'], row.get('split', '')
        csv_table.check_case(self.path, number, self.hp.root, row, self.folders, self.hp.allow_ids)
        values = [self.index(number, case, name, row[name]) for name in self.classes]
        files, rois = self.files(case)
        groups = {'class': self.classes['cls'][values[0]], **({'center': row['center']} if 'center' in row else {}),
                  **{name: row[name] for name in self.hp.groups}}
        return Case(case, row['patient_id'], split=split, groups=groups), values, files, rois

    def index(self, number: int, case: str, name: str, cell: str) -> int:
        """Class index of a cell."""
        names = self.classes[name]
        index = csv_table.class_index(cell, names)
        if index is None and name != 'cls' and csv_table.label(cell) not in (None, 0, 1):  # -1 or nan
            return -1
        if index is None:
            unknown = '' if name == 'cls' else ', or -1 or empty for unknown'
            raise self.error(number, name, f'of case {case} is not one of {", ".join(names)}, nor an index 0 to '
                             f'{len(names) - 1}{unknown}. Correct it')
        return index

    def files(self, case: str) -> tuple[dict[str, str], dict[str, str | Contours]]:
        """({modality: path}, {modality: path of its mask}) of what the folder of a case holds."""
        folder = os.path.join(self.hp.root, case)
        try:
            names = set(os.listdir(folder))
        except OSError as e:
            raise errors.MissingInput(f'Case {case}: {folder} is not a folder that can be read. Put its volumes there '
                                      f'or remove its row from {self.path}.') from e
        file_names = {m: case_files.locate(names, m, folder) for m in self.hp.modalities}
        first = self.hp.modalities[0]
        if not file_names[first]:
            raise errors.MissingInput(f'Case {case}: {folder} has no {first}.nii.gz, .nii, .nrrd or .dcm, and no '
                                      f'DICOM folder {first}. Add it or remove the row from {self.path}.')
        masked = [m for m in self.hp.modalities if self.hp.roi and file_names[m]]
        rois = {m: case_files.locate(names, self.hp.roi.format(m), folder) for m in masked}
        files, masks = ({m: f'{case}/{name}' for m, name in names.items() if name} for names in (file_names, rois))
        return files, {m: self.mask(case, path, files[m]) for m, path in masks.items()}

    def mask(self, case: str, path: str, series: str) -> str | Contours:
        """A mask by its path: of an RTSTRUCT the region that the options name, or the only one."""
        if not path.lower().endswith('.dcm'):
            return path
        names = rtstruct.regions(os.path.join(self.hp.root, path))[0]
        matches = [name for name in names if self.hp.region in ('', name)]
        if len(matches) != 1:
            raise errors.BadData(f'Case {case}: {path} draws {", ".join(names) or "nothing"}. Set region of the source '
                                 'to one of them.')
        return Contours(path, matches[0], series)

    def error(self, number: int, column: str, problem: str) -> errors.BadData:
        return errors.BadData(f'{self.path}, row {number}: column "{column}" {problem}.')


def _same_rois(source: Paired, hp: ConfigDict) -> Paired:
    """The source, in which all cases have a mask of the first modality, or none has."""
    first = hp.modalities[0]
    without_roi = [i for i, rois in enumerate(source.rois) if first not in rois]
    if len(without_roi) in (0, len(source)):
        return source
    reason = 'Case {} has no mask {}, which other cases have. Draw it, or set roi="" to use none.'
    bad = {i: reason.format(source.cases[i].id, hp.roi.format(first)) for i in without_roi}
    if hp.on_error == 'fail':
        raise errors.MissingInput(bad[without_roi[0]])
    return source.without(bad)


def with_masks(source: Paired, on_error: str) -> Paired:
    """The source after a look at all masks: one without a meaning, or elsewhere, is found before training."""
    def counts_or_error(i: int) -> list[fields_of_view.Outside] | errors.JaxkdError:
        try:
            return source.check_masks(i)
        except (errors.BadData, errors.MissingInput) as e:
            if on_error == 'fail':
                raise
            return e
    masked = [i for i, rois in enumerate(source.rois) if rois]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # a mask or two in memory
        results = [*log.progress(pool.map(counts_or_error, masked), f'{source.name}: reading masks', len(masked))]
    if line := fields_of_view.describe([count for found in results if isinstance(found, list) for count in found]):
        log.info(f'{source.name}: {line}')
    return source.without({i: str(e) for i, e in zip(masked, results) if isinstance(e, Exception)})


def _check_pet(source: Paired) -> None:
    """ConfigError where SUV are asked for and no file is DICOM; a line about other files, whose units nobody knows."""
    files = [path for paths in source.files for path in paths.values()]
    others = [path for path in files if path.lower().endswith(('.nii', '.nii.gz', '.nrrd'))]
    if source.pet_units and len(others) == len(files):
        raise errors.ConfigError('paired: pet_units = "suv" reads headers of DICOM, and no case has DICOM. Unset it.')
    if source.pet_units and others:
        log.info(f'paired: pet_units = "suv" changes PET in DICOM alone; {len(others)} of {len(files)} volumes, such '
                 f'as {others[0]}, are not DICOM and stay as they are')


def _check(hp: ConfigDict) -> None:
    names = (*hp.modalities, *hp.tasks, 'label', 'case', 'centre', 'field')
    if not hp.modalities or len({*names}) < len(names):
        raise errors.ConfigError(f'paired: modalities {tuple(hp.modalities)} and tasks {tuple(hp.tasks)} must differ, '
                                 'and be none of label, case, centre, field.')
    lists = (*([hp.labels] if hp.labels else []), *hp.classes)
    if len(hp.tasks) != len(hp.classes) or any(isinstance(names, str) or len(names) < 2 for names in lists):
        raise errors.ConfigError(f'paired: labels and each of the {len(hp.tasks)} tasks need a tuple of two class '
                                 'names or more; classes holds one tuple for each task.')
    if any(len({*names}) < len(names) for names in lists):
        raise errors.ConfigError('paired: a class name comes twice in labels or in a tuple of classes.')
    if hp.roi and '{}' not in hp.roi:
        raise errors.ConfigError(f'paired.roi = "{hp.roi}" needs {{}} where the modality stands, as in "roi_{{}}".')
    loading_errors.check_options('paired', hp, pet_units=pet.UNITS)
    loading_errors.check_root('paired', hp.root, hp.table)


PLUGIN = SourcePlugin(case_count=csv_table.count)
