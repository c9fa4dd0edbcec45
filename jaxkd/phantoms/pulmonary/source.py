"""The pulmonary phantom as a data source: NCT, CTPA and embolus masks of a chest; no file."""
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd.data import source, volume
from jaxkd.phantoms import common
from jaxkd.phantoms.pulmonary import renderer

DEFAULTS = dict(
    patients=1000,  # number of patients that are drawn, each by itself
    size=80,  # voxels in plane, 32 to 320
    depth=40,  # slices, 16 to 256
    spacing=(2.0, 2.0, 2.0),  # of voxels, mm x, y, z
    pe=0.5,  # fraction of patients with emboli
    difficulty=0.5,  # how hard to read: 0 (plain) to 1 (little contrast of clots and much noise, in NCT)
    warp=1.0,  # greatest displacement of CTPA against NCT, voxels
    missing_ctpa=0.0,  # fraction of patients without CTPA
    seed=0,  # another one draws other patients
)


def build(hp: ConfigDict) -> 'Pulmonary':
    """The source of the options DEFAULTS. Raises ConfigError for options outside their range."""
    renderer.check(**{key: hp[key] for key in DEFAULTS})
    options = {key: hp[key] for key in ('size', 'depth', 'pe', 'difficulty', 'warp')} | {'spacing': tuple(hp.spacing)}
    return Pulmonary(hp.seed, hp.patients, options, hp.missing_ctpa)


class Pulmonary(common.Phantom):
    """All patients."""

    name = 'pulmonary'
    labels = renderer.LABELS
    tasks = renderer.TASKS

    def __init__(self, seed: int, patients: int, options: dict[str, Any], missing_ctpa: float) -> None:
        self.seed, self.options, self.missing_ctpa = seed, options, missing_ctpa
        truth = [renderer.facts(seed, k, options['pe']) for k in range(patients)]
        names = [f'p{k:06d}' for k in range(patients)]
        self.cases = tuple(source.Case(n, n, n, groups=f.groups) for n, f in zip(names, truth))
        self.targets = {'pe': np.array([f.pe for f in truth], np.int32)}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record of one patient: nct, ctpa where available, label on the grid of nct, pe."""
        modalities = common.available(renderer.MODALITIES, renderer.absent(self.seed, index, self.missing_ctpa))
        volumes, clots = renderer.render(self.seed, index, **self.options, modalities=modalities)
        label = volume.Volume((clots.voxels > 0).astype(np.uint8), clots.affine)
        return dict(volumes, label=label, pe=self.targets['pe'][index], case=self.cases[index].id)
