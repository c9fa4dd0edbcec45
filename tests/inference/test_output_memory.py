"""What is asked of a case again is not predicted again."""
import types

import numpy as np
import pytest

from jaxkd.inference import output_memory, predictor


class Counting(predictor.Predictor):
    """Outputs are functions of the index; odd cases below 4 have no input."""

    passes: list = []

    def with_data(self, data):
        return Counting(None, data, 2, {}, self.memory)

    def _predicted(self, indices, outputs, message, capture=()):
        self.passes.append((sorted(indices), tuple(outputs)))
        index = np.array(sorted(i for i in indices if i > 3 or i % 2 == 0), np.int32)
        named = {f'out/{name}': index[:, None] * 10.0 + len(name) for name in outputs}
        return dict(index=index, label=index % 2, boxes=np.zeros((len(index), 0, 5)), **named)


def dataset(n=8):
    cases = [types.SimpleNamespace(id=f'c{i}', patient=f'p{i}') for i in range(n)]
    parts = types.SimpleNamespace(indices=lambda role: dict(val=[6, 7], test=[5, 0, 1, 2, 4])[role])
    return types.SimpleNamespace(source=types.SimpleNamespace(cases=cases), partition=parts)


@pytest.fixture
def predict():
    Counting.passes = []
    data = dataset()
    memory = output_memory.OutputMemory([(data, [0, 4, 1], ('features',)), (dataset(), [0, 5], ('other',))])
    return Counting(None, data, 2, {}, memory)


def same(a, b):
    np.testing.assert_equal({**vars(a)}, {**vars(b)})


def test_a_second_evaluator_predicts_nothing(predict):
    plain = Counting(None, predict.data, 2, {})
    expected = plain('test'), plain('val'), plain('test', ('logits', 'features'), keep=[4, 0])
    Counting.passes.clear()
    same(predict('test'), expected[0])
    same(predict('val'), expected[1])
    same(predict('test'), expected[0])
    same(predict('test', ('logits', 'features'), keep=[4, 0]), expected[2])
    assert Counting.passes == [([0, 1, 2, 4, 5], ('logits', 'features')), ([6, 7], ('logits',))]


def test_only_what_is_new_is_predicted(predict):
    predict('test', keep=[2, 5])
    found = predict('test', ('features',))  # of 2 and 5 nobody had requested it
    assert Counting.passes == [([2, 5], ('logits',)), ([0, 1, 2, 4, 5], ('features',))]
    assert found.index.tolist() == [0, 2, 4, 5] and list(found.outputs) == ['features']
    predict('test', ('logits',))
    assert Counting.passes[2:] == [([0, 1, 4], ('logits',))]
    assert predict('test', keep=[1]).index.tolist() == [], 'a case without any input is known, too'
    assert len(Counting.passes) == 3


def test_other_data_and_a_capture_are_not_taken_from_memory(predict):
    predict('test')
    other = predict.with_data(dataset())
    other('test')
    predict('test', capture=('attention',))
    assert len(Counting.passes) == 3
    assert predict.memory.once('x', other.data, lambda: 1) == predict.memory.once('x', other.data, lambda: 2) == 1
    assert predict.memory.once('x', predict.data, lambda: 3) == 3
