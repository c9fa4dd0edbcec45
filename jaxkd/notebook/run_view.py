"""The results of a run in a notebook: tables of numbers, and the pieces of its report."""
import functools
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxkd import errors
from jaxkd.data.volume import Volume
from jaxkd.evaluators.predictions.schema import Predictions
from jaxkd.notebook import slices
from jaxkd.notebook.page import Page, table
from jaxkd.report import comparison, figures, html_page, pictures, run_folder, tables, verdict
from jaxkd.report.markup import join, tag


class RunView:
    """A run folder. Everything is read from its files when it is first asked for; a finished stage is enough."""

    def __init__(self, workdir: str | pathlib.Path) -> None:
        self.run = run_folder.read(workdir, linked=False)
        self.folder, self.config = self.run.folder, self.run.config

    def __repr__(self) -> str:
        return f'run in {self.folder}: {", ".join(self.run.stages) or "no stage is finished"}'

    def _repr_html_(self) -> str:
        return self.show()._repr_html_()

    @property
    def stages(self) -> list[str]:
        """The finished stages, in the order of training."""
        return list(self.run.stages)

    @property
    def log(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl: losses and speed at log points, scores of validations, each with stage and step."""
        return self.run.lines

    @property
    def labels(self) -> list[str]:
        """Names of the labels or classes that any stage predicts for a case."""
        return list(dict.fromkeys(name for p in self.run.predictions.values() for name in p.labels))

    @functools.cached_property
    def metrics(self) -> Any:
        """Test metrics, a row for each: stage, step ('best' or 'last'), metric, value, low, high, n_patients."""
        rows = [(stage, which, metric, *(entry.get(key) for key in ('value', 'low', 'high', 'n_patients')))
                for stage, entry in self.run.stages.items() for which, tests in entry.get('test', {}).items()
                for metric, entry in tests.items()]
        columns = list(zip(*rows)) or [()] * 7
        names = ('stage', 'step', 'metric', 'value', 'low', 'high', 'n_patients')
        return table({name: np.array(column, str if i < 3 else float)
                      for i, (name, column) in enumerate(zip(names, columns))})

    def metric(self, stage: str, name: str, which: str = 'best') -> float:
        """A test metric by its name, such as 'classification/auroc'. ConfigError for one that there is not."""
        tests = self.run.stages.get(stage, {}).get('test', {}).get(which, {})
        if name not in tests:
            known = tests or self.run.stages
            raise errors.ConfigError(f'{self.folder}: there is no {name} of stage {stage}.'
                                     f'{errors.nearest(name if tests else stage, known)}')
        return float(tests[name]['value'])

    @functools.cached_property
    def predictions(self) -> Any:
        """Predictions for the test part, a row for each stage and case: stage, case, patient, groups; for each label
        label/<name>, weight/<name> (0 where it does not count) and probability/<name>; metrics of scans.
        """
        parts = [{'stage': np.full(len(p.cases), stage), **_columns(p)} for stage, p in self.run.predictions.items()]
        return table(_joined(parts))

    def show(self) -> Page:
        """Conclusions and the table of stages."""
        return self._page(join(verdict.paragraphs(self.run, comparison.comparisons(self.run))), tables.stages(self.run))

    def report(self) -> Page:
        """The whole report."""
        return Page(html_page.page(self.run))

    def curves(self) -> Page:
        """Loss terms and validation scores over the steps of each stage."""
        return self._page(figures.learning(self.run))

    def roc(self) -> Page:
        """ROC curves of every label."""
        return self._page(figures.roc(self.run))

    def calibration(self) -> Page:
        """Reliability diagrams of every label."""
        return self._page(figures.reliability(self.run))

    def maps(self, which: str = 'last_mean') -> Page:
        """Attention of each stage over test images. which: last_mean, rollout, grad_attn or grad_cam."""
        return self._page(pictures.attention(self.run, which))

    def slices(self) -> Page:
        """Middle slices of test cases with activation maps, or segmentations of the worst, middle and best scans."""
        return self._page(pictures.slices(self.run), *pictures.segments(self.run))

    @functools.cached_property
    def source(self) -> Any:
        """The source of the run's data (jaxkd/data/source.py), built from its config."""
        from ml_collections import ConfigDict

        from jaxkd import config
        from jaxkd.data import source
        return source.build(ConfigDict(config.tuples(self.config['data']['source'])))

    def record(self, case: str) -> dict[str, Any]:
        """What the source gives for a case: {key: array, Volume or text}. ConfigError for an unknown case."""
        index = {c.id: i for i, c in enumerate(self.source.cases)}
        if case not in index:
            raise errors.ConfigError(f'{self.folder}: no case is called {case}.{errors.nearest(case, index)}')
        return self.source[index[case]]

    def view(self, case: str) -> Page:
        """Image or volumes of a case side by side with a slider, under its true segmentation if there is one."""
        record = {key: value.mean(-1) if np.shape(value)[2:] == (3,) else value
                  for key, value in self.record(case).items()}
        label = record.pop('label', None)
        shown = {key: value for key, value in record.items()
                 if isinstance(value, Volume) or key == 'image' and isinstance(value, np.ndarray)}
        places = label.voxels if isinstance(label, Volume) else label
        same = [value for value in shown.values() if np.shape(value.voxels if isinstance(value, Volume) else value)
                == np.shape(places)]
        return slices.show(shown, label if same else None)

    def _page(self, *parts: Any) -> Page:
        shown = [part for part in parts if part]
        return Page.of(self.folder.name, shown or [tag('p', f'{self.folder} holds nothing to show here.')])


def _columns(p: Predictions) -> dict[str, np.ndarray]:
    columns = {'case': p.cases, 'patient': p.patients, **p.groups}
    for c, name in enumerate(p.labels):
        columns |= {f'label/{name}': p.label[:, c], f'weight/{name}': p.weight[:, c],
                    f'probability/{name}': p.probability[:, c]}
    return columns | p.measures


def _joined(parts: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Tables below each other; nan or '' where one lacks a column."""
    parts = list(parts)
    names = dict.fromkeys(name for part in parts for name in part)
    empty = {name: '' if next(p[name] for p in parts if name in p).dtype.kind == 'U' else np.nan for name in names}
    return {name: np.concatenate([part.get(name, np.full(len(part['case']), empty[name])) for part in parts])
            for name in names}
