"""The template of the brain phantom: a T1-weighted head without its skull, drawn from simple bodies. [our choice, all
of it]

Positions are mm in the template, x to the right, y to the front, z up, 0 in the middle of the field, which is that of
SimBA's images: 173 x 211 x 155 mm. Two hemispheres with folded cortex, temporal lobes below the Sylvian fissures,
insula, putamen, pallidum, caudate and thalamus, lateral and third ventricles, cerebellum and brain stem. The sides
differ in their folds alone.
"""
import functools

import numpy as np
from scipy import ndimage

from jaxkd.phantoms import common

FIELD = 173.0, 211.0, 155.0  # mm, x y z
GREYS = dict(fluid=0.16, grey=0.60, white=0.92, nucleus=0.66, pallidum=0.80)  # 1: brightest white matter; air: 0
CORTEX = 3.6  # mm
_SULCUS = 15.0, 0.9  # mm: depth, half width
_FINEST = 2.0  # mm, of the grid that is drawn; finer only where the picture is
_SLICES = 16  # drawn at a time
F = np.float32


@functools.lru_cache(maxsize=4)
def template(size: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [X,Y,Z] of 0 to 1, its step in mm [3]), blurred as voxels of a picture of `size` (x, y, z) blur.

    Its voxel (0,0,0) is centred on half a step from the corner of the field. Read-only.
    """
    voxel = np.divide(FIELD, size)
    shape = np.ceil(np.divide(FIELD, np.clip(voxel, 1.0, _FINEST))).astype(int)
    step = np.divide(FIELD, shape)
    axes = [((np.arange(n) + 0.5) * d - f / 2).astype(F) for n, d, f in zip(shape, step, FIELD)]
    out = np.empty(shape, F)
    for z in range(0, shape[2], _SLICES):
        out[:, :, z:z + _SLICES] = _draw(axes[0][:, None, None], axes[1][:, None], axes[2][z:z + _SLICES])
    out = ndimage.gaussian_filter(out, 0.42 * np.maximum(voxel / step, 1), mode='constant')  # half height: a voxel
    out.flags.writeable = False
    return out, step


def _draw(x, y, z):
    """Grey values at the points of three axes that broadcast."""
    side = np.abs(x)
    around = _cerebrum(side, y, z)
    lobe = _inside(side, y, z, (41, 3, -27), (25, 47, 24))
    depth = np.maximum(around, lobe) + 2 * np.exp(-np.abs(around - lobe) / 4)  # no crease where they meet
    reach = ((y + 4) / 50) ** 2 + ((z - 4) / F(34)) ** 2 - (z < -6)  # corpus callosum and below: the halves are joined
    gap = np.where(reach > 1, side - F(0.9), F(99))
    sheet = np.abs(z + 11 + F(0.3) * y) - F(1.2)  # the Sylvian fissure runs inwards to the cistern of the insula
    fissure = np.maximum(np.maximum(sheet, F(40) - side), np.abs(y - 4) - F(34))
    cistern = np.maximum(np.abs(side - F(42)) - F(1.1), np.hypot((y - 4) / F(26), (z - 3) / F(17)) * 20 - 20)
    between = np.minimum(np.minimum(gap, fissure), cistern)
    outer = np.minimum(depth, np.minimum(gap, np.minimum(fissure, cistern) + 0 * x))
    fold = _folds(x, y, z)
    deep, wide = _SULCUS
    sulcus = np.hypot(fold, np.maximum(depth - F(deep), 0)) - F(wide)
    sulcus = np.where(_inside(side, y, z, (0, -4, -2), (41, 52, 32)) > 0, F(99), sulcus)  # no folds within the core

    image = np.where(np.minimum(outer, sulcus) < CORTEX, F(GREYS['grey']), F(GREYS['white']))
    for centre, axes, tissue in _NUCLEI:
        image = np.where(_inside(side, y, z, centre, axes) > 0, F(GREYS[tissue]), image)
    image = np.where((sulcus < 0) | (between < 0) | (_ventricles(side, y, z) < 0), F(GREYS['fluid']), image)
    image = np.where(depth > 0, image, 0)
    return _hind(side, y, z, image)


def _cerebrum(side, y, z):
    """Depth in mm below the surface of the hemispheres, negative outside."""
    y = y + 2
    wide = 66 - F(7) * np.clip((y + 20) / 80, 0, 1.3) ** 2
    high = np.where(z > 0, F(66), F(36) - F(6) * np.clip(y / 80, 0, 1))
    shape = ((side / wide) ** F(2.3) + np.abs(y / F(86)) ** F(2.3) + np.abs(z / high) ** F(2.3)) ** F(1 / 2.3)
    return (1 / np.maximum(shape, F(0.02)) - 1) * np.sqrt(side ** 2 + y ** 2 + z ** 2)


def _inside(side, y, z, centre, axes):
    """About the depth in mm below the surface of an ellipsoid, negative outside."""
    parts = [(p - F(c)) / F(a) for p, c, a in zip((side, y, z), centre, axes)]
    return (1 - np.sqrt(sum(p ** 2 for p in parts))) * F(min(axes))


_NUCLEI = (  # centre and semi-axes in mm, of both sides
    ((10, -16, 4), (9, 14, 10), 'nucleus'),  # thalamus
    ((25.5, 3, 2), (6.5, 19, 13), 'nucleus'),  # putamen
    ((18, 0, 0), (4.5, 11, 8), 'pallidum'),
    ((13, 20, 9), (5, 13, 9), 'nucleus'),  # caudate
    ((24, -10, -26), (6, 20, 6), 'grey'),  # hippocampus
)
_HORNS = (  # course of a lateral ventricle: x, y, z, radius in mm
    (8, 32, 6, 4.0), (8, 14, 15, 5.5), (10, -14, 20, 5.5), (20, -38, 12, 7.0), (29, -26, -8, 4.5), (30, -4, -22, 2.5))


def _ventricles(side, y, z):
    """Distance in mm from the surface of the ventricles, negative inside."""
    out = -_inside(side, y, z, (0, -8, 2), (2.2, 15, 9))  # the third
    for start, end in zip(_HORNS, _HORNS[1:]):
        a, b = np.array(start, F), np.array(end, F)
        along = (b - a)[:3] / np.sum((b - a)[:3] ** 2)
        t = np.clip((side - a[0]) * along[0] + (y - a[1]) * along[1] + (z - a[2]) * along[2], 0, 1)
        near = [p - (a[k] + t * (b[k] - a[k])) for k, p in enumerate((side, y, z))]
        out = np.minimum(out, np.sqrt(sum(p ** 2 for p in near)) - (a[3] + t * (b[3] - a[3])))
    return out


def _hind(side, y, z, image):
    """The image with cerebellum and brain stem."""
    half = _inside(side, y, z, (20, -54, -40), (33, 29, 24))
    leaves = np.sin(np.hypot(y + 46, z + 30) * F(2 * np.pi / 6))
    tree = _inside(side, y, z, (15, -46, -36), (20, 17, 9)) > 0
    inner = np.where(tree, F(GREYS['white']), F(GREYS['grey']) + F(0.1) * leaves)
    image = np.where((image == 0) & (half > 0), np.where(half < 1.2, F(0.4), inner), image)
    stem = np.hypot(side / F(13), (y + 22 - F(0.22) * (z + 30)) / F(12))
    return np.where((image == 0) & (stem < 1) & (z < -10) & (z > -72), F(GREYS['white']) - F(0.1), image)


@functools.cache
def _stock():
    """Lumps about 13 mm apart, float32 [64,64,64], periodic, 4 mm a cell; where they are 0 they have unit slope per
    mm.
    """
    noise = common.rng(20260511).standard_normal((64, 64, 64))
    field = ndimage.gaussian_filter(noise, 1.5, mode='wrap') - ndimage.gaussian_filter(noise, 2.6, mode='wrap')
    slopes = np.gradient(np.pad(field, 2, mode='wrap'), 4.0)
    slope = np.sqrt(sum(s[2:-2, 2:-2, 2:-2] ** 2 for s in slopes))
    return (field / ndimage.gaussian_filter(slope, 1.0, mode='wrap')).astype(F)


def _folds(x, y, z):
    """About the distance in mm from the middle of the nearest sulcus: folds run inwards along rays from the middle."""
    points = np.broadcast_arrays(x, y, z)
    far = np.sqrt(sum(p ** 2 for p in points))
    ray = F(1) + (F(62) / np.maximum(far, 8) - 1) * F(0.85)  # nearly the same all along a ray
    index = [(p * ray + 128) / 4 for p in points]
    return np.abs(ndimage.map_coordinates(_stock(), index, order=1, mode='grid-wrap'))
