"""Tables of a comparison of arms: every number as CSV, the main ones in Markdown, LaTeX and as text for a terminal.

One row for each point and arm. Columns of arms.csv: the varied options, arm, kind, seeds, labelled; for each metric its
value, <metric>_low, _high, _sd, the difference to the baseline <metric>_difference, _difference_low, _difference_high,
_p, _p_holm, and the rank _rank, _rank_low, _rank_high; of students <metric>_against_best with the control, _gap_closed
and its ceiling, each with low and high; equivalent_labels of the metric of the figures; the costs of arms.py.
"""
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxkd.multirun.arms import COSTS
from jaxkd.report import statistics, text_tables
from jaxkd.report.markup import DASH, interval, number
from jaxkd.runtime import files

Results = Mapping[str, Any]  # the content of gains.json
FILES = ('arms.csv', 'arms.md', 'arms.tex')


def write(workdir: pathlib.Path, results: Results) -> None:
    """Write the three FILES."""
    files.write(workdir / 'arms.csv', text_tables.as_csv(rows(results)))
    head, cells = shown(results)
    files.write(workdir / 'arms.md', text_tables.as_markdown(head, cells))
    files.write(workdir / 'arms.tex', text_tables.as_latex(head, cells))


def rows(results: Results) -> list[dict[str, Any]]:
    """The rows of arms.csv."""
    table = []
    for point in results['points']:
        for arm in point.get('arms', {}):
            row = {**{k: _plain(v) for k, v in point['values'].items()}, 'arm': arm,
                   'kind': results['roles']['kinds'].get(arm, ''), 'seeds': len(point['seeds']),
                   'labelled': point['labelled']}
            for metric in results['metrics']:
                row |= _of_metric(point, arm, metric)
            row |= _ends('equivalent_labels', equivalent(results, point, arm))
            table.append(row | {key: point['cost'].get(arm, {}).get(key) for key in COSTS})
    return table


def _of_metric(point: Mapping[str, Any], arm: str, metric: str) -> dict[str, Any]:
    entry, gap = point['arms'][arm].get(metric, {}), point['differences'].get(arm, {}).get(metric, {})
    best = point['against_best'].get(arm, {}).get(metric, {})
    closed = point['gap_closed'].get(arm, {}).get(metric, {})
    rank = point['ranks'].get(metric, {}).get(arm, {})
    return {**_ends(metric, entry), f'{metric}_sd': entry.get('sd'), **_ends(f'{metric}_difference', gap),
            f'{metric}_p': gap.get('p'), f'{metric}_p_holm': gap.get('p_holm'), **_ends(f'{metric}_rank', rank),
            **_ends(f'{metric}_against_best', best), f'{metric}_best_control': best.get('control'),
            **_ends(f'{metric}_gap_closed', closed), f'{metric}_ceiling': closed.get('ceiling')}


def _ends(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    return {f'{name}{suffix}': entry.get(key) for key, suffix in (('value', ''), ('low', '_low'), ('high', '_high'))}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, (list, tuple, dict)) else value


def equivalent(results: Results, point: Mapping[str, Any], arm: str) -> Mapping[str, Any]:
    """The entry of `equivalence` of an arm at a point, {} without one."""
    return next((e for e in results['equivalence'] if e['arm'] == arm and e['values'] == point['values']), {})


def shown(results: Results) -> tuple[list[str], list[list[str]]]:
    """(head, cells) of the table to read: the metric of the figures."""
    metric, name = results['metric'], statistics.display_name(results['metric'])
    base = results['roles']['baseline']
    labelled = bool(results['equivalence'])
    head = [*(a['name'] for a in results['axes']), *(['labelled patients'] if labelled else []), 'arm', 'seeds', name,
            f'difference to {base}', 'p (Holm)', 'rank', 'difference to best control', 'gap closed',
            *(['worth labelled patients'] if labelled else []), 'steps', 'seconds', 'with teachers', 'peak MiB',
            'parameters', 'MFLOP a case']
    cells = []
    for point in results['points']:
        for arm, table in point.get('arms', {}).items():
            gap = point['differences'].get(arm, {}).get(metric, {})
            cost = point['cost'].get(arm, {})
            cells.append([
                *(str(_plain(v)) for v in point['values'].values()), *([count(point['labelled'])] if labelled else []),
                arm, str(len(point['seeds'])), with_interval(table.get(metric)), with_interval(gap, sign=True),
                p_text(gap.get('p_holm')), rank_text(point['ranks'].get(metric, {}).get(arm)),
                with_interval(point['against_best'].get(arm, {}).get(metric), sign=True),
                percent(point['gap_closed'].get(arm, {}).get(metric)),
                *([labels_text(equivalent(results, point, arm))] if labelled else []),
                *(count(cost.get(key)) for key in ('steps', 'seconds', 'total_seconds')),
                _over(cost, 'peak_memory', 2**20), count(cost.get('parameters')), _over(cost, 'flops', 1e6)])
    return head, cells


def text(results: Results) -> str:
    """What a terminal shows: the sentences, then value and difference of every arm at every point."""
    head, cells = shown(results)
    upto = head.index('gap closed')
    lines = [head[:upto], *(row[:upto] for row in cells)]
    widths = [max(len(line[i]) for line in lines) for i in range(upto)]
    body = ['  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    failed = [f'failed and left out: {member} ({reason})' for member, reason in results['failed'].items()]
    return '\n'.join([*(r['text'] for r in results['regimes']), *failed, '', *body])


def with_interval(entry: Mapping[str, Any] | None, sign: bool = False) -> str:
    """'0.812 (0.780 to 0.840)'; '' where there is no number."""
    value = number((entry or {}).get('value'), sign)
    return '' if value == DASH else f'{value} {interval(entry)}'.rstrip()


def percent(entry: Mapping[str, Any] | None) -> str:
    """'48 % (30 to 70)'; '' where there is no number."""
    if not entry or entry.get('value') is None:
        return ''
    ends = f' ({100 * entry["low"]:.0f} to {100 * entry["high"]:.0f})' if entry.get('low') is not None else ''
    return f'{100 * entry["value"]:.0f} %{ends}'


def p_text(p: float | None) -> str:
    """'0.013', '<0.001'; '' where there is none."""
    return '' if p is None or math.isnan(p) else '<0.001' if p < 0.001 else f'{p:.3f}'


def rank_text(entry: Mapping[str, Any] | None) -> str:
    """'2 (1 to 3)'; '' where there is none."""
    if not entry or entry.get('value') is None:
        return ''
    return f'{entry["value"]:g}' + (f' ({entry["low"]:g} to {entry["high"]:g})' if entry.get('low') is not None else '')


def labels_text(entry: Mapping[str, Any]) -> str:
    """'310 (190 to more than 1,500)': labelled patients; '' where there is no curve."""
    if not entry:
        return ''

    def words(value: float | None) -> str:
        if value is None:
            return f'more than {count(entry["most"])}'
        return count(value) if value else f'fewer than {count(entry["fewest"])}'
    ends = words(entry['low']), words(entry['high'])
    return words(entry['value']) + (f' ({ends[0]} to {ends[1]})' if entry['replicates'] else '')


def _over(cost: Mapping[str, float | None], key: str, unit: float) -> str:
    """A cost in so many units; '' where it is not known."""
    value = cost.get(key)
    return count(None if value is None else value / unit)


def count(value: float | None) -> str:
    """'1,234'; small numbers with a decimal; '' for None."""
    if value is None:
        return ''
    return f'{value:.1f}' if 0 < abs(value) < 10 and value != int(value) else f'{value:,.0f}'
