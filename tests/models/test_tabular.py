"""Networks that read a row."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression

from jaxkd import errors
from jaxkd.models import tabular
from tests.fixtures.variables import draw

KEY = jax.random.key(0)
ROW = np.random.default_rng(0).standard_normal((5, 7), np.float32)


def _model(outputs=1, **changes):
    return tabular.build(ConfigDict({**tabular.DEFAULTS, **changes}), outputs)


def _variables(model):
    return draw(model, {'row': ROW})


@functools.partial(jax.jit, static_argnums=0, static_argnames=('train', 'capture'))
def _apply(model, variables, inputs, train=False, **options):
    """model.apply, compiled: faster than one operation after the other."""
    return model.apply(variables, inputs, train, **options)


def _count(tree):
    return sum(a.size for a in jax.tree.leaves(tree))


@pytest.mark.parametrize('kind, pooled', [('mlp', 64), ('linear', 7), ('ft', 64)])
@pytest.mark.parametrize('outputs', [0, 1, 3])
def test_shapes(kind, pooled, outputs):
    model = _model(outputs, kind=kind)
    out = jax.eval_shape(lambda: model.init_with_output(KEY, {'row': ROW})[0])
    assert out['pooled'].shape == (5, pooled) and out['pooled'].dtype == jnp.float32
    assert ('logits' in out) == bool(outputs)
    if outputs:
        assert out['logits'].shape == (5, outputs) and out['logits'].dtype == jnp.float32


def test_numbers_of_parameters():
    """Worked by hand for D = 7: D-128-64-1 with two LayerNorms; D + 1; tokens, CLS, three blocks, a norm, a head."""
    d, h = 64, 256
    block = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (d * h + h) + (h * d + d)
    expected = dict(mlp=(7 * 128 + 128) + 2 * 128 + (128 * 64 + 64) + 2 * 64 + 65, linear=8,
                    ft=2 * 7 * d + d + 3 * block + 2 * d + d + 1)
    for kind, count in expected.items():
        assert _count(jax.eval_shape(_model(kind=kind).init, KEY, {'row': ROW})['params']) == count, kind


def test_linear_is_logistic_regression():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 7)).astype(np.float32)
    y = rng.random(200) < 1 / (1 + np.exp(-x @ rng.normal(size=7)))
    model = _model(kind='linear')
    params, optimizer = draw(model, {'row': x}), optax.lbfgs()

    def loss(p):  # as scikit-learn's with C = 1
        w = p['params']['head']['linear']['kernel']
        return optax.sigmoid_binary_cross_entropy(model.apply(p, {'row': x})['logits'][:, 0],
                                                  y).sum() + 0.5 * (w ** 2).sum()
    state, step = optimizer.init(params), optax.value_and_grad_from_state(loss)

    @jax.jit
    def update(params, state):
        value, grad = step(params, state=state)
        changes, state = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(params, changes), state
    for _ in range(60):
        params, state = update(params, state)
    theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(x, y)
    np.testing.assert_allclose(params['params']['head']['linear']['kernel'][:, 0], theirs.coef_[0], atol=2e-3)


def test_tokens_are_x_times_w_plus_b():
    """The state before the blocks, told by blocks that add nothing."""
    model = _model(kind='ft', depth=1, width=8, heads=2)
    variables = jax.jit(model.init)(KEY, {'row': ROW})  # initial values are tested too
    block = variables['params']['encoder']['block00']
    block['attn']['proj'] = jax.tree.map(np.zeros_like, block['attn']['proj'])
    block['mlp']['fc2'] = jax.tree.map(np.zeros_like, block['mlp']['fc2'])
    tokens = _apply(model, variables, {'row': ROW})['block00']
    p = variables['params']
    assert tokens.shape == (5, 8, 8)
    np.testing.assert_allclose(tokens[:, 0], np.broadcast_to(p['cls'][0], (5, 8)), rtol=1e-6)
    np.testing.assert_allclose(tokens[:, 1:], ROW[:, :, None] * p['weights'] + p['biases'], rtol=1e-6)
    assert abs(p['weights']).max() <= 8 ** -0.5


@pytest.mark.parametrize('kind', tabular.KINDS)
def test_rows_do_not_see_each_other_and_dropout_is_for_training(kind):
    model = _model(kind=kind)
    variables = _variables(model)
    out = _apply(model, variables, {'row': ROW})['logits']
    np.testing.assert_allclose(_apply(model, variables, {'row': ROW[2:3]})['logits'], out[2:3], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(out, _apply(model, variables,
                                              {'row': ROW, 'present': {'row': np.zeros(5, np.float32)}})['logits'])
    dropped = [_apply(model, variables, {'row': ROW}, train=True, rngs={'dropout': jax.random.key(i)})['logits']
               for i in range(2)]
    assert kind == 'linear' or np.any(dropped[0] != dropped[1])


def test_attention_over_columns_is_shown():
    model = _model(kind='ft')
    attention = _apply(model, _variables(model), {'row': ROW}, capture=('attention',))['attention']
    assert attention.shape == (5, 3, 8, 8, 8)
    np.testing.assert_allclose(attention.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize('changes, match', [(dict(kind='forest'), 'Known: ft, linear, mlp'),
                                            (dict(widths=()), 'widths'),
                                            (dict(kind='ft', heads=5), 'multiple of heads')])
def test_impossible_options_are_refused(changes, match):
    with pytest.raises(errors.ConfigError, match=match):
        _model(**changes)


def test_another_input_is_named():
    with pytest.raises(errors.ConfigError, match=r'reads "row" \[B,D\], it was handed image'):
        _model().init(KEY, {'image': jnp.zeros((2, 8, 8, 1))})
