"""The pancreas phantom as a data source: paired CT and MRI around a lesion, texture and duct labels; no file."""
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd.data import source
from jaxkd.phantoms import common
from jaxkd.phantoms.pancreas import renderer

DEFAULTS = dict(
    patients=1000,  # number of patients that are drawn, each by itself
    size=48,  # voxels of the CT in plane, 32 to 256
    depth=16,  # slices of the CT, 8 to 96
    field=(96.0, 96.0, 72.0),  # mm around the lesion that every grid covers
    difficulty=0.5,  # how hard to read: 0 (plain) to 1 (little contrast and much noise in CT)
    missing_mri=0.05,  # fraction of patients without T1 and T2
    missing_t2=0.05,  # fraction of the remaining patients without T2
    unknown=0.02,  # fraction of patients with unknown texture (-1), and of those with unknown duct
    seed=0,  # another one draws other patients
)


def build(hp: ConfigDict) -> 'Pancreas':
    """The source of the options DEFAULTS. Raises ConfigError for options outside their range."""
    renderer.check(**{key: hp[key] for key in DEFAULTS})
    options = dict(size=hp.size, depth=hp.depth, field=tuple(hp.field), difficulty=hp.difficulty)
    return Pancreas(hp.seed, hp.patients, options, (hp.missing_mri, hp.missing_t2, hp.unknown))


class Pancreas(common.Phantom):
    """All patients."""

    name = 'pancreas'
    labels = renderer.LABELS
    tasks = renderer.TASKS

    def __init__(self, seed: int, patients: int, options: dict[str, Any],
                 fractions: tuple[float, float, float]) -> None:
        self.seed, self.options = seed, options
        truth = [renderer.facts(seed, k) for k in range(patients)]
        missing, unknown = zip(*(renderer.absent(seed, k, *fractions) for k in range(patients)))
        self.cases = tuple(source.Case(f'p{k:06d}', f'p{k:06d}', groups=f.groups) for k, f in enumerate(truth))
        self.targets = {'label': np.array([f.label for f in truth], np.int32)}
        for task in self.tasks:
            values = [-1 if task in tasks else getattr(f, task) for f, tasks in zip(truth, unknown)]
            self.targets[task] = np.array(values, np.int32)
        self._modalities = [common.available(renderer.MODALITIES, names) for names in missing]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record of one patient: a Volume for each available modality, label, texture, duct, centre."""
        volumes, _, centres = renderer.render(self.seed, index, **self.options, modalities=self._modalities[index])
        return dict(volumes, **{name: values[index] for name, values in self.targets.items()}, centre=centres)
