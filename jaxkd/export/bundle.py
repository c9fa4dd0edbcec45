"""The folder of an exported student: what is in it, its checksums, and its use in the place of a run.

    SHA256SUMS          of every other file; `verify` compares them before anything is read. metadata.json repeats those
                        of all but the card, and has one of itself: new sums do not make a damaged file whole
    metadata.json       what the network is: inputs, outputs, programs, versions, licence of the data
    preprocessing.json  from files to inputs: kinds, transforms with their options, reading, windows
    decision.json       labels, calibration and operating points (docs/reference/run_folder.md)
    model.safetensors   weights by our names; of known networks also TIMM, HUGGINGFACE and TORCHVISION/model.safetensors
    program.stablehlo   and model.onnx: see programs.py
    golden.npz          an artificial case, input/<name>, and its output/<name>
    run.py              predictions without jaxkd and JAX
    README.md           the model card

Nothing of the training but the weights is in it: no case, path, name of a teacher or of what only it read.
"""
import functools
import hashlib
import importlib.util
import io
import json
import os
import pathlib
import re
import shutil
import uuid
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd import errors
from jaxkd.config import plugins
from jaxkd.data.transform import Transforms
from jaxkd.export import programs
from jaxkd.inference.case_files import Inputs
from jaxkd.inference.deployed import Deployed, Reading, Step, Windows
from jaxkd.runtime import files

SUMS, FORMAT = 'SHA256SUMS', 1
LINE = re.compile(r'([0-9a-f]{64})  ([\w-][\w.-]*(?:/[\w-][\w.-]*)?)')
MOST_TEXT = 2**26  # bytes of a JSON file
REQUIRED = ('metadata.json', 'preprocessing.json', 'decision.json', 'model.safetensors', 'program.stablehlo',
            'golden.npz')
as_damaged = functools.partial(files.as_damaged, remedy='Copy the bundle again from where it came, or export it again.')


def write(folder: str | os.PathLike, contents: Mapping[str, bytes]) -> None:
    """Write {name: content} and their checksums, all or nothing. ConfigError where the folder holds anything else."""
    path = pathlib.Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir()) and not (path / SUMS).exists()):
        raise errors.ConfigError(f'{path} exists and is no bundle. Give another --out.')
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}')
    sums = ''.join(f'{hashlib.sha256(contents[name]).hexdigest()}  {name}\n' for name in sorted(contents))
    with files.writing(path):
        try:
            for name, content in {**contents, SUMS: sums.encode()}.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                (temporary / name).write_bytes(content)
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def verify(folder: str | os.PathLike) -> tuple[str, ...]:
    """The names of the files of a bundle, each as it was written. MissingInput, Damaged (which names the file)."""
    path = pathlib.Path(folder)
    if not (path / SUMS).is_file():
        raise errors.MissingInput(f'{path} is no bundle: it has no {SUMS}. Give the folder that jaxkd.export wrote.')
    text = _read(path, SUMS, MOST_TEXT)
    digests: dict[str, str] = {}
    for number, line in enumerate(text.split(b'\n')[:-1], 1):
        match = LINE.fullmatch(line.decode('ascii', 'replace'))
        if not match or match[2] in digests or match[2] == SUMS:
            raise _damaged(path, f'{SUMS}, line {number}')
        digests[match[2]] = match[1]
        if _digest(path, match[2]) != match[1]:
            raise _damaged(path, match[2])
    if not text.endswith(b'\n'):
        raise _damaged(path, f'{SUMS}, which ends early,')
    if missing := sorted({*REQUIRED} - {*digests}):
        raise _damaged(path, f'{SUMS} without {missing[0]}')
    with as_damaged(path, 'metadata.json'):
        metadata = _json(path, 'metadata.json')
        changed = [name for name, digest in metadata['digests'].items() if digests.get(name) != digest]
        changed = changed if metadata['digest'] == files.json_digest(metadata) else ['metadata.json']
    if changed:  # sums that were made anew for a damaged file: JAX ends the process over some damaged programs
        raise _damaged(path, changed[0])
    return tuple(digests)


def load(folder: str | os.PathLike) -> Deployed:
    """The Deployed of a bundle, verified file by file and by its golden case.

    ConfigError for a bundle of a later jaxkd or jax, Damaged for one that does not give its golden output.
    """
    path, names = pathlib.Path(folder), verify(folder)
    metadata, prepared, decision = (_json(path, name) for name in REQUIRED[:3])
    with as_damaged(path, 'a file that does not say what it should'):
        steps = tuple(_step(path, s) for s in prepared['transforms'])
        built = [step.build() for step in steps]
        transforms = Transforms(tuple(t for t, s in zip(built, steps) if not s.evaluation),
                                tuple(t for t, s in zip(built, steps) if s.evaluation), {}, {})
        case_files, windows, model = prepared['files'], prepared['windows'], ProgramModel(path, metadata['outputs'])
        digest = hashlib.sha256(_read(path, SUMS, MOST_TEXT)).hexdigest()
        deployed = Deployed(
            f'{path}, {metadata["name"]}', tuple(decision['labels']), tuple(prepared['inputs']),
            Inputs(dict(case_files['kinds']), (), tuple(case_files['columns'])), transforms,
            hashlib.sha256(json.dumps(prepared, sort_keys=True).encode()).hexdigest(),
            _reading(prepared['reading']), model, bool(decision['exclusive']), decision['decision'],
            Windows(windows['overlap'], windows['weights'], tuple(windows['mirror'])), int(prepared['batch']), 0,
            digest, steps)
    check_golden(path, names, model.program)
    return deployed


class ProgramModel:
    """The StableHLO program of a bundle in the place of a network, see inference/deployed.Model."""

    def __init__(self, folder: pathlib.Path, outputs: Sequence[str]) -> None:
        self.program, self.outputs = program_of(folder), tuple(outputs)

    def shapes(self, batch: Mapping[str, Any]) -> Mapping[str, jax.ShapeDtypeStruct]:
        """As Model.shapes. ConfigError for inputs of other shapes than those of the bundle."""
        inputs = {key: jax.ShapeDtypeStruct(np.shape(a), a.dtype) for key, a in programs.flat_inputs(batch).items()}
        weights = {k: jax.ShapeDtypeStruct(a.shape, a.dtype) for k, a in self.program.weights.items()}
        try:
            return jax.eval_shape(self.program.call, weights, inputs)
        except ValueError as e:
            reason = ' '.join(str(e).split())[:160]
            raise errors.ConfigError(f'The inputs are not those of the bundle ({reason}).') from e

    def predict_batch(self, batch: Mapping[str, Any], outputs: Sequence[str] = ('logits',),
                      capture: Sequence[str] = ()) -> Mapping[str, Any]:
        """As Model.predict_batch; a bundle has no intermediate states."""
        if capture or {*outputs} - {*self.outputs}:
            wanted = (*capture, *sorted({*outputs} - {*self.outputs}))
            raise errors.ConfigError(f'A bundle gives {", ".join(self.outputs)} alone, not {", ".join(wanted)}. Leave '
                                     'out --overlays, or use --run.')
        found = self.program(programs.flat_inputs(batch))
        return {name: found[name] for name in outputs}

    def windows(self, outputs: Sequence[str] = ('logits',), present: Mapping[str, float] | None = None
                ) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
        """As Model.windows."""
        def apply(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
            rows = len(next(iter(inputs.values())))
            flags = {key: np.full(rows, value, np.float32) for key, value in (present or {}).items()}
            return self.predict_batch({**inputs, 'present': flags} if flags else inputs, outputs)
        return apply


def program_of(folder: pathlib.Path) -> programs.Program:
    """The StableHLO program of a verified bundle with its weights. Damaged where it cannot be read, ConfigError for
    one of a later jaxkd or jax.
    """
    import safetensors.numpy
    metadata = _json(folder, 'metadata.json')
    with as_damaged(folder, 'metadata.json'):
        _check_versions(folder, metadata)
    with as_damaged(folder, 'program.stablehlo or model.safetensors'):
        weights = safetensors.numpy.load((folder / 'model.safetensors').read_bytes())
        return programs.Program((folder / 'program.stablehlo').read_bytes(), weights)


def check_golden(folder: str | os.PathLike, names: Sequence[str],
                 program: programs.Program | None = None) -> dict[str, float]:
    """{program: difference from the golden output} of all programs that can run here. Damaged for one above 1e-4."""
    path = pathlib.Path(folder)
    given, expected = golden(path)
    program, found = program or program_of(path), dict[str, Mapping[str, Any]]()
    with as_damaged(path, 'program.stablehlo'):
        found['program.stablehlo'] = jax.tree.map(np.asarray, dict(program(given)))
    if 'model.onnx' in names and importlib.util.find_spec('onnxruntime'):
        with as_damaged(path, 'model.onnx'):
            found['model.onnx'] = programs.run_onnx((path / 'model.onnx').read_bytes(), given)
    with as_damaged(path, 'metadata.json'):
        tolerance = min(max(programs.TOLERANCE, _json(path, 'metadata.json')['tolerance']), programs.HALF_TOLERANCE)
    differences = {}
    for name, outputs in found.items():
        differences[name] = programs.difference(outputs, expected)
        if not differences[name] <= tolerance:
            raise errors.Damaged(f'{path}: {name} gives another output for the golden case than it did when it was '
                                 f'exported (by {differences[name]:.2g}). Export it again, or use the versions that '
                                 'metadata.json names.')
    return differences


def golden(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(flat inputs, outputs) of golden.npz; only plain arrays that are stored as they are."""
    with as_damaged(path, 'golden.npz'):
        with zipfile.ZipFile(path / 'golden.npz') as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError('a member is compressed')
        with np.load(path / 'golden.npz', allow_pickle=False) as arrays:
            content = {key: arrays[key] for key in arrays.files}
        inputs, outputs = ({k.removeprefix(start): a for k, a in content.items() if k.startswith(start)}
                           for start in ('input/', 'output/'))
        if not inputs or not outputs:
            raise ValueError('an input or an output is missing')
    return inputs, outputs


def npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of an .npz, the same for the same arrays."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, 'w', zipfile.ZIP_STORED) as archive:
        for key, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f'{key}.npy', (1980, 1, 1, 0, 0, 0)), member.getvalue())
    return content.getvalue()


def _step(path: pathlib.Path, step: Mapping[str, Any]) -> Step:
    """One of jaxkd's own transforms, and no other module; a file that it reads lies in the bundle."""
    if step['name'] not in plugins.names('data/transforms'):
        raise ValueError(f'the transform "{step["name"]}" is not of jaxkd')
    options = dict(step['options'])
    if options.get('file'):
        options['file'] = str(path / pathlib.PurePosixPath(options['file']).name)
    return Step(step['name'], options, step['fitted'], bool(step['evaluation']))


def _reading(reading: Mapping[str, Any]) -> Reading:
    if reading['source'] and reading['source'] not in plugins.names('data/sources'):
        raise ValueError(f'the source "{reading["source"]}" is not of jaxkd')
    plugin = plugins.contract('data/sources', reading['source']) if reading['source'] else None
    return Reading(plugin.scale if plugin else None, plugin.read_picture if plugin else None, dict(reading['volume']),
                   reading['source'])


def _check_versions(path: pathlib.Path, metadata: Mapping[str, Any]) -> None:
    if metadata['format'] != FORMAT:
        raise errors.ConfigError(f'{path} is a bundle of format {metadata["format"]}, this jaxkd reads {FORMAT}. Use '
                                 f'jaxkd {metadata["versions"]["jaxkd"]}.')
    oldest = metadata['programs']['program.stablehlo']['oldest_jax']
    if _version(jax.__version__) < _version(oldest):
        raise errors.ConfigError(f'{path}: its program.stablehlo needs jax {oldest} or later, this is '
                                 f'{jax.__version__}. Use its run.py, or a later jax.')


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r'\d+', text)[:2])


def _json(path: pathlib.Path, name: str) -> Any:
    with as_damaged(path, name):
        content = json.loads(_read(path, name, MOST_TEXT))
        if not isinstance(content, dict):
            raise ValueError('no JSON object')
        return content


def _read(path: pathlib.Path, name: str, most: int) -> bytes:
    with as_damaged(path, name):
        if (path / name).stat().st_size > most:
            raise ValueError(f'more than {most:,} bytes')
        return (path / name).read_bytes()


def _digest(path: pathlib.Path, name: str) -> str:
    try:
        with open(path / name, 'rb') as f:
            return hashlib.file_digest(f, 'sha256').hexdigest()
    except OSError as e:
        raise errors.Damaged(f'{path}: {name} cannot be read ({e.strerror}). Copy the bundle again.') from e


def _damaged(path: pathlib.Path, what: str) -> errors.Damaged:
    return errors.Damaged(f'{path}: {what} is not what was exported: its sha256 or its line in {SUMS} differs. Copy '
                          'the bundle again from where it came.')
