"""The thorax phantom as a data source: chest radiographs, reports, boxes and masks; no file, no download.

Labels are read from the report, not from the anatomy: findings that the report omits or hedges are missing or
uncertain in the label, as in any archive with labels from text. The anatomical truth is the extra record key
`truth`.
"""
import functools
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import source
from jaxkd.phantoms import common
from jaxkd.phantoms.thorax import labeller, renderer

DEFAULTS = dict(
    patients=1000,  # number of patients that are drawn, each by itself
    images_per_patient=(1, 3),  # fewest and most images of a patient, 1 to 64
    size=64,  # pixels of a side of the square image, 32 to 1024
    difficulty=0.5,  # how hard to read: 0 (plain) to 1 (faint findings, noise and devices)
    seed=0,  # another one draws other patients
)


def build(hp: ConfigDict) -> 'Thorax':
    """The source of the options DEFAULTS. Raises ConfigError for options outside their range."""
    low, high = hp.images_per_patient
    common.check_ranges('thorax', seed=(hp.seed, *common.SEEDS))
    if hp.patients < 1 or not 1 <= low <= high <= 64:
        raise errors.ConfigError(f'thorax: patients={hp.patients}, images_per_patient=({low}, {high}): '
                                 'there must be a patient, and 1 <= fewest <= most <= 64 images of each.')
    renderer.check(hp.size, hp.difficulty)
    return Thorax(hp.patients, low, high, hp.size, hp.difficulty, hp.seed)


class Thorax(common.Phantom):
    """All images of all patients."""

    name = 'thorax'
    labels = labeller.LABELS
    text_without_image = True

    def __init__(self, patients: int, low: int, high: int, size: int, difficulty: float, seed: int) -> None:
        self.size, self.difficulty, self.seed = size, difficulty, seed
        cases, self._keys = [], []
        self._texts: dict[tuple[int, int], str] = {}
        for patient in range(patients):
            name = f's{seed}p{patient:06d}' if seed else f'p{patient:06d}'  # another seed has other patients
            schedule = renderer.image_schedule(seed, patient, renderer.images(seed, patient, low, high))
            for image, (study, view) in enumerate(schedule):
                cases.append(source.Case(f'{name}_i{image}', name, f'{name}_s{study}', groups={'view': view}))
                self._keys.append((patient, image, study))
        self.cases = tuple(cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record of one case: image uint8 [S,S], text, label, boxes, masks, truth float32 [8]."""
        patient, image, _ = self._keys[index]
        case = renderer.render(self.seed, patient, image, self.size, self.difficulty)
        return dict(image=case['image'], text=case['report'], label=labeller.labels(case['report']),
                    boxes=case['boxes'], masks=case['masks'], truth=case['truth'])

    def text(self, index: int) -> str:
        """The report of one case, without its image. Written once for a study."""
        patient, _, study = self._keys[index]
        if (patient, study) not in self._texts:
            self._texts[patient, study] = renderer.study_report(self.seed, patient, study, self.difficulty)[0]
        return self._texts[patient, study]

    @functools.cached_property
    def values(self) -> np.ndarray:  # type: ignore[override]
        """float32 [n,8]: the labels of all cases, without an image."""
        first = {case.study: i for i, case in reversed([*enumerate(self.cases)])}  # images of a study have one report
        labels = {study: labeller.labels(self.text(i)) for study, i in first.items()}
        return np.array([labels[case.study] for case in self.cases], np.float32)
