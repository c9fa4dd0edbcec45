"""Contact sheet of the breast phantom: an image for each of some patients, lesions as title, with their outlines."""
import os

from jaxkd.phantoms import common
from jaxkd.phantoms.breast import renderer


def draw(path: str | os.PathLike, seed: int = 0, size: int = 384, difficulty: float = 0.5, kind: str = 'both',
         rows: int = 4, columns: int = 6) -> None:
    """Write the first image of rows * columns patients.

    size: rows of an image, 64..1024. difficulty: 0 plain .. 1 faint lesions and noise. kind: of lesions, 'mass', 'calc'
    or 'both'. Raises ConfigError, CannotWrite.
    """
    from matplotlib.figure import Figure
    figure = Figure(figsize=(2.6 * columns, 3.5 * rows), layout='constrained')
    for patient, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        truth = renderer.facts(seed, patient, kind)
        side, view = truth.images[0]
        case = renderer.render(seed, patient, side, view, size, difficulty, kind)
        axes.imshow(case['image'], cmap='gray', vmin=0, vmax=65535)
        for lesion, mask in zip(truth.lesions[side], case['masks']):
            axes.contour(mask, [0.5], colors='C3' if lesion.malignant else 'C2', linewidths=0.5)
        lines = [f'{x.first} / {x.second}: {x.pathology.split("_")[0].lower()}, {x.assessment}, s{x.subtlety}'
                 for x in truth.lesions[side]]
        axes.set_title('\n'.join([f'{view} density {truth.anatomy.density}', *lines]), fontsize=4.5)
        axes.set_axis_off()
    common.save_sheet(path, figure, dpi=130)
