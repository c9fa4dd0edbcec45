"""An artificial case for a network: what is in a bundle instead of a patient's to try its programs with.

Nothing in it comes from data: a bright shape with texture for pictures, a body of soft tissue with air around it for
volumes, two fixed sentences for reports, the first word of each column for tables.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd import errors
from jaxkd.data import volume
from jaxkd.inference import case_reader
from jaxkd.inference.deployed import Deployed, Step

REPORT = 'FINDINGS: The lungs are clear. The heart is of normal size. IMPRESSION: No acute finding.'
SIZES = (96, 112), (128, 104)  # pixels of two pictures
SHAPES = (40, 44, 28), (36, 48, 24)  # voxels of two volumes


def case(deployed: Deployed) -> dict[str, Any]:
    """{input: array, 'present': {input: 1}} of an artificial case, as the network reads it. ConfigError where cases
    differ in shape, so that no program fits all.
    """
    first, second = (_prepared(deployed, n) for n in (0, 1))
    for key in deployed.inputs:
        if first[key].shape != second[key].shape:
            raise errors.ConfigError(f'{deployed.name}: "{key}" has another shape in each case, {first[key].shape} and '
                                     f'{second[key].shape}. A program needs one: train with "patch" or "crop", or give '
                                     'the transform a size.')
    return first


def _prepared(deployed: Deployed, n: int) -> dict[str, Any]:
    made = {'picture': picture, 'volume': scan, 'text': lambda _: REPORT, 'table': lambda _: table(deployed.steps)}
    record = {key: made[kind](n) for key, kind in deployed.files.kinds.items()}
    volumes = [v for v in record.values() if isinstance(v, volume.Volume)]
    grid = {'label': volume.without_voxels(volumes[0])} if volumes else {}
    prepared, _ = deployed.transforms.apply({**record, 'case': 'artificial'}, grid)
    return case_reader.network_arrays(deployed, deployed.transforms.evaluate(prepared))


def picture(n: int) -> np.ndarray:
    """uint8 [H,W]: half an ellipse at the left, bright and textured, on black."""
    height, width = SIZES[n]
    y, x = np.meshgrid(np.arange(height) / height, np.arange(width) / width, indexing='ij')
    inside = ((y - 0.5) / 0.4) ** 2 + (x / 0.7) ** 2 < 1
    texture = np.random.default_rng(n).uniform(0, 60, (height, width))
    return np.where(inside, 90 + 80 * y + texture, 0).astype(np.uint8)


def scan(n: int) -> volume.Volume:
    """Soft tissue of about 40 HU with two pockets of air, air around it; 3 mm voxels."""
    shape = SHAPES[n]
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing='ij')
    body = (x / 0.9) ** 2 + (y / 0.8) ** 2 < 1
    air = ((np.abs(x) - 0.4) / 0.25) ** 2 + (y / 0.5) ** 2 + (z / 0.8) ** 2 < 1
    tissue = 40 + np.random.default_rng(n).normal(0, 30, shape)
    return volume.Volume(np.where(body & ~air, tissue, -900).astype(np.float32), np.diag([3.0, 3.0, 3.0, 1.0]))


def table(steps: Sequence[Step]) -> list[dict[str, str]]:
    """One finding: the first word or level, or the mean, of each column that a table transform has learned."""
    row: dict[str, str] = {}
    for fitted in [step.fitted for step in steps if isinstance(step.fitted, Mapping)]:
        for kind, columns in fitted.items():
            if kind in ('sets', 'levels', 'numbers'):
                row |= {column: str(values[0]) for column, values in columns.items() if values}
    return [row]
