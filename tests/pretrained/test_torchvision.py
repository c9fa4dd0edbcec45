"""Weights of torchvision: the same outputs as torchvision's (tests/reference/torchvision_numbers.py), and files that do
not fit.
"""
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

from jaxkd import config, errors, stages
from jaxkd.models import alexnet, densenet, resnet
from jaxkd.pretrained import import_weights
from tests.fixtures import disc
from tests.reference import torchvision_numbers as numbers

CLASSES = numbers.CLASSES
RESNET = dict(name='resnet', features=0, **resnet.TORCHVISION)
TINY = dict(name='densenet', blocks=(1, 1), growth=8, first=8)
MODELS = {
    'resnet18': RESNET,
    'resnet50': dict(RESNET, depth=50),
    'alexnet': dict(name='alexnet'),
    'densenet121': dict(name='densenet'),
    'densenet_small': dict(name='densenet', blocks=numbers.SMALL['block_config'], growth=numbers.SMALL['growth_rate'],
                           first=numbers.SMALL['num_init_features']),
}


def start(model, outputs=CLASSES, channels=3, side=64, name='image'):
    """(module, options, its variables as zeros)."""
    module, hp = config.options('models', model, 'model')
    net = module.build(hp, outputs)
    x = {name: jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)}
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
    return net, hp, {'params': variables.pop('params'), **variables}


def theirs(hp, variables):
    """{torchvision's name: tensor} of a model, with the shapes that torchvision's have, without torchvision."""
    module = config.options('models', hp.to_dict(), 'model')[0]
    found = {}
    for layer, at in module.torchvision(hp).items():
        if '.norm.' in layer or '.conv.' in layer:  # old spellings
            continue
        node, stats = variables['params'], variables.get('batch_stats', {})
        for part in at.split('/'):
            node, stats = node[part], stats.get(part, {})
        if 'kernel' in node:
            shape = node['kernel'].shape
            found[f'{layer}.weight'] = (shape[-1], shape[-2], *shape[:-2])
        else:
            found |= {f'{layer}.weight': node['scale'].shape, f'{layer}.running_mean': stats['mean'].shape,
                      f'{layer}.running_var': stats['var'].shape}
        if 'bias' in node:
            found[f'{layer}.bias'] = node['bias'].shape
    return {name: numbers.values(name, shape) for name, shape in found.items()}


def write(folder, tensors, name='weights.safetensors'):
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / name)
    return str(folder / name)


def load(path, hp, variables):
    rest = {k: v for k, v in variables.items() if k != 'params'}
    return import_weights.load(path, hp, variables['params'], rest)


@functools.partial(jax.jit, static_argnums=0, static_argnames='train')
def apply(net, variables, x, train=False):
    return net.apply(variables, {'image': x}, train=train, mutable=['batch_stats'])


def close(x, wanted, within):
    if np.ndim(x) == 4:
        x = np.transpose(x, (0, 3, 1, 2))
    found = numbers.sample(x)
    np.testing.assert_allclose(found, wanted, atol=within * max(1, wanted[1]), rtol=within)


@pytest.mark.parametrize('case', ['densenet_small', 'resnet18', 'alexnet',
                                  pytest.param('resnet50', marks=pytest.mark.slow),
                                  pytest.param('densenet121', marks=pytest.mark.slow)])
def test_outputs_are_those_of_torchvision(case, tmp_path):
    known = json.loads(numbers.FILE.read_text())[case]
    net, hp, zeros = start(MODELS[case])
    tensors = theirs(hp, zeros)
    variables = load(write(tmp_path, tensors), hp, zeros)
    x = np.transpose(numbers.picture(case, numbers.CASES[case][2]), (0, 2, 3, 1))
    for mode in ('eval', 'train') if 'train' in known else ('eval',):
        out, after = apply(net, variables, x, train=mode == 'train')
        assert len(known[mode]) >= 4
        for tap, wanted in known[mode].items():
            # torch itself: 4e-4 from float64
            close(out[tap], wanted, 1e-3 if mode == 'train' and case == 'resnet50' else 1e-4)
        if mode == 'eval':
            jax.tree.map(np.testing.assert_array_equal, after.get('batch_stats', {}), variables.get('batch_stats', {}))
    if 'means' in known:
        flat = {v: k for k, v in config.options('models', hp.to_dict(), 'model')[0].torchvision(hp).items()}
        for name, wanted in known['means'].items():
            at = next(ours for ours, layer in flat.items() if layer == name.rpartition('.')[0])
            close(functools.reduce(lambda node, part: node[part], at.split('/'), after['batch_stats'])['mean'], wanted,
                  1e-4)


@pytest.fixture(scope='module')
def tiny():
    net, hp, zeros = start(TINY)
    return net, hp, zeros, theirs(hp, zeros)


def test_every_tensor_lands_where_its_name_says(tiny, tmp_path, capsys):
    net, hp, zeros, tensors = tiny
    counters = {'features.norm0.num_batches_tracked': np.zeros((), np.int64)}
    found = load(write(tmp_path, tensors | counters), hp, zeros)
    params, stats = found['params'], found['batch_stats']
    np.testing.assert_array_equal(params['stem']['conv']['kernel'][2, 5, 1, 3],
                                  tensors['features.conv0.weight'][3, 1, 2, 5])
    np.testing.assert_array_equal(params['head']['linear']['kernel'], tensors['classifier.weight'].T)
    np.testing.assert_array_equal(params['halve1']['norm']['scale'], tensors['features.transition1.norm.weight'])
    np.testing.assert_array_equal(params['norm']['bias'], tensors['features.norm5.bias'])
    np.testing.assert_array_equal(stats['block2']['layer00']['norm2']['var'],
                                  tensors['features.denseblock2.denselayer1.norm2.running_var'])
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found))
    said = capsys.readouterr().out
    assert f'init: {len(tensors)} tensors of' in said and 'Start fresh' not in said
    assert 'Left out: 1 counters of batches.' in said
    assert '(0.485, 0.456, 0.406)' in said


def test_the_first_linear_layer_of_alexnet_reads_places_in_our_order():
    w = np.arange(2 * 8 * 36, dtype=np.float32).reshape(2, 8 * 36)
    picture = np.random.default_rng(0).standard_normal((6, 6, 8)).astype(np.float32)
    np.testing.assert_allclose(alexnet.arrange('params/hidden1/kernel', w) @ picture.ravel(),
                               w @ picture.transpose(2, 0, 1).ravel(), rtol=1e-4)
    np.testing.assert_array_equal(alexnet.arrange('params/hidden2/kernel', w), w)


def test_older_spellings_of_densenet(tiny, tmp_path):
    _, hp, zeros, tensors = tiny
    old = {k.replace('.norm1.', '.norm.1.').replace('.conv2.', '.conv.2.'): v for k, v in tensors.items()}
    assert old.keys() != tensors.keys()
    found = [load(write(tmp_path, t, f'{i}.safetensors'), hp, zeros) for i, t in enumerate((tensors, old))]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_a_head_for_another_number_of_classes_starts_fresh(tiny, tmp_path, capsys):
    _, _, _, tensors = tiny
    _, hp, ours = start(TINY, outputs=2)
    ours['params']['head']['linear']['bias'] += 7
    found = load(write(tmp_path, tensors), hp, ours)
    assert (found['params']['head']['linear']['bias'] == 7).all()
    assert found['params']['stem']['conv']['kernel'].any()
    said = capsys.readouterr().out
    assert ('Left out: classifier.bias, classifier.weight' in said
            and 'Start fresh: head/linear/bias, head/linear/kernel' in said)


def test_without_a_head_that_of_the_file_is_left_out(tiny, tmp_path):
    _, hp, zeros = start(TINY, outputs=0)
    assert 'head' not in load(write(tmp_path, tiny[3]), hp, zeros)['params']


def test_one_channel_answers_as_three_equal_ones(tiny, tmp_path, capsys):
    net, hp, zeros, tensors = tiny
    path = write(tmp_path, tensors)
    grey = np.random.default_rng(0).random((2, 33, 32, 1), np.float32)
    one = load(path, hp, start(TINY, channels=1)[2])
    assert 'features.conv0.weight was added up' in capsys.readouterr().out
    a = apply(net, one, grey)[0]['logits']
    three = load(path, hp, zeros)
    assert 'added up' not in capsys.readouterr().out
    np.testing.assert_allclose(a, apply(net, three, np.repeat(grey, 3, -1))[0]['logits'], atol=1e-5)


def test_grey_images_are_normalised_for_three_channels(tiny, tmp_path, capsys):
    net, hp, zeros, tensors = tiny
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    own, hp3, ours = start(dict(TINY, mean=mean, std=std), channels=1)
    variables = load(write(tmp_path, tensors), hp3, ours)
    assert '0.485' not in capsys.readouterr().out
    grey = np.random.default_rng(0).random((2, 32, 32, 1), np.float32)
    wanted = apply(net, variables, (np.repeat(grey, 3, -1) - np.float32(mean)) / np.float32(std))[0]['logits']
    np.testing.assert_allclose(apply(own, variables, grey)[0]['logits'], wanted, atol=1e-5)


def test_half_precision_is_read(tiny, tmp_path):
    _, hp, zeros, tensors = tiny
    found = load(write(tmp_path, {k: v.astype(jnp.bfloat16) for k, v in tensors.items()}), hp, zeros)
    kernel = found['params']['stem']['conv']['kernel']
    assert kernel.dtype == jnp.float32
    np.testing.assert_allclose(kernel[0, 0, 0, 0], tensors['features.conv0.weight'][0, 0, 0, 0], rtol=1e-2)


def test_a_network_inside_another_one(tiny, tmp_path):
    _, hp, zeros, tensors = tiny
    path = write(tmp_path, tensors)
    outer = ConfigDict(config.options('models', dict(name='probed', of=TINY, taps=('block1',)), 'model')[1])
    probe = {'kernel': np.full((16, 2), 3, np.float32)}
    found = import_weights.load(path, outer, {'of': zeros['params'], 'probe_block1': probe},
                                {'batch_stats': {'of': zeros['batch_stats']}})
    wanted = load(path, hp, zeros)
    jax.tree.map(np.testing.assert_array_equal, found['params']['of'], wanted['params'])
    jax.tree.map(np.testing.assert_array_equal, found['batch_stats']['of'], wanted['batch_stats'])
    assert found['params']['probe_block1'] is probe


def test_a_stage_starts_from_a_file(tiny, tmp_path):
    """Through the config: head fresh, the rest from the file; `only` takes a part; errors come before training."""
    tensors = tiny[3]
    path = write(tmp_path, tensors)
    run = disc.config()
    stage = dict(run['image_only'], model=TINY, method=dict(name='supervised'), evals=dict(classification={}), batch=8)
    data = dict(run['data'], source=dict(name='tests.fixtures.disc', cases=40))

    def initial(**init):
        conf = config.resolve(ConfigDict(dict(stages=('arm',), data=data, arm=dict(stage, init=init))))
        return stages.build(conf, 'arm', tmp_path / 'run').initial()

    state, fresh = initial(path=path), initial()
    student, none = state.params['student'], fresh.params['student']
    summed = tensors['features.conv0.weight'].transpose(2, 3, 1, 0).sum(2, keepdims=True)
    np.testing.assert_allclose(student['stem']['conv']['kernel'], summed, rtol=1e-6)
    np.testing.assert_array_equal(state.stats['student']['batch_stats']['norm']['mean'],
                                  tensors['features.norm5.running_mean'])
    jax.tree.map(np.testing.assert_array_equal, student['head'], none['head'])
    part = initial(path=path, only=('stem',)).params['student']
    np.testing.assert_array_equal(part['stem']['conv']['kernel'], student['stem']['conv']['kernel'])
    jax.tree.map(np.testing.assert_array_equal, part['block1'], none['block1'])
    other = config.resolve(ConfigDict(dict(stages=('arm',), data=data,
                                           arm=dict(stage, model=dict(TINY, growth=16), init=dict(path=path)))))
    with pytest.raises(errors.ConfigError, match=r'has the shape .* the network'):
        stages.build(other, 'arm', tmp_path / 'run').initial()
    write(tmp_path, {'conv1.weight': tensors['features.conv0.weight']})
    with pytest.raises(errors.ConfigError, match='the first is conv1.weight'):  # before any stage is trained
        stages.build(other, 'arm', tmp_path / 'run', dry=True)
    with pytest.raises(errors.MissingInput, match='no such file'):
        initial(path=str(tmp_path / 'none.safetensors'))
    with pytest.raises(errors.ConfigError, match='pickle'):
        initial(path='net.pth')


def test_files_of_other_networks_are_refused(tiny, tmp_path):
    _, hp, zeros, tensors = tiny
    kernel = 'features.conv0.weight'
    for change, says in [
            (lambda t: t | {f'module.{kernel}': t[kernel]},
             'the first is module.features.conv0.weight'),
            (lambda t: {k: v for k, v in t.items() if k != kernel}, r'lacks 1 .* params/stem/conv/kernel'),
            (lambda t: {k: v for k, v in t.items() if 'running' not in k}, 'lacks .* batch_stats/'),
            (lambda t: t | {kernel: t[kernel][:, :2]}, r'has the shape \(7, 7, 2, 8\)'),
            (lambda t: t | {'features.conv0.bias': np.zeros(8, np.float32)}, 'features.conv0.bias has no place'),
            (lambda t: t | {'features.conv0.scale': np.zeros(8, np.float32)},
             'the first is features.conv0.scale')]:
        with pytest.raises(errors.ConfigError, match=says):
            load(write(tmp_path, change(tensors)), hp, zeros)
    with pytest.raises(errors.ConfigError, match='alexnet.*of no layer of that network'):
        load(write(tmp_path, tensors), ConfigDict(dict(alexnet.DEFAULTS, name='alexnet')),
             start(dict(name='alexnet', width=0.1))[2])


def test_resnet18_does_not_fill_resnet34(tmp_path):
    hps = [config.options('models', dict(RESNET, depth=depth), 'model')[1] for depth in (18, 34)]
    zeros = [start(dict(RESNET, depth=depth))[2] for depth in (18, 34)]
    path = write(tmp_path, theirs(hps[0], zeros[0]))
    with pytest.raises(errors.ConfigError, match='depth=34.*lacks'):
        load(path, hps[1], zeros[1])


@pytest.mark.parametrize('model, says', [
    (dict(RESNET, weight_standardisation=True), 'Set model.weight_standardisation to False'),
    (dict(RESNET, norm='group'), "Set model.norm to 'batch'"), (dict(TINY, norm='layer'), "Set model.norm to 'batch'"),
    (dict(name='cnn'), 'Known: alexnet, .*resnet, vit')])
def test_models_that_are_none_of_torchvisions(model, says, tmp_path):
    hp = config.options('models', model, 'model')[1]
    with pytest.raises(errors.ConfigError, match=says):
        import_weights.load(write(tmp_path, {'a': np.zeros(1, np.float32)}), hp, {}, {})


@pytest.mark.parametrize('content, error, says', [
    (None, errors.MissingInput, 'no such file'), (b'abc', errors.BadData, 'damaged'),
    (b'\x10\0\0\0\0\0\0\0{"a":{"dtype":"F32"', errors.BadData, 'damaged')])
def test_damaged_files(tiny, tmp_path, content, error, says):
    path = tmp_path / 'w.safetensors'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=says):
        load(str(path), *tiny[1:3])


def test_a_cut_file_and_one_with_a_nan(tiny, tmp_path):
    _, hp, zeros, tensors = tiny
    path = write(tmp_path, tensors | {'classifier.bias': np.full(CLASSES, np.nan, np.float32)})
    with pytest.raises(errors.BadData, match='classifier.bias is not finite'):
        load(path, hp, zeros)
    whole = open(path, 'rb').read()
    open(path, 'wb').write(whole[:-100])
    with pytest.raises(errors.BadData, match='damaged'):
        load(path, hp, zeros)


def test_paths_of_files_and_of_stages():
    assert import_weights.is_file('a/net.safetensors') and not import_weights.is_file('runs/a/checkpoints/student')


def test_every_name_of_the_tables_is_a_layer():
    for model, kinds in ((resnet, (18, 34, 50)), (densenet, (None,)), (alexnet, (None,))):
        for depth in kinds:
            given = dict(resnet.TORCHVISION, features=0, depth=depth) if depth else {}
            given |= dict(name=model.__name__.rpartition('.')[2])
            _, hp, zeros = start(given)
            at = {name.rpartition('/')[0] for name in _names(zeros['params'])}
            assert set(model.torchvision(hp).values()) == at


def _names(tree, before=''):
    return [n for k, v in tree.items() for n in (_names(v, f'{before}{k}/') if isinstance(v, dict) else [before + k])]
