"""Initial weights made by other libraries, from a local .safetensors file or a folder that holds one (jaxkd.pretrained.safetensors_file).

A model whose network exists elsewhere says in its file how a file of it is read:
    imports(hp, tensors, about) -> facts, ours, spare
        hp       its options
        tensors  {name in the file: shape}, without what wrappers put before all names
        about    the config.json beside the file, {} where there is none
        facts    {option: value} with which our network is the file's: another value in hp is an error that names both
        ours     {our path, 'params/patch/kernel': [names of the tensors it is made of, joined along their first axis]}, see `named`
        spare    names that are known and of no use here
    arrange(path, value) -> value   how a tensor is ordered that is not only transposed; may be left out
    adapt(name, value, shape) -> value   a tensor of another shape made to fit, as for stages; may be left out
Convolutions are turned from out, in, h, w to h, w, in, out, linear layers from out, in to in, out (every path that ends in
kernel). Half precision becomes float32.

Every tensor of the file is accounted for, and said: loaded; made to fit; left out (spare ones, counters of batches, a head of
another size). Every tensor of the network has one, but the layers FRESH may start at random, and that is said. Where the file's
first convolution reads three channels and the network one, its three kernels are added up, which is the same for a grey
image in all three. Whatever else does not fit is a ConfigError before training.

What a config.json beside the file says of the network, and it or a preprocessor_config.json of the mean and std of its input, is
checked against the options.
"""
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import config, errors
from jaxkd.config import plugins
from jaxkd.pretrained import safetensors_file
from jaxkd.runtime import log, trees

FRESH = ('head', 'project')  # layers that may start at random
PICKLES = ('.pth', '.pt', '.bin')
CONVERT = """python -c "import torch, safetensors.torch as s; s.save_file({{k: v.contiguous().clone() for k, v in \
torch.load('{0}', map_location='cpu', weights_only=True).items()}}, '{1}')\""""


def is_file(path):
    """Whether `path` names weights of another library, and no folder of a trained stage. Raises ConfigError for a pickle."""
    path = pathlib.Path(path)
    held = [p for p in sorted(path.iterdir()) if p.suffix in PICKLES] if path.is_dir() else []
    if path.is_dir() and any(path.glob('*.safetensors')):
        return True
    for pickle in [path] if path.suffix in PICKLES else held:
        raise errors.ConfigError(f'init.path = {path}: {pickle.name} is a pickle, which can run programs and is not read here. '
                                 f'Convert it where torch is installed: {CONVERT.format(pickle, pickle.with_suffix(".safetensors"))}')
    return path.suffix == '.safetensors'


def load(path, model, params, stats):
    """What a model starts from: {'params': tree, and the collections of `stats`}, in the shapes of params and stats.

    path: .safetensors file or a folder with one; model: its options, resolved; stats: {'batch_stats': tree}, or {}. Raises
    ConfigError for weights of another network, BadData for a damaged file, MissingInput for none.
    """
    module, hp = config.options('models', model.to_dict(), 'model')
    if key := nested(module):
        found = load(path, hp[key], params[key], {k: v[key] for k, v in stats.items() if key in v})
        return {k: {**v, key: found[k]} if k in found else v for k, v in {'params': params, **stats}.items()}
    raw, ours, left = examine(path, model)
    targets = {f'{kind}/{trees.leaf_name(at)}': a for kind, tree in {'params': params, **stats}.items()
               for at, a in jax.tree_util.tree_leaves_with_path(tree)}
    filled, said = {}, []
    with safetensors_file.opened(path) as file:
        for target, names in ours.items():
            value = joined([safetensors_file.read(file, path, raw[k]) for k in names])
            value = module.arrange(target, value) if hasattr(module, 'arrange') else value
            value = np.moveaxis(value, (1, 0), (-2, -1)) if target.endswith('/kernel') else value
            shape = targets[target].shape if target in targets else None
            filled[target], how = fitted(module, target, value, shape)
            said += [f' {names[0]} {how}.'] if how else []
            if filled[target].shape != shape and not fresh(target):
                raise other_network_error(path, model, f'its tensor {names[0]} ' + ('has no place in it' if shape is None else
                            f'has the shape {value.shape} (in our order), the network {shape}'))
    unfit = {k.rpartition('/')[0] for k, a in targets.items() if k not in filled or filled[k].shape != a.shape}
    dropped = [k for k in filled if fresh(k) and (k not in targets or k.rpartition('/')[0] in unfit)]  # layers are taken whole
    left = sorted(k for t in dropped for k in ours[t]) + left
    missing = [k for k in targets if k not in filled or k in dropped]
    lost = [k for k in missing if not fresh(k)]
    if lost:
        raise other_network_error(path, model, f'it lacks {len(lost)} of the tensors that the network needs, such as that of {lost[0]}')
    log.info(f'init: {sum(len(ours[k]) for k in filled if k not in dropped)} tensors of {path}.' + (
        f' Left out: {", ".join(left)}.' if left else '') + (
        f' Start fresh: {", ".join(k.partition("/")[2] for k in missing)}.' if missing else '') + ''.join(said))
    normal = safetensors_file.beside(path)[1]
    if 'mean' in hp and tuple(hp.mean) == module.DEFAULTS['mean'] and not (normal and hp.mean):
        mean, std = normal.values() if normal else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        log.info(f'init: such weights expect inputs in [0,1] minus {mean}, over {std}' + ('' if normal else ' (most of them; some '
                'vision transformers 0.5 and 0.5)') + '. Set mean and std of the model unless the data come so.')

    def leaf(kind):
        def value(at, a):
            name = f'{kind}/{trees.leaf_name(at)}'
            return jnp.asarray(a if name in missing else filled[name], a.dtype)
        return value
    return {kind: jax.tree_util.tree_map_with_path(leaf(kind), tree) for kind, tree in {'params': params, **stats}.items()}


def examine(path, model):
    """What can be told of a file before anything is trained: by the names and shapes in it, and by its neighbours.

    Returns ({name: name in the file}, `ours` of the model's `imports`, the names of what is left out). Raises as `load`.
    """
    module, hp = config.options('models', model.to_dict(), 'model')
    if key := nested(module):
        return examine(path, hp[key])
    if not hasattr(module, 'imports'):
        known = [name for name in plugins.names('models') if hasattr(plugins.load('models', name), 'imports')]
        raise errors.ConfigError(f'init.path = {path}: no weights of other libraries are known for {model.name}. Known: '
                                 f'{", ".join(known)}.')
    module.build(hp, 0)  # raises for options that do not exist
    about, normal = safetensors_file.beside(path)
    with safetensors_file.opened(path) as file:
        raw = safetensors_file.stripped(file.keys(), path)
        shapes = {k: tuple(file.get_slice(v).get_shape()) for k, v in raw.items()}
    facts, ours, spare = module.imports(hp, shapes, about)
    facts = {**facts, **normal} if 'mean' in hp and tuple(hp.mean) else facts
    other = {k: v for k, v in facts.items() if not same(hp[k], v)}
    if other:
        raise errors.ConfigError(f'init.path = {path} is {model.name} of other options. Set ' + ', '.join(
            f'model.{k} to {v!r} (it is {hp[k]!r})' for k, v in other.items()) + ', or give another file.')
    counters = [k for k in raw if k.endswith('.num_batches_tracked')]
    unknown = raw.keys() - {*spare, *counters} - {k for names in ours.values() for k in names}
    if unknown:
        raise other_network_error(path, model, f'its tensor {min(unknown)} is none of that network')
    return raw, ours, sorted(k for k in spare if k in raw) + ([f'{len(counters)} counters of batches'] if counters else [])


def nested(module):
    """The option of a model that holds the network inside, where the weights are for that; or ''."""
    return '' if hasattr(module, 'imports') else next(iter(getattr(module, 'NESTED', ())), '')


def named(table, tensors):
    """`ours` of {their name of a layer, or of a tensor: our path}: of each layer what the file has of it, in the table's order.

    A layer's weight is our kernel, or scale where it has one axis; running_mean and running_var are batch_stats. Several names
    of one path are joined, as queries, keys and values are.
    """
    ours = {}
    for theirs, at in table.items():
        kernel = len(tensors.get(f'{theirs}.weight', ())) > 1
        for name, path in {theirs: f'params/{at}', f'{theirs}.weight': f'params/{at}/{"kernel" if kernel else "scale"}',
                           f'{theirs}.bias': f'params/{at}/bias', f'{theirs}.running_mean': f'batch_stats/{at}/mean',
                           f'{theirs}.running_var': f'batch_stats/{at}/var'}.items():
            if name in tensors:
                ours.setdefault(path, []).append(name)
    return ours


def joined(values):
    """Tensors one below the other; of those that cannot be joined the first, whose shape will be told to be wrong."""
    return np.concatenate(values) if len({v.shape[1:] for v in values}) == 1 and values[0].ndim else values[0]


def check_config_json(about, keys, facts):
    """facts, and those of config.json: keys {option: its key there}. Raises ConfigError where the two contradict each other."""
    for option, key in keys.items():
        if key in about and not same(facts.setdefault(option, about[key]), about[key]):
            raise errors.ConfigError(f'init.path: config.json says {key} = {about[key]}, the tensors beside it {facts[option]}. '
                                     'They belong to different networks.')
    return facts


def same(a, b):
    """Whether two values of an option mean the same: one mean for all channels is three equal ones."""
    try:
        return bool(np.size(a) in (1, np.size(b)) and np.allclose(a, b, rtol=1e-5, atol=0))
    except TypeError:
        return a == b


def fresh(target):
    """Whether a path is of a layer that may start at random."""
    return target.split('/')[1] in FRESH


def fitted(module, target, value, shape):
    """(value in `shape` where that can be done, what was done). shape: None where there is no place for it."""
    if shape is None or value.shape == shape:
        return value, ''
    if value.ndim == 4 and (*value.shape[:2], 1, value.shape[3]) == shape and value.shape[2] == 3:
        return value.sum(2, keepdims=True), 'was added up over its three channels, because the input has one'
    if hasattr(module, 'adapt') and value.ndim == len(shape):
        new = np.asarray(module.adapt(target.partition('/')[2], value, shape))
        return new, f'was made to fit: {value.shape} to {shape}' if new.shape == shape else ''
    return value, ''


def other_network_error(path, model, why):
    """The ConfigError for a file of another network."""
    options = ', '.join(f'{k}={v!r}' for k, v in sorted(model.to_dict().items()) if k in ('name', 'depth', 'blocks', 'size'))
    return errors.ConfigError(f'init.path = {path} is not for this model ({options}): {why}. Give the file of the same network, '
                              'with the names of its state_dict.')
