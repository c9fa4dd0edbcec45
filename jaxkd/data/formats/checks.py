"""Limits on the headers of files of any format, and the errors for files that break them."""
import contextlib
import math
import os
from collections.abc import Iterator, Sequence

import numpy as np

from jaxkd import errors

# Limits of a grid [our choice]. Beyond them a header counts as damaged.
SPACINGS = 0.01, 100.0  # mm
REACH = 1e5  # mm, of a corner from the origin
FLAT = 0.01  # volume of a voxel over the product of its edges: below, the axes lie in a plane

SLACK = 2**16  # bytes that a file may have in addition to its voxels
_LONGEST = 600  # characters of a reason
_RATIO = 1032  # highest compression ratio of deflate


@contextlib.contextmanager
def needs(package: str, path: str | os.PathLike) -> Iterator[None]:
    """Turns an ImportError into a ConfigError, which no caller takes for a fault of one file."""
    try:
        yield
    except ImportError as e:
        raise errors.ConfigError(f'{path} needs the library {package}, which cannot be imported ({e}). '
                                 f'Install it: pip install {package}.') from e


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turns every exception into BadData, or into MissingInput where the file does not exist."""
    try:
        yield
    except errors.JaxkdError:
        raise
    except (FileNotFoundError, NotADirectoryError) as e:
        raise errors.MissingInput(f'{path} does not exist. Correct the path in the table or the root.') from e
    except OSError as e:
        raise (bad(path, e.strerror, 'Make it readable for this user') if e.strerror else damaged(path, e)) from e
    except MemoryError as e:
        raise bad(path, 'it does not fit into memory', 'Lower max_voxels or crop it') from e
    except Exception as e:  # libraries raise a dozen types, all of which mean that the file is damaged
        raise damaged(path, e) from e


def bad(path: str, reason: str, remedy: str = 'Copy it again from where it came') -> errors.BadData:
    """The BadData for a fault that a check has found. A long reason, of a header that holds pixels, is cut."""
    reason = errors.one_line(reason if len(reason) <= _LONGEST else f'{reason[:_LONGEST]}...')
    return errors.BadData(f'{path} cannot be used: {reason}. {remedy}.')


def damaged(path: str, e: BaseException) -> errors.BadData:
    """The BadData for an exception of a library."""
    message = errors.one_line(str(e).partition('\n')[0][:160])
    return errors.BadData(f'{path} is damaged or of a kind that is not read ({type(e).__name__}: {message}). Copy it '
                          'again from where it came or remove its row.')


def count(shape: Sequence[int], max_voxels: int, path: str) -> int:
    """Number of voxels; BadData for more than max_voxels."""
    n = math.prod(shape)
    if n > max_voxels:
        raise bad(path, f'its header claims {" x ".join(map(str, shape))} voxels, more than max_voxels = '
                        f'{max_voxels:,}', 'Raise max_voxels of the source if that is right')
    return n


def check_pixels(size: tuple[int, int], max_pixels: int, path: str) -> None:
    """BadData for an image of more than max_pixels. size: (width, height)."""
    width, height = size
    if not 1 <= width * height <= max_pixels:
        raise bad(path, f'its header claims {width} x {height} pixels, more than max_pixels = {max_pixels:,}',
                  'Raise max_pixels of the source if that is right')


def check_size(size: int, needed: int, packed: bool, path: str) -> None:
    """BadData unless `size` bytes match the `needed` bytes of the header, before memory is allocated for these."""
    if not (needed <= size * _RATIO and size <= needed * 1.001 + SLACK if packed else size == needed):
        raise bad(path, f'its header claims {needed:,} bytes{" before compression" * packed}, it has {size:,}')


def check_affine(affine: np.ndarray, shape: Sequence[int], path: str) -> None:
    """BadData unless the voxel size, the orientation and the extent of a grid are plausible for a patient."""
    extent = np.abs(corners(affine, shape)).max()
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all():
        problem = 'is not finite'
    elif not SPACINGS[0] <= sides.min() <= sides.max() <= SPACINGS[1]:
        problem = f'has voxels of {" x ".join(f"{s:.4g}" for s in sides)} mm, outside {SPACINGS[0]} to {SPACINGS[1]}'
    elif abs(np.linalg.det(affine[:3, :3])) < FLAT * sides.prod():
        problem = 'is singular'
    elif extent > REACH:
        problem = f'reaches {extent:.3g} mm from the origin'
    else:
        return
    raise bad(path, f'its affine {problem}', 'Correct its header or convert it again from the original')


def finite(voxels: np.ndarray) -> bool:
    """Whether no voxel is NaN or infinite."""
    return voxels.dtype.kind != 'f' or all(np.isfinite(part).all() for part in voxels.T)


def real(dtype: np.dtype) -> bool:
    """Whether voxels of this type are whole or real numbers of a size that is known."""
    return dtype.kind in 'iu' and dtype.itemsize <= 8 or dtype.kind == 'f' and dtype.itemsize in (4, 8)


def max_distance(a: np.ndarray, b: np.ndarray, shape: Sequence[int]) -> float:
    """The largest distance between the positions of one voxel by two affines, in mm."""
    return np.linalg.norm(corners(a, shape) - corners(b, shape), axis=1).max()


def sheared(affine: np.ndarray, shape: Sequence[int]) -> bool:
    """Whether the axes of a grid are not at right angles, as those of a CT with a tilted gantry: programs built on ITK
    refuse such files.
    """
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / sides)
    straight = np.array(affine)
    straight[:3, :3] = left @ right * sides
    return bool(max_distance(affine, straight, shape) > 0.01 * sides.min())


def corners(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """World mm [8,3] of the outermost voxel centres of a grid."""
    indices = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing='ij'), axis=-1).reshape(8, 3)
    return indices @ affine[:3, :3].T + affine[:3, 3]
