"""Pulmonary phantom: a chest in two phases of CT, without contrast (NCT) and with it in the pulmonary arteries (CTPA).

Half of the patients have emboli, clots in the arteries. In CTPA a clot is a dark gap in bright blood, or a vessel that
stays dark. In NCT it is 8 to 25 HU brighter than blood, under noise of 12 HU a voxel, half of it in lumps as large as a
small clot; only its position in a lumen separates it from muscle and lymph nodes. Veins, aorta and heart are enhanced
too; airways run beside the arteries.

Labels are in the frame of the NCT. CTPA is on the same grid, displaced by the residual error of a registration: a
smooth random field of at most one voxel, 2.5 mm, by default. `facts` and `render` are pure: the same seed and patient
give the same result, in any order.
"""
import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxkd import errors
from jaxkd.data import volume
from jaxkd.phantoms import common
from jaxkd.phantoms.pulmonary import anatomy, scanner

LABELS = ('background', 'embolus')
TASKS = {'pe': ('absent', 'present')}
MODALITIES = ('nct', 'ctpa')
LOCATIONS = anatomy.LEVELS[:4]
FRACTIONS = 0.32, 0.36, 0.2, 0.12  # of the patients with emboli, by the place of the first
FURTHER = 4, 3, 3, 2  # greatest number of further clots
FIELD = 160, 160, 80  # mm, the smallest field with arteries of every place
MIDDLE = 0, -8, -12  # mm of the patient, where the grid is centred
FACTS, ANATOMY, CLOTS, GRID, BLOOD, ABSENT, MOTION, *NOISE = range(9)  # streams of random numbers
F = np.float32


@dataclasses.dataclass(frozen=True)
class Facts:
    """The drawn facts of a patient, without an image."""

    clots: tuple  # the place of each, the first being the most central and the largest

    @property
    def pe(self) -> int:
        return int(bool(self.clots))

    @property
    def groups(self) -> dict[str, str]:
        return {'pe': TASKS['pe'][self.pe], 'location': self.clots[0] if self.clots else 'none'}


def check(patients: int = 1, size: int = 80, depth: int = 40, spacing: tuple[float, ...] = (2.0, 2.0, 2.0),
          pe: float = 0.5, difficulty: float = 0.5, warp: float = 1.0, missing_ctpa: float = 0.0,
          seed: int = 0) -> None:
    """Raises ConfigError for options outside their range."""
    common.check_ranges('pulmonary', patients=(patients, 1, 10**6), size=(size, 32, 320), depth=(depth, 16, 256),
                        seed=(seed, *common.SEEDS), pe=(pe, 0, 1), difficulty=(difficulty, 0, 1), warp=(warp, 0, 6),
                        missing_ctpa=(missing_ctpa, 0, 1))
    if len(spacing) != 3 or not all(1 <= s <= 5 for s in spacing):
        raise errors.ConfigError(f'pulmonary: spacing={tuple(spacing)} is not three voxel sides (x, y, z) of 1 to '
                                 '5 mm; give such sides.')
    field = tuple(n * s for n, s in zip((size, size, depth), spacing))
    if any(f < low for f, low in zip(field, FIELD)):
        raise errors.ConfigError(f'pulmonary: size={size}, depth={depth} and spacing={tuple(spacing)} cover {field} mm '
                                 f'(x, y, z); {FIELD} mm are the least that shows arteries of every place. Raise one '
                                 'of them.')


def facts(seed: int, patient: int, pe: float = 0.5) -> Facts:
    """The Facts of a patient; pe: the fraction of patients with emboli."""
    rng = common.rng(seed, patient, FACTS)
    if rng.random() >= pe:
        return Facts(())
    first = int(rng.choice(4, p=FRACTIONS))
    places = first + np.minimum(rng.geometric(0.4, rng.integers(FURTHER[first] + 1)) - (first == 3), 3 - first)
    return Facts(tuple(LOCATIONS[k] for k in (first, *sorted(places))))


def absent(seed: int, patient: int, missing_ctpa: float = 0.0) -> tuple[str, ...]:
    """Missing modalities of a patient."""
    return ('ctpa',) * (common.rng(seed, patient, ABSENT).random() < missing_ctpa)


def render(seed: int, patient: int, size: int = 80, depth: int = 40,
           spacing: tuple[float, float, float] = (2.0, 2.0, 2.0), pe: float = 0.5, difficulty: float = 0.5,
           warp: float = 1.0, modalities: Sequence[str] = MODALITIES) -> tuple[dict[str, volume.Volume], volume.Volume]:
    """The volumes of a patient.

    size, depth: voxels in plane and slices; spacing: mm x, y, z. difficulty: 0 to 1, takes contrast from the clots in
    NCT and adds noise to it. warp: voxels, the longest vector of the field that CTPA is displaced by is drawn from 0 to
    this, for each patient.

    Returns {modality: Volume of int16 HU} and the uint8 Volume of clots in the frame of NCT: 0, or 1 + the index of the
    clot in `facts`.
    """
    check(size=size, depth=depth, spacing=spacing, pe=pe, difficulty=difficulty, warp=warp, seed=seed)
    levels = facts(seed, patient, pe).clots
    person = anatomy.draw(common.rng(seed, patient, ANATOMY))
    rng, blood, motion = (common.rng(seed, patient, k) for k in (GRID, BLOOD, MOTION))
    step, shape = np.asarray(spacing, float), np.array((size, size, depth))
    middle = person.scale * np.array(MIDDLE) + rng.uniform(-5, 5, 3)
    table = rng.uniform((-20, -220, -700), (20, -120, -300))  # of the scanner, in the patient
    first = middle - (shape - 1) / 2 * step
    reach = shape / 2 * step - 5
    clots = anatomy.clots(common.rng(seed, patient, CLOTS), person, levels, middle - reach, middle + reach)
    spare = int(np.ceil(warp)) * ('ctpa' in modalities)  # margin for displacement into the field
    grid = scanner.Grid(first - spare * step, step, shape + 2 * spare)
    inner = (slice(spare, -spare or None),) * 3
    codes, chest = scanner.tissues(person, clots, grid), scanner.chest(person, grid)
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = first + table
    gain = 1.5 - difficulty
    basis = 2.0 * blood.standard_normal()  # thin or thick blood
    bright, extra = np.exp(0.08 * blood.standard_normal(5)), gain * blood.uniform(*scanner.EXTRA, max(len(levels), 1))
    most = motion.uniform(0, 1) * warp
    volumes = {}
    for modality, stream in zip(MODALITIES, NOISE):
        if modality not in modalities:
            continue
        if modality == 'nct':
            vessels = ('left', 'right', 'vein', 'aorta', 'cava', 'artery')
            values = scanner.NCT | {name: scanner.BLOOD + basis for name in vessels}
            image = scanner.image(chest, codes, values, scanner.BLOOD + basis + extra[:len(levels)])[inner]
            noise = scanner.NOISE[modality] * (0.5 + difficulty)
        else:
            right, left, aorta, cava, _ = bright
            factors = dict(left=left, vein=left, aorta=left * aorta, cava=cava, right=right, artery=right)
            values = scanner.CTPA | {name: scanner.CTPA[name] * f for name, f in factors.items()}
            image = scanner.image(chest, codes, values, np.full(len(levels), scanner.CLOT))
            image, noise = scanner.warp(image, most, motion)[inner], scanner.NOISE[modality]
        image = image + F(noise) * scanner.noise(image.shape, step, common.rng(seed, patient, stream))
        volumes[modality] = volume.Volume(np.rint(image.clip(-1024, 3071)).astype(np.int16), affine)
    return volumes, volume.Volume(scanner.labels(codes, len(levels))[inner], affine)
