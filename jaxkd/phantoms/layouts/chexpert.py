"""CheXpert and CheXlocalize: radiographs of the thorax phantom as JPEG, tables of labels, masks of the tested.

    CheXpert-v1.0-small/{train,valid}.csv, CheXpert-v1.0-small/{train,valid}/patient00001/study1/view1_frontal.jpg
    CheXpert/test_labels.csv, CheXpert/test/patient00101/study1/view1_frontal.jpg,
    CheXlocalize/gt_segmentations_test.json

Labels are those of the reports: 1.0, 0.0, -1.0 and empty; findings that the phantom does not draw are empty. No Finding
is 1.0 where a report states no finding. Sex and age are random and independent of the findings. In CheXlocalize labels
and masks are those of the visible findings.
"""
import json
import os

import numpy as np

from jaxkd import errors
from jaxkd.data.formats import rle
from jaxkd.data.sources import chexpert
from jaxkd.phantoms import encode
from jaxkd.phantoms.thorax import archive
from jaxkd.phantoms.thorax.labeller import LABELS
from jaxkd.runtime import files, log

ARCHIVE, LOCALIZE = 'CheXpert-v1.0-small', 'CheXpert'


def write(folder: str | os.PathLike, patients: int, size: int = 64, seed: int = 0, valid: int = 5,
          difficulty: float = 0.5, localize: int = 0) -> None:
    """Write all images of the patients as JPEG of quality 95, and the tables.

    size: pixels of the square images, 32..1024. valid: of so many patients one is in valid.csv. difficulty: 0 plain ..
    1 faint findings and noise. localize: number of further patients, those of CheXlocalize.
    Raises ConfigError, CannotWrite.
    """
    if valid < 2:
        raise errors.ConfigError(f'thorax: valid={valid} must be at least 2: of so many patients one is in valid.csv.')
    source = archive.build(patients + localize, size, seed, difficulty)
    tables = {part: [','.join(chexpert.HEADER)] for part in ('train', 'valid')}
    test_table, masks = [','.join(('Path', *chexpert.LABELS))], {}
    image_counts: dict[str, int] = {}
    for i, case in enumerate(log.progress(source.cases, 'writing chexpert')):
        number, record = archive.patient_index(case) + 1, source[i]
        part = 'test' if number > patients else 'train' if number % valid else 'valid'
        study = int(case.study.rpartition('_s')[2]) + 1
        image_counts[case.study] = image_counts.get(case.study, 0) + 1
        name = f'patient{number:05d}/study{study}/view{image_counts[case.study]}_frontal'
        path = f'{LOCALIZE if part == "test" else ARCHIVE}/{part}/{name}.jpg'
        files.write(os.path.join(folder, path), encode.picture(record['image'], 'jpeg', quality=95))
        if part == 'test':
            test_table.append(','.join((f'test/{name}.jpg', *_visible(record['truth']))))
            masks[name.replace('/', '_')] = _masks(record)
        else:
            sex, age = archive.sex_and_age(number)
            tables[part].append(','.join((path, sex, str(age), 'Frontal', case.groups['view'],
                                          *archive.label_cells(record['label'], chexpert.LABELS))))
    for part, lines in tables.items():
        files.write(os.path.join(folder, ARCHIVE, f'{part}.csv'), '\n'.join(lines) + '\n')
    if localize:
        files.write(os.path.join(folder, LOCALIZE, 'test_labels.csv'), '\n'.join(test_table) + '\n')
        files.write(os.path.join(folder, 'CheXlocalize', 'gt_segmentations_test.json'), json.dumps(masks))


def _visible(truth: np.ndarray) -> list[str]:
    """A cell for each label of CheXpert, by the visible findings; truth float32 [8]."""
    present = dict(zip(LABELS, truth), **{'No Finding': not truth.any()})
    return [archive.CELLS[int(present.get(label, 0))] for label in chexpert.LABELS]


def _masks(record: dict) -> dict[str, dict]:
    """For each label one run-length encoded mask of all its drawn findings, empty without any."""
    out = {}
    for k, label in enumerate(LABELS):
        mask = record['masks'][record['boxes'][:, 0] == k].any(0)
        name = 'Airspace Opacity' if label == 'Lung Opacity' else label
        out[name] = {'size': list(mask.shape), 'counts': rle.encode(mask)}
    return out
