"""Thorax phantom: schematic frontal chest radiographs with eight findings, their boxes and a report.

`render(seed, patient, image)` is pure: the same three numbers give the same picture on every machine, in any
order. An image is Beer and Lambert's law over path lengths t of three materials,
    -log I = MU['soft'] t_soft + MU['bone'] t_bone + MU['air'] t_air,
plus scatter (a blurred fraction of I), quantum noise of variance proportional to I, and the display of a
radiograph: the logarithm, its coarse structure compressed, an S curve, bone bright and air dark. [our choice]
MU are linear attenuation coefficients in 1/cm at 65 keV, from the NIST tables of mass attenuation (soft
tissue 0.200 cm2/g at 1.05 g/cm3, cortical bone 0.285 at 1.92, dry air 0.187 at 0.0012).
"""
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxkd import errors
from jaxkd.data.sources.shared.boxes import boxes_of_masks
from jaxkd.phantoms import common
from jaxkd.phantoms.thorax import anatomy, course, pathology, report_text, stock

MU = {'soft': 0.210, 'bone': 0.547, 'air': 0.00022}
SIZES = 32, 1024
DEVICES = ('endotracheal tube', 'central line', 'pacemaker', 'leads', 'sternal wires')
ANATOMY, COURSE, IMAGE, NOISE, WORDS = range(5)  # streams of random numbers
F = np.float32


def check(size: int, difficulty: float) -> None:
    """Raises ConfigError for options of `render` outside their range."""
    common.check_ranges('thorax', size=(size, *SIZES), difficulty=(difficulty, 0, 1))


def image_schedule(seed: int, patient: int, count: int) -> list[tuple[int, str]]:
    """(study number, view) of the first `count` images of a patient, without rendering; view 'PA' or 'AP'."""
    u = common.rng(seed, patient, IMAGE, 0).random((64, 2))[:count]
    if len(u) < count:
        raise errors.ConfigError(f'thorax: {count} images for one patient are too many; give at most 64.')
    number, out = 0, []
    for k, (new, view) in enumerate(u):
        number += bool(k and new < 0.7)
        out.append((number, 'AP' if view < (0.45 if study(seed, patient, number)[1] else 0.15) else 'PA'))
    return out


def images(seed: int, patient: int, low: int, high: int) -> int:
    """Number of images of a patient, from `low` to `high`."""
    return int(common.rng(seed, patient, ANATOMY, 1).integers(low, high + 1))


@functools.lru_cache(maxsize=4096)
def study(seed: int, patient: int, number: int) -> tuple[tuple[course.Finding, ...], bool, np.ndarray]:
    """(findings, ill, uniforms) of a study: its findings, is the patient ill, numbers for devices."""
    first = common.rng(seed, patient, COURSE, 0).random((13, 8))
    uniforms = common.rng(seed, patient, COURSE, number).random((14, 8))
    findings, ill = course.course(first, uniforms[:13] if number else first)
    return findings, ill, uniforms[13]


def render(seed: int, patient: int, image: int, size: int = 64, difficulty: float = 0.5,
           draw: Sequence[str] | None = None) -> dict[str, Any]:
    """One image and its annotations.

    size: pixels of the square image, 32..1024. difficulty: 0 (findings at full contrast, little noise, few
    devices) to 1 (faint findings, much noise, many devices). draw: names of the findings to paint, to see an
    image with and without one of them; the report and the truth do not follow it. Default: all of the study.

    Returns image uint8 [S,S]; truth float32 [8] in {0,1} as LABELS; boxes float32 [n,5] (label, x, y, w, h in
    pixels); masks uint8 [n,S,S]; report str; stated float32 [8], the labels that the report was written from
    (1, 0, -1, nan); study int; view 'PA' or 'AP'; findings, a tuple of Finding; ratio float, the
    cardiothoracic ratio as projected.
    """
    check(size, difficulty)
    number, view = image_schedule(seed, patient, image + 1)[image]
    findings = study(seed, patient, number)[0]
    shown = [f for f in findings if draw is None or f.name in draw]
    gain = 1.35 - 0.9 * difficulty

    rng = common.rng(seed, patient, IMAGE, image + 1)
    pose = anatomy.draw_pose(rng, view)
    person = pathology.deform(anatomy.draw(common.rng(seed, patient, ANATOMY, 0)), shown, gain)
    layers = anatomy.build_layers(person, pose, size)
    layers.fill, layers.gas, layers.extra = np.zeros((3, size, size), F)
    field = np.roll(stock.textures(size)[rng.integers(4)], rng.integers(size), 0)
    index, drawn = pathology.paint(shown, layers, gain, field, view)
    metal = _devices(_study_devices(seed, patient, number, difficulty), layers, rng)
    pixels = _expose(layers, person, pose, metal, field, difficulty, common.rng(seed, patient, NOISE, image))
    masks = np.stack(drawn).astype(np.uint8) if drawn else np.zeros((0, size, size), np.uint8)
    words, stated = study_report(seed, patient, number, difficulty)
    return dict(image=pixels, truth=course.truth(findings), boxes=boxes_of_masks(index, masks), masks=masks,
                report=words, stated=stated, study=number, view=view, findings=findings,
                ratio=person.ratio * (anatomy.AP_HEART if view == 'AP' else 1.0))


def study_report(seed: int, patient: int, number: int, difficulty: float = 0.5) -> tuple[str, np.ndarray]:
    """(report, stated) of a study, as `render` gives them, without an image."""
    findings, devices = study(seed, patient, number)[0], _study_devices(seed, patient, number, difficulty)
    return report_text.write(findings, devices, number, common.rng(seed, patient, WORDS, number))


def _study_devices(seed, patient, number, difficulty):
    """The devices of a study."""
    _, ill, chance = study(seed, patient, number)
    often = (0.05 + 0.12 * difficulty) * (2 if ill else 0.5)
    return tuple(d for d, u in zip(DEVICES, chance) if u < often)


def _expose(layers, person, pose, metal, field, difficulty, rng):
    """Path lengths to grey values, uint8 [S,S]."""
    size, lung = layers.size, layers.lung
    density = anatomy.TISSUE * (1 - np.minimum(layers.gas, 1)) * (F(0.9) + F(0.2) * field)
    tissue = lung * (density + (1 - F(anatomy.TISSUE)) * layers.fill)
    soft = np.maximum(layers.body - lung - layers.hole, 0)
    soft += np.minimum(tissue + layers.vessels * (lung > 0.3) + layers.extra, lung + F(1))
    depth = F(MU['soft']) * soft + F(MU['bone']) * (layers.bone + metal) + F(MU['air']) * (lung - tissue)
    if pose.view == 'AP':
        depth = _smooth(depth, 0.12 / layers.px)
    light = np.exp(-depth)
    down, up = _blur(size)
    light += F(0.35) * (up @ (down @ light @ down.T) @ up.T)
    dose = 8e5 * layers.px ** 2 * (2.0 - 1.7 * difficulty)  # quanta that would reach a pixel in air
    noise = rng.standard_normal((size, size), dtype=F)
    noise *= F(dose ** -0.5) / np.sqrt(light)
    dark = noise - np.log(light)
    dark -= F(0.4) * (up @ (down @ dark @ down.T) @ up.T)
    middle = 0.6 * MU['soft'] * person.wall + 0.95
    grey = np.tanh((dark - F(middle + 0.3 * pose.exposure)) * F(0.9))
    return (grey * F(127.4) + F(127.5)).astype(np.uint8)


def _smooth(image, sigma):
    """A 3 by 3 blur of variance sigma^2 (at most a half) in pixels, edges repeated: the larger focal spot."""
    w = F(min(0.5, sigma * sigma) / 2)
    for axis in (0, 1):
        p = np.pad(image, [(1, 1) if k == axis else (0, 0) for k in (0, 1)], mode='edge')
        image = image * (1 - 2 * w) + w * (p[:-2] + p[2:] if axis == 0 else p[:, :-2] + p[:, 2:])
    return image


@functools.lru_cache(maxsize=8)
def _blur(size):
    """Matrices of a wide separable blur: average to 32 samples, then a Gaussian of 4 cm at every pixel."""
    low = 32
    down = np.zeros((low, size))
    samples = (np.arange(size * 8) + 0.5) / 8
    np.add.at(down, ((samples * low / size).astype(int), samples.astype(int)), 1)
    down /= down.sum(1, keepdims=True)
    d = (np.arange(size)[:, None] + 0.5) / size - (np.arange(low) + 0.5) / low
    up = np.exp(-0.5 * (d * anatomy.FIELD / 4.0) ** 2)
    return down.astype(F), (up / up.sum(1, keepdims=True)).astype(F)


def _devices(devices, layers, rng):
    """Metal and plastic on the path, in centimetres of bone."""
    out = np.zeros((layers.size, layers.size), F)
    top, mid = layers.apex, layers.mid
    jitter = rng.normal(0, 0.4, 8)
    if 'endotracheal tube' in devices:
        for side in (-0.4, 0.4):
            _thread(out, layers, (0, top + 5.5 + jitter[0]), (mid + side, mid + side), 0.12, 0.5)
    if 'central line' in devices:
        ys = top - 3, top + 1, top + 4, top + 11 + jitter[1]
        _thread(out, layers, ys, (-5.5, -4.6, -2.6, -2), 0.16, 0.6)
    if 'pacemaker' in devices:
        q = ((layers.x - F(8.5 + jitter[2])) / F(2.3)) ** 4 + ((layers.y - F(top + 4)) / F(2.0)) ** 4
        out += F(3.0) * (q < 1)
        _thread(out, layers, (top + 3, top + 6, top + 14, top + 19), (7, 2, -1.6, 3.5 + jitter[3]), 0.14, 1)
    if 'leads' in devices:
        for k, (x0, x1) in enumerate(((-9, -6), (7, 10), (-3, 8))):
            _thread(out, layers, (top, top + 10, 38), (x0 + jitter[k], x0 + 2 * jitter[k + 3], x1), 0.10, 0.5)
            anatomy.blob(out, layers.x, layers.y, x0 + jitter[k], top, 0.6, 0.6, 1.5)
    if 'sternal wires' in devices:
        for k in range(5):
            x, y = mid + 0.2 * jitter[k], top + 6 + 3.1 * k
            anatomy.blob(out, layers.x, layers.y, x, y, 0.8, 0.3, 2)
    return out


def _thread(out, layers, ys, xs, radius, path):
    """A thin line through the points (ys rising), of the same total absorption at every pixel size."""
    wide = max(radius, 0.5 * layers.px)
    rows = slice(*np.searchsorted(layers.y[:, 0], (ys[0], ys[-1])))
    x = np.interp(layers.y[rows], ys, xs).astype(F)
    out[rows] += F(path * radius / wide) * np.clip(F(1.2) - np.abs(layers.x - x) / F(wide), 0, 1)
