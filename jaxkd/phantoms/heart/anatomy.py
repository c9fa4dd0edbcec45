"""Shapes of the heart phantom: short-axis levels of a heart and of the chest around it, as distances and coverage.

Coordinates are millimetres of the short-axis plane, in the radiological view: u to the right of the picture (the
patient's left), v down (to the diaphragm), both from the axis of the left ventricle; z along that axis from the
mitral ring at end-diastole to the apex. t is z as a fraction of the ventricle's length at its moment: 0 at the ring, 1
at the outer apex, below 0 at the atria. A moment is the contraction c, 0 at end-diastole and 1 at end-systole.

Distances are signed, negative inside, and exact only near the outline. The volume of muscle is constant over time,
which gives the thickness of a wall at end-systole. All numbers are [our choice]: the means of radius, wall and areas in
the middle of the heart were set to the averages of a group in public cine MRI.
"""
import dataclasses
from collections.abc import Iterator

import numpy as np

F = np.float32
GROUPS = ('DCM', 'HCM', 'MINF', 'NOR', 'RV')
LAST = 0.97  # t beyond which no label is drawn: the outer outline is then about 7 mm in radius
# By group: radius and wall at end-diastole, mm; radius at end-systole as a fraction of it; length and descent of the
# ring, mm; width and height of the right ventricle, mm, and both at end-systole as fractions.
MEANS = dict(
    DCM=((36.5, 8.0), 0.91, (98, 5), (33, 41), (0.78, 0.93)),
    HCM=((27.0, 11.0), 0.54, (86, 12), (27, 33), (0.50, 0.82)),
    MINF=((31.0, 8.4), 0.84, (92, 7), (29, 37), (0.60, 0.88)),
    NOR=((27.5, 7.6), 0.66, (88, 13), (34, 39), (0.64, 0.88)),
    RV=((26.5, 7.0), 0.68, (87, 10), (45, 46), (0.76, 0.92)))
SEPTUM, OUTFLOW = np.pi, np.radians(222)  # directions in the plane, from u towards v
MUSCLE = 9  # mm, the chest wall under its fat
PAPILLARY = np.radians((-48, 112))


@dataclasses.dataclass(frozen=True)
class Heart:
    group: str
    radius: float  # mm, inner, of the left ventricle at its widest
    wall: float  # mm
    shrink: float
    length: float  # mm, ring to outer apex
    descent: float  # mm of the ring until end-systole
    right: tuple  # mm, half width and half height of the right ventricle
    squeeze: tuple
    thick: float  # of the septum, in walls, on top of the wall
    flat: float  # fraction of the radius that a flat septum takes
    scar: tuple  # direction, level t, depth 0..1
    waves: np.ndarray  # [4]: second and third harmonics of the outline, cos and sin
    rough: float  # mm, of the trabecular lining
    muscles: np.ndarray  # [2,3]: direction, way out 0..1, radius in mm of the papillary muscles
    lean: np.ndarray  # [2] mm that the axis leaves the middle from ring to apex, u and v
    turn: float  # of the heart in the chest
    end: float  # t where the right ventricle ends
    fat: np.ndarray  # [3]: mm around the heart, and more of it 30 mm to the right and 30 mm down


def draw(rng: np.random.Generator, group: str) -> Heart:
    n, u = rng.standard_normal, rng.uniform
    (radius, wall), shrink, (length, descent), right, squeeze = MEANS[group]
    size = np.exp(0.06 * n())
    thick = max(0, 0.35 + 0.25 * n()) if group == 'HCM' else 0.1 * u()
    flat = u(0.08, 0.2) if group == 'RV' else 0.05 * u()
    scar = u(-2.6, 2.6), u(0.35, 0.75), u(0.5, 0.75) if group == 'MINF' else 0.0
    muscles = np.stack([PAPILLARY + 0.2 * n(2), u(0.55, 0.7, 2), u(3.6, 5.2, 2) * size], 1)
    return Heart(group, radius * size * np.exp(0.07 * n()), wall * np.exp(0.1 * n()),
                 np.clip(shrink + 0.04 * n(), 0.45, 0.95),
                 length * size * np.exp(0.03 * n()), descent * np.exp(0.15 * n()),
                 tuple(size * np.array(right) * np.exp(0.1 * n(2))), squeeze, thick, flat, scar, 0.022 * n(4),
                 u(0.5, 1.3), muscles, u(-1, 1, 2) * (7, 5), 0.14 * n(), u(0.78, 0.93),
                 np.array([u(1.5, 4.5), u(-2, 0.3), u(-1.5, 0.3)]))


def ring_and_apex(heart: Heart, c: float) -> tuple[float, float]:
    """(z of the ring, z of the apex) at contraction c."""
    return c * heart.descent, heart.length - 1.5 * c


def level(heart: Heart, c: float, z: np.ndarray) -> np.ndarray:
    """t of the levels z."""
    ring, apex = ring_and_apex(heart, c)
    return (np.asarray(z) - ring) / (apex - ring)


def labelled(heart: Heart, c: float, z: np.ndarray) -> np.ndarray:
    """bool: which of the levels z have a label."""
    t = level(heart, c, z)
    return (t >= 0) & (t < LAST)


def left_radii(heart: Heart, c: float) -> tuple[float, float]:
    """(inner radius, outer radius) of the left ventricle at its widest, mm."""
    inner = heart.radius * (1 + c * (heart.shrink - 1))
    ring, apex = ring_and_apex(heart, c)
    muscle = ((heart.radius + heart.wall) ** 2 - heart.radius ** 2) * heart.length / (apex - ring)
    return inner, (inner ** 2 + muscle) ** 0.5


@dataclasses.dataclass
class Parts:
    """Signed distances in mm, float32 [Z,H,W]; `t` [Z,1,1]. Above the ring they are those of the atria's walls."""

    t: np.ndarray
    inner: np.ndarray  # of the left ventricle's cavity
    outer: np.ndarray  # of its muscle
    right: np.ndarray  # of the right ventricle's cavity, without regard to the left one
    muscles: np.ndarray  # of the papillary muscles
    around: np.ndarray  # of both ventricles with their walls, grooves filled


def heart(geometry: Heart, c: float, z: np.ndarray, u: np.ndarray, v: np.ndarray) -> Parts:
    """Parts of a heart at contraction c on the levels z [Z] and the points u, v [H,W]."""
    t = level(geometry, c, z).astype(F)[:, None, None]
    low = np.clip(t, 0, 1)
    cos, sin = F(np.cos(geometry.turn)), F(np.sin(geometry.turn))
    x = cos * u + sin * v - F(geometry.lean[0]) * (low - F(0.5))
    y = cos * v - sin * u - F(geometry.lean[1]) * (low - F(0.5))
    r = np.sqrt(x * x + y * y) + F(1e-3)
    a, b = x / r, y / r
    inner, outer, widths = _left(geometry, c, low, r, a, b)
    muscles = _papillary(geometry, c, low, widths, x, y)
    right = _right(geometry, c, t, widths[1], x, y)
    inner, outer = _atria(t, x, y, inner, outer)
    return Parts(t, inner, outer, right, muscles, _smooth_min(outer, right - F(3), F(7)))


def _left(geometry, c, t, r, a, b):
    """Distances to the inner and the outer outline, and the two mean radii [Z,1,1]."""
    inner, outer = left_radii(geometry, c)
    cap = 1 - F(0.75 * (outer - inner) / geometry.length)  # t of the inner apex
    narrow = 1 - F(0.07) * np.exp(-t / F(0.12))
    big = F(outer) * _taper(t) * narrow
    small = F(inner) * _taper(t / cap) * narrow
    cos2, sin2 = a * a - b * b, 2 * a * b
    cos3, sin3 = a * cos2 - b * sin2, a * sin2 + b * cos2
    w = geometry.waves.astype(F)
    shape = 1 + w[0] * cos2 + w[1] * sin2 + F(0.6) * (w[2] * cos3 + w[3] * sin3)
    septal = _towards(a, b, SEPTUM, 1.6)
    shape -= F(geometry.flat * (1 - 0.3 * c)) * septal
    thick = 1 + F(geometry.thick) * septal
    angle, centre, depth = geometry.scar
    if depth:
        remaining = F(1 - depth * (0.55 + 0.45 * c))  # a scar does not thicken in systole
        thick -= (1 - remaining) * _towards(a, b, angle, 2.5) * np.exp(-((t - F(centre)) / F(0.35)) ** 2)
        shape += F(0.05 * c) * _towards(a, b, angle, 2.5)
    thick *= 1 - F(0.85) * np.clip(1 - t / F(0.13), 0, 1) * _towards(a, b, OUTFLOW, 3.0)
    edge = big * shape
    return r - (edge - (big - small) * thick), r - edge, (small, big)


def _papillary(geometry, c, t, widths, x, y):
    small, _ = widths
    present = np.clip(np.minimum((t - F(0.16)) / F(0.08), (F(0.8) - t) / F(0.1)), 0, 1)
    out: np.ndarray | np.float32 = F(1e3)
    for angle, reach, radius in geometry.muscles:
        reach = np.clip(F(reach) + F(0.45) * (t - F(0.45)), F(0.3), F(0.95)) - F(0.12 * c)
        size = F(radius * (1 - 0.12 * c)) * present
        d = np.hypot(x - reach * small * F(np.cos(angle)), (y - reach * small * F(np.sin(angle)))) - size
        out = np.minimum(out, np.where(present > 0, d, F(1e3)))
    return out


def _right(geometry, c, t, big, x, y):
    (wide, high), (p, q) = geometry.right, geometry.squeeze
    wide, high = wide * (1 + c * (p - 1)), high * (1 + c * (q - 1))
    low = np.clip(t / F(geometry.end), 0, 1)
    size = np.sqrt(1 - low ** F(2.2)) * np.where(t < 0, F(0.85), F(1))
    # Half an ellipse to the free wall, `wide` beyond the septum, and half a narrower one to the ventricle's horns.
    middle = F(-0.5) * big
    free = F(wide) * size + F(0.5) * big * np.minimum(1, size * F(1.5))
    a = np.where(x < middle, free, F(0.6) * big) + F(1e-2)
    b = F(high) * (F(0.3) + F(0.7) * size) * np.sqrt(size) + F(1e-2)
    d = _ellipse(x - middle, y + F(2) - F(0.22) * (x - middle), a, b)
    # Outflow: forward of the septum in the levels under the ring.
    outflow = np.clip(1 - t / F(0.3), 0, 1) * (t > -0.5)
    tract = np.hypot(x + F(0.62) * big, y + F(0.9) * big) - F(0.42 * wide) * outflow - 40 * (outflow - 1)
    return _smooth_min(d, tract, F(8)) + 60 * (t >= geometry.end)


def _atria(t, x, y, inner, outer):
    """Above the ring, the aortic root and the left atrium take the place of the ventricle."""
    for k in np.flatnonzero(t.ravel() < 0):
        root = np.hypot(x[k] + 9, y[k] + 9) - F(13.5)
        inner[k] = np.minimum(root, _ellipse(x[k] - 7, y[k] - 14, F(24), F(15)))
        outer[k] = inner[k] - F(2)
    return inner, outer


@dataclasses.dataclass(frozen=True)
class Chest:
    skin: np.ndarray  # [4] mm: middle and half axes of the body
    fat: float  # mm under the skin
    liver: np.ndarray  # [3]: mm of the dome under the axis at the ring, its rise to the apex, its middle
    organs: np.ndarray  # [8,4] mm: stomach, gas, spleen, aorta, vertebra, caval vein, two veins of the liver
    filling: float  # of the stomach, between 0 (as muscle) and 1 (as fluid)
    ribs: np.ndarray  # [6] directions
    fold: np.ndarray  # [2] mm, where this person's texture begins


def chest(rng: np.random.Generator, geometry: Heart) -> Chest:
    """The chest of a patient, close around the heart `geometry`."""
    n, u = rng.standard_normal, rng.uniform
    outer = geometry.radius + geometry.wall
    fat, wide, tall = u(7, 18), u(112, 128), u(105, 120)
    wall = fat + MUSCLE
    left, top = outer + geometry.right[0] + u(3, 12) + wall, max(outer, geometry.right[1] + 4) + u(8, 22) + wall
    skin = np.array([wide - left, tall - top, wide, tall])
    organs = np.array([(50, outer + 44, 38, 30), (58, outer + 30, 20, 10), (84, outer + 26, 22, 32),
                       (44, outer + 26, 11, 11), (12, outer + 64, 25, 20), (-42, outer + 30, 11, 9),
                       (-70, outer + 28, 5, 3), (-14, outer + 34, 3, 6)]) + n((8, 4)) * (5, 5, 1, 1)
    liver = np.array([outer + u(-1, 5), u(10, 24), u(-60, -25)])
    return Chest(skin, fat, liver, organs, u(), u(-3.1, -0.4, 6), u(0, 256, 2))


def surroundings(geometry: Chest, t: np.ndarray, u: np.ndarray, v: np.ndarray,
                 pixel: float) -> Iterator[tuple[str, np.ndarray]]:
    """(tissue, coverage [H,W] or [Z,H,W]) in the order of painting, over air; t [Z,1,1]."""
    middle, down, wide, tall = geometry.skin
    x, y = (u - F(middle)) / F(wide), (v - F(down)) / F(tall)
    body = ((abs(x) ** 3 + abs(y) ** 3) ** F(1 / 3) - 1) * F(min(wide, tall))
    yield 'fat', coverage(body, pixel)
    yield 'muscle', coverage(body + F(geometry.fat), pixel)
    for angle in geometry.ribs:
        a, b = np.cos(angle), np.sin(angle)
        far = (1 - (geometry.fat + MUSCLE / 2) / wide) / (abs(a) ** 3 + abs(b) ** 3) ** (1 / 3)
        rib = np.hypot(u - F(middle + wide * far * a), v - F(down + tall * far * b))
        yield 'bone', coverage(rib - F(5.5), pixel)
        yield 'marrow', coverage(rib - F(3.5), pixel)
    inside = body + F(geometry.fat + MUSCLE)
    yield 'fat', coverage(inside, pixel)
    yield 'lung', coverage(inside + F(2), pixel)
    stomach, gas, spleen, aorta, vertebra, *veins = (_ellipse(u - F(x), v - F(y), F(p), F(q))
                                                     for x, y, p, q in geometry.organs)
    yield 'fat', coverage(_smooth_min(stomach, np.minimum(aorta, vertebra), F(10)) - F(4), pixel)
    for name, shape in (('marrow', vertebra), ('spleen', spleen), ('stomach', stomach),
                        ('gas', np.maximum(gas, stomach)), ('muscle', aorta - F(1.5)), ('blood', aorta)):
        yield name, coverage(shape, pixel)
    top, rise, centre = geometry.liver
    dome = _ellipse(u - F(centre), v - (F(top + 64) - F(rise) * np.clip(t, F(-0.2), F(1.1))), F(92), F(62))
    yield 'fat', coverage(dome - F(2), pixel)
    yield 'liver', coverage(dome, pixel)
    for vein in veins:
        yield 'blood', coverage(np.maximum(vein, dome + F(3)), pixel)


def coverage(distance: np.ndarray, pixel: float) -> np.ndarray:
    """Coverage 0..1 of pixels by a signed distance."""
    return np.clip(F(0.5) - distance * F(1 / pixel), 0, 1)


def _taper(t):
    return np.sqrt(np.maximum(1 - np.clip(t, 0, None) ** F(2.5), 0))


def _towards(a, b, angle, narrow):
    """1 in a direction, falling off to both sides; a, b: cos and sin of the direction of a point."""
    return np.exp(F(narrow) * (a * F(np.cos(angle)) + b * F(np.sin(angle)) - 1))


def _ellipse(x, y, a, b):
    """Distance to an ellipse, to first order."""
    x, y = x / a, y / b
    q = np.sqrt(x * x + y * y) + F(1e-3)
    return (q - 1) * q / np.sqrt((x / a) ** 2 + (y / b) ** 2 + F(1e-12))


def _smooth_min(a, b, width):
    """The smaller of two distances, rounded where they meet."""
    h = np.maximum(width - np.abs(a - b), 0)
    return np.minimum(a, b) - h * h / (4 * width)
