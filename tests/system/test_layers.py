"""The floor plan: which part of the package may import which, from bottom to top, and no circle of modules."""
import ast
import collections
import functools
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
LAYERS = [  # a part imports from its own layer and from those before it
    {'errors', 'contracts'}, {'parallel', 'state', 'runtime', 'config', 'optim', 'checkpoint'},
    {'data', 'phantoms'}, {'models', 'pretrained'},
    {'networks', 'losses', 'distillation', 'training', 'steps'}, {'metrics'}, {'inference'},
    {'methods', 'evaluators'},
    {'teachers', 'stages', 'evaluation', 'train', 'runner', 'evaluate', 'main'}, {'report'},
    {'export', 'multirun', 'predict'},
    {'notebook', 'commands', '__main__'}]
# The report is written at the end of a run, by a deferred import: the one arrow that points up.
EXCEPT = {('jaxkd.runner', 'jaxkd.report.html_page')}


@functools.cache
def imports():
    """{module: modules of jaxkd that it imports, anywhere in its text}."""
    files = {'.'.join(p.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): p
             for p in (ROOT / 'jaxkd').rglob('*.py')}
    found = {}
    for module, path in files.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('jaxkd'):
                names |= {f'{node.module}.{a.name}' if f'{node.module}.{a.name}' in files else node.module
                          for a in node.names}
            elif isinstance(node, ast.Import):
                names |= {a.name for a in node.names if a.name in files}
        found[module] = names - {module, 'jaxkd'}
    return found


def part(module):
    return module.split('.')[1] if '.' in module else ''


def test_nothing_imports_from_above():
    level = {name: i for i, names in enumerate(LAYERS) for name in names}
    found = imports()
    unknown = {part(m) for m in found} - {'', *level}
    assert not unknown, f'give these a layer: {unknown}'
    up = [(m, n) for m, names in found.items() for n in names if part(m) and level[part(n)] > level[part(m)]]
    assert sorted({*up} - EXCEPT) == []


def test_metrics_and_multirun_stand_by_themselves():
    found = imports()
    below = {n for m, names in found.items() if part(m) == 'metrics' for n in names if part(n) != 'metrics'}
    assert below <= {'jaxkd.errors', 'jaxkd.data.threshold', 'jaxkd.data.source'}
    assert [m for m, names in found.items() for n in names if part(n) == 'multirun' != part(m)] == []
    assert [(m, n) for m, names in found.items() if part(m) in ('data', 'models') for n in names
            if part(n) in ('report', 'evaluators', 'metrics')] == []


def test_modules_import_each_other_in_no_circle():
    waiting = collections.defaultdict(set, {m: {n for n in names if (m, n) not in EXCEPT} for m,
                                            names in imports().items()})
    while ready := [m for m, names in waiting.items() if not names & waiting.keys()]:
        for m in ready:
            del waiting[m]
    assert not waiting, f'a circle among {sorted(waiting)}'
