"""A trained stage as it is deployed: its own inputs, their preprocessing, a program, and what its outputs mean.

`load` makes one of the folder of a run. Whatever gives the same outputs for the same inputs, such as an exported
program, can stand in as the `Model` of a Deployed; what reads files (case_reader.py), runs (run_cases.py) and writes
asks for nothing else.
"""
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
from flax.errors import FlaxError
from ml_collections import ConfigDict

from jaxkd import config, errors, networks, parallel
from jaxkd.config import plugins
from jaxkd.contracts import SourcePlugin, Transform
from jaxkd.data import transform
from jaxkd.data.source import innermost
from jaxkd.data.transform import Transforms
from jaxkd.inference.case_files import Inputs
from jaxkd.inference.predictor import Batch, Predictor
from jaxkd.runtime import files, saved_student

CONTEXT = ('case', 'label', 'boxes', 'masks', 'present', 'affine', 'centre', 'field', 'index')  # keys of a record that
# are no files of a case
EXCLUSIVE, DENSE = 'multiclass', 'segmentation'  # evaluators of classes that exclude each other, and of each place


RESTORE = 'Restore it from a copy; python -m jaxkd.evaluate writes summary.json anew.'


class Model(Protocol):
    """A program: inputs {key: [B, ...]}, with 'present' {key: float32 [B]} where cases may lack one."""

    def shapes(self, batch: Batch) -> Mapping[str, jax.ShapeDtypeStruct]:
        """{output: shape and type} for such a batch, of arrays or ShapeDtypeStructs; nothing is computed."""
        ...

    def predict_batch(self, batch: Batch, outputs: Sequence[str] = ('logits',), capture: Sequence[str] = ()
                      ) -> Mapping[str, Any]:
        """Outputs of whole cases by name; it may return before they are computed."""
        ...

    def windows(self, outputs: Sequence[str] = ('logits',), present: Mapping[str, float] | None = None
                ) -> Callable[[Batch], Mapping[str, Any]]:
        """The function for sliding_window.stream."""
        ...


@dataclasses.dataclass(frozen=True)
class Windows:
    """How scans are predicted, see sliding_window.py; as the evaluation of the run did, so that numbers agree."""

    overlap: float = 0.5
    weights: str = 'gaussian'
    mirror: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a source does to a file before any transform."""

    scale: Callable | None = None  # see contracts.SourcePlugin
    read_picture: Callable | None = None
    volume: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # nifti_form, pet_units, for volume.read
    source: str = ''


@dataclasses.dataclass(frozen=True)
class Step:
    """A transform with its options for a record of the inputs alone, as JSON holds them."""

    name: str
    options: Mapping[str, Any]
    fitted: Any = None  # what it learned from training cases
    evaluation: bool = False  # a random one, of which evaluation takes `eval_mode`

    def build(self) -> Transform:
        """The Transform."""
        hp = ConfigDict(config.tuples(dict(self.options)))
        return transform.make(self.name, hp, *([] if self.fitted is None else [self.fitted]), deployed=True)


@dataclasses.dataclass(frozen=True)
class Deployed:
    """See above. Two with equal `digest` predict the same."""

    name: str
    labels: tuple[str, ...]
    inputs: tuple[str, ...]  # keys of a batch that the model reads
    files: Inputs  # what a case is made of; the first gives the grid of masks
    transforms: Transforms
    preprocessing: str  # digest of what `transforms` and `reading` do: equal ones are done once
    reading: Reading
    model: Model
    exclusive: bool  # whether its labels exclude each other
    decision: Mapping[str, Any] | None  # calibration and operating points, docs/reference/run_folder.md
    windows: Windows
    batch: int  # of evaluation
    tested: int  # cases of the test part
    digest: str
    steps: tuple[Step, ...] = ()  # those that `transforms` are made of


def saved_weights(folder: str | pathlib.Path, which: str = 'best') -> tuple[dict, int]:
    """As checkpoint.load_student for any variables, which is asked where a step is not whole: orbax takes long to
    import.
    """
    try:
        return saved_student.read(folder, which)
    except Exception:  # damage surfaces as many types, and orbax reads more than one layout
        from jaxkd import checkpoint
        return checkpoint.load_student(folder, None, which)


def load(folder: str, stage: str = '', which: str = 'best') -> Deployed:
    """The Deployed of a run, or of the folder of a stage's checkpoints. ConfigError for a stage that no file feeds.

    stage: '' takes the one that `default_stage` says. which: 'best', 'last' or a step.
    """
    path, name, entry = stage_of(folder, stage)
    variables, step = saved_weights(path, which)  # first: it compares stage.json with its digest
    metadata = saved_student.stage_metadata(path)
    hp, data = (ConfigDict(config.tuples(metadata[key])) for key in ('config', 'data'))
    assets, labels = metadata.get('assets', {}), tuple(metadata['labels'])
    transforms, kinds, others, steps = input_transforms(hp.inputs, data, assets)
    made = {*kinds, *(k for t in transforms.prepare for k in t.writes or ())}
    if unavailable := [key for key in hp.inputs if key in CONTEXT or key not in made]:
        raise errors.ConfigError(f'{path}: this network reads "{unavailable[0]}", which no file of a case gives: it '
                                 f'goes through {", ".join(data.transforms) or "no transform"}. Deploy a stage whose '
                                 'inputs are made of files.')
    network = networks.build(hp, hp.dtype, len(labels), dict.fromkeys(hp.inputs), data, str(path))
    _, source = innermost(data.source)
    facts = [data.transforms, [data[transform.short_name(n)].to_dict() for n in (*data.transforms, *data.augment)],
             source.to_dict(), assets]
    evals = {e: {'name': e, **options} for e, options in hp.evals.to_dict().items()}
    with files.as_damaged(path, 'summary.json', RESTORE):
        exclusive, decision = _exclusive(path, metadata, entry, evals), entry.get('decision')
        tested = int(entry.get('cases', {}).get('test', 0))
    return Deployed(
        f'{path}, step {step}', labels, tuple(hp.inputs), _files(kinds, others, data, assets), transforms,
        _digest(facts), _reading(source), NetworkModel(network, variables), exclusive,
        decision, _windows(evals), hp.batch, tested,
        _digest([facts, saved_student.digest(variables), hp.model.to_dict(), decision]), steps)


class NetworkModel:
    """The network of a stage with its variables, as a Model: the programs of the evaluation of the run."""

    def __init__(self, network: networks.Network, variables: Any) -> None:
        self.network, self.variables = network, parallel.on_devices(variables)
        self.predictor = Predictor(network, None, 0, self.variables)  # type: ignore[arg-type]
        self.predict_batch, self.windows = self.predictor.predict_batch, self.predictor.windows

    def shapes(self, batch: Batch) -> Mapping[str, jax.ShapeDtypeStruct]:
        """As Model.shapes. ConfigError where the variables are those of other shapes."""
        try:
            return self.network.output_shapes(batch, variables=self.variables)
        except FlaxError as e:
            raise errors.ConfigError('The shapes of the inputs are not those that the checkpoint was trained '
                                     f'with ({" ".join(str(e).split())[:160]}).') from e


def training_runs(folder: str) -> list[str]:
    """The folder of a run or of a stage's checkpoints as it is; of a multirun those of its members."""
    path = pathlib.Path(folder)
    if (path / 'checkpoints').is_dir() or (path / 'stage.json').is_file():
        return [folder]
    return [str(p.parent) for p in sorted(path.glob('*/checkpoints'))] or [folder]


def stage_of(folder: str, stage: str = '') -> tuple[pathlib.Path, str, dict[str, Any]]:
    """(folder of checkpoints, name, entry of summary.json or {}) of a stage. MissingInput, ConfigError."""
    path = pathlib.Path(folder)
    if (path / 'stage.json').is_file():
        path, stage = path.parents[1], stage or path.name
    if not path.is_dir():
        raise errors.MissingInput(f'{folder} does not exist. Give the --workdir of a run.')
    stages = stage_entries(path)
    with files.as_damaged(path, 'a stage.json or summary.json', RESTORE):
        name = stage or default_stage(path, stages)
    if name not in stages:
        raise errors.ConfigError(f'{folder} has no trained stage "{name}".{errors.nearest(name, stages)}')
    return path / 'checkpoints' / name, name, stages[name]


def stage_entries(workdir: pathlib.Path) -> dict[str, dict[str, Any]]:
    """{stage with checkpoints: its entry of summary.json, {} without one}. MissingInput where there is no stage."""
    summary = workdir / 'summary.json'
    with files.as_damaged(workdir, 'summary.json', RESTORE):
        stages = files.read_summary(summary)['stages'] if summary.exists() else {}
        entries = {name: dict(entry) for name, entry in stages.items()}
    names = sorted(p.parent.name for p in workdir.glob('checkpoints/*/stage.json'))
    if not names:
        several = ' It holds several runs.' if (workdir / 'repeat.json').exists() else ''
        raise errors.MissingInput(f'{workdir} has no trained stage.{several} Give the --workdir of a run.')
    order = [name for name in entries if name in names]
    return {name: entries.get(name, {}) for name in (*order, *(n for n in names if n not in order))}


def default_stage(workdir: pathlib.Path, stages: Mapping[str, Mapping[str, Any]]) -> str:
    """The stage that a run was made for: of those that teach no other and read nothing that is privileged to another,
    the only one, the only one that another network taught, or the one called 'student'. ConfigError otherwise.
    """
    teachers, inputs = set(), {}
    for name in stages:
        hp = files.read_json(workdir / 'checkpoints' / name / 'stage.json', 'The description of a stage')['config']
        inputs[name] = {*hp['inputs']}
        teachers |= {origin['stage'] for origin in config.origins(hp) if not origin['path']}
    privileged = {key for entry in stages.values() for other in entry.get('other_networks', {}).values()
                  for key in other['privileged']}
    left = [name for name in stages if name not in teachers and not inputs[name] & privileged]
    taught = [name for name in left if stages[name].get('uses_teacher')]
    for names in (left, taught, [name for name in left if name == 'student']):
        if len(names) == 1:
            return names[0]
    raise errors.ConfigError(f'{workdir} has several stages that could be deployed: {", ".join(left or stages)}. Say '
                             f'which: --stage {(left or [*stages])[-1]}')


def input_transforms(inputs: Sequence[str], data: ConfigDict, fitted: Mapping[str, Any]
                     ) -> tuple[Transforms, dict[str, str], tuple[str, ...], tuple[Step, ...]]:
    """(the transforms of a data config that make the inputs, {key of a record that they begin with: its kind}, other
    keys that the transforms of the run know, the Steps of these transforms).

    Left out are transforms that make no input, stand in for a file of a case by other keys (a simulated scan), or
    depend on the training cases.
    """
    all_steps = _steps(inputs, data, fitted)
    built = {name: step.build() for name, step in all_steps.items()}
    needed, kinds, used = {*inputs}, dict[str, str](), set[str]()
    for name in reversed([n for n in data.transforms if n in built]):
        step = built[name]
        changed = {k for k in needed if k not in CONTEXT and (step.writes is None or k in step.writes)}
        read = {k for k in changed if step.reads is None or k in step.reads}
        made = changed - read - {*kinds}
        if read or made:
            used.add(name)
            begin = {k for k in step.reads or () if k not in CONTEXT} if made else set[str]()
            needed = needed - made | begin
            kinds |= dict.fromkeys((*sorted(read), *sorted(begin)), step.takes)
    order = [k for k in (*inputs, *sorted(needed)) if k in needed & kinds.keys()]
    known = {k for step in built.values() for k in (*(step.reads or ()), *(step.writes or ()))}
    known |= {k for name in built for k in data[transform.short_name(name)].get('keys', ())}
    random = [n for n in data.augment if n in built and built[n].eval_mode and (
        built[n].writes is None or {*inputs} & {*(built[n].writes or ())})]
    prepare = [n for n in data.transforms if n in used]
    others = tuple(sorted(known - {*order, *inputs, *CONTEXT}))
    transforms = Transforms(tuple(built[n] for n in prepare), tuple(built[n] for n in random), {}, {})
    return (transforms, {k: kinds[k] for k in dict.fromkeys(order)}, others,
            tuple(all_steps[n] for n in (*prepare, *random)))


def _steps(inputs: Sequence[str], data: ConfigDict, fitted: Mapping[str, Any]) -> dict[str, Step]:
    """{transform: its Step for a record of these inputs alone} of those that do not depend on the cases of training."""
    steps = {}
    for name in (*data.transforms, *data.augment):
        short = transform.short_name(name)
        if not transform.plugin(name).assign:
            hp = transform.restricted_options(name, data[short], tuple(inputs))
            steps[name] = Step(name, hp.to_dict(), fitted.get(short), name in data.augment)
    return steps


def _files(kinds: Mapping[str, str], others: tuple[str, ...], data: ConfigDict, fitted: Mapping[str, Any]) -> Inputs:
    """What a case is made of; a table that is not read is privileged with all its columns."""
    columns: list[str] = []
    for name in data.transforms:
        listed, short = transform.plugin(name).table_columns, transform.short_name(name)
        if listed and short in fitted:
            columns += listed(data[short], fitted[short])
    read = 'table' in kinds.values()
    return Inputs(kinds, others if read else (*others, *columns), tuple(columns) if read else ())


def _reading(source: ConfigDict) -> Reading:
    plugin: SourcePlugin = plugins.contract('data/sources', source.name)
    options = {key: source[key] for key in ('nifti_form', 'pet_units') if key in source}
    return Reading(plugin.scale, plugin.read_picture, options, source.name)


def _exclusive(path: pathlib.Path, metadata: Mapping[str, Any], entry: Mapping[str, Any],
               evals: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the labels exclude each other: by those of training, else by the decision or evaluators of a run."""
    if 'label_kind' in metadata:
        return metadata['label_kind'] != 'multilabel'
    kind = (entry.get('decision') or {}).get('kind')
    tested = (entry.get('test_options') or {}).get('evals', {})  # those of a later test stand here alone
    used = {options.get('name', e) for e, options in (*evals.items(), *tested.items())} | ({kind} if kind else set())
    if not used & {EXCLUSIVE, DENSE, 'classification', 'multilabel'}:
        raise errors.ConfigError(
            f'{path}: whether its labels exclude each other is not known. Add to its evals, in its config, '
            f'"{DENSE}" where each place has a class, "{EXCLUSIVE}" where a case has one, else "classification", and '
            'repeat its python -m jaxkd.main with the same --workdir: it is tested again, not trained.')
    return bool(used & {EXCLUSIVE, DENSE})


def _windows(evals: Mapping[str, Mapping[str, Any]]) -> Windows:
    """Those of the evaluator of the run's own scans."""
    for options in evals.values():
        if options['name'] == DENSE and not options.get('data'):
            return Windows(options['overlap'], options['weights'], tuple(options['mirror']))
    return Windows()


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
