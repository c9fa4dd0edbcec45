"""Pictures of segmented scans: which slice, which slices to step through, and which scans."""
import types

import numpy as np
import pytest

from jaxkd.data.source import IGNORED
from jaxkd.inference import overlays
from jaxkd.inference.scans import Scan

DEPTH, SIDE = 20, 40


def scan(n, low=5, high=12, most=8, side=SIDE, dice=0.5):
    """A truth from slice low to high, largest in slice `most`; the prediction is one column further."""
    truth = np.zeros((DEPTH, side, side), np.int32)
    truth[low:high + 1, 10:14, 10:14], truth[most, 10:20, 10:20] = 1, 2
    truth[:, 0, 0] = IGNORED
    image = np.arange(DEPTH * side * side, dtype=np.float32).reshape(DEPTH, side, side, 1)
    record = dict(label=truth, ct=image)
    return overlays.picture(Scan(f's{n}', 'p', {}, ()), record, 'ct', np.roll(truth, 1, 2), {'dice/a': dice})


@pytest.fixture(autouse=True)
def no_maps(monkeypatch):
    monkeypatch.setattr(overlays, '_maps', lambda predict, data, picture: {})


def arrays(pictures, counts=(1, 1, 1, 1)):
    data = types.SimpleNamespace(source=types.SimpleNamespace(labels=('b', 'x', 'y')))
    return overlays.examples(None, data, pictures, counts)


def test_the_slice_with_most_of_the_truth_and_slices_from_its_end_to_end():
    a = arrays([scan(0)])
    assert (a['truth'][0] == 2).sum() == 100 and a['stack'].shape == (1, 3, overlays.STACK, SIDE, SIDE)
    image, truth, predicted = a['stack'][0]
    assert [int(np.isin(t, (1, 2)).sum()) for t in truth] == [16, 16, 16, 100, 100, 16, 16, 16, 16], 'slices 5 to 12'
    np.testing.assert_array_equal(predicted, np.roll(truth, 1, 2))
    assert image.min() == 0 and image.max() == 255 and (np.diff(image.mean((1, 2))) >= 0).all(), 'one scale for all'


def test_a_scan_without_truth_shows_what_was_predicted_and_else_all_of_it():
    empty = dict(label=np.zeros((DEPTH, 8, 8), np.int32), ct=np.zeros((DEPTH, 8, 8, 1), np.float32))
    label = np.zeros((DEPTH, 8, 8), np.int32)
    label[3, 2, 2] = 1
    found = overlays.picture(Scan('s', 'p', {}, ()), empty, 'ct', label, {'dice/a': 0.0})
    assert found['predicted'][2, 2] == 1 and found['z'] == 3
    nothing = overlays.picture(Scan('s', 'p', {}, ()), empty, 'ct', 0 * label, {'dice/a': 1.0})
    assert nothing['z'] == 0


def test_large_slices_are_thinned_and_few_scans_have_them():
    large = overlays.SIDE * 2 + 1
    pictures = [scan(i, side=large if i == 0 else SIDE, dice=i / 10) for i in range(9)]
    a = arrays(pictures, (2, 2, 2, 2))
    assert len(a['case']) == 6 and a['image'].shape == (6, large, large)
    assert a['stack'].shape[:3] == (overlays.STACKED, 3, overlays.STACK) and a['stack'].shape[3] <= overlays.SIDE
    assert [str(a['case'][i]) for i in a['stack_row'][:2]] == ['s0', 's1'], 'those of all stages first'
