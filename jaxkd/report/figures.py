"""The curves of the report, drawn by jaxkd/report/plot.py."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from jaxkd.evaluators.predictions.schema import Predictions
from jaxkd.metrics import calibration
from jaxkd.report import comparison, plot, statistics
from jaxkd.report.markup import Html, join, panels, sources, tag
from jaxkd.report.plot import Panel
from jaxkd.report.run_folder import BINS, Run

COLOURS = ('#3b82c4', '#d9822b', '#3a9d6e', '#b5579b', '#c44e52', '#8a7f2f', '#5f6bd1', '#7f7f7f')  # on white, on black
SIDES = {1: '#2c8a5d', -1: '#c0474d', 0: '#77818c', None: '#77818c'}  # of an interval: above 0, below, around it, none
ROWS, WIDE = 8, 400  # differences of the first figure; its px with the names
POINTS = 120  # of a ROC curve or a strip
CLASSES = 6  # panels of the figure of scans
NOT_LOSS = ('stage', 'step', 'lr', 'grad_norm', 'examples_per_s', 'data_wait')


def learning(run: Run) -> Html:
    """Loss terms, throughput and the validation score that selects the best step, of every stage."""
    stages = {s: lines for s in run.names if (lines := [line for line in run.lines if line['stage'] == s])}
    if not stages:
        return Html('')
    names = dict.fromkeys(k for lines in stages.values() for line in lines if 'examples_per_s' in line for k in line
                          if k not in NOT_LOSS and not k.startswith('weight_of_'))
    styles = {k: (COLOURS[i % len(COLOURS)], plot.DASHED if i // len(COLOURS) % 2 else '')
              for i, k in enumerate(k for k in names if k != 'loss')} | {'loss': (plot.INK, plot.DOTTED)}
    columns = [_learning(run, s, lines, styles) for s, lines in stages.items()]
    words = {plot.DOTTED: ' (dotted)', plot.DASHED: ' (dashed)', '': ''}
    drawn = [[p for p in column if p.shapes] for column in columns]
    return join([legend({f'{k}{words[dash]}': colour for k, (colour, dash) in styles.items() if k in names}),
                 panels(*(plot.figure(column, (215, 130), 'step') for column in drawn if column)),
                 sources(['metrics.jsonl'] if run.lines and run.linked else ())])


def _learning(run, stage, lines, styles):
    """The panels of a stage from top to bottom. styles: {loss term: (colour, dash)}."""
    trained, steps = [line for line in lines if 'examples_per_s' in line], plot.limits([line['step'] for line in lines])
    labels = ('training loss terms', 'validation score', 'examples per second')
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


def precision_recall(run: Run) -> Html:
    """Precision over recall of every label; a dotted line at the share of positive cases, which chance gets."""
    def draw(panel: Panel, p: Predictions, curve: Mapping[str, Any], name: str, colour: str) -> None:
        points = _evenly(len(curve['recall']))
        panel.line(curve['recall'][points], curve['precision'][points], colour)
        if len(curve['recall']):
            panel.line([0, 1], [curve['precision'][-1]] * 2, width=0.8, dash=plot.DOTTED)
    return _panels(run, draw, 'sensitivity (recall)', 'precision', diagonal=False)


def forest(run: Run, comparisons: Sequence[comparison.Comparison]) -> Html:
    """The primary metric of every stage, and paired differences between arms, each with its interval."""
    metric = next((statistics.primary_metric(t) for s in run.stages if (t := run.table(s))), '')
    values = {s: t[metric] for s in run.stages if metric in (t := run.table(s))}
    rows: dict[str, Mapping[str, Any]] = {}
    for c in [c for c in comparisons if c.arms and metric in c.metrics][:ROWS]:
        rows[f'{c.a} \u2212 {c.b}'] = c.metrics[metric]
        rows |= {f'{c.a} \u2212 {c.b}, {e}': table[metric] for e, table in c.external.items() if metric in table}
    name = statistics.display_name(metric) if metric else ''
    colours = {s: COLOURS[run.names.index(s) % len(COLOURS)] for s in values}
    drawn = [intervals(name, values, colours), intervals(f'difference in {name}', rows, {
        r: SIDES[comparison.side(e)] for r, e in rows.items()}, at=0.0)]
    note = f'Test part at the best step; lines are {run.percent} intervals over patients'
    note += ', of differences paired by patient: green above 0, red below, grey with 0 in them.' if rows else '.'
    return join([*drawn, tag('p', note, class_='dim small'), sources(run.tables())]) if values else Html('')


def intervals(title: str, entries: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str],
              at: float | None = None) -> Html:
    """A line from low to high with a dot at the value for each entry; `at`: where a dotted line stands."""
    if not entries:
        return Html('')
    panel = Panel(title, y=(len(entries) - 0.5, -0.5), y_names=list(entries))
    if at is not None:
        panel.line([at, at], [-np.inf, np.inf], width=1, dash=plot.DOTTED)
    for row, (name, e) in enumerate(entries.items()):
        ends = [np.nan if e.get(k) is None else e[k] for k in ('low', 'high')]
        panel.line(ends, [row, row], colours[name], 3)
        panel.dots([e['value']], [row], colours[name], 5.5)
    names = min(plot.NAME, max(map(plot.text_width, entries)))
    return plot.figure([panel], (WIDE - names, 30 * len(entries)))


def reliability(run: Run) -> Html:
    """Reliability diagram of every label; the area of a point grows with its number of cases."""
    def draw(panel: Panel, p: Predictions, curve: Mapping[str, Any], name: str, colour: str) -> None:
        if len(curve['predicted']):
            c = p.labels.index(name)
            counts = np.bincount(calibration.bins_of(expit(p.logit[p.weight[:, c] > 0, c]), BINS))
            panel.line(curve['predicted'], curve['observed'], colour, 1.2)
            panel.dots(curve['predicted'], curve['observed'], colour, 6 * np.sqrt(counts[counts > 0] / counts.max()))
    return _panels(run, draw, 'predicted probability', 'observed frequency')


def _panels(run, draw, x_label, y_label, diagonal=True):
    """A panel for each label, with its name."""
    names = list(dict.fromkeys(name for p in run.predictions.values() for name in p.labels))
    if not names:
        return Html('')
    colours = {s: COLOURS[i % len(COLOURS)] for i, s in enumerate(run.names)}
    drawn = []
    for name in names:
        panel = Panel(name, y_label, x=(-0.02, 1.02), y=(-0.02, 1.02))
        if diagonal:
            panel.line([0, 1], [0, 1], width=0.8, dash=plot.DOTTED)
        for s, p in run.predictions.items():
            if name in p.labels:
                draw(panel, p, run.curves[s][name], name, colours[s])
        drawn.append(plot.figure([panel], (200, 200), x_label))
    return join([legend({s: colours[s] for s, p in run.predictions.items() if p.labels}), panels(*drawn),
                 sources(run.tables())])


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

    drawn = []
    for m in columns:
        panel = Panel(m.partition('/')[2], y=(len(rows) - 0.5, -0.5), y_names=list(rows))
        for y, (row, (s, p)) in enumerate(rows.items()):
            _strip(panel, p.measures.get(m, np.empty(0)), y, colours[s], hollow=row != s)
        drawn.append(plot.figure([panel], (215, 44 * len(rows)), 'Dice'))
    note = (f'A dot is one scan (of more than {POINTS}, {POINTS} from the smallest to the largest Dice), hollow on '
            'other data; the line is the median, the box holds the middle half.')
    return join([panels(*drawn), tag('p', note, class_='dim'), sources(run.tables())])


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
