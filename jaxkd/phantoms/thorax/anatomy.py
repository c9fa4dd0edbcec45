"""Normal anatomy of the thorax phantom: from drawn lengths to path lengths through tissue, bone and air.

Everything is in centimetres on a square detector of 35 cm. x runs from the patient's right (image left) to
the patient's left, y from neck to abdomen. The body is symmetric in u = |x|, so both lungs, all ribs and both
clavicles come out of one pass. All numbers are anatomical orders of magnitude. [our choice]
"""
import dataclasses
import functools
import types

import numpy as np

from jaxkd.phantoms import common
from jaxkd.phantoms.thorax import stock

FIELD = 35.0  # side of the detector, cm
TISSUE = 0.26  # fraction of tissue in an inflated lung; the remainder is air
AP_HEART = 1.09  # magnification of the heart on AP films, where it is farther from the detector
F = np.float32


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """One patient, or one patient as a finding has deformed them. Pairs are (right, left)."""

    width: float  # half width of the lung field
    apex: float  # y of the lung apices
    base: tuple  # y of the costophrenic angles
    dome: float  # height of the diaphragm above them
    depth: float  # front to back path through the lungs
    wall: float  # path through the remaining body
    ratio: float  # cardiothoracic ratio
    lean: float  # inclination of the heart
    shift: float  # displacement of the mediastinum to the left
    knob: float  # radius of the aortic arch
    breast: float  # path through the breast
    curve: float  # scoliosis
    ribs: tuple  # spacing, phase, slope
    bone: float  # density of bone against the average
    clavicle: tuple  # height, slope
    bubble: float  # radius of the gastric air bubble
    vessels: float  # strength of the vascular pattern
    trees: tuple  # which vascular tree


def draw(rng: np.random.Generator) -> Anatomy:
    """The anatomy of one patient."""
    u, n = rng.uniform, functools.partial(common.clipped_normal, rng)
    base = n(29.5, 1.0, 27, 31.5)
    female = rng.random() < 0.5
    return Anatomy(width=n(13.0 - 0.7 * female, 0.7, 11, 14.8), apex=u(4.6, 6.2), base=(base, base + u(0.1, 0.7)),
                   dome=u(2.6, 4.2), depth=n(15.5, 1.0), wall=n(9.0, 1.6, 6.5, 13), ratio=u(0.40, 0.495),
                   lean=u(0.15, 0.55), shift=n(0, 0.2), knob=u(1.2, 1.9), breast=female * u(0.6, 3.2), curve=n(0, 0.35),
                   ribs=(u(2.35, 2.65), u(-0.4, 0.4), u(0.018, 0.03)), bone=n(1, 0.15, 0.65, 1.35),
                   clavicle=(u(5.8, 7.0), u(0.05, 0.22)), bubble=u(0.3, 2.6), vessels=u(0.65, 1.3),
                   trees=tuple(rng.integers(stock.TREES, size=2)))


@dataclasses.dataclass(frozen=True)
class Pose:
    """Pose and exposure of one image."""

    view: str
    dx: float
    dy: float
    zoom: float
    turn: float  # rotation about the long axis, -1..1
    breath: float  # y that the diaphragm is higher than in full inspiration
    exposure: float


def draw_pose(rng: np.random.Generator, view: str) -> Pose:
    """A pose. AP films are taken in bed: less inspiration, more rotation, more magnification."""
    bed = view == 'AP'
    return Pose(view, dx=rng.normal(0, 0.5 + 0.4 * bed), dy=rng.normal(0, 0.5),
                zoom=rng.uniform(0.95, 1.04) + 0.03 * bed, turn=min(max(rng.normal(0, 0.3 + 0.3 * bed), -1), 1),
                breath=rng.uniform(0, 1) + bed * rng.uniform(0.3, 1.6), exposure=rng.normal(0, 0.15))


def build_layers(a: Anatomy, pose: Pose, size: int) -> types.SimpleNamespace:
    """The undiseased layers of one image.

    Returns a namespace of float32 maps [S,S] in cm: `body` (path through the patient), `lung`, `heart`,
    `bone`, `hole` (air outside the lungs: trachea, stomach), `vessels`, and the coordinates of
    findings: x [1,S], y [S,1], u [1,S] (distance from the midline, the chest scaled to be symmetric), left
    [1,S] bool, outer [S,1] and inner [S,1] (u of the lung's edges), floor [1,S] (y of the diaphragm), height
    of the field.
    """
    px = FIELD / size
    line = (np.arange(size, dtype=F) + F(0.5)) * F(px)
    x = ((line - F(FIELD / 2) - F(pose.dx)) / F(pose.zoom))[None]
    y = ((line - F(FIELD / 2) - F(pose.dy)) / F(pose.zoom) + F(FIELD / 2))[:, None]
    left = x > 0
    u = np.abs(x) * np.where(left, F(1 + 0.05 * pose.turn), F(1 - 0.05 * pose.turn))
    mid = a.shift + 0.7 * pose.turn
    base = [b - pose.breath for b in a.base]

    v = np.clip((y - F(a.apex)) / F(base[0] - a.apex), 0, 1)
    outer = 5.2 + (a.width - 5.2) * np.power(1 - (1 - v) ** 2.4, 0.62) - 0.5 * v ** 4
    inner = 2.3 + 2.6 * (1 - np.clip(v / 0.13, 0, 1)) ** 2 + 0.5 * np.exp(-((v - 0.42) / 0.12) ** 2)
    outer, inner = outer.astype(F), inner.astype(F)
    hill = a.dome * np.clip(1 - ((u - 5.5) / (a.width - 5.0)) ** 2, -0.25, 1)
    floor = np.where(left, F(base[1]), F(base[0])) - hill.astype(F)

    lung = np.sqrt(np.clip(1 - (u / outer) ** 2, 0, 1))
    lung *= np.clip((u - inner) / F(0.9), 0, 1)
    lung *= np.clip((floor - y) / F(max(0.5, px)) + F(0.5), 0, 1)
    lung *= (a.depth * (0.5 + 0.5 * np.clip(v / 0.35, 0, 1)) * (v > 0)).astype(F)

    heart = _heart(a, pose, x - F(mid), y, base[0])
    block = np.minimum(lung, F(0.9) * heart)
    lung = lung - block
    blob(lung, x, y, mid + 2.2, a.apex + 7.6, a.knob, a.knob, -9.0)  # aortic arch
    trunk = np.zeros_like(lung)
    for side in (-1, 1):
        blob(trunk, x, y, mid + side * 3.6, a.apex + 10.6 - 0.4 * side, 1.6, 2.4, 3.2)  # hilum
    np.maximum(lung, 0, out=lung)

    breasts = np.zeros((size, size), F)
    for side in (-1, 1) if a.breast > 0 else ():
        blob(breasts, x, y, side * a.width * 0.58, a.apex + 17.5, 5.6, 5.2, a.breast)
    body = _body(a, x, y) + breasts
    vessels = np.zeros((size, size), F)
    for tree, part in zip(a.trees, (~left, left)):
        stock.stamp(vessels, stock.pyramid(size)[tree], u, y, part, (2.2, a.width), (a.apex - 0.5, base[0] + 0.3))
    vessels *= F(3.2 * a.vessels)
    vessels += trunk

    hole = np.zeros((size, size), F)
    _trachea(hole, x - F(mid * 0.7), y, a.apex + 8.6)
    blob(hole, x, y, 6.0, float(base[1]) - a.dome + 2.2 + 0.5 * a.bubble, 1.3 * a.bubble, a.bubble, 4.0)
    hole *= lung < 0.5
    return types.SimpleNamespace(
        px=px / pose.zoom, size=size, x=x, y=y, u=u, left=left, mid=mid, outer=outer, inner=inner,
        floor=floor, apex=a.apex, base=base, width=a.width, height=base[0] - a.apex, body=body, lung=lung,
        heart=heart, bone=_bones(a, pose, x, y, u, outer, px), hole=hole, vessels=vessels, behind=block)


def blob(into: np.ndarray, x: np.ndarray, y: np.ndarray, cx: float, cy: float, rx: float, ry: float,
         path: float) -> None:
    """Add an ellipsoid of the given central path; only its bounding rows and columns are touched."""
    i0, i1 = np.searchsorted(y[:, 0], (cy - ry, cy + ry))
    j0, j1 = np.searchsorted(x[0], (cx - rx, cx + rx))
    if i1 > i0 and j1 > j0:
        q = ((x[:, j0:j1] - F(cx)) / F(rx)) ** 2 + ((y[i0:i1] - F(cy)) / F(ry)) ** 2
        into[i0:i1, j0:j1] += F(path) * np.sqrt(np.clip(1 - q, 0, 1))


def _heart(a, pose, x, y, base):
    """Two leaning ellipsoids. Their joint width is `ratio` times the width of the chest, more on AP films."""
    wide = 2 * a.width * a.ratio * (AP_HEART if pose.view == 'AP' else 1.0) * (1 + 0.015 * pose.breath)
    right, left = 0.34 * wide, 0.66 * wide
    tall = 0.22 * wide + 3.2
    cy = base - a.dome * 0.5 - 0.8 * tall
    k = a.lean
    ventricle = np.sqrt((0.42 * wide) ** 2 - min(k * tall, 0.3 * wide) ** 2)
    dy = y - F(cy)
    q = ((x - F(left - 0.42 * wide) - F(k) * dy) / F(ventricle)) ** 2 + (dy / F(tall)) ** 2
    atrium = ((x + F(right - 0.26 * wide)) / F(0.26 * wide)) ** 2 + ((dy + F(0.3)) / F(0.40 * wide)) ** 2
    return F(11.5) * np.sqrt(np.sqrt(np.clip(1 - np.minimum(q, atrium), 0, 1)))


def _body(a, x, y):
    """Trunk, shoulders and neck as a flat superellipse. Arms are out of the way."""
    wide = np.minimum(6.0 + 3.1 * np.maximum(y - 0.5, 0) ** 0.85, a.width + 4.0 + 0.15 * a.wall)
    thick = a.depth + a.wall - 7.0 * np.exp(-y / 3.0) + 2.5 * np.clip((y - a.base[0] + 2) / 6, 0, 1)
    q = (x / wide.astype(F)) ** 2
    return thick.astype(F) * np.sqrt(np.clip(1 - q * q, 0, 1))


def _trachea(hole, x, y, carina):
    tube = np.clip((0.95 - np.abs(x)) / 0.4, 0, 1) * ((y < carina) & (y > 1.0))
    rows = np.flatnonzero((y[:, 0] >= carina) & (y[:, 0] < carina + 3.5))
    tube = tube.astype(F)
    if len(rows):
        dy = y[rows] - F(carina)
        tube[rows] = np.clip((0.75 - np.abs(np.abs(x) - 0.85 * dy)) / 0.4, 0, 1) * (1 - dy / 4.5)
    hole += F(1.7) * tube


def _bones(a, pose, x, y, u, outer, px):
    """Ribs behind and in front, clavicles, spine, humeral heads: path through bone, cm."""
    spacing, phase, slope = a.ribs
    cage = outer + F(0.55)
    ring = np.minimum(u / cage, F(0.9))
    rim = np.clip((cage - u) * 2, 0, 1) / np.sqrt(1 - ring * ring)  # the wall is met at a slant near its edge
    rows = (y - F(a.apex - 2.2 + phase * spacing)) * F(32 / spacing)  # 32 samples of the profile for each rib
    behind = (F(slope) * u * u - F(1.3) * np.sin(u * F(0.33)) + F(0.6)) * F(32 / spacing)
    front = (F(0.52 * a.width + 5.2) - F(0.62) * u + F(0.018) * u * u) * F(32 / spacing)
    bone = _profile(px, 0.26).take((rows - behind).astype(np.int32), mode='clip')
    bone *= np.clip((u - F(1.3)) * 2, 0, 1) * F(0.46)
    bone += _profile(px, 0.30).take((rows - front).astype(np.int32), mode='clip') * (
        np.clip((u - F(4.2)) * F(0.35), 0, 1) * F(0.22))
    bone *= rim * (np.clip((F(a.base[0] + 3) - y) / 4, 0, 1) * np.clip((y - F(a.apex - 0.5)) / 2, 0, 1))
    bone += _spine(a, x, y)

    top, tilt = a.clavicle
    top = top - 0.9 * (pose.view == 'AP')
    rows = slice(*np.searchsorted(y[:, 0], (top - 4.5, top + 4.0)))
    path = F(top + 1.3) - F(tilt) * u - F(0.55) * np.sin(u * F(0.5))
    path += F(0.3 * pose.turn) * np.where(x > 0, F(1), F(-1))
    d = np.abs(y[rows] - path.astype(F)) / F(0.62)
    ends = np.clip((u - 1.6) * 2, 0, 1) * np.clip((16.0 - u) * 2, 0, 1)
    bone[rows] += (F(0.55) + F(0.6) * d * d) * np.clip((1 - d) * F(0.62 / max(px, 0.1)) + F(0.5), 0, 1) * ends
    for side in (-1, 1):
        blob(bone, x, y, side * (a.width + 5.0), 7.2, 2.6, 2.6, 2.2)
    bone *= F(a.bone)
    return bone


def _spine(a, x, y):
    d = np.abs(x - F(a.curve) * np.sin(y * F(0.16))) / F(1.9)
    discs = F(1.15) - F(0.3) * (np.mod(y * F(1 / 2.6), 1) < 0.2)
    return (F(0.55) + F(0.2) * d * d) * discs * np.clip((1 - d) * 4, 0, 1)


@functools.lru_cache(maxsize=64)
def _profile(px, fraction):
    """Path through ten ribs along y: two cortical edges round a thinner middle, blurred to the pixel."""
    t = (np.arange(320) % 32) / 32 - 0.5
    d = np.abs(t) / fraction
    rib = np.where(d < 1, 0.62 + 0.55 * d ** 4, 0) * (1 - 0.035 * (np.arange(320) // 32))
    wide = max(1, int(min(px, 1.2) / 2.5 * 32))
    return np.convolve(np.pad(rib, wide, mode='wrap'), np.ones(wide) / wide, 'same')[wide:-wide].astype(F)
