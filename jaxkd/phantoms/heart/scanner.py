"""Scanners of the heart phantom: the grey values of the same tissues in each domain.

A is like balanced steady-state cine: blood and fat bright, muscle and liver of almost the same grey, a coil on the
chest. B is another hospital's: muscle nearer to blood, a brighter liver, fat no brighter than blood, a wider field and
coarser resolution, the heart off the middle, a stronger bias field, more noise, another curve of grey values. All of
it is [our choice].
"""
import dataclasses

import numpy as np

from jaxkd.phantoms import common

F = np.float32


@dataclasses.dataclass(frozen=True)
class Scanner:
    tissues: dict  # signal, blood being about 1
    spread: float  # standard deviation of the logarithm of a tissue's signal, from study to study
    field: tuple  # mm that a picture covers, least and most
    shift: float  # mm, greatest distance of the heart from the middle
    turn: tuple  # radians, mean and farthest from it
    blur: float  # mm, standard deviation of the point spread
    noise: float
    coil: float  # logarithm of the gain of the coil from the back to the front
    bias: float  # standard deviation of the logarithm's other coefficients
    gamma: tuple  # least and most


SCANNERS = dict(
    A=Scanner(dict(air=0.0, fat=0.92, muscle=0.34, bone=0.1, marrow=0.6, lung=0.07, gas=0.02, stomach=0.42, fluid=0.85,
                   spleen=0.55, blood=1.0, liver=0.42, heart=0.37, sac=0.2),
              0.06, (185, 205), 12, (0.0, 0.22), 1.1, 0.05, 0.35, 0.1, (0.95, 1.05)),
    B=Scanner(dict(air=0.0, fat=0.62, muscle=0.42, bone=0.15, marrow=0.5, lung=0.12, gas=0.03, stomach=0.5, fluid=0.7,
                   spleen=0.75, blood=0.88, liver=0.66, heart=0.5, sac=0.3),
              0.08, (215, 265), 26, (0.15, 0.35), 1.8, 0.075, 0.6, 0.22, (0.75, 1.3)))


@dataclasses.dataclass(frozen=True)
class Pose:
    field: float  # mm
    shift: np.ndarray  # [2] mm, columns and rows
    turn: float
    signals: dict
    bias: np.ndarray  # [5]
    gamma: float
    gain: float


def place(domain: str, rng: np.random.Generator, difficulty: float) -> Pose:
    """The pose of one patient in a scanner, and the signals of the tissues. Difficulty takes contrast from muscle
    to liver.
    """
    s = SCANNERS[domain]
    u, n = rng.uniform, rng.standard_normal
    draws = zip(s.tissues.items(), n(len(s.tissues)))
    signals = {name: max(0, value * np.exp(s.spread * x)) for (name, value), x in draws}
    near = 0.7 * difficulty
    signals['liver'] += near * (signals['heart'] + s.tissues['liver'] - s.tissues['heart'] - signals['liver'])
    return Pose(u(*s.field), u(-1, 1, 2) * s.shift, s.turn[0] + u(-1, 1) * s.turn[1], signals,
                np.array([0, s.coil, 0, 0, 0]) * u(0.6, 1.4) + s.bias * n(5), u(*s.gamma), u(250, 500))


def grid(pose: Pose, size: int) -> tuple[np.ndarray, np.ndarray, float]:
    """(u, v) [H,W] of the pixel centres in mm from the heart's axis, and the pixel in mm."""
    pixel = pose.field / size
    positions = ((np.arange(size) + 0.5) / size - 0.5) * pose.field
    x, y = np.meshgrid(positions - pose.shift[0], positions - pose.shift[1])
    cos, sin = np.cos(pose.turn), np.sin(pose.turn)
    return (cos * x + sin * y).astype(F), (cos * y - sin * x).astype(F), pixel


def acquire(signal: np.ndarray, pose: Pose, domain: str, pixel: float, amount: float,
            rng: np.random.Generator) -> np.ndarray:
    """The signal [Z,H,W] through a scanner, int16 in its units. amount: of noise, 1 for the scanner's."""
    s = SCANNERS[domain]
    image = _smooth(signal, s.blur / pixel)
    y, x = np.ix_(*(np.linspace(-1, 1, n, dtype=F) for n in image.shape[1:]))
    a, b, c, d, e = pose.bias.astype(F)
    image = image * np.exp(a * x - b * y + c * x * y + d * x * x + e * y * y)
    level = F(s.noise * amount)
    real, imaginary = rng.standard_normal((2, *image.shape), dtype=F)
    image = np.hypot(image + level * real, level * imaginary)
    return np.rint(F(pose.gain) * image ** F(pose.gamma)).clip(0, 32767).astype(np.int16)


def _smooth(image, sigma):
    """A Gaussian blur in plane of `sigma` pixels."""
    if sigma < 0.2:
        return image
    rows, columns = (common.blur_matrix(n, round(float(sigma), 3)) for n in image.shape[1:])
    return rows @ image @ columns.T
