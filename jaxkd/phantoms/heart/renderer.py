"""Heart phantom: short-axis cine MRI of five groups of patients, with right ventricle, muscle and left ventricle.

Groups are those of heart failure clinics: DCM a wide left ventricle that hardly moves, HCM a thick wall, MINF a wall
thin in one place, NOR, RV a wide right ventricle; each block of five patients has one of each group.
Papillary muscles belong to the left ventricle in the label and look like muscle. Slices run from base to apex; the
first ones are above the mitral ring at end-systole, without a label. Around the heart are fat, lung, chest wall and a
liver of nearly the muscle's grey. Two scanners, A and B (scanner.py), show the same patients.

`facts` and `render` are pure: the same seed and patient give the same result, in any order. Slices, their distance
and which of them have a label do not depend on the scanner.
"""
import dataclasses
import functools

import numpy as np

from jaxkd import errors
from jaxkd.phantoms import common
from jaxkd.phantoms.heart import anatomy, scanner

LABELS = ('background', 'RV', 'MYO', 'LV')
GROUPS = anatomy.GROUPS
PHASES = ('ED', 'ES')
DOMAINS = tuple(scanner.SCANNERS)
FRAMES = 0, 11  # numbers of the frames of a cine that show ED and ES
THIN = 3  # levels computed within the thickness of a slice
GAP = 0.2  # gap between slices, as a fraction of their distance
BLOCK, ANATOMY, STACK, CHEST, POSE, NOISE = range(6)  # streams of random numbers
F = np.float32


@dataclasses.dataclass(frozen=True)
class Facts:
    """The drawn facts of a patient, without an image."""

    group: str
    heart: anatomy.Heart
    z: np.ndarray  # [slices] mm along the axis, base first
    distance: float  # mm from slice to slice

    def labelled(self, phase: str) -> np.ndarray:
        """bool [slices]: which slices of a phase have a label."""
        return anatomy.labelled(self.heart, PHASES.index(phase), self.z)


def check(patients: int = 1, size: int = 64, slices: tuple[int, ...] = (8, 10), domain: str = 'A',
          difficulty: float = 0.5, seed: int = 0) -> None:
    """Raises ConfigError for options outside their range."""
    common.check_ranges('heart', patients=(patients, 1, 10**6), size=(size, 32, 512), seed=(seed, *common.SEEDS),
                        difficulty=(difficulty, 0, 1))
    if len(slices) != 2 or not 6 <= slices[0] <= slices[1] <= 16:
        raise errors.ConfigError(f'heart: slices={tuple(slices)} is not the fewest and the most slices of a patient; '
                                 'give two numbers from 6 to 16, the smaller first.')
    common.check_choice('heart', 'domain', domain, DOMAINS)


@functools.lru_cache(maxsize=4096)
def facts(seed: int, patient: int, slices: tuple[int, int] = (8, 10)) -> Facts:
    """The Facts of a patient with `slices` (fewest, most) slices."""
    block, place = divmod(patient, len(GROUPS))
    group = GROUPS[common.rng(seed, block, BLOCK, 0).permutation(len(GROUPS))[place]]
    heart = anatomy.draw(common.rng(seed, patient, ANATOMY, 0), group)
    rng = common.rng(seed, patient, STACK, 0)
    count = int(rng.integers(slices[0], slices[1] + 1))
    distance = float(np.clip(round((heart.length + 4) / count, 1), 8, 10))
    return Facts(group, heart, rng.uniform(-0.5, 0.45) * distance + distance * np.arange(count), distance)


def render(seed: int, patient: int, contraction: float, domain: str = 'A', size: int = 64,
           slices: tuple[int, int] = (8, 10), difficulty: float = 0.5,
           frame: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The stack of a patient at one moment, base first, rows downwards.

    contraction: 0 is end-diastole, 1 end-systole. size: pixels of the square picture, 32..512. difficulty: 0 to 1,
    more noise, and less contrast of liver to muscle. frame: number of the moment, which selects the noise.

    Returns image int16 [Z,H,W] in the scanner's units; label uint8 [Z,H,W] in LABELS; spacing float32 [3], mm between
    slices, rows and columns.
    """
    check(size=size, slices=slices, domain=domain, difficulty=difficulty, seed=seed)
    truth = facts(seed, patient, tuple(slices))
    pose = scanner.place(domain, common.rng(seed, patient, POSE, DOMAINS.index(domain)), difficulty)
    u, v, pixel = scanner.grid(pose, size)
    chest = anatomy.chest(common.rng(seed, patient, CHEST, 0), truth.heart)
    lumps, slow = _stock()[:, *common.periodic_index((v, u), chest.fold, 256)]
    signal = _scene(pose.signals, chest, anatomy.level(truth.heart, contraction, truth.z), u, v, pixel, lumps)
    first, *more = truth.heart.fat
    fat = F(first * (1.3 - 0.6 * difficulty)) + (F(more[0]) * u + F(more[1]) * v) / 30 + F(1.5) * slow
    thin = (np.arange(THIN) + 0.5) / THIN - 0.5
    z = (truth.z[:, None] + thin * truth.distance * (1 - GAP)).ravel()
    parts = anatomy.heart(truth.heart, contraction, z, u, v)
    image = _paint_heart(pose.signals, truth.heart, parts, np.repeat(signal, THIN, 0), pixel, lumps, fat)
    image = image.reshape(len(truth.z), THIN, size, size).mean(1)
    noise = common.rng(seed, patient, NOISE, 2 * frame + DOMAINS.index(domain))
    image = scanner.acquire(image, pose, domain, pixel, 0.6 + 0.8 * difficulty, noise)
    return image, _label(parts), np.array([truth.distance, pixel, pixel], F)


def grey(image: np.ndarray) -> np.ndarray:
    """uint8 of a stack: its 1st to 99th percentile."""
    low, high = np.percentile(image, (1, 99))
    return np.rint(np.clip((image - low) / max(high - low, 1), 0, 1) * 255).astype(np.uint8)


def study(patient: int, phase: str) -> str:
    return f'p{patient:06d}_{phase}'


def assigned_scanner(seed: int, patient: int) -> str:
    """The scanner of a patient in a data set of both."""
    return DOMAINS[common.rng(seed, patient, POSE, len(DOMAINS)).integers(len(DOMAINS))]


def _scene(signals, chest, t, u, v, pixel, lumps):
    """The chest without the heart [Z,H,W]."""
    image = np.full((len(t), *u.shape), signals['air'], F)
    for tissue, cover in anatomy.surroundings(chest, t.astype(F)[:, None, None], u, v, pixel):
        value = F(signals[tissue])
        if tissue == 'stomach':
            value = F(signals['stomach'] + chest.filling ** 2 * (signals['fluid'] - signals['stomach']))
        elif tissue == 'lung':
            value = value + F(0.25) * np.clip(lumps - F(1.3), 0, 1)  # vessels
        elif tissue in ('liver', 'muscle', 'spleen'):
            value = value * (1 + F(0.07) * lumps)
        common.blend(image, cover, value)
    return image


def _paint_heart(signals, heart, parts, image, pixel, lumps, fat):
    """The heart painted over the chest, [Z,H,W] thin levels; fat [H,W] mm around it."""
    muscle = F(signals['heart']) * (1 + F(0.06) * lumps)
    blood = F(signals['blood']) * (1 + F(0.04) * lumps)
    alive = parts.t < 1.05  # below the apex: no heart and none of its fat
    sac = parts.around - np.clip(fat, F(0.8), F(9))
    for distance, value in ((sac - F(1.2), F(signals['sac'])), (sac, F(signals['fat'])), (parts.right - F(2.8), muscle),
                            (parts.right + F(heart.rough) * lumps, blood), (parts.outer, muscle),
                            (parts.inner + F(heart.rough) * lumps, blood)):
        common.blend(image, anatomy.coverage(distance, pixel) * alive, value)
    papillary = np.minimum(anatomy.coverage(parts.muscles, pixel), anatomy.coverage(parts.inner, pixel))
    common.blend(image, papillary, muscle)
    return image


def _label(parts):
    """uint8 [Z,H,W] from the middle levels."""
    t, inner, outer, right = (a[THIN // 2::THIN] for a in (parts.t, parts.inner, parts.outer, parts.right))
    label = np.where(inner < 0, 3, np.where(outer < 0, 2, np.where(right < 0, 1, 0)))
    return (label * ((t >= 0) & (t < anatomy.LAST))).astype(np.uint8)


@functools.cache
def _stock():
    """Lumps of tissue of about 5 and 16 mm, float32 [2,256,256] of unit variance, periodic, a pixel a millimetre."""
    rng = common.rng(20260401)
    return np.stack([common.lumps(rng, (256, 256), sigma) for sigma in (2.2, 7)]).astype(F)
