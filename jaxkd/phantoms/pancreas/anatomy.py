"""Shapes of the pancreas phantom: an upper abdomen, the gland, its duct and a lesion, as coverage of voxels.

Coordinates are millimetres RAS of the patient: x to the right, y to the front, z to the head. Points come as
arrays that broadcast to a grid (x [X,1,1], y and z [1,Y,Z]), so that functions of one axis are computed
along that axis alone. A shape is its coverage of each voxel, 0..1, from its distance to the voxel's
centre; thin and small ones (duct, lesion) are averaged over finer slices. All numbers are [our choice],
after usual adult sizes: gland 15-30 mm thick, main duct 2 mm.
"""
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

F = np.float32
FINE = 1.6  # mm: thickest slice in which duct and lesion are computed
FOLD = 64  # mm after which the stock of tissue texture repeats
ENDS = 41, -87  # mm, x of head and tail
FAR = 1e4
# Painted one over the other: tissue, centre and half axes in mm. FAR: the same in all slices.
ORGANS = (
    ('fat', (0, -5, 0), (165, 118, FAR)), ('muscle', (0, -5, 0), (146, 98, FAR)), ('fat', (0, -3, 0), (134, 86, FAR)),
    ('muscle', (40, -66, 0), (18, 17, FAR)), ('muscle', (-40, -66, 0), (18, 17, FAR)),
    ('muscle', (38, -93, 0), (30, 14, FAR)), ('muscle', (-38, -93, 0), (30, 14, FAR)),
    ('cortex', (0, -58, 0), (24, 19, FAR)), ('marrow', (0, -58, 0), (22, 17, FAR)),
    ('cortex', (0, -86, 0), (14, 13, FAR)), ('fluid', (0, -84, 0), (9, 8, FAR)),
    ('liver', (90, 16, 45), (72, 82, 78)), ('liver', (18, 66, 62), (72, 26, 50)),
    ('spleen', (-112, -24, 45), (28, 46, 50)),
    ('kidney', (-62, -50, -12), (27, 24, 55)), ('fat', (-53, -44, -12), (10, 9, 26)),
    ('kidney', (63, -50, -28), (27, 24, 55)), ('fat', (54, -44, -28), (10, 9, 26)),
    ('fluid', (57, 50, 12), (13, 17, 24)),  # gallbladder
    ('bowel', (-48, 62, 28), (48, 20, 40)), ('gas', (-45, 72, 32), (24, 7, 20)),
    ('bowel', (60, 6, -14), (10, 12, 44)),  # duodenum
    ('bowel', (-48, 38, -42), (22, 18, 22)), ('bowel', (-8, 58, -44), (24, 17, 18)),
    ('gas', (-6, 66, -44), (12, 6, 10)),
    ('bowel', (38, 56, -40), (20, 18, 22)), ('bowel', (-80, 30, -20), (17, 18, 40)),
    ('blood', (-13, -29, 0), (10, 10, FAR)), ('blood', (23, -25, 0), (13, 9, FAR)),  # aorta, inferior vena cava
    ('fluid', (41, 1, 38), (3, 3, 46)),  # bile duct
    ('blood', (-5, -2, -40), (3.5, 3.5, 48)), ('blood', (9, 6, -38), (5.5, 5.5, 46)),  # superior mesenteric
)


@dataclasses.dataclass(frozen=True)
class Lesion:
    """A deformed ellipsoid: |u| < 1 + irregularity * waves(direction), u = (p - place) / axes."""

    place: np.ndarray  # [3] mm
    axes: np.ndarray  # [3] mm, their geometric mean is half the size
    texture: int
    irregularity: float
    waves: np.ndarray  # [5,4] frequency vectors and phases
    seeds: np.ndarray  # [6,3] of the cells of a mixed lesion; the first half is solid
    nodule: np.ndarray | None  # [3] centre in units of the axes: solid in a cyst, necrosis in a solid lesion


@dataclasses.dataclass(frozen=True)
class Person:
    scale: float
    jitter: np.ndarray  # [len(ORGANS),3] mm
    arch: np.ndarray  # [6]: height and middle of the gland's arch, its two curvatures, slope, phase
    thick: float  # mm, half the gland's thickness at its body
    atrophy: float  # the gland's thickness upstream of the lesion, times this
    duct: int
    wide: float  # mm, the duct upstream of the lesion
    thin: float  # mm, an ordinary duct
    fold: np.ndarray  # [3] origin of this person's texture in the stock, mm
    lesion: Lesion


def draw(rng: np.random.Generator, size: float, texture: int, duct: int, label: int) -> Person:
    """The anatomy of a patient around a lesion of `size` mm. Class shows in margin and nodules, and weakly."""
    n = rng.standard_normal
    arch = np.array([25, -5, 0.012, 0.0055, -0.17, 0]) + n(6) * (2.5, 3, 0.0015, 0.001, 0.05, 2)
    along = rng.uniform(-32, 18)
    axes = np.exp(0.1 * n(3))
    axes *= size / 2 / np.prod(axes) ** (1 / 3)
    seeds = n((6, 3))
    seeds *= (rng.random((6, 1)) ** (1 / 3) * 0.95) / np.linalg.norm(seeds, axis=1, keepdims=True)
    waves = np.concatenate([n((5, 3)) * 2.6, rng.uniform(0, 2 * np.pi, (5, 1))], 1)
    side = n(3)
    nodular = rng.random() < ((0.1, 0.35, 0.7) if texture < 2 else (0.05, 0.15, 0.35))[label]
    nodule = side / np.linalg.norm(side) * (0.75 if texture < 2 else 0.2) if nodular else None
    y, z = _course(arch, along)
    place = np.array([along, y, z]) + n(3) * (0, 1.5, 1.5)
    irregular = max(0.02, (0.05, 0.09, 0.14)[label] + 0.03 * n())
    lesion = Lesion(place, axes, texture, irregular, waves, seeds, nodule)
    atrophy = max(0.6, (1, 0.92, 0.85)[duct] + 0.06 * n())
    return Person(np.exp(0.05 * n()), n((len(ORGANS), 3)) * 2.5, arch, 9.5 + n(), atrophy, duct,
                  rng.uniform(5, 8), rng.uniform(1.6, 2.4), rng.uniform(0, FOLD, 3), lesion)


class Points:
    """The voxel centres of a grid in the patient, bent a little by breathing.

    x, y, z: three 1-D arrays, mm. bend: (mm in y, mm in z, two phases); the amplitudes of the displacement.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, z: np.ndarray,
                 bend: Sequence[float] | np.ndarray = (0, 0, 0, 0)) -> None:
        self.axes = [np.asarray(a, F) for a in (x, y, z)]
        self.step = [float(a[1] - a[0]) for a in self.axes]
        self.wide = (self.step[0] + self.step[1]) / 2
        self.shape = tuple(map(len, self.axes))
        self.slack = 1 + max(map(abs, bend[:2])) + self.step[2]
        x, y, z = (a.reshape([-1 if k == j else 1 for k in range(3)]) for j, a in enumerate(self.axes))
        self.x = x
        self.y = y + F(bend[0]) * np.sin(z / F(30) + F(bend[2]))
        self.z = z + F(bend[1]) * np.sin(y / F(35) + F(bend[3]))

    def box(self, low: ArrayLike, high: ArrayLike) -> tuple[slice, slice, slice] | None:
        """Slices between two corners in mm, with a margin of half a voxel; None for an empty box."""
        out = []
        for a, b, axis in zip(np.asarray(low), np.asarray(high), self.axes):
            i, j = np.searchsorted(axis, (a - self.slack, b + self.slack))
            if i == j:
                return None
            out.append(slice(i, j))
        return out[0], out[1], out[2]

    def within(self, box: tuple[slice, slice, slice]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.x[box[0]], self.y[:, box[1], box[2]], self.z[:, box[1], box[2]]

    def fine(self, box: tuple[slice, slice, slice]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `within`, with a fourth axis: thinner slices within each slice."""
        x, y, z = (a[..., None] for a in self.within(box))
        n = int(np.ceil(self.step[2] / FINE))
        return x, y, z + ((np.arange(n, dtype=F) + F(0.5)) / n - F(0.5)) * F(self.step[2])


def organs(person: Person, points: Points) -> Iterator[tuple[str, tuple[slice, slice, slice], np.ndarray]]:
    """(tissue, slices, coverage) of every organ that the grid meets, in the order of painting."""
    for (tissue, place, axes), jitter in zip(ORGANS, person.jitter):
        c = [F(person.scale * p + j) for p, j in zip(place, jitter)]
        a = [F(person.scale * r) for r in axes]
        box = points.box([p - r for p, r in zip(c, a)], [p + r for p, r in zip(c, a)])
        if box is None:
            continue
        x, y, z = points.within(box)
        across = ((y - c[1]) / a[1]) ** 2
        if axes[2] < FAR:
            across = across + ((z - c[2]) / a[2]) ** 2
        sharp = F(min(axes[:2]) / (2 * points.wide))
        q = (F(1) - ((x - c[0]) / a[0]) ** 2) * sharp + F(0.5) - across * sharp
        yield tissue, box, np.clip(q, 0, 1, out=q)


def gland(person: Person, points: Points, lumps: np.ndarray) -> tuple[tuple[slice, slice, slice], np.ndarray] | None:
    """(slices, coverage) of the pancreas; `lumps` [X,Y,Z], of unit variance, roughen it. None outside the grid."""
    top, slope = person.arch[0], abs(person.arch[4])
    box = points.box((ENDS[1], -75, -100 * slope - 30), (ENDS[0], top + 20, 100 * slope + 30))
    if box is None:
        return None
    x, y, z = points.within(box)
    half, tall, incline = _thickness(person, x)
    cy, cz = _course(person.arch, x)
    dy, dz = ((y - cy) * incline) ** 2, ((z - cz) / tall) ** 2
    square = dy + dz
    soft = F(points.step[1]) + F(points.step[2] - points.step[1]) * dz / (square + F(1))
    cover = F(0.5) + (half - np.sqrt(square) + F(0.8) * lumps[box]) / soft
    return box, np.clip(cover, 0, 1, out=cover)


def duct(person: Person, points: Points,
         radius: float | None = None) -> tuple[tuple[slice, slice, slice], np.ndarray] | None:
    """(slices, coverage) of the main duct. radius: mm, one for a tube all along instead, upstream of the lesion."""
    cy, cz = _course(person.arch, points.axes[0])
    box = points.box((ENDS[1] + 6, cy.min() - 6, cz.min() - 6), (ENDS[0] - 4, cy.max() + 6, cz.max() + 6))
    if box is None:
        return None
    x, y, z = points.fine(box)
    cy, cz = _course(person.arch, x)
    r = _bore(person, x) if radius is None else F(radius) * (x < F(person.lesion.place[0]))
    cy = cy + F(0.5) * r * np.sin(x / F(6) + F(person.arch[5]))  # wide ducts wind
    d = np.sqrt((y - cy) ** 2 + (z - cz) ** 2)
    cover = np.clip(F(0.5) + (r - d) / F(points.step[1]), 0, 1) * (r > F(0.2))
    return box, cover.mean(-1)


@dataclasses.dataclass
class Parts:
    """A lesion on the voxels of a grid, all float32 over the slices `box`."""

    box: tuple
    cover: np.ndarray
    fluid: np.ndarray  # coverage by cyst fluid or necrosis; the remainder of `cover` is solid
    profile: np.ndarray  # 1 at the rim, below 0 in the middle, with mean 0 in a ball
    halo: np.ndarray  # 1 at the outline, falling to 0 within half a radius outside


def lesion(person: Person, points: Points) -> Parts:
    geometry = person.lesion
    reach = geometry.axes * 1.7 + 2
    box = points.box(geometry.place - reach, geometry.place + reach)
    assert box is not None  # grids are laid around the lesion
    x, y, z = points.fine(box)
    coordinates = [(p - F(c)) / F(a) for p, c, a in zip((x, y, z), geometry.place, geometry.axes)]
    u = np.stack(np.broadcast_arrays(*coordinates))
    r = np.sqrt((u * u).sum(0))
    waves = sum(np.cos(np.tensordot(w[:3].astype(F), u, 1) / (r + F(0.05)) + F(w[3])) for w in geometry.waves)
    rho = r / np.clip(1 + F(geometry.irregularity * 0.63) * waves, F(0.6), F(1.6))
    mean = float(geometry.axes.mean())
    cover = np.clip(F(0.5) + (1 - rho) * F(mean / points.wide), 0, 1)
    fluid = np.full_like(cover, geometry.texture < 2)
    if geometry.texture == 1:
        d = np.stack([np.sqrt(sum((a - F(b)) ** 2 for a, b in zip(u, seed))) for seed in geometry.seeds])
        first, second = np.partition(d, 1, 0)[:2]
        septum = second - first < F(max(0.14, 1.2 / mean))
        fluid = F(1) * ((d[len(d) // 2:].min(0) == first) & ~septum)
    if geometry.nodule is not None:
        d = np.sqrt(sum((a - F(b)) ** 2 for a, b in zip(u, geometry.nodule)))
        bump = np.clip(F(0.5) + (F(0.35) - d) * F(mean / points.wide), 0, 1)
        fluid = fluid * (1 - bump) if geometry.texture < 2 else bump
    profile = (np.minimum(rho, 1) ** 2 * F(2.5) - F(1.5)) * cover
    halo = np.clip(F(1.5) - rho, 0, F(0.5)) * 2
    return Parts(box, *(a.mean(-1) for a in (cover, cover * fluid, profile, halo)))


def _course(arch, x):
    """(y, z) of the gland's middle line at x, mm: an arch over spine and aorta, rising to the tail."""
    top, middle, right, left, slope, phase = (F(a) for a in arch)
    d = x - middle
    return top - np.where(d > 0, right, left) * d * d, slope * x + 3 * np.sin(x / F(18) + phase)


def _thickness(person, x):
    """(half thickness in mm, stretch in z, factor from distance in y to distance from the line) at x."""
    head = np.exp(-((x - F(30)) / F(13)) ** 2)
    half = F(person.thick) + F(5.5) * head - F(1.5) * np.exp(-((x - F(6)) / F(7)) ** 2)
    half = half * (1 - F(1 - person.atrophy) / (1 + np.exp((x - F(person.lesion.place[0])) / F(4))))
    end = (x - F(sum(ENDS) / 2)) / F((ENDS[0] - ENDS[1]) / 2)
    half = np.where(np.abs(end) < 1, half * np.sqrt(np.maximum(1 - end ** 8, 0)), F(-9))
    right, left = person.arch[2:4]
    d = x - F(person.arch[1])
    return half, 1 + F(0.7) * head, 1 / np.sqrt(1 + (2 * np.where(d > 0, F(right), F(left)) * d) ** 2)


def _bore(person, x):
    """Radius of the main duct at x, mm. Upstream, towards the tail, x is smaller."""
    wide, thin, centre, half = person.wide / 2, person.thin / 2, person.lesion.place[0], person.lesion.axes[0]
    if person.duct == 0:
        return np.full_like(x, thin)
    if person.duct == 1:  # open through the lesion, and narrower behind it
        positions = centre - half, centre, centre + half, centre + half + 25
        return np.interp(x, positions, (wide, 0.6 * wide, 0.6 * wide, thin)).astype(F)
    edge = centre - 0.85 * half
    return np.interp(x, (edge - 0.8, edge, centre + half, centre + half + 1), (wide, 0, 0, thin)).astype(F)
