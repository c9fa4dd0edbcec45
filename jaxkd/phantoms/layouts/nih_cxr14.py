"""The thorax phantom on disk in the layout of NIH ChestX-ray14, to try what reads it.

    Data_Entry_2017_v2020.csv, BBox_List_2017.csv, train_val_list.txt, test_list.txt
    images_001/images/00000001_000.png ..., and from half of the patients on images_002/images

Findings are those that a report states; Lung Opacity is told as Infiltration, as it comes closest. Every `test`-th patient is
tested, and has boxes of findings that are stated and that the archive has boxes of, in pixels of 1024 x 1024. The traps of the
archive are there: Infiltrate among the boxes, columns without a name behind theirs, and every 30th patient older than anybody. Sex
and age are made up and go along with nothing.
"""
import os

from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data.sources import nih_cxr14
from jaxkd.phantoms import picture, thorax
from jaxkd.phantoms.thorax.labeller import LABELS
from jaxkd.runtime import files, log

NAMES = {'Pleural Effusion': 'Effusion', 'Lung Opacity': 'Infiltration'}  # of the archive, where they differ
BOXED = {'Atelectasis', 'Cardiomegaly', 'Effusion', 'Infiltration', 'Pneumonia', 'Pneumothorax'}


def write(folder, patients, size=64, seed=0, difficulty=0.5, test=5):
    """Write all images of `patients` patients under `folder`, as PNG. size: of theirs; 1024 is that of the archive."""
    if test < 2:
        raise errors.ConfigError(f'nih_cxr14: test={test} must be at least 2: of so many patients one is tested.')
    source = thorax.build(ConfigDict({**thorax.DEFAULTS, 'patients': patients, 'size': size, 'seed': seed, 'difficulty': difficulty}))
    names = [NAMES.get(label, label) for label in LABELS]
    rows, boxes, lists, shots = [nih_cxr14.HEADER], [nih_cxr14.BOXES_HEADER], {part: [] for part in nih_cxr14.LISTS}, {}
    for i, case in enumerate(log.progress(source.cases, 'writing nih_cxr14')):
        number, record = int(case.patient.rpartition('p')[2]) + 1, source[i]
        shot = shots[number] = shots.get(number, -1) + 1
        name, tested = f'{number:08d}_{shot:03d}.png', number % test == 0
        stated = [label for label, value in zip(names, record['label']) if value == 1]
        years = 414 if number % 30 == 0 else 20 + number * 37 % 70
        rows.append((name, '|'.join(sorted(stated)) or 'No Finding', shot, number, years, 'F' if number * 7 % 5 < 2 else 'M',
                     case.groups['view'], 2500, 2048, 0.171, 0.171))
        lists['test_list.txt' if tested else 'train_val_list.txt'].append(name)
        for label, *box in record['boxes'] if tested else ():
            if (finding := names[int(label)]) in BOXED and finding in stated:
                boxes.append((name, 'Infiltrate' if finding == 'Infiltration' else finding,
                              *(float(value) * nih_cxr14.SIDE / size for value in box)))
        place = f'images_{1 + (number > patients / 2):03d}/images'
        files.write(os.path.join(folder, place, name), picture.encode(record['image'], 'png'))
    for name, table in ((nih_cxr14.TABLES[0], rows), (nih_cxr14.DEFAULTS['boxes'], boxes)):
        files.write(os.path.join(folder, name), ''.join(','.join(map(str, row)) + '\n' for row in table))
    for name, listed in lists.items():
        files.write(os.path.join(folder, name), '\n'.join(listed))
