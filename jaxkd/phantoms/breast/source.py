"""The breast phantom as a data source: mammograms, the table of their lesions, outlines and boxes; no file, no
download.

A case is an image, a patient's breast in one view, with one lesion or more. Label: 1 where one of them is malignant.
The AUROC of the best reader of the table is jaxkd.phantoms.breast.findings.ceiling, in closed form; the remaining
uncertainty is random and not visible in the image.
"""
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd.data import source
from jaxkd.phantoms import common
from jaxkd.phantoms.breast import renderer

DEFAULTS = dict(
    patients=1000,  # number of patients that are drawn, each by itself
    kind='both',  # of lesions: mass, calc or both
    size=128,  # rows of an image, 64 to 1024; columns are 4/5 of them
    difficulty=0.5,  # how hard to read: 0 (plain) to 1 (faint lesions and noise)
    seed=0,  # another one draws other patients
)


def build(hp: ConfigDict) -> 'Breast':
    """The source of the options DEFAULTS. Raises ConfigError for options outside their range."""
    renderer.check(hp.size, hp.difficulty, hp.seed, hp.kind, hp.patients)
    return Breast(hp.patients, hp.kind, hp.size, hp.difficulty, hp.seed)


class Breast(common.Phantom):
    """All images of all patients."""

    name = 'breast'
    labels = ('malignant',)
    table_without_image = True

    def __init__(self, patients: int, kind: str, size: int, difficulty: float, seed: int) -> None:
        self.kind, self.size, self.difficulty, self.seed = kind, size, difficulty, seed
        cases, self._keys = [], []
        for patient in range(patients):
            truth, name = renderer.facts(seed, patient, kind), renderer.name(patient)
            for side, view in truth.images:
                groups = {'side': side, 'view': view, 'density': str(truth.anatomy.density),
                          'abnormality': '+'.join(sorted({lesion.kind for lesion in truth.lesions[side]}))}
                cases.append(source.Case(f'{name}_{side}_{view}', name, groups=groups))
                self._keys.append((patient, side, view))
        self.cases = tuple(cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record of one case: image uint16 [H,W], label float32 [1], boxes, masks, table."""
        table = self.table(index)
        label = np.array([any(row['pathology'] == 'MALIGNANT' for row in table)], np.float32)
        return dict(renderer.render(self.seed, *self._keys[index], self.size, self.difficulty, self.kind), label=label,
                    table=table)

    def table(self, index: int) -> list[dict[str, str]]:
        return renderer.rows(self.seed, *self._keys[index], self.kind)
