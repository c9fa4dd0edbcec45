"""NIH ChestX-ray14: radiographs of the thorax phantom as PNG, findings, boxes of the tested.

    Data_Entry_2017_v2020.csv, BBox_List_2017.csv, train_val_list.txt, test_list.txt
    images_001/images/00000001_000.png ..., and from half of the patients on images_002/images

Findings are those stated in a report; Lung Opacity is listed as Infiltration, the nearest category. Tested patients
have boxes of stated findings of the categories with boxes in the archive, in pixels of 1024 x 1024. The irregularities
of the archive are present: Infiltrate among the boxes, unnamed columns after those of the boxes, and an impossible age
of every 30th patient. Sex and age are random and independent of the findings.
"""
import os
from collections.abc import Sequence

from jaxkd import errors
from jaxkd.data.sources import nih_cxr14
from jaxkd.phantoms import encode
from jaxkd.phantoms.thorax import archive
from jaxkd.phantoms.thorax.labeller import LABELS
from jaxkd.runtime import files, log

NAMES = {'Pleural Effusion': 'Effusion', 'Lung Opacity': 'Infiltration'}  # of the archive, where they differ
BOXED = {'Atelectasis', 'Cardiomegaly', 'Effusion', 'Infiltration', 'Pneumonia', 'Pneumothorax'}
_NAMES = [NAMES.get(label, label) for label in LABELS]


def write(folder: str | os.PathLike, patients: int, size: int = 64, seed: int = 0, difficulty: float = 0.5,
          test: int = 5) -> None:
    """Write all images of the patients as PNG, and the tables.

    size: pixels of the square images, 32..1024; 1024 is that of the archive. difficulty: 0 plain .. 1 faint findings
    and noise. test: of so many patients one is tested. Raises ConfigError, CannotWrite.
    """
    if test < 2:
        raise errors.ConfigError(f'nih_cxr14: test={test} must be at least 2: of so many patients one is tested.')
    source = archive.build(patients, size, seed, difficulty)
    rows: list[Sequence] = [nih_cxr14.HEADER]
    boxes: list[Sequence] = [nih_cxr14.BOXES_HEADER]
    image_counts: dict[int, int] = {}
    lists: dict[str, list[str]] = {name: [] for name in nih_cxr14.LISTS}
    for i, case in enumerate(log.progress(source.cases, 'writing nih_cxr14')):
        number, record = archive.patient_index(case) + 1, source[i]
        image = image_counts[number] = image_counts.get(number, -1) + 1
        name, tested = f'{number:08d}_{image:03d}.png', number % test == 0
        stated = [label for label, value in zip(_NAMES, record['label']) if value == 1]
        sex, age = archive.sex_and_age(number)
        rows.append((name, '|'.join(sorted(stated)) or 'No Finding', image, number, 414 if number % 30 == 0 else age,
                     sex[0], case.groups['view'], 2500, 2048, 0.171, 0.171))
        lists['test_list.txt' if tested else 'train_val_list.txt'].append(name)
        if tested:
            boxes += [(name, *row) for row in _boxes(record, stated, size)]
        subfolder = f'images_{1 + (number > patients / 2):03d}/images'
        files.write(os.path.join(folder, subfolder, name), encode.picture(record['image'], 'png'))
    for name, table in ((nih_cxr14.TABLES[0], rows), (str(nih_cxr14.DEFAULTS['boxes']), boxes)):
        files.write(os.path.join(folder, name), ''.join(','.join(map(str, row)) + '\n' for row in table))
    for name, images in lists.items():
        files.write(os.path.join(folder, name), '\n'.join(images))


def _boxes(record: dict, stated: list[str], size: int) -> list[tuple]:
    """(finding, x, y, w, h in pixels of the archive) for each box of a stated finding."""
    rows = []
    for label, *box in record['boxes']:
        if (finding := _NAMES[int(label)]) in BOXED and finding in stated:
            rows.append(('Infiltrate' if finding == 'Infiltration' else finding,
                         *(float(value) * nih_cxr14.SIDE / size for value in box)))
    return rows
