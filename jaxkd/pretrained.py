"""Initial weights from torchvision, read from a local .safetensors file of its names.

A model that torchvision has tells in its file
    TORCHVISION      the options with which it is torchvision's network
    torchvision(hp)  {torchvision's name of a layer: our path}
    arrange(layer, value)  how a tensor is ordered that is not only transposed; may be left out
Convolutions are turned from out, in, h, w to h, w, in, out, linear layers from out, in to in, out. Every tensor of the file
is accounted for. Left out, and said: the head where it has another number of outputs, counters of batches. Where the file's
first convolution reads three channels and the network one, its three kernels are added up, which is the same for a grey
image in all three. Whatever else does not fit is a ConfigError.
"""
import contextlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import config, errors, find, log, optim

NORM = dict(weight='scale', bias='bias', running_mean='mean', running_var='var')
PLAIN = dict(weight='kernel', bias='bias')
FRESH = ('head', 'project')  # layers that may start at random
CONVERT = """python -c "import torch, safetensors.torch as s; s.save_file({{k: v.contiguous() for k, v in \
torch.load('{0}', map_location='cpu', weights_only=True).items()}}, '{1}')\""""


def is_file(path):
    """Whether `path` names a file of weights, and no folder of a trained stage. Raises ConfigError for a pickled one."""
    suffix = pathlib.Path(path).suffix
    if suffix in ('.pth', '.pt', '.bin'):
        raise errors.ConfigError(f'init.path = {path} is a pickle, which can run programs and is not read here. Convert it where '
                                 f'torch is installed: {CONVERT.format(path, pathlib.Path(path).with_suffix(".safetensors"))}')
    return suffix == '.safetensors'


def load(path, model, params, stats):
    """What a model starts from: {'params': tree, and the collections of `stats`}, in the shapes of params and stats.

    path: .safetensors of torchvision's names; model: its options, resolved; stats: {'batch_stats': tree}, or {}.
    """
    module, hp = config.options('models', model.to_dict(), 'model')
    inside = getattr(module, 'NESTED', ())
    if inside and not hasattr(module, 'torchvision'):
        key, = inside
        found = load(path, hp[key], params[key], {k: v[key] for k, v in stats.items() if key in v})
        return {k: {**v, key: found[k]} if k in found else v for k, v in {'params': params, **stats}.items()}
    if not hasattr(module, 'torchvision'):
        known = [name for name in find.names('models') if hasattr(find.module('models', name), 'torchvision')]
        raise errors.ConfigError(f'init.path = {path}: {model.name} is no network of torchvision\'s. Known: {", ".join(known)}.')
    for option, value in module.TORCHVISION.items():
        if hp[option] != value:
            raise errors.ConfigError(f'init.path = {path}: torchvision\'s {model.name} has {option} = {value!r}, this model '
                                     f'{hp[option]!r}. Set model.{option} to {value!r}.')

    ours = {f'{kind}/{optim.name(at)}': a for kind, tree in {'params': params, **stats}.items()
            for at, a in jax.tree_util.tree_leaves_with_path(tree)}
    layers, arrange = module.torchvision(hp), getattr(module, 'arrange', lambda layer, value: value)
    filled, spared, summed = {}, [], []
    with opened(path) as file:
        for name in file.keys():
            layer, _, leaf = name.rpartition('.')
            if leaf == 'num_batches_tracked':
                continue
            if layer not in layers:
                raise wrong(path, model, f'its tensor {name} is none of that network')
            at = layers[layer]
            kinds = NORM if f'params/{at}/scale' in ours else PLAIN
            kind = 'batch_stats' if leaf.startswith('running_') else 'params'
            target = f'{kind}/{at}/{kinds.get(leaf)}'
            value = read(file, path, name)
            value = turned(arrange(at, value)) if leaf == 'weight' else value
            if at.split('/')[0] in FRESH and (target not in ours or ours[target].shape != value.shape):
                spared.append(name)
                continue
            if target not in ours:
                raise wrong(path, model, f'its tensor {name} has no place in it')
            shape = ours[target].shape
            if value.ndim == 4 and (*value.shape[:2], 1, value.shape[3]) == shape and value.shape[2] == 3:
                value = value.sum(2, keepdims=True)
                summed.append(name)
            if value.shape != shape:
                raise wrong(path, model, f'its tensor {name} has the shape {value.shape} (in our order), the network {shape}')
            filled[target] = value
    missing = [name for name in ours if name not in filled]
    lost = [name for name in missing if name.split('/')[1] not in FRESH]
    if lost:
        raise wrong(path, model, f'it lacks {len(lost)} of the tensors that the network needs, such as that of {lost[0]}')
    log.say(f'init: {len(filled)} tensors of {path}.' + (
        f' Left out: {", ".join(spared)}.' if spared else '') + (
        f' Start fresh: {", ".join(n.partition("/")[2] for n in missing)}.' if missing else '') + (
        f' {summed[0]} was added up over its three channels, because the input has one.' if summed else ''))
    if not hp.mean:
        log.say('init: weights of torchvision expect inputs in [0,1] minus (0.485, 0.456, 0.406), over (0.229, 0.224, 0.225). '
                'Set mean and std of the model unless the data come so.')

    def leaf(kind):
        return lambda at, a: jnp.asarray(filled.get(f'{kind}/{optim.name(at)}', a), a.dtype)
    return {kind: jax.tree_util.tree_map_with_path(leaf(kind), tree) for kind, tree in {'params': params, **stats}.items()}


def opened(path):
    """The open file, its header read. Raises MissingInput, BadData."""
    import safetensors
    if not pathlib.Path(path).is_file():
        raise errors.MissingInput(f'init.path = {path}: there is no such file.')
    with reading(path):
        return safetensors.safe_open(path, 'numpy')


def read(file, path, name):
    """One tensor in float32. Raises BadData where it is not made of finite numbers."""
    with reading(path):
        value = file.get_tensor(name).astype(np.float32)
    if not np.isfinite(value).all():
        raise errors.BadData(f'init.path = {path} cannot be used: its tensor {name} is not finite.')
    return value


@contextlib.contextmanager
def reading(path):
    """Within, whatever the library raises ends as BadData."""
    try:
        yield
    except Exception as e:
        raise errors.BadData(f'init.path = {path} is damaged or of a kind that is not read ({type(e).__name__}: {e}). Copy or '
                             'convert it again, in float32.') from e


def turned(value):
    """A kernel in our order of axes: the last two are in and out."""
    return np.moveaxis(value, (1, 0), (-2, -1)) if value.ndim > 1 else value


def wrong(path, model, why):
    """The ConfigError for a file of another network."""
    options = ', '.join(f'{k}={v!r}' for k, v in sorted(model.to_dict().items()) if k in ('name', 'depth', 'blocks'))
    return errors.ConfigError(f'init.path = {path} is not for this model ({options}): {why}. Give the file of the same network, '
                              'with the names of its state_dict in torchvision.')
