"""Image to network input: one geometry for pixels, boxes and masks.

A rectangle of the source, the window, becomes the S x S input, in one resampling (bilinear with
antialiasing):
    crop       the short side is scaled to `resize`, then the centre S x S is cut out; both axes scale alike
    letterbox  the whole image, padded with black to a square
    squash     the whole image, whatever its aspect
Because the window has subpixel borders, boxes follow exactly: x' = (x - left) S / width. [our choice] all
three; the crop of 224 from 256 is the usual one of ImageNet networks.

Grey values keep their full range. 8 bits are divided by 255, real numbers are within [0,1], because the file declared
its bits or the source scaled it. 16 bits whose file declares no fewer are divided by 2^bits - 1, where bits are
    those of the option `bits`, or with bits=0
    the fewest of 8, 10, 12, 14 and 16 that hold the values of the training cases; of many cases, of 64 evenly spaced
    ones, and of 256 if one of those has such pixels. They are kept with the checkpoint, and a larger value is an error,
    or white with clip=True
A store of prepared cases learns nothing from training cases: it needs the option, unless a value tells 16 bits.

A dense label, uint8 [H,W], goes through the same window by the nearest pixel; what letterbox pads is 0, background.
`inverse` takes a prediction the other way: a label map by the nearest pixel, probabilities linearly; what a crop left
out is 0 there. Where nothing is scaled, the two are exact inverses.
"""
import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import errors
from jaxkd.contracts import Record, Transform, TransformPlugin
from jaxkd.data.formats import picture
from jaxkd.runtime import log

DEFAULTS = dict(
    size=224,  # pixels of a side of the square result
    fit='crop',  # crop (scaled, the centre cut out), letterbox (padded to a square) or squash (whatever its aspect)
    resize=0,  # crop: pixels of the short side before the cut; 0: size * 256 // 224
    channels=1,  # 1 (colour becomes luma) or 3 (colour as it is, grey three times)
    bits=0,  # depth of 16-bit grey whose file declares none: 8 to 16; 0: by the range of the training cases
    clip=False,  # True: greys above what `bits` hold, such as markers in the picture, are white; False: an error
)

_FEW = 0.001  # share of the pixels that may be markers burnt into the picture [our choice]
_DEPTHS = 8, 10, 12, 14, 16
_FIRST, _MOST = 64, 256  # training cases that are looked at, and once 16-bit grey is among them [our choice]

_LUMA = np.array([[0.299], [0.587], [0.114]], np.float32)  # as Pillow's, ITU-R 601

Window = tuple[float, float, float, float]  # left, top, width, height, in pixels of the source


def build(hp: ConfigDict, fitted: dict[str, int] | None = None) -> Transform:
    if hp.fit not in ('crop', 'letterbox', 'squash'):
        raise errors.ConfigError(f'image.fit = "{hp.fit}" is none of crop, letterbox, squash.')
    short = hp.resize or hp.size * 256 // 224
    if hp.channels not in (1, 3) or hp.size < 1 or short < hp.size:
        raise errors.ConfigError(f'image: channels must be 1 or 3 (is {hp.channels}), size positive (is '
                                 f'{hp.size}), resize 0 or at least size (is {hp.resize}).')
    if hp.bits and not 8 <= hp.bits <= 16:
        raise errors.ConfigError(f'image.bits = {hp.bits} must be 8 to 16, or 0.')
    bits = hp.bits or (fitted or {}).get('bits', 0)
    return Transform(functools.partial(apply, size=hp.size, fit=hp.fit, short=short, channels=hp.channels, bits=bits,
                                       clip=hp.clip),
                     inverse=functools.partial(inverse, size=hp.size, fit=hp.fit, short=short),
                     reads=('image', 'boxes', 'masks'), writes=('image', 'boxes', 'masks'))  # and a label of each place


def fit(hp: ConfigDict, source: Any, indices: list[int], progress: Callable[[Iterable], Iterable]
        ) -> dict[str, int] | None:
    """{'bits': depth of 16-bit grey}, or None where no training case that is looked at has such pixels."""
    if hp.bits:
        return None

    def greys(i: int) -> tuple[int, int, int, list[int]]:
        pixels = source[i].get('image')
        if pixels is None or pixels.dtype != np.uint16:
            return -1, 2**16, 0, []
        brighter = [int(np.count_nonzero(pixels >= 2**n)) for n in _DEPTHS]
        return int(pixels.max()), int(pixels.min()), pixels.size, brighter

    def spread(count: int) -> list[int]:
        return [indices[k] for k in np.unique(np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int))]
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        if all(largest < 0 for largest, *_ in threads.map(greys, spread(_FIRST))):
            return None
        looked_at = list(threads.map(greys, spread(_MOST)))
    values, lowest = [row[0] for row in looked_at], min(row[1] for row in looked_at)
    bits = next(n for n in _DEPTHS if max(values) < 2**n)
    log.info(f'image: 16-bit grey up to {max(values)} in {sum(v >= 0 for v in values)} of {len(values)} training cases '
             f'is read as {bits} bits, which is kept with the checkpoint. Another depth: data.image.bits')
    if 16 * (max(values) - lowest) < 2**bits < 4 * lowest:
        raise errors.BadData(
            f'image: the 16-bit grey of all {sum(v >= 0 for v in values)} training cases that were looked at lies '
            f'between {lowest} and {max(values)}, of which a network sees next to nothing. Subtract what was '
            f'added (32768 where CT is stored without sign), or set data.image.bits={bits} to take it as it is.')
    shares = np.sum([row[3] for row in looked_at if row[3]], axis=0) / sum(row[2] for row in looked_at)
    if shares[(depth := int(np.argmax(shares < _FEW)))] < _FEW and _DEPTHS[depth] < bits:
        log.info(f'image: but {100 * shares[depth]:.2g} % of these pixels alone are above {2**_DEPTHS[depth] - 1}. If '
                 f'they are markers, data.image.bits={_DEPTHS[depth]} with data.image.clip=True shows the rest in its '
                 'full range')
    return {'bits': bits}


def apply(record: Record, size: int, fit: str, short: int, channels: int, bits: int = 0,
          clip: bool = False) -> Record:
    """image [H,W] or [H,W,3] -> float32 [S,S,channels] in [0,1]; boxes [n,5], masks [n,H,W] and a label [H,W] follow.

    Any other label, one of the whole image, stays as it is. Boxes are clipped to the input; those that lose more than
    half of their area are dropped, with their masks.
    """
    given = pixels = record['image']
    height, width = pixels.shape[:2]
    window = window_of(width, height, size, fit, short)
    if pixels.dtype == np.uint16:
        pixels = _unit(np.minimum(pixels, 2**bits - 1) if clip and bits else pixels, bits, str(record.get('case', '')))
    planes = _planes(pixels, channels)
    if given.dtype not in (np.uint8, np.uint16):
        _check_unit(planes)
    pixels = np.stack([_resample(plane, window, size) for plane in planes], axis=-1)
    if len(planes) < channels:
        pixels = np.repeat(pixels, channels, axis=-1)
    elif len(planes) > channels:
        pixels = np.clip(pixels @ _LUMA, 0, 1)
    record = {**record, 'image': pixels}
    label = record.get('label')
    if label is not None and np.ndim(label) == 2:
        if label.dtype != np.uint8 or label.shape != (height, width):
            raise errors.BadData(f'Case {record.get("case", "")}: its label is {label.dtype} {list(label.shape)}, its '
                                 f'image {[height, width]}. A label of each pixel is uint8 of the size of the image.')
        record['label'] = _cut(label, window, size)
    if 'boxes' in record:
        boxes, inside_window = map_boxes(record['boxes'], window, size)
        record['boxes'] = boxes[inside_window]
        if 'masks' in record:
            nearest = [_cut(mask, window, size) for mask in record['masks'][inside_window]]
            record['masks'] = np.array(nearest, np.uint8).reshape(-1, size, size)
    return record


def inverse(before: Record, after: Record, size: int, fit: str, short: int) -> Callable[[np.ndarray], np.ndarray]:
    """The function that brings values [S,S] of the input back to the image [H,W] that it was made of."""
    height, width = before['image'].shape[:2]
    return functools.partial(to_image, shape=(height, width), window=window_of(width, height, size, fit, short))


PLUGIN = TransformPlugin(fit=fit, fit_decides_shapes=True, fit_optional=True)


def to_image(values: np.ndarray, shape: tuple[int, int], window: Window) -> np.ndarray:
    """[S,S,...] of the input -> [H,W,...] of the image, 0 outside of the window.

    Whole numbers, a label map, by the nearest pixel; floats linearly -> float32.
    """
    values, size = np.asarray(values), values.shape[0]
    left, top, *sides = window
    # Pixel n of the image has its middle at n + 0.5, which lies at this place of the input.
    x, y = ((np.arange(n) + 0.5 - start) * size / side + 1e-9
            for n, start, side in zip(shape[::-1], (left, top), sides))
    inside = ((0 <= y[:, None]) & (y[:, None] < size) & (0 <= x) & (x < size)).reshape(*shape,
                                                                                       *(1,) * (values.ndim - 2))
    if values.dtype.kind == 'f':
        values = _linear(_linear(values.astype(np.float32), y - 0.5, 0), x - 0.5, 1)
    else:
        rows, columns = (np.clip(np.floor(positions).astype(int), 0, size - 1) for positions in (y, x))
        values = values[rows[:, None], columns]
    return np.where(inside, values, 0).astype(values.dtype)


def _linear(values: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    """Values at positions along an axis, interpolated between the two nearest pixels."""
    low = np.floor(positions).astype(int)
    fraction = (positions - low).astype(np.float32).reshape(-1, *(1,) * (values.ndim - 1 - axis))
    fraction[fraction < 1e-6] = 0  # a pixel's own middle
    a, b = (values.take(np.clip(n, 0, values.shape[axis] - 1), axis) for n in (low, low + 1))
    return a * (1 - fraction) + b * fraction


def window_of(width: int, height: int, size: int, fit: str, short: int) -> Window:
    """(left, top, width, height), in source pixels, of what becomes the input; letterbox reaches outside."""
    if fit == 'squash':
        return 0, 0, width, height
    if fit == 'letterbox':
        side = max(width, height)
        return -((side - width) // 2), -((side - height) // 2), side, side
    scale = short / min(width, height)
    left, top = (round((round(n * scale) - size) / 2) / scale for n in (width, height))
    return left, top, size / scale, size / scale


def map_boxes(boxes: np.ndarray, window: Window, size: int | tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [n,5] in input pixels, clipped, and a mask [n] of those that keep at least half of their area.

    size: of the input, one side of a square or (width, height).
    """
    left, top, width, height = window
    scale = np.divide(size, (width, height))
    low = (boxes[:, 1:3] - (left, top)) * scale
    high = low + boxes[:, 3:5] * scale
    a, b = np.clip(low, 0, size), np.clip(high, 0, size)
    inside_window = np.prod(b - a, axis=1) >= 0.5 * np.prod(high - low, axis=1)
    return np.concatenate([boxes[:, :1], a, b - a], axis=1).astype(np.float32), inside_window


def _planes(pixels: np.ndarray, channels: int) -> list[np.ndarray]:
    """The image as a list of 2-D arrays, one for each channel that differs."""
    if pixels.ndim == 2:
        return [pixels]
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise errors.BadData(f'The image transform takes [H,W] or [H,W,3], this image is {list(pixels.shape)}.')
    if channels == 1 and pixels.dtype == np.uint8:
        return [np.asarray(Image.fromarray(pixels).convert('L'))]  # one plane to resample, not three
    return [pixels[..., c] for c in range(3)]


def _check_unit(planes: list[np.ndarray]) -> None:
    """BadData unless the planes of a source are float32 within [0,1]."""
    for plane in planes:
        if plane.dtype != np.float32 or not (plane.min() >= 0 and plane.max() <= 1):  # False for nan
            raise errors.BadData(f'An image of {plane.dtype} must be uint8, uint16, or float32 within [0,1] '
                                 'without NaN. Rescale it in the source.')


def _resample(plane: np.ndarray, window: Window, size: int) -> np.ndarray:
    """2-D uint8 or float32 in [0,1] -> float32 [S,S] in [0,1]."""
    if plane.dtype == np.uint8:
        return np.asarray(_cut(plane, window, size, Image.Resampling.BILINEAR), np.float32) / 255
    return np.clip(_cut(plane, window, size, Image.Resampling.BILINEAR), 0, 1)  # off by rounding, 1e-7


def _unit(pixels: np.ndarray, bits: int, case: str) -> np.ndarray:
    """float32 in [0,1] of uint16 [H,W] or [H,W,3]."""
    location = f'its image {case}'.strip()
    if not bits and (largest := int(pixels.max())) < 2**15:
        depth = next(n for n in _DEPTHS if largest < 2**n)
        raise errors.BadData(f'{location} is 16-bit grey up to {largest} alone, and its file does not declare how many '
                             f'bits count. Set data.image.bits, perhaps to {depth}.')
    return picture.scaled(pixels, bits or 16, location, 'Set data.image.bits to the depth of all pictures')


def _cut(plane: np.ndarray, window: Window, size: int, resampling: Image.Resampling = Image.Resampling.NEAREST
         ) -> np.ndarray:
    left, top, width, height = window
    if (left, top, width, height) == (0, 0, size, size) == (0, 0, *plane.shape[::-1]):
        return plane
    picture = Image.fromarray(np.ascontiguousarray(plane))
    if left < 0 or top < 0 or max(left + width - picture.width, top + height - picture.height) > 0.5:  # letterbox
        square = Image.new(picture.mode, (int(width), int(height)))
        square.paste(picture, (-int(left), -int(top)))
        picture, left, top = square, 0, 0
    # Rounding must not lead beyond the border.
    right, bottom = min(left + width, picture.width), min(top + height, picture.height)
    return np.asarray(picture.resize((size, size), resampling, box=(left, top, right, bottom)))
