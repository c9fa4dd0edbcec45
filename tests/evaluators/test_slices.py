"""Slices and class activation maps, from a small network over volumes through the real predictor."""
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import errors
from jaxkd.data.source import Case
from jaxkd.evaluators import slices
from jaxkd.inference import class_activation, output_memory, predictor
from jaxkd.networks import Network
from jaxkd.report import pictures
from jaxkd.runtime import files

N, SIZE, LABELS = 24, (4, 12, 16), ('benign', 'low', 'malignant')
HP = types.SimpleNamespace(**slices.DEFAULTS)


class Net(nn.Module):
    """Logits linear in the mean of `map`, with a second matrix of the same shape that has nothing to do with them."""

    linear: bool = True

    @nn.compact
    def __call__(self, inputs, train=False, capture=()):
        x = inputs['ct'].astype(jnp.float32) / 4096
        x = nn.relu(nn.Conv(8, (3, 3, 3), (2, 4, 4))(x) + 0.1)
        pooled = x.mean((1, 2, 3))
        nn.Dense(3, name='auxiliary')(pooled)
        head = nn.Dense(3, name='classification', bias_init=nn.initializers.normal(1))
        z = head(pooled if self.linear else jnp.square(pooled))
        return {'logits': z, 'features': x, 'pooled': pooled}


class Data:
    """Volumes without a file; the first half challenging. Every third case has no T1."""

    def __init__(self):
        groups = [{'subgroup': 'challenging' if i < N // 2 else 'ordinary'} for i in range(N)]
        cases = tuple(Case(f'v{i}', f'p{i}', groups=groups[i]) for i in range(N))
        self.source = types.SimpleNamespace(cases=cases, labels=LABELS)
        self.asked = []

    config, partition = types.SimpleNamespace(threads=1), property(lambda self: self)

    def indices(self, role):
        return list(range(N))

    def __getitem__(self, i):
        rng, there = np.random.default_rng(i), i % 3 > 0
        t1 = rng.integers(-3000, 3000, (*SIZE, 1)).astype(np.int16)
        return dict(ct=rng.integers(0, 4096, (*SIZE, 1)).astype(np.int16), t1=t1 if there else np.zeros_like(t1),
                    present={'ct': np.float32(1), 't1': np.float32(there)}, label=np.int32(i % 3), index=np.int32(i),
                    mask=np.float32(1), boxes=np.zeros((0, 5), np.float32), prior=np.ones((2, 2, 3), np.float32))

    def batch(self, indices, evaluation=False, each=map):
        self.asked = [*self.asked, *indices]
        return jax.tree.map(lambda *a: np.stack(a), *(self[i] for i in indices))


class Spy(Network):
    """Remembers which keys of a batch the network was handed."""

    seen = set()

    def only(self, batch):
        found = super().only(batch)
        Spy.seen |= {*found, *(f'present/{k}' for k in found['present'])}
        return found


def make_predictor(linear=True):
    data = Data()
    network = Spy(Net(linear), ('ct',))
    variables = network.init(jax.random.key(0), data.batch(range(8)))
    return predictor.Predictor(network, data, 8, variables)


@pytest.fixture(scope='module')
def found():
    predict = make_predictor()
    table, rows, arrays = slices.report(predict, HP, 10, 0)
    assert table == rows == {} and list(arrays) == ['slices']
    return predict, arrays['slices']


def test_arrays_are_plain_and_of_equal_length(found, tmp_path):
    _, a = found
    files.write_npz(tmp_path / 'a.npz', a)
    with np.load(tmp_path / 'a.npz', allow_pickle=False) as stored:
        assert set(stored.files) == set(a)
        assert all(np.array_equal(stored[k], a[k]) for k in a)
    n = len(a['case'])
    assert a['image'].shape == (n, 2, *SIZE[1:]) and a['image'].dtype == np.uint8 and a['cam'].shape == (n, *SIZE[1:])
    assert a['stack'].shape == (n, 2, 4, *SIZE[1:]) and a['cam_stack'].shape == (n, 4, *SIZE[1:]), 'all four slices'
    assert a['cam_stack'].max((1, 2, 3)).tolist() == [255] * n
    assert {len(a[k]) for k in ('group', 'label', 'probability', 'present', 'has_cam')} == {n}
    assert list(a['map_shape']) == [2, 3, 4]  # z, y, x: strides 2, 4, 4 of a crop of 4, 12, 16
    assert list(a['modalities']) == ['ct', 't1'] and list(a['labels']) == list(LABELS)
    np.testing.assert_allclose(a['probability'].sum(1), 1, rtol=1e-6)


def test_cases_that_were_predicted_already_pass_the_network_once(found):
    plain, predict = make_predictor(), make_predictor()
    predict = predict.with_memory(output_memory.OutputMemory(slices.requests(predict, HP)))
    np.testing.assert_array_equal(predict('test').outputs['logits'], plain('test').outputs['logits'])
    assert predict.data.asked[8:] == list(range(N))
    arrays = slices.report(predict, HP, 10, 0)[2]['slices']
    assert all(np.array_equal(arrays[k], a) for k, a in found[1].items())
    assert predict.data.asked[8:] == list(range(N))


@pytest.mark.parametrize('shape, said', [((2, 3, 4), '(4 x 3 in the slice, 2 slices)'),
                                         ((9, 9, 2), '(2 x 9 in the slice, 9 slices)'), ((1, 4, 4), '')])
def test_a_coarse_map_is_said_to_be_coarse(found, shape, said):
    fine = found[1] | {'map_shape': np.array([4, 7, 7], np.int32)}
    a = found[1] | {'map_shape': np.array(shape, np.int32)}
    page = pictures.slices(types.SimpleNamespace(slices={'fine': fine, 'cpkd': a}, shown=str))
    assert (f'maps of cpkd {said} that they hardly tell a place' in page) if said else ('hardly' not in page)
    without = {k: v for k, v in a.items() if k != 'map_shape'}  # a run from before it was stored
    for other in (without, a | {'has_cam': np.zeros_like(a['has_cam'])}):
        assert 'hardly' not in pictures.slices(types.SimpleNamespace(slices={'cpkd': other}, shown=str))


def test_network_is_handed_its_own_inputs_alone(found):
    assert Spy.seen == {'ct', 'present', 'present/ct'}


def test_first_cases_of_each_subgroup_then_one_wrong_and_one_right(found):
    predict, a = found
    right = dict(zip(a['case'], a['probability'].argmax(1) == a['label']))
    every = predict('test')
    truth = dict(zip(every.ids, every.outputs['logits'].argmax(1) == every.label))
    assert all(right[c] == truth[c] for c in right)
    for start, group in ((0, 'subgroup=challenging'), (N // 2, 'subgroup=ordinary')):
        cases = [str(c) for c, g in zip(a['case'], a['group']) if g == group]
        assert cases[:2] == [f'v{start}', f'v{start + 1}']
        among = [f'v{i}' for i in range(start, start + N // 2)]
        assert {right[c] for c in cases} == {truth[c] for c in among}  # both where there are both
        for c in cases[2:]:
            assert c == next(x for x in among if truth[x] == right[c])
    assert len(set(a['case'])) == len(a['case']) <= 8


def test_pictures_are_the_middle_slices_upright_and_a_missing_one_is_black(found):
    predict, a = found
    for case, images, present in zip(a['case'], a['image'], a['present']):
        record = predict.data.__getitem__(int(case[1:]))
        assert list(present) == [1, int(case[1:]) % 3 > 0]
        assert images[1].any() == (present[1] > 0)
        ct = record['ct'][SIZE[0] // 2, ::-1, ::-1, 0].astype(float)
        low, high = np.percentile(ct, (1, 99))
        np.testing.assert_allclose(images[0], 255 * np.clip((ct - low) / (high - low), 0, 1), atol=1)


def test_activation_adds_up_to_the_logit(found):
    """Before relu and upsampling the mean of the map is the logit without its bias: so it is exact."""
    predict, _ = found
    cases = predict('test', ('logits', 'features'))
    kernel = class_activation.head(predict.variables['params'], cases.outputs)
    head = predict.variables['params']['classification']
    np.testing.assert_array_equal(kernel, head['kernel'])  # not that of `auxiliary`, of the same shape
    cams = cases.outputs['features'] @ kernel
    np.testing.assert_allclose(cams.mean((1, 2, 3)) + head['bias'], cases.outputs['logits'], atol=1e-5)


def test_activation_worked_and_in_place():
    maps = np.zeros((2, 2, 2, 4, 2), np.float32)
    maps[:, :, 0, 3, 0] = 2  # channel 0: first row, last column
    maps[:, :, 1, 0, 1] = 3  # channel 1: second row, first column
    kernel = np.array([[1.0, -1], [-1, 2]])
    cams = class_activation.activation(maps, kernel, np.array([0, 1]), (2, 2, 4))
    np.testing.assert_allclose(cams[0], [[0, 0, 0, 2], [0, 0, 0, 0]])  # what speaks against the class is 0
    np.testing.assert_allclose(cams[1], [[0, 0, 0, 0], [6, 0, 0, 0]])
    both = class_activation.activation(maps, kernel, np.array([0, 1]), (2, 2, 4), [0, 1])
    np.testing.assert_array_equal(both[:, 1], cams)
    large = class_activation.activation(maps, kernel, np.array([0, 1]), (8, 20, 40))
    assert large.shape == (2, 20, 40)
    row, column = np.unravel_index(large[0].argmax(), (20, 40))
    assert row < 10 and column >= 30
    assert large.max() == pytest.approx(6) and large.min() == 0
    deep = np.zeros((1, 4, 1, 1, 1), np.float32)
    deep[0, 2] = 1  # of four planes over sixteen slices, slice 8 lies in the third
    assert class_activation.activation(deep, np.ones((1, 1)), np.array([0]), (16, 1, 1))[0, 0,
                                                                                         0] == pytest.approx(0.625)


def test_a_network_whose_logits_come_otherwise_has_no_map(capsys):
    arrays = slices.report(make_predictor(linear=False), HP, 10, 0)[2]['slices']
    assert not arrays['has_cam'].any() and not arrays['cam'].any() and arrays['image'].any()
    assert 'there is no map of a class' in capsys.readouterr().out


def test_only_some_cases_are_looked_at():
    predict = make_predictor()
    hp = types.SimpleNamespace(group='subgroup', first=1, look=3)
    assert len(slices.report(predict, hp, 10, 0)[2]['slices']['case']) <= 4
    assert predict.data.asked[8:] == [0, 1, 2, N // 2, N // 2 + 1, N // 2 + 2]
    predict.data.indices = lambda role: []
    assert slices.report(predict, hp, 10, 0) == ({}, {}, {})


def test_networks_without_volumes_or_map_are_refused_before_training():
    spec = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)  # noqa: E731
    slices.check(Network(Net(), ('ct',)), {'ct': spec(2, *SIZE, 1)}, HP)

    class Flat(nn.Module):
        @nn.compact
        def __call__(self, inputs, train=False):
            return {'logits': nn.Dense(3)(inputs['tokens'])}
    with pytest.raises(errors.ConfigError, match='Take "slices" out'):
        slices.check(Network(Flat(), ('tokens',)), {'tokens': spec(2, 7)}, HP)
