"""Masks of a scan against the true ones: overlap, surface distances, volumes, lesions; tables with patient-level
intervals.

Of every class but the background, with P the predicted and G the true mask, |.| a count of voxels:

dice                2 |P & G| / (|P| + |G|);   iou  |P & G| / |P or G|   [published]
hd95_mm, _voxel     95th percentile (linear interpolation) of the surface distances of both directions together
                    [published]
assd_mm, _voxel     mean of the same distances: the average symmetric surface distance [published]
nsd                 fraction of the same distances within the tolerance: the surface Dice of Nikolov et al. (2018)
                    [published], by surface voxels, not their area [our choice]; voxels instead of mm where the spacing
                    is unknown
volume_error_ml     volume of P - volume of G;   volume_error  (|P| - |G|) / |G|, nan without G
lesion_recall       fraction of the lesions of G that are detected, nan without a lesion
lesion_false        number of predicted lesions without a true one

The surface of a mask are its voxels with a face neighbour outside it, by erosion with face connectivity; voxels beyond
the border of the array are outside. A surface distance is that of the centre of a surface voxel to the nearest
such centre of the other mask. Ignored voxels are taken out of both masks; a scan that is all ignored has nan
everywhere. A volume of one slice is measured as an image, whose voxels would otherwise all be surface [our choice].

Empty masks [our choice, `strict`]: where both are empty the case is excluded, nan everywhere; where one is, dice, iou
and nsd are 0 and the distances are the diagonal of the scan. `legacy` scores P without G as perfect, 1 and distances 0,
and G without P, or neither, as 0 and distances 0 [published code]: it rewards failures, and is for comparison with
older tables. `present` excludes every case without G, for lesions that many scans lack: false positives then count in
lesion_false and in the specificity of a decision. The column empty/<class> says which mask is empty: 0 neither, 1 G,
2 P, 3 both.

This is a layer on scipy, since the libraries of these metrics need packages larger than themselves, refuse a current
numpy, or take the larger of two directed percentiles; its k-d tree is exact, and pays for surface voxels, not for the
space around them.
"""
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Real, Shaped
from scipy import ndimage, spatial

from jaxkd import errors
from jaxkd.data.source import IGNORED
from jaxkd.metrics import bootstrap

POLICIES = 'strict', 'legacy', 'present'
METRICS = ('dice', 'iou', 'hd95_mm', 'hd95_voxel', 'assd_mm', 'assd_voxel', 'nsd', 'volume_error_ml', 'volume_error',
           'empty')
Mask = Shaped[np.ndarray, '*voxels']  # int or bool, of a volume or an image
Spacing = Real[np.ndarray, ' axes']  # mm along each axis, nan where unknown
Points = Float[np.ndarray, 'points axes']
Distances = Float[np.ndarray, ' points'] | np.floating
Columns = Mapping[str, np.ndarray]  # {metric/class: float [n]}
EMPTY = {1: 'n_empty_truth', 2: 'n_empty_prediction', 3: 'n_empty_both'}


def measure(predicted: Mask, truth: Mask, labels: Sequence[str], spacing: Sequence[float] | Spacing | None = None,
            policy: str = 'strict', tolerance: float = 2.0) -> dict[str, float]:
    """All metrics of one scan but those of lesions: {'dice/RV': float, ..., 'empty/RV': float, ...}.

    predicted, truth: int [D, H, W] or [H, W], indices into labels; truth 255 where voxels are ignored. labels: names of
    all classes, the background first. spacing: mm along each axis, in the order of the axes; None or nan where unknown,
    and then values in mm or ml are nan (ml of an image always). tolerance: mm. Raises BadData for arrays or a spacing
    of other shapes.
    """
    if policy not in POLICIES:
        raise errors.ConfigError(f'The policy for empty masks is "strict", "legacy" or "present", not "{policy}".')
    if not tolerance >= 0:
        raise errors.ConfigError(f'The tolerance of nsd is a distance, 0 or more; it is {tolerance}.')
    predicted, truth = _checked(predicted, truth, len(labels))
    spacing = _spacing(spacing, predicted.ndim)
    ml = np.prod(spacing) / 1000 if predicted.ndim == 3 else np.nan
    if predicted.ndim == 3 and len(predicted) == 1:
        predicted, truth, spacing = predicted[0], truth[0], spacing[1:]
    if truth.min() == IGNORED:
        return {f'{metric}/{name}': np.nan for metric in METRICS for name in labels[1:]}
    diagonal = [np.linalg.norm(np.multiply(truth.shape, unit)) for unit in (spacing, 1)]
    box = _box(predicted, truth)
    predicted, truth = np.where(truth[box] == IGNORED, 0, predicted[box]), truth[box]
    rows = {name: _metrics(predicted == c, truth == c, spacing, ml, diagonal, policy, tolerance)
            for c, name in enumerate(labels[1:], 1)}
    return {f'{metric}/{name}': float(row[metric]) for metric in METRICS for name, row in rows.items()}


def dices(predicted: Mask, truth: Mask, labels: Sequence[str], policy: str = 'strict') -> dict[str, float]:
    """{'dice/RV': float, ...} alone, as `measure` (`legacy` as `strict`): fast enough for validation in training."""
    valid = truth != IGNORED
    counts = np.bincount(truth[valid].astype(np.int64) * len(labels) + predicted[valid], minlength=len(labels) ** 2)
    counts = counts.reshape(len(labels), -1)  # true x predicted
    true = counts.sum(1)
    both = bootstrap.ratio(2.0 * np.diag(counts), counts.sum(0) + true)
    both = np.where(true > 0, both, np.nan) if policy == 'present' else both
    return {f'dice/{name}': float(both[c]) for c, name in enumerate(labels[1:], 1)}


def lesions(predicted: Mask, truth: Mask, label: int = 1, instances: Int[np.ndarray, '*voxels'] | None = None,
            fraction: float = 0.0) -> dict[str, float]:
    """The lesions of one class of a scan: {'lesion_recall': float, 'lesion_false': float}.

    predicted, truth as for `measure`, or bool. A lesion is a component of the class in truth, joined by faces, edges or
    corners, or, with instances (int, 0 for none), the voxels of the class with one id. It is detected when predicted
    covers at least one of its voxels and the given fraction of them. A false lesion is a component of predicted without
    a true or an ignored voxel.
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    instances = truth if instances is None else np.asarray(instances)
    if not predicted.shape == truth.shape == instances.shape or not truth.size:
        raise errors.BadData(f'Prediction {predicted.shape}, truth {truth.shape} and instances {instances.shape} of a '
                             'scan must have the same shape and hold a voxel.')
    if truth.min() == IGNORED:
        return {'lesion_recall': np.nan, 'lesion_false': np.nan}
    box = _box(predicted, truth)
    predicted, ignored, true = predicted[box] == label, truth[box] == IGNORED, truth[box] == label
    joined = np.ones((3,) * true.ndim)
    ids = ndimage.label(true, joined)[0] if instances is truth else np.where(true, instances[box], 0)
    _, lesion = np.unique(ids[ids != 0], return_inverse=True)
    size, covered = np.bincount(lesion), np.bincount(lesion, predicted[ids != 0])
    parts, count = ndimage.label(predicted, joined)
    correct = np.unique(parts[predicted & (true | ignored)])
    detected = (covered > 0) & (covered >= fraction * size - 1e-9)  # 0.3 of 10 voxels are 3, however 0.3 * 10 rounds
    recall = float(detected.mean()) if len(size) else np.nan
    return {'lesion_recall': recall, 'lesion_false': float(count - len(correct))}


def statistics(columns: Columns) -> bootstrap.Statistics:
    """A function of weights [R, n] -> {metric: [R]}, for `bootstrap.intervals`.

    columns {name: float [n]}. Each is its mean over the cases where it is defined, in a resample over those drawn; a
    metric of several classes alone, as 'dice', is the mean over classes of these means, of the classes that have one.
    Columns 'empty/<class>' are no metrics and left out. Raises BadData where a mean over classes has the name of a
    column.
    """
    names = [name for name in columns if not name.startswith('empty/')]
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        groups.setdefault(name.partition('/')[0], []).append(i)
    if ambiguous := [metric for metric, columns in groups.items() if metric in names and len(columns) > 1]:
        raise errors.BadData(f'"{ambiguous[0]}" is a column and the mean over the columns "{ambiguous[0]}/..." too. '
                             'Rename one.')
    values = np.array([columns[name] for name in names], dtype=float).reshape(len(names), -1).T
    defined = ~np.isnan(values)
    values = np.where(defined, values, 0)

    def averages(weights: bootstrap.Weights) -> dict[str, bootstrap.Values]:
        means, metrics = bootstrap.ratio(weights @ values, weights @ defined.astype(float)), {}
        for metric, indices in groups.items():
            metrics[metric] = bootstrap.macro(means[:, indices], axis=1)
            metrics |= {names[i]: means[:, i] for i in indices}
        return metrics
    return averages


def table(columns: Columns, patients: Collection, n: int = 1000, level: float = 0.95, seed: int = 0) -> bootstrap.Table:
    """All means with intervals: {metric: {'value', 'low', 'high', 'n_patients', 'replicates', 'n_cases', ...}}.

    columns {name: float [cases]} as `measure` and `lesions` give them, one value a scan; patients [cases]; n resamples.
    'n_cases' and 'n_patients' count where the column is defined, for a mean over classes where any of them is; an
    interval from a single patient is nan. Means over classes add 'n_labels', their number; dice/<class> adds
    'n_empty_truth', 'n_empty_prediction' and 'n_empty_both', the scans in which only the true, only the predicted or
    each mask is empty.
    """
    columns, index = _columns(columns, patients), bootstrap.groups(patients)[0]
    entries = bootstrap.intervals(statistics(columns), patients, n, level, seed)
    for name, entry in entries.items():
        averaged = [name] if name in columns else [c for c in columns if c.startswith(f'{name}/')]
        defined = ~np.isnan([columns[c] for c in averaged])
        entry |= dict(n_cases=int(defined.any(0).sum()), n_patients=len(np.unique(index[defined.any(0)])))
        if entry['n_patients'] < 2:
            entry |= dict(low=float('nan'), high=float('nan'), replicates=0)
        if name not in columns:
            entry['n_labels'] = int(defined.any(1).sum())
        empty = columns.get(name.replace('dice/', 'empty/')) if name.startswith('dice/') else None
        if empty is not None:
            entry |= {key: int(np.sum(empty == code)) for code, key in EMPTY.items()}
    return entries


def paired_table(a: Columns, b: Columns, patients: Collection, n: int = 1000, level: float = 0.95,
                 seed: int = 0) -> bootstrap.Table:
    """As `table`, for the differences a minus b of the columns that both have, over the cases defined in both.

    A case that either model excludes is excluded: without a true mask, an empty prediction is not compared with one
    that is not empty. Compare the counts 'n_empty_...' of their tables.
    """
    a, b = (_columns(columns, patients) for columns in (a, b))
    differences = {name: a[name] - b[name] for name in a if name in b and not name.startswith('empty/')}
    return table(differences, patients, n, level, seed)


def _metrics(predicted: Mask, truth: Mask, spacing: Spacing, ml: float, diagonal: Sequence[np.floating], policy: str,
             tolerance: float) -> dict[str, Any]:
    """One class, bool masks: {metric: number} for METRICS. diagonal: of the scan in mm and in voxels."""
    p, t = np.count_nonzero(predicted), np.count_nonzero(truth)
    empty = (t == 0) + 2 * (p == 0)
    if not empty:
        both = np.count_nonzero(predicted & truth)
        dice, iou = float(2 * both / (p + t)), float(both / (p + t - both))
        mm, voxel = _distances(predicted, truth, spacing)
        nsd = float(np.mean((voxel if np.isnan(mm).any() else mm) <= tolerance * (1 + 1e-6)))  # spacings are float32
    elif policy == 'legacy':
        dice = iou = nsd = float(empty == 1)
        mm, voxel = (0 * unit for unit in diagonal)
    elif empty == 3 or empty == 1 and policy == 'present':
        return dict.fromkeys(METRICS, np.nan) | {'empty': empty}
    else:
        dice = iou = nsd = 0
        mm, voxel = diagonal
    return {'dice': dice, 'iou': iou, 'hd95_mm': np.percentile(mm, 95), 'hd95_voxel': np.percentile(voxel, 95),
            'assd_mm': np.mean(mm), 'assd_voxel': np.mean(voxel), 'nsd': nsd, 'volume_error_ml': (p - t) * ml,
            'volume_error': (p - t) / t if t else np.nan, 'empty': empty}


def _distances(predicted: Mask, truth: Mask, spacing: Spacing) -> tuple[Distances, Distances]:
    """Surface distances of two masks, both directions concatenated: ([S] in mm, [S] in voxels)."""
    box = _box(predicted, truth)
    points = [_surface(mask[box]) for mask in (predicted, truth)]
    voxel = _nearest(*points)
    if (spacing == spacing[0]).all():
        return voxel * spacing[0], voxel
    return (voxel * np.nan if np.isnan(spacing).any() else _nearest(*(p * spacing for p in points))), voxel


def _nearest(a: Points, b: Points) -> Float[np.ndarray, ' distances']:
    """Distances from each point to the nearest of the other set, [A + B]; a [A, axes], b [B, axes]."""
    # points of a grid are sorted already
    trees = [spatial.KDTree(x, balanced_tree=False, compact_nodes=False) for x in (a, b)]
    return np.concatenate([trees[1].query(a)[0], trees[0].query(b)[0]])


def _surface(mask: Mask) -> Points:
    """Indices of the surface voxels of a mask; only the voxels within it are visited for each neighbour."""
    mask = np.pad(mask, 1)
    flat, voxels = mask.ravel(), np.flatnonzero(mask)
    steps = np.cumprod((1, *mask.shape[:0:-1]))  # from a voxel to its neighbour along each axis, the last one first
    inner = np.logical_and.reduce([flat[voxels + s] & flat[voxels - s] for s in steps])
    return np.stack(np.unravel_index(voxels[~inner], mask.shape), 1).astype(float)


def _box(a: Mask, b: Mask) -> tuple[slice, ...]:
    """The smallest slices that hold all voxels of a and b that are not 0."""
    box = []
    for axis in range(a.ndim):
        others = tuple(k for k in range(a.ndim) if k != axis)
        occupied = np.flatnonzero(a.any(others) | b.any(others))
        box.append(slice(occupied[0], occupied[-1] + 1) if len(occupied) else slice(0))
    return tuple(box)


def _checked(predicted: Mask, truth: Mask, classes: int) -> tuple[np.ndarray, np.ndarray]:
    # other memory orders take four times as long
    predicted, truth = np.ascontiguousarray(predicted), np.ascontiguousarray(truth)
    if predicted.shape != truth.shape or truth.ndim not in (2, 3) or not truth.size:
        raise errors.BadData(f'Prediction {predicted.shape} and truth {truth.shape} of a scan must have the same '
                             'shape, [D, H, W] or [H, W].')
    if not 2 <= classes <= IGNORED:
        raise errors.BadData(f'{classes} class names are given: name the background and 1 to {IGNORED - 1} classes.')
    for name, array in (('prediction', predicted), ('truth', truth)):
        if array.dtype.kind not in 'iub':
            raise errors.BadData(f'The {name} is of type {array.dtype}; it must hold integers, the index of a '
                                 'class each.')
        if array.min() < 0 or array.max() >= classes:
            invalid = array[(array < 0) | (array >= classes)]
            invalid = invalid if array is predicted else invalid[invalid != IGNORED]
            if invalid.size:
                raise errors.BadData(f'The {name} holds the value {invalid[0]}; a class is one of 0 to {classes - 1}'
                                     f'{"" if array is predicted else f", {IGNORED} where ignored"}.')
    return predicted, truth


def _spacing(spacing: Sequence[float] | Spacing | None, axes: int) -> Spacing:
    """Spacing in mm float [axes], nan where unknown."""
    mm = np.full(axes, np.nan) if spacing is None else np.asarray(spacing, dtype=float)
    if mm.shape != (axes,) or (mm <= 0).any() or np.isinf(mm).any():
        raise errors.BadData(f'The spacing {spacing} does not fit a scan of {axes} axes: give for each a length above '
                             '0 in mm, nan where it is not known.')
    return mm


def _columns(columns: Columns, patients: Collection) -> dict[str, np.ndarray]:
    """{name: float [n]}, n the number of patients."""
    bootstrap.groups(patients)
    columns = {name: np.asarray(values, dtype=float) for name, values in columns.items()}
    for name, values in columns.items():
        if values.shape != (len(patients),):
            raise errors.BadData(f'Column "{name}" has the shape {values.shape}; it must hold one value for each of '
                                 f'the {len(patients)} cases.')
    return columns
