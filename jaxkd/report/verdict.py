"""What the numbers of a run say in words, and what they do not."""
from collections.abc import Mapping, Sequence

from jaxkd.report import comparison, statistics
from jaxkd.report.markup import Html, inline, join, name, number, tag
from jaxkd.report.run_folder import Run

RULE = ('a gain from privileged data is claimed only where the distilled student beats an arm without a teacher, an '
        'arm with a shuffled teacher, and an arm whose teacher reads the same input')
HEADLINE = {1: 'Higher {} than without a teacher, in this run', 0: 'Null result in {}',
            -1: 'Negative result in {}', None: 'No conclusion in {}'}
MEANING = {0: 'This run shows neither a gain nor a loss in {}, which is not evidence that there is none. ',
           -1: 'The student that learned from the teacher did worse than the one that did not. '}
# the group of cases that a teacher is hoped to help most, as sources call it in `Case.groups`
CHALLENGING = ('subgroup', 'challenging')


def paragraphs(run: Run, found: Sequence[comparison.Comparison]) -> Html:
    """found: `compare.comparisons(run)` -> Html, for each student that learned from a teacher what came of it."""
    if not run.stages:
        return tag('p', 'No stage has finished: there is no result to sum up.')
    told = [_student(run, found, arms, s) for arms in comparison.arms(run) for s in arms
            if comparison.kind(run, s) in ('privileged', 'unknown')]
    if not told:
        told = [tag('p', 'No finished stage learned from a teacher that reads something the student does not, so this '
                         'run '
                    'says nothing about privileged distillation. ', *_values(run, run.stages))]
    return join([*told, tag('p', f'Everything here comes from one seed ({run.summary.get("seed", "unknown")}). The '
                                 'intervals '
                            'show how much the choice of test patients matters; what another seed would change is not '
                            'shown.')])


def reading(entry: Mapping | None) -> str:
    """Where the interval of a difference lies, for a table."""
    return {None: 'no interval', 0: 'includes 0',
            1: 'excludes 0: above', -1: 'excludes 0: below'}[comparison.side(entry)]


def _student(run, found, arms, student):
    teachers = comparison.teachers(run, student)
    baseline = arms[0] if comparison.kind(run, arms[0]) == 'no_teacher' else ''
    pair = _pair(found, student, baseline)
    said = [_headline(run, pair) if pair else '', name(student), ' reads ', _inputs(run.stages[student].get('inputs')),
            ' and learned from ', join([_teacher(run, student, t) for t in teachers] + [
                join([name(n), ' (trained along with it, reads ', _inputs(inputs), ')'])
                for n, inputs in comparison.co_trained(run, student).items()], ' and '), '. ',
            *_values(run, [s for s in dict.fromkeys([*teachers.values(), baseline, student]) if s])]
    if pair:
        silent = run.stages[baseline].get('teachers') or comparison.co_trained(run, baseline)
        said += [name(baseline), ' is the same network ', 'with a teacher whose terms all have the weight 0. ' if silent
                 else
                 'without a teacher. ', MEANING.get(_side(pair), '').format(_primary(pair)), *_more(pair), *_hard(run,
                                                                                                                  pair),
                 *_external(run, pair), *_also(pair), *(_gap(run, student, baseline, t) for t in teachers.values()
                                                        if t)]
    else:
        said.append('No finished stage is the same network on the same data without a teacher, so nothing here says '
                    'what the teacher changed. ')
    return join([tag('p', *said), _localisation(run, pair) if pair else '',
                 tag('p', name('What may be claimed. '), _claim(run, found, arms, student, baseline))])


def _headline(run, c):
    if c.why:
        of = statistics.display_name(statistics.primary_metric(run.table(c.a)))
        return join([name(f'{HEADLINE[None].format(of)}: '), 'the paired difference cannot be given, because ', c.why,
                     '. '])
    entry = c.metrics[c.primary_metric]
    return join([name(f'{HEADLINE[comparison.side(entry)].format(_primary(c))}: '), c.a, ' minus ', c.b, ' is ',
                 inline(entry, sign=True), '; ', _interval(run, entry), '. '])


def _interval(run, entry):
    side = comparison.side(entry)
    if side is None:
        return 'there is no interval, so nothing is known of chance'
    return f'the {run.percent} interval of the paired difference {"excludes" if side else "includes"} 0'


def _teacher(run, student, t):
    of, inputs = comparison.teachers(run, student)[t], comparison.reads(run, student, t)
    return join([name(of or t), ' (frozen, ', '' if of else 'from another run, ',
                 'what it reads is not known here' if inputs is None else join(['reads ', _inputs(inputs)]), ')'])


def _inputs(inputs):
    return name(', '.join(inputs)) if inputs else 'inputs that the summary does not tell'


def _values(run, stages):
    known = {s: run.table(s) for s in stages}
    known = {s: table for s, table in known.items() if table}
    if not known:
        return ['There is no AUROC to compare. ']
    first = statistics.primary_metric({m for table in known.values() for m in table})
    first = 'auroc' if first == 'accuracy' else first
    of = {s: table[first] for s, table in known.items() if first in table}
    n = sorted({entry.get('n_patients', 0) for entry in of.values()})
    patients = f'On {n[0]}{f" to {n[-1]}" if n[1:] else ""} test patients '
    if all('accuracy' in table for table in known.values()):
        told = [join([f'the {statistics.NAMES[m]} is ', _each({s: table[m] for s, table in known.items()})])
                for m in ('accuracy', 'balanced_accuracy')]
        return [patients, join(told, '; '), '. ']
    if first == 'dice':
        classes = max(len(statistics.classes(table, 'dice')) for table in known.values())
        return [f'{patients}the Dice{f", mean over {classes} classes," if classes > 1 else ""} is ', _each(of), '. ']
    labels = max(entry.get('n_labels', 1) for entry in of.values())
    return [f'{patients}the AUROC, mean over {labels} label{"s" * (labels != 1)}, is ', _each(of), '. ']


def _each(entries):
    return join([join([inline(entry), ' for ', name(s)]) for s, entry in entries.items()], ', ')


def _pair(found, a, b):
    """The comparison a minus b, None without one."""
    return next((c for c in found if (c.a, c.b) == (a, b)), None)


def _side(c, evaluator=''):
    of = c.external.get(evaluator, {}) if evaluator else c.metrics
    return comparison.side(of.get(statistics.primary_metric(of)))


def _primary(c):
    return statistics.display_name(c.primary_metric)


def _more(c):
    """What the other measures say where their interval excludes 0: a null result in one is not one in all."""
    clear = {m: c.metrics[m] for m in statistics.compared(c.metrics) if m != c.primary_metric
             and comparison.side(c.metrics[m])}
    told = [join([f'{statistics.display_name(m)} ', inline(entry, sign=True), ' (', 'better' if _better(m, entry)
                  else 'worse', ')'])
            for m, entry in clear.items()]
    return ['Intervals of the difference that exclude 0 in other measures: ', join(told, ', '), '. '] if told else []


def _better(of, entry):
    return (comparison.side(entry) == -1) == (of in statistics.LOWER_IS_BETTER)


def _hard(run, c):
    """The group that the teacher is hoped to help most, where the source tells it."""
    entry = c.groups.get(CHALLENGING, {}).get(c.primary_metric)
    return [f'In the {CHALLENGING[1]} cases ({entry["n_patients"]} patients) ', c.a, ' minus ', c.b, ' is ',
            inline(entry, sign=True),
            f' in {_primary(c)}; ', _interval(run, entry), '. '] if entry else []


def _external(run, c):
    """The same difference on other data."""
    told = [(e, of, of[statistics.primary_metric(of)]) for e, of in c.external.items()]
    return [join(['On the other data of ', name(e), f' ({entry["n_patients"]} patients) ', c.a, ' minus ', c.b, ' is ',
                  inline(entry, sign=True), f' in {statistics.display_name(statistics.primary_metric(of))}; ',
                  _interval(run, entry), '. '])
            for e, of, entry in told]


def _also(c):
    return ([f'The two differ in more than the method and its teacher: {", ".join(c.other_differences)}. ']
            if c.other_differences else [])


def _gap(run, student, baseline, teacher):
    """The share of the gap to the teacher that was closed, where there is a gap."""
    table, why = comparison.classified(run, teacher, baseline)
    if why:
        return Html('')
    entry = table[statistics.primary_metric(table)]
    side = comparison.side(entry)
    gap = join([name(teacher), ' minus ', name(baseline), ' is ', inline(entry, sign=True)])
    if side == 1:
        closed = comparison.gap_closed(run, student, baseline, teacher)
        return join(['Share of the gap to the teacher that was closed: ', inline(closed),
                     ', where 1 would be all of it and ',
                     gap, '. '])
    because = {0: 'its interval includes 0', -1: 'the teacher is the worse of the two',
               None: 'it has no interval'}[side]
    return join(['How much of the gap to the teacher was closed is not given, because there is no clear gap: ', gap,
                 ', and ',
                 because, '. '])


def _localisation(run, c):
    if c.why_no_regions:
        return Html('')
    entry, at = c.localisation['auprc'], f'{comparison.MAP}/auprc'
    chance = run.table(c.a, 'localisation').get(f'{comparison.MAP}/auprc_chance')
    of_a, of_b = (run.table(s, 'localisation').get(at) for s in (c.a, c.b))
    said = [name('Where the attention points: '), c.a, ' minus ', c.b, f' is {inline(entry, sign=True)} in pixel AUPRC '
            'of ',
            comparison.MAP, '; ', _interval(run, entry), f'. The values are {inline(of_a)} for ', name(c.a),
            f' and {inline(of_b)} for ', name(c.b), f', over {entry["n_rois"]} boxes or regions of '
                                                    f'{entry["n_patients"]} patients',
            f'; chance is {number(chance["value"])}. ' if chance else '. ']
    blind = {k: t['auprc'] for k, t in comparison.against_controls(run, c.a).items() if k != 'untrained'}
    if blind:
        best = min(blind, key=lambda k: blind[k]['value'])
        meaning = {1: 'the attention says more than that map', 0: 'the attention cannot be told from that map',
                   -1: 'the attention says less than that map',
                   None: 'there is no interval'}[comparison.side(blind[best])]
        said += ['Of the maps that ignore the image, ', name(best), ' does best; ', name(c.a), ' minus it is ',
                 inline(blind[best], sign=True), f': {meaning}.']
    return tag('p', *said)


def _claim(run, found, arms, student, baseline):
    """The decision rule: beat the arm alone, the shuffled teacher and the teacher with the same input."""
    if comparison.kind(run, student) == 'unknown':
        return Html('Whether the teacher read anything privileged is not known here, so no privileged gain can be '
                    'claimed.')
    rivals = {'arm without a teacher': [baseline] if baseline else []} | {
        what: [s for s in arms if comparison.kind(run, s) == kind] for kind, what in (
            ('shuffled', 'arm with a shuffled teacher'), ('same_modality', 'arm whose teacher reads the same input'))}
    missing = [f'no {what}' for what, there in rivals.items() if not there]
    if missing:
        return join(['Nothing about privileged data. The rule: ', RULE, f'. This run has {" and ".join(missing)}.'])
    of = statistics.display_name(statistics.primary_metric(run.table(student)))
    pairs = {s: _pair(found, student, s) for there in rivals.values() for s in there}
    lost = [s for s, c in pairs.items() if _side(c) != 1]
    told = [f'No privileged gain in {of}. The rule: ', RULE, '. The interval of the difference to ',
            join([name(s) for s in lost], ' and to '), ' does not lie above 0.'] if lost else [
            f'In {of} this run meets the rule: ', RULE, '. All three intervals lie above 0. A claim also needs the '
                                                        'same from '
            'other seeds.']
    for e in dict.fromkeys(e for c in pairs.values() for e in c.external):
        lost = [s for s, c in pairs.items() if _side(c, e) != 1]
        told += [' On the other data of ', name(e), ' the rule is ', join([
            'not met: the interval of the difference to ', join([name(s) for s in lost], ' and to '),
            ' does not lie above 0.']) if lost else 'met.']
    return join(told)
