"""Initial weights made by other libraries, from a local .safetensors file or a folder that holds one
(jaxkd.pretrained.safetensors_file).

The PLUGIN of a model describes how a file of another library is read: `tensors`, `arrange` and `adapt` of
contracts.ModelPlugin. Convolutions are turned from out, in, h, w to h, w, in, out, linear layers from out, in to in,
out (every path that ends in kernel). Half precision becomes float32.

Every tensor of the file is accounted for in the log: loaded; made to fit; left out (unused ones, counters of batches,
a head of another size). Every tensor of the network has one, but the layers FRESH may start at random, which is
logged. Where the file's first convolution reads three channels and the network one, its three kernels are added up,
which is the same for a grey image in all three. Any other misfit is a ConfigError before training.

The options of the network in a config.json in the same folder, and mean and std of the input in it or in a
preprocessor_config.json, are checked against the options of the model.
"""
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxkd import config, contracts, errors
from jaxkd.config import plugins
from jaxkd.pretrained import safetensors_file
from jaxkd.runtime import log, trees

FRESH = ('head', 'project')  # layers that may start at random
PICKLES = ('.pth', '.pt', '.bin')
CONVERT = """python -c "import torch, safetensors.torch as s; s.save_file({{k: v.contiguous().clone() for k, v in \
torch.load('{0}', map_location='cpu', weights_only=True).items()}}, '{1}')\""""

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # {name in the file, without prefixes: shape}


class Contents(NamedTuple):
    """The content of a file for a model, from names and shapes alone."""

    names: dict[str, str]  # {name without prefixes: name in the file}
    sources: dict[str, list[str]]  # {our path: names, without prefixes, of the tensors that make it}
    left_out: list[str]  # names of unused tensors, and one entry for counters of batches


def is_file(path: str | pathlib.Path) -> bool:
    """Whether `path` names weights of another library, and no folder of a trained stage. Raises ConfigError for a
    pickle.
    """
    path = pathlib.Path(path)
    pickles = [p for p in sorted(path.iterdir()) if p.suffix in PICKLES] if path.is_dir() else []
    if path.is_dir() and any(path.glob('*.safetensors')):
        return True
    for pickle in [path] if path.suffix in PICKLES else pickles:
        raise errors.ConfigError(f'init.path = {path}: {pickle.name} is a pickle, which can run programs and is not '
                                 'read here. Convert it where torch is installed: '
                                 f'{CONVERT.format(pickle, pickle.with_suffix(".safetensors"))}')
    return path.suffix == '.safetensors'


def load(path: str | pathlib.Path, model: ConfigDict, params: Mapping, stats: Mapping) -> dict[str, Any]:
    """Initial variables of a model: {'params': tree, and the collections of `stats`}, shaped as params and stats.

    path: .safetensors file or a folder with one; model: its options, resolved; stats: {'batch_stats': tree}, or {}.
    Raises ConfigError for weights of another network, BadData for a damaged file, MissingInput for none.
    """
    if key := nested_option(model):
        inner = load(path, model[key], params[key], {k: v[key] for k, v in stats.items() if key in v})
        return {k: {**v, key: inner[k]} if k in inner else v for k, v in {'params': params, **stats}.items()}
    contents = examine(path, model)
    targets = {f'{kind}/{trees.leaf_name(leaf)}': a for kind, tree in {'params': params, **stats}.items()
               for leaf, a in jax.tree_util.tree_leaves_with_path(tree)}
    values, messages = _read(path, model, contents, targets)
    unfit = {k.rpartition('/')[0] for k, a in targets.items() if k not in values or values[k].shape != a.shape}
    # a layer is loaded completely or not at all
    dropped = [k for k in values if is_fresh(k) and (k not in targets or k.rpartition('/')[0] in unfit)]
    missing = [k for k in targets if k not in values or k in dropped]
    if lacking := [k for k in missing if not is_fresh(k)]:
        raise other_network_error(path, model, f'it lacks {len(lacking)} of the tensors that the network needs, such '
                                               f'as that of {lacking[0]}')
    left_out = sorted(k for target in dropped for k in contents.sources[target]) + contents.left_out
    log.info(f'init: {sum(len(contents.sources[k]) for k in values if k not in dropped)} tensors of {path}.' + (
        f' Left out: {", ".join(left_out)}.' if left_out else '') + (
        f' Start fresh: {", ".join(k.partition("/")[2] for k in missing)}.' if missing else '') + ''.join(messages))
    _log_mean_std(path, model)

    def leaf(kind):
        def value(leaf_path, a):
            target = f'{kind}/{trees.leaf_name(leaf_path)}'
            return jnp.asarray(a if target in missing else values[target], a.dtype)
        return value
    return {kind: jax.tree_util.tree_map_with_path(leaf(kind), tree)
            for kind, tree in {'params': params, **stats}.items()}


def _read(path, model, contents: Contents, targets: Mapping) -> tuple[dict[str, np.ndarray], list[str]]:
    """({our path: value in our order, fitted to its target}, log messages of the fitting). ConfigError for a misfit."""
    plugin = plugins.contract('models', model.name)
    values, messages = {}, []
    with safetensors_file.open_file(path) as file:
        for target, names in contents.sources.items():
            value = join([safetensors_file.read(file, path, contents.names[k]) for k in names])
            value = plugin.arrange(target, value) if plugin.arrange else value
            value = np.moveaxis(value, (1, 0), (-2, -1)) if target.endswith('/kernel') else value
            shape = targets[target].shape if target in targets else None
            values[target], message = fit(plugin, target, value, shape)
            messages += [f' {names[0]} {message}.'] if message else []
            if values[target].shape != shape and not is_fresh(target):
                raise other_network_error(path, model, f'its tensor {names[0]} '
                                          + ('has no place in it' if shape is None else
                            f'has the shape {value.shape} (in our order), the network {shape}'))
    return values, messages


def _log_mean_std(path, model) -> None:
    """Log the normalisation that such weights expect, if the model has the one of its defaults."""
    mean_std = safetensors_file.beside(path)[1]
    defaults = plugins.load('models', model.name).DEFAULTS
    if 'mean' not in model or tuple(model.mean) != tuple(defaults['mean']) or (mean_std and model.mean):
        return
    mean, std = mean_std.values() if mean_std else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    log.info(f'init: such weights expect inputs in [0,1] minus {mean}, over {std}'
             + ('' if mean_std else ' (most of them; some vision transformers 0.5 and '
            '0.5)') + '. Set mean and std of the model unless the data come so.')


def examine(path: str | pathlib.Path, model: ConfigDict) -> Contents:
    """The content of a file by names and shapes and by the files in its folder, before training. Raises as `load`."""
    if key := nested_option(model):
        return examine(path, model[key])
    module, hp = config.options('models', model.to_dict(), 'model')
    plugin = plugins.contract('models', model.name)
    if not plugin.tensors:
        importing = [name for name in plugins.names('models') if plugins.contract('models', name).tensors]
        raise errors.ConfigError(f'init.path = {path}: no weights of other libraries are known for {model.name}. '
                                 f'Known: {", ".join(importing)}.')
    module.build(hp, 0)  # raises for options that do not exist
    config_json, mean_std = safetensors_file.beside(path)
    with safetensors_file.open_file(path) as file:
        names = safetensors_file.strip_prefixes(file.keys(), path)
        shapes = {k: tuple(file.get_slice(v).get_shape()) for k, v in names.items()}
    required, sources, unused = plugin.tensors(hp, shapes, config_json)
    required = {**required, **mean_std} if 'mean' in hp and tuple(hp.mean) else required
    if changes := [f'model.{k} to {v!r} (it is {hp[k]!r})' for k, v in required.items() if not same_value(hp[k], v)]:
        raise errors.ConfigError(f'init.path = {path} is {model.name} of other options. Set {", ".join(changes)}, or '
                                 'give another file.')
    counters = [k for k in names if k.endswith('.num_batches_tracked')]
    unknown = names.keys() - {*unused, *counters} - {k for group in sources.values() for k in group}
    if unknown:
        raise other_network_error(path, model, f'its tensor {min(unknown)} is none of that network')
    left_out = sorted(k for k in unused if k in names) + ([f'{len(counters)} counters of batches'] if counters else [])
    return Contents(names, sources, left_out)


def nested_option(model: ConfigDict) -> str:
    """The option of a model with the nested network, if the weights are for that one; or ''."""
    plugin = plugins.contract('models', model.name)
    return '' if plugin.tensors else next(iter(plugin.nested), '')


def sources_of(table: Mapping[str, str], shapes: Shapes) -> dict[str, list[str]]:
    """{our path: names of its tensors} of {their name of a layer, or of a tensor: our path}, for what the file has, in
    that order.

    A layer's weight is our kernel, or scale where it has one axis; running_mean and running_var are batch_stats.
    Several names of one path are joined, as queries, keys and values are.
    """
    sources: dict[str, list[str]] = {}
    for theirs, ours in table.items():
        kernel = len(shapes.get(f'{theirs}.weight', ())) > 1
        for name, path in {theirs: f'params/{ours}',
                           f'{theirs}.weight': f'params/{ours}/{"kernel" if kernel else "scale"}',
                           f'{theirs}.bias': f'params/{ours}/bias',
                           f'{theirs}.running_mean': f'batch_stats/{ours}/mean',
                           f'{theirs}.running_var': f'batch_stats/{ours}/var'}.items():
            if name in shapes:
                sources.setdefault(path, []).append(name)
    return sources


def join(values: Sequence[np.ndarray]) -> np.ndarray:
    """Tensors concatenated; the first of those that do not fit each other, whose shape is then reported as wrong."""
    return np.concatenate(values) if len({v.shape[1:] for v in values}) == 1 and values[0].ndim else values[0]


def check_config_json(config_json: Mapping, keys: Mapping[str, str], required: dict) -> dict:
    """`required` and the options in config.json; keys {option: its key in the file}. ConfigError if they contradict."""
    for option, key in keys.items():
        if key in config_json and not same_value(required.setdefault(option, config_json[key]), config_json[key]):
            raise errors.ConfigError(f'init.path: config.json says {key} = {config_json[key]}, the tensors beside it '
                                     f'{required[option]}. They belong to different networks.')
    return required


def same_value(a: Any, b: Any) -> bool:
    """Whether two values of an option are equal; one value for all channels equals several of that value."""
    try:
        return bool(np.size(a) in (1, np.size(b)) and np.allclose(a, b, rtol=1e-5, atol=0))
    except TypeError:
        return a == b


def is_fresh(target: str) -> bool:
    """Whether a path belongs to a layer that may start at random."""
    return target.split('/')[1] in FRESH


def fit(plugin: contracts.ModelPlugin, target: str, value: np.ndarray, shape: Shape | None) -> tuple[np.ndarray, str]:
    """(value in `shape` if possible, a log message). shape: None for a tensor without place in the network."""
    if shape is None or value.shape == shape:
        return value, ''
    if value.ndim == 4 and (*value.shape[:2], 1, value.shape[3]) == shape and value.shape[2] == 3:
        return value.sum(2, keepdims=True), 'was added up over its three channels, because the input has one'
    if plugin.adapt and value.ndim == len(shape):
        adapted = np.asarray(plugin.adapt(target.partition('/')[2], value, shape))
        return adapted, f'was made to fit: {value.shape} to {shape}' if adapted.shape == shape else ''
    return value, ''


def other_network_error(path: str | pathlib.Path, model: ConfigDict, reason: str) -> errors.ConfigError:
    """The ConfigError for a file of another network."""
    options = ', '.join(f'{k}={v!r}' for k, v in sorted(model.to_dict().items())
                        if k in ('name', 'depth', 'blocks', 'size'))
    return errors.ConfigError(f'init.path = {path} is not for this model ({options}): {reason}. Give the file of the '
                              'same network, with the names of its state_dict.')
