"""The curves of the report: SVG from matplotlib whose text takes the colour of the page."""
import io
import itertools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.special import expit

from jaxkd.evaluators.predictions.schema import Predictions
from jaxkd.metrics import calibration, classification
from jaxkd.report.markup import Html, join, tag
from jaxkd.report.run_folder import Run

COLOURS = ('#3b82c4', '#d9822b', '#3a9d6e', '#b5579b', '#c44e52', '#8a7f2f', '#5f6bd1', '#7f7f7f')  # on white, on black
INK = '#010203'  # stands for the colour of the page's text
STYLE: dict[Any, Any] = {
    'svg.fonttype': 'none', 'text.parse_math': False, 'font.size': 9, 'axes.titlesize': 9, 'text.color': INK,
    'axes.edgecolor': INK, 'axes.labelcolor': INK, 'xtick.color': INK, 'ytick.color': INK, 'axes.spines.top': False,
    'axes.spines.right': False, 'legend.frameon': False, 'lines.linewidth': 1.4, 'axes.linewidth': 0.6,
    'axes.facecolor': 'none', 'figure.facecolor': 'none'}
POINTS, BINS = 120, 10  # of a ROC curve or a strip, of a reliability diagram
CLASSES = 6  # panels of the figure of scans
NOT_LOSS = ('stage', 'step', 'lr', 'grad_norm', 'examples_per_s', 'data_wait')


def learning(run: Run) -> Html:
    """Loss terms, throughput and the validation score that selects the best step, of every stage."""
    names = [s for s in run.names if any(line['stage'] == s for line in run.lines)]
    if not names:
        return Html('')

    def draw(figure: Any) -> None:
        axes = figure.subplots(3, len(names), squeeze=False)
        for column, s in enumerate(names):
            lines = [line for line in run.lines if line['stage'] == s]
            top, middle, bottom = axes[:, column]
            trained = [line for line in lines if 'examples_per_s' in line]
            terms = dict.fromkeys(k for line in trained for k in line if k not in NOT_LOSS)
            for term, colour in zip(terms, itertools.cycle(COLOURS)):
                style = dict(color=INK, linestyle=':') if term == 'loss' else dict(color=colour)
                _line(top, trained, term, label=term, **style)
            top.set_title(s)
            if terms:
                top.legend(fontsize=8)
            score = _score(run, s, lines)
            if score:
                validated, colour = [line for line in lines if score in line], COLOURS[column % len(COLOURS)]
                _line(middle, validated, score, color=colour, marker='.')
                best = run.stages.get(s, {}).get('best', {}).get('step')
                if best is not None:
                    middle.axvline(best, linestyle=':', color=INK, linewidth=0.8)
                middle.set_title(score)
            _line(bottom, trained, 'examples_per_s', color=INK)
            bottom.set_ylim(bottom=0)
            wait, last = bottom.twinx(), column == len(names) - 1
            _line(wait, trained, 'data_wait', color=COLOURS[4])
            wait.set_ylim(0, 1)
            wait.tick_params(right=last, labelright=last)
            wait.spines['right'].set_visible(last)
            bottom.set_xlabel('step')
            for panel in (top, middle, bottom):
                panel.xaxis.get_major_locator().set_params(integer=True)
        for row, label in enumerate(('training loss terms', 'validation score', 'examples per second')):
            axes[row, 0].set_ylabel(label)
        axes[2, -1].annotate('share of time waiting for data', (1.16, 0.5), xycoords='axes fraction', rotation=90,
                             va='center', color=COLOURS[4], fontsize=8)
    return svg('learning', (max(5, 3.2 * len(names)) + 0.6, 6.2), draw, (3, len(names)),
               margins=(0.7, 0.85, 0.5, 0.3), gap=0.6)


def roc(run: Run) -> Html:
    """ROC of every label, all stages in one panel."""
    def panel(axes: Any, p: Predictions, curve: Mapping[str, Any], name: str, colour: str, stage: str) -> None:
        if len(curve['fpr']):
            points = np.unique(np.linspace(0, len(curve['fpr']) - 1, POINTS).round().astype(int))
            axes.plot(curve['fpr'][points], curve['tpr'][points], color=colour, label=stage)
    return _panels(run, 'roc', panel, '1 \u2212 specificity', 'sensitivity')


def reliability(run: Run) -> Html:
    """Reliability diagram of every label; the area of a point grows with its number of cases."""
    def panel(axes: Any, p: Predictions, curve: Mapping[str, Any], name: str, colour: str, stage: str) -> None:
        if len(curve['predicted']):
            c = p.labels.index(name)
            counts = np.bincount(calibration.bins_of(expit(p.logit[p.weight[:, c] > 0, c]), BINS))
            axes.plot(curve['predicted'], curve['observed'], color=colour, label=stage, linewidth=0.9)
            size = 60 * counts[counts > 0] / counts.max()
            axes.scatter(curve['predicted'], curve['observed'], size, color=colour, alpha=0.7)
    return _panels(run, 'reliability', panel, 'predicted probability', 'observed frequency')


def _panels(run, kind, panel, xlabel, ylabel):
    labels = list(dict.fromkeys(name for p in run.predictions.values() for name in p.labels))
    if not labels:
        return Html('')
    colours = {s: COLOURS[i % len(COLOURS)] for i, s in enumerate(run.names)}
    columns = min(4, len(labels))
    curves = {s: classification.curves(p.logit, p.label, p.weight, p.labels, BINS) for s, p in run.predictions.items()}

    def draw(figure: Any) -> None:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(labels):]:
            axes.set_axis_off()
        for name, axes in zip(labels, grid.flat):
            axes.plot([0, 1], [0, 1], color=INK, linewidth=0.6, linestyle=':')
            for s, p in run.predictions.items():
                if name in p.labels:
                    panel(axes, p, curves[s][name], name, colours[s], s)
            axes.set(title=name, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect='equal')
        figure.supxlabel(xlabel, fontsize=9, y=0.02 / rows)
        figure.supylabel(ylabel, fontsize=9, x=0.02 / columns)
    rows = math.ceil(len(labels) / columns)
    size = 2.5 * columns + 0.4, 2.5 * rows + 0.4
    figure = svg(kind, size, draw, (rows, columns), margins=(0.65, 0.1, 0.55, 0.3), gap=0.35)
    return join([legend({s: colours[s] for s, p in run.predictions.items() if p.labels}), figure])


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

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
        for axes, m in zip(panels, columns):
            for y, (row, (s, p)) in enumerate(rows.items()):
                _strip(axes, p.measures.get(m, np.empty(0)), y, colours[s], hollow=row != s)
            axes.set(title=m.partition('/')[2], ylim=(len(rows) - 0.5, -0.5))
            axes.set_yticks(range(len(rows)), list(rows))
            axes.xaxis.get_major_locator().set_params(nbins=5)
        figure.supxlabel('Dice', fontsize=9)
    note = (f'A dot is one scan (of more than {POINTS}, {POINTS} from the smallest to the largest Dice), hollow on '
            'other data; the line is the median, the box holds the middle half.')
    return join([svg('scans', (max(5, 2.4 * len(columns)) + 1.2, 0.5 * len(rows) + 0.9), draw),
                 tag('p', note, class_='dim')])


def _strip(axes, values, y, colour, hollow):
    """A dot for each scan, evenly chosen ones of many, over the box from quartile to quartile; a line at the median."""
    values = np.sort(values[~np.isnan(values)])
    if not len(values):
        return
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    axes.fill_betweenx([y - 0.32, y + 0.32], low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot([middle] * 2, [y - 0.32, y + 0.32], color=INK, linewidth=1)
    points = values[np.unique(np.linspace(0, len(values) - 1, POINTS).round().astype(int))]
    jitter = 0.5 * ((np.arange(len(points)) * 0.618) % 1 - 0.5)  # deterministic, so that two reports are equal
    style = dict(facecolors='none', edgecolors=colour, linewidths=0.7) if hollow else dict(color=colour, linewidths=0)
    axes.scatter(points, y + jitter, 9, alpha=0.75, **style)


def _score(run, stage, lines):
    """The metric that selects the best step, or else the first in the log of validation."""
    logged = [k for line in lines for k in line if '/' in k]
    select = run.stages.get(stage, run.options(stage)).get('select')
    return select if select in logged else next(iter(logged), '')


def _line(axes, lines, key, **style):
    values = [np.nan if line.get(key) is None else line[key] for line in lines]
    axes.plot([line['step'] for line in lines], values, **style)


def svg(kind: str, inches: tuple[float, float], draw: Callable[[Any], None],
        panels: tuple[int, int] = (1, 1), margins: tuple[float, float, float, float] | None = None,
        gap: float = 0.0) -> Html:
    """Inline SVG without unused ids; ids differ between kinds of figures.

    panels: rows and columns. margins: (left, right, bottom, top) around them, gap: between them, inches. Without
    margins matplotlib finds a layout, which takes longer than to draw.
    """
    import matplotlib
    from matplotlib.figure import Figure
    with matplotlib.rc_context({**STYLE, 'svg.hashsalt': kind}):
        figure = Figure(figsize=inches, layout=None if margins else 'constrained')
        draw(figure)
        if margins:
            (width, height), (left, right, bottom, top) = inches, margins
            rows, columns = panels
            panel = ((width - left - right - gap * (columns - 1)) / columns,
                     (height - bottom - top - gap * (rows - 1)) / rows)
            figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height,
                                   gap / panel[0], gap / panel[1])
        out = io.StringIO()
        figure.savefig(out, format='svg', transparent=True, metadata={'Date': None})
    svg = out.getvalue()
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg[svg.index('<svg'):], flags=re.S)
    references = set(re.findall(r'#(\w+)', svg))
    svg = re.sub(r' id="(\w+)"', lambda m: m[0] if m[1] in references else '', svg)
    svg = re.sub(r" font-family: [^;\"]*;", '', svg)  # the page's
    return tag('figure', Html(svg.replace(INK, 'currentColor')))
