"""Parts of every phantom: random streams, checks of options, textures and blurs, the base class of the sources."""
import functools
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from jaxkd import errors
from jaxkd.data import source
from jaxkd.runtime import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

F = np.float32
SEEDS = 0, 2**63


class Phantom(source.Source):
    """Base class of the phantoms' sources; `source[i]` renders case i, always the same one."""

    note = 'a phantom: rendered, not patients'


def rng(*entropy: int) -> np.random.Generator:
    """The generator of one stream of random numbers, (seed, patient, stream): independent of other streams."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def clipped_normal(generator: np.random.Generator, mean: float, deviation: float, low: float = -np.inf,
                   high: float = np.inf) -> float:
    """A normal number, clipped to low..high."""
    return float(min(max(generator.normal(mean, deviation), low), high))


def check_ranges(organ: str, **options: tuple[float, float, float]) -> None:
    """ConfigError for the first of the options {name: (value, least, greatest)} that is out of its range."""
    for name, (value, low, high) in options.items():
        if not low <= value <= high:
            raise errors.ConfigError(f'{organ}: {name}={value} is out of range; give {low} to {high}.')


def check_choice(organ: str, name: str, value: str, choices: Iterable[str]) -> None:
    """ConfigError for an option whose value is none of the choices."""
    if value not in choices:
        raise errors.ConfigError(f'{organ}: {name}={value!r} is unknown.{errors.nearest(value, choices)}')


def lumps(generator: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """A periodic random field of unit variance, float64; sigma: of its Gaussian grain, in pixels."""
    field = ndimage.gaussian_filter(generator.standard_normal(shape), sigma, mode='wrap')
    return field / field.std()


def periodic_index(coordinates: Iterable[np.ndarray], origin: Iterable[float], period: int) -> tuple[np.ndarray, ...]:
    """Indices of points in a periodic field that has a pixel a millimetre and begins at `origin`, mm."""
    return tuple(np.floor(p + F(o)).astype(int) % period for p, o in zip(coordinates, origin))


@functools.lru_cache(maxsize=256)
def blur_matrix(n: int, sigma: float, unit: bool = False) -> np.ndarray:
    """float32 [n,n]: a Gaussian blur of `sigma` pixels along an axis; unit: white noise stays of unit variance."""
    d = np.arange(n)[:, None] - np.arange(n)
    k = np.exp(-0.5 * (d / sigma) ** 2)
    return (k / ((k * k).sum(1, keepdims=True) ** 0.5 if unit else k.sum(1, keepdims=True))).astype(F)


def blend(image: np.ndarray, cover: np.ndarray, value: np.ndarray | np.float32) -> None:
    """Paint `value` over an image, or a view of one, where `cover` is 1, and in proportion where it is less."""
    image += cover * (value - image)


def available(modalities: Sequence[str], missing: Sequence[str]) -> list[str]:
    """The modalities that are not missing."""
    return [m for m in modalities if m not in missing]


def save_sheet(path: str | os.PathLike, figure: 'Figure', dpi: int) -> None:
    """Write a contact sheet. Raises CannotWrite."""
    with files.writing(path):
        figure.savefig(path, dpi=dpi)
