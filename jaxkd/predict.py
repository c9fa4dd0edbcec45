"""Segment one scan with a trained student, and write the label map on the grid of its file.

    python -m jaxkd.predict --stage runs/x/checkpoints/student --input nct=scan.nii.gz --output seg.nii.gz
                            [--which best] [--overlap 0.5] [--mirror] [--batch 1] [--probability prob.nii.gz]

Needs the folder of the stage's checkpoints and the inputs of the student: no config, no data set, no teacher. The
transforms that change these inputs in training are applied, and their inverses bring the prediction back to the grid of
the file. Transforms that make an input from other keys (a simulated scan) are not run: give the input itself.
    volumes  if a transform writes `affine`. Inputs are .nii, .nii.gz, .nrrd or a folder with one DICOM series
    slices   else. A .nii or .nii.gz is predicted slice by slice along the third axis of the file; a picture
             (PNG, JPEG, BMP, TIFF, DICOM) gives a PNG, whose grey values are the classes
Windows have the size of a case in evaluation, such as the patches of training. The output holds the index of a class at
each voxel, 0 outside of the prediction. --probability writes the probability of all classes but background, float32
(volumes). --mirror averages over mirrored windows, for networks trained with mirrored ones. Exit codes: see
jaxkd/errors.py.
"""
import argparse
import dataclasses
import io
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.config import plugins
from jaxkd.contracts import Transform
from jaxkd.data import transform
from jaxkd.data.formats import picture
from jaxkd.data.sources.shared import slice_stacks
from jaxkd.data.transform import Transforms
from jaxkd.runtime.cli import guarded, leave, parse

VOLUMES, PICTURES = ('.nii', '.nii.gz'), picture.ENDINGS
NOT_INPUTS = ('label', 'present', 'affine')  # keys that transforms write beside a network's inputs


def main(argv: list[str] | None = None) -> int:
    """-> the exit code."""
    parser = argparse.ArgumentParser('jaxkd.predict', description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--stage', required=True, help="folder of the stage's checkpoints, with stage.json")
    parser.add_argument('--input', action='append', required=True, metavar='KEY=FILE', help='an input of the student')
    parser.add_argument('--output', required=True, help='.nii or .nii.gz; .png for a picture')
    parser.add_argument('--which', default='best', help='best, last or a step')
    parser.add_argument('--overlap', type=float, default=0.5, help='of windows, a share of their side')
    parser.add_argument('--mirror', action='store_true', help='average over windows mirrored along every axis')
    parser.add_argument('--batch', type=int, default=1, help='windows at a time')
    parser.add_argument('--probability', help='where to write the probability of anything but background')
    return guarded(_run, *parse(parser, argv))


def _run(args: argparse.Namespace, overrides: list) -> int:
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    from jaxkd import parallel
    from jaxkd.runtime import log
    if overrides:
        raise errors.ConfigError(f'--config.{overrides[0]}: a trained stage keeps its config. Leave it out.')
    parallel.check_devices()
    parallel.enable_compilation_cache()
    begin, student = time.perf_counter(), load(args.stage)
    paths = inputs_of(student, args.input)
    _check_outputs(args, student, paths)
    scan = (read_volumes if student.volumes else read_slices)(student, paths)
    label, probability = predict(student, scan, args)
    on_file_grid = scan.to_file_grid(label)
    scan.write(args.output, on_file_grid)
    if probability is not None:
        scan.write(args.probability, scan.to_file_grid(probability))
    counts = np.bincount(on_file_grid.ravel(), minlength=len(student.labels))[1:]
    shown = ', '.join(f'{name} {n * scan.unit:.4g} {scan.unit_name}' for name, n in zip(student.labels[1:], counts))
    log.info(f'{args.output}: {shown}; {time.perf_counter() - begin:.1f} s')
    return 0


@dataclasses.dataclass(frozen=True)
class Student:
    """A trained stage, as its stage.json describes it."""

    folder: pathlib.Path
    hp: Any  # its resolved config
    data: Any  # that of its data
    labels: tuple[str, ...]
    transforms: Transforms  # those that change its inputs

    @property
    def volumes(self) -> bool:
        """Whether it reads volumes, which transforms bring to a grid with an affine; else slices."""
        return any('affine' in (t.writes or ()) for t in self.transforms.prepare)


@dataclasses.dataclass(frozen=True)
class Scan:
    """The inputs of a scan, and the functions that bring a prediction to its file."""

    record: dict[str, np.ndarray]  # {input: [D,H,W,C]}
    present: dict[str, float]
    window: tuple[int, ...]
    to_file_grid: Callable[[np.ndarray], np.ndarray]  # label uint8 [D,H,W], or probability float16 -> float32
    write: Callable[[str, np.ndarray], None]  # (path, values on the grid of the file)
    unit: float  # of one voxel
    unit_name: str


def load(folder: str) -> Student:
    """The Student of a folder of checkpoints. ConfigError for a stage that this command cannot deploy."""
    from jaxkd import checkpoint, config
    metadata = checkpoint.stage_metadata(folder)
    hp, data = (ConfigDict(config.tuples(metadata[key])) for key in ('config', 'data'))
    labels = tuple(metadata['labels'])
    transforms, changed = input_transforms(hp.inputs, data, metadata.get('assets', {}))
    if not transforms.prepare or labels[0] != 'background':
        raise errors.ConfigError(f'{folder}: its data goes through {", ".join(data.transforms) or "no transform"} and '
                                 f'its first label is {labels[0]}. This command deploys segmentation, with '
                                 '"background" as the first label, of inputs that transforms make of files.')
    if unavailable := [key for key in hp.inputs if key not in changed]:
        raise errors.ConfigError(f'{folder}: this network reads "{unavailable[0]}", which does not come with a scan. '
                                 'It was a help in training: deploy the student that learned from it.')
    return Student(pathlib.Path(folder), hp, data, labels, transforms)


def input_transforms(inputs: Sequence[str], data: ConfigDict, fitted: dict[str, Any]) -> tuple[Transforms, set[str]]:
    """(the transforms of a data config that change the inputs, the keys that they change).

    Left out are transforms that change no input, make an input from other keys, or depend on the training cases.
    """
    changed_keys: set[str] = set()
    built: dict[str, Transform] = {}
    for name in (*data.transforms, *data.augment):
        plugin, short = transform.plugin(name), transform.short_name(name)
        if plugin.assign:
            continue
        hp = transform.restricted_options(name, data[short], tuple(inputs))
        step = plugins.load('data/transforms', name).build(hp, *([fitted[short]] if short in fitted else []))
        changed = {key for key in inputs if (step.reads is None or key in step.reads)
                   and (step.writes is None or key in step.writes)}
        if changed and (name in data.transforms or step.eval_mode):
            built[name] = step
            changed_keys |= changed - {*NOT_INPUTS} if name in data.transforms else set()
    return Transforms(tuple(t for name, t in built.items() if name in data.transforms),
                      tuple(t for name, t in built.items() if name in data.augment), {}, {}), changed_keys


def inputs_of(student: Student, arguments: list[str]) -> dict[str, str]:
    """{input: path} of the command line's KEY=FILE, in the order of the student's inputs."""
    inputs, paths = tuple(student.hp.inputs), {}
    for text in arguments:
        key, equals, path = text.partition('=')
        if not equals or not path:
            raise errors.ConfigError(f'--input {text}: write it as KEY=FILE, such as {inputs[0]}=scan.nii.gz.')
        if key not in inputs:
            raise errors.ConfigError(f'--input {key}: the student reads {", ".join(inputs)} alone. Whatever else was '
                                     'there in training is privileged and not used at deployment. Leave it out.')
        if key in paths:
            raise errors.ConfigError(f'--input {key} is given twice. Keep one of them.')
        paths[key] = path
    if missing := [key for key in inputs if key not in paths]:
        raise errors.ConfigError(f'--input {missing[0]}=FILE is missing: the student reads {", ".join(inputs)}.')
    return {key: paths[key] for key in inputs}


def read_volumes(student: Student, paths: dict[str, str]) -> Scan:
    """Volumes -> a Scan on the grid of the network; predictions are brought to the grid of the first input."""
    from jaxkd.data import volume
    scale = _scale(student) or (lambda voxels: voxels)
    options = {key: student.data.source[key] for key in ('nifti_form', 'pet_units') if key in student.data.source}
    volumes = {key: volume.read(path, **options) for key, path in paths.items()}
    volumes = {key: dataclasses.replace(v, voxels=scale(v.voxels)) for key, v in volumes.items()}
    first, path = student.hp.inputs[0], next(iter(paths.values()))
    grid = volume.without_voxels(volumes[first])
    record, trace = student.transforms.apply({**volumes, 'case': path}, {'label': grid})
    window = student.transforms.evaluate(record)[first].shape[:3]
    present = {key: float(value) for key, value in record.get('present', {}).items() if key in paths}
    return Scan({key: record[key] for key in paths}, present, window, lambda values: Transforms.inverse(values, trace),
                lambda path, values: volume.save(path, values, grid), *_ml(grid.affine))


def read_slices(student: Student, paths: dict[str, str]) -> Scan:
    """Pictures, or the slices of volumes -> a Scan of the transformed slices; all inputs have the same grid."""
    from jaxkd.data import volume
    from jaxkd.data.formats import nifti
    if all(path.lower().endswith(PICTURES) for path in paths.values()):
        slices = {key: picture.read(path)[None] for key, path in paths.items()}
        write, unit = lambda path, values: _write_png(path, values[0]), (1.0, 'pixels')
    else:  # the axes of the file, as sources of slices take them
        scale, slices = _scale(student) or slice_stacks.scale, {}
        form = student.data.source.get('nifti_form', 'auto')
        for key, path in paths.items():
            voxels, affine = nifti.load(path, volume.MAX_VOXELS, placed=False, form=form)
            slices[key] = scale(voxels).T
        write, unit = lambda path, values: nifti.write(path, values.T, affine), _ml(affine)
    if len({a.shape[:3] for a in slices.values()}) > 1:
        raise errors.BadData(f'The inputs {", ".join(paths.values())} differ in shape. Give files of one grid.')
    planes = ({key: a[z] for key, a in slices.items()} for z in range(len(next(iter(slices.values())))))
    records, traces = zip(*map(student.transforms.apply, planes))
    window = student.transforms.evaluate(records[0])[student.hp.inputs[0]].shape[:2]

    def to_file_grid(values: np.ndarray) -> np.ndarray:
        return np.stack([Transforms.inverse(v, trace) for v, trace in zip(values, traces, strict=True)])
    return Scan({key: np.stack([r[key] for r in records]) for key in paths}, {}, window, to_file_grid, write, *unit)


def predict(student: Student, scan: Scan, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray | None]:
    """(label uint8 [D,H,W], probability float16 [D,H,W] or None) on the network's grid."""
    import jax

    from jaxkd import checkpoint, networks, parallel
    from jaxkd.inference import predictor, sliding_window
    from jaxkd.runtime import log
    hp, outputs = student.hp, len(student.labels)
    batch = {key: jax.ShapeDtypeStruct((1, *scan.window, a.shape[-1]), a.dtype) for key, a in scan.record.items()}
    network = networks.build(hp, hp.dtype, outputs, batch, student.data, str(student.folder))
    variables = jax.eval_shape(network.init, jax.random.key(0), batch)
    logits = jax.eval_shape(lambda v, b: network.apply(v, b)[0], variables, batch)['logits'].shape
    if logits != (1, *scan.window, outputs):
        raise errors.ConfigError(f'{student.folder}: the network gives logits {logits} for a window of {scan.window}, '
                                 f'no {outputs} classes for each place of it. It is no segmentation that this command '
                                 'can deploy.')
    variables, step = checkpoint.load_student(student.folder, variables, args.which)
    without_data = predictor.Predictor(network, None, args.batch, variables)  # type: ignore[arg-type]
    apply = without_data.windows(('logits',), scan.present)
    shape = scan.record[hp.inputs[0]].shape[:3]
    log.info(f'{student.folder}, step {step}: {" x ".join(map(str, shape))} voxels, windows of '
             f'{" x ".join(map(str, scan.window))}')
    slabs = sliding_window.stream(apply, scan.record, scan.window, parallel.local_rows(args.batch), args.overlap,
                                  mirror=range(len(scan.window)) if args.mirror else (), message='windows')
    return sliding_window.labels(slabs, shape, bool(args.probability))[:2]


def _check_outputs(args: argparse.Namespace, student: Student, paths: dict[str, str]) -> None:
    """ConfigError, before reading, for names that cannot be read or written and for outputs that replace inputs."""
    picture = not student.volumes and all(path.lower().endswith(PICTURES) for path in paths.values())
    for key, path in paths.items():
        if not student.volumes and not path.lower().endswith(PICTURES if picture else VOLUMES):
            raise errors.ConfigError(f'--input {key}={path}: networks of images take '
                                     f'{", ".join((*VOLUMES, *PICTURES))}.')
    for option, path in (('output', args.output), ('probability', args.probability)):
        if not path:
            continue
        endings = ('.png',) if picture else VOLUMES
        if not path.lower().endswith(endings):
            raise errors.ConfigError(f'--{option} {path}: its name must end in {" or ".join(endings)}.')
        if any(os.path.realpath(path) == os.path.realpath(p) for p in paths.values()):
            raise errors.ConfigError(f'--{option} {path} is an input. Write to another file.')
    if args.probability and picture:
        raise errors.ConfigError('--probability is written for volumes alone: grey values are too coarse for it. Leave '
                                 'it out.')
    if args.probability and os.path.realpath(args.probability) == os.path.realpath(args.output):
        raise errors.ConfigError('--probability and --output are one file. Write to another one.')


def _scale(student: Student) -> Callable[[np.ndarray], np.ndarray] | None:
    """The scaling of voxels by the source of the training cases, before any transform; None if it has none."""
    from jaxkd.runtime import log
    name = student.data.source.name
    scale = plugins.contract('data/sources', name).scale
    if not scale and not student.volumes:
        log.info(f'the source "{name}" does not say how it scales volumes: each is clipped to percentiles '
                 f'{slice_stacks.PERCENTILES} and brought to [0,1]')
    return scale


def _ml(affine: np.ndarray) -> tuple[float, str]:
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000, 'ml'


def _write_png(path: str, label: np.ndarray) -> None:
    from PIL import Image

    from jaxkd.runtime import files
    content = io.BytesIO()
    Image.fromarray(label).save(content, 'PNG')
    files.write(path, content.getvalue())


if __name__ == '__main__':
    leave(main())
