"""Dense prediction window by window, in the memory of one slab of logits, whatever the size of the volume.

Inputs are arrays [D,H,W,...]: volumes, or a stack of n slices as [n,H,W,...] (an image is a stack of 1). The window
has three sides (d,h,w), or two (h,w) for slices, whose batches have no depth. Every call has the same shapes
[batch,*window,...], so that a program is compiled once: the last batch is padded with zeros, and so is a window at the
end of a shorter axis (the padding is cut off again).

Windows form a regular grid, the last one flush with the border; neighbours overlap by at least `overlap` of a side.
They are predicted along the first axis, and voxels that no later window covers are yielded and released: only a slab as
deep as a window is in memory. The result is the weighted mean of the logits at each voxel [our choice: logits, not
probabilities].
    gaussian   weights exp(-(x - middle)^2 / (2 sigma^2)) along each axis, sigma = side / 8 [published: nnU-Net, Isensee
               et al. 2021]; exp(-8) an axis at the border of a window
    uniform    constant weights
Along an axis that a single window covers all voxels have the same weight, so that a window as large as the volume gives
the output of the network bit for bit. The weight of a window is a product over axes and windows form a grid, so the sum
of all weights is a product as well and needs no second volume.
"""
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxkd import errors
from jaxkd.metrics import logistic
from jaxkd.runtime import log

Arrays = Mapping[str, np.ndarray]
Apply = Callable[[dict[str, np.ndarray]], Mapping[str, Any]]  # one batch of windows -> outputs by name

WEIGHTS = ('gaussian', 'uniform')


class Slab(NamedTuple):
    """Voxels with final logits, and the windows that start at the first of them. Valid until the next is asked for."""

    start: int  # along the first axis
    stop: int
    logits: np.ndarray  # float32 [stop-start,H,W,K]
    windows: dict  # 'start' int [m,3] and each of `wanted` [m,...]


def starts(length: int, side: int, overlap: float) -> list[int]:
    """Starts of the windows along an axis: the smallest number with this overlap, evenly from border to border."""
    spare, step = max(length - side, 0), max(1, math.floor(side * (1 - overlap) + 1e-6))
    count = -(-spare // step) + 1
    return [i * spare // max(count - 1, 1) for i in range(count)]


def windows(shape: Sequence[int], window: Sequence[int], overlap: float = 0.5) -> np.ndarray:
    """Starts of all windows, int [n,axes], the last axis fastest."""
    if len(shape) != len(window) or min(shape) < 1 or min(window) < 1 or not 0 <= overlap < 1:
        raise errors.ConfigError(f'Windows of {tuple(window)} with overlap {overlap:g} over {tuple(shape)}: give as '
                                 'many sides as axes, all of them positive, and an overlap within [0,1).')
    return np.array(list(itertools.product(*(starts(n, w, overlap) for n, w in zip(shape, window)))))


def stream(apply: Apply, inputs: Arrays, window: Sequence[int], batch: int = 1, overlap: float = 0.5,
           weights: str = 'gaussian', mirror: Sequence[int] = (), wanted: Sequence[str] = (),
           message: str = '') -> Iterator[Slab]:
    """Iterator of Slabs from 0 to D.

    apply: {key: [batch,*window,...]} -> {'logits': [batch,*window,K], ...}, numpy or jax arrays. A call may return
        before its result is computed: the next batch is cut meanwhile.
    inputs: {key: array [D,H,W,...]}, any type; sliced, never copied completely.
    mirror: axes of the window. Logits and `wanted` are means over all combinations of flips along them; a wanted output
        with as many axes as the logits is flipped back first.
    wanted: further outputs of each window, e.g. class_logits.
    message: label of the progress line, '' for none.
    """
    window, shapes = tuple(window), {a.shape[:3] for a in inputs.values()}
    if len(shapes) != 1 or len(min(shapes)) != 3 or len(window) not in (2, 3) or batch < 1:
        raise errors.ConfigError(f'Sliding windows of {window} over inputs '
                                 f'{({k: a.shape for k, a in inputs.items()})}, {batch} at a time: all inputs must '
                                 'share three leading axes (a stack of slices for two-dimensional windows) and at '
                                 'least one window is predicted at a time.')
    if weights not in WEIGHTS:
        raise errors.ConfigError(f'Sliding windows: weights = "{weights}".{errors.nearest(weights, WEIGHTS)}')
    if any(axis not in range(len(window)) for axis in mirror):
        raise errors.ConfigError(f'Sliding windows: mirror = {tuple(mirror)} must be axes of the window {window}.')
    shape, size = min(shapes), (1,) * (3 - len(window)) + window
    places = windows(shape, size, overlap)
    flips = [axes for n in range(len(mirror) + 1) for axes in itertools.combinations([1 + axis for axis in mirror], n)]
    groups = [places[i:i + batch] for i in range(0, len(places), batch)]
    batches = ((group, cut(inputs, group, window, batch))
               for group in (log.progress(groups, message) if message else groups))
    rows = _rows(_predicted(apply, batches, flips, ('logits', *wanted)), window)
    return _slabs(rows, shape, size, overlap, weights, wanted)


def labels(slabs: Iterable[Slab], shape: Sequence[int],
           probability: bool = False) -> tuple[np.ndarray, np.ndarray | None, Arrays]:
    """The slabs of a stream -> (label uint8 [D,H,W], foreground float16 [D,H,W] or None, windows).

    label: the class of the largest logit, the first among equals. foreground: 1 - the probability of class 0, by the
    softmax of the mean logits. windows: 'start' and the `wanted` outputs of all windows.
    """
    label, parts = np.empty(shape, np.uint8), []
    foreground = np.empty(shape, np.float16) if probability else None
    for start, _, logits, outputs in slabs:
        for z, plane in enumerate(logits, start):  # numpy's argmax and masks of a whole slab are larger than the slab
            if not np.isfinite(plane).all():
                raise errors.NonFinite(f'The network gives logits that are not finite in slice {z}. Look at its input '
                                       'there, and predict in float32.')
            label[z] = plane.argmax(-1)
            if foreground is not None:
                foreground[z] = logistic.expit(np.logaddexp.reduce(plane[..., 1:], axis=-1) - plane[..., 0])
        parts.append(outputs)
    return label, foreground, {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}


def cut(inputs: Arrays, group: Iterable[Sequence[int]], window: Sequence[int], batch: int) -> dict[str, np.ndarray]:
    """{key: [batch,*window,...]}: the windows that start at `group`, then zeros."""
    size, windows = (1,) * (3 - len(window)) + tuple(window), {}
    for key, array in inputs.items():
        rows = np.zeros((batch, *size, *array.shape[3:]), array.dtype)  # new: the previous batch may still be read
        for row, start in zip(rows, group):
            part = array[tuple(slice(a, a + n) for a, n in zip(start, size))]
            row[tuple(map(slice, part.shape))] = part
        windows[key] = rows.reshape(batch, *window, *array.shape[3:])
    return windows


def _predicted(apply, batches, flips, names):
    """(group, {name: mean over the flips, float32}) of each batch, fetched after the next one has started."""
    def fetch(group: np.ndarray, outs: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        for name in names:
            if name not in outs[0]:
                raise errors.ConfigError(f'Sliding windows: the network gives no '
                                         f'"{name}".{errors.nearest(name, outs[0])}')
        return group, {name: _mean([_unflipped(out, name, axes) for axes, out in zip(flips, outs)]) for name in names}

    pending: tuple[np.ndarray, list] | None = None
    for group, arrays in batches:
        outs = [apply({k: np.flip(a, axes) for k, a in arrays.items()} if axes else arrays) for axes in flips]
        if pending:
            yield fetch(*pending)
        pending = group, outs
    if pending:
        yield fetch(*pending)


def _unflipped(out, name, axes):
    array = np.asarray(out[name], np.float32)
    return np.flip(array, axes) if axes and array.ndim == out['logits'].ndim else array


def _mean(arrays):
    total = arrays[0]
    for array in arrays[1:]:
        total = total + array
    return total / len(arrays) if len(arrays) > 1 else total


def _rows(predicted, window):
    """(start, {name: its row}) of each window."""
    for group, out in predicted:
        if out['logits'].shape[1:-1] != window:
            raise errors.ConfigError(f'Sliding windows of {window}: the network gives logits {out["logits"].shape}. It '
                                     'must give one row of classes for each voxel of the window.')
        for row, start in enumerate(group.tolist()):
            yield start, {name: array[row] for name, array in out.items()}


def _slabs(rows, shape, size, overlap, weights, wanted):
    profiles, sums = zip(*(_axis(n, w, overlap, weights) for n, w in zip(shape, size)))
    inside = [min(n, w) for n, w in zip(shape, size)]  # without the padding
    total: Any = None  # sum of weighted logits, float32 [d,H,W,classes], from slice `first` on
    first = 0
    outputs: list[dict[str, np.ndarray]] = []

    def finished(stop: int) -> Slab:
        logits = total[:stop - first]  # in place: a second slab would be as large
        logits /= plane
        logits /= sums[0][first:stop, None, None, None]
        return Slab(first, stop, logits, {name: np.stack([o[name] for o in outputs]) for name in ('start', *wanted)})

    for (z, y, x), row in rows:
        if total is None:
            classes = row['logits'].shape[-1]
            weight = _outer([p[:n] for p, n in zip(profiles, inside)], classes)
            plane = _outer(sums[1:], classes)
            total, part = np.zeros((inside[0], *plane.shape), np.float32), np.empty_like(weight)
        if z > first:
            yield finished(z)
            done, first, outputs = z - first, z, []
            for i in range(len(total)):  # plane by plane, without a second slab
                total[i] = total[i + done] if i + done < len(total) else 0
        logits = row['logits'].reshape(*size, classes)[tuple(map(slice, inside))]
        np.multiply(logits, weight, out=part)
        total[:, y:y + inside[1], x:x + inside[2]] += part
        outputs.append({'start': np.array((z, y, x)), **{name: row[name] for name in wanted}})
    yield finished(shape[0])


def _axis(length, side, overlap, weights):
    """-> (weight [side] of a window along an axis, their sum [length] over its windows), float32."""
    places = starts(length, side, overlap)
    profile = np.ones(side)
    if weights == 'gaussian' and len(places) > 1:
        profile = np.exp(-((np.arange(side) - (side - 1) / 2) / (side / 8))**2 / 2)
    total = np.zeros(max(length, side))
    for place in places:
        total[place:place + side] += profile
    return profile.astype(np.float32), total[:length].astype(np.float32)


def _outer(profiles, classes):
    """float32 [...,classes], the product of the profiles, copied for each class: numpy broadcasts slowly."""
    product = profiles[0]
    for profile in profiles[1:]:
        product = product[..., None] * profile
    return np.repeat(product[..., None], classes, -1)
