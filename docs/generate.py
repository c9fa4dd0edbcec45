"""Write pages of docs/reference and docs/systems from the code: defaults, types, comments, signatures, docstrings.

    python docs/generate.py            writes them; a test compares them with the code
"""
import ast
import functools
import importlib
import inspect
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from jaxkd import contracts, optim  # noqa: E402
from jaxkd.config import loading, plugins, schema, variants  # noqa: E402
from jaxkd.config.option_docs import Comments, dotted  # noqa: E402
from jaxkd.data import source, volume  # noqa: E402
from jaxkd.evaluators.predictions import schema as predictions  # noqa: E402
from jaxkd.inference import predictor  # noqa: E402
from jaxkd.report import figures, glossary, plot  # noqa: E402
from jaxkd.training import schedules  # noqa: E402

KINDS = {  # folder -> (heading, where its options stand in a config)
    'data/sources': ('Sources', '`data.source`'),
    'data/transforms': ('Transforms', '`data.<name>`'),
    'models': ('Models', '`<stage>.model`'),
    'methods': ('Methods', '`<stage>.method`'),
    'evaluators': ('Evaluators', '`<stage>.evals.<name>`'),
}
PHANTOMS = ('thorax', 'breast', 'pancreas', 'heart', 'pulmonary', 'brain')
SYSTEMS = {  # page, also that of the results: (method, config, variants whose commands are shown, what came out)
    'mmpkd': ('mmpkd', 'mmpkd_cxr', ('', 'smoke', 'controls', 'full_labels', 'folder'),
              'On the radiograph phantom with labels for one patient in fifty the student is better than the best '
              'control by a macro AUROC of +0.089 (+0.065 to +0.112), for one in twenty by +0.045 (+0.024 to +0.066), '
              'on two further draws +0.111 and +0.056; from one in ten on no gain is seen. With labels for everybody '
              '0.842 against 0.853, and on the mammogram phantom 0.595 against 0.583: null.'),
    'cpkd': ('cpkd', 'cpkd_ct_mri', ('', 'smoke', 'folder', 'paper'),
             'On the pancreas phantom, five seeds, 1,920 test patients: accuracy +0.009 (-0.013 to +0.027) against the '
             'same CT network alone, in the challenging subgroup +0.002 (-0.022 to +0.027): not seen.'),
    'sikd': ('sikd', 'sikd_acdc', ('', 'smoke', 'acdc', 'slices', 'masks'),
             'On ACDC slices, three seeds: Dice +0.010 (-0.016 to +0.033), and under a shift of the images +0.029 '
             '(+0.008 to +0.054). On the heart phantom, five seeds, -0.010 (-0.021 to +0.005), on its second scanner '
             '+0.003 (-0.029 to +0.032): not seen.'),
    'cpmn': ('cpmn', 'cpmn_pe', ('', 'smoke', 'folder'),
             'On the phantom of pulmonary vessels, five seeds: no gain, AUROC -0.009 (-0.035 to +0.013).'),
    'specialist': ('specialist', 'specialist', ('', 'smoke', 'all'),
                   'On the thorax phantom with a square in every positive image, three seeds: AUROC on neutral images '
                   '0.899 against 0.567 without a teacher; plain distillation of the final output does as well.')}
WORDS = {  # of the field, beside those of the report (jaxkd/report/glossary.py)
    'calibration': 'Whether of the cases with a predicted probability of 0.3 about 30 % are positive.',
    'CAM': 'Class activation map: where the features speak for a class.',
    'confounder, shortcut': 'A feature that goes along with the label in training and not elsewhere.',
    'deployment': 'Use of the student: it needs its own input and its checkpoint.',
    'distillation': 'Training on the outputs of another network beside the labels.',
    'EMA': 'Exponential moving average of the weights.',
    'epoch': 'One pass over the training part.',
    'external validation': 'A test on cases from elsewhere; `data.external`.',
    'fold': 'A part of the patients that is tested once in a cross-validation.',
    'hint': 'An intermediate feature of a teacher that a student imitates.',
    'logit': 'Score before sigmoid or softmax.',
    'out-of-fold': 'Outputs of a teacher for cases that it was not trained on.',
    'phantom': 'Synthetic images with known truth.',
    'prevalence': 'Share of positive cases.',
    'provenance': 'Which parts of a method are published, inferred, or our choice.',
    'reliability diagram': 'Observed frequency over predicted probability.',
    'seed': 'Number that decides random weights, data order, augmentation and dropout.',
    'source': 'What reads a data set: a file of `jaxkd/data/sources`.',
    'stage': 'One network with its inputs, method and optimiser in a run.',
    'subgroup': 'Cases with equal value of a group, such as the view or the hospital.',
    'teacher': 'A network that a student learns from; frozen, or trained along.',
    'temperature': 'Divisor of logits in distillation: larger values soften the targets.',
    'transform': 'What happens to a case between its file and a network.',
    'TTA': 'Test-time augmentation: a mean over mirrored inputs.',
    'variant': 'A named change of a config, `:smoke`.'}
HEAD = '<!-- written by docs/generate.py: change the code and run it -->'


def config_page() -> str:
    """Every key of a config: those of the run, of a stage, and of every plug-in."""
    out = [HEAD, '# Every key of a config', '',
           'Keys are set in a config file or on the command line, as in `--config.data.split.folds=5`. A key must '
           'exist and keep its type; '
           'a duration is text such as `3 epochs`, `500 steps`, `20000 examples` or `5%`, in quotes '
           'for the shell (`"--config.student.length=3 epochs"`) or without the blank (`3epochs`). Beside a type '
           'stands the range of the number, or of each of several; `(` and `)` exclude the end.', '']
    comments = Comments(schema)
    ranges = {'RUN': schema.RUN_RANGES | {f'data.{key}': interval for key, interval in schema.DATA_RANGES.items()},
              'STAGE': schema.STAGE_RANGES | dict.fromkeys(schema.STAGE_DURATIONS, '(a duration)')}
    for name, heading in (('RUN', 'The run'), ('STAGE', 'A stage'), ('NETWORK', 'A network of `<stage>.networks`'),
                          ('TEACHER', 'A teacher of `<stage>.teachers`')):
        out += [f'## {heading}', '', *table(getattr(schema, name), comments.of(name), ranges.get(name, {})), '']
    out += ['## The optimiser, `<stage>.optim`', '',
            *table(optim.DEFAULTS, Comments(optim).of('DEFAULTS'), optim.RANGES), '']
    for kind, (heading, place) in KINDS.items():
        out += [f'## {heading}', '', f'The options of {place}.', '']
        names = [*plugins.names(kind), *(f'jaxkd.phantoms.{p}' for p in PHANTOMS if kind == 'data/sources')]
        for name in names:
            module = plugins.load(kind, name)
            if not hasattr(module, 'DEFAULTS'):
                continue
            summary = (inspect.getdoc(module) or '').partition('\n\n')[0].replace('\n', ' ')
            out += [f'### {name}', '', summary, '']
            if module.DEFAULTS:
                ranges_of = plugins.contract(kind, name).ranges if kind == 'evaluators' else {}
                out += [*table(module.DEFAULTS, Comments(module).of('DEFAULTS'), ranges_of), '']
    return '\n'.join(out).rstrip() + '\n'


def losses_page() -> str:
    """Every loss of distillation: equation, source, options."""
    names = plugins.names('distillation')
    modules = {name: plugins.load('distillation', name) for name in names}
    texts = {name: inspect.getdoc(module) or '' for name, module in modules.items()}
    options = {name: schema.LOSS | module.DEFAULTS for name, module in modules.items()}
    out = [HEAD, '# Losses of distillation', '',
           'What `<stage>.method.losses` of the method `distil` may name, files of `jaxkd/distillation`. B cases, C '
           'channels, K classes; F features, z logits, S the student, T the teacher. A loss of your own: [your own '
           'plug-ins](../how_to/own_plugins.md#a-loss-between-student-and-teacher).', '',
           'Weights are those that are published or usual. Most were tuned on CIFAR-100 with batches of 64: those of '
           '`sp`, `pkt` and `cc` depend on the size of a batch, those of `at` and `hint` on that of a map. Where a '
           'term drowns the loss of the labels, or is drowned, compare their logged values and choose another.', '',
           '| name | what it compares | tap | weight | schedule |', '|---|---|---|---|---|']
    for name in names:
        summary = texts[name].partition('\n\n')[0].replace('\n', ' ')
        hp = options[name]
        taps = f"`{hp['student']}`" + (f", teacher `{hp['teacher']}`" if hp['teacher'] else '')
        out.append(row(f'[{name}](#{name})', summary, taps, f"{hp['weight']:g}", hp['schedule'] or 'constant'))
    out += ['', '## Options of every loss', '', *table(schema.LOSS, Comments(schema).of('LOSS'), {}), '',
            'Schedules of weights:', '', fenced(inspect.getdoc(schedules) or ''), '']
    for name in names:
        own = {key: value for key, value in modules[name].DEFAULTS.items() if key not in schema.LOSS}
        out += [f'## {name}', '', fenced(texts[name]), '']
        out += [*table(own, Comments(modules[name]).of('DEFAULTS'), {}), ''] if own else []
    return '\n'.join(out).rstrip() + '\n'


def contracts_page() -> str:
    """What a plug-in of each kind offers."""
    out = [HEAD, '# Contracts of plug-ins', '',
           'A complete worked example of each kind, which the tests run as it stands: [your own '
           'plug-ins](../how_to/own_plugins.md).', '',
           fenced(inspect.getdoc(contracts) or ''), '']
    for name, node in classes(contracts):
        out += [f'## {name}', '', *class_page(contracts, node)]
    out += ['## Source', '', 'From `jaxkd/data/source.py`:', '', fenced(inspect.getdoc(source) or ''), '']
    for name, node in classes(source):
        out += [f'### {name}', '', *class_page(source, node)]
    for heading, module, names in (
            ('What an evaluator is given', predictor, ('NetworkOutputs', 'Predictor')),
            ('Rows of predictions, which an evaluator may return', predictions, ('Predictions', 'RegionScores')),
            ('Volumes', volume, ('Volume',))):
        out += [f'## {heading}', '', f'From `{module.__name__.replace(".", "/")}.py`:', '']
        for name, node in classes(module):
            out += [f'### {name}', '', *class_page(module, node)] if name in names else []
    read = next(n for n in ast.parse(inspect.getsource(volume)).body if isinstance(n, ast.FunctionDef))
    out += described(read)
    return '\n'.join(out).rstrip() + '\n'


def system_page(name: str) -> str:
    """A system of an article: what is published, inferred and ours, options, commands, what came out."""
    method, config, shown, outcome = SYSTEMS[name]
    module, path = plugins.load('methods', method), loading.packaged_folder() / f'{config}.py'
    title, _, text = (inspect.getdoc(module) or '').partition('\n\n')
    provenance = vars(module).get('PROVENANCE', '')
    described = loading.import_file(path)
    commands = [variants.command(described, path.name, variant) for variant in shown]
    title = ' '.join(title.split()).partition('. ')[0].rstrip('.')
    out = [HEAD, f'# {title}', '', '## The method', '', fenced(text), '']
    if provenance:
        out += ['What is published, what is inferred, and what is our choice:', '', provenance, '']
    comments = Comments(module).of('DEFAULTS')
    out += ['## Options', '', f"Of `<stage>.method` with `name = '{method}'`.", '',
            *table(module.DEFAULTS, comments, {}), '',
            '## Commands', '', f'All variants: `jaxkd list configs/{config}.py`. DIR is a folder of yours.', '',
            '<!-- full-size -->', '```bash', *commands, '```', '', '## What to expect', '',
            f'{outcome} These are phantoms or prepared public data, and no number reproduces one of the article. '
            f'Tables with machine and config: [results](../results/{name}.md).', '']
    return '\n'.join(out).rstrip() + '\n'


def glossary_page() -> str:
    """The words of the report and of the field."""
    terms = glossary.TERMS | WORDS
    return '\n'.join([HEAD, '# Glossary', '', '| term | meaning |', '|---|---|',
                      *(row(term, terms[term]) for term in sorted(terms, key=str.lower))]) + '\n'


def classes(module: ModuleType) -> Iterator[tuple[str, ast.ClassDef]]:
    """The classes of a module, in its order."""
    tree = ast.parse(inspect.getsource(module))
    return ((node.name, node) for node in tree.body if isinstance(node, ast.ClassDef))


def class_page(module: ModuleType, node: ast.ClassDef) -> list[str]:
    """The docstring of a class, a table of its fields, the signatures of its methods."""
    text, notes = inspect.getsource(module), Comments(module)
    out = [fenced(ast.get_docstring(node) or ''), '']
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    if fields:
        out += ['| field | type | default | meaning |', '|---|---|---|---|']
    for field in fields:
        default = f'`{ast.get_source_segment(text, field.value)}`' if field.value else ''
        out.append(row(f'`{ast.unparse(field.target)}`', f'`{ast.unparse(field.annotation)}`', default,
                       notes.beside(field)))
    for method in (n for n in node.body if isinstance(n, ast.FunctionDef)):
        if ast.get_docstring(method) and (method.name.startswith('__') or not method.name.startswith('_')):
            out += ['', *described(method)]
    return [*out, '']


def described(function: ast.FunctionDef) -> list[str]:
    """The signature and the docstring of a function."""
    returns = f' -> {ast.unparse(function.returns)}' if function.returns else ''
    text = ast.get_docstring(function)
    return [f'`{function.name}({ast.unparse(function.args)}){returns}`', *(['', fenced(text)] if text else [])]


def differences_figure() -> str:
    """The figure of why/when_it_pays.md: every difference of results/differences.json with its interval."""
    rows = json.loads((ROOT / 'docs/results/differences.json').read_text())
    colours = {r['label']: '#2a7' if r['low'] > 0 else '#c44' if r['high'] < 0 else '#888' for r in rows}
    return plot.standalone(figures.intervals('difference, with a 95 % interval over patients', {
        r['label']: r for r in rows}, colours, at=0.0)) + '\n'


def gain_figure() -> str:
    """The figure of results/mmpkd.md: the metric of each arm of results/gain_mmpkd.json over the share of labels."""
    content = json.loads((ROOT / 'docs/results/gain_mmpkd.json').read_text())
    x = np.log(content['share'])
    ticks = [(place, f'{share:.0%}') for place, share in zip(x, content['share'])]
    panel = plot.Panel(y_label=content['metric'], x=(x[0] - 0.2, x[-1] + 1.4), x_ticks=ticks)
    names, above = sorted(content['arms'], key=lambda arm: content['arms'][arm]['value'][-1]), -1.0
    for arm in names:
        series, colour = content['arms'][arm], figures.COLOURS[list(content['arms']).index(arm) % len(figures.COLOURS)]
        panel.band(x, series['low'], series['high'], colour)
        panel.line(x, series['value'], colour, 2.4 if arm == 'student' else 1.5)
        panel.dots(x, series['value'], colour, 2.6)
        above = max(series['value'][-1], above + 0.025)  # names do not cover each other
        panel.dots([x[-1] + 0.25], [above], colour, 4)
        panel.text(x[-1] + 0.85, above, arm)
    return plot.standalone(plot.figure([panel], (560, 300), 'training patients with labels')) + '\n'


def table(defaults: dict, notes: Mapping[str, str], ranges: Mapping[str, str]) -> list[str]:
    """Rows of key, default, type with its range, and comment; dicts of defaults are opened."""
    out = ['| key | default | type | meaning |', '|---|---|---|---|']
    for key, value in dotted(defaults).items():
        shown = 'open' if value == {} and isinstance(value, dict) else f'`{value!r}`'
        out.append(row(f'`{key}`', shown, f'{type(value).__name__} {ranges.get(key, "")}'.strip(), notes.get(key, '')))
    return out


def row(*cells: str) -> str:
    """A row of a table."""
    return '| ' + ' | '.join(cell.replace('|', '\\|').replace('\n', ' ') for cell in cells) + ' |'


def fenced(text: str) -> str:
    """Text as a block that keeps its lines."""
    return f'```text\n{text}\n```' if text else ''


PAGES = {'reference/config.md': config_page, 'reference/contracts.md': contracts_page,
         'reference/losses.md': losses_page,
         'reference/glossary.md': glossary_page,
         'images/when_it_pays.svg': differences_figure, 'images/gain_mmpkd.svg': gain_figure,
         **{f'systems/{name}.md': functools.partial(system_page, name) for name in SYSTEMS}}


if __name__ == '__main__':
    importlib.invalidate_caches()
    for page, write in PAGES.items():
        (ROOT / 'docs' / page).parent.mkdir(exist_ok=True)
        (ROOT / 'docs' / page).write_text(write())
