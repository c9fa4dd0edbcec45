"""Brain phantom: T1-weighted volumes whose disease, bias and subject are known deformations of one template.

The experiment of SimBA (Stanley et al., JAMIA 2024), drawn instead of sampled from scans: template
(anatomy.py) and fields are [our choice]. With T the template,

    image(x) = T(d(b(s(x)))) + noise

    s   the subject: exp of a smooth velocity field, a sum of COMPONENTS with coefficients N(0,1) cut off at +-3.5
        [published; SimBA has one coefficient for all ten components, this phantom one for each: our choice]
    d   the disease, around the right insula: coefficient N(+1,1) in the ill, N(-1,1) in the well [published]
    b   the bias, around the right putamen ('near') or the left postcentral gyrus ('far'): coefficient N(2,1)
        [published], only in the twin of an image, which is the same subject with the same noise

d and b are flows of radial fields, v = k c (p - p0) (1 - r^2)^2 within an ellipsoid, r = 0 in its middle and 1 at its
surface: the ellipsoid's content grows for a positive coefficient c and shrinks for a negative one. They are integrated
exactly: with u = r^2, ln(u / (1 - u)) + 1 / (1 - u) changes by 2 k c. All maps are smooth and have an inverse. [our
choice]

One of every two subjects is ill, drawn at random. The coefficients of ill and well overlap, so the best reader, which
thresholds the coefficient at 0, reaches CEILING: AUROC Phi(sqrt 2), accuracy Phi(1).

`facts` and `render` are pure: the same seed and subject give the same result, in any order, of any number of subjects.
"""
import dataclasses
import functools
import math
from typing import Any

import numpy as np
from scipy import interpolate, ndimage

from jaxkd import errors
from jaxkd.data import volume
from jaxkd.phantoms import common
from jaxkd.phantoms.brain import anatomy

LABELS = ('none', 'disease')
REGIONS = ('near', 'far')
COMPONENTS = 10  # of subjects
LIMIT = 3.5  # of their coefficients
CEILING = dict(auroc=0.5 * (1 + math.erf(1.0)), accuracy=0.5 * (1 + math.erf(math.sqrt(0.5))))  # Phi(sqrt 2), Phi(1)
SCALE = 1000  # grey value of the template's 1
GROWTH = {'insula': 0.16, 'near': 0.2, 'far': 0.16}  # k [our choice]
# Middle and semi-axes in mm of the ellipsoids that the fields fill, in the template. [our choice]
PLACES = {'insula': ((38, 4, 3), (20, 36, 28)), 'near': ((26, 3, 2), (18, 30, 24)),
          'far': ((-44, -26, 42), (24, 24, 26))}
BLOCK, SUBJECT, DISEASE, BIAS, NOISE = range(5)  # streams of random numbers that never touch
_NODES = (12, 14, 11)  # of the grid of a subject's velocity field, over the field of view
_SIZES = 16, 256
F = np.float32


@dataclasses.dataclass(frozen=True)
class Facts:
    """The drawn facts of a subject, without an image. The bias is in the twin alone."""

    label: int
    disease: float
    bias: float
    subject: tuple  # [COMPONENTS]


def check(cases: int = 1, size: tuple[int, ...] = (28, 32, 24), region: str = 'near', noise: float = 0.0,
          seed: int = 0) -> None:
    """Raises ConfigError for options outside their range."""
    common.check_ranges('brain', cases=(cases, 1, 10**6), seed=(seed, *common.SEEDS))
    if len(size) != 3 or any(type(n) is not int or not _SIZES[0] <= n <= _SIZES[1] for n in size):
        raise errors.ConfigError(f'brain: size={tuple(size)} must be three whole numbers of voxels, x y z, of '
                                 f'{_SIZES[0]} to {_SIZES[1]}.')
    common.check_choice('brain', 'region', region, REGIONS)
    if not 0 <= noise <= 1:
        raise errors.ConfigError(f'brain: noise={noise} is out of range; give 0 to 1, of the brightest tissue.')


@functools.lru_cache(maxsize=4096)
def facts(seed: int, subject: int) -> Facts:
    """The Facts of a subject."""
    block, place = divmod(subject, 2)
    label = (int(common.rng(seed, block, BLOCK).integers(2)) + place) % 2
    rng, coefficients = common.rng(seed, subject, SUBJECT), list[float]()
    while len(coefficients) < COMPONENTS:
        coefficients += [float(c) for c in rng.standard_normal(COMPONENTS) if abs(c) <= LIMIT]
    disease = (1 if label else -1) + common.rng(seed, subject, DISEASE).standard_normal()
    bias = 2 + common.rng(seed, subject, BIAS).standard_normal()
    return Facts(label, float(disease), float(bias), tuple(coefficients[:COMPONENTS]))


def render(seed: int, subject: int, size: tuple[int, int, int] = (28, 32, 24), region: str = 'near',
           noise: float = 0.02, twin: bool = False, truth: Facts | None = None) -> volume.Volume:
    """The image of a subject, or its twin with bias: a Volume of int16, 0 to about 1000, RAS.

    size: voxels x y z of the field of 173 x 211 x 155 mm; at (173, 211, 155) they have 1 mm. noise: its standard
    deviation, of the brightest tissue. truth: Facts to draw instead of the subject's, to see one effect alone.
    """
    check(1, size, region, noise, seed)
    size, truth = (size[0], size[1], size[2]), truth or facts(seed, subject)
    drawn, step = anatomy.template(size)
    points = warp(truth, size, region, twin)
    index = [(p + F(f / 2)) / F(s) - F(0.5) for p, f, s in zip(points, anatomy.FIELD, step)]
    image = ndimage.map_coordinates(drawn, index, np.float32, order=1, mode='grid-constant')
    if noise:
        image += F(noise) * common.rng(seed, subject, NOISE).standard_normal(size, F)
    spacing = np.divide(anatomy.FIELD, size)
    return volume.Volume(np.rint(np.maximum(image, 0) * SCALE).astype(np.int16), volume.grid((0, 0, 0), spacing, size))


def warp(truth: Facts, size: tuple[int, int, int], region: str = 'near', twin: bool = False) -> list[np.ndarray]:
    """[x, y, z], each float32 [X,Y,Z]: position of each voxel in the template, mm."""
    points = []
    for k, (u, n, f) in enumerate(zip(_displacement(truth.subject), size, anatomy.FIELD)):
        for axis, matrix in enumerate(_spread(tuple(size))):
            u = np.moveaxis(np.tensordot(matrix, u, (1, axis)), 0, axis)
        points.append(u + _centres(n, f).reshape([-1 if a == k else 1 for a in range(3)]))
    if twin:
        flow(points, region, -truth.bias)
    flow(points, 'insula', -truth.disease)
    return points


def flow(points: list[np.ndarray], place: str, coefficient: float) -> None:
    """Moves points [x, y, z], mm, along the field of a place of PLACES for one unit of time, those within it
    without a copy.
    """
    middle, axes = PLACES[place]
    squared: Any = sum(((p - F(c)) / F(a)) ** 2 for p, c, a in zip(points, middle, axes))
    inside = squared < 1
    u, time = _clock()
    before = np.clip(squared[inside].astype(np.float64), u[0], u[-1])
    after = np.interp(np.interp(before, u, time) + 2 * GROWTH[place] * coefficient, time, u)
    grown = np.sqrt(after / before)
    for p, c in zip(points, middle):
        p[inside] = c + (p[inside] - c) * grown


@functools.cache
def _clock():
    """(u, ln(u / (1 - u)) + 1 / (1 - u)), both rising: the second, divided by 2 k c, is the time at which a flow
    passes u.
    """
    logit = np.linspace(-16, 9, 4001)
    return 1 / (1 + np.exp(-logit)), logit + 1 + np.exp(logit)


def _centres(count, length):
    """float32 [count]: mm of the middles of equal parts of a line around 0."""
    return ((np.arange(count) + 0.5) / count * length - length / 2).astype(F)


@functools.cache
def _components():
    """Velocities in mm, float32 [COMPONENTS,3,*_NODES]: three stretches along the axes, then swellings and shifts."""
    axes = np.meshgrid(*map(_centres, _NODES, anatomy.FIELD), indexing='ij')
    out = np.zeros((COMPONENTS, 3, *_NODES))
    for k in range(3):
        out[k, k] = 0.025 * axes[k]  # of the length, for a coefficient of 1
    rng = common.rng(20260512)
    for k in range(3, COMPONENTS):
        field = ndimage.gaussian_filter(rng.standard_normal((3, *_NODES)), (0, 2, 2, 2), mode='nearest')
        out[k] = field / np.sqrt(np.mean(field ** 2)) * 1.2 * 0.85 ** (k - 3)
    return out.astype(F)


def _displacement(coefficients):
    """mm, float32 [3,*_NODES]: exp of the sum of the components, by scaling and squaring."""
    moved = np.tensordot(np.asarray(coefficients, F), _components(), 1) / F(2 ** 5)
    index = np.indices(_NODES, F)
    cell = np.divide(anatomy.FIELD, _NODES).astype(F).reshape(3, 1, 1, 1)
    for _ in range(5):
        source = index + moved / cell
        moved = moved + np.stack([ndimage.map_coordinates(m, source, order=1, mode='nearest') for m in moved])
    return moved


@functools.lru_cache(maxsize=4)
def _spread(size):
    """Matrices float32 [size, nodes] that bring each axis of a field from nodes to voxels, by natural cubic splines."""
    return [interpolate.CubicSpline(_centres(n, f), np.eye(n), bc_type='natural')(_centres(m, f)).astype(F)
            for m, n, f in zip(size, _NODES, anatomy.FIELD)]
