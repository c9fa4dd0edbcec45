"""Table to numbers: what is written of the findings of one image becomes one row.

record['table'], a list of dicts column -> cell (one for each finding), -> record['row'] float32 [D]:
    sets      the cells of these columns are words joined by hyphens: each word of a column has a place, 1 where it
              occurs
    levels    ordinal columns: each level has a place, 1 for the largest one that occurs. BI-RADS 0 is "not yet
              decided", so a scale that is one number would put it below 2, "harmless"
    numbers   columns that are quantities: (value - mean) / standard deviation over the training cases
Several findings in an image: the union of their words, the largest of their levels and numbers. "NA" is a word like any
other; a column that a finding does not have adds nothing. Words of a column are those of the training cases, in
alphabetical order.

Which columns the published teacher read was not accessible to us; all of this is [our choice]: density, side, view
and kind are always read; `descriptors` are the radiologist's words; `subtlety` how plainly the finding shows;
`assessment` is nearly the diagnosis and off. The diagnosis itself, names of patients and paths are refused.
"""
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform, TransformPlugin
from jaxkd.runtime import log

DEFAULTS = dict(
    sets=('left or right breast', 'image view', 'abnormality type'),  # columns of words joined by hyphens: a number for
    # each word
    levels=('breast density',),  # columns of ordinal levels: a number for each level
    numbers=(),  # columns of quantities, standardised
    descriptors=('mass shape', 'mass margins', 'calc type', 'calc distribution'),  # further columns of words, those of
    # the radiologist; (): none
    use_subtlety=False,  # read how plainly a finding shows, as a level
    use_assessment=False,  # read the BI-RADS assessment, as a level: it is nearly the diagnosis
    merge=('LUCENT_CENTERED=LUCENT_CENTER',),  # spellings of one word, as 'OTHER=WORD'
    unknown='ignore',  # a word that no training case has: ignore (nothing is set, and how often is logged) or error
    key='table',  # key of the table in a record
    out='row',  # key of the numbers in a batch
)

Table = list[dict[str, str]]  # the findings of an image, column -> cell

EMPTY: dict[str, dict] = {'sets': {}, 'levels': {}, 'numbers': {}}
REFUSED = ('pathology', 'patient_id', 'abnormality id', 'image file path', 'cropped image file path',
           'ROI mask file path')


def fit(hp: ConfigDict, source: Any, indices: Sequence[int], progress: Callable) -> dict:
    """{'sets': {column: words}, 'levels': {column: levels}, 'numbers': {column: [mean, standard deviation]}}, plain
    JSON.
    """
    sets, levels, numbers = _columns(hp)
    read = source.table if source.table_without_image else lambda i: source[i][hp.key]
    indices = list(indices)
    tables = [read(i) for i in progress(indices)]
    fitted = learn(tables, sets, levels, numbers, _merge(hp))
    if not any(fitted.values()):
        columns = ', '.join((*sets, *levels, *numbers))
        raise errors.BadData(f'{source.name}: the tables of the training cases have none of the columns {columns}. '
                             'Name theirs in data.table.sets, levels and numbers.')
    if source.table_without_image:  # the others are looked at for this line alone
        odd = [i for i in set(range(len(source.cases))) - set(indices) if _new(read(i), fitted, _merge(hp))]
        if odd:
            log.info(f'{source.name}: {len(odd)} cases hold a word that no training case has, e.g. '
                     f'{source.cases[min(odd)].id}.')
    return fitted


def build(hp: ConfigDict, fitted: dict | None = None) -> Transform:
    """fitted: what `fit` returned; without one the row is empty."""
    if hp.unknown not in ('ignore', 'error'):
        raise errors.ConfigError(f'table.unknown = "{hp.unknown}" is none of ignore, error.')
    _columns(hp)
    add = functools.partial(apply, fitted=fitted or EMPTY, merge=_merge(hp), strict=hp.unknown == 'error', key=hp.key,
                            out=hp.out)
    return Transform(add, reads=(hp.key, 'case'), writes=(hp.out, 'present'), takes='table')


def apply(record: Record, fitted: dict, merge: dict[str, str], strict: bool, key: str, out: str) -> Record:
    """Adds float32 [D], and whether there was any finding, in present[out]."""
    table = record.get(key)
    if not isinstance(table, list):
        raise errors.ConfigError(f'table.key: a record of this source has no "{key}". Choose a source with a table of '
                                 'findings.')
    if strict and (new := _new(table, fitted, merge)):
        raise errors.BadData(f'Column "{new[0]}" of case {record.get("case", "")} holds a word that no training case '
                             'has. Correct it, or set table.unknown="ignore".')
    present = {**record.get('present', {}), out: np.float32(len(table) > 0)}
    return {**record, out: encode(table, fitted, merge), 'present': present}


def learn(tables: Sequence[Table], sets: Sequence[str], levels: Sequence[str], numbers: Sequence[str],
          merge: dict[str, str]) -> dict:
    """What `fit` returns, of a list of tables."""
    words = {c: sorted({word for table in tables for word in _words(table, c, merge)}) for c in sets}
    values = {c: [v for table in tables if (v := _largest(table, c)) is not None] for c in (*levels, *numbers)}
    return {'sets': {c: words[c] for c in sets if words[c]},
            'levels': {c: sorted(set(values[c])) for c in levels if values[c]},
            'numbers': {c: [float(np.mean(values[c])), float(np.std(values[c])) or 1.0] for c in numbers if values[c]}}


def encode(table: Table, fitted: dict, merge: dict[str, str]) -> np.ndarray:
    """float32 [D] of one table. A number that no finding has is 0, the mean."""
    out = []
    for column, (mean, spread) in fitted['numbers'].items():
        value = _largest(table, column)
        out.append(0.0 if value is None else (value - mean) / spread)
    for column, levels in fitted['levels'].items():
        value = _largest(table, column)
        out += [float(value == level) for level in levels]
    for column, words in fitted['sets'].items():
        words_of_column = _words(table, column, merge)
        out += [float(word in words_of_column) for word in words]
    return np.array(out, np.float32)


def names(fitted: dict) -> tuple[str, ...]:
    """D names of the places of a row, for reports: "breast density", "mass margins=SPICULATED"."""
    levels = (f'{column}={level:g}' for column, fitted_levels in fitted['levels'].items() for level in fitted_levels)
    return (*fitted['numbers'], *levels, *(f'{column}={word}' for column, words in fitted['sets'].items()
                                          for word in words))


def _columns(hp):
    """(sets, levels, numbers) that are to be read."""
    switched = tuple(column for column in ('subtlety', 'assessment') if hp[f'use_{column}'])
    sets, levels, numbers = (*hp.sets, *hp.descriptors), (*hp.levels, *switched), tuple(hp.numbers)
    named = (*hp.sets, *hp.descriptors, *hp.levels, *numbers)
    for column in named:
        if column in REFUSED:
            raise errors.ConfigError(f'data.table must not read "{column}": it is the answer, or tells who the patient '
                                     'is.')
        if column in ('assessment', 'subtlety'):
            raise errors.ConfigError(f'data.table reads "{column}" with use_{column}=True, and in no other way.')
    if not named and not switched:
        raise errors.ConfigError('data.table reads no column. Name some in sets, levels, numbers or descriptors.')
    return sets, levels, numbers


def _merge(hp):
    pairs = [pair.partition('=') for pair in hp.merge]
    if not all(a and b for a, _, b in pairs):
        raise errors.ConfigError(f'data.table.merge = {tuple(hp.merge)} must hold pairs such as '
                                 '"LUCENT_CENTERED=LUCENT_CENTER".')
    return {a: b for a, _, b in pairs}


def _words(table, column, merge):
    return {merge.get(word, word) for row in table for word in row.get(column, '').split('-') if word}


def _largest(table, column):
    """The largest number of a column, None where no finding has one. BadData for what is none."""
    cells = [cell for row in table if (cell := row.get(column, '')) not in ('', 'NA')]
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise errors.BadData(f'Column "{column}" of the table of findings must hold numbers. Correct it, or read it as '
                             'words: data.table.sets.')
    return max(values, default=None)


def _new(table, fitted, merge):
    """Columns of a table with a word or level that has no place."""
    odd = [column for column, words in fitted['sets'].items() if _words(table, column, merge) - set(words)]
    return odd + [column for column, levels in fitted['levels'].items()
                  if _largest(table, column) not in (None, *levels)]


def table_columns(hp: ConfigDict, fitted: dict) -> list[str]:
    """The columns that training cases had, of those that are read."""
    return [column for part in fitted.values() for column in part]


PLUGIN = TransformPlugin(fit=fit, fit_decides_shapes=True, table_columns=table_columns)
