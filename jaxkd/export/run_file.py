"""The run.py of a bundle: those definitions of run.py beside this file that its inputs and its network need, verbatim.

A table of run.py, such as STEPS, says by a key what each part is for. A bundle's has the keys that it needs; whatever
`main` then does not reach is left out, and what is not imported any more with it.
"""
import ast
import importlib.resources
import textwrap
from collections.abc import Mapping
from typing import Any

WHOLE = ('crop', 'patch')  # transforms of a network that takes a case whole: one that segments has windows
SOURCES = ('', 'acdc', 'cbis_ddsm')  # whose reading of files it knows


def refusal(preprocessing: Mapping[str, Any]) -> str:
    """Why these files cannot be predicted by a run.py; '' if they can."""
    known = _tables(_source())['STEPS']
    for step in preprocessing['transforms']:
        if step['name'] not in known:
            return f'the transform "{step["name"]}" is not among those that run.py knows ({", ".join(known)}).'
    if preprocessing['reading']['source'] not in SOURCES:
        return f'the source "{preprocessing["reading"]["source"]}" reads files in a way that run.py does not know.'
    return ''


def text(preprocessing: Mapping[str, Any], task: str) -> str:
    """run.py for a preprocessing.json and the task of metadata.json."""
    kinds = {*preprocessing['files']['kinds'].values()}
    dense = task == 'segmentation'
    slices = {'slices'} if dense and 'picture' in kinds else set()
    volumes = {'volume', 'nrrd'} if 'volume' in kinds else set()
    options = [step['options'] for step in preprocessing['transforms'] if step['name'] == 'scan']
    return _reduced(_source(), {
        'STEPS': {step['name'] for step in preprocessing['transforms']} - ({*WHOLE} if dense else set()),
        'READERS': kinds | slices,
        'BOXES': {'lungs'} if any(o['lungs'] for o in options) else set(),
        'MASKS': (kinds & {'picture'} | slices | volumes) if dense else set(), 'TASKS': {task}})


def _source() -> str:
    return importlib.resources.files('jaxkd.export').joinpath('run.py').read_text()


def _tables(source: str) -> dict[str, dict[str, str]]:
    """{table: {key: function}} of run.py: what is annotated as a dict of Callable."""
    return {_names(node)[0]: {str(k.arg): ast.unparse(k.value) for k in node.value.keywords}
            for node in ast.parse(source).body if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call)}


def _reduced(source: str, keys: Mapping[str, set[str]]) -> str:
    """The source with these keys of its tables, and of the rest what they and its last statement reach."""
    lines, (docstring, *body) = source.splitlines(), ast.parse(source).body
    chosen = {name: {key: value for key, value in entries.items() if key in keys[name]}
              for name, entries in _tables(source).items()}
    used, left = set[str](), [body[-1]]
    while left:
        node = left.pop()
        table = next((chosen[name] for name in _names(node) if name in chosen), None)
        new = (_uses(node) if table is None else {'Callable', *table.values()}) - used
        used |= new
        left += [node for node in body if new & {*_names(node)}]
    end = docstring.end_lineno or 0
    out, section, written = lines[:end], '', ''
    for node in body:
        first = min(n.lineno for n in (node, *getattr(node, 'decorator_list', ()))) - 1
        before, statement, end = lines[end:first], lines[first:node.end_lineno], node.end_lineno or 0
        section = next((line for line in before if line.startswith('# ')), section)
        names = [name for name in _names(node) if name in used]
        if not names and node is not body[-1]:
            continue
        if isinstance(node, ast.ImportFrom):
            statement = [f'from {node.module} import {", ".join(names)}']
        elif names and names[0] in chosen:
            entries = ', '.join(f'{key}={value}' for key, value in chosen[names[0]].items())
            statement = textwrap.wrap(f'{names[0]}: dict[str, Callable] = dict({entries})', 120,
                                      subsequent_indent='    ')
        out += ['', '', section, ''] if section != written else [line for line in before if not line]
        out, written = out + statement, section
    return '\n'.join(out) + '\n'


def _names(node: ast.stmt) -> list[str]:
    """What a statement defines."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name for alias in node.names]
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]


def _uses(node: ast.stmt) -> set[str]:
    """What a statement reads that it does not itself assign."""
    names = [n for n in ast.walk(node) if isinstance(n, ast.Name)]
    arguments = {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
    return {n.id for n in names} - {n.id for n in names if isinstance(n.ctx, ast.Store)} - arguments
