"""What a saved step says of itself, and its deployed variables without orbax, whose import takes longer.

The layout of a step is that of checkpoint.py. Arrays are read from orbax's store (zarr in OCDBT) by tensorstore, and
are taken where each has the sha256 that the step was saved with.
"""
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd import errors, parallel
from jaxkd.config import plugins, schema
from jaxkd.runtime import files
from jaxkd.runtime.trees import leaf_name

Path = str | pathlib.Path


def read(folder: Path, which: str = 'best') -> tuple[dict, int]:
    """The deployed variables of a stage -> (numpy variables, step). Whatever is not as it was saved raises an error, of
    any type: checkpoint.load_student then says what is wrong.
    """
    import tensorstore
    folder = pathlib.Path(folder).absolute()

    def metadata(step: int) -> dict[str, Any]:
        content = json.loads((folder / str(step) / 'about' / 'metadata').read_text())
        check_step(folder, step, content)
        return content
    step = choose(folder, [int(p.name) for p in folder.iterdir() if p.name.isdigit()], which, metadata)
    expected, store = metadata(step)['digests']['student'], {'driver': 'file', 'path': f'{folder}/{step}/student/'}
    context = tensorstore.Context()
    opened = {name: tensorstore.open({'driver': 'zarr', 'kvstore': {
        'driver': 'ocdbt', 'base': store, 'path': f'{name.replace("/", ".")}/'}}, open=True, read=True, context=context)
        for name in expected}
    reading = {name: array.result().read() for name, array in opened.items()}
    variables: dict[str, Any] = {}
    for name, array in reading.items():
        value = np.asarray(array.result())
        if array_digest(value, value) != expected[name]:
            raise errors.Damaged(f'{folder}/{step}: {name} is not what was saved.')
        *parents, leaf = name.split('/')
        inner = variables
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = value
    return variables, step


def stage_metadata(folder: Path) -> dict[str, Any]:
    """stage.json of a stage's checkpoints. ConfigError if an earlier version of jaxkd wrote it."""
    path = pathlib.Path(folder) / 'stage.json'
    metadata = files.read_json(path, 'The description of a trained stage')
    if not isinstance(metadata, dict) or not all(isinstance(metadata.get(part), dict) for part in ('config', 'data')):
        raise errors.Damaged(f'{path} does not hold the config and the data of a trained stage. Restore it, or train '
                             'the stage again.')
    _refuse_earlier_version(path, 'config', metadata['config'], schema.STAGE)
    _refuse_earlier_version(path, 'data', metadata['data'], schema.RUN['data'])
    listed = {*metadata['data']['transforms'], *metadata['data']['augment']}
    for name in sorted(listed & {*plugins.names('data/transforms')}):
        _refuse_earlier_version(path, f'data.{name}', metadata['data'][name],
                                plugins.load('data/transforms', name).DEFAULTS)
    return metadata


def choose(folder: pathlib.Path, steps: Sequence[int], which: str, metadata: Callable[[int], Mapping[str, Any]]) -> int:
    """The step that 'best', 'last' or a number means; metadata(step): what it says of itself. MissingInput."""
    if not steps:
        raise errors.MissingInput(f'{folder} holds no complete step.')
    if which == 'last':
        return max(steps)
    if which == 'best':
        scored = {s: score for s in steps if (score := metadata(s)['score']) is not None}
        mode = stage_metadata(folder)['config']['mode']
        return (max if mode == 'max' else min)(sorted(scored), key=lambda s: scored[s]) if scored else max(steps)
    if str(which).isdigit() and int(which) in steps:
        return int(which)
    raise errors.MissingInput(f'{folder} has no step "{which}".{errors.nearest(which, ["best", "last", *steps])}')


def check_step(folder: pathlib.Path, step: int, metadata: Any) -> None:
    """Damaged where what a step says of itself has changed, or stage.json has."""
    if not isinstance(metadata, dict) or metadata.get('digest') != metadata_digest(metadata):
        raise errors.Damaged(f'Checkpoint {folder}/{step} is damaged: what it says about itself has changed.')
    if metadata.get('stage') != file_digest(folder / 'stage.json'):
        raise errors.Damaged(f'Checkpoint {folder}/{step}: stage.json is not the one it was saved with.')


def digest(tree: Any) -> str:
    """One sha256 over all leaves of a tree."""
    return hashlib.sha256(json.dumps(digests(tree), sort_keys=True).encode()).hexdigest()


def digests(tree: Any, known: Mapping[int, list] | None = None) -> dict[str, list]:
    """{leaf: [sha256, shape, dtype]}; known: {id of a leaf: what is known of it}"""
    return {leaf_name(path): (known or {}).get(id(leaf)) or array_digest(leaf, parallel.whole(leaf))
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def array_digest(leaf: Any, a: np.ndarray) -> list:
    """[sha256, shape, dtype] of a leaf, of which `a` are the values."""
    return [hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest(), list(np.shape(leaf)), str(a.dtype)]


def metadata_digest(metadata: Mapping[str, Any]) -> str:
    """sha256 of all that a step says of itself but this."""
    content = {k: v for k, v in metadata.items() if k != 'digest'}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digest(path: pathlib.Path) -> str | None:
    """sha256 of a file, None without it."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _refuse_earlier_version(path: pathlib.Path, part: str, options: dict, defaults: Mapping[str, Any]) -> None:
    """ConfigError if `options`, that part of stage.json, lacks current keys; names their former name."""
    missing = sorted({*defaults} - {*options})
    if not missing:
        return
    former = [f'{part}.{old} is called "{new}" now' for old, new in schema.RENAMED_KEYS.items()
              if old in options and new in missing]
    raise errors.ConfigError(f'{path} is of an earlier version of jaxkd: '
                             f'{", ".join(former) or f"it has no {part}.{missing[0]}"}. Train the stage again, or use '
                             'it with the version that wrote it.')
