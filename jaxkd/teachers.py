"""Trained networks that a stage starts from: its teachers and its initial weights.

They come from an earlier stage of the run or from another run. Before use it is checked that they were not trained on
patients that this stage is evaluated on, and that their inputs and labels are those of the stage's data.
"""
import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxkd import checkpoint, config, errors, networks, parallel
from jaxkd.data import dataset, splits, transform
from jaxkd.inference import predictor
from jaxkd.runtime import files, log, saved_student, trees
from jaxkd.state import label_kind
from jaxkd.training import shuffling

HEAD = 'head/linear/kernel'  # of a network, whose columns are the labels


@dataclasses.dataclass(frozen=True)
class PriorStage:
    """A trained stage, of this run or of another, that is used as a teacher or for initial weights."""

    metadata: dict[str, Any]  # content of stage.json
    folder: pathlib.Path  # of the checkpoints

    config = property(lambda self: ConfigDict(self.metadata['config']))


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen network."""

    name: str
    network: networks.Network
    variables: dict  # {} if outputs are cached; in a dry run ShapeDtypeStructs
    # {output: [cases, ...]}, in a dry run its shape in a batch; None: the network runs in every step
    outputs: dict[str, Any] | None
    # {'patient', 'group': int [cases]} of a control, inputs exchanged in every step, see jaxkd/training/shuffling.py
    exchange: dict[str, Any] | None
    provenance: dict[str, Any]  # folder, step and digest of the loaded checkpoint, for stage.json and summary.json


def load(label: str, options: ConfigDict, prior: PriorStage, data: dataset.Dataset, batch: dict, workdir: pathlib.Path,
         seed: int, dry: bool) -> Teacher:
    """The teacher of a stage that the config names `label` ('<stage>.teachers.<name>').

    batch: ShapeDtypeStructs of a batch of the stage. Outputs are computed once if augmentation does not change the
    inputs and the options allow it. Raises ConfigError for options that cannot be met, MissingInput, Damaged.
    """
    name, size = label.rpartition('.')[2], batch['mask'].shape[0]
    network = networks.build(prior.config, prior.config.dtype, len(data.source.labels), batch, data.config, label)
    shapes = network.variable_shapes(batch)
    cached = _is_cached(label, options, prior.config, data)
    outputs: dict[str, Any] | None = _cached_shapes(label, options.outputs, network, batch) if cached else None
    exchange = None if cached or not options.shuffled else _exchange(label, data, batch, dry)
    if dry:
        if options.path:
            checkpoint.check_student(prior.folder, shapes, options.which)
        return Teacher(name, network, {} if cached else shapes, outputs, exchange, {})
    variables, step = checkpoint.load_student(prior.folder, shapes, options.which)
    provenance = dict(folder=str(prior.folder), step=step, digest=saved_student.digest(variables))
    if options.out_of_fold:
        provenance |= dict(which=options.which, folds=prior.config.get('folds', 0))
    if cached:
        data.cache_in_memory()
        compute = out_of_fold_outputs if options.out_of_fold else cached_outputs
        outputs, variables = compute(network, variables, data, size, options.outputs, workdir, provenance), {}
        if options.shuffled:
            outputs = shuffling.permuted(outputs, data, seed, label, label_kind(batch['label']) == 'voxels')
    return Teacher(name, network, variables, outputs, exchange, provenance)


def _is_cached(label: str, options: ConfigDict, config: ConfigDict, data: dataset.Dataset) -> bool:
    """Whether the outputs of a teacher are computed once. ConfigError if options need that and it is impossible."""
    unchanged = not config.input_fn and not data.transforms.augments(config.inputs)
    if options.cache == 'yes' and not unchanged:
        raise errors.ConfigError(f'{label}.cache = yes, but augmentation changes what it reads.')
    cached = unchanged and options.cache != 'no'
    if options.out_of_fold and not cached:
        raise errors.ConfigError(f'{label}.out_of_fold needs outputs that are computed once: '
                                 f'{"set cache = auto" if unchanged else "augmentation changes what it reads"}.')
    return cached


def _exchange(label: str, data: dataset.Dataset, batch: dict, dry: bool) -> dict[str, Any]:
    dense = label_kind(batch['label']) == 'voxels'
    if dry:
        return {key: jax.ShapeDtypeStruct((1,), np.int32) for key in ('patient', 'group')}
    log.info(f'{label}: reads from another patient of the batch, '
             + ('of equal label if there is one' if shuffling.by_label(data, dense) else 'whatever the labels'))
    return dict(patient=shuffling.patient_numbers(data), group=shuffling.label_groups(data, dense))


def _cached_shapes(label: str, names: Sequence[str], network: networks.Network, batch: dict) -> dict[str, Any]:
    outputs = network.output_shapes(batch)
    for k in names:
        if k not in outputs:
            raise errors.ConfigError(f'{label}.outputs: this network gives no "{k}".{errors.nearest(k, outputs)} '
                                     f'Set {label}.outputs={tuple(n for n in names if n in outputs)}.')
    return {k: outputs[k] for k in names}


def prior_stage(run_config: ConfigDict, options: ConfigDict, workdir: pathlib.Path, dry: bool) -> PriorStage:
    """The stage that `path` or, without one, `stage` of a teacher or of initial weights names.

    MissingInput if it is not trained.
    """
    folder = pathlib.Path(options.path) if options.path else workdir / 'checkpoints' / options.stage
    if dry and not options.path:
        shapes = dict(config=run_config[options.stage].to_dict(), data={}, labels=(), assets={}, trained_on=())
        return PriorStage(shapes, folder)
    if not (folder / 'stage.json').exists():
        remedy = ('Give a folder that holds stage.json.' if options.path else
                  f'List stage "{options.stage}" before, in stages.')
        raise errors.MissingInput(f'No trained stage at {folder}. {remedy}')
    return PriorStage(saved_student.stage_metadata(folder), folder)


def common_assets(priors: dict[str, PriorStage]) -> dict[str, Any]:
    """Fitted assets of the transforms of all prior stages, such as a vocabulary. ConfigError if two differ."""
    assets: dict[str, Any] = {}
    for label, prior in priors.items():
        for asset, content in prior.metadata['assets'].items():
            if assets.setdefault(asset, content) != content:
                raise errors.ConfigError(f'{label} ({prior.folder}) fitted another "{asset}" to its training cases '
                                         'than the other networks that this stage starts from. Train them on equal '
                                         'data.')
    return assets


def outputs_of(stage: str, trained: Mapping[str, Teacher], name: str, data: dataset.Dataset, batch: int,
               names: Sequence[str], rows: Sequence[int]) -> dict[str, np.ndarray]:
    """Outputs of teacher `name` of a stage for the cases `rows` (indices), unaugmented: {output: array in their order}.

    ConfigError for a teacher that the stage lacks and for an output that is not cached.
    """
    if name not in trained:
        raise errors.ConfigError(f'{stage}.method reads outputs of "{name}", which is no teacher of this stage.'
                                 f'{errors.nearest(name, trained)} Name it in {stage}.teachers.')
    teacher = trained[name]
    if teacher.outputs is not None:
        if missing := [k for k in names if k not in teacher.outputs]:
            raise errors.ConfigError(f'{stage}.method reads "{missing[0]}" of teacher "{name}", which gives '
                                     f'{", ".join(teacher.outputs)}. Set {stage}.teachers.{name}.outputs='
                                     f'{(*teacher.outputs, *missing)}.')
        return {k: teacher.outputs[k][rows] for k in names}
    predict = predictor.Predictor(teacher.network, data, batch, teacher.variables)
    predicted = predict('train', names, 'outputs of the teacher', keep=list(rows))
    return {k: predicted.outputs[k][np.searchsorted(predicted.index, rows)] for k in names}


def check_compatible(label: str, metadata: dict[str, Any], data: dataset.Dataset, frozen: bool,
                     only: Sequence[str] = ()) -> None:
    """ConfigError for a network trained on patients of this stage's evaluation, for other labels, and, if frozen, for
    other options of the transforms that it reads.

    only: patterns of the parameters that a stage starts from. Where they leave the head out, labels may differ.
    """
    splits.refuse_overlap(metadata['trained_on'], data.source.cases, data.partition.split,
                          (data.config.val, data.config.test))
    headless = only and not any(re.search(pattern, HEAD) for pattern in only)
    if tuple(metadata['labels'] or data.source.labels) != tuple(data.source.labels) and not headless:
        raise errors.ConfigError(f'{label} was trained for {", ".join(metadata["labels"])}; this data has '
                                 f'{", ".join(data.source.labels)}. Use the same labels in the same order'
                                 + ('.' if frozen else ', or leave the head out: init.only=("^(?!head/)",).'))
    for name in data.config.transforms if frozen else ():
        short = transform.short_name(name)
        now, then = data.config[short].to_dict(), metadata['data'].get(short)
        if then is None or now.get('out', short) not in metadata['config']['inputs']:
            continue
        then = config.tuples(then)
        if digest := metadata.get('reads', {}).get(short):  # the content of a file counts, not its path
            digests = (digest, transform.file_digests(data.config)[short])
            then['file'], now['file'] = (f'a file of digest {d[:12]}' for d in digests)
        if keys := [k for k in sorted({*now, *then}) if now.get(k) != then.get(k)]:
            raise errors.ConfigError(f'{label} was trained with data.{short}.{keys[0]} = {then.get(keys[0])!r}; in '
                                     f'this stage it is {now.get(keys[0])!r}. Its inputs would differ from those of '
                                     'its training: use the same value.')


def cached_outputs(network: networks.Network, variables: dict | None, data: dataset.Dataset, batch: int,
                   names: Sequence[str], workdir: pathlib.Path, provenance: dict[str, Any],
                   rows: Sequence[int] | None = None) -> dict[str, np.ndarray]:
    """Outputs of a frozen teacher for training cases, {name: [cases,...]}: computed once and stored in a file that a
    digest names.

    rows: indices of the cases that are computed (None: all of the training part); the outputs of others are zeros. A
    teacher of study-level inputs alone, such as the report, is applied once for each study, and the digest is that of
    its inputs: another word, vocabulary or order of the cases is another file. For other teachers it is that of data,
    split and config. Another size of the batches is another file, too: values may differ in their last digit.
    """
    cases, rows = data.source.cases, data.partition.indices('train') if rows is None else rows
    by_study = set(network.inputs) <= data.transforms.study_level_keys
    if by_study:
        data = data.text_only
        data.cache_in_memory()
    studies: dict[Any, list[int]] = {}
    for i in rows:
        studies.setdefault((cases[i].patient, cases[i].study) if by_study and cases[i].study else i, []).append(i)
    firsts = [members[0] for members in studies.values()]
    reads = _read_digest(network, data, firsts) if by_study else data.digest()
    key = json.dumps([provenance['digest'], reads, [cases[i].id for i in firsts], list(names), str(network), batch])
    path = workdir / 'teacher_outputs' / f'{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz'
    if parallel.all_hosts_agree(path.exists()):
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {k: stored[k] for k in (*names, 'of')}
        except (OSError, ValueError, KeyError) as e:
            raise errors.Damaged(f'Cached teacher outputs {path} cannot be read ({e}). Delete the file.') from e
    else:
        predict = predictor.Predictor(network, data, batch, variables)
        predicted = predict('train', names, 'outputs of the teacher', keep=firsts)
        # 'of': positions in `firsts`
        arrays = {**{k: predicted.outputs[k] for k in names}, 'of': np.searchsorted(firsts, predicted.index)}
        if parallel.process()[0] == 0:
            files.write_npz(path, arrays)
    members_of = list(studies.values())
    pairs = [(row, i) for row, study in enumerate(arrays['of'].tolist()) for i in members_of[study]]
    sources, targets = np.array(pairs, int).reshape(-1, 2).T
    out = {}
    for k in names:
        out[k] = np.zeros((len(cases), *arrays[k].shape[1:]), arrays[k].dtype)
        out[k][targets] = arrays[k][sources]
    return out


def out_of_fold_outputs(network: networks.Network, variables: dict, data: dataset.Dataset, batch: int,
                        names: Sequence[str], workdir: pathlib.Path,
                        provenance: dict[str, Any]) -> dict[str, np.ndarray]:
    """As `cached_outputs`, but for each training case of the fold network that was not trained on its patient.

    Replaces the digest of the provenance by one of all folds. Raises MissingInput if a fold is not trained, ConfigError
    if its patients are not those of this data's fold.
    """
    if not provenance['folds']:
        raise errors.ConfigError(f'out_of_fold: the stage in {provenance["folder"]} was trained without folds. Set its '
                                 'folds, or unset out_of_fold.')
    out: dict[str, np.ndarray] = {}
    digests: list[str] = []
    for j in range(provenance['folds']):
        folder = pathlib.Path(f'{provenance["folder"]}_fold{j}')
        then = config.tuples(saved_student.stage_metadata(folder)['data'])
        if then['holdout_fold'] != (j, provenance['folds']) or then['split']['seed'] != data.config.split.seed:
            raise errors.ConfigError(f'{folder} left out another share of the patients than data.split.seed = '
                                     f'{data.config.split.seed} gives. Use the split of its training.')
        fold_variables, _ = checkpoint.load_student(folder, variables, provenance['which'])
        digests.append(saved_student.digest(fold_variables))
        rows = data.partition.fold_indices(j, provenance['folds'])
        outputs = cached_outputs(network, fold_variables, data, batch, names, workdir, {'digest': digests[-1]}, rows)
        out = out or outputs
        for k in names:
            out[k][rows] = outputs[k][rows]
    provenance['digest'] = hashlib.sha256(''.join([provenance['digest'], *digests]).encode()).hexdigest()
    return out


def _read_digest(network: networks.Network, data: dataset.Dataset, rows: Sequence[int]) -> str:
    """A sha256 of the inputs of a network for these cases."""
    digest = hashlib.sha256()
    for i in log.progress(rows, 'reading inputs of the teacher', len(rows)):
        for path, a in jax.tree_util.tree_leaves_with_path(network.only(data.prepared(i))):
            digest.update(f'{trees.leaf_name(path)} {a.dtype} {a.shape}'.encode() + np.ascontiguousarray(a).tobytes())
    return digest.hexdigest()
