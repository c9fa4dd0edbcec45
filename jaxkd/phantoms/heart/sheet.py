"""Contact sheet of the heart phantom: a patient of each group on both scanners, at ED and ES, three levels,
outlined.
"""
import os

import numpy as np

from jaxkd.phantoms import common
from jaxkd.phantoms.heart import renderer


def draw(path: str | os.PathLike, seed: int = 0, size: int = 192, difficulty: float = 0.5) -> None:
    """Write the first patient of each group.

    size: pixels of a picture, 32..512. difficulty: 0 plain .. 1 noise, and a liver of the muscle's grey.
    Raises ConfigError, CannotWrite.
    """
    from matplotlib.figure import Figure
    figure = Figure(figsize=(24, 10.6))
    figure.subplots_adjust(0, 0, 1, 0.97, 0.03, 0.1)
    axes = figure.subplots(len(renderer.GROUPS), 12, squeeze=False)
    patients = {renderer.facts(seed, k).group: k for k in range(len(renderer.GROUPS))}
    for row, group in enumerate(renderer.GROUPS):
        for column, (domain, phase) in enumerate((d, p) for d in renderer.DOMAINS for p in renderer.PHASES):
            moment = renderer.PHASES.index(phase)
            image, label, _ = renderer.render(seed, patients[group], moment, domain, size, (8, 10), difficulty,
                                              renderer.FRAMES[moment])
            labelled = np.flatnonzero(renderer.facts(seed, patients[group]).labelled(phase))
            for k, level in enumerate((0, 0.45, 0.85)):
                panel, z = axes[row, 3 * column + k], labelled[round(level * (len(labelled) - 1))]
                panel.imshow(renderer.grey(image)[z], cmap='gray', vmin=0, vmax=255)
                for value, colour in zip((1, 2, 3), ('deepskyblue', 'lime', 'gold')):
                    if k != 1 and (label[z] == value).any():
                        panel.contour(label[z] == value, [0.5], colors=colour, linewidths=0.6)
                panel.set_axis_off()
                panel.set_title(f'{group} {domain} {phase} slice {z}', fontsize=7)
    common.save_sheet(path, figure, dpi=80)
