"""What goes into the bundle of a trained stage, see bundle.py."""
import dataclasses
import hashlib
import importlib.resources
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxkd import config, errors, networks
from jaxkd.export import artificial, bundle, model_card, onnx_program, programs, run_file
from jaxkd.inference import deployed
from jaxkd.inference.deployed import Deployed
from jaxkd.pretrained import export_weights
from jaxkd.report import run_folder
from jaxkd.runtime import saved_student, versions
from jaxkd.runtime.files import json_digest

BUILT_IN = 'A bundle holds options of transforms and readers of jaxkd alone, no code.'


@dataclasses.dataclass(frozen=True)
class Options:
    """What the caller adds."""

    name: str = ''  # of the network, in metadata.json
    version: str = '1.0.0'
    data_licence: str = ''  # of the training data


@dataclasses.dataclass(frozen=True)
class Network:
    """What all programs are made of and compared with: an artificial case and what the network says of it."""

    function: programs.Function
    weights: programs.Arrays
    case: programs.Arrays  # flat inputs
    outputs: programs.Arrays  # of a batch of one
    tolerance: float

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """The case as a batch of one."""
        return {key: a[None] for key, a in self.case.items()}


def of_stage(run: str, stage: str = '', which: str = 'best', options: Options | None = None
             ) -> tuple[dict[str, bytes], list[str]]:
    """({name: content} of all files but SHA256SUMS, what could not be made and why)."""
    student, options = deployed.load(run, stage, which), options or Options()
    folder, name, _ = deployed.stage_of(run, stage)
    hp = ConfigDict(config.tuples(saved_student.stage_metadata(folder)['config']))
    _check_built_in(student)
    network, notes = _network(student, hp), list[str]()
    files, facts = _programs(network, hp, len(student.labels), notes)
    preprocessing, decision = _preprocessing(student, hp), _decision(student)
    files |= _runtime(preprocessing, 'model.onnx' in files, _task(network), notes)
    files |= _libraries(student, hp.model, notes)
    files |= _vocabulary(preprocessing) | _card(folder.parents[1], name, options, notes)
    files |= {'preprocessing.json': _json(preprocessing), 'decision.json': _json(decision)}
    metadata = _metadata(student, hp, name, options, network) | dict(programs=facts, not_included=notes)
    metadata['digests'] = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()
                           if file != 'README.md'}
    return files | {'metadata.json': _json(metadata | dict(digest=json_digest(metadata)))}, notes


def _network(student: Deployed, hp: ConfigDict) -> Network:
    prepared = artificial.case(student)
    case = {key: np.asarray(a) for key, a in programs.flat_inputs(prepared).items()}
    weights = export_weights.flat(student.model.variables)  # type: ignore[attr-defined]
    function = programs.function_of(student.model.network, prepared)  # type: ignore[attr-defined]
    outputs = programs.call(function, weights, {key: a[None] for key, a in case.items()})
    if not all(np.isfinite(a).all() for a in outputs.values()):
        raise errors.NonFinite(f'{student.name}: an output for the artificial case is not finite. Export another step.')
    tolerance = programs.TOLERANCE if hp.dtype == 'float32' else programs.HALF_TOLERANCE
    return Network(function, weights, case, outputs, tolerance)


def _programs(network: Network, hp: ConfigDict, classes: int, notes: list[str]
              ) -> tuple[dict[str, bytes], dict[str, dict[str, Any]]]:
    """({name: content} of programs, weights and the golden case, {program: facts for metadata.json})."""
    golden = {f'input/{k}': a for k, a in network.inputs.items()} | {f'output/{k}': a for k, a in
                                                                     network.outputs.items()}
    program = programs.stablehlo(network.function, network.weights, network.case)
    made = {k: np.asarray(a) for k, a in programs.Program(program, network.weights)(network.inputs).items()}
    files = {'model.safetensors': _safetensors(network.weights), 'golden.npz': bundle.npz(golden),
             'program.stablehlo': program}
    facts: dict[str, dict[str, Any]] = {'program.stablehlo': dict(
        platforms=list(programs.PLATFORMS), oldest_jax='.'.join(jax.__version__.split('.')[:2]),
        difference=programs.difference(made, network.outputs))}
    if onnx := _onnx(network, programs.float32(hp, classes, network.function.network), notes):
        files['model.onnx'], facts['model.onnx'] = onnx
    return files, facts


def _runtime(preprocessing: dict[str, Any], onnx: bool, task: str, notes: list[str]) -> dict[str, bytes]:
    """{'run.py': ..., and what it imports}, or a note why it could not predict these files."""
    reason = run_file.refusal(preprocessing) if onnx else 'it needs model.onnx.'
    if reason:
        notes.append(f'run.py: {reason}')
        return {}
    files = {'run.py': run_file.text(preprocessing, task).encode()}
    if 'text' in preprocessing['files']['kinds'].values():
        sections = importlib.resources.files('jaxkd.data').joinpath('report_sections.py')
        files['report_sections.py'] = sections.read_bytes()
    return files


def _check_built_in(student: Deployed) -> None:
    """ConfigError for transforms and readers that are code outside of jaxkd."""
    own = [step.name for step in student.steps if '.' in step.name]
    reads = student.reading.scale or student.reading.read_picture
    if own or reads and '.' in student.reading.source:
        raise errors.ConfigError(f'{student.name}: {own[0] if own else student.reading.source} is not of jaxkd. '
                                 f'{BUILT_IN} Predict with python -m jaxkd.predict --run.')


def _onnx(network: Network, in_float32: networks.Network, notes: list[str]) -> tuple[bytes, dict[str, Any]] | None:
    """(model.onnx, facts), or None and a note with the reason."""
    try:
        function = dataclasses.replace(network.function, network=in_float32)
        model = programs.onnx(function, network.weights, network.case)
        difference = programs.difference(programs.run_onnx(model, network.inputs), network.outputs)
    except errors.ConfigError as e:
        if versions.install('export') in str(e):
            raise
        notes.append(f'model.onnx: {e}')
        return None
    if not difference <= network.tolerance:
        notes.append(f'model.onnx: onnxruntime differs by {difference:.2g} from the run for the golden case.')
        return None
    return model, dict(opset=onnx_program.OPSET, dtype='float32', difference=difference)


def _safetensors(tensors: Mapping[str, np.ndarray]) -> bytes:
    import safetensors.numpy
    return safetensors.numpy.save({name: np.ascontiguousarray(a) for name, a in tensors.items()})


def _libraries(student: Deployed, model: ConfigDict, notes: list[str]) -> dict[str, bytes]:
    """{'<library>/model.safetensors': ..., and the files beside it from which the library builds its network}."""
    variables = student.model.variables  # type: ignore[attr-defined]
    by_library, reasons = export_weights.library_tensors(model, variables)
    notes += [f'{library}/model.safetensors: {reason}.' for library, reason in reasons.items()]
    files = {}
    for library, tensors in by_library.items():
        files[f'{library}/model.safetensors'] = _safetensors(tensors)
        for name, content in export_weights.descriptions(library, model, tensors, student.labels).items():
            files[f'{library}/{name}'] = _json(content)
    return files


def _preprocessing(student: Deployed, hp: ConfigDict) -> dict[str, Any]:
    reading = student.reading
    named = reading.source if reading.scale or reading.read_picture else ''
    return dict(
        inputs=list(student.inputs), files=dict(kinds=dict(student.files.kinds), columns=list(student.files.columns)),
        reading=dict(source=named, volume=dict(reading.volume)),
        transforms=[dataclasses.asdict(step) for step in student.steps],
        windows=dataclasses.asdict(student.windows), batch=hp.batch)


def _vocabulary(preprocessing: dict[str, Any]) -> dict[str, bytes]:
    """{name: content} of the file that a tokeniser reads, whose option then names it in the bundle."""
    files = {}
    for step in preprocessing['transforms']:
        if path := step['options'].get('file'):
            name = f'vocabulary{pathlib.PurePath(path).suffix}'
            files[name] = pathlib.Path(path).read_bytes()
            step['options'] = {**step['options'], 'file': name}
    return files


def _card(workdir: pathlib.Path, stage: str, options: Options, notes: list[str]) -> dict[str, bytes]:
    """{'README.md': the model card}; a note where the run has no summary of the stage."""
    try:
        return {'README.md': model_card.text(run_folder.read(workdir), stage, options.data_licence).encode()}
    except errors.JaxkdError as e:
        notes.append(f'README.md: {e}')
        return {}


def _decision(student: Deployed) -> dict[str, Any]:
    return dict(labels=list(student.labels), exclusive=student.exclusive, decision=student.decision)


def _task(network: Network) -> str:
    return 'segmentation' if network.outputs['logits'].ndim > 2 else 'classification'


def _metadata(student: Deployed, hp: ConfigDict, stage: str, options: Options, network: Network) -> dict[str, Any]:
    """In the manner of the metadata.json of MONAI bundles, with what jaxkd adds."""
    dense = _task(network) == 'segmentation'
    inputs = {key: dict(type='image' if a.ndim > 2 else 'array', kind=student.files.kinds.get(key, 'made'),
                        dtype=str(a.dtype), num_channels=a.shape[-1] if a.ndim > 2 else 1,
                        spatial_shape=list(a.shape[:-1] if a.ndim > 2 else a.shape), is_patch_data=dense,
                        layout='channels last') for key, a in network.case.items()}
    made = {key: dict(type='logits', dtype=str(a.dtype), shape=['b', *a.shape[1:]],
                      channel_def={str(i): name for i, name in enumerate(student.labels)} if key == 'logits' else {})
            for key, a in network.outputs.items()}
    return dict(
        format=bundle.FORMAT, name=options.name or f'{hp.model.name}, {stage}', version=options.version,
        changelog={options.version: 'exported by jaxkd'},
        task=_task(network), description='A network for research, no medical device.',
        versions=versions.versions(), numpy_version=np.__version__,
        optional_packages_version=dict(jax=jax.__version__), data_licence=options.data_licence or None,
        step=student.name.rpartition('step ')[2], model=hp.model.name, dtype=hp.dtype,
        network_data_format=dict(inputs=inputs, outputs=made), outputs=list(network.outputs),
        tolerance=network.tolerance)


def _json(tree: Any) -> bytes:
    return (json.dumps(tree, indent=1, allow_nan=False) + '\n').encode()


