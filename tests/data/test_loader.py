"""The training stream: what is random of a case belongs to its position in the stream."""
import types

import grain
import numpy as np
import pytest

from jaxkd import parallel
from jaxkd.contracts import Transform
from jaxkd.data import loader

SEED, BATCH, CASES = 11, 4, 10


def shift(record, rng):
    return {**record, 'x': record['x'] + rng.normal(size=3).astype(np.float32)}


def scale(record, rng):
    return {**record, 'x': record['x'] * np.float32(rng.uniform(1, 2)), 'factor': np.float32(rng.random())}


def dataset(*augment):
    """Of ten cases."""
    def prepared(i):
        return {'x': np.full(3, i, np.float32), 'index': np.int32(i), 'part': {'i': np.float32(i)}}
    return types.SimpleNamespace(
        config=types.SimpleNamespace(threads=2, workers=0, timeout=60.0, train='train'), prepared=prepared,
        source=types.SimpleNamespace(name='ten'), partition=types.SimpleNamespace(train_indices=lambda: range(CASES)),
        hide_labels=lambda record, i: record,
        transforms=types.SimpleNamespace(augment=[Transform(f, random=True) for f in augment]))


def taken(data, steps, start=0, **more):
    stream = loader.train_loader(data, BATCH, SEED, start, **more)
    try:
        return [next(stream) for _ in range(steps)]
    finally:
        stream.close()


def test_augmentation_draws_what_grain_draws_for_single_cases():
    data, sampler = dataset(shift, scale), loader.EpochSampler(range(CASES), SEED)

    def case(position):
        return data.prepared(int(sampler(np.array([position]))[0]))
    stream = grain.MapDataset.range(100).seed(SEED).map(case).random_map(shift).random_map(scale)
    for step, batch in enumerate(taken(data, 5)):
        for row in range(BATCH):
            expected = stream[step * BATCH + row]
            for key in ('x', 'factor', 'index'):
                np.testing.assert_array_equal(batch[key][row], expected[key])
            assert batch['part']['i'][row] == expected['index']


def test_a_stream_resumes_and_hosts_share_it(monkeypatch):
    whole = taken(dataset(shift), 6)
    for batch, expected in zip(taken(dataset(shift), 2, start=4), whole[4:]):
        np.testing.assert_array_equal(batch['x'], expected['x'])
    outputs = {'t': {'logits': np.arange(CASES, dtype=np.float32)[:, None]}}
    exchange = {'t': {'patient': np.arange(CASES) // 2}}
    for host in range(2):
        monkeypatch.setattr(parallel, 'process', lambda host=host: (host, 2))
        for batch, expected in zip(taken(dataset(shift), 3, teacher_outputs=outputs, exchange=exchange), whole):
            mine = slice(2 * host, 2 * host + 2)  # as device `host` of two of one host
            np.testing.assert_array_equal(batch['x'], expected['x'][mine])
            np.testing.assert_array_equal(batch['teacher_outputs']['t']['logits'][:, 0], expected['index'][mine])
            np.testing.assert_array_equal(batch['exchange']['t']['patient'], expected['index'][mine] // 2)


def test_an_error_of_a_reader_is_raised_where_the_batch_is_waited_for():
    def broken(record, rng):
        raise ValueError('no such pixel')
    with pytest.raises(ValueError, match='no such pixel'):
        taken(dataset(broken), 1)
