"""Weights under the names of other libraries: reading them gives the variables back, bit for bit."""
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

from jaxkd import config
from jaxkd.models import resnet
from jaxkd.pretrained import export_weights, import_weights
from tests.fixtures.variables import draw

VIT = dict(name='vit', size='tiny', width=32, patch=8, depth=2)
FAMILIES = {  # (model, side of the image, libraries)
    'vit': (VIT, 32, {'timm', 'huggingface'}),
    'vit_registers': (dict(VIT, registers=3, layer_scale=0.1), 32, {'timm'}),
    'vit_mean': (dict(VIT, pool='mean', channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2)), 32, {'timm'}),
    'resnet18': (dict(name='resnet', features=0, **resnet.TORCHVISION), 64, {'torchvision'}),
    'resnet50': (dict(name='resnet', depth=50, features=0, **resnet.TORCHVISION), 64, {'torchvision'}),
    'densenet': (dict(name='densenet', blocks=(2, 1), growth=4, first=8), 64, {'torchvision'}),
    'alexnet': (dict(name='alexnet'), 64, {'torchvision'})}


def start(model, side):
    """(options, variables with different values everywhere)."""
    module, hp = config.options('models', dict(model), 'model')
    shapes = jax.eval_shape(module.build(hp, 2).init, jax.random.key(0), {
        'image': jax.ShapeDtypeStruct((1, side, side, model.get('channels', 1)), np.float32)})
    rng = np.random.default_rng(0)
    return ConfigDict(hp), jax.tree.map(lambda a: rng.standard_normal(a.shape, np.float32), shapes)


@pytest.mark.parametrize('family', FAMILIES)
def test_what_is_exported_is_imported_bit_for_bit(family, tmp_path):
    model, side, libraries = FAMILIES[family]
    hp, variables = start(model, side)
    tensors, _ = export_weights.library_tensors(hp, variables)
    assert {*tensors} == libraries
    for library, named in tensors.items():
        assert all(a.flags.c_contiguous for a in named.values())
        folder = tmp_path / library
        folder.mkdir()
        safetensors.numpy.save_file(named, folder / 'model.safetensors')
        for name, content in export_weights.descriptions(library, hp, named, ('no', 'yes')).items():
            (folder / name).write_text(json.dumps(content))
        stats = {k: v for k, v in variables.items() if k != 'params'}
        loaded = import_weights.load(folder, hp, jax.tree.map(np.zeros_like, variables['params']),
                                     jax.tree.map(np.zeros_like, stats))
        jax.tree.map(np.testing.assert_array_equal, loaded, dict(variables))


def test_names_and_axes_are_those_of_the_libraries():
    hp, variables = start(VIT, 32)
    tensors = export_weights.library_tensors(hp, variables)[0]
    timm, theirs, ours = tensors['timm'], tensors['huggingface'], variables['params']
    assert timm['patch_embed.proj.weight'].shape == (32, 1, 8, 8) and timm['pos_embed'].shape == (1, 17, 32)
    np.testing.assert_array_equal(timm['blocks.1.mlp.fc1.weight'], ours['encoder']['block01']['mlp']['fc1']['kernel'].T)
    np.testing.assert_array_equal(timm['blocks.0.attn.qkv.weight'][32:64],
                                  theirs['vit.encoder.layer.0.attention.attention.key.weight'])
    assert {'vit.layernorm.weight', 'classifier.bias', 'vit.embeddings.cls_token'} <= theirs.keys()


def test_the_files_beside_the_tensors_describe_the_network():
    hp, variables = start(dict(VIT, channels=3), 32)
    tensors = export_weights.library_tensors(hp, variables)[0]
    found = {library: export_weights.descriptions(library, hp, named, ('no', 'yes'))
             for library, named in tensors.items()}
    theirs = found['huggingface']['config.json']
    assert (theirs['image_size'], theirs['num_hidden_layers'], theirs['intermediate_size']) == (32, 2, 128)
    assert theirs['id2label'] == {'0': 'no', '1': 'yes'}
    assert found['huggingface']['preprocessor_config.json']['image_mean'] == [0.5, 0.5, 0.5]
    assert found['timm']['config.json']['model_args']['embed_dim'] == 32
    assert found['timm']['config.json']['pretrained_cfg']['std'] == [0.25, 0.25, 0.25]
    module, resnet_hp = config.options('models', FAMILIES['resnet18'][0], 'model')
    assert export_weights.descriptions('torchvision', ConfigDict(resnet_hp), {}, ()) == {}


def test_a_network_that_a_library_has_not_is_not_called_one():
    for changes in (dict(features=16), dict(norm='group'), dict(width=0.5)):
        hp, variables = start(dict(FAMILIES['resnet18'][0], **changes), 64)
        tensors, reasons = export_weights.library_tensors(hp, variables)
        assert not tensors and reasons['torchvision']


def test_a_network_without_other_libraries_has_none():
    module, hp = config.options('models', dict(name='tabular', kind='linear'), 'model')
    variables = draw(module.build(hp, 2), {'row': np.zeros((1, 3), np.float32)})
    assert export_weights.library_tensors(ConfigDict(hp), variables) == ({}, {})
    assert {*export_weights.flat(variables)} == {'params/head/linear/kernel', 'params/head/linear/bias'}
