"""Write docs/reference/config.md and docs/reference/contracts.md from the code: defaults, types, comments, signatures,
docstrings.

    python docs/generate.py            writes both pages; a test compares them with the code
"""
import ast
import importlib
import inspect
import pathlib
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from jaxkd import contracts, optim  # noqa: E402
from jaxkd.config import plugins, schema  # noqa: E402
from jaxkd.config.option_docs import Comments  # noqa: E402
from jaxkd.data import source  # noqa: E402

KINDS = {  # folder -> (heading, where its options stand in a config)
    'data/sources': ('Sources', '`data.source`'),
    'data/transforms': ('Transforms', '`data.<name>`'),
    'models': ('Models', '`<stage>.model`'),
    'methods': ('Methods', '`<stage>.method`'),
    'evaluators': ('Evaluators', '`<stage>.evals.<name>`'),
}
PHANTOMS = ('thorax', 'breast', 'pancreas', 'heart', 'pulmonary', 'brain')
HEAD = '<!-- written by docs/generate.py: change the code and run it -->'


def config_page() -> str:
    """Every key of a config: those of the run, of a stage, and of every plug-in."""
    out = [HEAD, '# Every key of a config', '',
           'Keys are set in a config file or on the command line, as in `--config.data.split.folds=5`. A key must '
           'exist and keep its type; '
           'a duration is text such as `3 epochs`, `500 steps`, `20000 examples` or `5%`. Beside a type stands the '
           'range of the number, or of each of several; `(` and `)` exclude the end.', '']
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
    return '\n'.join(out).rstrip() + '\n'


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
        returns = f' -> {ast.unparse(method.returns)}' if method.returns else ''
        out += ['', f'`{method.name}({ast.unparse(method.args)}){returns}`', '',
                fenced(ast.get_docstring(method) or '')]
    return [*out, '']


def table(defaults: dict, notes: Mapping[str, str], ranges: Mapping[str, str]) -> list[str]:
    """Rows of key, default, type with its range, and comment; dicts of defaults are opened."""
    out = ['| key | default | type | meaning |', '|---|---|---|---|']
    for key, value in flat(defaults):
        shown = 'open' if value == {} and isinstance(value, dict) else f'`{value!r}`'
        out.append(row(f'`{key}`', shown, f'{type(value).__name__} {ranges.get(key, "")}'.strip(), notes.get(key, '')))
    return out


def row(*cells: str) -> str:
    """A row of a table."""
    return '| ' + ' | '.join(cell.replace('|', '\\|').replace('\n', ' ') for cell in cells) + ' |'


def flat(defaults: dict, prefix: str = '') -> Iterator[tuple[str, object]]:
    """(dotted key, value) of nested dicts; an empty dict is a value."""
    for key, value in defaults.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f'{prefix}{key}.')
        else:
            yield prefix + key, value


def fenced(text: str) -> str:
    """Text as a block that keeps its lines."""
    return f'```text\n{text}\n```' if text else ''


PAGES = {'reference/config.md': config_page, 'reference/contracts.md': contracts_page}


if __name__ == '__main__':
    importlib.invalidate_caches()
    for page, write in PAGES.items():
        (ROOT / 'docs' / page).write_text(write())
