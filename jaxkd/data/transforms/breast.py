"""Mammogram to breast: the breast alone, its chest wall at the left, grey values of tissue over the whole range.

The breast is the largest connected part above Otsu's threshold (IEEE Trans SMC 1979 [published]) of the logarithm of
grey values: air and skin differ by a ratio, and without the logarithm the threshold of a dense breast falls between fat
and gland. It is sought in a coarse copy, of at most `coarse` pixels a side, after opening (letters and thin frames go).
The breast tapers towards the nipple, so the side with more of it is the chest wall; a breast that hangs the other way
is mirrored. Grey values are clipped to the 0.5th and 99.5th percentile inside the breast, then 0 to 1. [our choice] all
of this.

Boxes and masks follow: shifted, mirrored, clipped to what is kept; a box that loses more than half of its area is
dropped, with its mask. Comes before `image`, which makes the square input.
"""
import functools
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform
from jaxkd.data.threshold import otsu
from jaxkd.data.transforms.image import map_boxes

DEFAULTS = dict(
    orient=True,  # mirror breasts that hang the other way, so that the chest wall is at the left
    crop=True,  # cut out the breast; False: keep the whole image
    margin=0.02,  # kept around the breast, as a share of its longer side, 0 to 1
    percentiles=(0.5, 99.5),  # of grey values inside the breast: those that become 0 and 1
    coarse=400,  # most pixels a side of the copy in which the breast is sought, 32 or more
)


Box = tuple[int, int, int, int]  # top, bottom, left, right, in pixels


def build(hp: ConfigDict) -> Transform:
    low, high = hp.percentiles if len(hp.percentiles) == 2 else (1, 0)
    if not (0 <= low < high <= 100 and 0 <= hp.margin <= 1 and hp.coarse >= 32):
        raise errors.ConfigError(f'breast: percentiles = {tuple(hp.percentiles)} must be two of 0..100, the smaller '
                                 f'first; margin = {hp.margin:g} must be in 0..1 and coarse = {hp.coarse} at least 32.')
    options = dict(orient=hp.orient, crop=hp.crop, margin=hp.margin, coarse=hp.coarse)
    return Transform(functools.partial(apply, percentiles=(low, high), **options),
                     inverse=functools.partial(inverse, **options),
                     reads=('image', 'boxes', 'masks', 'case'), writes=('image', 'boxes', 'masks'))


def apply(record: Record, percentiles: tuple[float, float], orient: bool, crop: bool, margin: float,
          coarse: int) -> Record:
    """image [H,W] of any grey type -> float32 [h,w] in [0,1]; boxes float32 [n,5] and masks uint8 [n,H,W] follow."""
    image, case = record['image'], record.get('case', '')
    if image.ndim != 2:
        raise errors.BadData(f'Case {case}: a mammogram is grey, this image is {list(image.shape)}. Take "breast" out '
                             'of transforms.')
    inside, (top, bottom, left, right), mirror = frame(image, orient, crop, margin, coarse, case)
    low, high = np.percentile(image[inside], percentiles)

    def cut(a):
        a = a[..., top:bottom, left:right]
        return np.ascontiguousarray(a[..., ::-1] if mirror else a)
    grey = (cut(image).astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-6))
    record = {**record, 'image': np.clip(grey, 0, 1)}
    if 'boxes' in record:
        size = right - left, bottom - top
        moved, inside_box = map_boxes(record['boxes'], (left, top, *size), size)
        if mirror:
            moved[:, 1] = size[0] - moved[:, 1] - moved[:, 3]
        record['boxes'] = moved[inside_box]
        if 'masks' in record:
            record['masks'] = cut(record['masks'][inside_box])
    return record


def inverse(before: Record, after: Record, orient: bool, crop: bool, margin: float,
            coarse: int) -> Callable[[np.ndarray], np.ndarray]:
    """The function that brings values [h,w] of the breast back to the image [H,W] that it was cut from."""
    image = before['image']
    _, box, mirror = frame(image, orient, crop, margin, coarse, before.get('case', ''))
    return functools.partial(to_image, shape=image.shape, box=box, mirror=mirror)


def to_image(values: np.ndarray, shape: tuple[int, int], box: Box, mirror: bool) -> np.ndarray:
    """[h,w,...] of the breast -> [H,W,...] of the image, 0 outside of it."""
    top, bottom, left, right = box
    out = np.zeros((*shape, *values.shape[2:]), values.dtype)
    out[top:bottom, left:right] = values[:, ::-1] if mirror else values
    return out


def frame(image: np.ndarray, orient: bool, crop: bool, margin: float, coarse: int,
          case: str = '') -> tuple[np.ndarray, Box, bool]:
    """(bool [H,W] of the breast, (top, bottom, left, right) that are kept, whether that is mirrored)."""
    small, step = breast(image, coarse)
    if not small.any():
        raise errors.BadData(f'Case {case}: no breast stands out from the background. Remove the case, or take '
                             '"breast" out of transforms.')
    height, width = image.shape
    rows, columns = (np.flatnonzero(small.any(axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0] * step, (rows[-1] + 1) * step, columns[0] * step, (columns[-1] + 1) * step
    mirror = orient and _chest_wall_right(small[:, columns[0]:columns[-1] + 1])
    inside = np.repeat(np.repeat(small, step, 0), step, 1)[:height, :width]
    if not crop:
        return inside, (0, height, 0, width), mirror
    pixels = round(margin * max(bottom - top, right - left))
    return inside, (max(0, top - pixels), min(height, bottom + pixels), max(0, left - pixels),
                    min(width, right + pixels)), mirror


def breast(image: np.ndarray, coarse: int) -> tuple[np.ndarray, int]:
    """(bool [h,w], step): where the breast is, in a copy that has every step-th row and column."""
    from scipy import ndimage
    step = -(-max(image.shape) // coarse)
    small = image[::step, ::step].astype(np.float32)
    small = small - small.min()
    bright = np.log1p(small * np.float32(255 / max(small.max(), 1e-9)))
    above = ndimage.binary_opening(otsu(bright), np.ones((3, 3)), border_value=0)
    parts, count = ndimage.label(above)
    if not count:
        return above, step
    largest = 1 + np.argmax(np.bincount(parts.ravel())[1:])
    return ndimage.binary_fill_holes(parts == largest), step


def _chest_wall_right(region: np.ndarray) -> bool:
    """Whether more of the breast is at the right end of its bounding columns."""
    k = max(1, region.shape[1] // 5)
    return region[:, -k:].sum() > region[:, :k].sum()
