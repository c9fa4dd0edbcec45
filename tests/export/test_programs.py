"""The programs of each family of networks: StableHLO, ONNX and the network itself agree."""
import collections

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import config, errors
from jaxkd.config import plugins
from jaxkd.export import onnx_program, programs
from jaxkd.networks import Network
from jaxkd.pretrained import export_weights
from tests.fixtures.variables import draw

onnx = pytest.importorskip('onnx')
RNG = np.random.default_rng(0)
IMAGE, WIDE = dict(image=(32, 32, 1)), dict(image=(64, 64, 1))
CT, PAIR = dict(ct=(8, 16, 16, 1)), dict(ct=(8, 16, 16, 1), t2=(8, 16, 16, 1))
TOKENS, ROW = dict(tokens=(12,)), dict(row=(5,))
TINY_TEXT = dict(vocab=50, width=16, depth=1, heads=2, length=12)
TINY_VIT = dict(size='tiny', width=32, patch=16, depth=1)
RESIDUAL = dict(dims=3, channels=(4, 8), blocks=(1,), block='residual', down='stride', up='transpose', norm='instance',
                activation='leaky', bias=False, classify=1)
FAMILIES = {  # name: (model, inputs, least number of native convolutions in ONNX, 0: none)
    'vit': (dict(name='vit', **TINY_VIT), IMAGE, 0),
    'vit_registers': (dict(name='vit', **TINY_VIT, registers=2, pool='mean', layer_scale=0.1), IMAGE, 0),
    'resnet_2d': (dict(name='resnet', dims=2, width=0.125, features=0, norm='batch', activation='relu',
                       weight_standardisation=False), IMAGE, 20),
    'resnet_3d': (dict(name='resnet', width=0.125, features=16, stem='small', norm='layer'), CT, 20),
    'resnet_two': (dict(name='resnet', width=0.125, features=16, stem='small', norm='layer'), PAIR, 20),
    'densenet': (dict(name='densenet', blocks=(1, 1), growth=4, first=8), IMAGE, 6),
    'unet_2d': (dict(name='unet', channels=(4, 8), classify=2, classify_at='finest'), IMAGE, 7),
    'unet_3d': (dict(name='unet', **RESIDUAL), dict(nct=(4, 8, 8, 1)), 6),
    'mobilenet_3d': (dict(name='mobilenet', width=0.25, features=16, norm='layer'), dict(ct=(32, 32, 32, 1)), 50),
    'alexnet': (dict(name='alexnet', width=0.125, hidden=16), WIDE, 5),
    'cnn': (dict(name='cnn', channels=(4, 8)), dict(t1=(9, 8, 8, 1)), 2),
    'bert': (dict(name='bert', **TINY_TEXT), TOKENS, 0),
    'text': (dict(name='text', **TINY_TEXT), TOKENS, 0),
    'mlp': (dict(name='tabular', kind='mlp', widths=(8, 8)), ROW, 0),
    'linear': (dict(name='tabular', kind='linear'), ROW, 0),
    'ft': (dict(name='tabular', kind='ft', width=16, depth=1, heads=2), ROW, 0),
    'fusion': (dict(name='fusion', image=TINY_VIT, text=TINY_TEXT), {**IMAGE, **TOKENS}, 0),
}
DEEP = ('resnet_3d', 'resnet_two', 'mobilenet_3d')  # more than 10 s to compile


def rows(inputs, n):
    """{input: [n, ...]} as batches have it; of several volumes some are absent."""
    def values(key, shape):
        if key == 'tokens':
            return RNG.integers(1, 50, (n, *shape)).astype(np.int32)
        return ((RNG.uniform(0, 4096, (n, *shape))).astype(np.int16) if len(shape) == 4 else
                RNG.uniform(size=(n, *shape)).astype(np.float32))
    batch = {key: values(key, shape) for key, shape in inputs.items()}
    flags = {f'present/{key}': (np.arange(n) % 2 == i).astype(np.float32) for i, key in enumerate(inputs)}
    return batch | (flags if inputs is PAIR else {})


def nested(flat):
    """Flags as networks read them."""
    flags = {k.partition('/')[2]: a for k, a in flat.items() if k.startswith('present/')}
    return {k: a for k, a in flat.items() if '/' not in k} | ({'present': flags} if flags else {})


def network(family):
    """(Network, {name: weight}, flat inputs of one row)."""
    model, inputs, _ = FAMILIES[family]
    module, hp = config.options('models', dict(model), 'model')
    batch = rows(inputs, 1)
    built = module.build(ConfigDict(hp), 3)
    variables = draw(built, nested(batch))
    variables = jax.tree.map(lambda a: (a + 0.05 * np.abs(RNG.standard_normal(a.shape))).astype(a.dtype), variables)
    return Network(built, tuple(inputs)), export_weights.flat(variables), batch


@pytest.mark.parametrize('family', [pytest.param(name, marks=[pytest.mark.slow] if name in DEEP else [])
                                    for name in FAMILIES])
def test_programs_of_all_families_agree_for_any_number_of_rows(family):
    net, weights, one = network(family)
    case = {key: a[0] for key, a in one.items()}
    function = programs.function_of(net, nested(case))
    model = programs.onnx(function, weights, case)
    program = programs.Program(programs.stablehlo(function, weights, case), weights)
    batch = rows(FAMILIES[family][1], 3)
    expected = programs.call(function, weights, batch)
    assert expected['logits'].shape[0] == 3 and np.abs(expected['logits']).max() > 1e-3
    assert programs.difference(program(batch), expected) < 1e-4
    assert programs.difference(programs.run_onnx(model, batch), expected) < 1e-4
    assert programs.difference(programs.run_onnx(model, one), {k: v[:1] for k, v in programs.run_onnx(model, {
        k: np.concatenate([a, a]) for k, a in one.items()}).items()}) < 1e-5
    operations = collections.Counter(node.op_type for node in onnx.load_from_string(model).graph.node)
    least = FAMILIES[family][2]
    assert operations['Conv'] >= least if least else not operations['Conv']
    assert program.exported.platforms == ('cpu', 'cuda', 'tpu')
    if any(len(shape) == 4 for shape in FAMILIES[family][1].values()):  # the native program beside that of the CPU
        assert 'dim_numbers = [b, 0, 1, 2, f]x[0, 1, 2, i, o]->[b, 0, 1, 2, f]' in program.exported.mlir_module()


def test_names_in_a_model_say_nothing():
    net, weights, one = network('linear')
    case = {key: a[0] for key, a in one.items()}
    graph = onnx.load_from_string(programs.onnx(programs.function_of(net, case), weights, case)).graph
    assert [i.name for i in graph.input] == ['row'] and [o.name for o in graph.output] == ['logits']
    assert all(name[:2] in ('t#', 'c#') for n in graph.node for name in n.output if name != 'logits')
    assert all(not node.name and not node.doc_string for node in graph.node)


def test_what_has_no_rule_is_refused_with_its_name():
    shape = programs.symbolic(dict(x=np.zeros(3, np.float32)))
    with pytest.raises(errors.ConfigError, match='"cumsum"'):
        onnx_program.convert(lambda x: [jax.numpy.cumsum(x, 1)], shape, ['y'])
    with pytest.raises(errors.ConfigError, match='bfloat16'):
        onnx_program.convert(lambda x: [x.astype(jax.numpy.bfloat16)], shape, ['y'])


def test_a_single_input_has_no_flag():
    net = Network(plugins.load('models', 'cnn').build(config.options(
        'models', dict(name='cnn', channels=(4,), head='gap'), 'm')[1], 2), ('ct',))
    case = dict(ct=np.zeros((4, 4, 4, 1), np.int16), present=dict(ct=np.float32(1)))
    assert programs.flat_inputs(case).keys() == {'ct'}
    assert programs.function_of(net, case).flagged == ('ct',)


def test_difference():
    a = dict(y=np.array([1.0, 20.0]))
    assert programs.difference(a, dict(y=np.array([1.0, 18.0]))) == pytest.approx(2 / 18)
    assert programs.difference(a, dict(z=a['y'])) == programs.difference(a, dict(y=a['y'][:1])) == np.inf
    assert programs.difference(dict(y=np.array([np.nan, 1])), a) == np.inf
