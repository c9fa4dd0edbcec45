"""Build a stage from a resolved config: data, networks, teachers, method, optimiser."""
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from jaxkd import (
    checkpoint,
    config,
    contracts,
    errors,
    networks,
    optim,
    parallel,
    teachers,
)
from jaxkd.config import durations, plugins
from jaxkd.data import dataset, external, labelled, splits, transform
from jaxkd.data.pool import DataPool
from jaxkd.evaluators.predictions import schema
from jaxkd.inference import predictor
from jaxkd.pretrained import import_weights, warm_start
from jaxkd.runtime import saved_student
from jaxkd.state import Context, TrainState, inference_variables, label_kind
from jaxkd.training import shuffling, trimming


@dataclasses.dataclass
class Stage:
    """One stage, ready to train."""

    name: str
    config: ConfigDict  # of the stage, resolved
    data: dataset.Dataset
    context: Context
    method: contracts.Method
    teachers: dict[str, teachers.Teacher]  # frozen, with variables on the devices
    folder: pathlib.Path  # of the checkpoints
    trained_on_patients: list[str]  # digests of the patients that teachers and initial weights were trained on

    total = property(lambda self: self.context.total)  # steps
    seed = property(lambda self: self.context.seed)
    eval_every = property(lambda self: self._steps(self.config.eval_every))  # steps
    log_every = property(lambda self: self._steps(self.config.log_every))  # steps
    frozen = property(lambda self: {t: teacher.variables for t, teacher in self.teachers.items()})
    cached_outputs = property(lambda self: {t: teacher.outputs for t, teacher in self.teachers.items()
                                            if teacher.outputs is not None})
    exchanged = property(lambda self: {t: teacher.exchange for t, teacher in self.teachers.items() if teacher.exchange})

    def _steps(self, length: str) -> int:
        return durations.steps(length, self.total, self.context.epoch, self.config.batch)

    @functools.cached_property
    def predictors(self) -> dict[str, predictor.Predictor]:
        """One for each trained network, compiled once for the stage."""
        return {n: predictor.Predictor(network, self.data, self.config.batch)
                for n, network in self.context.networks.items()}

    def initial(self) -> TrainState:
        """The state before the first step; initial weights depend on seed and networks, not on the method."""
        fsdp = self.context.fsdp
        state = parallel.init_state(self.method.init, jax.random.key(self.seed), fsdp)
        optim.check_patterns(self.config.optim, state.params)
        params, stats = dict(state.params), dict(state.stats)
        for n, network in {'student': self.config, **self.config.networks}.items():
            if starts_from_weights(network.init):
                params[n], stats[n] = _warm_start(network, params[n], stats[n], self.folder.parent)
        ema = jax.tree.map(jnp.copy, params) if state.ema else {}
        state = parallel.place_state(state.replace(params=params, stats=stats, ema=ema), fsdp)
        if not self.method.solve:
            return state
        predict = self.predictors['student'].with_variables(parallel.replicate(inference_variables(state)))
        return parallel.place_state(self.method.solve(state, self.data, predict), fsdp)

    def metadata(self) -> dict[str, Any]:
        """The content of stage.json, with which another stage or run uses the student or refuses it."""
        data = self.data
        rows = data.partition.train_indices()
        patients = splits.patient_digests(data.source.cases[i] for i in rows)
        labelled = splits.patient_digests(data.source.cases[i] for i in data.partition.labelled(rows))
        label = self.context.batch.get('label')
        return dict(name=self.name, config=self.config.to_dict(), data=data.config.to_dict(),
                    labels=list(data.source.labels), assets=self._assets(),
                    **({} if label is None else {'label_kind': label_kind(label)}),
                    fingerprint=data.partition.fingerprint, trained_on=sorted({*patients, *self.trained_on_patients}),
                    labelled_on=labelled, teachers={t: teacher.provenance for t, teacher in self.teachers.items()},
                    reads=transform.file_digests(data.config))


    def _assets(self):
        """What the transforms learned, without the words of reports that no trained network of the stage reads."""
        read = {*self.config.inputs, *(k for network in self.config.networks.values() for k in network.inputs)}
        options = self.data.config
        return {t: learned for t, learned in self.data.transforms.fitted.items()
                if not transform.plugin(options[t].name).vocabulary_size or options[t].out in read}


def build(run_config: ConfigDict, name: str, workdir: str | pathlib.Path, dry: bool = False,
          pool: DataPool | None = None) -> Stage:
    """Stage `name` of a resolved run config. With `dry`, teachers are shapes only and no checkpoint is read.

    pool: the data that stages of one run have in common.
    """
    stage_config, workdir = run_config[name], pathlib.Path(workdir)
    priors = _priors(run_config, name, workdir, dry)
    data = _data(run_config, name, priors, workdir, pool or DataPool(), dry)
    parallel.check_mode(run_config.parallel, run_config.fsdp)
    parallel.check_batch(stage_config.batch, stage_config.optim.accumulate)
    batch = data.batch_spec(stage_config.batch)
    trained = _networks(stage_config, name, data, batch)
    frozen = {t: teachers.load(f'{name}.teachers.{t}', options, priors[f'{name}.teachers.{t}'], data, batch, workdir,
                               run_config.seed, dry)
              for t, options in stage_config.teachers.items()}
    context = _context(run_config, stage_config, name, data, batch, trained, frozen)
    module, options = config.options('methods', stage_config.method.to_dict(), f'{name}.method')
    patients = sorted({patient for prior in priors.values() for patient in prior.metadata['trained_on']})
    _check_evaluators(stage_config, name, data, batch, trained['student'], patients)
    if labelled.is_dense(data):
        labelled.check(data, name)
    if not dry:
        data.cache_in_memory()
        if data.pool:
            data.pool.report_crops(data)
        frozen = {t: dataclasses.replace(teacher, variables=parallel.replicate(teacher.variables))
                  for t, teacher in frozen.items()}
    method = _method(module.build, FrozenConfigDict(options), context)
    return Stage(name, stage_config, data, context, method, frozen, workdir / 'checkpoints' / name, patients)


@functools.lru_cache(maxsize=64)
def _method(build: Callable[[Any, Context], contracts.Method], options: FrozenConfigDict,
            context: Context) -> contracts.Method:
    """One Method for equal options and contexts: they share what is traced and compiled."""
    return build(options, context)


def trained_student(run_config: ConfigDict, name: str, workdir: pathlib.Path, pool: DataPool) -> predictor.Predictor:
    """The student of a trained stage, without variables, on the data of its training. No teacher is read.

    Raises MissingInput without the stage, BadData for other data than that of the training, ConfigError for evaluators
    that do not fit and for external data that was seen in training.
    """
    stage_config, folder = run_config[name], workdir / 'checkpoints' / name
    metadata, data_config = saved_student.stage_metadata(folder), config.stage_data(run_config, name)
    inputs = {k for network in (stage_config, *stage_config.networks.values()) for k in network.inputs}
    data = pool.trained(data_config, _split_folder(run_config, data_config, workdir), metadata['assets'], inputs)
    if data.transforms.make_of_reports(inputs):
        data = data.text_only
    if [data.partition.fingerprint, *data.source.labels] != [metadata['fingerprint'], *metadata['labels']]:
        raise errors.BadData(f'{name}: the cases, the split or the labels of {data.source.name} are not those that '
                             f'{folder} was trained with. Restore the data and split.json, or train again in another '
                             '--workdir.')
    batch = data.batch_spec(stage_config.batch)
    network = networks.build(stage_config, stage_config.dtype, len(data.source.labels), batch, data.config, name)
    _check_evaluators(stage_config, name, data, batch, network, metadata['trained_on'])
    return predictor.Predictor(network, data, stage_config.batch)


def _priors(run_config: ConfigDict, name: str, workdir: pathlib.Path, dry: bool) -> dict[str, teachers.PriorStage]:
    """The trained stages that a stage starts from, by config key: '<stage>.teachers.<t>', then '<stage>.init'."""
    priors = {f'{name}.teachers.{t}': teachers.prior_stage(run_config, options, workdir, dry)
              for t, options in run_config[name].teachers.items()}
    along = {f'{name}.networks.{n}': network for n, network in run_config[name].networks.items()}
    for key, network in {name: run_config[name], **along}.items():
        for part, weights in network.init.parts.items():
            priors[f'{key}.parts.{part}.init'] = teachers.prior_stage(run_config, weights, workdir, dry)
        if network.init.path and import_weights.is_file(network.init.path):
            import_weights.examine(network.init.path, network.model)
        elif network.init.stage or network.init.path:
            priors[f'{key}.init'] = teachers.prior_stage(run_config, network.init, workdir, dry)
    return priors


def _data(run_config: ConfigDict, name: str, priors: dict[str, teachers.PriorStage], workdir: pathlib.Path,
          pool: DataPool, dry: bool) -> dataset.Dataset:
    """The dataset of a stage, with the fitted assets of the stages that it starts from."""
    data_config = config.stage_data(run_config, name)
    listed = transform.listed(data_config)  # a stage that it starts from may have others
    assets = {short: learned for short, learned in teachers.common_assets(priors).items() if short in listed}
    split_folder = None if dry else _split_folder(run_config, data_config, workdir)
    frozen = [prior.config for key, prior in priors.items() if not key.endswith('.init')]
    inputs = {k for network in (run_config[name], *run_config[name].networks.values(), *frozen) for k in network.inputs}
    source_key = f'{name}.data.source' if 'source' in run_config[name].data else 'data.source'
    data = pool.get(data_config, split_folder, assets, not dry, inputs, source_key)
    if data.transforms.make_of_reports(inputs):
        data = data.text_only
    starts = {f'{name}.init': run_config[name].init.only,
              **{f'{name}.networks.{n}.init': network.init.only for n, network in run_config[name].networks.items()}}
    for key, prior in priors.items():
        teachers.check_compatible(f'{key} ({prior.folder})', prior.metadata, data, key not in starts,
                                  starts.get(key, ()))
    return data


def _split_folder(run_config: ConfigDict, data_config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path | None:
    """Where split.json is kept, that of the run's source."""
    return workdir if data_config.source == run_config.data.source else None


def _networks(stage_config: ConfigDict, name: str, data: dataset.Dataset, batch: dict) -> dict[str, networks.Network]:
    """The networks that are trained, the student first."""
    outputs, label_keys = len(data.source.labels), data.source.tasks
    built = {'student': networks.build(stage_config, stage_config.dtype, outputs, batch, data.config, name)}
    for n, network in stage_config.networks.items():
        key = f'{name}.networks.{n}'
        if network.task and network.task not in label_keys:
            raise errors.ConfigError(f'{key}.task: {data.source.name} has no label "{network.task}".'
                                     f'{errors.nearest(network.task, label_keys)}')
        classes = len(label_keys[network.task]) if network.task else outputs
        label_key = network.task or 'label'
        built[n] = networks.build(network, stage_config.dtype, classes, batch, data.config, key, label_key)
    return built


def _context(run_config: ConfigDict, stage_config: ConfigDict, name: str, data: dataset.Dataset, batch: dict,
             trained: dict[str, networks.Network], frozen: dict[str, teachers.Teacher]) -> Context:
    cached = {t: jax.tree.map(lambda a: jax.ShapeDtypeStruct((stage_config.batch, *a.shape[1:]), a.dtype),
                              teacher.outputs) for t, teacher in frozen.items() if teacher.outputs is not None}
    exchange = {t: {key: jax.ShapeDtypeStruct((stage_config.batch,), np.int32) for key in teacher.exchange}
                for t, teacher in frozen.items() if teacher.exchange}
    for t in exchange:
        shuffling.check_batch(f'{name}.teachers.{t}.shuffled', stage_config.batch, stage_config.optim.accumulate)
    epoch = max(1, len(data.partition.train_indices())) / stage_config.batch
    total = durations.steps(stage_config.length, None, epoch, stage_config.batch)
    variables = {t: jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype), teacher.variables)
                 for t, teacher in frozen.items()}
    return Context(trained, {t: teacher.network for t, teacher in frozen.items()}, variables,
                   batch | {k: v for k, v in dict(teacher_outputs=cached, exchange=exchange).items() if v},
                   optim.build(stage_config.optim, total, epoch, stage_config.batch),
                   len(data.source.cases), epoch, total, run_config.seed + stage_config.seed,
                   stage_config.optim.accumulate, run_config.parallel, run_config.fsdp,
                   trimming.options(stage_config, name), name)


def _check_evaluators(stage_config: ConfigDict, name: str, data: dataset.Dataset, batch: dict,
                      student: networks.Network, trained_on: Sequence[str]) -> None:
    """ConfigError or BadData for an evaluator that does not fit network, data or `select`, and for external data seen
    in training. trained_on: digests of the patients of other networks, see `external.check_unseen`.
    """
    selecting, _, metric = stage_config.select.partition('/')
    schema.check_names(schema.group_names(data.source.cases), data.source.labels)
    for e, chosen in stage_config.evals.items():
        _, options = config.options('evaluators', chosen.to_dict(), f'{name}.evals.{e}')
        plugin = plugins.contract('evaluators', options.name)
        if plugin.check:
            plugin.check(student, batch, options)
        if e == selecting and plugin.metrics and metric not in (known := plugin.metrics(data.source.labels, options)):
            raise errors.ConfigError(f'{name}.select = "{stage_config.select}": {e} gives no metric "{metric}".'
                                     f'{errors.nearest(metric, known)}')
        if 'data' in options:  # external data
            external.check_unseen(data, options.data, options.part, f'{name}.evals.{e}', trained_on)
            tested = external.external_dataset(data, options.data) if options.data else data
            schema.check_names(schema.group_names(tested.source.cases), tested.source.labels)
            if e == selecting and data.partition.indices('val') and not tested.partition.indices('val'):
                raise errors.ConfigError(f'{name}.select = "{stage_config.select}": data.external.{options.data} has '
                                         'no case in its validation part. Select by an evaluator of the own data.')
        if plugin.check_data:
            plugin.check_data(data, options)


def _warm_start(network: ConfigDict, params: dict, stats: dict, checkpoints: pathlib.Path) -> tuple[dict, dict]:
    """Parameters and batch statistics of a network, with those of its `init` where names and shapes agree."""
    for part, weights in network.init.parts.items():
        params, stats = _warm_part(part, weights, params, stats, checkpoints)
    if not (network.init.path or network.init.stage):
        return params, stats
    folder = network.init.path or checkpoints / network.init.stage
    loaded = (import_weights.load(folder, network.model, params, stats) if import_weights.is_file(folder) else
              checkpoint.load_student(folder, None, network.init.which)[0])
    adapt, only = plugins.contract('models', network.model.name).adapt, network.init.only
    params = warm_start.restore_matching(params, loaded['params'], folder, adapt, only)
    return params, {k: warm_start.restore_matching(v, loaded[k], folder, None, only) for k, v in stats.items()}


def _warm_part(part: str, weights: ConfigDict, params: dict, stats: dict, checkpoints: pathlib.Path
               ) -> tuple[dict, dict]:
    """The same with those of a trained network in the place of the part `part`, such as params['image']."""
    if part not in params:
        raise errors.ConfigError(f'init.parts.{part}: the network has no part "{part}".{errors.nearest(part, params)}')
    folder = weights.path or checkpoints / weights.stage
    loaded, _ = checkpoint.load_student(folder, None, weights.which)
    new = {k: {**v, part: warm_start.restore_matching(v[part], loaded[k], folder, None, weights.only)}
           for k, v in {'params': params, **stats}.items() if part in v}
    return new.pop('params'), {**stats, **new}


def starts_from_weights(init: ConfigDict) -> bool:
    """Whether the `init` of a network names any weights."""
    return bool(init.stage or init.path or init.parts)
