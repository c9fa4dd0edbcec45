"""From a resolved config to what the loop runs: data, networks, teachers, method, optimiser."""
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxkd import checkpoint, config, errors, networks, optim, parallel, teachers
from jaxkd.config import durations, plugins
from jaxkd.data import dataset, external, splits, transform
from jaxkd.inference import predictor
from jaxkd.pretrained import import_weights, warm_start
from jaxkd.runtime import log
from jaxkd.state import Context, inference_variables


@dataclasses.dataclass
class Stage:
    """One stage, ready to train."""

    name: str
    hp: Any  # its resolved config
    module: Any  # of its method
    data: dataset.Dataset
    context: Context
    method: Any
    frozen: dict  # variables of the frozen teachers, on the devices
    cached: dict  # {teacher: {output: array over all cases}} of teachers whose inputs never change
    folder: pathlib.Path  # of its checkpoints
    seed: int
    how: str
    teachers: dict  # name -> where it came from
    lineage: list  # digests of the patients that teachers and initial weights were trained on

    total = property(lambda self: self.context.total)
    every = property(lambda self: self.steps(self.hp.every))
    log_every = property(lambda self: self.steps(self.hp.log_every))

    def steps(self, length):
        return durations.steps(length, self.total, self.context.epoch, self.hp.batch)

    def initial(self):
        """The state before the first step, the same for equal seeds and networks, whatever the method."""
        state = parallel.jit(self.method.init)(jax.random.key(self.seed))
        optim.check_patterns(self.hp.optim, state.params)
        params, stats = dict(state.params), dict(state.stats)
        for n, network in {'student': self.hp, **self.hp.networks}.items():
            if network.init.stage or network.init.path:
                folder = network.init.path or self.folder.parent / network.init.stage
                if import_weights.is_file(folder):
                    found = import_weights.load(folder, network.model, params[n], stats[n])
                else:
                    found, _ = checkpoint.load_student(folder, None, network.init.which)
                adapt = plugins.contract('models', network.model.name).adapt
                only = network.init.only
                params[n] = warm_start.restore_matching(params[n], found['params'], folder, adapt, only)
                stats[n] = {k: warm_start.restore_matching(v, found[k], folder, None, only) for k, v in stats[n].items()}
        ema = jax.tree.map(jnp.copy, params) if state.ema else {}
        state = parallel.replicate(state.replace(params=params, stats=stats, ema=ema))
        if self.method.solve:  # it fits in closed form or by a library, not by steps
            predict = self.predictors['student'].with_variables(inference_variables(state))
            state = parallel.replicate(self.method.solve(state, self.data, predict))
        return state

    def teacher_outputs(self, name, outputs, rows):
        """What a frozen teacher says of the cases `rows`, unaugmented: {output: array in their order}."""
        if name in self.cached:
            return {k: self.cached[name][k][rows] for k in outputs}
        teacher = predictor.Predictor(self.context.teachers[name], self.data, self.hp.batch, self.frozen[name])
        found = teacher('train', outputs, 'asking the teacher', keep=rows)
        return {k: found.outputs[k][np.searchsorted(found.index, rows)] for k in outputs}

    def about(self):
        """What stage.json tells of a trained stage: enough to use its student elsewhere, or to refuse it."""
        patients = splits.patient_digests(self.data.source.cases[i] for i in self.data.trained())
        patients = sorted({*patients, *self.lineage})  # what it learned, it learned from these
        return dict(name=self.name, config=self.hp.to_dict(), data=self.data.hp.to_dict(), labels=list(self.data.source.labels),
                    assets=self.data.assets, fingerprint=splits.fingerprint(self.data.split),
                    trained_on=patients, teachers=self.teachers, reads=transform.file_digests(self.data.hp))

    @functools.cached_property
    def predictors(self):
        """{network: evaluate.Predictor}, compiled once for the whole stage."""
        return {n: predictor.Predictor(network, self.data, self.hp.batch) for n, network in self.context.networks.items()}

    def score(self, scores):
        """The number that selects, larger or smaller as `mode` says; None when the validation part cannot give it."""
        if not scores:
            return None
        if self.hp.select not in scores:
            raise errors.ConfigError(f'{self.name}.select = "{self.hp.select}" is no score of this evaluator.'
                                     f'{errors.nearest(self.hp.select, scores)}')
        if not np.isfinite(scores[self.hp.select]):
            log.info(f'{self.name}: {self.hp.select} is not defined on this validation part (it needs both classes of a '
                    'label), so this step cannot be chosen as the best.')
            return None
        return scores[self.hp.select]

    def validate(self, state):
        """{evaluator/metric: value} on the validation part, of the evaluator that selects the best step."""
        name = self.hp.select.partition('/')[0]
        if not name or not self.data.part('val'):
            return {}
        _, hp = config.options('evaluators', self.hp.evals[name].to_dict(), name)
        scores = plugins.contract('evaluators', hp.name).scores(self.predictors['student'].with_variables(inference_variables(state)), 'val', hp)
        return {f'{name}/{k}': v for k, v in scores.items()}


def build(run, name, workdir, dry=False, shared=None):
    """Stage `name` of a resolved run config. With `dry`, teachers are shapes only and nothing of them is read.

    shared: a list, in which stages of one run leave their data for the next that sees the same.
    """
    hp, workdir = run[name], pathlib.Path(workdir)
    abouts = {t: teachers.stage_metadata(run, teacher, workdir, dry) for t, teacher in hp.teachers.items()}
    origin = {f'{name}.teachers.{t}': about for t, about in abouts.items()}
    for who, network in {name: hp, **{f'{name}.networks.{n}': network for n, network in hp.networks.items()}}.items():
        if network.init.path and import_weights.is_file(network.init.path):
            import_weights.examine(network.init.path, network.model)
        elif network.init.stage or network.init.path:
            origin[f'{who}.init'] = teachers.stage_metadata(run, network.init, workdir, dry)
    known = {}
    for who, (about, folder) in origin.items():
        for asset, content in about['assets'].items():
            if known.setdefault(asset, content) != content:
                raise errors.ConfigError(f'{who} ({folder}) learned another "{asset}" from its training cases than the other '
                                         'networks that this stage starts from. Train them on the same data.')
    own = config.stage_data(run, name)
    kept = workdir if own.source == run.data.source and not dry else None  # split.json is that of the run's source
    data = _data(own, kept, known, [] if shared is None else shared, dry)
    read = {k for network in (hp, *hp.networks.values(), *(about['config'] for about, _ in abouts.values())) for k in network['inputs']}
    if read and read <= data.transforms.study_level_keys:
        data = data.told()
    for who, (about, folder) in origin.items():
        teachers.check_compatible(f'{who} ({folder})', about, data, frozen=not who.endswith('.init'))
    parallel.check_batch(hp.batch, hp.optim.accumulate)
    batch = {k: v for k, v in data.spec().items() if k != 'boxes'}
    batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((hp.batch, *np.shape(a)), a.dtype), batch)
    outputs = len(data.source.labels)
    built = {'student': networks.build(hp, hp.compute, outputs, batch, data.hp, name)}
    for n, network in hp.networks.items():
        where, tasks = f'{name}.networks.{n}', data.source.tasks
        if network.task and network.task not in tasks:
            raise errors.ConfigError(f'{where}.task: {data.source.name} has no label "{network.task}".'
                                     f'{errors.nearest(network.task, tasks)}')
        own = len(tasks[network.task]) if network.task else outputs
        built[n] = networks.build(network, hp.compute, own, batch, data.hp, where, network.task or 'label')
    found_teachers, frozen, cached, origins = {}, {}, {}, {}
    for t, (about, folder) in abouts.items():
        of = ConfigDict(about['config'])
        found_teachers[t] = networks.build(of, of.compute, outputs, batch, data.hp, f'{name}.teachers.{t}')
        frozen[t] = jax.eval_shape(found_teachers[t].init, jax.random.key(0), batch)
        cachable = not of.input_fn and not data.transforms.augments(of.inputs)
        if hp.teachers[t].cache == 'yes' and not cachable:
            raise errors.ConfigError(f'{name}.teachers.{t}.cache = yes, but augmentation changes what it reads.')
        use = cachable and hp.teachers[t].cache != 'no'
        for option in ('shuffled', 'out_of_fold') if not use else ():
            if not hp.teachers[t][option]:
                continue
            raise errors.ConfigError(f'{name}.teachers.{t}.{option} needs outputs that are computed once: '
                                     f'{"augmentation changes what it reads" if not cachable else "set cache = auto"}.')
        found = jax.eval_shape(lambda v, b, n=found_teachers[t]: n.apply(v, b)[0], frozen[t], batch)
        for k in hp.teachers[t].outputs if use else ():
            if k not in found:
                raise errors.ConfigError(f'{name}.teachers.{t}.outputs: this network gives no "{k}".{errors.nearest(k, found)}')
        found = {k: found[k] for k in hp.teachers[t].outputs} if use else {}
        if not dry:
            frozen[t], step = checkpoint.load_student(folder, frozen[t], hp.teachers[t].which)
            origins[t] = dict(folder=str(folder), step=step, digest=checkpoint.digest(frozen[t]))
            if hp.teachers[t].out_of_fold:
                origins[t] |= dict(which=hp.teachers[t].which, folds=of.get('folds', 0))
            if use:
                data.fill()
                ask = teachers.out_of_fold_outputs if hp.teachers[t].out_of_fold else teachers.cached_outputs
                found = ask(found_teachers[t], frozen[t], data, hp.batch, hp.teachers[t].outputs, workdir, origins[t])
                if hp.teachers[t].shuffled:
                    found = teachers.shuffle_within_label(found, data, run.seed, f'{name}.teachers.{t}')
                cached[t] = found
        if use:
            batch.setdefault('cached', {})[t] = {
                k: jax.ShapeDtypeStruct((hp.batch, *a.shape[1:]), a.dtype) for k, a in found.items()}
            frozen[t] = {}  # its outputs are enough
    epoch = max(1, len(data.trained())) / hp.batch
    total = durations.steps(hp.length, None, epoch, hp.batch)
    optimizer = optim.build(hp.optim, total, epoch, hp.batch)
    context = Context(built, found_teachers, _spec(frozen), batch, optimizer, len(data.source.cases), epoch, total, run.seed + hp.seed,
                      hp.optim.accumulate)
    module, options = config.options('methods', hp.method.to_dict(), f'{name}.method')
    for e, given in hp.evals.items():
        _, chosen = config.options('evaluators', given.to_dict(), f'{name}.evals.{e}')
        if check := plugins.contract('evaluators', chosen.name).check:
            check(built['student'], batch, chosen)
        if 'data' in chosen:  # it may test elsewhere: what is wrong there is said before training
            external.external_cases(data, chosen.data, chosen.part, f'{name}.evals.{e}')
    if not dry:
        data.fill()
        frozen = parallel.replicate(frozen)
    lineage = sorted({patient for about, _ in origin.values() for patient in about['trained_on']})
    return Stage(name, hp, module, data, context, module.build(options, context), frozen, cached,
                 workdir / 'checkpoints' / name, run.seed + hp.seed, run.parallel, origins, lineage)


def _data(hp, workdir, known, shared, dry):
    for data in shared:
        if data.hp == hp and data.assets == {**data.assets, **known}:
            return data
    data = dataset.build(hp, workdir, known, fit=not dry, known=shared)
    data.family = shared
    shared.append(data)
    return data


def _spec(tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype), tree)
