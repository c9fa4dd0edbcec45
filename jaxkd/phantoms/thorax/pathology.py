"""What each finding of the thorax phantom does to the layers of an image.

A finding is painted as its physics: air in the lung gives way to fluid or cells (`fill`), lung gives way to
air (`gas`), or the anatomy itself moves. Where it lies is returned as a mask. Numbers are [our choice].
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
    """Change `layers` (anatomy.lay, with maps `fill`, `gas`, `extra` added) by all findings.

    Returns (label indices, masks): one bool mask [S,S] for each finding and side, of which none is empty.
    """
    labels, masks = [], []
    for f in findings:
        if f.name == 'Cardiomegaly':
            regions = [layers.heart > 1.0]
        else:
            regions = [PAINT[f.name](f, side, layers, gain, texture, view) for side in f.sides]
        for mask in regions:
            if mask.any():
                for label in (f.label, LABELS.index('Lung Opacity'))[:1 + (f.name == 'Pneumonia')]:
                    labels.append(label)
                    masks.append(mask)
    return labels, masks


def _window(layers, side):
    """The columns of one side; findings work on that half of the picture alone."""
    edge = int(np.searchsorted(layers.x[0], 0))
    return slice(0, edge) if side == 'right' else slice(edge, layers.size)


def _centre(f, layers, side):
    """(u, y) inside the zone of the finding, off heart and diaphragm."""
    low, high = {'upper': (0.14, 0.36), 'mid': (0.40, 0.58), 'lower': (0.64, 0.82)}[f.zone]
    y = layers.apex + layers.height * (low + (high - low) * f.place[1])
    near = 5.0 + (2.0 if side == 'left' and f.zone == 'lower' else 0)
    far = layers.width - (4.6 if f.zone == 'upper' else 3.0)
    return near + (far - near) * f.place[2], y


def _solid(layers, half, q):
    """Fill the share q of the air in one half, and return where it shows: over lung, near its maximum."""
    fill = layers.fill[:, half]
    fill += q * (1 - fill)
    mask = np.zeros(layers.fill.shape, bool)
    shown = q * (layers.lung[:, half] > 1.5)
    mask[:, half] = shown > max(0.4 * shown.max(), 1e-3)
    return mask


def _ellipse(f, layers, half, side, rx, ry):
    cu, cy = _centre(f, layers, side)
    du, dy = (layers.u[:, half] - F(cu)) / F(rx), (layers.y - F(cy)) / F(ry)
    return du * du + dy * dy, dy


def _atelectasis(f, side, layers, gain, texture, view):
    half = _window(layers, side)
    u, y = layers.u[:, half], layers.y
    base = layers.base[side == 'left']
    if f.kind == 'lobar':  # a wedge from hilum to diaphragm along the spine
        top = layers.apex + layers.height * (0.45 + 0.1 * f.place[1])
        edge = 2.5 + (y - F(top)) * F(0.45 + 0.25 * f.place[2])
        q = np.clip((edge - u) / F(0.5), 0, 1) * (y > F(top)) * F(min(0.85, 0.62 * gain + 0.1 * f.severity))
        layers.lung[:, half] += 0.5 * layers.behind[:, half] * q  # seen through the heart
    else:
        cu, cy = 6.5 + 3.0 * f.place[2], base - 4.6 - 2.4 * f.place[1]
        slope = 0.5 * (f.place[3] - 0.5)
        d = (y - F(cy)) - F(slope) * (u - F(cu))
        thick, long = 0.35 + 0.7 * f.severity, 2.6 + 2.2 * f.severity
        along = np.clip((F(long) - np.abs(u - F(cu))) / F(0.8), 0, 1)
        soft = max(0.45, layers.px)
        thin = min(1.0, 2 * thick / soft)
        q = np.clip((F(thick) - np.abs(d)) / F(soft) + F(0.5), 0, 1) * along * F(min(0.8, 0.62 * gain) * thin)
    return _solid(layers, half, q)


def _consolidation(f, side, layers, gain, texture, view):
    half = _window(layers, side)
    size = 2.6 + 2.0 * f.severity
    r2, dy = _ellipse(f, layers, half, side, size * (0.9 + 0.4 * f.place[3]), size)
    q = np.clip((1 - r2) * F(2.2), 0, 1)
    fissure = -dy if f.zone == 'lower' else dy  # a lobe ends sharply
    q *= np.clip((F(0.55) - fissure) * F(size / max(0.3, layers.px)) + F(0.5), 0, 1)
    bronchi = np.zeros((layers.size, layers.size), F)
    tree = stock.pyramid(layers.size)[int(f.place[3] * 997) % stock.TREES]
    stock.stamp(bronchi, tree, layers.u, layers.y, layers.left == (side == 'left'),
                  (2.2, layers.width), (layers.apex - 0.5, layers.base[0] + 0.3))
    layers.vessels[:, half] *= 1 - q  # vessels drown, bronchi keep their air
    q *= F(min(0.9, (0.68 + 0.3 * f.severity) * gain))
    q *= 1 - np.minimum(F(1.6) * bronchi[:, half], F(0.75))
    return _solid(layers, half, q)


def _pneumonia(f, side, layers, gain, texture, view):
    half = _window(layers, side)
    size = 2.6 + 2.2 * f.severity
    r2, _ = _ellipse(f, layers, half, side, size, size * 1.15)
    envelope = np.clip(F(1.25) - r2, 0, 1)
    patch = np.clip((texture[:, half] - F(0.30)) * F(2.6), F(0.1), 1)
    _solid(layers, half, envelope * patch * F(min(0.75, (0.42 + 0.36 * f.severity) * gain)))
    mask = np.zeros(layers.fill.shape, bool)
    mask[:, half] = (envelope > 0.4) & (layers.lung[:, half] > 1.5)
    return mask


def _opacity(f, side, layers, gain, texture, view):
    half = _window(layers, side)
    if f.kind == 'nodule':
        size = 0.8 + 0.9 * f.severity
        r2, _ = _ellipse(f, layers, half, side, size, size)
        ball = F(2.6 * size * gain) * np.sqrt(np.clip(1 - r2, 0, 1))
        return _solid(layers, half, np.minimum(ball / np.maximum(layers.lung[:, half], 2), F(0.9)))
    size = 2.2 + 1.8 * f.severity
    r2, _ = _ellipse(f, layers, half, side, size, size * 0.85)
    soft = np.clip(F(1.2) - r2, 0, 1) * (F(0.75) + F(0.5) * texture[:, half])
    return _solid(layers, half, soft * F(min(0.6, (0.30 + 0.26 * f.severity) * gain)))


def _edema(f, side, layers, gain, texture, view):
    half = _window(layers, side)
    u, y = layers.u[:, half], layers.y
    hilum = layers.apex + 11.5
    wing = np.exp(-((u - F(4.6)) / F(4.4)) ** 2) * np.exp(-((y - F(hilum)) / F(6.5)) ** 2)
    layers.vessels[:, half] *= F(1 + (0.05 + 0.55 * f.severity) * gain)
    lines = (np.mod(y * F(1 / 0.9), 1) < 0.35) & (y > F(layers.base[0] - 7)) & (u > layers.outer - F(2.0))
    layers.extra[:, half] += lines * F(0.35 * f.severity * gain)  # Kerley B
    q = wing * F(min(0.7, (0.03 + 0.42 * f.severity) * gain)) * (F(0.7) + F(0.6) * texture[:, half])
    _solid(layers, half, q)
    mask = np.zeros(layers.fill.shape, bool)
    mask[:, half] = (wing > 0.45) & (layers.lung[:, half] > 1.5)
    return mask


def _effusion(f, side, layers, gain, texture, view):
    half = _window(layers, side)
    u, y = layers.u[:, half], layers.y
    h = (2.3 + 8.0 * f.severity ** 1.3) * (0.55 + 0.5 * gain)
    lateral = np.clip(u / F(layers.width), 0, 1)
    surface = F(layers.base[side == 'left'] + 0.6) - F(h) * (F(0.5) + F(0.5) * lateral ** 4)
    surface = surface - F(1.1) * lateral ** 12  # the meniscus
    ramp = 0.7 + 0.16 * h + 1.5 * (view == 'AP')  # fluid layers behind a patient who lies
    wet = np.clip((y - surface) / F(ramp) + F(0.5), 0, 1)
    layers.vessels[:, half] *= 1 - wet
    fill = layers.fill[:, half]
    fill += wet * F(min(0.97, 0.55 + 0.5 * gain)) * (1 - fill)
    mask = np.zeros(layers.fill.shape, bool)
    mask[:, half] = (wet > 0.35) & (layers.lung[:, half] > 0.6)
    return mask


def _pneumothorax(f, side, layers, gain, texture, view):
    half = _window(layers, side)
    u, y = layers.u[:, half], layers.y
    depth = (0.9 + 3.2 * f.severity) * (0.6 + 0.4 * gain)
    end = layers.apex + layers.height * (0.38 + 0.62 * f.severity)
    open_ = np.clip((F(end) - y) / F(5.0), 0, 1)
    edge = np.interp(y - 1.7 * depth * open_, y[:, 0], layers.outer[:, 0]) - 0.75 * depth * open_
    edge = np.where(y < layers.apex + 1.5 * depth * open_, 0.0, edge).astype(F)
    rim = np.clip((u - edge) / F(max(0.15, layers.px)) + F(0.5), 0, 1) * (open_ > 0)
    lung = layers.lung[:, half]
    layers.gas[:, half] += rim * F(min(1.0, 0.35 + 0.75 * gain))
    layers.vessels[:, half] *= 1 - rim
    wide = max(0.13, 0.5 * layers.px)
    line = np.exp(-((u - edge) / F(wide)) ** 2) * (lung > 0.5) * (open_ > 0)
    layers.extra[:, half] += line * F(0.13 / wide * 0.9 * min(gain, 1.2))  # the pleura, seen on edge
    fill = layers.fill[:, half]
    fill += (1 - rim) * F(0.10 * f.severity * gain) * (lung > 0) * (1 - fill)  # what collapses is denser
    mask = np.zeros(layers.fill.shape, bool)
    mask[:, half] = (rim > 0.5) & (lung > 0.6)
    return mask


PAINT = {'Atelectasis': _atelectasis, 'Consolidation': _consolidation, 'Edema': _edema, 'Lung Opacity': _opacity,
         'Pleural Effusion': _effusion, 'Pneumonia': _pneumonia, 'Pneumothorax': _pneumothorax}
