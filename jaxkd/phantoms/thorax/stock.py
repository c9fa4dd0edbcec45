"""Stock pictures of the thorax phantom, drawn once per process: vascular trees and smooth random fields."""
import functools

import numpy as np
from scipy import ndimage

from jaxkd.phantoms import common

TREES, TREE_PX = 16, 0.075  # trees in stock; a pixel of theirs in cm
TREE_SHAPE = (320, 160)  # rows from apex to base, columns from hilum to chest wall
F = np.float32


def stamp(into: np.ndarray, tree: np.ndarray, u: np.ndarray, y: np.ndarray, part: np.ndarray,
          across: tuple[float, float], down: tuple[float, float]) -> None:
    """Add a stock picture [h,w], stretched to u in `across` and y in `down`, to the columns of [S,S] where bool
    `part`.
    """
    rows = np.flatnonzero((y[:, 0] > down[0]) & (y[:, 0] < down[1]))
    columns = np.flatnonzero((u[0] > across[0]) & (u[0] < across[1]) & part[0])
    if not len(rows) or not len(columns):
        return
    r = (y[rows, 0] - F(down[0])) * F((tree.shape[0] - 1) / (down[1] - down[0]))
    c = (u[0, columns] - F(across[0])) * F((tree.shape[1] - 1) / (across[1] - across[0]))
    r0, c0 = np.minimum(r.astype(int), tree.shape[0] - 2), np.minimum(c.astype(int), tree.shape[1] - 2)
    fr, fc = (r - r0)[:, None], c - c0
    band = tree[r0] * (1 - fr) + tree[r0 + 1] * fr
    area = np.take(band, c0, 1) * (1 - fc) + np.take(band, c0 + 1, 1) * fc
    into[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1] += area


@functools.cache
def _trees():
    """Stock of branching vessels [TREES, rows, columns]: diameter along the path, cm."""
    rng = common.rng(20240601)
    out = np.zeros((TREES, *TREE_SHAPE), F)
    for tree in out:
        for angle in np.linspace(-1.35, 1.4, 8) + rng.normal(0, 0.12, 8):
            _branch(tree, rng, 10.5 / 24 * TREE_SHAPE[0] + 18 * np.sin(angle), 6.0, angle, 0.34, 5)
    return out


def _branch(tree, rng, r, c, angle, radius, depth):
    for _ in range(2):
        step = rng.uniform(14, 26)
        angle += rng.normal(0, 0.16)
        r1, c1 = r + step * np.sin(angle), c + step * np.cos(angle)
        _segment(tree, r, c, r1, c1, radius / TREE_PX)
        r, c = r1, c1
    if depth:
        for turn in (rng.uniform(0.15, 0.5), -rng.uniform(0.15, 0.5)):
            _branch(tree, rng, r, c, angle + turn, radius * rng.uniform(0.66, 0.8), depth - 1)


def _segment(tree, r0, c0, r1, c1, radius):
    """A tube of the radius (pixels); overlapping tubes show the thicker one."""
    pad = radius + 1
    i = np.arange(max(int(min(r0, r1) - pad), 0), min(int(max(r0, r1) + pad) + 2, tree.shape[0]))[:, None]
    j = np.arange(max(int(min(c0, c1) - pad), 0), min(int(max(c0, c1) + pad) + 2, tree.shape[1]))[None]
    if not i.size or not j.size:
        return
    dr, dc = r1 - r0, c1 - c0
    t = np.clip(((i - r0) * dr + (j - c0) * dc) / (dr * dr + dc * dc), 0, 1)
    d2 = (i - r0 - t * dr) ** 2 + (j - c0 - t * dc) ** 2
    tube = 2 * TREE_PX * np.sqrt(np.clip(radius ** 2 - d2, 0, None))
    view = tree[i[0, 0]:i[-1, 0] + 1, j[0, 0]:j[0, -1] + 1]
    np.maximum(view, tube, out=view)


@functools.lru_cache(maxsize=8)
def pyramid(size: int) -> np.ndarray:
    """The stock of vessels at about the resolution of the image, so that sampling does not alias."""
    f = 1 if size >= 512 else 2 if size >= 256 else 4 if size >= 128 else 8
    t = _trees()
    return np.ascontiguousarray(t.reshape(TREES, t.shape[1] // f, f, t.shape[2] // f, f).mean((2, 4)))


@functools.lru_cache(maxsize=8)
def textures(size: int) -> np.ndarray:
    """Four smooth random fields [4,S,S] in 0..1 with grains of about 1.5 cm, periodic."""
    rng = common.rng(20240602)
    out = []
    for _ in range(4):
        coarse = ndimage.gaussian_filter(rng.standard_normal((64, 64)), 1.3, mode='wrap')
        fine = ndimage.zoom(coarse, size / 64, order=1, mode='grid-wrap', grid_mode=True)
        out.append(np.clip(0.5 + 0.3 * fine / coarse.std(), 0, 1).astype(F))
    return np.stack(out)
