"""Rows as text: for the terminal, and the table of docs/results/speed.md from the JSON of `python -m benchmarks`."""
import pathlib
import re
from typing import Any

from benchmarks.rows import COMMANDS, INPUTS, METRICS, PREDICTION, ROWS

PAGE = pathlib.Path(__file__).resolve().parents[1] / 'docs' / 'results' / 'speed.md'
BEGIN = {'training': '<!-- table: python -m benchmarks --table -->\n',
         'earlier': '<!-- table against an earlier commit: python -m benchmarks --table -->\n',
         'prediction': '<!-- table of prediction: python -m benchmarks --table -->\n'}
TABLES = {row.name: table for table, rows in (('earlier', (*METRICS, *INPUTS, *COMMANDS)), ('prediction', PREDICTION))
          for row in rows}  # others are of training
END = '<!-- end of the table -->'
EARLIER = '°'  # behind the title of a row that the run before measured, twice of the one before that, and so on
_RUN = re.compile(rf'(?:Rows with ({EARLIER}+): )?(Machine: .*)')


def line(result: dict[str, Any]) -> str:
    """One row, for the terminal."""
    if 'left_out' in result:
        return f'{result["name"]:18} left out: {result["left_out"]}'
    sides = '; '.join(f'{s["label"]} {milliseconds(s)}, {s["peak_mb"]:.0f} MB{mfu(s)}' for s in result['sides'])
    return f'{result["name"]:18} {ratio(result)}, target {target(result)}: {verdict(result)}. {sides}{doubt(result)}'


def ratio(result: dict[str, Any]) -> str:
    r = result['ratio']
    return f'{r["median"]:.2f} [{r["min"]:.2f} to {r["max"]:.2f}]'


def target(result: dict[str, Any]) -> str:
    if result['at_least'] is not None:
        return f'>= {result["at_least"]:g}'
    return 'none' if result['at_most'] is None else f'<= {result["at_most"]:g}'


def verdict(result: dict[str, Any]) -> str:
    return {True: 'reached', False: '**missed**', None: ''}[result.get('reached')]


def milliseconds(side: dict[str, Any]) -> str:
    seconds, cpu = side['seconds']['median'], side['cpu']['median']
    if seconds >= 10:
        return f'{seconds:.1f} s (processor {cpu:.1f})'
    return f'{1e3 * seconds:.4g} ms (processor {1e3 * cpu:.4g})'


def mfu(side: dict[str, Any]) -> str:
    if 'mfu' in side:
        return f', MFU {100 * side["mfu"]:.1f} %'
    return f', {side["flop_per_s"] / 1e9:.1f} GFLOP/s' if side.get('flop_per_s') else ''


def doubt(result: dict[str, Any]) -> str:
    if result.get('same_parameters') is False:
        return '; numbers of parameters DIFFER'
    return f'; largest difference of results {result["difference"]:.1e}' if 'difference' in result else ''


def write(data: dict[str, Any], page: pathlib.Path = PAGE) -> None:
    """Put the tables between the marks of a page. Rows that the data lacks stay, and say that they are of earlier."""
    text = page.read_text()
    for table, begin in BEGIN.items():
        some = [row for row in data['rows'] if TABLES.get(row['name'], 'training') == table]
        if any('ratio' in row for row in some):
            before, _, rest = text.partition(begin)
            old, _, rest = rest.partition(END)
            text = f'{before}{begin}{markdown({**data, "rows": some}, old)}{END}{rest}'
    page.write_text(text)


def earlier(old: str, data: dict[str, Any]) -> dict[str, str]:
    """{title: line} of the rows of a table that were measured and are not in the data, which may have left them out.

    A row that is derived from others is in the data where all of these are.
    """
    names = {row['name'] for row in data['rows']}
    measured = {row['title'] for row in data['rows'] if 'ratio' in row and
                (row['name'] not in ROWS or {*ROWS[row['name']].of} <= names)}
    lines = {line[2:].partition(' | ')[0].partition(';')[0].rstrip(f' {EARLIER}'): line for line in old.splitlines()}
    return {row.title: lines[row.title] for row in ROWS.values() if row.title in {*lines} - measured
            and '| left out |' not in lines[row.title]}


def markdown(data: dict[str, Any], old: str = '') -> str:
    """Machine, settings and rows of the JSON, and rows of the table that was there before."""
    m, measured = data['machine'], [row for row in data['rows'] if 'commit' in row]

    def values(key):
        return ', '.join(sorted({str(row[key]) for row in measured if row[key] is not None}))
    torch = {f'torch {side["torch"]}' for row in measured for side in row['sides'] if 'torch' in side}
    versions = ', '.join([*(f'{k} {v}' for k, v in m['versions'].items()), *sorted(torch)])
    head = (f'Machine: {m["cpu"]}, {m["cores"]} cores, {m["memory_gib"]:g} GiB, {m["system"]}, Python {m["python"]}, '
            f'{versions}. Used: core {", ".join(map(str, m["used_cores"]))}, as many threads. Rounds: '
            f'{values("rounds")}, of about {values("seconds")} s. jaxkd {values("commit")}; other tree: '
            f'{values("against") or "none"}. {values("measured")}.\n\n')
    more = '' if head.strip() in old.splitlines() else EARLIER  # a run that is written again is no earlier one
    kept = {t: _older(t, line, more) for t, line in earlier(old, data).items()}
    marks = {found[0] for line in kept.values() if (found := re.search(f'{EARLIER}+', line))}
    for line in old.splitlines():  # where and when these rows were measured
        if (run := _RUN.fullmatch(line)) and (mark := (run[1] or '') + more) in marks:
            head += f'Rows with {mark}: {run[2]}\n\n'
    lines = {row['title']: table_row(row) for row in data['rows']} | kept
    order = {row.title: i for i, row in enumerate(ROWS.values())}
    rows = ['| row | ratio [smallest to largest round] | target | | first side | second side | peak MB |',
            '|---|---|---|---|---|---|---|', *(lines[t] for t in sorted(lines, key=lambda t: order.get(t, -1)))]
    return head + '\n'.join(rows) + '\n\n'


def _older(title: str, line: str, more: str) -> str:
    """The line of a row with one mark `more` behind its title."""
    found = re.search(rf'{re.escape(title)}(?: ({EARLIER}+))?', line)
    assert found
    marks = (found[1] or '') + more
    return f'{line[:found.start()]}{title}{marks and f" {marks}"}{line[found.end():]}'


def table_row(result: dict[str, Any]) -> str:
    if 'left_out' in result:
        return f'| {result["title"]} | left out | {target(result)} | | {result["left_out"]} | | |'
    sides = [f'{s["label"]}: {milliseconds(s)}{mfu(s)}' for s in result['sides']] or ['', '']
    peaks = ' / '.join(f'{s["peak_mb"]:.0f}' for s in result['sides'])
    values = ratio(result), target(result), verdict(result), *sides, peaks
    return f'| {result["title"]}{doubt(result)} | ' + ' | '.join(values) + ' |'
