"""Test a finished run again, with other options of the test or on new data. Nothing is trained.

    python -m jaxkd.evaluate runs/a                                      the same numbers again
    python -m jaxkd.evaluate runs/a --bootstrap 10000                    other intervals
    python -m jaxkd.evaluate runs/a --data DIR                           also on the cases of another folder
    python -m jaxkd.evaluate runs/a --config.student.evals.classification.bins=10

Best and last step of each finished stage are restored as training saved them; summary.json, predictions and report.html
are written anew, and what changed is printed. Options that decide the training are refused. --config.stages=student
tests that stage alone. An interrupted command leaves each stage wholly as before or wholly new: repeat it.

DIR is laid out as the data of the run, or is a table (cases.csv) in such a folder. All of its cases are tested, by the
evaluators of each stage that test masks, labels or maps; they stand in summary and report under a name of their own,
and stay in the config of the run. Patients and image files that the run was trained on or selects by are refused. A
network whose inputs DIR lacks (a teacher without reports) is left out. --config.data.external.NAME.KEY=VALUE sets
options of the new data; where its source reads other folders too, as that of MIMIC-CXR its reports, these have to be
given so, --config.data.external.NAME.source.reports=DIR, or empty. Data of the run that have moved since are found by
--config.data.source.root=DIR and the like.
"""
import argparse
import copy
import os
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxkd.runtime.cli import EXIT_CODES, guarded, leave, parse

NO_NAMES = ('train', 'val', 'test')  # files of predictions have these names
SHOWN = 20  # changed results of a stage in the log


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    usage = 'python -m jaxkd.evaluate RUN [--data DIR [--name NAME]] [--bootstrap N] [--config.KEY=VALUE ...]'
    parser = argparse.ArgumentParser('jaxkd.evaluate', usage=usage, description=__doc__, epilog=EXIT_CODES,
                                     allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', metavar='RUN', help='the --workdir of a run')
    parser.add_argument('--data', metavar='DIR', help='new data, laid out as that of the run')
    parser.add_argument('--name', help='what summary and report call it (default: the name of its folder)')
    parser.add_argument('--bootstrap', type=int, metavar='N', help='resamples behind every interval')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code."""
    parser = build_parser()
    args, overrides = parse(parser, argv)
    if args.name and not args.data:
        parser.error('--name is that of --data, which is missing')
    return guarded(_run, args, overrides)


def _run(args: argparse.Namespace, overrides: list[str]) -> int:
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    from jaxkd import config, errors, parallel, runner
    from jaxkd.runtime import files, log
    workdir = pathlib.Path(args.run)
    if not (workdir / 'config.json').is_file():
        several = any((workdir / name).exists() for name in ('repeat.json', 'gains.json'))
        remedy = ('It holds several: give one of them, or repeat jaxkd.multirun with the options.' if several else
                  'Give the --workdir of one.')
        raise errors.MissingInput(f'{workdir} holds no run, there is no config.json. {remedy}')
    run_config, before = config.load(workdir / 'config.json'), runner.read_summary(workdir)['stages']
    parallel.initialize()
    if args.bootstrap is not None:
        overrides = [f'bootstrap={args.bootstrap}', *overrides]
    finished = tuple(name for name in run_config.stages if before.get(name, {}).get('finished'))
    listed = [override for override in overrides if override.startswith('stages=')]
    if finished and not listed:
        log.info(f'{workdir}: stages {", ".join(finished)}' + ''.join(
            f'; {name} is not finished and left out' for name in run_config.stages if name not in finished))
        run_config.stages = finished
    run_config = config.overridden(run_config, listed)
    if args.data:
        run_config = with_data(run_config, args.data, args.name, workdir, overrides)
    run_config = config.overridden(run_config, overrides)
    if warning := parallel.unused_accelerator():
        log.info(warning)
    parallel.enable_compilation_cache()
    for name, entry in runner.evaluate(run_config, workdir)['stages'].items():
        if entry.get('finished'):
            results = [stage.get('test', {}).get('best', {}) for stage in (before.get(name, {}), entry)]
            log.info('\n'.join(changes(name, *map(files.finite, results))))
    return 0


def with_data(run_config: ConfigDict, path: str, name: str | None, workdir: pathlib.Path,
              overrides: Sequence[str] = ()) -> ConfigDict:
    """A resolved config whose listed stages are tested on all cases of the data at `path`, too, called `name`.

    overrides: those that follow, which give the other paths of the source. ConfigError where the name or the source of
    the run does not allow it, MissingInput without the data.
    """
    from jaxkd import config, errors
    from jaxkd.data.source import innermost
    path = os.path.abspath(path)
    if not os.path.exists(path):
        raise errors.MissingInput(f'--data {path} does not exist. Give a folder laid out as the data of the run.')
    folder, table = os.path.split(path) if os.path.isfile(path) else (path, '')
    name = name or re.sub(r'\W+', '_', os.path.basename(folder)).strip('_')
    if not re.fullmatch(r'[^\W_]\w*', name) or name in NO_NAMES:
        raise errors.ConfigError(f'--data {path}: "{name}" cannot be its name in summary and report. Set --name, of '
                                 'letters, digits and _.')
    tree = run_config.to_dict()
    external = tree['data']['external']
    if name not in external:
        split = dict(fractions=(0.0, 0.0, 1.0), given=False, file='', stratify=(), folds=0, fold=0, leave_out='',
                     reserve=())
        key = f'data.external.{name}.source'
        given = {text.partition('=')[0].rpartition('.')[2] for text in overrides if text.startswith(f'{key}.')}
        source = _source(tree['data']['source'], folder, table, given, key, run_config.stages[0], workdir)
        external[name] = dict(source=source, split=split, train='test', test='test')
    elif innermost(external[name]['source'])[1].get('root') != folder:
        raise errors.ConfigError(f'--data {path}: data.external has other data called "{name}". Set --name.')
    if not sum(_add_evaluators(tree[stage]['evals'], name, f'--data {path}: {stage}') for stage in run_config.stages):
        raise errors.ConfigError(f'--data {path}: no evaluator of {", ".join(run_config.stages)} tests other data. Add '
                                 'one, such as classification or segmentation, to the evals of a stage.')
    return config.resolve(ConfigDict(tree))


def _add_evaluators(evals: dict[str, dict], name: str, label: str) -> int:
    """Add to the evaluators of a stage each that tests the run's data once more, for external data -> how many."""
    from jaxkd import errors
    from jaxkd.config import plugins
    same = {e: hp for e, hp in evals.items() if hp.get('data') == '' and 'part' in hp}
    first = next((e for e, hp in same.items() if plugins.contract('evaluators', hp['name']).scores), '')
    for e, hp in same.items():
        key = name if e == first else f'{name}_{e}'
        if evals.get(key, {'data': name}).get('data') != name:
            raise errors.ConfigError(f'{label} has an evaluator called "{key}". Set another --name.')
        evals.setdefault(key, {**hp, 'data': name, 'part': 'all'})
    return len(same)


def _source(source: dict, folder: str, table: str, given: Collection[str], key: str, stage: str,
            workdir: pathlib.Path) -> dict:
    """The options of the source of a run for the data in another folder.

    given: options that overrides set; key: of the source, for errors.
    """
    from jaxkd import errors
    from jaxkd.config import plugins
    from jaxkd.data.source import innermost
    from jaxkd.runtime import saved_student
    source = copy.deepcopy(source)
    path, inner = innermost(source)
    if 'root' not in inner:
        raise errors.ConfigError(f'--data {folder}: the source "{inner["name"]}" of this run reads no folder. Name the '
                                 'data in data.external and in an evaluator of the config instead.')
    others = [option for option in plugins.contract('data/sources', inner['name']).paths
              if option != 'root' and inner[option] and option not in given]
    if others:
        key = '.'.join((key, *path))
        raise errors.ConfigError(f'--data {folder}: the source "{inner["name"]}" of this run also reads {others[0]}='
                                 f'{inner[others[0]]}, which is not of the new data. Set '
                                 + ' '.join(f'--config.{key}.{option}=' for option in others) + ', each to a folder of '
                                 'the new data or to nothing.')
    if table and 'table' not in inner:
        raise errors.ConfigError(f'--data {os.path.join(folder, table)}: the source "{inner["name"]}" of this run '
                                 'takes a folder.')
    inner |= dict(root=folder) | (dict(table=table) if table else {}) | (
        dict(empty_text='ok') if 'empty_text' in inner else {})
    if inner is source and inner.get('labels') == ():  # the new table may have others in another order
        inner['labels'] = tuple(saved_student.stage_metadata(workdir / 'checkpoints' / stage)['labels'])
    return source


def changes(stage: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What changed in the test results {evaluator/metric: entry} of a stage, for the log."""
    keys = list(dict.fromkeys([*after, *before]))
    changed = [key for key in keys if before.get(key) != after.get(key)]
    new, gone = (sum(key not in results for key in changed) for results in (before, after))
    lines = [f'{stage}: {len(keys) - len(changed)} results of the test are the same, {len(changed) - new - gone} '
             f'changed, {new} are new, {gone} are gone']
    shown = [key for key in changed if key.count('/') == 1]
    lines += [f'  {key}: {_text(before.get(key))} -> {_text(after.get(key))}' for key in shown[:SHOWN]]
    return lines + ([f'  ... and {len(shown) - SHOWN} more, in summary.json'] if len(shown) > SHOWN else [])


def _text(entry: Mapping[str, Any] | None) -> str:
    """0.81 (0.75 to 0.86)"""
    if entry is None:
        return 'none'
    value, *interval = ('undefined' if entry.get(k) is None else f'{entry[k]:.4g}' for k in ('value', 'low', 'high'))
    return value if None in (entry.get('low'), entry.get('high')) else f'{value} ({" to ".join(interval)})'


if __name__ == '__main__':
    leave(main())
