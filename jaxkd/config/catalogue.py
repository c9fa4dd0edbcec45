"""What there is to name in a config: files of configs, plug-ins of each kind, and the options of one of them."""
import ast
import inspect
import pathlib
import re
from collections.abc import Sequence

from jaxkd import errors
from jaxkd.config import loading, plugins, schema, variants
from jaxkd.config.option_docs import commented, comments, dotted, meanings

TITLES = {'models': 'models', 'methods': 'methods', 'distillation': 'losses of the method distil',
          'data/sources': 'sources', 'phantoms': 'phantoms, as sources',
          'data/transforms': 'transforms', 'evaluators': 'evaluators'}
# of jaxkd/config/schema.py
TABLES = {'run': 'RUN', 'stage': 'STAGE', 'network': 'NETWORK', 'teacher': 'TEACHER', 'loss': 'LOSS'}
WIDTH = 110  # characters of a summary


def everything() -> str:
    """Configs with their variants, then the plug-ins of every kind, one line each."""
    return '\n\n'.join([configs(()), *map(of_kind, TITLES)])


def configs(paths: Sequence[str]) -> str:
    """The files of configs at these paths or in these folders with their variants; without paths those of ./configs, or
    of the package where there is no such folder.
    """
    if not paths and not pathlib.Path('configs').is_dir():
        files = {f'{loading.PACKAGED}:{path.stem}': path for path in sorted(loading.packaged_folder().glob('*.py'))}
    else:
        found = [sorted(p.glob('*.py')) if p.is_dir() else [loading.existing(p)]
                 for p in map(pathlib.Path, paths or ['configs'])]
        files = {str(path): path for several in found for path in several}
    return '\n\n'.join(variants.describe(loading.import_file(path), name, commands=False)
                       for name, path in files.items())


def of_kind(kind: str) -> str:
    """A heading and a line for each plug-in of a kind, a key of TITLES."""
    files = _files(kind)
    width = max(map(len, files))
    return '\n'.join([f'{TITLES[kind]}:', *(f'  {name:{width}}  {summary(path)}' for name, path in files.items())])


def summary(path: pathlib.Path) -> str:
    """The first sentence of the docstring of a Python file, which is not imported, in at most WIDTH characters."""
    paragraph = (ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or '').partition('\n\n')[0]
    sentence = re.split(r'(?<=[^.\s]{3})\.\s|: `data', ' '.join(paragraph.split()))[0].rstrip('.')
    return sentence if len(sentence) <= WIDTH else sentence[:WIDTH].rsplit(' ', 1)[0].rstrip(',;:') + ' ...'


def is_config(name: str) -> bool:
    """Whether a word names a config rather than a plug-in: a file, or one of the package."""
    return name.partition(':')[0].endswith(('.py', '.json')) or name.startswith(f'{loading.PACKAGED}:')


def options(name: str) -> str:
    """The docstring and `KEY = default  # meaning` of a plug-in of any kind ('vit', 'models/vit',
    'my_package.my_model'), of the optimiser ('optim'), or of a part of a config ('run', 'stage', 'network', 'teacher',
    'loss').

    ConfigError for a name that nothing has.
    """
    short = name.rpartition('/')[2]
    if name in TABLES:
        return _table(f'{name}: keys of {_place(name)}', getattr(schema, TABLES[name]), comments(schema, TABLES[name]))
    if name == 'optim':
        from jaxkd import optim  # imports jax
        return _table('optim: keys of <stage>.optim', optim.DEFAULTS, comments(optim, 'DEFAULTS'))
    kinds = [kind for kind in TITLES if short in _files(kind) and name in (short, f'{kind}/{short}')]
    if not kinds and '.' not in name:
        known = [*TABLES, 'optim', *(n for kind in TITLES for n in _files(kind))]
        raise errors.ConfigError(f'There are no options of "{name}".{errors.nearest(short, known)} `jaxkd list` says '
                                 'what each is; your own module is named with its package.')
    parts = []
    for kind in kinds or ['']:
        try:
            module = plugins.load(kind or 'options', short)
        except errors.ConfigError as e:
            raise errors.ConfigError(f'{e} Keys of a config follow its name: jaxkd options configs/mmpkd_cxr.py '
                                     f'{name}') from e
        head = f'{kind}/{short}' if kind else name
        parts.append(_table(f'{head}\n\n{inspect.getdoc(module) or ""}\n\noptions:', vars(module).get('DEFAULTS', {}),
                            meanings(kind, module)))
    return '\n\n'.join(parts)


def _files(kind: str) -> dict[str, pathlib.Path]:
    """{name: file} of the plug-ins of a kind; a phantom is a source by its dotted name."""
    folder = plugins.ROOT / kind
    if kind == 'phantoms':
        return {f'jaxkd.phantoms.{path.parent.name}': path.parent / '__init__.py'
                for path in sorted(folder.glob('*/source.py'))}
    return {name: folder / f'{name}.py' for name in plugins.names(kind)}


def _place(name: str) -> str:
    return {'run': 'the config', 'stage': 'a stage', 'loss': '<stage>.method.losses.<name>'}.get(
        name, f'<stage>.{name}s.<name>')


def _table(head: str, defaults: dict, meanings: dict[str, str]) -> str:
    rows = commented((f'{key} = {value!r}', meanings.get(key, '')) for key, value in dotted(defaults).items())
    return '\n'.join([head, *(f'  {row}' for row in rows or ['none'])])
