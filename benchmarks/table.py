"""Rows as text: for the terminal, and the table of docs/results/speed.md from the JSON of `python -m benchmarks`."""
import pathlib
from typing import Any

from benchmarks.rows import COMMANDS, INPUTS, METRICS, PREDICTION

PAGE = pathlib.Path(__file__).resolve().parents[1] / 'docs' / 'results' / 'speed.md'
BEGIN = {'training': '<!-- table: python -m benchmarks --table -->\n',
         'earlier': '<!-- table against an earlier commit: python -m benchmarks --table -->\n',
         'prediction': '<!-- table of prediction: python -m benchmarks --table -->\n'}
TABLES = {row.name: table for table, rows in (('earlier', (*METRICS, *INPUTS, *COMMANDS)), ('prediction', PREDICTION))
          for row in rows}  # others are of training
END = '<!-- end of the table -->'


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
    """Put the tables between the marks of a page; one of which there is no row stays as it is."""
    text = page.read_text()
    for table, begin in BEGIN.items():
        some = [row for row in data['rows'] if TABLES.get(row['name'], 'training') == table]
        if any('ratio' in row for row in some):
            before, _, rest = text.partition(begin)
            text = f'{before}{begin}{markdown({**data, "rows": some})}{END}{rest.partition(END)[2]}'
    page.write_text(text)


def markdown(data: dict[str, Any]) -> str:
    """Machine, settings and rows of the JSON."""
    m, measured = data['machine'], [row for row in data['rows'] if 'commit' in row]

    def values(key):
        return ', '.join(sorted({str(row[key]) for row in measured if row[key] is not None}))
    torch = {f'torch {side["torch"]}' for row in measured for side in row['sides'] if 'torch' in side}
    versions = ', '.join([*(f'{k} {v}' for k, v in m['versions'].items()), *sorted(torch)])
    head = (f'Machine: {m["cpu"]}, {m["cores"]} cores, {m["memory_gib"]:g} GiB, {m["system"]}, Python {m["python"]}, '
            f'{versions}. Used: core {", ".join(map(str, m["used_cores"]))}, as many threads. Rounds: '
            f'{values("rounds")}, of about {values("seconds")} s. jaxkd {values("commit")}; other tree: '
            f'{values("against") or "none"}. {values("measured")}.\n\n')
    rows = ['| row | ratio [smallest to largest round] | target | | first side | second side | peak MB |',
            '|---|---|---|---|---|---|---|', *map(table_row, data['rows'])]
    return head + '\n'.join(rows) + '\n\n'


def table_row(result: dict[str, Any]) -> str:
    if 'left_out' in result:
        return f'| {result["title"]} | left out | {target(result)} | | {result["left_out"]} | | |'
    sides = [f'{s["label"]}: {milliseconds(s)}{mfu(s)}' for s in result['sides']] or ['', '']
    peaks = ' / '.join(f'{s["peak_mb"]:.0f}' for s in result['sides'])
    values = ratio(result), target(result), verdict(result), *sides, peaks
    return f'| {result["title"]}{doubt(result)} | ' + ' | '.join(values) + ' |'
