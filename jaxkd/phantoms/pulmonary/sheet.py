"""Contact sheet of the pulmonary phantom: a patient with the first clot in each place and one without any."""
import os

import numpy as np

from jaxkd.phantoms import common
from jaxkd.phantoms.pulmonary import renderer

# (modality, darkest and brightest HU, with the clots in colour, title) of each column
PANELS = (('nct', -60, 130, False, 'NCT'), ('ctpa', -150, 450, False, 'CTPA'), ('nct', -1000, 200, False, 'NCT, lung'),
          ('nct', -60, 130, True, 'NCT and clots'))


def draw(path: str | os.PathLike, seed: int = 0, size: int = 152, depth: int = 48,
         spacing: tuple[float, float, float] = (2.0, 2.0, 2.0), difficulty: float = 0.5, warp: float = 1.0) -> None:
    """Write NCT, CTPA, NCT in a window of the lung, and NCT with the clots in colour.

    The slice with most clot in the radiological view: the patient's right to the left, front up. size: voxels in
    plane, 32..320. depth: slices, 16..256. spacing: mm x, y, z. difficulty: 0 plain .. 1 little contrast of clots and
    much noise, in NCT. warp: voxels that CTPA is displaced by at most. Raises ConfigError, CannotWrite.
    """
    from matplotlib.figure import Figure
    patients: dict[str, int] = {}
    for patient in range(200):
        patients.setdefault(renderer.facts(seed, patient).groups['location'], patient)
    figure = Figure(figsize=(14, 3.1 * len(patients)), layout='constrained')
    axes = figure.subplots(len(patients), len(PANELS), squeeze=False)
    for row, location in zip(axes, (*renderer.LOCATIONS, 'none')):
        volumes, clots = renderer.render(seed, patients[location], size, depth, spacing, difficulty=difficulty,
                                         warp=warp)
        k = int((clots.voxels == 1).sum((0, 1)).argmax()) if location != 'none' else depth // 2
        mask = np.ma.masked_equal(clots.voxels[:, :, k].T, 0)
        for panel, (modality, low, high, colour, title) in zip(row, PANELS):
            panel.imshow(volumes[modality].voxels[:, :, k].T, cmap='gray', vmin=low, vmax=high, origin='lower',
                         aspect=spacing[1] / spacing[0])
            if colour:
                panel.imshow(mask, cmap='autumn', vmin=1, vmax=6, origin='lower', alpha=0.9, interpolation='nearest',
                             aspect=spacing[1] / spacing[0])
            panel.invert_xaxis()
            panel.set_axis_off()
            panel.set_title(f'{title}: {location}', fontsize=8)
    common.save_sheet(path, figure, dpi=100)
