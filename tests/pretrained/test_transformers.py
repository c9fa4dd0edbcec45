"""Weights of vision transformers of other libraries: the same outputs (tests/reference/transformer_numbers.py), and
files that do not fit.
"""
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxkd import config, errors
from jaxkd.models import vit
from jaxkd.pretrained import import_weights
from tests.reference import torchvision_numbers
from tests.reference import transformer_numbers as numbers

KNOWN = json.loads(numbers.FILE.read_text())
PLAIN = dict(name='vit', width=32, depth=2, heads=4, patch=8, channels=3, mean=(0.0,), std=(1.0,))
MODELS = {  # case: options, side of the image
    'hf_vit': (dict(PLAIN, mlp=3, eps=1e-12), 32),
    'hf_dino': (dict(PLAIN, eps=0.05), 32),  # a large one: that of every norm counts
    'hf_dinov2': (dict(PLAIN, depth=3, patch=14, layer_scale=1.0), 56),
    'hf_dinov2_classes': (dict(PLAIN, patch=14, layer_scale=1.0), 28),
    'hf_dinov2_registers': (dict(PLAIN, layer_scale=1.0, registers=4), 32),
    'timm_vit': (PLAIN, 32),
    'timm_dinov2': (dict(PLAIN, layer_scale=1e-5), 32),
    'timm_dinov2_registers': (dict(PLAIN, layer_scale=1e-5, registers=4), 32),
    'timm_vit_mean': (dict(PLAIN, pool='mean'), 32),
}
RESIZED = {  # of another image size than that of the file
    'hf_vit_smaller': (dict(PLAIN, eps=1e-12), 32), 'hf_vit_larger': (dict(PLAIN, eps=1e-12), 56),
    'hf_dinov2_smaller': (dict(PLAIN, layer_scale=1.0), 32), 'hf_dinov2_larger': (dict(PLAIN, layer_scale=1.0), 56),
    'hf_dinov2_registers_smaller': (dict(PLAIN, layer_scale=1.0, registers=4), 32),
    'hf_dinov2_registers_larger': (dict(PLAIN, layer_scale=1.0, registers=4), 56),
    'timm_vit_smaller': (PLAIN, 32), 'timm_vit_larger': (PLAIN, 56),
    'timm_dinov2_registers_smaller': (dict(PLAIN, layer_scale=1e-5, registers=4), 32),
}
MODELS |= RESIZED


@functools.cache
def start(case, side=0, outputs=numbers.CLASSES, **other):
    """(module, options, its parameters as sevens) of the network of a case, with other options."""
    module, hp = config.options('models', {**MODELS[case][0], **other}, 'model')
    net = module.build(hp, outputs)
    side = side or MODELS[case][1]
    x = {'image': jax.ShapeDtypeStruct((1, side, side, hp.channels), jnp.float32)}
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)['params']
    return net, hp, jax.tree.map(lambda a: np.full(a.shape, 7, a.dtype), shapes)


def write(folder, case, change=lambda tensors: tensors, about=None):
    """The case's file, and its config.json where the library writes one."""
    made = change(numbers.tensors(KNOWN[case]['tensors']))
    safetensors.numpy.save_file({k: np.asarray(v, order='C') for k, v in made.items()}, folder / 'model.safetensors')
    about = KNOWN[case]['about'] if about is None else about
    if about:
        (folder / 'config.json').write_text(json.dumps(about))
    return str(folder)


def load(path, case, **other):
    _, hp, params = start(case, **other)
    return import_weights.load(path, hp, params, {})['params']


@pytest.mark.parametrize('case', MODELS)
def test_outputs_are_those_of_the_library(case, tmp_path, capsys):
    params = load(write(tmp_path, case), case)
    said = re.sub(r'\S+ was made to fit', '', capsys.readouterr().out)
    loaded = len(KNOWN[case]['tensors']) - len([k for k in KNOWN[case]['tensors'] if k.removeprefix('dinov2.') in said])
    assert f'init: {loaded} tensors of' in said and loaded > 20  # all that is not named is loaded
    image = np.transpose(numbers.inputs(case)['pixel_values'], (0, 2, 3, 1)).astype(np.float32)
    apply = jax.jit(lambda p, x: start(case)[0].apply({'params': p}, {'image': x}, capture=('attention',)))
    out, wanted = apply(params, image), KNOWN[case]['out']
    if case == 'hf_dinov2_classes':  # its head reads CLS and the mean of the patches
        assert ('Left out: classifier.bias, classifier.weight, embeddings.mask_token' in said
                and 'Start fresh: head/linear/bias' in said)
        assert (params['head']['linear']['bias'] == 7).all()
        wanted = {k: v for k, v in wanted.items() if k != 'logits'}
    assert ('logits' in wanted) == (case in ('hf_vit', 'timm_vit', 'timm_vit_mean'))
    assert ('attention' in wanted) == case.startswith('hf')
    if case in RESIZED:
        library = 'timm' if case.startswith('timm') else 'Hugging Face'
        aliased = library == 'Hugging Face' and 'registers' not in case
        assert f'resized as by {library}, bicubically with{"out" * aliased} antialiasing' in said
    if case == 'timm_vit_mean':  # timm then has no norm of its tokens
        np.testing.assert_allclose(torchvision_numbers.sample(out['logits']), wanted['logits'], atol=1e-5)
        return
    for name, values in wanted.items():
        within = 1e-5 if case in RESIZED else 1e-4
        np.testing.assert_allclose(torchvision_numbers.sample(out[name]), values, atol=within)
    np.testing.assert_allclose(out['pooled'], out['tokens_out'][:, 0], atol=1e-5)


@pytest.mark.parametrize('case', ['dinov2_smaller', 'dinov2_larger'])
def test_positions_of_the_authors_of_dinov2(case):
    table = numbers.tensors(KNOWN[case]['tensors'])['pos_embed'][0]
    shape = (1 + numbers.CASES[case][2] ** 2, table.shape[1])
    names = ('pos_embed', 'mask_token', 'blocks.0.ls1.gamma')
    values = KNOWN[case]['out']['positions']
    np.testing.assert_allclose(torchvision_numbers.sample(vit.adapt('positions', table, shape, names)), values,
                               atol=1e-6)
    for other in ((), ('embeddings.position_embeddings',), ('pos_embed',), ('decoder_embed.bias',)):
        found = vit.adapt('positions', table, shape, other)
        assert np.abs(torchvision_numbers.sample(found) - np.array(values)).max() > 1e-4


def test_an_aliased_resize_to_the_same_side_changes_nothing():
    table = np.random.default_rng(0).standard_normal((26, 3)).astype(np.float32)
    np.testing.assert_allclose(vit.resize_positions_aliased(table, 5, 5), table, atol=1e-7)
    np.testing.assert_allclose(vit.resize_positions_aliased(np.ones_like(table), 5, 9), 1, atol=1e-6)


def older(name):
    """The names that transformers 5 has in memory, of those that it writes."""
    for written, held in (('attention.attention.query', 'attention.q_proj'),
                          ('attention.attention.key', 'attention.k_proj'),
                          ('attention.attention.value', 'attention.v_proj'),
                          ('attention.output.dense', 'attention.o_proj'),
                          ('intermediate.dense', 'mlp.fc1'), ('.output.dense', '.mlp.fc2'),
                          ('encoder.layer.', 'layers.')):
        name = name.replace(written, held)
    return name


@pytest.mark.parametrize('case, change', [
    ('hf_vit', lambda t: {older(k): v for k, v in t.items()}),
    ('hf_vit', lambda t: {f'module.{k}': v for k, v in t.items()}),
    ('hf_dino', lambda t: {f'backbone.{k}': v for k, v in t.items()}),
    ('timm_dinov2', lambda t: t | {'mask_token': np.zeros((1, 32), np.float32)}),
    ('timm_dinov2_registers', lambda t: {k.replace('reg_token', 'register_tokens'): v for k, v in t.items()}
     | {'pos_embed': np.pad(t['pos_embed'], ((0, 0), (1, 0), (0, 0)))})])
def test_other_spellings_of_the_same_weights(case, change, tmp_path):
    plain = load(write(tmp_path, case), case)
    assert set(change(numbers.tensors(KNOWN[case]['tensors']))) != set(KNOWN[case]['tensors'])
    jax.tree.map(np.testing.assert_array_equal, load(write(tmp_path, case, change), case), plain)


def test_positions_of_another_image_size_are_resized_and_it_is_said(tmp_path, capsys):
    plain = load(write(tmp_path, 'hf_dino'), 'hf_dino')
    params = load(write(tmp_path, 'hf_dino'), 'hf_dino', side=48)
    assert 'embeddings.position_embeddings was made to fit: (17, 32) to (37, 32)' in capsys.readouterr().out
    np.testing.assert_array_equal(params['positions'][0], plain['positions'][0])
    np.testing.assert_allclose(params['positions'][1:].mean(0), plain['positions'][1:].mean(0), atol=0.02)
    np.testing.assert_array_equal(params['cls'], plain['cls'])


def test_half_precision_is_read(tmp_path):
    plain = load(write(tmp_path, 'timm_vit'), 'timm_vit')
    for dtype, within in ((np.float16, 1e-3), (jnp.bfloat16, 1e-2)):
        params = load(write(tmp_path, 'timm_vit', lambda t, d=dtype: {k: v.astype(d) for k, v in t.items()}),
                      'timm_vit')
        assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype('float32')}
        jax.tree.map(lambda a, b, w=within: np.testing.assert_allclose(a, b, atol=w, rtol=w), params, plain)


def test_what_lies_beside_the_file_is_checked(tmp_path, capsys):
    about, case = KNOWN['hf_dino']['about'], 'hf_dino'
    path = write(tmp_path, case)
    with pytest.raises(errors.ConfigError, match=r'Set model.heads to 4 \(it is 8\)'):
        load(path, case, heads=8)
    with pytest.raises(errors.ConfigError, match=r'Set model.eps to 0.05 \(it is 1e-12\)'):
        load(f'{path}/model.safetensors', case, eps=1e-12)
    for change, says in ((dict(patch_size=16), 'patch_size = 16, the tensors beside it 8'),
                         (dict(hidden_act='gelu_new'), 'GELU')):
        with pytest.raises(errors.ConfigError, match=says):
            load(write(tmp_path, case, about=about | change), case)
    write(tmp_path, case)
    file = tmp_path / 'preprocessor_config.json'
    file.write_text(json.dumps(dict(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.2, 0.2])))
    with pytest.raises(errors.ConfigError,
                       match=r'Set model.mean to \(0.4, 0.5, 0.6\).* model.std to \(0.2, 0.2, 0.2\)'):
        load(path, case)
    load(path, case, mean=(0.4, 0.5, 0.6), std=(0.2,))  # one for all is three equal ones
    for content in ('{', '[]'):
        file.write_text(content)
        with pytest.raises(errors.BadData, match='preprocessor_config.json'):
            load(path, case)


def test_normalisation_of_timm_is_in_its_config(tmp_path, capsys):
    about = dict(architecture='vit', pretrained_cfg=dict(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]))
    path = write(tmp_path, 'timm_vit', about=about)
    with pytest.raises(errors.ConfigError, match='Set model.mean to'):
        load(path, 'timm_vit')
    load(path, 'timm_vit', mean=(0.5,), std=(0.5,))
    assert 'such weights expect' not in capsys.readouterr().out
    (tmp_path / 'config.json').unlink()
    load(path, 'timm_vit', mean=(0.5,), std=(0.25,))  # the default of the network: nobody chose it
    assert 'such weights expect inputs in [0,1] minus (0.485, 0.456, 0.406)' in capsys.readouterr().out


@pytest.mark.parametrize('other, says', [
    (dict(width=64), 'model.width to 32'), (dict(depth=3), 'model.depth to 2'), (dict(patch=16), 'model.patch to 8'),
    (dict(channels=1), 'model.channels to 3'), (dict(mlp=2), 'model.mlp to 4'),
    (dict(registers=2), 'model.registers to 4'),
    (dict(layer_scale=0.0), 'model.layer_scale to 1.0'),
    (dict(depth=3, heads=8), 'model.depth to 2 .*model.heads to 4')])
def test_another_network_is_told_by_the_options_to_set(other, says, tmp_path):
    with pytest.raises(errors.ConfigError, match=says):
        load(write(tmp_path, 'hf_dinov2_registers'), 'hf_dinov2_registers', **other)


def test_published_sizes_have_their_heads(tmp_path):
    shapes = {k: [n * 6 for n in s] if len(s) < 3 else [*s[:-1], 192] for k, s in KNOWN['timm_vit']['tensors'].items()}
    shapes |= {'patch_embed.proj.weight': [192, 3, 8, 8], 'head.weight': [5, 192], 'head.bias': [5]}
    made = {k: v for k, v in shapes.items() if '.1.' not in k}
    made |= {k.replace('.0.', f'.{i}.'): v for i in range(12) for k, v in shapes.items() if '.0.' in k}
    path = tmp_path / 'model.safetensors'
    safetensors.numpy.save_file(numbers.tensors(made), path)
    load(str(path), 'timm_vit', width=0, depth=0, heads=0)
    with pytest.raises(errors.ConfigError, match=r'Set model.heads to 3 \(it is 4\)'):
        load(str(path), 'timm_vit', width=192, depth=12)


@pytest.mark.parametrize('case, change, error, says', [
    ('timm_vit', lambda t: {'conv1.weight': t['patch_embed.proj.weight']}, errors.ConfigError,
     'the first is conv1.weight'),
    ('timm_vit', lambda t: t | {'norm_pre.weight': t['norm.weight']}, errors.ConfigError,
     'norm_pre.weight'),
    ('timm_vit_mean', lambda t: t | {'dist_token': t['cls_token']}, errors.ConfigError, 'the first is dist_token'),
    ('timm_vit', lambda t: {k: v for k, v in t.items() if k != 'cls_token'}, errors.ConfigError,
     'lacks 1 .*params/cls'),
    ('timm_vit', lambda t: {k: v for k, v in t.items() if k != 'blocks.1.attn.qkv.bias'}, errors.ConfigError,
     'lacks 1 .*qkv/bias'),
    ('hf_dino', lambda t: {k: v for k, v in t.items() if 'layer.1.attention.attention.key.w' not in k},
     errors.ConfigError,
     r'query.weight has the shape \(32, 64\) .*the network \(32, 96\)'),
    ('hf_dino', lambda t: t | {'encoder.layer.0.attention.attention.key.weight': np.zeros((32, 16), np.float32)},
     errors.ConfigError,
     'query.weight has the shape'),
    ('timm_vit', lambda t: t | {'pos_embed': t['pos_embed'][:, :12]}, errors.ConfigError,
     r'pos_embed has the shape \(12, 32\)'),
    ('timm_vit', lambda t: t | {'cls_token': np.array(1, np.float32)}, errors.ConfigError,
     r'cls_token has the shape \(\)'),
    ('timm_vit', lambda t: t | {'patch_embed.proj.weight': np.zeros((32, 192), np.float32)}, errors.ConfigError,
     'patch_embed.proj.weight has'),
    ('timm_vit', lambda t: t | {'blocks.0.mlp.fc2.weight': np.zeros((32, 64), np.float32)}, errors.ConfigError,
     'SwiGLU'),
    ('hf_dinov2', lambda t: t | {'encoder.layer.0.mlp.weights_in.weight': np.zeros((8, 32), np.float32)},
     errors.ConfigError, 'SwiGLU'),
    ('timm_vit', lambda t: t | {'vit.cls_token': t['cls_token']}, errors.ConfigError,
     'the first is vit.cls_token'),
    ('timm_vit', lambda t: {f'{p}.{k}': v for k, v in t.items() for p in ('student.net', 'teacher.net')},
     errors.ConfigError, 'two networks, below "(student|teacher).net." and'),
    ('timm_vit', lambda t: t | {'norm.bias': np.full(32, np.inf, np.float32)}, errors.BadData,
     'norm.bias is not finite'),
    ('timm_vit', lambda t: t | {'norm.bias': np.zeros(32, np.int8)}, errors.BadData, 'norm.bias is int8')])
def test_files_that_are_refused(case, change, error, says, tmp_path):
    with pytest.raises(error, match=says):
        load(write(tmp_path, case, change), case)


def test_folders(tmp_path):
    case, made = 'timm_vit', tmp_path / 'made'
    made.mkdir()
    assert not import_weights.is_file(made)
    write(made, case)
    (made / 'pytorch_model.bin').write_bytes(b'PK')  # older folders hold both
    assert import_weights.is_file(made) and import_weights.is_file(made / 'model.safetensors')
    plain = load(str(made), case)
    whole = (made / 'model.safetensors').read_bytes()
    (made / 'model.safetensors').rename(made / 'pytorch_model.safetensors')  # as the command that converts it names it
    jax.tree.map(np.testing.assert_array_equal, load(str(made), case), plain)
    (made / 'pytorch_model.safetensors').unlink()
    with pytest.raises(errors.ConfigError, match='pytorch_model.bin is a pickle.*weights_only=True'):
        import_weights.is_file(made)
    (made / 'model.safetensors').write_bytes(b'PK\3\4' + whole)
    with pytest.raises(errors.BadData, match='damaged'):
        load(str(made), case)
    (made / 'model.safetensors').write_bytes(whole[:-1000])
    with pytest.raises(errors.BadData, match='damaged'):
        load(str(made), case)
