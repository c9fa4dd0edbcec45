"""The findings of the thorax phantom, painted on the layers of an image.

A finding is painted as its physics: air in the lung gives way to fluid or cells (`fill`), lung gives way to
air (`gas`), or the anatomy itself moves. Its region is returned as a mask. Numbers are [our choice].
"""
import dataclasses
import types
from collections.abc import Sequence

import numpy as np

from jaxkd.phantoms.thorax import anatomy, stock
from jaxkd.phantoms.thorax.course import Finding
from jaxkd.phantoms.thorax.labeller import LABELS

F = np.float32


def deform(a: anatomy.Anatomy, findings: Sequence[Finding], gain: float) -> anatomy.Anatomy:
    """The anatomy as large hearts and collapsed lobes change it."""
    for f in findings:
        if f.name == 'Cardiomegaly':
            a = dataclasses.replace(a, ratio=0.505 + (0.005 + 0.09 * f.severity) * min(gain, 1.2))
        if f.name == 'Atelectasis':
            lift = (0.3 + 2.0 * f.severity) * gain
            base = tuple(b - lift * (s in f.sides) for b, s in zip(a.base, ('right', 'left')))
            pull = 1.1 * f.severity * gain * (f.kind == 'lobar') * (1 if f.sides == ('left',) else -1)
            a = dataclasses.replace(a, base=base, shift=a.shift + pull)
    return a


def paint(findings: Sequence[Finding], layers: types.SimpleNamespace, gain: float, texture: np.ndarray,
          view: str) -> tuple[list[int], list[np.ndarray]]:
    """Change `layers` (anatomy.build_layers, with maps `fill`, `gas`, `extra` added) by all findings.

    Returns (label indices, masks): one bool mask [S,S] for each finding and side, never empty.
    """
    labels, masks = [], []
    for f in findings:
        if f.name == 'Cardiomegaly':
            regions = [layers.heart > 1.0]
        else:
            regions = [_paint_side(f, side, layers, gain, texture, view) for side in f.sides]
        for mask in regions:
            if mask.any():
                indices = [f.label] + [LABELS.index('Lung Opacity')] * (f.name == 'Pneumonia')
                labels += indices
                masks += [mask] * len(indices)
    return labels, masks


def _paint_side(f, side, layers, gain, texture, view):
    """Paint a finding on one side. Returns the mask [S,S]."""
    edge = int(np.searchsorted(layers.x[0], 0))
    columns = slice(0, edge) if side == 'right' else slice(edge, layers.size)
    maps = {name: vars(layers)[name][:, columns]
            for name in ('u', 'left', 'lung', 'behind', 'vessels', 'fill', 'gas', 'extra')}
    maps |= dict(side=side, view=view, base=layers.base[side == 'left'], right_base=layers.base[0],
                 texture=texture[:, columns])
    half = types.SimpleNamespace(**vars(layers) | maps)
    mask = np.zeros(layers.fill.shape, bool)
    mask[:, columns] = PAINT[f.name](f, half, gain)
    return mask


def _solid(half, q):
    """Fill the fraction q of the air, and return where it is visible: over lung, near its maximum."""
    half.fill += q * (1 - half.fill)
    visible = q * (half.lung > 1.5)
    return visible > max(0.4 * visible.max(), 1e-3)


def _ellipse(f, half, rx, ry):
    """(squared distance from the centre in units of the half axes rx, ry; its vertical part, signed).

    The centre is inside the zone of the finding, off heart and diaphragm.
    """
    low, high = {'upper': (0.14, 0.36), 'mid': (0.40, 0.58), 'lower': (0.64, 0.82)}[f.zone]
    cy = half.apex + half.height * (low + (high - low) * f.place[1])
    near = 5.0 + (2.0 if half.side == 'left' and f.zone == 'lower' else 0)
    far = half.width - (4.6 if f.zone == 'upper' else 3.0)
    cu = near + (far - near) * f.place[2]
    du, dy = (half.u - F(cu)) / F(rx), (half.y - F(cy)) / F(ry)
    return du * du + dy * dy, dy


# Each paints its finding on the maps of one side, [S,w], and returns the bool mask [S,w].

def _atelectasis(f, half, gain):
    u, y = half.u, half.y
    if f.kind == 'lobar':  # a wedge from hilum to diaphragm along the spine
        top = half.apex + half.height * (0.45 + 0.1 * f.place[1])
        edge = 2.5 + (y - F(top)) * F(0.45 + 0.25 * f.place[2])
        q = np.clip((edge - u) / F(0.5), 0, 1) * (y > F(top)) * F(min(0.85, 0.62 * gain + 0.1 * f.severity))
        half.lung += 0.5 * half.behind * q  # visible through the heart
    else:
        cu, cy = 6.5 + 3.0 * f.place[2], half.base - 4.6 - 2.4 * f.place[1]
        d = (y - F(cy)) - F(0.5 * (f.place[3] - 0.5)) * (u - F(cu))
        thick, long = 0.35 + 0.7 * f.severity, 2.6 + 2.2 * f.severity
        along = np.clip((F(long) - np.abs(u - F(cu))) / F(0.8), 0, 1)
        soft = max(0.45, half.px)
        thin = min(1.0, 2 * thick / soft)
        q = np.clip((F(thick) - np.abs(d)) / F(soft) + F(0.5), 0, 1) * along * F(min(0.8, 0.62 * gain) * thin)
    return _solid(half, q)


def _consolidation(f, half, gain):
    size = 2.6 + 2.0 * f.severity
    r2, dy = _ellipse(f, half, size * (0.9 + 0.4 * f.place[3]), size)
    q = np.clip((1 - r2) * F(2.2), 0, 1)
    fissure = -dy if f.zone == 'lower' else dy  # a lobe ends sharply
    q *= np.clip((F(0.55) - fissure) * F(size / max(0.3, half.px)) + F(0.5), 0, 1)
    bronchi = np.zeros_like(half.lung)
    tree = stock.pyramid(half.size)[int(f.place[3] * 997) % stock.TREES]
    stock.stamp(bronchi, tree, half.u, half.y, half.left == (half.side == 'left'), (2.2, half.width),
                (half.apex - 0.5, half.right_base + 0.3))
    half.vessels *= 1 - q  # vessels disappear, bronchi remain filled with air
    q *= F(min(0.9, (0.68 + 0.3 * f.severity) * gain))
    q *= 1 - np.minimum(F(1.6) * bronchi, F(0.75))
    return _solid(half, q)


def _pneumonia(f, half, gain):
    size = 2.6 + 2.2 * f.severity
    r2, _ = _ellipse(f, half, size, size * 1.15)
    envelope = np.clip(F(1.25) - r2, 0, 1)
    patch = np.clip((half.texture - F(0.30)) * F(2.6), F(0.1), 1)
    _solid(half, envelope * patch * F(min(0.75, (0.42 + 0.36 * f.severity) * gain)))
    return (envelope > 0.4) & (half.lung > 1.5)


def _opacity(f, half, gain):
    if f.kind == 'nodule':
        size = 0.8 + 0.9 * f.severity
        r2, _ = _ellipse(f, half, size, size)
        ball = F(2.6 * size * gain) * np.sqrt(np.clip(1 - r2, 0, 1))
        return _solid(half, np.minimum(ball / np.maximum(half.lung, 2), F(0.9)))
    size = 2.2 + 1.8 * f.severity
    r2, _ = _ellipse(f, half, size, size * 0.85)
    soft = np.clip(F(1.2) - r2, 0, 1) * (F(0.75) + F(0.5) * half.texture)
    return _solid(half, soft * F(min(0.6, (0.30 + 0.26 * f.severity) * gain)))


def _edema(f, half, gain):
    u, y = half.u, half.y
    wing = np.exp(-((u - F(4.6)) / F(4.4)) ** 2) * np.exp(-((y - F(half.apex + 11.5)) / F(6.5)) ** 2)
    half.vessels *= F(1 + (0.05 + 0.55 * f.severity) * gain)
    lines = (np.mod(y * F(1 / 0.9), 1) < 0.35) & (y > F(half.right_base - 7)) & (u > half.outer - F(2.0))
    half.extra += lines * F(0.35 * f.severity * gain)  # Kerley B
    _solid(half, wing * F(min(0.7, (0.03 + 0.42 * f.severity) * gain)) * (F(0.7) + F(0.6) * half.texture))
    return (wing > 0.45) & (half.lung > 1.5)


def _effusion(f, half, gain):
    h = (2.3 + 8.0 * f.severity ** 1.3) * (0.55 + 0.5 * gain)
    lateral = np.clip(half.u / F(half.width), 0, 1)
    surface = F(half.base + 0.6) - F(h) * (F(0.5) + F(0.5) * lateral ** 4)
    surface = surface - F(1.1) * lateral ** 12  # the meniscus
    ramp = 0.7 + 0.16 * h + 1.5 * (half.view == 'AP')  # in a supine patient fluid layers behind the lung
    wet = np.clip((half.y - surface) / F(ramp) + F(0.5), 0, 1)
    half.vessels *= 1 - wet
    half.fill += wet * F(min(0.97, 0.55 + 0.5 * gain)) * (1 - half.fill)
    return (wet > 0.35) & (half.lung > 0.6)


def _pneumothorax(f, half, gain):
    u, y, lung = half.u, half.y, half.lung
    depth = (0.9 + 3.2 * f.severity) * (0.6 + 0.4 * gain)
    end = half.apex + half.height * (0.38 + 0.62 * f.severity)
    gap = np.clip((F(end) - y) / F(5.0), 0, 1)
    edge = np.interp(y - 1.7 * depth * gap, y[:, 0], half.outer[:, 0]) - 0.75 * depth * gap
    edge = np.where(y < half.apex + 1.5 * depth * gap, 0.0, edge).astype(F)
    rim = np.clip((u - edge) / F(max(0.15, half.px)) + F(0.5), 0, 1) * (gap > 0)
    half.gas += rim * F(min(1.0, 0.35 + 0.75 * gain))
    half.vessels *= 1 - rim
    wide = max(0.13, 0.5 * half.px)
    line = np.exp(-((u - edge) / F(wide)) ** 2) * (lung > 0.5) * (gap > 0)
    half.extra += line * F(0.13 / wide * 0.9 * min(gain, 1.2))  # the pleura, edge on
    half.fill += (1 - rim) * F(0.10 * f.severity * gain) * (lung > 0) * (1 - half.fill)  # collapsed lung is denser
    return (rim > 0.5) & (lung > 0.6)


PAINT = {'Atelectasis': _atelectasis, 'Consolidation': _consolidation, 'Edema': _edema, 'Lung Opacity': _opacity,
         'Pleural Effusion': _effusion, 'Pneumonia': _pneumonia, 'Pneumothorax': _pneumothorax}
