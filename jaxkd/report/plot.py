"""Panels with axes as inline SVG: lines, dots and boxes in data coordinates. Font and colour of text are the page's."""
import dataclasses
import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxkd.report.markup import Html, tag

INK, DOTTED, DASHED = 'currentColor', '2 3', '7 3'
FONT, TICK, LINE, TITLE, GAP = 12, 4, 15, 20, 24  # px: of text, a tick mark, a line, above and between panels
THIN = {'fill': 'none', 'stroke': INK, 'stroke-width': 0.8}
VERTICES, NAME = 500, 240  # at most: points of a line, width in px of a name on an axis
Limits = tuple[float, float]


def limits(*values: Any) -> Limits:
    """Smallest and largest finite value with a margin; around a constant; (0, 1) of nothing."""
    finite = np.concatenate([np.ravel(np.asarray(v, float)) for v in (*values, [])])
    finite = finite[np.abs(finite) < 1e300]  # so that their difference is finite, too
    if not len(finite):
        return 0.0, 1.0
    low, high, size = float(finite.min()), float(finite.max()), float(np.abs(finite).max())
    margin = 0.05 * (high - low if high - low > 1e-6 * size else size)
    return (low - margin, high + margin) if margin > 1e-30 else (-0.05, 0.05)


def ticks(low: float, high: float, most: int = 6, integer: bool = False) -> list[float]:
    """At most `most` multiples of 1, 2 or 5 times a power of ten between low < high."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (m * (max(power, 1) if integer else power) for m in (1, 2, 5, 10, 20)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [k * step for k in range(first, last + 1)]


def numbers(values: Sequence[float]) -> list[str]:
    """Short text with equally many decimals, or with powers of ten where one is large or small."""
    texts = [f'{v:.8g}' for v in values]
    if any('e' in s or abs(v) >= 1e6 for s, v in zip(texts, values)):
        texts = [re.sub(r'\.?0*e\+?(-?)0*(?=\d)', r'e\1', f'{v:.8e}') if v else '0' for v in values]
    else:
        decimals = max((len(s.partition('.')[2]) for s in texts), default=0)
        texts = [f'{v:.{decimals}f}' for v in values]
    return [s.replace('-', '\u2212') for s in texts]


class Axis(NamedTuple):
    """Limits, ticks and their labels."""

    low: float
    high: float
    at: Sequence[float]
    labels: Sequence[str]

    def share(self, values: Any) -> np.ndarray:
        """Where values lie from low (0) to high (1); what is beyond lies at the edge."""
        inside = np.clip(values, min(self.low, self.high), max(self.low, self.high))
        return (inside - self.low) / (self.high - self.low)

    @property
    def room(self) -> float:
        """px of the labels beside the axis."""
        return TICK + 5 + min(NAME, max(map(text_width, self.labels), default=0))


@dataclasses.dataclass(eq=False)
class Panel:
    """One pair of axes. Of neighbours with the same given limits of x, only the lower one has labels at its ticks."""

    title: str = ''
    y_label: str = ''
    x: Limits | None = None  # None: of the data
    y: Limits | None = None
    y_names: Sequence[str] = ()  # at 0, 1, ... in place of numbers
    x_ticks: Sequence[tuple[float, str]] = ()  # where they stand and what they say, in place of round numbers
    y_ticks: Sequence[tuple[float, str]] = ()
    integer: bool = False  # ticks of x
    colour: str = INK  # of the y label
    right: 'Panel | None' = None  # lies over this one, with its y axis on the right
    shapes: list[tuple[np.ndarray, np.ndarray, Callable]] = dataclasses.field(default_factory=list)  # x, y, what draws

    def line(self, x: Any, y: Any, colour: str = INK, width: float = 1.8, dash: str = '') -> None:
        """A line, broken at nan; a point alone is a dot. -inf and inf lie at the edges of the panel."""
        x, y = (np.asarray(v, float)[_extremes(y)] for v in (x, y))
        style = {'fill': 'none', 'stroke': colour, 'stroke-width': width, 'stroke-dasharray': dash}
        self.shapes.append((x, y, lambda x, y: tag('path', d=_path(x, y), **style)))
        drawn = np.pad(~np.isnan(x) & ~np.isnan(y), 1)
        alone = drawn[1:-1] & ~drawn[:-2] & ~drawn[2:]
        self.dots(x[alone], y[alone], colour, 2.2)

    def dots(self, x: Any, y: Any, colour: str, radius: Any = 2, hollow: bool = False) -> None:
        """radius: px, of all or of each."""
        style = {'fill': 'none', 'stroke': colour} if hollow else {'fill': colour, 'fill-opacity': 0.75}

        def draw(x: np.ndarray, y: np.ndarray) -> Html:
            points = zip(x, y, np.broadcast_to(radius, x.shape))
            return tag('g', *(tag('circle', cx=_px(a), cy=_px(b), r=_px(r)) for a, b, r in points if a + b == a + b),
                       **style)
        if len(x):
            self.shapes.append((np.asarray(x, float), np.asarray(y, float), draw))

    def box(self, x: Limits, y: Limits, colour: str, opacity: float = 1) -> None:
        """A filled rectangle between two values of x and two of y; nothing with nan."""
        if not np.isnan([*x, *y]).any():
            self.shapes.append((np.array(x, float), np.array(y, float), lambda x, y: tag(
                'rect', x=_px(min(x)), y=_px(min(y)), width=_px(np.ptp(x)), height=_px(np.ptp(y)), fill=colour,
                **{'fill-opacity': opacity})))

    def band(self, x: Any, low: Any, high: Any, colour: str, opacity: float = 0.14) -> None:
        """The area between two lines over x; it ends at nan."""
        x, low, high = (np.asarray(v, float) for v in (x, low, high))
        drawn = ~np.isnan(x + low + high)
        for k, run in itertools.groupby(range(len(x)), lambda i: bool(drawn[i])):
            if k and len(rows := list(run)) > 1:
                there, back = np.array(rows), np.array(rows)[::-1]
                self.shapes.append((np.concatenate([x[there], x[back]]), np.concatenate([low[there], high[back]]),
                                    lambda x, y: tag('path', d=f'{_path(x, y)}Z', fill=colour, stroke='none',
                                                     **{'fill-opacity': opacity})))

    def text(self, x: float, y: float, content: str) -> None:
        """Text with its middle at a point."""
        self.shapes.append((np.array([x], float), np.array([y], float),
                            lambda x, y: _text(x[0], y[0] + FONT / 3, content)))

    def axes(self) -> tuple[Axis, Axis]:
        """x and y; without limits and data they have no ticks."""
        xs, ys = ([shape[i] for shape in self.shapes] for i in (0, 1))
        names = [*enumerate(self.y_names)] or self.y_ticks
        return _axis(self.x, xs, self.x_ticks, self.integer), _axis(self.y, ys, names)


def figure(panels: Sequence[Panel], size: tuple[float, float], x_label: str = '') -> Html:
    """<figure> of panels, one below the other; '' of none. size: width and height in px of each panel."""
    if not panels:
        return Html('')
    (width, height), axes = size, [p.axes() for p in panels]
    left = 4 + max(y.room + LINE * bool(p.y_label) for p, (_, y) in zip(panels, axes))
    edge, bottom, parts = float(GAP), 6.0, []
    for p, (x, y), below in zip(panels, axes, [*panels[1:], None]):
        labelled = not (p.x and below and below.x == p.x)
        top = bottom + TITLE * bool(p.title)
        bottom = top + height + GAP / 2 + LINE * labelled
        parts += [*_marks(p, x, y, left, top, size), *_x_axis(x, left, top + height, width, labelled),
                  *_y_axis(p, y, left, top, height, -1, left - 14)]
        if p.right:
            over = p.right.axes()[1]
            edge = over.room + LINE + 4
            parts += _y_axis(p.right, over, left + width, top, height, 1, edge - 8)
    if x_label:
        bottom += LINE
        parts.append(_text(left + width / 2, bottom - 5, x_label))
    box = _px(left + width + edge), _px(bottom)
    return tag('figure', tag('svg', *parts, width=box[0], fill=INK, viewBox=f'0 0 {box[0]} {box[1]}',
                             **{'font-size': FONT}))


def standalone(drawn: Html) -> str:
    """The SVG of a `figure` as a file of its own, readable on white and on black."""
    svg = re.search(r'<svg.*</svg>', str(drawn), re.S)
    assert svg
    return svg[0].replace('<svg', '<svg xmlns="http://www.w3.org/2000/svg" color="#777" font-family="sans-serif"', 1)


def _axis(given, values, named=(), integer=False):
    low, high = given or limits(*values)
    at = [v for v, _ in named] if named else ticks(low, high, integer=integer) if given or values else []
    return Axis(low, high, at, [name for _, name in named] or numbers(at))


def _marks(panel, x_axis, y_axis, left, top, size):
    """Shapes and title of a panel whose upper left corner is at (left, top)."""
    width, height = size
    over = [(panel.right, panel.right.axes()[1])] if panel.right else []
    for p, axis in ((panel, y_axis), *over):
        for x, y, draw in p.shapes:
            yield draw(left + width * x_axis.share(x), top + height * (1 - axis.share(y)))
    if panel.title:
        yield _text(left + width / 2, top - 7, panel.title, room=width + GAP / 2)


def _x_axis(axis, left, y, width, labelled):
    marks = left + width * axis.share(axis.at)
    d = ''.join(f'M{_px(x)} {_px(y)}v{TICK}' for x in marks)
    yield tag('path', d=f'M{_px(left)} {_px(y)}h{_px(width)}{d}', **THIN)
    every = math.ceil(sum(text_width(label) + 6 for label in axis.labels) / width) or 1
    for x, label in list(zip(marks, axis.labels))[::every] if labelled else ():
        yield _text(x, y + TICK + FONT, label)


def _y_axis(panel, axis, x, top, height, side, away):
    """side: -1, labels on the left of the axis, or 1; away: px from the axis to its own label."""
    marks = top + height * (1 - axis.share(axis.at))
    d = ''.join(f'M{_px(x)} {_px(y)}h{side * TICK}' for y in marks)
    yield tag('path', d=f'M{_px(x)} {_px(top)}v{_px(height)}{d}', **THIN)
    for y, label in zip(marks, axis.labels):
        yield _text(x + side * (TICK + 3), y + 4, label, 'end' if side < 0 else 'start', room=NAME)
    if panel.y_label:
        at = x + side * away, top + height / 2
        yield _text(*at, panel.y_label, fill=panel.colour, transform=f'rotate(-90 {_px(at[0])} {_px(at[1])})')


def _extremes(y):
    """Indices of all of y, or of the smallest and the largest value of each stretch: no peak of a long line is lost."""
    y, order = np.asarray(y, float), np.arange(len(y))
    if len(y) <= VERTICES:
        return order
    return np.unique([part[np.where(np.isnan(y[part]), np.inf, sign * y[part]).argmin()]
                      for part in np.array_split(order, VERTICES // 2) for sign in (1, -1)])


def _path(x, y):
    points = [f'{_px(a)} {_px(b)}' if a + b == a + b else '' for a, b in zip(x, y)]
    return ''.join('M' + ' '.join(run) for drawn, run in itertools.groupby(points, bool) if drawn)


def _text(x, y, content, anchor='middle', room=math.inf, **attributes):
    """Text, pressed into its room in px."""
    length = {'textLength': _px(room), 'lengthAdjust': 'spacingAndGlyphs'} if text_width(content) > room else {}
    return tag('text', content, x=_px(x), y=_px(y), **attributes, **length, **{'text-anchor': anchor})


def text_width(text: str) -> float:
    """About the width in px: a wide character is as wide as high."""
    return FONT * sum(1 if unicodedata.east_asian_width(c) in 'WF' else 0.64 for c in text)


def _px(value):
    return f'{round(float(value), 1) + 0:g}'
