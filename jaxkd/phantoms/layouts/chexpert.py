"""The thorax phantom on disk in the layouts of CheXpert and CheXlocalize, to try what reads them.

    CheXpert-v1.0-small/{train,valid}.csv, CheXpert-v1.0-small/{train,valid}/patient00001/study1/view1_frontal.jpg
    CheXpert/test_labels.csv, CheXpert/test/patient00101/study1/view1_frontal.jpg, CheXlocalize/gt_segmentations_test.json

Labels are what the reports say: 1.0, 0.0, -1.0 and empty; those that the phantom does not know are empty. No Finding is
1.0 where a report states nothing. Every `valid`-th patient is in valid.csv. Sex and age are made up and go along with
nothing. `localize` further patients are those of CheXlocalize: labels and masks there are what is to be seen, as of radiologists.
"""
import json
import os

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data.formats import rle
from jaxkd.data.sources import chexpert
from jaxkd.phantoms import picture, thorax
from jaxkd.phantoms.thorax.labeller import LABELS
from jaxkd.runtime import files, log

ARCHIVE, LOCALIZE = 'CheXpert-v1.0-small', 'CheXpert'
_CELLS = {1: '1.0', 0: '0.0', -1: '-1.0'}


def write(folder, patients, size=64, seed=0, valid=5, difficulty=0.5, localize=0):
    """Write all images of `patients` patients, and of `localize` more, under `folder`, as JPEG of quality 95."""
    if valid < 2:
        raise errors.ConfigError(f'thorax: valid={valid} must be at least 2: of so many patients one is in valid.csv.')
    source = thorax.build(ConfigDict({**thorax.DEFAULTS, 'patients': patients + localize, 'size': size, 'seed': seed,
                                      'difficulty': difficulty}))
    tables = {part: [','.join(chexpert.HEADER)] for part in ('train', 'valid')}
    tested, masks, shots = [','.join(('Path', *chexpert.LABELS))], {}, {}
    for i, case in enumerate(log.progress(source.cases, 'writing chexpert')):
        number, record = int(case.patient.rpartition('p')[2]) + 1, source[i]
        part = 'test' if number > patients else 'train' if number % valid else 'valid'
        study = int(case.study.rpartition('_s')[2]) + 1
        shots[case.study] = shots.get(case.study, 0) + 1
        name = f'patient{number:05d}/study{study}/view{shots[case.study]}_frontal'
        path = f'{LOCALIZE if part == "test" else ARCHIVE}/{part}/{name}.jpg'
        files.write(os.path.join(folder, path), picture.encode(record['image'], 'jpeg', quality=95))
        if part == 'test':
            seen = dict(zip(LABELS, record['truth']), **{'No Finding': not record['truth'].any()})
            tested.append(','.join((f'test/{name}.jpg', *(_CELLS[int(seen.get(label, 0))] for label in chexpert.LABELS))))
            masks[name.replace('/', '_')] = {'Airspace Opacity' if label == 'Lung Opacity' else label: _mask(record, k)
                                             for k, label in enumerate(LABELS)}
        else:
            cells = {label: _CELLS.get(value, '') for label, value in zip(LABELS, record['label'])}
            cells['No Finding'] = '' if np.isin(record['label'], (1, -1)).any() else '1.0'
            made_up = ('Female' if number * 7 % 5 < 2 else 'Male', str(20 + number * 37 % 70), 'Frontal', case.groups['view'])
            tables[part].append(','.join((path, *made_up, *(cells.get(label, '') for label in chexpert.LABELS))))
    for part, lines in tables.items():
        files.write(os.path.join(folder, ARCHIVE, f'{part}.csv'), '\n'.join(lines) + '\n')
    if localize:
        files.write(os.path.join(folder, LOCALIZE, 'test_labels.csv'), '\n'.join(tested) + '\n')
        files.write(os.path.join(folder, 'CheXlocalize', 'gt_segmentations_test.json'), json.dumps(masks))


def _mask(record, label):
    """All that is drawn for a label as one mask, empty where there is nothing."""
    mask = record['masks'][record['boxes'][:, 0] == label].any(0)
    return {'size': list(mask.shape), 'counts': rle.encode(mask)}

