"""Read back the working folder of a run. A part that is missing stays empty; a part that is damaged is an error."""
import csv
import dataclasses
import functools
import pathlib
import zipfile

import numpy as np

from jaxkd import errors
from jaxkd.runtime import files, log

PRIOR = 'prior/implausible'
MARKED = 'shortcut/marked'
MEASURE = 'measure/'
PREFIXES = ('label/', 'weight/', 'logit/', 'probability/', 'prior/', 'shortcut/', MEASURE)
NO_GROUP = ('case', 'patient', 'study', 'volume_ml')
DECIDES = ('dice', 'auroc')  # the evaluator that measured one of these is the one that a stage is judged by


@dataclasses.dataclass
class Predictions:
    """A row per case, as in predictions/<stage>_test.csv. Segmented scans have measures, and labels if they are classified too."""

    cases: np.ndarray
    patients: np.ndarray
    groups: dict  # column -> [n] str
    labels: tuple
    label: np.ndarray  # [n,C], as are weight and logit
    weight: np.ndarray
    logit: np.ndarray
    implausible: np.ndarray | None = None  # [n] 1, 0, nan where it is not known; see eval/multiclass.py
    classes: bool = False  # exclusive: each label is a class against the rest
    marked: np.ndarray | None = None  # [n] 0 and 1: who has the shortcut, where that is known
    measures: dict = dataclasses.field(default_factory=dict)  # 'dice/RV' -> [n], nan where it does not count

    def take(self, rows):
        def of(value):
            if isinstance(value, dict):
                return {k: of(v) for k, v in value.items()}
            return value[rows] if isinstance(value, np.ndarray) else value
        return dataclasses.replace(self, **{f.name: of(getattr(self, f.name)) for f in dataclasses.fields(self)})


@dataclasses.dataclass(eq=False)
class Run:
    """What a working folder holds."""

    folder: pathlib.Path
    config: dict
    summary: dict
    lines: list  # of metrics.jsonl

    @property
    def stages(self):
        """{name: entry} of the finished stages, in the order of training."""
        found = self.summary.get('stages', {})
        return {s: found[s] for s in self.names if found.get(s, {}).get('finished')}

    @property
    def names(self):
        """All stages: finished, begun, or only planned."""
        known = [*self.config.get('stages', ()), *self.summary.get('order', ()), *self.summary.get('stages', {}),
                 *(line['stage'] for line in self.lines)]
        return list(dict.fromkeys(known))

    def options(self, stage):
        """The stage's part of the config."""
        return self.config.get(stage) or {}

    @property
    def level(self):
        """Of the intervals."""
        levels = [hp['level'] for s in self.names for hp in self.options(s).get('evals', {}).values() if 'level' in hp]
        return levels[0] if levels else 0.95

    @property
    def percent(self):
        return f'{100 * self.level:g} %'

    @property
    def bootstrap(self):
        """(resamples, level, seed) as everywhere in the run."""
        return dict(n=self.config.get('bootstrap', 1000), level=self.level, seed=self.summary.get('seed', 0))

    def table(self, stage, *has, which='best'):
        """Test metrics {metric: entry} of the evaluator that measured one of `has` on the run's own data; {} if none did."""
        tests = self.stages.get(stage, {}).get('test', {}).get(which, {})
        for evaluator in dict.fromkeys(key.partition('/')[0] for key in tests):
            found = self.table_of(stage, evaluator, which)
            if evaluator not in self.on_other_data(stage) and any(m in found for m in has or DECIDES):
                return found
        return {}

    def table_of(self, stage, evaluator, which='best'):
        """Test metrics {metric: entry} of one evaluator."""
        tests = self.stages.get(stage, {}).get('test', {}).get(which, {})
        return {k[len(evaluator) + 1:]: v for k, v in tests.items() if k.startswith(f'{evaluator}/')}

    @functools.cached_property
    def predictions(self):
        """{stage: Predictions} of the test part."""
        found = {s: _predictions(self._path(s, 'test.csv')) for s in self.stages}
        return {s: dataclasses.replace(p, classes=self.classes(s)) for s, p in found.items() if p}

    def on_other_data(self, stage):
        """The evaluators of a stage that were given data of their own."""
        return [e for e, hp in self.options(stage).get('evals', {}).items() if hp.get('data')]

    @functools.cached_property
    def elsewhere(self):
        """{evaluator on other data: {stage: Predictions}}."""
        found = {}
        for s in self.stages:
            for e in self.on_other_data(s):
                p = _predictions(self._path(s, f'{e}.csv'))
                if p:
                    found.setdefault(e, {})[s] = dataclasses.replace(p, classes=self.classes(s))
        return found

    def others(self):
        """The evaluators on other data whose data is more than the same images with another shortcut."""
        given = self.config.get('data', {}).get('external', {})
        names = {e: hp.get('data') for s in self.stages for e, hp in self.options(s).get('evals', {}).items()}
        return [e for e in self.elsewhere if 'shortcut' not in given.get(names.get(e), {})]

    def classes(self, stage):
        """Does a case of this stage have exactly one of the labels? Only then is there an accuracy."""
        return 'accuracy' in self.table(stage)

    @functools.cached_property
    def rois(self):
        """{stage: {map: rows}}; a row has 'case', 'patient', 'finding' and 'measured' {metric: value}."""
        found = {s: _rois(self._path(s, 'test_rois.csv')) for s in self.stages}
        return {s: r for s, r in found.items() if r}

    @functools.cached_property
    def examples(self):
        """{stage: {array name: array}}."""
        return self._pictures('examples', ('image', 'box', 'case', 'finding'))

    @functools.cached_property
    def slices(self):
        """{stage: {array name: array}}, see eval/slices.py."""
        return self._pictures('slices', ('image', 'case', 'group', 'label', 'probability', 'present', 'cam', 'has_cam'))

    @functools.cached_property
    def depths(self):
        """{stage: {array name: array}}, see eval/depth.py."""
        return self._pictures('depth_depth', ('taps', 'marked', 'clean', 'terms'))

    def segments(self, evaluator=''):
        """{stage: {array name: array}} of scans: the own, or those of an evaluator on other data."""
        alike = ('image', 'truth', 'predicted', 'energy', 'cam')
        what = f'{evaluator}_segments' if evaluator else 'segments'
        return self._pictures(what, ('image', 'truth', 'predicted', 'case', 'rank', 'dice'), alike)

    def _pictures(self, what, rows, alike=()):
        found = {s: _arrays(self._path(s, f'{what}.npz'), rows, alike) for s in self.stages}
        return {s: a for s, a in found.items() if a and len(a[rows[-1]])}

    def _path(self, stage, what):
        return self.folder / 'predictions' / f'{stage}_{what}'


def read(workdir):
    """Raises MissingInput when there is no such folder or no run in it."""
    folder = pathlib.Path(workdir)
    parts = []
    for part, what in (('config.json', 'The config of the run'), ('summary.json', 'The summary')):
        parts.append(files.read_json(folder / part, what) if (folder / part).exists() else {})
    run = Run(folder, *parts, [line for line in log.read(folder) if 'stage' in line and 'step' in line])
    if not run.names:
        raise errors.MissingInput(f'{folder} holds no run: neither config.json nor summary.json names a stage. '
                                  'Give the --workdir of a run.')
    return run


def _table(path):
    """(column names, rows) of a CSV file; no file, no rows."""
    if not path.exists():
        return [], []
    try:
        with open(path, newline='', encoding='utf-8') as f:
            reader = csv.DictReader(f, strict=True)
            rows = list(reader)
    except (OSError, ValueError, csv.Error) as e:
        raise _damaged(path, e) from e
    if any(None in row or None in row.values() for row in rows):
        raise _damaged(path, 'a row with too many or too few cells')
    return list(reader.fieldnames or ()), rows


def _predictions(path):
    columns, rows = _table(path)
    labels = tuple(c.removeprefix('logit/') for c in columns if c.startswith('logit/'))
    measures = [c for c in columns if c.startswith(MEASURE)]
    if not rows or not (labels or measures):
        return None
    try:
        label, weight, logit = (np.array([[float(row[f'{what}/{name}']) for name in labels] for row in rows])
                                for what in ('label', 'weight', 'logit'))
        groups = [c for c in columns if c not in NO_GROUP and not c.startswith(PREFIXES)]
        measured = {c.removeprefix(MEASURE): np.array([float(row[c] or 'nan') for row in rows]) for c in measures}
        # the mean of a signed error is a bias; which of two arms errs less is a question to its size
        measured |= {f'abs_{m}': np.abs(v) for m, v in measured.items() if m.startswith('volume_error')}
        return Predictions(*(np.array([row[c] for row in rows]) for c in ('case', 'patient')),
                           {g: np.array([row[g] for row in rows]) for g in groups}, labels, label, weight, logit,
                           np.array([float(row[PRIOR]) for row in rows]) if PRIOR in columns else None,
                           marked=np.array([float(row[MARKED]) for row in rows]) if MARKED in columns else None, measures=measured)
    except (KeyError, ValueError) as e:
        raise _damaged(path, e) from e


def _rois(path):
    columns, rows = _table(path)
    metrics = [c for c in columns if c not in ('map', 'case', 'patient', 'finding')]
    by_map = {}
    try:
        for row in rows:
            measured = {m: float(row[m] or 'nan') for m in metrics}
            about = {k: row[k] for k in ('case', 'patient', 'finding')}
            by_map.setdefault(row['map'], []).append(about | {'measured': measured})
    except (KeyError, ValueError) as e:
        raise _damaged(path, e) from e
    return by_map


def _arrays(path, rows, alike=()):
    """{name: array}; those named in `rows` hold one row for each case, those in `alike` that are there have one shape."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {k: stored[k] for k in stored.files}
        counts = {len(found[k]) for k in rows}
        if len(counts) > 1:
            raise ValueError('its arrays differ in length')
        if len({found[k].shape for k in alike if k in found}) > 1:
            raise ValueError('its pictures differ in shape')
        return found
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as e:
        raise _damaged(path, e) from e


def _damaged(path, why):
    return errors.Damaged(f'{path} cannot be read ({why}). Restore it, or delete it to have a report without it.')
