"""Shapes of the pulmonary phantom: a chest, its vessels and airways, and the clots within its arteries.

Coordinates are millimetres RAS of the patient; the pulmonary trunk divides near (-10, 10, 0). The large vessels and
airways follow courses drawn after the usual adult anatomy. From the lobes on, branches are grown: at each division the
cubes of the radii add up [published: Murray 1926], in proportion to the segments downstream, and on its way to the next
a branch loses TAPER of its radius. All numbers are [our choice].
"""
import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import interpolate

LEVELS = ('central', 'lobar', 'segmental', 'subsegmental', 'distal')  # clots are in the first four
TRUNK = 13.0  # mm, radius
TAPER = 0.12
LONG = dict(segmental=(13, 20), subsegmental=(16, 22), distal=(10, 16))  # mm
# Name: level, parent, position on it (0..1), weight in the division, course after that point.
ARTERIES = dict(
    trunk=('central', '', 0, 1, ((-8, 47, -44), (-13, 36, -22), (-11, 12, -1))),
    right=('central', 'trunk', 1, 1, ((8, -3, -3), (26, -9, -5), (41, -12, -8))),
    left=('central', 'trunk', 1, 1, ((-22, -4, 5), (-36, -19, 6), (-46, -30, -3))),
    rul=('lobar', 'right', 0.8, 3, ((44, -5, 6), (52, -4, 21))),
    right_lower=('lobar', 'right', 1, 7, ((49, -19, -22), (52, -24, -37))),
    rml=('lobar', 'right_lower', 1, 2, ((61, -6, -42), (67, 6, -45))),
    rll=('lobar', 'right_lower', 1, 5, ((54, -31, -50), (54, -36, -61))),
    lul=('lobar', 'left', 0.7, 3, ((-50, -11, 17), (-56, -6, 26))),
    left_lower=('lobar', 'left', 1, 6, ((-54, -38, -20), (-55, -41, -35))),
    lingula=('lobar', 'left_lower', 0.6, 2, ((-63, -14, -29), (-69, 3, -33))),
    lll=('lobar', 'left_lower', 1, 4, ((-55, -44, -47), (-54, -46, -59))))
VEINS = dict(
    right_upper=(6.2, ((24, -6, -28), (42, 6, -17), (54, 12, -6)), 'rul rml'),
    right_lower=(6.2, ((24, -20, -40), (44, -36, -46), (54, -44, -54)), 'rll'),
    left_upper=(6.2, ((-24, -4, -24), (-42, 6, -12), (-54, 10, 2)), 'lul lingula'),
    left_lower=(6.2, ((-24, -20, -36), (-42, -38, -42), (-52, -50, -50)), 'lll'))
SEGMENTS = dict(  # directions in which the segments of a lobe leave
    rul=((0.3, -0.1, 1), (0.6, 0.8, 0.1), (0.6, -0.8, 0.3)),
    rml=((0.9, 0.4, -0.2), (0.35, 0.9, -0.3)),
    rll=((0.5, -0.85, 0.25), (0.5, 0.55, -0.7), (0.85, 0, -0.55), (0.4, -0.7, -0.6), (0, 0.2, -1)),
    lul=((-0.2, 0.1, 1), (-0.6, 0.8, 0.15), (-0.6, -0.75, 0.45)),
    lingula=((-0.85, 0.5, 0.1), (-0.55, 0.7, -0.5)),
    lll=((-0.5, -0.85, 0.25), (-0.45, 0.5, -0.75), (-0.85, 0, -0.55), (-0.4, -0.7, -0.6)))
AIRWAYS = (  # radii of the lumen at both ends, course
    (8.5, 8.0, ((2, -19, 110), (2, -20, 60), (2, -23, 17))),
    (6.8, 6.0, ((2, -23, 17), (19, -27, 4), (34, -27, -6))),
    (5.2, 4.6, ((34, -27, -6), (39, -29, -20), (41, -30, -33))),
    (4.4, 4.0, ((25, -28, 0), (38, -26, 5), (49, -20, 12))),
    (3.4, 3.0, ((41, -29, -31), (50, -18, -38), (58, -6, -46))),
    (4.4, 4.0, ((41, -30, -33), (45, -36, -46), (46, -40, -60))),
    (6.2, 5.4, ((2, -23, 17), (-18, -26, -1), (-39, -31, -13))),
    (4.4, 3.8, ((-38, -30, -12), (-49, -17, -4), (-55, -13, 8))),
    (4.4, 4.0, ((-39, -31, -13), (-46, -36, -30), (-46, -41, -56))))
GREAT = (  # tissue, radii, course
    ('aorta', (15, 15, 15, 14, 13, 12, 12, 11, 11), ((4, 17, -44), (14, 24, -14), (15, 21, 14), (5, 6, 33),
                                                     (-12, -17, 36), (-24, -37, 20), (-25, -44, -10), (-21, -46, -60),
                                                     (-14, -46, -130))),
    ('cava', (8, 9, 9, 10), ((29, 16, 90), (30, 14, 40), (30, 14, 0), (32, 18, -38))),
    ('wall', (7, 7, 7), ((-5, -38, 100), (-4, -39, 0), (-10, -36, -120))))  # oesophagus
# Painted one over the other: tissue, centre, half axes, turn in plane (degrees). FAR: the same in all slices.
FAR = 1e4
CAVITY = ((0, -3, -60), (124, 84, 175))  # of the chest; the lungs fill its remainder
BODY = (('fat', (0, -5, 0), (158, 110, FAR), 0), ('muscle', (0, -5, 0), (143, 98, FAR), 0))
ORGANS = (
    ('marrow', (0, -64, 0), (18, 17, FAR), 0), ('cortex', (0, -88, 0), (13, 12, FAR), 0),
    ('wall', (0, -86, 0), (8, 8, FAR), 0), ('marrow', (0, 88, 0), (20, 7, FAR), 0),
    ('liver', (62, -2, -150), (78, 78, 62), 0), ('liver', (-52, 2, -158), (62, 72, 62), 0),
    ('fat', (-12, 22, -64), (66, 52, 48), -35), ('heart', (-12, 22, -66), (62, 48, 47), -35))
CHAMBERS = (('left', (-2, -13, -38), (28, 14, 19), 0), ('left', (-36, 20, -70), (32, 18, 28), -40),
            ('right', (30, 22, -58), (18, 20, 30), 0), ('right', (-10, 44, -64), (40, 15, 28), -20))
SWELL = 1.15  # a clot that fills its vessel widens it
# Clots: length in mm; the fraction that fills its vessel.
CLOT = dict(central=((30, 55), 0.1), lobar=((18, 35), 0.4), segmental=((18, 32), 0.75), subsegmental=((20, 32), 1))
NARROW = 1.7  # mm: narrower branches have clots only without a wider one


@dataclasses.dataclass
class Tube:
    kind: str  # 'artery', 'vein', 'airway', 'aorta', 'cava', 'wall'; of a clot 'part' or 'full'
    level: str
    points: np.ndarray  # [n,3] mm
    radii: np.ndarray  # [n] mm
    parent: int = -1  # index of its parent artery
    fraction: float = 0.0  # position along the parent, 0..1


@dataclasses.dataclass(frozen=True)
class Person:
    scale: float  # of the chest
    jitter: np.ndarray  # [len(ORGANS),3] mm
    narrow: float  # mm, width of the mediastinal fat beside the vessels
    tubes: tuple  # of Tube
    nodes: np.ndarray  # [n,4] centres and radii of lymph nodes, mm
    fold: np.ndarray  # [3] origin of this person's texture in the stock, mm


def draw(rng: np.random.Generator) -> Person:
    """A patient without clots."""
    scale = float(np.exp(0.03 * rng.standard_normal()))
    jitter = rng.standard_normal((len(ORGANS), 3)) * 2
    waves = rng.standard_normal((3, 3)) / 45, rng.uniform(0, 2 * np.pi, 3), rng.standard_normal((3, 3)) * 1.6
    arteries = _arteries(rng)
    tubes = arteries + _veins(rng) + _airways(rng, arteries) + [Tube(kind, '', *_course(c, r)) for kind, r, c in GREAT]
    for tube in tubes:  # one deformation of all, which preserves neighbours
        tube.points = scale * (tube.points + np.sin(tube.points @ waves[0] + waves[1]) @ waves[2])
    centres = np.array([(14, -8, 14), (-12, -10, 18), (10, -30, -14), (46, -20, -2), (-44, -24, -14), (48, -30, -30)])
    nodes = np.column_stack([scale * (centres + 4 * rng.standard_normal((6, 3))), rng.uniform(3, 6.5, 6)])
    return Person(scale, jitter, float(rng.uniform(-2, 4)), tuple(tubes), nodes, rng.uniform(0, 64, 3))


def inside(points: np.ndarray) -> np.ndarray:
    """bool [n]: whether points [n,3] of the unscaled chest are in a lung."""
    x, y, z = np.asarray(points, float).T
    cavity = ((x - CAVITY[0][0]) / CAVITY[1][0]) ** 2 + ((y - CAVITY[0][1]) / CAVITY[1][1]) ** 2
    heart = ((x + 12) / 68) ** 2 + ((y - 22) / 52) ** 2 + ((z + 66) / 49) ** 2
    return (cavity < 0.88) & (heart > 1) & (np.abs(x) > 26)


def clots(rng: np.random.Generator, person: Person, levels: Sequence[str], low: np.ndarray,
          high: np.ndarray) -> list[Tube]:
    """A Tube for each of `levels`, each in a separate branch of that level, within low..high (mm) where possible.

    A clot is thinner than its vessel and is within the stream or along the wall, or it fills and widens the vessel;
    its ends taper. The first is the largest.
    """
    arteries = [t for t in person.tubes if t.kind == 'artery']
    used: set[int] = set()
    tubes: list[Tube] = []
    for level in levels:
        index = _branch(rng, arteries, level, used, low, high)
        points, radii, branches = _path(rng, arteries, index, level, used)
        used |= branches
        clot = _clot(rng, points, radii, level, low, high)
        if tubes and (most := 0.8 * _volume(tubes[0]) / _volume(clot)) < 1:
            count = max(2, int(most * len(clot.radii)))
            clot.points, clot.radii = clot.points[:count], clot.radii[:count]
        tubes.append(clot)
    return tubes


def _volume(clot):
    return float((clot.radii ** 2).mean() * np.linalg.norm(np.diff(clot.points, axis=0), axis=1).sum())


def _branch(rng, arteries, level, used, low, high):
    free = [k for k, t in enumerate(arteries) if t.level == level and k not in used and (k or level != 'central')]
    free = free or [k for k, t in enumerate(arteries) if t.level == level]
    shown = np.array([((arteries[k].points > low) & (arteries[k].points < high)).all(1).mean() for k in free])
    shown[[arteries[k].radii[0] < NARROW for k in free]] *= 0.7
    return int(rng.choice(np.array(free)[shown >= min(0.75, shown.max())]))


def _path(rng, arteries, index, level, used):
    """(points, radii, indices of the branches) of a possible clot."""
    tube, branches = arteries[index], {index}
    if level == 'central' and rng.random() < 0.5:  # a saddle: from one main artery over the division into the other
        right, left = arteries[1], arteries[2]
        return (np.concatenate([right.points[::-1], left.points[1:]]),
                np.concatenate([right.radii[::-1], left.radii[1:]]),
                {1, 2})
    points, radii = tube.points, tube.radii
    children = [k for k, t in enumerate(arteries) if t.parent == index and k not in used]
    if children and rng.random() < 0.85:
        child_index = int(rng.choice(children))
        branches.add(child_index)
        child = arteries[child_index]
        count = max(2, round(child.fraction * (len(points) - 1)) + 1)
        points = np.concatenate([points[:count], child.points[1:]])
        radii = np.concatenate([radii[:count], child.radii[1:]])
    return points, radii, branches


def _clot(rng, points, radii, level, low, high):
    arc = _arc(points)
    fine = np.linspace(0, arc[-1], 4 * len(points))
    course = np.stack([np.interp(fine, arc, points[:, k]) for k in range(3)], 1)
    fits = fine[((course > low) & (course < high)).all(1)]
    fits = fits if len(fits) > 3 else fine
    (short, long), full = CLOT[level]
    length = min(rng.uniform(short, long), 0.95 * (fits[-1] - fits[0]))
    start = fits[0] + 0.5 * rng.random() * (fits[-1] - length - fits[0])  # mostly in the branch itself
    u = np.linspace(0, 1, max(6, int(length / 2.5)))
    course = np.stack([np.interp(start + u * length, arc, points[:, k]) for k in range(3)], 1)
    bore = np.interp(start + u * length, arc, radii)
    fills = rng.random() < full
    width_ratio = SWELL if fills else rng.uniform(0.65, 0.9)
    wide = bore * width_ratio * np.sqrt(np.maximum(1 - np.abs(2 * u - 1) ** 6, 0.04))
    side = _across(_unit(np.gradient(course, axis=0)), _unit(rng.standard_normal(3)))
    drift = 0 if fills else rng.uniform(0, 1)  # 0: within the stream, 1: along the wall
    return Tube('full' if fills else 'part', level, course + side * (drift * np.maximum(bore - wide, 0))[:, None], wide)


def _arteries(rng):
    tubes: list[Tube] = []
    places: dict = {}
    weigh = np.exp(0.1 * rng.standard_normal(len(ARTERIES)))
    root = TRUNK * np.exp(0.06 * rng.standard_normal())
    for (name, (level, parent, fraction, weight, course)), w in zip(ARTERIES.items(), weigh):
        radius = root
        if parent:
            source = tubes[places[parent]]
            start, siblings = _point(source.points, fraction), [k for k, v in ARTERIES.items() if v[1] == parent]
            total = sum(ARTERIES[k][3] * weigh[list(ARTERIES).index(k)] for k in siblings)
            radius = source.radii[-1] * (weight * w / total) ** (1 / 3)
            course = (start, *course)
        points, radii = _course(course, (radius, radius * (1 - TAPER)))
        places[name] = len(tubes)
        tubes.append(Tube('artery', level, points, radii, places.get(parent, -1), fraction))
    for lobe, directions in SEGMENTS.items():
        _grow(rng, tubes, places[lobe], directions, 'segmental')
    _leaves(rng, tubes)
    return tubes


def _veins(rng):
    tubes = []
    for radius, course, lobes in VEINS.values():
        points, radii = _course(((0, -14, -36), *course), (radius * 1.1, radius * 0.8))
        tubes.append(Tube('vein', 'lobar', points, radii))
        directions = [d for lobe in lobes.split() for d in SEGMENTS[lobe]]
        _grow(rng, tubes, len(tubes) - 1, np.roll(directions, 1, axis=0), 'segmental', 0.4)
    _leaves(rng, tubes)
    for t in tubes:
        t.parent = -1
    return tubes


def _leaves(rng, tubes):
    """Grow the subsegmental and distal branches of all segmental ones, within the lung."""
    for above, below, count in (('segmental', 'subsegmental', 3), ('subsegmental', 'distal', 2)):
        for index in [k for k, t in enumerate(tubes) if t.level == above]:
            ahead = _unit(tubes[index].points[-1] - tubes[index].points[0])
            side = _across(ahead[None], _unit(rng.standard_normal(3)))[0]
            turn = 2 * np.pi * np.arange(count)[:, None] / count
            around = np.cos(turn) * side + np.sin(turn) * np.cross(ahead, side)
            _grow(rng, tubes, index, ahead + rng.uniform(0.5, 0.8, (count, 1)) * around, below)


def _grow(rng, tubes, index, directions, level, spread=0.2):
    """Add the branches of one division, at its end and shortly before."""
    parent = tubes[index]
    weights = np.exp(0.25 * rng.standard_normal(len(directions)))
    bores = parent.radii[-1] * (weights / weights.sum()) ** (1 / 3)
    fractions = 1 - 0.45 * rng.random(len(directions)) ** 2
    ahead = _unit(parent.points[-1] - parent.points[0])
    steps = _unit(np.asarray(directions) + spread * rng.standard_normal((len(directions), 3)))
    steps = steps * rng.uniform(*LONG[level], (len(directions), 1))
    starts = np.stack([_point(parent.points, fraction) for fraction in fractions])
    present = inside(starts + steps) if level != 'segmental' else np.ones(len(steps), bool)
    u = np.linspace(0, 1, 5)[:, None]
    for k in np.flatnonzero(present):  # a Bezier curve of degree 2
        bend = 0.35 * np.linalg.norm(steps[k]) * ahead
        points = starts[k] + 2 * u * (1 - u) * bend + u ** 2 * steps[k]
        tubes.append(Tube(parent.kind, level, points, bores[k] * (1 - TAPER * u[:, 0]), index, fractions[k]))


def _airways(rng, arteries):
    """Trachea and large bronchi by their courses; smaller ones run beside their arteries."""
    tubes = [Tube('airway', 'lobar', *_course(course, (a, b))) for a, b, course in AIRWAYS]
    lean = {side: _unit(np.array([side * -0.5, -0.6, 0.6]) + 0.3 * rng.standard_normal(3)) for side in (-1, 1)}
    for artery in arteries:
        if artery.level in ('segmental', 'subsegmental'):
            away = _across(_unit(np.gradient(artery.points, axis=0)), lean[1 if artery.points[0, 0] > 0 else -1])
            bore = 0.75 * artery.radii
            points = artery.points + away * (artery.radii + bore + 1.2)[:, None]
            tubes.append(Tube('airway', artery.level, points, bore))
    return tubes


def _course(points, radii):
    """A smooth course of n points through a few, and the radii along it."""
    points = np.asarray(points, float)
    arc = _arc(points)
    u = np.linspace(0, arc[-1], max(5, int(arc[-1] / 8)))
    positions = np.linspace(0, arc[-1], 2) if len(radii) == 2 else arc
    return interpolate.PchipInterpolator(arc, points)(u), np.interp(u, positions, radii)


def _arc(points):
    """Length of a course up to each of its points."""
    return np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])


def _point(points, fraction):
    k = fraction * (len(points) - 1)
    i = min(int(k), len(points) - 2)
    return points[i] + (k - i) * (points[i + 1] - points[i])


def _across(along, side):
    """Unit vectors [n,3] across `along` [n,3], near to the direction `side`."""
    return _unit(side - (along @ side)[:, None] * along)


def _unit(v):
    return v / np.sqrt((v * v).sum(-1, keepdims=True))
