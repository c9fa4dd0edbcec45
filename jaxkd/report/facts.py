"""What a run knows of the topics of reporting guidelines, as plain text: for the report page and for model cards.

No case, patient, path or name of a machine is in any of it. A fact that a summary does not hold is left out.
"""
import re
from collections.abc import Mapping
from typing import Any

from jaxkd.report import comparison
from jaxkd.report.run_folder import Run

ROLES = {'train': 'training', 'val': 'validation', 'test': 'test'}
KNOWN = 'Positive cases of those whose label is 0 or 1 in the source; data.labels says how other values count.'
SMALL = 5  # cases of a group: fewer are not counted in public [our choice]
RISING = 0.98  # share of a training behind which the best step may as well be the last [our choice]

PATH = '(a path)'
PATHS = ('root', 'path', 'file', 'folder', 'table')  # keys whose text is a path, however it looks
LIKE_PATH = re.compile(r'(~|/|\.{1,2}/|[A-Za-z]:[\\/]|\\\\)')

Rows = list[list[str]]


def source(run: Run, stage: str) -> dict[str, Any]:
    """What the summary says of the data of a stage, {} if nothing."""
    return run.stages.get(stage, {}).get('source', {})


def cohort_flow(run: Run, stage: str) -> Rows:
    """[step of the flow, cases, patients] from what was found to the parts."""
    entry, flow = run.stages[stage], source(run, stage).get('cohort') or {}
    rows = [['found', f'{flow["found"]:,}', '']] if flow else []
    rows += [[f'left out: {reason}', f'{n:,}', ''] for reason, n in flow.get('skipped', {}).items()]
    rows += [['usable', f'{flow["used"]:,}', '']] if flow else []
    cases, patients = entry.get('cases', {}), entry.get('patients', {})
    rows += [[part, f'{cases[role]:,}', f'{patients[role]:,}' if role in patients else '']
             for role, part in ROLES.items() if role in cases]
    rest = flow.get('used', 0) - sum(cases.values())
    return [*rows, ['in no part, set aside or left out by a transform', f'{rest:,}', '']] if flow and rest > 0 else rows


def labels(run: Run, stage: str) -> tuple[list[str], Rows]:
    """(head, rows) of the labels by part: 'positive of known', or the number of cases of a class; empty if unknown."""
    by_part = {role: part['labels'] for role, part in run.stages[stage].get('composition', {}).items()}
    names = dict.fromkeys(name for part in by_part.values() for name in part)
    rows = [[name, *(_label(part.get(name, {})) for part in by_part.values())] for name in names]
    return ['label', *(ROLES.get(role, role) for role in by_part)], rows


def groups(run: Run, stage: str) -> tuple[list[str], Rows]:
    """(head, rows) of the groups of cases by part, where a group has SMALL cases or more in all parts together."""
    by_part = {role: part['groups'] for role, part in run.stages[stage].get('composition', {}).items()}
    names = dict.fromkeys((column, value) for part in by_part.values() for column, values in part.items()
                          for value in values)
    rows = []
    for column, value in names:
        counts = [part.get(column, {}).get(value, 0) for part in by_part.values()]
        if sum(counts) >= SMALL:
            rows.append([f'{column} = {value or "unknown"}', *(f'{n:,}' if n >= SMALL or not n else f'< {SMALL}'
                                                              for n in counts)])
    return ['group', *(ROLES.get(role, role) for role in by_part)], rows


def missing_labels(run: Run, stage: str) -> Rows:
    """[label, uncertain, not mentioned] over all parts, of the labels that lack some value."""
    totals: dict[str, list[int]] = {}
    for part in run.stages[stage].get('composition', {}).values():
        for name, counts in part['labels'].items():
            total = totals.setdefault(name, [0, 0])
            total[0] += counts.get('uncertain', 0)
            total[1] += counts.get('unmentioned', 0)
    return [[name, f'{uncertain:,}', f'{unmentioned:,}'] for name, (uncertain, unmentioned) in totals.items()
            if uncertain or unmentioned]


def privileged(run: Run, stage: str) -> dict[str, list[str]]:
    """{network that taught the stage: its inputs that the stage does not get}, of those that had an effect."""
    entry = run.stages[stage]
    names = {t: origin or t for t, origin in comparison.teachers(run, stage).items()}
    return {names.get(n, n): network['privileged'] for n, network in entry['other_networks'].items()
            if entry['uses_teacher'] and network['privileged']}


def rising(run: Run, stage: str) -> str:
    """'still rising' in a sentence where the best step is the last one, or nearly; '' elsewhere."""
    entry = run.stages[stage]
    best, steps = entry.get('best', {}).get('step'), entry.get('steps')
    if not (best and steps and entry.get('select')) or best < RISING * steps:
        return ''
    return (f'The best step of {stage} is {"its last" if best == steps else f"{best:,} of {steps:,}"}: the score was '
            'still rising, and a longer training may do better.')


def without_paths(tree: Any) -> Any:
    """A config with '(a path)' where it names a file or folder, which is nobody's business elsewhere."""
    if isinstance(tree, Mapping):
        return {k: PATH if k in PATHS and isinstance(v, str) and v else without_paths(v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [without_paths(v) for v in tree]
    return PATH if isinstance(tree, str) and LIKE_PATH.match(tree) else tree


def without_folders(text: str) -> str:
    """A message with the names of files in place of their paths, whose folders may have blanks in their names."""
    return re.sub(r'(?<![^\s"\'(\[=:])(?:~|[A-Za-z]:|\.{1,2})?[\\/](?:[^:\\/]+[\\/])*', '', text)


def split(run: Run, stage: str) -> str:
    """How the parts were made."""
    hp = (run.config.get('data', {}) | run.options(stage).get('data', {})).get('split', {})
    if not hp:
        return 'By patient: all cases of a patient are in one part.'
    how = ('as a file says' if hp.get('file') else
           f'fold {hp.get("fold", 0) + 1} of {hp["folds"]}' if hp.get('folds') else
           f'{hp["leave_out"]} left out' if hp.get('leave_out') else
           f'drawn with seed {hp.get("seed", 0)}' + (', the parts that the archive gives kept' if hp.get('given')
                                                     else ''))
    strata = f', in strata of {", ".join(hp["stratify"])}' if hp.get('stratify') else ''
    return f'By patient: all cases of a patient are in one part; {how}{strata}.'


def software(run: Run) -> dict[str, str]:
    """{package: version}, with the commit of jaxkd where it is known."""
    return {name: str(version) for name, version in run.summary.get('versions', {}).items()}


def hardware(run: Run) -> dict[str, str]:
    """{part of the machine: what it is}."""
    devices = run.summary.get('devices')
    return ({'devices': devices} if devices else {}) | run.summary.get('machine', {})


def dates(run: Run) -> list[str]:
    """Of the first and the last finished stage."""
    found = sorted(e['date'] for e in run.stages.values() if 'date' in e)
    return list(dict.fromkeys([found[0], found[-1]])) if found else []


def limits(run: Run, stage: str, entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sentences on what the results of a stage do not show. entries: its test metrics, {metric: entry}."""
    entry = run.stages[stage]
    found = [f'The data: {note}.'] if (note := source(run, stage).get('note')) else []
    found.append(f'One training with one seed ({run.summary.get("seed", "unknown")}): the intervals say what other '
                 'test patients would change, not what another seed, split or training set would.')
    patients = entry.get('patients', {}).get('test', 0)
    if patients < 100:  # [our choice]
        found.append(f'Only {patients} test patients.')
    few = [k.partition('/')[2] for k, e in entries.items() if k.startswith('auroc/')
           and min(e.get('n_positive', 10), e.get('n_negative', 10)) < 10]
    if few:
        found.append(f'Fewer than 10 positive or negative test cases: {", ".join(few)}.')
    if not run.external_evaluators(stage):
        found.append('No data of another source was tested.')
    if text := rising(run, stage):
        found.append(text)
    return found


def _label(counts):
    if not counts:
        return ''
    known = counts['positive'] + counts.get('negative', 0)
    if 'negative' not in counts:
        return f'{counts["positive"]:,}'
    share = f' ({100 * counts["positive"] / known:.0f}\u00a0%)' if known else ''
    return f'{counts["positive"]:,} of {known:,}{share}'
