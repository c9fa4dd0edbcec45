"""What the losses of torchdistill say, as numbers: python tests/reference/torchdistill_numbers.py writes
tests/reference/torchdistill_numbers.json.

The inputs follow from their names by `uniform`, so that only values and gradients are stored, computed in float64.
Needs torch and torchdistill; the tests read the file and need neither. Its similarity preserving is left out: it brings
rows to an L1 norm of 1 (the 1 in normalize(x, 1) is the order), where the article and the other code have L2.
"""
import json
import pathlib

import numpy as np

from tests.reference.torchvision_numbers import sample, uniform

FILE = pathlib.Path(__file__).with_suffix('.json')
LABEL = np.arange(7) % 4
UNIT = ('cc',)  # cases whose features have norm 1: torchdistill leaves that to its config
KERNEL = dict(type='gaussian', gamma=0.4, max_p=2)
# case -> (torchdistill's loss, its options, shapes of a case: the student's, the teacher's, channels first)
CASES = {
    'kd': ('KDLoss', dict(temperature=4.0, alpha=0.1, beta=0.9), (4,), (4,)),
    'lskd': ('LogitStdKDLoss', dict(temperature=2.0, alpha=0.1, beta=0.9), (4,), (4,)),
    'dist': ('DISTLoss', dict(tau=4.0), (4,), (4,)),
    'at': ('ATLoss', dict(mode='code'), (3, 5, 4), (6, 5, 4)),
    'at of the paper': ('ATLoss', dict(mode='paper'), (3, 5, 4), (6, 5, 4)),
    'cc': ('CCKDLoss', dict(kernel_config=KERNEL, reduction='batchmean'), (5,), (6,)),
    'rkd': ('RKDLoss', dict(dist_factor=25.0, angle_factor=50.0, reduction='mean'), (5,), (6,)),
    'pkt': ('PKTLoss', {}, (5,), (6,)),
    'vid': ('VIDLoss', {}, (3, 5, 4), (3, 5, 4)),
    'reviewkd': ('HierarchicalContextLoss', {}, (3, 7, 7), (3, 7, 7)),
}


def taps(case):
    """(student, teacher) [7, ...] of a case, channels first, float32."""
    sides = [2 * uniform(f'{case} {side}', 7 * int(np.prod(shape))).reshape(7, *shape)
             for side, shape in zip(('student', 'teacher'), CASES[case][2:])]
    return [x / np.linalg.norm(x, axis=1, keepdims=True) if case in UNIT else x for x in sides]


def main():
    import torch
    import torchdistill
    from torchdistill.losses import mid_level
    found = dict(torch=torch.__version__, torchdistill=torchdistill.__version__)
    one = dict(student_module_path='x', student_module_io='output', teacher_module_path='x', teacher_module_io='output')
    pair = {'only': dict(student=dict(io='output', path='x'), teacher=dict(io='output', path='x'), weight=1)}
    more = {'ATLoss': dict(at_pairs=pair), 'VIDLoss': dict(feature_pairs=pair),
            'RKDLoss': dict(student_output_path='x', teacher_output_path='x'),
            'CCKDLoss': dict(student_linear_path='x', teacher_linear_path='x')}
    for case, (name, options, *_) in CASES.items():
        student, teacher = (torch.from_numpy(x).double() for x in taps(case))
        student.requires_grad_()
        variance = torch.full((1, student.shape[1], 1, 1), 5.0, dtype=torch.float64)
        given = (student, variance) if case == 'vid' else (student, None) if case == 'reviewkd' else student
        loss = getattr(mid_level, name)(**more.get(name, one), **options)
        value = loss({'x': dict(output=given)}, {'x': dict(output=teacher)}, targets=torch.from_numpy(LABEL))
        value.backward()
        found[case] = dict(value=float(value.detach()), gradient=sample(student.grad.numpy()))
    FILE.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
