"""The healthy breast of the phantom: outline, thickness, glandular tissue, muscle. Lengths in cm.

x runs from the chest wall towards the nipple, y from head to foot. CC shows half an ellipse; MLO shows the breast
hanging from the axilla, with the pectoral muscle as a wedge from the upper corner. The glandular fraction g in 0..1 is
a cone behind the nipple with noise of the power spectrum f^-3, that of parenchyma (Burgess et al., Med Phys 2001
[published]), and strands that run to the nipple. The four densities of BI-RADS are fractions of gland in the breast.
All other numbers are anatomical orders of magnitude. [our choice]
"""
import dataclasses
import functools
import types

import numpy as np

from jaxkd.phantoms import common

FIELD = 20.0  # height of the detector, cm; its width is 4/5 of that
GLAND_FRACTION = {1: 0.10, 2: 0.30, 3: 0.55, 4: 0.82}  # of the cone that is gland, by density
STOCK = 4  # random fields
MASTER = 1024  # pixels of their spectrum
F = np.float32


@dataclasses.dataclass(frozen=True)
class Anatomy:
    density: int  # BI-RADS, 1 to 4
    depth: float  # chest wall to nipple
    half: float  # half of the height in CC
    thick: float  # compressed thickness
    cone: tuple  # of the gland: depth and height, as fractions of the breast's
    tilt: float  # of the gland towards the axilla
    muscle: tuple  # width at the top, length along the chest wall
    strands: float  # their contrast


def draw(rng: np.random.Generator) -> Anatomy:
    """The anatomy of one patient; the same in both breasts."""
    u, n = rng.uniform, functools.partial(common.clipped_normal, rng)
    density = 1 + int(np.searchsorted((0.15, 0.54, 0.85), rng.random()))
    depth = n(8.6 - 0.7 * (density - 2.5), 1.3, 5.5, 11.5)
    return Anatomy(density, depth, half=n(0.72 * depth + 1.2, 0.6, 5.0, 9.0),
                   thick=n(4.6 - 0.2 * (density - 2.5), 0.7, 2.8, 6.5), cone=(u(0.62, 0.85), u(0.55, 0.8)),
                   tilt=u(0.0, 0.25), muscle=(u(3.0, 5.2), u(9.0, 14.0)), strands=u(0.5, 1.0))


def shape(size: int) -> tuple[int, int]:
    """(rows, columns) of an image of `size` rows."""
    return size, max(1, round(0.8 * size))


def build_layers(a: Anatomy, view: str, rng: np.random.Generator, size: int,
                 contrast: float = 1.0) -> types.SimpleNamespace:
    """One image without lesions, chest wall at the left. contrast: of the parenchyma, against its mean.

    Returns a namespace of float32 maps [H,W]: `path` (cm through the breast), `gland` (fraction 0..1), `muscle` (cm);
    `inside` bool [H,W]; and the coordinates for lesions: px (cm), x [1,W], y [H,1], edge [H,1] (x of the skin),
    nipple (x, y), low and high (y of the ends of the breast at the chest wall).
    """
    height, width = shape(size)
    px = FIELD / size
    x = ((np.arange(width, dtype=F) + F(0.5)) * F(px))[None]
    y = ((np.arange(height, dtype=F) + F(0.5)) * F(px))[:, None]
    depth, half = a.depth * rng.uniform(0.95, 1.05), a.half * rng.uniform(0.96, 1.04)
    lumps, fine, ridges = (_place(_fields(size)[k], rng, (height, width)) for k in rng.permutation(STOCK)[:3])
    if view == 'CC':
        middle = FIELD / 2 + rng.normal(0, 0.5)
        up = down = half
        tail = 0.0
    else:
        middle = FIELD / 2 + 2.2 + rng.normal(0, 0.5)
        up, down = middle + 2.0, min(half * 1.02, FIELD - middle - 0.3)
        tail = rng.uniform(0.34, 0.48)
    v = (y - F(middle)) / np.where(y < middle, F(up), F(down))
    round_ = np.sqrt(np.clip(1 - np.abs(v) ** F(2.2), 0, None))
    edge = F(depth) * np.where(v < 0, tail + (1 - tail) * round_ ** F(1.15), round_)
    edge += F(0.45) * np.exp(-((y - F(middle)) / F(0.5)) ** 2)  # the nipple
    edge = np.where(np.abs(v) < 1, edge, 0).astype(F)

    slope = np.gradient(edge[:, 0], px)[:, None].astype(F)
    skin = (edge - x) / np.sqrt(1 + slope * slope)  # distance to the skin, nearly
    rim = np.clip(skin / F(a.thick / 2), 0, 1)
    path = F(a.thick) * np.sqrt(rim * (2 - rim))
    path *= np.clip(skin / F(px) + F(0.5), 0, 1)

    cx, cy = 0.5 * depth, middle - a.tilt * half
    q = np.abs((x - F(cx)) / F(a.cone[0] * 0.62 * depth)) ** 2.5 + np.abs((y - F(cy)) / F(a.cone[1] * half)) ** 2.5
    cone = 1 / (1 + np.exp(np.clip((q + F(0.55 * contrast) * lumps - 1) * F(4), -30, 30)))
    dx, dy = F(depth) - x, y - F(middle)
    angle = np.arctan2(dy, np.maximum(dx, F(0.2)))
    run = np.sqrt(dx * dx + dy * dy)
    strand = np.exp(-(np.abs(_look(ridges, run * F(0.35 / px), angle * F(5.0 / px))) / F(0.16)) ** 2)
    fraction = GLAND_FRACTION[a.density]
    body = np.clip(F(1.20 * fraction - 0.08) + F(contrast) * (F(0.24) * lumps + F(0.10) * fine), 0, 1)
    gland = cone * body + F(0.26 * contrast * a.strands) * strand * np.clip(1.3 - q * F(0.35), F(0.15), 1)
    gland = np.clip(gland + F(0.05 * contrast) * fine, 0, 1) * np.clip(skin / F(0.5), 0, 1)
    gland = np.maximum(gland, ((skin > 0) & (skin < max(0.15, px))) * F(0.45))  # skin

    muscle = np.zeros_like(path)
    if view == 'MLO':
        wide, long = a.muscle
        line = F(wide * rng.uniform(0.9, 1.1)) * (1 - (y / F(long)) ** F(1.25))
        muscle = F(0.55 * a.thick) * np.clip((line - x) / F(max(0.25, px)) + F(0.5), 0, 1) * (F(0.95) + F(0.08) * fine)
        muscle *= path > 0.3
    return types.SimpleNamespace(px=px, x=x, y=y, path=path, gland=gland, muscle=muscle.astype(F), edge=edge,
                                 inside=path > 0.3, nipple=(depth, middle), low=middle - up, high=middle + down,
                                 depth=depth)


def _place(field, rng, shape):
    """A random window of a periodic field, perhaps mirrored."""
    top, left = rng.integers(0, len(field), 2)
    out = np.roll(field, (-top, -left), (0, 1))[:shape[0], :shape[1]]
    return out[:, ::-1] if rng.random() < 0.5 else out


def _look(field, row, column):
    """The field at places in pixels, bilinear, edges mirrored."""
    h, w = field.shape
    r, c = (np.abs(np.mod(a + n - 1, 2 * (n - 1)) - (n - 1)) for a, n in ((row, h), (column, w)))
    r0, c0 = np.minimum(r.astype(np.int32), h - 2), np.minimum(c.astype(np.int32), w - 2)
    fr, fc = r - r0, c - c0
    flat, corner = field.ravel(), r0 * w + c0
    low = flat.take(corner) * (1 - fc) + flat.take(corner + 1) * fc
    return low * (1 - fr) + (flat.take(corner + w) * (1 - fc) + flat.take(corner + w + 1) * fc) * fr


@functools.lru_cache(maxsize=4)
def _fields(size):
    """Periodic random fields [STOCK,S,S] of the power spectrum f^-3, unit spread; every size shows the same ones."""
    rng = common.rng(20240603)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(MASTER, 1 / MASTER), np.fft.fftfreq(MASTER, 1 / MASTER)))
    gain = np.where(f >= 2, np.maximum(f, 1) ** -1.5, 0)  # nothing wider than half the detector
    out = []
    for _ in range(STOCK):
        spectrum = np.fft.fftshift(np.fft.fft2(rng.standard_normal((MASTER, MASTER))) * gain)
        low = (MASTER - size) // 2 + (MASTER - size) % 2
        spectrum = np.fft.ifftshift(spectrum[low:low + size, low:low + size])
        field = np.fft.ifft2(spectrum).real
        out.append((field / field.std()).astype(F))
    return np.stack(out)
