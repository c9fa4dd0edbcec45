"""Windows cover every voxel, their mean is exact, and only a slab is held."""
import tracemalloc

import flax.linen as nn
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd import errors
from jaxkd.inference import sliding_window

RNG = np.random.default_rng(0)


def pointwise(inputs):
    """Linear in each voxel: three classes of an image [...,2] and a label map [...]; and the mean of each window."""
    image, label = inputs['image'].astype(np.float32), inputs['label']
    logits = image @ np.float32([[1, -2, 0.5], [0.25, 3, -1]]) + label[..., None] * np.float32([0, 1, -1])
    return {'logits': logits, 'mean': image.mean(tuple(range(1, image.ndim - 1))), 'turned': image[..., :1]}


def case(shape):
    return {'image': RNG.integers(-500, 500, (*shape, 2)).astype(np.int16),
            'label': RNG.integers(0, 4, shape).astype(np.uint8)}


def whole(slabs):
    slabs = [slab._replace(logits=slab.logits.copy()) for slab in slabs]  # each is valid until the next
    assert [s.start for s in slabs] == [0, *(s.stop for s in slabs[:-1])], 'slabs follow one another'
    assert all(len(s.logits) == s.stop - s.start and s.logits.dtype == np.float32 for s in slabs)
    return np.concatenate([s.logits for s in slabs])


@pytest.mark.parametrize('length, side, overlap, expected',
                         [(10, 4, 0.5, [0, 2, 4, 6]), (11, 4, 0.5, [0, 1, 3, 5, 7]), (4, 4, 0.5, [0]), (3, 4, 0.5, [0]),
                          (9, 4, 0.0, [0, 2, 5]), (30, 10, 0.9, list(range(21))), (3, 1, 0.5, [0, 1, 2])])
def test_starts(length, side, overlap, expected):
    assert sliding_window.starts(length, side, overlap) == expected


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 64), st.floats(0, 0.95))
def test_starts_reach_every_voxel_evenly(length, side, overlap):
    found = np.array(sliding_window.starts(length, side, overlap))
    assert found[0] == 0 and found[-1] == max(length - side, 0)
    steps = np.diff(found)
    if len(steps):
        assert 1 <= steps.min() and steps.max() - steps.min() <= 1
        assert steps.max() <= max(1, side * (1 - overlap) + 1e-6), 'neighbours share less than was asked for'


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_pointwise_network_is_exact(data):
    """Whatever shape, window (also longer than the volume), overlap, weights, batch and flips; volumes and stacks of
    slices.
    """
    axes = data.draw(st.sampled_from((2, 3)), 'axes')
    shape = data.draw(st.tuples(*[st.integers(1, 11)] * 3), 'shape')
    window = data.draw(st.tuples(*[st.integers(1, 8)] * axes), 'window')
    mirror = data.draw(st.sets(st.integers(0, axes - 1)), 'mirror')
    overlap, weights = data.draw(st.sampled_from((0.0, 0.25, 0.5,
                                                  0.7))), data.draw(st.sampled_from(sliding_window.WEIGHTS))
    batch, inputs = data.draw(st.integers(1, 5), 'batch'), case(shape)

    def apply(rows):
        assert rows['image'].shape == (batch, *window, 2) and rows['label'].shape == (batch, *window)
        assert rows['image'].dtype == np.int16 and rows['label'].dtype == np.uint8
        return pointwise(rows)
    slabs = sliding_window.stream(apply, inputs, window, batch, overlap, weights, sorted(mirror))
    np.testing.assert_allclose(whole(slabs), pointwise(inputs)['logits'], rtol=1e-5, atol=1e-3)  # logits up to 1,500


class Net(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        x = inputs['image'].astype(np.float32) / 500
        x = nn.relu(nn.Conv(4, (3,) * (x.ndim - 2))(x))
        return {'logits': nn.Conv(3, (3,) * (x.ndim - 2))(x)}


def weights(batch):
    spec = jax.eval_shape(Net().init, jax.random.key(0), batch)
    return jax.tree.map(lambda a: RNG.normal(size=a.shape).astype(np.float32), spec)


@pytest.mark.parametrize('how', sliding_window.WEIGHTS)
def test_a_window_as_large_as_the_volume_is_the_network_itself(how):
    """Bit for bit, for a volume and for slices, of which the last batch is padded; and one program for all batches."""
    volume = case((6, 7, 8))
    variables, traced = weights({'image': volume['image'][None]}), []

    def network(inputs):
        traced.append(1)
        return Net().apply(variables, inputs)
    apply = jax.jit(network)
    direct = np.asarray(apply({k: v[None] for k, v in volume.items()})['logits'][0])
    np.testing.assert_array_equal(whole(sliding_window.stream(apply, volume, (6, 7, 8), weights=how)), direct)

    stack = case((7, 6, 5))
    variables = weights({'image': stack['image']})
    apply, fresh = jax.jit(network), len(traced)
    rows = whole(sliding_window.stream(apply, stack, (6, 5), batch=3, weights=how))
    assert len(traced) == fresh + 1
    padded = {k: np.concatenate([v[6:], v[:2] * 0]) for k, v in stack.items()}
    np.testing.assert_array_equal(rows[:3], apply({k: v[:3] for k, v in stack.items()})['logits'])
    np.testing.assert_array_equal(rows[6:], apply(padded)['logits'][:1])


@pytest.mark.parametrize('weights, expected', [('gaussian', 2 * np.exp(-4.5) / (np.exp(-0.5) + np.exp(-4.5))),
                                               ('uniform', 1.0)])
def test_the_mean_by_hand(weights, expected):
    """Windows of 4 at 0 and 2, which say 0 and 2. At voxel 2 they weigh, with sigma 4/8: exp(-1/2) and exp(-9/2)."""
    inputs = {'x': np.arange(6.0).reshape(6, 1, 1)}

    def apply(rows):
        return {'logits': np.broadcast_to(rows['x'][:, :1], rows['x'].shape)[..., None]}
    found = whole(sliding_window.stream(apply, inputs, (4, 1, 1), weights=weights)).ravel()
    np.testing.assert_allclose(found, [0, 0, expected, 2 - expected, 2, 2], rtol=1e-6)


@pytest.mark.parametrize('side', [1, 2, 3, 16, 96, 513])
def test_no_weight_is_0(side):
    weight, total = sliding_window._axis(3 * side, side, 0.5, 'gaussian')
    assert weight.min() >= np.exp(-8.01) and total.min() >= weight.min()
    np.testing.assert_array_equal(weight, weight[::-1])


def test_flips_are_turned_back_and_averaged():
    """A network that adds to the first voxels of each axis: with every flip the last ones get their share as well."""
    inputs = {'x': RNG.normal(size=(4, 5, 6)).astype(np.float32)}

    def apply(rows):
        logits = rows['x'][..., None] * 1.0
        logits[:, 0] += 8
        logits[:, :, 0] += 4
        return {'logits': logits, 'first': rows['x'][:, 0, 0, 0], 'map': rows['x'][..., None]}
    slab, = sliding_window.stream(apply, inputs, (4, 5, 6), mirror=(0, 1), wanted=('first', 'map'))
    expected = inputs['x'].copy()
    expected[[0, -1]] += 4
    expected[:, [0, -1]] += 2
    np.testing.assert_allclose(slab.logits[..., 0], expected, atol=1e-5)
    np.testing.assert_allclose(slab.windows['first'], inputs['x'][np.ix_([0, -1], [0, -1], [0])].mean(), atol=1e-5)
    np.testing.assert_allclose(slab.windows['map'][0, ..., 0], inputs['x'], atol=1e-5)


def test_outputs_of_each_window_come_with_its_place():
    inputs, window = case((9, 7, 5)), (4, 4, 4)
    _, _, found = sliding_window.labels(sliding_window.stream(pointwise, inputs, window, 4, wanted=('mean',)),
                                        (9, 7, 5))
    np.testing.assert_array_equal(found['start'], sliding_window.windows((9, 7, 5), window))
    for at, mean in zip(found['start'], found['mean']):
        part = inputs['image'][tuple(slice(a, a + 4) for a in at)]
        np.testing.assert_allclose(mean, part.mean((0, 1, 2)), rtol=1e-4, atol=1e-3)


def test_labels_and_probability():
    inputs, window = case((9, 7, 5)), (4, 3, 5)
    inputs['image'] = inputs['image'].astype(np.float32) / 500
    logits = pointwise(inputs)['logits']
    label, chance, _ = sliding_window.labels(sliding_window.stream(pointwise, inputs, window), (9, 7, 5),
                                             probability=True)
    gap = np.diff(np.sort(logits, -1))[..., -1]
    assert label.dtype == np.uint8 and chance.dtype == np.float16
    np.testing.assert_array_equal(label[gap > 1e-5], logits.argmax(-1)[gap > 1e-5])
    np.testing.assert_allclose(chance, 1 - np.exp(logits[..., 0]) / np.exp(logits).sum(-1), atol=1e-3)
    assert sliding_window.labels(sliding_window.stream(pointwise, inputs, window), (9, 7, 5))[1] is None


def test_logits_that_are_not_finite_are_no_labels():
    inputs = {'x': np.zeros((4, 3, 3), np.float32)}
    inputs['x'][2, 1, 1] = np.nan
    slabs = sliding_window.stream(lambda rows: {'logits': rows['x'][..., None].repeat(2, -1)}, inputs, (1, 3, 3))
    with pytest.raises(errors.NonFinite, match='in slice 2'):
        sliding_window.labels(slabs, (4, 3, 3))


def test_memory_is_that_of_a_slab():
    """400 slices of 64 x 64 in 8 classes are 50 MiB of logits; a window's depth of 8 is 1 MiB."""
    inputs = {'x': np.zeros((400, 64, 64), np.uint8)}

    def apply(rows):
        return {'logits': np.broadcast_to(rows['x'][..., None].astype(np.float32), (*rows['x'].shape, 8))}
    tracemalloc.start()
    label, _, _ = sliding_window.labels(sliding_window.stream(apply, inputs, (8, 32, 32)), (400, 64, 64))
    peak = tracemalloc.get_traced_memory()[1] - label.nbytes
    tracemalloc.stop()
    assert peak < 8 * 2**20, f'{peak / 2**20:.1f} MiB'


def test_the_next_batch_is_under_way_before_the_last_one_is_fetched():
    seen = []

    class Coming:
        def __init__(self, n, array):
            self.n, self.array, self.shape = n, array, array.shape
            seen.append(f'start {n}')

        def __array__(self, dtype=None, copy=None):
            seen.append(f'fetch {self.n}')
            return self.array

    def apply(rows):
        return {'logits': Coming(sum('start' in s for s in seen), rows['x'][..., None])}
    list(sliding_window.stream(apply, {'x': np.zeros((3, 2, 2), np.float32)}, (2, 2)))
    assert seen == ['start 0', 'start 1', 'fetch 0', 'start 2', 'fetch 1', 'fetch 2']


@pytest.mark.parametrize('changes, message', [
    (dict(window=(4, 4, 4, 4)), 'three leading axes'), (dict(window=(4,)), 'three leading axes'),
    (dict(batch=0), 'at least one window'),
    (dict(inputs={}), 'three leading axes'), (dict(inputs={'x': np.zeros((4, 4))}), 'three leading axes'),
    (dict(inputs={'x': np.zeros((4, 4, 4)), 'y': np.zeros((4, 4, 5))}), 'three leading axes'),
    (dict(window=(4, 0, 4)), 'positive'), (dict(overlap=1.0), r'\[0,1\)'), (dict(overlap=float('nan')), r'\[0,1\)'),
    (dict(inputs={'x': np.zeros((0, 4, 4))}), 'positive'), (dict(weights='gauss'), 'Did you mean "gaussian"'),
    (dict(mirror=(3,)), 'axes of the window'), (dict(window=(4, 4), mirror=(2,)), 'axes of the window')])
def test_what_cannot_be_is_said_before_anything_runs(changes, message):
    with pytest.raises(errors.ConfigError, match=message):
        sliding_window.stream(**{**dict(apply=None, inputs={'x': np.zeros((8, 8, 8))}, window=(4, 4, 4)), **changes})


def test_what_the_network_does_not_give_is_named():
    inputs = {'x': np.zeros((8, 8, 8))}
    with pytest.raises(errors.ConfigError, match='"class_logit".*Did you mean "class_logits"'):
        list(sliding_window.stream(lambda rows: {'logits': rows['x'][..., None], 'class_logits': 0}, inputs, (4, 4, 4),
                            wanted=('class_logit',)))
    with pytest.raises(errors.ConfigError, match='one row of classes for each voxel'):
        list(sliding_window.stream(lambda rows: {'logits': rows['x'].mean((1, 2))}, inputs, (4, 4, 4)))
