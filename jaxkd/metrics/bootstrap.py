"""Patient-level (cluster) bootstrap: percentile intervals where a patient may have several rows.

Patients are drawn with replacement, and all rows of a patient come along as often as the patient was drawn.
Rows of one patient are alike, so an interval from resampled rows is too narrow: about half as wide at four
images a patient.

A resample is a row of weights: how often each case was drawn. A statistic is a function `weights [R, rows] ->
[R]` that computes R resamples at once, and gives nan where it is not defined, as is AUROC without a positive.
The interval then comes from the resamples in which the statistic is defined; `replicates` is their number.

The percentile interval is Efron & Tibshirani (1993), ch. 13 [published]; clusters are patients [our choice].
"""
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Real, Shaped
from scipy import sparse

from jaxkd import errors

Weights = Float[np.ndarray, 'resamples rows']
Values = Float[np.ndarray, ' resamples']
Statistic = Callable[[np.ndarray], np.ndarray]  # Weights -> Values
Sums = Callable[[np.ndarray], np.ndarray]  # Weights -> [groups, resamples]
Statistics = Callable[[np.ndarray], dict[str, np.ndarray]]  # Weights -> {name: Values}
Entry = dict[str, Any]  # value, low, high, replicates, and what a metric adds
Table = dict[str, Entry]  # {metric: Entry}

BLOCK = 2**20  # weights of one block of resamples: 8 MB


def groups(patients: Collection, rows: int | None = None) -> tuple[Int[np.ndarray, ' rows'], int]:
    """Patient ids [rows] -> (index [rows] of each row's patient, number of patients).

    Raises BadData without any id, for an empty one, and where their number differs from `rows`.
    """
    patients = list(patients)
    if not patients or (rows is not None and len(patients) != rows):
        raise errors.BadData(f'{len(patients)} patient ids for {rows or 0} cases: give one for each case.')
    nameless = [i for i, p in enumerate(patients) if p is None or p != p or str(p) == '']  # nan is not itself
    if nameless:
        raise errors.BadData(f'Case {nameless[0]} (counted from 0) has no patient id; the bootstrap would '
                             'take all such cases for one patient. Give every case its patient.')
    names, index = np.unique([str(p) for p in patients], return_inverse=True)
    return index, len(names)


def resamples(patients: Collection, n: int = 1000, seed: int = 0) -> Iterator[Weights]:
    """Yield blocks of weights [r, rows], n resamples in all. Equal patients and seed give equal resamples.

    The weights of a row are contiguous, as `sums` reads them: a block is the transpose of an array [rows, r].
    """
    index, count = groups(patients)
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK // len(index))
    for start in range(0, n, block):
        r = min(block, n - start)
        drawn = rng.integers(count, size=(r, count)) * r + np.arange(r)[:, None]
        times = np.bincount(drawn.ravel(), minlength=r * count).reshape(count, r)
        yield times.astype(np.float64)[index].T


def summary(value: float | np.floating, draws: Float[np.ndarray, ' n'], level: float = 0.95) -> Entry:
    """Point value, draws [n] -> {'value', 'low', 'high', 'replicates'}; a nan value has a nan interval."""
    defined = draws[~np.isnan(draws)]
    low = high = np.nan
    if len(defined) and not np.isnan(value):
        low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return {'value': float(value), 'low': float(low), 'high': float(high), 'replicates': len(defined)}


def intervals(statistics: Statistics, patients: Collection, n: int = 1000, level: float = 0.95, seed: int = 0) -> Table:
    """Intervals of several statistics from the same resamples.

    `statistics(weights [R, rows]) -> {name: [R]}`; n resamples, 0 for none.
    Returns {name: {'value', 'low', 'high', 'replicates', 'n_patients'}}. Without resamples an interval is
    nan, and so it is with one patient, who has no spread to resample.
    """
    index, count = groups(patients)
    if not 0 < level < 1:
        raise errors.ConfigError(f'The level of an interval lies between 0 and 1, as in 0.95; it is {level}.')
    value = statistics(np.ones((1, len(index))))
    blocks = [statistics(w) for w in resamples(patients, n, seed)] if count > 1 else []
    return {name: {**summary(v[0], np.concatenate([b[name] for b in blocks] or [np.empty(0)]), level),
                   'n_patients': count} for name, v in value.items()}


def interval(statistic: Statistic, patients: Collection, n: int = 1000, level: float = 0.95, seed: int = 0) -> Entry:
    """The interval of one statistic, `weights [R, rows] -> [R]`."""
    return intervals(lambda w: {'': statistic(w)}, patients, n, level, seed)['']


def paired(a: Statistics, b: Statistics, patients: Collection, n: int = 1000, level: float = 0.95,
           seed: int = 0) -> Table:
    """Intervals of the differences a - b: the named statistics of two models on the same cases.

    Each resample is given to both, so what makes a case hard for both models cancels.
    """
    def differences(weights: Weights) -> dict[str, Values]:
        subtracted = b(weights)
        return {name: value - subtracted[name] for name, value in a(weights).items()}

    return intervals(differences, patients, n, level, seed)


def mean(values: Float[np.ndarray, ' rows']) -> Statistic:
    """The mean of values [rows] as a statistic; rows that are nan do not count."""
    defined = ~np.isnan(values)
    values = np.where(defined, values, 0)
    return lambda weights: ratio(weights @ values, weights @ defined.astype(float))


def sums(values: Shaped[np.ndarray, '*terms rows'], group: Int[np.ndarray, '*terms rows'], groups: int) -> Sums:
    """Weighted sums by group, as a function of weights [R, rows] -> [groups, R].

    values: numbers or bool, [rows] or [terms, rows]; group: of each value, 0..groups-1.
    """
    index = np.nonzero(values)
    matrix = sparse.csc_array((values[index].astype(float), (group[index], index[-1])),
                              shape=(groups, values.shape[-1]))
    return lambda weights: matrix @ weights.T


def macro(values: Sequence[Values] | Float[np.ndarray, '...'], axis: int = 0) -> Float[np.ndarray, '...']:
    """Mean over one axis, that of labels or classes, of the values that are defined; nan where none is."""
    return ratio(np.nansum(values, axis=axis), np.sum(~np.isnan(values), axis=axis))


def ratio(top: Real[np.ndarray, '*shape'] | np.number | float,
          bottom: Real[np.ndarray, '*shape'] | np.number | float) -> Float[np.ndarray, '*shape']:
    """top / bottom, nan where bottom is 0."""
    return np.divide(top, bottom, out=np.full(np.shape(bottom), np.nan), where=np.asarray(bottom) != 0)
