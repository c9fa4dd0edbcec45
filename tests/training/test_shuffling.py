"""A shuffled teacher that runs in every step: who reads whose inputs, on one device and on two."""
import jax
import numpy as np
import pytest

from jaxkd import errors, parallel
from jaxkd.methods import sikd
from jaxkd.training import shuffling


def order(patient, group=None, present=None):
    count = len(patient)
    rows = dict(patient=np.array(patient), group=np.array(group if group else [0] * count),
                present=np.array(present if present else [[1]] * count))
    return shuffling.partners(rows, rows, np.arange(count)).tolist()


@pytest.mark.parametrize('given, expected', [
    (dict(patient=[0, 1, 2]), [1, 2, 0]),
    (dict(patient=[0, 0, 1, 1]), [2, 2, 0, 0]),  # never the same patient
    (dict(patient=[0, 1, 2, 3], group=[0, 1, 0, 1]), [2, 3, 0, 1]),  # of equal label
    (dict(patient=[0, 1, 2, 3], group=[0, 1, 1, 1]), [1, 2, 3, 1]),  # a label that nobody shares
    (dict(patient=[0, 0, 1, 2], group=[0, 0, 1, 1]), [2, 2, 3, 2]),  # another label rather than the same patient
    (dict(patient=[0, 1, 2, 3], present=[[1], [0], [1], [1]]), [2, 2, 3, 0]),  # one whose input is there
    (dict(patient=[0, 1, 2], group=[0, 0, 1], present=[[1, 1], [1, 0], [1, 1]]), [2, 0, 0]),  # before equal labels
    (dict(patient=[5, 5, 5]), [1, 2, 0]),
])
def test_the_next_row_of_another_patient(given, expected):
    assert order(**given) == expected


def batch(rows):
    rng = np.random.default_rng(0)
    return dict(image=np.float32(rng.normal(size=(rows, 3))), scan=np.float32(rng.normal(size=(rows, 2))),
                mask=np.ones(rows, np.float32), label=np.arange(rows), index=np.arange(rows),
                present=dict(scan=np.float32([1, 1, 0, 1, 1, 0, 1, 1][:rows])),
                exchange=dict(t=dict(patient=np.int32([0, 1, 2, 3, 0, 4, 5, 6][:rows]),
                                     group=np.int32([0, 1, 1, 0, 0, 1, 1, 0][:rows]))))


def test_only_what_is_named_is_exchanged_with_its_presence():
    given = batch(8)
    found = jax.jit(lambda b: shuffling.exchanged(b, ('scan',), 't'))(given)
    wanted = [3, 6, 5, 4, 7, 2, 1, 0]
    np.testing.assert_array_equal(found['scan'], given['scan'][wanted])
    np.testing.assert_array_equal(found['present']['scan'], given['present']['scan'][wanted])
    for key in ('image', 'label', 'index', 'mask'):
        np.testing.assert_array_equal(found[key], given[key])


def test_two_devices_exchange_as_one():
    given = batch(8)
    one = shuffling.exchanged(given, ('scan', 'image'), 't')
    halves = jax.tree.map(lambda a: a.reshape(2, 4, *a.shape[1:]), given)
    two = jax.jit(jax.vmap(lambda b: shuffling.exchanged(b, ('scan', 'image'), 't'), axis_name=parallel.AXIS))(halves)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
        np.testing.assert_array_equal(a, np.reshape(b, a.shape))


def test_a_step_of_one_case_has_no_other():
    shuffling.check_batch('cpmn.method.shuffled', 4, 2)
    with pytest.raises(errors.ConfigError, match='cpmn.method.shuffled: .* Raise cpmn.batch = 1[.]'):
        shuffling.check_batch('cpmn.method.shuffled', 1, 1)


def test_the_next_case_is_that_of_all_devices():
    rows = dict(a=np.arange(8.0), b=np.arange(16.0).reshape(8, 2))
    wanted = jax.tree.map(lambda a: np.roll(a, -1, 0), rows)
    two = jax.jit(jax.vmap(shuffling.next_cases, axis_name=parallel.AXIS))(
        jax.tree.map(lambda a: a.reshape(2, 4, *a.shape[1:]), rows))
    for found in (shuffling.next_cases(rows), jax.tree.map(lambda a: a.reshape(8, *a.shape[2:]), two)):
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_the_teacher_of_sikd_sees_the_image_averaged_over_the_shape_of_another_patient():
    image = np.float32([[[1], [2], [3], [4]], [[5], [6], [7], [8]]])
    label = np.uint8([[0, 0, 1, 1], [0, 1, 1, 1]])
    rows = dict(patient=np.arange(2), group=np.zeros(2))
    given = dict(image=image, label=label, mask=np.ones(2), exchange=dict(shape=rows))
    told = sikd.class_mean(shuffling.exchanged(given, ('label',), 'shape'), 2)['image']
    np.testing.assert_allclose(told[..., 0], [[1, 3, 3, 3], [5.5, 5.5, 7.5, 7.5]], rtol=1e-6)
