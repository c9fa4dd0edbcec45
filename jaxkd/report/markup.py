"""HTML from plain values: every text that is not `Html` is escaped, so no text of a file can become markup."""
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

VOID = ('br', 'hr', 'img', 'input')  # elements that hold nothing
DASH = '\u2013'  # where there is no number


class Html(str):
    """Text that is HTML."""


def text(x: Any) -> Html:
    """Anything -> Html, escaped unless it is Html."""
    return x if isinstance(x, Html) else Html(html.escape(str(x)))


def join(parts: Iterable, between: str = '') -> Html:
    """Parts one after the other, as markup."""
    return Html(between.join(text(p) for p in parts))


def tag(name: str, *content: Any, **attributes: Any) -> Html:
    """<name attributes>content</name>; write class_ for class."""
    pairs = ''.join(f' {k.rstrip("_")}="{html.escape(str(v))}"' for k, v in attributes.items() if v != '')
    return Html(f'<{name}{pairs}/>' if name in VOID else f'<{name}{pairs}>{join(content)}</{name}>')


def name(x: Any) -> Html:
    """A name from a file, in bold."""
    return tag('b', x)


def table(head: Iterable, rows: Sequence[Iterable], caption: str = '', firsts: int = 1, dense: bool = False) -> Html:
    """head: cells, rows: lists of cells; the first `firsts` cells of a row name it. No rows: nothing."""
    if not rows:
        return Html('')
    cells = [join(tag('th' if i < firsts else 'td', c) for i, c in enumerate(row)) for row in rows]
    return tag('div', tag('table', tag('caption', tag('span', caption)) if caption else '',
                          tag('thead', tag('tr', *(tag('th', h) for h in head))),
                          tag('tbody', *(tag('tr', c) for c in cells))), class_='wide dense' if dense else 'wide')


def panels(*figures: Any) -> Html:
    """Figures side by side, as many in a row as there is room for; '' of none."""
    return tag('div', *figures, class_='panels') if any(figures) else Html('')


def flow(*parts: Any) -> Html:
    """Small tables side by side where there is room; '' of none."""
    return tag('div', *parts, class_='flow') if any(parts) else Html('')


def sources(paths: Iterable[str]) -> Html:
    """Links to the files beside the page that hold the numbers of a figure; '' of none."""
    links = [tag('a', path.rpartition('/')[2], href=quote(path)) for path in paths]
    return tag('p', 'Numbers: ', join(links, ', '), class_='csv') if links else Html('')


def details(title: str, *content: Any) -> Html:
    """A section that opens at a click on its title."""
    return tag('details', tag('summary', title), *content)


def number(value: float | None, sign: bool = False) -> str:
    """Three decimals; a dash for nan or None."""
    if value is None or not math.isfinite(value):
        return DASH
    shown = f'{value:+.3f}' if sign else f'{value:.3f}'
    return shown.replace('-', '\u2212')


def interval(entry: Mapping | None) -> str:
    """'(low to high)' of an entry with low and high; '' when it has none."""
    low, high = (entry or {}).get('low'), (entry or {}).get('high')
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ''
    return f'({number(low)} to {number(high)})'


def inline(entry: Mapping | None, sign: bool = False) -> str:
    """'0.812 (0.780 to 0.840)' within a sentence."""
    return f'{number((entry or {}).get("value"), sign)} {interval(entry)}'.rstrip()


def cell(entry: Mapping | None, sign: bool = False) -> Html:
    """A number with its interval below it, for a table."""
    shown = interval(entry)
    return join([number((entry or {}).get('value'), sign), tag('small', shown) if shown else ''])


def clock(seconds: float) -> str:
    """Seconds as text: minutes, from an hour on hours."""
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02}:{seconds:02} h' if minutes >= 60 else f'{minutes}:{seconds:02} min'
