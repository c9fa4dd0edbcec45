"""Files of weights as people have them: names below prefixes, tensors of training beside the network, other formats.

Every command that a message prints is run on a valid example.
"""
import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd import config, errors
from jaxkd.pretrained import import_weights, safetensors_file
from tests.models import test_bert
from tests.pretrained import test_transformers
from tests.reference import transformer_numbers as numbers

KNOWN, CASE = test_transformers.KNOWN, 'timm_vit'
TENSORS = numbers.tensors(KNOWN[CASE]['tensors'])
PARTS = st.sampled_from(['module', 'net', 'encoder', 'backbone', 'model', 'student', '_orig_mod', 'visual', 'trunk',
                         'state_dict', 'image_encoder', 'vit', '0', 'blocks', 'my_network'])


def save(file, tensors):
    safetensors.numpy.save_file({k: np.asarray(v, order='C') for k, v in tensors.items()}, file)
    return str(file)


def load(path, case=CASE, **other):
    return test_transformers.load(str(path), case, **other)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    return load(save(tmp_path_factory.mktemp('plain') / 'model.safetensors', TENSORS))


def run(message):
    """The command in a message, run by a shell."""
    command = message[message.index('python -c'):].partition(' (That of')[0]
    command = command.replace('python', f"'{sys.executable}'", 1)
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@settings(max_examples=200, deadline=None)
@given(st.lists(PARTS, max_size=3), st.booleans(), st.booleans())
def test_any_common_prefix_is_found(parts, head_inside, projector):
    prefix = ''.join(f'{part}.' for part in parts)
    shapes = {k: v.shape for k, v in TENSORS.items()}
    names = {k if k.startswith('head.') and not head_inside else prefix + k: s for k, s in shapes.items()}
    names |= {'projector.0.weight': (8, 32)} if projector else {}
    module, hp = config.options('models', test_transformers.MODELS[CASE][0], 'model')
    found = import_weights.network_prefix(names, lambda s: module.PLUGIN.tensors(hp, s, {})[1], 'w.safetensors')
    assert found == prefix
    short = safetensors_file.strip_prefix(names, found)
    assert {k: short.get(k) for k in shapes} == {
        k: k if k.startswith('head.') and not head_inside else prefix + k for k in shapes}


@settings(max_examples=200, deadline=None)
@given(st.lists(PARTS, max_size=3))
def test_prefixes_of_texts_whose_names_hold_them(parts):
    """A BERT has an encoder of its own: encoder.layer.0."""
    prefix = ''.join(f'{part}.' for part in parts)
    shapes = {k: tuple(v) for k, v in KNOWN['hf_bert']['tensors'].items()}
    module, hp = config.options('models', test_bert.MODELS['hf_bert'], 'model')
    names = {prefix + k: s for k, s in shapes.items()}
    found = import_weights.network_prefix(names, lambda s: module.PLUGIN.tensors(hp, s, {})[1], 'w.safetensors')
    assert found == prefix and safetensors_file.strip_prefix(names, found).keys() == shapes.keys()


@pytest.mark.parametrize('prefix', ['module.', 'net.', 'encoder.', 'backbone.', 'model.module.encoder.'])
def test_prefixed_weights_load(prefix, plain, tmp_path, capsys):
    beside = {'projector.0.weight': np.zeros((8, 32), np.float32), 'head.weight': TENSORS['head.weight']}
    tensors = {prefix + k: v for k, v in TENSORS.items() if k != 'head.weight'} | beside
    jax.tree.map(np.testing.assert_array_equal, load(save(tmp_path / 'model.safetensors', tensors)), plain)
    assert 'Left out: projector.0.weight.' in capsys.readouterr().out


def decoder(blocks=1):
    names = {'mask_token': (1, 1, 16), 'decoder_pos_embed': (1, 17, 16), 'decoder_embed.weight': (16, 32),
             'decoder_norm.bias': (16,), 'decoder_pred.weight': (192, 16)}
    return {k: np.ones(s, np.float32) for k, s in names.items()} | {
        f'decoder_blocks.{i}.{k}': np.ones(16, np.float32) for i in range(blocks)
        for k in ('norm1.weight', 'norm1.bias', 'norm2.weight', 'norm2.bias', 'attn.proj.bias')}


@pytest.mark.parametrize('prefix', ['', 'module.', 'net.'])
def test_a_decoder_of_a_masked_autoencoder_is_left_out_and_said(prefix, plain, tmp_path, capsys):
    tensors = {f'{prefix}{k}': v for k, v in (TENSORS | decoder()).items() if not k.startswith('head')}
    params = load(save(tmp_path / 'model.safetensors', tensors))
    said = capsys.readouterr().out
    for name in (*(k for k in decoder() if 'blocks' not in k), '5 tensors of decoder_blocks',
                 'Start fresh: head/linear/bias'):
        assert name in said
    jax.tree.map(np.testing.assert_array_equal, params['encoder'], plain['encoder'])
    load(save(tmp_path / 'model.safetensors', tensors), side=48)
    assert 'as by the authors of MAE, bicubically without antialiasing' in capsys.readouterr().out


def test_fc_norm_pools_the_mean(tmp_path, capsys, plain):
    mean = numbers.tensors(KNOWN['timm_vit_mean']['tensors'])
    assert 'fc_norm.weight' in mean and 'norm.weight' not in mean
    path = save(tmp_path / 'model.safetensors', mean)
    with pytest.raises(errors.ConfigError, match="Set model.pool to 'mean'"):
        load(path)
    np.testing.assert_array_equal(load(path, pool='mean')['encoder']['norm']['bias'], mean['fc_norm.bias'])
    both = TENSORS | {k: v for k, v in mean.items() if k.startswith('fc_norm')}
    params = load(save(tmp_path / 'model.safetensors', both))
    said = capsys.readouterr().out
    assert 'Left out: fc_norm.bias, fc_norm.weight, head.bias, head.weight.' in said and 'Start fresh: head' in said
    jax.tree.map(np.testing.assert_array_equal, params['encoder'], plain['encoder'])


def test_two_networks_are_parted_by_the_printed_command(plain, tmp_path):
    tensors = {f'{p}.{k}': v for p in ('student', 'teacher') for k, v in TENSORS.items()}
    file = tmp_path / 'a folder' / "the student's.safetensors"
    file.parent.mkdir()
    save(file, {k: v.astype(jnp.bfloat16) for k, v in tensors.items()})
    with pytest.raises(errors.ConfigError, match='holds two networks') as raised:
        load(file)
    run(str(raised.value))
    params = load(file.with_name('one.safetensors'))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-2, rtol=1e-2), params, plain)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_parts_are_joined_by_the_printed_command(dtype, plain, tmp_path):
    folder, names = tmp_path / "it's [a] folder", sorted(TENSORS)
    folder.mkdir()
    for i, part in enumerate((names[:9], names[9:]), 1):
        save(folder / f'model-{i:05d}-of-00002.safetensors', {k: TENSORS[k].astype(jnp.dtype(dtype)) for k in part})
    (folder / 'model.safetensors.index.json').write_text('{}')
    assert import_weights.is_file(folder)
    with pytest.raises(errors.ConfigError, match='in 2 parts') as raised:
        load(folder)
    run(str(raised.value))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-2, rtol=1e-2), load(folder), plain)


def test_a_part_that_is_missing_and_files_that_are_no_parts(tmp_path):
    save(tmp_path / 'model-00001-of-00002.safetensors', TENSORS)
    with pytest.raises(errors.MissingInput, match='part 2 of 2'):
        load(tmp_path)
    save(tmp_path / 'other.safetensors', TENSORS)
    with pytest.raises(errors.ConfigError, match='holds 2 files of weights. Name one'):
        load(tmp_path)


def test_npz_is_converted_by_the_printed_command(plain, tmp_path):
    np.savez(tmp_path / 'w.npz', **TENSORS)
    with pytest.raises(errors.ConfigError, match='w.npz is of NumPy') as raised:
        import_weights.is_file(tmp_path / 'w.npz')
    run(str(raised.value))
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path), plain)


@pytest.mark.parametrize('name', ['net.pth', 'net.pt', 'pytorch_model.bin', 'last.ckpt', 'best.pth.tar', 'net.PKL'])
def test_a_pickle_is_refused_with_a_command(name, tmp_path):
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(errors.ConfigError, match=f'{name} is a pickle.*weights_only=True'):
            import_weights.is_file(path)
        (tmp_path / name).write_bytes(b'PK')


@pytest.mark.skipif(not importlib.util.find_spec('torch'), reason='torch, which the command needs, is not installed')
@pytest.mark.parametrize('around', [lambda t: t, lambda t: dict(state_dict=t, epoch=3),
                                    lambda t: dict(model=t, args=0)])
def test_the_command_converts_a_pickle(around, plain, tmp_path):
    import argparse

    import torch
    content = around({k: torch.from_numpy(v) for k, v in TENSORS.items()})
    torch.save(content | ({'args': argparse.Namespace(lr=1.0)} if 'args' in content else {}), tmp_path / 'net.pth')
    with pytest.raises(errors.ConfigError, match='pickle') as raised:
        import_weights.is_file(tmp_path)
    run(str(raised.value))
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path), plain)


@pytest.mark.parametrize('name, kind', [
    ('model.onnx', 'ONNX'), ('model.h5', 'Keras'), ('weights.HDF5', 'Keras'), ('m.keras', 'Keras'),
    ('flax_model.msgpack', 'Flax'), ('w.npy', 'NumPy')])
def test_other_formats_say_what_to_convert_to(name, kind, tmp_path):
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(errors.ConfigError, match=f'{name} is .*{kind}.*safetensors.*state_dict'):
            import_weights.is_file(path)
        (tmp_path / name).write_bytes(b'x')
    save(tmp_path / 'model.safetensors', TENSORS)  # such folders often hold several formats
    assert import_weights.is_file(tmp_path)


def test_a_file_of_no_format_is_refused(tmp_path):
    (tmp_path / 'weights').write_bytes(b'x')
    with pytest.raises(errors.ConfigError, match='unknown format.*safetensors'):
        import_weights.is_file(tmp_path / 'weights')


def pooling(folder, **modes):
    (folder / '1_Pooling').mkdir(exist_ok=True)
    (folder / '1_Pooling' / 'config.json').write_text(json.dumps(dict(word_embedding_dimension=32, **modes)))


def test_pooling_of_a_text_encoder_is_read_or_asked_for(tmp_path, capsys):
    path = test_bert.write(tmp_path)
    with pytest.raises(errors.ConfigError, match='no 1_Pooling/config.json .*Set model.pool to "cls"'):
        test_bert.load(path, pool='')
    for pool in ('cls', 'mean'):
        test_bert.load(path, pool=pool)
    pooling(tmp_path, pooling_mode_cls_token=False, pooling_mode_mean_tokens=True, pooling_mode_max_tokens=False)
    for pool in ('', 'cls'):
        with pytest.raises(errors.ConfigError, match="Set model.pool to 'mean'"):
            test_bert.load(f'{path}/model.safetensors', pool=pool)
    (tmp_path / '2_Dense').mkdir()
    capsys.readouterr()
    test_bert.load(path, pool='mean')
    assert 'also holds 2_Dense, which is not read' in capsys.readouterr().out
    pooling(tmp_path, pooling_mode='cls')
    test_bert.load(path, pool='')
    for modes, name in ((dict(pooling_mode_max_tokens=True), 'max_tokens'),
                        (dict(pooling_mode='lasttoken'), 'lasttoken'),
                        (dict(pooling_mode_cls_token=True, pooling_mode_mean_tokens=True), r'cls\+mean')):
        pooling(tmp_path, **modes)
        with pytest.raises(errors.ConfigError, match=f'says "{name}", which is not built here'):
            test_bert.load(path, pool='mean')
