"""ISIC 2017, part 3: dermoscopic images of melanoma, seborrheic keratosis and nevi (Codella et al., ISBI 2018).

    root/ISIC-2017_{Training,Validation,Test_v2}_Data/ISIC_0000000.jpg      *_superpixels.png beside them is not read
    root/ISIC-2017_{Training,Validation,Test_v2}_Part3_GroundTruth.csv      image_id, melanoma, seborrheic_keratosis:
    0.0 or 1.0
    ISIC-2017_*_Data_metadata.csv, in root or beside the images, optional   image_id, age_approximate, sex, or 'unknown'

2,000, 150 and 600 images, in the parts of the challenge. Both labels 0 is a nevus. Patients are not identified: each
image counts as one patient, so intervals may be too narrow, and parts of a newly drawn split may share patients.

Groups: diagnosis (melanoma, seborrheic_keratosis, nevus), sex, age (see jaxkd/data/sources/shared/age_groups.py).
"""
import dataclasses
import os
import re
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data.formats import csv_table, image
from jaxkd.data.source import Case, Source
from jaxkd.data.sources.shared import age_groups, loading_errors
from jaxkd.data.sources.shared.loading_errors import FileSource

LABELS = ('melanoma', 'seborrheic_keratosis')
FOLDERS = {'train': 'ISIC-2017_Training', 'val': 'ISIC-2017_Validation', 'test': 'ISIC-2017_Test_v2'}
DEFAULTS = dict(
    root='',  # the folder of the tables and folders of images
    parts=('train', 'val', 'test'),  # parts of the challenge that are read: some of these
    on_error='fail',  # at bad images: fail (stop) or skip (read all once at the start and leave the bad ones out)
    max_pixels=image.MAX_PIXELS,  # most pixels of an image; a larger one is refused
)

_ID = re.compile(r'ISIC_\d{7}')


@dataclasses.dataclass
class Isic2017(FileSource):
    """A source of images (see jaxkd/data/source.py)."""

    root: str
    cases: tuple
    values: np.ndarray = dataclasses.field()  # float32 [n,2]
    max_pixels: int
    skipped: tuple = ()
    labels: tuple = LABELS
    name: str = 'isic2017'
    note: str = 'patients are not known: each image counts as one, so intervals may be too narrow'
    per_case = ('values',)

    def __getitem__(self, i: int) -> dict[str, Any]:
        pixels = image.read(csv_table.resolve(self.root, self._file(i)), self.max_pixels)
        if pixels.ndim != 3:
            raise errors.BadData(f'{self._file(i)} is grey, and dermoscopic images are coloured. Copy it again from '
                                 'where it came.')
        return dict(image=pixels, text='', label=self.values[i].copy(), boxes=np.zeros((0, 5), np.float32))

    def paths(self, i: int) -> tuple[str, ...]:
        return (os.path.join(self.root, self._file(i)),)

    def _file(self, i: int) -> str:
        return f'{FOLDERS[self.cases[i].split]}_Data/{self.cases[i].id}.jpg'


def build(hp: ConfigDict) -> Source:
    loading_errors.check_options('isic2017', hp)
    if not hp.parts or len({*hp.parts}) < len(hp.parts) or not {*hp.parts} <= {*FOLDERS}:
        raise errors.ConfigError(f'isic2017: parts = {tuple(hp.parts)} must name some of {", ".join(FOLDERS)}, each '
                                 'once.')
    loading_errors.check_root('isic2017', hp.root, f'{FOLDERS["train"]}_Part3_GroundTruth.csv')
    cases, values, ids = [], [], set()
    problems = loading_errors.Problems(hp.on_error)
    for part in hp.parts:
        path = csv_table.find_file(hp.root, f'{FOLDERS[part]}_Part3_GroundTruth.csv')
        columns, rows = csv_table.read(path, ('image_id', *LABELS))
        metadata = _metadata(hp.root, FOLDERS[part])
        for number, cells in rows:
            row = dict(zip(columns, cells))
            name, targets = row['image_id'], [csv_table.label(row[label]) for label in LABELS]
            problem = ('image_id is not ISIC_ and seven digits' if not _ID.fullmatch(name) else
                     f'{name} stands there a second time, or in another part' if name in ids else
                     f'{", ".join(LABELS)} of {name} must be 0.0 or 1.0, and not both 1.0'
                     if not {*targets} <= {0, 1} or targets.count(1) > 1 else '')
            if problem:
                problems(f'{part}, row {number}', f'{path}, row {number}: {problem}. Restore the table.')
                continue
            ids.add(name)
            diagnosis = LABELS[targets.index(1.0)] if 1.0 in targets else 'nevus'
            cases.append(Case(name, name, split=part, groups={'diagnosis': diagnosis, **metadata.get(name, {})}))
            values.append(targets)
    array = np.array(values, np.float32).reshape(-1, len(LABELS))
    source = Isic2017(hp.root, tuple(cases), array, hp.max_pixels, tuple(problems.skipped))
    return loading_errors.usable(source, hp.on_error, f'isic2017: {hp.root}')


def _metadata(root: str, stem: str) -> dict[str, dict[str, str]]:
    """{image id: groups} of the metadata of a part; {} where there are none."""
    candidates = [os.path.join(root, *folder, f'{stem}_Data_metadata.csv') for folder in ((), (f'{stem}_Data',))]
    path = next((p for p in candidates if os.path.lexists(p)), None)
    if path is None:
        return {}
    columns, rows = csv_table.read(path, ('image_id', 'age_approximate', 'sex'))
    metadata = {}
    for number, cells in rows:
        row = dict(zip(columns, cells))
        if row['image_id'] in metadata:
            raise errors.BadData(f'{path}, row {number}: {row["image_id"]} stands there a second time. Restore the '
                                 'table.')
        try:
            years = age_groups.group(row['age_approximate'])
        except ValueError:
            raise errors.BadData(f'{path}, row {number}: column "age_approximate" is neither a number of years nor '
                                 'unknown. Restore the table.') from None
        metadata[row['image_id']] = {'sex': '' if row['sex'] == 'unknown' else row['sex'], 'age': years}
    return metadata
