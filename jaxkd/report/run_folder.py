"""Read the working folder of a run. A missing part is empty; a damaged part is an error."""
import dataclasses
import functools
import math
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxkd import errors
from jaxkd.evaluators.predictions import schema
from jaxkd.metrics import classification
from jaxkd.runtime import deidentify, files, log

LOSS_FACTS = ('other_networks', 'uses_teacher', 'plain', 'provenance')  # of a stage, see jaxkd/evaluation.py
BINS = 10  # of a reliability diagram
DECIDING = ('classification', 'multiclass', 'segmentation')  # evaluators with a primary metric

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(eq=False)
class Run:
    """Content of a working folder."""

    folder: pathlib.Path
    config: dict[str, Any]
    summary: dict[str, Any]
    lines: list[dict[str, Any]]  # of metrics.jsonl
    pseudonyms: deidentify.Pseudonyms | None = None  # for ids of cases that a reader sees
    linked: bool = True  # whether the page lies in the folder, so that its links to files lead somewhere

    def shown(self, case: Any) -> str:
        """The id of a case as a reader sees it."""
        return self.pseudonyms(str(case)) if self.pseudonyms else str(case)

    def tables(self, content: str = 'test', evaluator: str = '') -> list[str]:
        """Paths of the files of predictions of all stages that exist, from the folder of the run, for links."""
        paths = [self._path(s, content, evaluator) for s in self.stages] if self.linked else []
        return [path.relative_to(self.folder).as_posix() for path in paths if path.exists()]

    @property
    def stages(self) -> dict[str, dict]:
        """{name: entry of the summary} of the finished stages, in the order of training."""
        entries = self.summary.get('stages', {})
        return {s: entries[s] for s in self.names if entries.get(s, {}).get('finished')}

    @property
    def names(self) -> list[str]:
        """All stages: finished, unfinished or planned."""
        names = [*self.config.get('stages', ()), *self.summary.get('order', ()), *self.summary.get('stages', {}),
                 *(line['stage'] for line in self.lines)]
        return list(dict.fromkeys(names))

    def options(self, stage: str) -> dict[str, Any]:
        """The options of a stage in the config."""
        return self.config.get(stage) or {}

    @property
    def level(self) -> float:
        """Level of the intervals, in 0 to 1."""
        levels = [hp['level'] for s in self.names for hp in self.options(s).get('evals', {}).values() if 'level' in hp]
        return levels[0] if levels else 0.95

    @property
    def percent(self) -> str:
        """The level as text, '95 %'."""
        return f'{100 * self.level:g} %'

    @property
    def bootstrap(self) -> dict[str, Any]:
        """n (resamples), level and seed of the run."""
        return dict(n=self.config.get('bootstrap', 1000), level=self.level, seed=self.summary.get('seed', 0))

    def evaluator(self, stage: str, *plugins: str, which: str = 'best') -> str:
        """The first evaluator with results on the run's data that is one of these plug-ins, '' without one.

        Names of metrics are not unique: an evaluator outside of jaxkd may measure another Dice.
        """
        tests, external = self.stages.get(stage, {}).get('test', {}).get(which, {}), self.external_evaluators(stage)
        measured = dict.fromkeys(key.partition('/')[0] for key in tests)
        return next((e for e in measured if e not in external and self.plugin(stage, e) in plugins), '')

    def plugin(self, stage: str, evaluator: str) -> str:
        """The name of the plug-in behind a key of `evals`."""
        name = self.options(stage).get('evals', {}).get(evaluator, {}).get('name', evaluator)
        return name.removeprefix('jaxkd.evaluators.')

    def table(self, stage: str, *plugins: str, which: str = 'best') -> dict[str, dict]:
        """Test metrics {metric: entry} of the evaluator on the run's data that is one of these plug-ins.

        {} without one. No `plugins`: of the evaluator with the primary metric.
        """
        evaluator = self.evaluator(stage, *(plugins or DECIDING), which=which)
        return self.table_of(stage, evaluator, which) if evaluator else {}

    def table_of(self, stage: str, evaluator: str, which: str = 'best') -> dict[str, dict]:
        """Test metrics {metric: entry} of one evaluator."""
        tests = self.stages.get(stage, {}).get('test', {}).get(which, {})
        return {k[len(evaluator) + 1:]: v for k, v in tests.items() if k.startswith(f'{evaluator}/')}

    def further_metrics(self, stage: str) -> dict[str, dict]:
        """{evaluator/metric: entry} of the test metrics that neither predictions nor maps hold."""
        shown = {*self.external, self.evaluator(stage, *DECIDING), self.evaluator(stage, 'localisation')}
        tests = self.stages[stage].get('test', {}).get('best', {})
        return {key: entry for key, entry in tests.items() if key.partition('/')[0] not in shown}

    @functools.cached_property
    def predictions(self) -> dict[str, schema.Predictions]:
        """{stage: Predictions} of the test part."""
        return self._predictions(list(self.stages))

    @functools.cached_property
    def curves(self) -> dict[str, dict[str, Arrays]]:
        """{stage: {label: points to draw}} of the test part, see `metrics.classification.curves`."""
        return {s: classification.curves(p.logit, p.label, p.weight, p.labels, BINS)
                for s, p in self.predictions.items()}

    def external_evaluators(self, stage: str) -> list[str]:
        """The evaluators of a stage that test on external data."""
        return [e for e, hp in self.options(stage).get('evals', {}).items() if hp.get('data')]

    @functools.cached_property
    def external(self) -> dict[str, dict[str, schema.Predictions]]:
        """{evaluator on external data: {stage: Predictions}}."""
        evaluators = dict.fromkeys(e for s in self.stages for e in self.external_evaluators(s))
        by_evaluator = {e: self._predictions([s for s in self.stages if e in self.external_evaluators(s)], e)
                        for e in evaluators}
        return {e: by_stage for e, by_stage in by_evaluator.items() if by_stage}

    def other_images(self) -> list[str]:
        """The evaluators on external data that is not the same images with another shortcut."""
        options = self.config.get('data', {}).get('external', {})
        names = {e: hp.get('data') for s in self.stages for e, hp in self.options(s).get('evals', {}).items()}
        return [e for e in self.external if 'shortcut' not in options.get(names.get(e), {})]

    def exclusive(self, stage: str) -> bool:
        """Whether a case has exactly one of the labels: only then is there an accuracy."""
        return 'accuracy' in self.table(stage)

    @functools.cached_property
    def regions(self) -> dict[str, dict[str, schema.RegionScores]]:
        """{stage: {map: scores of every region}}."""
        paths = {s: self._path(s, 'test_rois') for s in self.stages}
        regions = {s: schema.read_regions(path).by_map() for s, path in paths.items() if path.exists()}
        return {s: maps for s, maps in regions.items() if maps}

    @functools.cached_property
    def examples(self) -> dict[str, Arrays]:
        """{stage: {array name: array}}."""
        return self._pictures('examples', ('image', 'box', 'case', 'finding'))

    @functools.cached_property
    def slices(self) -> dict[str, Arrays]:
        """{stage: {array name: array}}, see evaluators/slices.py."""
        return self._pictures('slices', ('image', 'case', 'group', 'label', 'probability', 'present', 'cam', 'has_cam'))

    @functools.cached_property
    def depths(self) -> dict[str, Arrays]:
        """{stage: {array name: array}}, see evaluators/prediction_depth.py."""
        evaluators = dict.fromkeys(e for s in self.stages for e in self.external_evaluators(s))
        rows = ('taps', 'marked', 'clean', 'terms')
        return {s: arrays for e in evaluators for s, arrays in self._pictures('depth', rows, evaluator=e).items()}

    def segments(self, evaluator: str = '') -> dict[str, Arrays]:
        """{stage: {array name: array}} of scans of the run's data, or of an evaluator on external data."""
        alike = ('image', 'truth', 'predicted', 'energy', 'cam')
        return self._pictures('segments', ('image', 'truth', 'predicted', 'case', 'rank', 'dice'), alike, evaluator)

    def _predictions(self, stages: Sequence[str], evaluator: str = '') -> dict[str, schema.Predictions]:
        """{stage: Predictions, with absolute errors added} of the stages with a file that holds any."""
        paths = {s: self._path(s, 'test', evaluator) for s in stages}
        tables = {s: schema.read_csv(path, self.exclusive(s)) for s, path in paths.items() if path.exists()}
        return {s: with_absolute_errors(p) for s, p in tables.items() if len(p.cases) and (p.labels or p.measures)}

    def _pictures(self, content: str, rows: Sequence[str], alike: Sequence[str] = (),
                  evaluator: str = '') -> dict[str, Arrays]:
        arrays = {s: _arrays(self._path(s, content, evaluator, '.npz'), rows, alike) for s in self.stages}
        return {s: a for s, a in arrays.items() if a and len(a[rows[-1]])}

    def _path(self, stage: str, content: str, evaluator: str = '', suffix: str = '.csv') -> pathlib.Path:
        return schema.file_path(self.folder, stage, content, evaluator, suffix)


def with_absolute_errors(p: schema.Predictions) -> schema.Predictions:
    """With 'abs_volume_error...' beside 'volume_error...'.

    The mean of a signed error is a bias; two arms are compared by the absolute error.
    """
    sizes = {f'abs_{m}': np.abs(v) for m, v in p.measures.items() if m.startswith('volume_error')}
    return dataclasses.replace(p, measures=p.measures | sizes)


def read(workdir: str | pathlib.Path, pseudonyms: deidentify.Pseudonyms | None = None, linked: bool = True) -> Run:
    """Raises MissingInput when there is no such folder or no run in it."""
    folder = pathlib.Path(workdir)
    config = files.read_json(folder / 'config.json', 'The config of the run') if (
        folder / 'config.json').exists() else {}
    summary = files.read_summary(folder / 'summary.json') if (folder / 'summary.json').exists() else {}
    for entry in summary.get('stages', {}).values():
        entry |= {key: _numbers(entry[key]) for key in ('test', 'before') if key in entry}
    lines = [line for line in log.read(folder) if 'stage' in line and 'step' in line]
    run = Run(folder, config, summary, lines, pseudonyms, linked)
    if not run.names:
        raise errors.MissingInput(f'{folder} holds no run: neither config.json nor summary.json names a stage. '
                                  'Give the --workdir of a run.')
    for stage, entry in run.stages.items():
        if missing := [k for k in LOSS_FACTS if k not in entry]:
            raise errors.BadData(f'{folder}/summary.json was written by an earlier version of jaxkd: stage {stage} '
                                 f'does not say of its loss what a report must not guess ({", ".join(missing)}). Write '
                                 'the report with that version, or take the entry of the stage out of summary.json and '
                                 'start the run again: it is evaluated anew, not trained anew.')
    return run


def _numbers(tree: Any) -> Any:
    """Tables of numbers with nan where JSON holds null."""
    return {k: _numbers(v) for k, v in tree.items()} if isinstance(tree, dict) else math.nan if tree is None else tree


def _arrays(path: pathlib.Path, rows: Sequence[str], alike: Sequence[str] = ()) -> Arrays | None:
    """{name: array}; arrays in `rows` have a row for each case, those in `alike` have the same shape."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {k: stored[k] for k in stored.files}
        if len({len(arrays[k]) for k in rows}) > 1:
            raise ValueError('its arrays differ in length')
        if len({arrays[k].shape for k in alike if k in arrays}) > 1:
            raise ValueError('its pictures differ in shape')
        return arrays
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as e:
        raise errors.Damaged(f'{path} cannot be read ({e}). Restore it, or delete it to have a report without '
                             'it.') from e
