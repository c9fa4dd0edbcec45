"""Breast phantom: schematic mammograms with masses and calcifications, their outlines, and the table that describes
them.

`facts` and `render` are pure: the same numbers give the same patient and the same picture on every machine, in any
order. A picture is Beer and Lambert's law over paths of fat, gland, mass, muscle and calcium,

    -log I = MU['fat'] (t - t_gland) + MU['gland'] t_gland + ...

plus quantum noise, and the S curve of film at an exposure that the breast sets. MU are linear attenuation coefficients
in 1/cm near 20 keV (fat, gland and tumour to about 0.05 as in Johns and Yaffe, Phys Med Biol 1987; calcium rounded).
Descriptors and pathology of lesions are in findings.py, their pictures in lesions.py. [our choice]
"""
import dataclasses
import functools

import numpy as np

from jaxkd.data.sources.shared.boxes import boxes_of_masks
from jaxkd.phantoms import common
from jaxkd.phantoms.breast import anatomy as anatomies
from jaxkd.phantoms.breast import findings, lesions

MU = {'fat': 0.45, 'gland': 0.80, 'mass': 0.85, 'muscle': 0.82, 'calcium': 13.0}
SIZES = 64, 1024
KINDS = {'both': findings.KINDS, 'mass': ('mass',), 'calc': ('calcification',)}
SIDES, VIEWS = ('LEFT', 'RIGHT'), ('CC', 'MLO')
PATIENT, ANATOMY, POSE, LESION, NOISE = range(5)  # streams of random numbers
TOGETHER = 0.06  # fraction of breasts with both kinds of lesion
F = np.float32


@dataclasses.dataclass(frozen=True)
class Facts:
    """The drawn facts of a patient, without an image."""

    anatomy: anatomies.Anatomy
    images: tuple  # of (side, view)
    lesions: dict  # side -> tuple of Lesion, masses first


def check(size: int = 128, difficulty: float = 0.5, seed: int = 0, kind: str = 'both', patients: int = 1) -> None:
    """Raises ConfigError for options outside their range."""
    common.check_ranges('breast', size=(size, *SIZES), difficulty=(difficulty, 0, 1), seed=(seed, *common.SEEDS),
                        patients=(patients, 1, 10**5))
    common.check_choice('breast', 'kind', kind, KINDS)


@functools.lru_cache(maxsize=8192)
def facts(seed: int, patient: int, kind: str = 'both') -> Facts:
    """The Facts of a patient. Every breast has a lesion, as in an archive of findings; both kinds are equally
    frequent.
    """
    rng = common.rng(seed, patient, PATIENT)
    kinds = KINDS[kind]
    sides = SIDES if rng.random() < 0.12 else (SIDES[rng.integers(2)],)
    main = kinds[rng.integers(len(kinds))]
    images, lesions = [], {}
    for side in sides:
        views = VIEWS if rng.random() < 0.75 else (VIEWS[rng.integers(2)],)
        images += [(side, view) for view in views]
        listed = [main] * (1 + int(rng.random() < 0.10) + int(rng.random() < 0.03))
        listed += [k for k in kinds if k != main and rng.random() < TOGETHER]
        listed.sort(key=findings.KINDS.index)
        lesions[side] = tuple(findings.draw(rng, k, 1 + listed[:i].count(k)) for i, k in enumerate(listed))
    return Facts(anatomies.draw(common.rng(seed, patient, ANATOMY)), tuple(images), lesions)


def name(patient: int) -> str:
    return f'P_{patient:05d}'


def rows(seed: int, patient: int, side: str, view: str, kind: str = 'both') -> list[dict[str, str]]:
    """The table of one image: for each lesion a dict of strings under the column names of CBIS-DDSM, without its
    paths.
    """
    truth = facts(seed, patient, kind)
    image = {'patient_id': name(patient), 'breast density': str(truth.anatomy.density), 'left or right breast': side,
             'image view': view}
    return [image | {'abnormality id': str(lesion.number), 'abnormality type': lesion.kind,
                     **dict(zip(findings.COLUMNS[lesion.kind], (lesion.first, lesion.second))),
                     'assessment': str(lesion.assessment), 'pathology': lesion.pathology,
                     'subtlety': str(lesion.subtlety)} for lesion in truth.lesions[side]]


def render(seed: int, patient: int, side: str, view: str, size: int = 128, difficulty: float = 0.5, kind: str = 'both',
           draw: bool = True) -> dict[str, np.ndarray]:
    """One image and its lesions. The chest wall is at the left of a left breast, at the right of a right one.

    size: rows, 64..1024; columns are 4/5 of them. difficulty: 0 (plain lesions in smooth tissue, little noise) to 1.
    draw=False leaves the lesions out of the picture.

    Returns image uint16 [H,W]; masks uint8 [n,H,W] in the order of facts(...).lesions[side]; boxes float32 [n,5]
    (label 0 for a malignant lesion, -1 for another, x, y, w, h in pixels).
    """
    check(size, difficulty, seed, kind)
    truth = facts(seed, patient, kind)
    key = SIDES.index(side), VIEWS.index(view)
    rng = common.rng(seed, patient, POSE, *key)
    layers = anatomies.build_layers(truth.anatomy, view, rng, size, 0.25 + 1.1 * difficulty)
    layers.mass, layers.calcium = np.zeros((2, *layers.path.shape), F)
    masks = []
    for k, lesion in enumerate(truth.lesions[side]):
        generator = common.rng(seed, patient, LESION, *key, k)
        masks.append(lesions.paint(lesion, layers, lesions.place(lesion, layers), 1.25 - 0.8 * difficulty, generator))
    if not draw:
        layers.mass[:], layers.calcium[:] = 0, 0
    image = _expose(layers, truth.anatomy, difficulty, common.rng(seed, patient, NOISE, *key))
    if rng.random() < 0.7:
        _marker(image, rng)
    stacked = np.array(masks, np.uint8)
    if side == 'RIGHT':
        image, stacked = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(stacked[..., ::-1])
    labels = [0 if lesion.malignant else -1 for lesion in truth.lesions[side]]
    return dict(image=image, masks=stacked, boxes=boxes_of_masks(labels, stacked))


def _expose(layers, anatomy, difficulty, rng):
    """Paths to grey values, uint16 [H,W]: air black, dense tissue bright."""
    gland, mass = layers.path * layers.gland, np.minimum(layers.mass, layers.path)
    mass, hole = np.maximum(mass, 0), np.minimum(mass, 0)
    gland = np.maximum(gland + hole, 0) * (1 - F(0.35) * np.minimum(mass / np.maximum(layers.path, F(0.5)), 1))
    depth = F(MU['fat']) * layers.path + F(MU['gland'] - MU['fat']) * gland + F(MU['mass'] - MU['fat']) * mass
    depth += F(MU['muscle'] - MU['fat']) * layers.muscle + F(MU['calcium']) * layers.calcium
    middle = MU['fat'] * anatomy.thick + 0.55 * (MU['gland'] - MU['fat']) * anatomy.thick
    dose = 3e4 * layers.px ** 2 * (2.0 - 1.7 * difficulty) * np.exp(middle)  # quanta; the timer looks at the breast
    depth += rng.standard_normal(depth.shape, dtype=F) * np.exp(F(0.5) * depth) * F(dose ** -0.5 + 0.002)
    grey = F(0.5) + F(0.5) * np.tanh((depth - F(middle)) * F(0.85))
    return (np.clip(grey + F(0.012), 0, 1) * F(65535)).astype(np.uint16)


def _marker(image, rng):
    """The technician's letters, brighter than any tissue, in a corner away from the breast."""
    height, width = image.shape
    tall, wide = max(2, height // 22), max(2, height // 40)
    top = int(rng.uniform(0.03, 0.08) * height)
    left = width - int(rng.uniform(1.5, 3.0) * wide) - 2 * wide
    for k in range(2):
        column = left + k * (wide + max(1, wide // 3))
        part = image[top:top + tall, column:column + wide]
        if part.size and part.max() < 6000:  # never over the breast
            part[:] = 60000
            part[tall // 4:tall // 2, wide // 3:] = 900
