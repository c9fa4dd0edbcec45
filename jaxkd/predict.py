"""Segment one scan with a trained student, and write the label map on the grid of its file.

    python -m jaxkd.predict --stage runs/x/checkpoints/student --input nct=scan.nii.gz --output seg.nii.gz
                            [--which best] [--overlap 0.5] [--mirror] [--batch 1] [--probability prob.nii.gz]

Needs the folder of the stage's checkpoints and the student's own inputs, nothing else: no config, no data set, no
    teacher. 3D  the transform `scan`. Inputs are .nii, .nii.gz, .nrrd or a folder with one DICOM series; windows are as
        large as the patches that training cut (all of the scan where it cut none)
    2D  the transform `image`. A .nii or .nii.gz is predicted slice by slice along the third axis of the file, scaled as
        the source of ACDC does it; a PNG or JPEG gives a PNG, whose grey values are the classes
The output holds the index of a class at each voxel, 0 where the network did not look. --probability writes that of
anything but background, float32 (volumes). --mirror averages over mirrored windows, for networks trained with mirrored
ones. What stands in for scans in training (`pseudo_nct`) is not run: a real scan is given. Exit codes: see
jaxkd/errors.py.
"""
import argparse
import dataclasses
import io
import os
import pathlib
import time
from typing import Any

import numpy as np

from jaxkd import errors
from jaxkd.runtime.cli import guarded, leave, parse

VOLUMES, PICTURES = ('.nii', '.nii.gz'), ('.png', '.jpg', '.jpeg')
STAND_INS = ('pseudo_nct',)  # transforms that make an input out of others


def main(argv=None):
    """-> the exit code."""
    parser = argparse.ArgumentParser('jaxkd.predict', description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--stage', required=True, help="folder of the stage's checkpoints, with stage.json")
    parser.add_argument('--input', action='append', required=True, metavar='KEY=FILE', help='an input of the student')
    parser.add_argument('--output', required=True, help='.nii or .nii.gz; .png for a PNG or JPEG')
    parser.add_argument('--which', default='best', help='best, last or a step')
    parser.add_argument('--overlap', type=float, default=0.5, help='of windows, a share of their side')
    parser.add_argument('--mirror', action='store_true', help='average over windows mirrored along every axis')
    parser.add_argument('--batch', type=int, default=1, help='windows at a time')
    parser.add_argument('--probability', help='where to write the probability of anything but background')
    return guarded(_run, *parse(parser, argv))


def _run(args, overrides):
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    from jaxkd.runtime import log
    if overrides:
        raise errors.ConfigError(f'--config.{overrides[0]}: a trained stage keeps its config. Leave it out.')
    begin, student = time.perf_counter(), load(args.stage)
    paths = inputs_of(student, args.input)
    _check_outputs(args, student, paths)
    scan = (read_scan if student.way == 'scan' else read_slices)(student, paths)
    label, chance = predict(student, scan, args)
    found = scan.back(label)
    scan.write(args.output, found)
    if args.probability:
        scan.write(args.probability, scan.chance(chance))
    counts = np.bincount(found.ravel(), minlength=len(student.labels))[1:]
    shown = ', '.join(f'{name} {n * scan.unit:.4g} {scan.unit_name}' for name, n in zip(student.labels[1:], counts))
    log.info(f'{args.output}: {shown}; {time.perf_counter() - begin:.1f} s')
    return 0


@dataclasses.dataclass(frozen=True)
class Student:
    """A trained stage, as stage.json tells of it."""

    folder: pathlib.Path
    hp: Any  # its resolved config
    data: Any  # that of its data
    labels: tuple
    way: str  # the transform that makes its input: 'scan' or 'image'


@dataclasses.dataclass(frozen=True)
class Scan:
    """One scan as the network reads it, and the way of its prediction to the file."""

    record: dict  # {input: [D,H,W,C]}
    present: dict
    window: tuple
    back: Any  # label uint8 [D,H,W] -> on the file's grid
    chance: Any  # likewise, float16 -> float32
    write: Any  # (path, what `back` or `chance` gave)
    unit: float  # of one voxel
    unit_name: str


def load(folder):
    """The Student of a folder of checkpoints. ConfigError where it is none that this command can deploy."""
    from ml_collections import ConfigDict

    from jaxkd import checkpoint, config
    about = checkpoint.stage_metadata(folder)
    hp, data = (ConfigDict(config.tuples(about[key])) for key in ('config', 'data'))
    ways = [name for name in data.transforms if name in ('scan', 'image')]
    others = [name for name in data.transforms if name not in (*ways, *STAND_INS)]
    if len(ways) != 1 or others or about['labels'][0] != 'background':
        raise errors.ConfigError(f'{folder}: its data goes through {", ".join(data.transforms) or "no transform"} and '
                                 'its first '
                                 f'label is {about["labels"][0]}. This command deploys segmentation of what either '
                                 '"scan" '
                                 'or "image" alone prepares, with "background" as the first label.')
    made = set(data.scan['keys'] if ways == ['scan'] else ('image',))
    if odd := [key for key in hp.inputs if key not in made]:
        raise errors.ConfigError(f'{folder}: this network reads "{odd[0]}", which does not come with a scan. It was a '
                                 'help in '
                                 'training: deploy the student that learned from it.')
    return Student(pathlib.Path(folder), hp, data, tuple(about['labels']), ways[0])


def inputs_of(student, given):
    """{input: path} of the command line's KEY=FILE, in the order of the student's inputs."""
    wanted, found = tuple(student.hp.inputs), {}
    for text in given:
        key, equals, path = text.partition('=')
        if not equals or not path:
            raise errors.ConfigError(f'--input {text}: write it as KEY=FILE, such as {wanted[0]}=scan.nii.gz.')
        if key not in wanted:
            raise errors.ConfigError(f'--input {key}: the student reads {", ".join(wanted)} alone. Whatever else was '
                                     'there in '
                                     'training is privileged and not used at deployment. Leave it out.')
        if key in found:
            raise errors.ConfigError(f'--input {key} is given twice. Keep one of them.')
        found[key] = path
    if lacking := [key for key in wanted if key not in found]:
        raise errors.ConfigError(f'--input {lacking[0]}=FILE is missing: the student reads {", ".join(wanted)}.')
    return {key: found[key] for key in wanted}


def read_scan(student, paths):
    """Volumes -> a Scan on the grid of the transform `scan`; predictions go back to the grid of the first input."""
    from jaxkd.data import volume
    from jaxkd.data.transforms import scan
    hp = student.data.scan.copy_and_resolve_references()
    kept = [i for i, key in enumerate(hp['keys']) if key in paths]  # no room for what only training had
    hp['keys'], hp.windows = (tuple(values[i] for i in kept) for values in (hp['keys'], hp.windows))
    volumes, scale = {key: volume.read(path) for key, path in paths.items()}, _scale(student)
    volumes = {key: dataclasses.replace(v, voxels=scale(v.voxels)) if scale else v for key, v in volumes.items()}
    first = volumes[student.hp.inputs[0]]
    like = volume.without_voxels(first)
    transform = scan.build(hp)
    record = transform.apply({**volumes, 'case': next(iter(paths.values()))})
    shape, back = record[student.hp.inputs[0]].shape[:3], transform.inverse({hp['keys'][0]: like}, record)
    window = tuple(student.data.patch.size[::-1]) if 'patch' in student.data.augment else shape
    return Scan({key: record[key] for key in paths}, {key: record['present'][key] for key in paths}, window,
                back, back, lambda path, out: volume.save(path, out, like),
                *_ml(like.affine))


def read_slices(student, paths):
    """A picture, or the slices of a volume -> a Scan of the squares that the transform `image` makes."""
    from jaxkd.data import volume
    from jaxkd.data.formats import image as pictures
    from jaxkd.data.formats import nifti
    from jaxkd.data.transforms import image
    path, hp = paths['image'], student.data.image
    if path.lower().endswith(PICTURES):
        slices, write, unit = pictures.read(path)[None], lambda path, out: _write_png(path, out[0]), (1.0, 'pixels')
    else:  # the axes of the file, as sources of slices take them
        voxels, affine = nifti.load(path, volume.MAX_VOXELS, placed=False)
        slices, unit = _scale(student)(voxels).T, _ml(affine)
        write = lambda path, out: nifti.write(path, out.T, affine)  # noqa: E731
    transform = image.build(hp)
    record = {'image': np.stack([transform.apply({'image': one})['image'] for one in slices])}
    to_slice = transform.inverse({'image': slices[0]}, record)

    def back(found):
        return np.stack([to_slice(one) for one in found])
    return Scan(record, {}, (hp.size, hp.size), back, back, write, *unit)


def predict(student, scan, args):
    """-> (label uint8 [D,H,W], chance float16 [D,H,W] or None) on the network's grid."""
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
                                 'no '
                                 f'{outputs} classes for each place of it. It is no segmentation that this command can '
                                 'deploy.')
    variables, step = checkpoint.load_student(student.folder, variables, args.which)
    apply = predictor.Predictor(network, None, args.batch, variables).windows(('logits',), scan.present)
    shape = scan.record[hp.inputs[0]].shape[:3]
    log.info(f'{student.folder}, step {step}: {" x ".join(map(str, shape))} voxels, windows of '
             f'{" x ".join(map(str, scan.window))}')
    slabs = sliding_window.stream(apply, scan.record, scan.window, parallel.local_rows(args.batch), args.overlap,
                           mirror=range(len(scan.window)) if args.mirror else (), what='windows')
    return sliding_window.labels(slabs, shape, bool(args.probability))[:2]


def _check_outputs(args, student, paths):
    """Before anything is read: names that cannot be written or read, and files that would be lost."""
    picture = student.way == 'image' and paths['image'].lower().endswith(PICTURES)
    if student.way == 'image' and not paths['image'].lower().endswith((*PICTURES, *VOLUMES)):
        raise errors.ConfigError(f'--input image={paths["image"]}: networks of images take '
                                 f'{", ".join((*VOLUMES, *PICTURES))}.')
    for option, path in (('output', args.output), ('probability', args.probability)):
        if not path:
            continue
        known = ('.png',) if picture else VOLUMES
        if not path.lower().endswith(known):
            raise errors.ConfigError(f'--{option} {path}: its name must end in {" or ".join(known)}.')
        if any(os.path.realpath(path) == os.path.realpath(p) for p in paths.values()):
            raise errors.ConfigError(f'--{option} {path} is an input. Write to another file.')
    if args.probability and picture:
        raise errors.ConfigError('--probability is written for volumes alone: grey values are too coarse for it. Leave '
                                 'it out.')
    if args.probability and os.path.realpath(args.probability) == os.path.realpath(args.output):
        raise errors.ConfigError('--probability and --output are one file. Write to another one.')


def _scale(student):
    """What the source of the training cases did to the values of a volume before any transform; None for nothing."""
    from jaxkd.config import plugins
    from jaxkd.data.sources import acdc
    from jaxkd.runtime import log
    name = student.data.source.name
    own = plugins.contract('data/sources', name).scale
    if not own and student.way == 'image':
        log.info(f'the source "{name}" does not say how it scales volumes: they are scaled as the source of ACDC does')
    return own or (acdc.scale if student.way == 'image' else None)


def _ml(affine):
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000, 'ml'


def _write_png(path, label):
    from PIL import Image

    from jaxkd.runtime import files
    content = io.BytesIO()
    Image.fromarray(label).save(content, 'PNG')
    files.write(path, content.getvalue())


if __name__ == '__main__':
    leave(main())
