"""Write docs/reference/config.md and docs/reference/contracts.md from the code: defaults, types, comments, signatures,
docstrings.

    python docs/generate.py            writes both pages; a test compares them with the code
"""
import ast
import importlib
import inspect
import io
import pathlib
import sys
import tokenize
from collections.abc import Iterator
from types import ModuleType

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from jaxkd import contracts, optim  # noqa: E402
from jaxkd.config import plugins, schema  # noqa: E402
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
           'a duration is text such as `3 epochs`, `500 steps`, `20000 examples` or `5%`.', '']
    comments = Comments(schema)
    for name, heading in (('RUN', 'The run'), ('STAGE', 'A stage'), ('NETWORK', 'A network of `<stage>.networks`'),
                          ('TEACHER', 'A teacher of `<stage>.teachers`')):
        out += [f'## {heading}', '', *table(getattr(schema, name), comments.of(name)), '']
    out += ['## The optimiser, `<stage>.optim`', '', *table(optim.DEFAULTS, Comments(optim).of('DEFAULTS')), '']
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
                out += [*table(module.DEFAULTS, Comments(module).of('DEFAULTS')), '']
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


def table(defaults: dict, notes: dict[str, str]) -> list[str]:
    """Rows of key, default, type and comment; dicts of defaults are opened."""
    out = ['| key | default | type | meaning |', '|---|---|---|---|']
    for key, value in flat(defaults):
        shown = 'open' if value == {} and isinstance(value, dict) else f'`{value!r}`'
        out.append(row(f'`{key}`', shown, type(value).__name__, notes.get(key, '')))
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


class Comments:
    """The comments of a module that stand beside the entries of its `dict(...)` of defaults."""

    def __init__(self, module: ModuleType):
        self.module = module
        text = inspect.getsource(module)
        self.tree, self.lines = ast.parse(text), text.split('\n')
        self.comments = {token.start[0]: token.string.lstrip('# ')
                         for token in tokenize.generate_tokens(io.StringIO(text).readline)
                         if token.type == tokenize.COMMENT and not token.string.startswith('# noqa')}

    def of(self, name: str) -> dict[str, str]:
        """{dotted key: comment} of a dict of defaults, those of the dicts that it takes entries from included."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                return self._expression(node.value)
            if (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name
                    and node.value):
                return self._expression(node.value)
        value = inspect.getmodule(vars(self.module).get('build'))  # handed on, as the __init__ of a package does
        return Comments(value).of(name) if value and value is not self.module else {}

    def beside(self, node: ast.AnnAssign | ast.expr) -> str:
        """The comment at the end of a node's line with the lines that continue it, or else the lines of comment above
        it.
        """
        line = node.end_lineno or 0
        if line in self.comments:
            found = [self.comments[line]]
            while self._is_comment(line + 1):
                line += 1
                found.append(self.comments[line])
            return ' '.join(found)
        last = first = node.lineno
        while self._is_comment(first - 1):
            first -= 1
        return '' if first - 1 in self.comments else ' '.join(self.comments[line] for line in range(first, last))

    def _is_comment(self, line: int) -> bool:
        return self.lines[line - 1].lstrip().startswith('#')

    def _expression(self, node: ast.expr) -> dict[str, str]:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
            found = {k: v for part in node.args for k, v in self._expression(part).items()}
            return found | self._keywords([(k.arg or '', k.value) for k in node.keywords])
        if isinstance(node, ast.Dict):
            return self._keywords([(k.value if isinstance(k, ast.Constant) else '', v)
                                   for k, v in zip(node.keys, node.values)])
        if isinstance(node, ast.BinOp):
            return self._expression(node.left) | self._expression(node.right)
        if isinstance(node, ast.Name) and node.id in vars(self.module):
            return self.of(node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = vars(self.module).get(node.value.id)
            return Comments(module).of(node.attr) if isinstance(module, ModuleType) else {}
        return {}

    def _keywords(self, pairs: list[tuple[str, ast.expr]]) -> dict[str, str]:
        found = {}
        for key, value in pairs:
            if not key:  # **other
                found |= self._expression(value)
                continue
            found[key] = self.beside(value)
            found |= {f'{key}.{k}': v or (found[key] if value.lineno == value.end_lineno else '')
                      for k, v in self._expression(value).items()}
        return found


PAGES = {'reference/config.md': config_page, 'reference/contracts.md': contracts_page}


if __name__ == '__main__':
    importlib.invalidate_caches()
    for page, write in PAGES.items():
        (ROOT / 'docs' / page).write_text(write())
