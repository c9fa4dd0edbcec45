"""The card of a model: what it is for, what it was trained and tested on, how well it did, and what it is not.

Markdown with the YAML head that model hubs read, made from the folder of a run alone. What only people can know is a
blank that begins with BLANK. No case, patient, path or text of a report is in it.
"""
import html
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxkd import errors
from jaxkd.report import comparison, facts, run_folder, statistics, tables
from jaxkd.report.markup import DASH, inline, number
from jaxkd.report.run_folder import Run
from jaxkd.runtime import files

BLANK = 'TO BE FILLED IN'
TEXT, TABULAR = ('text', 'bert'), ('tabular',)  # models by input; others read images
HUB_NAMES = {'auroc': 'roc_auc', 'dice': 'dice', 'accuracy': 'accuracy', 'brier': 'brier_score'}  # in the YAML head
CALIBRATION = {'ece': 'ECE, bins of equal width', 'ece_mass': 'ECE, bins of equal mass', 'brier': 'Brier score'}


def write(workdir: str | pathlib.Path, stage: str, path: str | pathlib.Path) -> pathlib.Path:
    """Write the card of a finished stage to `path` -> the path.

    Raises MissingInput without the run or the stage, Damaged for a file of it that cannot be read, CannotWrite.
    """
    files.write(path, text(run_folder.read(workdir), stage))
    return pathlib.Path(path)


def text(run: Run, stage: str, data_licence: str = '') -> str:
    """The Markdown text of the card of a finished stage; MissingInput without it. data_licence: '' leaves a blank."""
    if stage not in run.stages:
        raise errors.MissingInput(f'{run.folder} holds no finished stage "{stage}".{errors.nearest(stage, run.stages)}')
    name = f'{run.folder.resolve().name}: {stage}'
    note = facts.source(run, stage).get('note')
    sections = {'Intended use': _use(run, stage), 'Data': _data(run, stage, data_licence),
                'Results': _results(run, stage), 'Calibration': _calibration(run, stage),
                'What the teacher changed': _comparisons(run, stage),
                'Training': _training(run, stage), 'Limits': _limits(run, stage), 'Environment': _environment(run)}
    body = [f'# {_escape(name)}', *([f'> **Note.** {_escape(note)}'] if note else []),
            f'Places that begin with {BLANK} need a person: the run does not know them.']
    for title, blocks in sections.items():
        body += [f'## {title}', *blocks]
    return f'---\n{_yaml(head(run, stage))}---\n\n' + '\n\n'.join(filter(None, body)) + '\n'


def head(run: Run, stage: str) -> dict[str, Any]:
    """The metadata that model hubs read."""
    entries, data = run.table(stage), facts.source(run, stage)
    metrics = {m: e for m, e in entries.items() if m in HUB_NAMES and _known(e)}
    task, dataset = _task(run, stage), str(data.get('name', 'unknown'))
    results = dict(task=dict(type=task), dataset=dict(name=dataset, type=dataset, split='test'),
                   metrics=[dict(type=HUB_NAMES[m], name=statistics.display_name(m), value=round(e['value'], 4))
                            for m, e in metrics.items()])
    return {'library_name': 'jaxkd', 'pipeline_tag': task, 'license': 'other', 'license_name': 'to-be-filled-in',
            'tags': ['jax', 'flax', 'medical-imaging', 'knowledge-distillation',
                     *(['privileged-information'] if facts.privileged(run, stage) else [])],
            'metrics': [HUB_NAMES[m] for m in metrics],
            'model-index': [{'name': f'{run.folder.resolve().name}-{stage}', 'results': [results]}] if metrics else []}


def _task(run, stage):
    if 'dice' in run.table(stage):
        return 'image-segmentation'
    model = run.stages[stage].get('model', '')
    return ('text-classification' if model in TEXT else 'tabular-classification' if model in TABULAR
            else 'image-classification')


def _use(run, stage):
    entry, labels = run.stages[stage], facts.source(run, stage).get('labels', ())
    inputs = ', '.join(entry.get('inputs', ())) or 'not known'
    gives = ('the class of every place' if 'dice' in run.table(stage) else 'the class of a case'
             if run.exclusive(stage) else 'a probability of each label')
    known = [['reads', f'{inputs}, and nothing else'], ['gives', f'{gives}: {", ".join(labels)}']]
    taught = facts.privileged(run, stage)
    known += [['needed in training alone', '; '.join(f'{", ".join(keys)} (read by {teacher})'
                                                     for teacher, keys in taught.items()) or 'nothing']]
    return [_table(['', ''], known), _blank('who is to use it, on which patients, in which setting, and for which '
                                            'decision'),
            _blank('what it must not be used for'),
            'This is the result of a research program. It is no medical device, and nothing here shows that a decision '
            'made with it does a patient any good.']


def _data(run, stage, licence):
    head, rows = facts.labels(run, stage)
    group_head, group_rows = facts.groups(run, stage)
    missing = facts.missing_labels(run, stage)
    return [f'Source: {_escape(facts.source(run, stage).get("name", "not known"))}. {_escape(facts.split(run, stage))}',
            _table(['cohort', 'cases', 'patients'], facts.cohort_flow(run, stage)),
            facts.KNOWN if rows else '', _table(head, rows),
            'Cases by group:' if group_rows else '', _table(group_head, group_rows),
            'Labels without a value:' if missing else '', _table(['label', 'uncertain', 'not mentioned'], missing),
            f'Licence of the data: {_escape(licence)}.' if licence else '',
            _blank('sites, scanners and dates of the data; who set the reference standard and how; consent and ethical '
                   f'approval{"" if licence else "; the licence of the data"}')]


def _results(run, stage):
    entries = run.table(stage)
    if not entries:
        return ['The run holds no test results of this stage.']
    shown = [m for m in statistics.shown(entries) if m not in CALIBRATION]
    n = next(iter(entries.values())).get('n_patients', 0)
    by_label = statistics.per_class(entries, 'dice' if 'dice' in entries else 'auroc')
    step = run.stages[stage].get('best', {}).get('step', DASH)
    blocks = [f'Test part, {n:,} patients, at the best step by validation (step {step}). Intervals: {run.percent}, '
              'resampled by patient.',
              _table(['metric', 'value'], [_metric(m, entries[m]) for m in [*shown, *by_label]])]
    groups = [[f'{column} = {value}', f'{e[stage]["n_patients"]:,}', *_metric(m, e[stage])]
              for (column, value, m), e in tables.by_group(run, [stage]).items()]
    blocks += [f'Groups of {statistics.FEWEST} test patients or more:' if groups else
               f'No group of cases has {statistics.FEWEST} test patients or more, so none has results of its own.',
               _table(['group', 'patients', 'metric', 'value'], groups)]
    for evaluator in run.external_evaluators(stage):
        if table := run.table_of(stage, evaluator):
            blocks += [f'Other data, {_escape(evaluator)}:',
                       _table(['metric', 'value'], [_metric(m, table[m]) for m in statistics.shown(table)])]
    return blocks


def _calibration(run, stage):
    rows = [[CALIBRATION[m], inline(e)] for m, e in run.table(stage).items() if m in CALIBRATION and _known(e)]
    blocks = ['Of the probabilities as the network gives them, on the test part; 0 would be perfect.',
              _table(['measure', 'value'], rows)] if rows else ['No calibration was measured on the test part.']
    decision = run.stages[stage].get('decision') or {}
    if 'temperature' in decision:
        blocks.append(f'Calibrated probabilities are softmax(logits / {decision["temperature"]:.3f}), fitted on '
                      f'{decision["cases"]:,} validation cases.')
    points = [[label, name.replace('_', ' '), *(number(point[k]) for k in ('threshold', 'sensitivity', 'specificity'))]
              for label, fitted in decision.get('labels', {}).items() for name, point in fitted['points'].items()]
    if points:
        blocks += [f'Operating points, chosen on {decision["cases"]:,} validation cases; a label is positive where its '
                   'logit reaches the threshold. The rates are those of the same cases, so they are optimistic.',
                   _table(['label', 'point', 'threshold', 'sensitivity', 'specificity'], points)]
    return blocks


def _comparisons(run, stage):
    compared = [c for c in comparison.comparisons(run) if c.a == stage and c.metrics]
    if not compared:
        return ['No finished stage of the run can be compared with this one.']
    kinds = {'no_teacher': 'no teacher', 'shuffled': 'a shuffled teacher',
             'same_modality': 'a teacher of the same input', 'privileged': 'a privileged teacher',
             'unknown': 'a teacher whose inputs are not known'}
    rows = [[f'{stage} \u2212 {c.b}', kinds[comparison.kind(run, c.b)] if c.arms else 'its teacher',
             statistics.display_name(c.primary_metric), inline(c.metrics[c.primary_metric], sign=True),
             {1: 'above 0', -1: 'below 0', 0: 'includes 0', None: DASH}[comparison.side(c.metrics[c.primary_metric])]]
            for c in compared]
    return ['Paired differences on the same test patients. A gain from privileged data is claimed only over an arm '
            'without a teacher, one with a shuffled teacher and one whose teacher reads the same input.',
            _table(['difference', 'the other has', 'metric', 'value', 'interval'], rows)]


def _training(run, stage):
    entry = run.stages[stage]
    method = entry.get('method', {})
    provenance = entry.get('provenance') or (
        f'The head of the file of the method ({method.get("name", "")}) says which parts are published, inferred or '
        'chosen.')
    rows = [['model', entry.get('model', DASH)], ['parameters', f'{entry["parameters"]:,}' if 'parameters' in entry
                                                  else DASH],
            ['method', method.get('name', DASH)],
            *([f'{method.get("name", "")}: {k}', v] for k, v in method.items() if k != 'name'),
            ['steps', f'{entry.get("steps", 0):,}'], ['best step', entry.get('best', {}).get('step', DASH)],
            ['selected by', entry.get('select') or 'the last step'], ['seed', run.summary.get('seed', DASH)]]
    for name, network in entry['other_networks'].items():
        reads = ', '.join(network['inputs'] or ()) or 'inputs that are not known'
        rows.append([f'{"teacher" if network["frozen"] else "trained along"}: {name}', f'reads {reads}'])
    return [_table(['', ''], rows), f'**Evidence.** {_escape(provenance)}']


def _limits(run, stage):
    sentences = facts.limits(run, stage, run.table(stage))
    return ['\n'.join(f'- {_escape(s)}' for s in sentences), _blank('known failures, groups of patients that were not '
                                                                    'tested, and what to do when it is wrong')]


def _environment(run):
    rows = [*facts.software(run).items(), *facts.hardware(run).items()]
    rows += [('trained', ' to '.join(facts.dates(run)))] if facts.dates(run) else []
    return [_table(['', ''], rows), _blank('contact, citation and licence of the model')]


def _metric(metric, entry):
    return [statistics.display_name(metric), inline(entry)]


def _known(entry: Mapping) -> bool:
    value = entry.get('value')
    return isinstance(value, (int, float)) and number(value) != DASH


def _blank(what):
    return f'> **{BLANK}:** {what}.'


def _table(head: Sequence, rows: Sequence[Sequence]) -> str:
    if not rows:
        return ''
    lines = [[_escape(c) for c in head], ['---'] * len(head), *([_escape(c) for c in row] for row in rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _escape(value: Any) -> str:
    """Text of a file as one line in which Markdown and HTML see no markup."""
    line = html.escape(' '.join(str(value).split()), quote=False)
    return ''.join(f'\\{c}' if c in '\\`*_[]|#$~' else c for c in line if c.isprintable())


def _yaml(tree: Any, indent: str = '') -> str:
    """A tree of dicts, lists, texts and numbers as YAML; texts are quoted as in JSON, so none is read as a number."""
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict):
            lines.append(f'{indent}{key}:\n{_yaml(value, indent + "  ")}')
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            items = ''.join(f'{indent}- {_yaml(v, indent + "  ").lstrip()}' for v in value)
            lines.append(f'{indent}{key}:\n{items}')
        else:
            lines.append(f'{indent}{key}: {_scalar(value)}\n')
    return ''.join(lines)


def _scalar(value):
    if isinstance(value, list):
        return f'[{", ".join(map(_scalar, value))}]'
    if isinstance(value, str):
        return json.dumps(''.join(c for c in value if c.isprintable()), ensure_ascii=False)
    return json.dumps(value)
