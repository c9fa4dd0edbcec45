"""Sources of CT with pulmonary emboli: a table of cases and files, and masks of emboli."""
import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import mask_values, volume
from jaxkd.data.formats import checks, csv_table, dicom
from jaxkd.data.source import IGNORED, Case
from jaxkd.data.sources.shared import loading_errors
from jaxkd.data.sources.shared.loading_errors import FileSource
from jaxkd.runtime import log

LABELS = ('background', 'embolus')
TASKS = {'pe': ('absent', 'present')}
Row = tuple[Case, int | None, dict[str, str], Any]  # case, pe (None: read from the mask), files, facts for `load`
_GROUPS = {-1: 'unknown', 0: 'absent', 1: 'present'}


@dataclasses.dataclass
class Scans(FileSource):
    """A source of volumes with an embolus mask (see jaxkd/data/source.py).

    load(source, i) returns the Volumes of case i by name and read_mask(source, i) its label alone, or None: functions
    of a module, since sources pickle. pe: 1, 0, -1 unknown; until `complete` also None: to be read from the mask.
    """

    root: str
    name: str
    cases: tuple
    pe: tuple
    files: tuple  # for each case {key: path relative to the root}
    load: Any
    read_mask: Any
    max_voxels: int
    options: dict = dataclasses.field(default_factory=dict)  # options of `load`
    facts: tuple = ()  # for each case, further values for `load`
    skipped: tuple = ()
    note: str = ''
    nifti_form: str = 'auto'
    read_second: Any = None  # as read_mask, of a second reader
    labels: tuple = LABELS
    tasks: dict = dataclasses.field(default_factory=lambda: dict(TASKS))
    per_case = ('pe', 'files', 'facts')

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {**self.load(self, i), 'pe': np.int32(self.pe[i]), 'case': self.cases[i].id}

    def second_reader(self, i: int) -> volume.Volume | None:
        """The label of case i by a second reader, or None."""
        return self.read_second(self, i) if self.read_second else None

    def __post_init__(self) -> None:
        self.targets = {'pe': np.array([-1 if pe is None else pe for pe in self.pe], np.int32)}

    def paths(self, i: int) -> tuple[str, ...]:
        return tuple(os.path.join(self.root, path) for path in self.files[i].values())

    def path(self, i: int, key: str) -> str:
        return csv_table.resolve(self.root, self.files[i][key])

    def read(self, i: int, key: str) -> volume.Volume:
        return volume.read(self.path(i, key), self.max_voxels, self.nifti_form)


def scans(hp: ConfigDict, name: str, rows: Sequence[Row], skipped: tuple[tuple[str, str], ...],
          load: Callable[[Scans, int], dict], read_mask: Callable[[Scans, int], volume.Volume | None] | None,
          options: Mapping[str, Any] | None = None, note: str = '') -> Scans:
    """Scans of a list of (Case, pe, files, facts)."""
    cases, pe, files, facts = zip(*rows) if rows else ((),) * 4
    return Scans(hp.root, name, cases, pe, files, load, read_mask, hp.max_voxels, dict(options or {}), facts, skipped,
                 note, hp.get('nifti_form', 'auto'))


def complete(source: Scans, on_error: str, path: str) -> Scans:
    """The source with pe read from the masks where it is None, pe as a group, and (for 'skip') cases that load."""
    unknown = [i for i, pe in enumerate(source.pe) if pe is None]
    bad = {}

    def has_embolus(i: int) -> int:
        try:
            mask = source.read_mask(source, i)
        except (errors.BadData, errors.MissingInput) as e:
            if on_error == 'fail':
                raise
            bad[i] = str(e)
            return -1
        return -1 if mask is None else int(((mask.voxels > 0) & (mask.voxels != IGNORED)).any())
    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # a mask or two in memory
        answers = log.progress(pool.map(has_embolus, unknown), f'{source.name}: reading masks', len(unknown))
        pe_of_masks = dict(zip(unknown, answers))
    pe = tuple(pe_of_masks.get(i, code) for i, code in enumerate(source.pe))
    cases = tuple(dataclasses.replace(case, groups={'pe': _GROUPS[code], **case.groups})
                  for case, code in zip(source.cases, pe))
    source = dataclasses.replace(source, pe=pe, cases=cases)
    return loading_errors.usable(source.without(bad), on_error, path)


def list_files(hp: ConfigDict, source_name: str, folder: str, folders: bool = False) -> list[str]:
    """Sorted names of the files (or folders) in a folder of the root, without hidden ones and those of hp.exclude."""
    loading_errors.check_options(source_name, hp)
    try:
        names = sorted(os.listdir(os.path.join(hp.root, folder)))
    except OSError as e:
        raise errors.MissingInput(f'{source_name}: {os.path.join(hp.root, folder)} is not a folder that can be read. '
                                  f'Set root to the one that holds {folder}.') from e
    is_kind = os.path.isdir if folders else os.path.isfile
    return [name for name in names if not name.startswith('.') and name.partition('.')[0] not in hp.exclude
            and is_kind(os.path.join(hp.root, folder, name))]


def read_mask(source: Scans, i: int) -> volume.Volume:
    """The mask of case i as it was saved. BadData unless it holds whole numbers from 0."""
    mask = source.read(i, 'label')
    mask_values.numbered(mask.voxels, source.path(i, 'label'))
    return mask


def mask_file(hp: ConfigDict, case: str, name: str) -> str:
    """The path of a mask relative to the root. MissingInput where it does not exist."""
    path = f'{hp.masks}/{name}'
    if not os.path.isfile(os.path.join(hp.root, path)):
        raise errors.MissingInput(f'Case {case}: {os.path.join(hp.root, path)} does not exist. Copy it there or '
                                  'exclude the case.')
    return path


def slices(folder: str) -> dict[str, int]:
    """{file name: index of its slice} of a DICOM series, in order of names; indices as `stored` has its slices."""
    import pydicom
    names = dicom.file_names(folder)
    heights = []
    for name in names:
        path = os.path.join(folder, name)
        with checks.reading(path):
            d = pydicom.dcmread(path, stop_before_pixels=True,
                                specific_tags=['ImagePositionPatient', 'ImageOrientationPatient'])
            normal = np.cross(*np.array(d.ImageOrientationPatient, float).reshape(2, 3))
            heights.append(float(normal @ np.array(d.ImagePositionPatient, float)))
    order = np.argsort(heights, kind='stable')
    return {names[i]: rank for rank, i in sorted(enumerate(order.tolist()), key=lambda pair: pair[1])}
