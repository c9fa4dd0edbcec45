"""Effects of shortcuts: every method on test images with the shortcut, without it and with exchanged rates.

Roles follow from the config: ERM is the plain supervised stage on the run's data, the oracle the same stage without the
shortcut (rates 0). A table is made from {stage: {set: {metric: entry}}}, of a run or of repeated ones.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.metrics import bootstrap, pooled, shortcut
from jaxkd.report import figures, plot
from jaxkd.report.markup import DASH, Html, cell, inline, join, name, number, panels, table, tag
from jaxkd.report.plot import Panel
from jaxkd.report.run_folder import Run

NATURAL = 'as found'  # the test part of a run with a natural shortcut
Config = Mapping[str, Any]  # of a run, as config.json holds it
SETS = ('id', 'clean', 'neutral', 'flip', 'ood')  # names in data.external


def of_run(run: Run) -> tuple[Html, Html]:
    """(the summary of a run in words, its section of the report); both '' for a run without a shortcut."""
    sets = {e: run.external[e] for e in SETS if e in run.external} or {
        NATURAL: {s: p for s, p in run.predictions.items() if shortcut.both_groups(p.marked)}}
    values = {s: {e: run.table_of(s, e) if e != NATURAL else run.table(s) for e in sets} for s in run.stages
              if all(s in by_stage for by_stage in sets.values())}
    if not values:
        return Html(''), Html('')
    erm, oracle = roles(run.config, [s for s in values if run.stages[s]['plain']])
    compared = _compared_set(sets)
    draws = {}
    for s in values:
        p = sets[compared][s]
        draws[s] = pooled.draws([p.take(np.argsort(p.cases, kind='stable'))], run.bootstrap['n'], run.bootstrap['seed'])

    def minus(a: str, b: str, e: str) -> bootstrap.Table:
        differences = {m: draws[a][m][0] - draws[b][m][0] for m in draws[a] if m in draws[b]}
        return {m: bootstrap.summary(d[0], d[1:], run.level) for m, d in differences.items()}
    section = [rates(run.config), _table(run.config, values, minus, erm, oracle), floors(run), depths(run)]
    return _summary(run, values, minus, erm, oracle, compared), join(section)


def _summary(run, values, minus, erm, oracle, compared):
    """Whether plain training took the shortcut, and the result of every stage with a teacher."""
    if not erm:
        return tag('p', 'No finished stage is plain training on the biased images (ERM), so nothing here says what a '
                        'method changed.')
    plain, paragraphs = values[erm], []
    if compared != NATURAL:
        same, exchanged = (plain.get(e, {}).get('auroc') for e in ('id', 'flip'))
        full = (_value(same) >= 0.99 and _value(exchanged) <= 0.05 and _value(plain[compared].get('delta_tpr')) >= 0.9)
        headline = f'Plain training {"took the shortcut" if full else "did not take the shortcut altogether"}: '
        paragraphs.append(tag(
            'p', name(headline), 'AUROC ', inline(same), ' with the shortcut as in training, ', inline(exchanged),
            ' with it turned around, ', inline(plain[compared].get('auroc')), ' where it says nothing. ',
            '' if full else 'The comparison is of limited worth (full use: at least 0.99, at most 0.05, \u0394TPR at '
            'least 0.9). '))
    for s in (s for s in values if run.stages[s]['uses_teacher']):
        d = minus(s, erm, compared).get('auroc', {})
        side = 'includes' if not d else 'lies above' if d['low'] > 0 else 'lies below' if d['high'] < 0 else 'includes'
        text = [name(f'{s}: '), 'AUROC ', inline(values[s][compared].get('auroc')),
                f' on the test images "{compared}"; minus ', name(erm), ' ', inline(d, sign=True),
                f', whose interval {side} 0. ']
        if oracle:
            text += [name(oracle), ', which never saw the shortcut, has ',
                     inline(values[oracle][compared].get('auroc')), '. ']
        rate, erm_rate = (inline(values[x][compared].get('delta_tpr'), sign=True) for x in (s, erm))
        paragraphs.append(tag('p', *text, f'\u0394TPR {rate}, of ', name(erm), f' {erm_rate}.'))
    return join([*paragraphs, tag('p', f'Everything here comes from one seed ({run.summary.get("seed", "unknown")}).')])


def of_repeat(repeat: Mapping[str, Any], config: Config) -> Html:
    """The section of repeated runs; repeat: the content of repeat.json, see `jaxkd.multirun.pooling`."""
    groups = {e: e for e in SETS if e in repeat['external']} or {NATURAL: 'all'}
    values = {s: {e: repeat['arms'][g].get(s, {}) for e, g in groups.items()} for s in repeat['stages']}
    values = {s: tables for s, tables in values.items() if 'delta_tpr' in tables[_compared_set(tables)]}
    if not values:
        return Html('')
    erm, oracle = roles(config, [s for s in values if s in repeat['plain']])
    pairs = {(d['a'], d['b'], e): d['metrics'] for e, g in groups.items() for d in repeat['differences'][g]}

    def minus(a: str, b: str, e: str) -> bootstrap.Table:
        return pairs.get((a, b, e)) or {m: _negated(entry) for m, entry in pairs.get((b, a, e), {}).items()}
    return join([rates(config), _table(config, values, minus, erm, oracle)])


def roles(config: Config, stages: Sequence[str]) -> tuple[str, str]:
    """(ERM, oracle) among stages with the loss of the labels alone, '' without one.

    Of several the one that trains longest, then the first.
    """
    plain = {}
    for s in stages:
        hp = config.get(s, {})
        other = {k for k in hp.get('data', {}) if k != 'shortcut'}
        if not (needs_bias(config, s) or hp.get('teachers') or hp.get('init', {}).get('stage') or other):
            plain[s] = _rates(config, s)

    def longest(rates: tuple) -> str:
        return max((s for s in plain if plain[s] == rates), key=lambda s: _length(config[s].get('length', '')),
                   default='')
    run_rates = tuple(config['data'].get('shortcut', {}).get('rates', ()))
    return longest(run_rates) if run_rates != (0, 0) else '', longest((0, 0))


def rates(config: Config) -> Html:
    """The kind and the rates of the shortcut, and the test sets."""
    hp = config['data'].get('shortcut', {})
    rates = tuple(hp.get('rates', ()))
    text = ['Shortcut: ', name(hp.get('kind', '')), f' of {hp["attribute"]}' if hp.get('attribute') else '']
    if not rates:
        return tag('p', *text, ', as it is found: nothing was put into any image.')
    if len(rates) == 2:
        text.append(f', in {100 * rates[0]:g} % of the positive and {100 * rates[1]:g} % of the negative training '
                    'images. It was put there for the experiment; no method but those marked "needs b" is told who has '
                    'it. ')
    return tag('p', *text, 'The same held-out images are scored as id (rates of the training), clean (none), neutral '
               '(half of each class) and flip (rates exchanged); ood, where there is one, is of other images, clean.')


def _table(config, values, minus, erm, oracle):
    sets = [e for e in (*SETS, NATURAL) if any(tables.get(e) for tables in values.values())]
    compared = _compared_set(next(iter(values.values())))
    head = ['method', *(f'AUROC {e}' for e in sets), 'id \u2212 flip', '\u0394TPR', '\u0394FPR', 'worst group',
            f'{compared} AUROC \u2212 ERM', '\u0394TPR \u2212 oracle', '\u0394FPR \u2212 oracle', 'recovery']
    rates = ('delta_tpr', 'delta_fpr')
    rows = []
    for s, tables in values.items():
        auroc, metrics = {e: (tables[e].get('auroc') or {}) for e in sets}, tables[compared]
        to_erm = minus(s, erm, compared).get('auroc') if erm and s != erm else None
        to_oracle = minus(s, oracle, compared) if oracle and s != oracle else {}
        recovery = np.nan
        if erm and oracle and s not in (erm, oracle):
            recovery = shortcut.recovery(*(_value(values[x][compared].get('auroc')) for x in (s, erm, oracle)))
        role = 'ERM' if s == erm else 'oracle' if s == oracle else ''
        marks = ', '.join(filter(None, (f'({role})' if role else '', 'needs b' if needs_bias(config, s) else '')))
        rows.append([join([name(s), tag('small', marks) if marks else '']), *(cell(auroc[e]) for e in sets),
                     number(_value(auroc.get('id')) - _value(auroc.get('flip'))),
                     *(cell(metrics.get(m), sign=True) for m in rates), cell(metrics.get('worst_group')),
                     cell(to_erm, sign=True) if to_erm else DASH,
                     *(cell(to_oracle.get(m), sign=True) if to_oracle else DASH for m in rates), number(recovery)])
    if compared != NATURAL:
        rows.append(_shortcut_alone(config, sets))
    return table(head, rows, (f'Rates and differences of the test images "{compared}", threshold 0.5. \u0394TPR = TPR '
                              'with the shortcut minus TPR without, \u0394FPR likewise; "\u2212 oracle" is less what a '
                              'network has that never saw the shortcut in training. Recovery: share of the neutral '
                              'AUROC between ERM and the oracle that is won back. The last row is what reading the '
                              'shortcut alone would give.'), dense=True)


def needs_bias(config: Config, stage: str) -> bool:
    """Whether the training of a stage reads which cases have the shortcut."""
    return bool(config.get(stage, {}).get('data', {}).get('shortcut', {}).get('reveal'))


def _shortcut_alone(config, sets):
    """The row of a classifier that reads the shortcut and nothing else."""
    rates = tuple(config['data'].get('shortcut', {}).get('rates', ()))
    p1, p0 = rates if len(rates) == 2 else (np.nan, np.nan)
    auroc = dict(id=(1 + p1 - p0) / 2, flip=(1 - p1 + p0) / 2)
    return [tag('i', 'the shortcut alone'), *(number(auroc.get(e, 0.5)) for e in sets), number(p1 - p0),
            number(1.0, True), number(1.0, True), number(0.0), *[DASH] * 4]


def floors(run: Run) -> Html:
    """The shortcut floor of every stage that has one."""
    rows = [[s if i == 0 else '', output, *(f'{v:.2g}' for v in values.values())] for s, entry in run.stages.items()
            for i, (output, values) in enumerate(entry.get('before', {}).items())]
    columns = {tuple(values) for entry in run.stages.values() for values in entry.get('before', {}).values()}
    if len(columns) != 1:
        return table(['stage', 'output', 'floor'], [[*row[:2], ', '.join(row[2:])] for row in rows], firsts=2)
    return join([tag('h3', 'Shortcut floor'), table(['stage', 'output of the teacher', *columns.pop()], rows, (
        'In nats, before training: the least KL to the teacher of a student that reads the shortcut and nothing else. '
        'Near 0 the teacher says no more than the shortcut does, and distilling from it changes nothing.'), firsts=2)])


def depths(run: Run) -> Html:
    """Histograms of prediction depth, with the shortcut and without, of every stage with that evaluator."""
    arrays = {s: a for s, a in run.depths.items() if s in run.stages}
    if not arrays:
        return Html('')
    most = plot.limits(0, *(a[k] for a in arrays.values() for k in ('marked', 'clean')))[1]
    colours = figures.COLOURS[1::-1]
    drawn = []
    for s, a in arrays.items():
        taps = list(map(str, a['taps']))
        panel = Panel(f'{s}: KL {a["terms"].sum():.2f} at {taps[int(a["terms"].argmax())]}',
                      x=(0, most), y=(len(taps) - 0.5, -0.5), y_names=taps)
        for y, values in enumerate(zip(a['marked'], a['clean'])):
            for value, colour, offset in zip(values, colours, (-0.4, 0)):
                panel.box((0, value), (y + offset, y + offset + 0.4), colour)
        drawn.append(plot.figure([panel], (215, 150), 'share of test images'))
    note = ('The first tap from which the nearest neighbours of an image agree with the network, as shares of the test '
            'images. The title names the depth at which the shortcut adds most.')
    return join([tag('h3', 'Prediction depth'), tag('p', note, class_='dim'),
                 figures.legend(dict(zip(('with the shortcut', 'the same without'), colours))),
                 panels(*drawn)])


def _rates(config, stage):
    default = config['data'].get('shortcut', {}).get('rates', ())
    return tuple(config[stage].get('data', {}).get('shortcut', {}).get('rates', default))


def _length(text):
    digits = ''.join(c for c in str(text) if c.isdigit() or c == '.')
    return float(digits) if digits else 0.0


def _compared_set(sets):
    """The test images for the comparison of rates."""
    return 'neutral' if 'neutral' in sets else NATURAL


def _value(entry):
    value = (entry or {}).get('value')
    return np.nan if value is None else value


def _negated(entry):
    """b - a of an entry of a - b."""
    value, high, low = (None if entry.get(k) is None else -entry[k] for k in ('value', 'low', 'high'))
    return {'value': value, 'low': low, 'high': high}
