"""Tokens of several modalities: what a case without one is, and what is hidden in pre-training."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import config, errors
from jaxkd.models import modality_vit
from jaxkd.networks import Network
from jaxkd.training import modalities
from tests.fixtures.variables import draw

SMALL = dict(name='modality_vit', size='tiny', width=16, depth=1, heads=2, patch=(2, 4, 4), mlp=2,
             decoder=dict(width=8, depth=1, heads=2))
RNG = np.random.default_rng(0)
VOLUMES = {name: np.float32(RNG.normal(size=(3, 4, 8, 8, 1))) for name in ('ct', 'mri')}  # 8 tokens each


def built(outputs=3, **changes):
    module, hp = config.options('models', SMALL | changes, 'x')
    return module.build(hp, outputs)


@pytest.fixture(scope='module', params=modality_vit.TOKENIZERS)
def net(request):
    """(variables, the network as one program)."""
    model = built(tokenizer=request.param)
    return draw(model, VOLUMES), jax.jit(lambda variables, inputs: model.apply(variables, inputs))


def test_a_modality_that_a_case_lacks_is_as_if_its_tokens_were_removed(net):
    variables, apply = net
    mri = np.full_like(VOLUMES['mri'], np.nan)
    absent = apply(variables, {'ct': VOLUMES['ct'], 'mri': mri, 'present': {'mri': np.zeros(3, np.float32)}})
    alone = apply(variables, {'ct': VOLUMES['ct']})
    assert absent['tokens_out'].shape == (3, 1 + 2 * 8, 16) and alone['tokens_out'].shape == (3, 1 + 8, 16)
    for key in ('pooled', 'logits'):
        np.testing.assert_allclose(absent[key], alone[key], atol=1e-6)
    both = apply(variables, VOLUMES)
    assert np.abs(both['pooled'] - alone['pooled']).max() > 1e-3


def test_modalities_that_change_places_with_their_weights_leave_cls_unchanged(net):
    variables, apply = net
    swapped = {key.replace('ct', '?').replace('mri', 'ct').replace('?', 'mri'): value
               for key, value in variables['params'].items()}
    turned = apply({'params': swapped}, {'ct': VOLUMES['mri'], 'mri': VOLUMES['ct']})
    np.testing.assert_allclose(turned['pooled'], apply(variables, VOLUMES)['pooled'], atol=1e-6)


def test_images_have_as_many_tokens_and_colours_are_part_of_a_patch():
    model = built(patch=(1, 4, 2), mean=(0.5,), std=(0.25,), outputs=0)
    found = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), {'image': jnp.zeros((2, 16, 8, 3))})[0])
    assert found['tokens_out'].shape == (2, 1 + 4 * 4, 16) and 'logits' not in found


def test_patches_are_read_row_by_row():
    x = np.arange(24.).reshape(1, 4, 6, 1)
    np.testing.assert_array_equal(modality_vit.patches(x, (2, 3))[0],
                                  [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11], [12, 13, 14, 18, 19, 20],
                                   [15, 16, 17, 21, 22, 23]])
    table = modality_vit.positions((2, 3), 10)  # two waves for each axis, the rest zeros
    np.testing.assert_allclose(table[4], [np.sin(1), np.sin(.01), np.cos(1), np.cos(.01)] * 2 + [0, 0], rtol=1e-6)
    assert len(np.unique(modality_vit.positions((4, 4, 4), 24), axis=0)) == 64


def test_shares_are_rounded_and_what_a_modality_cannot_take_goes_to_the_others():
    rank = np.tile(np.arange(4), (4, 3, 1))
    share = np.float32([[.5, .3, .2], [.98, .01, .01], [.6, .3, .1], [.1, .2, .7]])
    present = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]]) > 0
    seen = np.asarray(jax.jit(modality_vit.by_shares, static_argnums=3)(share, rank, present, 5))
    # 2.5, 1.5 and 1 of 5; 4.9 of 4, whose rest goes to the others; without the third 10/3 and 5/3; all of the only one
    np.testing.assert_array_equal(seen.sum(-1)[1:], [[4, 1, 0], [3, 2, 0], [4, 0, 0]])
    assert tuple(seen[0].sum(-1)) in ((3, 1, 1), (2, 2, 1))
    assert (np.diff(seen.astype(int), axis=-1) <= 0).all()  # those of the lowest rank


def pretrained(**changes):
    model = built(**changes)
    variables = draw(model, VOLUMES)
    flags = {'mri': np.float32([1, 1, 0])}
    apply = jax.jit(lambda inputs, seed: model.apply(variables, {**inputs, 'present': flags}, train=True,
                                                     rngs={'dropout': jax.random.key(seed)}))
    return apply, lambda inputs: jax.jit(model.apply)(variables, {**inputs, 'present': flags})


def test_the_decoder_predicts_hidden_voxels_without_seeing_them():
    apply, _ = pretrained(hide='patches', ratio=0.5)
    out, shares = apply(VOLUMES, 0), []
    hidden = np.asarray(out['hidden'])
    assert out['patches'].shape == out['reconstruction'].shape == (3, 16, 32)
    np.testing.assert_array_equal(hidden.sum(1), [8, 8, 0])  # a budget of 8 of 16; a case of one modality has no more
    for seed in range(8):
        shares.append(np.asarray(apply(VOLUMES, seed)['hidden'])[:2, :8].sum(1))
    assert len(np.unique(shares)) > 3  # the modalities have unequal shares
    flat = np.where(hidden[..., None] > 0, 9.0, np.asarray(out['patches']))  # other voxels where they are hidden
    changed = {name: flat[:, 8 * m:8 * m + 8].reshape(3, 2, 2, 2, 2, 4, 4).transpose(0, 1, 4, 2, 5, 3, 6)
               .reshape(3, 4, 8, 8, 1) for m, name in enumerate(('ct', 'mri'))}
    again = apply(changed, 0)
    np.testing.assert_array_equal(again['hidden'], hidden)
    np.testing.assert_allclose(again['reconstruction'], out['reconstruction'], atol=1e-5)
    assert np.abs(again['patches'] - out['patches']).max() > 1


def test_outside_of_training_all_is_seen_and_an_absent_modality_is_imputed():
    _, evaluate = pretrained(hide='patches')
    blind = {**VOLUMES, 'mri': np.where(np.arange(3).reshape(-1, 1, 1, 1, 1) < 2, VOLUMES['mri'], np.nan)}
    out, other = evaluate(VOLUMES), evaluate(blind)
    assert not out['hidden'].any() and np.isfinite(out['reconstruction']).all()
    np.testing.assert_array_equal(out['reconstruction'], other['reconstruction'])


def test_one_modality_is_hidden_as_a_whole_with_a_block_of_the_others():
    present = np.array([[1, 1, 1]] * 40 + [[1, 1, 0]] * 40 + [[0, 1, 0]] * 40) > 0
    hidden = np.asarray(jax.jit(modality_vit.hidden_modality, static_argnums=2)(jax.random.key(0), present, (4, 5)))
    whole = (hidden.all(-1) & present).sum(1)
    assert (whole[:80] == 1).all() and not whole[80:].any()
    assert {tuple(h.all(-1)) for h in hidden[:40]} == {(True, False, False), (False, True, False), (False, False, True)}
    block = hidden.all(1)  # the same places in all modalities
    count = block.sum(1)[:80]
    assert 0.2 < (count > 0).mean() < 0.8 and count[count > 0].min() >= 2 and count.max() <= 10
    for case in range(80):
        others = hidden[case][~hidden[case].all(-1)]
        np.testing.assert_array_equal(others, np.broadcast_to(block[case], others.shape))


def test_a_student_that_sees_one_modality_has_no_gradient_of_the_others():
    apply, _ = pretrained(hide='others', seen=('ct',), tokenizer='shared', prototypes=4)
    out = apply(VOLUMES, 0)
    np.testing.assert_array_equal(out['hidden'], [[0] * 8 + [1] * 8] * 2 + [[0] * 16])
    assert out['prototypes'].shape == (3, 4) and out['token_prototypes'].shape == (3, 16, 4)
    other = apply({**VOLUMES, 'mri': 5 + VOLUMES['mri']}, 0)
    np.testing.assert_array_equal(out['pooled'], other['pooled'])
    np.testing.assert_array_less(np.abs(out['prototypes']), 1 + 1e-6)  # cosines


def test_any_subset_can_be_tested_and_wrong_options_are_refused():
    modalities.check('drop', Network(built(), ('ct', 'mri')), VOLUMES)
    for changes, message in ((dict(patch=(3, 4, 4)), '4 x 8 x 8 cannot be cut into patches of 3 x 4 x 4'),
                             (dict(hide='others', seen=('pet',)), 'model.seen names "pet", the network reads ct, mri'),
                             (dict(hide='others'), 'names the modalities that'), (dict(patch=(4, 4)), 'three positive'),
                             (dict(hide='patches', prototypes=2), 'belong to model.hide="modality"'),
                             (dict(hide='patch'), 'Did you mean "patches"'), (dict(heads=3), 'multiple of heads')):
        with pytest.raises(errors.ConfigError, match=message):
            jax.eval_shape(built(**changes).init, jax.random.key(0), VOLUMES)
