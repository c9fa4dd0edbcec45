"""Scanner of the pulmonary phantom: tissues on a fine grid, their Hounsfield units in two phases, noise,
misregistration.

The chest is painted by coverage on the grid itself; vessels, airways and clots are painted in whole voxels on a grid
FINE times finer along each axis; a voxel is the mean of its fine voxels, as in a scanner. All numbers are [our choice],
except those of blood, clot and noise, which are the usual ones of both phases.
"""
import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from jaxkd.phantoms import common
from jaxkd.phantoms.pulmonary import anatomy

F = np.float32
FINE = 2
NOISE = dict(nct=12.0, ctpa=15.0)  # HU in a voxel
GRAIN = 3.0  # mm, of half the variance of noise; the other half is white
CLOT = 50.0  # HU in CTPA; in NCT it is EXTRA above blood
EXTRA = 8.0, 25.0
BLOOD = 42.0
MIN_COVERED = 0.35  # fraction of a voxel covered by clot from which its label is embolus
# Codes on the fine grid. Clots follow.
NONE, SHEATH, WALL, AIR, VEIN, AORTA, CAVA, ARTERY, FIRST = range(9)
NCT = dict(air=-1000, fat=-98, muscle=55, marrow=170, cortex=450, lung=-850, septa=-60, heart=46, liver=58, node=44,
           left=BLOOD, right=BLOOD, sheath=-70, wall=32, lumen=-990, vein=BLOOD, aorta=BLOOD, cava=BLOOD, artery=BLOOD)
CTPA = NCT | dict(muscle=62, heart=95, liver=75, node=66, wall=50, left=290, right=360, vein=300, aorta=240, cava=420,
                  artery=350)
_CODES = dict(sheath=SHEATH, wall=WALL, lumen=AIR, vein=VEIN, aorta=AORTA, cava=CAVA, artery=ARTERY)
_BARE = NONE, SHEATH, WALL, ARTERY  # tissues that a clot which widens its vessel may replace


class Grid:
    """Voxel centres of a grid along the patient's axes: first [3] mm, step [3] mm, shape [3]."""

    def __init__(self, first: ArrayLike, step: ArrayLike, shape: Sequence[int] | np.ndarray) -> None:
        self.first, self.step, self.shape = np.asarray(first, float), np.asarray(step, float), tuple(shape)
        self.axes = [(f + s * np.arange(n)).astype(F) for f, s, n in zip(self.first, self.step, shape)]
        self.x, self.y, self.z = np.ix_(*self.axes)

    def finer(self) -> 'Grid':
        """The grid of FINE^3 voxels in each voxel."""
        return Grid(self.first + self.step * (1 / FINE - 1) / 2, self.step / FINE, [FINE * n for n in self.shape])

    def boxes(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and last indices int [n,3], each within the grid, of the boxes between corners [n,3]."""
        a = np.ceil((low - self.first) / self.step).astype(int)
        b = np.floor((high - self.first) / self.step).astype(int) + 1
        return np.clip(a, 0, self.shape), np.clip(b, 0, self.shape)


def tissues(person: anatomy.Person, clots: Sequence[anatomy.Tube], grid: Grid) -> np.ndarray:
    """uint8 codes on the grid finer than `grid`: vessels, airways and clots."""
    fine = grid.finer()
    codes = np.zeros(fine.shape, np.uint8)
    order = {kind: [t for t in person.tubes if t.kind == kind] for kind in {t.kind for t in person.tubes}}
    for tube in itertools.chain(order['artery'], order['vein']):
        if tube.level in ('central', 'lobar') and tube is not order['artery'][0]:  # the trunk leaves the heart
            _tube(codes, fine, tube.points, tube.radii + 2.5, SHEATH)
    for tube in order['airway']:
        _tube(codes, fine, tube.points, tube.radii + 0.6 + 0.12 * tube.radii, WALL)
    for tube in order['airway']:
        _tube(codes, fine, tube.points, tube.radii, AIR)
    for kind, code in (('wall', WALL), ('vein', VEIN), ('aorta', AORTA), ('cava', CAVA), ('artery', ARTERY)):
        for tube in order[kind]:
            _tube(codes, fine, tube.points, tube.radii, code)
    for k, clot in enumerate(clots):
        _tube(codes, fine, clot.points, clot.radii, FIRST + k, _BARE if clot.kind == 'full' else (ARTERY,))
    return codes


def _tube(codes, grid, points, radii, code, within=None):
    """Paint a chain of cones with round ends; `within`: only over these codes."""
    points, radii = points.astype(F), radii.astype(F)
    wide = np.maximum(radii[1:], radii[:-1])[:, None]
    lows, highs = grid.boxes(np.minimum(points[1:], points[:-1]) - wide, np.maximum(points[1:], points[:-1]) + wide)
    for k in np.flatnonzero((lows < highs).all(1)):
        box = tuple(slice(i, j) for i, j in zip(lows[k].tolist(), highs[k].tolist()))
        x, y, z = grid.x[box[0]] - points[k, 0], grid.y[:, box[1]] - points[k, 1], grid.z[:, :, box[2]] - points[k, 2]
        u, v, w = points[k + 1] - points[k]
        t = np.clip((x * u + y * v + z * w) * F(1 / max(u * u + v * v + w * w, 1e-6)), 0, 1)
        square = (x - t * u) ** 2 + (y - t * v) ** 2 + (z - t * w) ** 2
        hit = square < (radii[k] + t * (radii[k + 1] - radii[k])) ** 2
        part = codes[box]
        part[hit if within is None else hit & np.isin(part, within)] = code


def labels(codes: np.ndarray, count: int) -> np.ndarray:
    """uint8 [shape of the grid]: 1 + index of the clot where clots cover MIN_COVERED of a voxel or more, else 0."""
    covered = _mean(codes >= FIRST) >= MIN_COVERED
    out = np.zeros(covered.shape, np.uint8)
    if covered.any():
        each = np.stack([_mean(codes == FIRST + k) for k in range(count)])
        out[covered] = 1 + each[:, covered].argmax(0)
    return out


def chest(person: anatomy.Person, grid: Grid) -> Callable[[dict[str, float]], np.ndarray]:
    """A function of a table of Hounsfield units: the chest without vessels on the grid, float32."""
    scale = person.scale
    lumps = _stock()[np.ix_(*(np.floor(a + o).astype(int) % 64 for a, o in zip(grid.axes, person.fold)))]
    covers = [(tissue, _ellipsoid(grid, scale * np.array(c), scale * np.array(a), turn))
              for tissue, c, a, turn in anatomy.BODY]
    covers.append(('cortex', _ribs(person, grid)))
    lung = _ellipsoid(grid, scale * np.array(anatomy.CAVITY[0]), scale * np.array(anatomy.CAVITY[1]), 0)
    covers += [('lung', lung), ('septa', _mediastinum(person, grid))]
    organs = ((t, np.array(c) + j, a, turn) for (t, c, a, turn), j in zip(anatomy.ORGANS, person.jitter))
    for tissue, c, a, turn in (*organs, *anatomy.CHAMBERS):
        covers.append((tissue, _ellipsoid(grid, scale * np.asarray(c), scale * np.array(a), turn)))
    for *c, r in person.nodes:
        covers.append(('node', _ellipsoid(grid, np.array(c), np.array([r, 1.2 * r, r]), 30)))

    def paint(values):
        image = np.full(grid.shape, values['air'], F)
        rough = {'lung': 26 * lumps + 90 * np.maximum(lumps - 1.4, 0) - F(0.7) * (grid.y + 5), 'septa': 38 * lumps,
                 'fat': 8 * lumps, 'marrow': 25 * lumps}
        for tissue, placed in covers:
            if placed is None:
                continue
            box, cover = placed
            common.blend(image[box], cover, values[tissue] + (rough[tissue][box] if tissue in rough else 0))
        return image

    return paint


def image(chest: Callable[[dict[str, float]], np.ndarray], codes: np.ndarray, values: dict[str, float],
          clots: np.ndarray) -> np.ndarray:
    """float32 HU without noise: the chest under the tissues of the fine grid. clots: HU of each."""
    table = np.zeros(256, F)
    for name, code in _CODES.items():
        table[code] = values[name]
    table[FIRST:FIRST + len(clots)] = clots
    return _mean(table[codes]) + _mean(codes == NONE) * chest(values)


def warp(image: np.ndarray, most: float, rng: np.random.Generator) -> np.ndarray:
    """The image displaced by a smooth random field whose longest vector has `most` voxels."""
    if most == 0:
        return image
    voxels = np.ix_(*(np.arange(n, dtype=F) for n in image.shape))
    waves, phases = rng.normal(0, 1 / 14, (3, 3, 3)), rng.uniform(0, 2 * np.pi, (3, 3))  # a turn in about 90 voxels
    field = [sum(np.sin(sum(F(w) * a for w, a in zip(wave, voxels)) + F(p)) for wave, p in zip(*axis))
             for axis in zip(waves, phases)]
    gain = F(most) / np.sqrt(sum(f * f for f in field)).max()
    return ndimage.map_coordinates(image, [a + gain * f for a, f in zip(voxels, field)], F, order=1, mode='nearest')


def noise(shape: tuple[int, ...], step: Sequence[float] | np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise of unit variance in a voxel, float32."""
    white, grain = rng.standard_normal((2, *shape), dtype=F)
    grain = ndimage.gaussian_filter(grain, [GRAIN / s for s in step], mode='wrap', truncate=3)
    return (white + grain / grain.std()) * F(0.5 ** 0.5)


def _mean(fine):
    """The mean of FINE^3 voxels, float32; of bool the fraction."""
    fine = fine.view(np.uint8) if fine.dtype == bool else fine  # sums up to 8
    for axis in range(3):
        a, b = (fine[(slice(None),) * axis + (slice(k, None, 2),)] for k in (0, 1))
        fine = a + b
    return fine * F(1 / 8)


def _ellipsoid(grid, centre, axes, turn):
    """(slices, coverage) of an ellipsoid, turned by `turn` degrees in plane; None when it is not on the grid."""
    flat = axes[2] > 1e3
    reach = np.array([*(2 * [max(axes[:2])] if turn else axes[:2]), axes[2]]) + grid.step
    low, high = grid.boxes((centre - reach)[None], (centre + reach)[None])
    if (low >= high).any():
        return None
    box = tuple(slice(i, j) for i, j in zip(low[0], high[0]))
    x, y, z = (a[s] - F(c) for a, s, c in zip(grid.axes, box, centre))
    x, y, z = np.ix_(x, y, z)
    c, s = F(np.cos(np.radians(turn))), F(np.sin(np.radians(turn)))
    square = ((x * c + y * s) / F(axes[0])) ** 2 + ((y * c - x * s) / F(axes[1])) ** 2
    square = square if flat else square + (z / F(axes[2])) ** 2
    sharp = min(axes[:2]) / (2 * grid.step[:2].mean())
    return box, np.clip(F(0.5) + (1 - square) * F(sharp), 0, 1)


def _ribs(person, grid):
    """Coverage by ribs: a wall of 8 mm around the cavity, cut by gaps that fall from the spine to the front."""
    (cx, cy, _), (ax, ay, _) = anatomy.CAVITY
    x, y = (grid.x / F(person.scale) - cx) / F(ax + 7), (grid.y / F(person.scale) - cy) / F(ay + 6)
    wall = np.clip(F(1) - np.abs(np.sqrt(x * x + y * y) - 1) * F(95 / 4.5) + F(0.3), 0, 1)
    angle = np.arctan2(np.abs(x), -y)  # 0 at the spine
    phase = (grid.z / F(person.scale) + F(26) * angle) * F(2 * np.pi / 27)
    return (slice(None),) * 3, wall * np.clip(F(0.5) + 2 * (np.cos(phase) - F(0.2)), 0, 1)


def _mediastinum(person, grid):
    """Coverage by the fat between the lungs, from the spine to the breastbone, wide around the great vessels."""
    y = grid.y / F(person.scale)
    half = F(8) + (F(20 + person.narrow)) * np.exp(-((y + 8) / 38) ** 2)
    half = np.where((y > -82) & (y < 84), half, -99)
    away = np.abs(grid.x / F(person.scale) + F(3))
    return (slice(None),) * 3, np.clip(F(0.5) + (half - away) / F(grid.step[0]), 0, 1) + 0 * grid.z


@functools.cache
def _stock():
    """Lumps of tissue, float32 [64,64,64] of unit variance, periodic, a voxel a millimetre."""
    rng = common.rng(20260302)
    fine, coarse = (common.lumps(rng, (64, 64, 64), sigma) for sigma in (1.3, 3.5))
    field = fine + coarse
    return (field / field.std()).astype(F)
