"""Shared parts of the layouts of radiograph archives: the phantom as a source, cells of label tables, sex and age.
"""
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxkd.data.source import Case
from jaxkd.phantoms.thorax import source
from jaxkd.phantoms.thorax.labeller import LABELS

CELLS = {1: '1.0', 0: '0.0', -1: '-1.0'}  # present, absent, uncertain; a finding not mentioned has an empty cell


def build(patients: int, size: int, seed: int, difficulty: float) -> source.Thorax:
    """The source whose cases a layout writes. Raises ConfigError for options outside their range."""
    return source.build(ConfigDict({**source.DEFAULTS, 'patients': patients, 'size': size, 'seed': seed,
                                    'difficulty': difficulty}))


def patient_index(case: Case) -> int:
    """The index of a case's patient, from 0."""
    return int(case.patient.rpartition('p')[2])


def label_cells(values: np.ndarray, columns: Sequence[str]) -> list[str]:
    """The cells of a row of labels, one a column; values float32 [8] as LABELS. No Finding is 1.0 where a report states
    no finding; columns of other findings are empty.
    """
    cells = {label: CELLS.get(value, '') for label, value in zip(LABELS, values)}
    cells['No Finding'] = '' if np.isin(values, (1, -1)).any() else '1.0'
    return [cells.get(label, '') for label in columns]


def sex_and_age(number: int) -> tuple[str, int]:
    """('Female' or 'Male', years) of a patient, numbered from 1: arbitrary and independent of the findings."""
    return 'Female' if number * 7 % 5 < 2 else 'Male', 20 + number * 37 % 70
