"""Stages that several runs have in common: one run trains them, the others take them over.

Two resolved configs give a stage the same `digest` where nothing that decides its results differs. The files of the
stage are then linked (copied, where a file system has no links) into the folder of the other run, which is afterwards
what it would be had it trained the stage itself; the entry in summary.json says where that happened (`trained_in`).
"""
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxkd import config, errors, parallel
from jaxkd.data import splits
from jaxkd.runtime import files, log

RUN_KEYS = ('seed', 'parallel', 'bootstrap')  # of the run, besides data
DATA_KEYS_WITHOUT_EFFECT = ('workers', 'threads', 'timeout', 'cache', 'ram_gib', 'folder')


def prior_stages(run_config: ConfigDict, name: str) -> list[str]:
    """The stages of the same run that a stage starts from, directly or not, in the order of the config."""
    stage, found = run_config[name], set()
    for origin in config.origins(stage):
        if origin.stage and not origin.path:
            found |= {origin.stage, *prior_stages(run_config, origin.stage)}
    return [key for key in run_config if key in found]


def digest(run_config: ConfigDict, name: str) -> str:
    """A sha256 of what decides the results of a stage in a resolved config, hexadecimal.

    An option of the run's data that the stage and those that it starts from set themselves decides nothing.
    """
    tree, names = run_config.to_dict(), (*prior_stages(run_config, name), name)
    data = {s: config.stage_data(run_config, s).to_dict() for s in names}
    for options, key in itertools.product(data.values(), DATA_KEYS_WITHOUT_EFFECT):
        options.pop(key, None)
    facts = dict(name=name, run={k: tree[k] for k in RUN_KEYS},
                 stages={s: tree[s] | dict(data=data[s]) for s in names})
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def take_over(run_config: ConfigDict, workdir: pathlib.Path, shared: Mapping[str, str | os.PathLike]) -> None:
    """Bring the unfinished stages of a run that `shared` names, {stage: folder of the run that trained it}, into its
    folder, whose lock this process holds. The summary then holds their entries, and no facts about the run.

    MissingInput for a stage that is not finished there, ConfigError if other options decided it, BadData for another
    split.
    """
    message, code = '', 0
    if parallel.process()[0] == 0:
        try:
            _take_over(run_config, workdir, {name: pathlib.Path(folder) for name, folder in shared.items()})
        except errors.JaxkdError as e:
            message, code = str(e), e.code
    for row in parallel.allgather_rows([dict(error=message, code=code)]):
        if row['error']:
            kinds = {kind.code: kind for kind in errors.JaxkdError.__subclasses__()}
            raise kinds.get(row['code'], errors.JaxkdError)(row['error'])


def share_teacher_outputs(folder: pathlib.Path, workdir: pathlib.Path) -> None:
    """The run in `workdir` keeps cached outputs of teachers, whose names are digests, in folder/teacher_outputs, as the
    other runs of that folder do.
    """
    link, common = workdir / 'teacher_outputs', folder / 'teacher_outputs'
    for path in (common, workdir):
        path.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # there before, or no links here: then each keeps its own
        os.symlink(os.path.relpath(common, workdir), link, target_is_directory=True)


def _take_over(run_config: ConfigDict, workdir: pathlib.Path, shared: Mapping[str, pathlib.Path]) -> None:
    path = workdir / 'summary.json'
    summary = files.read_summary(path) if path.exists() else dict(stages={})
    for name in run_config.stages:
        if name not in shared or summary['stages'].get(name, {}).get('finished'):
            continue
        entry = _finished_entry(run_config, name, shared[name])
        for stage in (name, *(f'{name}_fold{i}' for i in range(run_config[name].folds))):
            _link_tree(shared[name] / 'checkpoints' / stage, workdir / 'checkpoints' / stage)
            _link_tree(shared[name] / 'tensorboard' / stage, workdir / 'tensorboard' / stage)
            _copy_lines(stage, shared[name], workdir)
        for file in entry.get('predictions', ()):
            _link(shared[name] / 'predictions' / file, workdir / 'predictions' / file)
        _take_split(shared[name] / 'split.json', workdir / 'split.json')
        summary['stages'][name] = entry | dict(trained_in=os.path.relpath(shared[name], workdir))
        files.write(workdir / 'config.json', config.dump(run_config) + '\n')
        files.write_summary(path, summary)
        log.info(f'{name}: taken over from {shared[name]}')


def _finished_entry(run_config: ConfigDict, name: str, folder: pathlib.Path) -> dict[str, Any]:
    """The entry of a stage in the summary of the run that trained it, after all checks."""
    entry = files.read_summary(folder / 'summary.json')['stages'].get(name, {})
    if not entry.get('finished'):
        raise errors.MissingInput(f'{folder}: stage {name} is not finished there. Train it first.')
    if digest(config.load(folder / 'config.json'), name) != digest(run_config, name):
        raise errors.ConfigError(f'{folder}: stage {name} was trained there with other options, seed or data. Leave '
                                 'it out of the shared stages.')
    return entry


def _take_split(source: pathlib.Path, target: pathlib.Path) -> None:
    """Bring the split into the folder of the run. The lists of who has labels may differ: each stage adds its own."""
    if not source.exists():
        return
    if not target.exists():
        _link(source, target)
        return
    if splits.read(target) != splits.read(source):
        raise errors.BadData(f'{target} is not the split of {source}, though the options are equal: the cases of the '
                             'source changed in between. Start in a new folder.')
    there, here = (files.read_json(path, 'The split') for path in (source, target))
    if added := {k: v for k, v in there.get('labelled', {}).items() if k not in here.get('labelled', {})}:
        files.write_json(target, here | dict(labelled=here.get('labelled', {}) | added))


def _copy_lines(stage: str, source: pathlib.Path, workdir: pathlib.Path) -> None:
    """Put the lines of a stage in metrics.jsonl in the place of those that the run may have."""
    kept = [line for line in log.read(workdir) if line['stage'] != stage]
    lines = [*kept, *(line for line in log.read(source) if line['stage'] == stage)]
    files.write(workdir / 'metrics.jsonl', ''.join(json.dumps(line) + '\n' for line in lines))


def _link_tree(source: pathlib.Path, target: pathlib.Path) -> None:
    """A tree in the place of another, in one step; nothing where there is no source."""
    if not source.exists():
        return
    for left in target.parent.glob(f'.{target.name}.*'):  # of an interrupted try
        shutil.rmtree(left)
    temporary = target.with_name(f'.{target.name}.{uuid.uuid4().hex[:8]}')
    with files.writing(target):
        shutil.copytree(source, temporary, copy_function=_link)
        if target.exists():
            shutil.rmtree(target)
        os.rename(temporary, target)


def _link(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """A hard link in the place of a file, or a copy. Files of finished stages are replaced, never written into."""
    with files.writing(target):
        pathlib.Path(target).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(target).unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)
