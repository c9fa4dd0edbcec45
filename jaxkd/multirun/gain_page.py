"""The page of a grid, and the section of a comparison of arms, from the content of gains.json."""
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.multirun import arm_tables, gains
from jaxkd.multirun.arms import sign
from jaxkd.report import comparison, figures, plot, statistics
from jaxkd.report.html_page import document, section
from jaxkd.report.markup import Html, details, join, name, panels, sources, table, tag
from jaxkd.report.plot import Panel
from jaxkd.runtime import files

Results = Mapping[str, Any]
SIZE, CELL = (330, 220), (74, 44)  # px of a panel, of a cell of a map
KINDS = {1: 'gain', -1: 'loss', 0: ''}  # style of a sentence by its side
SCALE = 4.0  # largest by smallest value from which on an axis is logarithmic [our choice]


def write(workdir: str | os.PathLike, *arguments: Any, **options: Any) -> str:
    """Write gains.json, report.html and the tables arms.csv, .md and .tex -> the main results as text. Arguments: see
    `gains.collect`.
    """
    workdir = pathlib.Path(workdir)
    results = gains.collect(workdir, *arguments, **options)
    files.write_json(workdir / 'gains.json', results)
    arm_tables.write(workdir, results)
    files.write(workdir / 'report.html', page(results, workdir))
    return arm_tables.text(results)


def page(results: Results, workdir: str | os.PathLike) -> str:
    """HTML text of the content of gains.json."""
    title = f'Gains: {pathlib.Path(workdir).resolve().name}'
    several = [axis for axis in results['axes'] if len(axis['values']) > 1]
    sections = {
        'Arms': [curves(results)] if several else [],
        'Differences': [differences(results)] if several else [],
        'Labelled patients that a gain is worth': [equivalence(results)],
        'Map of two options': [heat_maps(results)],
        'Every point': [arm_table(results), sources(arm_tables.FILES)],
        'Costs': [cost_table(results)],
        'Members': [tag('ul', *(tag('li', tag('a', m, href=f'{m}/report.html')) for p in results['points']
                                for m in p.get('members', ()))),
                    *(tag('p', f'{m} failed and is left out: {reason}', class_='note')
                      for m, reason in results['failed'].items())]}
    lead = [tag('div', tag('p', r['text'], class_='headline'), class_=f'card {KINDS[r["side"]]}'.strip())
            for r in results['regimes']] or [tag('p', 'No arm stands against a control with an interval.')]
    body = [tag('h1', title), *(tag('p', n, class_='note') for n in results['notes']), *lead,
            *(tag('p', p) for p in description(results)),
            *(section(head, *parts) for head, parts in sections.items() if any(parts))]
    return document(title, body, closed=True)


def section_of_repeat(results: Results) -> Html:
    """The comparison of the arms of a config without varied options, for the page of repeated trainings."""
    return join([*(tag('p', r['text']) for r in results['regimes']), arm_table(results), sources(arm_tables.FILES),
                 tag('p', description(results)[-1], class_='dim'), cost_table(results)])


def description(results: Results) -> list[str]:
    """What was trained, and what the numbers mean."""
    roles, points = results['roles'], results['points']
    drawn = [p for p in points if 'arms' in p]
    varied = ' and '.join(f'{a["option"]} ({", ".join(map(str, a["values"]))})' for a in results['axes'])
    seeds = max((len(p['seeds']) for p in drawn), default=1)
    parts = []
    if varied:
        parts.append(f'{len(drawn)} of {len(points)} points of {varied}, {seeds} seed{"s" * (seeds > 1)} each.')
    if results['patients']:
        parts.append(f'All points share the same {results["patients"]:,} test patients ({results["cases"]:,} cases).')
    if roles['students']:
        parts.append(f'Students: {", ".join(roles["students"])}. Controls: {", ".join(roles["controls"]) or "none"}. '
                     f'Baseline: {roles["baseline"]}.' + (f' Ceiling: {roles["ceiling"]}.' if roles['ceiling'] else ''))
    meaning = (
        f'Intervals: {100 * results["level"]:g} %, {results["resamples"]:,} resamples of the test patients; those of '
        'differences, ranks, gaps and labelled patients draw the seeds again, too. p values are those of the paired '
        'bootstrap over patients and seeds, two-sided, corrected by Holm for the number of arms at a point, not for '
        'the number of points. The best control is that of each resample, which rather favours it. The gap closed is '
        'the share of the distance from the baseline to the ceiling, where there is such a distance. No interval holds '
        'what another training set or split would change.')
    return [' '.join(parts), meaning] if parts else [meaning]


def curves(results: Results) -> Html:
    """The metric of every arm along the first axis, a panel for each combination of the others."""
    colours, shown = _colours(results), statistics.display_name(results['metric'])

    def draw(panel: Panel, points: Sequence[Mapping[str, Any]], x: np.ndarray) -> None:
        for arm, colour in colours.items():
            value, low, high = _series([p.get('arms', {}).get(arm, {}).get(results['metric']) for p in points])
            aside = not any(arm in p.get('compared', ()) for p in points)
            panel.band(x, low, high, colour, 0.07 if aside else 0.14)
            known = np.pad(~np.isnan(low), 1)
            for i in np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:]):  # beside holes there is no band
                panel.line([x[i]] * 2, [low[i], high[i]], colour, 1.2)
            panel.line(x, value, colour, 2.4 if arm in results['roles']['students'] else 1.5,
                       plot.DASHED if aside else '')
            panel.dots(x, value, colour, 2.6)
    note = 'Mean over seeds; bands are intervals over patients. Dashed: arms with other inputs or test cases.'
    return _figures(results, draw, shown, colours, note)


def differences(results: Results) -> Html:
    """The difference of each student to the best control, and of each arm to the baseline, along the first axis."""
    colours, metric = _colours(results), results['metric']
    shown, base = statistics.display_name(metric), results['roles']['baseline']

    def draw(where: str) -> Any:
        def of(panel: Panel, points: Sequence[Mapping[str, Any]], x: np.ndarray) -> None:
            panel.line(panel.x or plot.limits(x), [0, 0], width=1, dash=plot.DOTTED)
            arms = [arm for arm in colours if any(metric in p.get(where, {}).get(arm, {}) for p in points)]
            for i, arm in enumerate(arms):
                value, low, high = _series([p.get(where, {}).get(arm, {}).get(metric) for p in points])
                moved = x + (i - (len(arms) - 1) / 2) * 0.012 * float(np.ptp(panel.x or (0, 1)))
                for a, ends in zip(moved, zip(low, high)):
                    panel.line([a, a], ends, colours[arm], 2.2)
                panel.line(moved, value, colours[arm], 1)
                panel.dots(moved, value, colours[arm], 3.4)
        return of
    best = _figures(results, draw('against_best'), f'{shown}, student − best control', {
        s: colours[s] for s in results['roles']['students']}, '')
    others = _figures(results, draw('differences'), f'{shown}, arm − {base}', {
        arm: colour for arm, colour in colours.items() if arm != base and any(
            arm in p.get('differences', {}) for p in results['points'])}, 'Intervals resample patients and seeds.')
    return join([best, others])


def equivalence(results: Results) -> Html:
    """With how many labelled patients the baseline is as good as each student: a figure and a table."""
    entries, students = results['equivalence'], results['roles']['students']
    if not entries:
        return Html('')
    colours, base = _colours(results), results['roles']['baseline']
    fewest, most = min(e['fewest'] for e in entries), max(e['most'] for e in entries)
    ends = (math.log(fewest) - 0.15 * math.log(most / fewest), math.log(most) + 0.15 * math.log(most / fewest))
    labels = sorted({e['labelled'] for e in entries})
    ticks = [(math.log(n), arm_tables.count(n)) for n in labels]
    drawn = []
    for rest in gains.rests(results):
        panel = Panel(_title(rest), f'labelled patients that {base} needs', ends, ends, x_ticks=ticks, y_ticks=ticks)
        panel.line(ends, ends, width=0.8, dash=plot.DOTTED)
        for arm in students:
            here = [e for e in entries if e['arm'] == arm and rest.items() <= e['values'].items()]
            low, value, high = (np.array([_log(e[k]) for e in here]) for k in ('low', 'value', 'high'))
            x = np.log([e['labelled'] for e in here])
            for i in range(len(here)):
                panel.line([x[i]] * 2, [low[i], high[i]], colours[arm], 2.2)
            panel.line(x, np.clip(value, *ends), colours[arm], 1)
            panel.dots(x, np.clip(value, *ends), colours[arm], 3.4)
        drawn.append(plot.figure([panel], (SIZE[0], SIZE[0] * 0.8), 'labelled patients of the student'))
    note = (f'Read from the curve of {base}, made monotone, linear in the logarithm of labelled patients, with the '
            'same resamples of patients and seeds for both. Above the dotted line the student is worth more labels '
            'than it has; what is at the edge lies outside of the curve: nothing is extrapolated.')
    rows = [[*map(str, e['values'].values()), name(e['arm']), arm_tables.count(e['labelled']),
             arm_tables.labels_text(e)] for e in entries]
    head = [*(a['name'] for a in results['axes']), 'arm', 'labelled patients', f'worth labelled patients of {base}']
    return join([figures.legend({s: colours[s] for s in students}), panels(*drawn), tag('p', note, class_='dim'),
                 details('Of every arm', table(head, rows, firsts=len(results['axes']) + 1, dense=True))])


def heat_maps(results: Results) -> Html:
    """The difference of each student to the best control over the first two axes."""
    if len(results['axes']) < 2:
        return Html('')
    across, down = results['axes'][:2]
    metric = results['metric']
    drawn = []
    for student in results['roles']['students']:
        entries = [(p, p.get('against_best', {}).get(student, {}).get(metric)) for p in results['points']]
        largest = max((abs(e['value']) for _, e in entries if e and e['value'] is not None), default=0) or 1
        for rest in gains.rests(results, behind=2):
            panel = Panel(f'{student} − best control{", " * bool(rest)}{_title(rest)}',
                          x=(-0.5, len(across['values']) - 0.5), y=(len(down['values']) - 0.5, -0.5),
                          y_names=[f'{down["name"]} {gains.tick(down, v)}' for v in down['values']],
                          x_ticks=[(i, gains.tick(across, v)) for i, v in enumerate(across['values'])])
            for p, e in ((p, e) for p, e in entries if rest.items() <= p['values'].items()):
                i, j = (axis['values'].index(p['values'][axis['option']]) for axis in (across, down))
                if not e or e['value'] is None:
                    panel.text(i, j, '–')
                    continue
                side = comparison.side(e)
                colour = figures.SIDES[side * sign(metric) if side else side]
                panel.box((i - 0.48, i + 0.48), (j - 0.46, j + 0.46), colour,
                          0.08 + 0.5 * abs(e['value']) / largest)
                panel.text(i, j, f'{e["value"]:+.3f}'.replace('-', '−'))
            size = CELL[0] * len(across['values']), CELL[1] * len(down['values'])
            drawn.append(plot.figure([panel], size, gains.axis_label(across)))
    note = (f'{statistics.display_name(metric)}: green better, red worse, grey where the interval holds 0. A dash: no '
            'member is finished there.')
    return join([panels(*drawn), tag('p', note, class_='dim')])


def arm_table(results: Results) -> Html:
    """The table to read."""
    head, cells = arm_tables.shown(results)
    upto = head.index('steps')
    first = head.index('arm') + 1
    return table(head[:upto], [row[:upto] for row in cells], firsts=first, dense=True)


def cost_table(results: Results) -> Html:
    """Costs of each arm, of the first point that has it."""
    found = {arm: p['cost'][arm] for p in reversed(results['points']) for arm in p.get('cost', {})}
    rows = [[name(arm), *(arm_tables.count(c[key]) for key in ('steps', 'seconds', 'total_seconds')),
             arm_tables.count(None if c['peak_memory'] is None else c['peak_memory'] / 2**20),
             arm_tables.count(c['parameters']), arm_tables.count(None if c['flops'] is None else c['flops'] / 1e6)]
            for arm, c in found.items() if arm in results['arms']]
    return table(['arm', 'steps', 'seconds', 'seconds with teachers', 'peak MiB of a device', 'parameters',
                  'MFLOP a case'], rows, 'Training, means over members (peak memory where the device says it); '
                 'parameters and floating-point operations of a prediction are those of the student alone.', dense=True)


def _figures(results: Results, draw: Any, y_label: str, colours: Mapping[str, str], note: str) -> Html:
    """A panel for each combination of the axes behind the first; draw(panel, points, x)."""
    axis = results['axes'][0]
    places, ticks, ends = _scale(axis)
    drawn: list[Panel] = []
    for rest in gains.rests(results):
        points = [p for p in results['points'] if rest.items() <= p['values'].items()]
        order = np.argsort(places, kind='stable')
        panel = Panel(_title(rest), y_label, x=ends, x_ticks=ticks)
        draw(panel, [points[i] for i in order], places[order])
        drawn.append(panel)
    height = plot.limits(*(y for panel in drawn for _, y, _ in panel.shapes))
    for panel in drawn:  # one scale, so that panels can be compared
        panel.y = height
    shown = (plot.figure([panel], SIZE, gains.axis_label(axis)) for panel in drawn)
    return join([figures.legend(colours), panels(*shown), tag('p', note, class_='dim') if note else ''])


def _scale(axis: Mapping[str, Any]) -> tuple[np.ndarray, list[tuple[float, str]], plot.Limits]:
    """(places [values], ticks, limits) of an axis: numbers by size or, over a wide range, by logarithm; words in turn.
    """
    values = axis['values']
    if not gains.is_number(axis):
        places = np.arange(len(values), dtype=float)
    elif min(values) > 0 and max(values) / min(values) >= SCALE:
        places = np.log(np.array(values, float))
    else:
        places = np.array(values, float)
    return places, [(float(p), gains.tick(axis, v)) for p, v in zip(places, values)], plot.limits(places)


def _series(entries: Sequence[Mapping[str, Any] | None]) -> list[np.ndarray]:
    """(values, low, high) of entries, nan where there is none."""
    def of(key: str) -> np.ndarray:
        return np.array([np.nan if not e or e.get(key) is None else e[key] for e in entries], float)
    return [of('value'), of('low'), of('high')]


def _log(labels: float | None) -> float:
    """The logarithm of a number of labels; None is more than all, 0 fewer."""
    return math.inf if labels is None else math.log(labels) if labels else -math.inf


def _colours(results: Results) -> dict[str, str]:
    return {arm: figures.COLOURS[i % len(figures.COLOURS)] for i, arm in enumerate(results['arms'])}


def _title(rest: Mapping[str, Any]) -> str:
    return ', '.join(f'{key.rpartition(".")[2]} = {gains.tick(dict(option=key), value)}' for key, value in rest.items())
