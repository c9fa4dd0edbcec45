"""Contact sheet of the brain phantom: each subject, without the disease, with each bias, and their differences.
"""
import dataclasses
import functools
import os

import numpy as np

from jaxkd.phantoms import common
from jaxkd.phantoms.brain import anatomy, renderer


def draw(path: str | os.PathLike, seed: int = 0, size: tuple[int, int, int] = (173, 211, 155),
         subjects: int = 3) -> None:
    """Write two rows for each subject, an axial and a coronal section through the place that changes.

    size: voxels x y z, 16..256 each. Raises ConfigError, CannotWrite.
    """
    from matplotlib.figure import Figure
    figure = Figure(figsize=(19, 2 * 2.6 * subjects))
    figure.subplots_adjust(0, 0, 1, 0.97, 0.02, 0.12)
    axes = figure.subplots(2 * subjects, 7, squeeze=False)
    for subject in range(subjects):
        for column, (image, reference, title) in enumerate(_columns(seed, subject, size)):
            place = renderer.PLACES['far' if column > 4 else 'insula'][0]
            middle = [round((0.5 + c / f) * n) for c, f, n in zip(place, anatomy.FIELD, size)]
            for row, axis in enumerate((2, 1)):
                panel = axes[2 * subject + row, column]
                section = image.take(middle[axis], axis).T
                if reference is None:
                    panel.imshow(section, cmap='gray', origin='lower', vmin=0, vmax=renderer.SCALE)
                else:
                    panel.imshow(section - reference.take(middle[axis], axis).T, cmap='RdBu', origin='lower',
                                 vmin=-renderer.SCALE / 2, vmax=renderer.SCALE / 2)
                panel.set_title(title if not row else '', fontsize=8)
                panel.set_axis_off()
    common.save_sheet(path, figure, dpi=70)


def _columns(seed: int, subject: int, size: tuple[int, int, int]) -> list[tuple[np.ndarray, np.ndarray | None, str]]:
    """(int [X,Y,Z], the image subtracted from it or None, title) of each column."""
    truth = renderer.facts(seed, subject)
    render = functools.partial(renderer.render, seed, subject, size, noise=0)
    ill, well = (v.voxels.astype(int) for v in (render(), render(truth=dataclasses.replace(truth, disease=0.0))))
    near, far = (render(region=region, twin=True).voxels.astype(int) for region in renderer.REGIONS)
    return [(ill, None, f'{renderer.LABELS[truth.label]} {truth.disease:+.2f}'), (well, None, 'without the effect'),
            (ill, well, 'disease'), (near, None, f'near {truth.bias:+.2f}'), (near, ill, 'near'),
            (far, None, f'far {truth.bias:+.2f}'), (far, ill, 'far')]
