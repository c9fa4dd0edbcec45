"""What a run knows of the topics that reporting guidelines ask for, and what its authors must add.

The topics are those of CLAIM (checklist for artificial intelligence in medical imaging, 2024) and TRIPOD+AI (2024), in
our words and order; the section is material for their checklists, not one that is filled in.
"""
from jaxkd.report import comparison, facts, statistics
from jaxkd.report.markup import DASH, Html, join, table, tag
from jaxkd.report.run_folder import Run

OPEN = 'to be written'
NOTE = ('Material for a checklist after CLAIM or TRIPOD+AI: what the folder of the run says of their topics. What is '
        f'marked "{OPEN}" only the authors know.')


def section(run: Run) -> Html:
    """A table: topic, what the run knows, what is to be written."""
    if not run.stages:
        return Html('')
    stage = _subject(run)
    rows = [[topic, _lines(known), join([tag('b', f'{OPEN}: '), left]) if left else ''] for topic, known, left in
            _topics(run, stage)]
    shown = table(['topic', f'known of {stage}', OPEN], rows)
    return join([tag('p', NOTE, class_='dim'), tag('div', shown, class_='text')])


def _subject(run):
    """The stage that the section speaks of: the last one with a privileged teacher, else the last."""
    taught = [s for s in run.stages if comparison.kind(run, s) == 'privileged']
    return (taught or list(run.stages))[-1]


def _topics(run, stage):
    entry, data = run.stages[stage], facts.source(run, stage)
    privileged = [f'{", ".join(keys)}, read by {teacher}' for teacher, keys in facts.privileged(run, stage).items()]
    decision = entry.get('decision') or {}
    return [
        ('Aim and use', [f'Reads {", ".join(entry.get("inputs", ()))}; predicts {", ".join(data.get("labels", ()))}.'],
         'clinical question, users, place in the care pathway, harm of a wrong answer'),
        ('Source of data', [data.get('name', ''), data.get('note', '')],
         'sites, dates, scanners and protocols; consent and approval'),
        ('Flow of cases', [' '.join(filter(None, (step, cases, f'({patients} patients)' if patients else '')))
                           for step, cases, patients in facts.cohort_flow(run, stage)],
         'criteria of inclusion before the data came here'),
        ('Missing data', [f'{label}: {uncertain} uncertain, {unmentioned} not mentioned'
                          for label, uncertain, unmentioned in facts.missing_labels(run, stage)]
         or ['No label is known to lack a value.'], 'why values are missing, and what that biases'),
        ('Reference standard', [f'Labels of {data.get("name", "the source")}, as they are in its files.'],
         'who set it, from what, how readers agreed'),
        ('Parts', [facts.split(run, stage)], 'how the size of the test part was chosen'),
        ('Privileged information', privileged or ['None that had an effect on this stage.'],
         'why it is there in training and not at use'),
        ('Model', [f'{entry.get("model", "")}, {entry.get("parameters", 0):,} parameters; method '
                   f'{entry.get("method", {}).get("name", "")}. {entry.get("provenance", "")}'], ''),
        ('Training', [f'{entry.get("steps", 0):,} steps; the step with the best {entry.get("select") or "loss"} on the '
                      'validation part is tested. Every option: config.json.'],
         'which options were tried, and on what data'),
        ('Seeds', [f'One: {run.summary.get("seed", "unknown")}, for weights, order and augmentation.'],
         'results of further seeds (python -m jaxkd.multirun)'),
        ('Measures', [f'Test part, {run.percent} intervals from {run.config.get("bootstrap", 0):,} resamples of '
                      'patients; differences between stages are paired.'], 'which measure was chosen beforehand'),
        ('Operating points', [f'Fitted on {decision["cases"]:,} validation cases.' if decision.get('cases')
                              else 'None were fitted.'], 'which one is to be used, and why'),
        ('Groups of patients', [' = '.join(group) for group in _groups(run, stage)] or ['None is large enough.'],
         'groups for which the data say nothing'),
        ('Other data', run.external_evaluators(stage) or ['None was tested.'], ''),
        ('Software', [', '.join(f'{k} {v}' for k, v in facts.software(run).items())], 'where code and weights are'),
        ('Hardware', [', '.join(f'{k}: {v}' for k, v in facts.hardware(run).items())], ''),
        ('Dates', [' to '.join(facts.dates(run)) or DASH], ''),
        ('Limits', facts.limits(run, stage, run.table(stage)), 'limits that only the setting shows'),
        ('Funding and interests', [], 'funding, interests, registration, protocol')]


def _groups(run, stage):
    return statistics.groups(run.predictions[stage]) if stage in run.predictions else {}


def _lines(known):
    return join([tag('div', line) for line in known if line])
