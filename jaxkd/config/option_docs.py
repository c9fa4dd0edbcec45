"""Every option of a resolved config with its value and the comment that stands beside its default in the source."""
import ast
import functools
import inspect
import io
import tokenize
from collections.abc import Iterator, Mapping
from types import ModuleType

from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.config import plugins, schema
from jaxkd.config.schema import RUN, remedy

KINDS = dict(model='models', method='methods', source='data/sources', evals='evaluators', data='data/transforms')


def describe_options(config: ConfigDict, key: str = '') -> str:
    """`KEY = value  # meaning` of all options below `key` ('student.optim'), one a line. ConfigError: no such key."""
    node, path = config.to_dict(), tuple(filter(None, key.split('.')))
    for depth, part in enumerate(path):
        if not isinstance(node, Mapping) or part not in node:
            keys = node if isinstance(node, Mapping) else ()
            parent = '.'.join(path[:depth]) or 'The config'
            raise errors.ConfigError(f'{parent} has no key "{part}".{remedy(part, keys)}')
        node = node[part]
    leaves = _leaves(config.to_dict(), path, node)
    lines = [('.'.join(leaf) + f' = {value!r}', meaning) for leaf, value, meaning in leaves]
    width = min(60, max((len(line) for line, meaning in lines if meaning), default=0))
    return '\n'.join(f'{line:{width}}  # {meaning}' if meaning else line for line, meaning in lines)


def _leaves(config: dict, path: tuple[str, ...], node: object) -> Iterator[tuple[tuple[str, ...], object, str]]:
    if isinstance(node, Mapping) and node:
        for part, value in node.items():
            yield from _leaves(config, (*path, part), value)
    else:
        yield path, node, _meaning(config, path)


def _meaning(config: dict, path: tuple[str, ...]) -> str:
    """The comment at the default of an option: that of the plug-in whose options these are, or of the schema."""
    if path[0] in RUN and path[0] != 'data':
        return comments(schema, 'RUN').get(path, '')
    relative = path if path[0] == 'data' else path[1:]
    if relative[0] == 'optim':
        from jaxkd import optim  # imports jax
        return comments(optim, 'DEFAULTS').get(relative[1:], '')
    for depth in range(len(path) - 1, 0, -1):  # the innermost plug-in
        node = functools.reduce(lambda tree, part: tree[part], path[:depth], config)
        kind = next((KINDS[part] for part in reversed(path[:depth]) if part in KINDS), None)
        if kind and isinstance(node, Mapping) and node.get('name'):
            meaning = comments(plugins.load(kind, node['name']), 'DEFAULTS').get(path[depth:], '')
            return f'a file of jaxkd/{kind}, or a dotted module' if path[depth:] == ('name',) else meaning
    if relative[0] == 'data' and path[0] == 'data':
        return comments(schema, 'RUN').get(relative, '')
    for table, skipped in (('NETWORK', 'networks'), ('TEACHER', 'teachers')):
        if relative[0] == skipped:
            return comments(schema, table).get(relative[2:], '')
    return comments(schema, 'STAGE').get(relative, '')


@functools.cache
def comments(module: ModuleType, table: str) -> dict[tuple[str, ...], str]:
    """{('split', 'fractions'): comment} of the dict(...) called `table`; keys of one line share its comment."""
    text = inspect.getsource(module)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    by_line = {token.start[0]: token.string.lstrip('# ') for token in tokens if token.type == tokenize.COMMENT}
    found = {}

    def visit(call: ast.expr, path: tuple[str, ...]) -> None:
        for keyword in call.keywords if isinstance(call, ast.Call) else ():
            if keyword.arg:
                last, first = keyword.value.end_lineno or 0, keyword.value.lineno
                found[(*path, keyword.arg)] = by_line.get(last, '') or by_line.get(first, '')
                visit(keyword.value, (*path, keyword.arg))
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == table for target in targets):
                visit(node.value, ())
    return found
