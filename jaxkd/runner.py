"""Run the stages of a config in one working folder: skip what is finished, resume what is not, write what came out.

workdir/  config.json  metrics.jsonl  summary.json  report.html  split.json
          checkpoints/<stage>/  predictions/<stage>_<part>.csv  teacher_outputs/  tensorboard/<stage>/
          checkpoints/<stage>_fold<j>/  of a stage with folds: only asked as teachers, never tested
"""
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxkd import checkpoint, config, errors, evaluation, optim, parallel, stages, train
from jaxkd.data import splits
from jaxkd.data.pool import DataPool
from jaxkd.runtime import files, log, preemption, trees, versions

# What may differ when a run continues in its folder: it changes no number.
KEYS_THAT_MAY_CHANGE = ('stages', 'note', 'tensorboard', 'data.workers', 'data.threads', 'data.timeout', 'data.cache',
                        'data.ram_gib',
        'data.folder')


def run(run_config: ConfigDict, workdir: str | pathlib.Path) -> dict:
    """Train and evaluate every stage of a resolved config -> the summary, also in workdir/summary.json."""
    with preemption.catch_signals():
        return _run(run_config, workdir)


def _run(run_config, workdir):
    workdir = pathlib.Path(workdir)
    first = parallel.process()[0] == 0
    check_same_config(run_config, workdir)
    if first:
        files.write(workdir / 'config.json', config.dump(run_config) + '\n')
    path = workdir / 'summary.json'
    summary = files.read_json(path, 'The summary') if path.exists() else dict(stages={})
    summary |= dict(note=run_config.note, seed=run_config.seed, order=list(run_config.stages),
                    versions=versions.versions(), devices=parallel.describe())
    pool = DataPool()
    for name in run_config.stages:
        if summary['stages'].get(name, {}).get('finished'):
            log.info(f'{name}: finished before')
            continue
        for fold in range(run_config[name].folds):
            _train_fold(run_config, name, fold, workdir, pool)
        stage = stages.build(run_config, name, workdir, pool=pool)
        log.info(f'{name}: {describe_data(stage)}')
        preemption.raise_if_preempted(name)
        diagnosis, message = evaluation.diagnose(stage)
        if message:
            log.info(f'{name}: {message}')
        before = {t: checkpoint.digest(v) for t, v in stage.frozen.items()}
        state, seconds = train.train(stage, workdir, run_config.tensorboard)
        if before != {t: checkpoint.digest(v) for t, v in stage.frozen.items()}:
            raise errors.JaxkdError(f'{name}: a frozen teacher changed during training.')
        preemption.raise_if_preempted(f'{name}, trained')
        began = time.perf_counter()
        entry = evaluation.evaluate(stage, run_config, workdir) | ({'before': diagnosis} if diagnosis else {})
        entry |= dict(finished=True, seconds=round(seconds, 1),
                      evaluation_seconds=round(time.perf_counter() - began, 1))
        summary['stages'][name] = entry
        if first:
            files.write_json(path, files.finite(summary))
    if first:
        from jaxkd.report import html_page
        html_page.write(workdir)
        log.info(f'report: {workdir / "report.html"}')
    return summary


def _train_fold(run_config, name, fold, workdir, pool):
    """Train a network beside stage `name` that leaves out a fold of the patients.

    Finished before, it is only looked at.
    """
    fold_config, fold_name = config.fold(run_config, name, fold)
    stage = stages.build(fold_config, fold_name, workdir, pool=pool)
    folds = [stage.data.partition.fold_indices(j, run_config[name].folds) for j in range(run_config[name].folds)]
    if not all(folds):
        raise errors.ConfigError(f'{name}.folds = {run_config[name].folds}: with so few training patients fold '
                                 f'{folds.index([])} has nobody. Set fewer folds, or another data.split.seed.')
    held = splits.patient_digests(stage.data.source.cases[i] for i in folds[fold])
    if seen := {*held} & {*stage.trained_on_patients}:
        raise errors.ConfigError(f'{fold_name} is to predict {len(held)} patients that it never saw, and what it '
                                 f'starts or learns from was trained on {len(seen)} of them. Leave init, networks and '
                                 f'teachers of stage {name} out, or its folds.')
    log.info(f'{fold_name}: {len(stage.data.partition.train_indices())} training cases; the other '
             f'{len(stage.data.partition.indices("train")) - len(stage.data.partition.train_indices())} '
            'are of patients that it is to predict')
    preemption.raise_if_preempted(fold_name)
    train.train(stage, workdir, run_config.tensorboard)


def dry_run(run_config: ConfigDict, workdir: str | pathlib.Path) -> None:
    """Say what a run would be: batches, parameters, memory, steps. Nothing is trained and nothing written."""
    pool = DataPool()
    for name in run_config.stages:
        stage = stages.build(run_config, name, workdir, dry=True, pool=pool)
        log.info(f'\n{name}: {describe_data(stage)}')
        if run_config[name].folds:
            log.info(f'  and {run_config[name].folds} more of it, each without a fold of the training patients')
        for path, a in jax.tree_util.tree_leaves_with_path(stage.context.batch):
            log.info(f'  batch  {trees.leaf_name(path):28} {str(a.shape):24} {a.dtype}')
        state = jax.eval_shape(stage.method.init, jax.random.key(0))
        optim.check_patterns(stage.config.optim, state.params)
        for network, params in state.params.items():
            count = sum(int(np.prod(a.shape)) for a in jax.tree.leaves(params))
            if count:
                log.info(f'  {network}: {count:,} parameters')
        log.info(f'  {stage.total} steps of {stage.config.batch} ({stage.context.epoch:.1f} to an epoch), validation '
                 f'every {stage.eval_every}, dtype {stage.config.dtype}')
        used = parallel.step_bytes(stage.method.train_step, state, stage.context.frozen, stage.context.batch)
        log.info(f'  estimated memory on each device: state {_size_mib(state):.0f} MiB + teachers '
                 f'{_size_mib(stage.context.frozen):.0f} MiB + one step {used / 2**20:.0f} MiB')


def _size_mib(tree: Any) -> float:
    return sum(int(np.prod(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree)) / 2**20


def describe_data(stage: stages.Stage) -> str:
    """One line on the cases of a stage: how many, of which part, what is left out."""
    source, data = stage.data.source, stage.data
    parts = ', '.join(f'{role} {len(data.partition.indices(role))}' for role in ('train', 'val', 'test'))
    skipped = f', {len(source.skipped)} skipped' if source.skipped else ''
    note = f' [{source.note}]' if source.note else ''
    none = ('' if data.partition.indices('test') else
            '. No case is tested: set data.split.fractions if the archive gives no test part')
    return f'{source.name}: {parts} cases{skipped}{note}{none}'


def check_same_config(run_config: ConfigDict, workdir: pathlib.Path) -> None:
    """Raises ConfigError where the folder holds a run of another config."""
    path = workdir / 'config.json'
    if not path.exists():
        return
    before = config.resolve(ConfigDict(config.tuples(files.read_json(path, 'The config of the run'))))
    before, now = (_flat(json.loads(config.dump(c))) for c in (before, run_config))
    keys = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k) and k not in KEYS_THAT_MAY_CHANGE]
    if keys:
        shown = '; '.join(f'{k}: {before.get(k)!r} before, {now.get(k)!r} now' for k in keys[:4])
        raise errors.ConfigError(f'{workdir} holds a run of another config ({shown}). Choose another --workdir.')


def _flat(tree, prefix=''):
    if isinstance(tree, dict) and tree:
        return {k: v for key, sub in tree.items() for k, v in _flat(sub, f'{prefix}.{key}' if prefix else key).items()}
    return {prefix: tree}
