"""Pictures of the lesions of the breast phantom, by their descriptors.

Masses are a blurred outline: the shape sets the outline (round, oval, a few lobes, many irregular waves; a distortion
is strands without a centre, an asymmetry a soft cloud, a lymph node has a fatty notch), the margin its edge (sharp with
a dark halo, small waves, blurred, blurred on one side, or with spicules). Calcifications are discs, rods and rings of
the sizes of the type and in the arrangement of the distribution. [our choice]

Parts smaller than a pixel lose contrast in proportion to their width, not to their area, as in a film reduced in size.
"""
import types

import numpy as np
from scipy import ndimage

from jaxkd.phantoms.breast import findings

F = np.float32
_DISCS = {  # by type (fewest, most, smallest and largest radius in cm, strength in cm of calcium)
    'PLEOMORPHIC': (10, 26, 0.03, 0.10, 0.050), 'AMORPHOUS': (26, 44, 0.03, 0.05, 0.014),
    'PUNCTATE': (8, 18, 0.04, 0.05, 0.040), 'COARSE': (1, 3, 0.25, 0.45, 0.16),
    'ROUND_AND_REGULAR': (4, 10, 0.08, 0.16, 0.08), 'DYSTROPHIC': (2, 4, 0.15, 0.30, 0.12),
    'NA': (2, 4, 0.04, 0.06, 0.04), 'MILK_OF_CALCIUM': (5, 10, 0.05, 0.07, 0.03)}
_DENSE = {'CIRCUMSCRIBED': 0.7, 'OBSCURED': 0.6, 'MICROLOBULATED': 1.0, 'NA': 0.8, 'ILL_DEFINED': 1.15,
          'SPICULATED': 1.4}
_RINGS = {'LUCENT_CENTER': (2, 5, 0.15, 0.30, 0.06), 'LUCENT_CENTERED': (2, 5, 0.15, 0.30, 0.06),
          'EGGSHELL': (1, 2, 0.40, 0.70, 0.08), 'SKIN': (3, 6, 0.10, 0.14, 0.05)}


def place(lesion: findings.Lesion, layers: types.SimpleNamespace) -> tuple[float, float]:
    """(x, y) of the centre: inside the breast, most often in the gland, nearly as deep in both views."""
    u, v = lesion.place[:2]
    _, y0 = layers.nipple
    near, far = max(1.6, 0.22 * layers.depth), 0.74 * layers.depth
    x = far - (far - near) * u
    reach = 0.62 * min(layers.high - y0, 7.0)
    return x, y0 + (2 * v - 1) * reach * np.sqrt(max(0.15, 1 - (x / layers.depth) ** 2))


def paint(lesion: findings.Lesion, layers: types.SimpleNamespace, centre: tuple[float, float], gain: float,
          rng: np.random.Generator) -> np.ndarray:
    """Add a lesion to layers.mass and layers.calcium (cm) -> its bool mask [H,W], never empty."""
    strength = gain * (0.40 + 0.17 * lesion.subtlety)
    mask = (_mass if lesion.kind == 'mass' else _calcium)(lesion, layers, centre, strength, rng)
    if not mask.any():
        row, column = (min(int(c / layers.px), n - 1) for c, n in zip(centre[::-1], mask.shape))
        mask[row, column] = True
    return mask


def _window(layers, centre, reach):
    """(slices, x [1,w], y [h,1]) of a square around the centre, clipped to the image."""
    out = []
    for c, n in zip(centre[::-1], layers.path.shape):
        out.append(slice(max(0, int((c - reach) / layers.px)), min(n, int((c + reach) / layers.px) + 2)))
    return tuple(out), layers.x[:, out[1]] - F(centre[0]), layers.y[out[0]] - F(centre[1])


def _mass(lesion, layers, centre, strength, rng):
    size, turn, phase = lesion.place[2:5]
    distorted, asymmetric = lesion.has('ARCHITECTURAL_DISTORTION'), lesion.has('ASYMMETRIC_BREAST_TISSUE')
    vague = asymmetric or lesion.has('FOCAL_ASYMMETRIC_DENSITY')
    radius = (0.65 + 0.95 * size) * (1.15 if lesion.has('IRREGULAR') else 1.0)
    radius *= 0.6 if lesion.has('LYMPH_NODE') else 1.5 if asymmetric else 1.2 if vague else 1.0
    window, x, y = _window(layers, centre, 3.2 * radius)
    c, s = np.cos(np.pi * turn), np.sin(np.pi * turn)
    across, along = c * x + s * y, c * y - s * x
    stretch = 1.30 if lesion.has('OVAL') or lesion.has('LYMPH_NODE') else 1.0
    angle = np.arctan2(along, across)
    r = np.hypot(across / F(stretch), along * F(stretch))
    outline = 1 + _waves(lesion, angle, phase, rng)
    depth = (F(radius) * outline - r)  # cm inside the outline
    blur = np.full_like(r, 0.10)
    if lesion.has('ILL_DEFINED') or vague:
        blur = blur + F(0.45 * radius)
    elif lesion.has('SPICULATED') or distorted:
        blur = blur + F(0.18 * radius)
    if lesion.has('OBSCURED'):  # tissue covers one side
        blur = blur + F(0.9 * radius) * np.clip(np.cos(angle - F(6.28 * phase)) + F(0.3), 0, 1)
    blur = np.maximum(blur, F(0.5 * layers.px))
    bulk = np.clip(depth / blur + F(0.5), 0, 1) * np.sqrt(np.clip(F(0.35) + depth / F(radius), 0, 1))
    thick = F(min(1.7 * radius, 2.2))
    shown = F(0.22 if distorted and not lesion.has('IRREGULAR') else 0.5 if vague else 1.0) * bulk * thick
    if vague:
        shown = shown * (F(0.7) + F(0.6) * layers.gland[window])
    if lesion.has('LYMPH_NODE'):  # the fatty hilum
        shown = shown * (1 - F(0.8) * np.exp(-((across - F(0.3 * radius)) ** 2 + along ** 2) / F(0.14 * radius ** 2)))
    if lesion.has('CIRCUMSCRIBED'):
        shown = shown - F(0.12) * thick * np.exp(-((depth + F(0.25)) / F(max(0.15, 0.8 * layers.px))) ** 2)
    if lesion.has('SPICULATED') or distorted:
        shown = np.maximum(shown, thick * F(0.75) * _spicules(angle, r, radius, layers.px, 22 if distorted else 17,
                                                              rng))
    # Of several margins, the one that makes the mass densest: carcinomas are denser than cysts.
    dense = max(_DENSE[margin] for margin in lesion.second.split('-'))
    layers.mass[window] += F(strength * dense) * shown * np.clip(layers.path[window] / F(2), 0, 1)
    mask = np.zeros(layers.path.shape, bool)
    mask[window] = (r < F(radius) * outline * F(1.25 if distorted else 1.0)) & layers.inside[window]
    return mask


def _waves(lesion, angle, phase, rng):
    """The outline's deviation from a circle, as a fraction of the radius."""
    out = np.zeros_like(angle)
    turns = rng.uniform(0, 2 * np.pi, 16)
    if lesion.has('LOBULATED'):
        out += F(0.17) * np.cos(F(3 + (phase > 0.5)) * angle + F(turns[0]))
    if lesion.has('IRREGULAR') or lesion.has('ARCHITECTURAL_DISTORTION'):
        for k in range(2, 9):
            out += F(0.16 / k ** 0.5) * np.cos(F(k) * angle + F(turns[k]))
    if lesion.has('MICROLOBULATED'):
        out += F(0.10) * np.cos(F(11) * angle + F(turns[9]))
    return np.maximum(out, F(-0.6))


def _spicules(angle, r, radius, px, count, rng):
    """Lines that leave the mass and taper, 0..1."""
    out = np.zeros_like(r)
    wide = max(0.07, 0.55 * px)
    thin = (0.07 / wide) ** 0.5
    for k in range(count):
        direction = 2 * np.pi * (k + rng.uniform(-0.3, 0.3)) / count
        far = radius * rng.uniform(1.6, 2.9)
        turn = np.mod(angle - F(direction) + F(np.pi), F(2 * np.pi)) - F(np.pi)
        aside = np.abs(r * np.sin(np.clip(turn, -1.5, 1.5)))
        line = np.exp(-(aside / F(wide)) ** 2) * np.clip(F(1) - r / F(far), 0, 1) * (np.abs(turn) < 1)
        out = np.maximum(out, line)
    return out * F(1.3 * thin)


def _calcium(lesion, layers, centre, strength, rng):
    types = lesion.first.split('-')
    spread = _spread(lesion, layers, centre)
    points = []
    for kind in types:
        if kind == 'VASCULAR':
            points.append(_tram(centre, lesion, rng))
        elif kind in ('FINE_LINEAR_BRANCHING', 'LARGE_RODLIKE'):
            fine = kind == 'FINE_LINEAR_BRANCHING'
            n = int(rng.integers(14, 26) if fine else rng.integers(3, 7))
            places = spread(n, rng)
            home = np.arctan2(layers.nipple[1] - centre[1], layers.nipple[0] - centre[0]) + rng.normal(0, 0.45, n)
            half = rng.uniform(0.12, 0.28, n) if fine else rng.uniform(0.3, 0.5, n)
            points.append((places, half[:, None] * np.stack([np.cos(home), np.sin(home)], 1),
                           np.full(n, 0.03 if fine else 0.09), np.full(n, 0.045 if fine else 0.09), 0))
        else:
            fewest, most, small, large, cm = _RINGS.get(kind) or _DISCS[kind]
            n = int(rng.integers(fewest, most + 1))
            radius = rng.uniform(small, large, n)
            uneven = rng.uniform(0.35, 1.6, n) if kind in ('PLEOMORPHIC', 'DYSTROPHIC') else np.ones(n)
            rods = np.zeros((n, 2))
            if kind in ('PLEOMORPHIC', 'DYSTROPHIC', 'COARSE'):
                rods = radius[:, None] * rng.normal(0, 0.7, (n, 2))
            if kind == 'MILK_OF_CALCIUM':
                rods = np.stack([np.full(n, 0.12), np.zeros(n)], 1)
            points.append((spread(n, rng), rods, radius, cm * uneven, 0.35 if kind in _RINGS else 0))
    dots = np.zeros(layers.path.shape, F)
    for centres, rods, radii, strengths, hollow in points:
        _stamp(dots, layers.px, centres, rods, radii, strengths, hollow)
    if 'AMORPHOUS' in types:  # below the resolution: a haze
        window, x, y = _window(layers, centre, 2.5)
        dots[window] += F(0.006) * np.exp(-(x * x + y * y) / F(0.7))
    dots *= layers.inside
    layers.calcium += F(strength) * dots
    grown = ndimage.maximum_filter(dots > 0.004, 2 * max(1, round(0.25 / layers.px)) + 1)
    return ndimage.binary_fill_holes(grown)  # the outline that a reader would draw around them


def _spread(lesion, layers, centre):
    """A function (n, rng) -> [n,2] of places in cm, arranged by the distribution."""
    size = lesion.place[2]
    centre = np.array(centre)
    home = np.array(layers.nipple) - centre
    home = home / max(np.linalg.norm(home), 1e-6)
    side = np.array([-home[1], home[0]])

    def spread(n, rng):
        a, b = rng.uniform(-1, 1, (2, n, 1))
        if lesion.has('LINEAR'):
            offsets = (1.1 + 0.9 * size) * a * home + 0.10 * b * side
        elif lesion.has('SEGMENTAL'):
            offsets = (1.4 + 0.9 * size) * a * home + (0.15 + 0.45 * (1 - a)) * b * side
        elif lesion.has('REGIONAL'):
            offsets = (1.5 + 0.6 * size) * np.concatenate([a, b], 1) * (1, 0.75)
        elif lesion.has('DIFFUSELY_SCATTERED'):
            offsets = 2.7 * np.concatenate([a, b], 1)
        elif lesion.has('CLUSTERED'):
            offsets = (0.35 + 0.25 * size) * rng.normal(0, 0.7, (n, 2))
        else:
            offsets = 1.1 * np.concatenate([a, b], 1)
        return centre + offsets
    return spread


def _tram(centre, lesion, rng):
    """Two parallel, broken lines along a bending vessel."""
    t = np.linspace(-1, 1, 26)
    tilt = np.pi * lesion.place[3]
    along, bend = 1.9 * t, 0.35 * np.sin(2.2 * t + 6 * lesion.place[4])
    line = np.stack([along * np.cos(tilt) - bend * np.sin(tilt), along * np.sin(tilt) + bend * np.cos(tilt)], 1)
    step = np.gradient(line, axis=0)
    shift = 0.15 * np.stack([-step[:, 1], step[:, 0]], 1) / np.linalg.norm(step, axis=1, keepdims=True)
    places = np.array(centre) + np.concatenate([line + shift, line - shift])
    rods = 0.5 * np.concatenate([step, step])
    drawn = rng.random(len(places)) < 0.8
    return places[drawn], rods[drawn], np.full(drawn.sum(), 0.035), np.full(drawn.sum(), 0.045), 0


def _stamp(into, px, places, rods, radius, cm, hollow):
    """Add capsules: at [n,2] cm, rods [n,2] their half axes, radius and strength [n]; hollow: fraction left open."""
    shown = np.maximum(radius, 0.6 * px)
    cm = cm * radius / shown
    reach = int(np.ceil((shown + np.linalg.norm(rods, axis=1)).max() / px)) + 1
    step = np.arange(-reach, reach + 1)
    corner = np.floor(places / px).astype(int)
    columns, rows = corner[:, 0, None] + step, corner[:, 1, None] + step  # [n,k]
    x = ((columns + 0.5) * px - places[:, :1])[:, None, :]
    y = ((rows + 0.5) * px - places[:, 1:])[:, :, None]
    length = np.maximum((rods ** 2).sum(1), 1e-9)[:, None, None]
    t = np.clip((x * rods[:, 0, None, None] + y * rods[:, 1, None, None]) / length, -1, 1)
    d = np.hypot(x - t * rods[:, 0, None, None], y - t * rods[:, 1, None, None])
    shown = shown[:, None, None]
    dots = np.clip((shown - d) / px + 0.5, 0, 1)
    if hollow:
        dots -= np.clip(((1 - hollow) * shown - d) / px + 0.5, 0, 1) * (shown > 1.2 * px) * 0.8
    dots = (dots * cm[:, None, None]).astype(F)
    h, w = into.shape
    inside = (0 <= rows[:, :, None]) & (rows[:, :, None] < h) & (0 <= columns[:, None]) & (columns[:, None] < w)
    np.add.at(into, (np.clip(rows, 0, h - 1)[:, :, None], np.clip(columns, 0, w - 1)[:, None]),
              np.where(inside, dots, 0))
