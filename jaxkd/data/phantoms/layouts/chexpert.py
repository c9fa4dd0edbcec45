"""The thorax phantom on disk in the layout of CheXpert, to try what reads it.

    CheXpert-v1.0-small/{train,valid}.csv, CheXpert-v1.0-small/{train,valid}/patient00001/study1/view1_frontal.jpg

Labels are what the reports say: 1.0, 0.0, -1.0 and empty; those that the phantom does not know are empty. No Finding is
1.0 where a report states nothing. Every `valid`-th patient is in valid.csv. Sex and age are made up and go along with
nothing.
"""
import os

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors, files, log
from jaxkd.data.phantoms import picture
from jaxkd.data.phantoms.labeller import LABELS
from jaxkd.data.sources import chexpert, thorax

ARCHIVE = 'CheXpert-v1.0-small'
_CELLS = {1: '1.0', 0: '0.0', -1: '-1.0'}


def write(folder, patients, size=64, seed=0, valid=5, difficulty=0.5):
    """Write all images of `patients` patients under `folder`, as JPEG of quality 95."""
    if valid < 2:
        raise errors.ConfigError(f'thorax: valid={valid} must be at least 2: of so many patients one is in valid.csv.')
    source = thorax.build(ConfigDict({**thorax.DEFAULTS, 'patients': patients, 'size': size, 'seed': seed,
                                      'difficulty': difficulty}))
    tables = {part: [','.join(chexpert.HEADER)] for part in ('train', 'valid')}
    shots = {}
    for i, case in enumerate(log.progress(source.cases, 'writing chexpert')):
        number, record = int(case.patient.rpartition('p')[2]) + 1, source[i]
        part = 'train' if number % valid else 'valid'
        study = int(case.study.rpartition('_s')[2]) + 1
        shots[case.study] = shots.get(case.study, 0) + 1
        path = f'{ARCHIVE}/{part}/patient{number:05d}/study{study}/view{shots[case.study]}_frontal.jpg'
        said = dict(zip(LABELS, record['label']))
        cells = {name: _CELLS.get(value, '') for name, value in said.items()}
        cells['No Finding'] = '' if np.isin(record['label'], (1, -1)).any() else '1.0'
        made_up = ('Female' if number * 7 % 5 < 2 else 'Male', str(20 + number * 37 % 70), 'Frontal', case.groups['view'])
        tables[part].append(','.join((path, *made_up, *(cells.get(name, '') for name in chexpert.LABELS))))
        files.write(os.path.join(folder, path), picture.encode(record['image'], 'jpeg', quality=95))
    for part, lines in tables.items():
        files.write(os.path.join(folder, ARCHIVE, f'{part}.csv'), '\n'.join(lines) + '\n')

