"""Step-E: the labels of the largest losses are left out, within their class, and nothing else changes."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from jaxkd import config, errors, losses, optim, parallel
from jaxkd.methods import supervised
from jaxkd.networks import Network
from jaxkd.state import Context, Progress
from jaxkd.training import trimming
from tests.fixtures.compiled import call

LOSSES = np.float32([.2, 1.5, .7, 3, .1, .9, .4, 2.2, .3, .6])
INDEX = np.arange(10)
HP = ConfigDict(dict(rate=0.4, schedule='linear 20 epochs after 5 epochs', by='student', within_class=True))


def left_out(rate, group=np.zeros(10, int), loss=LOSSES):
    return np.asarray(call(trimming.largest, loss[:, None], group[:, None], INDEX, np.float32(rate)))[:, 0]


@pytest.mark.parametrize('rate, mean', [(0, .99), (.2, .5875), (.4, .383333)])
def test_worked_values(rate, mean):
    kept = ~left_out(rate)
    assert LOSSES[kept].mean() == pytest.approx(mean, rel=1e-5) and kept.sum() == round(10 * (1 - rate))


def test_a_rare_class_is_trimmed_no_more_than_the_others():
    group = np.array([0, 0, 0, 1, 0, 0, 0, 1, 0, 0])  # the two largest losses are of the rare class
    assert np.flatnonzero(left_out(.4)).tolist() == [1, 3, 5, 7]
    assert np.flatnonzero(left_out(.4, group)).tolist() == [1, 2, 5]  # floor(0.4 * 8) of 8, floor(0.4 * 2) of 2
    assert not left_out(.4, np.full(10, -1)).any()
    assert np.flatnonzero(left_out(.7, loss=np.ones(10, np.float32))).tolist() == [*range(3, 10)], 'equal losses'


def trim(batch, logits, epoch=25.0, **changes):
    hp = ConfigDict(HP.to_dict() | changes)
    found, share = jax.jit(lambda b, z: trimming.trim({'student': {'logits': z}}, b, hp, ('image',), Progress(
        0, epoch, 0), 4))(batch, logits)
    return jax.tree.map(np.asarray, found), float(share.value)


def test_classes_lose_their_label_when_the_schedule_says_so():
    batch = dict(label=np.int32([0, 0, 0, 0, 0, 1, -1]), mask=np.float32([1, 1, 1, 1, 1, 1, 1]), index=np.arange(7))
    logits = np.float32([[3, 0], [0, 2], [1, 0], [2, 0], [0, 5], [9, 0], [9, 0]])
    found, share = trim(batch, logits)
    assert found['label'].tolist() == [0, -1, 0, 0, -1, 1, -1] and share == pytest.approx(2 / 6)
    assert found['label'].dtype == np.int32
    assert trim(batch, logits, 15.0)[0]['label'].tolist() == [0, 0, 0, 0, -1, 1, -1]  # half of the rate: one of five
    assert trim(batch, logits, 4.0)[0]['label'].tolist() == batch['label'].tolist()
    masked = batch | dict(mask=np.float32([1, 1, 1, 1, 0, 1, 1]))
    assert trim(masked, logits)[0]['label'].tolist() == [0, -1, 0, 0, 0, 1, -1]
    plain = trim(batch, logits, within_class=False)[0]['label']
    assert plain.tolist() == [0, 0, 0, 0, -1, -1, -1], 'as published: the hard positive goes'


def test_labels_that_may_be_together_and_labels_of_places():
    label, weight = np.float32([[0, 1], [0, 1], [0, 0], [1, 1]]), np.float32([[1, 1], [1, 1], [1, 1], [1, 0]])
    batch = dict(label=label, label_weight=weight, mask=np.ones(4, np.float32), index=np.arange(4))
    logits = np.float32([[-1, 3], [2, -3], [0, 0], [-9, -9]])
    found, _ = trim(batch, logits, rate=0.5)
    assert found['label_weight'].tolist() == [[1, 1], [0, 0], [1, 1], [1, 0]]
    dense = np.array([[[0, 1]], [[0, 1]], [[0, 0]], [[255, 255]]], np.uint8)
    wrong = np.float32([[[[1, 0], [0, 1]]], [[[0, 3], [3, 0]]], [[[0, 9], [0, 9]]], [[[0, 9], [0, 9]]]])
    found, share = trim(dict(batch, label=dense), wrong, rate=0.5)
    assert found['label'].dtype == np.uint8 and share == pytest.approx(1 / 3)
    np.testing.assert_array_equal(found['label'][1], 255)
    np.testing.assert_array_equal(found['label'][[0, 2, 3]], dense[[0, 2, 3]])


def test_two_devices_rank_together():
    group = np.array([0, 0, 0, 1, 0, 1, 0, 1, 1, 0])
    rows = [x.reshape(2, 5, *x.shape[1:]) for x in (LOSSES[:, None], group[:, None], INDEX)]
    two = jax.jit(jax.vmap(lambda *x: trimming.largest(*x, 0.4), axis_name=parallel.AXIS))(*rows)
    np.testing.assert_array_equal(np.asarray(two).reshape(10), left_out(.4, group))


class Rows(nn.Module):
    @nn.compact
    def __call__(self, inputs, train=False):
        return {'logits': nn.Dense(2)(inputs['row'])}


def step(trim=None, accumulate=1):
    """(metrics of one step of any method made by steps, its term of each case)."""
    rng = np.random.default_rng(0)
    batch = dict(row=np.float32(rng.normal(size=(8, 3))), label=np.int32([0, 1] * 4), mask=np.ones(8, np.float32),
                 index=np.arange(8, dtype=np.int32))
    network = Network(Rows(), ('row',))
    rule = optim.build(ConfigDict(optim.DEFAULTS), 8, 1.0, 8)
    context = Context({'student': network}, {}, {}, batch, rule, 8, 1.0, 8, 0, accumulate, trim=trim)
    method = supervised.build(ConfigDict(supervised.DEFAULTS | dict(name='supervised', kind='classes')), context)
    state = method.init(jax.random.key(0)).replace(step=jnp.int32(10))
    _, metrics = jax.jit(method.train_step)(state, {}, batch)
    each = losses.cross_entropy(network.apply({'params': state.params['student']}, batch)[0]['logits'], batch['label'])
    return {n: float(m.value) for n, m in metrics.items()}, np.asarray(each), batch['label']


def test_a_method_learns_from_what_is_left_of_each_class_alone():
    rate = FrozenConfigDict(HP.to_dict() | dict(rate=0.5, schedule=''))
    found, each, label = step(rate)
    kept = np.concatenate([np.sort(each[label == k])[:2] for k in (0, 1)])
    assert found['sup'] == pytest.approx(kept.mean(), rel=1e-5) and found['trimmed'] == 0.5
    waiting, plain = (step(t)[0] for t in (FrozenConfigDict(HP.to_dict() | dict(schedule='after 20 epochs')), None))
    assert waiting.pop('trimmed') == 0 and waiting == pytest.approx(plain, rel=1e-6)
    halves = step(rate, accumulate=2)[0]  # of the two cases of a class in each microbatch one remains
    first = [np.sort(part[of == k])[0] for part, of in zip(np.split(each, 2), np.split(label, 2)) for k in (0, 1)]
    assert halves['sup'] == pytest.approx(np.mean(first), rel=1e-5)


def test_options_are_checked():
    stage = ConfigDict(dict(trim=HP.to_dict(), networks={}, teachers=dict(report={})))
    assert trimming.options(stage, 'student').rate == 0.4
    stage.trim.rate = 0.0
    assert trimming.options(stage, 'student') is None
    stage.trim.update(rate=0.1, by='reprt')
    with pytest.raises(errors.ConfigError, match='student.trim.by'):
        trimming.options(stage, 'student')
    with pytest.raises(errors.ConfigError, match='trim.by = "mri": its logits'):
        trimming.check_logits('mri', np.zeros((4, 2)), np.zeros((4, 3), np.float32))
    with pytest.raises(errors.ConfigError, match=r'student.trim.rate = 1.0 must lie in'):
        config.load('configs/mmpkd_mammo.py:smoke', ['student.trim.rate=1.0'])
