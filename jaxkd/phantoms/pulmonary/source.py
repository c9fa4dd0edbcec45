"""The pulmonary phantom as a data source: NCT, CTPA and embolus masks of a chest; no file."""
import numpy as np

from jaxkd.data import source, volume
from jaxkd.phantoms.pulmonary import renderer

DEFAULTS = dict(
    patients=1000,
    size=80,  # voxels in plane, 32..320
    depth=40,  # slices, 16..256
    spacing=(2.0, 2.0, 2.0),  # mm x, y, z
    pe=0.5,  # share of patients with emboli
    difficulty=0.5,  # 0 plain .. 1 little contrast of clots and much noise, in NCT
    warp=1.0,  # voxels that CTPA is displaced by at most, beside NCT
    missing_ctpa=0.0,  # share of patients without CTPA
    seed=0,
)


def build(hp):
    renderer.check(**{key: hp[key] for key in DEFAULTS})
    how = dict(size=hp.size, depth=hp.depth, spacing=tuple(hp.spacing), pe=hp.pe, difficulty=hp.difficulty,
               warp=hp.warp)
    return Pulmonary(hp.seed, hp.patients, how, hp.missing_ctpa)


class Pulmonary(source.Source):
    """All patients; `source[i]` renders patient i, always the same one."""

    name = 'pulmonary'
    note = 'a phantom: rendered, not patients'
    labels = renderer.LABELS
    tasks = renderer.TASKS

    def __init__(self, seed, patients, how, missing):
        self.seed, self.how, self.missing = seed, how, missing
        known = [renderer.facts(seed, k, how['pe']) for k in range(patients)]
        names = [f'p{k:06d}' for k in range(patients)]
        self.cases = tuple(source.Case(n, n, n, groups=f.groups) for n, f in zip(names, known))
        self.targets = {'pe': np.array([f.pe for f in known], np.int32)}

    def __getitem__(self, index):
        """The record of one patient: nct, ctpa if there is one, label on the grid of nct, pe."""
        lacks = renderer.absent(self.seed, index, self.missing)
        volumes, clots = renderer.render(self.seed, index, **self.how,
                                          modalities=[m for m in renderer.MODALITIES if m not in lacks])
        label = volume.Volume((clots.voxels > 0).astype(np.uint8), clots.affine)
        return dict(volumes, label=label, pe=self.targets['pe'][index], case=self.cases[index].id)
