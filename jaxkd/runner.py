"""Run the stages of a config in one working folder: skip finished ones, resume interrupted ones, write the results.

workdir/  config.json  metrics.jsonl  summary.json  report.html  split.json
          checkpoints/<stage>/  predictions/<stage>_<part>.csv  teacher_outputs/  tensorboard/<stage>/
          checkpoints/<stage>_fold<j>/  of a stage with folds: used as teachers, never tested
"""
import json
import os
import pathlib
import time
from collections.abc import Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxkd import (
    config,
    errors,
    evaluation,
    optim,
    parallel,
    stages,
    teachers,
    train,
)
from jaxkd.config import plugins, schema
from jaxkd.data import splits
from jaxkd.data.pool import DataPool
from jaxkd.data.source import without_paths
from jaxkd.runtime import files, lock, log, preemption, saved_student, trees, versions
from jaxkd.runtime.accelerators import Accelerator
from jaxkd.state import TrainState
from jaxkd.training import shared_stages, step_cost

# Keys that may differ when a run continues in its folder: they change no number. Options of the test may differ, too.
KEYS_THAT_MAY_CHANGE = ('stages', 'note', 'preset', 'tensorboard', 'fsdp',
                        *(f'data.{key}' for key in shared_stages.DATA_KEYS_WITHOUT_EFFECT))
FEW_STEPS = 100  # of a stage that is too short to learn from scratch [our choice]


def run(run_config: ConfigDict, workdir: str | pathlib.Path,
        shared: Mapping[str, str | os.PathLike] | None = None, later_runs: float = 0) -> dict:
    """Train and evaluate every stage of a resolved config -> the summary, also in workdir/summary.json.

    shared: {stage: folder of another run that trained it}, taken over instead, see jaxkd/training/shared_stages.py.
    later_runs: runs as long as this one that follow, for the ETA.
    """
    workdir = pathlib.Path(workdir)
    with preemption.catch_signals(), lock.hold(workdir):
        return _run(run_config, workdir, shared or {}, later_runs)


def evaluate(run_config: ConfigDict, workdir: str | pathlib.Path) -> dict:
    """Test the finished stages that a resolved config lists once more, with its options -> the summary, also in
    workdir/summary.json. Nothing is trained, and nothing else in the folder changes but predictions and report.

    Other finished stages whose options of the test changed are tested, too. MissingInput for a stage that is not
    finished, ConfigError for an option of the training that changed.
    """
    workdir = pathlib.Path(workdir)
    with preemption.catch_signals(), lock.hold(workdir):
        check_same_config(run_config, workdir)
        summary, before = read_summary(workdir) | dict(note=run_config.note), stored_config(workdir)
        finished = [name for name, entry in summary['stages'].items() if entry.get('finished')]
        if unfinished := [name for name in run_config.stages if name not in finished]:
            raise errors.MissingInput(
                f'{workdir}: stage {unfinished[0]} is not finished. Train it: python -m jaxkd.main --config '
                f'{workdir}/config.json --workdir {workdir}. Finished: {", ".join(finished) or "none"}.')
        names = [name for name in finished if name in {*run_config.stages, *outdated(run_config, summary)}]
        _test_again(run_config, workdir, summary, names, before.stages if before else names, DataPool())
        _write_report(workdir)
        return summary


def _run(run_config, workdir, shared, later_runs):
    first = parallel.process()[0] == 0
    check_same_config(run_config, workdir)
    _remove_first_try(workdir)
    shared_stages.take_over(run_config, workdir, shared)
    path, stored = workdir / 'summary.json', read_summary(workdir)
    summary = stored | dict(note=run_config.note, seed=run_config.seed, order=_order(run_config, stored),
                           versions=versions.versions(), devices=parallel.describe(), machine=versions.machine())
    if first and stored['stages'] and 'order' not in stored:  # all were taken over
        files.write_summary(path, files.finite(summary))
    pool = DataPool()
    examples = {}  # that each stage trains on, its folds included, and the runs that follow
    for name in run_config.stages:
        if not summary['stages'].get(name, {}).get('finished'):
            _check_prior_stages(run_config, name, workdir)
            stage, _ = check_stage(run_config, name, workdir, pool)
            examples[name] = stage.total * stage.config.batch * (1 + stage.config.folds)
    examples[''] = round(later_runs * sum(examples.values()))
    _test_again(run_config, workdir, summary, outdated(run_config, summary), summary['order'], pool)
    for name in run_config.stages:
        if summary['stages'].get(name, {}).get('finished'):
            log.info(f'{name}: finished before')
            continue
        for fold in range(run_config[name].folds):
            examples[name] -= examples[name] // (run_config[name].folds + 1 - fold)
            _train_fold(run_config, name, fold, workdir, pool, sum(examples.values()))
        stage = stages.build(run_config, name, workdir, pool=pool)
        _write_config(run_config, workdir, summary['order'])
        log.info(f'{name}: {describe_data(stage)}')
        preemption.raise_if_preempted(name)
        diagnosis, message = evaluation.diagnose(stage)
        if message:
            log.info(f'{name}: {message}')
        before = {t: saved_student.digest(v) for t, v in stage.frozen.items()}
        del examples[name]
        held = parallel.peak_memory()
        state, seconds = train.train(stage, workdir, run_config.tensorboard, sum(examples.values()))
        if before != {t: saved_student.digest(v) for t, v in stage.frozen.items()}:
            raise errors.JaxkdError(f'{name}: a frozen teacher changed during training.')
        preemption.raise_if_preempted(f'{name}, trained')
        began = time.perf_counter()
        peak = parallel.peak_memory()
        entry = evaluation.evaluate(stage, run_config, workdir) | ({'before': diagnosis} if diagnosis else {})
        if peak and peak > (held or 0):  # else an earlier stage of this process held more
            entry['peak_memory'] = peak
        summary['stages'][name] = entry | dict(finished=True, date=versions.now(), seconds=round(seconds, 1),
                                               evaluation_seconds=round(time.perf_counter() - began, 1))
        if first:
            files.write_summary(path, files.finite(summary))
    _write_report(workdir)
    return summary


def _test_again(run_config, workdir, summary, names, order, pool):
    """Replace the test results of these finished stages, then config.json. Entries say by which options they were made,
    so that what is interrupted can be continued.
    """
    students = {name: stages.trained_student(run_config, name, workdir, pool) for name in names}
    for name in names:
        before, began = summary['stages'][name], time.perf_counter()
        tested = before.get('test_options', {}), evaluation.test_options(run_config, name)
        changed = _differences(*map(config.dotted, tested))
        log.info(f'{name}: tested again' + (f' ({"; ".join(changed[:4])})' if changed else ''))
        entry = before | evaluation.test(run_config, name, students.pop(name), workdir)
        summary['stages'][name] = entry | dict(evaluation_seconds=round(time.perf_counter() - began, 1))
        if parallel.process()[0] == 0:
            for file in {*before.get('predictions', ())} - {*entry['predictions']}:
                (workdir / 'predictions' / file).unlink(missing_ok=True)
            files.write_summary(workdir / 'summary.json', files.finite(summary))
    if names:
        _write_config(run_config, workdir, order)


def _write_report(workdir):
    if parallel.process()[0] == 0:
        from jaxkd.report import html_page
        html_page.write(workdir)
        log.info(f'report: {workdir / "report.html"}')


def outdated(run_config: ConfigDict, summary: dict) -> list[str]:
    """The finished stages that were tested with other options than those of a resolved config."""
    return [name for name, entry in summary['stages'].items() if entry.get('finished') and name in run_config
            and not evaluation.is_current(entry, run_config, name)]


def _train_fold(run_config, name, fold, workdir, pool, later):
    """Train network `fold` of the folds of stage `name`, without that fold of the patients; resumes like any stage."""
    fold_config, fold_name = config.fold(run_config, name, fold)
    stage, count = stages.build(fold_config, fold_name, workdir, pool=pool), run_config[name].folds
    _write_config(run_config, workdir, run_config.stages)
    partition = stage.data.partition
    folds = _folds(stage, name, count)
    held_out = splits.patient_digests(stage.data.source.cases[i] for i in folds[fold])
    if leaked := {*held_out} & {*stage.trained_on_patients}:
        raise errors.ConfigError(f'{fold_name} is to predict {len(held_out)} patients without training on them, but '
                                 f'its initial weights or teachers were trained on {len(leaked)} of them. Leave init, '
                                 f'networks and teachers of stage {name} out, or its folds.')
    trained = len(partition.train_indices())
    log.info(f'{fold_name}: {trained} training cases; the other {len(partition.indices("train")) - trained} are of '
             'patients that it is to predict')
    preemption.raise_if_preempted(fold_name)
    train.train(stage, workdir, run_config.tensorboard, later)


def _folds(stage, name, count):
    """Indices of the training cases of each fold. ConfigError for an empty one."""
    folds = [stage.data.partition.fold_indices(j, count) for j in range(count)]
    if not all(folds):
        raise errors.ConfigError(f'{name}.folds = {count}: with so few training patients fold {folds.index([])} has '
                                 'nobody. Set fewer folds, or another data.split.seed.')
    return folds


def _check_prior_stages(run_config, name, workdir):
    """MissingInput for a stage that `name` starts from and that is neither trained nor listed before it."""
    stage, before = run_config[name], run_config.stages[:run_config.stages.index(name)]
    for prior in config.origins(stage):
        if prior.stage and not prior.path and prior.stage not in before:
            teachers.prior_stage(run_config, prior, workdir, dry=False)


def check_stage(run_config: ConfigDict, name: str, workdir: str | pathlib.Path,
                pool: DataPool) -> tuple[stages.Stage, TrainState]:
    """Build a stage without training or reading what earlier stages leave -> (stage, shapes of its initial state).

    Raises what the stage itself would raise before its first step.
    """
    stage = stages.build(run_config, name, workdir, dry=True, pool=pool)
    _folds(stage, name, run_config[name].folds)
    for length in ('eval_every', 'log_every'):
        getattr(stage, length)
    state = jax.eval_shape(stage.method.init, jax.random.key(0))
    optim.check_patterns(stage.config.optim, state.params)
    warn_if_short(stage)
    return stage, state


def dry_run(run_config: ConfigDict, workdir: str | pathlib.Path, memory: bool = False, topology: str = '') -> None:
    """Print batches, parameters, memory and steps of a run. Nothing is trained and nothing written.

    memory: compile each train step, print what it costs on each device, see training/step_cost.py, and measure it.
    topology: compile it for devices that are not here instead, see runtime/accelerators.py, and measure nothing.
    """
    accelerator = parallel.compile_for(topology) if topology else parallel.local_accelerator()
    memory, measure, pool = memory or bool(topology), not topology, DataPool()
    for name in run_config.stages:
        stage, state = check_stage(run_config, name, workdir, pool)
        log.info(f'\n{name}: {describe_data(stage)}')
        if run_config[name].folds:
            log.info(f'  and {run_config[name].folds} more networks, each without a fold of the training patients')
        for path, a in jax.tree_util.tree_leaves_with_path(stage.context.batch):
            log.info(f'  batch  {trees.leaf_name(path):28} {str(a.shape):24} {a.dtype}')
        for network, params in state.params.items():
            if count := sum(int(np.prod(a.shape)) for a in jax.tree.leaves(params)):
                label = stage.config.model.name if network == 'student' else network
                log.info(f'  {label}: {count:,} parameters')
        log.info(f'  {stage.total} steps of {stage.config.batch} ({stage.context.epoch:.1f} to an epoch), validation '
                 f'every {stage.eval_every}, dtype {stage.config.dtype}')
        for line in _step_cost(stage, state, accelerator, memory, measure):
            log.info(f'  {line}')


def training_seconds(run_config: ConfigDict, name: str, workdir: str | pathlib.Path, pool: DataPool) -> float:
    """How long the steps of a stage and its folds take on these devices, without validation: a few are timed, on zeros.
    """
    stage, state = check_stage(run_config, name, workdir, pool)
    arguments, fsdp = (state, stage.context.frozen, stage.context.batch), stage.context.fsdp
    with log.waiting(f'{name}: timing a few steps'):
        compiled = parallel.compiled_step(stage.method.train_step, *arguments, fsdp=fsdp)
        seconds = parallel.step_seconds(compiled, *arguments, steps=5, fsdp=fsdp)
    return seconds * stage.total * (1 + run_config[name].folds)


def _step_cost(stage: stages.Stage, state: TrainState, accelerator: Accelerator | None, memory: bool,
               measure: bool) -> list[str]:
    """Lines for the log on what a step holds and costs on each device; the latter with `memory`, for which it is
    compiled, and with `measure` also timed.
    """
    context, devices = stage.context, parallel.mesh().size
    held = step_cost.held(state, context.frozen, context.batch, devices, context.fsdp)
    if not memory:
        return [f'{step_cost.describe_memory(held, accelerator)}, without a step (--dry_run=memory)']
    arguments = (stage.method.train_step, state, context.frozen, context.batch)
    with log.waiting(f'{stage.name}: compiling the train step'):
        compiled = parallel.compiled_step(*arguments, fsdp=context.fsdp)
    step = step_cost.cost(compiled, parallel.step_flops(*arguments))
    seconds = parallel.step_seconds(compiled, *arguments[1:], fsdp=context.fsdp) if measure else None
    return step_cost.describe(step, held, accelerator, stage.config.dtype, stage.config.batch,
                              devices, devices * context.accumulate, seconds)


def describe_data(stage: stages.Stage) -> str:
    """One line with the number of cases of each part and of skipped ones."""
    source, partition = stage.data.source, stage.data.partition
    parts = ', '.join(f'{role} {len(partition.indices(role))}' for role in ('train', 'val', 'test'))
    hidden = f'. {describe_labels(stage)}' if stage.data.label_mask else ''
    skipped = f', {len(source.skipped)} skipped' if source.skipped else ''
    note = f' [{source.note}]' if source.note else ''
    untested = ('' if partition.indices('test') else
                '. No case is tested: set data.split.fractions if the archive gives no test part')
    return f'{source.name}: {parts} cases{skipped}{note}{untested}{hidden}'


def describe_labels(stage: stages.Stage) -> str:
    """A sentence on how many labels a stage may use, of all patients."""
    counts = evaluation.label_counts(stage.data)
    train, val = counts['train'], counts['val']
    return (f'Labels of {train["patients"]} of {train["of"]} training and {val["patients"]} of {val["of"]} validation '
            f'patients, {train["patients"] + val["patients"]} in all')


def _order(run_config, summary):
    """The stages of the folder: those of this call, and finished ones that it does not list."""
    finished = [name for name in summary.get('order', ()) if summary['stages'].get(name, {}).get('finished')]
    return list(dict.fromkeys([*finished, *run_config.stages]))


def _write_config(run_config, workdir, order):
    if parallel.process()[0] == 0:
        written = ConfigDict(run_config.to_dict() | dict(stages=tuple(order)))
        files.write(workdir / 'config.json', config.dump(written) + '\n')


def _saved_step(workdir):
    """Whether a step of any stage was saved, or a stage finished."""
    return (workdir / 'summary.json').exists() or any(
        step.name.isdigit() for step in workdir.glob('checkpoints/*/*'))


def _remove_first_try(workdir):
    """Remove the split of a run that ended before its first step was saved."""
    path = workdir / 'split.json'
    if parallel.process()[0] == 0 and path.exists() and not _saved_step(workdir):
        splits.read(path)  # raises for a file of another program
        path.unlink()
    parallel.all_hosts_agree(True)  # no host reads it before


def warn_if_short(stage: stages.Stage) -> None:
    """A line in the log where a stage that starts at random has too few steps to learn."""
    if stage.total < FEW_STEPS and not stage.method.solve and not stages.starts_from_weights(stage.config.init):
        log.info(f'{stage.name}: {stage.total} steps in all ({stage.total / stage.context.epoch:.1f} epochs): from '
                 f'initial weights at random that is too short to learn. Raise {stage.name}.length or lower '
                 f'{stage.name}.batch, or start from weights ({stage.name}.init).')


def stored_config(workdir: pathlib.Path) -> ConfigDict | None:
    """The resolved config of the run in a folder; None without a run or a saved step."""
    path = workdir / 'config.json'
    if not path.exists() or not _saved_step(workdir):
        return None
    return config.resolve(ConfigDict(config.tuples(files.read_json(path, 'The config of the run'))))


def read_summary(workdir: pathlib.Path) -> dict:
    """summary.json, or an empty one. Entries that do not say how they were tested get the options of config.json."""
    path, run_config = workdir / 'summary.json', stored_config(workdir)
    summary = files.read_summary(path) if path.exists() else dict(stages={})
    for name, entry in summary['stages'].items():
        if run_config and name in run_config:
            entry.setdefault('test_options', evaluation.test_options(run_config, name))
    return summary


def check_same_config(run_config: ConfigDict, workdir: pathlib.Path) -> None:
    """ConfigError if the folder holds a saved step of a run with other options of the training."""
    if (stored := stored_config(workdir)) is None:
        return
    if changed := _differences(*map(_training_options, (stored, run_config))):
        shown, names = '; '.join(changed[:4]), (line.partition('.')[0] for line in changed)
        stage = next((name for name in names if (workdir / 'checkpoints' / name).is_dir()), '')
        weights = (f'; to begin there with the weights of this one: --config.{stage}.init.path={workdir}/checkpoints/'
                   f'{stage}' if stage else '')
        raise errors.ConfigError(f'{workdir} holds a run of another config ({shown}). Only bootstrap, evals and '
                                 f'data.external may change in it, and where files lie. Choose another --workdir'
                                 f'{weights}.')


def _training_options(run_config):
    """{dotted key: value} of a config without what decides test results alone: bootstrap, evaluators and external data
    that select no step, and without where files lie.
    """
    tree, used = json.loads(config.dump(run_config)), set()
    names = [name for name in tree if name not in schema.RUN]
    for name in names:
        selecting = tree[name]['select'].partition('/')[0]
        hp = tree[name]['evals'].get(selecting, {})
        free = plugins.contract('evaluators', hp['name']).report_options if hp else ()
        tree[name]['evals'] = {key: value for key, value in hp.items() if key not in free}
        used |= {value for value in tree[name]['evals'].values() if isinstance(value, str)}
    source_name = tree['data']['source']['name']
    for data in (tree['data'], *(tree[name]['data'] for name in names)):
        data['external'] = {k: v for k, v in data.get('external', {}).items() if k in used}
        for changed in (data, *data['external'].values()):
            if 'source' in changed:
                changed['source'] = without_paths({'name': source_name, **changed['source']})
    del tree['bootstrap']
    return {key: value for key, value in config.dotted(tree).items() if key not in KEYS_THAT_MAY_CHANGE}


def _differences(before, now):
    """A line for each key of which two flat dicts differ."""
    return [f'{key}: {before.get(key)!r} before, {now.get(key)!r} now' for key in sorted({*before, *now})
            if before.get(key) != now.get(key)]
