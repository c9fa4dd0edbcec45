"""Whole scans: the way of each slice back to its file."""
import numpy as np
from ml_collections import ConfigDict

from jaxkd.contracts import Transform
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


def test_the_inverse_of_a_transform_sees_the_slice_that_it_made():
    def apply(record):
        return {**record, 'image': record['image'] * 10}

    def inverse(before, after):
        assert before['image'].shape == after['image'].shape == (2, 3) and after['index'] == before['index']
        return lambda values, shift=after['image'].max(): values + shift
    transforms = Transforms((Transform(apply, inverse=inverse),), (), {}, {})
    split = {case.id: 'test' for case in Slices.cases}
    data = Dataset(ConfigDict(dict(boxes=1, cache='none')), Slices(),
                   Partition(Slices.cases, split, dict(train='train', val='val', test='test')), transforms)
    scan, = scans.group_scans(data, range(3))
    stack = {'image': np.stack([data.prepared(i)['image'] for i in range(3)])}
    back = scans.scan_truth(data, scan, stack).to_file_grid(np.zeros((3, 2, 3)))
    np.testing.assert_array_equal(back[:, 0, 0], (0, 10, 20))
