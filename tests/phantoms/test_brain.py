"""The brain phantom and its source against closed forms."""
import dataclasses
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from scipy import integrate

from jaxkd.data import volume as volumes
from jaxkd.data.transforms import volume
from jaxkd.metrics import classification
from jaxkd.phantoms import brain
from jaxkd.phantoms.brain import anatomy, renderer

SIZE = (28, 32, 24)


def _source(**changes):
    return brain.build(ConfigDict({**brain.DEFAULTS, **changes}))


def _grid(size):
    """Voxel centres in mm, [3,X,Y,Z]."""
    axes = [(np.arange(n) + 0.5) / n * f - f / 2 for n, f in zip(size, anatomy.FIELD)]
    return np.stack(np.meshgrid(*axes, indexing='ij'))


def test_ceiling_is_reached_by_a_reader_that_knows_the_coefficient():
    assert renderer.CEILING['auroc'] == pytest.approx(0.9214, abs=5e-5)
    assert renderer.CEILING['accuracy'] == pytest.approx(0.8413, abs=5e-5)
    truths = [renderer.facts(5, k) for k in range(12_000)]
    score, label = np.array([f.disease for f in truths]), np.array([f.label for f in truths])
    assert label.mean() == 0.5
    assert classification.auroc(score, label) == pytest.approx(renderer.CEILING['auroc'], abs=0.006)
    assert ((score > 0) == label).mean() == pytest.approx(renderer.CEILING['accuracy'], abs=0.008)
    for shift in (-0.3, 0.3):  # no other threshold does better
        assert ((score > shift) == label).mean() < ((score > 0) == label).mean() + 0.003


def test_coefficients_have_the_distributions_of_simba():
    truths = [renderer.facts(1, k) for k in range(6000)]
    disease = np.array([f.disease - (1 if f.label else -1) for f in truths])
    bias, subject = np.array([f.bias for f in truths]), np.array([f.subject for f in truths])
    for values, mean in ((disease, 0), (bias, 2), (subject.ravel(), 0)):
        assert values.mean() == pytest.approx(mean, abs=0.05) and values.std() == pytest.approx(1, abs=0.03)
    assert np.abs(subject).max() <= renderer.LIMIT and subject.shape == (6000, renderer.COMPONENTS)
    columns = np.column_stack([disease, bias, subject, [f.label for f in truths]])
    assert np.abs(np.corrcoef(columns.T) - np.eye(columns.shape[1])).max() < 0.06  # uncorrelated


@given(st.integers(0, 2**31), st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_render_is_pure(seed, subject):
    first = renderer.render(seed, subject, (16, 18, 17)).voxels
    renderer.render(seed, subject + 1, (16, 18, 17), twin=True)
    np.testing.assert_array_equal(renderer.render(seed, subject, (16, 18, 17)).voxels, first)
    assert first.dtype == np.int16 and first.min() >= 0


@given(st.floats(-4.5, 6), st.sampled_from(sorted(renderer.PLACES)), st.tuples(*[st.floats(-0.55, 0.55)] * 3))
@settings(max_examples=40, deadline=None)
def test_flow_solves_its_equation_and_goes_back(coefficient, place, direction):
    middle, axes = map(np.array, renderer.PLACES[place])
    start = middle + axes * direction

    def velocity(_, p):
        u = np.sum(((p - middle) / axes) ** 2)
        return renderer.GROWTH[place] * coefficient * (p - middle) * (1 - u) ** 2
    expected = integrate.solve_ivp(velocity, (0, 1), start, rtol=1e-9, atol=1e-9).y[:, -1]
    points = [np.array([p]) for p in start]
    renderer.flow(points, place, coefficient)
    np.testing.assert_allclose(np.ravel(points), expected, atol=2e-3)
    renderer.flow(points, place, -coefficient)
    np.testing.assert_allclose(np.ravel(points), start, atol=2e-3)


def test_flow_leaves_the_outside_alone():
    points = list(_grid((20, 20, 20)).astype(np.float32))
    before = [p.copy() for p in points]
    renderer.flow(points, 'near', 3.0)
    moved = np.linalg.norm(np.subtract(points, before), axis=0)
    middle, axes = renderer.PLACES['near']
    r = np.sqrt(sum(((p - c) / a) ** 2 for p, c, a in zip(before, middle, axes)))
    assert not moved[r >= 1].any() and moved[r < 0.8].min() > 0


def test_maps_keep_their_orientation_at_the_ends_of_the_distributions():
    rng = np.random.default_rng(0)
    for k in range(12):
        subject = tuple(rng.choice([-1, 1], renderer.COMPONENTS) * (3.5 if k < 4 else 2.0))
        truth = renderer.Facts(1, float(rng.choice([-5, 5])), float(rng.choice([-2, 6])), subject)
        points = np.stack(renderer.warp(truth, (44, 54, 40), 'near', True))
        step = np.divide(anatomy.FIELD, (44, 54, 40))
        jacobian = np.linalg.det(np.stack([np.stack([np.gradient(p, step[a], axis=a) for a in range(3)], -1)
                                           for p in points], -2).astype(float))
        assert jacobian.min() > 0, (k, jacobian.min())


@pytest.mark.parametrize('region', renderer.REGIONS)
def test_a_twin_differs_around_its_region_alone(region):
    middle, axes = renderer.PLACES[region]
    points = _grid(SIZE)
    for subject in range(6):
        clean, biased = (renderer.render(2, subject, SIZE, region, 0.05, twin).voxels.astype(int)
                         for twin in (False, True))
        changed = clean != biased
        assert changed.sum() > 20
        # 18 mm: subjects shift it, voxels blur
        r = np.sqrt(sum(((p - c) / (a + 18)) ** 2 for p, c, a in zip(points, middle, axes)))
        assert r[changed].max() < 1
        truth = renderer.facts(2, subject)
        none = renderer.render(2, subject, SIZE, region, 0.05, True, dataclasses.replace(truth, bias=0.0)).voxels
        np.testing.assert_array_equal(none, clean)
    distance = math.dist(middle, renderer.PLACES['insula'][0])
    assert distance < 15 if region == 'near' else distance > 80


def test_more_bias_changes_more():
    truth = renderer.facts(0, 4)
    clean = renderer.render(0, 4, noise=0.0).voxels.astype(int)
    change = [np.abs(renderer.render(0, 4, noise=0.0, twin=True, truth=dataclasses.replace(truth, bias=b)).voxels
                     - clean).sum()
              for b in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert change == sorted(change) and change[0] == 0 < change[1]


def test_what_lies_there_grows_with_the_coefficient():
    truth = dataclasses.replace(renderer.facts(0, 0), subject=(0.0,) * renderer.COMPONENTS, disease=0.0)
    (cx, cy, cz), (x, y, z) = renderer.PLACES['near'][0], _grid((87, 106, 78))
    around = ((x - cx) / 9) ** 2 + ((y - cy) / 26) ** 2 + ((z - cz) / 20) ** 2 < 1
    grey = []
    for bias in (-3.0, 0.0, 3.0):  # the putamen is darker than the white matter around it
        image = renderer.render(0, 0, (87, 106, 78), noise=0.0, twin=True,
                                truth=dataclasses.replace(truth, bias=bias)).voxels
        grey.append((image[around] < 800).sum())
    assert 1.3 * grey[0] < grey[1] and 1.3 * grey[1] < grey[2]


def _ridge(images, y, first, strength=1e5):
    """Predictions for all but the first images, by a ridge regression on the first."""
    centred = images - images[:first].mean(0)
    gram = centred @ centred[:first].T
    weights = np.linalg.solve(gram[:first] + strength * np.eye(first), y[:first] - y[:first].mean())
    return gram[first:] @ weights + y[:first].mean()


@pytest.mark.slow
def test_images_carry_the_coefficients():
    """A linear reader fitted to 280 images recovers most of the coefficient of further images."""
    count, first = 440, 280
    truths = [renderer.facts(3, k) for k in range(count)]
    images = np.array([renderer.render(3, k).voxels.ravel() for k in range(count)], np.float64)
    disease, label = np.array([f.disease for f in truths]), np.array([f.label for f in truths])
    guess = _ridge(images, disease, first)
    assert 1 - np.mean((guess - disease[first:]) ** 2) / disease[first:].var() > 0.75
    reader, best = (classification.auroc(s, label[first:]) for s in (guess, disease[first:]))
    assert 0.85 < reader < best + 0.03
    bias = np.array([f.bias for f in truths])
    twins = np.array([renderer.render(3, k, twin=True).voxels.ravel() for k in range(count)], np.float64)
    guess = _ridge(twins, bias, first)
    assert 1 - np.mean((guess - bias[first:]) ** 2) / bias[first:].var() > 0.65


def test_resolutions_show_the_same_scene():
    fine, coarse = (renderer.render(0, 1, size, noise=0.0) for size in ((87, 106, 78), SIZE))
    assert np.corrcoef(volumes.resample(fine, coarse.affine, SIZE).ravel(), coarse.voxels.ravel())[0, 1] > 0.98
    np.testing.assert_allclose(volumes.spacing(coarse.affine) * SIZE, anatomy.FIELD)
    np.testing.assert_allclose(volumes.middle(coarse), 0, atol=1e-9)


def test_noise_is_as_strong_as_said_and_that_of_the_case():
    plain = renderer.render(0, 7, noise=0.0).voxels.astype(float)
    grains = [renderer.render(0, k, noise=0.05, truth=renderer.facts(0, 7)).voxels - plain for k in (7, 8)]
    tissue = plain > 400
    assert grains[0][tissue].std() == pytest.approx(0.05 * renderer.SCALE, rel=0.05)
    assert abs(np.corrcoef(grains[0][tissue], grains[1][tissue])[0, 1]) < 0.05


# ---- source

def test_source_keeps_the_protocol():
    source = pickle.loads(pickle.dumps(_source(cases=12, twins=True, region='far')))
    assert len(source) == len(source.cases) == len({c.patient for c in source.cases}) == 12
    assert (source.labels == ('none', 'disease') and source.targets['label'].dtype == np.int32
            and 'not patients' in source.note)
    record = source[5]
    assert sorted(record) == ['case', 'label', 't1', 'twin'] and record['label'] == source.targets['label'][5]
    assert record['t1'].voxels.shape == SIZE and not np.array_equal(record['t1'].voxels, record['twin'].voxels)
    few, many = _source(cases=5), _source(cases=9)
    assert 'twin' not in few[0] and many.cases[:5] == few.cases
    np.testing.assert_array_equal(few[4]['t1'].voxels, many[4]['t1'].voxels)


def test_no_voxel_is_interpolated_on_the_way_to_a_network():
    record = _source(cases=2, twins=True)[1]
    options = dict(keys=('t1', 'twin'), hu=(), minmax=('t1', 'twin'), spacing=(0.0,) * 3, size=SIZE)
    out = volume.build(ConfigDict({**volume.DEFAULTS, **options})).apply(record)
    for key in ('t1', 'twin'):
        voxels = record[key].voxels.astype(np.float64)
        unit = (voxels - voxels.min()) / np.ptp(voxels) - 0.5
        assert out[key].shape == (24, 32, 28, 1) and out[key].min() == -2048 and out[key].max() == 2048
        assert np.abs(out[key][..., 0].T / 4096 - unit).max() < 1.3e-4


@pytest.mark.slow
def test_full_size():
    image = renderer.render(0, 0, (173, 211, 155))
    assert image.voxels.shape == (173, 211, 155) and volumes.spacing(image.affine).tolist() == [1, 1, 1]
