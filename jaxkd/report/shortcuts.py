"""What shortcuts did: every method on test images with the shortcut, without it and with its rates turned around.

Roles follow from the config: ERM is the plain supervised stage on the run's data, the oracle the same stage without the
shortcut (rates 0). A table is made from {stage: {set: {metric: entry}}}, of one run or of repeated ones.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.metrics import bootstrap, pooled, shortcut
from jaxkd.report import figures
from jaxkd.report.markup import DASH, Html, cell, inline, join, name, number, table, tag
from jaxkd.report.run_folder import Run

FOUND = 'as found'  # the run's own test part, where a natural shortcut is looked at
Config = Mapping[str, Any]  # of a run, as config.json holds it
SETS = ('id', 'clean', 'neutral', 'flip', 'ood')  # names in data.external


def of_run(run: Run) -> tuple[Html, Html]:
    """(what a run says in words, its section of the report); both '' for a run without a shortcut."""
    sets = {e: run.external[e] for e in SETS if e in run.external} or {
        FOUND: {s: p for s, p in run.predictions.items() if shortcut.both_groups(p.marked)}}
    values = {s: {e: run.table_of(s, e) if e != FOUND else run.table(s) for e in sets} for s in run.stages
              if all(s in of for of in sets.values())}
    if not values:
        return Html(''), Html('')
    erm, oracle = roles(run.config, [s for s in values if run.stages[s]['plain']])
    where = _where(sets)
    drawn = {s: pooled.draws([sets[where][s].take(np.argsort(sets[where][s].cases, kind='stable'))], run.bootstrap['n'],
                             run.bootstrap['seed']) for s in values}

    def minus(a: str, b: str, e: str) -> bootstrap.Table:
        differences = {m: drawn[a][m][0] - drawn[b][m][0] for m in drawn[a] if m in drawn[b]}
        return {m: bootstrap.summary(d[0], d[1:], run.level) for m, d in differences.items()}
    section = [rates(run.config), _table(run.config, values, minus, erm, oracle), floors(run), depths(run)]
    return _told(run, values, minus, erm, oracle, where), join(section)


def _told(run, values, minus, erm, oracle, where):
    """Whether the shortcut was one at all, and what every stage that learned from a teacher made of it."""
    if not erm:
        return tag('p', 'No finished stage is plain training on the biased images (ERM), so nothing here says what a '
                        'method changed.')
    plain, said = values[erm], []
    if where != FOUND:
        fails = [_value(plain.get('id', {}).get('auroc')) >= 0.99, _value(plain.get('flip', {}).get('auroc')) <= 0.05,
                 _value(plain[where].get('delta_tpr')) >= 0.9]
        numbers = join(['AUROC ', inline(plain.get('id', {}).get('auroc')), ' with the shortcut as in training, ',
                        inline(plain.get('flip', {}).get('auroc')),
                        ' with it turned around, ', inline(plain[where].get('auroc')), ' where it says nothing. '])
        said.append(tag('p', name('Plain training took the shortcut: ' if all(fails)
                                  else 'Plain training did not take the shortcut '
                                  'altogether: '), numbers, '' if all(fails)
                        else 'The comparison is of limited worth (full use: at least '
                        '0.99, at most 0.05, \u0394TPR at least 0.9). '))
    for s in values:
        if not run.stages[s]['uses_teacher']:
            continue
        d = minus(s, erm, where).get('auroc', {})
        side = {1: 'above', -1: 'below'}.get(0 if not d else 1 if d['low'] > 0 else -1 if d['high'] < 0 else 0, '')
        words = [name(f'{s}: '), 'AUROC ', inline(values[s][where].get('auroc')), f' on the test images "{where}"; '
                 'minus ', name(erm), ' ',
                 inline(d, sign=True), f', whose interval lies {side} 0. ' if side else ', whose interval includes 0. ']
        if oracle:
            words += [name(oracle), ', which never saw the shortcut, has ', inline(values[oracle][where].get('auroc')),
                      '. ']
        rate = [values[x][where].get('delta_tpr') for x in (s, erm)]
        said.append(tag('p', *words, '\u0394TPR ', inline(rate[0], sign=True), ', of ', name(erm), ' ',
                        inline(rate[1], sign=True), '.'))
    return join([*said, tag('p', f'Everything here comes from one seed ({run.summary.get("seed", "unknown")}).')])


def of_repeat(found: Mapping[str, Any], config: Config) -> Html:
    """The section of repeated runs, from what `jaxkd.multirun.pooling.pool` found."""
    of = [e for e in SETS if e in found['external']]
    groups = {e: e for e in of} if of else {FOUND: 'all'}
    values = {s: {e: found['arms'][g].get(s, {}) for e, g in groups.items()} for s in found['stages']}
    values = {s: of for s, of in values.items() if all('delta_tpr' in of[e] for e in (_where(of),))}
    if not values:
        return Html('')
    erm, oracle = roles(config, [s for s in values if s in found['plain']])
    pairs = {(d['a'], d['b'], e): d['metrics'] for e, g in groups.items() for d in found['differences'][g]}

    def minus(a: str, b: str, e: str) -> bootstrap.Table:
        flipped = pairs.get((b, a, e), {})
        return pairs.get((a, b, e)) or {m: _turned(entry) for m, entry in flipped.items()}
    return join([rates(config), _table(config, values, minus, erm, oracle)])


def roles(config: Config, stages: Sequence[str]) -> tuple[str, str]:
    """(ERM, oracle) among stages whose loss is that of the labels alone, '' where there is none.

    Of several the one that trains longest, then the first.
    """
    plain = []
    for s in stages:
        hp = config.get(s, {})
        other = {k for k in hp.get('data', {}) if k != 'shortcut'}
        if not (needs_bias(config, s) or hp.get('teachers') or hp.get('init', {}).get('stage') or other):
            plain.append((s, _rates(config, s)))

    def longest(found: Sequence[str]) -> str:
        steps = {s: _length(config[s].get('length', '')) for s in found}
        return max(found, key=steps.__getitem__) if found else ''
    run_rates = tuple(config['data'].get('shortcut', {}).get('rates', ()))
    return (longest([s for s, r in plain if r == run_rates != (0, 0)]), longest([s for s, r in plain if r == (0, 0)]))


def rates(config: Config) -> Html:
    """What the shortcut is, and how a reader of nothing else would score."""
    hp = config['data'].get('shortcut', {})
    given = tuple(hp.get('rates', ()))
    said = ['Shortcut: ', name(hp.get('kind', '')), f' of {hp["attribute"]}' if hp.get('attribute') else '']
    if len(given) == 2:
        said.append(f', in {100 * given[0]:g} % of the positive and {100 * given[1]:g} % of the negative training '
                    'images. It was put there for the experiment; no method but those marked "needs b" is told who has '
                    'it. ')
    if not given:
        return tag('p', *said, ', as it is found: nothing was put into any image.')
    return tag('p', *said, 'The same held-out images are scored as id (rates of the training), clean (none), neutral '
                           '(half of each class) '
               'and flip (rates exchanged); ood, where there is one, is of other images, clean.')


def _table(config, values, minus, erm, oracle):
    sets = [e for e in (*SETS, FOUND) if any(of.get(e) for of in values.values())]
    where = _where(next(iter(values.values())))
    head = ['method', *(f'AUROC {e}' for e in sets), 'id \u2212 flip', '\u0394TPR', '\u0394FPR', 'worst group',
            f'{where} AUROC \u2212 ERM',
            '\u0394TPR \u2212 oracle', '\u0394FPR \u2212 oracle', 'recovery']
    rows = []
    for s, of in values.items():
        auroc = {e: (of[e].get('auroc') or {}) for e in sets}
        neutral = of[where]
        to_erm = minus(s, erm, where).get('auroc') if erm and s != erm else None
        to_oracle = minus(s, oracle, where) if oracle and s != oracle else {}
        gap = _less(auroc.get('id'), auroc.get('flip'))
        ends = [_value(values[r][where].get('auroc')) for r in (erm, oracle)] if erm and oracle else [np.nan, np.nan]
        won = shortcut.recovery(_value(auroc[where]), *ends) if s not in (erm, oracle) else np.nan
        marks = [' (ERM)' if s == erm else ' (oracle)' if s == oracle else '', ', needs b' if needs_bias(config, s)
                 else '']
        rows.append([join([name(s), tag('small', ''.join(marks).strip(' ,')) if any(marks) else '']),
                     *(cell(auroc[e]) for e in sets), number(gap), *(cell(neutral.get(m), sign=True)
                                                                     for m in ('delta_tpr', 'delta_fpr')),
                     cell(neutral.get('worst_group')), cell(to_erm, sign=True) if to_erm else DASH,
                     *(cell(to_oracle.get(m), sign=True) if to_oracle else DASH for m in ('delta_tpr', 'delta_fpr')),
                     number(won)])
    if where != FOUND:
        rows.append(_reader(config, sets))
    return table(head, rows, f'Rates and differences of the test images "{where}", threshold 0.5. \u0394TPR = TPR with '
                             'the shortcut minus TPR without, '
                 '\u0394FPR likewise; "\u2212 oracle" is less what a network has that never saw the shortcut in '
                 'training. Recovery: share of '
                 'the neutral AUROC between ERM and the oracle that is won back. The last row is what reading the '
                 'shortcut alone would '
                 'give.', dense=True)


def needs_bias(config: Config, stage: str) -> bool:
    """Whether a stage is told who has the shortcut."""
    return bool(config.get(stage, {}).get('data', {}).get('shortcut', {}).get('reveal'))


def _reader(config, sets):
    given = tuple(config['data'].get('shortcut', {}).get('rates', ()))
    p1, p0 = given if len(given) == 2 else (np.nan, np.nan)
    auroc = dict(id=(1 + p1 - p0) / 2, flip=(1 - p1 + p0) / 2)
    return [tag('i', 'the shortcut alone'), *(number(auroc.get(e, 0.5)) for e in sets), number(p1 - p0),
            number(1.0, True),
            number(1.0, True), number(0.0), *[DASH] * 4]


def floors(run: Run) -> Html:
    """The shortcut floor of every stage that has one."""
    rows = [[s if i == 0 else '', of, *(f'{v:.2g}' for v in values.values())] for s, entry in run.stages.items()
            for i, (of, values) in enumerate(entry.get('before', {}).items())]
    known = [values for entry in run.stages.values() for values in entry.get('before', {}).values()]
    if not rows or len({tuple(v) for v in known}) > 1:
        rows = [[*row[:2], ', '.join(row[2:])] for row in rows]
        return table(['stage', 'output', 'floor'], rows, firsts=2)
    return join([tag('h3', 'Shortcut floor'), table(['stage', 'output of the teacher', *known[0]], rows, (
        'In nats, before training: the least KL to the teacher of a student that reads the shortcut and nothing else. '
        'Near 0 the teacher says no more than the shortcut does, and distilling from it changes nothing.'), firsts=2)])


def depths(run: Run) -> Html:
    """Histograms of prediction depth, with the shortcut and without, of every stage that was asked."""
    found = {s: a for s, a in run.depths.items() if s in run.stages}
    if not found:
        return Html('')

    def draw(figure: Any) -> None:
        columns = min(5, len(found))
        panels = figure.subplots(-(-len(found) // columns), columns, squeeze=False, sharey=True)
        for axes in panels.flat[len(found):]:
            axes.set_axis_off()
        for axes, (s, a) in zip(panels.flat, found.items()):
            x = np.arange(len(a['taps']))
            axes.bar(x - 0.2, a['marked'], 0.4, color=figures.COLOURS[1], label='with the shortcut')
            axes.bar(x + 0.2, a['clean'], 0.4, color=figures.COLOURS[0], label='the same without')
            axes.set_xticks(x, [str(t) for t in a['taps']], rotation=60)
            axes.set_title(f'{s}: KL {a["terms"].sum():.2f} at {a["taps"][int(a["terms"].argmax())]}')
        panels[0, 0].legend(fontsize=8)
    columns = min(5, len(found))
    size = (2.4 * columns + 0.4, 2.3 * -(-len(found) // columns) + 0.3)
    return join([tag('h3', 'Prediction depth'), tag('p', 'The first tap from which the nearest neighbours of an image '
                                                         'agree with the '
                 'network, as shares of the test images. The title names the depth at which the shortcut adds most.',
                                                    class_='dim'),
                 figures.svg('depth', size, draw)])


def _rates(config, stage):
    own = config[stage].get('data', {}).get('shortcut', {})
    return tuple(own.get('rates', config['data'].get('shortcut', {}).get('rates', ())))


def _length(text):
    digits = ''.join(c for c in str(text) if c.isdigit() or c == '.')
    return float(digits) if digits else 0.0


def _where(sets):
    """The test images that rates are compared on."""
    return 'neutral' if 'neutral' in sets else FOUND


def _value(entry):
    value = (entry or {}).get('value')
    return np.nan if value is None else value


def _less(a, b):
    return _value(a) - _value(b)


def _turned(entry):
    """b - a of an entry of a - b."""
    value, low, high = (entry.get(k) for k in ('value', 'low', 'high'))
    return {'value': None if value is None else -value, 'low': None if high is None else -high, 'high': None
            if low is None else -low}
