"""index.html of a folder of predictions: a row for each case, to look through without a server or a network.

It refers to the files beside it alone: overlays and masks.
"""
import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence

from jaxkd.report.html_page import document, section
from jaxkd.report.markup import Html, join, table, tag
from jaxkd.runtime import files

FILES = ('overlay', 'mask', 'mask_straight', 'probability_map')  # columns that name files


def write(out: pathlib.Path, rows: Sequence[Mapping[str, str]], failed: Sequence[tuple[str, str]],
          title: str, note: str) -> pathlib.Path:
    """Write index.html -> its path. rows: those of predictions.csv; failed: (case, error)."""
    columns = list(dict.fromkeys(c for row in rows for c in row if c not in ('case', *FILES)))
    shown = [c for c in columns if not c.startswith(('logit/', 'sd/')) or len(columns) < 12]
    overlays = any('overlay' in row for row in rows)
    head = ('case', *(['picture'] if overlays else []), *shown, *(['files'] if any('mask' in r for r in rows) else []))
    body = [[row['case'], *([_picture(row)] if overlays else []), *(_short(row.get(c, '')) for c in shown),
             *([_links(row)] if 'files' in head else [])] for row in rows]
    parts = [tag('h1', title), tag('p', note, class_='note'),
             section(f'{len(rows)} cases', table(head, body)),
             section(f'{len(failed)} cases with errors', table(('case', 'error'), failed)) if failed else '']
    path = out / 'index.html'
    files.write(path, document(title, parts))
    return path


def _picture(row: Mapping[str, str]) -> Html:
    if not (name := row.get('overlay', '')):
        return Html('')
    return tag('a', Html(f'<img src="{_url(name)}" loading="lazy" width="192" alt=""/>'), href=_url(name))


def _links(row: Mapping[str, str]) -> Html:
    return join([tag('a', key.replace('_', ' '), href=_url(row[key])) for key in FILES[1:] if row.get(key)], ' ')


def _url(name: str) -> str:
    return urllib.parse.quote(name)


def _short(cell: str) -> str:
    """A number with fewer digits than the table has."""
    try:
        return f'{float(cell):.3g}' if not cell.lstrip('-').isdigit() else cell
    except ValueError:
        return cell
