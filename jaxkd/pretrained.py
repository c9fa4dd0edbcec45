"""Initial weights made by other libraries: read from a local .safetensors file, or a folder that holds one.

A model whose network exists elsewhere says in its file how a file of it is read:
    imports(hp, tensors, about) -> facts, ours, spare
        hp       its options
        tensors  {name in the file: shape}, without what wrappers put before all names (PREFIXES)
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

A folder holds model.safetensors, config.json and preprocessor_config.json (Hugging Face), or the first two (timm). What these
say of the network and of the mean and std of its input is checked, for a file with such neighbours, too.
"""
import contextlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import config, errors, find, log, optim

FRESH = ('head', 'project')  # layers that may start at random
PREFIXES = ('module.', 'model.', 'backbone.', 'vit.', 'dinov2.', 'dinov2_with_registers.', 'bert.')
PICKLES = ('.pth', '.pt', '.bin')
CONVERT = """python -c "import torch, safetensors.torch as s; s.save_file({{k: v.contiguous().clone() for k, v in \
torch.load('{0}', map_location='cpu', weights_only=True).items()}}, '{1}')\""""
JOIN = """python -c "import glob, safetensors.numpy as s; s.save_file({{k: v for f in glob.glob('{0}/*-of-*.safetensors') \
for k, v in s.load_file(f).items()}}, '{0}/model.safetensors')\""""


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
    inside = getattr(module, 'NESTED', ())
    if inside and not hasattr(module, 'imports'):
        key, = inside
        found = load(path, hp[key], params[key], {k: v[key] for k, v in stats.items() if key in v})
        return {k: {**v, key: found[k]} if k in found else v for k, v in {'params': params, **stats}.items()}
    if not hasattr(module, 'imports'):
        known = [name for name in find.names('models') if hasattr(find.module('models', name), 'imports')]
        raise errors.ConfigError(f'init.path = {path}: no weights of other libraries are known for {model.name}. Known: '
                                 f'{", ".join(known)}.')
    targets = {f'{kind}/{optim.name(at)}': a for kind, tree in {'params': params, **stats}.items()
               for at, a in jax.tree_util.tree_leaves_with_path(tree)}
    about, normal = beside(path)
    with opened(path) as file:
        raw = stripped(file.keys(), path)
        facts, ours, spare = module.imports(hp, {k: tuple(file.get_slice(v).get_shape()) for k, v in raw.items()}, about)
        if normal and 'mean' in hp and tuple(hp.mean):
            facts = facts | normal
        check(path, model, hp, facts)
        counters = [k for k in raw if k.endswith('.num_batches_tracked')]
        for name in raw.keys() - set(spare) - set(counters) - {k for names in ours.values() for k in names}:
            raise wrong(path, model, f'its tensor {name} is none of that network')
        filled, said = {}, []
        for target, names in ours.items():
            value = joined([read(file, path, raw[k]) for k in names])
            value = module.arrange(target, value) if hasattr(module, 'arrange') else value
            value = np.moveaxis(value, (1, 0), (-2, -1)) if target.endswith('/kernel') else value
            value, how = fitted(module, target, value, targets[target].shape) if target in targets else (value, '')
            filled[target] = value
            said += [f'{names[0]} {how}'] if how else []
    bad = [k for k, v in filled.items() if k not in targets or v.shape != targets[k].shape]
    for target in bad:
        if not fresh(target):
            raise wrong(path, model, f'its tensor {ours[target][0]} ' + (
                f'has the shape {filled[target].shape} (in our order), the network {targets[target].shape}' if target in targets
                else 'has no place in it'))
    halves = {k.rpartition('/')[0] for k in bad} | {k.rpartition('/')[0] for k in targets if k not in filled}
    dropped = [k for k in filled if fresh(k) and k.rpartition('/')[0] in halves]  # a layer is taken whole or not at all
    filled = {k: v for k, v in filled.items() if k not in dropped}
    missing = [k for k in targets if k not in filled]
    lost = [k for k in missing if not fresh(k)]
    if lost:
        raise wrong(path, model, f'it lacks {len(lost)} of the tensors that the network needs, such as that of {lost[0]}')

    left = sorted({*(k for t in dropped for k in ours[t]), *(k for k in spare if k in raw)})
    left += [f'{len(counters)} counters of batches'] if counters else []
    log.say(f'init: {sum(len(ours[k]) for k in filled)} tensors of {path}.' + (
        f' Left out: {", ".join(left)}.' if left else '') + (
        f' Start fresh: {", ".join(k.partition("/")[2] for k in missing)}.' if missing else '') + ''.join(f' {s}.' for s in said))
    if 'mean' in hp and tuple(hp.mean) == module.DEFAULTS['mean'] and not ('mean' in facts and tuple(hp.mean)):
        mean, std = normal.values() if normal else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        log.say(f'init: such weights expect inputs in [0,1] minus {mean}, over {std}' + ('' if normal else ' (most of them; some '
                'vision transformers 0.5 and 0.5)') + '. Set mean and std of the model unless the data come so.')

    def leaf(kind):
        return lambda at, a: jnp.asarray(filled.get(f'{kind}/{optim.name(at)}', a), a.dtype)
    return {kind: jax.tree_util.tree_map_with_path(leaf(kind), tree) for kind, tree in {'params': params, **stats}.items()}


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


def told(about, keys, facts):
    """facts, and those of config.json: keys {option: its key there}. Raises ConfigError where the two contradict each other."""
    for option, key in keys.items():
        if key in about and not same(facts.setdefault(option, about[key]), about[key]):
            raise errors.ConfigError(f'init.path: config.json says {key} = {about[key]}, the tensors beside it {facts[option]}. '
                                     'They belong to different networks.')
    return facts


def check(path, model, hp, facts):
    """Raise ConfigError unless hp has the values of facts."""
    other = {k: v for k, v in facts.items() if not same(hp[k], v)}
    if other:
        raise errors.ConfigError(f'init.path = {path} is {model.name} of other options. Set ' + ', '.join(
            f'model.{k} to {v!r} (it is {hp[k]!r})' for k, v in other.items()) + ', or give another file.')


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
    """(value in `shape` where that can be done, what was done)."""
    if value.shape == shape:
        return value, ''
    if value.ndim == 4 and (*value.shape[:2], 1, value.shape[3]) == shape and value.shape[2] == 3:
        return value.sum(2, keepdims=True), 'was added up over its three channels, because the input has one'
    if hasattr(module, 'adapt') and value.ndim == len(shape):
        new = np.asarray(module.adapt(target.partition('/')[2], value, shape))
        return new, f'was made to fit: {value.shape} to {shape}' if new.shape == shape else ''
    return value, ''


def located(path):
    """The .safetensors file that `path` names. Raises MissingInput, ConfigError for a folder with several."""
    path = pathlib.Path(path)
    if path.is_dir():
        held = sorted(path.glob('*.safetensors'))
        if len(held) > 1 and path / 'model.safetensors' not in held:
            raise errors.ConfigError(f'init.path = {path} holds {len(held)} files of weights. Name one, or make one of the parts: '
                                     f'{JOIN.format(path)}')
        path = path / 'model.safetensors' if path / 'model.safetensors' in held else held[0]
    if not path.is_file():
        raise errors.MissingInput(f'init.path = {path}: there is no such file.')
    return path


def opened(path):
    """The open file, its header read. Raises MissingInput, BadData."""
    import safetensors
    path = located(path)
    with reading(path):
        return safetensors.safe_open(path, 'numpy')


def beside(path):
    """(config.json beside the weights or {}, {'mean', 'std'} of the input or {}). Raises BadData for one that is no JSON object."""
    folder, found = located(path).parent, []
    for name in ('config.json', 'preprocessor_config.json'):
        file = folder / name
        try:
            content = json.loads(file.read_text()) if file.is_file() else {}
        except (ValueError, OSError) as e:
            raise errors.BadData(f'{file} cannot be read as JSON ({e}). Copy it again, or remove it.') from e
        if not isinstance(content, dict):
            raise errors.BadData(f'{file} is no JSON object. Copy it again, or remove it.')
        found.append(content)
    about, images = found
    timm = about['pretrained_cfg'] if isinstance(about.get('pretrained_cfg'), dict) else {}
    mean, std = images.get('image_mean', timm.get('mean')), images.get('image_std', timm.get('std'))
    return about, {'mean': tuple(mean), 'std': tuple(std)} if mean and std else {}


def stripped(names, path):
    """{name without PREFIXES: name}. Raises ConfigError where two become one."""
    found = {}
    for name in names:
        short = name
        while prefix := next((p for p in PREFIXES if short.startswith(p)), ''):
            short = short.removeprefix(prefix)
        if found.setdefault(short, name) != name:
            raise errors.ConfigError(f'init.path = {path} holds two networks: {name} and {found[short]}. Keep one of them.')
    return found


def read(file, path, name):
    """One tensor in float32. Raises BadData where it is not made of finite numbers."""
    with reading(path):
        value = file.get_tensor(name)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise errors.BadData(f'init.path = {path} cannot be used: its tensor {name} is {value.dtype}, no floating-point numbers.')
    value = value.astype(np.float32)
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


def wrong(path, model, why):
    """The ConfigError for a file of another network."""
    options = ', '.join(f'{k}={v!r}' for k, v in sorted(model.to_dict().items()) if k in ('name', 'depth', 'blocks', 'size'))
    return errors.ConfigError(f'init.path = {path} is not for this model ({options}): {why}. Give the file of the same network, '
                              'with the names of its state_dict.')
