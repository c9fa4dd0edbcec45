"""Contact sheet of the thorax phantom: an image for each of some patients, findings as title, with boxes."""
import os

import numpy as np

from jaxkd.phantoms import common
from jaxkd.phantoms.thorax import renderer
from jaxkd.phantoms.thorax.labeller import LABELS


def draw(path: str | os.PathLike, seed: int = 0, size: int = 256, difficulty: float = 0.5, rows: int = 4,
         columns: int = 5) -> None:
    """Write the first image of rows * columns patients.

    size: pixels of an image, 32..1024. difficulty: 0 plain .. 1 faint findings, noise and devices.
    Raises ConfigError, CannotWrite.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    figure = Figure(figsize=(3 * columns, 3.25 * rows), layout='constrained')
    for patient, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        case = renderer.render(seed, patient, 0, size, difficulty)
        axes.imshow(case['image'], cmap='gray', vmin=0, vmax=255)
        for label, x, y, w, h in case['boxes']:
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), w, h, fill=False, color=f'C{int(label)}', lw=1))
        names = [LABELS[k] for k in np.flatnonzero(case['truth'])]
        axes.set_title(f'{case["view"]}: ' + (', '.join(names) or 'no finding'), fontsize=6.5, wrap=True)
        axes.set_axis_off()
    common.save_sheet(path, figure, dpi=110)
