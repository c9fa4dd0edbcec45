"""What sources of CT with pulmonary emboli share: a table of cases and files, and masks that say who has an embolus."""
import concurrent.futures
import dataclasses
import functools
import os
from typing import Any

import numpy as np

from jaxkd import errors
from jaxkd.data import volume
from jaxkd.data.formats import checks, csv_table
from jaxkd.data.source import IGNORED, Source
from jaxkd.data.sources import paired
from jaxkd.runtime import log

LABELS = ('background', 'embolus')
TASKS = {'pe': ('absent', 'present')}
_GROUPS = {-1: 'unknown', 0: 'absent', 1: 'present'}


@dataclasses.dataclass
class Scans(Source):
    """A source of volumes with an embolus mask (see jaxkd/data/source.py).

    load(source, i) gives the Volumes of case i by name and marked(source, i) its label alone, or None: functions of a
    module, since sources pickle. pe: 1, 0, -1 unknown, and before `build` is through None for "ask the mask".
    """

    root: str
    name: str
    cases: tuple
    pe: tuple
    files: tuple  # for each case {what: path relative to the root}
    load: Any
    marked: Any
    max_voxels: int
    options: dict = dataclasses.field(default_factory=dict)  # what `load` needs to know
    facts: tuple = ()  # for each case, what `load` needs to know of it
    skipped: tuple = ()
    note: str = ''
    labels: tuple = LABELS
    tasks: dict = dataclasses.field(default_factory=lambda: dict(TASKS))

    def __getitem__(self, i):
        return {**self.load(self, i), 'pe': np.int32(self.pe[i]), 'case': self.cases[i].id}

    @functools.cached_property
    def targets(self):
        return {'pe': np.array(self.pe, np.int32)}

    def paths(self, i):
        """The files and DICOM folders of case i, as the store of prepared cases asks for them."""
        return tuple(os.path.join(self.root, path) for path in self.files[i].values())

    def path(self, i, what):
        return csv_table.resolve(self.root, self.files[i][what])

    def read(self, i, what):
        return volume.read(self.path(i, what), self.max_voxels)

    def without(self, bad):
        """The same source less the cases {index: reason}."""
        keep = [i for i in range(len(self)) if i not in bad]
        return dataclasses.replace(
            self, **{name: tuple(values[i] for i in keep) for name, values in (
                ('cases', self.cases), ('pe', self.pe), ('files', self.files), ('facts', self.facts)) if values},
            skipped=self.skipped + tuple((self.cases[i].id, reason) for i, reason in bad.items()))


def gather(items, one, on_error, name):
    """([one(item)], ((name(item), reason), ...)): what went wrong stops, or with on_error='skip' is left out."""
    found, skipped = [], []
    for item in items:
        try:
            found.append(one(item))
        except (errors.BadData, errors.MissingInput) as e:
            if on_error == 'fail':
                raise
            skipped.append((name(item), str(e)))
    return found, tuple(skipped)


def scans(hp, name, found, skipped, load, marked, options=(), note=''):
    """Scans of a list of (Case, pe, files, facts)."""
    cases, pe, files, facts = zip(*found) if found else ((),) * 4
    return Scans(hp.root, name, cases, pe, files, load, marked, hp.max_voxels, dict(options), facts, skipped, note)


def finish(source, on_error, path):
    """The source without cases that do not load (for 'skip'), masks asked where pe is None, pe among the groups."""
    asked = [i for i, pe in enumerate(source.pe) if pe is None]
    bad = {}

    def ask(i):
        try:
            mask = source.marked(source, i)
        except (errors.BadData, errors.MissingInput) as e:
            if on_error == 'fail':
                raise
            bad[i] = str(e)
            return -1
        return -1 if mask is None else int(((mask.voxels > 0) & (mask.voxels != IGNORED)).any())
    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # a mask or two in memory
        answers = dict(zip(asked, log.progress(pool.map(ask, asked), f'{source.name}: looking into masks', len(asked))))
    pe = tuple(answers.get(i, known) for i, known in enumerate(source.pe))
    cases = tuple(dataclasses.replace(case, groups={'pe': _GROUPS[code], **case.groups})
                  for case, code in zip(source.cases, pe))
    source = dataclasses.replace(source, pe=pe, cases=cases)
    return paired.usable(source.without(bad), on_error, path)


def listed(hp, who, folder, folders=False):
    """Sorted names of the files (or folders) in a folder of the root, without hidden ones and those of hp.exclude."""
    if hp.on_error not in ('fail', 'skip'):
        raise errors.ConfigError(f'{who}: on_error = "{hp.on_error}" is none of fail, skip.')
    try:
        names = sorted(os.listdir(os.path.join(hp.root, folder)))
    except OSError as e:
        raise errors.MissingInput(f'{who}: {os.path.join(hp.root, folder)} is not a folder that can be read. Set root to '
                                  f'the one that holds {folder}.') from e
    kind = os.path.isdir if folders else os.path.isfile
    return [name for name in names if not name.startswith('.') and name.partition('.')[0] not in hp.exclude
            and kind(os.path.join(hp.root, folder, name))]


def slices(folder):
    """{file name: index of its slice} of a DICOM series, in order of names; indices as `stored` has its slices."""
    import pydicom
    names = sorted(n for n in os.listdir(folder) if not n.startswith('.') and n != 'DICOMDIR')
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
