"""Does a map point at the finding? Metrics of a map [S, S] against a binary region of interest (ROI) [S, S].

Maps are non-negative and compared at the network input, where the ROI went through the same geometric
transform as the image. Definitions, with M the map and G the ROI:

hit          the largest pixel of M lies in G, the first in row-major order among equals (pointing game)
iou_50 ...   |M > t and G| / |M > t or G|, M min-max scaled: t = 0.5, Otsu's t, iou_best: t from validation
iou_top10    the same for the tenth of the pixels with the largest values, the first among equals
iou_mass60   the same for the smallest set of top pixels that holds 60 % of the mass of M (DINO)
auprc, auroc of pixels as cases; chance is the area fraction (column auprc_chance) and 0.5
mass_in_roi  sum of M in G / sum of M;  lift = mass_in_roi / area fraction, chance 1
cnr          |mean in - mean out| / sqrt(variance in + variance out), population variances

A constant map selects nothing at a threshold, so its IoU is 0, and its hit is that of the first pixel; cnr is
nan when both variances are 0 [our choice]. hit and IoU as in CheXlocalize (Saporta et al., 2022) [published].
"""
import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Real, Shaped

from jaxkd import errors
from jaxkd.data.threshold import min_max_scaled, otsu
from jaxkd.metrics import bootstrap

Map = Real[np.ndarray, 's s']
Pixels = Int[np.ndarray, ' n']  # numbers of the pixels of an ROI, row by row
Maps = Sequence[np.ndarray] | np.ndarray | Callable[[int], np.ndarray]  # [R, S, S], or i -> [S, S]
THRESHOLDS = tuple(t / 10 for t in range(1, 10))


def roi_mask(box: Sequence[float] | Real[np.ndarray, '4'], size: int) -> Bool[np.ndarray, '{size} {size}']:
    """Box x, y, w, h in pixels of the network input -> bool [size, size]: pixels whose centre lies inside."""
    x, y, w, h = (float(v) for v in box)
    centre = np.arange(size) + 0.5
    return ((y <= centre) & (centre < y + h))[:, None] & ((x <= centre) & (centre < x + w))


def control_maps(size: int) -> dict[str, Float[np.ndarray, '{size} {size}']]:
    """Maps that ignore the image, [size, size], sum 1: 'uniform' and 'centred_gaussian' (sigma = size / 4)."""
    offset = np.arange(size) + 0.5 - size / 2
    profile = np.exp(-0.5 * np.square(offset / (0.25 * size)))
    gaussian = profile[:, None] * profile
    return {'uniform': np.full((size, size), 1 / size**2), 'centred_gaussian': gaussian / gaussian.sum()}


@dataclasses.dataclass(frozen=True, eq=False)
class _Prepared:
    """What all ROIs of a map share; everything but `shape` is by pixel, row by row."""

    shape: tuple[int, ...]
    values: Float[np.ndarray, ' pixels']
    ascending: Float[np.ndarray, ' pixels']  # sorted
    scaled: Float[np.ndarray, ' pixels']
    masks: dict[str, Bool[np.ndarray, ' pixels']]  # {IoU metric: mask}
    above_threshold: Bool[np.ndarray, ' pixels'] | None


def mass_mask(map: Real[np.ndarray, '*s'], q: float = 0.6) -> Bool[np.ndarray, '*s']:
    """Bool mask of the smallest set of top values with the fraction q of the sum; the first among equals."""
    return _mass_mask(map, np.sort(map, axis=None), q)


def _mass_mask(map: Real[np.ndarray, '*s'], ascending: Real[np.ndarray, ' n'], q: float) -> Bool[np.ndarray, '*s']:
    top = ascending[::-1]
    missing = np.cumsum(top) - top < (q - 1e-9) * map.sum()  # a sum that reaches q but for round-off has reached it
    return _top_mask(map, ascending, max(1, int(np.count_nonzero(missing))))


def top_mask(map: Real[np.ndarray, '*s'], share: float = 0.1) -> Bool[np.ndarray, '*s']:
    """Bool mask of this share of the pixels, at least one, with the largest values; the first among equals."""
    return _top_mask(map, np.sort(map, axis=None), max(1, round(share * map.size)))


def _top_mask(map: Real[np.ndarray, '*s'], ascending: Real[np.ndarray, ' n'], count: int) -> Bool[np.ndarray, '*s']:
    last = ascending[-count]
    mask = map > last
    mask.flat[np.flatnonzero(map == last)[:count - np.count_nonzero(mask)]] = True
    return mask


def iou(mask: Bool[np.ndarray, ' pixels'], inside: Pixels) -> float:
    """Intersection over union of a mask and the ROI of the pixels `inside`, 0 when both are empty."""
    common = int(np.count_nonzero(mask[inside]))
    return common / max(int(np.count_nonzero(mask)) + len(inside) - common, 1)


def metrics(map: Map, roi: Shaped[np.ndarray, 's s'], threshold: float | None = None) -> dict[str, float]:
    """All metrics of one map and one ROI as {name: float}; iou_best only with a threshold.

    Raises BadData for an ROI that is empty or the whole image, for other shapes, and for a map with
    negative values, values that are not finite, or no mass.
    """
    return _metrics(_prepared(map, threshold), roi)


def _prepared(map: Map, threshold: float | None) -> _Prepared:
    map = np.asarray(map, dtype=np.float64)
    if not np.isfinite(map).all() or map.min(initial=0) < 0 or map.sum() == 0:
        raise errors.BadData('A map must be finite and non-negative, with at least one value above 0.')
    values, ascending, scaled = map.ravel(), np.sort(map, axis=None), min_max_scaled(map).ravel()
    masks = {'iou_50': scaled > 0.5, 'iou_otsu': otsu(values), 'iou_mass60': _mass_mask(values, ascending, 0.6),
             'iou_top10': _top_mask(values, ascending, max(1, round(0.1 * values.size)))}
    return _Prepared(map.shape, values, ascending, scaled, masks, None if threshold is None else scaled > threshold)


def _metrics(map: _Prepared, roi: Shaped[np.ndarray, 's s']) -> dict[str, float]:
    roi = np.asarray(roi) > 0
    if len(map.shape) != 2 or map.shape != roi.shape:
        raise errors.BadData(f'The map has the shape {map.shape}, the ROI {roi.shape}; both must be [S, S].')
    inside, size = np.flatnonzero(roi), roi.size
    if not 0 < len(inside) < size:
        raise errors.BadData(f'The ROI is {"the whole image" if len(inside) else "empty"}: no map can be '
                             'scored against it. Leave it out.')
    area, mass = len(inside) / size, map.values[inside].sum() / map.values.sum()
    row = {'hit': roi.flat[map.values.argmax()], **{name: iou(mask, inside) for name, mask in map.masks.items()},
           **_areas(map, inside), 'mass_in_roi': mass, 'lift': mass / area, 'cnr': _cnr(map, inside),
           'auprc_chance': area}
    if map.above_threshold is not None:
        row['iou_best'] = iou(map.above_threshold, inside)
    return {name: float(v) for name, v in row.items()}


def _areas(map: _Prepared, inside: Pixels) -> dict[str, float]:
    """AUPRC and AUROC of the pixels as cases, from the ranks of those inside; ties count one half."""
    n, size, scores = len(inside), len(map.values), np.sort(map.values[inside])
    lower, not_above = (np.searchsorted(map.ascending, scores, side) for side in ('left', 'right'))
    precision = (n - np.searchsorted(scores, scores)) / (size - lower)
    return {'auprc': precision.mean(), 'auroc': ((lower + not_above).sum() - n * n) / (2 * n * (size - n))}


def _cnr(map: _Prepared, pixels: Pixels) -> float:
    """nan when both variances are 0. Of scaled values: the ratio is the same, and that of a constant part exactly 0."""
    inside, outside = map.scaled[pixels], np.delete(map.scaled, pixels)
    noise = np.sqrt(inside.var() + outside.var())
    return abs(inside.mean() - outside.mean()) / noise if noise > 0 else np.nan


def measure(maps: Maps, rois: Iterable[np.ndarray], threshold: float | None = None,
            names: Sequence[str] | None = None) -> list[dict[str, float]]:
    """One row of `metrics` for each ROI.

    maps [R, S, S], or a function i -> [S, S], so that upsampled maps need not all be in memory; where it returns the
    same array for ROIs in a row, this is sorted once. rois [R, S, S], or an iterable of masks. threshold: from
    `best_threshold` on validation ROIs. names [R]: what an error calls an ROI, its number otherwise.
    """
    rows, previous = [], None
    for i, (map, roi) in enumerate(_pairs(maps, rois)):
        try:
            if map is not previous:
                previous, prepared = map, _prepared(map, threshold)
            rows.append(_metrics(prepared, roi))
        except errors.BadData as e:
            raise errors.BadData(f'ROI {names[i] if names is not None else i}: {e}') from e
    return rows


def best_threshold(maps: Maps, rois: Iterable[np.ndarray]) -> float:
    """The t of 0.1, 0.2 ... 0.9 with the highest mean IoU, the lowest among equals. For validation ROIs."""
    means, previous = np.zeros(len(THRESHOLDS)), None
    for map, roi in _pairs(maps, rois):
        if map is not previous:
            previous, scaled = map, min_max_scaled(np.asarray(map, dtype=np.float64)).ravel()
            masks = [scaled > t for t in THRESHOLDS]
        inside = np.flatnonzero(np.asarray(roi) > 0)
        means += [iou(mask, inside) for mask in masks]
    return THRESHOLDS[int(np.argmax(means))]


def _pairs(maps: Maps, rois: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (map, ROI). BadData without an ROI, or where an array of maps has another length."""
    n = 0
    for n, roi in enumerate(rois, 1):
        if not callable(maps) and n > len(maps):
            break
        yield maps(n - 1) if callable(maps) else maps[n - 1], roi
    if not n:
        raise errors.BadData('There is no ROI to score. Does the split hold cases with boxes?')
    if not callable(maps) and n != len(maps):
        raise errors.BadData(f'There are {len(maps)} maps, but not as many ROIs. Give each ROI the map of '
                             'its image, again for every ROI of that image.')


def table(rows: Sequence[dict[str, float]], patients: Collection, n: int = 1000, level: float = 0.95,
          seed: int = 0) -> bootstrap.Table:
    """Mean over ROIs with patient-level intervals, as `bootstrap.intervals` gives them, by metric.

    rows from `measure`, patients [R]. A metric averages the ROIs where it is defined, 'n_rois' of them.
    """
    bootstrap.groups(patients, len(rows))
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    means = {name: bootstrap.mean(values) for name, values in columns.items()}
    entries = bootstrap.intervals(lambda w: {name: f(w) for name, f in means.items()}, patients, n, level, seed)
    return {name: {**entry, 'n_rois': int(np.sum(~np.isnan(columns[name])))} for name, entry in entries.items()}


def paired_table(rows_a: Sequence[dict[str, float]], rows_b: Sequence[dict[str, float]], patients: Collection,
                 n: int = 1000, level: float = 0.95, seed: int = 0) -> bootstrap.Table:
    """As `table`, for the differences a minus b over the same ROIs, e.g. distilled minus image-only.

    A metric that is missing on one side is left out; so is auprc_chance, a property of the ROIs.
    """
    if len(rows_a) != len(rows_b):
        raise errors.BadData(f'{len(rows_a)} and {len(rows_b)} ROIs cannot be paired. Use the same for both.')
    rows = [{name: a[name] - b[name] for name in a if name in b and name != 'auprc_chance'}
            for a, b in zip(rows_a, rows_b)]
    return table(rows, patients, n, level, seed)
