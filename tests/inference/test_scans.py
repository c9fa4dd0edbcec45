"""Whole scans: the way of each slice back to its file."""
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Transform
from jaxkd.data import labelled
from jaxkd.data.dataset import Dataset
from jaxkd.data.partition import Partition
from jaxkd.data.source import Case, Source
from jaxkd.data.transform import Transforms
from jaxkd.inference import scans


class Slices(Source):
    name, labels = 'slices', ('background', 'disc')
    cases = tuple(Case(f's{i}', 'p', 'study') for i in range(3))

    def __getitem__(self, i):
        return {'image': np.full((2, 3), i, np.float32), 'label': np.full((2, 3), i % 2, np.uint8),
                'spacing': np.ones(3, np.float32)}


def dataset(transforms, source=Slices):
    split = {case.id: 'train' for case in Slices.cases}
    return Dataset(ConfigDict(dict(boxes=1, cache='none')), source(),
                   Partition(Slices.cases, split, dict(train='train', val='val', test='test')),
                   Transforms(transforms, (), {}, {}))


def test_the_inverse_of_a_transform_sees_the_slice_that_it_made():
    def apply(record):
        return {**record, 'image': record['image'] * 10}

    def inverse(before, after):
        assert before['image'].shape == after['image'].shape == (2, 3) and after['index'] == before['index']
        return lambda values, shift=after['image'].max(): values + shift
    data = dataset((Transform(apply, inverse=inverse),))
    scan, = scans.group_scans(data, range(3))
    stack = {'image': np.stack([data.prepared(i)['image'] for i in range(3)])}
    back = scans.scan_truth(data, scan, stack).to_file_grid(np.zeros((3, 2, 3)))
    np.testing.assert_array_equal(back[:, 0, 0], (0, 10, 20))


def padded(record):
    return {**record, **{key: np.pad(record[key], 1) for key in ('image', 'label')}}


def test_predictions_off_the_grid_of_the_file_are_refused_before_and_after_training():
    message = (r'a prediction comes back as \[4, 5\], its file is \[2, 3\]. The transforms are pad \(no inverse\), '
               'same. One that changes the grid needs an `inverse`')
    same = Transform(dict, inverse=lambda before, after: np.array, name='same')
    data = dataset((Transform(padded, name='pad'), same))
    with pytest.raises(errors.ConfigError, match='Case s0: ' + message):
        labelled.check_grid(data)
    scan, = scans.group_scans(data, range(3))
    truth = scans.scan_truth(data, scan, {'image': np.zeros((3, 4, 5))})
    with pytest.raises(errors.ConfigError, match='Case study: ' + message):
        truth.to_file_grid(np.zeros((3, 4, 5)))
    labelled.check_grid(dataset((Transform(padded, inverse=lambda before, after: lambda a: a[1:-1, 1:-1]), same)))


def test_slices_without_a_spacing_are_measured_in_voxels():
    class Bare(Slices):
        def __getitem__(self, i):
            return {k: v for k, v in super().__getitem__(i).items() if k != 'spacing'}
    data = dataset((), Bare)
    scan, = scans.group_scans(data, range(3))
    truth = scans.scan_truth(data, scan, {})
    assert truth.spacing is None and truth.label.shape == (3, 2, 3)
