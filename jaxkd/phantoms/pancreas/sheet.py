"""Contact sheet of the pancreas phantom: a patient of each texture and duct in CT, T1 and T2, the lesion outlined."""
import os
from typing import Any

import numpy as np

from jaxkd.data.volume import Volume
from jaxkd.phantoms import common
from jaxkd.phantoms.pancreas import renderer

SUBGROUPS = 'ordinary', 'challenging'


def draw(path: str | os.PathLike, seed: int = 0, size: int = 96, depth: int = 24,
         field: tuple[float, float, float] = (160.0, 160.0, 72.0), difficulty: float = 0.5, subgroup: str = '') -> None:
    """Write the first patient of each texture and duct.

    Slices through the lesion in the radiological view: patient's right to the left, front up. size: voxels of the CT
    in plane, 32..256. depth: slices of the CT, 8..96. field: mm x, y, z around the lesion. difficulty: 0 plain .. 1
    little contrast and much noise in CT. subgroup: 'challenging' or 'ordinary' picks such patients.
    Raises ConfigError, CannotWrite.
    """
    from matplotlib.figure import Figure
    if subgroup:
        common.check_choice('pancreas', 'subgroup', subgroup, SUBGROUPS)
    patients: dict[tuple[int, int], int] = {}
    for patient in range(2000):
        truth = renderer.facts(seed, patient)
        if subgroup in ('', truth.groups['subgroup']):
            patients.setdefault((truth.texture, truth.duct), patient)
    axes = (figure := Figure(figsize=(18, 7.3), layout='constrained')).subplots(3, 9, squeeze=False)
    for (texture, duct), patient in sorted(patients.items()):
        truth = renderer.facts(seed, patient)
        volumes, masks, centroids = renderer.render(seed, patient, size, depth, field, difficulty)
        for k, modality in enumerate(volumes):
            panel = axes[texture, 3 * duct + k]
            _show(panel, modality, volumes[modality], masks[modality], centroids[modality])
            panel.set_title(f'{modality.upper()} {truth.centre}' if k else
                            f'{renderer.TASKS["texture"][texture]}, {renderer.TASKS["duct"][duct]}: '
                            f'{renderer.LABELS[truth.label]}\n{truth.size:.0f} mm, {truth.groups["subgroup"]}',
                            fontsize=7)
    common.save_sheet(path, figure, dpi=100)


def _show(panel: Any, modality: str, image: Volume, mask: Volume, centroid: np.ndarray) -> None:
    """The slice through the centroid, mm RAS, with the outline of the mask."""
    step, first = np.diag(image.affine)[:3], image.affine[:3, 3]
    k = round((centroid[2] - first[2]) / step[2])
    picture, outline = image.voxels[:, :, k].T, mask.voxels[:, :, k].T
    low, high = (-110, 220) if modality == 'ct' else np.percentile(picture, (1, 97.5))
    a, b = first[:2], first[:2] + step[:2] * (np.array(image.voxels.shape[:2]) - 1)
    panel.imshow(picture, cmap='gray', vmin=low, vmax=high, origin='lower', extent=(a[0], b[0], a[1], b[1]))
    panel.contour(np.linspace(a[0], b[0], outline.shape[1]), np.linspace(a[1], b[1], outline.shape[0]), outline, [0.5],
                  colors='gold', linewidths=0.6)
    panel.invert_xaxis()
    panel.set_axis_off()
