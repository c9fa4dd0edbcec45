"""The heart phantom as a data source: short-axis MRI with right ventricle, muscle and left ventricle labelled; no file.

A case is a slice (dims=2, p000001_ED_03 of the study p000001_ED) or a stack (dims=3, p000001_ED). Cases, and so any
split of them, are the same in every domain: train on A, test on B. Groups: phase (ED, ES), group (of the disease);
domain where domain='AB'; foreground (yes, no) with empty=True.
"""
import functools
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import source, volume
from jaxkd.phantoms import common
from jaxkd.phantoms.heart import renderer

DEFAULTS = dict(
    patients=60,  # number of patients; each block of five has one of each group
    size=64,  # pixels of a side of the square image, 32 to 512
    slices=(8, 10),  # fewest and most slices of a patient
    domain='A',  # of scanner and hospital: A, B, or AB (every patient in one of the two, with equal probability)
    dims=2,  # 2: a case is a slice; 3: a stack of slices
    empty=False,  # True: slices without a label are cases, too; stacks always have them
    difficulty=0.5,  # how hard to read: 0 (plain) to 1 (noise, and a liver of the muscle's grey)
    seed=0,  # another one draws other patients
)
BOTH = ''.join(renderer.DOMAINS)


def build(hp: ConfigDict) -> 'Heart':
    """The source of the options DEFAULTS. Raises ConfigError for options outside their range."""
    if hp.dims not in (2, 3):
        raise errors.ConfigError(f'heart: dims={hp.dims!r} is unknown; give 2 for slices or 3 for stacks of them.')
    renderer.check(hp.patients, hp.size, hp.slices, 'A' if hp.domain == BOTH else hp.domain, hp.difficulty, hp.seed)
    options = dict(size=hp.size, slices=tuple(hp.slices), difficulty=hp.difficulty)
    return Heart(hp.seed, hp.patients, hp.domain, hp.dims, hp.empty, options)


class Heart(common.Phantom):
    """All slices or stacks of all patients."""

    name = 'heart'
    labels = renderer.LABELS

    def __init__(self, seed: int, patients: int, domain: str, dims: int, empty: bool, options: dict[str, Any]) -> None:
        self.seed, self.dims, self.options = seed, dims, options
        cases, keys = [], []
        for patient in range(patients):
            truth = renderer.facts(seed, patient, options['slices'])
            scanner = renderer.assigned_scanner(seed, patient) if domain == BOTH else domain
            scanner_group = {'domain': scanner} if domain == BOTH else {}
            for phase in renderer.PHASES:
                study, person = renderer.study(patient, phase), f'p{patient:06d}'
                groups = {'phase': phase, 'group': truth.group, **scanner_group}
                full = truth.labelled(phase)
                for z in [None] if dims == 3 else np.flatnonzero(full | empty).tolist():
                    label_group = {'foreground': 'yes' if full[z] else 'no'} if empty and z is not None else {}
                    name = study if z is None else f'{study}_{z:02d}'
                    cases.append(source.Case(name, person, study, groups={**groups, **label_group}))
                    keys.append((patient, renderer.PHASES.index(phase), scanner, z))
        self.cases, self._keys = tuple(cases), keys

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record of a slice: image uint8 [H,W], label uint8 [H,W], spacing float32 [3] (between slices, rows,
        columns, mm), case. Of a stack: image, a Volume of int16 in the scanner's units, label, a Volume, and case.
        """
        patient, phase, domain, z = self._keys[index]
        cached = _many if self.options['size'] <= 128 else _few
        image, label, spacing = cached(self.seed, patient, phase, domain, self.dims, **self.options)
        case = self.cases[index].id
        if z is None:
            return dict(image=_stack(image, spacing), label=_stack(label, spacing), case=case)
        return dict(image=image[z].copy(), label=label[z].copy(), spacing=spacing.copy(), case=case)


def _render(seed: int, patient: int, phase: int, domain: str, dims: int, size: int, slices: tuple[int, int],
            difficulty: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, label, spacing = renderer.render(seed, patient, phase, domain, size, slices, difficulty,
                                            renderer.FRAMES[phase])
    return image if dims == 3 else renderer.grey(image), label, spacing


# Slices of a study are read in any order, and a slice is not rendered without its study. At most about 200 MB each.
_many = functools.lru_cache(maxsize=384)(_render)
_few = functools.lru_cache(maxsize=24)(_render)


def _stack(stack: np.ndarray, spacing: np.ndarray) -> volume.Volume:
    """The Volume of [Z,H,W], which runs from base to apex and from front to back: x to the right, y to the front."""
    voxels = np.ascontiguousarray(stack[::-1, ::-1, ::-1].transpose(2, 1, 0))
    between, rows, columns = map(float, spacing)
    return volume.Volume(voxels, volume.grid((0, 0, 0), (columns, rows, between), voxels.shape))
