"""Files of weights that other libraries wrote: .safetensors, alone or in a folder with the configs that describe them.

A folder holds model.safetensors, config.json and preprocessor_config.json (Hugging Face), or the first two (timm), or
besides 1_Pooling/config.json (sentence-transformers).
"""
import contextlib
import json
import pathlib
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkd import errors

LOAD = 'import glob, sys, ml_dtypes, safetensors.numpy as s'  # ml_dtypes: numpy reads bfloat16 with it
JOIN = f'python -c "{LOAD}; s.save_file({{k: v for f in glob.glob(glob.escape(sys.argv[1]) + sys.argv[2]) ' \
       'for k, v in s.load_file(f).items()}, sys.argv[1] + sys.argv[3])"'
SELECT = f'python -c "{LOAD}; s.save_file({{k: v for k, v in s.load_file(sys.argv[1]).items() ' \
         'if k.startswith(sys.argv[2])}, sys.argv[3])"'


def locate(path: str | pathlib.Path) -> pathlib.Path:
    """The .safetensors file that `path` names. Raises MissingInput, ConfigError for a folder with several, or parts."""
    path = pathlib.Path(path)
    if path.is_dir():
        files = sorted(path.glob('*.safetensors'))
        parts = [m for file in files if (m := re.fullmatch(r'(.*)-(\d+)-of-(\d+)\.safetensors', file.name))]
        if path / 'model.safetensors' in files:
            path = path / 'model.safetensors'
        elif parts and len(parts) == len(files):
            if missing := {*range(1, int(parts[0][3]) + 1)} - {int(m[2]) for m in parts}:
                raise errors.MissingInput(f'init.path = {path}: part {min(missing)} of {int(parts[0][3])} of the '
                                          'weights is not in that folder. Copy it there.')
            command = command_line(JOIN, path, '/*-of-*.safetensors', '/model.safetensors')
            raise errors.ConfigError(f'init.path = {path} holds the weights in {len(files)} parts. Make one file of '
                                     f'them: {command}')
        elif len(files) > 1:
            raise errors.ConfigError(f'init.path = {path} holds {len(files)} files of weights. Name one, such as '
                                     f'{files[0]}.')
        else:
            path = files[0]
    if not path.is_file():
        raise errors.MissingInput(f'init.path = {path}: there is no such file.')
    return path


def open_file(path: str | pathlib.Path) -> Any:
    """The open file (safetensors.safe_open), its header read. Raises MissingInput, BadData."""
    import safetensors
    path = locate(path)
    with as_bad_data(path):
        return safetensors.safe_open(path, 'numpy')


def beside(path: str | pathlib.Path) -> tuple[dict[str, Any], dict[str, tuple]]:
    """(config.json in the folder of the weights or {}, {'mean', 'std'} of the input or {}). BadData for a file that is
    no JSON object.

    The first also holds what the file of sentence-transformers says: 'pooling_mode' 'cls', 'mean' or another; '' for
    none.
    """
    folder = locate(path).parent
    config_json, preprocessor = (_json_object(folder / name) for name in ('config.json', 'preprocessor_config.json'))
    pooling = [_json_object(file) for file in sorted(folder.glob('*_Pooling/config.json'))]
    config_json['pooling_mode'] = '+'.join(_pooling_modes(pooling[0])) if pooling else ''
    timm = config_json['pretrained_cfg'] if isinstance(config_json.get('pretrained_cfg'), dict) else {}
    mean, std = preprocessor.get('image_mean', timm.get('mean')), preprocessor.get('image_std', timm.get('std'))
    if isinstance(mean, list) and isinstance(std, list):
        return config_json, {'mean': tuple(mean), 'std': tuple(std)}
    return config_json, {}


def _pooling_modes(pooling: dict[str, Any]) -> list[str]:
    """The modes of 1_Pooling/config.json, of which the results are concatenated: 'cls', 'mean', 'max' and others."""
    if mode := pooling.get('pooling_mode'):
        return [str(mode)]
    flags = sorted(k.removeprefix('pooling_mode_') for k, v in pooling.items() if k.startswith('pooling_mode_') and v)
    return [{'cls_token': 'cls', 'mean_tokens': 'mean'}.get(flag, flag) for flag in flags]


def _json_object(file: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text()) if file.is_file() else {}
    except (ValueError, OSError, RecursionError) as e:
        raise errors.BadData(f'{file} cannot be read as JSON ({e}). Copy it again, or remove it.') from e
    if not isinstance(content, dict):
        raise errors.BadData(f'{file} is no JSON object. Copy it again, or remove it.')
    return content


def command_line(command: str, *arguments: object) -> str:
    """A command for a shell with its quoted arguments."""
    return ' '.join([command, *(shlex.quote(str(a)) for a in arguments)])


def strip_prefix(names: Iterable[str], prefix: str) -> dict[str, str]:
    """{name without `prefix`, or without the part of it that it begins with: name}; of two that become one, the other
    keeps its name.
    """
    names = sorted(names, key=lambda name: not name.startswith(prefix))
    begins = [prefix[:i + 1] for i, c in reversed([*enumerate(prefix)]) if c == '.']
    by_short_name: dict[str, str] = {}
    for name in names:
        short = name.removeprefix(next((b for b in begins if name.startswith(b)), ''))
        by_short_name[name if short in by_short_name else short] = name
    return by_short_name


def read(file: Any, path: str | pathlib.Path, name: str) -> np.ndarray:
    """One tensor in float32. BadData unless it holds finite floating-point numbers."""
    with as_bad_data(path):
        value = file.get_tensor(name)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise errors.BadData(f'init.path = {path} cannot be used: its tensor {name} is {value.dtype}, no '
                             'floating-point numbers.')
    value = value.astype(np.float32)
    if not np.isfinite(value).all():
        raise errors.BadData(f'init.path = {path} cannot be used: its tensor {name} is not finite.')
    return value


@contextlib.contextmanager
def as_bad_data(path: str | pathlib.Path) -> Iterator[None]:
    """Within, any error of the library becomes BadData."""
    try:
        yield
    except Exception as e:
        raise errors.BadData(f'init.path = {path} is damaged or of a kind that is not read ({type(e).__name__}: {e}). '
                             'Copy or convert it again, in float32.') from e
