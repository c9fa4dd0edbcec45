"""The files of predictions, predictions/<name>.csv in the folder of a run: the only module that reads or writes them.

`<stage>_<role>.csv` holds the `Predictions` of a part ('val', 'test') of the run's own data, `<stage>_<evaluator>.csv`
those of an evaluator that tests on external data, and `..._test_rois.csv` the `RegionScores` of attention maps. Arrays
for pictures are .npz files in the same folder, with names by the same rule (`file_path`).

Floats are written with 7 significant digits, fewer than those of float32 or float64: `read_csv(write_csv(p)) == p` if
the floats of `p` have no more digits; else they agree to 7 digits. Writing what was read gives the same bytes.
"""
import csv
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from jaxkd import errors
from jaxkd.runtime import files

MEASURE, MARKED, IMPLAUSIBLE, VOLUME = 'measure/', 'shortcut/marked', 'prior/implausible', 'volume_ml'
# column prefix: field
BY_LABEL = {'label': 'label', 'weight': 'weight', 'logit': 'logit', 'probability': 'probability'}
INTEGERS = ('label', 'weight')
OPTIONAL = {MARKED: 'marked', IMPLAUSIBLE: 'implausible', VOLUME: 'volume_ml'}
NAMES = {'case': 'cases', 'patient': 'patients', 'study': 'studies'}
# no name of a group starts with these
RESERVED = (*(f'{prefix}/' for prefix in BY_LABEL), MEASURE, 'shortcut/', 'prior/')
REGION = {'map': 'maps', 'case': 'cases', 'patient': 'patients', 'finding': 'findings'}

Columns = dict[str, list[str]]  # {column: a cell for each row}


class _Table:
    """Rows held as columns: equality, and a choice of rows. Arrays are [n, ...]; nan equals nan."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(_equal(getattr(self, f.name), getattr(other, f.name))
                                                 for f in dataclasses.fields(self))  # type: ignore[arg-type]

    def take(self, rows: np.ndarray) -> Self:
        """The rows of these numbers (int [m] or bool [n]), in their order."""
        def select(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: select(v) for k, v in value.items()}
            return value[rows] if isinstance(value, np.ndarray) else value
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return type(self)(**{f.name: select(getattr(self, f.name)) for f in fields})


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions(_Table):
    """A row for each case or scan: its labels, the outputs of a network, and metrics.

    Columns: case, patient, study, a column for each group, measure/<metric>, and for each label label/<name>,
    weight/<name>, logit/<name> and probability/<name>; shortcut/marked, prior/implausible, volume_ml. Segmented scans
    have measures, and labels if they are classified too. Labels may exclude each other (`exclusive`, which is not in
    the file): then each is a class against the others, and its logit is log(p / (1 - p)).
    """

    cases: np.ndarray  # str [n], the ids
    patients: np.ndarray  # str [n]
    groups: dict[str, np.ndarray]  # {column: str [n], '' where unknown}
    labels: tuple[str, ...]  # the C names
    label: np.ndarray  # float [n, C], whole numbers, as are the weights; 0 and 1
    weight: np.ndarray  # float [n, C], 0: the label of this case does not count
    logit: np.ndarray  # float [n, C]
    probability: np.ndarray  # float [n, C], in 0 to 1
    measures: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # {'dice/RV': float [n], nan where it
    # does not count}
    studies: np.ndarray | None = None  # str [n]
    marked: np.ndarray | None = None  # float [n], 0 and 1: the cases with a shortcut, if known
    implausible: np.ndarray | None = None  # float [n], 1, 0, nan where unknown; see evaluators/multiclass.py
    volume_ml: np.ndarray | None = None  # float [n], of the predicted foreground
    exclusive: bool = False  # whether labels exclude each other; known in a report by the evaluator `multiclass` alone

    @property
    def segmented(self) -> bool:
        """Whether these are segmented scans: they have a Dice. Other measures are those of an evaluator of the user."""
        return any(m.partition('/')[0] == 'dice' for m in self.measures)

    def columns(self) -> Columns:
        """The cells of the file. BadData for reserved and duplicate names."""
        check_names(self.groups, self.labels)
        return dict(self._texts())

    def _texts(self) -> Iterator[tuple[str, list[str]]]:
        for column, field in NAMES.items():
            if getattr(self, field) is not None:
                yield column, [str(v) for v in getattr(self, field)]
        for group, names in self.groups.items():
            yield group, [str(v) for v in names]
        for metric, values in self.measures.items():
            yield MEASURE + metric, _floats(values)
        for c, name in enumerate(self.labels):
            for prefix, field in BY_LABEL.items():
                values = getattr(self, field)[:, c]
                yield f'{prefix}/{name}', [str(int(v)) for v in values] if prefix in INTEGERS else _floats(values)
        for column, field in OPTIONAL.items():
            if (values := getattr(self, field)) is not None:
                yield column, _floats(values)


@dataclasses.dataclass(frozen=True, eq=False)
class RegionScores(_Table):
    """A row for each map and region (a box or the lesion in it), with the metrics of metrics/localisation.py."""

    maps: np.ndarray  # str [n]: last_mean, rollout, ... and the controls; cases, patients and findings alike
    cases: np.ndarray
    patients: np.ndarray
    findings: np.ndarray  # the label of the region
    metrics: dict[str, np.ndarray]  # {'auprc': float [n], nan where it is not defined}

    def columns(self) -> Columns:
        """The cells of the file."""
        names = {column: [str(v) for v in getattr(self, field)] for column, field in REGION.items()}
        return names | {metric: _floats(values) for metric, values in self.metrics.items()}

    def by_map(self) -> dict[str, Self]:
        """{map: its rows}, in order of appearance."""
        return {str(name): self.take(self.maps == name) for name in dict.fromkeys(self.maps)}

    def rows(self) -> list[dict[str, float]]:
        """{metric: value} of each row, as in metrics/localisation.py."""
        return [{metric: float(values[i]) for metric, values in self.metrics.items()} for i in range(len(self.maps))]


def identify(cases: Sequence[Any], groups: Iterable[str]) -> dict[str, Any]:
    """The fields of `Predictions` that identify its cases: data.source.Case objects, with these groups."""
    return dict(cases=np.array([c.id for c in cases], str), patients=np.array([c.patient for c in cases], str),
                studies=np.array([c.study for c in cases], str),
                groups={g: np.array([str(c.groups.get(g, '')) for c in cases], str) for g in groups})


def check_names(groups: Iterable[str], labels: Sequence[str]) -> None:
    """BadData where a group of cases has a name that predictions need, or two labels have the same name."""
    for group in groups:
        if group in (*NAMES, VOLUME) or group.startswith(RESERVED):
            raise errors.BadData(f'A group of cases is called {group!r}, a name that predictions need. Rename it in '
                                 'the source.')
    if repeated := [label for i, label in enumerate(labels) if label in labels[:i]]:
        raise errors.BadData(f"Predictions have two columns called 'label/{repeated[0]}'. Rename the label or class in "
                             'the source.')


def group_names(cases: Iterable[Any]) -> list[str]:
    """The groups of any of these cases (objects with `groups`, a dict), in order of appearance."""
    return list(dict.fromkeys(g for case in cases for g in case.groups))


def file_path(workdir: str | pathlib.Path, stage: str, content: str = 'test', evaluator: str = '',
              suffix: str = '.csv') -> pathlib.Path:
    """The path of a file of predictions in the folder of a run.

    content: a role ('val', 'test'), 'test_rois', or the name of arrays. evaluator: its key under `evals` if it tests on
    external data, whose 'test' is not part of the name; '' on the data of the run.
    """
    parts = (stage, evaluator, '' if evaluator and content == 'test' else content)
    return pathlib.Path(workdir, 'predictions', '_'.join(filter(None, parts)) + suffix)


def to_csv(columns: Mapping[str, Sequence[str]]) -> str:
    """CSV text of columns of equal length; cells with commas, quotes or line ends stand in quotes."""
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    return ''.join(','.join(map(_quoted, row)) + '\n' for row in rows)


def write_csv(path: str | pathlib.Path, table: Predictions | RegionScores) -> None:
    """Write a file of predictions whole or not at all. Raises BadData (see `columns`) and CannotWrite."""
    files.write(path, to_csv(table.columns()))


def read_csv(path: str | pathlib.Path, exclusive: bool = False) -> Predictions:
    """The Predictions of a file. exclusive: whether each case has exactly one of the labels; it is not in the file.

    Raises MissingInput where there is no such file and Damaged, with line and column, where it cannot be read.
    """
    cells = _Cells(path)
    labels = tuple(c.removeprefix('logit/') for c in cells.columns if c.startswith('logit/'))
    by_label = {field: np.stack([cells.floats(f'{prefix}/{name}') for name in labels], 1)
                if labels else np.zeros((cells.n, 0)) for prefix, field in BY_LABEL.items()}
    groups = [c for c in cells.columns if c not in (*NAMES, VOLUME) and not c.startswith(RESERVED)]
    measures = {c.removeprefix(MEASURE): cells.floats(c, empty=np.nan) for c in cells.columns if c.startswith(MEASURE)}
    optional: dict[str, Any] = {field: cells.floats(c) for c, field in OPTIONAL.items() if c in cells.columns}
    if 'study' in cells.columns:
        optional['studies'] = cells.texts('study')
    return Predictions(cells.texts('case'), cells.texts('patient'), {g: cells.texts(g) for g in groups}, labels,
                       **by_label, measures=measures, exclusive=exclusive, **optional)


def with_pseudonyms(path: str | pathlib.Path, pseudonyms: Callable[[str, str], str]) -> str:
    """The CSV text of a file with (id, kind) -> pseudonym in place of the ids of cases, patients and studies."""
    cells = _Cells(path)
    return to_csv({column: [pseudonyms(v, column) for v in cells.texts(column)] if column in NAMES
                   else [str(v) for v in cells.texts(column)] for column in cells.columns})


def read_regions(path: str | pathlib.Path) -> RegionScores:
    """The RegionScores of a file. Raises MissingInput and Damaged as `read_csv`."""
    cells = _Cells(path)
    metrics = {c: cells.floats(c, empty=np.nan) for c in cells.columns if c not in REGION}
    return RegionScores(**{field: cells.texts(c) for c, field in REGION.items()}, metrics=metrics)


class _Cells:
    """The cells of a CSV file by column; errors name its line and column."""

    def __init__(self, path: str | pathlib.Path) -> None:
        self.path, self.lines, rows = pathlib.Path(path), [], []
        try:
            with open(self.path, newline='', encoding='utf-8') as f:
                reader = csv.reader(f, strict=True)
                for row in reader:
                    rows.append(row)
                    self.lines.append(reader.line_num)
        except FileNotFoundError as e:
            raise errors.MissingInput(f'There are no predictions {self.path}.') from e
        except (OSError, ValueError, csv.Error) as e:
            raise self._damaged(e, line=self.lines[-1] + 1 if self.lines else 1) from e
        self.columns: list[str] = rows[0] if rows else []
        self.n = max(len(rows) - 1, 0)
        for line, row in zip(self.lines, rows):
            if len(row) != len(self.columns):
                raise self._damaged(f'{len(row)} cells instead of {len(self.columns)}', line=line)
        if len(set(self.columns)) < len(self.columns):
            duplicate = next(c for i, c in enumerate(self.columns) if c in self.columns[:i])
            raise self._damaged('the column stands there twice', column=duplicate)
        self._cells = {c: [row[i] for row in rows[1:]] for i, c in enumerate(self.columns)}

    def texts(self, column: str) -> np.ndarray:
        """str [n]."""
        return np.array(self._column(column), str)

    def floats(self, column: str, empty: float | None = None) -> np.ndarray:
        """float [n]; empty: the value of an empty cell, an error if None."""
        values = np.empty(self.n)
        for i, cell in enumerate(self._column(column)):
            try:
                values[i] = empty if empty is not None and not cell else float(cell)
            except ValueError as e:
                raise self._damaged(f'{cell!r} is no number', self.lines[i + 1], column) from e
        return values

    def _column(self, column: str) -> list[str]:
        if column not in self._cells:
            raise self._damaged('the column is missing', column=column)
        return self._cells[column]

    def _damaged(self, reason: object, line: int = 1, column: str = '') -> errors.Damaged:
        position = f'line {line}' + (f', column {column!r}' if column else '')
        return errors.Damaged(f'{self.path} cannot be read ({position}: {reason}). Restore it, or delete it to have a '
                              'report without it.')


def _floats(values: np.ndarray) -> list[str]:
    return [f'{float(v):.7g}' for v in values]


def _quoted(cell: str) -> str:
    """As csv.writer, which before Python 3.13 does not quote a carriage return if lines end otherwise."""
    return '"' + cell.replace('"', '""') + '"' if any(c in cell for c in ',"\r\n') else cell


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(_equal(v, b[k]) for k, v in a.items())
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype.kind == b.dtype.kind and np.array_equal(a, b, equal_nan=a.dtype.kind == 'f')
    return type(a) is type(b) and a == b
