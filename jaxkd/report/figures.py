"""The curves of the report, drawn by jaxkd/report/plot.py."""
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import expit

from jaxkd.evaluators.predictions.schema import Predictions
from jaxkd.metrics import calibration, classification
from jaxkd.report import plot
from jaxkd.report.markup import Html, join, tag
from jaxkd.report.plot import Panel
from jaxkd.report.run_folder import Run

COLOURS = ('#3b82c4', '#d9822b', '#3a9d6e', '#b5579b', '#c44e52', '#8a7f2f', '#5f6bd1', '#7f7f7f')  # on white, on black
COLUMNS = 4  # panels in a row
POINTS, BINS = 120, 10  # of a ROC curve or a strip, of a reliability diagram
CLASSES = 6  # panels of the figure of scans
NOT_LOSS = ('stage', 'step', 'lr', 'grad_norm', 'examples_per_s', 'data_wait')


def learning(run: Run) -> Html:
    """Loss terms, throughput and the validation score that selects the best step, of every stage."""
    stages = {s: lines for s in run.names if (lines := [line for line in run.lines if line['stage'] == s])}
    if not stages:
        return Html('')
    names = dict.fromkeys(k for lines in stages.values() for line in lines if 'examples_per_s' in line for k in line
                          if k not in NOT_LOSS)
    styles = {k: (COLOURS[i % len(COLOURS)], plot.DASHED if i // len(COLOURS) % 2 else '')
              for i, k in enumerate(k for k in names if k != 'loss')} | {'loss': (plot.INK, plot.DOTTED)}
    columns = [_learning(run, s, lines, styles, i % COLUMNS == 0) for i, (s, lines) in enumerate(stages.items())]
    words = {plot.DOTTED: ' (dotted)', plot.DASHED: ' (dashed)', '': ''}
    parts = [legend({f'{k}{words[dash]}': colour for k, (colour, dash) in styles.items() if k in names})]
    for i in range(0, len(columns), COLUMNS):
        rows = [row for row in zip(*columns[i:i + COLUMNS]) if any(p.shapes for p in row)]
        parts.append(plot.figure([p for row in rows for p in row], (215, 130), 'step', len(rows[0])))
    return join(parts)


def _learning(run, stage, lines, styles, first):
    """The panels of a stage from top to bottom. styles: {loss term: (colour, dash)}."""
    trained, steps = [line for line in lines if 'examples_per_s' in line], plot.limits([line['step'] for line in lines])
    labels = ('training loss terms', 'validation score', 'examples per second') if first else ('', '', '')
    terms, scores, speed = (Panel(y_label=label, x=steps, integer=True) for label in labels)
    terms.title = stage
    for name, (colour, dash) in styles.items():
        if any(name in line for line in trained):
            terms.line(*_points(trained, name), colour=colour, dash=dash)
    if score := _score(run, stage, lines):
        x, y = _points([line for line in lines if score in line], score)
        colour, scores.title = COLOURS[run.names.index(stage) % len(COLOURS)], score
        scores.line(x, y, colour)
        scores.dots(x, y, colour, 2.5)
        best = run.stages.get(stage, {}).get('best', {}).get('step')
        if best is not None:
            scores.line([best, best], [-np.inf, np.inf], width=1, dash=plot.DOTTED)
    x, y = _points(trained, 'examples_per_s')
    speed.line(x, y)
    speed.y, speed.right = (0, plot.limits(y)[1]), Panel('', 'share of time waiting for data', y=(0, 1),
                                                         colour=COLOURS[4])
    speed.right.line(*_points(trained, 'data_wait'), colour=COLOURS[4])
    return terms, scores, speed


def roc(run: Run) -> Html:
    """ROC of every label, all stages in one panel."""
    def draw(panel: Panel, p: Predictions, curve: Mapping[str, Any], name: str, colour: str) -> None:
        points = _evenly(len(curve['fpr']))
        panel.line(curve['fpr'][points], curve['tpr'][points], colour)
    return _panels(run, draw, '1 \u2212 specificity', 'sensitivity')


def reliability(run: Run) -> Html:
    """Reliability diagram of every label; the area of a point grows with its number of cases."""
    def draw(panel: Panel, p: Predictions, curve: Mapping[str, Any], name: str, colour: str) -> None:
        if len(curve['predicted']):
            c = p.labels.index(name)
            counts = np.bincount(calibration.bins_of(expit(p.logit[p.weight[:, c] > 0, c]), BINS))
            panel.line(curve['predicted'], curve['observed'], colour, 1.2)
            panel.dots(curve['predicted'], curve['observed'], colour, 6 * np.sqrt(counts[counts > 0] / counts.max()))
    return _panels(run, draw, 'predicted probability', 'observed frequency')


def _panels(run, draw, x_label, y_label):
    """A panel for each label, with its name."""
    names = list(dict.fromkeys(name for p in run.predictions.values() for name in p.labels))
    if not names:
        return Html('')
    colours = {s: COLOURS[i % len(COLOURS)] for i, s in enumerate(run.names)}
    curves = {s: classification.curves(p.logit, p.label, p.weight, p.labels, BINS) for s, p in run.predictions.items()}
    panels = []
    for i, name in enumerate(names):
        panels.append(Panel(name, '' if i % COLUMNS else y_label, x=(-0.02, 1.02), y=(-0.02, 1.02)))
        panels[-1].line([0, 1], [0, 1], width=0.8, dash=plot.DOTTED)
        for s, p in run.predictions.items():
            if name in p.labels:
                draw(panels[-1], p, curves[s][name], name, colours[s])
    return join([legend({s: colours[s] for s, p in run.predictions.items() if p.labels}),
                 plot.figure(panels, (200, 200), x_label, COLUMNS)])


def legend(colours: Mapping[str, str]) -> Html:
    """A coloured dot before each name."""
    return tag('p', *(join([tag('span', '\u25cf ', style=f'color:{c}'), tag('span', s, class_='key')])
                      for s, c in colours.items()), class_='legend')


def scans(run: Run) -> Html:
    """Dice of every scan: a panel for each class, a row for each stage and for each external data set of it."""
    rows: dict[str, tuple[str, Predictions]] = {}  # {label: (stage, predictions)}
    for s, p in run.predictions.items():
        rows |= {s: (s, p)} | {f'{s}, {e}': (s, stages[s]) for e, stages in run.external.items() if s in stages}
    columns = list(dict.fromkeys(m for _, p in rows.values() for m in p.measures
                                 if m.partition('/')[0] == 'dice'))[:CLASSES]
    if not columns:
        return Html('')
    colours = {s: COLOURS[i % len(COLOURS)] for i, s in enumerate(run.names)}

    panels = []
    for m in columns:
        panels.append(Panel(m.partition('/')[2], y=(len(rows) - 0.5, -0.5), y_names=list(rows)))
        for y, (row, (s, p)) in enumerate(rows.items()):
            _strip(panels[-1], p.measures.get(m, np.empty(0)), y, colours[s], hollow=row != s)
    note = (f'A dot is one scan (of more than {POINTS}, {POINTS} from the smallest to the largest Dice), hollow on '
            'other data; the line is the median, the box holds the middle half.')
    return join([plot.figure(panels, (min(215, 900 // len(panels)), 44 * len(rows)), 'Dice', CLASSES),
                 tag('p', note, class_='dim')])


def _strip(panel, values, y, colour, hollow):
    """A dot for each scan, evenly chosen ones of many, over the box from quartile to quartile; a line at the median."""
    values = np.sort(values[~np.isnan(values)])
    if not len(values):
        return
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    panel.box((low, high), (y - 0.32, y + 0.32), colour, 0.15)
    panel.line([middle] * 2, [y - 0.32, y + 0.32], width=1.3)
    points = values[_evenly(len(values))]
    jitter = 0.5 * ((np.arange(len(points)) * 0.618) % 1 - 0.5)  # deterministic, so that two reports are equal
    panel.dots(points, y + jitter, colour, 2, hollow)


def _evenly(n):
    """Indices of at most POINTS of n values."""
    return np.unique(np.linspace(0, n - 1, POINTS).round().astype(int)) if n else np.arange(0)


def _score(run, stage, lines):
    """The metric that selects the best step, or else the first in the log of validation."""
    logged = [k for line in lines for k in line if '/' in k]
    select = run.stages.get(stage, run.options(stage)).get('select')
    return select if select in logged else next(iter(logged), '')


def _points(lines, key) -> tuple[list[int], list[float]]:
    return ([line['step'] for line in lines],
            [np.nan if line.get(key) is None else line[key] for line in lines])
