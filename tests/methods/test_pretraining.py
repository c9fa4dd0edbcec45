"""Pre-training without labels: worked numbers, and what must not move."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import config, errors, stages
from jaxkd.data import pool
from jaxkd.methods import masked_autoencoder, self_distillation
from jaxkd.state import Progress
from tests.fixtures.compiled import call


def test_the_masked_loss_is_the_mean_over_hidden_patches_alone():
    found, patches = np.float32([[1, 2], [0, 1], [2, 2]]), np.float32([[1, 1], [1, 1], [2, 0]])
    loss = call(masked_autoencoder.reconstruction, found, patches, np.float32([1, 0, 1]))
    assert float(loss.value) == pytest.approx(1.25)
    seen = call(jax.grad(lambda x: masked_autoencoder.reconstruction(x, patches, jnp.float32([1, 0, 1])).value), found)
    np.testing.assert_allclose(seen, [[0, .5], [0, 0], [0, 1]])


def test_cases_that_are_padding_and_batches_that_hide_nothing_have_no_part_in_it():
    student = dict(reconstruction=np.ones((2, 3, 4), np.float32), patches=np.zeros((2, 3, 4), np.float32),
                   hidden=np.float32([[1, 1, 0], [1, 0, 0]]))
    term = call(masked_autoencoder.terms, student, {}, {}, {'mask': np.float32([1, 0])}, ConfigDict())['reconstruction']
    assert (float(term.value), float(term.weight)) == (1.0, 2.0)
    none = call(masked_autoencoder.terms, student, {}, {}, {'mask': np.zeros(2, np.float32)}, ConfigDict())
    assert float(none['reconstruction'].value) == 0.0


def test_self_distillation_is_a_cross_entropy_of_centred_and_sharpened_scores():
    """Student (.2, 0) at 0.1: q = softmax(2, 0) = (.880797, .119203). Teacher (.1, .02) - (.02, 0) at 0.04:
    p = softmax(2, .5) = (.817574, .182426). CE = .491780.
    """
    student, teacher, centre = np.float32([.2, 0]), np.float32([.1, .02]), np.float32([.02, 0])
    run = jax.jit(jax.value_and_grad(lambda s, t: self_distillation.cross_entropy(s, t, centre, .1, .04), (0, 1)))
    value, (to_student, to_teacher) = run(student, teacher)
    assert float(value) == pytest.approx(.491780, abs=1e-6)
    np.testing.assert_allclose(to_student, (.632231, -.632231), atol=1e-5)  # (q - p) / 0.1
    assert not to_teacher.any()


def test_koleo_is_the_log_of_the_nearest_distance():
    """(1,0), (.6,.8), (0,2): distances .894427, .632456 and 1.414214 at norm 1; nearest .894427, .632456, .632456."""
    cls = np.float32([[1, 0], [.6, .8], [0, 2], [7, 7]])
    found = call(self_distillation.koleo, cls, np.float32([1, 1, 1, 0]))
    np.testing.assert_allclose(found, [.111572, .458145, .458145, 0], atol=1e-5)
    equal = call(jax.grad(lambda x: self_distillation.koleo(x, jnp.ones(2)).sum()), np.ones((2, 3), np.float32))
    assert np.isfinite(equal).all()
    assert not call(self_distillation.koleo, cls, np.float32([0, 1, 0, 0])).any()


def test_centres_are_running_means_of_valid_places():
    scores = np.float32([[[1, 2], [3, 4]], [[100, 100], [5, 6]]])
    found = call(self_distillation.moved, np.float32([10, 0]), scores, np.float32([[1, 1], [0, 0]]), .9)
    np.testing.assert_allclose(found, [.9 * 10 + .1 * 2, .1 * 3], rtol=1e-6)
    none = call(self_distillation.moved, np.float32([10, 0]), scores, np.zeros((2, 2), np.float32), .9)
    np.testing.assert_array_equal(none, [10, 0])


def test_a_stage_of_pretraining_is_built_or_the_option_that_it_lacks_is_named(tmp_path):
    spec, data = 'configs/cpkd_ct_mri.py:hidden_modality,smoke', pool.DataPool()

    def built(*changes):
        conf = config.load(spec, ['data.source.patients=30', *changes])
        return stages.build(conf, 'pretrain', tmp_path, dry=True, pool=data)
    method = built().method
    assert dict(method.loss_weights(Progress(0, 0, 0))) == dict(dino=1.0, ibot=1.0, koleo=0.1)
    assert not method.teacher_terms()  # it has no teacher but itself
    for change, message in (('optim.ema=0.0', 'Set pretrain.optim.ema=0.996'),
                            ('model.prototypes=0', 'self_distillation needs "prototypes"'),
                            ('method.name=masked_autoencoder', 'needs "reconstruction".*model.hide="patches"')):
        with pytest.raises(errors.ConfigError, match=message):
            built(f'pretrain.{change}')
