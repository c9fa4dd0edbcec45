"""Grey values brought to those of the training cases, and learned from these alone."""
import sys
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.config import resolution
from jaxkd.data import pool
from jaxkd.data.source import Case, Source
from jaxkd.data.transforms import harmonise
from jaxkd.data.volume import FIXED
from jaxkd.export import run


def made(fitted=None, **changes):
    return harmonise.build(ConfigDict({**harmonise.DEFAULTS, **changes}), fitted).apply


def image(*values):
    return np.float32(values).reshape(1, -1, 1)


REFERENCE = dict(mean=0.5, deviation=0.25, quantiles=[0.0, 0.2, 1.0])


def test_a_worked_image():
    """Quantiles 1, 2, 3 of the places above 0 meet 0, .2 and 1; their mean is 2, their deviation sqrt(2/3)."""
    x = image(0, 1, 2, 3)
    np.testing.assert_allclose(made(dict(image=REFERENCE))({'image': x})['image'].ravel(), [0, 0, .2, 1], atol=1e-6)
    x = image(1, 1.5, 2, 2.5, 3)
    np.testing.assert_allclose(made(dict(image=REFERENCE))({'image': x})['image'].ravel(), [0, .1, .2, .6, 1],
                               atol=1e-6)
    found = made(dict(image=REFERENCE), kind='zscore')({'image': image(0, 1, 2, 3)})['image']
    np.testing.assert_allclose(found.ravel(), [0, .5 - .25 * 1.5 ** .5, .5, .5 + .25 * 1.5 ** .5], rtol=1e-6)


@pytest.mark.parametrize('kind', harmonise.KINDS)
def test_brightness_and_contrast_of_a_scanner_are_undone(kind):
    x = np.float32(np.random.default_rng(0).random((8, 9, 1)))
    transform = made(dict(image=dict(REFERENCE, quantiles=np.linspace(0.1, 0.9, 33).tolist())), kind=kind)
    first, other = (transform({'image': np.float32(a)})['image'] for a in (x, 0.2 + 0.5 * x))
    assert first.dtype == np.float32
    np.testing.assert_allclose(other, first, atol=2e-6)
    again = transform({'image': first})['image']
    np.testing.assert_allclose(again, first, atol=1e-5 if kind == 'zscore' else 5e-3)  # what is harmonised stays
    if kind == 'histogram':
        np.testing.assert_allclose(transform({'image': x ** 2})['image'], first, atol=0.05)  # to the nearest quantile
        np.testing.assert_allclose([first.min(), first.max()], [0.1, 0.9], rtol=1e-6)


def test_images_of_one_value_and_places_outside_of_the_body_stay_and_ties_share_their_quantiles():
    transform = made(dict(image=REFERENCE))
    np.testing.assert_array_equal(transform({'image': image(0, .3, .3)})['image'], image(0, .3, .3))
    np.testing.assert_array_equal(transform({'image': image(0, 0)})['image'], image(0, 0))
    # the quantiles .3, .3, .9 of what is not background: .3 goes to the mean of 0 and .2
    np.testing.assert_allclose(transform({'image': image(-1, .3, .3, .3, .9)})['image'], image(-1, .1, .1, .1, 1),
                               atol=1e-6)


def test_fixed_point_stays_fixed_point_and_an_absent_modality_is_not_read():
    fitted = dict(t1=REFERENCE, t2=REFERENCE)
    transform = made(fitted, keys=('t1', 't2'), background=-9.0, limits=(0.0, 0.5))
    t1 = np.int16(FIXED * np.arange(4.).reshape(1, 2, 2, 1))
    found = transform({'t1': t1, 't2': np.zeros_like(t1), 'present': {'t2': np.float32(0)}})
    assert found['t1'].dtype == np.int16 and not found['t2'].any()
    np.testing.assert_allclose(found['t1'].ravel() / FIXED, [0, .4 / 3, .2 + .8 / 3, .5], atol=2 / FIXED)


class Scanners(Source):
    """Two cases of each patient; the grey values of the test patients are ten times those of the others."""
    name, labels = 'scanners', ('a',)
    cases = tuple(Case(f'{i}', f'p{i // 2}', split='test' if i >= 12 else 'train' if i < 8 else 'val')
                  for i in range(16))

    def __getitem__(self, i):
        pixels = np.uint8(np.random.default_rng(i).integers(1, 25, (12, 10)) * (10 if i >= 12 else 1))
        return {'image': pixels, 'label': np.float32([i % 2])}


@pytest.fixture
def dataset(monkeypatch):
    monkeypatch.setitem(sys.modules, 'harmonised.scanners', types.SimpleNamespace(
        DEFAULTS={}, build=lambda hp: Scanners()))

    def build(fit=True, **changes):
        data = dict(source=dict(name='harmonised.scanners'), transforms=('image', 'harmonise', 'labels'),
                    image=dict(size=8, fit='squash'), harmonise=changes, cache='none')
        return pool.build(resolution.resolve(ConfigDict(dict(stages=('s',), data=data, s=dict(
            inputs=('image',), model=dict(name='vit')))))['data'], fit=fit)
    return build


def test_the_reference_is_that_of_the_training_patients_behind_the_transforms_before_it(dataset):
    data = dataset(quantiles=9)
    assert list(data.transforms.fitted['harmonise']) == ['image']
    fitted = data.transforms.fitted['harmonise']['image']
    prepared = [data.transforms.prepare[0].apply(data.source[i])['image'] for i in range(8)]  # the training cases
    np.testing.assert_allclose(fitted['quantiles'], np.mean([np.quantile(x.astype(float), np.linspace(0, 1, 9))
                                                             for x in prepared], 0), rtol=1e-6)
    np.testing.assert_allclose(fitted['mean'], np.mean(prepared), rtol=1e-6)
    strange, usual = (data[i]['image'] for i in (14, 3))
    np.testing.assert_allclose(strange.max(), usual.max(), rtol=1e-5)
    assert data.batch_spec(2)['image'].shape == dataset(fit=False).batch_spec(2)['image'].shape


def test_options_and_values_that_do_not_fit_are_refused(dataset):
    for changes, message in ((dict(kind='match'), 'harmonise.kind = "match"'), (dict(quantiles=1), 'quantiles'),
                             (dict(limits=(1.0, 0.0)), 'a lower and an upper value')):
        with pytest.raises(errors.ConfigError, match=message):
            made(**changes)
    with pytest.raises(errors.ConfigError, match='List harmonise behind "image"'):
        made(dict(image=REFERENCE))({'image': np.zeros((4, 4), np.uint8)})
    with pytest.raises(errors.BadData, match='no training case has values of "image" above background = 2'):
        dataset(background=2.0)


@pytest.mark.parametrize('kind', harmonise.KINDS)
def test_the_runtime_of_a_bundle_computes_the_same(kind):
    x = np.random.default_rng(0).normal(0.3, 0.4, (5, 6, 7, 1))
    record = {'image': np.float32(x), 't1': np.int16(FIXED * x)}
    options = dict(harmonise.DEFAULTS, keys=['image', 't1'], kind=kind, limits=[0.0, 0.9])
    fitted = dict(image=REFERENCE, t1=dict(REFERENCE, quantiles=[0.1, 0.3]))
    ours = made(fitted, **options)(record)
    theirs, way = run.harmonise(record, options, fitted)
    assert way is None
    for key in record:
        np.testing.assert_array_equal(theirs[key], ours[key])
        assert theirs[key].dtype == record[key].dtype
