"""Files of weights that other libraries wrote: .safetensors, alone or in a folder with the configs that describe them.

A folder holds model.safetensors, config.json and preprocessor_config.json (Hugging Face), or the first two (timm).
"""
import contextlib
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkd import errors

PREFIXES = ('module.', 'model.', 'backbone.', 'vit.', 'dinov2.', 'dinov2_with_registers.', 'bert.')
JOIN = """python -c "import glob, safetensors.numpy as s; s.save_file({{k: v \
for f in glob.glob('{0}/*-of-*.safetensors') for k, v in s.load_file(f).items()}}, '{0}/model.safetensors')\""""


def locate(path: str | pathlib.Path) -> pathlib.Path:
    """The .safetensors file that `path` names. Raises MissingInput, ConfigError for a folder with several."""
    path = pathlib.Path(path)
    if path.is_dir():
        files = sorted(path.glob('*.safetensors'))
        if len(files) > 1 and path / 'model.safetensors' not in files:
            raise errors.ConfigError(f'init.path = {path} holds {len(files)} files of weights. Name one, or make one '
                                     f'of the parts: {JOIN.format(path)}')
        path = path / 'model.safetensors' if path / 'model.safetensors' in files else files[0]
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
    """
    folder = locate(path).parent
    config_json, preprocessor = (_json_object(folder / name) for name in ('config.json', 'preprocessor_config.json'))
    timm = config_json['pretrained_cfg'] if isinstance(config_json.get('pretrained_cfg'), dict) else {}
    mean, std = preprocessor.get('image_mean', timm.get('mean')), preprocessor.get('image_std', timm.get('std'))
    if isinstance(mean, list) and isinstance(std, list):
        return config_json, {'mean': tuple(mean), 'std': tuple(std)}
    return config_json, {}


def _json_object(file: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text()) if file.is_file() else {}
    except (ValueError, OSError, RecursionError) as e:
        raise errors.BadData(f'{file} cannot be read as JSON ({e}). Copy it again, or remove it.') from e
    if not isinstance(content, dict):
        raise errors.BadData(f'{file} is no JSON object. Copy it again, or remove it.')
    return content


def strip_prefixes(names: Iterable[str], path: str | pathlib.Path) -> dict[str, str]:
    """{name without PREFIXES: name}. Raises ConfigError where two become one."""
    by_short_name: dict[str, str] = {}
    for name in names:
        short = name
        while prefix := next((p for p in PREFIXES if short.startswith(p)), ''):
            short = short.removeprefix(prefix)
        if by_short_name.setdefault(short, name) != name:
            raise errors.ConfigError(f'init.path = {path} holds two networks: {name} and {by_short_name[short]}. Keep '
                                     'one of them.')
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
