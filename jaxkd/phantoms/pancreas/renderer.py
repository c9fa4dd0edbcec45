"""Pancreas phantom: paired CT, T1 and T2 volumes of the upper abdomen around a lesion of the pancreas.

Drawn first are the lesion's texture and the state of the main duct (table SIGNS), then the class of the lesion by
PRIOR[texture, duct]; both tables are [our choice] after common teaching: a cyst beside a normal duct is mostly
benign, a cyst that opens into a wide duct is mostly a low-grade IPMN, a cyst that blocks the duct a pseudocyst, a
solid lesion beside a normal duct a neuroendocrine tumour, one that blocks the duct an adenocarcinoma. MRI shows
texture and duct plainly. CT shows them in the `ordinary` patients. In the `challenging` ones (a lesion below 15 mm,
or one of the HU of the gland) CT has weak signs only, and none in the mean of the lesion: the difference in grey
between rim and middle, its evenness, septa, a faint duct, a thinner gland upstream, strands in the fat. The class
itself has weak signs in both: the outline, nodules and the enhancement of solid parts.

`facts` and `render` are pure: the same seed and patient give the same result, in any order.
"""
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from jaxkd import errors
from jaxkd.data import volume
from jaxkd.phantoms import common
from jaxkd.phantoms.pancreas import anatomy, scanner

LABELS = ('benign', 'low_grade', 'malignant')
TASKS = {'texture': ('cystic', 'mixed', 'solid'), 'duct': ('normal', 'dilated', 'cut_off')}
MODALITIES = ('ct', 't1', 't2')
SIGNS = np.array([(0.26, 0.09, 0.07), (0.08, 0.13, 0.07), (0.10, 0.08, 0.12)])  # P(texture, duct)
PRIOR = np.array([  # P(class | texture, duct)
    [(0.90, 0.08, 0.02), (0.10, 0.84, 0.06), (0.76, 0.14, 0.10)],
    [(0.15, 0.80, 0.05), (0.06, 0.84, 0.10), (0.04, 0.10, 0.86)],
    [(0.10, 0.82, 0.08), (0.06, 0.12, 0.82), (0.02, 0.04, 0.94)]])
SIZES = {'small': (8, 15), 'middle': (15, 25), 'large': (25, 35)}  # mm, a third of the patients each
ISO = 0.1, 0.5  # fraction of isoattenuating lesions from 15 mm on, and below
MISALIGNED = 10.0  # mm: bound on the displacement of a lesion between two modalities by breathing
SPARE = 6.0  # mm that a grid reaches beyond the field on each side
FACTS, ANATOMY, MOTION, ABSENT, TISSUE, *NOISE = range(8)  # streams of random numbers
F = np.float32
Rendered = tuple[dict[str, volume.Volume], dict[str, volume.Volume], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Facts:
    """The drawn facts of a patient, without an image; texture, duct and label are class indices."""

    texture: int
    duct: int
    label: int
    centre: str
    size: float  # mm, mean diameter of the lesion
    iso: bool  # isoattenuating in CT

    @property
    def challenging(self) -> bool:
        return self.iso or self.size < SIZES['small'][1]

    @property
    def groups(self) -> dict[str, str]:
        size = next(name for name, (_, high) in SIZES.items() if self.size < high or name == 'large')
        return {'class': LABELS[self.label], 'center': self.centre,
                'subgroup': 'challenging' if self.challenging else 'ordinary', 'size': size}


def ceiling() -> float:
    """Accuracy of the best guess of the class from texture and duct."""
    return float((SIGNS * PRIOR.max(-1)).sum())


def check(patients: int = 1, size: int = 48, depth: int = 16, field: tuple[float, ...] = (96, 96, 72),
          difficulty: float = 0.5, missing_mri: float = 0, missing_t2: float = 0, unknown: float = 0,
          seed: int = 0) -> None:
    """Raises ConfigError for options outside their range."""
    common.check_ranges('pancreas', patients=(patients, 1, 10**6), size=(size, 32, 256), depth=(depth, 8, 96),
                        seed=(seed, *common.SEEDS), difficulty=(difficulty, 0, 1), missing_mri=(missing_mri, 0, 1),
                        missing_t2=(missing_t2, 0, 1), unknown=(unknown, 0, 1))
    if len(field) != 3 or field[0] != field[1] or not all(60 <= f <= 240 for f in field):
        raise errors.ConfigError(f'pancreas: field={tuple(field)} is not three lengths (x, y, z) of 60 to 240 mm with '
                                 'x equal to y; give such lengths.')


def facts(seed: int, patient: int) -> Facts:
    """The Facts of a patient."""
    rng = common.rng(seed, patient, FACTS)
    texture, duct = divmod(int(rng.choice(9, p=SIGNS.ravel())), 3)
    label = int(rng.choice(3, p=PRIOR[texture, duct]))
    centre = str(rng.choice(list(scanner.CENTRES), p=[c.fraction for c in scanner.CENTRES.values()]))
    size = float(rng.uniform(*list(SIZES.values())[rng.integers(3)]))
    return Facts(texture, duct, label, centre, size, bool(rng.random() < ISO[size < SIZES['small'][1]]))


def absent(seed: int, patient: int, missing_mri: float = 0.05, missing_t2: float = 0.05,
           unknown: float = 0.02) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(missing modalities, tasks of unknown label) of a patient, each with its probability; missing_t2: T2 alone."""
    u = common.rng(seed, patient, ABSENT).random(4)
    missing = ('t1', 't2') if u[0] < missing_mri else ('t2',) if u[1] < missing_t2 else ()
    return missing, tuple(task for task, v in zip(TASKS, u[2:]) if v < unknown)


def render(seed: int, patient: int, size: int = 48, depth: int = 16, field: tuple[float, float, float] = (96, 96, 72),
           difficulty: float = 0.5, modalities: Sequence[str] = MODALITIES) -> Rendered:
    """The volumes of a patient.

    size, depth: voxels of the nominal CT grid, in plane 32..256 and slices 8..96. field: mm x, y, z that each grid
    covers around the lesion, with a little to spare; centres differ by the factors of `scanner.CENTRES` from the
    nominal voxel field / (size, size, depth). difficulty: 0 to 1, takes contrast from CT and adds noise to it.

    Returns {modality: Volume of int16}, HU for 'ct'; {modality: uint8 Volume, 1 in the lesion}; and {modality:
    float64 [3], mm RAS of the lesion's centroid}.
    """
    check(size=size, depth=depth, field=field, difficulty=difficulty, seed=seed)
    truth = facts(seed, patient)
    person = anatomy.draw(common.rng(seed, patient, ANATOMY), truth.size, truth.texture, truth.duct, truth.label)
    motion = common.rng(seed, patient, MOTION)
    table, apart = motion.uniform((-25, -140, -900), (25, -90, -600)), motion.uniform(-1, 1, 3) * (2, 2, 5)
    tissue = common.rng(seed, patient, TISSUE).standard_normal(12)
    centre = scanner.CENTRES[truth.centre]
    volumes, masks, centroids = {}, {}, {}
    for index, modality in enumerate(MODALITIES):
        shift, bend = motion.uniform(-1, 1, 3), motion.uniform(-1.5, 1.5, 4) * (1, 1, 2, 2)
        jitter = motion.uniform(-1, 1, 3)  # of the grid, not of the patient
        if modality not in modalities:
            continue
        shift, bend = (np.zeros(3), np.zeros(4)) if modality == 'ct' else (shift + apart, bend)
        factor = getattr(centre, f'{modality}_voxel')
        step = np.asarray(field) / (size, size, depth) * (factor[0], factor[0], factor[1])
        count = np.ceil((np.asarray(field) + 2 * SPARE) / step).astype(int)
        first = person.lesion.place + jitter - (count - 1) / 2 * step  # in the patient
        x, y, z = (f + s * np.arange(n) for f, s, n in zip(first, step, count))
        points = anatomy.Points(x, y, z, bend)
        lesion = anatomy.lesion(person, points)
        rng = common.rng(seed, patient, NOISE[index])
        if modality == 'ct':
            image = _ct(truth, person, points, lesion, tissue, difficulty)
            image = scanner.ct(image, step, truth.centre, 0.6 + 0.8 * difficulty, rng).clip(-1024, 3071)
        else:
            image = _mri(person, points, lesion, tissue, scanner.signals(truth.centre, modality))
            image = scanner.mri(image, truth.centre, 1, rng).clip(0, 32767)
        affine = np.diag([*step, 1.0])
        affine[:3, 3] = first + shift + table
        volumes[modality] = volume.Volume(np.rint(image).astype(np.int16), affine)
        mask = np.zeros(points.shape, np.uint8)
        mask[lesion.box] = lesion.cover >= min(0.5, 0.9 * lesion.cover.max())
        masks[modality] = volume.Volume(mask, affine)
        weight = lesion.cover / lesion.cover.sum()
        centroid = [(s.start + np.arange(n)) @ weight.sum(tuple(k for k in range(3) if k != axis))
              for axis, (s, n) in enumerate(zip(lesion.box, weight.shape))]
        centroids[modality] = affine[:3, 3] + step * centroid
    return volumes, masks, centroids


def _scene(person, points, values, rough):
    """(image, lumps, gland): all organs in their values, with lumps of `rough` values in the gland."""
    image = np.full(points.shape, values['air'], F)
    for tissue, box, cover in anatomy.organs(person, points):
        common.blend(image[box], cover, F(values[tissue]))
    lumps = _stock()[common.periodic_index((points.x, points.y, points.z), person.fold, anatomy.FOLD)]
    gland = np.zeros(points.shape, F)
    if placed := anatomy.gland(person, points, lumps):
        box, gland[placed[0]] = placed
        common.blend(image[box], placed[1], values['pancreas'] + F(rough) * lumps[box])
    return image, lumps, gland


def _ct(truth, person, points, lesion, tissue, difficulty):
    """The CT before the scanner, HU [X,Y,Z]."""
    hard, gain = truth.challenging, 1.5 - difficulty
    pancreas = scanner.CT['pancreas'] + 7 * tissue[0]
    values = dict(scanner.CT, pancreas=pancreas, liver=scanner.CT['liver'] + 8 * tissue[1],
                  blood=scanner.CT['blood'] + 12 * tissue[2])
    rough = 7
    image, lumps, gland = _scene(person, points, values, rough)
    image += 9 * lumps * (np.abs(image - values['fat']) < 30)  # small vessels and septa of the fat
    plain = 1 - 0.3 * difficulty
    bore = -90 * (plain if not hard else 0.2 * gain)
    cleft = anatomy.duct(person, points, 1.6)
    _add(image, gland, cleft, -6 * abs(tissue[3]))  # a groove filled with fat, in any patient
    tube = anatomy.duct(person, points)
    if truth.duct != 1:
        _add(image, gland, tube, bore)

    visible = plain if not hard else 0 if truth.iso else 0.22 * gain
    solid = scanner.CT['tumour'] + (16, 6, -4)[truth.label] + 8 * tissue[4] - pancreas
    cyst = scanner.CT['cyst'] + 5 * tissue[5] - pancreas
    box, cover, fluid = lesion.box, lesion.cover, lesion.fluid
    inner_rough = rough * (0.2, 0.6, 1.0)[truth.texture]
    inside = cover * (F(pancreas) + F(inner_rough) * lumps[box]) + F(visible) * (fluid * cyst + (cover - fluid) * solid)
    if hard:
        fluid_fraction = fluid.sum() / cover.sum()
        inside += cover * F((3 if truth.iso else 5) * tissue[6])
        inside += lesion.profile * F(gain * (8, 0, -8)[truth.texture] + 4 * tissue[7])
        inside += (cover * fluid_fraction - fluid) * F(16 * gain)
    strands = max(0, (3, 9, 16)[truth.texture] + 6 * tissue[8]) * gain
    part = image[box]
    part += F(strands) * lesion.halo * (1 + lumps[box]).clip(0) * (part < -30)
    image[box] = part * (1 - cover) + inside
    if truth.duct == 1:
        _add(image, gland, tube, bore)
    return image


def _add(image, gland, tube, value):
    if tube:
        box, cover = tube
        image[box] += cover * gland[box] * F(value)


def _mri(person, points, lesion, tissue, signals):
    """The MRI before the scanner, the pancreas being 1."""
    image, lumps, _ = _scene(person, points, signals, 0.07)
    image *= 1 + F(0.04) * lumps
    fluid, solid = signals['cyst'] * np.exp(0.12 * tissue[9]), signals['tumour'] * np.exp(0.08 * tissue[10])
    tube = anatomy.duct(person, points)
    if tube and person.duct != 1:
        common.blend(image[tube[0]], tube[1], F(signals['fluid']))
    part = image[lesion.box]
    part *= 1 - lesion.cover
    part += lesion.fluid * F(fluid) + (lesion.cover - lesion.fluid) * F(solid) * (1 + F(0.05) * lumps[lesion.box])
    if tube and person.duct == 1:
        common.blend(image[tube[0]], tube[1], F(signals['fluid']))
    return image


@functools.cache
def _stock():
    """Lumps of tissue of about 4 mm, float32 [64,64,64] of unit variance, periodic, a voxel a millimetre."""
    return common.lumps(common.rng(20260301), (anatomy.FOLD,) * 3, 1.7).astype(F)
