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
import collections
import pathlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
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
TRAINING = re.compile(r'(decoder\w*|(\w+_)?heads?|classifier|fc|proj(ector|ection)\w*|predictor\w*|prototypes|queue\w*|'
                      r'criterion|loss\w*|(\w+_)?mask_token)(\.|$)')  # tensors of training alone, behind the network
PICKLES = ('.pth', '.pt', '.bin', '.ckpt', '.tar', '.pkl', '.pickle')
# argparse.Namespace: the options that many training scripts put beside their weights
CONVERT = 'python -c "import argparse, sys, torch, safetensors.torch as s; ' \
          'torch.serialization.add_safe_globals([argparse.Namespace]); ' \
          "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); " \
          "d = next((d[k] for k in ('state_dict', 'model', 'teacher', 'student') if isinstance(d.get(k), dict)), d); " \
          's.save_file({k: v.contiguous().clone() for k, v in d.items() if torch.is_tensor(v)}, sys.argv[2])"'
CONVERT_NPZ = f'python -c "{safetensors_file.LOAD}, numpy as np; ' \
              's.save_file({k: np.ascontiguousarray(v) for k, v in np.load(sys.argv[1]).items()}, sys.argv[2])"'
OTHERS = {  # suffixes: what such a file is
    ('.onnx',): 'an exported graph (ONNX), whose names and axes are no longer those of the network',
    ('.h5', '.hdf5', '.keras', '.pb', '.index', '.tflite'): 'of Keras or TensorFlow, whose names and axes are others',
    ('.msgpack',): 'of Flax, whose names and axes are others',
    ('.npz', '.npy'): 'of NumPy'}

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # {name in the file, without prefix: shape}


class Contents(NamedTuple):
    """The content of a file for a model, from names and shapes alone."""

    names: dict[str, str]  # {name without prefix: name in the file}
    sources: dict[str, list[str]]  # {our path: names, without prefix, of the tensors that make it}
    left_out: list[str]  # names of unused tensors, and one entry for counters of batches


def is_file(path: str | pathlib.Path) -> bool:
    """Whether `path` names weights of another library, and no folder of a trained stage. Raises ConfigError for weights
    in a format that is not read, with the one to convert to.
    """
    path = pathlib.Path(path)
    if path.is_dir() and (any(path.glob('*.safetensors')) or (path / 'stage.json').exists()):
        return any(path.glob('*.safetensors'))
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.suffix != '.safetensors' and (file == path and file.is_file() or _format(file)):
            raise errors.ConfigError(f'init.path = {path}: {file.name} is {_format(file) or "of an unknown format"}. '
                                     f'Weights are read from .safetensors. {_conversion(file)}')
    return path.suffix == '.safetensors'


def _format(file: pathlib.Path) -> str:
    """What a file of weights is that is not read here; '' for anything else."""
    if file.suffix.lower() in PICKLES:
        return 'a pickle, which can run programs and is not read here'
    return next((kind for suffixes, kind in OTHERS.items() if file.suffix.lower() in suffixes), '')


def _conversion(file: pathlib.Path) -> str:
    """What to convert a file to, with the command where there is one."""
    target = file.with_suffix('.safetensors')
    if file.suffix.lower() in PICKLES:
        return f'Convert it where torch is installed: {safetensors_file.command_line(CONVERT, file, target)}'
    names = 'with the names of the state_dict of timm, torchvision or Hugging Face'
    if file.suffix.lower() != '.npz':
        return f'Take or export the weights of the same network as .safetensors, {names}.'
    return (f'Where it holds tensors {names}: {safetensors_file.command_line(CONVERT_NPZ, file, target)} (That of a '
            'vision transformer of Google is read by timm.create_model(NAME, checkpoint_path=FILE), whose state_dict '
            'is then to be saved.)')


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
        f' Left out: {summary(left_out)}.' if left_out else '') + (
        f' Start fresh: {", ".join(k.partition("/")[2] for k in missing)}.' if missing else '') + ''.join(messages))
    folder = safetensors_file.locate(path).parent
    if further := sorted(p.name for p in folder.glob('[0-9]_*') if p.is_dir() and not p.name.endswith('_Pooling')):
        log.info(f'init: {folder} also holds {", ".join(further)}, which is not read'
                 + (' (the model\'s normalise does it).' if further[0].endswith('_Normalize') else '.'))
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
            values[target], message = fit(plugin, target, value, shape, contents.names)
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
        in_file = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}
    prefix = network_prefix(in_file, lambda shapes: plugin.tensors(hp, shapes, config_json)[1], path)
    names = safetensors_file.strip_prefix(in_file, prefix)
    shapes = {k: in_file[v] for k, v in names.items()}
    required, sources, unused = plugin.tensors(hp, shapes, config_json)
    required = {**required, **mean_std} if 'mean' in hp and tuple(hp.mean) else required
    if changes := [f'model.{k} to {v!r} (it is {hp[k]!r})' for k, v in required.items() if not same_value(hp[k], v)]:
        raise errors.ConfigError(f'init.path = {path} is {model.name} of other options. Set {", ".join(changes)}, or '
                                 'give another file.')
    counters = [k for k in names if k.endswith('.num_batches_tracked')]
    unknown = names.keys() - {*unused, *counters} - {k for group in sources.values() for k in group}
    beyond = {k for k in unknown if TRAINING.match(k) or not names[k].startswith(prefix)}
    if unknown := unknown - beyond:
        raise other_network_error(path, model, f'{len(unknown)} of its tensors are of no layer of that network, the '
                                               f'first is {names[min(unknown)]}')
    left_out = sorted({k for k in unused if k in names} | beyond) + (
        [f'{len(counters)} counters of batches'] if counters else [])
    return Contents(names, sources, left_out)


def network_prefix(shapes: Shapes, sources: Callable[[Shapes], Mapping], path: str | pathlib.Path) -> str:
    """What stands before the names of the network in a file, such as 'module.' or 'model.encoder.': that below which
    most tensors are those of the network. ConfigError where two networks are complete.

    sources: shapes -> {our path: names} of the model's plug-in.
    """
    counts = collections.Counter(k[:i + 1] for k in shapes for i, c in enumerate(k) if c == '.')
    prefixes = ['', *(p for p, n in counts.items() if n * 10 >= len(shapes))]
    below = {p: sources({k.removeprefix(p): s for k, s in shapes.items() if k.startswith(p)}) for p in prefixes}
    best = max(prefixes, key=lambda p: (sum(map(len, below[p].values())), -len(p)))
    layers = {k for k in below[best] if not is_fresh(k)}
    for other in prefixes if layers else ():
        if other != best and layers <= below[other].keys():
            file = safetensors_file.locate(path)
            command = safetensors_file.command_line(safetensors_file.SELECT, file, best or other,
                                                    file.with_name('one.safetensors'))
            raise errors.ConfigError(f'init.path = {path} holds two networks, below "{best}" and "{other}". Write one '
                                     f'of them to a file and name that: {command}')
    return best


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


def summary(names: Sequence[str]) -> str:
    """Names of tensors in a line, those of one part counted where they are more than four."""
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(name.partition('.')[0], []).append(name)
    return ', '.join(', '.join(group) if len(group) < 5 else f'{len(group)} tensors of {part}'
                     for part, group in parts.items())


def is_fresh(target: str) -> bool:
    """Whether a path belongs to a layer that may start at random."""
    return target.split('/')[1] in FRESH


def fit(plugin: contracts.ModelPlugin, target: str, value: np.ndarray, shape: Shape | None,
        names: Collection[str]) -> tuple[np.ndarray, str]:
    """(value in `shape` if possible, a log message). shape: None for a tensor without place in the network; names: of
    all tensors of the file.
    """
    if shape is None or value.shape == shape:
        return value, ''
    if value.ndim == 4 and (*value.shape[:2], 1, value.shape[3]) == shape and value.shape[2] == 3:
        return value.sum(2, keepdims=True), 'was added up over its three channels, because the input has one'
    if plugin.adapt and value.ndim == len(shape):
        adapted = np.asarray(plugin.adapt(target.partition('/')[2], value, shape, names))
        return adapted, f'was made to fit: {value.shape} to {shape}' if adapted.shape == shape else ''
    return value, ''


def other_network_error(path: str | pathlib.Path, model: ConfigDict, reason: str) -> errors.ConfigError:
    """The ConfigError for a file of another network."""
    options = ', '.join(f'{k}={v!r}' for k, v in sorted(model.to_dict().items())
                        if k in ('name', 'depth', 'blocks', 'size'))
    return errors.ConfigError(f'init.path = {path} is not for this model ({options}): {reason}. Give the file of the '
                              'same network, with the names of its state_dict.')
