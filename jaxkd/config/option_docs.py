"""Options of a resolved config with their values and the comments at their defaults in the source."""
import ast
import functools
import inspect
import io
import re
import tokenize
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.config import plugins, schema
from jaxkd.config.schema import RUN, remedy

KINDS = dict(model='models', method='methods', losses='distillation', source='data/sources', evals='evaluators',
             data='data/transforms')


def describe_options(config: ConfigDict, key: str = '') -> str:
    """`KEY = value  # meaning` of all options below `key` ('student.optim'), one a line. ConfigError: no such key."""
    node, path = config.to_dict(), tuple(filter(None, key.split('.')))
    for depth, part in enumerate(path):
        if not isinstance(node, Mapping) or part not in node:
            keys = node if isinstance(node, Mapping) else ()
            parent = '.'.join(path[:depth]) or 'The config'
            raise errors.ConfigError(f'{parent} has no key "{part}".{remedy(part, keys)}')
        node = node[part]
    tree = config.to_dict()
    lines = (('.'.join(leaf) + f' = {value!r}', _meaning(tree, leaf)) for leaf, value in _leaves(path, node))
    return '\n'.join(commented(lines))


def commented(lines: Iterable[tuple[str, str]]) -> list[str]:
    """`option  # meaning` of (option, meaning), the meanings one below the other."""
    lines = list(lines)
    width = min(60, max((len(line) for line, meaning in lines if meaning), default=0))
    return [f'{line:{width}}  # {meaning}' if meaning else line for line, meaning in lines]


def dotted(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted key: value} of all options in a tree; an empty dict is a value."""
    return {'.'.join(path): value for path, value in _leaves((), tree) if path}


def _leaves(path: tuple[str, ...], node: object) -> Iterator[tuple[tuple[str, ...], object]]:
    if isinstance(node, Mapping) and node:
        for part, value in node.items():
            yield from _leaves((*path, part), value)
    else:
        yield path, node


def _meaning(config: dict, path: tuple[str, ...]) -> str:
    """The comment at the default of an option: that of the plug-in whose options these are, or of the schema."""
    if path[0] in RUN and path[0] != 'data':
        return comments(schema, 'RUN').get('.'.join(path), '')
    relative = path if path[0] == 'data' else path[1:]
    if relative[0] == 'optim':
        from jaxkd import optim  # imports jax
        return comments(optim, 'DEFAULTS').get('.'.join(relative[1:]), '')
    for depth in range(len(path) - 1, 0, -1):  # the innermost plug-in
        node = functools.reduce(lambda tree, part: tree[part], path[:depth], config)
        kind = next((KINDS[part] for part in reversed(path[:depth]) if part in KINDS), None)
        if kind and isinstance(node, Mapping) and node.get('name'):
            if path[depth:] == ('name',):
                return f'a file of jaxkd/{kind}, or a dotted module'
            return meanings(kind, plugins.load(kind, node['name'])).get('.'.join(path[depth:]), '')
    if relative[0] == 'data' and path[0] == 'data':
        return comments(schema, 'RUN').get('.'.join(relative), '')
    for table, skipped in (('NETWORK', 'networks'), ('TEACHER', 'teachers')):
        if relative[0] == skipped:
            return comments(schema, table).get('.'.join(relative[2:]), '')
    return comments(schema, 'STAGE').get('.'.join(relative), '')


def meanings(kind: str, module: ModuleType) -> dict[str, str]:
    """{dotted key: comment} of the options of a plug-in; of a loss also those of the options that every loss has."""
    common = comments(schema, 'LOSS') if kind == 'distillation' else {}
    return _over(common, comments(module, 'DEFAULTS'))


@functools.cache
def comments(module: ModuleType, table: str) -> dict[str, str]:
    """{'split.fractions': comment} of the dict of defaults called `table`, see `Comments.of`."""
    return Comments(module).of(table)


class Comments:
    """The comments of a module that stand beside the entries of its `dict(...)` of defaults.

    A comment is the meaning of the entry on its line. Of several entries on a line it names each, or those that mean
    the same together: `a=1, b=0, c=0,  # a: text; b, c: text`. Without names it is that of all.
    """

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
        value = inspect.getmodule(vars(self.module).get('build'))  # imported, as in the __init__ of a package
        return Comments(value).of(name) if value and value is not self.module else {}

    def beside(self, node: ast.AnnAssign | ast.expr) -> str:
        """The comment at the end of a node's line with the lines that continue it, or else the lines of comment above
        it.
        """
        line = node.end_lineno or 0
        if line in self.comments:
            first = line
            while self._is_comment(line + 1):
                line += 1
            return ' '.join(self.comments[i] for i in range(first, line + 1))
        last = first = node.lineno
        while self._is_comment(first - 1):
            first -= 1
        return '' if first - 1 in self.comments else ' '.join(self.comments[line] for line in range(first, last))

    def _is_comment(self, line: int) -> bool:
        return self.lines[line - 1].lstrip().startswith('#')

    def _expression(self, node: ast.expr) -> dict[str, str]:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
            parts = map(self._expression, node.args)
            return _over(*parts, self._keywords([(k.arg or '', k.value) for k in node.keywords]))
        if isinstance(node, ast.Dict):
            return self._keywords([(str(k.value) if isinstance(k, ast.Constant) else '', v)
                                   for k, v in zip(node.keys, node.values)])
        if isinstance(node, ast.BinOp):
            return _over(self._expression(node.left), self._expression(node.right))
        if isinstance(node, ast.Name) and node.id in vars(self.module):
            return self.of(node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = vars(self.module).get(node.value.id)
            return Comments(module).of(node.attr) if isinstance(module, ModuleType) else {}
        return {}

    def _keywords(self, pairs: list[tuple[str, ast.expr]]) -> dict[str, str]:
        texts = {key: self.beside(value) for key, value in pairs if key}
        comments: dict[str, str] = {}
        for key, value in pairs:
            nested = self._expression(value)
            if key:
                comments[key] = _part(texts[key], key, [k for k, text in texts.items() if text == texts[key]])
                nested = {f'{key}.{k}': text for k, text in nested.items()}
            comments = _over(comments, nested)  # of **other without a key
        return comments


def _part(text: str, key: str, keys: Collection[str]) -> str:
    """What a comment beside these keys says of one of them, see `Comments`."""
    name = '|'.join(map(re.escape, keys))
    first, *parts = re.split(rf'(?:^|; )((?:{name})(?:, (?:{name}))*): ', text)
    if first or not parts:
        return text
    return next((part for names, part in zip(parts[::2], parts[1::2]) if key in names.split(', ')), '')


def _over(*several: Mapping[str, str]) -> dict[str, str]:
    """One dict of comments: later ones stand over earlier ones, where they say something."""
    merged: dict[str, str] = {}
    for comments in several:
        merged |= {key: text for key, text in comments.items() if text or key not in merged}
    return merged
