"""Styles of an image and views of a breast, for contrastive training."""
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data.source import Case
from jaxkd.data.sources import two_views
from jaxkd.data.transforms import image, style, view

RNG = np.random.default_rng(0)
IMAGE = np.float32(0.1 + 0.8 * RNG.random((8, 10, 1)))
OTHERS = [{'image': np.float32(0.2 + 0.5 * RNG.random((8, 10, 1)))} for _ in range(5)]


def options(**changes):
    return ConfigDict({**style.DEFAULTS, 'frequencies': 2, **changes})


def fitted(**changes):
    return style.fit(options(**changes), OTHERS, [0, 1, 2], lambda x: x)


def drawn(kinds, count=20, **changes):
    transform = style.build(options(kinds=kinds, **changes), fitted())
    return [transform.apply({'image': IMAGE}, np.random.default_rng(n))['style'] for n in range(count)]


def test_amplitudes_are_mixed_and_phases_stay():
    reference = style.amplitudes(OTHERS[0]['image'][..., 0], 2)
    np.testing.assert_allclose(style.mixed(IMAGE, reference, 0.0), IMAGE, atol=1e-6)
    mean = style.amplitudes(OTHERS[0]['image'][..., 0], 0)  # the mean alone
    assert style.mixed(IMAGE, mean, 1.0).mean() == pytest.approx(OTHERS[0]['image'].mean(), rel=1e-5)
    half = 0.5 * IMAGE.mean() + 0.5 * OTHERS[0]['image'].mean()
    assert style.mixed(IMAGE, mean, 0.5).mean() == pytest.approx(half, rel=1e-5)
    small = 0.5 + 0.1 * (IMAGE - 0.5)  # nothing is clipped
    full = style.mixed(small, style.amplitudes(small[::-1, ::-1, 0], 2), 0.7)
    np.testing.assert_allclose(full, small, atol=1e-6)  # turned by 180 degrees it has the same amplitudes
    found = np.fft.rfft2(style.mixed(small, 0.1 * reference + 0.9 * style.amplitudes(small[..., 0], 2), 1.0)[..., 0])
    np.testing.assert_allclose(np.angle(found[1, 1:3]), np.angle(np.fft.rfft2(small[..., 0])[1, 1:3]), atol=1e-3)


def test_styles_change_grey_values_and_nothing_else():
    for out in drawn(('gamma',)):
        np.testing.assert_array_equal(np.argsort(out.ravel()), np.argsort(IMAGE.ravel()))
        power = np.log(out) / np.log(IMAGE)
        assert 0.5 <= power.mean() <= 2 and power.std() < 1e-3
    matched = drawn(('histogram',))
    ends = {(round(float(o.min()), 4), round(float(o.max()), 4)) for o in matched}
    assert ends == {(round(float(r['image'].min()), 4), round(float(r['image'].max()), 4)) for r in OTHERS[:3]}
    assert all(out.shape == IMAGE.shape and out.dtype == np.float32 and 0 <= out.min() and out.max() <= 1
               for out in drawn(style.KINDS, 40))
    assert len({out.tobytes() for out in drawn(style.KINDS, 40)}) > 20


def test_references_are_of_training_images_and_views_have_draws_of_their_own():
    learned = fitted(references=2)
    assert [q[0] for q in learned['quantiles']] == [OTHERS[i]['image'].min() for i in (0, 2)]
    transform = style.build(options(views=('view',)), learned)
    out = transform.apply({'image': IMAGE, 'view': IMAGE}, np.random.default_rng(0))
    assert (out['image'] == IMAGE).all() and (out['style'] != out['view']).any() and (out['view'] != IMAGE).any()
    assert transform.writes == ('style', 'view') and transform.random
    np.testing.assert_array_equal(transform.eval_mode({'image': IMAGE})['style'], IMAGE)


def test_a_view_is_prepared_as_the_image_is():
    pixels = np.uint8(RNG.integers(0, 256, (20, 30)))
    hp = dict(size=8, fit='letterbox')
    own = image.build(ConfigDict({**image.DEFAULTS, **hp})).apply({'image': pixels})['image']
    found = view.build(ConfigDict({**view.DEFAULTS, **hp})).apply({'image': own, 'view': pixels})
    np.testing.assert_array_equal(found['view'], own)
    with pytest.raises(errors.ConfigError, match='no second image'):
        view.build(ConfigDict(view.DEFAULTS)).apply({'image': own})


def test_views_are_of_one_patient_and_side():
    cases = [Case(str(i), patient, groups={'side': side}) for i, (patient, side) in enumerate(
        [('a', 'L'), ('a', 'R'), ('b', 'L'), ('a', 'L'), ('b', 'L'), ('b', 'L'), ('c', 'R')])]
    assert two_views.partners(cases, ('side',)) == [3, 1, 4, 0, 5, 2, 6]
    assert two_views.partners(cases, ()) == [1, 3, 4, 0, 5, 2, 6]


def test_what_does_not_fit_is_refused():
    for changes, message in ((dict(kinds=('blur',)), 'style.kinds = "blur"'), (dict(kinds=()), 'kinds is empty'),
                             (dict(mix=2.0), 'style.mix')):
        with pytest.raises(errors.ConfigError, match=message):
            style.build(options(**changes))
    with pytest.raises(errors.ConfigError, match='below half the side'):
        fitted(frequencies=4)
    with pytest.raises(errors.ConfigError, match='"view" is no float32'):
        style.build(options(views=('view',))).apply({'image': IMAGE}, np.random.default_rng(0))
