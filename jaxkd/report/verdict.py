"""The conclusions of a run in words, and their limits."""
from collections.abc import Mapping, Sequence

from jaxkd.report import comparison, statistics
from jaxkd.report.markup import Html, details, inline, join, name, number, tag
from jaxkd.report.run_folder import Run

RULE = ('a gain from privileged data is claimed only where the distilled student beats an arm without a teacher, an '
        'arm with a shuffled teacher, and an arm whose teacher reads the same input')
HEADLINE = {1: 'Higher {} than without a teacher, in this run', 0: 'Null result in {}',
            -1: 'Negative result in {}', None: 'No conclusion in {}'}
AGAINST_ALL = {1: 'Higher {} than the best control, in this run', 0: 'Null result in {} against the best control',
               -1: 'Negative result in {} against the best control', None: HEADLINE[None]}
MEANING = {0: 'This run shows neither a gain nor a loss in {}, which is not evidence that there is none. ',
           -1: 'The student that learned from the teacher did worse than the one that did not. '}
# the group of cases with the largest expected benefit of a teacher, as in `Case.groups` of sources
CHALLENGING = ('subgroup', 'challenging')


def paragraphs(run: Run, comparisons: Sequence[comparison.Comparison]) -> Html:
    """Paragraphs on each student with a teacher; comparisons: `comparison.comparisons(run)`."""
    if not run.stages:
        return tag('p', 'No stage has finished: there is no result to sum up.')
    students = [_student(run, comparisons, arms, s) for arms in comparison.arms(run) for s in arms
                if comparison.kind(run, s) in ('privileged', 'unknown')]
    if not students:
        students = [tag('p', 'No finished stage learned from a teacher that reads something the student does not, so '
                             'this run says nothing about privileged distillation. ', *_values(run, run.stages))]
    return join([*students, tag(
        'p', f'Everything here comes from one seed ({run.summary.get("seed", "unknown")}). The intervals show how much '
        'the choice of test patients matters; what another seed would change is not shown.')])


def reading(entry: Mapping | None) -> str:
    """The position of the interval of a difference, for a table."""
    return {None: 'no interval', 0: 'includes 0',
            1: 'excludes 0: above', -1: 'excludes 0: below'}[comparison.side(entry)]


def _student(run, comparisons, arms, student):
    teachers = comparison.teachers(run, student)
    baseline = arms[0] if comparison.kind(run, arms[0]) == 'no_teacher' else ''
    pair = _pair(comparisons, student, baseline)
    sources = [_teacher(run, student, t) for t in teachers]
    sources += [join([name(n), ' (trained along with it, reads ', _inputs(inputs), ')'])
                for n, inputs in comparison.co_trained(run, student).items()]
    headline = _worth(run, arms, student) or (_headline(run, pair) if pair else '')
    text = [name(student), ' reads ', _inputs(run.stages[student].get('inputs')),
            ' and learned from ', join(sources, ' and '), '. ',
            *_values(run, [s for s in dict.fromkeys([*teachers.values(), baseline, student]) if s])]
    if pair:
        weightless = run.stages[baseline].get('teachers') or comparison.co_trained(run, baseline)
        text += [name(baseline), ' is the same network ', 'with a teacher whose terms all have the weight 0. '
                 if weightless else 'without a teacher. ', MEANING.get(_side(pair), '').format(_primary(pair)),
                 *_further_metrics(pair), *_challenging(run, pair), *_external(run, pair), *_other_differences(pair),
                 *(_gap(run, student, baseline, t) for t in teachers.values() if t)]
    else:
        text.append('No finished stage is the same network on the same data without a teacher, so nothing here says '
                    'what the teacher changed. ')
    side = (_side(pair) or 0) if pair and not pair.why and not _few(run, student) else 0
    return tag('div', tag('p', headline, class_='headline') if headline else '',
               tag('p', name('What may be claimed. '), _claim(run, comparisons, arms, student, baseline)),
               details(f'The numbers behind it: {student}', tag('p', *text), _localisation(run, pair) if pair else ''),
               class_=f'card {({1: "gain", -1: "loss"}).get(side, "")}'.strip())


def _headline(run, c):
    if c.why:
        metric = statistics.display_name(statistics.primary_metric(run.table(c.a)))
        return join([name(f'{HEADLINE[None].format(metric)}: '), 'the paired difference cannot be given, because ',
                     c.why, '. '])
    entry = c.metrics[c.primary_metric]
    return join([_words(run, c.a, HEADLINE, entry, _primary(c)), _difference(c, entry), '; ',
                 _interval(run, entry), '. '])


def _words(run, student, headlines, entry, metric):
    """The first words of a conclusion; of too few test patients there is none, wherever the interval lies."""
    few = _few(run, student)
    return name(f'{headlines[None if few else comparison.side(entry)].format(metric)}{few and ", " + few}: ')


def _few(run, student):
    """'only 6 test patients' where they are too few for any conclusion, else ''."""
    table = run.table(student)
    n = table.get(statistics.primary_metric(table), {}).get('n_patients', statistics.FEWEST)
    return f'only {n} test patient{"s" * (n != 1)}' if n < statistics.FEWEST else ''


def _worth(run, arms, student):
    """Of a run in which few have labels: the student against the best of its controls; '' for other runs."""
    counts = run.stages[student].get('labels', {}).get('train', {})
    controls = [s for s in arms if comparison.kind(run, s) in ('no_teacher', 'shuffled', 'same_modality')]
    if not controls or counts.get('patients') == counts.get('of'):
        return ''
    metric = statistics.primary_metric(run.table(student))
    best = max(controls, key=lambda s: run.table(s).get(metric, {}).get('value') or 0)
    table, why = comparison.classified(run, student, best)
    if why:
        return ''
    entry, shown = table[metric], statistics.display_name(metric)
    others = f' (best of {len(controls)} controls)' if controls[1:] else ''
    return join([_words(run, student, AGAINST_ALL, entry, shown), student, ' minus ', best, others,
                 ' is ', inline(entry, sign=True), '; ', _interval(run, entry),
                 f'. Labels of {counts["patients"]:,} of {counts["of"]:,} training patients. '])


def _difference(c, entry):
    return join([c.a, ' minus ', c.b, ' is ', inline(entry, sign=True)])


def _interval(run, entry):
    side = comparison.side(entry)
    if side is None:
        return 'there is no interval, so nothing is known of chance'
    return f'the {run.percent} interval of the paired difference {"excludes" if side else "includes"} 0'


def _teacher(run, student, t):
    origin, inputs = comparison.teachers(run, student)[t], run.stages[student]['other_networks'][t]['inputs']
    return join([name(origin or t), ' (frozen, ', '' if origin else 'from another run, ',
                 'what it reads is not known here' if inputs is None else join(['reads ', _inputs(inputs)]), ')'])


def _inputs(inputs):
    return name(', '.join(inputs)) if inputs else 'inputs that the summary does not tell'


def _values(run, stages):
    tables = {s: table for s in stages if (table := run.table(s))}
    if not tables:
        return ['There is no AUROC to compare. ']
    metric = 'dice' if any('dice' in table for table in tables.values()) else 'auroc'
    entries = {s: table[metric] for s, table in tables.items() if metric in table}
    n = sorted({entry.get('n_patients', 0) for entry in entries.values()})
    patients = f'On {n[0]}{f" to {n[-1]}" if n[1:] else ""} test patients '
    if all('accuracy' in table for table in tables.values()):
        values = [join([f'the {statistics.NAMES[m]} is ', _by_stage({s: table[m] for s, table in tables.items()})])
                  for m in ('accuracy', 'balanced_accuracy')]
        return [patients, join(values, '; '), '. ']
    if metric == 'dice':
        classes = max(len(statistics.classes(table, 'dice')) for table in tables.values())
        label = f'Dice{f", mean over {classes} classes," if classes > 1 else ""}'
    else:
        labels = max(entry.get('n_labels', 1) for entry in entries.values())
        label = f'AUROC, mean over {labels} label{"s" * (labels != 1)},'
    return [f'{patients}the {label} is ', _by_stage(entries), '. ']


def _by_stage(entries):
    return join([join([inline(entry), ' for ', name(s)]) for s, entry in entries.items()], ', ')


def _pair(comparisons, a, b):
    """The comparison a minus b, None without one."""
    return next((c for c in comparisons if (c.a, c.b) == (a, b)), None)


def _side(c, evaluator=''):
    table = c.external.get(evaluator, {}) if evaluator else c.metrics
    return comparison.side(table.get(statistics.primary_metric(table)))


def _primary(c):
    return statistics.display_name(c.primary_metric)


def _further_metrics(c):
    """Other metrics with an interval that excludes 0."""
    text = []
    for m in statistics.compared(c.metrics):
        side = comparison.side(c.metrics[m])
        if m != c.primary_metric and side:
            better = 'better' if (side == -1) == (m in statistics.LOWER_IS_BETTER) else 'worse'
            text.append(join([f'{statistics.display_name(m)} ', inline(c.metrics[m], sign=True), f' ({better})']))
    return ['Intervals of the difference that exclude 0 in other measures: ', join(text, ', '), '. '] if text else []


def _challenging(run, c):
    """The difference in the group CHALLENGING, where the source has it."""
    entry = c.groups.get(CHALLENGING, {}).get(c.primary_metric)
    return [f'In the {CHALLENGING[1]} cases ({entry["n_patients"]} patients) ', _difference(c, entry),
            f' in {_primary(c)}; ', _interval(run, entry), '. '] if entry else []


def _external(run, c):
    """The same difference on other data."""
    text = []
    for e, table in c.external.items():
        metric = statistics.primary_metric(table)
        text += ['On the other data of ', name(e), f' ({table[metric]["n_patients"]} patients) ',
                 _difference(c, table[metric]), f' in {statistics.display_name(metric)}; ',
                 _interval(run, table[metric]), '. ']
    return text


def _other_differences(c):
    return ([f'The two differ in more than the method and its teacher: {", ".join(c.other_differences)}. ']
            if c.other_differences else [])


def _gap(run, student, baseline, teacher):
    """The fraction of the gap to the teacher that was closed, if the interval of the gap is above 0."""
    table, why = comparison.classified(run, teacher, baseline)
    if why:
        return Html('')
    entry = table[statistics.primary_metric(table)]
    side = comparison.side(entry)
    gap = join([name(teacher), ' minus ', name(baseline), ' is ', inline(entry, sign=True)])
    if side == 1:
        closed = comparison.gap_closed(run, student, baseline, teacher)
        return join(['Share of the gap to the teacher that was closed: ', inline(closed),
                     ', where 1 would be all of it and ', gap, '. '])
    reason = {0: 'its interval includes 0', -1: 'the teacher is the worse of the two', None: 'it has no interval'}[side]
    return join(['How much of the gap to the teacher was closed is not given, because there is no clear gap: ', gap,
                 f', and {reason}. '])


def _localisation(run, c):
    if c.why_no_regions:
        return Html('')
    map = comparison.compared_map(run.regions[c.a])
    entry, key = c.localisation['auprc'], f'{map}/auprc'
    chance = run.table(c.a, 'localisation').get(f'{map}/auprc_chance')
    entry_a, entry_b = (run.table(s, 'localisation').get(key) for s in (c.a, c.b))
    text = [name('Where the attention points: '), _difference(c, entry), f' in pixel AUPRC of {map}; ',
            _interval(run, entry), f'. The values are {inline(entry_a)} for ', name(c.a),
            f' and {inline(entry_b)} for ',
            name(c.b), f', over {entry["n_rois"]} boxes or regions of {entry["n_patients"]} patients',
            f'; chance is {number(chance["value"])}. ' if chance else '. ']
    constant = {k: t['auprc'] for k, t in comparison.against_controls(run, c.a).items() if k != 'untrained'}
    if constant:
        best = min(constant, key=lambda k: constant[k]['value'])
        meaning = {1: 'the attention says more than that map', 0: 'the attention cannot be told from that map',
                   -1: 'the attention says less than that map',
                   None: 'there is no interval'}[comparison.side(constant[best])]
        text += ['Of the maps that ignore the image, ', name(best), ' does best; ', name(c.a), ' minus it is ',
                 inline(constant[best], sign=True), f': {meaning}.']
    return tag('p', *text)


def _claim(run, comparisons, arms, student, baseline):
    """The decision rule: better than without a teacher, with a shuffled teacher and with one of the same input."""
    if comparison.kind(run, student) == 'unknown':
        return Html('Whether the teacher read anything privileged is not known here, so no privileged gain can be '
                    'claimed.')
    if few := _few(run, student):
        return Html(f'Nothing: there are {few}, too few to say anything, wherever the intervals lie.')
    rivals = {'arm without a teacher': [baseline] if baseline else []} | {
        description: [s for s in arms if comparison.kind(run, s) == kind] for kind, description in (
            ('shuffled', 'arm with a shuffled teacher'), ('same_modality', 'arm whose teacher reads the same input'))}
    if missing := [f'no {description}' for description, stages in rivals.items() if not stages]:
        return join(['Nothing about privileged data. The rule: ', RULE, f'. This run has {" and ".join(missing)}.'])
    metric = statistics.display_name(statistics.primary_metric(run.table(student)))
    pairs = {s: _pair(comparisons, student, s) for stages in rivals.values() for s in stages}
    failed = _failed(pairs)
    text = ([f'No privileged gain in {metric}. The rule: ', RULE, '. The interval', failed] if failed else
            [f'In {metric} this run meets the rule: ', RULE,
             '. All three intervals lie above 0. A claim also needs the same from other seeds.'])
    for e in dict.fromkeys(e for c in pairs.values() for e in c.external):
        failed = _failed(pairs, e)
        text += [' On the other data of ', name(e), ' the rule is ', 'not met: the interval' if failed else 'met.',
                 failed]
    return join(text)


def _failed(pairs, evaluator=''):
    """Arms that the student does not exceed, in words; '' without any."""
    stages = [name(s) for s, c in pairs.items() if _side(c, evaluator) != 1]
    return join([' of the difference to ', join(stages, ' and to '), ' does not lie above 0.']) if stages else ''
